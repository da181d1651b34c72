package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tomato/cmd/tomato/server"
	"tomato/commandside/gateway"
	"tomato/domain"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
)

// TestOneOrderToDelivered: from the basket to the door, by one server, with
// every step as an event, in the queries, and told to every party.
func TestOneOrderToDelivered(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, kafka eventlog.Config) {
		a := newTown(t, kafka).open()
		a.restaurant("r1", lng0, lat0)
		a.rider("near", lng0, lat0+0.001)
		a.rider("nearer", lng0, lat0+0.0005)
		a.rider("far", lng0, lat0+0.06) // 6.7 km: not in the first wave
		cust, rest, winner, loser, opsFeed := a.feed(customer("c1")), a.feed(staff("r1")), a.feed(courier("near")), a.feed(courier("nearer")), a.feed(office, "ops")

		x := a.when(customer("c1"), "POST /v1/orders", basket("r1")).then(201, "ORDER_PLACED").
			want("status", "placed", "paymentStatus", "pending", "amount", "50000", "currency", "INR", "items.0.unitPrice", "25000", "pickUp.name", "Kitchen r1")
		id := x.str("orderId")
		path := "/v1/orders/" + id
		if x.get("paymentDueAt") == nil || x.etag() != `"1"` || x.header.Get("Location") != path {
			t.Errorf("placed: %v %s", x.header, x.body)
		}
		ofOrder := a.feed(office, "order:"+id)
		a.when(staff("r1"), "POST "+path+"/accept-order", nil).thenRefused(409, "order_not_paid")

		pay := a.when(customer("c1"), "POST "+path+"/payment", nil).then(200, "PAYMENT_REQUESTED").want("amount", "50000", "provider", "simulated")
		a.when(customer("c1"), "POST "+path+"/payment", nil).then(200).want("gatewayOrderId", pay.str("gatewayOrderId"))
		paymentID := a.must(customer("c1"), "POST /v1/simulated-gateway/orders/"+pay.str("gatewayOrderId")+"/pay", map[string]any{"outcome": "captured"}).str("paymentId")
		fresh := rest.expect("order:new", of(id)) // the restaurant hears of it when it is paid
		if fresh.Room != "restaurant:r1" || fresh.payload("paymentStatus") != "paid" || fresh.payload("amount") != 50000.0 {
			t.Errorf("order:new: %s in %s", fresh.Payload, fresh.Room)
		}
		cust.expect("order:update", func(m message) bool { return of(id)(m) && m.payload("paymentStatus") == "paid" })

		a.when(staff("r1"), "POST "+path+"/accept-order", map[string]any{"prepMinutes": 15}).then(200, "ORDER_ACCEPTED").want("status", "accepted")
		a.when(staff("r1"), "POST "+path+"/preparing", nil).then(200, "ORDER_PREPARING").want("status", "preparing")
		a.when(staff("r1"), "POST "+path+"/ready", nil).then(200, "ORDER_READY_FOR_RIDER").want("status", "ready_for_rider")
		offer := winner.expect("order:available", of(id))
		loser.expect("order:available", of(id))
		if offer.payload("restaurantId") != "r1" || offer.payload("distanceMeters") == nil || offer.payload("location.type") != "Point" || offer.payload("expiresAt") == nil {
			t.Errorf("order:available: %s", offer.Payload)
		}
		offered := a.awaitEvent(eventlog.Orders, id, "ORDER_OFFERED", 1)
		if data(offered, "riders.0.riderId") != "nearer" || data(offered, "riders.1.riderId") != "near" || data(offered, "riders.2") != nil {
			t.Errorf("offered to %s, want the near ones, nearest first", offered.Data)
		}
		a.awaitQuery(courier("near"), "/v1/riders/near/offers", "items.0.orderId", id)

		won := a.when(courier("near"), "POST "+path+"/accept", nil).then(200, "RIDER_ASSIGNED").want("status", "rider_assigned", "riderId", "near", "riderName", "Rider near")
		a.when(courier("nearer"), "POST "+path+"/accept", nil).thenRefused(409, "order_already_assigned")
		a.when(courier("far"), "POST "+path+"/accept", nil).thenRefused(404, "order_not_found")
		for _, f := range []*feedClient{cust, rest, ofOrder} {
			if m := f.expect("order:rider_assigned", of(id)); m.payload("riderId") != "near" || m.payload("riderName") != "Rider near" {
				t.Errorf("%s: order:rider_assigned: %s", f.who.Sub, m.Payload)
			}
		}
		if m := loser.expect("order:taken", of(id)); m.payload("reason") != "assigned" {
			t.Errorf("order:taken: %s", m.Payload)
		}
		a.must(customer("c1"), "GET "+path, nil, "Consistency-Token", won.token()).want("status", "rider_assigned", "paymentStatus", "paid", "version", won.etag()[1:len(won.etag())-1])
		a.awaitQuery(courier("near"), "/v1/riders/near", "status", "busy", "orderId", id)

		winner.send(map[string]any{"op": "location", "location": point(lng0, lat0+0.002)})
		ofOrder.expect("rider:location", func(m message) bool { return m.payload("riderId") == "near" })
		a.when(courier("near"), "POST "+path+"/pick-up", nil).then(200, "ORDER_PICKED_UP").want("status", "picked_up")
		a.when(courier("near"), "POST "+path+"/deliver", nil).then(200, "ORDER_DELIVERED").want("status", "delivered")
		// Free before the answer came: the next command finds no claim.
		a.must(courier("near"), "PUT /v1/riders/near", riderName("near")).want("status", "available", "orderId", "")
		for _, f := range []*feedClient{cust, rest, ofOrder, winner} {
			f.expect("order:update", func(m message) bool { return of(id)(m) && m.payload("status") == "delivered" })
		}

		// A repeat, and a step back, change nothing.
		for step, role := range map[string]domain.Actor{"deliver": courier("near"), "pick-up": courier("near"), "ready": staff("r1"), "preparing": staff("r1"), "accept-order": staff("r1")} {
			a.when(role, "POST "+path+"/"+step, nil).then(200).want("status", "delivered")
		}
		a.when(customer("c1"), "POST "+path+"/cancel", map[string]any{"reason": "late"}).thenRefused(409, "invalid_transition").want("currentStatus", "delivered")
		a.when(staff("r2"), "POST "+path+"/ready", nil).thenRefused(404, "order_not_found")

		all := a.awaitQuery(customer("c1"), path+"/events", "items.8.type", "ORDER_DELIVERED")
		want := []string{"ORDER_PLACED", "ORDER_PAID", "ORDER_ACCEPTED", "ORDER_PREPARING", "ORDER_READY_FOR_RIDER", "ORDER_OFFERED", "RIDER_ASSIGNED", "ORDER_PICKED_UP", "ORDER_DELIVERED"}
		var shown []string
		for _, e := range all.get("items").([]any) {
			shown = append(shown, dig(e, "type").(string))
		}
		if got := types(a.history(eventlog.Orders, id)); !slices.Equal(got, want) || !slices.Equal(shown, want) {
			t.Errorf("the log has %v, the query %v, want %v", got, shown, want)
		}
		a.must(customer("c1"), "GET /v1/payments/"+id, nil).want("state", "paid", "payments.0.paymentId", paymentID)
		a.must(courier("near"), "GET /v1/orders?status=delivered", nil).want("items.0.orderId", id)

		// Each party was told of each change once, in order.
		if got, want := cust.told(id), []string{"order:update placed", "order:update placed", "order:update accepted", "order:update preparing", "order:update ready_for_rider",
			"order:update rider_assigned", "order:rider_assigned", "order:update picked_up", "order:update delivered"}; !slices.Equal(got, want) {
			t.Errorf("the customer was told %v, want %v", got, want)
		}
		if len(opsFeed.told(id)) > 0 {
			t.Errorf("room ops was told %v", opsFeed.told(id))
		}
		for _, eventType := range []string{"order:new", "order:rider_assigned"} {
			if n := strings.Count(strings.Join(rest.told(id), ","), eventType); n != 1 {
				t.Errorf("the restaurant was told %s %d times: %v", eventType, n, rest.told(id))
			}
		}
		aKcatView(t, a.history(eventlog.Orders, id))
		a.noDeadLetters()
	})
}

