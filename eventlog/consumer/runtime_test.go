package consumer_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/consumer/parked"
	"tomato/eventlog/eventlogtest"
	"tomato/migrations"
	"tomato/migrations/postgrestest"
)

const testPartitions = 2

// bench is one installation under test: brokers, a database, a writer.
type bench struct {
	t    *testing.T
	cfg  eventlog.Config
	db   *pgxpool.Pool
	cl   *kgo.Client
	adm  *kadm.Client
	mu   sync.Mutex
	rule map[eventlog.TopicPartition]*eventlog.Rule // what the writer has appended
	vers map[string]int64
}

func newBench(t *testing.T, cfg eventlog.Config, consumers ...eventlog.Subscription) *bench {
	t.Helper()
	db := postgrestest.New(t)
	if err := migrations.Core(t.Context(), db.Config().ConnString()); err != nil {
		t.Fatal(err)
	}
	eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: testPartitions, Consumers: consumers})
	cl := eventlogtest.Client(t, cfg, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0))
	return &bench{t: t, cfg: cfg, db: db, cl: cl, adm: kadm.NewClient(cl), rule: map[eventlog.TopicPartition]*eventlog.Rule{}, vers: map[string]int64{}}
}

// in is the same bench for a subtest.
func (b *bench) in(t *testing.T) *bench {
	return &bench{t: t, cfg: b.cfg, db: b.db, cl: b.cl, adm: b.adm, rule: b.rule, vers: b.vers}
}

// state is for failing tests to show.
func (b *bench) state() string {
	return query[string](b, `SELECT coalesce((SELECT json_agg(c)::text FROM tomato.checkpoints c), '') ||
		coalesce((SELECT json_agg(json_build_object('o', source_offset, 'p', partition, 'k', convert_from(key, 'UTF8'), 's', state, 'a', attempt, 'due', due_at, 'rev', rev) ORDER BY partition, source_offset)::text FROM tomato.parked), '')`)
}

func everyKind(name string) (out []eventlog.Subscription) {
	for _, kind := range []string{"Each", "Batch", "Rows"} {
		out = append(out, eventlog.Subscription{Name: name + kind, Topics: []string{eventlog.Orders}})
	}
	return out
}

func (b *bench) exec(sql string, args ...any) {
	b.t.Helper()
	if _, err := b.db.Exec(b.t.Context(), sql, args...); err != nil {
		b.t.Fatal(err)
	}
}

func query[T any](b *bench, sql string, args ...any) T {
	b.t.Helper()
	var v T
	if err := b.db.QueryRow(b.t.Context(), sql, args...).Scan(&v); err != nil {
		b.t.Fatal(err)
	}
	return v
}

// produce appends records and returns the offset of the last.
func (b *bench) produce(recs ...*kgo.Record) int64 {
	b.t.Helper()
	res := b.cl.ProduceSync(b.t.Context(), recs...)
	if err := res.FirstErr(); err != nil {
		b.t.Fatal(err)
	}
	return res[len(res)-1].Record.Offset
}

// event makes the next event of key, with its place under the reader rule on an
// aggregate topic; the first in a partition comes with a claim.
func (b *bench) event(topic, key, typ string) []*kgo.Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := eventlog.PartitionFor(key, testPartitions)
	e := eventlog.Event{ID: fmt.Sprintf("%s-%d", key, b.vers[key]+1), Source: "/test", Type: typ, Subject: key, Time: time.Now(), Data: []byte(`{"n":1}`)}
	b.vers[key]++
	e.Version = b.vers[key]
	var out []*kgo.Record
	if eventlog.IsAggregate(topic) {
		tp := eventlog.TopicPartition{Topic: topic, Partition: p}
		r := b.rule[tp]
		if r == nil {
			r = &eventlog.Rule{Term: 1}
			b.rule[tp] = r
			claim := eventlog.Event{ID: "claim", Source: "/test", Type: eventlog.ShardClaimed, Time: time.Now(), Term: 1, Data: []byte(`{}`)}
			out = append(out, claim.NewRecord(topic, p))
		}
		r.Seq++
		e.Term, e.Seq = r.Term, r.Seq
	}
	return append(out, e.NewRecord(topic, p))
}

