package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"tomato/cmd/tomato/server"
	"tomato/cmd/tomato/settings"
	"tomato/commandside/gateway"
	"tomato/domain"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/httpapi"
	"tomato/migrations/postgrestest"
)

// The end-to-end tests run whole servers on real parts: a broker, a Postgres,
// HTTP and websockets. They read as given, when, then: a status, the new events
// on the topics, what queries show and what feeds were sent.

const (
	townJWTSecret     = "of the end-to-end tests, 32 bytes"
	townWebhookSecret = "whsec_e2e"
	townInternalKey   = "internal of the end-to-end tests, 32"
	townClusterKey    = "cluster of the end-to-end tests, 32 b"
	townPartitions    = 4 // of twelve: less to set up, nothing of another kind

	// patience bounds every wait. It is long because the machine may be busy;
	// nothing waits for longer than what it waits for takes.
	patience = 90 * time.Second
)

// town is one installation under test: a broker, a database, and at most one
// server on them in this process.
type town struct {
	t       testing.TB
	kafka   eventlog.Config
	cmd     server.Config
	options server.Options
	url     string
	server  *server.Server // nil: not running here
	client  *http.Client
	log     *chronicle // nil until open
}

var office = domain.Actor{Sub: "ops1", Role: domain.Ops}

func customer(id string) domain.Actor { return domain.Actor{Sub: id, Role: domain.Customer} }
func courier(id string) domain.Actor  { return domain.Actor{Sub: id, Role: domain.Rider} }
func staff(restaurantID string) domain.Actor {
	return domain.Actor{Sub: "staff-" + restaurantID, Role: domain.Restaurant, RestaurantID: restaurantID}
}

// newTown prepares a town on the brokers with a database of its own; args are
// flags of serve, beside or instead of those that it sets.
func newTown(t testing.TB, kafka eventlog.Config, args ...string) *town {
	t.Helper()
	return newTownOn(t, kafka, postgrestest.URL(t), args...)
}

func newTownOn(t testing.TB, kafka eventlog.Config, database string, args ...string) *town {
	t.Helper()
	a := &town{t: t, kafka: kafka}
	a.cmd = a.parse(append([]string{"--database-url", database, "--kafka-brokers", strings.Join(kafka.Brokers, ","), "--data-dir", t.TempDir(),
		"--http-addr", "127.0.0.1:0", "--partitions", strconv.Itoa(townPartitions), "--log-level", logLevel()}, args...))
	transport := &http.Transport{MaxIdleConnsPerHost: 256, MaxConnsPerHost: 256}
	a.client = &http.Client{Transport: transport, Timeout: patience}
	t.Cleanup(transport.CloseIdleConnections)
	return a
}

// logLevel is that of the servers under test: what they say hides what fails.
func logLevel() string {
	if l := os.Getenv("TOMATO_E2E_LOG_LEVEL"); l != "" {
		return l
	}
	return "error"
}

func (a *town) parse(flags []string) server.Config {
	a.t.Helper()
	c, err := server.ParseConfig(flags...)
	if err != nil {
		a.t.Fatal(err)
	}
	c.JWTSecret, c.ClusterKey, c.InternalKey = townJWTSecret, townClusterKey, townInternalKey
	c.WebhookSecrets = []string{townWebhookSecret}
	return c
}

// open starts a server and returns when it is ready.
func (a *town) open() *town {
	a.t.Helper()
	s, err := server.Start(a.t.Context(), a.cmd, a.options)
	if err != nil {
		a.t.Fatal("serve:", err)
	}
	a.server, a.url = s, s.URL()
	a.t.Cleanup(a.stop)
	a.ready()
	return a
}

// ready returns when the server and all its parts are well, and the
// chronicle follows.
func (a *town) ready() {
	a.t.Helper()
	a.await("the server is ready", func() error {
		x := a.do(domain.Actor{}, "GET /readyz", nil)
		if x.status != http.StatusOK || x.str("status") != "ready" {
			return x.fault()
		}
		return nil
	})
	if a.log == nil {
		a.log = follow(a.t, a.kafka)
	}
}

// stop drains the server, if one runs here.
func (a *town) stop() {
	if a.server == nil {
		return
	}
	if err := a.server.Close(); err != nil {
		a.t.Error("serve did not drain:", err)
	}
	a.server = nil
}

