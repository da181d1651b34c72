package gateway

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"

	"tomato/eventlog"
	"tomato/migrations"
	"tomato/migrations/postgrestest"
)

const wait = 20 * time.Second

// endpoint stands in for our webhook endpoint and keeps what the gateway sends to it.
type endpoint struct {
	*httptest.Server
	got chan received
}

type received struct {
	event, id string
	hook      Webhook
	signed    int // 1 if the first secret signed it, 2 if the last one did, else 0
}

var secrets = []string{"new secret", "old secret"}

// newEndpoint returns an endpoint that answers with the statuses one after the other,
// then with 200.
func newEndpoint(t *testing.T, statuses ...int) *endpoint {
	e := &endpoint{got: make(chan received, 100)}
	next := make(chan int, len(statuses))
	for _, s := range statuses {
		next <- s
	}
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		hook, err := ParseWebhook(b)
		if err != nil {
			t.Errorf("a webhook that is none: %v", err)
		}
		rec := received{event: hook.Event, id: r.Header.Get(EventIDHeader), hook: hook}
		switch sig := r.Header.Get(SignatureHeader); {
		case Verify(secrets[:1], b, sig):
			rec.signed = 1
		case Verify(secrets[1:], b, sig):
			rec.signed = 2
		}
		e.got <- rec
		select {
		case s := <-next:
			w.WriteHeader(s)
		default:
		}
	}))
	t.Cleanup(e.Close)
	return e
}

func (e *endpoint) take(t *testing.T, n int) (rs []received) {
	t.Helper()
	timeout := time.After(wait)
	for len(rs) < n {
		select {
		case r := <-e.got:
			rs = append(rs, r)
		case <-timeout:
			t.Fatalf("%d webhooks of %d came: %+v", len(rs), n, rs)
		}
	}
	return rs
}

func events(rs []received) (names []string) {
	for _, r := range rs {
		names = append(names, r.event)
	}
	return names
}