// aKcatView holds records to what anybody reads off the topic: the key, plain
// text headers, and the data as compact JSON on one line.
func aKcatView(t *testing.T, events []eventlog.Event) {
	t.Helper()
	for _, e := range events {
		r := e.Record
		h := map[string]string{}
		for _, x := range r.Headers {
			h[x.Key] = string(x.Value)
		}
		for name, want := range map[string]string{"ce_specversion": "1.0", "ce_type": e.Type, "ce_subject": e.Subject, "content-type": "application/json",
			"version": fmt.Sprint(e.Version), "term": fmt.Sprint(e.Term), "seq": fmt.Sprint(e.Seq)} {
			if h[name] != want {
				t.Errorf("%s: header %s is %q, want %q", e.Type, name, h[name], want)
			}
		}
		for _, name := range []string{"ce_id", "ce_source", "ce_time"} {
			if h[name] == "" {
				t.Errorf("%s has no header %s", e.Type, name)
			}
		}
		if _, err := time.Parse(time.RFC3339, h["ce_time"]); err != nil {
			t.Error(err)
		}
		var compact bytes.Buffer
		if err := json.Compact(&compact, r.Value); err != nil || !bytes.Equal(compact.Bytes(), r.Value) || bytes.ContainsRune(r.Value, '\n') {
			t.Errorf("%s: the value is not compact JSON on one line (%v): %s", e.Type, err, r.Value)
		}
		if string(r.Key) != e.Subject || data(e, "orderId") != e.Subject || data(e, "ctx.customerId") != "c1" || data(e, "ctx.restaurantId") != "r1" {
			t.Errorf("%s: key %s, value %s", e.Type, r.Key, r.Value)
		}
	}
	ready := events[slices.IndexFunc(events, func(e eventlog.Event) bool { return e.Type == "ORDER_READY_FOR_RIDER" })]
	if data(ready, "restaurantId") != "r1" || data(ready, "location.type") != "Point" {
		t.Errorf("ORDER_READY_FOR_RIDER: %s", ready.Data)
	}
}

