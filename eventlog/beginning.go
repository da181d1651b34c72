package eventlog

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"
)

// LostBeginning is the error that records which a reader needs are no longer on an
// aggregate topic. Somebody has deleted them, or a retention was set by mistake. A
// reader that began after the missing records would take half a history for the
// whole.
type LostBeginning struct {
	TopicPartition
	Start int64 // the first offset that still exists
	Need  int64 // the offset from which the reader must read
}

func (l *LostBeginning) Error() string {
	return fmt.Sprintf("%s/%d begins at offset %d, but is needed from %d on: records of a topic that must keep everything have been deleted. "+
		"Restore them, at their offsets, from a backup or a replica of the topic, and see to it that its retention is unlimited (`tomato topics describe`)",
		l.Topic, l.Partition, l.Start, l.Need)
}

// CheckBeginnings fails with *LostBeginning if an aggregate topic no longer has all
// records from the offsets in need on. It ignores topics that keep records for a
// limited time. Other errors are those of the broker.
func CheckBeginnings(ctx context.Context, client *kgo.Client, need map[TopicPartition]int64) error {
	topics := map[string]bool{}
	for tp := range need {
		if IsAggregate(tp.Topic) {
			topics[tp.Topic] = true
		}
	}
	if len(topics) == 0 {
		return nil
	}
	starts, err := StartOffsets(ctx, client, slices.Collect(maps.Keys(topics))...)
	if err != nil {
		return fmt.Errorf("asking where the logs begin: %w", err)
	}
	for _, tp := range slices.SortedFunc(maps.Keys(need), CompareTopicPartitions) {
		if lost := MissingBeginning(tp, starts[tp], need[tp]); lost != nil {
			return lost
		}
	}
	return nil
}

// MissingBeginning returns nil if tp, whose first offset is start, has all records
// from need on, or if tp is not a partition of an aggregate topic.
func MissingBeginning(tp TopicPartition, start, need int64) *LostBeginning {
	if !IsAggregate(tp.Topic) || start <= need {
		return nil
	}
	return &LostBeginning{tp, start, need}
}
