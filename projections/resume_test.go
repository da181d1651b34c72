package projections_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"tomato/domain/order"
	"tomato/eventlog"
	"tomato/eventlog/consumer/parked"
	"tomato/eventlog/eventlogtest"
	"tomato/projections"
)

// rebuild rebuilds the orders with m, and returns what came of it.
func (b *bench) rebuild(ctx context.Context, m *projections.ReadModels, o projections.RebuildOptions) (projections.RebuildResult, error) {
	o.Runtime = b.runtime()
	return m.Rebuild(ctx, projections.Orders, o)
}

// interrupt begins a rebuild and ends it when it reports so much of a phase.
func (b *bench) interrupt(o projections.RebuildOptions, phase projections.Phase, share float64) {
	b.t.Helper()
	ctx, kill := context.WithCancel(b.t.Context())
	defer kill()
	met := false
	o.Progress = func(p projections.Progress) {
		if p.Phase == phase && p.Share >= share {
			met = true
			kill()
		}
	}
	if result, err := b.rebuild(ctx, b.models(), o); err == nil || !met || result.Switched {
		b.t.Fatalf("the rebuild was not interrupted in %s: %+v, %v", phase, result, err)
	}
}

// A rebuild is interrupted in one phase after the other, while events come, and each time
// another process goes on. At the end the rows are those that served.
func TestARebuildIsResumedAfterItsEndInEachPhase(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		b := newBenchOn(t, cfg)
		stop := b.project(b.m)
		const before = 400
		token := b.lived(before, 8)
		token.Merge(b.w.AppendRaw(eventlog.Orders, orderID(3), "ORDER_TELEPORTED", []byte(`{}`)))
		b.passed(projections.Orders, token)
		more := before
		follow := func() {
			token.Merge(b.w.Append(eventlog.Orders, orderID(more), life(more)...))
			token.Merge(b.w.Append(eventlog.Orders, orderID(more-before), life(more - before)[8:]...))
			more++
			b.passed(projections.Orders, token)
		}
		b.interrupt(projections.RebuildOptions{EventsPerSecond: 2000}, projections.PhaseFilling, 0.2)
		follow()
		for _, at := range []struct {
			phase projections.Phase
			share float64
		}{{projections.PhaseFilling, 0.5}, {projections.PhaseIndexing, 0}, {projections.PhaseIndexing, 0.3}, {projections.PhaseCatchingUp, 0}, {projections.PhaseVerifying, 0}} {
			o := projections.RebuildOptions{Resume: true}
			if at.phase == projections.PhaseFilling {
				o.EventsPerSecond = 2000
			}
			b.interrupt(o, at.phase, at.share)
			follow()
			if s := b.states(projections.Orders); s[1] != projections.StateServing || !s[2].Unfinished() || len(s) != 2 {
				t.Fatalf("interrupted in %s: states %v", at.phase, s)
			}
		}
		stop() // so that the hand-over waits
		b.interrupt(projections.RebuildOptions{Resume: true}, projections.PhaseHandingOver, 0)
		if s := b.states(projections.Orders); s[2] != projections.StateVerified {
			t.Errorf("interrupted in the hand-over: states %v", s)
		}
		b.project(b.m)
		result, err := b.rebuild(t.Context(), b.models(), projections.RebuildOptions{Resume: true})
		if err != nil || result.Number != 2 || !result.Switched || result.Alone {
			t.Fatalf("%+v, %v", result, err)
		}
		one, two := projections.Generation{Model: projections.Orders, Number: 1}, result.Generation
		b.passes(one, token)
		b.passes(two, token)
		c, err := b.m.Compare(t.Context(), one, two)
		if err != nil || !c.Equal() || c.ParkedKeys != 1 || c.Rows < 9*before {
			t.Errorf("%+v, %v", c, err)
		}
		for generation := 1; generation <= 2; generation++ { // a later event of the key has come
			if dead, all := b.number(`SELECT count(*) FROM tomato.parked WHERE generation = $1 AND state = 'dead'`, generation), b.number(`SELECT count(*) FROM tomato.parked WHERE generation = $1`, generation); dead != 1 || all != 2 {
				t.Errorf("generation %d has parked %d events, and %d are dead letters", generation, all, dead)
			}
		}
		if n := b.number(`SELECT count(*) FROM pg_indexes WHERE schemaname = 'orders_g2'`); n != b.number(`SELECT count(*) FROM pg_indexes WHERE schemaname = 'orders_g1'`) {
			t.Errorf("%d indexes", n)
		}
	})
}