// TestOneWinnerAmongFiftyRiders: fifty riders accept one order at once, again
// and again. The tutorial's system read, then updated, and told losers that
// they had won.
func TestOneWinnerAmongFiftyRiders(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, kafka eventlog.Config) {
		rounds := 200 // on each broker
		switch {
		case testing.Short():
			rounds = 5
		case raceDetector:
			rounds = 50
		}
		// On a busy machine the rounds outlast the riders' positions.
		a := newTown(t, kafka, "--offer-ttl", "1h", "--position-max-age", "1h").open()
		a.restaurant("r1", lng0, lat0)
		riders := a.riders("k", 50, lng0, lat0)
		orders := make([]string, rounds)
		a.each(rounds, 8, func(i int) { orders[i] = a.cook(fmt.Sprint("c", i), "r1") })
		for i, id := range orders {
			a.must(staff("r1"), "POST /v1/orders/"+id+"/ready", nil)
			a.await("all are offered order "+id, func() error {
				asked := map[string]bool{}
				for _, e := range a.history(eventlog.Orders, id) {
					if e.Type != "ORDER_OFFERED" {
						continue
					}
					for _, r := range data(e, "riders").([]any) {
						asked[dig(r, "riderId").(string)] = true
					}
				}
				if len(asked) < len(riders) {
					return fmt.Errorf("only %d of them, in round %d", len(asked), i)
				}
				return nil
			})
			var mu sync.Mutex
			var winners []string
			a.each(len(riders), len(riders), func(k int) {
				rider := riders[k]
				x := a.do(courier(rider), "POST /v1/orders/"+id+"/accept", nil)
				switch {
				case x.status == http.StatusOK && x.str("riderId") == rider:
					mu.Lock()
					winners = append(winners, rider)
					mu.Unlock()
					return
				case x.status != http.StatusConflict || !slices.Contains([]string{"order_already_assigned", "offer_expired", "rider_busy"}, x.code()):
					t.Error(x.fault())
					return
				}
				// The loser is free already: a command that changes nothing shows the rider as the log has them.
				if y := a.do(courier(rider), "PUT /v1/riders/"+rider, riderName(rider)); y.str("status") != "available" {
					t.Errorf("after %s: %v", x.code(), y.fault())
				}
			})
			events := a.history(eventlog.Orders, id)
			if len(winners) != 1 || count(events, "RIDER_ASSIGNED") != 1 {
				t.Fatalf("round %d: %v won, the log has %v", i, winners, types(events))
			}
			a.must(office, "POST /v1/orders/"+id+"/cancel", map[string]any{"reason": "next"}) // and the winner is free again
		}
		for _, rider := range riders {
			claimed := ""
			for _, e := range a.history(eventlog.Riders, rider) {
				switch e.Type {
				case "RIDER_CLAIMED":
					if claimed != "" {
						t.Errorf("%s was claimed for %v while they had %s", rider, data(e, "orderId"), claimed)
					}
					claimed = data(e, "orderId").(string)
				case "RIDER_RELEASED":
					claimed = ""
				}
			}
			if claimed != "" {
				t.Errorf("%s still has %s", rider, claimed)
			}
		}
		a.noDeadLetters()
	})
}

