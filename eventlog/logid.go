package eventlog

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// LogID is a fingerprint of the logs that positions are in: of the cluster's id
// and the ids of the topics that a token may name. Kafka draws a new id for each
// topic that is created, so logs that were deleted and made anew have another
// LogID, and so have those of another cluster. Logs that were put back from a
// backup keep theirs.
type LogID [6]byte

// ErrUnknownToken says that a token names positions which these logs do not
// have: it is of other logs, or beyond their ends.
var ErrUnknownToken = errors.New("the consistency token is not of these logs, or names what they do not hold")

// ReadLogID asks the brokers. The topics must be there.
func ReadLogID(ctx context.Context, client *kgo.Client) (id LogID, err error) {
	meta, err := kadm.NewClient(client).Metadata(ctx, tokenTopics...)
	if err != nil {
		return id, fmt.Errorf("reading the ids of the topics: %w", err)
	}
	h := sha256.New()
	fmt.Fprintf(h, "%q", meta.Cluster)
	for _, name := range tokenTopics {
		t, ok := meta.Topics[name]
		if !ok {
			t.Err = kerr.UnknownTopicOrPartition
		}
		if t.Err != nil {
			return id, fmt.Errorf("reading the id of topic %s: %w", name, t.Err)
		}
		fmt.Fprintf(h, "%q %x", name, t.ID)
	}
	copy(id[:], h.Sum(nil))
	return id, nil
}

// clientPrefix is how many characters a LogID takes in a client's token.
const clientPrefix = 8

// Format returns a token, given as Token.String writes it, as clients get it:
// the LogID goes before it. Of no positions it is empty.
func (id LogID) Format(token string) string {
	if token == "" {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(id[:]) + token
}

// ClientToken is a token as a client sent it, with the LogID that it was made for.
type ClientToken struct {
	log   LogID
	token Token
}

// ParseClientToken reads what Format wrote, for whichever logs. It fails on
// anything else; the error is fit for a client. The empty text asks for nothing.
func ParseClientToken(s string) (t ClientToken, err error) {
	if s == "" {
		return t, nil
	}
	if len(s) <= clientPrefix {
		return t, errNoToken
	}
	if _, err := base64.RawURLEncoding.Decode(t.log[:], []byte(s[:clientPrefix])); err != nil {
		return t, errNoToken
	}
	t.token, err = ParseToken(s[clientPrefix:])
	return t, err
}

// For returns the positions if they are in these logs, else ErrUnknownToken.
func (t ClientToken) For(id LogID) (Token, error) {
	if t.token != nil && t.log != id {
		return nil, ErrUnknownToken
	}
	return t.token, nil
}
