// Package commandsidetest runs the command side with its policies for tests: the
// real shards on an embedded broker, Postgres, the simulated gateway, and HTTP.
package commandsidetest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/commandside"
	"tomato/commandside/gateway"
	"tomato/commandside/policies"
	"tomato/commandside/shard"
	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/domain/restaurant"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
	"tomato/eventlog/subjectkeys/subjectkeystest"
	"tomato/httpapi"
	"tomato/migrations"
	"tomato/migrations/postgrestest"
)

const (
	// Partitions is how many partitions the topics have.
	Partitions = 3
	// Patience is how long a test waits for something that must come.
	Patience = 20 * time.Second

	jwtSecret       = "the JWT secret of the command side's tests"
	commandDeadline = 5 * time.Second
)

// WebhookSecrets are those that the gateway signs with, newest first.
var WebhookSecrets = []string{"new webhook secret", "old webhook secret"}

// Who calls.
var (
	Customer = domain.Actor{Sub: "c-1", Role: domain.Customer}
	Stranger = domain.Actor{Sub: "c-2", Role: domain.Customer}
	Ops      = domain.Actor{Sub: "ops-1", Role: domain.Ops}
)

// World is the command side and its policies with everything around them. No
// consumer runtime runs: RunPolicies gives the policies their events.
type World struct {
	Side      *commandside.Side
	Policies  *policies.Policies
	Shards    *Shards
	ReadModel *PaymentsReadModel
	Simulated *gateway.Simulated
	DB        *pgxpool.Pool
	Cluster   *kfake.Cluster

	t     *testing.T
	kafka eventlog.Config
	http  *httptest.Server
	menu  eventlog.Token                       // covers the restaurant's menu
	next  map[eventlog.TopicPartition]int64    // to be read
	found map[eventlog.Position]eventlog.Event // what was read of orders and payments
	log   []eventlog.Event                     // see Log
	given int                                  // events of log that the policies have had
}

// New starts a world. It ends with the test.
func New(t *testing.T) *World {
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
	eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: Partitions})
	auth, err := httpapi.NewAuthenticator(httpapi.AuthConfig{Secrets: []string{jwtSecret}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(auth.Close)
	quiet := slog.New(slog.DiscardHandler)
	w := &World{t: t, DB: db, Cluster: cluster, kafka: cfg, next: map[eventlog.TopicPartition]int64{}, found: map[eventlog.Position]eventlog.Event{},
		ReadModel: &PaymentsReadModel{orders: map[string]string{}}}
	w.Shards = startShards(t, cfg, w.ReadModel)
	producer := eventlogtest.Client(t, cfg, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0), kgo.ProducerBatchMaxBytes(2<<20))
	finder := &policies.OrderFinder{ReadModel: w.ReadModel, Client: producer}
	keys := &subjectkeystest.Keys{}
	w.Side = &commandside.Side{Config: commandside.Config{PaymentTTL: time.Hour, WebhookSecrets: WebhookSecrets, CommandDeadline: commandDeadline},
		Commands: w.Shards, Orders: finder, Producer: producer, Partitions: Partitions, Keys: keys, Log: quiet}
	w.Policies = &policies.Policies{Config: policies.Config{AcceptTTL: 10 * time.Minute, ArchiveAfter: archiveAfter, CommandDeadline: commandDeadline},
		Commands: w.Shards, Orders: finder, Client: producer, Partitions: Partitions, DB: db, Inbox: &InboxProgress{}, Keys: keys, Log: quiet}
	api := httpapi.New(httpapi.Options{Auth: auth, Log: quiet})
	w.Side.Routes(api)
	w.http = httptest.NewServer(api)
	t.Cleanup(w.http.Close)
	w.Simulated = gateway.NewSimulated(db, w.http.URL+"/v1/webhooks/razorpay", WebhookSecrets, quiet)
	w.SetGateway(w.Simulated)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = w.Simulated.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	w.openRestaurant()
	return w
}

// SetGateway makes the command side and the policies call another gateway.
func (w *World) SetGateway(g gateway.Gateway) {
	w.Side.Gateway, w.Policies.Gateway, w.Side.Orders.Gateway = g, g, g
}

