package commandside

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tomato/commandside/gateway"
	"tomato/commandside/shard"
	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/eventlogtest"
	"tomato/httpapi"
	"tomato/migrations"
	"tomato/migrations/postgrestest"
)

const (
	testPartitions = 3
	testWait       = 20 * time.Second
	jwtSecret      = "the JWT secret of the payment tests"
)

var testSecrets = []string{"new webhook secret", "old webhook secret"}

// memoryShards decide as the shards do, in memory.
type memoryShards struct {
	mu       sync.Mutex
	orders   map[string]order.State
	payments map[string]payment.State
	log      []eventlog.Event
	away     bool
	requests []shard.Request
}

func (m *memoryShards) Execute(_ context.Context, r shard.Request) (shard.Result, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.requests = append(m.requests, r)
	if m.away {
		return shard.Result{}, shard.ErrUnavailable
	}
	now := time.Now()
	o, held := m.orders[r.ID]
	p := m.payments[r.ID]
	if held {
		if err := order.Authorize(&o, r.Command, r.Actor); err != nil {
			return shard.Result{}, err
		}
	} else if r.Topic == eventlog.Orders {
		return shard.Result{}, domain.Refuse(domain.NotFound, "no such order")
	}
	var ev domain.Event
	var err error
	version := int64(0)
	if r.Topic == eventlog.Orders {
		var e order.Event
		if e, err = order.Decide(&o, r.Command, now); e != nil {
			o = order.Evolve(o, e, domain.Time(now))
			m.orders[r.ID], ev, version = o, e, o.Version
		}
	} else {
		if _, asks := r.Command.(payment.RequestPayment); asks && !held {
			return shard.Result{}, domain.Refuse(domain.NotFound, "no such order")
		}
		c := payment.WithOrder(r.Command, payment.OrderFacts{Payable: o.Payable(), Ended: o.Status.Ended(), Status: string(o.Status),
			Amount: o.Amount, Currency: o.Currency, CustomerID: o.CustomerID, RestaurantID: o.RestaurantID})
		var e payment.Event
		if e, err = payment.Decide(&p, c, now); e != nil {
			p = payment.Evolve(p, e, domain.Time(now))
			m.payments[r.ID], ev, version = p, e, p.Version
		}
	}
	if ev != nil {
		data, _ := json.Marshal(ev)
		m.log = append(m.log, eventlog.Event{ID: fmt.Sprintf("event-%d", len(m.log)), Type: ev.EventType(), Subject: r.ID, Topic: r.Topic, Version: version,
			Time: domain.Time(now), CausationID: r.CausationID, Traceparent: r.Traceparent, Data: data})
	}
	res := shard.Result{Event: ev, Status: 200}
	if held {
		res.Order = &o
	}
	if p.Exists() {
		res.Payment = &p
	}
	return res, err
}

// index is the payments read model, which sees what has happened only when it
// is made to.
type index struct {
	shards *memoryShards
	mu     sync.Mutex
	behind bool // sees nothing until somebody waits for it
	caught int  // how often somebody waited
	away   bool
}

func (i *index) OrderOf(_ context.Context, gatewayOrderID string, after eventlog.Token) (string, bool, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.away {
		return "", false, eventlog.ErrBehind
	}
	if after != nil {
		i.caught++
	} else if i.behind {
		return "", false, nil
	}
	i.shards.mu.Lock()
	defer i.shards.mu.Unlock()
	for id, p := range i.shards.payments {
		if p.OrderID != "" && p.GatewayOrderID == gatewayOrderID {
			return id, true, nil
		}
	}
	return "", false, nil
}

type inboxProgress struct{ next int64 }

func (p *inboxProgress) Passed(_ context.Context, consumer, topic string, _ int32, offset int64, _ string) (bool, error) {
	return consumer == "record-payment" && topic == eventlog.PaymentWebhooks && p.next > offset, nil
}

// world is the payment part of the command side with everything around it: a
// broker for the inbox, Postgres, the simulated gateway, HTTP.
type world struct {
	*Side
	t       *testing.T
	shards  *memoryShards
	index   *index
	sim     *gateway.Simulated
	db      *pgxpool.Pool
	cluster *kfake.Cluster
	http    *httptest.Server
	read    map[int32]int64 // of the inbox, by partition
	told    int             // of the shards' events
	dead    []error         // poison
}

func newWorld(t *testing.T) *world {
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
	cfg, cluster := eventlogtest.Faulty(t)
	eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: testPartitions})
	auth, err := httpapi.NewAuthenticator(httpapi.AuthConfig{Secret: jwtSecret})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(auth.Close)
	w := &world{t: t, db: db, cluster: cluster, read: map[int32]int64{},
		shards: &memoryShards{orders: map[string]order.State{}, payments: map[string]payment.State{}}}
	w.index = &index{shards: w.shards}
	quiet := slog.New(slog.DiscardHandler)
	w.Side = &Side{Config: Config{AcceptTTL: 10 * time.Minute, ArchiveAfter: 720 * time.Hour, WebhookSecrets: testSecrets, CommandDeadline: 5 * time.Second},
		Commands: w.shards, Producer: eventlogtest.Client(t, cfg, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0), kgo.ProducerBatchMaxBytes(2<<20)),
		Kafka: cfg, Partitions: testPartitions, DB: db, Log: quiet, GatewayOrders: w.index, Inbox: &inboxProgress{}}
	api := httpapi.New(httpapi.Options{Auth: auth, Log: quiet})
	w.paymentRoutes(api)
	w.http = httptest.NewServer(api)
	t.Cleanup(w.http.Close)
	w.sim = gateway.NewSimulated(db, w.http.URL+"/v1/webhooks/razorpay", testSecrets, quiet)
	w.Gateway = w.sim
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = w.sim.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return w
}

