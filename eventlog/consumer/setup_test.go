package consumer_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
	"tomato/eventlog/consumer"
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

// in returns the same bench for a subtest.
func (b *bench) in(t *testing.T) *bench {
	return &bench{t: t, cfg: b.cfg, db: b.db, cl: b.cl, adm: b.adm, rule: b.rule, vers: b.vers}
}

// state returns what a failing test shows.
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

// generation makes a generation for a consumer of a read model: without it, its
// checkpoints cannot be written.
func (b *bench) generation(consumer string, n int) {
	b.t.Helper()
	b.exec(`INSERT INTO tomato.generations (model, generation, state) VALUES ($1, $2, 'standby')`, consumer, n)
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

// event makes the next event of key. On an aggregate topic it is valid, and the first
// event of a partition comes with a claim before it.
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

// claim returns a claim with the partition's next term.
func (b *bench) claim(topic string, p int32) *kgo.Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.rule[eventlog.TopicPartition{Topic: topic, Partition: p}]
	r.Term, r.Seq = r.Term+1, 0
	e := eventlog.Event{ID: "claim", Source: "/test", Type: eventlog.ShardClaimed, Time: time.Now(), Term: r.Term, Data: []byte(`{}`)}
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

// ledger has what a handler has done, by key.
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

// kinds returns one consumer of each kind, which calls handle for the events whose key
// begins with prefix. The consumer with Rows also writes table applied.
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