// await polls until what is nil, and fails the test when it never is.
func (a *town) await(what string, now func() error) {
	a.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(patience); ; {
		err := now()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			a.t.Fatalf("never: %s: %v", what, err)
		}
	}
}

// answer is what a request came to.
type answer struct {
	t       testing.TB
	request string
	status  int // 0: none came
	header  http.Header
	body    []byte
	err     error

	town   *town
	topic  string // of the aggregate that the request names, "" for none
	id     string
	before int // events it had
}

// do sends one request. call is METHOD and path; header are pairs.
func (a *town) do(who domain.Actor, call string, body any, header ...string) answer {
	x := answer{t: a.t, town: a, request: string(who.Role) + " " + who.Sub + ": " + call}
	method, path, _ := strings.Cut(call, " ")
	var r io.Reader
	if body != nil {
		b, raw := body.([]byte)
		if !raw {
			b, x.err = json.Marshal(body)
			if x.err != nil {
				return x
			}
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(a.t.Context(), method, a.url+path, r)
	if err != nil {
		x.err = err
		return x
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if who.Role != "" {
		token, err := httpapi.MintToken(townJWTSecret, who, time.Hour)
		if err != nil {
			x.err = err
			return x
		}
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := a.client.Do(req)
	if err != nil {
		x.err = err
		return x
	}
	defer resp.Body.Close()
	x.body, x.err = io.ReadAll(resp.Body)
	if x.err == nil {
		x.status, x.header = resp.StatusCode, resp.Header
	}
	return x
}

// must is do for what has to succeed: given, not tested.
func (a *town) must(who domain.Actor, call string, body any, header ...string) answer {
	a.t.Helper()
	x := a.do(who, call, body, header...)
	if x.err != nil || x.status >= 300 {
		a.t.Fatal(x.fault())
	}
	return x
}

// when sends a command; then says what it must come to.
func (a *town) when(who domain.Actor, call string, body any, header ...string) answer {
	a.t.Helper()
	topic, id := aggregateOf(call)
	before := len(a.history(topic, id))
	x := a.do(who, call, body, header...)
	x.topic, x.id, x.before = topic, id, before
	return x
}

// aggregateOf reads the aggregate from a request's path; a new order has no id yet.
func aggregateOf(call string) (topic, id string) {
	_, path, _ := strings.Cut(call, " ")
	parts := strings.Split(strings.TrimPrefix(path, "/v1/"), "/")
	switch parts[0] {
	case eventlog.Orders, eventlog.Riders, eventlog.Restaurants, eventlog.Payments:
		if len(parts) > 1 {
			id = parts[1]
		}
		if len(parts) > 2 && parts[2] == "payment" {
			return eventlog.Payments, id
		}
		return parts[0], id
	}
	return "", ""
}

// then holds the answer to a status, and the aggregate of the request to the
// new events of that request: none other than these, in this order. What
// policies did because of it is not among them.
func (x answer) then(status int, events ...string) answer {
	x.t.Helper()
	if x.err != nil || x.status != status {
		x.t.Fatalf("%v; want %d", x.fault(), status)
	}
	if x.id == "" && x.topic == eventlog.Orders {
		x.id = x.str("orderId")
	}
	if x.topic == "" || x.id == "" {
		return x
	}
	var appended []string
	for _, e := range x.town.history(x.topic, x.id)[x.before:] {
		// The claims policy may be faster than the request whose step it repeats.
		if e.CausationID == "" || slices.Contains(events, e.Type) {
			appended = append(appended, e.Type)
		}
	}
	if !slices.Equal(appended, events) {
		x.t.Fatalf("%s appended %v, want %v", x.request, appended, events)
	}
	return x
}

// code is that of a problem.
func (x answer) code() string { return x.str("code") }

// thenRefused is then for a refusal with its code: nothing is appended.
func (x answer) thenRefused(status int, codes ...string) answer {
	x.t.Helper()
	x.then(status)
	if !slices.Contains(codes, x.code()) {
		x.t.Fatalf("%v; want code %v", x.fault(), codes)
	}
	return x
}

func (x answer) fault() error {
	if x.err != nil {
		return fmt.Errorf("%s: %w", x.request, x.err)
	}
	return fmt.Errorf("%s: %d %s", x.request, x.status, bytes.TrimSpace(x.body))
}

// get finds a value in the body by a path such as items.0.orderId; nil: absent.
func (x answer) get(path string) any {
	var v any
	if json.Unmarshal(x.body, &v) != nil {
		return nil
	}
	return dig(v, path)
}

func dig(v any, path string) any {
	for _, step := range strings.Split(path, ".") {
		switch at := v.(type) {
		case map[string]any:
			v = at[step]
		case []any:
			i, err := strconv.Atoi(step)
			if err != nil || i >= len(at) {
				return nil
			}
			v = at[i]
		default:
			return nil
		}
	}
	return v
}

func (x answer) str(path string) string {
	s, _ := x.get(path).(string)
	return s
}

// want holds fields of the answer to values: pairs of path and text.
func (x answer) want(pairs ...string) answer {
	x.t.Helper()
	for i := 0; i+1 < len(pairs); i += 2 {
		got := ""
		if v := x.get(pairs[i]); v != nil {
			got = fmt.Sprint(v)
		}
		if got != pairs[i+1] {
			x.t.Errorf("%s: %s is %q, want %q in %s", x.request, pairs[i], got, pairs[i+1], x.body)
		}
	}
	return x
}

func (x answer) etag() string  { return x.header.Get("ETag") }
func (x answer) token() string { return x.header.Get("Consistency-Token") }

// A chronicle is what has happened: every event that counts, by the reader
// rule, on the aggregate topics.
type chronicle struct {
	t      testing.TB
	client *kgo.Client

	mu      sync.Mutex
	next    map[eventlog.TopicPartition]int64
	rules   map[eventlog.TopicPartition]eventlog.Rule
	events  map[string][]eventlog.Event // by topic/id
	void    int
	changed chan struct{} // closed when there is more
}

// follow begins a chronicle at the start of the logs.
func follow(t testing.TB, kafka eventlog.Config) *chronicle {
	t.Helper()
	client, err := kafka.NewClient(kgo.ConsumeTopics(eventlog.AggregateTopics[:]...), kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
		kgo.FetchMaxWait(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	c := &chronicle{t: t, client: client, next: map[eventlog.TopicPartition]int64{}, rules: map[eventlog.TopicPartition]eventlog.Rule{},
		events: map[string][]eventlog.Event{}, changed: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			c.add(client.PollFetches(ctx))
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		client.Close()
		c.check()
	})
	return c
}

func (c *chronicle) add(fetches kgo.Fetches) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for iter := fetches.RecordIter(); !iter.Done(); {
		r := iter.Next()
		tp := eventlog.TopicPartition{Topic: r.Topic, Partition: r.Partition}
		e, _ := eventlog.ParseRecord(r) // e.Fault has the error
		rule := c.rules[tp]
		take, skipped := rule.Take(&e)
		c.rules[tp], c.next[tp] = rule, r.Offset+1
		switch {
		case skipped != "":
			c.void++
		case take:
			key := r.Topic + "/" + e.Subject
			c.events[key] = append(c.events[key], e)
		}
	}
	close(c.changed)
	c.changed = make(chan struct{})
}

// check holds every aggregate to one total order: its versions are 1, 2, ….
func (c *chronicle) check() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, events := range c.events {
		for i, e := range events {
			if e.Version != int64(i+1) {
				c.t.Errorf("event %d of %s, %s, has version %d", i+1, key, e.Type, e.Version)
			}
		}
	}
}

// upToDate returns when the chronicle has all that is on the logs now.
func (c *chronicle) upToDate() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	ends, err := eventlog.EndOffsets(ctx, c.client, eventlog.AggregateTopics[:]...)
	if err != nil {
		c.t.Fatal(err)
	}
	for {
		c.mu.Lock()
		behind := 0
		for tp, end := range ends {
			if c.next[tp] < end {
				behind++
			}
		}
		changed := c.changed
		c.mu.Unlock()
		if behind == 0 {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			c.t.Fatal("the logs cannot be read")
		}
	}
}

// history returns all events of an aggregate, up to now.
func (a *town) history(topic, id string) []eventlog.Event {
	a.t.Helper()
	if topic == "" || id == "" {
		return nil
	}
	a.log.upToDate()
	a.log.mu.Lock()
	defer a.log.mu.Unlock()
	return slices.Clone(a.log.events[topic+"/"+id])
}

// types are those of events.
func types(events []eventlog.Event) []string {
	ts := make([]string, len(events))
	for i, e := range events {
		ts[i] = e.Type
	}
	return ts
}

func count(events []eventlog.Event, eventType string) (n int) {
	for _, e := range events {
		if e.Type == eventType {
			n++
		}
	}
	return n
}

// awaitEvent waits for the nth event of a type, counted from 1, and returns it.
func (a *town) awaitEvent(topic, id, eventType string, nth int) eventlog.Event {
	a.t.Helper()
	end := time.After(patience)
	for {
		a.log.mu.Lock()
		events, changed := slices.Clone(a.log.events[topic+"/"+id]), a.log.changed
		a.log.mu.Unlock()
		for n, i := 0, 0; i < len(events); i++ {
			if events[i].Type != eventType {
				continue
			}
			if n++; n == nth {
				return events[i]
			}
		}
		select {
		case <-changed:
		case <-end:
			a.t.Fatalf("%s/%s never had %s (%d): %v", topic, id, eventType, nth, types(events))
		}
	}
}

// data finds a value in an event's data.
func data(e eventlog.Event, path string) any {
	var v any
	if json.Unmarshal(e.Data, &v) != nil {
		return nil
	}
	return dig(v, path)
}

// A feedClient is a party at its websocket. It keeps what it is sent.
type feedClient struct {
	t    testing.TB
	who  domain.Actor
	conn *websocket.Conn

	mu       sync.Mutex
	messages []message
	changed  chan struct{}
	err      error
}

type message struct {
	Event, Room, Cursor, Code string
	Payload                   json.RawMessage
	Timestamp                 time.Time
}

func (m message) payload(path string) any {
	var v any
	if json.Unmarshal(m.Payload, &v) != nil {
		return nil
	}
	return dig(v, path)
}

// feed opens a party's websocket and joins the rooms.
func (a *town) feed(who domain.Actor, rooms ...string) *feedClient {
	a.t.Helper()
	return a.feedFrom(who, "", rooms...)
}

// feedFrom is feed that goes on where another one stood; cursor may be "".
func (a *town) feedFrom(who domain.Actor, cursor string, rooms ...string) *feedClient {
	a.t.Helper()
	token, err := httpapi.MintToken(townJWTSecret, who, time.Hour)
	if err != nil {
		a.t.Fatal(err)
	}
	conn, _, err := websocket.Dial(a.t.Context(), a.url+"/v1/feed?cursor="+cursor, &websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {"Bearer " + token}}})
	if err != nil {
		a.t.Fatal("feed of", who.Sub, err)
	}
	conn.SetReadLimit(4 << 20)
	f := &feedClient{t: a.t, who: who, conn: conn, changed: make(chan struct{})}
	done := make(chan struct{})
	go f.read(done)
	a.t.Cleanup(func() {
		_ = conn.CloseNow()
		<-done
	})
	for _, room := range rooms {
		f.send(map[string]any{"op": "join", "room": room})
		f.expect("feed:joined", func(m message) bool { return m.Room == room })
	}
	return f
}

