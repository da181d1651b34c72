package projections_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"tomato/domain/nearby"
	"tomato/domain/order"
	"tomato/eventlog"
	"tomato/eventlog/consumer/parked"
	"tomato/projections"
)

// at returns the position of the last record that a token of one partition covers.
func at(t *testing.T, token eventlog.Token) eventlog.Position {
	t.Helper()
	for tp, offset := range token {
		return eventlog.Position{TopicPartition: tp, Offset: offset}
	}
	t.Fatal("an empty token")
	return eventlog.Position{}
}

// dump returns the row and the history of an order as text.
func (b *bench) dump(g projections.Generation, id string) (text string) {
	b.t.Helper()
	err := b.db.QueryRow(b.t.Context(), `SELECT coalesce((SELECT o::text FROM `+g.Schema()+`.orders o WHERE id = $1), 'no row') || chr(10) ||
		coalesce((SELECT string_agg(e::text, chr(10) ORDER BY version) FROM `+g.Schema()+`.order_events e WHERE order_id = $1), 'no history')`, id).Scan(&text)
	if err != nil {
		b.t.Fatal(err)
	}
	return text
}

// rebuilt rebuilds the orders, and checks that the rows are those that served.
func (b *bench) rebuilt() projections.Generation {
	b.t.Helper()
	result, err := b.rebuild(b.t.Context(), b.models(), projections.RebuildOptions{})
	if err != nil || !result.Switched || !result.Comparison.Equal() || result.Comparison.ParkedKeys > 0 || result.Comparison.Rows == 0 {
		b.t.Fatalf("%+v, %v", result, err)
	}
	return result.Generation
}

func generation(n int) projections.Generation {
	return projections.Generation{Model: projections.Orders, Number: n}
}

// A dead letter of a read model is discarded: the events behind it take effect without it,
// in both generations that are kept up to date, and a rebuild does not meet it again.
func TestADiscardedDeadLetterIsSkippedForGood(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	token := b.w.Append(eventlog.Orders, orderID(1), life(1)[:4]...)
	b.passed(projections.Orders, token)
	b.rebuilt() // so that there is a standby, too
	poison := b.w.AppendRaw(eventlog.Orders, orderID(1), "ORDER_TELEPORTED", []byte(`{}`))
	token.Merge(poison)
	token.Merge(b.w.Append(eventlog.Orders, orderID(1), life(1)[4:]...))
	token.Merge(b.w.Append(eventlog.Orders, orderID(2), life(2)...))
	for n := range 2 {
		b.passes(generation(n+1), token)
	}
	b.eventually("it is dead in both, and five wait behind it", func() bool {
		return b.number(`SELECT count(*) FROM tomato.parked WHERE state = 'dead'`) == 2 && b.number(`SELECT count(*) FROM tomato.parked`) == 12
	})
	id := int64(b.number(`SELECT id FROM tomato.parked WHERE state = 'dead' AND generation = 1`))
	if err := (&parked.DeadLetters{DB: b.db, Kafka: b.cfg}).Discard(t.Context(), id, "junk", "anna"); err == nil {
		t.Error("it was discarded without being skipped")
	}
	letters := &parked.DeadLetters{DB: b.db, Kafka: b.cfg, Skip: b.m.SkipLetter}
	if err := letters.Discard(t.Context(), id, "junk", "anna"); err != nil {
		t.Fatal(err)
	}
	b.eventually("nothing is parked any more", func() bool { return b.number(`SELECT count(*) FROM tomato.parked`) == 0 })
	for n := range 2 {
		version, s := state[order.State](b, generation(n+1).Schema()+".orders", orderID(1))
		if version != 10 || s.Status != order.StatusDelivered {
			t.Errorf("generation %d: version %d, %s", n+1, version, s.Status)
		}
	}
	if history := b.dump(generation(2), orderID(1)); strings.Contains(history, "TELEPORTED") || strings.Count(history, "\n") != 9 {
		t.Errorf("the history is %s", history)
	}
	b.rebuilt()
	skipped, err := b.m.Skipped(t.Context(), "")
	if err != nil || len(skipped) != 1 || skipped[0].Who != "anna" || skipped[0].Reason != "junk" || skipped[0].Key != orderID(1) || skipped[0].Version != 5 ||
		skipped[0].Type != "ORDER_TELEPORTED" || skipped[0].Position() != fmt.Sprintf("orders/%d@%d", at(t, poison).Partition, at(t, poison).Offset) {
		t.Errorf("%+v, %v", skipped, err)
	}
	if n := b.number(`SELECT count(*) FROM tomato.dead_letter_actions WHERE action = 'discard' AND who = 'anna' AND consumer = 'orders'`); n != 1 {
		t.Errorf("%d actions are recorded", n)
	}
}

