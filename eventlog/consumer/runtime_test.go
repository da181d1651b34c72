package consumer_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/eventlogtest"
)

func TestOrderOfAKeyIsKeptThroughFailures(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		b := newBench(t, cfg, everyKind("flaky")...)
		b.exec(appliedTable)
		for _, kind := range []string{"Each", "Batch", "Rows"} {
			t.Run(kind, func(t *testing.T) {
				b := b.in(t)
				var l ledger
				var mu sync.Mutex
				left := map[string]int{} // failures still to come, by key and version
				c := kinds(kind, func(e eventlog.Event) error {
					mu.Lock()
					defer mu.Unlock()
					at := fmt.Sprint(e.Subject, e.Version)
					if left[at] > 0 {
						left[at]--
						return errors.New("not this time")
					}
					l.add(e)
					return nil
				})[kind]
				c.Name, c.Topics, c.MaxBatch = "flaky"+kind, []string{eventlog.Orders}, 16
				const keys, each = 10, 20
				var recs []*kgo.Record
				for v := range each {
					for k := range keys {
						key := fmt.Sprintf("%s-k%d", kind, k)
						recs = append(recs, b.event(eventlog.Orders, key, "T")...)
						if (v*keys+k)%23 == 7 {
							left[fmt.Sprint(key, v+1)] = 3 + v%2 // beyond what is tried in place
						}
					}
				}
				b.produce(recs...)
				start(t, b.runtime(), c)
				var got map[string][]int64
				eventually(t, "all handled", func() bool {
					if query[int](b, `SELECT count(*) FROM tomato.parked`) > 0 {
						return false
					}
					if kind == "Rows" {
						got = b.applied()
					} else {
						l.mu.Lock()
						got = map[string][]int64{}
						for k, v := range l.done {
							got[k] = slices.Clone(v)
						}
						l.mu.Unlock()
					}
					for k := range keys {
						if !slices.Contains(got[fmt.Sprintf("%s-k%d", kind, k)], each) {
							return false
						}
					}
					return true
				})
				for k := range keys {
					vs := got[fmt.Sprintf("%s-k%d", kind, k)]
					if kind == "Batch" {
						vs = dedup(vs) // a batch that is halved repeats effects
					}
					if !slices.Equal(vs, upTo(each)) {
						t.Errorf("key %d: %v", k, vs)
					}
				}
				for _, v := range left {
					if v > 0 {
						t.Errorf("a failure did not happen")
					}
				}
			})
		}
	})
}

func TestRowsTakeEffectOnceAcrossKillAndRebalance(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		b := newBench(t, cfg, eventlog.Subscription{Name: "once", Topics: []string{eventlog.Orders}})
		b.exec(appliedTable)
		b.generation("once", 3)
		const keys, each = 40, 50
		c := kinds("", func(eventlog.Event) error { return nil })["Rows"]
		c.Name, c.Topics, c.Generation, c.MaxBatch = "once", []string{eventlog.Orders}, 3, 8
		produce := func() {
			for range each / 2 {
				var recs []*kgo.Record
				for k := range keys {
					recs = append(recs, b.event(eventlog.Orders, fmt.Sprint("k", k), "T")...)
				}
				b.produce(recs...)
			}
		}
		first := b.runtime()
		kill := first.Abandon()
		start(t, first, c)
		produce()
		eventually(t, "begun", func() bool { return query[int](b, `SELECT count(*) FROM applied`) > 20 })
		second := b.runtime()
		start(t, second, c)
		kill()
		produce()
		eventually(t, "all applied", func() bool { return query[int](b, `SELECT count(*) FROM applied`) >= keys*each })
		for k, vs := range b.applied() {
			if !slices.Equal(vs, upTo(each)) {
				t.Errorf("%s: %v", k, vs)
			}
		}
	})
}

