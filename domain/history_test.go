package domain_test

import (
	"context"
	"encoding/json"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/eventlog/subjectkeys"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

// TestHistories plays random histories of a few orders, their payments and
// some riders: commands in any order and any number of times, accepts that
// stop between their steps, policies that lag, overtake each other and repeat
// themselves, a gateway that says everything twice. After every step it holds
// what must always hold, and once all policies are done what must hold then.
func TestHistories(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		newWorld(t).play(func(w *world) int { return w.pick(100, "act") })
	})
}

// TestAccepts is the same of orders that wait for riders, where most of what
// happens is riders accepting, and orders being taken from them.
func TestAccepts(t *testing.T) {
	t.Parallel()
	acts := append(slices.Repeat([]int{runsTask, runsTask, runsTask, runsTask, runsTask, accepts, accepts, accepts, accepts, nextStep, nextStep,
		endsWave, exhausts, asksDispatch, drops, opsDrops, goes, goes}, 4), declines, offers, cancels, stops, stops, releases)
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		for _, o := range w.orders {
			w.pay(o, payment.RequestPayment{OrderID: o.order.ID, Provider: "simulated", GatewayOrderID: "g-" + o.order.ID})
			w.pay(o, payment.RecordCaptured{PaymentID: "p-" + o.order.ID, GatewayOrderID: "g-" + o.order.ID, Amount: 450, Currency: "INR"})
			w.taken["p-"+o.order.ID] = capture{450, "INR", o, true}
			for _, c := range []domain.Command{order.MarkPaid{PaymentID: "p-" + o.order.ID}, order.AcceptOrder{}, order.Prepare{}, order.Ready{}, w.offer(1, 1)} {
				w.order(o, c)
			}
		}
		w.play(func(w *world) int { return acts[w.pick(len(acts), "act")] })
	})
}

// play lets things happen, then lets the policies come to rest.
func (w *world) play(next func(*world) int) {
	for range 20 + w.pick(180, "steps") {
		w.act(next(w))
		w.always()
	}
	for len(w.todo) > 0 {
		w.runTask()
		w.always()
	}
	w.atRest()
}

func underWay(s *order.State) bool {
	return s.Status == order.StatusRiderAssigned || s.Status == order.StatusPickedUp
}

// always holds after every step.
func (w *world) always() {
	holds := map[string]string{}
	for _, o := range w.orders {
		s := &o.order
		if underWay(s) {
			r := w.riderBy(s.RiderID)
			if other := holds[r.ID]; other != "" {
				w.Fatalf("rider %s has two orders: %s and %s", r.ID, other, s.ID)
			}
			holds[r.ID] = s.ID
			if r.Claim == nil || r.Claim.OrderID != s.ID || r.Claim.ID != s.ClaimID {
				w.Fatalf("order %s is with %s under claim %d, whose claim is %+v", s.ID, r.ID, s.ClaimID, r.Claim)
			}
		}
		if open := slices.ContainsFunc(s.Offers, func(o order.Offer) bool { return o.State == order.OfferStateOpen }); s.Status != order.StatusReadyForRider && (open || s.WaveOpen) {
			w.Fatalf("the order is %s and still offered: %+v", s.Status, s)
		}
		if s.Version != int64(len(o.events)) || o.payment.Version != int64(len(o.money)) {
			w.Fatalf("versions %d and %d after %d and %d events", s.Version, o.payment.Version, len(o.events), len(o.money))
		}
		if got, want := order.PaymentStatusOf(s, o.payment.Facts()), w.paymentStatus(o); got != want {
			w.Fatalf("payment status %s, but its events make it %s\n%+v\n%+v", got, want, s, o.payment)
		}
		paid, booked, back := 0, 0, map[string]int{}
		for _, e := range o.events {
			if _, ok := e.(order.OrderPaid); ok {
				paid++
			}
		}
		for _, e := range o.money {
			switch e := e.(type) {
			case payment.PaymentSuccess:
				booked++
			case payment.RefundSuccess:
				back[e.PaymentID]++
			}
		}
		if booked > 1 || paid > booked || s.Paid() && s.PaymentID != o.payment.Booked {
			w.Fatalf("%d payments booked, paid %d times by %q; booked is %q", booked, paid, s.PaymentID, o.payment.Booked)
		}
		for id, n := range back {
			if n > 1 {
				w.Fatalf("payment %s was refunded %d times", id, n)
			}
		}
	}
	for _, e := range w.effects {
		if !e.stays() {
			w.Fatalf("%#v took effect for good, and now it has not", e.c)
		}
	}
	for a := range w.refused {
		if e, err := order.Decide(&a.o.order, a.c, w.now); err == nil {
			w.Fatalf("%#v was refused and now gives %#v", a.c, e)
		}
	}
}