// An event that has taken effect is skipped: the order is folded again without it. Undoing
// that gives the rows of before.
func TestAnEventThatTookEffectIsSkippedAndComesBack(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	token := b.w.Append(eventlog.Orders, orderID(1), life(1)[:5]...)
	offered := b.w.Append(eventlog.Orders, orderID(1), life(1)[5])
	token.Merge(offered)
	b.passed(projections.Orders, token)
	before := b.dump(generation(1), orderID(1))
	_, done, err := b.m.Skip(t.Context(), projections.Orders, at(t, offered), "a test", "anna")
	if err != nil || len(done) != 1 || done[0].Version != 6 || done[0].OtherFold {
		t.Fatalf("%+v, %v", done, err)
	}
	if version, s := state[order.State](b, "orders_g1.orders", orderID(1)); version != 6 || len(s.Offers) != 0 {
		t.Errorf("version %d, offers %v", version, s.Offers)
	}
	if again, _, err := b.m.Skip(t.Context(), projections.Orders, at(t, offered), "another", "bob"); err != nil || again.Reason != "a test" {
		t.Errorf("skipped twice: %+v, %v", again, err)
	}
	b.rebuilt()
	token.Merge(b.w.Append(eventlog.Orders, orderID(1), life(1)[6:]...))
	b.passes(generation(1), token)
	b.passes(generation(2), token)
	if b.dump(generation(1), orderID(1)) != b.dump(generation(2), orderID(1)) {
		t.Error("the generations differ")
	}
	if done, err := b.m.Unskip(t.Context(), projections.Orders, at(t, offered), "bob"); err != nil || len(done) != 2 || done[0].Version != 9 || done[1].Version != 9 {
		t.Fatalf("%+v, %v", done, err)
	}
	for n := range 2 {
		now := b.dump(generation(n+1), orderID(1))
		if _, history, _ := strings.Cut(before, "\n"); !strings.Contains(now, history) || strings.Count(now, "\n") != 9 {
			t.Errorf("generation %d has %s, not the history\n%s", n+1, now, history)
		}
	}
	b.rebuilt()
	if _, err := b.m.Unskip(t.Context(), projections.Orders, at(t, offered), "bob"); !errors.Is(err, projections.ErrNoSkipped) {
		t.Errorf("undone twice: %v", err)
	}
	if n := b.number(`SELECT count(*) FROM tomato.skipped_events WHERE who = 'anna' AND undone_by = 'bob'`); n != 1 {
		t.Errorf("who did it is not kept: %d", n)
	}
}