func (f *feedClient) send(op any) {
	f.t.Helper()
	b, err := json.Marshal(op)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := f.conn.Write(f.t.Context(), websocket.MessageText, b); err != nil {
		f.t.Fatal(err)
	}
}

func (f *feedClient) read(done chan struct{}) {
	defer close(done)
	for {
		_, b, err := f.conn.Read(context.Background())
		var m message
		if err == nil {
			err = json.Unmarshal(b, &m)
		}
		f.mu.Lock()
		if f.err = err; err == nil {
			f.messages = append(f.messages, m)
		}
		close(f.changed)
		f.changed = make(chan struct{})
		f.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// expect waits for a message of the event that matches; nil matches all.
func (f *feedClient) expect(event string, match func(message) bool) message {
	f.t.Helper()
	return f.waitFor(func(m message) bool { return m.Event == event && (match == nil || match(m)) }, event)
}

// waitFor returns the first message that matches, when it comes.
func (f *feedClient) waitFor(match func(message) bool, what string) message {
	f.t.Helper()
	end := time.After(patience)
	for {
		f.mu.Lock()
		messages, changed, err := f.messages, f.changed, f.err
		f.mu.Unlock()
		if i := slices.IndexFunc(messages, match); i >= 0 {
			return messages[i]
		}
		if err != nil {
			f.t.Fatalf("%s: the feed ended before %s: %v; it had %v", f.who.Sub, what, err, said(messages))
		}
		select {
		case <-changed:
		case <-end:
			f.t.Fatalf("%s was never told %s; it had %v", f.who.Sub, what, said(messages))
		}
	}
}

// of matches messages about an order.
func of(orderID string) func(message) bool {
	return func(m message) bool { return m.payload("orderId") == orderID }
}

// told returns what the party has been told of an order: events, with the
// status where they have one.
func (f *feedClient) told(orderID string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var ms []message
	for _, m := range f.messages {
		if m.payload("orderId") == orderID {
			ms = append(ms, m)
		}
	}
	return said(ms)
}

func said(messages []message) []string {
	all := make([]string, len(messages))
	for i, m := range messages {
		all[i] = m.Event
		for _, p := range []string{"status", "reason"} {
			if s, ok := m.payload(p).(string); ok && m.Event != "order:new" {
				all[i] += " " + s
			}
		}
	}
	return all
}

// What a test is given.

func point(lng, lat float64) map[string]any {
	return map[string]any{"type": "Point", "coordinates": []float64{lng, lat}}
}

// The places of the tests: kitchens far from one another, so that their riders
// do not meet. One degree of latitude is 111 km.
const lng0, lat0 = 77.6, 12.9

// restaurant registers an open restaurant with one item, m1, of 250.00 INR.
func (a *town) restaurant(id string, lng, lat float64) {
	a.t.Helper()
	a.must(office, "PUT /v1/restaurants/"+id, map[string]any{"name": "Kitchen " + id, "location": point(lng, lat)})
	a.must(staff(id), "PUT /v1/restaurants/"+id+"/menu/m1", item(25000, true))
	a.must(staff(id), "POST /v1/restaurants/"+id+"/open", nil)
}

func item(amount int64, available bool) map[string]any {
	return map[string]any{"name": "Thali", "price": map[string]any{"amount": amount, "currency": "INR"}, "available": available}
}

// rider registers a verified rider who is online at the place.
func (a *town) rider(id string, lng, lat float64) {
	a.t.Helper()
	a.must(office, "PUT /v1/riders/"+id, riderName(id))
	a.must(office, "POST /v1/riders/"+id+"/verify", nil)
	a.must(courier(id), "PUT /v1/riders/"+id+"/location", map[string]any{"location": point(lng, lat)})
	a.must(courier(id), "POST /v1/riders/"+id+"/online", nil)
}

func riderName(id string) map[string]any { return map[string]any{"name": "Rider " + id} }

// riders are n of them, at one place.
func (a *town) riders(prefix string, n int, lng, lat float64) []string {
	a.t.Helper()
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprint(prefix, i)
	}
	a.each(n, 8, func(i int) { a.rider(ids[i], lng, lat) })
	return ids
}

// each calls do for 0 to n-1, so many at once, and fails when one of them failed.
func (a *town) each(n, atOnce int, do func(i int)) {
	a.t.Helper()
	var g errgroup.Group
	g.SetLimit(atOnce)
	for i := range n {
		g.Go(func() error {
			done := false
			defer func() { // t.Fatal ends this goroutine alone
				if !done {
					a.t.Errorf("%d of %d failed", i, n)
				}
			}()
			do(i)
			done = true
			return nil
		})
	}
	_ = g.Wait()
	if a.t.Failed() {
		a.t.FailNow()
	}
}

func basket(restaurantID string) map[string]any {
	return map[string]any{"restaurantId": restaurantID, "items": []any{map[string]any{"itemId": "m1", "quantity": 2}},
		"deliverTo": map[string]any{"location": point(lng0, lat0), "address": "12 Market Road"}}
}

// place returns the id of a new order: 500.00 INR.
func (a *town) place(customerID, restaurantID string) string {
	a.t.Helper()
	return a.must(customer(customerID), "POST /v1/orders", basket(restaurantID)).str("orderId")
}

// openPayment returns the gateway order.
func (a *town) openPayment(customerID, orderID string) string {
	a.t.Helper()
	return a.must(customer(customerID), "POST /v1/orders/"+orderID+"/payment", nil).str("gatewayOrderId")
}

// pay pays an order as the gateway does it, and returns when it is paid.
func (a *town) pay(customerID, orderID string) (paymentID string) {
	a.t.Helper()
	gatewayOrder := a.openPayment(customerID, orderID)
	paymentID = a.must(customer(customerID), "POST /v1/simulated-gateway/orders/"+gatewayOrder+"/pay", map[string]any{"outcome": "captured"}).str("paymentId")
	a.awaitEvent(eventlog.Orders, orderID, "ORDER_PAID", 1)
	return paymentID
}

// cook places and pays an order and brings it as far as preparing.
func (a *town) cook(customerID, restaurantID string) string {
	a.t.Helper()
	id := a.place(customerID, restaurantID)
	a.pay(customerID, id)
	a.must(staff(restaurantID), "POST /v1/orders/"+id+"/accept-order", nil)
	a.must(staff(restaurantID), "POST /v1/orders/"+id+"/preparing", nil)
	return id
}

// ready is cook, and the order can be fetched.
func (a *town) readyOrder(customerID, restaurantID string) string {
	a.t.Helper()
	id := a.cook(customerID, restaurantID)
	a.must(staff(restaurantID), "POST /v1/orders/"+id+"/ready", nil)
	return id
}

// webhook sends a webhook with a good signature to our endpoint.
func (a *town) webhook(body []byte) answer {
	return a.do(domain.Actor{}, "POST /v1/webhooks/razorpay", body, gateway.SignatureHeader, gateway.Sign(townWebhookSecret, body))
}

// capture is the body of a webhook about money: event is payment.captured,
// order.paid, payment.authorized or payment.failed.
func capture(event, gatewayOrder, paymentID string, amount int64) []byte {
	status := map[string]string{gateway.EventPaymentAuthorized: "authorized", gateway.EventPaymentFailed: "failed"}[event]
	if status == "" {
		status = "captured"
	}
	payload := map[string]any{"payment": map[string]any{"entity": map[string]any{"id": paymentID, "entity": "payment", "amount": amount,
		"currency": "INR", "status": status, "order_id": gatewayOrder, "captured": status == "captured", "notes": []any{}}}}
	if event == gateway.EventOrderPaid {
		payload["order"] = map[string]any{"entity": map[string]any{"id": gatewayOrder, "entity": "order", "amount": amount, "amount_paid": amount,
			"currency": "INR", "status": "paid", "notes": []any{}}}
	}
	b, err := json.Marshal(map[string]any{"entity": "event", "account_id": "acc_e2e", "event": event, "contains": []string{"payment"},
		"payload": payload, "created_at": time.Now().Unix()})
	if err != nil {
		panic(err)
	}
	return b
}

// awaitQuery asks until fields of the answer have these values.
func (a *town) awaitQuery(who domain.Actor, path string, pairs ...string) answer {
	a.t.Helper()
	var x answer
	a.await(path+" shows "+strings.Join(pairs, " "), func() error {
		if x = a.do(who, "GET "+path, nil); x.status != http.StatusOK {
			return x.fault()
		}
		for i := 0; i+1 < len(pairs); i += 2 {
			if v := x.get(pairs[i]); v == nil && pairs[i+1] != "" || v != nil && fmt.Sprint(v) != pairs[i+1] {
				return x.fault()
			}
		}
		return nil
	})
	return x
}

// idle waits until every consumer has done, or parked, all that is on its topics.
func (a *town) idle() {
	a.t.Helper()
	a.await("all consumers have caught up", func() error {
		x := a.do(office, "GET /v1/ops/consumers", nil)
		if x.status != http.StatusOK {
			return x.fault()
		}
		var consumers struct{ Items []consumer.ConsumerStatus }
		if err := json.Unmarshal(x.body, &consumers); err != nil {
			return err
		}
		seen := map[string]bool{}
		for _, c := range consumers.Items {
			for _, p := range c.Partitions {
				seen[fmt.Sprint(c.Consumer, p.Topic, p.Partition)] = true
				if p.LagRecords != 0 {
					return fmt.Errorf("%s is behind: %+v", c.Consumer, p)
				}
			}
		}
		for _, s := range server.Subscriptions() {
			ends, err := eventlog.EndOffsets(a.t.Context(), a.log.client, s.Topics...)
			if err != nil {
				return err
			}
			for tp, end := range ends {
				if end > 0 && !seen[fmt.Sprint(s.Name, tp.Topic, tp.Partition)] {
					return fmt.Errorf("%s has not begun with %v", s.Name, tp)
				}
			}
		}
		return nil
	})
}

// noDeadLetters holds that nothing is in a DLQ.
func (a *town) noDeadLetters() {
	a.t.Helper()
	if items, _ := a.must(office, "GET /v1/ops/dead-letters", nil).get("items").([]any); len(items) > 0 {
		a.t.Errorf("dead letters: %v", items)
	}
}

// A child is this binary as a process of its own, running the command line
// that it is given: to be killed.
type child struct {
	cmd   *exec.Cmd
	ended chan struct{}
	out   *output // of both streams
}

// output is a buffer that may be read while it is written.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// spawn runs tomato with args beside the test.
func (a *town) spawn(args ...string) *child {
	a.t.Helper()
	self, err := os.Executable()
	if err != nil {
		a.t.Fatal(err)
	}
	c := &child{cmd: exec.Command(self, args...), ended: make(chan struct{}), out: &output{}}
	c.cmd.Env = append(os.Environ(), asTomato+"=1", "TOMATO_JWT_SECRET="+townJWTSecret, "TOMATO_CLUSTER_KEY="+townClusterKey, "TOMATO_INTERNAL_KEY="+townInternalKey,
		"TOMATO_RAZORPAY_WEBHOOK_SECRETS="+townWebhookSecret)
	c.cmd.Stdout, c.cmd.Stderr = c.out, c.out
	if err := c.cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	go func() {
		defer close(c.ended)
		_ = c.cmd.Wait()
	}()
	a.t.Cleanup(func() {
		c.kill()
		if a.t.Failed() {
			a.t.Logf("%v said:\n%s", args, c.out)
		}
	})
	return c
}

// kill ends it as a power cut would: without a chance to say anything.
func (c *child) kill() {
	_ = c.cmd.Process.Signal(syscall.SIGKILL)
	<-c.ended
}

// spawnServer runs serve as a process of its own and returns when it is ready.
func (a *town) spawnServer(args ...string) *child {
	a.t.Helper()
	_ = os.Remove(settings.RunningFile(a.cmd.DataDir)) // of one that was killed
	c := a.spawn(append([]string{"serve", "--database-url", a.cmd.DatabaseURL, "--kafka-brokers", strings.Join(a.kafka.Brokers, ","),
		"--data-dir", a.cmd.DataDir, "--http-addr", a.cmd.HTTPAddr, "--partitions", fmt.Sprint(a.cmd.Partitions), "--log-level", logLevel()}, args...)...)
	a.await("serve has started", func() error {
		select {
		case <-c.ended:
			a.t.Fatal("serve ended")
		default:
		}
		r, err := settings.ReadRunning(a.cmd.DataDir)
		if err == nil && a.url != r.URL { // who runs meanwhile reads it
			a.url = r.URL
		}
		return err
	})
	a.cmd.HTTPAddr = strings.TrimPrefix(a.url, "http://") // the next one is there, too
	a.ready()
	return c
}

// tool runs a command of the command line beside the server and returns what
// it printed.
func (a *town) tool(args ...string) string {
	a.t.Helper()
	c := a.spawn(append(args, a.toolArgs()...)...)
	<-c.ended
	if !c.cmd.ProcessState.Success() {
		a.t.Fatalf("tomato %v: %v\n%s", args, c.cmd.ProcessState, c.out)
	}
	return c.out.String()
}

func (a *town) toolArgs() []string {
	return []string{"--database-url", a.cmd.DatabaseURL, "--kafka-brokers", strings.Join(a.kafka.Brokers, ","),
		"--data-dir", a.cmd.DataDir, "--partitions", fmt.Sprint(a.cmd.Partitions), "--log-level", logLevel()}
}

// db is the town's database, for what a test does behind everybody's back.
func (a *town) db() *pgxpool.Pool {
	a.t.Helper()
	pool, err := pgxpool.New(a.t.Context(), a.cmd.DatabaseURL)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(pool.Close)
	return pool
}

// sizes are the numbers of events by topic/id.
func (c *chronicle) sizes(topics ...string) map[string]int {
	c.t.Helper()
	c.upToDate()
	c.mu.Lock()
	defer c.mu.Unlock()
	n := map[string]int{}
	for key, events := range c.events {
		if topic, _, _ := strings.Cut(key, "/"); slices.Contains(topics, topic) {
			n[key] = len(events)
		}
	}
	return n
}

// typesOf is the history of topic/id.
func (c *chronicle) typesOf(key string) []string {
	c.t.Helper()
	c.upToDate()
	c.mu.Lock()
	defer c.mu.Unlock()
	return types(c.events[key])
}
