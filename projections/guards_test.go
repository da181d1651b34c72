package projections_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kadm"

	"tomato/domain/order"
	"tomato/domain/restaurant"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
	"tomato/projections"
)

// A new fold cannot fold an event that the old one has folded. The rows that it lacks are
// no reason to leave them out of the comparison: they are the difference. It is not
// parallel, because it changes the fold of all read models of this program.
func TestAFoldThatFailsIsADifference(t *testing.T) {
	b := newBench(t)
	stop := b.project(b.m)
	const orders = 12
	b.lived(orders, 9)
	stop()
	newer := b.otherBuild()
	if err := newer.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer projections.BreakOrders(order.TypeOrderAccepted)()
	result, err := b.rebuild(t.Context(), newer, projections.RebuildOptions{})
	var differ *projections.DifferencesError
	if !errors.As(err, &differ) || result.Switched {
		t.Fatalf("%+v, %v", result, err)
	}
	c := result.Comparison
	if c.NewlyParked != orders || c.ParkedKeys != 0 || len(c.Differences) != orders || !strings.Contains(fmt.Sprint(c.Differences), "parked: orders "+orderID(3)) {
		t.Errorf("%+v", c)
	}
	if !strings.Contains(err.Error(), "12 aggregates have an event that cannot be folded") {
		t.Error(err)
	}
}

// A partition of the new generation is paused, because too many events are parked, and
// that of the serving one is not. It must not serve.
func TestAPartitionThatIsPausedInTheNewGenerationAloneStopsTheHandOver(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	stop := b.project(b.m)
	b.passed(projections.Orders, b.w.Append(eventlog.Orders, orderID(1), life(1)...))
	stop()
	b.interrupt(projections.RebuildOptions{}, projections.PhaseHandingOver, 0)
	partition := eventlog.PartitionFor(orderID(1), partitions)
	b.exec(`INSERT INTO tomato.parked (consumer, generation, topic, partition, source_offset, source_time, key, state)
		SELECT 'orders', 2, 'orders', $1, 1000 + n, now(), 'k', 'dead' FROM generate_series(1, 6000) n`, partition)
	_, err := b.rebuild(t.Context(), b.models(), projections.RebuildOptions{Resume: true})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("partition %d of orders is paused in orders_g2", partition)) || b.states(projections.Orders)[2] != projections.StateVerified {
		t.Fatalf("%v, states %v", err, b.states(projections.Orders))
	}
	if result, err := b.rebuild(t.Context(), b.models(), projections.RebuildOptions{Resume: true, AcceptDifferences: true}); err != nil || !result.Switched {
		t.Errorf("%+v, %v", result, err)
	}
}

// The answer of the commit that drops the indexes is lost, so the step is repeated. The
// indexes are not forgotten.
func TestIndexesAreTakenOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	if err := b.models().TakeIndexesTwice(t.Context(), projections.Orders); err != nil {
		t.Fatal(err)
	}
	result, err := b.rebuild(t.Context(), b.models(), projections.RebuildOptions{Resume: true})
	if err != nil || !result.Switched {
		t.Fatalf("%+v, %v", result, err)
	}
	const indexes = `SELECT count(*) FROM pg_indexes WHERE schemaname = $1`
	if one, two := b.number(indexes, "orders_g1"), b.number(indexes, "orders_g2"); one < 8 || one != two {
		t.Errorf("%d indexes before, %d after", one, two)
	}
}

// A dry run that goes on with a generation in its hand-over compares it and does not switch.
func TestADryRunOfAHandOverComparesAndDoesNotSwitch(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	stop := b.project(b.m)
	b.passed(projections.Orders, b.w.Append(eventlog.Orders, orderID(1), life(1)...))
	stop()
	b.interrupt(projections.RebuildOptions{}, projections.PhaseHandingOver, 0)
	b.project(b.m) // and takes the verified generation over
	b.passed(projections.Orders, b.w.Append(eventlog.Orders, orderID(2), life(2)...))
	result, err := b.rebuild(t.Context(), b.models(), projections.RebuildOptions{Resume: true, DryRun: true})
	if err != nil || result.Switched || result.Comparison.Rows != 20 || !result.Comparison.Equal() {
		t.Errorf("%+v, %v", result, err)
	}
	if s := b.states(projections.Orders); len(s) != 1 || s[1] != projections.StateServing {
		t.Errorf("states %v", s)
	}
	b.nothingOf(2)
}