// The first event of an order is skipped: the read model never has that order, and none
// of the order's later events is dead.
func TestAnOrderWhoseFirstEventIsSkippedIsNotThere(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	placed := b.w.AppendRaw(eventlog.Orders, orderID(1), "ORDER_PLACED", []byte(`{"orderId":`))
	token := b.w.Append(eventlog.Orders, orderID(1), life(1)[1:3]...)
	token.Merge(b.w.Append(eventlog.Orders, orderID(2), life(2)...))
	b.passed(projections.Orders, token)
	if _, done, err := b.m.Skip(t.Context(), projections.Orders, at(t, placed), "a test", "anna"); err != nil || len(done) != 0 {
		t.Fatalf("%+v, %v", done, err)
	}
	token.Merge(b.w.Append(eventlog.Orders, orderID(1), life(1)[3:]...))
	b.passed(projections.Orders, token)
	b.eventually("nothing is parked any more", func() bool { return b.number(`SELECT count(*) FROM tomato.parked`) == 0 })
	if got := b.dump(generation(1), orderID(1)); got != "no row\nno history" {
		t.Error(got)
	}
	b.rebuilt()
	if got := b.dump(generation(2), orderID(1)); got != "no row\nno history" {
		t.Error(got)
	}
}

func TestWhatCannotBeSkipped(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	token := b.w.Append(eventlog.Orders, orderID(1), life(1)...)
	b.passed(projections.Orders, token)
	last := at(t, token)
	move := func(offset int64) eventlog.Position {
		return eventlog.Position{TopicPartition: last.TopicPartition, Offset: offset}
	}
	locations := eventlog.Position{TopicPartition: eventlog.TopicPartition{Topic: eventlog.RiderLocations}}
	for _, c := range []struct {
		model, reason string
		at            eventlog.Position
		want          error
	}{
		{"dishes", "r", last, projections.ErrNoModel},
		{projections.Orders, " ", last, projections.ErrNoReason},
		{projections.Orders, strings.Repeat("x", 501), last, projections.ErrNoReason},
		{projections.Orders, "r", move(last.Offset + 1), projections.ErrNoEvent},
		{projections.Orders, "r", move(-1), projections.ErrNoEvent},
		{projections.Orders, "r", move(0), projections.ErrNoEvent}, // a claim
		{projections.Payments, "r", last, projections.ErrNoEvent},
		{projections.Riders, "r", locations, projections.ErrNoEvent},
	} {
		if _, _, err := b.m.Skip(t.Context(), c.model, c.at, c.reason, "anna"); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	b.interrupt(projections.RebuildOptions{}, projections.PhaseVerifying, 0)
	var unfinished *projections.UnfinishedError
	if _, _, err := b.m.Skip(t.Context(), projections.Orders, last, "r", "anna"); !errors.As(err, &unfinished) {
		t.Errorf("a rebuild is unfinished: %v", err)
	}
	if n := b.number(`SELECT count(*) FROM tomato.skipped_events`); n != 0 {
		t.Errorf("%d events are skipped", n)
	}
}

// A row and a history that are wrong are made again, while events of the same order and
// of others keep coming.
func TestOneOrderIsFoldedAgainWhileEventsCome(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	id, token := orderID(1), eventlog.Token{}
	token.Merge(b.w.Append(eventlog.Orders, id, life(1)[:5]...))
	b.passed(projections.Orders, token)
	b.rebuilt()
	done := make(chan eventlog.Token)
	const more = 600
	go func() { // one offer after the other
		written := eventlog.Token{}
		for n := range more {
			offered := life(1)[5].(order.OrderOffered)
			offered.Wave = n + 1
			written.Merge(b.w.Append(eventlog.Orders, id, offered, order.OffersExpired{OrderID: id, Round: 1, Wave: n + 1, Ctx: offered.Ctx}))
			written.Merge(b.w.Append(eventlog.Orders, orderID(2+n), life(2 + n)[0]))
		}
		done <- written
	}()
	times := 0
	for running := true; running; times++ {
		select {
		case written := <-done:
			token.Merge(written)
			running = false
		default:
		}
		for n := range 2 {
			if _, err := b.db.Exec(t.Context(), `UPDATE `+generation(n+1).Schema()+`.orders SET state = '{}', customer_id = 'wrong' WHERE id = $1`, id); err != nil {
				t.Fatal(err)
			}
		}
		result, err := b.m.RebuildOne(t.Context(), projections.Orders, id)
		if err != nil || len(result) != 2 || result[0].Version < 5 || result[0].Cleared != 0 {
			t.Fatalf("%+v, %v", result, err)
		}
	}
	for n := range 2 {
		b.passes(generation(n+1), token)
		if version, s := state[order.State](b, generation(n+1).Schema()+".orders", id); version != 5+2*more || s.Version != version || s.CustomerID != "c1" {
			t.Errorf("generation %d: %d, %+v", n+1, version, s)
		}
	}
	if n := b.number(`SELECT count(*) FROM tomato.parked`); n != 0 {
		t.Errorf("%d events are parked", n)
	}
	t.Logf("folded again %d times", times)
	b.rebuilt()
}

// One generation is behind the other. Each has the events that it had passed, and goes on
// from there.
func TestAnOrderIsFoldedUpToTheCheckpointOfEachGeneration(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	stop := b.project(b.m)
	id := orderID(1)
	token := b.w.Append(eventlog.Orders, id, life(1)[:4]...)
	b.passed(projections.Orders, token)
	b.rebuilt()
	b.passes(generation(1), token)
	stop()
	token.Merge(b.w.Append(eventlog.Orders, id, life(1)[4:]...))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.runtime().Run(ctx, generation(1).Consumer()) }()
	b.passes(generation(1), token)
	cancel()
	<-ended
	done, err := b.m.RebuildOne(t.Context(), projections.Orders, id)
	if err != nil || len(done) != 2 || done[0].Version != 9 || done[1].Version != 4 {
		t.Fatalf("%+v, %v", done, err)
	}
	b.project(b.models())
	b.passes(generation(2), token)
	if one, two := b.dump(generation(1), id), b.dump(generation(2), id); one != two || b.number(`SELECT count(*) FROM tomato.parked`) != 0 {
		t.Errorf("%s\nand\n%s", one, two)
	}
}