// TestTwentyRidersShareSixOrders: all accept all orders at once, until every
// order has a rider. No rider has two.
func TestTwentyRidersShareSixOrders(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, kafka eventlog.Config) {
		rounds := 10
		if testing.Short() {
			rounds = 2
		}
		a := newTown(t, kafka, "--offer-ttl", "10m").open()
		a.restaurant("r1", lng0, lat0)
		riders := a.riders("k", 20, lng0, lat0)
		for range rounds {
			orders := make([]string, 6)
			a.each(len(orders), len(orders), func(i int) { orders[i] = a.readyOrder(fmt.Sprint("c", i), "r1") })
			for _, id := range orders {
				a.await("all are offered order "+id, func() error {
					asked := 0
					for _, e := range a.history(eventlog.Orders, id) {
						if e.Type == "ORDER_OFFERED" {
							asked += len(data(e, "riders").([]any))
						}
					}
					if asked < len(riders) {
						return fmt.Errorf("only %d of them", asked)
					}
					return nil
				})
			}
			var mu sync.Mutex
			riderOf, ordersOf := map[string]string{}, map[string]int{}
			a.each(len(riders)*len(orders), len(riders)*len(orders), func(n int) {
				rider, id := riders[n%len(riders)], orders[n/len(riders)]
				x := a.do(courier(rider), "POST /v1/orders/"+id+"/accept", nil)
				for deadline := time.Now().Add(patience); x.status == http.StatusServiceUnavailable && time.Now().Before(deadline); {
					x = a.do(courier(rider), "POST /v1/orders/"+id+"/accept", nil) // undecided: ask again
				}
				mu.Lock()
				defer mu.Unlock()
				switch {
				case x.status == http.StatusOK:
					if was := riderOf[id]; was != "" {
						t.Errorf("order %s has %s and %s", id, was, rider)
					}
					riderOf[id] = rider
					ordersOf[rider]++
				case x.status != http.StatusConflict || !slices.Contains([]string{"order_already_assigned", "rider_busy"}, x.code()):
					t.Error(x.fault())
				}
			})
			for _, id := range orders {
				if riderOf[id] == "" || count(a.history(eventlog.Orders, id), "RIDER_ASSIGNED") != 1 {
					t.Errorf("order %s: rider %q, the log has %v", id, riderOf[id], types(a.history(eventlog.Orders, id)))
				}
			}
			for rider, n := range ordersOf {
				if n > 1 {
					t.Errorf("rider %s has %d orders", rider, n)
				}
			}
			for _, id := range orders {
				a.must(office, "POST /v1/orders/"+id+"/cancel", map[string]any{"reason": "next"})
			}
		}
		a.noDeadLetters()
	})
}

