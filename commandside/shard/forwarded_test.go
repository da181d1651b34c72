package shard

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/domain/restaurant"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

// Ids of orders.
const (
	anOrder    = "0199f3a2-7c1e-7cc0-8000-5a1f0e6a4b11"
	otherOrder = "0199f3a2-7c1e-7cc0-8000-5a1f0e6a4b12"
)

// The signature of a call must not change, because instances of two builds run side by
// side.
func TestTheSignatureOfACallIsFixed(t *testing.T) {
	t.Parallel()
	got := signCall("0123456789abcdef0123456789abcdef", "POST", "/internal/shard-commands", "1700000000000", "4950", hashOf([]byte(`{"a":1}`)))
	// printf 'tomato call v1\nPOST\n/internal/shard-commands\n1700000000000\n4950\n%s\n' "$(printf '{"a":1}' | sha256sum | cut -d' ' -f1)" |
	//   openssl dgst -sha256 -hmac 0123456789abcdef0123456789abcdef
	if want := "c2897a8ad7a8aced214afee0255b65719ca7e7718273b9f99d7d5d14fb22c995"; got != want {
		t.Errorf("the signature is %s, want %s", got, want)
	}
}

// validCommands has one valid request of each command, with every field set.
func validCommands() map[string]Request {
	customer := domain.Actor{Sub: "c1", Role: domain.Customer}
	kitchen := domain.Actor{Sub: "staff", Role: domain.Restaurant, RestaurantID: "r1"}
	courier := domain.Actor{Sub: "x1", Role: domain.Rider}
	ops := domain.Actor{Sub: "ops1", Role: domain.Ops}
	system := domain.SystemActor
	at := domain.Point{Lng: 77.6, Lat: 12.9}
	all := map[string]Request{}
	add := func(topic, id string, a domain.Actor, c domain.Command) {
		all[c.CommandName()] = Request{Topic: topic, ID: id, Actor: a, Command: c}
	}
	o, p := eventlog.Orders, eventlog.Payments
	add(o, anOrder, customer, Place{CustomerID: "c1", RestaurantID: "r1", Lines: []restaurant.Line{{ItemID: "dosa", Quantity: 100}},
		DeliverTo: subjectkeystest.DeliverTo("c1", `{"address":"`+strings.Repeat("\t", 500)+`","instructions":"`+strings.Repeat("\U0001f345", 500)+`"}`), ExternalReference: "e", PaymentTTL: time.Minute})
	add(eventlog.Riders, "x1", system, Known{RiderIDs: []string{"x1", "x2"}})
	add(o, anOrder, system, Look{})
	add(o, anOrder, system, order.MarkPaid{PaymentID: "pay_1", AcceptTTL: time.Minute})
	add(o, anOrder, kitchen, order.AcceptOrder{PrepMinutes: 240})
	add(o, anOrder, kitchen, order.Reject{Reason: "sold out"})
	add(o, anOrder, kitchen, order.Prepare{})
	add(o, anOrder, kitchen, order.Ready{})
	add(o, anOrder, system, order.OfferWave{Round: 1, Wave: 1, Riders: []order.OfferedRider{{RiderID: "x1", DistanceMeters: 5}}, TTL: time.Second, Limit: 50})
	add(o, anOrder, system, order.Exhaust{Round: 1, LastWave: 3})
	add(o, anOrder, ops, order.RequestDispatch{})
	add(o, anOrder, courier, order.CheckOffer{RiderID: "x1"})
	add(o, anOrder, system, order.Assign{RiderID: "x1", RiderName: subjectkeystest.Name("x1", "Una"), ClaimID: 3, Round: 1, Wave: 1})
	add(o, anOrder, courier, order.Decline{RiderID: "x1"})
	add(o, anOrder, courier, order.DropOrder{By: courier, Reason: "flat tyre"})
	add(o, anOrder, courier, order.PickUpOrder{})
	add(o, anOrder, courier, order.Deliver{})
	add(o, anOrder, kitchen, order.Cancel{By: kitchen, Reason: "closed"})
	add(p, anOrder, customer, payment.RequestPayment{OrderID: anOrder, Provider: "razorpay", GatewayOrderID: "order_1"})
	add(p, anOrder, system, payment.RecordCaptured{PaymentID: "pay_1", GatewayOrderID: "order_1", Amount: 1, Currency: "INR"})
	add(p, anOrder, system, payment.RecordFailed{PaymentID: "pay_1", GatewayOrderID: "order_1", Amount: 1, Currency: "INR", Reason: "declined"})
	add(p, "pay_1", system, payment.RecordUnmatched{PaymentID: "pay_1", GatewayOrderID: "order_1", Amount: 1, Currency: "INR", Reason: payment.ReasonUnknownOrder})
	add(p, anOrder, ops, payment.RequestRefund{PaymentID: "pay_1", RefundID: anOrder, Reason: "late", ByOps: true})
	add(p, anOrder, system, payment.RecordRefund{RefundID: anOrder, Succeeded: true})
	add(p, "pay_1", ops, payment.Resolve{PaymentID: "pay_1", Reason: "paid back", By: "ops1"})
	x, r := eventlog.Riders, eventlog.Restaurants
	add(x, "x1", ops, rider.Put{RiderID: "x1", Name: subjectkeystest.Name("x1", "Una"), Vehicle: "bicycle"})
	add(x, "x1", ops, rider.Verify{})
	add(x, "x1", ops, rider.Suspend{})
	add(x, "x1", courier, rider.GoOnline{})
	add(x, "x1", courier, rider.GoOffline{})
	add(x, "x1", system, rider.ClaimFor{OrderID: anOrder, Round: 1, Wave: 1, CustomerID: "c1", RestaurantID: "r1"})
	add(x, "x1", system, rider.Release{ClaimID: 3, OrderID: anOrder})
	add(r, "r1", kitchen, restaurant.Put{RestaurantID: "r1", Name: "Dosa Corner", Location: at, Address: "1 Road"})
	add(r, "r1", kitchen, restaurant.Open{})
	add(r, "r1", kitchen, restaurant.Close{})
	add(r, "r1", ops, restaurant.SetMenuItem{Item: restaurant.MenuItem{ItemID: "dosa", Name: "Dosa", Price: domain.Money{Amount: 100_000_000, Currency: "INR"}, Available: true}})
	add(r, "r1", ops, restaurant.RemoveMenuItem{ItemID: "dosa"})
	return all
}

