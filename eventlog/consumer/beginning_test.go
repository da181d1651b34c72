package consumer_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/eventlogtest"
)

func TestCheckBeginnings(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		b := newBench(t, cfg)
		var records int64
		for range 10 {
			records = b.produce(b.event(eventlog.Orders, "k", "X")...) + 1
			b.produce(b.event(eventlog.Feed, "k", "X")...)
		}
		p := eventlog.PartitionFor("k", testPartitions)
		whole, cut, feed := eventlog.TopicPartition{Topic: eventlog.Orders, Partition: 1 - p}, eventlog.TopicPartition{Topic: eventlog.Orders, Partition: p},
			eventlog.TopicPartition{Topic: eventlog.Feed, Partition: p}
		eventlogtest.DeleteBefore(t, cfg, eventlog.Orders, p, 5)
		eventlogtest.DeleteBefore(t, cfg, eventlog.Feed, p, 5)
		check := func(need map[eventlog.TopicPartition]int64) error {
			return eventlog.CheckBeginnings(t.Context(), b.cl, need)
		}
		for _, need := range []map[eventlog.TopicPartition]int64{nil, {whole: 0}, {cut: 5}, {cut: 9, whole: 0}, {feed: 0}} {
			if err := check(need); err != nil {
				t.Errorf("%v: %v", need, err)
			}
		}
		var lost *eventlog.LostBeginning
		if err := check(map[eventlog.TopicPartition]int64{whole: 0, cut: 4, feed: 0}); !errors.As(err, &lost) || lost.TopicPartition != cut || lost.Start != 5 || lost.Need != 4 {
			t.Errorf("from 4: %v", err)
		}
		eventlogtest.DeleteBefore(t, cfg, eventlog.Orders, p, records) // all of it
		if err := check(map[eventlog.TopicPartition]int64{cut: 0}); !errors.As(err, &lost) || lost.Start != records {
			t.Errorf("of an empty log: %v", err)
		}
	})
}

// Records of one partition are deleted. A consumer whose checkpoint is after them goes
// on. One that still needs them stops in that partition, says why, and goes on in the
// others. This is true of read models and policies, with or without a checkpoint.
func TestAConsumerDoesNotBeginBehindAHole(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		subs := []eventlog.Subscription{{Name: "covered", Topics: []string{eventlog.Orders}}, {Name: "behind", Topics: []string{eventlog.Orders}},
			{Name: "policy", Topics: []string{eventlog.Orders}}, {Name: "rows", Topics: []string{eventlog.Orders}}}
		b := newBench(t, cfg, subs...)
		b.generation("rows", 1)
		cut, whole := "a", "b"
		for eventlog.PartitionFor(whole, testPartitions) == eventlog.PartitionFor(cut, testPartitions) {
			whole += "b"
		}
		p := eventlog.PartitionFor(cut, testPartitions)
		for range 6 {
			b.produce(b.event(eventlog.Orders, cut, "X")...)
			b.produce(b.event(eventlog.Orders, whole, "X")...)
		}
		var mu sync.Mutex
		got := map[string]map[string][]int64{}
		reader := func(name string) consumer.Consumer {
			take := func(events []eventlog.Event) error {
				mu.Lock()
				defer mu.Unlock()
				if got[name] == nil {
					got[name] = map[string][]int64{}
				}
				for _, e := range events {
					got[name][e.Subject] = append(got[name][e.Subject], e.Version)
				}
				return nil
			}
			c := consumer.Consumer{Name: name, Topics: []string{eventlog.Orders}}
			if name == "rows" {
				c.Generation, c.Rows = 1, func(_ context.Context, _ pgx.Tx, es []eventlog.Event) error { return take(es) }
			} else {
				c.Batch = func(_ context.Context, es []eventlog.Event) error { return take(es) }
			}
			return c
		}
		has := func(name, key string, versions ...int64) func() bool {
			return func() bool {
				mu.Lock()
				defer mu.Unlock()
				return slices.Equal(got[name][key], versions)
			}
		}
		stop := start(t, b.runtime(), reader("covered"))
		eventually(t, "the first events are handled", func() bool {
			return has("covered", cut, 1, 2, 3, 4, 5, 6)() && has("covered", whole, 1, 2, 3, 4, 5, 6)()
		}, b.state)
		stop()
		b.exec(`INSERT INTO tomato.checkpoints (consumer, generation, topic, partition, next_offset, term, seq) VALUES ('behind', 0, $1, $2, 3, 1, 2)`, eventlog.Orders, p)
		eventlogtest.DeleteBefore(t, cfg, eventlog.Orders, p, 5)
		b.produce(b.event(eventlog.Orders, cut, "X")...)
		b.produce(b.event(eventlog.Orders, whole, "X")...)

		r := b.runtime()
		names := []string{"covered", "behind", "policy", "rows"}
		var all []consumer.Consumer
		for _, name := range names {
			all = append(all, reader(name))
		}
		start(t, r, all...)
		for _, name := range names {
			eventually(t, name+" has the whole partition", has(name, whole, 1, 2, 3, 4, 5, 6, 7), b.state)
		}
		eventually(t, "covered goes on", has("covered", cut, 1, 2, 3, 4, 5, 6, 7), b.state)
		for _, name := range names[1:] {
			eventually(t, name+" says why", func() bool {
				return slices.ContainsFunc(r.Stopped(name), func(s string) bool {
					return strings.Contains(s, "begins at offset 5") && strings.Contains(s, "Restore")
				})
			}, func() string { return strings.Join(r.Stopped(), "\n") })
			if !has(name, cut)() {
				t.Errorf("%s was handed events from behind the hole", name)
			}
		}
		if stopped := r.Stopped("covered"); len(stopped) > 0 {
			t.Error(stopped)
		}
	})
}
