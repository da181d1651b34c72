package main_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"tomato/cmd/tomato/servertest"
	"tomato/cmd/tomato/settings"
	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/domain/restaurant"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
	"tomato/eventlog/subjectkeys/subjectkeystest"
	"tomato/projections"
)

// projectorRun is how much TestRowsAreTheFoldThroughKills does.
type projectorRun struct{ orders, kills int }

// projectorRuns returns the short form, or with TOMATO_PROJECTOR_EVENTS a run with so many
// events and 30 kills.
func projectorRuns(t *testing.T) projectorRun {
	t.Helper()
	const perOrder = 12 // about so many events
	s := os.Getenv("TOMATO_PROJECTOR_EVENTS")
	if s == "" {
		return projectorRun{orders: 500, kills: 5}
	}
	events, err := strconv.Atoi(s)
	if err != nil || events < perOrder {
		t.Fatalf("TOMATO_PROJECTOR_EVENTS=%s is no number of events", s)
	}
	return projectorRun{orders: events / perOrder, kills: 30}
}

// TestRowsAreTheFoldThroughKills: two processes project while events are appended. One of
// them is killed again and again (kill -9) and comes back, so the partitions move each
// time, and Postgres is restarted in between. In the end the rows of every read model are
// those of a rebuild, byte for byte, and the riders' positions are the last ones.
func TestRowsAreTheFoldThroughKills(t *testing.T) {
	t.Parallel()
	run := projectorRuns(t)
	eventlogtest.Each(t, func(t *testing.T, kafka eventlog.Config) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
		defer cancel()
		seed := uint64(time.Now().UnixNano())
		t.Logf("seed %d", seed)
		rng := rand.New(rand.NewPCG(seed, 0))
		pgDir := filepath.Join(t.TempDir(), "postgres")
		pg := servertest.Postgres(t, ctx, pgDir)
		a := servertest.NewOn(t, kafka, pg.URL())
		a.Log = &servertest.Chronicle{} // the writer below is the only one, and stands in for the shards
		projectors := []*projector{newProjector(a, "one"), newProjector(a, "two")}
		for _, p := range projectors {
			p.start()
		}

		w := &historyWriter{w: eventlogtest.NewWriter(t, kafka, int32(a.Config.Partitions)), rng: rand.New(rand.NewPCG(seed, 1)), positions: map[string]domain.Point{}, token: eventlog.Token{}}
		written := make(chan struct{})
		go func() {
			defer close(written)
			w.write(ctx, run.orders)
		}()
		restarted := false
		for n := range run.kills {
			a.Wait(time.Duration(50+rng.IntN(600)) * time.Millisecond)
			victim := projectors[rng.IntN(len(projectors))]
			victim.process.Kill()
			if n == run.kills/2 {
				if err := pg.Stop(ctx); err != nil {
					t.Fatal(err)
				}
				a.Wait(300 * time.Millisecond)
				servertest.Postgres(t, ctx, pgDir)
				restarted = true
			}
			victim.start()
		}
		<-written
		if !restarted || t.Failed() {
			t.FailNow()
		}

		db := a.DB()
		for _, model := range projections.Models() {
			// A group whose members were killed one after the other may need two rebalances of
			// 15 s, and on the embedded broker another 40 s.
			servertest.AwaitFor(t, 4*time.Minute, model+" has passed all events", func() error {
				passed := eventlog.Token{}
				rows, err := db.Query(ctx, `SELECT topic, partition, next_offset - 1 FROM tomato.checkpoints WHERE consumer = $1 AND generation = 1`, model)
				if err != nil {
					return err
				}
				var tp eventlog.TopicPartition
				var o int64
				if _, err := pgx.ForEachRow(rows, []any{&tp.Topic, &tp.Partition, &o}, func() error { passed[tp] = o; return nil }); err != nil {
					return err
				}
				for _, topic := range projections.Topics(model) {
					for tp, o := range w.token {
						if tp.Topic == topic && passed[tp] < o {
							return fmt.Errorf("%s/%d is at %d of %d", tp.Topic, tp.Partition, passed[tp], o)
						}
					}
				}
				return nil
			})
		}
		w.checkPositions(t, ctx, a)
		for _, model := range projections.Models() {
			a.Tool("rebuild", model)
			before, after := dump(t, ctx, a, model+"_g1"), dump(t, ctx, a, model+"_g2")
			if len(before) == 0 || !bytes.Equal(before, after) {
				t.Errorf("%s: the rows are not those of a rebuild:\n%s", model, firstDifference(before, after))
			}
		}
		var parkedEvents int
		if err := db.QueryRow(ctx, `SELECT count(*) FROM tomato.parked`).Scan(&parkedEvents); err != nil || parkedEvents > 0 {
			t.Errorf("%d events are parked, %v", parkedEvents, err)
		}
	})
}

