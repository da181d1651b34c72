package main_test

import (
	"net/http"
	"slices"
	"testing"
	"time"

	"tomato/cmd/tomato/servertest"
	"tomato/commandside/gateway"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
)

// TestAnUnpaidOrderExpires: by an event, at its deadline; money that comes
// later goes back.
func TestAnUnpaidOrderExpires(t *testing.T) {
	t.Parallel()
	a := servertest.New(t, eventlogtest.Embedded(t), "--payment-ttl", "1s").Start()
	a.AddRestaurant("r1", servertest.Lng, servertest.Lat)
	f := a.Feed(servertest.Customer("c1"))
	idle, asked := a.Place("c1", "r1"), a.Place("c1", "r1")
	gatewayOrder := a.OpenPayment("c1", asked)
	for _, id := range []string{idle, asked} {
		expired := a.AwaitEvent(eventlog.Orders, id, "ORDER_EXPIRED", 1)
		placed := a.History(eventlog.Orders, id)[0]
		due, err := time.Parse(time.RFC3339, servertest.Data(placed, "paymentDueAt").(string))
		if err != nil || expired.Time.Before(due) {
			t.Errorf("expired at %v, due at %v (%v)", expired.Time, due, err)
		}
		f.Expect("order:update", func(m servertest.Message) bool { return servertest.About(id)(m) && m.Value("status") == "expired" })
		a.AwaitQuery(servertest.Customer("c1"), "/v1/orders/"+id, "status", "expired", "paymentStatus", "pending")
		a.When(servertest.Customer("c1"), "POST /v1/orders/"+id+"/payment", nil).ThenRefused(409, "invalid_transition").Want("currentStatus", "expired")
		a.When(servertest.Customer("c1"), "POST /v1/orders/"+id+"/cancel", reason).ThenRefused(409, "invalid_transition")
	}
	if x := a.Webhook(servertest.Capture(gateway.EventPaymentCaptured, gatewayOrder, "pay_late", 50000)); x.Status != http.StatusOK {
		t.Fatal(x.Fault())
	}
	a.AwaitEvent(eventlog.Payments, asked, "REFUND_SUCCESS", 1)
	a.AwaitQuery(servertest.Customer("c1"), "/v1/orders/"+asked, "status", "expired", "paymentStatus", "refunded")
	a.AwaitIdle()
	for id, want := range map[string][]string{
		eventlog.Orders + "/" + idle: {"ORDER_PLACED", "ORDER_EXPIRED"}, eventlog.Orders + "/" + asked: {"ORDER_PLACED", "ORDER_EXPIRED"},
		eventlog.Payments + "/" + asked: {"PAYMENT_REQUESTED", "PAYMENT_SUCCESS", "REFUND_REQUESTED", "REFUND_SUCCESS"}} {
		if got := a.Log.TypesOf(id); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", id, got, want)
		}
	}
	a.NoDeadLetters()
}

// TestAnOrderThatNobodyAcceptsIsCancelledAndRefunded: by the system, with its
// reason. A restart does not forget the deadline.
func TestAnOrderThatNobodyAcceptsIsCancelledAndRefunded(t *testing.T) {
	t.Parallel()
	a := servertest.New(t, eventlogtest.Embedded(t), "--accept-ttl", "2s").Start()
	a.AddRestaurant("r1", servertest.Lng, servertest.Lat)
	f := a.Feed(servertest.Staff("r1"))
	id := a.Place("c1", "r1")
	a.Pay("c1", id)
	cancelled := a.AwaitEvent(eventlog.Orders, id, "ORDER_CANCELLED", 1)
	if servertest.Data(cancelled, "by") != "system" || servertest.Data(cancelled, "reason") != "not_accepted_in_time" {
		t.Errorf("ORDER_CANCELLED: %s", cancelled.Data)
	}
	f.Expect("order:update", func(m servertest.Message) bool { return servertest.About(id)(m) && m.Value("status") == "cancelled" })
	a.AwaitEvent(eventlog.Payments, id, "REFUND_SUCCESS", 1)
	a.AwaitQuery(servertest.Customer("c1"), "/v1/orders/"+id, "status", "cancelled", "paymentStatus", "refunded", "by", "system", "reason", "not_accepted_in_time")
	a.When(servertest.Staff("r1"), "POST /v1/orders/"+id+"/accept-order", nil).ThenRefused(409, "invalid_transition")

	overnight := a.Place("c1", "r1")
	a.Pay("c1", overnight)
	a.Stop()
	a.Start()
	a.AwaitEvent(eventlog.Payments, overnight, "REFUND_SUCCESS", 1)
	if got := a.Log.TypesOf(eventlog.Orders + "/" + overnight); !slices.Equal(got, []string{"ORDER_PLACED", "ORDER_PAID", "ORDER_CANCELLED"}) {
		t.Errorf("over a restart: %v", got)
	}
	a.NoDeadLetters()
}