// place makes an order of c-1 at r-1 over 450.00 INR.
func (w *world) place(id string) {
	e := order.OrderPlaced{OrderID: id, CustomerID: "c-1", RestaurantID: "r-1", Amount: 45000, Currency: "INR",
		Items: []order.Item{{ItemID: "i-1", Name: "Dosa", UnitPrice: 45000, Quantity: 1}}}
	w.shards.mu.Lock()
	defer w.shards.mu.Unlock()
	w.shards.orders[id] = order.Evolve(order.State{}, e, domain.Time(time.Now()))
}

// order does something to an order.
func (w *world) order(id string, c domain.Command) {
	w.t.Helper()
	if _, err := w.shards.Execute(w.t.Context(), shard.Request{Topic: eventlog.Orders, ID: id, Actor: domain.SystemActor, Command: c}); err != nil {
		w.t.Fatal(err)
	}
}

var (
	customer = domain.Actor{Sub: "c-1", Role: domain.Customer}
	stranger = domain.Actor{Sub: "c-2", Role: domain.Customer}
	ops      = domain.Actor{Sub: "ops-1", Role: domain.Ops}
)

type response struct {
	status int
	header http.Header
	body   map[string]any
}

func (w *world) call(actor domain.Actor, path, body string, header ...string) response {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), "POST", w.http.URL+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	if actor.Sub != "" {
		token, err := httpapi.MintToken(jwtSecret, actor, time.Hour)
		if err != nil {
			w.t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	r := response{status: resp.StatusCode, header: resp.Header}
	if len(b) > 0 {
		if err := json.Unmarshal(b, &r.body); err != nil {
			w.t.Fatalf("%s answered %q", path, b)
		}
	}
	return r
}

// open places an order, opens its payment and returns the gateway order.
func (w *world) open(id string) string {
	w.t.Helper()
	w.place(id)
	r := w.call(customer, "/v1/orders/"+id+"/payment", "")
	if r.status != 200 {
		w.t.Fatalf("/payment: %+v", r)
	}
	return r.body["gatewayOrderId"].(string)
}

// pay makes the simulated gateway act, and lets everything come to rest.
func (w *world) pay(gatewayOrderID, body string) string {
	w.t.Helper()
	r := w.call(customer, "/v1/simulated-gateway/orders/"+gatewayOrderID+"/pay", body)
	if r.status != 202 {
		w.t.Fatalf("pay: %+v", r)
	}
	w.settle()
	return r.body["paymentId"].(string)
}

// webhook posts a webhook of the test's own, signed with the first secret.
func (w *world) webhook(body string) response {
	return w.call(domain.Actor{}, "/v1/webhooks/razorpay", body, gateway.SignatureHeader, gateway.Sign(testSecrets[0], []byte(body)), gateway.EventIDHeader, "evt_1")
}

func captured(gatewayOrderID, paymentID string, amount int, currency string) string {
	return fmt.Sprintf(`{"event":"payment.captured","payload":{"payment":{"entity":{"id":%q,"amount":%d,"currency":%q,"status":"captured","order_id":%q,"notes":[]}}}}`,
		paymentID, amount, currency, gatewayOrderID)
}

// inbox returns the records that are new in the inbox.
func (w *world) inbox() (es []eventlog.Event) {
	w.t.Helper()
	ends, err := kadm.NewClient(w.Producer).ListEndOffsets(w.t.Context(), eventlog.PaymentWebhooks)
	if err != nil {
		w.t.Fatal(err)
	}
	ranges := map[eventlog.TopicPartition]eventlog.Range{}
	ends.Each(func(o kadm.ListedOffset) {
		ranges[eventlog.TopicPartition{Topic: o.Topic, Partition: o.Partition}] = eventlog.Range{From: w.read[o.Partition], To: o.Offset}
		w.read[o.Partition] = o.Offset
	})
	err = eventlog.Read(w.t.Context(), w.Kafka, ranges, func(e *eventlog.Event) error {
		es = append(es, *e)
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return es
}

// settle lets webhooks, policies and refunds go on until nothing is under way.
// Every event is given to every policy twice: the effects are idempotent.
func (w *world) settle() {
	w.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(testWait); ; <-tick.C {
		var left int
		if err := w.db.QueryRow(w.t.Context(), `SELECT count(*) FROM simulated_gateway.webhooks WHERE due_at < now() + interval '2 minutes'`).Scan(&left); err != nil {
			w.t.Fatal(err)
		}
		new := w.inbox()
		w.shards.mu.Lock()
		new = append(new, w.shards.log[w.told:]...)
		w.told = len(w.shards.log)
		w.shards.mu.Unlock()
		for _, e := range new {
			for range 2 {
				w.give(e)
			}
		}
		if left == 0 && len(new) == 0 {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("no rest: %d webhooks, %d events", left, len(new))
		}
	}
}

func (w *world) give(e eventlog.Event) {
	w.t.Helper()
	for _, c := range []consumer.Consumer{w.RecordPayment(), w.PayOrder(), w.RefundOrder(), w.Refund(), w.Reconcile()} {
		if !slices.Contains(c.Topics, e.Topic) {
			continue
		}
		if err := c.Each(w.t.Context(), e); errors.Is(err, eventlog.ErrPoison) {
			w.dead = append(w.dead, err)
		} else if err != nil {
			w.t.Fatalf("%s on %s: %v", c.Name, e.Type, err)
		}
	}
}

// events are the types of an aggregate's events, in both topics.
func (w *world) events(id string) []string {
	w.shards.mu.Lock()
	defer w.shards.mu.Unlock()
	var types []string
	for _, e := range w.shards.log {
		if e.Subject == id {
			types = append(types, e.Type)
		}
	}
	return types
}

func (w *world) wantEvents(id string, want ...string) {
	w.t.Helper()
	if d := cmp.Diff(want, w.events(id)); d != "" {
		w.t.Errorf("events of %s: -want +got\n%s", id, d)
	}
}

func (w *world) state(id string) payment.State {
	w.shards.mu.Lock()
	defer w.shards.mu.Unlock()
	return w.shards.payments[id]
}

func (w *world) attempt(id, paymentID string) (payment.Attempt, bool) {
	s := w.state(id)
	return s.Attempt(paymentID)
}

// refunds are what went back at the gateway, by payment.
func (w *world) refunds() map[string]int64 {
	w.t.Helper()
	rows, err := w.db.Query(w.t.Context(), `SELECT payment_id, amount FROM simulated_gateway.refunds`)
	if err != nil {
		w.t.Fatal(err)
	}
	defer rows.Close()
	got := map[string]int64{}
	for rows.Next() {
		var id string
		var amount int64
		if err := rows.Scan(&id, &amount); err != nil {
			w.t.Fatal(err)
		}
		got[id] += amount
	}
	return got
}

func (w *world) wantRefunds(want map[string]int64) {
	w.t.Helper()
	if d := cmp.Diff(want, w.refunds()); d != "" {
		w.t.Errorf("refunds at the gateway: -want +got\n%s", d)
	}
}

// One capture, told in many ways, pays once.
func TestCapturedPaysOnce(t *testing.T) {
	t.Parallel()
	for _, faults := range []string{``, `"duplicate"`, `"reordered"`, `"duplicate","reordered"`, `"old_secret"`} {
		t.Run(faults, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			id := w.pay(w.open("01990000-0000-7000-8000-000000000001"), `{"outcome":"captured","faults":[`+faults+`]}`)
			w.wantEvents("01990000-0000-7000-8000-000000000001", "PAYMENT_REQUESTED", "PAYMENT_SUCCESS", "ORDER_PAID")
			if s := w.state("01990000-0000-7000-8000-000000000001"); s.Booked != id {
				t.Errorf("booked %q, want %q", s.Booked, id)
			}
			w.wantRefunds(map[string]int64{})
		})
	}
}

func TestOnlyCapturedMoneyPays(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	g := w.open("01990000-0000-7000-8000-000000000001")
	id := w.pay(g, `{"outcome":"authorized"}`)
	w.wantEvents("01990000-0000-7000-8000-000000000001", "PAYMENT_REQUESTED")
	// An event that is called captured and holds what is not.
	if r := w.webhook(strings.Replace(captured(g, "pay_x", 45000, "INR"), `"status":"captured"`, `"status":"authorized"`, 1)); r.status != 200 {
		t.Fatal(r)
	}
	w.settle()
	w.wantEvents("01990000-0000-7000-8000-000000000001", "PAYMENT_REQUESTED")
	w.pay(g, `{"outcome":"failed"}`)
	w.wantEvents("01990000-0000-7000-8000-000000000001", "PAYMENT_REQUESTED", "PAYMENT_FAILED")
	w.pay(g, `{"outcome":"captured","paymentId":"`+id+`"}`)
	w.wantEvents("01990000-0000-7000-8000-000000000001", "PAYMENT_REQUESTED", "PAYMENT_FAILED", "PAYMENT_SUCCESS", "ORDER_PAID")
}

// Money of another amount or currency goes back exactly, and the order stays
// payable.
func TestOtherAmountOrCurrency(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	g := w.open("01990000-0000-7000-8000-000000000001")
	less := w.pay(g, `{"outcome":"captured","amount":44999}`)
	dollars := w.pay(g, `{"outcome":"captured","currency":"USD"}`)
	w.wantEvents("01990000-0000-7000-8000-000000000001", "PAYMENT_REQUESTED", "PAYMENT_UNMATCHED", "REFUND_REQUESTED", "REFUND_SUCCESS", "PAYMENT_UNMATCHED", "REFUND_REQUESTED", "REFUND_SUCCESS")
	w.wantRefunds(map[string]int64{less: 44999, dollars: 45000})
	w.pay(g, `{"outcome":"captured"}`)
	if got := w.events("01990000-0000-7000-8000-000000000001"); !slices.Equal(got[len(got)-2:], []string{"PAYMENT_SUCCESS", "ORDER_PAID"}) {
		t.Errorf("events end in %v", got[len(got)-2:])
	}
	if a, _ := w.attempt("01990000-0000-7000-8000-000000000001", less); a.Reason != payment.ReasonAmountMismatch || a.State != payment.AttemptStateRefunded {
		t.Errorf("%+v", a)
	}
}

// Order A's money cannot pay order B: what binds is the gateway order under the
// signature, and nothing that the body says of our orders.
func TestOtherOrdersSignatureCannotPay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.open("01990000-0000-7000-8000-00000000000a"), w.open("01990000-0000-7000-8000-00000000000b")
	body := strings.Replace(captured(a, "pay_a", 45000, "INR"), `"notes":[]`, `"notes":{"orderId":"01990000-0000-7000-8000-00000000000b"}`, 1)
	signature := gateway.Sign(testSecrets[0], []byte(body))
	forged := strings.Replace(body, a, b, 1)
	for _, s := range []string{signature, "", strings.ToUpper(signature), gateway.Sign("another secret", []byte(forged))} {
		if r := w.call(domain.Actor{}, "/v1/webhooks/razorpay", forged, gateway.SignatureHeader, s); r.status != 401 || r.body["code"] != "unauthorized" {
			t.Errorf("signature %q: %+v", s, r)
		}
	}
	if kept := w.inbox(); len(kept) != 0 {
		t.Errorf("%d webhooks were kept", len(kept))
	}
	if r := w.webhook(body); r.status != 200 || r.header.Get("ETag") != "" {
		t.Fatal(r)
	}
	w.settle()
	w.wantEvents("01990000-0000-7000-8000-00000000000a", "PAYMENT_REQUESTED", "PAYMENT_SUCCESS", "ORDER_PAID")
	w.wantEvents("01990000-0000-7000-8000-00000000000b", "PAYMENT_REQUESTED")
}

// The webhook is faster than the index: the policy waits for the index and
// takes nothing for unknown that is only new.
func TestWebhookBeforeItsPaymentIsSeen(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	g := w.open("01990000-0000-7000-8000-000000000001")
	w.index.behind = true
	w.pay(g, `{"outcome":"captured"}`)
	w.wantEvents("01990000-0000-7000-8000-000000000001", "PAYMENT_REQUESTED", "PAYMENT_SUCCESS", "ORDER_PAID")
	if w.index.caught == 0 {
		t.Error("the policy did not wait for the index")
	}
	// The index knows nothing at all: the gateway's word counts.
	w.open("01990000-0000-7000-8000-000000000002")
	s := w.state("01990000-0000-7000-8000-000000000002")
	w.shards.mu.Lock()
	lost := s
	lost.OrderID = ""
	w.shards.payments["01990000-0000-7000-8000-000000000002"] = lost
	w.shards.mu.Unlock()
	orderID, known, err := w.orderOf(t.Context(), s.GatewayOrderID)
	if orderID != "01990000-0000-7000-8000-000000000002" || !known || err != nil {
		t.Errorf("orderOf = %q, %v, %v", orderID, known, err)
	}
}

func TestMoneyOfAnUnknownGatewayOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if r := w.webhook(captured("order_elsewhere", "pay_x", 700, "INR")); r.status != 200 {
		t.Fatal(r)
	}
	if r := w.webhook(captured("", "pay_y", 700, "INR")); r.status != 200 {
		t.Fatal(r)
	}
	w.settle()
	for _, id := range []string{"pay_x", "pay_y"} {
		w.wantEvents(id, "PAYMENT_UNMATCHED")
		if a, _ := w.attempt(id, id); a.Reason != payment.ReasonUnknownOrder || a.Amount != 700 {
			t.Errorf("%+v", a)
		}
	}
	w.wantRefunds(map[string]int64{}) // an operator's
	if r := w.call(ops, "/v1/ops/payments/pay_x/resolve", `{"reason":"a gift card"}`); r.status != 200 || r.header.Get("ETag") != `"2"` {
		t.Errorf("resolve: %+v", r)
	}
	if r := w.call(ops, "/v1/ops/payments/pay_x/resolve", `{"reason":"again"}`); r.status != 200 || r.header.Get("ETag") != `"2"` {
		t.Errorf("resolve again: %+v", r)
	}
	if r := w.call(ops, "/v1/ops/payments/pay_none/resolve", `{"reason":"x"}`); r.status != 404 || r.body["code"] != "payment_not_found" {
		t.Errorf("resolve what is not there: %+v", r)
	}
	if r := w.call(customer, "/v1/ops/payments/pay_x/resolve", `{"reason":"x"}`); r.status != 403 {
		t.Errorf("resolve by a customer: %+v", r)
	}
	// A gateway order that was made and never became a payment.
	o, err := w.sim.CreateOrder(t.Context(), "01990000-0000-7000-8000-00000000001b", 1, "INR")
	if err != nil {
		t.Fatal(err)
	}
	w.webhook(captured(o.GatewayOrderID, "pay_z", 1, "INR"))
	w.settle()
	if a, _ := w.attempt("pay_z", "pay_z"); a.Reason != payment.ReasonNotRequested {
		t.Errorf("%+v", a)
	}
}

