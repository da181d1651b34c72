package eventlog_test

import (
	"errors"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
)

// A log that cannot be read, or has lost a record, has its own error. The others are read.
func TestSingleRecordsAreReadThoughAnotherLogFails(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: 2})
	client := eventlogtest.Client(t, cfg, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	tp := func(p int32) eventlog.TopicPartition {
		return eventlog.TopicPartition{Topic: eventlog.Feed, Partition: p}
	}
	for p := range int32(2) {
		for range 3 {
			if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: eventlog.Feed, Partition: p, Value: []byte("x")}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventlogtest.DeleteBefore(t, cfg, eventlog.Feed, 0, 2)
	var got []int64
	err := eventlog.NewReadAt(client).Records(t.Context(), map[eventlog.TopicPartition][]int64{tp(0): {1, 2}, tp(1): {0, 2}, tp(9): {0}}, func(r *kgo.Record) error {
		if r.Partition != 1 {
			t.Error("a record of partition", r.Partition)
		}
		got = append(got, r.Offset)
		return nil
	})
	var failed eventlog.LogErrors
	if !errors.As(err, &failed) || len(failed) != 2 || !errors.Is(failed[tp(0)], eventlog.ErrGone) || failed[tp(9)] == nil || errors.Is(failed[tp(9)], eventlog.ErrGone) {
		t.Error(err)
	}
	if len(got) != 2 || got[0] != 0 || got[1] != 2 {
		t.Error("records", got)
	}
}
