package main

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"tomato/commandside/gateway"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
)

// TestAnUnpaidOrderExpires: by an event, at its deadline; money that comes
// later goes back.
func TestAnUnpaidOrderExpires(t *testing.T) {
	t.Parallel()
	a := newTown(t, eventlogtest.Embedded(t), "--payment-ttl", "1s").open()
	a.restaurant("r1", lng0, lat0)
	f := a.feed(customer("c1"))
	idle, asked := a.place("c1", "r1"), a.place("c1", "r1")
	gatewayOrder := a.openPayment("c1", asked)
	for _, id := range []string{idle, asked} {
		expired := a.awaitEvent(eventlog.Orders, id, "ORDER_EXPIRED", 1)
		placed := a.history(eventlog.Orders, id)[0]
		due, err := time.Parse(time.RFC3339, data(placed, "paymentDueAt").(string))
		if err != nil || expired.Time.Before(due) {
			t.Errorf("expired at %v, due at %v (%v)", expired.Time, due, err)
		}
		f.expect("order:update", func(m message) bool { return of(id)(m) && m.payload("status") == "expired" })
		a.awaitQuery(customer("c1"), "/v1/orders/"+id, "status", "expired", "paymentStatus", "pending")
		a.when(customer("c1"), "POST /v1/orders/"+id+"/payment", nil).thenRefused(409, "invalid_transition").want("currentStatus", "expired")
		a.when(customer("c1"), "POST /v1/orders/"+id+"/cancel", reason).thenRefused(409, "invalid_transition")
	}
	if x := a.webhook(capture(gateway.EventPaymentCaptured, gatewayOrder, "pay_late", 50000)); x.status != http.StatusOK {
		t.Fatal(x.fault())
	}
	a.awaitEvent(eventlog.Payments, asked, "REFUND_SUCCESS", 1)
	a.awaitQuery(customer("c1"), "/v1/orders/"+asked, "status", "expired", "paymentStatus", "refunded")
	a.idle()
	for id, want := range map[string][]string{
		eventlog.Orders + "/" + idle: {"ORDER_PLACED", "ORDER_EXPIRED"}, eventlog.Orders + "/" + asked: {"ORDER_PLACED", "ORDER_EXPIRED"},
		eventlog.Payments + "/" + asked: {"PAYMENT_REQUESTED", "PAYMENT_SUCCESS", "REFUND_REQUESTED", "REFUND_SUCCESS"}} {
		if got := a.log.typesOf(id); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", id, got, want)
		}
	}
	a.noDeadLetters()
}

// TestAnOrderThatNobodyAcceptsIsCancelledAndRefunded: by the system, with its
// reason. A restart does not forget the deadline.
func TestAnOrderThatNobodyAcceptsIsCancelledAndRefunded(t *testing.T) {
	t.Parallel()
	a := newTown(t, eventlogtest.Embedded(t), "--accept-ttl", "2s").open()
	a.restaurant("r1", lng0, lat0)
	f := a.feed(staff("r1"))
	id := a.place("c1", "r1")
	a.pay("c1", id)
	cancelled := a.awaitEvent(eventlog.Orders, id, "ORDER_CANCELLED", 1)
	if data(cancelled, "by") != "system" || data(cancelled, "reason") != "not_accepted_in_time" {
		t.Errorf("ORDER_CANCELLED: %s", cancelled.Data)
	}
	f.expect("order:update", func(m message) bool { return of(id)(m) && m.payload("status") == "cancelled" })
	a.awaitEvent(eventlog.Payments, id, "REFUND_SUCCESS", 1)
	a.awaitQuery(customer("c1"), "/v1/orders/"+id, "status", "cancelled", "paymentStatus", "refunded", "by", "system", "reason", "not_accepted_in_time")
	a.when(staff("r1"), "POST /v1/orders/"+id+"/accept-order", nil).thenRefused(409, "invalid_transition")

	overnight := a.place("c1", "r1")
	a.pay("c1", overnight)
	a.stop()
	a.open()
	a.awaitEvent(eventlog.Payments, overnight, "REFUND_SUCCESS", 1)
	if got := a.log.typesOf(eventlog.Orders + "/" + overnight); !slices.Equal(got, []string{"ORDER_PLACED", "ORDER_PAID", "ORDER_CANCELLED"}) {
		t.Errorf("over a restart: %v", got)
	}
	a.noDeadLetters()
}