// TestNothingIsLostWhileDispatchIsStopped: orders become ready while nobody
// looks for riders. All are offered when somebody does again.
func TestNothingIsLostWhileDispatchIsStopped(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, kafka eventlog.Config) {
		orders := make([]string, 200)
		if testing.Short() {
			orders = orders[:20]
		}
		a := newTown(t, kafka, "--offer-ttl", "10m").open()
		a.restaurant("r1", lng0, lat0)
		a.riders("k", 3, lng0, lat0)
		a.each(len(orders), 16, func(i int) { orders[i] = a.cook(fmt.Sprint("c", i), "r1") })
		a.stop()

		a.cmd.Role = []string{server.RoleCommand, server.RoleQuery, server.RoleFeed, server.RoleProject}
		a.open()
		a.each(len(orders), 16, func(i int) {
			a.must(staff("r1"), "POST /v1/orders/"+orders[i]+"/ready", nil).want("status", "ready_for_rider")
		})
		a.awaitQuery(office, "/v1/orders/"+orders[0], "status", "ready_for_rider")
		for _, id := range orders {
			if events := a.history(eventlog.Orders, id); count(events, "ORDER_READY_FOR_RIDER") != 1 || count(events, "ORDER_OFFERED") != 0 {
				t.Fatalf("without dispatch: %v", types(events))
			}
		}
		a.stop()

		a.cmd.Role = []string{server.RoleCommand, server.RoleQuery, server.RoleFeed, server.RoleProject, server.RoleReact}
		a.open()
		for _, id := range orders {
			a.awaitEvent(eventlog.Orders, id, "ORDER_OFFERED", 1)
		}
		a.idle()
		for _, id := range orders {
			if events := a.history(eventlog.Orders, id); count(events, "ORDER_READY_FOR_RIDER") != 1 || count(events, "ORDER_OFFERED") != 1 {
				t.Errorf("%v", types(events))
			}
		}
		a.noDeadLetters()
	})
}