// projector is a process with the role project.
type projector struct {
	a       *servertest.Installation
	dir     string
	process *servertest.Process
}

func newProjector(a *servertest.Installation, name string) *projector {
	return &projector{a: a, dir: filepath.Join(a.T.TempDir(), name)}
}

// start runs it, and returns when it has written where it runs.
func (p *projector) start() {
	p.a.T.Helper()
	_ = os.Remove(settings.RunningFile(p.dir)) // of one that was killed
	p.process = p.a.Spawn("serve", "--role", "project", "--database-url", p.a.Config.DatabaseURL, "--kafka-brokers", strings.Join(p.a.Kafka.Brokers, ","),
		"--data-dir", p.dir, "--http-addr", "127.0.0.1:0", "--partitions", fmt.Sprint(p.a.Config.Partitions), "--log-level", servertest.LogLevel())
	p.a.Await(filepath.Base(p.dir)+" runs", func() error {
		select {
		case <-p.process.Ended:
			p.a.T.Fatal("serve ended")
		default:
		}
		_, err := settings.ReadRunning(p.dir)
		return err
	})
}

// historyWriter appends what a town appends: orders with their payments and riders, whose
// events are interleaved, and positions.
type historyWriter struct {
	w         *eventlogtest.Writer
	rng       *rand.Rand
	positions map[string]domain.Point // the last one of each rider
	token     eventlog.Token          // all that was appended
}

// step is the next events of one aggregate.
type step struct {
	topic, id string
	events    []domain.Event
}

// write appends so many orders, 64 of them under way at a time.
func (h *historyWriter) write(ctx context.Context, orders int) {
	const atOnce = 64
	var under [][]step
	for n := 0; (n < orders || len(under) > 0) && ctx.Err() == nil; {
		for len(under) < atOnce && n < orders {
			under = append(under, h.order(n))
			n++
		}
		i := h.rng.IntN(len(under))
		s := under[i][0]
		if under[i] = under[i][1:]; len(under[i]) == 0 {
			under[i] = under[len(under)-1]
			under = under[:len(under)-1]
		}
		h.token.Merge(h.w.Append(s.topic, s.id, s.events...))
		if h.rng.IntN(4) == 0 {
			h.position(fmt.Sprint("rider", h.rng.IntN(100)))
		}
	}
}

func (h *historyWriter) position(riderID string) {
	p := domain.Point{Lng: 77.6 + h.rng.Float64()/100, Lat: 12.9 + h.rng.Float64()/100}
	h.positions[riderID] = p
	h.token.Merge(h.w.Telemetry(eventlog.RiderLocations, riderID, rider.PositionType, rider.Position{RiderID: riderID, Location: p, RecordedAt: domain.Time(time.Now())}))
}