// A process that was stopped in the middle of a transaction, and goes on after another
// has taken the partition over, must change nothing.
func TestDeposedOwnerChangesNothing(t *testing.T) {
	t.Parallel()
	b := newBench(t, eventlogtest.Embedded(t), eventlog.Subscription{Name: "zombie", Topics: []string{eventlog.Orders}})
	b.exec(appliedTable)
	entered, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	c := consumer.Consumer{Name: "zombie", Topics: []string{eventlog.Orders}, Rows: func(ctx context.Context, tx pgx.Tx, es []eventlog.Event) error {
		for _, e := range es {
			if _, err := tx.Exec(ctx, `INSERT INTO applied (key, version) VALUES ($1, $2)`, e.Subject, e.Version); err != nil {
				return err
			}
		}
		stopped := false
		once.Do(func() { stopped = true })
		if stopped {
			close(entered)
			<-release
		}
		return nil
	}}
	b.produce(b.event(eventlog.Orders, "k", "T")...)
	r := b.runtime()
	r.IdleTx(200 * time.Millisecond)
	start(t, r, c)
	<-entered
	// Another instance takes over. Postgres ends the transaction of the stopped one.
	tp := eventlog.TopicPartition{Topic: eventlog.Orders, Partition: eventlog.PartitionFor("k", testPartitions)}
	cps, err := consumer.TakeCheckpoints(t.Context(), b.db, "zombie", 0, map[eventlog.TopicPartition]int64{tp: 0}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	cp := cps[tp]
	err = pgx.BeginFunc(t.Context(), b.db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), `INSERT INTO applied (key, version) VALUES ('k', 1)`); err != nil {
			return err
		}
		return cp.Move(t.Context(), tx, consumer.Mark{Next: 2, Rule: eventlog.Rule{Term: 1, Seq: 1}})
	})
	if err != nil {
		t.Fatal(err)
	}
	close(release)
	// The first instance finds that it is fenced. As the only member of the group it
	// takes the partition again, and goes on after the other's work.
	b.produce(b.event(eventlog.Orders, "k", "T")...)
	eventually(t, "it goes on", func() bool { return slices.Contains(b.applied()["k"], 2) })
	if got := b.applied()["k"]; !slices.Equal(got, upTo(2)) {
		t.Errorf("applied %v", got)
	}
	// Now the other instance is fenced.
	if err := cp.Move(t.Context(), b.db, consumer.Mark{Next: 3}); !errors.Is(err, consumer.ErrFenced) {
		t.Errorf("the former owner's move: %v", err)
	}
}

func TestInvalidAndShardRecordsMoveThePositionOnly(t *testing.T) {
	t.Parallel()
	b := newBench(t, eventlogtest.Embedded(t), flaky)
	var l ledger
	r := b.runtime()
	reg := prometheus.NewRegistry()
	r.Registry = reg
	start(t, r, consumer.Consumer{Name: "flaky", Topics: []string{eventlog.Orders}, Each: func(_ context.Context, e eventlog.Event) error { l.add(e); return nil }})
	p := eventlog.PartitionFor("k", testPartitions)
	b.produce(b.event(eventlog.Orders, "k", "T")...)
	again := eventlog.Event{ID: "x", Source: "/test", Type: "T", Subject: "k", Version: 9, Time: time.Now(), Term: 1, Seq: 1, Data: []byte(`{}`)}
	b.produce(again.NewRecord(eventlog.Orders, p))                                                        // a second copy: invalid
	b.produce(&kgo.Record{Topic: eventlog.Orders, Partition: p, Key: []byte("k"), Value: []byte("junk")}) // no event: invalid
	last := b.produce(b.claim(eventlog.Orders, p))
	pos := consumer.NewPositions(b.db)
	token := eventlog.Token{}
	token.Add(eventlog.Orders, p, last)
	token.Add(eventlog.Riders, 0, 1000) // not read by this consumer
	if err := pos.WaitFor(t.Context(), "flaky", 0, []string{eventlog.Orders}, token); err != nil {
		t.Fatal(err)
	}
	if got := l.of("k"); !slices.Equal(got, upTo(1)) {
		t.Errorf("handled %v", got)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	invalid := 0.0
	for _, f := range families {
		if f.GetName() == "tomato_void_records_total" {
			for _, m := range f.GetMetric() {
				invalid += m.GetCounter().GetValue()
			}
		}
	}
	if invalid != 2 {
		t.Errorf("%v invalid records counted", invalid)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	token.Add(eventlog.Orders, p, last+1)
	if err := pos.WaitFor(ctx, "flaky", 0, []string{eventlog.Orders}, token); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waited for what is not there: %v", err)
	}
	for offset, want := range map[int64]bool{-1: true, last: true, last + 1: false} {
		if got, err := pos.Passed(t.Context(), "flaky", eventlog.Orders, p, offset, "k"); err != nil || got != want {
			t.Errorf("passed %d: %v, %v", offset, got, err)
		}
	}
}

// Two members share the partitions. The events of a key stay in order when its
// partition moves, and a graceful move repeats none of them.
func TestGracefulHandOverRepeatsNothing(t *testing.T) {
	t.Parallel()
	b := newBench(t, eventlogtest.Embedded(t), flaky)
	var l ledger
	c := consumer.Consumer{Name: "flaky", Topics: []string{eventlog.Orders}, Each: func(_ context.Context, e eventlog.Event) error { l.add(e); return nil }}
	feed := func(n int) {
		for range n {
			var recs []*kgo.Record
			for k := range 20 {
				recs = append(recs, b.event(eventlog.Orders, fmt.Sprint("k", k), "T")...)
			}
			b.produce(recs...)
		}
	}
	stop := start(t, b.runtime(), c)
	feed(10)
	eventually(t, "begun", func() bool { return l.total() > 50 })
	second := b.runtime()
	start(t, second, c)
	eventually(t, "shared", func() bool {
		s := second.Status()
		return len(s) == 1 && len(s[0].Partitions) == 1
	})
	feed(10)
	stop()
	feed(10)
	eventually(t, "all", func() bool { return l.total() >= 600 })
	for k := range 20 {
		if got := l.of(fmt.Sprint("k", k)); !slices.Equal(got, upTo(30)) {
			t.Errorf("k%d: %v", k, got)
		}
	}
}
