package consumer_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/eventlogtest"
)

// followed is what a call of Follow has brought.
type followed struct {
	mu      sync.Mutex
	offsets map[eventlog.TopicPartition][]int64
}

func (f *followed) add(r consumer.FollowedRecords) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.offsets == nil {
		f.offsets = map[eventlog.TopicPartition][]int64{}
	}
	for _, rec := range r.Records {
		f.offsets[r.TopicPartition] = append(f.offsets[r.TopicPartition], rec.Offset)
	}
}

// has reports whether every partition of ends was brought up to its end, each record once
// and in order.
func (f *followed) has(ends map[eventlog.TopicPartition]int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for tp, end := range ends {
		got := f.offsets[tp]
		if int64(len(got)) != end || !slices.IsSorted(got) || end > 0 && (got[0] != 0 || got[end-1] != end-1) {
			return false
		}
	}
	return true
}

// follow runs Follow over all partitions of orders, from the first record on.
func follow(t *testing.T, r *consumer.Runtime, handle func(consumer.FollowedRecords)) (stop func() error) {
	t.Helper()
	from := map[eventlog.TopicPartition]int64{}
	for p := range int32(testPartitions) {
		from[eventlog.TopicPartition{Topic: eventlog.Orders, Partition: p}] = 0
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Follow(ctx, from, handle) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("Follow: %v", err)
		}
	})
	return stop
}

// Follow brings every record once and in order: from its own client first, from the shared
// reader at the ends of the logs, and from its own client again if the handler is slow.
func TestFollowSharesTheReader(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		b := newBench(t, cfg, eventlog.Subscription{Name: "beside", Topics: []string{eventlog.Orders}})
		r := b.runtime()
		r.FollowedBytes(4 << 10)
		more := func(n int) {
			var recs []*kgo.Record
			for range n {
				for _, k := range []string{"a", "b", "c", "d"} {
					recs = append(recs, b.event(eventlog.Orders, k, "T")...)
				}
			}
			b.produce(recs...)
		}
		more(100) // are there before
		var l ledger
		start(t, r, consumer.Consumer{Name: "beside", Topics: []string{eventlog.Orders}, Batch: func(_ context.Context, es []eventlog.Event) error {
			for _, e := range es {
				l.add(e)
			}
			return nil
		}})
		var got followed
		var slow atomic.Bool
		gate := make(chan struct{})
		stop := follow(t, r, func(f consumer.FollowedRecords) {
			if slow.Load() {
				<-gate
			}
			got.add(f)
		})
		brought := func() bool {
			ends, err := eventlog.EndOffsets(t.Context(), b.cl, eventlog.Orders)
			return err == nil && got.has(ends)
		}
		shared := func() bool { more(1); return r.TailReaders() == 2*testPartitions }
		eventually(t, "the consumer and Follow share one reader", shared)
		for range 50 {
			more(1)
		}
		eventually(t, "each record is brought once and in order", brought)

		slow.Store(true)
		more(200)
		eventually(t, "the slow one leaves the reader", func() bool { more(1); return r.TailReaders() <= testPartitions })
		more(200)
		eventually(t, "the consumer is not held up", func() bool { return l.total() == int(sum(b)) })
		slow.Store(false)
		close(gate)
		eventually(t, "the slow one has every record once and in order", brought)
		eventually(t, "both share the reader again", shared)

		if err := stop(); err != nil {
			t.Errorf("Follow: %v", err)
		}
		eventually(t, "Follow has left the reader", func() bool { return r.TailReaders() <= testPartitions })
	})
}

// Follow notices by itself that the shared reader brings nothing although the log grows.
func TestFollowGoesOnWithoutAReaderThatHangs(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		b := newBench(t, cfg)
		r := b.runtime()
		var got followed
		follow(t, r, got.add)
		eventually(t, "Follow uses the shared reader", func() bool {
			for _, k := range []string{"a", "b", "c", "d"} {
				b.produceOne(k)
			}
			return r.TailReaders() == testPartitions
		})
		r.BreakTail(eventlog.Orders)
		b.produceOne("a")
		b.produceOne("d")
		eventually(t, "each record is brought once and in order", func() bool {
			ends, err := eventlog.EndOffsets(t.Context(), b.cl, eventlog.Orders)
			return err == nil && got.has(ends)
		})
	})
}

// sum returns how many events the writer has appended.
func sum(b *bench) (n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, v := range b.vers {
		n += v
	}
	return n
}

// Follow ends with an error if a record that comes next is not in the log any more.
func TestFollowLeavesNothingOut(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		b := newBench(t, cfg)
		b.produce(b.event(eventlog.Orders, "a", "T")...)
		b.produce(b.event(eventlog.Orders, "a", "T")...)
		tp := eventlog.TopicPartition{Topic: eventlog.Orders, Partition: eventlog.PartitionFor("a", testPartitions)}
		eventlogtest.DeleteBefore(t, cfg, tp.Topic, tp.Partition, 2)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		err := b.runtime().Follow(ctx, map[eventlog.TopicPartition]int64{tp: 0}, func(consumer.FollowedRecords) {})
		if !errors.Is(err, kerr.OffsetOutOfRange) {
			t.Fatalf("Follow ends with %v", err)
		}
	})
}
