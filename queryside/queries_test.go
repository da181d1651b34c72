package queryside_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/domain/restaurant"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/subjectkeys/subjectkeystest"
	"tomato/httpapi"
	"tomato/migrations"
	"tomato/migrations/postgrestest"
	"tomato/projections"
	"tomato/queryside"
)

const secret = "0123456789abcdef0123456789abcdef"

// queries is the query side on a database that the test fills itself, without the
// projections.
type queries struct {
	t     *testing.T
	db    *pgxpool.Pool
	keys  *subjectkeystest.Keys
	api   *httpapi.API
	fails error // the error of the wait for the token
	seen  eventlog.Token

	passed eventlog.Token // what the read models have passed
}

// Read implements queryside.ReadModels.
func (q *queries) Read(_ context.Context, after eventlog.Token, models []string, query func([]string) error) error {
	q.seen = after
	if q.fails != nil {
		return fmt.Errorf("orders_g1: %w", q.fails)
	}
	schemas := make([]string, len(models))
	for i, m := range models {
		schemas[i] = m + "_g1"
	}
	return query(schemas)
}

// Reached implements queryside.ReadModels.
func (q *queries) Reached(context.Context, []string) (eventlog.Token, error) { return q.passed, nil }

func newQueries(t *testing.T) *queries { return newTracedQueries(t, nil) }

