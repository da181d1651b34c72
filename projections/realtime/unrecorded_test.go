package realtime_test

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"tomato/domain/order"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/eventlogtest"
	"tomato/eventlog/subjectkeys/subjectkeystest"
	"tomato/projections/realtime"
)

// Topic feed cannot be written. A feed begins all the same, at the newest base or without
// any, publishes what is appended, says what is wrong, and appends a base when it can. Once
// it could not begin.
func TestAFeedBeginsAlthoughItCannotRecordHowFarItIs(t *testing.T) {
	t.Parallel()
	for _, before := range []bool{false, true} { // whether there is a base
		t.Run(fmt.Sprint("base ", before), func(t *testing.T) {
			t.Parallel()
			cfg := eventlogtest.Embedded(t)
			eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: partitions})
			w := eventlogtest.NewWriter(t, cfg, partitions)
			preparing := func(id string) eventlog.Token {
				return w.Append(eventlog.Orders, id, order.OrderPreparing{OrderID: id, Ctx: ctxOf(id, "", "preparing")})
			}
			preparing("o1")
			id, marks := eventlog.NoFeedBase, map[eventlog.TopicPartition]consumer.Mark{}
			if before {
				first := follow(t, cfg, realtime.Start{})
				first.wait(t, "ready", func() bool { return first.ready })
				id = first.began
			}
			end := preparing("o1")
			for tp, o := range end { // the read model is ahead of the base
				marks[tp] = consumer.Mark{Next: o + 1, Rule: eventlog.Rule{Term: 1, Seq: 2}}
			}
			refused := cfg
			wire := eventlogtest.NewWire(cfg.Dial)
			refused.Dial = wire.Dial
			wire.Set(eventlogtest.Refused, 1)
			r := newRecorder()
			var logged eventlogtest.LogText
			p := &realtime.Projector{Kafka: refused, Runtime: &consumer.Runtime{Kafka: cfg}, Keys: &subjectkeystest.Keys{}, Loader: loader{realtime.Start{Marks: marks}}, Sink: r, Log: slog.New(slog.NewTextHandler(&logged, nil))}
			run(t, p)
			r.wait(t, "ready", func() bool { return r.ready })
			after := preparing("o1")
			r.wait(t, "what is appended", r.has(after))
			r.mu.Lock()
			if r.began != id || r.bases > 0 {
				t.Errorf("it began at the base %d, want %d, and has appended %d", r.began, id, r.bases)
			}
			again := slices.ContainsFunc(r.said, func(s string) bool { return strings.Contains(s, `"version":2`) })
			if again != before { // cursors of the base would miss it
				t.Errorf("what came after the base is published again: %v", again)
			}
			r.mu.Unlock()
			if p.Unrecorded() == nil || strings.Count(logged.String(), "cannot record how far it is") != 1 {
				t.Errorf("it says %v, and logs %s", p.Unrecorded(), &logged)
			}
			wire.Set(eventlogtest.Refused, 0)
			r.wait(t, "a base", func() bool { return r.bases > 0 })
			if err := p.Unrecorded(); err != nil {
				t.Error("it still says", err)
			}
		})
	}
}
