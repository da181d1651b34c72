package payment_test

import (
	"reflect"
	"testing"

	"tomato/domain"
	"tomato/domain/domaintest"
	"tomato/domain/order"
	"tomato/domain/payment"
)

// TestEvents is what the events carry, and the decisions that depend on more of the
// history than the states of TestTransitions have.
func TestEvents(t *testing.T) {
	t.Parallel()
	shown := func(s order.PaymentStatus) domain.Ctx {
		c := parties
		c.PaymentStatus = string(s)
		return c
	}
	capture := func(o payment.OrderFacts, id string, amount int64) payment.RecordCaptured {
		return payment.RecordCaptured{PaymentID: id, GatewayOrderID: "g1", Amount: amount, Currency: "INR", Order: o}
	}
	success := func(ctx domain.Ctx) payment.Event {
		return payment.PaymentSuccess{OrderID: "o1", PaymentID: "p1", Amount: 450, Currency: "INR", GatewayOrderID: "g1", Booked: true, Ctx: ctx}
	}
	refundAgain := then(refundFailed,
		payment.RefundRequested{OrderID: "o1", PaymentID: "p1", RefundID: "rf2", Amount: 450, Currency: "INR", Booked: true})
	lateSuccess := then(refundAgain,
		payment.RefundSuccess{OrderID: "o1", PaymentID: "p1", RefundID: "rf1", Amount: 450, Currency: "INR", Booked: true})
	aggregate.Examples(t, []domaintest.Example[payment.Event]{
		{
			Name:  "requested for the order's amount",
			Given: none,
			When:  payment.RequestPayment{OrderID: "o1", Provider: "razorpay", GatewayOrderID: "g1", Order: facts},
			Then:  requested[0],
		},
		{
			Name:  "failed",
			Given: requested,
			When:  payment.RecordFailed{PaymentID: "f1", GatewayOrderID: "g1", Amount: 450, Currency: "INR", Reason: "bank"},
			Then: payment.PaymentFailed{
				OrderID: "o1", PaymentID: "f1", Amount: 450, Currency: "INR", GatewayOrderID: "g1", Reason: "bank",
				Ctx: shown(order.PaymentFailed),
			},
		},
		{Name: "paid: shown so only by ORDER_PAID", Given: requested, When: capture(facts, "p1", 450), Then: success(parties)},
		{
			Name:  "paid after a failure: no longer failed, not yet paid",
			Given: failed,
			When:  capture(facts, "p1", 450),
			Then:  success(shown(order.PaymentPending)),
		},
		{
			Name:  "paid on an order that ended: on its way back",
			Given: requested,
			When:  capture(payment.OrderFacts{Ended: true}, "p1", 450),
			Then:  success(shown(order.PaymentRefundPending)),
		},
		{
			Name:  "unmatched: exactly what was captured",
			Given: requested,
			When:  capture(facts, "p2", 451),
			Then: payment.PaymentUnmatched{
				OrderID: "o1", PaymentID: "p2", Amount: 451, Currency: "INR", GatewayOrderID: "g1",
				Reason: payment.ReasonAmountMismatch, Ctx: parties,
			},
		},
		{
			Name:  "unmatched: a second payment",
			Given: paid,
			When:  capture(facts, "p2", 450),
			Then: payment.PaymentUnmatched{
				OrderID: "o1", PaymentID: "p2", Amount: 450, Currency: "INR", GatewayOrderID: "g1",
				Reason: payment.ReasonAlreadyPaid, Ctx: parties,
			},
		},
		{
			Name:  "unmatched: a second payment, wrong too",
			Given: paid,
			When:  capture(facts, "p2", 9),
			Then: payment.PaymentUnmatched{
				OrderID: "o1", PaymentID: "p2", Amount: 9, Currency: "INR", GatewayOrderID: "g1",
				Reason: payment.ReasonAmountMismatch, Ctx: parties,
			},
		},
		{Name: "told by paymentId, not by what the repeat says", Given: paid, When: capture(facts, "p1", 1)},
		{Name: "unmatched, refunded: its repeat", Given: p0Refunded, When: capture(facts, "p0", 400)},
		{Name: "unmatched, resolved: its repeat", Given: p0Resolved, When: capture(facts, "p0", 400)},

		{
			Name:  "stray",
			Given: none,
			When: payment.RecordUnmatched{
				PaymentID: "s1", Amount: 70, Currency: "INR", GatewayOrderID: "gX", Reason: payment.ReasonUnknownOrder,
			},
			Then: stray[0],
		},
		{Name: "stray: its repeat", Given: stray, When: payment.RecordUnmatched{PaymentID: "s1", Amount: 70, Currency: "INR"}},
		{
			Name:    "stray: never refunded from here",
			Given:   stray,
			When:    payment.RequestRefund{PaymentID: "s1", RefundID: "rf9"},
			Refused: payment.CodeUnsettled,
		},
		{
			Name:    "stray: nor by ops",
			Given:   stray,
			When:    payment.RequestRefund{PaymentID: "s1", RefundID: "rf9", ByOps: true},
			Refused: payment.CodeUnsettled,
		},
		{
			Name:  "stray: resolved",
			Given: stray,
			When:  payment.Resolve{PaymentID: "s1", Reason: "sent by hand", By: "olga"},
			Then:  payment.PaymentResolved{PaymentID: "s1", Reason: "sent by hand", By: "olga"},
		},
		{Name: "stray: resolved already", Given: strayResolved, When: payment.Resolve{PaymentID: "s1", Reason: "again"}},

		{
			Name:  "refund of b",
			Given: paid,
			When:  payment.RequestRefund{RefundID: "rf1", Reason: "cancelled"},
			Then: payment.RefundRequested{
				OrderID: "o1", PaymentID: "p1", RefundID: "rf1", Amount: 450, Currency: "INR", Reason: "cancelled",
				Booked: true, Ctx: shown(order.PaymentRefundPending),
			},
		},
		{
			Name:  "refund failed: policies ask no more",
			Given: refundFailed,
			When:  payment.RequestRefund{PaymentID: "p1", RefundID: "rf2"},
		},
		{
			Name:  "refund failed: ops ask again",
			Given: refundFailed,
			When:  payment.RequestRefund{RefundID: "rf2", Reason: "again", ByOps: true},
			Then: payment.RefundRequested{
				OrderID: "o1", PaymentID: "p1", RefundID: "rf2", Amount: 450, Currency: "INR", Reason: "again",
				Booked: true, Ctx: shown(order.PaymentRefundPending),
			},
		},
		{
			Name:  "refund failed: the same wish again",
			Given: refundFailed,
			When:  payment.RequestRefund{RefundID: "rf1", ByOps: true},
		},
		{Name: "refund asked again: once", Given: refundAgain, When: payment.RequestRefund{RefundID: "rf3", ByOps: true}},
		{Name: "refund failed: failed already", Given: refundFailed, When: payment.RecordRefund{RefundID: "rf1"}},
		{
			Name:  "refund failed, succeeds late",
			Given: refundAgain,
			When:  payment.RecordRefund{RefundID: "rf1", Succeeded: true},
			Then: payment.RefundSuccess{
				OrderID: "o1", PaymentID: "p1", RefundID: "rf1", Amount: 450, Currency: "INR", Booked: true,
				Ctx: shown(order.PaymentRefunded),
			},
		},
		{
			Name:  "refunded: the other refund's success",
			Given: lateSuccess,
			When:  payment.RecordRefund{RefundID: "rf2", Succeeded: true},
		},
		{Name: "refunded: the other refund's failure", Given: lateSuccess, When: payment.RecordRefund{RefundID: "rf2"}},
		{Name: "refunded: ops ask again", Given: lateSuccess, When: payment.RequestRefund{RefundID: "rf3", ByOps: true}},
		{
			Name: "refunded late, after the other failed too: ops ask again",
			Given: then(
				refundAgain,
				payment.RefundFailed{OrderID: "o1", PaymentID: "p1", RefundID: "rf2", Booked: true},
				payment.RefundSuccess{OrderID: "o1", PaymentID: "p1", RefundID: "rf1", Booked: true},
			),
			When: payment.RequestRefund{RefundID: "rf3", ByOps: true},
		},
		{
			Name:  "refund failed: stays",
			Given: refundPending,
			When:  payment.RecordRefund{RefundID: "rf1", Reason: "bank"},
			Then: payment.RefundFailed{
				OrderID: "o1", PaymentID: "p1", RefundID: "rf1", Amount: 450, Currency: "INR", Reason: "bank",
				Booked: true, Ctx: parties,
			},
		},

		{
			Name:  "unmatched: refund",
			Given: paid,
			When:  payment.RequestRefund{PaymentID: "p0", RefundID: "rf0", Reason: "amount_mismatch"},
			Then: payment.RefundRequested{
				OrderID: "o1", PaymentID: "p0", RefundID: "rf0", Amount: 400, Currency: "INR",
				Reason: "amount_mismatch", Ctx: parties,
			},
		},
		{
			Name:  "unmatched: refund requested once",
			Given: p0RefundRequested,
			When:  payment.RequestRefund{PaymentID: "p0", RefundID: "rf9"},
		},
		{
			Name:  "unmatched: refund failed, ops ask again",
			Given: p0RefundFailed,
			When:  payment.RequestRefund{PaymentID: "p0", RefundID: "rf9", ByOps: true},
			Then: payment.RefundRequested{
				OrderID: "o1", PaymentID: "p0", RefundID: "rf9", Amount: 400, Currency: "INR", Ctx: parties,
			},
		},
		{
			Name:  "unmatched: refunded",
			Given: p0RefundRequested,
			When:  payment.RecordRefund{RefundID: "rf0", Succeeded: true},
			Then: payment.RefundSuccess{
				OrderID: "o1", PaymentID: "p0", RefundID: "rf0", Amount: 400, Currency: "INR", Ctx: parties,
			},
		},
		{
			Name:  "unmatched: refunded already",
			Given: p0Refunded,
			When:  payment.RequestRefund{PaymentID: "p0", RefundID: "rf9", ByOps: true},
		},
		{
			Name:    "unmatched: no resolving while a refund runs",
			Given:   p0RefundRequested,
			When:    payment.Resolve{PaymentID: "p0"},
			Refused: payment.CodeUnsettled,
		},
		{
			Name:  "unmatched: resolved after its refund failed",
			Given: p0RefundFailed,
			When:  payment.Resolve{PaymentID: "p0", Reason: "by hand", By: "olga"},
			Then:  payment.PaymentResolved{OrderID: "o1", PaymentID: "p0", Reason: "by hand", By: "olga", Ctx: parties},
		},
		{
			Name:    "unmatched: refunded, nothing to resolve",
			Given:   p0Refunded,
			When:    payment.Resolve{PaymentID: "p0"},
			Refused: payment.CodeUnsettled,
		},
		{Name: "unmatched: resolved already", Given: p0Resolved, When: payment.Resolve{PaymentID: "p0"}},
		{
			Name:    "unmatched: resolved, nothing to refund",
			Given:   p0Resolved,
			When:    payment.RequestRefund{PaymentID: "p0", RefundID: "rf9"},
			Refused: payment.CodeUnsettled,
		},
	})
}

