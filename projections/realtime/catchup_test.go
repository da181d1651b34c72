package realtime_test

import (
	"context"
	"fmt"
	"log/slog"
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

func TestCatchUpReadsWhatCameBeforeTheStart(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: 1})
	w := eventlogtest.NewWriter(t, cfg, 1)
	preparing := order.OrderPreparing{OrderID: "o1", Ctx: ctxOf("o1", "", "preparing")}
	w.Append(eventlog.Orders, "o1", preparing, preparing)                                                       // 0 claim, 1, 2
	w.Invalid(eventlog.Orders, "o1", "ORDER_DELIVERED", []byte(`{"orderId":"o1","ctx":{"customerId":"c-o1"}}`)) // 3
	w.Append(eventlog.Orders, "o1", preparing)                                                                  // 4
	w.Claim(eventlog.Orders)                                                                                    // 5
	w.Append(eventlog.Orders, "o1", preparing)                                                                  // 6
	orders := eventlog.TopicPartition{Topic: eventlog.Orders}
	mark := consumer.Mark{Next: 7, Rule: eventlog.Rule{Term: 2, Seq: 1}}

	r := newRecorder()
	p := &realtime.Projector{Kafka: cfg, Runtime: &consumer.Runtime{Kafka: cfg}, Keys: &subjectkeystest.Keys{}, Loader: loader{realtime.Start{Marks: map[eventlog.TopicPartition]consumer.Mark{orders: mark}}}, Sink: r, Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	defer func() { cancel(); <-done }()
	r.wait(t, "ready", func() bool { return r.ready })

	read := func(from, to int64) ([]string, error) {
		got := []string{}
		err := p.CatchUp(t.Context(), map[eventlog.TopicPartition]int64{orders: from}, map[eventlog.TopicPartition]int64{orders: to},
			func(_ eventlog.TopicPartition, offset int64, _ time.Time, all []rooms.Message) {
				got = append(got, fmt.Sprint(offset, " ", len(all)))
			})
		return got, err
	}
	if got, err := read(3, 6); err == nil {
		t.Error("from an invalid record it read", got)
	}
	if got, err := read(1, 5); err == nil {
		t.Error("up to somewhere else it read", got)
	}
	for _, step := range []struct {
		from, to int64
		want     []string
	}{{4, 6, []string{"6 1"}}, {1, 4, []string{"2 1", "4 1"}}, {-1, 1, []string{"1 1"}}} {
		got, err := read(step.from, step.to)
		if d := cmp.Diff(step.want, got); err != nil || d != "" {
			t.Errorf("%d to %d: %v %s", step.from, step.to, err, d)
		}
	}
}
