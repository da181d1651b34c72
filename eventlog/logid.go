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

// LogID identifies the logs that positions are in. It is a hash of the cluster's id and
// the ids of the topics that a token may name. Kafka gives each topic that is created
// a new id. So logs that were deleted and created again have another LogID, and so
// have the logs of another cluster. Logs that were restored from a backup keep theirs.
type LogID [6]byte

// ErrUnknownToken means that a token names positions that these logs do not have. It
// is a token of other logs, or its positions are beyond the ends of these logs.
var ErrUnknownToken = errors.New("the consistency token is not of these logs, or names what they do not hold")

// ReadLogID reads the LogID from the brokers. It fails if one of the topics does not
// exist.
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

// clientPrefix is the number of characters that a LogID has in a client's token.
const clientPrefix = 8

// String returns the LogID as eight characters of A-Z a-z 0-9 _ and -.
func (id LogID) String() string { return base64.RawURLEncoding.EncodeToString(id[:]) }

// Format returns the text that clients get for a token: the LogID and then token,
// which is the result of Token.String. It returns "" for an empty token.
func (id LogID) Format(token string) string {
	if token == "" {
		return ""
	}
	return id.String() + token
}

// ClientToken is a token as a client sent it, with the LogID that it was made for.
type ClientToken struct {
	log   LogID
	token Token
}

// ParseClientToken reads a text that Format of any LogID has written. It fails on
// anything else, and its error may be shown to a client. It reads "" as a token that
// has no positions.
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

// For returns the token if it was made for the logs with this id. Otherwise it fails
// with ErrUnknownToken.
func (t ClientToken) For(id LogID) (Token, error) {
	if t.token != nil && t.log != id {
		return nil, ErrUnknownToken
	}
	return t.token, nil
}