// Closed is final: money that comes late goes back.
func TestLateMoney(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]domain.Command{
		"expired":   order.Expire{},
		"cancelled": order.Cancel{By: ops, Reason: "no"},
		"rejected":  order.Reject{Reason: "no"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			g := w.open("01990000-0000-7000-8000-000000000001")
			w.order("01990000-0000-7000-8000-000000000001", end)
			w.settle()
			id := w.pay(g, `{"outcome":"captured"}`)
			if got, want := w.events("01990000-0000-7000-8000-000000000001")[2:], []string{"PAYMENT_SUCCESS", "REFUND_REQUESTED", "REFUND_SUCCESS"}; !slices.Equal(got, want) {
				t.Errorf("events %v, want %v", got, want)
			}
			w.wantRefunds(map[string]int64{id: 45000})
			w.shards.mu.Lock()
			defer w.shards.mu.Unlock()
			if s := w.shards.orders["01990000-0000-7000-8000-000000000001"]; string(s.Status) != name || s.Paid() {
				t.Errorf("the order came back to life: %+v", s)
			}
		})
	}
}

func TestPaidThenEnded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.pay(w.open("01990000-0000-7000-8000-000000000001"), `{"outcome":"captured"}`)
	w.order("01990000-0000-7000-8000-000000000001", order.Cancel{By: customer, Reason: "changed my mind"})
	w.settle()
	w.wantEvents("01990000-0000-7000-8000-000000000001", "PAYMENT_REQUESTED", "PAYMENT_SUCCESS", "ORDER_PAID", "ORDER_CANCELLED", "REFUND_REQUESTED", "REFUND_SUCCESS")
	w.wantRefunds(map[string]int64{id: 45000})
	w.shards.mu.Lock()
	defer w.shards.mu.Unlock()
	for i, e := range w.shards.log {
		if e.Type == "REFUND_REQUESTED" && e.CausationID != w.shards.log[3].ID {
			t.Errorf("event %d is caused by %q, want %q", i, e.CausationID, w.shards.log[3].ID)
		}
	}
}

