package projections_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"tomato/domain"
	"tomato/domain/nearby"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/domain/restaurant"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/consumer/parked"
	"tomato/eventlog/eventlogtest"
	"tomato/migrations"
	"tomato/migrations/postgrestest"
	"tomato/projections"
)

const partitions = 3

// bench is a log, a database and read models on them. Nothing projects yet.
type bench struct {
	t   testing.TB
	cfg eventlog.Config
	db  *pgxpool.Pool
	url string
	w   *eventlogtest.Writer
	m   *projections.ReadModels
}

func newBench(t testing.TB) *bench {
	t.Helper()
	return newBenchOn(t, eventlogtest.Embedded(t))
}

func newBenchOn(t testing.TB, cfg eventlog.Config) *bench {
	t.Helper()
	url := postgrestest.URL(t)
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = 16
	db, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	var subs []eventlog.Subscription
	for _, model := range projections.Models() {
		subs = append(subs, eventlog.Subscription{Name: model, Topics: projections.Topics(model)})
	}
	eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: partitions, Consumers: subs})
	if err := migrations.Core(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, cfg: cfg, db: db, url: url, w: eventlogtest.NewWriter(t, cfg, partitions)}
	b.m = b.models()
	if err := b.m.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bench) models() *projections.ReadModels {
	return &projections.ReadModels{DB: b.db, DatabaseURL: b.url, Kafka: b.cfg, Positions: consumer.NewPositions(b.db), Log: b.log(), MaxWait: 20 * time.Second}
}

func (b *bench) log() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func (b *bench) runtime() *consumer.Runtime {
	return &consumer.Runtime{Kafka: b.cfg, Partitions: partitions, DB: b.db, Log: b.log()}
}