// Every command that the REST calls accept can be forwarded.
func TestEveryValidCommandIsForwarded(t *testing.T) {
	t.Parallel()
	valid := validCommands()
	for name := range commands {
		r, ok := valid[name]
		if !ok {
			t.Errorf("%s has no valid example here", name)
			continue
		}
		r.IdempotencyKey, r.BodyHash, r.IfMatch, r.CausationID, r.CorrelationID = strings.Repeat("~", 255), `{"a":"é"}`, 1, "c", "d"
		r.Traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
		r.OrMatch = []int64{1, 7}
		if err := r.prepare(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		b, err := encodeRequest(r)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := decodeRequest(b); err != nil || !reflect.DeepEqual(r, back) {
			t.Errorf("%s: %s\nis read as %+v: %v", name, b, back, err)
		}
	}
}

// badCommands returns forwarded commands that the REST calls would not accept, by what
// is wrong with them.
func badCommands(t testing.TB) map[string][]byte {
	t.Helper()
	valid, all := validCommands(), map[string][]byte{}
	encode := func(r Request) []byte {
		b, err := encodeRequest(r)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	add := func(what, command string, change func(*Request)) {
		r := valid[command]
		change(&r)
		all[command+": "+what] = encode(r)
	}
	stranger := domain.Actor{Sub: "mallory", Role: domain.Customer}
	for name, r := range valid {
		if commands[name].roles[0] == domain.System && len(commands[name].roles) == 1 {
			add("by a customer", name, func(r *Request) { r.Actor = stranger })
			add("by ops", name, func(r *Request) { r.Actor = domain.Actor{Sub: "o", Role: domain.Ops} })
		}
		add("without an actor", name, func(r *Request) { r.Actor = domain.Actor{} })
		add("another who says system", name, func(r *Request) { r.Actor = domain.Actor{Sub: "mallory", Role: domain.System} })
		add("an unknown role", name, func(r *Request) { r.Actor.Role = "king" })
		add("no topic", name, func(r *Request) { r.Topic = "" })
		add("no aggregate's topic", name, func(r *Request) { r.Topic = eventlog.ShardOwners })
		add("no id", name, func(r *Request) { r.ID = "" })
		add("an id that is none", name, func(r *Request) { r.ID = "../" + r.ID })
		add("an unknown version", name, func(r *Request) { r.IfMatch = -3 })
		add("another version without a first", name, func(r *Request) { r.OrMatch = []int64{1} })
		add("a version that is none", name, func(r *Request) { r.IfMatch, r.OrMatch = 1, []int64{0} })
		add("a key with a space", name, func(r *Request) { r.IdempotencyKey = "a b" })
		add("a key too long", name, func(r *Request) { r.IdempotencyKey = strings.Repeat("k", 256) })
		add("a body without a key", name, func(r *Request) { r.BodyHash = "x" })
		add("a traceparent that is none", name, func(r *Request) { r.Traceparent = "x" })
		add("a cause too long", name, func(r *Request) { r.CausationID = strings.Repeat("c", 256) })
		add("a cause with a line's end", name, func(r *Request) { r.CorrelationID = "a\nb" })
		b := encode(r)
		all[name+": an unknown field"] = bytes.Replace(b, []byte(`{`), []byte(`{"paid":true,`), 1)
		all[name+": an unknown field of the command"] = bytes.Replace(b, []byte(`"commandData":{`), []byte(`"commandData":{"paid":true,`), 1)
		all[name+": an unknown field of the actor"] = bytes.Replace(b, []byte(`"actor":{`), []byte(`"actor":{"admin":true,`), 1)
		all[name+": something behind"] = append(bytes.Clone(b), " {}"...)
		all[name+": cut"] = b[:len(b)-1]
	}
	for name := range valid { // there is a comma before the brace if the command has no fields
		k := name + ": an unknown field of the command"
		all[k] = bytes.Replace(all[k], []byte(`"paid":true,}`), []byte(`"paid":true}`), 1)
	}
	add("on the payment's topic", "mark-paid", func(r *Request) { r.Topic = eventlog.Payments })
	add("an order's id in capitals", "look", func(r *Request) { r.ID = strings.ToUpper(r.ID) })
	add("no time", "mark-paid", func(r *Request) { r.Command = order.MarkPaid{PaymentID: "p"} })
	add("no payment", "mark-paid", func(r *Request) { r.Command = order.MarkPaid{AcceptTTL: 1} })
	place := func(what string, change func(*Place)) {
		add(what, "place", func(r *Request) {
			c := r.Command.(Place)
			change(&c)
			r.Command = c
		})
	}
	place("for another", func(c *Place) { c.CustomerID = "c2" })
	place("nothing", func(c *Place) { c.Lines = nil })
	place("too much", func(c *Place) { c.Lines = make([]restaurant.Line, 101) })
	place("101 of an item", func(c *Place) { c.Lines = []restaurant.Line{{ItemID: "dosa", Quantity: 101}} })
	place("fewer than none", func(c *Place) { c.Lines = []restaurant.Line{{ItemID: "dosa", Quantity: -1}} })
	place("an item that is none", func(c *Place) { c.Lines = []restaurant.Line{{ItemID: "a b", Quantity: 1}} })
	place("no address", func(c *Place) { c.DeliverTo = "" })
	place("a long address", func(c *Place) { c.DeliverTo += domain.Sealed(strings.Repeat("A", 16<<10)) })
	place("an address in the clear", func(c *Place) { c.DeliverTo = `{"address":"4 Church Street"}` })
	place("no time to pay", func(c *Place) { c.PaymentTTL = -1 })
	place("no restaurant", func(c *Place) { c.RestaurantID = "" })
	add("an id that has no time", "place", func(r *Request) { r.ID = "0199f3a2-7c1e-4cc0-8000-5a1f0e6a4b11" })
	add("nowhere", "put-restaurant", func(r *Request) {
		r.Command = restaurant.Put{RestaurantID: "r1", Name: "n", Location: domain.Point{Lng: 181}}
	})
	add("for another", "put-restaurant", func(r *Request) { r.Command = restaurant.Put{RestaurantID: "r2", Name: "n"} })
	add("for nothing", "set-menu-item", func(r *Request) {
		r.Command = restaurant.SetMenuItem{Item: restaurant.MenuItem{ItemID: "i", Name: "n", Price: domain.Money{Currency: "INR"}}}
	})
	add("too dear", "set-menu-item", func(r *Request) {
		r.Command = restaurant.SetMenuItem{Item: restaurant.MenuItem{ItemID: "i", Name: "n", Price: domain.Money{Amount: 100_000_001, Currency: "INR"}}}
	})
	add("no currency", "set-menu-item", func(r *Request) {
		r.Command = restaurant.SetMenuItem{Item: restaurant.MenuItem{ItemID: "i", Name: "n", Price: domain.Money{Amount: 1}}}
	})
	add("241 minutes", "accept-order", func(r *Request) { r.Command = order.AcceptOrder{PrepMinutes: 241} })
	add("no reason", "reject", func(r *Request) { r.Command = order.Reject{} })
	add("as another", "cancel", func(r *Request) {
		r.Command = order.Cancel{By: domain.Actor{Sub: "ops1", Role: domain.Ops}, Reason: "r"}
	})
	add("as another", "drop", func(r *Request) { r.Command = order.DropOrder{By: stranger, Reason: "r"} })
	add("for another", "accept", func(r *Request) { r.Command = order.CheckOffer{RiderID: "x2"} })
	add("for another", "decline", func(r *Request) { r.Command = order.Decline{RiderID: "x2"} })
	add("with facts of an order", "payment", func(r *Request) {
		r.Command = payment.RequestPayment{OrderID: anOrder, Provider: "p", Order: payment.OrderFacts{Payable: true}}
	})
	add("with facts of an order", "record-captured", func(r *Request) {
		r.Command = payment.RecordCaptured{PaymentID: "p", GatewayOrderID: "g", Amount: 1, Currency: "INR", Order: payment.OrderFacts{Payable: true, Amount: 1}}
	})
	add("no money", "record-captured", func(r *Request) {
		r.Command = payment.RecordCaptured{PaymentID: "p", GatewayOrderID: "g", Amount: 0, Currency: "INR"}
	})
	add("of another", "record-unmatched", func(r *Request) {
		r.Command = payment.RecordUnmatched{PaymentID: "p2", Amount: 1, Currency: "INR", Reason: "r"}
	})
	add("as another", "resolve", func(r *Request) { r.Command = payment.Resolve{PaymentID: "pay_1", Reason: "r", By: "ops2"} })
	add("nobody", "known", func(r *Request) { r.Command = Known{} })
	add("too many", "known", func(r *Request) { r.Command = Known{RiderIDs: make([]string, 10_001)} })
	add("a limit too high", "offer", func(r *Request) { r.Command = order.OfferWave{Round: 1, Wave: 1, TTL: 1, Limit: 1001} })
	add("a round that is none", "offer", func(r *Request) { r.Command = order.OfferWave{Round: -1, Wave: 1, TTL: 1, Limit: 1} })
	add("no claim", "release", func(r *Request) { r.Command = rider.Release{OrderID: anOrder} })
	all["an unknown command"] = []byte(`{"topic":"orders","id":"` + anOrder + `","actor":{"sub":"system","role":"system"},"command":"expire","commandData":{}}`)
	all["no command"] = []byte(`{"topic":"orders","id":"` + anOrder + `","actor":{"sub":"system","role":"system"}}`)
	all["a token that is none"] = []byte(`{"topic":"orders","id":"` + anOrder + `","actor":{"sub":"system","role":"system"},"command":"look","commandData":{},"afterToken":"!"}`)
	all["nothing"], all["null"], all["a list"] = nil, []byte("null"), []byte("[]")
	return all
}

// forwarding is an instance that serves all shards, and its address.
type forwarding struct {
	*Shards
	url      string
	cfg      eventlog.Config
	registry *prometheus.Registry
}

func startForwarding(t *testing.T) forwarding {
	t.Helper()
	cfg := eventlogtest.Embedded(t)
	eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: 2})
	menus, registry := NewMenus(), prometheus.NewRegistry()
	s, err := NewShards(Config{Kafka: cfg, Partitions: 2, Menus: menus, ClusterKeys: []string{testClusterKey}, PaymentGrace: time.Hour, ArchiveAfter: 720 * time.Hour,
		InboxPassed: func(context.Context, string) (bool, error) { return true, nil }, Registry: registry, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(CommandsPath, s.Handler())
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	s.URL = server.URL
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- menus.Run(ctx, cfg, s.Log) }()
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
	// Each shard serves once it has answered.
	for _, id := range []string{"x1", "x2", "x3", "x4", "x5", "x6"} {
		if _, err := s.Execute(t.Context(), Request{Topic: eventlog.Riders, ID: id, Actor: domain.SystemActor, Command: rider.Put{RiderID: id, Name: subjectkeystest.Name(id, "Una")}}); err != nil {
			t.Fatal(err)
		}
	}
	return forwarding{s, server.URL, cfg, registry}
}

// ends returns the ends of the four logs. Tests compare them to check that nothing was
// appended.
func (f forwarding) ends(t *testing.T) map[eventlog.TopicPartition]int64 {
	t.Helper()
	client, err := f.cfg.NewClient()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ends, err := eventlog.EndOffsets(t.Context(), client, eventlog.AggregateTopics[:]...)
	if err != nil {
		t.Fatal(err)
	}
	return ends
}

// counterValue returns the value of a counter with this label.
func counterValue(registry *prometheus.Registry, name, label string) float64 {
	families, _ := registry.Gather()
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if family.GetName() == name && m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

func (f forwarding) refused(reason string) float64 {
	return counterValue(f.registry, "tomato_shard_calls_refused_total", reason)
}

// call sends a body that is signed with the key, after the headers have been changed.
func (f forwarding) call(t *testing.T, key string, body []byte, change func(*http.Request)) (status int, answer string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.url+CommandsPath, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	(&Shards{Config: Config{ClusterKeys: []string{key}}}).signRequest(req.Header, body, 10*time.Second)
	if change != nil {
		change(req)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if ct := resp.Header.Get("Content-Type"); resp.StatusCode >= 400 && ct != "application/problem+json" {
		t.Errorf("%d is %s: %s", resp.StatusCode, ct, b)
	}
	return resp.StatusCode, string(b)
}

// A call is handled only if an instance has signed it, recently, and nothing of it was
// changed.
func TestOnlyInstancesMayForward(t *testing.T) {
	t.Parallel()
	f := startForwarding(t)
	r := Request{Topic: eventlog.Riders, ID: "x1", Actor: domain.SystemActor, Command: rider.Verify{}}
	body, err := encodeRequest(r)
	if err != nil {
		t.Fatal(err)
	}
	other, _ := encodeRequest(Request{Topic: eventlog.Riders, ID: "x2", Actor: domain.SystemActor, Command: rider.Verify{}})
	resign := func(at time.Time, timeout string) func(*http.Request) {
		return func(r *http.Request) {
			ms := strconv.FormatInt(at.UnixMilli(), 10)
			r.Header.Set(hdrTime, ms)
			r.Header.Set(hdrTimeout, timeout)
			r.Header.Set(hdrSignature, signCall(testClusterKey, r.Method, CommandsPath, ms, timeout, hashOf(body)))
		}
	}
	before := f.ends(t)
	for _, c := range []struct {
		what   string
		key    string
		status int
		reason string
		change func(*http.Request)
	}{
		{"another key", "another key of thirty-two bytes..", 401, refusedSignature, nil},
		{"the key itself in the old header", testClusterKey, 401, refusedSignature, func(r *http.Request) {
			r.Header = http.Header{"X-Internal-Key": {testClusterKey}}
		}},
		{"no signature", testClusterKey, 401, refusedSignature, func(r *http.Request) { r.Header.Del(hdrSignature) }},
		{"a later time", testClusterKey, 401, refusedSignature, func(r *http.Request) { r.Header.Set(hdrTime, strconv.FormatInt(time.Now().UnixMilli()+1, 10)) }},
		{"another deadline", testClusterKey, 401, refusedSignature, func(r *http.Request) { r.Header.Set(hdrTimeout, "9999") }},
		{"another body and its hash", testClusterKey, 401, refusedSignature, func(r *http.Request) {
			r.Header.Set(hdrBodyHash, hashOf(other))
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(other)), int64(len(other))
		}},
		{"another path", testClusterKey, 401, refusedSignature, func(r *http.Request) {
			r.Header.Set(hdrSignature, signCall(testClusterKey, r.Method, "/v1/orders", r.Header.Get(hdrTime), r.Header.Get(hdrTimeout), hashOf(body)))
		}},
		{"another method", testClusterKey, 401, refusedSignature, func(r *http.Request) {
			r.Header.Set(hdrSignature, signCall(testClusterKey, "GET", CommandsPath, r.Header.Get(hdrTime), r.Header.Get(hdrTimeout), hashOf(body)))
		}},
		{"an old call", testClusterKey, 401, refusedClock, resign(time.Now().Add(-clockWindow-time.Second), "5000")},
		{"a call from the future", testClusterKey, 401, refusedClock, resign(time.Now().Add(clockWindow+10*time.Second), "5000")},
		{"no deadline", testClusterKey, 400, refusedCommand, resign(time.Now(), "")},
		{"a deadline that has passed", testClusterKey, 400, refusedCommand, resign(time.Now(), "0")},
		{"a deadline too far", testClusterKey, 400, refusedCommand, resign(time.Now(), "300001")},
		{"a body that was not signed", testClusterKey, 400, refusedBody, func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(other)), int64(len(other))
		}},
		{"a body too long", testClusterKey, 400, refusedBody, func(r *http.Request) {
			long := append(bytes.Clone(body), make([]byte, maxForwarded)...)
			f.signRequest(r.Header, long, time.Second)
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(long)), int64(len(long))
		}},
	} {
		times := f.refused(c.reason)
		status, answer := f.call(t, c.key, body, c.change)
		if status != c.status || f.refused(c.reason) != times+1 {
			t.Errorf("%s: %d %s, counted as %s %v times", c.what, status, answer, c.reason, f.refused(c.reason)-times)
		}
		if strings.Contains(answer, testClusterKey) {
			t.Errorf("%s: the answer holds the key: %s", c.what, answer)
		}
	}
	if after := f.ends(t); !reflect.DeepEqual(before, after) {
		t.Errorf("the logs went from %v to %v", before, after)
	}
	if status, answer := f.call(t, testClusterKey, body, nil); status != 200 {
		t.Errorf("a good call: %d %s", status, answer)
	}
}