func TestSecondCapture(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	g := w.open("01990000-0000-7000-8000-000000000001")
	first := w.pay(g, `{"outcome":"captured"}`)
	second := w.pay(g, `{"outcome":"captured"}`)
	w.wantEvents("01990000-0000-7000-8000-000000000001", "PAYMENT_REQUESTED", "PAYMENT_SUCCESS", "ORDER_PAID", "PAYMENT_UNMATCHED", "REFUND_REQUESTED", "REFUND_SUCCESS")
	w.wantRefunds(map[string]int64{second: 45000})
	s := w.state("01990000-0000-7000-8000-000000000001")
	if a, _ := s.Attempt(second); s.Booked != first || s.Status != payment.StatusPaid || a.Reason != payment.ReasonAlreadyPaid {
		t.Errorf("%+v", s)
	}
	// An operator who names no payment after that means the one that paid.
	if r := w.call(ops, "/v1/payments/01990000-0000-7000-8000-000000000001/refund", `{"reason":"cold food"}`); r.status != 200 || r.body["state"] != "refund_pending" {
		t.Errorf("%+v", r)
	}
	w.settle()
	w.wantRefunds(map[string]int64{first: 45000, second: 45000})
}

// failing is a gateway that makes refunds fail.
type failing struct {
	*gateway.Simulated
	mu     sync.Mutex
	answer func() (gateway.RefundState, error)
	asked  []gateway.Refund
}

