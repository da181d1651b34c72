package consumer_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/consumer/parked"
	"tomato/eventlog/eventlogtest"
)

func TestPoisonIsParkedWhileOthersFlowAndReplayRestores(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		b := newBench(t, cfg, everyKind("p")...)
		b.exec(appliedTable)
		for _, kind := range []string{"Each", "Batch", "Rows"} {
			t.Run(kind, func(t *testing.T) {
				b := b.in(t)
				name := "p" + kind
				var l ledger
				var fixed atomic.Bool
				bad := kind + "-bad"
				c := kinds(kind, func(e eventlog.Event) error {
					if e.Subject == bad && e.Version == 2 && !fixed.Load() {
						panic("cannot stand it")
					}
					l.add(e)
					return nil
				})[kind]
				c.Name, c.Topics = name, []string{eventlog.Orders}
				var recs []*kgo.Record
				for range 3 {
					recs = append(recs, b.event(eventlog.Orders, bad, "T")...)
					for k := range 20 {
						recs = append(recs, b.event(eventlog.Orders, fmt.Sprintf("%s-%d", kind, k), "T")...)
					}
				}
				b.produce(recs...)
				stop := start(t, b.runtime(), c)
				complete := func(key string) bool {
					if kind == "Rows" {
						return slices.Equal(b.applied()[key], upTo(3))
					}
					return slices.Equal(dedup(l.of(key)), upTo(3))
				}
				eventually(t, "the others are done", func() bool {
					for k := range 20 {
						if !complete(fmt.Sprintf("%s-%d", kind, k)) {
							return false
						}
					}
					return query[int](b, `SELECT count(*) FROM tomato.parked WHERE consumer = $1`, name) == 2
				})
				tools := &parked.DeadLetters{DB: b.db, Kafka: cfg}
				list, next, err := tools.List(t.Context(), name, 10, "")
				if err != nil || len(list) != 1 || next != "" {
					t.Fatalf("list: %+v, %q, %v", list, next, err)
				}
				d := list[0]
				if d.Key != bad || d.Class != "panic" || d.QueuedBehind != 1 || !strings.Contains(d.Error, "cannot stand it") || d.EventType != "T" {
					t.Errorf("dead letter %+v", d)
				}
				if d, err = tools.Get(t.Context(), d.ID); err != nil || string(d.Data) != `{"n":1}` || d.Headers["ce_type"] != "T" {
					t.Errorf("get: %+v, %v", d, err)
				}
				// The dead letter topic has the record, with the reasons.
				dlq := eventlogtest.Client(t, cfg, kgo.ConsumeTopics(eventlog.ParkedTopic(eventlog.Orders, name, "dlq")), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
				got := dlq.PollFetches(t.Context()).Records()
				if len(got) != 1 || got[0].Partition != d.Partition {
					t.Fatalf("dlq has %d records", len(got))
				}
				h := map[string]string{}
				for _, x := range got[0].Headers {
					h[x.Key] = string(x.Value)
				}
				for k, want := range map[string]string{"source-topic": "orders", "source-offset": fmt.Sprint(d.Offset), "source-partition": fmt.Sprint(d.Partition),
					"consumer": name, "attempt": "1", "error-class": "panic", "ce_subject": bad} {
					if h[k] != want {
						t.Errorf("header %s = %q, want %q", k, h[k], want)
					}
				}
				if h["first-failed-at"] == "" || h["last-failed-at"] == "" || h["source-timestamp"] == "" || h["error"] == "" {
					t.Errorf("headers %v", h)
				}

				// After a restart the parked events are still in order.
				stop()
				fixed.Store(true)
				r := b.runtime()
				start(t, r, c)
				b.produce(b.event(eventlog.Orders, bad, "T")...)
				eventually(t, "the fourth queues too", func() bool {
					return query[int](b, `SELECT count(*) FROM tomato.parked WHERE consumer = $1 AND state = 'waiting'`, name) == 2
				})
				if res, err := tools.Replay(t.Context(), parked.ReplayRequest{Consumer: name, Key: bad, DryRun: true, Who: "test"}); err != nil || res != (parked.ReplayResult{Matched: 1}) {
					t.Fatalf("dry run: %+v, %v", res, err)
				}
				if res, err := tools.Replay(t.Context(), parked.ReplayRequest{Consumer: name, Key: bad, Who: "test"}); err != nil || res != (parked.ReplayResult{Matched: 1, Replayed: 1}) {
					t.Fatalf("replay: %+v, %v", res, err)
				}
				eventually(t, "the key is free", func() bool {
					return query[int](b, `SELECT count(*) FROM tomato.parked WHERE consumer = $1`, name) == 0
				})
				vs := dedup(l.of(bad))
				if kind == "Rows" {
					vs = b.applied()[bad]
				}
				if !slices.Equal(vs, upTo(4)) {
					t.Errorf("after replay: %v", vs)
				}
				if n := query[int](b, `SELECT count(*) FROM tomato.dead_letter_actions WHERE who = 'test' AND consumer = $1`, name); n != 1 {
					t.Errorf("%d actions audited", n)
				}
				if s := r.Stopped(name); len(s) != 0 {
					t.Errorf("stopped: %v", s)
				}
			})
		}
	})
}