// While the cluster key is changed, instances have both keys and sign with the one or the
// other: each takes the calls and owner records of the other. A key that was taken off the
// list is worth nothing.
func TestTheClusterKeyIsChanged(t *testing.T) {
	t.Parallel()
	const older, newer = testClusterKey, "the next cluster key, of 32 bytes or more"
	for _, c := range []struct {
		signs, has []string
		good       bool
	}{
		{[]string{older}, []string{older, newer}, true},
		{[]string{older, newer}, []string{newer, older}, true},
		{[]string{newer, older}, []string{older, newer}, true},
		{[]string{newer, older}, []string{newer}, true},
		{[]string{newer}, []string{older}, false},
		{[]string{older, newer}, []string{newer}, false},
	} {
		from := &Shards{Config: Config{ClusterKeys: c.signs}}
		to := &Shards{Config: Config{ClusterKeys: c.has, Log: slog.New(slog.DiscardHandler)},
			metrics: &metrics{refusedCalls: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "x"}, []string{"reason"})}}
		r := httptest.NewRequest(http.MethodPost, CommandsPath, strings.NewReader("body"))
		from.signRequest(r.Header, []byte("body"), time.Second)
		if body, _, ok := to.verifyCall(httptest.NewRecorder(), r); ok != c.good || ok && string(body) != "body" {
			t.Errorf("a call signed by one with %q, to one with %q: %v", c.signs, c.has, ok)
		}
		b, err := json.Marshal(Owner{Shard: 1, Term: 7, Claim: 9, Owner: "a", URL: "https://host:8080"}.signed(c.signs[0]))
		if err != nil {
			t.Fatal(err)
		}
		if _, reason := readOwner(b, 1, c.has...); (reason == "") != c.good {
			t.Errorf("a record signed by one with %q, read by one with %q: %q", c.signs, c.has, reason)
		}
	}
}