// paymentStatus derives the payment status from the events alone. The rules are those of
// order.PaymentStatusOf (domain/order/view.go).
func (w *world) paymentStatus(o *anOrder) order.PaymentStatus {
	var booked, requested, succeeded, failed, paid bool
	for _, e := range o.money {
		switch e := e.(type) {
		case payment.PaymentSuccess:
			booked, failed = true, false
		case payment.PaymentFailed:
			failed = true
		case payment.RefundRequested:
			requested = requested || e.Booked
		case payment.RefundSuccess:
			succeeded = succeeded || e.Booked
		}
	}
	for _, e := range o.events {
		if _, ok := e.(order.OrderPaid); ok {
			paid = true
		}
	}
	ended := o.order.Status == order.StatusCancelled || o.order.Status == order.StatusRejected || o.order.Status == order.StatusExpired
	switch {
	case succeeded:
		return "refunded"
	case requested || booked && ended:
		return "refund_pending"
	case paid:
		return "paid"
	case failed:
		return "failed"
	}
	return "pending"
}

// viewShape holds the shape of the order as clients see it.
func (w *world) viewShape(o *anOrder) {
	must := []string{"orderId", "version", "status", "paymentStatus", "customerId", "restaurantId", "items", "amount", "currency", "pickUp", "deliverTo", "createdAt", "updatedAt"}
	may := []string{"riderId", "externalReference", "riderName", "paymentDueAt", "acceptBy", "readyAt", "dispatch", "reason", "by"}
	v := order.NewView(&o.order, "pending")
	v.RiderID = "its-rider"
	for _, role := range []domain.Role{domain.Customer, domain.Restaurant, domain.Rider, domain.Ops} {
		keys := w.keys(w.opened(v.For(domain.Actor{Role: role, Sub: "its-rider"})))
		for _, k := range must {
			if !slices.Contains(keys, k) {
				w.Fatalf("%s is missing in %v", k, keys)
			}
		}
		for _, k := range keys {
			if !slices.Contains(must, k) && !slices.Contains(may, k) {
				w.Fatalf("clients do not know the field %s", k)
			}
		}
		sees := role == domain.Restaurant || role == domain.Ops
		if slices.Contains(keys, "dispatch") != (sees && o.order.Round > 0) {
			w.Fatalf("%s in round %d sees %v", role, o.order.Round, keys)
		}
	}
	for _, k := range w.keys(w.opened(v.WithoutParties())) {
		if k == "customerId" || k == "items" || k == "deliverTo" {
			w.Fatalf("%s is shown to who gave the order back", k)
		}
	}
}

// opened returns the view with what is personal opened.
func (w *world) opened(v order.View) order.View {
	if err := subjectkeys.OpenOrder(context.Background(), &subjectkeystest.Keys{}, &v); err != nil {
		w.Fatal(err)
	}
	return v
}

func (w *world) keys(v any) (keys []string) {
	b, err := json.Marshal(v)
	if err != nil {
		w.Fatal(err)
	}
	var m map[string]json.RawMessage
	if err := json.Unmarshal(b, &m); err != nil {
		w.Fatal(err)
	}
	for k, v := range m {
		if string(v) == "null" {
			w.Fatalf("%s is null", k)
		}
		keys = append(keys, k)
	}
	return keys
}

// atRest holds when every policy has done all that it will.
func (w *world) atRest() {
	for _, r := range w.riders {
		if c := r.Claim; c != nil {
			if s := &w.orderBy(c.OrderID).order; !underWay(s) || s.RiderID != r.ID || s.ClaimID != c.ID {
				w.Fatalf("rider %s is left with claim %+v, the order is %+v", r.ID, c, s)
			}
		}
	}
	for id, got := range w.taken {
		o := got.o
		a, known := o.payment.Attempt(id)
		_, stray := w.strays[id]
		_, refund := o.payment.RefundOf(id)
		switch {
		case !got.told:
			w.Fatalf("record-payment never ran for %s", id)
		case !known || a.State == payment.AttemptStateFailed:
			if !stray {
				w.Fatalf("money %s is nowhere: %+v", id, o.payment)
			}
		case a.State == payment.AttemptStateBooked:
			if o.order.PaymentID != id && !refund {
				w.Fatalf("booked money %s pays nothing and was not sent back: %+v", id, o.order)
			}
			if o.order.Status.Ended() && !refund {
				w.Fatalf("the order ended as %s and keeps the money %s", o.order.Status, id)
			}
		case a.State == payment.AttemptStateUnmatched && !refund:
			w.Fatalf("unmatched money %s stays: %+v", id, o.payment)
		}
	}
	for _, o := range w.orders {
		var s order.State
		for i, e := range o.events {
			s = order.Evolve(s, e, w.now.Add(time.Duration(i)))
		}
		s.CreatedAt, s.UpdatedAt, s.ClosedAt, s.ReadyAt = o.order.CreatedAt, o.order.UpdatedAt, o.order.ClosedAt, o.order.ReadyAt
		if !reflect.DeepEqual(s, o.order) {
			w.Fatalf("folded:\n%+v\nwant\n%+v", s, o.order)
		}
	}
}