// project keeps m up to date until stop, or the end of the test.
func (b *bench) project(m *projections.ReadModels) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { m.Follow(ctx) })
	wg.Go(func() {
		if err := m.Project(ctx, b.runtime()); err != nil && ctx.Err() == nil {
			b.t.Error(err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	b.t.Cleanup(stop)
	return stop
}

// passed waits until the serving generation has passed token.
func (b *bench) passed(model string, token eventlog.Token) {
	b.t.Helper()
	if err := b.m.Read(b.t.Context(), token, []string{model}, func([]string) error { return nil }); err != nil {
		b.t.Fatal(err)
	}
}

// state reads the state of a row.
func state[S any](b *bench, table, id string) (version int64, s S) {
	b.t.Helper()
	var text string
	if err := b.db.QueryRow(b.t.Context(), `SELECT version, state FROM `+table+` WHERE id = $1`, id).Scan(&version, &text); err != nil {
		b.t.Fatalf("%s %s: %v", table, id, err)
	}
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		b.t.Fatal(err)
	}
	return version, s
}

func orderID(n int) string { return fmt.Sprintf("01980000-0000-7000-8000-%012d", n) }

var centre = domain.Point{Lng: 77.5946, Lat: 12.9716}

// near is a point so many meters north of p.
func near(p domain.Point, meters float64) domain.Point {
	return domain.Point{Lng: p.Lng, Lat: p.Lat + meters/6371008.7714*180/math.Pi}
}

// life are the events of order n, from its placing to its delivery.
func life(n int) []domain.Event {
	id := orderID(n)
	ctx := domain.Ctx{CustomerID: "c" + fmt.Sprint(n%5), RestaurantID: "r" + fmt.Sprint(n%3)}
	at := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	riderID := fmt.Sprintf("rider%d", n)
	return []domain.Event{
		order.OrderPlaced{OrderID: id, CustomerID: ctx.CustomerID, RestaurantID: ctx.RestaurantID,
			Items:  []order.Item{{ItemID: "i", Name: "Dosa \\ \"masala\"\t\n\r", UnitPrice: 100, Quantity: 2}},
			Amount: 200, Currency: "INR", PickUp: order.PickUp{Name: "R", Location: centre},
			DeliverTo: order.DeliverTo{Location: near(centre, 1000), Address: "12, ರಸ್ತೆ"}, PaymentDueAt: at, Ctx: ctx},
		order.OrderPaid{OrderID: id, PaymentID: "pay_" + id, AcceptBy: at, Ctx: ctx},
		order.OrderAccepted{OrderID: id, PrepMinutes: 5, ReadyAt: at, Ctx: ctx},
		order.OrderPreparing{OrderID: id, Ctx: ctx},
		order.OrderReadyForRider{OrderID: id, RestaurantID: ctx.RestaurantID, Location: centre, Round: 1, Ctx: ctx},
		order.OrderOffered{OrderID: id, Round: 1, Wave: 1, Riders: []order.OfferedRider{{RiderID: riderID, DistanceMeters: 12}, {RiderID: "other", DistanceMeters: 13}}, Location: centre, ExpiresAt: at, Ctx: ctx},
		order.RiderAssigned{OrderID: id, RiderID: riderID, RiderName: "A", ClaimID: 4, Round: 1, Wave: 1, Riders: []string{"other"}, Ctx: ctx},
		order.OrderPickedUp{OrderID: id, RiderID: riderID, Ctx: ctx},
		order.OrderDelivered{OrderID: id, RiderID: riderID, ClaimID: 4, Ctx: ctx},
	}
}

func ready(id string) []domain.Event {
	return []domain.Event{rider.RiderRegistered{RiderID: id, Name: "Name of " + id}, rider.RiderVerified{RiderID: id}, rider.RiderOnline{RiderID: id}}
}

func (b *bench) position(id string, p domain.Point, at time.Time) eventlog.Token {
	return b.w.Telemetry(eventlog.RiderLocations, id, rider.PositionType, rider.Position{RiderID: id, Location: p, RecordedAt: at})
}

func TestRowsAreTheFoldOfTheLog(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	token := eventlog.Token{}
	for n := range 20 {
		events := life(n)
		token.Merge(b.w.Append(eventlog.Orders, orderID(n), events[:1+n%len(events)]...))
	}
	b.w.Claim(eventlog.Orders)
	token.Merge(b.w.Invalid(eventlog.Orders, orderID(0), "ORDER_CANCELLED", []byte(`{}`)))
	b.passed(projections.Orders, token)
	for n := range 20 {
		events := life(n)
		version, s := state[order.State](b, "orders_g1.orders", orderID(n))
		if version != int64(1+n%len(events)) || s.Version != version || s.ID != orderID(n) {
			t.Errorf("order %d: version %d, state %+v", n, version, s)
		}
		var history int64
		if err := b.db.QueryRow(t.Context(), `SELECT count(*) FROM orders_g1.order_events WHERE order_id = $1`, orderID(n)).Scan(&history); err != nil || history != version {
			t.Errorf("order %d: %d events at version %d, %v", n, history, version, err)
		}
	}
	var open, asked int
	if err := b.db.QueryRow(t.Context(), `SELECT count(*) FILTER (WHERE wave_open), count(*) FILTER (WHERE asked <> '{}') FROM orders_g1.orders`).Scan(&open, &asked); err != nil {
		t.Fatal(err)
	}
	if open == 0 || open != asked {
		t.Errorf("%d open waves, %d with riders", open, asked)
	}
}

func TestAHoleInVersionsIsParkedAndOthersFlow(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	token := b.w.Append(eventlog.Orders, orderID(1), life(1)[0])
	token.Merge(b.w.AppendRaw(eventlog.Orders, orderID(1), "ORDER_ACCEPTED", []byte(`{"orderId":`))) // version 2 cannot be decoded
	token.Merge(b.w.Append(eventlog.Orders, orderID(1), life(1)[3]))                                 // version 3 must not overtake it
	token.Merge(b.w.Append(eventlog.Orders, orderID(2), life(2)...))
	token.Merge(b.w.Append(eventlog.Orders, orderID(3), life(3)...))
	token.Merge(b.w.Append(eventlog.Orders, orderID(4), life(4)...))
	b.passed(projections.Orders, token)
	if version, _ := state[order.State](b, "orders_g1.orders", orderID(1)); version != 1 {
		t.Errorf("version %d", version)
	}
	for n := 2; n <= 4; n++ {
		if version, _ := state[order.State](b, "orders_g1.orders", orderID(n)); version != 9 {
			t.Errorf("order %d stands at version %d", n, version)
		}
	}
	var dead, waiting int
	if err := b.db.QueryRow(t.Context(), `SELECT count(*) FILTER (WHERE state = 'dead'), count(*) FILTER (WHERE state = 'waiting') FROM tomato.parked`).Scan(&dead, &waiting); err != nil {
		t.Fatal(err)
	}
	if dead != 1 || waiting != 1 {
		t.Errorf("%d dead, %d waiting", dead, waiting)
	}
}

func TestRebuildGivesEqualRowsWhileEventsKeepComing(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	const before = 300
	for n := range before {
		b.w.Append(eventlog.Orders, orderID(n), life(n)...)
	}
	b.w.Invalid(eventlog.Orders, orderID(1), "ORDER_CANCELLED", []byte(`{}`))

	// Another process projects and queries; queries must never fail.
	other := b.models()
	b.project(other)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var mu sync.Mutex
	last := eventlog.Token{}
	wg.Go(func() {
		for n := before; ctx.Err() == nil; n++ {
			token := b.w.Append(eventlog.Orders, orderID(n), life(n)...)
			mu.Lock()
			last.Merge(token)
			mu.Unlock()
			err := other.Read(ctx, token, []string{projections.Orders}, func(schemas []string) error {
				var status string
				return b.db.QueryRow(ctx, `SELECT status FROM `+schemas[0]+`.orders WHERE id = $1`, orderID(n)).Scan(&status)
			})
			if err != nil && ctx.Err() == nil {
				t.Errorf("a query during the rebuild: %v", err)
				return
			}
		}
	})
	rebuilder := b.models()
	var phases []projections.Phase
	done := map[int32]projections.Progress{}
	g, err := rebuilder.Rebuild(t.Context(), projections.Orders, projections.RebuildOptions{Runtime: b.runtime(), Progress: func(p projections.Progress) {
		if len(phases) == 0 || phases[len(phases)-1] != p.Phase {
			phases = append(phases, p.Phase)
		}
		if p.Phase == projections.Filling {
			if old, ok := done[p.Partition]; ok && (old.Target != p.Target || p.Done < old.Done) {
				t.Errorf("progress went from %+v to %+v", old, p)
			}
			done[p.Partition] = p
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(phases, []projections.Phase{projections.Filling, projections.CatchingUp, projections.Switched}) {
		t.Errorf("phases %v", phases)
	}
	for p, d := range done {
		if d.Done != d.Target {
			t.Errorf("partition %d ended at %d of %d", p, d.Done, d.Target)
		}
	}
	if g.Number != 2 {
		t.Errorf("generation %d", g.Number)
	}
	b.eventually("the others serve the new generation", func() bool {
		s, err := other.Serving(t.Context(), projections.Orders)
		return err == nil && s == g
	})
	cancel()
	wg.Wait()
	// Both generations are followed: wait for the last event in each.
	positions := consumer.NewPositions(b.db)
	for _, n := range []int{1, 2} {
		if err := positions.WaitFor(b.deadline(), projections.Orders, n, []string{eventlog.Orders}, last); err != nil {
			t.Fatalf("generation %d: %v", n, err)
		}
	}
	differences, err := b.m.Compare(t.Context(), projections.Generation{Model: projections.Orders, Number: 1}, g)
	if err != nil || differences != 0 {
		t.Fatalf("%d differences, %v", differences, err)
	}
	definitions := func(schema string) (defs []string) {
		err := b.db.QueryRow(t.Context(), `SELECT array_agg(replace(d, $1 || '.', '') ORDER BY d) FROM (
			SELECT pg_get_indexdef(indexrelid) AS d FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid WHERE t.relnamespace = $1::regnamespace
			UNION ALL SELECT t.relname || ' ' || conname || ' ' || pg_get_constraintdef(c.oid) FROM pg_constraint c JOIN pg_class t ON t.oid = conrelid
				WHERE connamespace = $1::regnamespace AND contype = 'p') x`, schema).Scan(&defs)
		if err != nil {
			t.Fatal(err)
		}
		return defs
	}
	if one, two := definitions("orders_g1"), definitions("orders_g2"); len(one) < 10 || !slices.Equal(one, two) {
		t.Errorf("indexes before\n%s\nand after\n%s", strings.Join(one, "\n"), strings.Join(two, "\n"))
	}
	var rows int
	if err := b.db.QueryRow(t.Context(), `SELECT count(*) FROM orders_g2.order_events`).Scan(&rows); err != nil || rows < before*9 {
		t.Fatalf("%d events, %v", rows, err)
	}
}

func (b *bench) deadline() context.Context {
	ctx, cancel := context.WithTimeout(b.t.Context(), 30*time.Second)
	b.t.Cleanup(cancel)
	return ctx
}

func (b *bench) eventually(what string, ok func() bool) {
	b.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	ctx := b.deadline()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			b.t.Fatalf("never came true: %s", what)
		}
	}
}

func TestRebuildDropsTheOldGenerationAndQueriesGoOn(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	token := eventlog.Token{}
	for n := range 20 {
		token.Merge(b.w.Append(eventlog.Payments, orderID(n),
			payment.PaymentRequested{OrderID: orderID(n), Provider: "simulated", GatewayOrderID: fmt.Sprintf("g%d", n), Amount: 100, Currency: "INR"},
			payment.PaymentSuccess{OrderID: orderID(n), PaymentID: fmt.Sprintf("p%d", n), Amount: 100, Currency: "INR", Booked: true}))
	}
	// This one never refreshes: its copy is stale after the drop.
	stale := b.models()
	if _, _, err := stale.OrderOf(t.Context(), "g1", token); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			for i, m := range []*projections.ReadModels{b.m, stale} {
				id, ok, err := m.OrderOf(ctx, "g1", token)
				if ctx.Err() == nil && (err != nil || !ok || id != orderID(1)) {
					t.Errorf("copy %d: %q, %v, %v", i, id, ok, err)
				}
			}
		}
	})
	g, err := b.models().Rebuild(t.Context(), projections.Payments, projections.RebuildOptions{Runtime: b.runtime(), DropOld: true})
	cancel()
	wg.Wait()
	if err != nil || g.Number != 2 {
		t.Fatal(g, err)
	}
	if _, ok, err := b.m.OrderOf(t.Context(), "unknown", token); err != nil || ok {
		t.Errorf("%v, %v", ok, err)
	}
	var left int
	if err := b.db.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM tomato.checkpoints WHERE consumer = 'payments' AND generation = 1)
		+ (SELECT count(*) FROM pg_namespace WHERE nspname = 'payments_g1')`).Scan(&left); err != nil || left != 0 {
		t.Errorf("%d things of generation 1 are left, %v", left, err)
	}
}

func TestARebuildIsDoneByOneProcessAndCleansUpAfterAKilledOne(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	b.w.Append(eventlog.Restaurants, "r1", restaurant.RestaurantRegistered{RestaurantID: "r1", Name: "R", Location: centre})
	// What a killed rebuild leaves.
	ctx, kill := context.WithCancel(t.Context())
	_, err := b.models().Rebuild(ctx, projections.Restaurants, projections.RebuildOptions{Runtime: b.runtime(), Progress: func(p projections.Progress) {
		if p.Phase == projections.Filling {
			if _, err := b.models().Rebuild(t.Context(), projections.Restaurants, projections.RebuildOptions{Runtime: b.runtime()}); err != projections.ErrRunning {
				t.Errorf("a second rebuild beside the first: %v", err)
			}
			kill()
		}
	}})
	if err == nil {
		t.Fatal("the killed rebuild succeeded")
	}
	g, err := b.models().Rebuild(t.Context(), projections.Restaurants, projections.RebuildOptions{Runtime: b.runtime()})
	if err != nil || g.Number != 3 { // no number is used twice
		t.Fatal(g, err)
	}
	var schemas []string
	if err := b.db.QueryRow(t.Context(), `SELECT array_agg(nspname::text ORDER BY nspname) FROM pg_namespace WHERE nspname LIKE 'restaurants_g%'`).Scan(&schemas); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(schemas, []string{"restaurants_g1", "restaurants_g3"}) {
		t.Errorf("schemas %v", schemas)
	}
	if _, err := b.models().Rebuild(t.Context(), "menus", projections.RebuildOptions{Runtime: b.runtime()}); err == nil || !strings.Contains(err.Error(), "no read model") {
		t.Errorf("rebuild of an unknown read model: %v", err)
	}
	// Roll back, and only what does not serve can be dropped.
	old := projections.Generation{Model: projections.Restaurants, Number: 1}
	if err := b.m.Drop(t.Context(), g); err == nil {
		t.Error("dropped the serving generation")
	}
	if err := b.m.Switch(t.Context(), old); err != nil {
		t.Error(err)
	}
	if err := b.m.Switch(t.Context(), projections.Generation{Model: projections.Restaurants, Number: 2}); err == nil {
		t.Error("switched to a generation that is not there")
	}
}

func TestRebuildLeavesWhatCannotBeFoldedToTheConsumer(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	token := eventlog.Token{}
	for n := range 10 {
		token.Merge(b.w.Append(eventlog.Orders, orderID(n), life(n)[:4]...))
	}
	token.Merge(b.w.AppendRaw(eventlog.Orders, orderID(5), "ORDER_TELEPORTED", []byte(`{}`)))
	for n := range 10 {
		token.Merge(b.w.Append(eventlog.Orders, orderID(n), life(n)[4:]...))
	}
	b.passed(projections.Orders, token)
	g, err := b.models().Rebuild(t.Context(), projections.Orders, projections.RebuildOptions{Runtime: b.runtime()})
	if err != nil {
		t.Fatal(err)
	}
	differences, err := b.m.Compare(t.Context(), projections.Generation{Model: projections.Orders, Number: 1}, g)
	if err != nil || differences != 0 {
		t.Errorf("%d differences, %v", differences, err)
	}
	var parked []int
	if err := b.db.QueryRow(t.Context(), `SELECT array_agg(n ORDER BY generation) FROM (SELECT generation, count(*) n FROM tomato.parked GROUP BY 1) p`).Scan(&parked); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(parked, []int{6, 6}) { // one dead, five behind it
		t.Errorf("parked %v", parked)
	}
}

// Events whose values Postgres refuses are parked, and a rebuild is not stopped by
// them: neither while it fills its tables, nor while it makes their indexes.
func TestARebuildIsNotStoppedByValuesThatPostgresRefuses(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	last := b.w.Append(eventlog.Orders, orderID(0), life(0)...)
	var noise strings.Builder // too long for an index, and nothing that could be compressed
	for rnd := rand.New(rand.NewPCG(1, 1)); noise.Len() < 20_000; {
		noise.WriteString(strconv.FormatUint(rnd.Uint64(), 36))
	}
	parked := 0
	for n, data := range []string{
		`{"orderId":"x","customerId":"` + noise.String() + `"}`, // by itself: the fill must not end before it for another's sake
		`{"orderId":"x","customerId":"a\u0000b"}`,
		"{\"orderId\":\"x\",\"reason\":\"\xff\"}",
	} {
		last.Merge(b.w.AppendRaw(eventlog.Orders, orderID(10+n), "ORDER_PLACED", []byte(data)))
		if parked++; n > 0 {
			last.Merge(b.w.AppendRaw(eventlog.Orders, orderID(20+n), "ORDER_READY_FOR_RIDER", []byte(`{"round":9000000000000000}`)))
			parked++
		}
		last.Merge(b.w.Append(eventlog.Orders, orderID(n+1), life(n+1)...))
		b.passed(projections.Orders, last)
		g, err := b.m.Rebuild(t.Context(), projections.Orders, projections.RebuildOptions{Runtime: b.runtime()})
		if err != nil {
			t.Fatal(err)
		}
		if err := consumer.NewPositions(b.db).WaitFor(b.deadline(), projections.Orders, g.Number, []string{eventlog.Orders}, last); err != nil {
			t.Fatal(err)
		}
		b.eventually("what Postgres refuses is parked", func() bool {
			var dead int
			err := b.db.QueryRow(t.Context(), `SELECT count(*) FROM tomato.parked WHERE generation = $1`, g.Number).Scan(&dead)
			return err == nil && dead == parked
		})
		differences, err := b.m.Compare(t.Context(), projections.Generation{Model: projections.Orders, Number: 1}, g)
		if err != nil || differences != 0 {
			t.Errorf("%d differences, %v", differences, err)
		}
	}
}

func TestRidersRebuildKeepsPositionsAndTheirCheckpoint(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	now := time.Now()
	token := eventlog.Token{}
	for n := range 10 {
		id := fmt.Sprintf("rider%d", n)
		token.Merge(b.w.Append(eventlog.Riders, id, ready(id)...))
		token.Merge(b.position(id, near(centre, float64(n*100)), now))
		token.Merge(b.position(id, near(centre, 90000), now.Add(-time.Minute))) // older than the last: dropped
	}
	find := func() string {
		found, _, err := b.m.Nearest(t.Context(), []nearby.Search{{Point: centre, RadiusMeters: 450, Limit: 10}}, 5*time.Minute, token, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(found)
	}
	want := "[[{rider0 0} {rider1 100} {rider2 200} {rider3 300} {rider4 400}]]"
	if got := find(); got != want {
		t.Errorf("got %s", got)
	}
	if _, err := b.m.Rebuild(t.Context(), projections.Riders, projections.RebuildOptions{Runtime: b.runtime()}); err != nil {
		t.Fatal(err)
	}
	if got := find(); got != want {
		t.Errorf("after the rebuild %s", got)
	}
	token.Merge(b.position("rider9", near(centre, 50), now.Add(time.Second)))
	want = "[[{rider0 0} {rider9 50} {rider1 100} {rider2 200} {rider3 300} {rider4 400}]]"
	if got := find(); got != want {
		t.Errorf("after a further position %s", got)
	}
}

// A crash cannot be timed from outside, so many are made: every projector is
// stopped at once, again and again, while events come.
func TestEachEventTakesEffectOnceAcrossRestarts(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	stop := b.project(b.models())
	token := eventlog.Token{}
	const n = 400
	for i := range n {
		token.Merge(b.w.Append(eventlog.Orders, orderID(i), life(i)...))
		if i%80 == 79 {
			next := b.project(b.models()) // two at once: partitions move
			stop()
			stop = next
		}
	}
	b.passed(projections.Orders, token)
	var rows, events, parked int
	if err := b.db.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM orders_g1.orders WHERE version = 9), (SELECT count(*) FROM orders_g1.order_events),
		(SELECT count(*) FROM tomato.parked)`).Scan(&rows, &events, &parked); err != nil {
		t.Fatal(err)
	}
	if rows != n || events != n*9 || parked != 0 {
		t.Errorf("%d rows, %d events, %d parked", rows, events, parked)
	}
}

