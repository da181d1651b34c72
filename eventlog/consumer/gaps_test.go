package consumer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kadm"

	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/consumer/parked"
	"tomato/eventlog/eventlogtest"
)

// An event became a dead letter, and its worker was killed before it had copied all
// events that wait behind it. Nobody copied the others later, so they were lost when
// the source topic had deleted their records.
func TestCopyingWhatQueuesBehindADeadRecordIsTakenUpAfterACrash(t *testing.T) {
	t.Parallel()
	b := newBench(t, eventlogtest.Embedded(t), flaky)
	var l ledger
	c := consumer.Consumer{Name: "flaky", Topics: []string{eventlog.PaymentWebhooks}, Each: func(_ context.Context, e eventlog.Event) error {
		if e.Version == 1 {
			return eventlog.Poison(errors.New("no"))
		}
		l.add(e)
		return nil
	}}
	for range 4 {
		b.produce(b.event(eventlog.PaymentWebhooks, "g1", "W")...)
	}
	copied := func() int { return query[int](b, `SELECT count(*) FROM tomato.parked WHERE copy_offset >= 0`) }
	first := b.runtime()
	kill := first.Abandon()
	stop := start(t, first, c)
	eventually(t, "all parked", func() bool { return copied() == 4 })
	kill()
	stop()
	// The state at the kill: one of the three followers has been copied.
	b.exec(`UPDATE tomato.parked SET copy_topic = '', copy_offset = -1, class = '', rev = rev + 1 WHERE state = 'waiting' AND source_offset > 1`)
	if n := copied(); n != 2 {
		t.Fatalf("%d copied", n)
	}
	stop = start(t, b.runtime(), c)
	eventually(t, "the others are copied", func() bool { return copied() == 4 })
	stop()
	var del kadm.Offsets
	del.AddOffset(eventlog.PaymentWebhooks, eventlog.PartitionFor("g1", testPartitions), 4, -1)
	if _, err := b.adm.DeleteRecords(t.Context(), del); err != nil {
		t.Fatal(err)
	}
	tools := &parked.DeadLetters{DB: b.db, Kafka: b.cfg}
	list, _, err := tools.List(t.Context(), "flaky", 10, "")
	if err != nil || len(list) != 1 || list[0].QueuedBehind != 3 {
		t.Fatalf("%+v, %v", list, err)
	}
	if err := tools.Discard(t.Context(), list[0].ID, "test", "test"); err != nil {
		t.Fatal(err)
	}
	start(t, b.runtime(), c)
	eventually(t, "what queued behind has run", func() bool { return query[int](b, `SELECT count(*) FROM tomato.parked`) == 0 })
	if got := l.of("g1"); !slices.Equal(got, []int64{2, 3, 4}) {
		t.Errorf("handled %v", got)
	}
}

// deaf connects a pool to Postgres. The answer to every third COMMIT is lost, left
// times in all, and the connection with it: the transaction has committed, but the
// client gets an error.
type deaf struct {
	left    atomic.Int32
	commits atomic.Int32
}

func (d *deaf) pool(b *bench) *pgxpool.Pool {
	b.t.Helper()
	cfg := b.db.Config()
	dial := cfg.ConnConfig.DialFunc
	cfg.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		return &deafConn{Conn: c, d: d}, err
	}
	pool, err := pgxpool.NewWithConfig(b.t.Context(), cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(pool.Close)
	return pool
}

type deafConn struct {
	net.Conn
	d    *deaf
	lost atomic.Bool
}

func (c *deafConn) Write(b []byte) (int, error) {
	if bytes.HasPrefix(b, []byte("Q")) && bytes.Contains(b, []byte("commit\x00")) && c.d.commits.Add(1)%3 == 0 && c.d.left.Add(-1) >= 0 {
		c.lost.Store(true)
	}
	return c.Conn.Write(b)
}

