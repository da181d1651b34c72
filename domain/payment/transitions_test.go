package payment_test

import (
	"testing"

	"tomato/domain"
	"tomato/domain/domaintest"
	"tomato/domain/payment"
)

var aggregate = domaintest.Aggregate[payment.State, payment.Event]{
	Evolve: payment.Evolve,
	Decide: payment.Decide,
	Show: func(s *payment.State) string {
		if s.Status == payment.StatusNone {
			return "none"
		}
		return string(s.Status)
	},
	OrderStatus: func(_ *payment.State, c domain.Command) string {
		if r, ok := c.(payment.RequestPayment); ok {
			return r.Order.Status
		}
		return "placed"
	},
}

var (
	given = aggregate.Given
	then  = aggregate.Then
)

// The histories that lead to the states. p1 is the payment that is booked, p0
// one that was captured with a wrong amount before.
var (
	parties   = domain.Ctx{CustomerID: "c1", RestaurantID: "res1"}
	none      []payment.Event
	requested = []payment.Event{
		payment.PaymentRequested{OrderID: "o1", Provider: "razorpay", GatewayOrderID: "g1", Amount: 450, Currency: "INR", Ctx: parties},
		payment.PaymentUnmatched{OrderID: "o1", PaymentID: "p0", Amount: 400, Currency: "INR", GatewayOrderID: "g1",
			Reason: payment.ReasonAmountMismatch, Ctx: parties},
	}
	failed = then(requested,
		payment.PaymentFailed{OrderID: "o1", PaymentID: "f1", Amount: 450, Currency: "INR", GatewayOrderID: "g1", Reason: "bank"})
	paid = then(requested,
		payment.PaymentSuccess{OrderID: "o1", PaymentID: "p1", Amount: 450, Currency: "INR", GatewayOrderID: "g1", Booked: true})
	refundPending = then(paid,
		payment.RefundRequested{OrderID: "o1", PaymentID: "p1", RefundID: "rf1", Amount: 450, Currency: "INR", Booked: true})
	refundFailed = then(refundPending,
		payment.RefundFailed{OrderID: "o1", PaymentID: "p1", RefundID: "rf1", Amount: 450, Currency: "INR", Booked: true})
	refunded = then(refundPending,
		payment.RefundSuccess{OrderID: "o1", PaymentID: "p1", RefundID: "rf1", Amount: 450, Currency: "INR", Booked: true})

	p0RefundRequested = then(paid,
		payment.RefundRequested{OrderID: "o1", PaymentID: "p0", RefundID: "rf0", Amount: 400, Currency: "INR"})
	p0RefundFailed = then(p0RefundRequested,
		payment.RefundFailed{OrderID: "o1", PaymentID: "p0", RefundID: "rf0", Amount: 400, Currency: "INR"})
	p0Refunded = then(p0RefundRequested,
		payment.RefundSuccess{OrderID: "o1", PaymentID: "p0", RefundID: "rf0", Amount: 400, Currency: "INR"})
	p0Resolved = then(paid, payment.PaymentResolved{OrderID: "o1", PaymentID: "p0", Reason: "sent by hand"})

	// Money without an order: an aggregate of its own, by the gateway's payment id.
	stray = []payment.Event{
		payment.PaymentUnmatched{PaymentID: "s1", Amount: 70, Currency: "INR", GatewayOrderID: "gX", Reason: payment.ReasonUnknownOrder},
	}
	strayResolved = then(stray, payment.PaymentResolved{PaymentID: "s1", Reason: "sent by hand"})
)

// facts are what the order of the histories says to commands.
var facts = payment.OrderFacts{
	Payable: true, Status: "placed", Amount: 450, Currency: "INR", CustomerID: "c1", RestaurantID: "res1",
}

// states are the states in which TestTransitions tries each command.
var states = []domaintest.State[payment.Event]{
	{Name: "none", History: none, Shown: "none"},
	{Name: "requested", History: requested, Shown: "requested"},
	{Name: "failed", History: failed, Shown: "failed"},
	{Name: "paid", History: paid, Shown: "paid"},
	{Name: "refund_pending", History: refundPending, Shown: "refund_pending"},
	{Name: "refunded", History: refunded, Shown: "refunded"},
}