// order returns the steps of the n-th order, which ends in one of several ways.
func (h *historyWriter) order(n int) []step {
	id, riderID, paymentID := fmt.Sprintf("0198c000-0000-7000-8000-%012d", n), fmt.Sprint("rider", n), fmt.Sprint("pay_", n)
	ctx := domain.Ctx{CustomerID: fmt.Sprint("c", n%50), RestaurantID: fmt.Sprint("r", n%20)}
	at := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	place := domain.Point{Lng: 77.6, Lat: 12.9}
	var all []step
	add := func(topic, id string, events ...domain.Event) { all = append(all, step{topic, id, events}) }
	if n < 20 {
		add(eventlog.Restaurants, ctx.RestaurantID, restaurant.RestaurantRegistered{RestaurantID: ctx.RestaurantID, Name: "R", Location: place})
	}
	add(eventlog.Riders, riderID, rider.RiderRegistered{RiderID: riderID, Name: subjectkeystest.Name(riderID, "N")}, rider.RiderVerified{RiderID: riderID}, rider.RiderOnline{RiderID: riderID})
	add(eventlog.Orders, id, order.OrderPlaced{OrderID: id, CustomerID: ctx.CustomerID, RestaurantID: ctx.RestaurantID,
		Items: []order.Item{{ItemID: "i", Name: "Dosa", UnitPrice: 100, Quantity: 2}}, Amount: 200, Currency: "INR", PickUp: order.PickUp{Name: "R", Location: place},
		DeliverTo: subjectkeystest.DeliverTo(ctx.CustomerID, `{"address":"12"}`), PaymentDueAt: at, Ctx: ctx})
	add(eventlog.Payments, id, payment.PaymentRequested{OrderID: id, Provider: "simulated", GatewayOrderID: "g" + id, Amount: 200, Currency: "INR", Ctx: ctx})
	if n%10 == 9 {
		add(eventlog.Orders, id, order.OrderExpired{OrderID: id, Ctx: ctx})
		return all
	}
	add(eventlog.Payments, id, payment.PaymentSuccess{OrderID: id, PaymentID: paymentID, Amount: 200, Currency: "INR", GatewayOrderID: "g" + id, Booked: true, Ctx: ctx})
	add(eventlog.Orders, id, order.OrderPaid{OrderID: id, PaymentID: paymentID, AcceptBy: at, Ctx: ctx})
	if n%10 == 8 {
		add(eventlog.Orders, id, order.OrderRejected{OrderID: id, PaymentID: paymentID, Ctx: ctx})
		return all
	}
	add(eventlog.Orders, id, order.OrderAccepted{OrderID: id, Ctx: ctx}, order.OrderPreparing{OrderID: id, Ctx: ctx})
	add(eventlog.Orders, id, order.OrderReadyForRider{OrderID: id, RestaurantID: ctx.RestaurantID, Location: place, Round: 1, Ctx: ctx})
	add(eventlog.Orders, id, order.OrderOffered{OrderID: id, Round: 1, Wave: 1, Riders: []order.OfferedRider{{RiderID: riderID, DistanceMeters: 12}}, Location: place, ExpiresAt: at, Ctx: ctx})
	add(eventlog.Riders, riderID, rider.RiderClaimed{RiderID: riderID, RiderName: subjectkeystest.Name(riderID, "N"), ClaimID: 4, OrderID: id, Round: 1, Wave: 1, Ctx: ctx})
	add(eventlog.Orders, id, order.RiderAssigned{OrderID: id, RiderID: riderID, RiderName: subjectkeystest.Name(riderID, "N"), ClaimID: 4, Round: 1, Wave: 1, Riders: []string{}, Ctx: ctx})
	add(eventlog.Orders, id, order.OrderPickedUp{OrderID: id, RiderID: riderID, Ctx: ctx})
	if n%10 == 7 {
		return all // on its way for ever
	}
	add(eventlog.Orders, id, order.OrderDelivered{OrderID: id, RiderID: riderID, ClaimID: 4, Ctx: ctx})
	add(eventlog.Riders, riderID, rider.RiderReleased{RiderID: riderID, ClaimID: 4, OrderID: id, Ctx: ctx})
	return all
}

// checkPositions compares the positions of the read model with the last ones, and what the
// search knows of riders with the riders.
func (h *historyWriter) checkPositions(t *testing.T, ctx context.Context, a *servertest.Installation) {
	t.Helper()
	rows, err := a.DB().Query(ctx, `SELECT rider_id, ST_X(location::geometry), ST_Y(location::geometry) FROM riders_g1.rider_positions WHERE location IS NOT NULL`)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	var id string
	var p domain.Point
	if _, err := pgx.ForEachRow(rows, []any{&id, &p.Lng, &p.Lat}, func() error {
		if n++; h.positions[id] != p {
			t.Errorf("%s is at %v, and was last at %v", id, p, h.positions[id])
		}
		return nil
	}); err != nil || n != len(h.positions) {
		t.Errorf("%d of %d positions, %v", n, len(h.positions), err)
	}
	var wrong int
	if err := a.DB().QueryRow(ctx, `SELECT count(*) FROM riders_g1.riders r LEFT JOIN riders_g1.rider_positions p ON p.rider_id = r.id
		WHERE p.name IS DISTINCT FROM r.name OR p.eligible IS DISTINCT FROM r.eligible`).Scan(&wrong); err != nil || wrong > 0 {
		t.Errorf("%d riders are not as the search knows them, %v", wrong, err)
	}
}

// dump returns all rows of the tables of a generation that are folded from the log, each
// table sorted, as text.
func dump(t *testing.T, ctx context.Context, a *servertest.Installation, schema string) []byte {
	t.Helper()
	db := a.DB()
	found, err := db.Query(ctx, `SELECT table_name FROM information_schema.tables WHERE table_schema = $1 AND table_type = 'BASE TABLE'
		AND table_name NOT IN ('schema_migrations', 'rider_positions') ORDER BY 1`, schema)
	if err != nil {
		t.Fatal(err)
	}
	tables, err := pgx.CollectRows(found, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	conn, err := db.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	var out bytes.Buffer
	for _, table := range tables {
		fmt.Fprintf(&out, "%s\n", table)
		if _, err := conn.Conn().PgConn().CopyTo(ctx, &out, `COPY (SELECT x FROM `+schema+`.`+table+` x ORDER BY x::text COLLATE "C") TO STDOUT`); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

// firstDifference returns the first lines in which two dumps differ.
func firstDifference(a, b []byte) string {
	x, y := strings.Split(string(a), "\n"), strings.Split(string(b), "\n")
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] {
			return fmt.Sprintf("line %d:\n%.500s\n%.500s", i+1, x[i], y[i])
		}
	}
	return fmt.Sprintf("%d and %d lines", len(x), len(y))
}