// A dead letter whose cause is gone takes effect when its order is folded again, and the
// events behind it go on. As long as the cause is there, nothing changes.
func TestFoldingAgainClearsWhatIsParked(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	stop := b.project(b.m)
	id := orderID(1)
	token := b.w.Append(eventlog.Orders, id, life(1)[:3]...)
	b.passed(projections.Orders, token)
	b.exec(`ALTER TABLE orders_g1.orders ADD CONSTRAINT broken CHECK (version < 4)`)
	token.Merge(b.w.Append(eventlog.Orders, id, life(1)[3:7]...))
	b.eventually("it has failed", func() bool {
		return b.number(`SELECT count(*) FROM tomato.parked`) == 4 && b.number(`SELECT count(*) FROM tomato.parked WHERE state = 'retry'`) == 1
	})
	stop()
	b.exec(`UPDATE tomato.parked SET state = 'dead', rev = rev + 1 WHERE state = 'retry'`) // as after its last attempt
	b.project(b.models())
	before := b.dump(generation(1), id)
	var unfoldable *projections.UnfoldableError
	poison := b.w.AppendRaw(eventlog.Orders, id, "ORDER_TELEPORTED", []byte(`{}`))
	b.eventually("the poison event waits, too", func() bool { return b.number(`SELECT count(*) FROM tomato.parked`) == 5 })
	b.exec(`ALTER TABLE orders_g1.orders DROP CONSTRAINT broken`)
	if _, err := b.m.RebuildOne(t.Context(), projections.Orders, id); !errors.As(err, &unfoldable) || !strings.Contains(err.Error(), fmt.Sprintf("@%d", at(t, poison).Offset)) {
		t.Errorf("folded although one event cannot be: %v", err)
	}
	if now := b.dump(generation(1), id); now != before || b.number(`SELECT count(*) FROM tomato.parked`) != 5 {
		t.Errorf("it has changed: %s", now)
	}
	if _, _, err := b.m.Skip(t.Context(), projections.Orders, at(t, poison), "a test", "anna"); err != nil {
		t.Fatal(err)
	}
	result, err := b.m.RebuildOne(t.Context(), projections.Orders, id)
	if err != nil || len(result) != 1 || result[0].Version != 8 || result[0].Cleared != 5 {
		t.Fatalf("%+v, %v", result, err)
	}
	token.Merge(b.w.Append(eventlog.Orders, id, life(1)[7:]...))
	b.eventually("nothing is parked any more", func() bool { return b.number(`SELECT count(*) FROM tomato.parked`) == 0 })
	b.passes(generation(1), token)
	if version, s := state[order.State](b, "orders_g1.orders", id); version != 10 || s.Status != order.StatusDelivered {
		t.Errorf("version %d, %s", version, s.Status)
	}
	b.rebuilt()
	for key, want := range map[string]error{orderID(99): projections.ErrNoEvents, "no id": projections.ErrNoEvents} {
		if _, err := b.m.RebuildOne(t.Context(), projections.Orders, key); !errors.Is(err, want) {
			t.Errorf("%s: %v", key, err)
		}
	}
}

