package order_test

import (
	"encoding/json"
	"testing"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/eventlog/subjectkeys"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

// TestPaymentStatus has a case for each payment status and each way to reach it.
func TestPaymentStatus(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		history []order.Event
		facts   order.PaymentFacts
		want    order.PaymentStatus
	}{
		{"nothing yet", placed, order.PaymentFacts{}, "pending"},
		{"the last attempt failed", placed, order.PaymentFacts{LastAttemptFailed: true}, "failed"},
		{"booked is not paid: ORDER_PAID is", placed, order.PaymentFacts{Booked: true}, "pending"},
		{"ORDER_PAID", paid, order.PaymentFacts{Booked: true}, "paid"},
		{"delivered", delivered, order.PaymentFacts{Booked: true}, "paid"},
		{"ORDER_PAID, the payment not seen yet", paid, order.PaymentFacts{}, "paid"},
		{"booked, cancelled", cancelled, order.PaymentFacts{Booked: true}, "refund_pending"},
		{"booked, rejected", rejected, order.PaymentFacts{Booked: true}, "refund_pending"},
		{"booked, expired", expired, order.PaymentFacts{Booked: true}, "refund_pending"},
		{"never booked, cancelled", then(placed, order.OrderCancelled{}), order.PaymentFacts{}, "pending"},
		{"never booked, expired after a failure", expired, order.PaymentFacts{LastAttemptFailed: true}, "failed"},
		{"refund requested of a paid order", accepted, order.PaymentFacts{Booked: true, RefundRequested: true}, "refund_pending"},
		{"refund succeeded", cancelled, order.PaymentFacts{Booked: true, RefundRequested: true, RefundSucceeded: true}, "refunded"},
		{"refund succeeded, order under way", accepted, order.PaymentFacts{Booked: true, RefundRequested: true, RefundSucceeded: true}, "refunded"},
	} {
		s := given(c.history)
		if got := order.PaymentStatusOf(&s, c.facts); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}

// TestView is the answer of a command, whole.
func TestView(t *testing.T) {
	t.Parallel()
	show := func(history []order.Event, p order.PaymentStatus, change func(order.View) order.View) string {
		s := given(history)
		v := change(order.NewView(&s, p))
		if err := subjectkeys.OpenOrder(t.Context(), &subjectkeystest.Keys{}, &v); err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	const (
		parties   = `"customerId":"c1","restaurantId":"res1",`
		items     = `"items":[{"itemId":"i1","name":"Dosa","unitPrice":150,"quantity":3}],`
		money     = `"amount":450,"currency":"INR",`
		pickUp    = `"pickUp":{"name":"Hut","location":{"type":"Point","coordinates":[77.5,12.9]}},`
		deliverTo = `"deliverTo":{"location":{"type":"Point","coordinates":[77.6,13]},"address":"1 Main Road"},`
		created   = `"createdAt":"2026-01-02T03:04:05Z",`
	)
	as := func(r domain.Role) func(order.View) order.View {
		return func(v order.View) order.View { return v.For(domain.Actor{Role: r, Sub: "r1"}) }
	}
	for _, c := range []struct{ name, got, want string }{
		{"unpaid: when to pay", show(placed, "pending", as(domain.Customer)),
			`{"orderId":"o1","version":1,"status":"placed","paymentStatus":"pending",` + parties + items + money + pickUp + deliverTo +
				`"paymentDueAt":"2026-01-02T03:19:05Z",` + created + `"updatedAt":"2026-01-02T03:04:05Z"}`},
		{"paid: when to accept", show(paid, "paid", as(domain.Restaurant)),
			`{"orderId":"o1","version":2,"status":"placed","paymentStatus":"paid",` + parties + items + money + pickUp + deliverTo +
				`"acceptBy":"2026-01-02T03:14:05Z",` + created + `"updatedAt":"2026-01-02T03:04:06Z"}`},
		{"dispatch, to ops", show(justReady, "paid", as(domain.Ops)),
			`{"orderId":"o1","version":5,"status":"ready_for_rider","paymentStatus":"paid",` + parties + items + money + pickUp + deliverTo +
				`"readyAt":"2026-01-02T03:04:09Z","dispatch":{"round":1,"wave":0,"exhausted":false},` + created + `"updatedAt":"2026-01-02T03:04:09Z"}`},
		{"no dispatch, to its rider", show(riderAssigned, "paid", as(domain.Rider)),
			`{"orderId":"o1","version":13,"status":"rider_assigned","paymentStatus":"paid","customerId":"c1","restaurantId":"res1","riderId":"r1",` + items + money + pickUp + deliverTo +
				`"riderName":"Una","readyAt":"2026-01-02T03:04:09Z",` + created + `"updatedAt":"2026-01-02T03:04:17Z"}`},
		{"given back: not whose it is", show(droppedByR0, "paid", as(domain.Rider)),
			`{"orderId":"o1","version":8,"status":"ready_for_rider","paymentStatus":"paid","restaurantId":"res1",` + money + pickUp +
				`"readyAt":"2026-01-02T03:04:09Z",` + created + `"updatedAt":"2026-01-02T03:04:12Z"}`},
		{"rejected: why and by whom", show(rejected, "pending", as(domain.Customer)),
			`{"orderId":"o1","version":2,"status":"rejected","paymentStatus":"pending",` + parties + items + money + pickUp + deliverTo +
				`"reason":"no dough","by":"restaurant",` + created + `"updatedAt":"2026-01-02T03:04:06Z"}`},
	} {
		if c.got != c.want {
			t.Errorf("%s: got\n%s\nwant\n%s", c.name, c.got, c.want)
		}
	}
}

// TestEvolveBranches: two futures of one state do not share what they append.
// A slice with room at its end would let the second overwrite the first.
func TestEvolveBranches(t *testing.T) {
	t.Parallel()
	history := justReady
	for i := range 6 { // enough that some append has left room
		s := given(history)
		event := func(id string) order.Event {
			return order.RiderUnassigned{OrderID: "o1", RiderID: id, ClaimID: 1, By: domain.Rider, Round: i + 2}
		}
		a := order.Evolve(s, event("a"), t0)
		_ = order.Evolve(s, event("b"), t0)
		if d := a.Drops[len(a.Drops)-1]; d.RiderID != "a" {
			t.Fatalf("drop %d of one future is overwritten by the other's: %+v", i, d)
		}
		offers := func(id string) order.Event {
			return order.OrderOffered{OrderID: "o1", Round: i + 2, Wave: 1, Riders: riders(id)}
		}
		o := order.Evolve(a, offers("x"), t0)
		x := order.Evolve(o, offers("a"), t0)
		_ = order.Evolve(o, offers("b"), t0)
		if r := x.Offers[len(x.Offers)-1]; r.RiderID != "a" {
			t.Fatalf("an offer of one future is overwritten by the other's: %+v", r)
		}
		history = then(history, event("r"))
	}
}

// BenchmarkDispatch is Decide and Evolve of one dispatch: ready, offered to
// eight riders, asked by one and assigned.
func BenchmarkDispatch(b *testing.B) {
	begun := given(preparing)
	commands := []domain.Command{
		order.Ready{},
		order.OfferWave{Round: 1, Wave: 1, Riders: riders("r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8"), TTL: 30e9, Limit: 50},
		order.CheckOffer{RiderID: "r5"},
		order.Assign{RiderID: "r5", RiderName: subjectkeystest.Name("r5", "Una"), ClaimID: 7, Round: 1, Wave: 1},
	}
	b.ReportAllocs()
	for b.Loop() {
		s := begun
		for _, c := range commands {
			e, err := order.Decide(&s, c, t0)
			if err != nil {
				b.Fatal(err)
			}
			if e != nil {
				s = order.Evolve(s, e, t0)
			}
		}
		if s.Status != order.StatusRiderAssigned {
			b.Fatal(s.Status)
		}
	}
}
