package main_test

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
	"tomato/cmd/tomato/servertest"
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
		a := servertest.New(t, kafka).Start()
		a.AddRestaurant("r1", servertest.Lng, servertest.Lat)
		a.AddRider("near", servertest.Lng, servertest.Lat+0.001)
		a.AddRider("nearer", servertest.Lng, servertest.Lat+0.0005)
		a.AddRider("far", servertest.Lng, servertest.Lat+0.06) // 6.7 km: not in the first wave
		cust, rest, winner, loser, opsFeed := a.Feed(servertest.Customer("c1")), a.Feed(servertest.Staff("r1")), a.Feed(servertest.Rider("near")), a.Feed(servertest.Rider("nearer")), a.Feed(servertest.Ops, "ops")

		x := a.When(servertest.Customer("c1"), "POST /v1/orders", servertest.Basket("r1")).Then(201, "ORDER_PLACED").
			Want("status", "placed", "paymentStatus", "pending", "amount", "50000", "currency", "INR", "items.0.unitPrice", "25000", "pickUp.name", "Kitchen r1")
		id := x.Str("orderId")
		path := "/v1/orders/" + id
		if x.Get("paymentDueAt") == nil || x.ETag() != `"1"` || x.Header.Get("Location") != path {
			t.Errorf("placed: %v %s", x.Header, x.Body)
		}
		ofOrder := a.Feed(servertest.Ops, "order:"+id)
		a.When(servertest.Staff("r1"), "POST "+path+"/accept-order", nil).ThenRefused(409, "order_not_paid")

		pay := a.When(servertest.Customer("c1"), "POST "+path+"/payment", nil).Then(200, "PAYMENT_REQUESTED").Want("amount", "50000", "provider", "simulated")
		a.When(servertest.Customer("c1"), "POST "+path+"/payment", nil).Then(200).Want("gatewayOrderId", pay.Str("gatewayOrderId"))
		paymentID := a.Must(servertest.Customer("c1"), "POST /v1/simulated-gateway/orders/"+pay.Str("gatewayOrderId")+"/pay", map[string]any{"outcome": "captured"}).Str("paymentId")
		fresh := rest.Expect("order:new", servertest.About(id)) // the restaurant hears of it when it is paid
		if fresh.Room != "restaurant:r1" || fresh.Value("paymentStatus") != "paid" || fresh.Value("amount") != 50000.0 {
			t.Errorf("order:new: %s in %s", fresh.Payload, fresh.Room)
		}
		cust.Expect("order:update", func(m servertest.Message) bool { return servertest.About(id)(m) && m.Value("paymentStatus") == "paid" })

		a.When(servertest.Staff("r1"), "POST "+path+"/accept-order", map[string]any{"prepMinutes": 15}).Then(200, "ORDER_ACCEPTED").Want("status", "accepted")
		a.When(servertest.Staff("r1"), "POST "+path+"/preparing", nil).Then(200, "ORDER_PREPARING").Want("status", "preparing")
		a.When(servertest.Staff("r1"), "POST "+path+"/ready", nil).Then(200, "ORDER_READY_FOR_RIDER").Want("status", "ready_for_rider")
		offer := winner.Expect("order:available", servertest.About(id))
		loser.Expect("order:available", servertest.About(id))
		if offer.Value("restaurantId") != "r1" || offer.Value("distanceMeters") == nil || offer.Value("location.type") != "Point" || offer.Value("expiresAt") == nil {
			t.Errorf("order:available: %s", offer.Payload)
		}
		offered := a.AwaitEvent(eventlog.Orders, id, "ORDER_OFFERED", 1)
		if servertest.Data(offered, "riders.0.riderId") != "nearer" || servertest.Data(offered, "riders.1.riderId") != "near" || servertest.Data(offered, "riders.2") != nil {
			t.Errorf("offered to %s, want the near ones, nearest first", offered.Data)
		}
		a.AwaitQuery(servertest.Rider("near"), "/v1/riders/near/offers", "items.0.orderId", id)

		won := a.When(servertest.Rider("near"), "POST "+path+"/accept", nil).Then(200, "RIDER_ASSIGNED").Want("status", "rider_assigned", "riderId", "near", "riderName", "Rider near")
		a.When(servertest.Rider("nearer"), "POST "+path+"/accept", nil).ThenRefused(409, "order_already_assigned")
		a.When(servertest.Rider("far"), "POST "+path+"/accept", nil).ThenRefused(404, "order_not_found")
		for _, f := range []*servertest.FeedClient{cust, rest, ofOrder} {
			if m := f.Expect("order:rider_assigned", servertest.About(id)); m.Value("riderId") != "near" || m.Value("riderName") != "Rider near" {
				t.Errorf("%s: order:rider_assigned: %s", f.Who.Sub, m.Payload)
			}
		}
		if m := loser.Expect("order:taken", servertest.About(id)); m.Value("reason") != "assigned" {
			t.Errorf("order:taken: %s", m.Payload)
		}
		a.Must(servertest.Customer("c1"), "GET "+path, nil, "Consistency-Token", won.Token()).Want("status", "rider_assigned", "paymentStatus", "paid", "version", won.ETag()[1:len(won.ETag())-1])
		a.AwaitQuery(servertest.Rider("near"), "/v1/riders/near", "status", "busy", "orderId", id)

		winner.Send(map[string]any{"op": "location", "location": servertest.Point(servertest.Lng, servertest.Lat+0.002)})
		ofOrder.Expect("rider:location", func(m servertest.Message) bool { return m.Value("riderId") == "near" })
		a.When(servertest.Rider("near"), "POST "+path+"/pick-up", nil).Then(200, "ORDER_PICKED_UP").Want("status", "picked_up")
		a.When(servertest.Rider("near"), "POST "+path+"/deliver", nil).Then(200, "ORDER_DELIVERED").Want("status", "delivered")
		// Free before the answer came: the next command finds no claim.
		a.Must(servertest.Rider("near"), "PUT /v1/riders/near", servertest.RiderName("near")).Want("status", "available", "orderId", "")
		for _, f := range []*servertest.FeedClient{cust, rest, ofOrder, winner} {
			f.Expect("order:update", func(m servertest.Message) bool { return servertest.About(id)(m) && m.Value("status") == "delivered" })
		}

		// A repeat, and a step back, change nothing.
		for step, role := range map[string]domain.Actor{"deliver": servertest.Rider("near"), "pick-up": servertest.Rider("near"), "ready": servertest.Staff("r1"), "preparing": servertest.Staff("r1"), "accept-order": servertest.Staff("r1")} {
			a.When(role, "POST "+path+"/"+step, nil).Then(200).Want("status", "delivered")
		}
		a.When(servertest.Customer("c1"), "POST "+path+"/cancel", map[string]any{"reason": "late"}).ThenRefused(409, "invalid_transition").Want("currentStatus", "delivered")
		a.When(servertest.Staff("r2"), "POST "+path+"/ready", nil).ThenRefused(404, "order_not_found")

		all := a.AwaitQuery(servertest.Customer("c1"), path+"/events", "items.8.type", "ORDER_DELIVERED")
		want := []string{"ORDER_PLACED", "ORDER_PAID", "ORDER_ACCEPTED", "ORDER_PREPARING", "ORDER_READY_FOR_RIDER", "ORDER_OFFERED", "RIDER_ASSIGNED", "ORDER_PICKED_UP", "ORDER_DELIVERED"}
		var shown []string
		for _, e := range all.Get("items").([]any) {
			shown = append(shown, servertest.Dig(e, "type").(string))
		}
		if got := servertest.Types(a.History(eventlog.Orders, id)); !slices.Equal(got, want) || !slices.Equal(shown, want) {
			t.Errorf("the log has %v, the query %v, want %v", got, shown, want)
		}
		a.Must(servertest.Customer("c1"), "GET /v1/payments/"+id, nil).Want("state", "paid", "payments.0.paymentId", paymentID)
		a.Must(servertest.Rider("near"), "GET /v1/orders?status=delivered", nil).Want("items.0.orderId", id)

		// Each party was told of each change once, in order.
		if got, want := cust.Told(id), []string{"order:update placed", "order:update placed", "order:update accepted", "order:update preparing", "order:update ready_for_rider",
			"order:update rider_assigned", "order:rider_assigned", "order:update picked_up", "order:update delivered"}; !slices.Equal(got, want) {
			t.Errorf("the customer was told %v, want %v", got, want)
		}
		if len(opsFeed.Told(id)) > 0 {
			t.Errorf("room ops was told %v", opsFeed.Told(id))
		}
		for _, eventType := range []string{"order:new", "order:rider_assigned"} {
			if n := strings.Count(strings.Join(rest.Told(id), ","), eventType); n != 1 {
				t.Errorf("the restaurant was told %s %d times: %v", eventType, n, rest.Told(id))
			}
		}
		aKcatView(t, a.History(eventlog.Orders, id))
		a.NoDeadLetters()
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
		if string(r.Key) != e.Subject || servertest.Data(e, "orderId") != e.Subject || servertest.Data(e, "ctx.customerId") != "c1" || servertest.Data(e, "ctx.restaurantId") != "r1" {
			t.Errorf("%s: key %s, value %s", e.Type, r.Key, r.Value)
		}
	}
	ready := events[slices.IndexFunc(events, func(e eventlog.Event) bool { return e.Type == "ORDER_READY_FOR_RIDER" })]
	if servertest.Data(ready, "restaurantId") != "r1" || servertest.Data(ready, "location.type") != "Point" {
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
		a := servertest.New(t, kafka, "--offer-ttl", "1h", "--position-max-age", "1h").Start()
		a.AddRestaurant("r1", servertest.Lng, servertest.Lat)
		riders := a.AddRiders("k", 50, servertest.Lng, servertest.Lat)
		orders := make([]string, rounds)
		a.Each(rounds, 8, func(i int) { orders[i] = a.Cook(fmt.Sprint("c", i), "r1") })
		for i, id := range orders {
			a.Must(servertest.Staff("r1"), "POST /v1/orders/"+id+"/ready", nil)
			a.Await("all are offered order "+id, func() error {
				asked := map[string]bool{}
				for _, e := range a.Seen(eventlog.Orders, id) {
					if e.Type != "ORDER_OFFERED" {
						continue
					}
					for _, r := range servertest.Data(e, "riders").([]any) {
						asked[servertest.Dig(r, "riderId").(string)] = true
					}
				}
				if len(asked) < len(riders) {
					return fmt.Errorf("only %d of them, in round %d", len(asked), i)
				}
				return nil
			})
			var mu sync.Mutex
			var winners []string
			a.Each(len(riders), len(riders), func(k int) {
				rider := riders[k]
				x := a.Do(servertest.Rider(rider), "POST /v1/orders/"+id+"/accept", nil)
				switch {
				case x.Status == http.StatusOK && x.Str("riderId") == rider:
					mu.Lock()
					winners = append(winners, rider)
					mu.Unlock()
					return
				case x.Status != http.StatusConflict || !slices.Contains([]string{"order_already_assigned", "offer_expired", "rider_busy"}, x.Code()):
					t.Error(x.Fault())
					return
				}
				// The loser is free already: a command that changes nothing shows the rider as the log has them.
				if y := a.Do(servertest.Rider(rider), "PUT /v1/riders/"+rider, servertest.RiderName(rider)); y.Str("status") != "available" {
					t.Errorf("after %s: %v", x.Code(), y.Fault())
				}
			})
			events := a.History(eventlog.Orders, id)
			if len(winners) != 1 || servertest.Count(events, "RIDER_ASSIGNED") != 1 {
				t.Fatalf("round %d: %v won, the log has %v", i, winners, servertest.Types(events))
			}
			a.Must(servertest.Ops, "POST /v1/orders/"+id+"/cancel", map[string]any{"reason": "next"}) // and the winner is free again
		}
		for _, rider := range riders {
			claimed := ""
			for _, e := range a.History(eventlog.Riders, rider) {
				switch e.Type {
				case "RIDER_CLAIMED":
					if claimed != "" {
						t.Errorf("%s was claimed for %v while they had %s", rider, servertest.Data(e, "orderId"), claimed)
					}
					claimed = servertest.Data(e, "orderId").(string)
				case "RIDER_RELEASED":
					claimed = ""
				}
			}
			if claimed != "" {
				t.Errorf("%s still has %s", rider, claimed)
			}
		}
		a.NoDeadLetters()
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
		a := servertest.New(t, kafka, "--offer-ttl", "10m").Start()
		a.AddRestaurant("r1", servertest.Lng, servertest.Lat)
		riders := a.AddRiders("k", 20, servertest.Lng, servertest.Lat)
		for range rounds {
			orders := make([]string, 6)
			a.Each(len(orders), len(orders), func(i int) { orders[i] = a.ReadyOrder(fmt.Sprint("c", i), "r1") })
			for _, id := range orders {
				a.Await("all are offered order "+id, func() error {
					asked := 0
					for _, e := range a.History(eventlog.Orders, id) {
						if e.Type == "ORDER_OFFERED" {
							asked += len(servertest.Data(e, "riders").([]any))
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
			a.Each(len(riders)*len(orders), len(riders)*len(orders), func(n int) {
				rider, id := riders[n%len(riders)], orders[n/len(riders)]
				x := a.Do(servertest.Rider(rider), "POST /v1/orders/"+id+"/accept", nil)
				for deadline := time.Now().Add(servertest.Patience); x.Status == http.StatusServiceUnavailable && time.Now().Before(deadline); {
					x = a.Do(servertest.Rider(rider), "POST /v1/orders/"+id+"/accept", nil) // undecided: ask again
				}
				mu.Lock()
				defer mu.Unlock()
				switch {
				case x.Status == http.StatusOK:
					if was := riderOf[id]; was != "" {
						t.Errorf("order %s has %s and %s", id, was, rider)
					}
					riderOf[id] = rider
					ordersOf[rider]++
				case x.Status != http.StatusConflict || !slices.Contains([]string{"order_already_assigned", "rider_busy"}, x.Code()):
					t.Error(x.Fault())
				}
			})
			for _, id := range orders {
				if riderOf[id] == "" || servertest.Count(a.History(eventlog.Orders, id), "RIDER_ASSIGNED") != 1 {
					t.Errorf("order %s: rider %q, the log has %v", id, riderOf[id], servertest.Types(a.History(eventlog.Orders, id)))
				}
			}
			for rider, n := range ordersOf {
				if n > 1 {
					t.Errorf("rider %s has %d orders", rider, n)
				}
			}
			for _, id := range orders {
				a.Must(servertest.Ops, "POST /v1/orders/"+id+"/cancel", map[string]any{"reason": "next"})
			}
		}
		a.NoDeadLetters()
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
		a := servertest.New(t, kafka, "--offer-ttl", "10m").Start()
		a.AddRestaurant("r1", servertest.Lng, servertest.Lat)
		a.AddRiders("k", 3, servertest.Lng, servertest.Lat)
		a.Each(len(orders), 16, func(i int) { orders[i] = a.Cook(fmt.Sprint("c", i), "r1") })
		a.Stop()

		a.Config.Role = []string{server.RoleCommand, server.RoleQuery, server.RoleFeed, server.RoleProject}
		a.Start()
		a.Each(len(orders), 16, func(i int) {
			a.Must(servertest.Staff("r1"), "POST /v1/orders/"+orders[i]+"/ready", nil).Want("status", "ready_for_rider")
		})
		a.AwaitQuery(servertest.Ops, "/v1/orders/"+orders[0], "status", "ready_for_rider")
		for _, id := range orders {
			if events := a.History(eventlog.Orders, id); servertest.Count(events, "ORDER_READY_FOR_RIDER") != 1 || servertest.Count(events, "ORDER_OFFERED") != 0 {
				t.Fatalf("without dispatch: %v", servertest.Types(events))
			}
		}
		a.Stop()

		a.Config.Role = []string{server.RoleCommand, server.RoleQuery, server.RoleFeed, server.RoleProject, server.RoleReact}
		a.Start()
		for _, id := range orders {
			a.AwaitEvent(eventlog.Orders, id, "ORDER_OFFERED", 1)
		}
		a.AwaitIdle()
		for _, id := range orders {
			if events := a.History(eventlog.Orders, id); servertest.Count(events, "ORDER_READY_FOR_RIDER") != 1 || servertest.Count(events, "ORDER_OFFERED") != 1 {
				t.Errorf("%v", servertest.Types(events))
			}
		}
		a.NoDeadLetters()
	})
}

// TestPoisonParksAndOthersMoveOn: a webhook with a good signature that nobody
// can read goes to the DLQ; what comes after it on its partition goes on, and
// operators see it, from the command line and over REST.
func TestPoisonParksAndOthersMoveOn(t *testing.T) {
	t.Parallel()
	a := servertest.New(t, eventlogtest.Embedded(t), "--partitions", "1").Start()
	a.AddRestaurant("r1", servertest.Lng, servertest.Lat)
	before := a.Place("c1", "r1")
	for _, poison := range []string{"no JSON at all", `{"event":"payment.captured","payload":{}}`} {
		if x := a.Webhook([]byte(poison)); x.Status != http.StatusOK {
			t.Fatal(x.Fault())
		}
	}
	a.Pay("c1", before) // behind the poison, on the same partition
	x := a.AwaitQuery(servertest.Ops, "/v1/ops/dead-letters?consumer=record-payment", "items.0.class", "poison", "items.1.class", "poison")
	first, second := fmt.Sprint(x.Get("items.0.id")), fmt.Sprint(x.Get("items.1.id"))
	if strings.Contains(x.Str("items.0.error"), "no payment") {
		first, second = second, first
	}
	letter := a.AwaitQuery(servertest.Ops, "/v1/ops/dead-letters/"+first, "state", "dead")
	for _, path := range []string{"/" + first, ""} { // support is not shown what is in the record
		support := a.Must(domain.Actor{Sub: "s1", Role: domain.Support}, "GET /v1/ops/dead-letters"+path, nil)
		if body := string(support.Body); !strings.Contains(body, `"class":"poison"`) || strings.Contains(body, `"data"`) || strings.Contains(body, `"headers"`) || strings.Contains(body, `"error"`) {
			t.Errorf("support is shown %s", body)
		}
	}
	// What nobody can read may be personal, so it is kept sealed, and opened when asked for.
	opened := a.ToolWith(letter.Str("data.sealed"), "keys", "open", "--subject", letter.Str("data.subject"), "--field", "body")
	if opened != "no JSON at all\n" {
		t.Errorf("keys open: %q of %s", opened, letter.Body)
	}

	if list := a.Tool("dlq", "list", "--consumer", "record-payment"); strings.Count(list, "WEBHOOK_RECEIVED  poison") != 2 {
		t.Errorf("dlq list:\n%s", list)
	}
	if shown := a.Tool("dlq", "show", first); !strings.Contains(shown, `"sealed": "`+letter.Str("data.sealed")+`"`) || !strings.Contains(shown, "not JSON") {
		t.Errorf("dlq show:\n%s", shown)
	}
	if dry := a.Tool("dlq", "replay", "--consumer", "record-payment", "--class", "poison", "--dry-run"); dry != "matched 2, replayed 0\n" {
		t.Errorf("dlq replay --dry-run: %s", dry)
	}
	a.Tool("dlq", "replay", "--consumer", "record-payment", "--id", first)
	a.Await("it has failed again", func() error {
		x := a.Do(servertest.Ops, "GET /v1/ops/dead-letters/"+first, nil)
		if x.Get("replays") != 1.0 || x.Str("state") != "dead" {
			return x.Fault()
		}
		return nil
	})
	a.Tool("dlq", "discard", first, "--reason", "noise")
	a.Must(servertest.Ops, "POST /v1/ops/dead-letters/"+second+"/discard", map[string]any{"reason": "noise"})
	a.Await("the list is empty", func() error {
		if x := a.Do(servertest.Ops, "GET /v1/ops/dead-letters", nil); x.Get("items.0") != nil {
			return x.Fault()
		}
		return nil
	})
	after := a.Place("c1", "r1")
	a.Pay("c1", after)

	// Not kept at all: a wrong or missing signature.
	body := servertest.Capture(gateway.EventPaymentCaptured, "order_x", "pay_x", 100)
	for _, signature := range []string{"", gateway.Sign("another", body), gateway.Sign(servertest.WebhookSecret, append(body, ' '))} {
		if x := a.Do(domain.Actor{}, "POST /v1/webhooks/razorpay", body, gateway.SignatureHeader, signature); x.Status != http.StatusUnauthorized {
			t.Error(x.Fault())
		}
	}
}

// TestRepeatsAndConditionsOverREST: Idempotency-Key, If-Match, ETag and
// Consistency-Token do what they promise.
func TestRepeatsAndConditionsOverREST(t *testing.T) {
	t.Parallel()
	a := servertest.New(t, eventlogtest.Embedded(t)).Start()
	a.AddRestaurant("r1", servertest.Lng, servertest.Lat)

	t.Run("one key, one order, however many ask at once", func(t *testing.T) {
		const n = 40
		ids, statuses := make([]string, n), make([]int, n)
		a.Each(n, n, func(i int) {
			x := a.Do(servertest.Customer("c1"), "POST /v1/orders", servertest.Basket("r1"), "Idempotency-Key", []string{"k1", `"k1"`}[i%2])
			ids[i], statuses[i] = x.Str("orderId"), x.Status
		})
		for i := range n {
			if ids[i] != ids[0] || statuses[i] != http.StatusCreated {
				t.Fatalf("%d: order %q, status %d; the first was %q", i, ids[i], statuses[i], ids[0])
			}
		}
		if events := a.History(eventlog.Orders, ids[0]); len(events) != 1 {
			t.Errorf("the log has %v", servertest.Types(events))
		}
		list := a.Must(servertest.Customer("c1"), "GET /v1/orders", nil, "Consistency-Token", a.Must(servertest.Customer("c1"), "POST /v1/orders", servertest.Basket("r1"), "Idempotency-Key", "k1").Token())
		if list.Get("items.1") != nil || list.Str("items.0.orderId") != ids[0] {
			t.Errorf("the customer has %s", list.Body)
		}
		other := servertest.Basket("r1")
		other["externalReference"] = "another"
		a.When(servertest.Customer("c1"), "POST /v1/orders", other, "Idempotency-Key", "k1").ThenRefused(422, "idempotency_key_reused")
		if x := a.Must(servertest.Customer("c2"), "POST /v1/orders", servertest.Basket("r1"), "Idempotency-Key", "k1"); x.Str("orderId") == ids[0] {
			t.Error("another customer's key is another key")
		}
	})
	t.Run("a repeat gets the first status and the present order", func(t *testing.T) {
		id := a.Place("c3", "r1")
		a.Pay("c3", id)
		a.When(servertest.Staff("r1"), "POST /v1/orders/"+id+"/accept-order", nil, "Idempotency-Key", "once").Then(200, "ORDER_ACCEPTED").Want("status", "accepted")
		a.Must(servertest.Staff("r1"), "POST /v1/orders/"+id+"/preparing", nil)
		a.When(servertest.Staff("r1"), "POST /v1/orders/"+id+"/accept-order", nil, "Idempotency-Key", "once").Then(200).Want("status", "preparing")
	})
	t.Run("refusals are not remembered", func(t *testing.T) {
		id := a.Place("c4", "r1")
		a.When(servertest.Staff("r1"), "POST /v1/orders/"+id+"/accept-order", nil, "Idempotency-Key", "k").ThenRefused(409, "order_not_paid")
		a.Pay("c4", id)
		a.When(servertest.Staff("r1"), "POST /v1/orders/"+id+"/accept-order", nil, "Idempotency-Key", "k").Then(200, "ORDER_ACCEPTED")
	})
	t.Run("If-Match", func(t *testing.T) {
		id := a.Place("c5", "r1")
		a.Pay("c5", id)
		path := "/v1/orders/" + id
		a.When(servertest.Staff("r1"), "POST "+path+"/accept-order", nil, "If-Match", `"1"`).ThenRefused(412, "precondition_failed")
		x := a.When(servertest.Staff("r1"), "POST "+path+"/accept-order", nil, "If-Match", `"2"`).Then(200, "ORDER_ACCEPTED")
		if x.ETag() != `"3"` {
			t.Errorf("ETag %s", x.ETag())
		}
		a.When(servertest.Staff("r1"), "POST "+path+"/accept-order", nil, "If-Match", `"2"`).Then(200) // already applied goes first
		y := a.Must(servertest.Customer("c5"), "GET "+path, nil, "Consistency-Token", x.Token())
		if y.ETag() != `"3"` {
			t.Errorf("ETag of the query: %s", y.ETag())
		}
		a.When(servertest.Staff("r1"), "POST "+path+"/preparing", nil, "If-Match", `not an etag`).Then(422)
	})
	t.Run("a query sees what its token stands for", func(t *testing.T) {
		for i := range 30 {
			x := a.Must(servertest.Customer("c6"), "POST /v1/orders", servertest.Basket("r1"))
			id := x.Str("orderId")
			a.Must(servertest.Customer("c6"), "GET /v1/orders/"+id, nil, "Consistency-Token", x.Token()).Want("status", "placed")
			y := a.Must(servertest.Customer("c6"), "POST /v1/orders/"+id+"/cancel", map[string]any{"reason": "changed my mind"})
			a.Must(servertest.Customer("c6"), "GET /v1/orders?status=cancelled", nil, "Consistency-Token", y.Token()).Want("items."+fmt.Sprint(i)+".status", "cancelled", "items.0.orderId", id)
		}
		if x := a.Do(servertest.Customer("c6"), "GET /v1/orders", nil, "Consistency-Token", "no token of ours"); x.Status != http.StatusUnprocessableEntity {
			t.Error(x.Fault())
		}
	})
	t.Run("prices are the menu's, seen as of a token", func(t *testing.T) {
		for i := range 20 {
			amount := int64(1000 + i)
			x := a.Must(servertest.Staff("r1"), "PUT /v1/restaurants/r1/menu/m1", servertest.Item(amount, true))
			a.Must(servertest.Customer("c7"), "POST /v1/orders", servertest.Basket("r1"), "Consistency-Token", x.Token()).Want("amount", fmt.Sprint(2*amount))
		}
	})
}

// TestEmitReachesItsRoom: other systems put messages to rooms with the internal key.
func TestEmitReachesItsRoom(t *testing.T) {
	t.Parallel()
	a := servertest.New(t, eventlogtest.Embedded(t)).Start()
	f := a.Feed(servertest.Customer("c1"))
	emit := map[string]any{"event": "promo", "room": "user:c1", "payload": map[string]any{"text": "hello"}}
	if x := a.Do(domain.Actor{}, "POST /api/v1/internal/emit", emit, "x-internal-key", "wrong"); x.Status != http.StatusUnauthorized {
		t.Error(x.Fault())
	}
	if x := a.Do(domain.Actor{}, "POST /api/v1/internal/emit", emit, "x-internal-key", servertest.InternalKey); x.Status != http.StatusAccepted {
		t.Error(x.Fault())
	}
	if m := f.Expect("promo", nil); m.Value("text") != "hello" || m.Room != "user:c1" || m.Cursor == "" {
		t.Errorf("%+v", m)
	}
}