// A rider has three tables, one of which is no fold.
func TestOneRiderIsFoldedAgainOrSkipped(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	token := b.w.Append(eventlog.Riders, "rider1", ready("rider1")...)
	token.Merge(b.position("rider1", centre, time.Now()))
	b.passed(projections.Riders, token)
	b.exec(`UPDATE riders_g1.riders SET eligible = false, state = '{}', version = 7`)
	result, err := b.m.RebuildOne(t.Context(), projections.Riders, "rider1")
	if err != nil || len(result) != 1 || result[0].Version != 3 {
		t.Fatalf("%+v, %v", result, err)
	}
	search := []nearby.Search{{Point: centre, RadiusMeters: 10, Limit: 10}}
	found, _, err := b.m.Nearest(t.Context(), search, 5*time.Minute, nil, 0)
	if err != nil || len(found[0]) != 1 || found[0][0].RiderID != "rider1" {
		t.Errorf("found %v, %v", found, err)
	}

	// If the rider's first event is skipped, the read model does not know the rider.
	var first eventlog.Position
	err = eventlog.Read(t.Context(), b.cfg, map[eventlog.TopicPartition]eventlog.Range{{Topic: eventlog.Riders, Partition: eventlog.PartitionFor("rider1", partitions)}: {To: 4}}, func(e *eventlog.Event) error {
		if e.Type == "RIDER_REGISTERED" {
			first = eventlog.Position{TopicPartition: eventlog.TopicPartition{Topic: e.Topic, Partition: e.Partition}, Offset: e.Offset}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, done, err := b.m.Skip(t.Context(), projections.Riders, first, "a test", "anna"); err != nil || len(done) != 1 || done[0].Version != 0 {
		t.Fatalf("%+v, %v", done, err)
	}
	if found, _, err := b.m.Nearest(t.Context(), search, 5*time.Minute, nil, 0); err != nil || len(found[0]) != 0 {
		t.Errorf("found %v, %v", found, err)
	}
}

// The history of old orders is removed: their rows stay, a later event of one of them adds
// none, a rebuild does not bring it back, and younger orders keep theirs.
func TestOldHistoryIsRemovedAndStaysAway(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	const old = "0190a1b2-0000-7000-8000-000000000001" // of July 2024
	placed := life(1)
	token := b.w.Append(eventlog.Orders, old, placed[:5]...)
	token.Merge(b.w.Append(eventlog.Orders, orderID(2), life(2)...))
	b.passed(projections.Orders, token)
	b.rebuilt()
	before := b.dump(generation(1), orderID(2))
	if _, err := b.m.TrimHistory(t.Context(), projections.Orders, time.Now().AddDate(0, 0, -59), func(int64) {}); !errors.Is(err, projections.ErrTooYoung) {
		t.Errorf("young history is removed: %v", err)
	}
	if _, err := b.m.TrimHistory(t.Context(), projections.Riders, time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC), func(int64) {}); err == nil {
		t.Error("riders have a history")
	}
	removed, err := b.m.TrimHistory(t.Context(), projections.Orders, time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC), func(int64) {})
	if err != nil || removed != 10 {
		t.Fatalf("%d events are removed, %v", removed, err)
	}
	token = b.w.Append(eventlog.Orders, old, placed[5:]...)
	b.passes(generation(1), token)
	b.passes(generation(2), token)
	b.rebuilt()
	for n := range 2 {
		g := generation(n + 2)
		if got := b.dump(g, old); !strings.Contains(got, "delivered") || !strings.HasSuffix(got, "\nno history") {
			t.Errorf("%s has %s", g, got)
		}
		if got := b.dump(g, orderID(2)); got != before {
			t.Errorf("%s has %s", g, got)
		}
	}
	// With an earlier time, a rebuild brings it back.
	if removed, err := b.m.TrimHistory(t.Context(), projections.Orders, time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC), func(int64) {}); err != nil || removed != 0 {
		t.Fatalf("%d events are removed, %v", removed, err)
	}
	if result, err := b.rebuild(t.Context(), b.models(), projections.RebuildOptions{AcceptDifferences: true}); err != nil || result.Comparison.Extra != 9 {
		t.Errorf("%+v, %v", result, err)
	}
}