// TestWavesWidenUntilDispatchIsExhausted: nobody takes the order, so more and
// more riders are asked, until dispatch says that it gives up; an operator lets
// it begin anew.
func TestWavesWidenUntilDispatchIsExhausted(t *testing.T) {
	t.Parallel()
	a := newTown(t, eventlogtest.Embedded(t), "--offer-ttl", "500ms", "--offer-radii", "1000,3000,6000").open()
	a.restaurant("r1", lng0, lat0)
	a.restaurant("r2", lng0, lat0+2) // nobody is there
	a.rider("at500m", lng0, lat0+0.0045)
	a.rider("at2km", lng0, lat0+0.018)
	a.rider("at5km", lng0, lat0+0.045)
	a.rider("at10km", lng0, lat0+0.09)
	kitchen, operators, rider := a.feed(staff("r1")), a.feed(office, "ops"), a.feed(courier("at5km"))

	id, lonely := a.readyOrder("c1", "r1"), a.readyOrder("c1", "r2")
	for _, order := range []string{id, lonely} {
		a.awaitEvent(eventlog.Orders, order, "DISPATCH_EXHAUSTED", 1)
	}
	waves := map[string][]string{
		id: {"ORDER_OFFERED 1/1 at500m", "OFFERS_EXPIRED 1/1", "ORDER_OFFERED 1/2 at500m at2km", "OFFERS_EXPIRED 1/2",
			"ORDER_OFFERED 1/3 at500m at2km at5km", "OFFERS_EXPIRED 1/3", "DISPATCH_EXHAUSTED 1"},
		// Waves that find nobody are skipped, but the last is recorded.
		lonely: {"ORDER_OFFERED 1/3", "OFFERS_EXPIRED 1/3", "DISPATCH_EXHAUSTED 1"},
	}
	for order, want := range waves {
		if got := a.dispatched(order); !slices.Equal(got, want) {
			t.Errorf("dispatch did %q, want %q", got, want)
		}
	}
	rider.expect("order:taken", func(m message) bool { return of(id)(m) && m.payload("reason") == "expired" })
	for _, f := range []*feedClient{kitchen, operators} {
		if m := f.expect("dispatch:exhausted", of(id)); m.payload("waves") != 3.0 {
			t.Errorf("dispatch:exhausted: %s", m.Payload)
		}
	}
	listed := a.awaitQuery(office, "/v1/orders?dispatch=exhausted", "items.1.dispatch.exhausted", "true")
	if got := []string{listed.str("items.0.orderId"), listed.str("items.1.orderId")}; !slices.Contains(got, id) || !slices.Contains(got, lonely) {
		t.Errorf("exhausted: %s", listed.body)
	}
	a.when(courier("at5km"), "POST /v1/orders/"+id+"/accept", nil).thenRefused(409, "offer_expired")

	a.when(office, "POST /v1/orders/"+id+"/dispatch", nil).then(200, "DISPATCH_REQUESTED").want("dispatch.round", "2", "status", "ready_for_rider")
	again := a.awaitEvent(eventlog.Orders, id, "ORDER_OFFERED", 4)
	if data(again, "round") != 2.0 || data(again, "wave") != 1.0 || data(again, "riders.0.riderId") != "at500m" {
		t.Errorf("the new round: %s", again.Data)
	}
	a.await("the rider takes it while it is offered", func() error {
		switch x := a.do(courier("at500m"), "POST /v1/orders/"+id+"/accept", nil); {
		case x.status == http.StatusOK:
			return nil
		case x.code() != "offer_expired":
			t.Fatal(x.fault())
			return nil
		default:
			a.do(office, "POST /v1/orders/"+id+"/dispatch", nil) // 409 unless it is exhausted
			return x.fault()
		}
	})
	a.awaitQuery(office, "/v1/orders?dispatch=exhausted", "items.0.orderId", lonely, "items.1", "")
	a.noDeadLetters()
}

// dispatched is what dispatch did with an order, in words.
func (a *town) dispatched(id string) (steps []string) {
	a.t.Helper()
	for _, e := range a.history(eventlog.Orders, id) {
		step := fmt.Sprint(e.Type, " ", data(e, "round"))
		switch e.Type {
		case "ORDER_OFFERED", "OFFERS_EXPIRED", "OFFER_DECLINED":
			step += fmt.Sprint("/", data(e, "wave"))
		case "DISPATCH_EXHAUSTED", "RIDER_ASSIGNED", "RIDER_UNASSIGNED":
		default:
			continue
		}
		switch e.Type {
		case "ORDER_OFFERED":
			for _, r := range data(e, "riders").([]any) {
				step += " " + dig(r, "riderId").(string)
			}
		case "OFFER_DECLINED", "RIDER_ASSIGNED", "RIDER_UNASSIGNED":
			step += fmt.Sprint(" ", data(e, "riderId"))
		}
		steps = append(steps, step)
	}
	return steps
}