// TestPoisonParksAndOthersMoveOn: a webhook with a good signature that nobody
// can read goes to the DLQ; what comes after it on its partition goes on, and
// operators see it, from the command line and over REST.
func TestPoisonParksAndOthersMoveOn(t *testing.T) {
	t.Parallel()
	a := newTown(t, eventlogtest.Embedded(t), "--partitions", "1").open()
	a.restaurant("r1", lng0, lat0)
	before := a.place("c1", "r1")
	for _, poison := range []string{"no JSON at all", `{"event":"payment.captured","payload":{}}`} {
		if x := a.webhook([]byte(poison)); x.status != http.StatusOK {
			t.Fatal(x.fault())
		}
	}
	a.pay("c1", before) // behind the poison, on the same partition
	x := a.awaitQuery(office, "/v1/ops/dead-letters?consumer=record-payment", "items.0.class", "poison", "items.1.class", "poison")
	first, second := fmt.Sprint(x.get("items.0.id")), fmt.Sprint(x.get("items.1.id"))
	if strings.Contains(x.str("items.0.error"), "no payment") {
		first, second = second, first
	}
	a.awaitQuery(office, "/v1/ops/dead-letters/"+first, "data", "no JSON at all", "state", "dead")

	if list := a.tool("dlq", "list", "--consumer", "record-payment"); strings.Count(list, "WEBHOOK_RECEIVED  poison") != 2 {
		t.Errorf("dlq list:\n%s", list)
	}
	if shown := a.tool("dlq", "show", first); !strings.Contains(shown, `"data": "no JSON at all"`) {
		t.Errorf("dlq show:\n%s", shown)
	}
	if dry := a.tool("dlq", "replay", "--consumer", "record-payment", "--class", "poison", "--dry-run"); dry != "matched 2, replayed 0\n" {
		t.Errorf("dlq replay --dry-run: %s", dry)
	}
	a.tool("dlq", "replay", "--consumer", "record-payment", "--id", first)
	a.await("it has failed again", func() error {
		x := a.do(office, "GET /v1/ops/dead-letters/"+first, nil)
		if x.get("replays") != 1.0 || x.str("state") != "dead" {
			return x.fault()
		}
		return nil
	})
	a.tool("dlq", "discard", first, "--reason", "noise")
	a.must(office, "POST /v1/ops/dead-letters/"+second+"/discard", map[string]any{"reason": "noise"})
	a.await("the list is empty", func() error {
		if x := a.do(office, "GET /v1/ops/dead-letters", nil); x.get("items.0") != nil {
			return x.fault()
		}
		return nil
	})
	after := a.place("c1", "r1")
	a.pay("c1", after)

	// Not kept at all: a wrong or missing signature.
	body := capture(gateway.EventPaymentCaptured, "order_x", "pay_x", 100)
	for _, signature := range []string{"", gateway.Sign("another", body), gateway.Sign(townWebhookSecret, append(body, ' '))} {
		if x := a.do(domain.Actor{}, "POST /v1/webhooks/razorpay", body, gateway.SignatureHeader, signature); x.status != http.StatusUnauthorized {
			t.Error(x.fault())
		}
	}
}