func (c *deafConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err == nil && c.lost.Load() { // it has answered, so it has committed
		_ = c.Conn.Close()
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

// The answer to a COMMIT is lost. The event is not applied twice, and the committed
// work is not repeated again and again. (It was repeated for ever, when a parked row
// that was deleted or changed already counted as an unavailable Postgres.)
func TestALostAnswerToACommit(t *testing.T) {
	t.Parallel()
	b := newBench(t, eventlogtest.Embedded(t), everyKind("lost")...)
	b.exec(appliedTable)
	for _, kind := range []string{"Rows", "Each", "Batch"} {
		t.Run(kind, func(t *testing.T) {
			b := b.in(t)
			d := &deaf{}
			const losses = 6
			d.left.Store(losses)
			var l ledger
			var mu sync.Mutex
			calls := map[string]int{}
			c := kinds(kind, func(e eventlog.Event) error {
				mu.Lock()
				defer mu.Unlock()
				id := fmt.Sprint(e.Subject, "-", e.Version)
				calls[id]++
				switch {
				case e.Version == 2 && calls[id] <= 4: // a batch that is halved calls four times before it parks
					return errors.New("not this time")
				case e.Version == 4 && calls[id] <= 4:
					return eventlog.Poison(errors.New("never"))
				}
				l.add(e)
				return nil
			})[kind]
			c.Name, c.Topics, c.MaxBatch, c.InPlaceTries = "lost"+kind, []string{eventlog.Orders}, 4, 2
			const keys, each = 6, 6
			for range each {
				for k := range keys {
					b.produce(b.event(eventlog.Orders, fmt.Sprintf("%s-%d", kind, k), "T")...)
				}
			}
			r := b.runtime()
			r.DB = d.pool(b)
			start(t, r, c)
			tools := &parked.DeadLetters{DB: b.db, Kafka: b.cfg}
			complete := func(key string) bool {
				if kind == "Rows" {
					return slices.Contains(b.applied()[key], each)
				}
				return slices.Contains(l.of(key), each)
			}
			eventually(t, "all is done", func() bool {
				if _, err := tools.Replay(t.Context(), parked.ReplayRequest{Consumer: c.Name, All: true, Who: "test"}); err != nil {
					t.Fatal(err)
				}
				for k := range keys {
					if !complete(fmt.Sprintf("%s-%d", kind, k)) {
						return false
					}
				}
				return query[int](b, `SELECT count(*) FROM tomato.parked WHERE consumer = $1`, c.Name) == 0
			}, b.state)
			if d.left.Load() > losses/2 {
				t.Errorf("only %d answers were lost: the test proves little", losses-d.left.Load())
			}
			for k := range keys {
				key := fmt.Sprintf("%s-%d", kind, k)
				vs := dedup(l.of(key))
				if kind == "Rows" {
					vs = b.applied()[key]
				}
				if !slices.Equal(vs, upTo(each)) {
					t.Errorf("%s: %v", key, vs)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			for id, n := range calls {
				if n > 4*(losses+3) {
					t.Errorf("%s was tried %d times", id, n)
				}
			}
		})
	}
}

// A replay at a millionth of a dead letter per second was accepted. The last one would
// have been due years later, but was shown as replayed.
func TestReplayRateHasBounds(t *testing.T) {
	t.Parallel()
	tools := &parked.DeadLetters{}
	for _, rate := range []float64{1e-6, 0.099, -1, 100_001, math.NaN(), math.Inf(1), 1e-300} {
		if _, err := tools.Replay(t.Context(), parked.ReplayRequest{Consumer: "x", All: true, RatePerSecond: rate}); !errors.Is(err, parked.ErrReplayRate) {
			t.Errorf("%v per second: %v", rate, err)
		}
	}
}

// Stopped, by which /readyz is degraded, names everything that does not go on, with the
// reason, until it goes on again. (A handler of an Each consumer that never returned
// was not named, because the loop of its partition went on.)
func TestWhatStandsStillIsNamed(t *testing.T) {
	t.Parallel()
	b := newBench(t, eventlogtest.Embedded(t), flaky)
	run := func(name string, each func(context.Context, eventlog.Event) error) *consumer.Runtime {
		r := b.runtime()
		r.StoppedAfter(3 * time.Second)
		start(t, r, consumer.Consumer{Name: name, Topics: []string{eventlog.PaymentWebhooks}, Each: each})
		return r
	}
	says := func(r *consumer.Runtime, words ...string) func() bool {
		return func() bool {
			all := strings.Join(r.Stopped(), "; ")
			return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(all, w) })
		}
	}
	well := func(name string, r *consumer.Runtime) func() bool {
		return func() bool { return len(r.Stopped(name)) == 0 }
	}
	release := make(chan struct{})
	var back atomic.Bool

	hangs := run("hangs", func(context.Context, eventlog.Event) error { <-release; return nil })
	waits := run("waits", func(context.Context, eventlog.Event) error {
		if back.Load() {
			return nil
		}
		return eventlog.UnavailableFrom("the bank", errors.New("closed"))
	})
	idle := run("idle", func(context.Context, eventlog.Event) error { return nil })
	locked := run("locked", func(context.Context, eventlog.Event) error { return nil })
	if got := locked.Stopped("nonesuch"); len(got) != 1 || !strings.Contains(got[0], "nonesuch: not started") {
		t.Errorf("a consumer that nobody started: %v", got)
	}
	for _, r := range []struct {
		name string
		r    *consumer.Runtime
	}{{"hangs", hangs}, {"waits", waits}, {"idle", idle}, {"locked", locked}} {
		eventually(t, r.name+" has begun", well(r.name, r.r))
	}
	b.produce(b.event(eventlog.PaymentWebhooks, "k", "W")...)

	eventually(t, "a wait is named", says(waits, "consumer waits", "waits since", "the bank: closed"))

	// Another process keeps a checkpoint locked, so the instance to which the partition
	// is assigned cannot begin. (It waited without a bound, and was ready meanwhile.)
	eventually(t, "checkpoint is there", func() bool {
		return query[int](b, `SELECT count(*) FROM tomato.checkpoints WHERE consumer = 'locked'`) == testPartitions
	})
	tx, err := b.db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := tx.Exec(t.Context(), `SELECT FROM tomato.checkpoints WHERE consumer = 'locked' FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	late := run("locked", func(context.Context, eventlog.Event) error { return nil })
	eventually(t, "a checkpoint that cannot be had is named", says(late, "consumer locked", "take checkpoints"))
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it begins", well("locked", late))

	if s := idle.Stopped(); len(s) > 0 {
		t.Errorf("an idle consumer: %v", s)
	}
	back.Store(true)
	eventually(t, "who waited is well", well("waits", waits))
	eventually(t, "a hanging handler is named", says(hangs, "consumer hangs", "does not return since"))
	close(release)
	eventually(t, "who hung is well", well("hangs", hangs))
}

// The row of an event that failed is written before the position after it, or in the
// same transaction. If the row cannot be written, the position stays before the
// event, so a crash loses nothing.
func TestNoPositionPassesWhatIsNotParked(t *testing.T) {
	t.Parallel()
	b := newBench(t, eventlogtest.Embedded(t), everyKind("row")...)
	b.exec(appliedTable)
	b.exec(`CREATE FUNCTION full_up() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no room'; END $$`)
	b.exec(`CREATE TRIGGER full_up BEFORE INSERT ON tomato.parked FOR EACH ROW EXECUTE FUNCTION full_up()`)
	b.produce(b.event(eventlog.Orders, "k", "T")...)
	bad := b.produce(b.event(eventlog.Orders, "k", "T")...)
	b.produce(b.event(eventlog.Orders, "k", "T")...)
	kind := []string{"Rows", "Each", "Batch"}
	runtimes := map[string]*consumer.Runtime{}
	for _, k := range kind {
		c := kinds("", func(e eventlog.Event) error {
			if e.Version == 2 {
				return eventlog.Poison(errors.New("no"))
			}
			return nil
		})[k]
		c.Name, c.Topics, c.MaxBatch = "row"+k, []string{eventlog.Orders}, 1
		runtimes[k] = b.runtime()
		start(t, runtimes[k], c)
	}
	for _, k := range kind {
		eventually(t, k+" cannot park it, and says so", func() bool {
			return strings.Contains(strings.Join(runtimes[k].Stopped("row"+k), ""), "no room")
		})
		if n := query[int64](b, `SELECT max(next_offset) FROM tomato.checkpoints WHERE consumer = $1`, "row"+k); n > bad {
			t.Errorf("%s: position %d, behind %d, which is nowhere", k, n, bad)
		}
	}
	b.exec(`DROP TRIGGER full_up ON tomato.parked`)
	for _, k := range kind {
		eventually(t, k+" parks it and what follows", func() bool {
			return query[int](b, `SELECT count(*) FROM tomato.parked WHERE consumer = $1`, "row"+k) == 2 &&
				query[int64](b, `SELECT max(next_offset) FROM tomato.checkpoints WHERE consumer = $1`, "row"+k) == bad+2
		}, b.state)
	}
}

// A replay concerns one consumer, although another has failed on the same events too.
// Nothing is discarded without a reason.
func TestToolsTouchOneConsumerAndWantAReason(t *testing.T) {
	t.Parallel()
	b := newBench(t, eventlogtest.Embedded(t), everyKind("tool")...)
	b.exec(appliedTable)
	var fixed atomic.Bool
	for _, k := range []string{"Each", "Batch"} {
		c := kinds("", func(eventlog.Event) error {
			if fixed.Load() {
				return nil
			}
			return eventlog.Poison(errors.New("no"))
		})[k]
		c.Name, c.Topics = "tool"+k, []string{eventlog.Orders}
		start(t, b.runtime(), c)
	}
	for k := range 5 {
		b.produce(b.event(eventlog.Orders, fmt.Sprint("k", k), "T")...)
	}
	left := func(consumer string) int {
		return query[int](b, `SELECT count(*) FROM tomato.parked WHERE consumer = $1 AND state = 'dead' AND replays = 0`, consumer)
	}
	eventually(t, "dead for both", func() bool { return left("toolEach") == 5 && left("toolBatch") == 5 })
	tools := &parked.DeadLetters{DB: b.db, Kafka: b.cfg}
	for _, reason := range []string{"", " \t"} {
		if err := tools.Discard(t.Context(), query[int64](b, `SELECT min(id) FROM tomato.parked`), reason, "test"); !errors.Is(err, parked.ErrNoReason) {
			t.Errorf("reason %q: %v", reason, err)
		}
	}
	fixed.Store(true)
	for _, r := range []parked.ReplayRequest{{Key: "k0"}, {Class: "poison"}, {All: true}} {
		r.Consumer, r.Who = "toolEach", "test"
		if _, err := tools.Replay(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "replayed", func() bool {
		return query[int](b, `SELECT count(*) FROM tomato.parked WHERE consumer = 'toolEach'`) == 0
	})
	if n := left("toolBatch"); n != 5 {
		t.Errorf("the other consumer has %d of its 5 dead letters", n)
	}
}