func TestUnavailabilityParksNothing(t *testing.T) {
	t.Parallel()
	b := newBench(t, eventlogtest.Embedded(t), everyKind("a")...)
	b.exec(appliedTable)
	for _, kind := range []string{"Each", "Batch", "Rows"} {
		t.Run(kind, func(t *testing.T) {
			b := b.in(t)
			var l ledger
			var calls atomic.Int64
			var back atomic.Bool
			c := kinds(kind, func(e eventlog.Event) error {
				calls.Add(1)
				if !back.Load() {
					return fmt.Errorf("the shard: %w", eventlog.Unavailable(errors.New("503")))
				}
				l.add(e)
				return nil
			})[kind]
			c.Name, c.Topics = "a"+kind, []string{eventlog.Orders}
			for range 5 {
				b.produce(b.event(eventlog.Orders, kind+"-key", "T")...)
			}
			r := b.runtime()
			start(t, r, c)
			eventually(t, "lag and reason show", func() bool {
				for _, s := range r.Status() {
					for _, p := range s.Partitions {
						if p.LagRecords >= 5 && strings.Contains(p.Unavailable, "503") && p.LagSeconds > 0 && calls.Load() >= 5 {
							return true
						}
					}
				}
				return false
			})
			if n := query[int](b, `SELECT count(*) FROM tomato.parked`); n != 0 {
				t.Fatalf("%d parked", n)
			}
			back.Store(true)
			eventually(t, "done", func() bool { return len(l.of(kind+"-key")) == 5 })
			if got := l.of(kind + "-key"); !slices.Equal(got, upTo(5)) {
				t.Errorf("handled %v", got)
			}
			eventually(t, "no lag", func() bool {
				lag := int64(0)
				for _, s := range r.Status() {
					for _, p := range s.Partitions {
						lag += p.LagRecords
					}
				}
				return lag == 0
			})
		})
	}
}

// An event has three attempts: at once, after 5 s and after 30 s (shorter here). Then it
// is a dead letter.
func TestThirdFailedAttemptMakesADeadLetter(t *testing.T) {
	t.Parallel()
	b := newBench(t, eventlogtest.Embedded(t), flaky)
	var calls atomic.Int64
	b.produce(b.event(eventlog.Orders, "k", "T")...)
	start(t, b.runtime(), consumer.Consumer{Name: "flaky", Topics: []string{eventlog.Orders}, Each: func(context.Context, eventlog.Event) error {
		calls.Add(1)
		return errors.New("always")
	}})
	eventually(t, "dead", func() bool {
		return query[int](b, `SELECT count(*) FROM tomato.parked WHERE state = 'dead' AND attempt = 3 AND class = 'transient'`) == 1
	})
	if calls.Load() != 5 { // three in place, one each later
		t.Errorf("%d calls", calls.Load())
	}
	ends, err := b.adm.ListEndOffsets(t.Context(), "orders.flaky.retry-5s", "orders.flaky.retry-30s", "orders.flaky.dlq")
	if err != nil {
		t.Fatal(err)
	}
	sums := map[string]int64{}
	ends.Each(func(o kadm.ListedOffset) { sums[o.Topic] += o.Offset })
	for topic, n := range sums {
		if n != 1 {
			t.Errorf("%s has %d records", topic, n)
		}
	}
}

