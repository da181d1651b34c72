package realtime

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
)

// BaseType is the type of the records on topic feed that say how far an instance had
// published the logs: bases. Their data is private to the feeds and may change with any
// version, which then ignores those of before.
const BaseType = "FEED_BASE"

const (
	baseVersion = 1
	baseEvery   = 5 * time.Second // while records are published
	// baseAtLeast is the time between two bases in a quiet time. A cursor names a base, and
	// the topic keeps it for a day.
	baseAtLeast = time.Hour
)

// mark is how far one log was published: the offset of the last record that was, or -1,
// and the state of the reader rule after it.
type mark struct {
	offset int64
	rule   eventlog.Rule
}

// base is what a base record says: the mark of each log of Topics.
type base struct {
	id    int64  // the offset of the record, or eventlog.NoFeedBase
	key   string // the id of the event, which is random
	marks map[eventlog.TopicPartition]mark
}

// passed returns the offsets alone.
func (b *base) passed() map[eventlog.TopicPartition]int64 {
	passed := make(map[eventlog.TopicPartition]int64, len(b.marks))
	for tp, m := range b.marks {
		passed[tp] = m.offset
	}
	return passed
}

func (b *base) public() eventlog.FeedBase {
	return eventlog.FeedBase{ID: b.id, Key: b.key, Passed: b.passed()}
}

// baseData is the data of a base record. Logs are varints: for each topic of Topics and
// each partition the next offset, as a distance from the least one of the topic, which
// comes first, and on aggregate topics the term and the seq.
type baseData struct {
	Version    int    `json:"v"`
	Partitions int    `json:"partitions"`
	Logs       []byte `json:"logs"`
}

func encodeBase(marks map[eventlog.TopicPartition]mark) ([]byte, error) {
	d := baseData{Version: baseVersion}
	for tp := range marks {
		d.Partitions = max(d.Partitions, int(tp.Partition)+1)
	}
	for _, topic := range Topics {
		all := make([]mark, d.Partitions)
		least := int64(1) << 62
		for p := range all {
			all[p] = marks[eventlog.TopicPartition{Topic: topic, Partition: int32(p)}]
			least = min(least, all[p].offset+1)
		}
		d.Logs = binary.AppendUvarint(d.Logs, uint64(least))
		for _, m := range all {
			d.Logs = binary.AppendUvarint(d.Logs, uint64(m.offset+1-least))
			if eventlog.IsAggregate(topic) {
				d.Logs = binary.AppendUvarint(d.Logs, uint64(m.rule.Term))
				d.Logs = binary.AppendUvarint(d.Logs, uint64(m.rule.Seq))
			}
		}
	}
	return json.Marshal(d)
}

var errNoBase = errors.New("the record is no base of this version")

func decodeBase(r *kgo.Record) (*base, error) {
	e, err := eventlog.ParseRecord(r)
	if err != nil || e.Type != BaseType {
		return nil, errNoBase
	}
	var d baseData
	if json.Unmarshal(e.Data, &d) != nil || d.Version != baseVersion || d.Partitions < 1 || d.Partitions > 1<<16 {
		return nil, errNoBase
	}
	rest := d.Logs
	next := func() int64 {
		n, size := binary.Uvarint(rest)
		if size <= 0 || n > 1<<62 {
			err = errNoBase
			return 0
		}
		rest = rest[size:]
		return int64(n)
	}
	b := &base{r.Offset, e.ID, make(map[eventlog.TopicPartition]mark, len(Topics)*d.Partitions)}
	for _, topic := range Topics {
		least := next()
		for p := range int32(d.Partitions) {
			m := mark{offset: least + next() - 1}
			if eventlog.IsAggregate(topic) {
				m.rule = eventlog.Rule{Term: next(), Seq: next()}
			}
			b.marks[eventlog.TopicPartition{Topic: topic, Partition: p}] = m
			if err != nil {
				return nil, err
			}
		}
	}
	return b, nil
}

// bases appends bases to the log and reads them.
type bases struct {
	client *kgo.Client
	read   *eventlog.ReadAt
	tp     eventlog.TopicPartition // that has the bases
}

