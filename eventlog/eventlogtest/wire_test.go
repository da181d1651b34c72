package eventlogtest_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
)

// TestTheWireTampersAsItSays checks for each kind of tampering what is in the log, and
// what answer the producer gets.
func TestTheWireTampersAsItSays(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: 3})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		wire := eventlogtest.NewWire(nil)
		tampered := cfg
		tampered.Dial = wire.Dial
		producer := func() *kgo.Client {
			return eventlogtest.Client(t, tampered, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.StopProducerOnDataLossDetected(), kgo.ProducerLinger(0))
		}
		client := producer()
		n := 0
		produce := func() (int64, error) {
			n++
			r := &kgo.Record{Topic: eventlog.Orders, Partition: 1, Value: fmt.Append(nil, n)}
			err := client.ProduceSync(ctx, r).FirstErr()
			return r.Offset, err
		}
		want := func(tamper eventlogtest.Tamper, offset int64) {
			t.Helper()
			wire.Set(tamper, 1)
			if got, err := produce(); err != nil || got != offset {
				t.Fatalf("%q: landed at %d, not %d: %v", tamper, got, offset, err)
			}
			wire.Set(tamper, 0)
		}
		want("", 0)
		want(eventlogtest.Twice, 2) // the copy is at offset 1
		want("", 3)
		wire.Set(eventlogtest.LostAnswer, 2) // every second request, so that the repeat gets its answer
		for offset := range int64(3) {
			if got, err := produce(); err != nil || got != 4+offset {
				t.Fatalf("a lost answer: landed at %d: %v", got, err)
			}
		}
		wire.Set(eventlogtest.LostAnswer, 0)
		wire.Set(eventlogtest.OutOfOrder, 1)
		if _, err := produce(); !errors.Is(err, kerr.OutOfOrderSequenceNumber) {
			t.Fatalf("answered %v", err)
		}
		wire.Set(eventlogtest.OutOfOrder, 0)
		client = producer() // a new one, because the error has stopped the other one
		want("", 8)

		var values []string
		reader := eventlogtest.Client(t, cfg, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{eventlog.Orders: {1: kgo.NewOffset().AtStart()}}))
		for len(values) < 9 {
			fetches := reader.PollFetches(ctx)
			if err := fetches.Err(); err != nil {
				t.Fatal(err)
			}
			fetches.EachRecord(func(r *kgo.Record) { values = append(values, string(r.Value)) })
		}
		if want := []string{"1", "2", "2", "3", "4", "5", "6", "7", "8"}; !slices.Equal(values, want) {
			t.Errorf("the log holds %v, not %v", values, want)
		}
		for tamper, want := range map[eventlogtest.Tamper]int{eventlogtest.Twice: 1, eventlogtest.OutOfOrder: 1} {
			if got := wire.Done(tamper); got != want {
				t.Errorf("%s: %d, not %d", tamper, got, want)
			}
		}
	})
}

// If only the group requests of a member are lost, the group gives the member up,
// while its other requests pass. Afterwards the member joins again.
func TestTheWireCutsAGroupAlone(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: 3})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		wire := eventlogtest.NewWire(nil)
		tampered := cfg
		tampered.Dial = wire.Dial
		has := func(who eventlog.Config) <-chan int {
			changes := make(chan int, 100)
			eventlogtest.Client(t, who, kgo.ConsumerGroup("g"), kgo.ConsumeTopics(eventlog.Orders), kgo.DisableAutoCommit(), kgo.Balancers(kgo.CooperativeStickyBalancer()),
				kgo.HeartbeatInterval(100*time.Millisecond), kgo.SessionTimeout(6*time.Second),
				kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, a map[string][]int32) { changes <- len(a[eventlog.Orders]) }),
				kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, a map[string][]int32) { changes <- -len(a[eventlog.Orders]) }),
				kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, a map[string][]int32) { changes <- -len(a[eventlog.Orders]) }))
			return changes
		}
		wait := func(changes <-chan int, has, want int) {
			t.Helper()
			for has != want {
				select {
				case n := <-changes:
					has += n
				case <-ctx.Done():
					t.Fatalf("has %d partitions, not %d", has, want)
				}
			}
		}
		first := has(tampered)
		wait(first, 0, 3)
		wire.Set(eventlogtest.GroupCut, 1)
		producer := eventlogtest.Client(t, tampered)
		if err := producer.ProduceSync(ctx, &kgo.Record{Topic: eventlog.Orders, Value: []byte("x")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		second := has(cfg)
		wait(second, 0, 3)
		wire.Set(eventlogtest.GroupCut, 0)
		wait(second, 3, 2)
	})
}
