package consumer_test

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/eventlogtest"
)

func (b *bench) produceOne(key string) {
	b.t.Helper()
	b.produce(b.event(eventlog.Orders, key, "T")...)
}

func TestConsumersShareOneReader(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		b := newBench(t, cfg, everyKind("shared")...)
		b.exec(appliedTable)
		r := b.runtime()
		ledgers := map[string]*ledger{}
		var all []consumer.Consumer
		for name, c := range kinds("", func(eventlog.Event) error { return nil }) {
			l := &ledger{}
			ledgers[name] = l
			c = kinds("", func(e eventlog.Event) error { l.add(e); return nil })[name]
			c.Name, c.Topics = "shared"+name, []string{eventlog.Orders}
			all = append(all, c)
		}
		start(t, r, all...)
		keys := []string{"a", "b", "c", "d"}
		n := int64(0)
		more := func() {
			n++
			for _, k := range keys {
				b.produceOne(k)
			}
		}
		handled := func() bool {
			for _, l := range ledgers {
				for _, k := range keys {
					if !slices.Equal(l.of(k), upTo(n)) {
						return false
					}
				}
			}
			return true
		}
		more()
		eventually(t, "all partitions are read by one reader", func() bool {
			more()
			return r.Shared() == len(all)*testPartitions
		})
		for range 50 {
			more()
		}
		eventually(t, "each consumer has every event once and in order", handled)
		if got := r.Shared(); got != len(all)*testPartitions {
			t.Errorf("%d partitions are shared in the end", got)
		}

		// A reader that hangs costs two seconds, and nothing else.
		r.BreakTail(eventlog.Orders)
		for range 10 {
			more()
		}
		eventually(t, "each consumer goes on without the reader", handled)
		eventually(t, "nobody waits for the reader", func() bool { return r.Shared() == 0 })
		for range 5 {
			more()
			eventually(t, "each consumer still goes on", handled)
			if got := r.Shared(); got != 0 {
				t.Fatalf("%d partitions are shared again, although the reader hangs", got)
			}
		}
	})
}

func TestASlowConsumerLeavesTheSharedReader(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		b := newBench(t, cfg, eventlog.Subscription{Name: "slow", Topics: []string{eventlog.Orders}}, eventlog.Subscription{Name: "fast", Topics: []string{eventlog.Orders}})
		r := b.runtime()
		var slow, fast ledger
		var hold atomic.Bool
		gate := make(chan struct{})
		start(t, r,
			consumer.Consumer{Name: "slow", Topics: []string{eventlog.Orders}, MaxBatch: 4, Batch: func(ctx context.Context, es []eventlog.Event) error {
				if hold.Load() {
					select {
					case <-gate:
					case <-ctx.Done():
						return ctx.Err()
					}
				}
				for _, e := range es {
					slow.add(e)
				}
				return nil
			}},
			consumer.Consumer{Name: "fast", Topics: []string{eventlog.Orders}, Batch: func(_ context.Context, es []eventlog.Event) error {
				for _, e := range es {
					fast.add(e)
				}
				return nil
			}})
		n := int64(0)
		more := func(count int) {
			var recs []*kgo.Record
			for range count {
				n++
				for _, k := range []string{"a", "b", "c", "d"} {
					recs = append(recs, b.event(eventlog.Orders, k, "T")...)
				}
			}
			b.produce(recs...)
		}
		has := func(l *ledger) func() bool {
			return func() bool {
				for _, k := range []string{"a", "b", "c", "d"} {
					if !slices.Equal(l.of(k), upTo(n)) {
						return false
					}
				}
				return true
			}
		}
		allShare := func() bool { more(1); return r.Shared() == 2*testPartitions }
		eventually(t, "all share one reader", allShare)
		for round := range 3 {
			hold.Store(true)
			more(100)
			eventually(t, "the fast one is not held up", has(&fast))
			eventually(t, "the slow one has left", func() bool { return r.Shared() < 2*testPartitions })
			more(100)
			eventually(t, "the fast one is still not held up", has(&fast))
			hold.Store(false)
			close(gate)
			eventually(t, fmt.Sprint("the slow one has everything once and in order, round ", round), has(&slow))
			eventually(t, "all share again", allShare)
			gate = make(chan struct{})
		}
		eventually(t, "the slow one is at the end", has(&slow))
	})
}

// A partition that was dropped and is followed again may get records that were polled
// before. They say nothing about what the reader brings from now on.
func TestTheSharedReaderIgnoresRecordsBeforeItsBeginning(t *testing.T) {
	t.Parallel()
	if next, live := consumer.TailFetched(10, 5, 6, 7); next != 10 || live {
		t.Errorf("after older records: next %d, live %v", next, live)
	}
	if next, live := consumer.TailFetched(10, 8, 9, 10, 11); next != 12 || !live {
		t.Errorf("after records before and after: next %d, live %v", next, live)
	}
}