// Of some thousand events 5 % fail, some of them several times, and the runtime is
// restarted meanwhile. In the end the rows are those of the fold.
func TestRandomFailuresLeaveTheFold(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"Rows", "Each"} {
		for seed := range uint64(2) {
			t.Run(fmt.Sprint(kind, "/seed", seed), func(t *testing.T) {
				t.Parallel()
				b := newBench(t, eventlogtest.Embedded(t), flaky)
				b.exec(`CREATE TABLE folded (key text PRIMARY KEY, version bigint, hash bigint)`)
				rnd := rand.New(rand.NewPCG(seed, 7))
				const total = 2000
				fold := map[string]int64{}
				next := func(hash int64, e string) int64 {
					return (hash*31 + int64(len(e))*7 + int64(e[len(e)-1])) % 1_000_000_007
				}
				var recs []*kgo.Record
				for range total {
					key := fmt.Sprint("k", rnd.IntN(120))
					es := b.event(eventlog.Orders, key, "T")
					fold[key] = next(fold[key], fmt.Sprintf("%s-%d", key, b.vers[key]))
					recs = append(recs, es...)
				}
				// 5 % of the events fail up to seven times. Three failed tries in place and
				// two later make a dead letter, so some events must be replayed.
				var mu sync.Mutex
				left := map[string]int{}
				kinds := map[string]func(error) error{}
				for _, r := range recs {
					if rnd.IntN(20) == 0 {
						id := string(r.Headers[1].Value)
						left[id] = 1 + rnd.IntN(7)
						kinds[id] = []func(error) error{eventlog.Poison, eventlog.Unavailable, fmtError, fmtError}[rnd.IntN(4)]
						if errors.Is(kinds[id](errors.New("")), eventlog.ErrUnavailable) {
							left[id] = 1 // each waits longer than the last
						}
					}
				}
				fails := func(e eventlog.Event) error {
					mu.Lock()
					defer mu.Unlock()
					if left[e.ID] > 0 {
						left[e.ID]--
						return kinds[e.ID](errors.New("injected"))
					}
					return nil
				}
				type execer interface {
					QueryRow(context.Context, string, ...any) pgx.Row
				}
				// Rows fold by adding to what is there; Each is idempotent by version.
				step := func(ctx context.Context, db execer, e eventlog.Event) error {
					var hash, version int64
					err := db.QueryRow(ctx, `SELECT version, hash FROM folded WHERE key = $1`, e.Subject).Scan(&version, &hash)
					if err != nil && !errors.Is(err, pgx.ErrNoRows) {
						return err
					}
					if kind == "Each" && e.Version <= version {
						return nil
					}
					if e.Version != version+1 {
						t.Errorf("%s: version %d after %d", e.Subject, e.Version, version)
					}
					var one int
					return db.QueryRow(ctx, `INSERT INTO folded VALUES ($1, $2, $3) ON CONFLICT (key) DO UPDATE SET version = $2, hash = $3 RETURNING 1`,
						e.Subject, e.Version, next(hash, e.ID)).Scan(&one)
				}
				c := consumer.Consumer{Name: "flaky", Topics: []string{eventlog.Orders}, MaxBatch: 40}
				if kind == "Rows" {
					c.Rows = func(ctx context.Context, tx pgx.Tx, es []eventlog.Event) error {
						for _, e := range es {
							if err := step(ctx, tx, e); err != nil {
								return err
							}
							if err := fails(e); err != nil {
								return err
							}
						}
						return nil
					}
				} else {
					c.Each = func(ctx context.Context, e eventlog.Event) error {
						if err := step(ctx, b.db, e); err != nil {
							return err
						}
						return fails(e) // the effect has happened all the same
					}
				}
				tools := &parked.DeadLetters{DB: b.db, Kafka: b.cfg}
				stop := func() {}
				for part := range 3 {
					b.produce(recs[part*len(recs)/3 : (part+1)*len(recs)/3]...)
					stop() // a restart with work at hand
					stop = start(t, b.runtime(), c)
					eventually(t, "some progress", func() bool {
						return query[int64](b, `SELECT coalesce(sum(next_offset), 0)::bigint FROM tomato.checkpoints`) > int64(part)*total/3+200
					}, b.state)
				}
				eventually(t, "everything handled and nothing parked", func() bool {
					if _, err := tools.Replay(t.Context(), parked.ReplayRequest{Consumer: "flaky", All: true, Who: "test"}); err != nil {
						t.Fatal(err)
					}
					return query[int64](b, `SELECT coalesce(sum(version), 0)::bigint FROM folded`) == total && query[int](b, `SELECT count(*) FROM tomato.parked`) == 0
				}, b.state)
				for key, want := range fold {
					if got := query[int64](b, `SELECT hash FROM folded WHERE key = $1`, key); got != want {
						t.Errorf("%s: %d, the fold is %d", key, got, want)
					}
				}
				if n := query[int](b, `SELECT count(*) FROM tomato.dead_letter_actions`); n == 0 {
					t.Error("no dead letter in all the run: the test proves little")
				}
			})
		}
	}
}