// The body of a call that is not signed is not read.
func TestTheBodyOfAnUnsignedCallIsNotRead(t *testing.T) {
	t.Parallel()
	s := &Shards{Config: Config{ClusterKeys: []string{testClusterKey}, Log: slog.New(slog.DiscardHandler)},
		metrics: &metrics{refusedCalls: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "x"}, []string{"reason"})}}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodPost, CommandsPath, unread{t}))
	if w.Code != http.StatusUnauthorized {
		t.Errorf("%d", w.Code)
	}
}

type unread struct{ t *testing.T }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("the body was read")
	return 0, io.EOF
}

// A forwarded command is checked like one of a REST call. A command that the REST calls
// would not accept gets 400 and changes nothing.
func TestForwardedCommandsAreChecked(t *testing.T) {
	t.Parallel()
	f := startForwarding(t)
	before := f.ends(t)
	for what, body := range badCommands(t) {
		times := f.refused(refusedCommand)
		if status, answer := f.call(t, testClusterKey, body, nil); status != http.StatusBadRequest || f.refused(refusedCommand) != times+1 {
			t.Errorf("%s: %d %s\n%s", what, status, answer, body[:min(len(body), 400)])
		}
	}
	if after := f.ends(t); !reflect.DeepEqual(before, after) {
		t.Errorf("the logs went from %v to %v", before, after)
	}
}

