package payment_test

import (
	"reflect"
	"testing"
	"time"

	"tomato/domain"
	"tomato/domain/domaintest"
	"tomato/domain/order"
	"tomato/domain/payment"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// The histories that lead to the columns. p1 is the payment that is booked, p0
// one that was captured with a wrong amount before.
var (
	parties   = domain.Ctx{CustomerID: "c1", RestaurantID: "res1"}
	none      []payment.Event
	requested = []payment.Event{
		payment.PaymentRequested{OrderID: "o1", Provider: "razorpay", GatewayOrderID: "g1", Amount: 450, Currency: "INR", Ctx: parties},
		payment.PaymentUnmatched{OrderID: "o1", PaymentID: "p0", Amount: 400, Currency: "INR", GatewayOrderID: "g1", Reason: payment.ReasonAmountMismatch, Ctx: parties},
	}
	failed        = then(requested, payment.PaymentFailed{OrderID: "o1", PaymentID: "f1", Amount: 450, Currency: "INR", GatewayOrderID: "g1", Reason: "bank"})
	paid          = then(requested, payment.PaymentSuccess{OrderID: "o1", PaymentID: "p1", Amount: 450, Currency: "INR", GatewayOrderID: "g1", Booked: true})
	refundPending = then(paid, payment.RefundRequested{OrderID: "o1", PaymentID: "p1", RefundID: "rf1", Amount: 450, Currency: "INR", Booked: true})
	refundFailed  = then(refundPending, payment.RefundFailed{OrderID: "o1", PaymentID: "p1", RefundID: "rf1", Amount: 450, Currency: "INR", Booked: true})
	refunded      = then(refundPending, payment.RefundSuccess{OrderID: "o1", PaymentID: "p1", RefundID: "rf1", Amount: 450, Currency: "INR", Booked: true})

	p0RefundRequested = then(paid, payment.RefundRequested{OrderID: "o1", PaymentID: "p0", RefundID: "rf0", Amount: 400, Currency: "INR"})
	p0RefundFailed    = then(p0RefundRequested, payment.RefundFailed{OrderID: "o1", PaymentID: "p0", RefundID: "rf0", Amount: 400, Currency: "INR"})
	p0Refunded        = then(p0RefundRequested, payment.RefundSuccess{OrderID: "o1", PaymentID: "p0", RefundID: "rf0", Amount: 400, Currency: "INR"})
	p0Resolved        = then(paid, payment.PaymentResolved{OrderID: "o1", PaymentID: "p0", Reason: "sent by hand"})

	// Money without an order: an aggregate of its own, by the gateway's payment id.
	stray         = []payment.Event{payment.PaymentUnmatched{PaymentID: "s1", Amount: 70, Currency: "INR", GatewayOrderID: "gX", Reason: payment.ReasonUnknownOrder}}
	strayResolved = then(stray, payment.PaymentResolved{PaymentID: "s1", Reason: "sent by hand"})
)

func then(history []payment.Event, events ...payment.Event) []payment.Event {
	return append(append([]payment.Event{}, history...), events...)
}

func given(history []payment.Event) payment.State {
	var s payment.State
	for i, e := range history {
		s = payment.Evolve(s, e, t0.Add(time.Duration(i)*time.Second))
	}
	return s
}

var columns = []struct {
	name    string
	history []payment.Event
	status  payment.Status
}{
	{"none", none, payment.StatusNone}, {"requested", requested, payment.StatusRequested}, {"failed", failed, payment.StatusFailed},
	{"paid", paid, payment.StatusPaid}, {"refund_pending", refundPending, payment.StatusRefundPending}, {"refunded", refunded, payment.StatusRefunded},
}

// word names a status in the table.
func word(s payment.Status) string {
	if s == payment.StatusNone {
		return "none"
	}
	return string(s)
}

// TestTransitions is the document's table. Cells as there; "— code" is a
// dropped command that says why.
func TestTransitions(t *testing.T) {
	t.Parallel()
	facts := payment.OrderFacts{Payable: true, Status: "placed", Amount: 450, Currency: "INR", CustomerID: "c1", RestaurantID: "res1"}
	ask := func(o payment.OrderFacts) payment.RequestPayment {
		return payment.RequestPayment{OrderID: "o1", Provider: "razorpay", GatewayOrderID: "g2", Order: o}
	}
	captured := func(id string, amount int64, currency, gatewayOrder string) payment.RecordCaptured {
		return payment.RecordCaptured{PaymentID: id, GatewayOrderID: gatewayOrder, Amount: amount, Currency: currency, Order: facts}
	}
	for _, row := range []struct {
		name    string
		command domain.Command
		cells   string
	}{
		// command                                                    none | requested | failed | paid | refund_pending | refunded
		{"RequestPayment (order placed, unpaid)", ask(facts), "PAYMENT_REQUESTED → requested | = | = | order_already_paid | order_already_paid | !"},
		{"RequestPayment (order paid)", ask(payment.OrderFacts{Status: "accepted"}), "order_already_paid | order_already_paid | order_already_paid | order_already_paid | order_already_paid | !"},
		{"RequestPayment (order ended)", ask(payment.OrderFacts{Status: "cancelled", Ended: true}), "! | ! | ! | ! | ! | !"},
		{"RequestPayment, only asking", payment.RequestPayment{OrderID: "o1", Order: facts}, "= | = | = | order_already_paid | order_already_paid | !"},
		{"failed attempt", payment.RecordFailed{PaymentID: "f2", GatewayOrderID: "g1", Amount: 450, Currency: "INR", Reason: "bank"}, "— | PAYMENT_FAILED → failed | PAYMENT_FAILED → failed | — | — | —"},
		{"failed attempt (same paymentId)", payment.RecordFailed{PaymentID: "f1", GatewayOrderID: "g1", Amount: 450, Currency: "INR"}, "— | PAYMENT_FAILED → failed | = | — | — | —"},
		{"failed, told after the capture", payment.RecordFailed{PaymentID: "p0", GatewayOrderID: "g1", Amount: 400, Currency: "INR"}, "— | = | = | — | — | —"},
		{"captured, right (b)", captured("p1", 450, "INR", "g1"), "payment_not_requested | PAYMENT_SUCCESS → paid | PAYMENT_SUCCESS → paid | = | = | ="},
		{"captured, right (another)", captured("p2", 450, "INR", "g1"), "payment_not_requested | PAYMENT_SUCCESS → paid | PAYMENT_SUCCESS → paid | PAYMENT_UNMATCHED → paid | PAYMENT_UNMATCHED → refund_pending | PAYMENT_UNMATCHED → refunded"},
		{"captured, wrong amount", captured("p2", 449, "INR", "g1"), "payment_not_requested | PAYMENT_UNMATCHED → requested | PAYMENT_UNMATCHED → failed | PAYMENT_UNMATCHED → paid | PAYMENT_UNMATCHED → refund_pending | PAYMENT_UNMATCHED → refunded"},
		{"captured, wrong currency", captured("p2", 450, "USD", "g1"), "payment_not_requested | PAYMENT_UNMATCHED → requested | PAYMENT_UNMATCHED → failed | PAYMENT_UNMATCHED → paid | PAYMENT_UNMATCHED → refund_pending | PAYMENT_UNMATCHED → refunded"},
		{"captured, another order's gateway order", captured("p2", 450, "INR", "g9"), "payment_not_requested | PAYMENT_UNMATCHED → requested | PAYMENT_UNMATCHED → failed | PAYMENT_UNMATCHED → paid | PAYMENT_UNMATCHED → refund_pending | PAYMENT_UNMATCHED → refunded"},
		{"captured, unmatched before", captured("p0", 400, "INR", "g1"), "payment_not_requested | = | = | = | = | ="},
		{"captured, failed before", captured("f1", 450, "INR", "g1"), "payment_not_requested | PAYMENT_SUCCESS → paid | PAYMENT_SUCCESS → paid | PAYMENT_UNMATCHED → paid | PAYMENT_UNMATCHED → refund_pending | PAYMENT_UNMATCHED → refunded"},
		{"captured, no payment asked for, or order unknown", payment.RecordUnmatched{PaymentID: "s1", Amount: 70, Currency: "INR", Reason: payment.ReasonUnknownOrder}, "PAYMENT_UNMATCHED → none | PAYMENT_UNMATCHED → requested | PAYMENT_UNMATCHED → failed | PAYMENT_UNMATCHED → paid | PAYMENT_UNMATCHED → refund_pending | PAYMENT_UNMATCHED → refunded"},
		{"RequestRefund b (policies)", payment.RequestRefund{PaymentID: "p1", RefundID: "rf2"}, "— payment_unsettled | — payment_unsettled | — payment_unsettled | REFUND_REQUESTED → refund_pending | = | ="},
		{"RequestRefund b (ops)", payment.RequestRefund{RefundID: "rf2", ByOps: true}, "— payment_unsettled | — payment_unsettled | — payment_unsettled | REFUND_REQUESTED → refund_pending | = | ="},
		{"RequestRefund of an unmatched payment", payment.RequestRefund{PaymentID: "p0", RefundID: "rf2"}, "— payment_unsettled | REFUND_REQUESTED → requested | REFUND_REQUESTED → failed | REFUND_REQUESTED → paid | REFUND_REQUESTED → refund_pending | REFUND_REQUESTED → refunded"},
		{"RequestRefund of a failed attempt", payment.RequestRefund{PaymentID: "f1", RefundID: "rf2"}, "— payment_unsettled | — payment_unsettled | — payment_unsettled | — payment_unsettled | — payment_unsettled | — payment_unsettled"},
		{"resolve (ops)", payment.Resolve{PaymentID: "p0", Reason: "sent by hand", By: "olga"}, "404 | PAYMENT_RESOLVED → requested | PAYMENT_RESOLVED → failed | PAYMENT_RESOLVED → paid | PAYMENT_RESOLVED → refund_pending | PAYMENT_RESOLVED → refunded"},
		{"resolve of b", payment.Resolve{PaymentID: "p1"}, "404 | 404 | 404 | payment_unsettled | payment_unsettled | payment_unsettled"},
		{"refund processed (b)", payment.RecordRefund{RefundID: "rf1", Succeeded: true}, "— | — | — | — | REFUND_SUCCESS → refunded | ="},
		{"refund failed (b)", payment.RecordRefund{RefundID: "rf1", Reason: "bank"}, "— | — | — | — | REFUND_FAILED → refund_pending | —"},
	} {
		cells := domaintest.Columns(row.cells)
		if len(cells) != len(columns) {
			t.Errorf("%s: %d cells for %d columns", row.name, len(cells), len(columns))
			continue
		}
		for i, column := range columns {
			t.Run(row.name+"/"+column.name, func(t *testing.T) {
				t.Parallel()
				s := given(column.history)
				if s.Status != column.status {
					t.Fatalf("the column's history leads to %q", s.Status)
				}
				status := "placed"
				if r, ok := row.command.(payment.RequestPayment); ok {
					status = r.Order.Status
				}
				e, err := payment.Decide(&s, row.command, t0)
				got := domaintest.Outcome(t, e, err, status)
				if e != nil {
					got += " → " + word(payment.Evolve(s, e, t0).Status)
				}
				if want := cells[i]; got != want && (want != "—" || got != "=") && want != "— "+got {
					t.Errorf("got %s, want %s", got, want)
				}
			})
		}
	}
}

// TestEvents is what stands in a cell's event, and the cells that ask for more
// of the history than their column says.
func TestEvents(t *testing.T) {
	t.Parallel()
	shown := func(s order.PaymentStatus) domain.Ctx {
		c := parties
		c.PaymentStatus = string(s)
		return c
	}
	facts := payment.OrderFacts{Payable: true, Status: "placed", Amount: 450, Currency: "INR", CustomerID: "c1", RestaurantID: "res1"}
	capture := func(o payment.OrderFacts, id string, amount int64) payment.RecordCaptured {
		return payment.RecordCaptured{PaymentID: id, GatewayOrderID: "g1", Amount: amount, Currency: "INR", Order: o}
	}
	success := func(ctx domain.Ctx) payment.Event {
		return payment.PaymentSuccess{OrderID: "o1", PaymentID: "p1", Amount: 450, Currency: "INR", GatewayOrderID: "g1", Booked: true, Ctx: ctx}
	}
	refundAgain := then(refundFailed, payment.RefundRequested{OrderID: "o1", PaymentID: "p1", RefundID: "rf2", Amount: 450, Currency: "INR", Booked: true})
	lateSuccess := then(refundAgain, payment.RefundSuccess{OrderID: "o1", PaymentID: "p1", RefundID: "rf1", Amount: 450, Currency: "INR", Booked: true})
	for _, c := range []struct {
		name  string
		given []payment.Event
		when  domain.Command
		then  payment.Event // nil: =
		code  domain.Code
	}{
		{"requested for the order's amount", none, payment.RequestPayment{OrderID: "o1", Provider: "razorpay", GatewayOrderID: "g1", Order: facts}, requested[0], ""},
		{"failed", requested, payment.RecordFailed{PaymentID: "f1", GatewayOrderID: "g1", Amount: 450, Currency: "INR", Reason: "bank"},
			payment.PaymentFailed{OrderID: "o1", PaymentID: "f1", Amount: 450, Currency: "INR", GatewayOrderID: "g1", Reason: "bank", Ctx: shown(order.PaymentFailed)}, ""},
		{"paid: shown so only by ORDER_PAID", requested, capture(facts, "p1", 450), success(parties), ""},
		{"paid after a failure: no longer failed, not yet paid", failed, capture(facts, "p1", 450), success(shown(order.PaymentPending)), ""},
		{"paid on an order that ended: on its way back", requested, capture(payment.OrderFacts{Ended: true}, "p1", 450), success(shown(order.PaymentRefundPending)), ""},
		{"unmatched: exactly what was captured", requested, capture(facts, "p2", 451),
			payment.PaymentUnmatched{OrderID: "o1", PaymentID: "p2", Amount: 451, Currency: "INR", GatewayOrderID: "g1", Reason: payment.ReasonAmountMismatch, Ctx: parties}, ""},
		{"unmatched: a second payment", paid, capture(facts, "p2", 450),
			payment.PaymentUnmatched{OrderID: "o1", PaymentID: "p2", Amount: 450, Currency: "INR", GatewayOrderID: "g1", Reason: payment.ReasonAlreadyPaid, Ctx: parties}, ""},
		{"unmatched: a second payment, wrong too", paid, capture(facts, "p2", 9),
			payment.PaymentUnmatched{OrderID: "o1", PaymentID: "p2", Amount: 9, Currency: "INR", GatewayOrderID: "g1", Reason: payment.ReasonAmountMismatch, Ctx: parties}, ""},
		{"told by paymentId, not by what the repeat says", paid, capture(facts, "p1", 1), nil, ""},
		{"unmatched, refunded: its repeat", p0Refunded, capture(facts, "p0", 400), nil, ""},
		{"unmatched, resolved: its repeat", p0Resolved, capture(facts, "p0", 400), nil, ""},

		{"stray", none, payment.RecordUnmatched{PaymentID: "s1", Amount: 70, Currency: "INR", GatewayOrderID: "gX", Reason: payment.ReasonUnknownOrder}, stray[0], ""},
		{"stray: its repeat", stray, payment.RecordUnmatched{PaymentID: "s1", Amount: 70, Currency: "INR"}, nil, ""},
		{"stray: never refunded from here", stray, payment.RequestRefund{PaymentID: "s1", RefundID: "rf9"}, nil, payment.CodeUnsettled},
		{"stray: nor by ops", stray, payment.RequestRefund{PaymentID: "s1", RefundID: "rf9", ByOps: true}, nil, payment.CodeUnsettled},
		{"stray: resolved", stray, payment.Resolve{PaymentID: "s1", Reason: "sent by hand", By: "olga"},
			payment.PaymentResolved{PaymentID: "s1", Reason: "sent by hand", By: "olga"}, ""},
		{"stray: resolved already", strayResolved, payment.Resolve{PaymentID: "s1", Reason: "again"}, nil, ""},

		{"refund of b", paid, payment.RequestRefund{RefundID: "rf1", Reason: "cancelled"},
			payment.RefundRequested{OrderID: "o1", PaymentID: "p1", RefundID: "rf1", Amount: 450, Currency: "INR", Reason: "cancelled", Booked: true, Ctx: shown(order.PaymentRefundPending)}, ""},
		{"refund failed: policies ask no more", refundFailed, payment.RequestRefund{PaymentID: "p1", RefundID: "rf2"}, nil, ""},
		{"refund failed: ops ask again", refundFailed, payment.RequestRefund{RefundID: "rf2", Reason: "again", ByOps: true},
			payment.RefundRequested{OrderID: "o1", PaymentID: "p1", RefundID: "rf2", Amount: 450, Currency: "INR", Reason: "again", Booked: true, Ctx: shown(order.PaymentRefundPending)}, ""},
		{"refund failed: the same wish again", refundFailed, payment.RequestRefund{RefundID: "rf1", ByOps: true}, nil, ""},
		{"refund asked again: once", refundAgain, payment.RequestRefund{RefundID: "rf3", ByOps: true}, nil, ""},
		{"refund failed: failed already", refundFailed, payment.RecordRefund{RefundID: "rf1"}, nil, ""},
		{"refund failed, succeeds late", refundAgain, payment.RecordRefund{RefundID: "rf1", Succeeded: true},
			payment.RefundSuccess{OrderID: "o1", PaymentID: "p1", RefundID: "rf1", Amount: 450, Currency: "INR", Booked: true, Ctx: shown(order.PaymentRefunded)}, ""},
		{"refunded: the other refund's success", lateSuccess, payment.RecordRefund{RefundID: "rf2", Succeeded: true}, nil, ""},
		{"refunded: the other refund's failure", lateSuccess, payment.RecordRefund{RefundID: "rf2"}, nil, ""},
		{"refunded: ops ask again", lateSuccess, payment.RequestRefund{RefundID: "rf3", ByOps: true}, nil, ""},
		{"refunded late, after the other failed too: ops ask again", then(refundAgain,
			payment.RefundFailed{OrderID: "o1", PaymentID: "p1", RefundID: "rf2", Booked: true},
			payment.RefundSuccess{OrderID: "o1", PaymentID: "p1", RefundID: "rf1", Booked: true}), payment.RequestRefund{RefundID: "rf3", ByOps: true}, nil, ""},
		{"refund failed: stays", refundPending, payment.RecordRefund{RefundID: "rf1", Reason: "bank"},
			payment.RefundFailed{OrderID: "o1", PaymentID: "p1", RefundID: "rf1", Amount: 450, Currency: "INR", Reason: "bank", Booked: true, Ctx: parties}, ""},

		{"unmatched: refund", paid, payment.RequestRefund{PaymentID: "p0", RefundID: "rf0", Reason: "amount_mismatch"},
			payment.RefundRequested{OrderID: "o1", PaymentID: "p0", RefundID: "rf0", Amount: 400, Currency: "INR", Reason: "amount_mismatch", Ctx: parties}, ""},
		{"unmatched: refund requested once", p0RefundRequested, payment.RequestRefund{PaymentID: "p0", RefundID: "rf9"}, nil, ""},
		{"unmatched: refund failed, ops ask again", p0RefundFailed, payment.RequestRefund{PaymentID: "p0", RefundID: "rf9", ByOps: true},
			payment.RefundRequested{OrderID: "o1", PaymentID: "p0", RefundID: "rf9", Amount: 400, Currency: "INR", Ctx: parties}, ""},
		{"unmatched: refunded", p0RefundRequested, payment.RecordRefund{RefundID: "rf0", Succeeded: true},
			payment.RefundSuccess{OrderID: "o1", PaymentID: "p0", RefundID: "rf0", Amount: 400, Currency: "INR", Ctx: parties}, ""},
		{"unmatched: refunded already", p0Refunded, payment.RequestRefund{PaymentID: "p0", RefundID: "rf9", ByOps: true}, nil, ""},
		{"unmatched: no resolving while a refund runs", p0RefundRequested, payment.Resolve{PaymentID: "p0"}, nil, payment.CodeUnsettled},
		{"unmatched: resolved after its refund failed", p0RefundFailed, payment.Resolve{PaymentID: "p0", Reason: "by hand", By: "olga"},
			payment.PaymentResolved{OrderID: "o1", PaymentID: "p0", Reason: "by hand", By: "olga", Ctx: parties}, ""},
		{"unmatched: refunded, nothing to resolve", p0Refunded, payment.Resolve{PaymentID: "p0"}, nil, payment.CodeUnsettled},
		{"unmatched: resolved already", p0Resolved, payment.Resolve{PaymentID: "p0"}, nil, ""},
		{"unmatched: resolved, nothing to refund", p0Resolved, payment.RequestRefund{PaymentID: "p0", RefundID: "rf9"}, nil, payment.CodeUnsettled},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := given(c.given)
			e, err := payment.Decide(&s, c.when, t0)
			if domain.RefusedWith(err) != c.code || err != nil && c.code == "" {
				t.Fatalf("got error %v, want %q", err, c.code)
			}
			if !reflect.DeepEqual(e, c.then) {
				t.Errorf("got\n%#v\nwant\n%#v", e, c.then)
			}
		})
	}
	if _, err := payment.Decide(&payment.State{}, nil, t0); err == nil {
		t.Error("no command is decided")
	}
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
		if payment.Evolve(s, e, t0); !reflect.DeepEqual(s, given(p0RefundRequested)) {
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