func (f *failing) set(state gateway.RefundState, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer = func() (gateway.RefundState, error) { return state, err }
}

func (f *failing) Refund(_ context.Context, r gateway.Refund) (gateway.RefundState, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, r)
	return f.answer()
}

func (f *failing) RefundState(context.Context, string, string) (gateway.RefundState, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.answer()
}

func TestRefundFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.pay(w.open("01990000-0000-7000-8000-000000000001"), `{"outcome":"captured"}`)
	f := &failing{Simulated: w.sim}
	f.set("", fmt.Errorf("%w: too old", gateway.ErrRefused))
	w.Gateway = f
	w.order("01990000-0000-7000-8000-000000000001", order.Cancel{By: ops, Reason: "no"})
	w.settle()
	w.wantEvents("01990000-0000-7000-8000-000000000001", "PAYMENT_REQUESTED", "PAYMENT_SUCCESS", "ORDER_PAID", "ORDER_CANCELLED", "REFUND_REQUESTED", "REFUND_FAILED")
	if s := w.state("01990000-0000-7000-8000-000000000001"); s.Status != payment.StatusRefundPending {
		t.Errorf("%+v", s)
	}
	for _, r := range f.asked {
		if r != f.asked[0] || r.PaymentID != id || r.AggregateID != "01990000-0000-7000-8000-000000000001" || r.Amount != 45000 {
			t.Errorf("a repeat has other words: %+v", r)
		}
	}
	// Ops try again; the gateway takes its time; the outcome comes as webhook.
	f.set(gateway.RefundPending, nil)
	r := w.call(ops, "/v1/payments/01990000-0000-7000-8000-000000000001/refund", `{"reason":"the bank says yes now"}`)
	if r.status != 200 || r.header.Get("ETag") == "" || r.body["state"] != "refund_pending" {
		t.Fatalf("%+v", r)
	}
	w.settle()
	if again := f.asked[len(f.asked)-1]; again.RefundID == f.asked[0].RefundID {
		t.Error("a new wish needs a new idempotency key")
	}
	// Already asked for: nothing more.
	if r := w.call(ops, "/v1/payments/01990000-0000-7000-8000-000000000001/refund", `{"reason":"hurry"}`); r.status != 200 {
		t.Errorf("%+v", r)
	}
	w.webhook(`{"event":"refund.failed","payload":{"refund":{"entity":{"id":"rfnd_1","amount":1,"payment_id":"` + id + `","notes":[]}}}}`)
	w.settle()
	if n := len(w.events("01990000-0000-7000-8000-000000000001")); n != 7 {
		t.Errorf("a refund of 1 made by hand is not ours: %v", w.events("01990000-0000-7000-8000-000000000001"))
	}
	w.webhook(`{"event":"refund.processed","payload":{"refund":{"entity":{"id":"rfnd_1","amount":45000,"payment_id":"` + id + `","notes":[]}}}}`)
	w.settle()
	if got, want := w.events("01990000-0000-7000-8000-000000000001")[6:], []string{"REFUND_REQUESTED", "REFUND_SUCCESS"}; !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
	if r := w.call(ops, "/v1/payments/01990000-0000-7000-8000-000000000000/refund", `{"reason":"x"}`); r.status != 404 || r.body["code"] != "payment_not_found" {
		t.Errorf("%+v", r)
	}
	if r := w.call(customer, "/v1/payments/01990000-0000-7000-8000-000000000001/refund", `{"reason":"x"}`); r.status != 403 {
		t.Errorf("%+v", r)
	}
	if r := w.call(ops, "/v1/payments/01990000-0000-7000-8000-000000000001/refund", ``); r.status != 422 {
		t.Errorf("%+v", r)
	}
}

