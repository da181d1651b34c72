package projections_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"tomato/domain/order"
	"tomato/domain/restaurant"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/consumer/parked"
	"tomato/eventlog/eventlogtest"
	"tomato/projections"
)

// states returns the states of the generations of a read model, by number.
func (b *bench) states(model string) map[int]projections.State {
	b.t.Helper()
	all, err := b.m.Status(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	states := map[int]projections.State{}
	for _, s := range all {
		if s.Model == model {
			states[s.Number] = s.State
		}
	}
	return states
}

// number runs a query that returns one number.
func (b *bench) number(sql string, args ...any) (n int) {
	b.t.Helper()
	if err := b.db.QueryRow(b.t.Context(), sql, args...).Scan(&n); err != nil {
		b.t.Fatalf("%s: %v", sql, err)
	}
	return n
}

// otherBuild returns the read models of a process whose fold of the orders is another one.
func (b *bench) otherBuild() *projections.ReadModels {
	m := b.models()
	m.SetFold(projections.Orders, "another")
	return m
}

// passes waits until a generation has passed the token, whoever projects it.
func (b *bench) passes(g projections.Generation, token eventlog.Token) {
	b.t.Helper()
	if err := consumer.NewPositions(b.db).WaitFor(b.deadline(), g.Model, g.Number, projections.Topics(g.Model), token); err != nil {
		b.t.Fatalf("%s: %v", g, err)
	}
}

// A build with another fold serves the rows of the build before as they are, does not
// write to them, and says what to do. After its rebuild each of the two builds answers
// from the generation of its own fold, and keeps that one up to date.
func TestTwoBuildsAnswerFromOneGenerationEach(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	one, two := projections.Generation{Model: projections.Orders, Number: 1}, projections.Generation{Model: projections.Orders, Number: 2}
	stop := b.project(b.m)
	b.passed(projections.Orders, b.w.Append(eventlog.Orders, orderID(1), life(1)[:3]...))
	stop()

	newer := b.otherBuild()
	if err := newer.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	if due := newer.RebuildDue(); !slices.Equal(due, []string{projections.Orders}) || !strings.Contains(newer.RebuildAdvice(), "`tomato rebuild orders`") {
		t.Errorf("due are %v: %q", due, newer.RebuildAdvice())
	}
	if due := b.m.RebuildDue(); len(due) > 0 || b.m.RebuildAdvice() != "" {
		t.Errorf("due for the build that made the rows: %v", due)
	}
	b.project(newer)
	later := b.w.Append(eventlog.Orders, orderID(1), life(1)[3])
	// The same process has taken in an event of another read model, which came later.
	met := b.w.Append(eventlog.Restaurants, "r1", restaurant.RestaurantRegistered{RestaurantID: "r1", Name: "R", Location: centre})
	if err := newer.Read(t.Context(), met, []string{projections.Restaurants}, func([]string) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if n := b.number(`SELECT count(*) FROM tomato.checkpoints WHERE consumer = 'orders' AND epoch > 1`); n != 0 {
		t.Errorf("the other build has taken %d partitions of a generation that it must not write to", n)
	}
	if s, err := newer.Orders(t.Context(), []string{orderID(1)}); err != nil || s[orderID(1)] == nil || s[orderID(1)].Version != 3 {
		t.Errorf("the old row is %+v, %v", s, err)
	}

	if g, err := newer.Rebuild(t.Context(), projections.Orders, projections.RebuildOptions{Runtime: b.runtime()}); err != nil || g.Generation != two {
		t.Fatal(g, err)
	}
	if due := newer.RebuildDue(); len(due) > 0 {
		t.Errorf("due after the rebuild: %v", due)
	}
	if states := b.states(projections.Orders); states[1] != projections.StateStandby || states[2] != projections.StateServing {
		t.Errorf("states %v", states)
	}
	b.project(b.m) // the older build is still there
	later.Merge(b.w.Append(eventlog.Orders, orderID(1), life(1)[4]))
	for m, own := range map[*projections.ReadModels]projections.Generation{b.m: one, newer: two} {
		b.passes(own, later)
		if err := m.Read(t.Context(), later, []string{projections.Orders}, func(schemas []string) error {
			if schemas[0] != own.Schema() {
				t.Errorf("the build of %s answers from %s", own, schemas[0])
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		if version, _ := state[order.State](b, own.Schema()+".orders", orderID(1)); version != 5 {
			t.Errorf("%s has version %d", own, version)
		}
	}
}

// There is one standby at most. Whatever belongs to a generation goes with it.
func TestAnOlderStandbyGoesWithAllThatBelongsToIt(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		b := newBenchOn(t, cfg)
		b.project(b.m)
		token := b.w.Append(eventlog.Restaurants, "r1", restaurant.RestaurantRegistered{RestaurantID: "r1", Name: "R", Location: centre})
		token.Merge(b.w.AppendRaw(eventlog.Restaurants, "r1", "RESTAURANT_FLIES", []byte(`{}`)))
		b.passed(projections.Restaurants, token)
		if n := b.number(`SELECT count(*) FROM tomato.parked WHERE generation = 1`); n != 1 {
			t.Fatalf("%d parked", n)
		}
		for range 2 {
			if _, err := b.m.Rebuild(t.Context(), projections.Restaurants, projections.RebuildOptions{Runtime: b.runtime()}); err != nil {
				t.Fatal(err)
			}
		}
		if states := b.states(projections.Restaurants); len(states) != 2 || states[2] != projections.StateStandby || states[3] != projections.StateServing {
			t.Errorf("states %v", states)
		}
		adm := kadm.NewClient(eventlogtest.Client(t, cfg))
		left := func() (n int) {
			n = b.number(`SELECT (SELECT count(*) FROM tomato.checkpoints WHERE consumer = 'restaurants' AND generation = 1)
				+ (SELECT count(*) FROM tomato.parked WHERE consumer = 'restaurants' AND generation = 1)
				+ (SELECT count(*) FROM pg_namespace WHERE nspname = 'restaurants_g1')`)
			groups, err := adm.ListGroups(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, is := groups["tomato.restaurants.g1"]; is {
				n++
			}
			return n
		}
		if n := left(); n != 0 {
			t.Errorf("%d things are left of generation 1", n)
		}

		// A consumer that has noticed nothing cannot bring anything back.
		tp := eventlog.TopicPartition{Topic: eventlog.Restaurants}
		if _, err := consumer.TakeCheckpoints(t.Context(), b.db, projections.Restaurants, 1, map[eventlog.TopicPartition]int64{tp: 0}, time.Time{}); err == nil {
			t.Error("a checkpoint of a dropped generation was made")
		}
		tx, err := b.db.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback(context.Background()) }()
		e := eventlog.Event{Type: "X", Subject: "r1", Time: time.Now()}
		row := parked.NewEvent(e.NewRecord(eventlog.Restaurants, 0), "r1", parked.Retry)
		if err := parked.Insert(t.Context(), tx, parked.Source{Consumer: projections.Restaurants, Generation: 1, TopicPartition: tp}, []*parked.Event{row}); err == nil {
			t.Error("an event was parked for a dropped generation")
		}
		if n := left(); n != 0 {
			t.Errorf("%d things of generation 1 have come back", n)
		}

		// Back to the standby, which changes places with the other one.
		two, three := projections.Generation{Model: projections.Restaurants, Number: 2}, projections.Generation{Model: projections.Restaurants, Number: 3}
		if err := b.m.Drop(t.Context(), three); err == nil {
			t.Error("the serving generation was dropped")
		}
		if err := b.m.Switch(t.Context(), two, false); err != nil {
			t.Fatal(err)
		}
		if states := b.states(projections.Restaurants); states[2] != projections.StateServing || states[3] != projections.StateStandby {
			t.Errorf("states %v", states)
		}
		if err := b.m.Drop(t.Context(), three); err != nil {
			t.Error(err)
		}
		if err := b.m.Switch(t.Context(), three, false); err == nil {
			t.Error("switched to a generation that is not there")
		}
		if states := b.states(projections.Restaurants); len(states) != 1 {
			t.Errorf("states %v", states)
		}
	})
}

// A query waits for its token on a generation that nobody projects. When another one
// takes its place, and the first one is dropped, the query is answered from that one.
func TestAQueryWaitsForTheNextGenerationWhenItsOwnRetires(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	token := b.w.Append(eventlog.Orders, orderID(1), life(1)...)
	other := b.models()
	ctx, cancel := context.WithCancel(t.Context())
	var following, queries sync.WaitGroup
	following.Go(func() { other.Follow(ctx) })
	t.Cleanup(func() { cancel(); following.Wait() })
	for range 8 {
		queries.Go(func() {
			var version int
			err := other.Read(t.Context(), token, []string{projections.Orders}, func(schemas []string) error {
				return b.db.QueryRow(t.Context(), `SELECT version FROM `+schemas[0]+`.orders WHERE id = $1`, orderID(1)).Scan(&version)
			})
			if err != nil || version != 9 {
				t.Errorf("version %d, %v", version, err)
			}
		})
	}
	if _, err := b.m.Rebuild(t.Context(), projections.Orders, projections.RebuildOptions{Runtime: b.runtime(), DropOld: true}); err != nil {
		t.Fatal(err)
	}
	queries.Wait()
}