// TestDispatchFollowsItsRiders: who comes within reach is asked, who cannot be
// found is not, and who says no ends what waits for them.
func TestDispatchFollowsItsRiders(t *testing.T) {
	t.Parallel()
	a := newTown(t, eventlogtest.Embedded(t), "--offer-ttl", "10m", "--offer-radii", "1000,3000").open()
	offered := func(id string, n int, riders ...string) {
		t.Helper()
		e := a.awaitEvent(eventlog.Orders, id, "ORDER_OFFERED", n)
		var got []string
		for _, r := range data(e, "riders").([]any) {
			got = append(got, dig(r, "riderId").(string))
		}
		if !slices.Equal(got, riders) {
			t.Errorf("offered to %v, want %v", got, riders)
		}
	}
	t.Run("who comes online within reach is added to the wave", func(t *testing.T) {
		a.restaurant("r1", lng0, lat0)
		a.rider("there", lng0, lat0)
		id := a.readyOrder("c1", "r1")
		offered(id, 1, "there")
		a.rider("coming", lng0, lat0+0.001)
		offered(id, 2, "coming")
		a.awaitQuery(courier("coming"), "/v1/riders/coming/offers", "items.0.orderId", id)
		a.rider("away", lng0, lat0+0.018) // 2 km: not in the first wave
		a.idle()
		if got, want := a.dispatched(id), []string{"ORDER_OFFERED 1/1 there", "ORDER_OFFERED 1/1 coming"}; !slices.Equal(got, want) {
			t.Errorf("dispatch did %q, want %q", got, want)
		}
		a.when(courier("coming"), "POST /v1/orders/"+id+"/accept", nil).then(200, "RIDER_ASSIGNED")
	})
	t.Run("a stale position gets no offer, a fresh one does", func(t *testing.T) {
		const lat = lat0 + 1
		a.restaurant("r2", lng0, lat)
		a.rider("fresh", lng0, lat)
		a.must(office, "PUT /v1/riders/stale", riderName("stale"))
		a.must(office, "POST /v1/riders/stale/verify", nil)
		a.must(courier("stale"), "PUT /v1/riders/stale/location", map[string]any{"location": point(lng0, lat), "recordedAt": time.Now().Add(-10 * time.Minute).UTC()})
		a.must(courier("stale"), "POST /v1/riders/stale/online", nil)
		id := a.readyOrder("c1", "r2")
		offered(id, 1, "fresh")
		a.idle()
		if got := a.dispatched(id); len(got) != 1 {
			t.Errorf("dispatch did %q", got)
		}
		a.must(courier("stale"), "PUT /v1/riders/stale/location", map[string]any{"location": point(lng0, lat)})
		offered(id, 2, "stale")
	})
	t.Run("a wave that all decline ends at once", func(t *testing.T) {
		const lat = lat0 + 2
		a.restaurant("r3", lng0, lat)
		a.rider("no1", lng0, lat)
		a.rider("no2", lng0, lat+0.001)
		a.rider("next", lng0, lat+0.018)
		id := a.readyOrder("c1", "r3")
		offered(id, 1, "no1", "no2")
		a.when(courier("no1"), "POST /v1/orders/"+id+"/decline", nil).then(200, "OFFER_DECLINED").want("customerId", "")
		a.when(courier("no1"), "POST /v1/orders/"+id+"/decline", nil).then(200)
		a.when(courier("no1"), "POST /v1/orders/"+id+"/accept", nil).thenRefused(409, "offer_expired")
		a.when(courier("no2"), "POST /v1/orders/"+id+"/decline", nil).then(200, "OFFER_DECLINED")
		offered(id, 2, "next")
		if got, want := a.dispatched(id), []string{"ORDER_OFFERED 1/1 no1 no2", "OFFER_DECLINED 1/1 no1", "OFFER_DECLINED 1/1 no2", "ORDER_OFFERED 1/2 next"}; !slices.Equal(got, want) {
			t.Errorf("dispatch did %q, want %q", got, want)
		}
	})
	t.Run("a drop begins a new round without that rider", func(t *testing.T) {
		const lat = lat0 + 3
		a.restaurant("r4", lng0, lat)
		a.rider("drops", lng0, lat)
		a.rider("stays", lng0, lat+0.001)
		id := a.readyOrder("c1", "r4")
		offered(id, 1, "drops", "stays")
		a.when(courier("drops"), "POST /v1/orders/"+id+"/accept", nil).then(200, "RIDER_ASSIGNED")
		a.when(courier("drops"), "POST /v1/orders/"+id+"/drop", reason).then(200, "RIDER_UNASSIGNED").want("status", "ready_for_rider")
		a.must(courier("drops"), "PUT /v1/riders/drops", riderName("drops")).want("status", "available")
		offered(id, 2, "stays")
		a.idle() // the dropper is free and near, and still not asked
		if got, want := a.dispatched(id), []string{"ORDER_OFFERED 1/1 drops stays", "RIDER_ASSIGNED 1 drops", "RIDER_UNASSIGNED 2 drops", "ORDER_OFFERED 2/1 stays"}; !slices.Equal(got, want) {
			t.Errorf("dispatch did %q, want %q", got, want)
		}
		a.when(courier("stays"), "POST /v1/orders/"+id+"/accept", nil).then(200, "RIDER_ASSIGNED")
	})
	a.noDeadLetters()
}