// A standby that nobody brings up to date does not serve again, and is not compared: its
// rows are old.
func TestAGenerationThatIsBehindNeitherServesNorIsCompared(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	stop := b.project(b.m)
	token := b.w.Append(eventlog.Orders, orderID(1), life(1)[:4]...)
	b.passed(projections.Orders, token)
	b.m.SetVerifyWait(200 * time.Millisecond)
	if _, err := b.m.Verify(t.Context(), projections.Orders, 0); !errors.Is(err, projections.ErrNothingToVerify) || !strings.Contains(err.Error(), "tomato rebuild orders --dry-run") {
		t.Errorf("there is one generation: %v", err)
	}
	b.rebuilt()
	b.passes(generation(1), token)
	if v, err := b.m.Verify(t.Context(), projections.Orders, 0); err != nil || !v.Comparison.Equal() || v.Comparison.Rows != 5 || v.Serving != generation(2) || v.Other != generation(1) {
		t.Errorf("%+v, %v", v, err)
	}
	stop()
	token.Merge(b.w.Append(eventlog.Orders, orderID(1), life(1)[4:]...))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.runtime().Run(ctx, generation(2).Consumer()) }()
	b.passes(generation(2), token)
	cancel()
	<-ended
	operator := projections.Operator{Models: b.m, Who: "anna"}
	var state *projections.StateError
	if err := operator.Switch(t.Context(), generation(1), false); !errors.As(err, &state) || !strings.Contains(err.Error(), "is 5 events behind") {
		t.Errorf("switched: %v", err)
	}
	if _, err := b.m.Verify(t.Context(), projections.Orders, 1); !errors.As(err, &state) || !strings.Contains(err.Error(), "at no moment") {
		t.Errorf("compared: %v", err)
	}
	if _, err := b.m.Verify(t.Context(), projections.Orders, 9); !errors.As(err, &state) {
		t.Errorf("there is no generation 9: %v", err)
	}
	if s := b.states(projections.Orders); s[2] != projections.StateServing {
		t.Errorf("states %v", s)
	}
	b.project(b.models())
	b.passes(generation(1), token)
	if err := operator.Switch(t.Context(), generation(1), false); err != nil {
		t.Error(err)
	}
	if n := b.number(`SELECT count(*) FROM tomato.read_model_actions WHERE who = 'anna' AND action = 'switch' AND model = 'orders'`); n != 1 {
		t.Errorf("%d actions are recorded", n)
	}
}