// A poison event parks its key. The many events behind it do not slow the fill, and the
// rows are as the consumer would have parked them, so they can be replayed.
func TestAPoisonEventParksItsKeyAndTheFillGoesOn(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	stop := b.project(b.m)
	const followers = 900 // less than the budget of one key
	token := b.w.Append(eventlog.Orders, orderID(1), life(1)[:4]...)
	b.passed(projections.Orders, token)
	stop()
	token.Merge(b.w.AppendRaw(eventlog.Orders, orderID(1), "ORDER_TELEPORTED", []byte(`{}`)))
	for range followers {
		token.Merge(b.w.AppendRaw(eventlog.Orders, orderID(1), "ORDER_PREPARING", []byte(`{"orderId":"x"}`)))
	}
	for n := 2; n < 50; n++ {
		token.Merge(b.w.Append(eventlog.Orders, orderID(n), life(n)...))
	}
	b.project(b.m)
	b.passed(projections.Orders, token)
	result, err := b.rebuild(t.Context(), b.models(), projections.RebuildOptions{})
	if err != nil || result.Comparison.ParkedKeys != 1 || !result.Comparison.Equal() {
		t.Fatalf("%+v, %v", result, err)
	}
	type row struct {
		Offset              int64
		State, Class, Topic string
		Attempt             int
		Copied              bool
	}
	read := func(generation int) (rows []row) {
		found, err := b.db.Query(t.Context(), `SELECT source_offset, state, class, copy_topic, attempt, copy_offset >= 0 FROM tomato.parked WHERE generation = $1 ORDER BY 1`, generation)
		if err != nil {
			t.Fatal(err)
		}
		defer found.Close()
		for found.Next() {
			var r row
			if err := found.Scan(&r.Offset, &r.State, &r.Class, &r.Topic, &r.Attempt, &r.Copied); err != nil {
				t.Fatal(err)
			}
			rows = append(rows, r)
		}
		return rows
	}
	one, two := read(1), read(2)
	if len(one) != followers+1 || fmt.Sprint(one) != fmt.Sprint(two) {
		t.Errorf("the consumer has parked %d, the rebuild %d: %+v and %+v", len(one), len(two), one[:2], two[:min(2, len(two))])
	}
	// The consumer of the new generation takes a replay up.
	tools := &parked.DeadLetters{DB: b.db, Kafka: b.cfg, Skip: b.m.SkipLetter}
	id := int64(b.number(`SELECT id FROM tomato.parked WHERE generation = 2 AND state = 'dead'`))
	if err := tools.Discard(t.Context(), id, "a test", "test"); err != nil {
		t.Fatal(err)
	}
	b.eventually("the consumers go on behind the discarded event", func() bool { return b.number(`SELECT count(*) FROM tomato.parked`) == 0 })
}

// Too many events of one key are parked: the consumers pause that partition, in both
// generations. A rebuild ends all the same, and is not slowed by the 5,000 events.
func TestARebuildEndsAlthoughAPartitionIsPaused(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	token := b.w.Append(eventlog.Orders, orderID(1), life(1)[:4]...)
	token.Merge(b.w.AppendRaw(eventlog.Orders, orderID(1), "ORDER_TELEPORTED", []byte(`{}`)))
	for range 5000 {
		token.Merge(b.w.AppendRaw(eventlog.Orders, orderID(1), "ORDER_PREPARING", []byte(`{"orderId":"x"}`)))
	}
	for n := 2; n < 50; n++ {
		token.Merge(b.w.Append(eventlog.Orders, orderID(n), life(n)...))
	}
	begun := time.Now()
	result, err := b.rebuild(t.Context(), b.m, projections.RebuildOptions{})
	if err != nil || !result.Alone || result.Comparison.Skipped == "" {
		t.Fatalf("%+v, %v", result, err)
	}
	t.Logf("the rebuild took %v", time.Since(begun))
	if n := b.number(`SELECT count(*) FROM tomato.parked WHERE generation = 2`); n != 5001 {
		t.Errorf("%d are parked", n)
	}
	if n := b.number(`SELECT count(*) FROM orders_g2.orders WHERE version = 9`); n != 48 {
		t.Errorf("%d orders are complete", n)
	}
	b.project(b.m)
	if result, err = b.rebuild(t.Context(), b.m, projections.RebuildOptions{}); err != nil || result.Alone || !result.Comparison.Equal() || result.Comparison.ParkedKeys != 1 {
		t.Fatalf("beside a process that projects: %+v, %v", result, err)
	}
}

