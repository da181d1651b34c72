package eventlog

import (
	"cmp"
	"context"
	"maps"
	"math/bits"
	"slices"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// LogBytes returns how many bytes the log of each topic takes on the brokers' disks,
// all replicas together. partitions has the number of partitions of each topic that is
// asked for. It fails if a broker does not answer, or does not tell: a broker with
// access control tells only clients that may describe the cluster.
func LogBytes(ctx context.Context, adm *kadm.Client, partitions map[string]int) (map[string]int64, error) {
	asked := kadm.TopicsSet{}
	for topic, n := range partitions {
		for p := range n {
			asked.Add(topic, int32(p))
		}
	}
	brokers, err := adm.DescribeAllLogDirs(ctx, asked)
	if err != nil {
		return nil, err
	}
	sizes := make(map[string]int64, len(partitions))
	for _, dirs := range brokers {
		if err := dirs.Error(); err != nil {
			return nil, err
		}
		dirs.EachPartition(func(p kadm.DescribedLogDirPartition) {
			if !p.IsFuture { // a copy that a broker makes in another of its directories
				sizes[p.Topic] += p.Size
			}
		})
	}
	return sizes, nil
}

// RecordBytes returns how many bytes a record takes in an uncompressed batch of its
// own: key, value, headers and their lengths, without the header of the batch (61
// bytes, which the records of a batch share). In a larger batch a record may take a
// few bytes more, for its place and its time in the batch.
func RecordBytes(r *kgo.Record) int {
	// One byte each: the attributes, and the differences of time and offset.
	n := 3 + fieldBytes(len(r.Key)) + fieldBytes(len(r.Value)) + varintBytes(len(r.Headers))
	for _, h := range r.Headers {
		n += fieldBytes(len(h.Key)) + fieldBytes(len(h.Value))
	}
	return varintBytes(n) + n
}

// fieldBytes is the size of a field of n bytes with its length.
func fieldBytes(n int) int { return varintBytes(n) + n }

// varintBytes is the size of n, which is not negative, in zigzag encoding.
func varintBytes(n int) int { return (bits.Len64(uint64(n)<<1|1) + 6) / 7 }

// TypeRow says what the records of one type on one topic take.
type TypeRow struct {
	Topic   string `json:"-"`
	Type    string `json:"type"` // OtherTypes for records that are no events
	Records int64  `json:"records"`
	Bytes   int64  `json:"bytes"` // by RecordBytes
}

// OtherTypes stands for the type of records that are no events, and for all further
// types of a topic that has maxTypes already. Anybody who may write to the topic can
// make types up.
const OtherTypes = "other"

const maxTypes = 100 // of one topic

// CountTypes reads ranges of logs, as Read does, and returns the records and bytes of
// each type, by topic and type. It counts invalid records too: they are kept like the
// valid ones.
func CountTypes(ctx context.Context, cfg Config, ranges map[TopicPartition]Range) ([]TypeRow, error) {
	topics := map[string]map[string]*TypeRow{}
	err := Read(ctx, cfg, ranges, func(e *Event) error {
		types := topics[e.Topic]
		if types == nil {
			types = map[string]*TypeRow{}
			topics[e.Topic] = types
		}
		name := e.Type
		if _, known := types[name]; !known && (!plainType(name) || len(types) >= maxTypes) {
			name = OtherTypes
		}
		row := types[name]
		if row == nil {
			row = &TypeRow{Topic: e.Topic, Type: name}
			types[name] = row
		}
		row.Records++
		row.Bytes += int64(RecordBytes(e.Record))
		return nil
	})
	if err != nil {
		return nil, err
	}
	var rows []TypeRow
	for _, topic := range slices.Sorted(maps.Keys(topics)) {
		for _, row := range topics[topic] {
			rows = append(rows, *row)
		}
	}
	slices.SortStableFunc(rows, func(a, b TypeRow) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Type, b.Type))
	})
	return rows, nil
}

// plainType reports whether a type can be shown as it is: capital letters and
// underscores, as the types of all events.
func plainType(name string) bool {
	for _, c := range name {
		if c != '_' && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return name != "" && len(name) <= 64
}

// CountAggregateTypes is CountTypes for all that the brokers have of AggregateTopics
// at the time of the call.
func CountAggregateTypes(ctx context.Context, cfg Config) ([]TypeRow, error) {
	client, err := cfg.NewClient()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	starts, err := StartOffsets(ctx, client, AggregateTopics[:]...)
	if err != nil {
		return nil, err
	}
	ends, err := EndOffsets(ctx, client, AggregateTopics[:]...)
	if err != nil {
		return nil, err
	}
	ranges := make(map[TopicPartition]Range, len(ends))
	for tp, end := range ends {
		ranges[tp] = Range{From: starts[tp], To: end}
	}
	return CountTypes(ctx, cfg, ranges)
}