func newBases(client *kgo.Client, partitions int32) *bases {
	return &bases{client, eventlog.NewReadAt(client), eventlog.FeedBases(partitions)}
}

// append appends a base, and returns it when the brokers have acknowledged it.
func (b *bases) append(ctx context.Context, marks map[eventlog.TopicPartition]mark) (*base, error) {
	data, err := encodeBase(marks)
	if err != nil {
		return nil, err
	}
	unique, err := uuid.NewV7()
	if err != nil {
		return nil, err
	}
	e := eventlog.Event{ID: unique.String(), Source: "/tomato/projections/realtime", Type: BaseType, Time: time.Now().UTC().Truncate(time.Microsecond), Subject: eventlog.FeedBaseKey, Data: data}
	r := e.NewRecord(b.tp.Topic, b.tp.Partition)
	if err := b.client.ProduceSync(ctx, r).FirstErr(); err != nil {
		return nil, fmt.Errorf("recording how far the feed is: %w", err)
	}
	return &base{r.Offset, e.ID, marks}, nil
}

// at returns the base with this id. It fails with eventlog.ErrGone if the log does not
// have it any more, or if the record is no base, and with eventlog.ErrUnknownToken if the
// log has not had it yet.
func (b *bases) at(ctx context.Context, id int64) (found *base, err error) {
	err = b.read.Records(ctx, map[eventlog.TopicPartition][]int64{b.tp: {id}}, func(r *kgo.Record) error {
		found, err = decodeBase(r)
		return err
	})
	if errors.Is(err, eventlog.ErrGone) {
		if ends, endsErr := eventlog.EndOffsets(ctx, b.client, b.tp.Topic); endsErr == nil && id >= ends[b.tp] {
			return nil, eventlog.ErrUnknownToken
		}
	}
	if errors.Is(err, errNoBase) {
		return nil, fmt.Errorf("%w: %w", eventlog.ErrGone, err)
	}
	return found, err
}

// after returns the first base before the id before, that was appended at t or later, or
// nil if there is none.
func (b *bases) after(ctx context.Context, t time.Time, before int64) (found *base, err error) {
	listed, err := kadm.NewClient(b.client).ListOffsetsAfterMilli(ctx, t.UnixMilli(), b.tp.Topic)
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return nil, err
	}
	o, ok := listed.Lookup(b.tp.Topic, b.tp.Partition)
	if !ok || o.Offset < 0 {
		return nil, nil
	}
	err = b.read.First(ctx, b.tp, o.Offset, before, func(r *kgo.Record) bool {
		var err error
		found, err = decodeBase(r)
		return err != nil
	})
	return found, err
}

// newest returns the newest base, or nil if there is none.
func (b *bases) newest(ctx context.Context) (*base, error) {
	ends, err := eventlog.EndOffsets(ctx, b.client, b.tp.Topic)
	if err != nil {
		return nil, err
	}
	return b.before(ctx, ends[b.tp])
}

// backRecords is how many records before looks at first.
const backRecords = 64

// before returns the newest base with an id below end, or nil if the log has none. It reads
// the log backwards, in steps that grow, so it reads a few times as much as is behind that
// base, however old it is.
func (b *bases) before(ctx context.Context, end int64) (found *base, err error) {
	starts, err := eventlog.StartOffsets(ctx, b.client, b.tp.Topic)
	if err != nil {
		return nil, err
	}
	first := starts[b.tp]
	for step := int64(backRecords); end > first && found == nil; step *= 4 {
		from := max(first, end-step)
		err := b.read.First(ctx, b.tp, from, end, func(r *kgo.Record) bool {
			if later, err := decodeBase(r); err == nil {
				found = later
			}
			return true
		})
		if err != nil {
			return nil, err
		}
		end = from
	}
	return found, nil
}

// sane reports whether the base is of logs that end at ends.
func (b *base) sane(ends map[eventlog.TopicPartition]int64) bool {
	if len(b.marks) != len(ends) {
		return false
	}
	for tp, m := range b.marks {
		if end, ok := ends[tp]; !ok || m.offset >= end {
			return false
		}
	}
	return true
}
