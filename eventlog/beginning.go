package eventlog

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"
)

// LostBeginning says that records which a reader needs are not on an aggregate
// topic any more: somebody has deleted them, or a retention was set by mistake.
// Whoever went on behind the hole would take half a history for the whole.
type LostBeginning struct {
	TopicPartition
	Start int64 // first offset that is still there
	Need  int64 // where the reader would begin
}

func (l *LostBeginning) Error() string {
	return fmt.Sprintf("%s/%d begins at offset %d, but is needed from %d on: records of a topic that must keep everything have been deleted. "+
		"Restore them, at their offsets, from a backup or a replica of the topic, and see to it that its retention is unlimited (`tomato topics describe`)",
		l.Topic, l.Partition, l.Start, l.Need)
}

// CheckBeginnings fails with *LostBeginning if an aggregate topic does not have
// the records from these offsets on. Topics that keep records for a time only
// are left out. Other errors are the broker's.
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

// MissingBeginning is nil if tp has everything from need on, or need not have it.
func MissingBeginning(tp TopicPartition, start, need int64) *LostBeginning {
	if !IsAggregate(tp.Topic) || start <= need {
		return nil
	}
	return &LostBeginning{tp, start, need}
}