// A process of the new fold must not answer from the new generation before it is handed
// over: it may be behind.
func TestAVerifiedGenerationDoesNotAnswer(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	b.passed(projections.Orders, b.w.Append(eventlog.Orders, orderID(1), life(1)[:3]...))
	newer := b.otherBuild()
	ctx, kill := context.WithCancel(t.Context())
	defer kill()
	if _, err := b.rebuild(ctx, newer, projections.RebuildOptions{Progress: func(p projections.Progress) {
		if p.Phase == projections.PhaseHandingOver {
			kill()
		}
	}}); err == nil || b.states(projections.Orders)[2] != projections.StateVerified {
		t.Fatalf("%v, states %v", err, b.states(projections.Orders))
	}
	later := b.w.Append(eventlog.Orders, orderID(1), life(1)[3])
	b.passed(projections.Orders, later)
	query := b.otherBuild()
	if g, err := query.Serving(t.Context(), projections.Orders); err != nil || g.Number != 1 {
		t.Errorf("it answers from %s, %v", g, err)
	}
	if err := query.Read(t.Context(), later, []string{projections.Orders}, func([]string) error { return nil }); err != nil {
		t.Error(err)
	}
	if s, err := query.Orders(t.Context(), []string{orderID(1)}); err != nil || s[orderID(1)] == nil || s[orderID(1)].Version != 4 {
		t.Errorf("%+v, %v", s, err)
	}
}

// Nobody knows by which fold a build that did not say it has made the rows, and which
// columns its tables have.
func TestAGenerationWithoutAFoldIsNotWrittenTo(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.exec(`ALTER TABLE orders_g1.order_events DROP COLUMN data_version`)
	b.exec(`UPDATE tomato.generations SET fold = '' WHERE model = 'orders'`)
	m := b.models()
	if err := m.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	if due := m.RebuildDue(); len(due) != 1 || due[0] != projections.Orders {
		t.Errorf("due are %v", due)
	}
	token := b.w.Append(eventlog.Orders, orderID(1), life(1)...)
	result, err := b.rebuild(t.Context(), m, projections.RebuildOptions{})
	if err != nil || !result.Switched {
		t.Fatalf("%+v, %v", result, err)
	}
	b.project(m)
	if err := m.Read(t.Context(), token, []string{projections.Orders}, func([]string) error { return nil }); err != nil {
		t.Error(err)
	}
	if n := b.number(`SELECT count(*) FROM tomato.parked`); n != 0 {
		t.Errorf("%d events are parked", n)
	}
}