// newTracedQueries is newQueries with a tracer, which may be nil, of all statements.
func newTracedQueries(t *testing.T, tracer pgx.QueryTracer) *queries {
	t.Helper()
	url := postgrestest.URL(t)
	for _, model := range projections.Models() {
		if err := migrations.ReadModel(t.Context(), url, model+"_g1", model); err != nil {
			t.Fatal(err)
		}
	}
	if err := migrations.Core(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	config.ConnConfig.Tracer = tracer
	db, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	auth, err := httpapi.NewAuthenticator(httpapi.AuthConfig{Secrets: []string{secret}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(auth.Close)
	q := &queries{t: t, db: db, keys: &subjectkeystest.Keys{}, api: httpapi.New(httpapi.Options{Auth: auth, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})}
	side := &queryside.Side{DB: db, Models: q, Keys: q.keys, PositionMaxAge: 5 * time.Minute}
	side.Routes(q.api)
	return q
}

func (q *queries) exec(sql string, args ...any) {
	q.t.Helper()
	if _, err := q.db.Exec(q.t.Context(), sql, args...); err != nil {
		q.t.Fatal(err)
	}
}

func text(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func point(p domain.Point) string { return fmt.Sprintf("POINT(%v %v)", p.Lng, p.Lat) }

// order inserts an order, with one event per version.
func (q *queries) order(s order.State) {
	q.t.Helper()
	closed := ""
	if s.Status.Closed() {
		closed = string(s.Status)
	}
	asked := []string{}
	for _, o := range s.Offers {
		asked = append(asked, o.RiderID)
	}
	if !s.WaveOpen {
		asked = []string{}
	}
	q.exec(`INSERT INTO orders_g1.orders (id, version, status, closed, customer_id, restaurant_id, rider_id, exhausted, pick_up, round, wave, waiting, wave_open, asked, created_at, state)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9::text::geography, $10, $11, $12, $13, $14, $15, $16)`,
		s.ID, s.Version, string(s.Status), closed, s.CustomerID, s.RestaurantID, s.RiderID, s.Exhausted, point(s.PickUp.Location),
		s.Round, s.Wave, s.Status == order.StatusReadyForRider && !s.Exhausted, s.WaveOpen, asked, s.CreatedAt, text(s))
	for v := range s.Version {
		q.exec(`INSERT INTO orders_g1.order_events VALUES ($1, $2, 'ORDER_PLACED', 1, $3, '', $4)`, s.ID, v+1, s.CreatedAt, fmt.Sprintf(`{"n":%d}`, v+1))
	}
}

func (q *queries) payment(s payment.State) {
	q.t.Helper()
	f := s.Facts()
	unmatched := slices.ContainsFunc(s.Attempts, func(a payment.Attempt) bool { return a.State == payment.AttemptStateUnmatched })
	q.exec(`INSERT INTO payments_g1.payments (id, version, order_id, gateway_order_id, booked, refund_requested, refund_succeeded, last_attempt_failed, has_unmatched, refund_failed, created_at, state)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)`,
		s.ID, s.Version, s.OrderID, s.GatewayOrderID, f.Booked, f.RefundRequested, f.RefundSucceeded, f.LastAttemptFailed, unmatched, false, s.CreatedAt, text(s))
}

func (q *queries) rider(s rider.State, at *domain.Point, recordedAt time.Time) {
	q.t.Helper()
	q.exec(`INSERT INTO riders_g1.riders (id, version, name, eligible, order_id, claim_id, state) VALUES ($1, $2, $3, $4, '', 0, $5)`,
		s.ID, s.Version, s.Name, s.Verification == rider.Verified && s.Status() == rider.StatusAvailable, text(s))
	if at != nil {
		q.exec(`INSERT INTO riders_g1.rider_positions (rider_id, location, recorded_at, name, eligible)
			SELECT id, $2::text::geography, $3, name, eligible FROM riders_g1.riders WHERE id = $1`, s.ID, point(*at), recordedAt)
	}
}

func (q *queries) restaurant(s restaurant.State) {
	q.t.Helper()
	q.exec(`INSERT INTO restaurants_g1.restaurants VALUES ($1, $2, $3, $4::text::geography, $5)`, s.ID, s.Version, s.Open, point(s.Location), text(s))
}

type answer struct {
	status int
	header http.Header
	body   map[string]any
}

func (a answer) code() string {
	s, _ := a.body["code"].(string)
	return s
}

func (a answer) items() []map[string]any {
	var out []map[string]any
	list, ok := a.body["items"].([]any)
	if !ok {
		panic(fmt.Sprintf("no items: %v", a.body))
	}
	for _, x := range list {
		out = append(out, x.(map[string]any))
	}
	return out
}

func (a answer) ids(name string) string {
	var out []string
	for _, i := range a.items() {
		out = append(out, fmt.Sprint(i[name]))
	}
	return strings.Join(out, " ")
}

func (q *queries) do(actor domain.Actor, method, path, body string, header ...string) answer {
	q.t.Helper()
	token, err := httpapi.MintToken(secret, actor, time.Hour)
	if err != nil {
		q.t.Fatal(err)
	}
	r := httptest.NewRequestWithContext(q.t.Context(), method, path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+token)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	q.api.ServeHTTP(w, r)
	a := answer{status: w.Code, header: w.Header()}
	if err := json.Unmarshal(w.Body.Bytes(), &a.body); err != nil {
		q.t.Fatalf("%s %s: %d %q", method, path, w.Code, w.Body)
	}
	return a
}

func (q *queries) get(actor domain.Actor, path string, header ...string) answer {
	q.t.Helper()
	return q.do(actor, http.MethodGet, path, "", header...)
}

var (
	customer      = domain.Actor{Sub: "c1", Role: domain.Customer}
	otherCustomer = domain.Actor{Sub: "c2", Role: domain.Customer}
	kitchen       = domain.Actor{Sub: "k1", Role: domain.Restaurant, RestaurantID: "r1"}
	otherKitchen  = domain.Actor{Sub: "k2", Role: domain.Restaurant, RestaurantID: "r2"}
	courier       = domain.Actor{Sub: "rider1", Role: domain.Rider}
	offered       = domain.Actor{Sub: "rider2", Role: domain.Rider}
	dropped       = domain.Actor{Sub: "rider3", Role: domain.Rider}
	otherCourier  = domain.Actor{Sub: "rider9", Role: domain.Rider}
	ops           = domain.Actor{Sub: "o1", Role: domain.Ops}
)

var (
	centre = domain.Point{Lng: 77.5946, Lat: 12.9716}
	noon   = time.Date(2026, 11, 1, 12, 0, 0, 123e6, time.UTC)
)

func near(meters float64) domain.Point {
	return domain.Point{Lng: centre.Lng, Lat: centre.Lat + meters/6371008.7714*180/math.Pi}
}

func orderID(n int) string { return fmt.Sprintf("01980000-0000-7000-8000-%012d", n) }

func assigned(n int) order.State {
	return order.State{ID: orderID(n), Version: 3, Status: order.StatusRiderAssigned, CustomerID: "c1", RestaurantID: "r1", RiderID: "rider1", RiderName: subjectkeystest.Name("rider1", "A"),
		Items: []order.Item{{ItemID: "i", Name: "Dosa", UnitPrice: 100, Quantity: 2}}, Amount: 200, Currency: "INR", PaymentID: "pay1",
		PickUp: order.PickUp{Name: "R", Location: centre}, DeliverTo: subjectkeystest.DeliverTo("c1", `{"location":{"type":"Point","coordinates":[77.5946,12.98]},"address":"12","instructions":"ring twice"}`),
		Round: 2, Wave: 1, Offers: []order.Offer{{RiderID: "rider2", Wave: 1, State: order.OfferStateEnded}}, Drops: []order.Drop{{RiderID: "rider3", Round: 2}},
		CreatedAt: noon, UpdatedAt: noon.Add(time.Minute)}
}

func TestWhoMaySeeWhat(t *testing.T) {
	t.Parallel()
	q := newQueries(t)
	q.order(assigned(1))
	q.payment(payment.State{ID: orderID(1), OrderID: orderID(1), Version: 2, Status: payment.StatusPaid, CustomerID: "c1", RestaurantID: "r1", Booked: "pay1",
		Attempts: []payment.Attempt{{PaymentID: "pay1", Amount: 200, Currency: "INR", State: payment.AttemptStateBooked, GatewayStatus: "captured"}}, CreatedAt: noon})
	q.rider(rider.State{ID: "rider1", Version: 4, Name: subjectkeystest.Name("rider1", "A"), Verification: rider.Verified, Online: true, Claim: &rider.Claim{OrderID: orderID(1)}}, &centre, time.Now())
	q.rider(rider.State{ID: "rider9", Version: 1, Name: "B"}, nil, time.Time{})
	q.restaurant(restaurant.State{ID: "r1", Version: 2, Name: "R", Location: centre})
	actors := []domain.Actor{customer, otherCustomer, kitchen, otherKitchen, courier, offered, dropped, otherCourier, ops}
	for _, c := range []struct {
		path string
		want string // by actor
	}{
		//                                       cust other kit other rider off drop other ops
		{"/v1/orders/" + orderID(1), "200 404 200 404 200 200 200 404 200"},
		{"/v1/orders/" + orderID(1) + "/events", "200 404 200 404 200 200 200 404 200"},
		{"/v1/orders/" + orderID(2), "404 404 404 404 404 404 404 404 404"},
		{"/v1/orders/" + orderID(2) + "/events", "404 404 404 404 404 404 404 404 404"},
		{"/v1/orders/" + orderID(1) + "/offers", "403 403 200 404 403 403 403 403 200"},
		{"/v1/orders/" + orderID(2) + "/offers", "403 403 404 404 403 403 403 403 404"},
		{"/v1/orders/nonsense", "422 422 422 422 422 422 422 422 422"},
		{"/v1/orders", "200 200 200 200 200 200 200 200 200"},
		{"/v1/orders?customerId=c1", "200 403 403 403 403 403 403 403 200"},
		{"/v1/orders?restaurantId=r1", "403 403 200 403 403 403 403 403 200"},
		{"/v1/orders?riderId=rider1", "403 403 403 403 200 403 403 403 200"},
		{"/v1/orders?dispatch=exhausted", "403 403 403 403 403 403 403 403 200"},
		{"/v1/orders?customerId=c1&riderId=rider1", "403 403 403 403 403 403 403 403 200"},
		{"/v1/orders?cursor=nonsense", "422 422 422 422 422 422 422 422 422"},
		{"/v1/payments/" + orderID(1), "200 404 200 404 403 403 403 403 200"},
		{"/v1/payments/" + orderID(2), "404 404 404 404 403 403 403 403 404"},
		{"/v1/ops/payments?state=unmatched", "403 403 403 403 403 403 403 403 200"},
		{"/v1/riders/nearby?lat=12.97&lng=77.59", "403 403 200 200 403 403 403 403 200"},
		{"/v1/riders/rider1", "403 403 403 403 200 403 403 403 200"},
		{"/v1/riders/rider1/offers", "403 403 403 403 200 403 403 403 200"},
		{"/v1/riders/unknown", "403 403 403 403 404 404 404 404 404"},
		{"/v1/riders/unknown/offers", "403 403 403 403 404 404 404 404 404"},
		{"/v1/restaurants/r1", "200 200 200 200 200 200 200 200 200"},
		{"/v1/restaurants/unknown", "404 404 404 404 404 404 404 404 404"},
		{"/v1/restaurants/nearby?lat=12.97&lng=77.59", "200 200 200 200 200 200 200 200 200"},
	} {
		var got []string
		for _, a := range actors {
			got = append(got, fmt.Sprint(q.get(a, c.path).status))
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%s\n got %s\nwant %s", c.path, s, c.want)
		}
	}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/orders", nil)
	w := httptest.NewRecorder()
	q.api.ServeHTTP(w, r)
	if w.Code != 401 {
		t.Errorf("without token %d", w.Code)
	}
}

func TestOrderShowsWhatItsReaderMaySee(t *testing.T) {
	t.Parallel()
	q := newQueries(t)
	q.order(assigned(1))
	delivered := assigned(2)
	delivered.Status = order.StatusDelivered
	q.order(delivered)
	q.rider(rider.State{ID: "rider1", Version: 4, Name: subjectkeystest.Name("rider1", "A")}, &centre, noon)
	for _, c := range []struct {
		actor    domain.Actor
		dispatch bool
	}{{customer, false}, {kitchen, true}, {courier, false}, {ops, true}} {
		a := q.get(c.actor, "/v1/orders/"+orderID(1))
		if _, has := a.body["dispatch"]; has != c.dispatch {
			t.Errorf("%s: dispatch %v", c.actor.Role, has)
		}
		if a.header.Get("ETag") != `"3"` {
			t.Errorf("ETag %s", a.header.Get("ETag"))
		}
		want := map[string]any{"riderId": "rider1", "location": map[string]any{"type": "Point", "coordinates": []any{centre.Lng, centre.Lat}}, "recordedAt": "2026-11-01T12:00:00.123Z"}
		if text(a.body["riderLocation"]) != text(want) {
			t.Errorf("riderLocation %v", a.body["riderLocation"])
		}
		list := q.get(c.actor, "/v1/orders")
		for _, item := range list.items() {
			if _, has := item["dispatch"]; has != c.dispatch {
				t.Errorf("%s: dispatch in the list %v", c.actor.Role, has)
			}
		}
	}
	if a := q.get(customer, "/v1/orders/"+orderID(2)); a.body["riderLocation"] != nil {
		t.Errorf("riderLocation of a delivered order: %v", a.body["riderLocation"])
	}
	events := q.get(customer, "/v1/orders/"+orderID(1)+"/events").items()
	if len(events) != 3 || text(events[2]) != `{"data":{"n":3},"timestamp":"2026-11-01T12:00:00.123Z","type":"ORDER_PLACED","version":3}` {
		t.Errorf("events %s", text(events))
	}
}

func TestPaymentStatusComesFromTheOrderAndItsPayment(t *testing.T) {
	t.Parallel()
	q := newQueries(t)
	booked := []payment.Attempt{{PaymentID: "p", State: payment.AttemptStateBooked, Amount: 200, Currency: "INR", GatewayStatus: "captured"}}
	refund := func(s payment.RefundStatus) []payment.Refund {
		return []payment.Refund{{RefundID: "f", PaymentID: "p", Status: s, Amount: 200, Currency: "INR"}}
	}
	for i, c := range []struct {
		status  order.Status
		paid    bool
		payment *payment.State
		want    string
	}{
		{order.StatusPlaced, false, nil, "pending"},
		{order.StatusPlaced, false, &payment.State{Status: payment.StatusRequested}, "pending"},
		{order.StatusPlaced, false, &payment.State{Status: payment.StatusFailed}, "failed"},
		{order.StatusPlaced, false, &payment.State{Status: payment.StatusPaid, Booked: "p", Attempts: booked}, "pending"}, // ORDER_PAID is not there yet
		{order.StatusPlaced, true, &payment.State{Status: payment.StatusPaid, Booked: "p", Attempts: booked}, "paid"},
		{order.StatusCancelled, true, &payment.State{Status: payment.StatusPaid, Booked: "p", Attempts: booked}, "refund_pending"},
		{order.StatusCancelled, true, &payment.State{Status: payment.StatusRefundPending, Booked: "p", Attempts: booked, Refunds: refund(payment.RefundStatusFailed)}, "refund_pending"},
		{order.StatusCancelled, true, &payment.State{Status: payment.StatusRefunded, Booked: "p", Attempts: booked, Refunds: refund(payment.RefundStatusSucceeded)}, "refunded"},
	} {
		s := assigned(i)
		s.Status, s.PaymentID = c.status, ""
		if c.paid {
			s.PaymentID = "p"
		}
		q.order(s)
		if p := c.payment; p != nil {
			p.ID, p.OrderID, p.Version, p.CreatedAt = s.ID, s.ID, 1, noon
			q.payment(*p)
		}
		if a := q.get(customer, "/v1/orders/"+s.ID); a.body["paymentStatus"] != c.want {
			t.Errorf("case %d: %v, want %s", i, a.body["paymentStatus"], c.want)
		}
	}
}

func TestPagesHaveEveryOrderOnceThoughTimesAreEqual(t *testing.T) {
	t.Parallel()
	q := newQueries(t)
	const n = 40
	var want []string
	for i := range n {
		s := assigned(i)
		s.Status = order.Statuses[i%len(order.Statuses)]
		s.CreatedAt = noon.Add(-time.Duration(i/8) * time.Millisecond) // eight orders have the same time
		s.Exhausted = i%10 == 3
		q.order(s)
	}
	other := assigned(99)
	other.CustomerID, other.RestaurantID, other.RiderID = "c2", "r2", "rider9"
	q.order(other)
	for i := range n { // by time, then id, descending
		want = append(want, orderID(i))
	}
	slices.SortFunc(want, func(a, b string) int {
		var x, y int
		fmt.Sscanf(a[24:], "%d", &x)
		fmt.Sscanf(b[24:], "%d", &y)
		if x/8 != y/8 {
			return x/8 - y/8
		}
		return y - x
	})
	with := func(statuses ...order.Status) (ids []string) {
		for _, id := range want {
			var x int
			fmt.Sscanf(id[24:], "%d", &x)
			if slices.Contains(statuses, order.Statuses[x%len(order.Statuses)]) {
				ids = append(ids, id)
			}
		}
		return ids
	}
	for _, c := range []struct {
		actor domain.Actor
		query string
		want  []string
	}{
		{customer, "", want},
		{kitchen, "", want},
		{courier, "", want},
		{ops, "&restaurantId=r1", want},
		{ops, "&customerId=c1&restaurantId=r1&riderId=rider1", want},
		{ops, "", append([]string{orderID(99)}, want...)},
		{ops, "&customerId=c3", nil},
		{customer, "&status=placed&status=delivered", with(order.StatusPlaced, order.StatusDelivered)},
		{kitchen, "&status=placed&status=preparing", with(order.StatusPlaced, order.StatusPreparing)},
		{kitchen, "&status=rejected&status=expired&status=placed", with(order.StatusRejected, order.StatusExpired, order.StatusPlaced)},
		{courier, "&status=picked_up", with(order.StatusPickedUp)},
		{ops, "&status=cancelled", with(order.StatusCancelled)},
		{ops, "&dispatch=exhausted", with(order.StatusReadyForRider)},
	} {
		for _, limit := range []int{1, 3, 8, 200} {
			var got []string
			cursor := ""
			for {
				a := q.get(c.actor, fmt.Sprintf("/v1/orders?limit=%d%s%s", limit, c.query, cursor))
				if a.status != 200 {
					t.Fatalf("%s %q: %d %v", c.actor.Role, c.query, a.status, a.body)
				}
				for _, item := range a.items() {
					got = append(got, item["orderId"].(string))
				}
				next, more := a.body["nextCursor"].(string)
				if !more {
					break
				}
				if strings.Trim(next, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") != "" {
					t.Fatalf("cursor %q", next)
				}
				cursor = "&cursor=" + next
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("%s %q by %d:\n got %v\nwant %v", c.actor.Role, c.query, limit, got, c.want)
			}
		}
	}
}

func TestBrokenParametersAreNamed(t *testing.T) {
	t.Parallel()
	q := newQueries(t)
	for _, c := range []struct{ path, code, location string }{
		{"/v1/orders?limit=0", "validation_failed", "query.limit"},
		{"/v1/orders?limit=201", "validation_failed", "query.limit"},
		{"/v1/orders?limit=x", "validation_failed", "query.limit"},
		{"/v1/orders?status=lost", "validation_failed", "query.status"},
		{"/v1/orders?customerId=" + strings.Repeat("x", 65), "validation_failed", "query.customerId"},
		{"/v1/orders?cursor=AAAA", "invalid_cursor", "query.cursor"},
		{"/v1/orders?cursor=%00", "validation_failed", "query.cursor"},
		{"/v1/orders?cursor=" + strings.Repeat("A", 4000), "invalid_cursor", "query.cursor"},
		{"/v1/ops/payments?state=lost", "validation_failed", "query.state"},
		{"/v1/ops/payments?cursor=x", "invalid_cursor", "query.cursor"},
		{"/v1/riders/nearby?lat=91&lng=0", "validation_failed", "query.lat"},
		{"/v1/riders/nearby?lat=0", "validation_failed", "query.lng"},
		{"/v1/riders/nearby?lat=0&lng=0&radius=50001", "validation_failed", "query.radius"},
		{"/v1/riders/nearby?lat=0&lng=0&radius=0", "validation_failed", "query.radius"},
		{"/v1/riders/nearby?lat=NaN&lng=0", "validation_failed", "query.lat"},
		{"/v1/restaurants/nearby?lat=0&lng=0&open=maybe", "validation_failed", "query.open"},
		{"/v1/restaurants/a%20b", "validation_failed", "path.id"},
	} {
		a := q.get(ops, c.path)
		if a.status != 422 || a.code() != c.code || !strings.Contains(text(a.body["errors"]), `"`+c.location) {
			t.Errorf("%s: %d %v", c.path, a.status, a.body)
		}
	}
	if a := q.get(ops, "/v1/orders", "Consistency-Token", "%%%"); a.status != 422 || !strings.Contains(text(a.body["errors"]), "header.Consistency-Token") {
		t.Errorf("broken token: %d %v", a.status, a.body)
	}
}

func TestNearbyIsNearestFirstAndOnlyWhoCanCome(t *testing.T) {
	t.Parallel()
	q := newQueries(t)
	now := time.Now()
	free := func(id string) rider.State {
		return rider.State{ID: id, Version: 3, Name: subjectkeystest.Name(id, "Name "+id), Verification: rider.Verified, Online: true}
	}
	put := func(s rider.State, meters float64, at time.Time) {
		p := near(meters)
		q.rider(s, &p, at)
	}
	put(free("far"), 4000, now)
	put(free("near"), 100, now)
	put(free("mid"), 700, now)
	put(free("outside"), 5100, now)
	put(free("stale"), 10, now.Add(-6*time.Minute))
	s := free("offline")
	s.Online = false
	put(s, 20, now)
	s = free("busy")
	s.Claim = &rider.Claim{OrderID: orderID(1)}
	put(s, 20, now)
	s = free("suspended")
	s.Verification = rider.Suspended
	put(s, 20, now)
	q.rider(free("nowhere"), nil, now)
	at := fmt.Sprintf("?lat=%v&lng=%v", centre.Lat, centre.Lng)
	a := q.get(kitchen, "/v1/riders/nearby"+at)
	if a.ids("riderId") != "near mid far" || a.ids("distanceMeters") != "100 700 4000" || a.ids("name") != "Name near Name mid Name far" {
		t.Errorf("%s", text(a.body))
	}
	if a := q.get(kitchen, "/v1/riders/nearby"+at+"&radius=800&limit=1"); a.ids("riderId") != "near" {
		t.Errorf("%s", text(a.body))
	}

	q.restaurant(restaurant.State{ID: "a", Version: 3, Name: "A", Location: near(500), Open: true,
		Menu: map[string]restaurant.MenuItem{"i": {ItemID: "i", Name: "Dosa", Price: domain.Money{Amount: 100, Currency: "INR"}, Available: true}}})
	q.restaurant(restaurant.State{ID: "b", Version: 1, Name: "B", Location: near(200)})
	q.restaurant(restaurant.State{ID: "c", Version: 1, Name: "C", Location: near(9000)})
	for query, want := range map[string]string{"": "b a", "&open=true": "a", "&open=false": "b", "&radius=300": "b", "&radius=10000": "b a c"} {
		if a := q.get(customer, "/v1/restaurants/nearby"+at+query); a.ids("restaurantId") != want {
			t.Errorf("%q: %s", query, text(a.body))
		}
	}
	one := q.get(customer, "/v1/restaurants/a")
	if one.header.Get("ETag") != `"3"` || text(one.body["menu"]) != `[{"available":true,"itemId":"i","name":"Dosa","price":{"amount":100,"currency":"INR"}}]` {
		t.Errorf("%v", one)
	}
	r := q.get(ops, "/v1/riders/busy")
	if r.body["status"] != "busy" || r.body["orderId"] != orderID(1) || r.body["location"] == nil || r.header.Get("ETag") != `"3"` {
		t.Errorf("%v", r)
	}
	if r := q.get(ops, "/v1/riders/nowhere"); r.body["status"] != "available" || r.body["location"] != nil {
		t.Errorf("%v", r)
	}
}

func TestOffersAreThoseStillOpenToAFreeRider(t *testing.T) {
	t.Parallel()
	q := newQueries(t)
	q.rider(rider.State{ID: "rider1", Version: 3, Name: "A", Verification: rider.Verified, Online: true}, nil, time.Time{})
	q.rider(rider.State{ID: "rider2", Version: 3, Name: "B", Verification: rider.Verified}, nil, time.Time{})
	q.rider(rider.State{ID: "rider3", Version: 3, Name: "C", Verification: rider.Verified, Online: true, Claim: &rider.Claim{OrderID: orderID(1)}}, nil, time.Time{})
	for n, states := range [][]order.OfferState{{order.OfferStateOpen, order.OfferStateOpen, order.OfferStateOpen}, {order.OfferStateDeclined, order.OfferStateOpen, order.OfferStateOpen}, {order.OfferStateOpen}} {
		s := assigned(n)
		s.Status, s.RiderID, s.WaveOpen, s.WaveEndsAt, s.Offers = order.StatusReadyForRider, "", true, noon.Add(time.Duration(10-n)*time.Second), nil
		for i, state := range states {
			s.Offers = append(s.Offers, order.Offer{RiderID: fmt.Sprintf("rider%d", i+1), Wave: 1, DistanceMeters: 100 * (n + 1), State: state})
		}
		q.order(s)
	}
	ended := assigned(7)
	ended.Status, ended.Offers = order.StatusReadyForRider, []order.Offer{{RiderID: "rider1", Wave: 1, State: order.OfferStateEnded}}
	q.order(ended)
	a := q.get(courier, "/v1/riders/rider1/offers")
	want := fmt.Sprintf(`[{"distanceMeters":300,"expiresAt":"2026-11-01T12:00:08.123Z","location":{"coordinates":[77.5946,12.9716],"type":"Point"},"orderId":"%s","restaurantId":"r1"},`+
		`{"distanceMeters":100,"expiresAt":"2026-11-01T12:00:10.123Z","location":{"coordinates":[77.5946,12.9716],"type":"Point"},"orderId":"%s","restaurantId":"r1"}]`, orderID(2), orderID(0))
	if text(a.body["items"]) != want {
		t.Errorf("got %s", text(a.body["items"]))
	}
	for _, id := range []string{"rider2", "rider3"} {
		if a := q.get(ops, "/v1/riders/"+id+"/offers"); a.status != 200 || len(a.items()) != 0 {
			t.Errorf("%s: %v", id, a.body)
		}
	}
}

func TestOpsSeePaymentsThatWaitForThem(t *testing.T) {
	t.Parallel()
	q := newQueries(t)
	for i := range 5 {
		q.payment(payment.State{ID: fmt.Sprintf("pay_%d", i), Version: 1, GatewayOrderID: "g", CreatedAt: noon,
			Attempts: []payment.Attempt{{PaymentID: fmt.Sprintf("pay_%d", i), Amount: 5, Currency: "INR", State: payment.AttemptStateUnmatched, GatewayStatus: "captured", Reason: "unknown_order"}}})
	}
	q.payment(payment.State{ID: orderID(1), OrderID: orderID(1), Version: 1, Status: payment.StatusRequested, CreatedAt: noon})
	var got []string
	cursor := ""
	for {
		a := q.get(ops, "/v1/ops/payments?state=unmatched&limit=2"+cursor)
		for _, item := range a.items() {
			got = append(got, text(item["payments"]))
		}
		next, more := a.body["nextCursor"].(string)
		if !more {
			break
		}
		cursor = "&cursor=" + next
	}
	if len(got) != 5 || got[0] != `[{"amount":5,"currency":"INR","gatewayStatus":"captured","paymentId":"pay_4","reason":"unknown_order","state":"unmatched"}]` {
		t.Errorf("%v", got)
	}
	if a := q.get(ops, "/v1/ops/payments?state=refund_failed"); len(a.items()) != 0 {
		t.Errorf("%v", a.body)
	}
	if a := q.get(ops, "/v1/payments/"+orderID(1)); text(a.body["payments"]) != "[]" || text(a.body["refunds"]) != "[]" || a.body["state"] != "requested" {
		t.Errorf("%v", a.body)
	}
}

func TestAReadModelBehindIs503AndAnAbsentDatabaseToo(t *testing.T) {
	t.Parallel()
	q := newQueries(t)
	token := eventlog.Token{{Topic: eventlog.Orders, Partition: 2}: 17}
	if a := q.get(ops, "/v1/orders", "Consistency-Token", eventlog.LogID{}.Format(token.String())); a.status != 200 || text(q.seen.String()) != text(token.String()) {
		t.Errorf("%d, token %v", a.status, q.seen)
	}
	q.passed = eventlog.Token{{Topic: eventlog.Orders, Partition: 1}: 40}
	for _, path := range []string{"/v1/orders", "/v1/riders/nearby?lat=1&lng=1", "/v1/restaurants/nearby?lat=1&lng=1", "/v1/ops/payments"} {
		if a := q.get(ops, path); a.header.Get("Consistency-Token") != (eventlog.LogID{}).Format(q.passed.String()) {
			t.Errorf("%s: %d, with the token %q", path, a.status, a.header.Get("Consistency-Token"))
		}
	}
	for name, header := range map[string]string{"of other logs": eventlog.LogID{1}.Format(token.String()), "malformed": "x", "without its logs": token.String()} {
		want := "validation_failed"
		if name == "of other logs" {
			want = "unknown_consistency_token"
		}
		if a := q.get(ops, "/v1/orders", "Consistency-Token", header); a.status != 422 || a.code() != want {
			t.Errorf("a token %s: %d %v", name, a.status, a.body)
		}
	}
	q.fails = eventlog.ErrUnknownToken // as for a token that is beyond the end
	if a := q.get(ops, "/v1/orders/"+orderID(1)); a.status != 422 || a.code() != "unknown_consistency_token" {
		t.Errorf("%d %v", a.status, a.body)
	}
	q.fails = eventlog.ErrBehind
	if a := q.get(ops, "/v1/orders/"+orderID(1)); a.status != 503 || a.code() != "read_model_behind" || a.header.Get("Retry-After") == "" {
		t.Errorf("%d %v", a.status, a.body)
	}
	q.fails = nil
	q.exec(`SELECT 1`)
	// End all connections to the database, and allow no new ones.
	name := q.db.Config().ConnConfig.Database
	admin := q.db.Config().ConnConfig.Copy()
	admin.Database = "postgres"
	conn, err := pgx.ConnectConfig(t.Context(), admin)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	for _, sql := range []string{`ALTER DATABASE ` + name + ` ALLOW_CONNECTIONS false`, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '` + name + `'`} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		if a := q.get(ops, "/v1/orders"); a.status != 503 || a.header.Get("Retry-After") == "" {
			t.Errorf("%d %v", a.status, a.body)
		}
	}
	if _, err := conn.Exec(t.Context(), `ALTER DATABASE `+name+` ALLOW_CONNECTIONS true`); err != nil {
		t.Fatal(err)
	}
	if a := q.get(ops, "/v1/orders"); a.status != 200 {
		t.Errorf("back: %d %v", a.status, a.body)
	}
}

func TestTheDocumentDescribesTheQueries(t *testing.T) {
	t.Parallel()
	q := newQueries(t)
	a := q.get(ops, "/openapi.json")
	paths, _ := a.body["paths"].(map[string]any)
	for _, p := range []string{"/v1/orders", "/v1/orders/{id}", "/v1/orders/{id}/events", "/v1/orders/{id}/offers", "/v1/payments/{orderId}", "/v1/ops/payments", "/v1/riders/nearby",
		"/v1/riders/{id}", "/v1/riders/{id}/offers", "/v1/restaurants/nearby", "/v1/restaurants/{id}"} {
		if paths[p] == nil {
			t.Errorf("%s is not described", p)
		}
	}
}