func database(t *testing.T) *pgxpool.Pool {
	t.Helper()
	url := postgrestest.URL(t)
	if err := migrations.Core(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	db, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	return db
}

// run runs the gateway until the test ends or stop is called.
func run(t *testing.T, g *Simulated) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := g.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

func drained(t *testing.T, db *pgxpool.Pool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(wait); ; <-tick.C {
		var n int
		if err := db.QueryRow(t.Context(), `SELECT count(*) FROM simulated_gateway.webhooks`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d webhooks are left", n)
		}
	}
}

func TestSimulatedFaults(t *testing.T) {
	t.Parallel()
	db := database(t)
	e := newEndpoint(t)
	g := NewSimulated(db, e.URL, secrets, nil)
	run(t, g)
	for _, c := range []struct {
		name   string
		pay    Pay
		want   []string
		signed int
	}{
		{"captured", Pay{Outcome: "captured"}, []string{EventPaymentCaptured, EventOrderPaid}, 1},
		{"authorized", Pay{Outcome: "authorized"}, []string{EventPaymentAuthorized}, 1},
		{"failed", Pay{Outcome: "failed"}, []string{EventPaymentFailed}, 1},
		{"duplicate", Pay{Outcome: "captured", Faults: []Fault{FaultDuplicate}}, []string{EventPaymentCaptured, EventPaymentCaptured, EventOrderPaid, EventOrderPaid}, 1},
		{"reordered", Pay{Outcome: "captured", Faults: []Fault{FaultReordered}}, []string{EventOrderPaid, EventPaymentCaptured, EventPaymentAuthorized}, 1},
		{"dropped", Pay{Outcome: "captured", Faults: []Fault{FaultDropped, FaultDuplicate}}, nil, 0},
		{"wrong_signature", Pay{Outcome: "captured", Faults: []Fault{FaultWrongSignature}}, []string{EventPaymentCaptured, EventOrderPaid}, 0},
		{"old_secret", Pay{Outcome: "captured", Faults: []Fault{FaultOldSecret}}, []string{EventPaymentCaptured, EventOrderPaid}, 2},
		{"other amount", Pay{Outcome: "captured", Amount: 7, Currency: "USD", PaymentID: "pay_chosen"}, []string{EventPaymentCaptured, EventOrderPaid}, 1},
	} {
		o, err := g.CreateOrder(t.Context(), "o-"+c.name, 45000, "INR")
		if err != nil {
			t.Fatal(err)
		}
		id, err := g.Pay(t.Context(), o.GatewayOrderID, c.pay)
		if err != nil {
			t.Fatal(err)
		}
		drained(t, db)
		rs := e.take(t, len(c.want))
		if d := cmp.Diff(c.want, events(rs)); d != "" {
			t.Errorf("%s: -want +got\n%s", c.name, d)
		}
		want := Payment{PaymentID: id, GatewayOrderID: o.GatewayOrderID, Amount: 45000, Currency: "INR", Status: c.pay.Outcome}
		if c.pay.Amount != 0 {
			want.PaymentID, want.Amount, want.Currency = "pay_chosen", 7, "USD"
		}
		if c.pay.Outcome == StatusFailed {
			want.Reason = "Payment failed"
		}
		for _, r := range rs {
			if r.signed != c.signed {
				t.Errorf("%s: %s is signed by %d, want %d", c.name, r.event, r.signed, c.signed)
			}
			if got := *r.hook.Payment; r.event != EventPaymentAuthorized && got != want {
				t.Errorf("%s: %s holds %+v, want %+v", c.name, r.event, got, want)
			}
		}
		if c.name == "duplicate" && (rs[0].id != rs[1].id || rs[1].id == rs[2].id) {
			t.Errorf("event ids %v: a redelivery has the same", rs)
		}
		ps, err := g.Payments(t.Context(), o.GatewayOrderID)
		if d := cmp.Diff([]Payment{want}, ps); d != "" || err != nil {
			t.Errorf("%s: listed: %v\n%s", c.name, err, d)
		}
	}
	select {
	case r := <-e.got:
		t.Errorf("one webhook too many: %+v", r)
	default:
	}
}

func TestSimulatedKnowsWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	g, ctx := NewSimulated(database(t), "http://127.0.0.1:1", secrets, nil), t.Context()
	if _, err := g.Order(ctx, "order_none"); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
	if _, err := g.Payments(ctx, "order_none"); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
	if _, err := g.Payment(ctx, "pay_none"); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
	if _, err := g.RefundState(ctx, "pay_none", "r"); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
	if _, err := g.Refund(ctx, Refund{PaymentID: "pay_none", RefundID: "r-0123456789", Amount: 1}); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
	if _, err := g.Pay(ctx, "order_none", Pay{Outcome: "captured"}); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
	a, _ := g.CreateOrder(ctx, "a", 1, "INR")
	b, _ := g.CreateOrder(ctx, "b", 1, "INR")
	if _, err := g.Pay(ctx, a.GatewayOrderID, Pay{Outcome: "failed", PaymentID: "pay_1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Pay(ctx, b.GatewayOrderID, Pay{Outcome: "captured", PaymentID: "pay_1"}); !errors.Is(err, ErrPaymentTaken) {
		t.Error(err)
	}
	if p, err := g.Payment(ctx, "pay_1"); p.Status != "failed" || p.GatewayOrderID != a.GatewayOrderID || err != nil {
		t.Error(p, err)
	}
	if _, err := g.Pay(ctx, a.GatewayOrderID, Pay{Outcome: "captured", PaymentID: "pay_1"}); err != nil {
		t.Error(err)
	}
	if p, err := g.Payment(ctx, "pay_1"); p.Status != StatusCaptured || err != nil {
		t.Error(p, err)
	}
	gone, err := pgxpool.New(ctx, "postgres://nobody@127.0.0.1:1/none?connect_timeout=1")
	if err != nil {
		t.Fatal(err)
	}
	defer gone.Close()
	if _, err := NewSimulated(gone, "", secrets, nil).Order(ctx, "order_1"); !errors.Is(err, eventlog.ErrUnavailable) {
		t.Errorf("a database that is unavailable gave a definite answer: %v", err)
	}
}

func TestSimulatedRefund(t *testing.T) {
	t.Parallel()
	db := database(t)
	e := newEndpoint(t)
	g, ctx := NewSimulated(db, e.URL, secrets, nil), t.Context()
	run(t, g)
	// Our endpoint has accepted a webhook that the simulated gateway never sent.
	if err := g.Accepted(ctx, Payment{PaymentID: "pay_x", GatewayOrderID: "order_x", Amount: 100, Currency: "INR", Status: "authorized"}); err != nil {
		t.Fatal(err)
	}
	f := Refund{PaymentID: "pay_x", RefundID: "refund-0001", AggregateID: "o-1", Amount: 100}
	if _, err := g.Refund(ctx, f); !errors.Is(err, ErrRefused) {
		t.Fatalf("nothing is captured yet: %v", err)
	}
	for range 2 {
		if err := g.Accepted(ctx, Payment{PaymentID: "pay_x", GatewayOrderID: "order_x", Amount: 100, Currency: "INR", Status: "captured"}); err != nil {
			t.Fatal(err)
		}
	}
	if ps, err := g.Payments(ctx, "order_x"); len(ps) != 1 || ps[0].Status != "captured" || err != nil {
		t.Fatal(ps, err)
	}
	more := f
	more.Amount, more.RefundID = 101, "refund-0002"
	if _, err := g.Refund(ctx, more); !errors.Is(err, ErrRefused) {
		t.Errorf("more than was captured: %v", err)
	}
	for range 3 {
		if _, err := g.Refund(ctx, f); err != nil {
			t.Fatal(err)
		}
	}
	other := f
	other.Amount = 99
	if _, err := g.Refund(ctx, other); !errors.Is(err, ErrRefused) {
		t.Errorf("another body under the same key: %v", err)
	}
	rs := e.take(t, 1)
	want := Webhook{Event: EventRefundProcessed, Refund: &RefundNotice{GatewayRefundID: rs[0].hook.Refund.GatewayRefundID, PaymentID: "pay_x",
		GatewayOrderID: "order_x", RefundID: "refund-0001", AggregateID: "o-1", Amount: 100}}
	if d := cmp.Diff(want, rs[0].hook); d != "" {
		t.Error(d)
	}
	if s, err := g.RefundState(ctx, "pay_x", "refund-0001"); s != RefundProcessed || err != nil {
		t.Error(s, err)
	}
	if p, err := g.Payment(ctx, "pay_x"); p.Status != StatusRefunded || err != nil {
		t.Error(p, err)
	}
	again := f
	again.RefundID = "refund-0003"
	if _, err := g.Refund(ctx, again); !errors.Is(err, ErrRefused) {
		t.Errorf("all of it is refunded: %v", err)
	}
	drained(t, db)
	select {
	case r := <-e.got:
		t.Errorf("one webhook too many: %+v", r)
	default:
	}
}

// The webhooks that are to be sent are in the database. So if an instance ends before
// their time has come, or while it sends them, another instance sends them.
func TestSimulatedSurvivesRestart(t *testing.T) {
	t.Parallel()
	db := database(t)
	ctx := t.Context()
	e := newEndpoint(t, 503, 500)
	first := NewSimulated(db, e.URL, secrets, nil)
	o, err := first.CreateOrder(ctx, "o-1", 45000, "INR")
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, first)
	id, err := first.Pay(ctx, o.GatewayOrderID, Pay{Outcome: "captured", Delay: 3 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if ps, err := first.Payments(ctx, o.GatewayOrderID); len(ps) != 0 || err != nil {
		t.Errorf("before its time: %v, %v", ps, err)
	}
	stop()
	if len(e.got) > 0 {
		t.Fatal("the gateway sent before the delay was over, or could not be stopped within it")
	}
	second, third := NewSimulated(db, e.URL, secrets, nil), NewSimulated(db, e.URL, secrets, nil)
	run(t, second)
	run(t, third)
	drained(t, db)
	names := events(e.take(t, 4)) // two of them were answered 5xx and were sent again
	slices.Sort(names)
	if d := cmp.Diff([]string{EventOrderPaid, EventOrderPaid, EventPaymentCaptured, EventPaymentCaptured}, names); d != "" {
		t.Error(d)
	}
	if len(e.got) > 0 {
		t.Errorf("%d webhooks too many: instances share the work", len(e.got))
	}
	if ps, err := second.Payments(ctx, o.GatewayOrderID); len(ps) != 1 || ps[0].PaymentID != id || err != nil {
		t.Error(ps, err)
	}
}

// A webhook without an answer is kept, and a webhook that is refused is not sent again.
func TestSimulatedRetries(t *testing.T) {
	t.Parallel()
	db := database(t)
	e := newEndpoint(t, 401, 429)
	g := NewSimulated(db, e.URL, secrets, nil)
	o, err := g.CreateOrder(t.Context(), "o-1", 1, "INR")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Pay(t.Context(), o.GatewayOrderID, Pay{Outcome: "captured"}); err != nil {
		t.Fatal(err)
	}
	run(t, g)
	drained(t, db)
	if d := cmp.Diff([]string{EventPaymentCaptured, EventOrderPaid, EventOrderPaid}, events(e.take(t, 3))); d != "" {
		t.Error(d)
	}
}