func (b *bench) seen(topic string, p int32) *kgo.Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.rule[eventlog.TopicPartition{Topic: topic, Partition: p}]
	r.Seq++
	e := eventlog.Event{ID: "seen", Source: "/test", Type: eventlog.ShardSeen, Time: time.Now(), Term: r.Term, Seq: r.Seq, Data: []byte(`{}`)}
	return e.NewRecord(topic, p)
}

func (b *bench) runtime() *consumer.Runtime {
	r := &consumer.Runtime{Kafka: b.cfg, Partitions: testPartitions, DB: b.db, Registry: prometheus.NewRegistry(),
		Log: slog.New(slog.NewTextHandler(testWriter{b.t}, &slog.HandlerOptions{Level: slog.LevelInfo}))}
	r.Hasten(100*time.Millisecond, 200*time.Millisecond)
	return r
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// start runs consumers until stop is called or the test ends.
func start(t *testing.T, r *consumer.Runtime, cs ...consumer.Consumer) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx, cs...) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("Run does not end")
		}
	})
	t.Cleanup(stop)
	return stop
}

func eventually(t *testing.T, what string, ok func() bool, state ...func() string) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(3 * time.Minute)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			for _, s := range state {
				what += "; " + s()
			}
			t.Fatalf("not within its time: %s", what)
		}
	}
}

// ledger is what a handler has done, per key.
type ledger struct {
	mu   sync.Mutex
	done map[string][]int64 // versions
}

func (l *ledger) add(e eventlog.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done == nil {
		l.done = map[string][]int64{}
	}
	l.done[e.Subject] = append(l.done[e.Subject], e.Version)
}

func (l *ledger) of(key string) []int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.done[key])
}

func (l *ledger) total() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, v := range l.done {
		n += len(v)
	}
	return n
}

func fmtError(err error) error { return fmt.Errorf("handler: %w", err) }

func upTo(n int64) []int64 {
	out := make([]int64, n)
	for i := range out {
		out[i] = int64(i) + 1
	}
	return out
}

var flaky = eventlog.Subscription{Name: "flaky", Topics: []string{eventlog.Orders, eventlog.PaymentWebhooks}}

// kinds makes the same consumer three times, each with its own kind of handler
// around one function per event, for keys that begin with prefix. The rows of
// Rows are in table applied.
func kinds(prefix string, handle func(e eventlog.Event) error) map[string]consumer.Consumer {
	all := handle
	handle = func(e eventlog.Event) error {
		if !strings.HasPrefix(e.Subject, prefix) {
			return nil
		}
		return all(e)
	}
	return map[string]consumer.Consumer{
		"Each": {Each: func(_ context.Context, e eventlog.Event) error { return handle(e) }},
		"Batch": {Batch: func(_ context.Context, es []eventlog.Event) error {
			for _, e := range es {
				if err := handle(e); err != nil {
					return err
				}
			}
			return nil
		}},
		"Rows": {Rows: func(ctx context.Context, tx pgx.Tx, es []eventlog.Event) error {
			for _, e := range es {
				if !strings.HasPrefix(e.Subject, prefix) {
					continue
				}
				if _, err := tx.Exec(ctx, `INSERT INTO applied (key, version) VALUES ($1, $2)`, e.Subject, e.Version); err != nil {
					return err
				}
				if err := handle(e); err != nil {
					return err
				}
			}
			return nil
		}},
	}
}

const appliedTable = `CREATE TABLE applied (n bigint GENERATED ALWAYS AS IDENTITY, key text, version bigint)`

// applied returns what Rows wrote, per key in the order of writing.
func (b *bench) applied() map[string][]int64 {
	b.t.Helper()
	rows, err := b.db.Query(b.t.Context(), `SELECT key, version FROM applied ORDER BY n`)
	if err != nil {
		b.t.Fatal(err)
	}
	out := map[string][]int64{}
	var k string
	var v int64
	if _, err := pgx.ForEachRow(rows, []any{&k, &v}, func() error { out[k] = append(out[k], v); return nil }); err != nil {
		b.t.Fatal(err)
	}
	return out
}

func dedup(vs []int64) []int64 {
	var out []int64
	for _, v := range vs {
		if len(out) == 0 || v > out[len(out)-1] {
			out = append(out, v)
		} else if !slices.Contains(out, v) {
			return append(out, -v) // out of order
		}
	}
	return out
}

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
				// The topic has it, with its reasons.
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

				// After a restart the queue is still in order, and read again.
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

