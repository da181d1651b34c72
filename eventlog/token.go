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

// CompareTopicPartitions compares by topic and then by partition.
func CompareTopicPartitions(a, b TopicPartition) int {
	return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
}

// Token is a set of positions. For each log it has the offset of a record that a reader
// must have passed, which means that the reader's next offset is higher. The header
// Consistency-Token has a Token and a LogID. Instances send each other Tokens without
// a LogID. Every reader has passed a nil Token.
type Token map[TopicPartition]int64

// Add raises the token to offset in the given log, unless it is higher already.
func (t Token) Add(topic string, partition int32, offset int64) {
	tp := TopicPartition{topic, partition}
	if old, ok := t[tp]; !ok || offset > old {
		t[tp] = offset
	}
}

// Merge adds all positions of other.
func (t Token) Merge(other Token) {
	for tp, o := range other {
		t.Add(tp.Topic, tp.Partition, o)
	}
}

// ErrBehind means that a reader did not pass a token in time. To try again later may
// succeed.
var ErrBehind = errors.New("behind the consistency token")

const maxTokenEntries = 4 << 10

var errNoToken = errors.New("not a Consistency-Token that this service made")

// tokenTopics has the topics that a token may name. A topic's index is its number in
// the text of a token. New topics go to the end only, because two builds exchange
// tokens during a rolling restart.
var tokenTopics = []string{Orders, Payments, Riders, Restaurants, RiderLocations, PaymentWebhooks, Feed}

// Position is the position of one record: its log and its offset.
type Position struct {
	TopicPartition
	Offset int64
}

// String returns the token as text of [A-Za-z0-9_-]*. It is the base64url of three
// varints per position, which are the number of the topic, the partition and the
// offset. The positions are sorted.
func (t Token) String() string {
	positions := make([]Position, 0, len(t))
	for tp, offset := range t {
		positions = append(positions, Position{tp, offset})
	}
	return TokenString(positions)
}

// TokenString returns the text of a token of these positions. It sorts positions. They
// must be of different logs.
func TokenString(positions []Position) string {
	slices.SortFunc(positions, func(a, c Position) int {
		if d := slices.Index(tokenTopics, a.Topic) - slices.Index(tokenTopics, c.Topic); d != 0 {
			return d
		}
		return int(a.Partition - c.Partition)
	})
	var array [64]byte
	b := array[:0]
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

// ParseToken reads a text that String has written. It fails on anything else, and its
// error may be shown to a client.
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