// TestWavesWidenUntilDispatchIsExhausted: nobody takes the order, so more and
// more riders are asked, until dispatch says that it gives up; an operator lets
// it begin anew.
func TestWavesWidenUntilDispatchIsExhausted(t *testing.T) {
	t.Parallel()
	a := servertest.New(t, eventlogtest.Embedded(t), "--offer-ttl", "500ms", "--offer-radii", "1000,3000,6000").Start()
	a.AddRestaurant("r1", servertest.Lng, servertest.Lat)
	a.AddRestaurant("r2", servertest.Lng, servertest.Lat+2) // nobody is there
	a.AddRider("at500m", servertest.Lng, servertest.Lat+0.0045)
	a.AddRider("at2km", servertest.Lng, servertest.Lat+0.018)
	a.AddRider("at5km", servertest.Lng, servertest.Lat+0.045)
	a.AddRider("at10km", servertest.Lng, servertest.Lat+0.09)
	kitchen, operators, rider := a.Feed(servertest.Staff("r1")), a.Feed(servertest.Ops, "ops"), a.Feed(servertest.Rider("at5km"))

	id, lonely := a.ReadyOrder("c1", "r1"), a.ReadyOrder("c1", "r2")
	for _, order := range []string{id, lonely} {
		a.AwaitEvent(eventlog.Orders, order, "DISPATCH_EXHAUSTED", 1)
	}
	waves := map[string][]string{
		id: {"ORDER_OFFERED 1/1 at500m", "OFFERS_EXPIRED 1/1", "ORDER_OFFERED 1/2 at500m at2km", "OFFERS_EXPIRED 1/2",
			"ORDER_OFFERED 1/3 at500m at2km at5km", "OFFERS_EXPIRED 1/3", "DISPATCH_EXHAUSTED 1"},
		// Waves that find nobody are skipped, but the last is recorded.
		lonely: {"ORDER_OFFERED 1/3", "OFFERS_EXPIRED 1/3", "DISPATCH_EXHAUSTED 1"},
	}
	for order, want := range waves {
		if got := a.DispatchSteps(order); !slices.Equal(got, want) {
			t.Errorf("dispatch did %q, want %q", got, want)
		}
	}
	rider.Expect("order:taken", func(m servertest.Message) bool { return servertest.About(id)(m) && m.Value("reason") == "expired" })
	for _, f := range []*servertest.FeedClient{kitchen, operators} {
		if m := f.Expect("dispatch:exhausted", servertest.About(id)); m.Value("waves") != 3.0 {
			t.Errorf("dispatch:exhausted: %s", m.Payload)
		}
	}
	listed := a.AwaitQuery(servertest.Ops, "/v1/orders?dispatch=exhausted", "items.1.dispatch.exhausted", "true")
	if got := []string{listed.Str("items.0.orderId"), listed.Str("items.1.orderId")}; !slices.Contains(got, id) || !slices.Contains(got, lonely) {
		t.Errorf("exhausted: %s", listed.Body)
	}
	a.When(servertest.Rider("at5km"), "POST /v1/orders/"+id+"/accept", nil).ThenRefused(409, "offer_expired")

	a.When(servertest.Ops, "POST /v1/orders/"+id+"/dispatch", nil).Then(200, "DISPATCH_REQUESTED").Want("dispatch.round", "2", "status", "ready_for_rider")
	again := a.AwaitEvent(eventlog.Orders, id, "ORDER_OFFERED", 4)
	if servertest.Data(again, "round") != 2.0 || servertest.Data(again, "wave") != 1.0 || servertest.Data(again, "riders.0.riderId") != "at500m" {
		t.Errorf("the new round: %s", again.Data)
	}
	a.Await("the rider takes it while it is offered", func() error {
		switch x := a.Do(servertest.Rider("at500m"), "POST /v1/orders/"+id+"/accept", nil); {
		case x.Status == http.StatusOK:
			return nil
		case x.Code() != "offer_expired":
			t.Fatal(x.Fault())
			return nil
		default:
			a.Do(servertest.Ops, "POST /v1/orders/"+id+"/dispatch", nil) // 409 unless it is exhausted
			return x.Fault()
		}
	})
	a.AwaitQuery(servertest.Ops, "/v1/orders?dispatch=exhausted", "items.0.orderId", lonely, "items.1", "")
	a.NoDeadLetters()
}

