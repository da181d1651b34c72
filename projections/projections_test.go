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
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"tomato/domain"
	"tomato/domain/nearby"
	"tomato/domain/order"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/eventlogtest"
	"tomato/eventlog/subjectkeys/subjectkeystest"
	"tomato/migrations"
	"tomato/migrations/postgrestest"
	"tomato/projections"
)

const partitions = 3

// bench has a log, a database and the read models. No consumer runs until project is
// called.
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

// project keeps m up to date until stop is called or the test ends.
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

// near returns the point that many meters north of p.
func near(p domain.Point, meters float64) domain.Point {
	return domain.Point{Lng: p.Lng, Lat: p.Lat + meters/6371008.7714*180/math.Pi}
}

// life returns the events of order n, from its placing to its delivery.
func life(n int) []domain.Event {
	id := orderID(n)
	ctx := domain.Ctx{CustomerID: "c" + fmt.Sprint(n%5), RestaurantID: "r" + fmt.Sprint(n%3)}
	at := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	riderID := fmt.Sprintf("rider%d", n)
	return []domain.Event{
		order.OrderPlaced{OrderID: id, CustomerID: ctx.CustomerID, RestaurantID: ctx.RestaurantID,
			Items:  []order.Item{{ItemID: "i", Name: "Dosa \\ \"masala\"\t\n\r", UnitPrice: 100, Quantity: 2}},
			Amount: 200, Currency: "INR", PickUp: order.PickUp{Name: "R", Location: centre},
			DeliverTo: subjectkeystest.DeliverTo(ctx.CustomerID, `{"address":"12, ರಸ್ತೆ"}`), PaymentDueAt: at, Ctx: ctx},
		order.OrderPaid{OrderID: id, PaymentID: "pay_" + id, AcceptBy: at, Ctx: ctx},
		order.OrderAccepted{OrderID: id, PrepMinutes: 5, ReadyAt: at, Ctx: ctx},
		order.OrderPreparing{OrderID: id, Ctx: ctx},
		order.OrderReadyForRider{OrderID: id, RestaurantID: ctx.RestaurantID, Location: centre, Round: 1, Ctx: ctx},
		order.OrderOffered{OrderID: id, Round: 1, Wave: 1, Riders: []order.OfferedRider{{RiderID: riderID, DistanceMeters: 12}, {RiderID: "other", DistanceMeters: 13}}, Location: centre, ExpiresAt: at, Ctx: ctx},
		order.RiderAssigned{OrderID: id, RiderID: riderID, RiderName: subjectkeystest.Name(riderID, "A"), ClaimID: 4, Round: 1, Wave: 1, Riders: []string{"other"}, Ctx: ctx},
		order.OrderPickedUp{OrderID: id, RiderID: riderID, Ctx: ctx},
		order.OrderDelivered{OrderID: id, RiderID: riderID, ClaimID: 4, Ctx: ctx},
	}
}

// lived appends the first events of the lives of so many orders, and waits until the orders
// read model has passed them.
func (b *bench) lived(orders, events int) (token eventlog.Token) {
	b.t.Helper()
	token = eventlog.Token{}
	for n := range orders {
		token.Merge(b.w.Append(eventlog.Orders, orderID(n), life(n)[:events]...))
	}
	b.passed(projections.Orders, token)
	return token
}

func ready(id string) []domain.Event {
	return []domain.Event{rider.RiderRegistered{RiderID: id, Name: subjectkeystest.Name(id, "Name of "+id)}, rider.RiderVerified{RiderID: id}, rider.RiderOnline{RiderID: id}}
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

// A test cannot choose the moment of a crash. So this one stops every projector many
// times while events are appended.
func TestEachEventTakesEffectOnceAcrossRestarts(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	stop := b.project(b.models())
	token := eventlog.Token{}
	const n = 400
	for i := range n {
		token.Merge(b.w.Append(eventlog.Orders, orderID(i), life(i)...))
		if i%80 == 79 {
			next := b.project(b.models()) // two run at once, so partitions move between them
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

// Any program may write to rider-locations. A record that is not a position changes no
// row, and the next position of the rider takes effect.
func TestWhatIsNoPositionChangesNoRow(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	now := time.Now()
	// An older build accepted positions with any time. This is a row that it has left.
	if _, err := b.db.Exec(t.Context(), `INSERT INTO riders_g1.rider_positions (rider_id, location, recorded_at) VALUES ('ahead', ST_MakePoint(0, 0)::geography, '9999-01-01')`); err != nil {
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
	offered(2, near(centre, 1500), 1) // outside the radius of the first wave
	offered(3, near(centre, 1500), 2)
	offered(4, near(centre, 1501), 7) // a wave later than the last of the radii
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
		{OrderID: orderID(6), RiderID: "free", DistanceMeters: 100}, // no wave is open
		{OrderID: orderID(7), RiderID: "free", DistanceMeters: 100},
		{OrderID: orderID(1), RiderID: "free", DistanceMeters: 900},
		{OrderID: orderID(3), RiderID: "free", DistanceMeters: 1500},
		{OrderID: orderID(4), RiderID: "free", DistanceMeters: 1501},
	})
	if fmt.Sprint(got) != want {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

// The first records of the log are deleted. The generation that has read them serves on,
// and no new generation is made of the rest.
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

// Rows that are deleted or replaced take space until a vacuum frees it. The status shows
// how many there are.
func TestStatusShowsDeadRowsAndTheLastVacuum(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	table := func() (found projections.Table) {
		t.Helper()
		all, err := b.m.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range all {
			for _, table := range s.Tables {
				if s.Model == projections.Restaurants && table.Name == "restaurants" {
					found = table
				}
			}
		}
		return found
	}
	conn, err := b.db.Acquire(t.Context()) // one session, because each keeps its counts for itself at first
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	exec := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	if got := table(); got.Bytes == 0 || !got.LastVacuum.IsZero() {
		t.Errorf("at first %+v", got)
	}
	exec(`INSERT INTO restaurants_g1.restaurants SELECT 'r' || i, 1, false, ST_MakePoint(0, 0)::geography, '{}' FROM generate_series(1, 40) i`)
	exec(`DELETE FROM restaurants_g1.restaurants WHERE id > 'r25'`)
	exec(`SELECT pg_stat_force_next_flush()`)
	b.eventually("dead rows are shown", func() bool { got := table(); return got.DeadRows > 0 && got.LiveRows+got.DeadRows == 40 })
	exec(`VACUUM restaurants_g1.restaurants`)
	exec(`SELECT pg_stat_force_next_flush()`)
	b.eventually("the vacuum is shown", func() bool { got := table(); return got.DeadRows == 0 && !got.LastVacuum.IsZero() && got.Bytes > 0 })
}