// A refund whose outcome nobody tells is asked for.
func TestRefundIsPolled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.pay(w.open("01990000-0000-7000-8000-000000000001"), `{"outcome":"captured"}`)
	f := &failing{Simulated: w.sim}
	f.set(gateway.RefundPending, nil)
	w.Gateway = f
	w.order("01990000-0000-7000-8000-000000000001", order.Cancel{By: ops, Reason: "no"})
	w.settle()
	due := time.Now().Add(refundPollFirst + time.Second)
	round := func(want int) {
		t.Helper()
		if n, err := w.timerRound(t.Context(), due); n != want || err != nil {
			t.Fatalf("%d timers, %v; want %d", n, err, want)
		}
	}
	round(1)
	round(0) // not before its time
	f.set("", eventlog.Unavailable(errors.New("no gateway")))
	due = due.Add(time.Minute)
	round(1)
	f.set(gateway.RefundProcessed, nil)
	due = due.Add(time.Minute)
	round(1)
	if got := w.events("01990000-0000-7000-8000-000000000001"); got[len(got)-1] != "REFUND_SUCCESS" {
		t.Errorf("events %v", got)
	}
	due = due.Add(time.Hour)
	round(0)

	// Before the payment leaves memory somebody must hear of it.
	w.Gateway = w.sim
	w.pay(w.open("01990000-0000-7000-8000-000000000002"), `{"outcome":"captured"}`)
	f.set(gateway.RefundPending, nil)
	w.Gateway = f
	w.order("01990000-0000-7000-8000-000000000002", order.Cancel{By: ops, Reason: "no"})
	w.settle()
	due = time.Now().Add(700 * time.Hour)
	round(1)
	if got := w.events("01990000-0000-7000-8000-000000000002"); got[len(got)-1] != "REFUND_FAILED" {
		t.Errorf("events %v", got)
	}
}