func TestAwayParksNothing(t *testing.T) {
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

// Three attempts: in place, after 5 s, after 30 s (shorter here); then dead.
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

func TestRowsTakeEffectOnceAcrossKillAndRebalance(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		b := newBench(t, cfg, eventlog.Subscription{Name: "once", Topics: []string{eventlog.Orders}})
		b.exec(appliedTable)
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

// A process that was stopped in the middle of a transaction and goes on after
// another has taken over must change nothing.
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
	// Another takes over; Postgres ends the sleeper's transaction for it.
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
	// It finds itself fenced, takes over anew (it is the group's only member)
	// and goes on behind the other's work.
	b.produce(b.event(eventlog.Orders, "k", "T")...)
	eventually(t, "it goes on", func() bool { return slices.Contains(b.applied()["k"], 2) })
	if got := b.applied()["k"]; !slices.Equal(got, upTo(2)) {
		t.Errorf("applied %v", got)
	}
	// And what the other still tries is fenced in turn.
	if err := cp.Move(t.Context(), b.db, consumer.Mark{Next: 3}); !errors.Is(err, consumer.ErrFenced) {
		t.Errorf("the former owner's move: %v", err)
	}
}

// Some thousand events, 5 % of them fail, some of these again and again, with restarts
// between: the rows are those of the fold.
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
				// 5 % of the events fail some times: up to three in place and twice
				// later makes a dead letter, so some need one replay and some more.
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

func TestVoidAndShardRecordsMoveThePositionOnly(t *testing.T) {
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
	b.produce(again.NewRecord(eventlog.Orders, p))                                                        // a second copy: void
	b.produce(&kgo.Record{Topic: eventlog.Orders, Partition: p, Key: []byte("k"), Value: []byte("junk")}) // no event at all: void
	last := b.produce(b.seen(eventlog.Orders, p))
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
	voids := 0.0
	for _, f := range families {
		if f.GetName() == "tomato_void_records_total" {
			for _, m := range f.GetMetric() {
				voids += m.GetCounter().GetValue()
			}
		}
	}
	if voids != 2 {
		t.Errorf("%v void records counted", voids)
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

// A record that cannot be decoded parks its own key; what queues behind it
// outlives the source topic, which forgets.
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
	const total = 150
	var recs []*kgo.Record
	for i := range total {
		recs = append(recs, b.event(eventlog.Orders, fmt.Sprint("k", i), "T")...)
	}
	b.produce(recs...)
	r := b.runtime()
	start(t, r, consumer.Consumer{Name: "flaky", Topics: []string{eventlog.Orders}, Budget: 60, MaxBatch: 10, Each: func(_ context.Context, e eventlog.Event) error {
		if !fixed.Load() {
			return eventlog.Poison(errors.New("no"))
		}
		l.add(e)
		return nil
	}})
	eventually(t, "both paused", func() bool {
		n := 0
		for _, s := range r.Status() {
			for _, p := range s.Partitions {
				if p.Paused != "" && p.Dead >= 60 && p.Dead < 75 {
					n++
				}
			}
		}
		return n == testPartitions
	})
	tools := &parked.DeadLetters{DB: b.db, Kafka: b.cfg}
	var confirm *parked.ConfirmError
	_, err := tools.Replay(t.Context(), parked.ReplayRequest{Consumer: "flaky", Class: "poison", Who: "test"})
	if !errors.As(err, &confirm) {
		t.Fatalf("not asked to confirm: %v", err)
	}
	fixed.Store(true)
	eventually(t, "replayed by the right count", func() bool { // what was under way may still have died
		res, err := tools.Replay(t.Context(), parked.ReplayRequest{Consumer: "flaky", Class: "poison", ConfirmCount: confirm.Matched, RatePerSecond: 500, Who: "test"})
		if errors.As(err, &confirm) {
			return false
		}
		if err != nil || res.Replayed != res.Matched {
			t.Fatalf("%+v, %v", res, err)
		}
		return true
	})
	eventually(t, "all done", func() bool { return l.total() == total })
	all, err := consumer.ReadConsumers(t.Context(), b.db, b.adm)
	if err != nil || len(all) != 1 || len(all[0].Partitions) != testPartitions {
		t.Errorf("%+v, %v", all, err)
	}
}

// Two members share the partitions; each key's events stay in order over the
// hand-over, and a graceful one repeats nothing.
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