// Another process cancels a rebuild that is running: it stops and leaves nothing.
func TestARunningRebuildIsCanceled(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	b.lived(60, 9)
	var canceling sync.WaitGroup
	begun := false
	_, err := b.rebuild(t.Context(), b.models(), projections.RebuildOptions{EventsPerSecond: 4, Progress: func(p projections.Progress) {
		if !begun {
			begun = true
			canceling.Go(func() {
				if g, err := b.models().CancelRebuild(t.Context(), projections.Orders); err != nil || g.Number != 2 {
					t.Error(g, err)
				}
			})
		}
	}})
	if !errors.Is(err, projections.ErrCanceled) {
		t.Errorf("the canceled rebuild: %v", err)
	}
	canceling.Wait()
	b.nothingOf(2)
}

// nothingOf checks that nothing is left of a generation of the orders.
func (b *bench) nothingOf(generation int) {
	b.t.Helper()
	if n := b.number(`SELECT (SELECT count(*) FROM tomato.generations WHERE model = 'orders' AND generation = $1) + (SELECT count(*) FROM tomato.checkpoints WHERE consumer = 'orders' AND generation = $1)
		+ (SELECT count(*) FROM tomato.parked WHERE consumer = 'orders' AND generation = $1) + (SELECT count(*) FROM pg_namespace WHERE nspname = 'orders_g' || $1)`, generation); n != 0 {
		b.t.Errorf("%d things are left of generation %d", n, generation)
	}
}

func TestADryRunLeavesNothing(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	b.lived(30, 9)
	result, err := b.rebuild(t.Context(), b.models(), projections.RebuildOptions{DryRun: true})
	if err != nil || result.Switched || result.Comparison.Rows != 300 {
		t.Errorf("%+v, %v", result, err)
	}
	b.nothingOf(2)
	b.exec(`UPDATE orders_g1.orders SET status = 'placed' WHERE id = $1`, orderID(3))
	var differ *projections.DifferencesError
	if result, err := b.rebuild(t.Context(), b.models(), projections.RebuildOptions{DryRun: true}); !errors.As(err, &differ) || result.Comparison.Changed != 1 {
		t.Errorf("a dry run with a difference: %+v, %v", result, err)
	}
	b.nothingOf(3)
	if s := b.states(projections.Orders); len(s) != 1 || s[1] != projections.StateServing {
		t.Errorf("states %v", s)
	}
}

func (b *bench) exec(sql string, args ...any) {
	b.t.Helper()
	if _, err := b.db.Exec(b.t.Context(), sql, args...); err != nil {
		b.t.Fatalf("%s: %v", sql, err)
	}
}

// Rows that differ stop the switch, and are named by table, key and column. The rebuild
// can be resumed when the cause is gone, or with the differences.
func TestDifferencesStopTheSwitch(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	b.lived(30, 9)
	b.exec(`UPDATE orders_g1.orders SET status = 'placed', round = 7 WHERE id = $1`, orderID(3))
	b.exec(`INSERT INTO orders_g1.orders SELECT 'too-many', version, status, closed, customer_id, restaurant_id, rider_id, exhausted, pick_up, round, wave, waiting, wave_open, asked, created_at, state
		FROM orders_g1.orders WHERE id = $1`, orderID(4))
	b.exec(`DELETE FROM orders_g1.order_events WHERE order_id = $1 AND version = 5`, orderID(6))
	result, err := b.rebuild(t.Context(), b.models(), projections.RebuildOptions{})
	var differ *projections.DifferencesError
	if !errors.As(err, &differ) || result.Switched {
		t.Fatalf("%+v, %v", result, err)
	}
	c := result.Comparison
	said := fmt.Sprint(c.Differences)
	if c.Missing != 1 || c.Extra != 1 || c.Changed != 1 || c.Columns["orders.status"] != 1 || c.Columns["orders.round"] != 1 || len(c.Columns) != 2 || len(c.Differences) != 3 {
		t.Errorf("%+v", c)
	}
	for _, want := range []string{"changed: orders " + orderID(3) + " (status, round)", "missing: orders too-many", "extra: order_events " + orderID(6) + "/5"} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is not in %s", want, said)
		}
	}
	if s := b.states(projections.Orders); s[1] != projections.StateServing || s[2] != projections.StateCatchingUp {
		t.Errorf("states %v", s)
	}
	b.passed(projections.Orders, b.w.Append(eventlog.Orders, orderID(100), life(100)...))
	if result, err = b.rebuild(t.Context(), b.models(), projections.RebuildOptions{Resume: true}); !errors.As(err, &differ) || result.Comparison.Changed != 1 {
		t.Errorf("resumed with the differences: %+v, %v", result, err)
	}
	if result, err = b.rebuild(t.Context(), b.models(), projections.RebuildOptions{Resume: true, AcceptDifferences: true}); err != nil || !result.Switched || result.Comparison.Changed != 1 {
		t.Fatalf("with the differences accepted: %+v, %v", result, err)
	}
	if _, s := state[order.State](b, "orders_g2.orders", orderID(3)); s.Status != order.StatusDelivered {
		t.Errorf("the rebuilt row: %+v", s)
	}
}