// TestDispatchFollowsItsRiders: who comes within reach is asked, who cannot be
// found is not, and who says no ends what waits for them.
func TestDispatchFollowsItsRiders(t *testing.T) {
	t.Parallel()
	a := servertest.New(t, eventlogtest.Embedded(t), "--offer-ttl", "10m", "--offer-radii", "1000,3000").Start()
	offered := func(id string, n int, riders ...string) {
		t.Helper()
		e := a.AwaitEvent(eventlog.Orders, id, "ORDER_OFFERED", n)
		var got []string
		for _, r := range servertest.Data(e, "riders").([]any) {
			got = append(got, servertest.Dig(r, "riderId").(string))
		}
		if !slices.Equal(got, riders) {
			t.Errorf("offered to %v, want %v", got, riders)
		}
	}
	t.Run("who comes online within reach is added to the wave", func(t *testing.T) {
		a.AddRestaurant("r1", servertest.Lng, servertest.Lat)
		a.AddRider("there", servertest.Lng, servertest.Lat)
		id := a.ReadyOrder("c1", "r1")
		offered(id, 1, "there")
		a.AddRider("coming", servertest.Lng, servertest.Lat+0.001)
		offered(id, 2, "coming")
		a.AwaitQuery(servertest.Rider("coming"), "/v1/riders/coming/offers", "items.0.orderId", id)
		a.AddRider("away", servertest.Lng, servertest.Lat+0.018) // 2 km: not in the first wave
		a.AwaitIdle()
		if got, want := a.DispatchSteps(id), []string{"ORDER_OFFERED 1/1 there", "ORDER_OFFERED 1/1 coming"}; !slices.Equal(got, want) {
			t.Errorf("dispatch did %q, want %q", got, want)
		}
		a.When(servertest.Rider("coming"), "POST /v1/orders/"+id+"/accept", nil).Then(200, "RIDER_ASSIGNED")
	})
	t.Run("a stale position gets no offer, a fresh one does", func(t *testing.T) {
		const lat = servertest.Lat + 1
		a.AddRestaurant("r2", servertest.Lng, lat)
		a.AddRider("fresh", servertest.Lng, lat)
		a.Must(servertest.Ops, "PUT /v1/riders/stale", servertest.RiderName("stale"))
		a.Must(servertest.Ops, "POST /v1/riders/stale/verify", nil)
		a.Must(servertest.Rider("stale"), "PUT /v1/riders/stale/location", map[string]any{"location": servertest.Point(servertest.Lng, lat), "recordedAt": time.Now().Add(-10 * time.Minute).UTC()})
		a.Must(servertest.Rider("stale"), "POST /v1/riders/stale/online", nil)
		id := a.ReadyOrder("c1", "r2")
		offered(id, 1, "fresh")
		a.AwaitIdle()
		if got := a.DispatchSteps(id); len(got) != 1 {
			t.Errorf("dispatch did %q", got)
		}
		a.Must(servertest.Rider("stale"), "PUT /v1/riders/stale/location", map[string]any{"location": servertest.Point(servertest.Lng, lat)})
		offered(id, 2, "stale")
	})
	t.Run("a wave that all decline ends at once", func(t *testing.T) {
		const lat = servertest.Lat + 2
		a.AddRestaurant("r3", servertest.Lng, lat)
		a.AddRider("no1", servertest.Lng, lat)
		a.AddRider("no2", servertest.Lng, lat+0.001)
		a.AddRider("next", servertest.Lng, lat+0.018)
		id := a.ReadyOrder("c1", "r3")
		offered(id, 1, "no1", "no2")
		a.When(servertest.Rider("no1"), "POST /v1/orders/"+id+"/decline", nil).Then(200, "OFFER_DECLINED").Want("customerId", "")
		a.When(servertest.Rider("no1"), "POST /v1/orders/"+id+"/decline", nil).Then(200)
		a.When(servertest.Rider("no1"), "POST /v1/orders/"+id+"/accept", nil).ThenRefused(409, "offer_expired")
		a.When(servertest.Rider("no2"), "POST /v1/orders/"+id+"/decline", nil).Then(200, "OFFER_DECLINED")
		offered(id, 2, "next")
		if got, want := a.DispatchSteps(id), []string{"ORDER_OFFERED 1/1 no1 no2", "OFFER_DECLINED 1/1 no1", "OFFER_DECLINED 1/1 no2", "ORDER_OFFERED 1/2 next"}; !slices.Equal(got, want) {
			t.Errorf("dispatch did %q, want %q", got, want)
		}
	})
	t.Run("a drop begins a new round without that rider", func(t *testing.T) {
		const lat = servertest.Lat + 3
		a.AddRestaurant("r4", servertest.Lng, lat)
		a.AddRider("drops", servertest.Lng, lat)
		a.AddRider("stays", servertest.Lng, lat+0.001)
		id := a.ReadyOrder("c1", "r4")
		offered(id, 1, "drops", "stays")
		a.When(servertest.Rider("drops"), "POST /v1/orders/"+id+"/accept", nil).Then(200, "RIDER_ASSIGNED")
		a.When(servertest.Rider("drops"), "POST /v1/orders/"+id+"/drop", reason).Then(200, "RIDER_UNASSIGNED").Want("status", "ready_for_rider")
		a.Must(servertest.Rider("drops"), "PUT /v1/riders/drops", servertest.RiderName("drops")).Want("status", "available")
		offered(id, 2, "stays")
		a.AwaitIdle() // the dropper is free and near, and still not asked
		if got, want := a.DispatchSteps(id), []string{"ORDER_OFFERED 1/1 drops stays", "RIDER_ASSIGNED 1 drops", "RIDER_UNASSIGNED 2 drops", "ORDER_OFFERED 2/1 stays"}; !slices.Equal(got, want) {
			t.Errorf("dispatch did %q, want %q", got, want)
		}
		a.When(servertest.Rider("stays"), "POST /v1/orders/"+id+"/accept", nil).Then(200, "RIDER_ASSIGNED")
	})
	a.NoDeadLetters()
}
