package projections_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"tomato/domain/order"
	"tomato/eventlog"
	"tomato/projections"
)

// A new fold cannot fold an event that the old one has folded. The rows that it lacks are
// no reason to leave them out of the comparison: they are the difference. It is not
// parallel, because it changes the fold of all read models of this program.
func TestAFoldThatFailsIsADifference(t *testing.T) {
	b := newBench(t)
	stop := b.project(b.m)
	token := eventlog.Token{}
	const orders = 12
	for n := range orders {
		token.Merge(b.w.Append(eventlog.Orders, orderID(n), life(n)...))
	}
	b.passed(projections.Orders, token)
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
	if s, err := query.Order(t.Context(), orderID(1)); err != nil || s == nil || s.Version != 4 {
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
