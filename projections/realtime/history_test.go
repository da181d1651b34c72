package realtime_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tomato/domain/order"
	"tomato/domain/rooms"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/eventlogtest"
	"tomato/eventlog/subjectkeys/subjectkeystest"
	"tomato/projections/realtime"
)

// An instance that starts reads back what was published before, from base to base, and
// finds the same records as those who published them. What they missed can be read by its
// offset.
func TestTheLogIsReadBackFromBaseToBase(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: partitions})
		w := eventlogtest.NewWriter(t, cfg, partitions)
		preparing := func(id string) order.OrderPreparing {
			return order.OrderPreparing{OrderID: id, Ctx: ctxOf(id, "", "preparing")}
		}
		first := follow(t, cfg, realtime.Start{})
		first.wait(t, "ready", func() bool { return first.ready })
		end := w.Append(eventlog.Orders, "o1", preparing("o1"), preparing("o1"))
		w.Invalid(eventlog.Orders, "o1", "ORDER_DELIVERED", []byte(`{"orderId":"o1","ctx":{"customerId":"c-o1"}}`))
		end.Merge(w.Append(eventlog.Orders, "o2", preparing("o2")))
		w.Claim(eventlog.Orders)
		end.Merge(w.Append(eventlog.Orders, "o1", preparing("o1")))
		end.Merge(w.Telemetry(eventlog.Feed, "user:c-o1", rooms.Emitted, rooms.Emit{Event: "hello", Room: "user:c-o1", Payload: json.RawMessage(`"x"`)}))
		first.wait(t, "what was appended", first.has(end))

		// The read model is here, ahead of the base with which the first instance began.
		marks := map[eventlog.TopicPartition]consumer.Mark{}
		for tp, o := range end {
			if tp.Topic == eventlog.Orders {
				marks[tp] = consumer.Mark{Next: o + 1, Rule: eventlog.Rule{Term: 2, Seq: map[bool]int64{true: 1, false: 0}[tp.Partition == eventlog.PartitionFor("o1", partitions)]}}
			}
		}
		r := newRecorder()
		p := &realtime.Projector{Kafka: cfg, Runtime: &consumer.Runtime{Kafka: cfg}, Keys: &subjectkeystest.Keys{}, Loader: loader{realtime.Start{Marks: marks}}, Sink: r, Log: slog.New(slog.DiscardHandler)}
		run(t, p)
		r.wait(t, "the end of the history, and what comes after the base", func() bool { return r.noOlder && r.ready })
		first.mu.Lock()
		defer first.mu.Unlock()
		slices.Sort(first.published)
		r.mu.Lock()
		got := slices.Concat(r.older, r.published) // what was emitted after the first base is published again
		slices.Sort(got)
		if d := cmp.Diff(first.published, slices.Compact(got)); d != "" {
			t.Error(d)
		}
		if len(r.older) == 0 {
			t.Error("nothing was read back")
		}
		if d := cmp.Diff(first.passed, r.reaches); d != "" {
			t.Error("the history is said to reach back to somewhere else than the oldest base:", d)
		}
		r.mu.Unlock()

		base, err := p.Base(t.Context(), r.began)
		r.mu.Lock()
		defer r.mu.Unlock()
		if d := cmp.Diff(r.passed, base.Passed); err != nil || d != "" {
			t.Errorf("the base says otherwise: %v %s", err, d)
		}
		if _, err := p.Base(t.Context(), r.began+1000); !errors.Is(err, eventlog.ErrUnknownToken) {
			t.Error("beyond the end of the log there is a base:", err)
		}
		orders := eventlog.TopicPartition{Topic: eventlog.Orders, Partition: eventlog.PartitionFor("o1", partitions)}
		var read []string
		err = p.Read(t.Context(), map[eventlog.TopicPartition][]int64{orders: {1, 2, end[orders]}}, func(_ eventlog.TopicPartition, offset int64, all []rooms.Message) {
			read = append(read, fmt.Sprint(offset, " ", len(all)))
		})
		if d := cmp.Diff([]string{"1 1", "2 1", fmt.Sprint(end[orders], " 1")}, read); err != nil || d != "" {
			t.Errorf("read by offset: %v %s", err, d)
		}
	})
}

// An empty database does not make the feed read the whole log, and positions of riders are
// not read back.
func TestAStartReadsFromTheNewestBase(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: partitions})
	w := eventlogtest.NewWriter(t, cfg, partitions)
	end := eventlog.Token{}
	for i := range 20 {
		id := fmt.Sprint("o", i)
		end.Merge(w.Append(eventlog.Orders, id, order.OrderPreparing{OrderID: id, Ctx: ctxOf(id, "", "preparing")}))
	}
	first := follow(t, cfg, realtime.Start{})
	first.wait(t, "what was appended", first.has(end))
	first.wait(t, "a later base", func() bool { return first.bases > 0 })
	w.Telemetry(eventlog.RiderLocations, "k1", "RIDER_LOCATION", position("k1", time.Now()))
	second := follow(t, cfg, realtime.Start{})
	second.wait(t, "ready", func() bool { return second.ready })
	second.mu.Lock()
	defer second.mu.Unlock()
	for tp, o := range end {
		if second.passed[tp] < o {
			t.Errorf("it begins in %v at %d, before %d", tp, second.passed[tp], o)
		}
	}
	if len(second.said) > 0 {
		t.Errorf("it read again %v", second.said)
	}
}