// TestEvolve is where the state is not told by its status.
func TestEvolve(t *testing.T) {
	t.Parallel()
	s := given(stray)
	if s.ID != "s1" || s.OrderID != "" || s.Status != payment.StatusNone || s.Version != 1 || s.GatewayOrderID != "gX" {
		t.Errorf("stray: %+v", s)
	}
	s = given(p0Refunded)
	if a, _ := s.Attempt("p0"); a.State != payment.AttemptStateRefunded || s.Status != payment.StatusPaid || s.Booked != "p1" {
		t.Errorf("unmatched and refunded: %+v", s)
	}
	s = given(then(failed, payment.PaymentSuccess{OrderID: "o1", PaymentID: "f1", Amount: 450, Currency: "INR", Booked: true}))
	if a, _ := s.Attempt("f1"); a.State != payment.AttemptStateBooked || a.GatewayStatus != "captured" || a.Reason != "" || len(s.Attempts) != 2 {
		t.Errorf("failed, then captured: %+v", s)
	}
	// A refund that succeeded late stays so, whatever the later one came to.
	s = given(then(refundFailed,
		payment.RefundRequested{OrderID: "o1", PaymentID: "p1", RefundID: "rf2", Booked: true},
		payment.RefundSuccess{OrderID: "o1", PaymentID: "p1", RefundID: "rf1", Booked: true}))
	if f := s.Facts(); s.Status != payment.StatusRefunded || !f.RefundSucceeded {
		t.Errorf("late success: %+v %+v", s, f)
	}
}

