package eventlog

import (
	"cmp"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"slices"
)

// TopicPartition names one log.
type TopicPartition struct {
	Topic     string
	Partition int32
}

// CompareTopicPartitions orders by topic, then by partition.
func CompareTopicPartitions(a, b TopicPartition) int {
	return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
}

// Token is a set of log positions: for each log the offset that a reader must
// have passed (its next offset is higher). With a LogID it is the content of the
// Consistency-Token header; instances pass it to one another without. A nil Token
// asks for nothing.
type Token map[TopicPartition]int64

// Add raises the token to at least offset in the given log.
func (t Token) Add(topic string, partition int32, offset int64) {
	tp := TopicPartition{topic, partition}
	if old, ok := t[tp]; !ok || offset > old {
		t[tp] = offset
	}
}

// Merge raises the token to at least other.
func (t Token) Merge(other Token) {
	for tp, o := range other {
		t.Add(tp.Topic, tp.Partition, o)
	}
}

// ErrBehind says that a reader did not reach a token in time. A repeat may.
var ErrBehind = errors.New("behind the consistency token")

const maxTokenEntries = 64

var errNoToken = errors.New("not a Consistency-Token that this service made")

// tokenTopics numbers the topics inside a token. Append only: tokens are
// short-lived, but two builds may meet during a rolling restart.
var tokenTopics = []string{Orders, Payments, Riders, Restaurants, RiderLocations, PaymentWebhooks, Feed}

// Position is the place of one record.
type Position struct {
	TopicPartition
	Offset int64
}

// String returns the token as [A-Za-z0-9_-]*: base64url of varint triples
// (topic number, partition, offset), sorted.
func (t Token) String() string {
	positions := make([]Position, 0, len(t))
	for tp, offset := range t {
		positions = append(positions, Position{tp, offset})
	}
	return TokenString(positions)
}

// TokenString returns what a token of these positions is as text; it sorts them.
// Of each log there is one.
func TokenString(positions []Position) string {
	slices.SortFunc(positions, func(a, c Position) int {
		if d := slices.Index(tokenTopics, a.Topic) - slices.Index(tokenTopics, c.Topic); d != 0 {
			return d
		}
		return int(a.Partition - c.Partition)
	})
	var room [64]byte
	b := room[:0]
	for _, p := range positions {
		i := slices.Index(tokenTopics, p.Topic)
		if i < 0 {
			continue
		}
		b = binary.AppendUvarint(b, uint64(i))
		b = binary.AppendUvarint(b, uint64(p.Partition))
		b = binary.AppendUvarint(b, uint64(p.Offset))
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// ParseToken reads what String wrote. It fails on anything else; the error is
// fit for a client.
func ParseToken(s string) (Token, error) {
	if s == "" {
		return nil, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return nil, errNoToken
	}
	t := Token{}
	next := func() uint64 {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			err = errNoToken
			b = nil
			return 0
		}
		b = b[n:]
		return v
	}
	for len(b) > 0 {
		topic, part, off := next(), next(), next()
		if err != nil {
			return nil, err
		}
		if topic >= uint64(len(tokenTopics)) || part > 1<<20 || off > 1<<62 || len(t) >= maxTokenEntries {
			return nil, errNoToken
		}
		t[TopicPartition{tokenTopics[topic], int32(part)}] = int64(off)
	}
	return t, nil
}
