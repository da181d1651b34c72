package projections

import (
	"slices"

	"tomato/domain/payment"
	"tomato/eventlog"
)

// Payments is the read model of the payments. Its table is payments
// (migrations/payments).
const Payments = "payments"

var _ = register(readModel{name: Payments, tables: map[string]table{eventlog.Payments: payments}})

var payments = &aggregates[payment.State, payment.Event]{
	table: "payments", decode: payment.Decode, evolve: payment.Evolve,
	columns: []column[payment.State]{
		{"order_id", "text", func(s *payment.State) string { return s.OrderID }},
		{"gateway_order_id", "text", func(s *payment.State) string { return s.GatewayOrderID }},
		{"booked", "boolean", func(s *payment.State) string { return boolText(s.Facts().Booked) }},
		{"refund_requested", "boolean", func(s *payment.State) string { return boolText(s.Facts().RefundRequested) }},
		{"refund_succeeded", "boolean", func(s *payment.State) string { return boolText(s.Facts().RefundSucceeded) }},
		{"last_attempt_failed", "boolean", func(s *payment.State) string { return boolText(s.Facts().LastAttemptFailed) }},
		{"has_unmatched", "boolean", func(s *payment.State) string {
			return boolText(slices.ContainsFunc(s.Attempts, func(a payment.Attempt) bool { return a.State == payment.AttemptStateUnmatched }))
		}},
		{"refund_failed", "boolean", func(s *payment.State) string { return boolText(refundFailed(s)) }},
		{"created_at", "timestamptz", func(s *payment.State) string { return timeText(s.CreatedAt) }},
	},
}

// refundFailed reports whether the last refund of any attempt failed and no
// operator has resolved that attempt.
func refundFailed(s *payment.State) bool {
	return slices.ContainsFunc(s.Attempts, func(a payment.Attempt) bool {
		r, ok := s.RefundOf(a.PaymentID)
		return ok && r.Status == payment.RefundStatusFailed && a.State != payment.AttemptStateResolved
	})
}