// TestTransitions is the table of transitions: the outcome of every command in every
// state of a payment.
func TestTransitions(t *testing.T) {
	t.Parallel()
	ask := func(o payment.OrderFacts) payment.RequestPayment {
		return payment.RequestPayment{OrderID: "o1", Provider: "razorpay", GatewayOrderID: "g2", Order: o}
	}
	captured := func(id string, amount int64, currency, gatewayOrder string) payment.RecordCaptured {
		return payment.RecordCaptured{PaymentID: id, GatewayOrderID: gatewayOrder, Amount: amount, Currency: currency, Order: facts}
	}
	aggregate.Transitions(t, states, []domaintest.Transition{
		{Name: "RequestPayment (order placed, unpaid)", Command: ask(facts), Then: `
			none                 | PAYMENT_REQUESTED → requested
			requested; failed    | =
			paid; refund_pending | order_already_paid
			refunded             | !`},
		{Name: "RequestPayment (order paid)", Command: ask(payment.OrderFacts{Status: "accepted"}), Then: `
			none .. refund_pending | order_already_paid
			refunded               | !`},
		{Name: "RequestPayment (order ended)", Command: ask(payment.OrderFacts{Status: "cancelled", Ended: true}), Then: `
			none .. refunded | !`},
		{Name: "RequestPayment, only asking", Command: payment.RequestPayment{OrderID: "o1", Order: facts}, Then: `
			none .. failed       | =
			paid; refund_pending | order_already_paid
			refunded             | !`},
		{
			Name:    "failed attempt",
			Command: payment.RecordFailed{PaymentID: "f2", GatewayOrderID: "g1", Amount: 450, Currency: "INR", Reason: "bank"},
			Then: `
			none; paid .. refunded | —
			requested; failed      | PAYMENT_FAILED → failed`,
		},
		{
			Name:    "failed attempt (same paymentId)",
			Command: payment.RecordFailed{PaymentID: "f1", GatewayOrderID: "g1", Amount: 450, Currency: "INR"},
			Then: `
			none; paid .. refunded | —
			requested              | PAYMENT_FAILED → failed
			failed                 | =`,
		},
		{
			Name:    "failed, told after the capture",
			Command: payment.RecordFailed{PaymentID: "p0", GatewayOrderID: "g1", Amount: 400, Currency: "INR"},
			Then: `
			none; paid .. refunded | —
			requested; failed      | =`,
		},
		{Name: "captured, right (b)", Command: captured("p1", 450, "INR", "g1"), Then: `
			none              | payment_not_requested
			requested; failed | PAYMENT_SUCCESS → paid
			paid .. refunded  | =`},
		{Name: "captured, right (another)", Command: captured("p2", 450, "INR", "g1"), Then: `
			none              | payment_not_requested
			requested; failed | PAYMENT_SUCCESS → paid
			paid              | PAYMENT_UNMATCHED → paid
			refund_pending    | PAYMENT_UNMATCHED → refund_pending
			refunded          | PAYMENT_UNMATCHED → refunded`},
		{Name: "captured, wrong amount", Command: captured("p2", 449, "INR", "g1"), Then: `
			none           | payment_not_requested
			requested      | PAYMENT_UNMATCHED → requested
			failed         | PAYMENT_UNMATCHED → failed
			paid           | PAYMENT_UNMATCHED → paid
			refund_pending | PAYMENT_UNMATCHED → refund_pending
			refunded       | PAYMENT_UNMATCHED → refunded`},
		{Name: "captured, wrong currency", Command: captured("p2", 450, "USD", "g1"), Then: `
			none           | payment_not_requested
			requested      | PAYMENT_UNMATCHED → requested
			failed         | PAYMENT_UNMATCHED → failed
			paid           | PAYMENT_UNMATCHED → paid
			refund_pending | PAYMENT_UNMATCHED → refund_pending
			refunded       | PAYMENT_UNMATCHED → refunded`},
		{Name: "captured, another order's gateway order", Command: captured("p2", 450, "INR", "g9"), Then: `
			none           | payment_not_requested
			requested      | PAYMENT_UNMATCHED → requested
			failed         | PAYMENT_UNMATCHED → failed
			paid           | PAYMENT_UNMATCHED → paid
			refund_pending | PAYMENT_UNMATCHED → refund_pending
			refunded       | PAYMENT_UNMATCHED → refunded`},
		{Name: "captured, unmatched before", Command: captured("p0", 400, "INR", "g1"), Then: `
			none                  | payment_not_requested
			requested .. refunded | =`},
		{Name: "captured, failed before", Command: captured("f1", 450, "INR", "g1"), Then: `
			none              | payment_not_requested
			requested; failed | PAYMENT_SUCCESS → paid
			paid              | PAYMENT_UNMATCHED → paid
			refund_pending    | PAYMENT_UNMATCHED → refund_pending
			refunded          | PAYMENT_UNMATCHED → refunded`},
		{
			Name:    "captured, no payment asked for, or order unknown",
			Command: payment.RecordUnmatched{PaymentID: "s1", Amount: 70, Currency: "INR", Reason: payment.ReasonUnknownOrder},
			Then: `
			none           | PAYMENT_UNMATCHED → none
			requested      | PAYMENT_UNMATCHED → requested
			failed         | PAYMENT_UNMATCHED → failed
			paid           | PAYMENT_UNMATCHED → paid
			refund_pending | PAYMENT_UNMATCHED → refund_pending
			refunded       | PAYMENT_UNMATCHED → refunded`,
		},
		{Name: "RequestRefund b (policies)", Command: payment.RequestRefund{PaymentID: "p1", RefundID: "rf2"}, Then: `
			none .. failed           | — payment_unsettled
			paid                     | REFUND_REQUESTED → refund_pending
			refund_pending; refunded | =`},
		{Name: "RequestRefund b (ops)", Command: payment.RequestRefund{RefundID: "rf2", ByOps: true}, Then: `
			none .. failed           | — payment_unsettled
			paid                     | REFUND_REQUESTED → refund_pending
			refund_pending; refunded | =`},
		{
			Name:    "RequestRefund of an unmatched payment",
			Command: payment.RequestRefund{PaymentID: "p0", RefundID: "rf2"},
			Then: `
			none           | — payment_unsettled
			requested      | REFUND_REQUESTED → requested
			failed         | REFUND_REQUESTED → failed
			paid           | REFUND_REQUESTED → paid
			refund_pending | REFUND_REQUESTED → refund_pending
			refunded       | REFUND_REQUESTED → refunded`,
		},
		{
			Name:    "RequestRefund of a failed attempt",
			Command: payment.RequestRefund{PaymentID: "f1", RefundID: "rf2"},
			Then: `
			none .. refunded | — payment_unsettled`,
		},
		{Name: "resolve (ops)", Command: payment.Resolve{PaymentID: "p0", Reason: "sent by hand", By: "olga"}, Then: `
			none           | 404
			requested      | PAYMENT_RESOLVED → requested
			failed         | PAYMENT_RESOLVED → failed
			paid           | PAYMENT_RESOLVED → paid
			refund_pending | PAYMENT_RESOLVED → refund_pending
			refunded       | PAYMENT_RESOLVED → refunded`},
		{Name: "resolve of b", Command: payment.Resolve{PaymentID: "p1"}, Then: `
			none .. failed   | 404
			paid .. refunded | payment_unsettled`},
		{Name: "refund processed (b)", Command: payment.RecordRefund{RefundID: "rf1", Succeeded: true}, Then: `
			none .. paid   | —
			refund_pending | REFUND_SUCCESS → refunded
			refunded       | =`},
		{Name: "refund failed (b)", Command: payment.RecordRefund{RefundID: "rf1", Reason: "bank"}, Then: `
			none .. paid; refunded | —
			refund_pending         | REFUND_FAILED → refund_pending`},
	})
}