// A command that is not valid is not forwarded. The error is "not found" if no aggregate
// can have the id, and otherwise an eventlog.ErrPoison, because no repeat can help.
func TestWhatIsNotValidIsNotForwarded(t *testing.T) {
	t.Parallel()
	r := Request{Topic: eventlog.Payments, ID: "what an operator wrote", Actor: domain.SystemActor, Command: payment.RecordRefund{}}
	if err := r.prepare(); domain.RefusedWith(err) != domain.NotFound {
		t.Errorf("%v", err)
	}
	r = validCommands()["mark-paid"]
	r.CausationID, r.CorrelationID, r.Traceparent = "a\nb", strings.Repeat("x", 300), "of a record of somebody else"
	if err := r.prepare(); err != nil || r.CausationID+r.CorrelationID+r.Traceparent != "" {
		t.Errorf("%+v: %v", r, err)
	}
	r.Command = order.MarkPaid{}
	if err := r.prepare(); err == nil || domain.RefusedWith(err) != "" {
		t.Errorf("%v", err)
	}
}

// FuzzForwardedCommand checks that no body makes decodeRequest panic, and that every
// body that it accepts is a valid command that encodes to the same command again.
func FuzzForwardedCommand(f *testing.F) {
	for _, r := range validCommands() {
		b, err := encodeRequest(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRequest(b)
		if err != nil {
			return
		}
		if err := r.check(); err != nil {
			t.Fatalf("taken and not valid: %v", err)
		}
		if logOf(r.Topic) < 0 || !domain.ValidID(r.ID) || r.Actor.Sub == "" || r.Actor.Role == "" || r.Actor.Role == domain.System && r.Actor != domain.SystemActor {
			t.Fatalf("taken: %+v", r)
		}
		again, err := encodeRequest(r)
		if err != nil {
			t.Fatal(err)
		}
		back, err := decodeRequest(again)
		if err != nil {
			t.Fatalf("%s\nis written as %s\nand not taken: %v", b, again, err)
		}
		if third, err := encodeRequest(back); err != nil || !bytes.Equal(again, third) {
			t.Fatalf("%s became %s: %v", again, third, err)
		}
	})
}

// The corpus of FuzzForwardedCommand has a file for each bad command, named after what
// is wrong with it. TOMATO_WRITE_CORPUS=1 writes the corpus.
func TestTheCorpusOfForwardedCommands(t *testing.T) {
	t.Parallel()
	const dir = "testdata/fuzz/FuzzForwardedCommand"
	if os.Getenv("TOMATO_WRITE_CORPUS") != "" {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for what, b := range badCommands(t) {
			if name, _, _ := strings.Cut(what, ":"); len(b) > 2000 || name != "mark-paid" && name != "place" && name != what {
				continue // the others are similar
			}
			name := strings.Trim(strings.Map(func(r rune) rune {
				if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
					return r
				}
				return '-'
			}, strings.ToLower(what)), "-")
			if err := os.WriteFile(filepath.Join(dir, name), []byte("go test fuzz v1\n[]byte("+strconv.Quote(string(b))+")\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if names, _ := filepath.Glob(dir + "/*"); len(names) == 0 {
		t.Error("there is none")
	}
}