// A column that only one of the two folds has is said once, and is no difference of every
// row.
func TestAColumnOfOneFoldAloneIsNoDifference(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	stop := b.project(b.m)
	b.lived(10, 9)
	stop()
	b.exec(`ALTER TABLE orders_g1.orders ADD COLUMN colour text NOT NULL DEFAULT 'red'`)
	result, err := b.rebuild(t.Context(), b.otherBuild(), projections.RebuildOptions{})
	if err != nil || fmt.Sprint(result.Comparison.Unshared) != "[orders_g1.orders.colour]" || result.Comparison.Rows != 100 {
		t.Errorf("%+v, %v", result, err)
	}
}

// Nobody projects, and the serving generation is far behind the log. The rows are compared
// at its positions, and then the rebuild goes on to the end of the log.
func TestTheServingGenerationMayBeFarBehind(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	stop := b.project(b.m)
	b.lived(40, 5)
	stop()
	for n := range 80 {
		events := life(n)
		if n < 40 {
			events = events[5:]
		}
		b.w.Append(eventlog.Orders, orderID(n), events...)
	}
	result, err := b.rebuild(t.Context(), b.m, projections.RebuildOptions{})
	if err != nil || !result.Alone || !result.Switched || !result.Comparison.Equal() || result.Comparison.Rows != 40+40*5 {
		t.Fatalf("%+v, %v", result, err)
	}
	if n := b.number(`SELECT count(*) FROM orders_g2.orders WHERE version = 9`); n != 80 {
		t.Errorf("%d orders are complete", n)
	}
}

// The switch comes only when the processes that project have all partitions of the new
// generation.
func TestTheSwitchWaitsForTheProcessesThatProject(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		b := newBenchOn(t, cfg)
		b.project(b.m)
		b.lived(20, 9)
		adm := kadm.NewClient(eventlogtest.Client(t, cfg))
		checked := false
		result, err := b.rebuild(t.Context(), b.models(), projections.RebuildOptions{Progress: func(p projections.Progress) {
			if p.Phase == projections.PhaseSwitched && !checked {
				checked = true
				groups, err := adm.DescribeGroups(t.Context(), "tomato.orders.g2")
				if err != nil {
					t.Error(err)
				}
				owned := 0
				for _, m := range groups["tomato.orders.g2"].Members {
					if assigned, ok := m.Assigned.AsConsumer(); ok {
						for _, topic := range assigned.Topics {
							owned += len(topic.Partitions)
						}
					}
				}
				if owned != partitions {
					t.Errorf("%d of %d partitions are taken over when the new generation serves", owned, partitions)
				}
			}
		}})
		if err != nil || !checked || result.Alone {
			t.Fatalf("%+v, %v", result, err)
		}
	})
}

// A full disk stops a rebuild with an error that says so, and not after a wait. The old
// rows serve, and the rebuild is resumed when there is room.
func TestAFullDiskStopsARebuildThatIsResumed(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	b.lived(20, 9)
	b.exec(`CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'No space left on device' USING ERRCODE = '53100'; END $$`)
	b.exec(`CREATE TRIGGER full_disk BEFORE UPDATE ON tomato.checkpoints FOR EACH ROW WHEN (NEW.generation = 2 AND NEW.next_offset > OLD.next_offset) EXECUTE FUNCTION full_disk()`)
	begun := time.Now()
	_, err := b.rebuild(t.Context(), b.models(), projections.RebuildOptions{})
	if err == nil || time.Since(begun) > time.Minute {
		t.Fatalf("after %v: %v", time.Since(begun), err)
	}
	for _, want := range []string{"the disk of the database is full", "orders_g1 serves as before", "`tomato rebuild orders --resume`", "`tomato rebuild orders --cancel`"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
	b.passed(projections.Orders, b.w.Append(eventlog.Orders, orderID(50), life(50)...))
	b.exec(`DROP TRIGGER full_disk ON tomato.checkpoints`)
	if result, err := b.rebuild(t.Context(), b.models(), projections.RebuildOptions{Resume: true}); err != nil || !result.Switched || !result.Comparison.Equal() {
		t.Errorf("resumed: %+v, %v", result, err)
	}
}