func TestATokenIsWaitedForAndThenGivenUp(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.m.MaxWait = 300 * time.Millisecond
	token := b.w.Append(eventlog.Riders, "rider1", ready("rider1")...)
	read := func(models ...string) error {
		return b.m.Read(t.Context(), token, models, func([]string) error { return nil })
	}
	if err := read(projections.Riders); err == nil || !strings.Contains(err.Error(), eventlog.ErrBehind.Error()) {
		t.Errorf("nothing projects: %v", err)
	}
	if err := read(projections.Orders); err != nil {
		t.Errorf("a token of other topics: %v", err)
	}
	b.m.MaxWait = 20 * time.Second
	b.project(b.models())
	if err := read(projections.Riders, projections.Orders); err != nil {
		t.Error(err)
	}
	if version, _ := state[rider.State](b, "riders_g1.riders", "rider1"); version != 3 {
		t.Errorf("version %d", version)
	}
}

// Anybody may write to rider-locations: what is no position changes no row, and
// the next one of its rider takes effect.
func TestWhatIsNoPositionChangesNoRow(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	now := time.Now()
	// As a build that took any time for good has left it.
	if _, err := b.db.Exec(t.Context(), `INSERT INTO riders_g1.rider_positions VALUES ('ahead', ST_MakePoint(0, 0)::geography, '9999-01-01')`); err != nil {
		t.Fatal(err)
	}
	b.project(b.m)
	token := eventlog.Token{}
	for _, id := range []string{"r1", "ahead"} {
		token.Merge(b.w.Append(eventlog.Riders, id, ready(id)...))
	}
	type anything = map[string]any
	place, at := anything{"type": "Point", "coordinates": []float64{77.59, 12.97}}, now.Format(time.RFC3339Nano)
	for _, bad := range []any{
		"no object", anything{}, anything{"riderId": "r1", "recordedAt": at}, anything{"riderId": "r1", "location": place},
		anything{"riderId": "r1", "location": anything{"type": "Point", "coordinates": []float64{1e9, 0}}, "recordedAt": at},
		anything{"riderId": "r1", "location": place, "recordedAt": "9999-01-01T00:00:00Z"},
		anything{"riderId": "ahead", "location": place, "recordedAt": at},
	} {
		token.Merge(b.w.Telemetry(eventlog.RiderLocations, "r1", rider.PositionType, bad))
	}
	token.Merge(b.w.Telemetry(eventlog.RiderLocations, "r1", "RIDER_ONLINE", anything{"riderId": "r1"}))
	token.Merge(b.position("r1", centre, now))
	token.Merge(b.position("ahead", centre, now))
	found, _, err := b.m.Nearest(t.Context(), []nearby.Search{{Point: centre, RadiusMeters: 10, Limit: 10}}, 5*time.Minute, token, time.Minute)
	if err != nil || len(found[0]) != 2 {
		t.Errorf("found %v, %v", found, err)
	}
	var parked int
	if err := b.db.QueryRow(t.Context(), `SELECT count(*) FROM tomato.parked`).Scan(&parked); err != nil || parked != 0 {
		t.Errorf("%d parked, %v", parked, err)
	}
}