// A refresh that has read the generations before another one, and comes to an end after it,
// changes nothing.
func TestALateRefreshIsNotStored(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	if err := b.m.RefreshLate(t.Context(), func() {
		if _, err := b.rebuild(t.Context(), b.m, projections.RebuildOptions{}); err != nil {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if g, err := b.m.Serving(t.Context(), projections.Orders); err != nil || g.Number != 2 {
		t.Errorf("%s answers, %v", g, err)
	}
}

// The serving generation is behind the new one, because nobody brings it up to date. The
// rows are not compared, so the rebuild does not switch unasked.
func TestWhatCannotBeComparedIsNotSwitchedTo(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	stop := b.project(b.m)
	b.passed(projections.Orders, b.w.Append(eventlog.Orders, orderID(1), life(1)...))
	b.interrupt(projections.RebuildOptions{}, projections.PhaseCatchingUp, 0)
	stop()
	b.exec(`UPDATE tomato.checkpoints SET next_offset = next_offset + 1 WHERE consumer = 'orders' AND generation = 2`)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	result, err := b.rebuild(ctx, b.models(), projections.RebuildOptions{Resume: true})
	if err == nil || result.Switched || !strings.Contains(err.Error(), "--resume --accept-differences") {
		t.Fatalf("%+v, %v", result, err)
	}
	if result, err = b.rebuild(ctx, b.models(), projections.RebuildOptions{Resume: true, AcceptDifferences: true}); err != nil || !result.Switched || result.Comparison.Skipped == "" {
		t.Errorf("%+v, %v", result, err)
	}
}

// While a rebuild with --throttle catches up with many events, Postgres must not have to
// keep old versions of rows.
func TestNoTransactionIsOpenWhileAThrottledRebuildCatchesUp(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	token := b.w.Append(eventlog.Orders, orderID(0), life(0)...)
	b.passed(projections.Orders, token)
	more, oldest := false, 0
	var began, ended time.Time
	result, err := b.rebuild(t.Context(), b.models(), projections.RebuildOptions{EventsPerSecond: 200, Progress: func(p projections.Progress) {
		switch {
		case p.Phase == projections.PhaseIndexing && !more:
			more = true
			for n := 1; n < 100; n++ {
				token.Merge(b.w.Append(eventlog.Orders, orderID(n), life(n)...))
			}
			b.passed(projections.Orders, token)
		case p.Phase == projections.PhaseVerifying && ended.IsZero():
			ended = time.Now()
		case p.Phase == projections.PhaseCatchingUp && p.Share < 0.7:
			if began.IsZero() {
				began = time.Now()
			}
			oldest = max(oldest, b.number(`SELECT coalesce(max(extract(epoch FROM now() - xact_start)), 0)::int FROM pg_stat_activity
				WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid() AND datname = current_database() AND state LIKE 'idle in%'`))
		}
	}})
	if err != nil || !result.Switched || !result.Comparison.Equal() || result.Comparison.Rows != 1000 {
		t.Errorf("%+v, %v", result, err)
	}
	if took := ended.Sub(began); took < 2*time.Second {
		t.Errorf("200 events a second were asked for, and 891 took %v", took)
	}
	if oldest > 0 {
		t.Errorf("a transaction was open for %d s", oldest)
	}
}

// Only the standby can be switched to, no rebuild may be unfinished, and a standby that is
// behind serves only by force.
func TestASwitchMustBeSound(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	stop := b.project(b.m)
	b.passed(projections.Orders, b.w.Append(eventlog.Orders, orderID(1), life(1)...))
	b.rebuilt()
	stop()
	b.exec(`UPDATE tomato.checkpoints SET next_offset = next_offset - 2 WHERE consumer = 'orders' AND generation = 1 AND next_offset > 2`)
	var state *projections.StateError
	if err := b.m.Switch(t.Context(), generation(1), false); !errors.As(err, &state) || !strings.Contains(err.Error(), "2 events behind") || !strings.Contains(err.Error(), "--force") {
		t.Errorf("switched to a generation that is behind: %v", err)
	}
	b.interrupt(projections.RebuildOptions{}, projections.PhaseHandingOver, 0)
	var unfinished *projections.UnfinishedError
	for n := range 3 {
		if err := b.m.Switch(t.Context(), generation(n+1), true); !errors.As(err, &unfinished) {
			t.Errorf("switched to %d beside an unfinished rebuild: %v", n+1, err)
		}
	}
	if _, err := b.m.CancelRebuild(t.Context(), projections.Orders); err != nil {
		t.Fatal(err)
	}
	if err := b.m.Switch(t.Context(), generation(1), true); err != nil || b.states(projections.Orders)[1] != projections.StateServing {
		t.Errorf("%v, states %v", err, b.states(projections.Orders))
	}
}

// A database may end idle sessions and long statements. A rebuild has both.
func TestARebuildHasNoLimitsOfTime(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	b.lived(20, 9)
	b.exec(`CREATE FUNCTION slow_index() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
		IF EXISTS (SELECT FROM pg_event_trigger_ddl_commands() WHERE object_identity = 'orders_g2.orders_by_closed') THEN PERFORM pg_sleep(3); END IF; END $$`)
	b.exec(`CREATE EVENT TRIGGER slow_index ON ddl_command_end WHEN TAG IN ('CREATE INDEX') EXECUTE FUNCTION slow_index()`)
	b.exec(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET idle_session_timeout = ''400ms''', current_database()); END $$`)
	config := b.db.Config().Copy()
	config.ConnConfig.RuntimeParams["statement_timeout"] = "2s"
	db, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	m := b.models()
	m.DB = db
	holder := func() int {
		return b.number(`SELECT coalesce(max(pid), 0) FROM pg_locks WHERE locktype = 'advisory' AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
			AND (classid::bigint << 32 | objid::bigint) = hashtextextended('tomato read model orders', 0)`)
	}
	first := 0
	result, err := b.rebuild(t.Context(), m, projections.RebuildOptions{EventsPerSecond: 100, Progress: func(p projections.Progress) {
		switch pid := holder(); {
		case first == 0:
			first = pid
		case pid != first && p.Phase != projections.PhaseSwitched:
			t.Errorf("in %s session %d has the lock, and at first %d had it", p.Phase, pid, first)
		}
	}})
	if err != nil || !result.Switched || first == 0 {
		t.Errorf("%+v, %v, lock of %d", result, err, first)
	}
}

// A statement that was canceled is no outage that passes when one waits.
func TestACanceledStatementEndsARebuildAtOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	b.passed(projections.Orders, b.w.Append(eventlog.Orders, orderID(1), life(1)...))
	b.exec(`CREATE FUNCTION canceled() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'canceling statement' USING ERRCODE = '57014'; END $$`)
	b.exec(`CREATE TRIGGER canceled BEFORE UPDATE ON tomato.checkpoints FOR EACH ROW WHEN (NEW.generation = 2 AND NEW.next_offset > OLD.next_offset) EXECUTE FUNCTION canceled()`)
	begun := time.Now()
	if _, err := b.rebuild(t.Context(), b.models(), projections.RebuildOptions{}); err == nil || time.Since(begun) > time.Minute {
		t.Errorf("after %v: %v", time.Since(begun), err)
	}
}

// The session with the lock ends, and another process takes the lock. The rebuild stops.
func TestARebuildThatLosesItsLockStops(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	b.lived(60, 9)
	const lock = `hashtextextended('tomato read model orders', 0)`
	conn, err := b.db.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	var taking sync.WaitGroup
	begun := false
	_, err = b.rebuild(t.Context(), b.models(), projections.RebuildOptions{EventsPerSecond: 4, Progress: func(projections.Progress) {
		if begun {
			return
		}
		begun = true
		taking.Go(func() {
			_, _ = conn.Exec(t.Context(), `SELECT pg_advisory_lock(`+lock+`)`)
		})
		b.eventually("somebody waits for the lock", func() bool {
			return b.number(`SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`) == 1
		})
		b.exec(`SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
			AND (classid::bigint << 32 | objid::bigint) = ` + lock)
	}})
	taking.Wait()
	if !errors.Is(err, projections.ErrRunning) || !strings.Contains(err.Error(), "the connection with the lock of the read model was lost") {
		t.Errorf("%v", err)
	}
	if _, err := conn.Exec(t.Context(), `SELECT pg_advisory_unlock_all()`); err != nil {
		t.Error(err)
	}
}

// Something holds a lock on a table of a generation that has gone, such as a dump. Nobody
// waits for it for ever, and what is left is removed by the next process that projects.
func TestADropIsBoundedAndIsFinishedByTheNextProcess(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	stop := b.project(b.m)
	b.passed(projections.Orders, b.w.Append(eventlog.Orders, orderID(1), life(1)...))
	dump, err := b.db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dump.Exec(t.Context(), `LOCK TABLE orders_g1.orders IN ACCESS SHARE MODE`); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if result, err := b.rebuild(t.Context(), b.models(), projections.RebuildOptions{DropOld: true}); err != nil || !result.Switched || time.Since(begun) > time.Minute {
		t.Errorf("%+v, %v, after %v", result, err, time.Since(begun))
	}
	if s := b.states(projections.Orders); s[1] != projections.StateGone || s[2] != projections.StateServing {
		t.Errorf("states %v", s)
	}
	if err := dump.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop()
	adm := kadm.NewClient(eventlogtest.Client(t, b.cfg))
	group := func() bool {
		groups, err := adm.ListGroups(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, is := groups["tomato.orders.g1"]
		return is
	}
	if err := b.m.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.exec(`DROP SCHEMA orders_g1 CASCADE`) // as if that process had ended after it had removed all but the group
	b.exec(`DELETE FROM tomato.generations WHERE model = 'orders' AND generation = 1`)
	// Another one was left with its tables.
	if _, err := b.rebuild(t.Context(), b.models(), projections.RebuildOptions{}); err != nil {
		t.Fatal(err)
	}
	b.exec(`UPDATE tomato.generations SET state = 'gone' WHERE model = 'orders' AND generation = 2`)
	b.project(b.models())
	b.eventually("everything is removed", func() bool {
		return len(b.states(projections.Orders)) == 1 && !group() && b.number(`SELECT count(*) FROM pg_namespace WHERE nspname IN ('orders_g1', 'orders_g2')`) == 0
	})
}

// What the search knows of riders is a fold, too, so it is compared.
func TestTheFoldedHalfOfPositionsIsCompared(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	token := eventlog.Token{}
	for n := range 5 {
		id := fmt.Sprintf("rider%d", n)
		token.Merge(b.w.Append(eventlog.Riders, id, ready(id)...))
		token.Merge(b.position(id, near(centre, float64(n*100)), time.Now()))
	}
	token.Merge(b.position("nobody", centre, time.Now())) // who is no rider, so no fold has this row
	b.passed(projections.Riders, token)
	b.exec(`UPDATE riders_g1.rider_positions SET eligible = NOT eligible WHERE rider_id = 'rider3'`)
	result, err := b.m.Rebuild(t.Context(), projections.Riders, projections.RebuildOptions{Runtime: b.runtime()})
	var differ *projections.DifferencesError
	if !errors.As(err, &differ) || fmt.Sprint(result.Comparison.Differences) != "[changed: rider_positions rider3 (eligible)]" || result.Comparison.Rows != 10 {
		t.Errorf("%+v, %v", result, err)
	}
}

// A copy of the positions that has stood still for hours may lack erasures, so positions
// are copied again before the generation is kept up to date.
func TestAnOldCopyOfPositionsIsMadeAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	stop := b.project(b.m)
	token := eventlog.Token{}
	for n := range 3 {
		id := fmt.Sprintf("rider%d", n)
		token.Merge(b.w.Append(eventlog.Riders, id, ready(id)...))
		token.Merge(b.position(id, near(centre, float64(n*100)), time.Now()))
	}
	b.passed(projections.Riders, token)
	stop()
	interrupt := func(phase projections.Phase, resume bool) {
		t.Helper()
		ctx, kill := context.WithCancel(t.Context())
		defer kill()
		if result, err := b.models().Rebuild(ctx, projections.Riders, projections.RebuildOptions{Runtime: b.runtime(), Resume: resume, Progress: func(p projections.Progress) {
			if p.Phase == phase {
				kill()
			}
		}}); err == nil || result.Switched {
			t.Fatalf("%+v, %v", result, err)
		}
	}
	aged := func(rider string) { // the tombstone of a rider was there and has vanished, and the generation has not read it
		b.exec(`UPDATE riders_g1.rider_positions SET location = NULL, recorded_at = NULL WHERE rider_id = $1`, rider)
		b.exec(`UPDATE tomato.checkpoints SET updated_at = now() - interval '7 hours' WHERE consumer = 'riders' AND generation = 2`)
	}
	located := func() int {
		return b.number(`SELECT count(location) FROM riders_g2.rider_positions WHERE name IS NOT NULL`)
	}
	interrupt(projections.PhaseCatchingUp, false)
	aged("rider0")
	if n := located(); n != 3 {
		t.Fatalf("%d positions are copied", n)
	}
	interrupt(projections.PhaseHandingOver, true)
	if n := located(); n != 2 {
		t.Errorf("%d positions after the comparison", n)
	}
	aged("rider1")
	result, err := b.models().Rebuild(t.Context(), projections.Riders, projections.RebuildOptions{Runtime: b.runtime(), Resume: true})
	if n := located(); err != nil || !result.Switched || n != 1 {
		t.Errorf("%d positions after the switch: %+v, %v", n, result, err)
	}
	if n := b.number(`SELECT count(*) FROM riders_g2.rider_positions WHERE eligible`); n != 3 {
		t.Errorf("%d riders are eligible", n)
	}
}

// Two processes project. Both have joined the group of the new generation before the
// switch, and with DropOld the old one is kept up to date until all have noticed.
func TestAllProcessesHaveJoinedBeforeTheSwitch(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	b.passed(projections.Orders, b.w.Append(eventlog.Orders, orderID(1), life(1)...))
	late := b.models() // without Follow, so that it notices what it is told
	ctx, cancel := context.WithCancel(t.Context())
	var projecting sync.WaitGroup
	projecting.Go(func() {
		if err := late.Project(ctx, b.runtime()); err != nil {
			t.Error(err)
		}
	})
	defer func() { cancel(); projecting.Wait() }()
	adm := kadm.NewClient(eventlogtest.Client(t, b.cfg))
	members := func(group string) int {
		groups, err := adm.DescribeGroups(t.Context(), group)
		if err != nil {
			t.Fatal(err)
		}
		if groups[group].State != "Stable" {
			return 0
		}
		return len(groups[group].Members)
	}
	b.eventually("both project", func() bool { return members("tomato.orders.g1") == 2 })
	rebuilding := b.models()
	rebuilding.SetJoinWait(5 * time.Minute)       // however slowly the second one joins
	alone, joined, kept := 0, 0, time.Duration(0) // how often the first process was seen alone in the group; how long after the switch the old one was seen as the standby
	var switched time.Time
	result, err := b.rebuild(t.Context(), rebuilding, projections.RebuildOptions{DropOld: true, Progress: func(p projections.Progress) {
		switch {
		case p.Phase == projections.PhaseHandingOver && members("tomato.orders.g2") == 1:
			if alone++; alone < 5 { // a hand-over that waits for the first process alone ends meanwhile
				return
			}
			if err := late.Refresh(t.Context()); err != nil {
				t.Error(err)
			}
		case p.Phase == projections.PhaseSwitched && switched.IsZero():
			switched, joined = time.Now(), members("tomato.orders.g2")
			go func() { _ = late.Refresh(ctx) }()
		case p.Phase == projections.PhaseSwitched && b.states(projections.Orders)[1] == projections.StateStandby:
			kept = time.Since(switched)
		}
	}})
	if err != nil || !result.Switched || joined != 2 {
		t.Errorf("%d have joined: %+v, %v", joined, result, err)
	}
	if kept < 300*time.Millisecond { // it is looked at every half second
		t.Errorf("the old generation was kept up to date for %v", kept)
	}
	b.nothingOf(1)
}

// What is left when the serving generation is caught up with is folded at full speed,
// because a transaction is open meanwhile.
func TestTheLastEventsAreNotThrottled(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	token := b.w.Append(eventlog.Orders, orderID(0), life(0)...)
	b.passed(projections.Orders, token)
	more := false
	var began, ended time.Time
	result, err := b.rebuild(t.Context(), b.models(), projections.RebuildOptions{EventsPerSecond: 10, Progress: func(p projections.Progress) {
		switch {
		case p.Phase == projections.PhaseIndexing && !more:
			more = true
			for n := 1; n < 20; n++ {
				token.Merge(b.w.Append(eventlog.Orders, orderID(n), life(n)...))
			}
			b.passed(projections.Orders, token)
		case p.Phase == projections.PhaseCatchingUp && began.IsZero():
			began = time.Now()
		case p.Phase == projections.PhaseVerifying && ended.IsZero():
			ended = time.Now()
		}
	}})
	if err != nil || result.Comparison.Rows != 200 {
		t.Errorf("%+v, %v", result, err)
	}
	if took := ended.Sub(began); took > 12*time.Second { // 17 s at 10 a second
		t.Errorf("the last 171 events took %v", took)
	}
}

// The tables of one generation sort texts otherwise than by their bytes.
func TestRowsAreComparedWhateverTheOrderOfTexts(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	token := eventlog.Token{}
	for _, id := range []string{"a", "B", "c", "D", "e-1", "E_2"} {
		token.Merge(b.w.Append(eventlog.Restaurants, id, restaurant.RestaurantRegistered{RestaurantID: id, Name: "R", Location: centre}))
	}
	b.passed(projections.Restaurants, token)
	b.exec(`ALTER TABLE restaurants_g1.restaurants ALTER id TYPE text COLLATE "en-x-icu"`)
	result, err := b.m.Rebuild(t.Context(), projections.Restaurants, projections.RebuildOptions{Runtime: b.runtime()})
	if err != nil || !result.Comparison.Equal() || result.Comparison.Rows != 6 {
		t.Errorf("%+v, %v", result, err)
	}
}