// A record that cannot be decoded parks its own key only. The events that wait behind
// it can still be handled after the source topic has deleted them.
func TestUndecodableRecordAndItsQueueOutliveTheirTopic(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		b := newBench(t, cfg, flaky)
		var l ledger
		c := consumer.Consumer{Name: "flaky", Topics: []string{eventlog.PaymentWebhooks}, Each: func(_ context.Context, e eventlog.Event) error {
			if string(e.Data) == "\xff\x00" {
				return eventlog.Poison(errors.New("it cannot be decoded"))
			}
			l.add(e)
			return nil
		}}
		stop := start(t, b.runtime(), c)
		p := eventlog.PartitionFor("g1", testPartitions)
		bad := b.event(eventlog.PaymentWebhooks, "g1", "W")
		bad[0].Value = []byte("\xff\x00")
		b.produce(bad...)
		b.produce(b.event(eventlog.PaymentWebhooks, "g1", "W")...)
		b.produce(b.event(eventlog.PaymentWebhooks, "g2", "W")...)
		eventually(t, "parked, the other key done", func() bool {
			return query[int](b, `SELECT count(*) FROM tomato.parked WHERE copy_offset >= 0`) == 2 && len(l.of("g2")) == 1
		})
		pos := consumer.NewPositions(b.db)
		eventually(t, "position passes, the key does not", func() bool {
			g1, err1 := pos.Passed(t.Context(), "flaky", eventlog.PaymentWebhooks, p, 1, "g1")
			g3, err3 := pos.Passed(t.Context(), "flaky", eventlog.PaymentWebhooks, p, 1, "g3")
			return errors.Join(err1, err3) == nil && !g1 && g3
		})
		tools := &parked.DeadLetters{DB: b.db, Kafka: cfg}
		list, _, err := tools.List(t.Context(), "", 10, "")
		if err != nil || len(list) != 1 || list[0].Class != "poison" || list[0].Key != "g1" {
			t.Fatalf("%+v, %v", list, err)
		}
		stop()
		var del kadm.Offsets
		del.AddOffset(eventlog.PaymentWebhooks, p, 2, -1)
		if _, err := b.adm.DeleteRecords(t.Context(), del); err != nil {
			t.Fatal(err)
		}
		start(t, b.runtime(), c)
		if err := tools.Discard(t.Context(), list[0].ID, "junk", "test"); err != nil {
			t.Fatal(err)
		}
		if err := tools.Discard(t.Context(), list[0].ID, "junk", "test"); !errors.Is(err, parked.ErrNoDeadLetter) {
			t.Errorf("discarded twice: %v", err)
		}
		eventually(t, "what queued behind has run", func() bool { return slices.Equal(l.of("g1"), []int64{2}) })
		eventually(t, "key is free", func() bool { return query[int](b, `SELECT count(*) FROM tomato.parked`) == 0 })
	})
}

func TestPartitionPausesOverItsBudgetAndGoesOn(t *testing.T) {
	t.Parallel()
	b := newBench(t, eventlogtest.Embedded(t), flaky)
	var l ledger
	var fixed atomic.Bool
	var failed atomic.Int64
	const total = 150
	var recs []*kgo.Record
	for i := range total {
		recs = append(recs, b.event(eventlog.Orders, fmt.Sprint("k", i), "T")...)
	}
	b.produce(recs...)
	r := b.runtime()
	start(t, r, consumer.Consumer{Name: "flaky", Topics: []string{eventlog.Orders}, Budget: 60, MaxBatch: 10, Each: func(_ context.Context, e eventlog.Event) error {
		if !fixed.Load() {
			failed.Add(1)
			return eventlog.Poison(errors.New("no"))
		}
		l.add(e)
		return nil
	}})
	// A paused partition hands out nothing more, but calls that it had begun may still
	// fail. The replay below has to find these events, too.
	eventually(t, "both paused, and every event that was handed out is dead", func() bool {
		n, dead := 0, 0
		for _, s := range r.Status() {
			for _, p := range s.Partitions {
				dead += p.Dead
				if p.Paused != "" && p.Dead >= 60 && p.Dead < 75 {
					n++
				}
			}
		}
		return n == testPartitions && int64(dead) == failed.Load()
	})
	tools := &parked.DeadLetters{DB: b.db, Kafka: b.cfg}
	var confirm *parked.ConfirmError
	_, err := tools.Replay(t.Context(), parked.ReplayRequest{Consumer: "flaky", Class: "poison", Who: "test"})
	if !errors.As(err, &confirm) {
		t.Fatalf("not asked to confirm: %v", err)
	}
	fixed.Store(true)
	res, err := tools.Replay(t.Context(), parked.ReplayRequest{Consumer: "flaky", Class: "poison", ConfirmCount: confirm.Matched, RatePerSecond: 500, Who: "test"})
	if err != nil || res.Replayed != res.Matched || int64(res.Matched) != failed.Load() {
		t.Fatalf("%+v, %v", res, err)
	}
	eventually(t, "all done", func() bool { return l.total() == total })
	all, err := consumer.ReadConsumers(t.Context(), b.db, b.adm)
	if err != nil || len(all) != 1 || len(all[0].Partitions) != testPartitions {
		t.Errorf("%+v, %v", all, err)
	}
}