func TestWaitingFindsOrdersWhoseWaveReachesTheRider(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	now := time.Now()
	token := eventlog.Token{}
	offered := func(n int, at domain.Point, wave int, riders ...string) {
		events := life(n)[:5]
		placed := events[0].(order.OrderPlaced)
		placed.PickUp.Location = at
		events[0] = placed
		offer := order.OrderOffered{OrderID: orderID(n), Round: 1, Wave: wave, Location: at, ExpiresAt: now.Add(time.Minute)}
		for _, r := range riders {
			offer.Riders = append(offer.Riders, order.OfferedRider{RiderID: r})
		}
		token.Merge(b.w.Append(eventlog.Orders, orderID(n), append(events, offer)...))
	}
	offered(1, near(centre, 900), 1)
	offered(2, near(centre, 1500), 1) // out of the first wave's reach
	offered(3, near(centre, 1500), 2)
	offered(4, near(centre, 1501), 7) // beyond the last radius's number
	offered(5, near(centre, 100), 1, "free")
	offered(6, near(centre, 100), 1, "gone")
	token.Merge(b.w.Append(eventlog.Orders, orderID(6), order.OfferDeclined{OrderID: orderID(6), RiderID: "gone", Round: 1, Wave: 1, WaveOver: true}))
	offered(7, near(centre, 100), 1, "x")
	token.Merge(b.w.Append(eventlog.Orders, orderID(7), order.OffersExpired{OrderID: orderID(7), Round: 1, Wave: 1}))
	for _, id := range []string{"free", "busy", "stale", "offline"} {
		token.Merge(b.w.Append(eventlog.Riders, id, ready(id)...))
		token.Merge(b.position(id, centre, map[bool]time.Time{true: now.Add(-time.Hour), false: now}[id == "stale"]))
	}
	token.Merge(b.w.Append(eventlog.Riders, "busy", rider.RiderClaimed{RiderID: "busy", ClaimID: 4, OrderID: orderID(9)}))
	token.Merge(b.w.Append(eventlog.Riders, "offline", rider.RiderOffline{RiderID: "offline"}))
	got, err := b.m.Waiting(t.Context(), []string{"free", "busy", "stale", "offline", "unknown"}, []int{1000, 2000}, 5*time.Minute, token, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprint([]nearby.WaitingOrder{
		{OrderID: orderID(6), RiderID: "free", DistanceMeters: 100}, // between two waves
		{OrderID: orderID(7), RiderID: "free", DistanceMeters: 100},
		{OrderID: orderID(1), RiderID: "free", DistanceMeters: 900},
		{OrderID: orderID(3), RiderID: "free", DistanceMeters: 1500},
		{OrderID: orderID(4), RiderID: "free", DistanceMeters: 1501},
	})
	if fmt.Sprint(got) != want {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

// The log has lost its beginning: the generation that has read it serves on, and
// none is made of the rest.
func TestNoGenerationIsMadeOfHalfALog(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		b := newBenchOn(t, cfg)
		stop := b.project(b.m)
		token := b.w.Append(eventlog.Orders, orderID(1), life(1)...)
		b.passed(projections.Orders, token)
		stop()
		for tp, offset := range token {
			eventlogtest.DeleteBefore(t, cfg, tp.Topic, tp.Partition, offset)
		}
		var lost *eventlog.LostBeginning
		if _, err := b.m.Rebuild(t.Context(), projections.Orders, projections.RebuildOptions{Runtime: b.runtime()}); !errors.As(err, &lost) || lost.Need != 0 {
			t.Fatalf("rebuild: %v", err)
		}
		var generations, schemas int
		if err := b.db.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM tomato.generations WHERE model = 'orders'),
			(SELECT count(*) FROM information_schema.schemata WHERE schema_name LIKE 'orders_g%')`).Scan(&generations, &schemas); err != nil || generations != 1 || schemas != 1 {
			t.Errorf("%d generations, %d schemas, %v", generations, schemas, err)
		}
		if err := b.m.Ensure(t.Context()); err != nil {
			t.Errorf("the generation that has read it: %v", err)
		}
		b.project(b.models())
		b.passed(projections.Orders, b.w.Append(eventlog.Orders, orderID(1), order.OrderCancelled{OrderID: orderID(1)}))
		if version, _ := state[order.State](b, "orders_g1.orders", orderID(1)); version != 10 {
			t.Errorf("version %d", version)
		}

		fresh := &projections.ReadModels{DatabaseURL: postgrestest.URL(t), Kafka: cfg, Log: b.log()}
		if err := migrations.Core(t.Context(), fresh.DatabaseURL); err != nil {
			t.Fatal(err)
		}
		var err error
		if fresh.DB, err = pgxpool.New(t.Context(), fresh.DatabaseURL); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(fresh.DB.Close)
		if err := fresh.Ensure(t.Context()); !errors.As(err, &lost) {
			t.Errorf("a first generation: %v", err)
		}
		if err := fresh.DB.QueryRow(t.Context(), `SELECT count(*) FROM tomato.generations WHERE model = 'orders'`).Scan(&generations); err != nil || generations != 0 {
			t.Errorf("%d first generations, %v", generations, err)
		}
	})
}

func TestStatusTellsGenerationsAndLag(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.w.Append(eventlog.Orders, orderID(1), life(1)...)
	lag := func() map[string]projections.Status {
		all, err := b.m.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		by := map[string]projections.Status{}
		for _, s := range all {
			by[s.String()] = s
		}
		return by
	}
	if s := lag(); s["orders_g1"].LagEvents != 10 || s["orders_g1"].State != "serving" || s["riders_g1"].LagEvents != 0 || len(s) != len(projections.Models()) {
		t.Errorf("%+v", slices.Collect(maps.Values(s)))
	}
	b.project(b.m)
	b.eventually("no lag", func() bool { return lag()["orders_g1"].LagEvents == 0 })
}

// 5 % of what the orders read model is handed fails, some of it for good, while
// its projectors come and go. Mended, and replayed once, its rows are those that
// a rebuild gives.
func TestRowsAfterFailuresAreThoseOfARebuild(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	g, err := b.m.Serving(t.Context(), projections.Orders)
	if err != nil {
		t.Fatal(err)
	}
	c := g.Consumer()
	rows := c.Rows
	var mu sync.Mutex
	rnd := rand.New(rand.NewPCG(3, 4))
	mended := false
	c.MaxBatch, c.InPlaceTries, c.RetryDelays = 50, 2, []time.Duration{20 * time.Millisecond, 50 * time.Millisecond}
	c.Rows = func(ctx context.Context, tx pgx.Tx, events []eventlog.Event) error {
		if err := rows(ctx, tx, events); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		for _, e := range events {
			switch {
			case mended:
			case strings.HasSuffix(e.Subject, "7") && e.Version == 3:
				return eventlog.Poison(errors.New("as a bug would have it"))
			case rnd.IntN(20) == 0:
				return errors.New("not this time")
			}
		}
		return nil
	}
	run := func() (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := b.runtime().Run(ctx, c); err != nil {
				t.Error(err)
			}
		})
		stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
		t.Cleanup(stop)
		return stop
	}
	const n = 200
	token := eventlog.Token{}
	stop := run()
	for i := range n {
		token.Merge(b.w.Append(eventlog.Orders, orderID(i), life(i)...))
		if i%50 == 49 {
			next := run()
			stop()
			stop = next
		}
	}
	b.passed(projections.Orders, token)
	parkedRows := func(where string) (n int) {
		if err := b.db.QueryRow(t.Context(), `SELECT count(*) FROM tomato.parked`+where).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	b.eventually("what can be done is done", func() bool { return parkedRows(` WHERE state = 'retry'`) == 0 })
	dead := parkedRows(` WHERE state = 'dead'`)
	if dead < n/10 || parkedRows(` WHERE class = 'poison'`) != n/10 {
		t.Errorf("%d dead letters, %d of them poison: %d events are", dead, parkedRows(` WHERE class = 'poison'`), n/10)
	}
	mu.Lock()
	mended = true
	mu.Unlock()
	tools := &parked.DeadLetters{DB: b.db, Kafka: b.cfg}
	if res, err := tools.Replay(t.Context(), parked.ReplayRequest{Consumer: projections.Orders, All: true, ConfirmCount: dead, Who: "test"}); err != nil || res.Replayed != dead {
		t.Fatalf("replay: %+v, %v", res, err)
	}
	b.eventually("all is replayed", func() bool { return parkedRows("") == 0 })
	stop()
	b.project(b.m)
	rebuilt, err := b.m.Rebuild(t.Context(), projections.Orders, projections.RebuildOptions{Runtime: b.runtime()})
	if err != nil {
		t.Fatal(err)
	}
	if differences, err := b.m.Compare(t.Context(), g, rebuilt); err != nil || differences != 0 {
		t.Errorf("%d differences, %v", differences, err)
	}
	var events int
	if err := b.db.QueryRow(t.Context(), `SELECT count(*) FROM `+g.Schema()+`.order_events`).Scan(&events); err != nil || events != n*9 {
		t.Errorf("%d of %d events, %v", events, n*9, err)
	}
}