// TestEvolveKeepsItsInput: a copy of a state may be read by anyone at any time.
func TestEvolveKeepsItsInput(t *testing.T) {
	t.Parallel()
	s := given(p0RefundRequested)
	for _, e := range []payment.Event{
		payment.PaymentResolved{PaymentID: "p0"},
		payment.PaymentFailed{PaymentID: "p1"},
		payment.RefundSuccess{PaymentID: "p0", RefundID: "rf0"},
		payment.RefundFailed{PaymentID: "p0", RefundID: "rf0"},
	} {
		if payment.Evolve(s, e, domaintest.T0); !reflect.DeepEqual(s, given(p0RefundRequested)) {
			t.Fatalf("%s changed the state before it: %+v", e.EventType(), s)
		}
	}
}

func TestWithOrder(t *testing.T) {
	t.Parallel()
	o := payment.OrderFacts{Payable: true, Status: "placed"}
	for _, c := range []struct{ in, want domain.Command }{
		{payment.RequestPayment{OrderID: "o1"}, payment.RequestPayment{OrderID: "o1", Order: o}},
		{payment.RecordCaptured{PaymentID: "p1"}, payment.RecordCaptured{PaymentID: "p1", Order: o}},
		{payment.Resolve{PaymentID: "p1"}, payment.Resolve{PaymentID: "p1"}},
	} {
		if got := payment.WithOrder(c.in, o); got != c.want {
			t.Errorf("%#v, want %#v", got, c.want)
		}
	}
}