// TestRepeatsAndConditionsOverREST: Idempotency-Key, If-Match, ETag and
// Consistency-Token do what they promise.
func TestRepeatsAndConditionsOverREST(t *testing.T) {
	t.Parallel()
	a := newTown(t, eventlogtest.Embedded(t)).open()
	a.restaurant("r1", lng0, lat0)

	t.Run("one key, one order, however many ask at once", func(t *testing.T) {
		const n = 40
		ids, statuses := make([]string, n), make([]int, n)
		a.each(n, n, func(i int) {
			x := a.do(customer("c1"), "POST /v1/orders", basket("r1"), "Idempotency-Key", []string{"k1", `"k1"`}[i%2])
			ids[i], statuses[i] = x.str("orderId"), x.status
		})
		for i := range n {
			if ids[i] != ids[0] || statuses[i] != http.StatusCreated {
				t.Fatalf("%d: order %q, status %d; the first was %q", i, ids[i], statuses[i], ids[0])
			}
		}
		if events := a.history(eventlog.Orders, ids[0]); len(events) != 1 {
			t.Errorf("the log has %v", types(events))
		}
		list := a.must(customer("c1"), "GET /v1/orders", nil, "Consistency-Token", a.must(customer("c1"), "POST /v1/orders", basket("r1"), "Idempotency-Key", "k1").token())
		if list.get("items.1") != nil || list.str("items.0.orderId") != ids[0] {
			t.Errorf("the customer has %s", list.body)
		}
		other := basket("r1")
		other["externalReference"] = "another"
		a.when(customer("c1"), "POST /v1/orders", other, "Idempotency-Key", "k1").thenRefused(422, "idempotency_key_reused")
		if x := a.must(customer("c2"), "POST /v1/orders", basket("r1"), "Idempotency-Key", "k1"); x.str("orderId") == ids[0] {
			t.Error("another customer's key is another key")
		}
	})
	t.Run("a repeat gets the first status and the present order", func(t *testing.T) {
		id := a.place("c3", "r1")
		a.pay("c3", id)
		a.when(staff("r1"), "POST /v1/orders/"+id+"/accept-order", nil, "Idempotency-Key", "once").then(200, "ORDER_ACCEPTED").want("status", "accepted")
		a.must(staff("r1"), "POST /v1/orders/"+id+"/preparing", nil)
		a.when(staff("r1"), "POST /v1/orders/"+id+"/accept-order", nil, "Idempotency-Key", "once").then(200).want("status", "preparing")
	})
	t.Run("refusals are not remembered", func(t *testing.T) {
		id := a.place("c4", "r1")
		a.when(staff("r1"), "POST /v1/orders/"+id+"/accept-order", nil, "Idempotency-Key", "k").thenRefused(409, "order_not_paid")
		a.pay("c4", id)
		a.when(staff("r1"), "POST /v1/orders/"+id+"/accept-order", nil, "Idempotency-Key", "k").then(200, "ORDER_ACCEPTED")
	})
	t.Run("If-Match", func(t *testing.T) {
		id := a.place("c5", "r1")
		a.pay("c5", id)
		path := "/v1/orders/" + id
		a.when(staff("r1"), "POST "+path+"/accept-order", nil, "If-Match", `"1"`).thenRefused(412, "precondition_failed")
		x := a.when(staff("r1"), "POST "+path+"/accept-order", nil, "If-Match", `"2"`).then(200, "ORDER_ACCEPTED")
		if x.etag() != `"3"` {
			t.Errorf("ETag %s", x.etag())
		}
		a.when(staff("r1"), "POST "+path+"/accept-order", nil, "If-Match", `"2"`).then(200) // already applied goes first
		y := a.must(customer("c5"), "GET "+path, nil, "Consistency-Token", x.token())
		if y.etag() != `"3"` {
			t.Errorf("ETag of the query: %s", y.etag())
		}
		a.when(staff("r1"), "POST "+path+"/preparing", nil, "If-Match", `not an etag`).then(422)
	})
	t.Run("a query sees what its token stands for", func(t *testing.T) {
		for i := range 30 {
			x := a.must(customer("c6"), "POST /v1/orders", basket("r1"))
			id := x.str("orderId")
			a.must(customer("c6"), "GET /v1/orders/"+id, nil, "Consistency-Token", x.token()).want("status", "placed")
			y := a.must(customer("c6"), "POST /v1/orders/"+id+"/cancel", map[string]any{"reason": "changed my mind"})
			a.must(customer("c6"), "GET /v1/orders?status=cancelled", nil, "Consistency-Token", y.token()).want("items."+fmt.Sprint(i)+".status", "cancelled", "items.0.orderId", id)
		}
		if x := a.do(customer("c6"), "GET /v1/orders", nil, "Consistency-Token", "no token of ours"); x.status != http.StatusUnprocessableEntity {
			t.Error(x.fault())
		}
	})
	t.Run("prices are the menu's, seen as of a token", func(t *testing.T) {
		for i := range 20 {
			amount := int64(1000 + i)
			x := a.must(staff("r1"), "PUT /v1/restaurants/r1/menu/m1", item(amount, true))
			a.must(customer("c7"), "POST /v1/orders", basket("r1"), "Consistency-Token", x.token()).want("amount", fmt.Sprint(2*amount))
		}
	})
}

// TestEmitReachesItsRoom: other systems put messages to rooms with the internal key.
func TestEmitReachesItsRoom(t *testing.T) {
	t.Parallel()
	a := newTown(t, eventlogtest.Embedded(t)).open()
	f := a.feed(customer("c1"))
	emit := map[string]any{"event": "promo", "room": "user:c1", "payload": map[string]any{"text": "hello"}}
	if x := a.do(domain.Actor{}, "POST /api/v1/internal/emit", emit, "x-internal-key", "wrong"); x.status != http.StatusUnauthorized {
		t.Error(x.fault())
	}
	if x := a.do(domain.Actor{}, "POST /api/v1/internal/emit", emit, "x-internal-key", townInternalKey); x.status != http.StatusAccepted {
		t.Error(x.fault())
	}
	if m := f.expect("promo", nil); m.payload("text") != "hello" || m.Room != "user:c1" || m.Cursor == "" {
		t.Errorf("%+v", m)
	}
}