// must runs a command of the system past the list of events.
func (w *World) must(topic, id string, c domain.Command, after eventlog.Token) shard.Result {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), Patience)
	defer cancel()
	res, err := w.Shards.real.Execute(ctx, shard.Request{Topic: topic, ID: id, Actor: domain.SystemActor, Command: c, After: after})
	if err != nil {
		w.t.Fatalf("%s %s: %v", c.CommandName(), id, err)
	}
	return res
}

// openRestaurant opens r-1, which has a dosa for 450.00 INR.
func (w *World) openRestaurant() {
	w.t.Helper()
	w.must(eventlog.Restaurants, "r-1", restaurant.Put{RestaurantID: "r-1", Name: "Dosa Corner", Location: domain.Point{Lng: 77.6, Lat: 12.9}}, nil)
	w.must(eventlog.Restaurants, "r-1", restaurant.SetMenuItem{Item: restaurant.MenuItem{ItemID: "i-1", Name: "Dosa",
		Price: domain.Money{Amount: 45000, Currency: "INR"}, Available: true}}, nil)
	res := w.must(eventlog.Restaurants, "r-1", restaurant.Open{}, nil)
	w.menu = res.Token()
}

// Place places an order of c-1 at r-1 over 450.00 INR. Log does not have its
// ORDER_PLACED.
func (w *World) Place(id string) {
	w.t.Helper()
	w.must(eventlog.Orders, id, shard.Place{CustomerID: "c-1", RestaurantID: "r-1", Lines: []restaurant.Line{{ItemID: "i-1", Quantity: 1}},
		DeliverTo: subjectkeystest.DeliverTo("c-1", `{"address":"1 Road"}`), PaymentTTL: time.Hour}, w.menu)
}

// Order runs a command of the system on an order.
func (w *World) Order(id string, c domain.Command) {
	w.t.Helper()
	if _, err := w.Shards.Execute(w.t.Context(), shard.Request{Topic: eventlog.Orders, ID: id, Actor: domain.SystemActor, Command: c}); err != nil {
		w.t.Fatal(err)
	}
}

// OrderState returns the order as its shard has it.
func (w *World) OrderState(id string) order.State {
	w.t.Helper()
	return *w.must(eventlog.Orders, id, shard.Look{}, nil).Order
}

// Payment returns the payment as its shard has it.
func (w *World) Payment(id string) payment.State {
	w.t.Helper()
	return *w.must(eventlog.Payments, id, shard.Look{}, nil).Payment
}

// Attempt returns one attempt of a payment.
func (w *World) Attempt(id, paymentID string) payment.Attempt {
	w.t.Helper()
	s := w.Payment(id)
	a, ok := s.Attempt(paymentID)
	if !ok {
		w.t.Errorf("payment %s has no attempt %s: %+v", id, paymentID, s)
	}
	return a
}

// Response is the answer to a call. Body is its JSON.
type Response struct {
	Status int
	Header http.Header
	Body   map[string]any
}

// Call posts body on behalf of actor, of nobody if its Sub is "". header are pairs.
func (w *World) Call(actor domain.Actor, path, body string, header ...string) Response {
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
	r := Response{Status: resp.StatusCode, Header: resp.Header}
	if len(b) > 0 {
		if err := json.Unmarshal(b, &r.Body); err != nil {
			w.t.Fatalf("%s answered %q", path, b)
		}
	}
	return r
}

// Open places an order, opens its payment and returns the gateway order.
func (w *World) Open(id string) string {
	w.t.Helper()
	w.Place(id)
	r := w.Call(Customer, "/v1/orders/"+id+"/payment", "")
	if r.Status != 200 {
		w.t.Fatalf("/payment: %+v", r)
	}
	return r.Body["gatewayOrderId"].(string)
}

// Pay makes the simulated gateway act, runs the policies until nothing is under
// way, and returns the payment's id.
func (w *World) Pay(gatewayOrderID, body string) string {
	w.t.Helper()
	r := w.Call(Customer, "/v1/simulated-gateway/orders/"+gatewayOrderID+"/pay", body)
	if r.Status != 202 {
		w.t.Fatalf("pay: %+v", r)
	}
	w.RunPolicies()
	return r.Body["paymentId"].(string)
}

// Webhook posts a webhook of the test's own, signed with the newest secret.
func (w *World) Webhook(body string) Response {
	w.t.Helper()
	return w.Call(domain.Actor{}, "/v1/webhooks/razorpay", body, gateway.SignatureHeader, gateway.Sign(WebhookSecrets[0], []byte(body)), gateway.EventIDHeader, "evt_1")
}