// A webhook that never comes: the gateway is asked when the order ends, and
// again after an hour and a day.
func TestReconcile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	now := w.open("01990000-0000-7000-8000-00000000001c")
	id := w.pay(now, `{"outcome":"captured","faults":["dropped"]}`)
	w.wantEvents("01990000-0000-7000-8000-00000000001c", "PAYMENT_REQUESTED")
	w.order("01990000-0000-7000-8000-00000000001c", order.Expire{})
	w.settle()
	w.wantEvents("01990000-0000-7000-8000-00000000001c", "PAYMENT_REQUESTED", "ORDER_EXPIRED", "PAYMENT_SUCCESS", "REFUND_REQUESTED", "REFUND_SUCCESS")
	w.wantRefunds(map[string]int64{id: 45000})

	later := w.open("01990000-0000-7000-8000-00000000001a")
	w.order("01990000-0000-7000-8000-00000000001a", order.Expire{})
	w.settle()
	id = w.pay(later, `{"outcome":"captured","faults":["wrong_signature"]}`)
	w.wantEvents("01990000-0000-7000-8000-00000000001a", "PAYMENT_REQUESTED", "ORDER_EXPIRED")
	if n, err := w.timerRound(t.Context(), time.Now().Add(59*time.Minute)); n != 0 && err != nil {
		t.Fatalf("%d timers, %v", n, err)
	}
	if _, err := w.timerRound(t.Context(), time.Now().Add(61*time.Minute)); err != nil {
		t.Fatal(err)
	}
	w.settle()
	w.wantEvents("01990000-0000-7000-8000-00000000001a", "PAYMENT_REQUESTED", "ORDER_EXPIRED", "PAYMENT_SUCCESS", "REFUND_REQUESTED", "REFUND_SUCCESS")
	if w.refunds()[id] != 45000 {
		t.Error(w.refunds())
	}
	var left int
	count := func() int {
		if err := w.db.QueryRow(t.Context(), `SELECT count(*) FROM tomato.timers WHERE policy = 'reconcile'`).Scan(&left); err != nil {
			t.Fatal(err)
		}
		return left
	}
	if count() != 2 {
		t.Errorf("%d timers, want one per order for the day after", left)
	}
	if _, err := w.timerRound(t.Context(), time.Now().Add(25*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if count() != 0 {
		t.Errorf("%d timers are left", left)
	}
}

// A restart loses no timer: they are rows. Two instances do each once.
func TestTimersAreShared(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for i := range 40 {
		if err := w.setTimer(t.Context(), "reconcile", fmt.Sprintf("01990000-0000-7000-8000-0000000000%02d", i), time.Now(), reconcileTimer{GatewayOrderID: "order_none", EndedAt: time.Now().Add(-48 * time.Hour), Asked: 1}); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	ctx, cancel := context.WithTimeout(t.Context(), testWait)
	defer cancel()
	for range 2 {
		wg.Go(func() {
			if err := w.RunTimers(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for left := 1; left > 0; <-tick.C {
		if err := w.db.QueryRow(ctx, `SELECT count(*) FROM tomato.timers`).Scan(&left); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	wg.Wait()
}

func TestOpenPayment(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.place("01990000-0000-7000-8000-000000000001")
	const path = "/v1/orders/01990000-0000-7000-8000-000000000001/payment"
	if r := w.call(customer, path, "", "If-Match", `"7"`); r.status != 412 {
		t.Errorf("another version: %+v", r)
	}
	first := w.call(customer, path, "", "If-Match", `"1"`, "traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	want := map[string]any{"provider": "simulated", "gatewayOrderId": first.body["gatewayOrderId"], "keyId": "rzp_test_simulated", "amount": 45000., "currency": "INR"}
	if d := cmp.Diff(want, first.body); d != "" || first.status != 200 || first.header.Get("ETag") != `"1"` {
		t.Errorf("%+v\n%s", first, d)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if r := w.call(customer, path, "{}", "Idempotency-Key", "k1"); r.body["gatewayOrderId"] != first.body["gatewayOrderId"] {
				t.Errorf("%+v", r)
			}
		})
	}
	wg.Wait()
	w.wantEvents("01990000-0000-7000-8000-000000000001", "PAYMENT_REQUESTED")
	if tp := w.shards.log[0].Traceparent; !strings.Contains(tp, "0af7651916cd43dd8448eb211c80319c") {
		t.Errorf("traceparent %q", tp)
	}
	for _, c := range []struct {
		actor  domain.Actor
		path   string
		status int
		code   string
	}{
		{stranger, path, 404, "order_not_found"},
		{customer, "/v1/orders/01990000-0000-7000-8000-000000000000/payment", 404, "order_not_found"},
		{ops, path, 403, "forbidden"},
		{domain.Actor{}, path, 401, "unauthorized"},
	} {
		if r := w.call(c.actor, c.path, ""); r.status != c.status || r.body["code"] != c.code {
			t.Errorf("%s %s: %+v", c.actor.Sub, c.path, r)
		}
	}
	w.pay(first.body["gatewayOrderId"].(string), `{"outcome":"captured"}`)
	if r := w.call(customer, path, ""); r.status != 409 || r.body["code"] != "order_already_paid" {
		t.Errorf("paid: %+v", r)
	}
	w.place("01990000-0000-7000-8000-000000000002")
	w.order("01990000-0000-7000-8000-000000000002", order.Expire{})
	if r := w.call(customer, "/v1/orders/01990000-0000-7000-8000-000000000002/payment", ""); r.status != 409 || r.body["currentStatus"] != "expired" {
		t.Errorf("expired: %+v", r)
	}
	w.place("01990000-0000-7000-8000-000000000003")
	w.shards.away = true
	if r := w.call(customer, "/v1/orders/01990000-0000-7000-8000-000000000003/payment", ""); r.status != 503 || r.header.Get("Retry-After") == "" {
		t.Errorf("no shard: %+v", r)
	}
	w.shards.away = false
	w.db.Close()
	if r := w.call(customer, "/v1/orders/01990000-0000-7000-8000-000000000003/payment", ""); r.status != 503 || r.header.Get("Retry-After") == "" {
		t.Errorf("no gateway: %+v", r)
	}
}

func TestSimulatedGatewayEndpoint(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	g := w.open("01990000-0000-7000-8000-000000000001")
	path := "/v1/simulated-gateway/orders/" + g + "/pay"
	for _, c := range []struct {
		actor        domain.Actor
		path, body   string
		status       int
		code, faulty string
	}{
		{stranger, path, `{"outcome":"captured"}`, 404, "gateway_order_not_found", ""},
		{customer, "/v1/simulated-gateway/orders/order_none/pay", `{"outcome":"captured"}`, 404, "gateway_order_not_found", ""},
		{ops, "/v1/simulated-gateway/orders/order_none/pay", `{"outcome":"captured"}`, 404, "gateway_order_not_found", ""},
		{domain.Actor{Sub: "x", Role: domain.Rider}, path, `{"outcome":"captured"}`, 403, "forbidden", ""},
		{customer, path, ``, 422, "validation_failed", "body.outcome"},
		{customer, path, `{"outcome":"stolen"}`, 422, "validation_failed", "body.outcome"},
		{customer, path, `{"outcome":"captured","faults":["fire"]}`, 422, "validation_failed", "body.faults[0]"},
		{customer, path, `{"outcome":"captured","delay":"-1s"}`, 422, "validation_failed", "body.delay"},
		{customer, path, `{"outcome":"captured","delay":"721h"}`, 422, "validation_failed", "body.delay"},
		{customer, path, `{"outcome":"captured","amount":0}`, 422, "validation_failed", "body.amount"},
	} {
		r := w.call(c.actor, c.path, c.body)
		if r.status != c.status || r.body["code"] != c.code {
			t.Errorf("%s: %+v", c.body, r)
		}
		if c.faulty != "" {
			if f := r.body["errors"].([]any)[0].(map[string]any); f["location"] != c.faulty {
				t.Errorf("%s: %v", c.body, f)
			}
		}
	}
	if r := w.call(ops, path, `{"outcome":"captured","delay":"1h","paymentId":"pay_1"}`); r.status != 202 || r.body["paymentId"] != "pay_1" || r.header.Get("ETag") != "" {
		t.Errorf("%+v", r)
	}
	other := w.open("01990000-0000-7000-8000-000000000002")
	if r := w.call(ops, "/v1/simulated-gateway/orders/"+other+"/pay", `{"outcome":"captured","paymentId":"pay_1"}`); r.status != 422 {
		t.Errorf("%+v", r)
	}
	w.settle()
	w.wantEvents("01990000-0000-7000-8000-000000000001", "PAYMENT_REQUESTED")
	w.Gateway = gateway.NewRazorpay("id", "secret", gateway.RazorpayOptions{})
	if r := w.call(ops, path, `{"outcome":"captured"}`); r.status != 404 || r.body["code"] != "not_configured" {
		t.Errorf("a real gateway: %+v", r)
	}
}

func TestInbox(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	g := w.open("01990000-0000-7000-8000-000000000001")
	for _, body := range []string{
		captured(g, "pay_1", 45000, "INR"),
		`{"event":"invoice.paid","payload":{}}`,
		`no JSON`,
		`{"event":"payment.captured","payload":{"payment":{"entity":{"id":"pay_2"}}}}`,
		`{"pad":"` + strings.Repeat("x", maxWebhookBytes-10) + `"}`,
	} {
		if r := w.webhook(body); r.status != 200 {
			t.Errorf("%.60s: %+v", body, r)
		}
	}
	if r := w.webhook(strings.Repeat(" ", maxWebhookBytes+1)); r.status != 413 {
		t.Errorf("%+v", r)
	}
	kept := w.inbox()
	if len(kept) != 5 {
		t.Fatalf("%d records", len(kept))
	}
	dead := 0
	for _, e := range kept {
		if e.Type != "WEBHOOK_RECEIVED" || e.Partition != eventlog.PartitionFor(e.Subject, testPartitions) {
			t.Errorf("%+v", e)
		}
		if !slices.ContainsFunc(e.Record.Headers, func(h kgo.RecordHeader) bool { return h.Key == "x-razorpay-event-id" && string(h.Value) == "evt_1" }) {
			t.Errorf("no event id: %v", e.Record.Headers)
		}
		if bytes.Contains(e.Data, []byte("pay_1")) && (e.Subject != g || string(e.Data) != captured(g, "pay_1", 45000, "INR")) {
			t.Errorf("%s %s", e.Subject, e.Data)
		}
		switch err := w.recordPayment(t.Context(), e); {
		case errors.Is(err, eventlog.ErrPoison):
			dead++
		case err != nil:
			t.Error(err)
		}
	}
	if dead != 3 {
		t.Errorf("%d are poison, want 3", dead)
	}
	w.wantEvents("01990000-0000-7000-8000-000000000001", "PAYMENT_REQUESTED", "PAYMENT_SUCCESS")

	// What cannot be kept is not acknowledged.
	w.cluster.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		w.cluster.KeepControl()
		p := req.(*kmsg.ProduceRequest)
		resp := p.ResponseKind().(*kmsg.ProduceResponse)
		for _, t := range p.Topics {
			rt := kmsg.NewProduceResponseTopic()
			rt.Topic, rt.TopicID = t.Topic, t.TopicID
			for _, part := range t.Partitions {
				rp := kmsg.NewProduceResponseTopicPartition()
				rp.Partition, rp.ErrorCode = part.Partition, kerr.TopicAuthorizationFailed.Code
				rt.Partitions = append(rt.Partitions, rp)
			}
			resp.Topics = append(resp.Topics, rt)
		}
		return resp, nil, true
	})
	if r := w.webhook(captured(g, "pay_1", 45000, "INR")); r.status != 503 || r.header.Get("Retry-After") == "" {
		t.Errorf("%+v", r)
	}
}

// An order's deadline waits for the webhooks that were there when it came, and
// for no later ones.
func TestInboxPassed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	progress := w.Inbox.(*inboxProgress)
	passed := func(want bool) {
		t.Helper()
		if got, err := w.InboxPassed(t.Context(), "order_1"); got != want || err != nil {
			t.Errorf("passed = %v, %v, want %v", got, err, want)
		}
	}
	passed(true) // an idle partition
	for range 2 {
		w.webhook(captured("order_1", "pay_1", 1, "INR"))
	}
	passed(false)
	progress.next = 1
	w.webhook(captured("order_1", "pay_1", 1, "INR"))
	passed(false)
	progress.next = 2
	passed(true)
	passed(false) // asked anew: there is a third
	progress.next = 3
	passed(true)
}

// The absence of what a policy depends on is no failure of the event.
func TestPoliciesWaitForWhatIsAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	g := w.open("01990000-0000-7000-8000-000000000001")
	w.webhook(captured(g, "pay_1", 45000, "INR"))
	e := w.inbox()[0]
	away := func(what string, each func(context.Context, eventlog.Event) error, e eventlog.Event) {
		t.Helper()
		if err := each(t.Context(), e); !errors.Is(err, eventlog.ErrUnavailable) {
			t.Errorf("%s: %v", what, err)
		}
	}
	w.index.away = true
	away("no index", w.recordPayment, e)
	w.index.away = false
	w.shards.away = true
	away("no shard", w.recordPayment, e)
	w.shards.away = false
	if err := w.recordPayment(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	success := w.shards.log[len(w.shards.log)-1]
	w.shards.away = true
	away("no shard", w.payOrder, success)
	w.shards.away = false
	w.order("01990000-0000-7000-8000-000000000001", order.Expire{})
	w.settle()
	i := slices.IndexFunc(w.shards.log, func(e eventlog.Event) bool { return e.Type == "REFUND_REQUESTED" })
	f := &failing{Simulated: w.sim}
	f.set("", eventlog.Unavailable(errors.New("no gateway")))
	w.Gateway = f
	away("no gateway", w.refund, w.shards.log[i])
	for _, each := range []func(context.Context, eventlog.Event) error{w.payOrder, w.refundOrder, w.refund} {
		for _, typ := range []string{"PAYMENT_SUCCESS", "ORDER_CANCELLED", "REFUND_REQUESTED", "PAYMENT_UNMATCHED"} {
			if err := each(t.Context(), eventlog.Event{Type: typ, Data: []byte(`{`)}); err != nil && !errors.Is(err, eventlog.ErrPoison) {
				t.Errorf("%s: %v", typ, err)
			}
		}
	}
}

// An operator closes money that does not pay its order, faster than the refund.
func TestResolveBeforeRefund(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	g := w.open("01990000-0000-7000-8000-000000000001")
	if r := w.webhook(captured(g, "pay_1", 7, "INR")); r.status != 200 {
		t.Fatal(r)
	}
	if err := w.recordPayment(t.Context(), w.inbox()[0]); err != nil {
		t.Fatal(err)
	}
	unmatched := w.shards.log[len(w.shards.log)-1]
	r := w.call(ops, "/v1/ops/payments/pay_1/resolve", `{"reason":"settled in cash"}`, "Idempotency-Key", "k1")
	if r.status != 200 || r.body["orderId"] != "01990000-0000-7000-8000-000000000001" {
		t.Fatalf("found by the gateway order: %+v", r)
	}
	if err := w.refundOrder(t.Context(), unmatched); err != nil {
		t.Fatal(err)
	}
	w.settle()
	w.wantEvents("01990000-0000-7000-8000-000000000001", "PAYMENT_REQUESTED", "PAYMENT_UNMATCHED", "PAYMENT_RESOLVED")
	if r := w.call(ops, "/v1/payments/01990000-0000-7000-8000-000000000001/refund", `{"reason":"x"}`); r.status != 409 || r.body["code"] != "payment_unsettled" {
		t.Errorf("nothing to refund: %+v", r)
	}
}