// Captured returns the body of a webhook payment.captured.
func Captured(gatewayOrderID, paymentID string, amount int, currency string) string {
	return fmt.Sprintf(`{"event":"payment.captured","payload":{"payment":{"entity":{"id":%q,"amount":%d,"currency":%q,"status":"captured","order_id":%q,"notes":[]}}}}`,
		paymentID, amount, currency, gatewayOrderID)
}

// read returns the records that are new on the topics.
func (w *World) read(topics ...string) (es []eventlog.Event) {
	w.t.Helper()
	ends, err := eventlog.EndOffsets(w.t.Context(), w.Side.Producer, topics...)
	if err != nil {
		w.t.Fatal(err)
	}
	ranges := map[eventlog.TopicPartition]eventlog.Range{}
	for tp, end := range ends {
		ranges[tp] = eventlog.Range{From: w.next[tp], To: end}
		w.next[tp] = end
	}
	err = eventlog.Read(w.t.Context(), w.kafka, ranges, func(e *eventlog.Event) error {
		es = append(es, *e)
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return es
}

// Inbox returns the records that are new in the inbox.
func (w *World) Inbox() []eventlog.Event {
	w.t.Helper()
	return w.read(eventlog.PaymentWebhooks)
}

// Log returns the events of orders and payments in the order in which they were
// acknowledged.
func (w *World) Log() []eventlog.Event {
	w.t.Helper()
	appended := w.Shards.appended()
	if len(w.log) == len(appended) {
		return w.log
	}
	for _, e := range w.read(eventlog.Orders, eventlog.Payments) {
		w.found[eventlog.Position{TopicPartition: eventlog.TopicPartition{Topic: e.Topic, Partition: e.Partition}, Offset: e.Offset}] = e
	}
	for _, p := range appended[len(w.log):] {
		e, ok := w.found[p]
		if !ok {
			w.t.Fatalf("an acknowledged event is not on %s/%d at %d", p.Topic, p.Partition, p.Offset)
		}
		w.log = append(w.log, e)
	}
	return w.log
}

// RunPolicies lets webhooks, policies and refunds go on until nothing is under way.
// Every event is given to every policy twice, because the effects are idempotent.
func (w *World) RunPolicies() {
	w.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(Patience); ; <-tick.C {
		var left int
		if err := w.DB.QueryRow(w.t.Context(), `SELECT count(*) FROM simulated_gateway.webhooks WHERE due_at < now() + interval '2 minutes'`).Scan(&left); err != nil {
			w.t.Fatal(err)
		}
		news := w.Inbox()
		log := w.Log()
		news = append(news, log[w.given:]...)
		w.given = len(log)
		for _, e := range news {
			for range 2 {
				w.give(e)
			}
		}
		if left == 0 && len(news) == 0 {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("still under way: %d webhooks, %d events", left, len(news))
		}
	}
}

func (w *World) give(e eventlog.Event) {
	w.t.Helper()
	for _, c := range w.Policies.All() {
		if c.Each == nil || !slices.Contains(c.Topics, e.Topic) { // dispatch takes batches
			continue
		}
		if err := c.Each(w.t.Context(), e); err != nil {
			w.t.Fatalf("%s on %s: %v", c.Name, e.Type, err)
		}
	}
}

// Events returns the types of an aggregate's events, in both topics.
func (w *World) Events(id string) []string {
	w.t.Helper()
	var types []string
	for _, e := range w.Log() {
		if e.Subject == id {
			types = append(types, e.Type)
		}
	}
	return types
}

// WantEvents fails the test if the aggregate has other events.
func (w *World) WantEvents(id string, want ...string) {
	w.t.Helper()
	if d := cmp.Diff(want, w.Events(id)); d != "" {
		w.t.Errorf("events of %s: -want +got\n%s", id, d)
	}
}

// Refunds returns what went back at the gateway, by payment.
func (w *World) Refunds() map[string]int64 {
	w.t.Helper()
	rows, err := w.DB.Query(w.t.Context(), `SELECT payment_id, amount FROM simulated_gateway.refunds`)
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

// WantRefunds fails the test if other money went back.
func (w *World) WantRefunds(want map[string]int64) {
	w.t.Helper()
	if d := cmp.Diff(want, w.Refunds()); d != "" {
		w.t.Errorf("refunds at the gateway: -want +got\n%s", d)
	}
}
