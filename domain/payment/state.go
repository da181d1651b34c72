// Package payment is the payment aggregate of an order: what was asked for at the
// gateway, what was captured, and what was refunded. Its key is the order's id. Money
// that belongs to no order is an aggregate of its own, whose key is the gateway's
// payment id.
//
// The comment of package domain lists the files.
package payment

import (
	"slices"
	"time"

	"tomato/domain"
	"tomato/domain/order"
)

// Status is how far the booked payment is. The zero value is "none".
type Status string

// The statuses.
const (
	StatusNone          Status = ""
	StatusRequested     Status = "requested"
	StatusFailed        Status = "failed"
	StatusPaid          Status = "paid"
	StatusRefundPending Status = "refund_pending"
	StatusRefunded      Status = "refunded"
)

// AttemptState is what one payment at the gateway means to the order.
type AttemptState string

// The attempt states.
const (
	AttemptStateBooked    AttemptState = "booked"
	AttemptStateFailed    AttemptState = "failed"
	AttemptStateUnmatched AttemptState = "unmatched" // captured, but does not pay the order
	AttemptStateResolved  AttemptState = "resolved"  // unmatched, closed by an operator
	AttemptStateRefunded  AttemptState = "refunded"  // unmatched, sent back
)

// Attempt is one payment at the gateway.
type Attempt struct {
	PaymentID     string       `json:"paymentId"`
	Amount        int64        `json:"amount"` // minor units
	Currency      string       `json:"currency"`
	State         AttemptState `json:"state"`
	GatewayStatus string       `json:"gatewayStatus"` // captured or failed, as last heard
	Reason        string       `json:"reason,omitempty"`
}

// RefundStatus is how far a refund is.
type RefundStatus string

// The refund statuses.
const (
	RefundStatusRequested RefundStatus = "requested"
	RefundStatusSucceeded RefundStatus = "succeeded"
	RefundStatusFailed    RefundStatus = "failed"
)

// Refund is one refund that was asked for.
type Refund struct {
	RefundID  string       `json:"refundId"` // ours: the gateway's idempotency key
	PaymentID string       `json:"paymentId"`
	Amount    int64        `json:"amount"`
	Currency  string       `json:"currency"`
	Status    RefundStatus `json:"status"`
}

// State is a payment as its events have made it. Evolve never changes a slice in
// place, so a copy may be read concurrently.
type State struct {
	ID             string    `json:"id"`                // order id, or the gateway payment id of money without an order
	OrderID        string    `json:"orderId,omitempty"` // "" for money without an order
	Version        int64     `json:"version"`
	Status         Status    `json:"status,omitempty"`
	Provider       string    `json:"provider,omitempty"`
	GatewayOrderID string    `json:"gatewayOrderId,omitempty"`
	Amount         int64     `json:"amount,omitempty"` // asked for, minor units
	Currency       string    `json:"currency,omitempty"`
	CustomerID     string    `json:"customerId,omitempty"`
	RestaurantID   string    `json:"restaurantId,omitempty"`
	Booked         string    `json:"booked,omitempty"` // the payment id that pays the order
	Attempts       []Attempt `json:"attempts,omitempty"`
	Refunds        []Refund  `json:"refunds,omitempty"`
	CreatedAt      time.Time `json:"createdAt,omitzero"`
	UpdatedAt      time.Time `json:"updatedAt,omitzero"`
}

// Exists reports whether the payment has events.
func (s *State) Exists() bool { return s.Version > 0 }

// Attempt returns the attempt with this payment id.
func (s *State) Attempt(paymentID string) (Attempt, bool) {
	if i := slices.IndexFunc(s.Attempts, func(a Attempt) bool { return a.PaymentID == paymentID }); i >= 0 {
		return s.Attempts[i], true
	}
	return Attempt{}, false
}

// Refund returns the refund with this id.
func (s *State) Refund(refundID string) (Refund, bool) {
	if i := slices.IndexFunc(s.Refunds, func(r Refund) bool { return r.RefundID == refundID }); i >= 0 {
		return s.Refunds[i], true
	}
	return Refund{}, false
}

// RefundOf returns the last refund of a payment.
func (s *State) RefundOf(paymentID string) (Refund, bool) {
	for _, r := range slices.Backward(s.Refunds) {
		if r.PaymentID == paymentID {
			return r, true
		}
	}
	return Refund{}, false
}

// WasRefunded reports whether a refund of the payment succeeded. A refund that was
// reported as failed may succeed late, beside the one that ops asked for after it.
func (s *State) WasRefunded(paymentID string) bool {
	return slices.ContainsFunc(s.Refunds, func(r Refund) bool { return r.PaymentID == paymentID && r.Status == RefundStatusSucceeded })
}

// Facts returns what the order's payment status is derived from.
func (s *State) Facts() order.PaymentFacts {
	f := order.PaymentFacts{Booked: s.Booked != "", LastAttemptFailed: s.Status == StatusFailed}
	if f.Booked {
		_, f.RefundRequested = s.RefundOf(s.Booked)
		f.RefundSucceeded = s.WasRefunded(s.Booked)
	}
	return f
}

// AwaitsMoney reports whether the order has a gateway order, and no booked payment.
func (s *State) AwaitsMoney() bool { return s.Status == StatusRequested || s.Status == StatusFailed }

// Share makes the payment use the one copy in memory of texts that many payments
// have, and of its own ids. Nobody else may have the receiver yet, as after decoding.
func (s *State) Share() {
	s.Status, s.Provider = domain.Shared(s.Status), domain.Shared(s.Provider)
	s.Currency, s.RestaurantID = domain.Shared(s.Currency), domain.Shared(s.RestaurantID)
	if s.OrderID == s.ID {
		s.OrderID = s.ID // one copy of the text
	}
	for i := range s.Attempts {
		a := &s.Attempts[i]
		a.Currency, a.State, a.GatewayStatus, a.Reason = domain.Shared(a.Currency), domain.Shared(a.State), domain.Shared(a.GatewayStatus), domain.Shared(a.Reason)
		if a.PaymentID == s.Booked {
			a.PaymentID = s.Booked
		}
	}
	s.Attempts, s.Refunds = domain.Fitted(s.Attempts), domain.Fitted(s.Refunds)
}

// Settled reports whether nothing is left to do about the money. That is so if all
// captured money is booked, refunded or resolved, if every refund has succeeded, and if
// the booked payment of an order that ended without delivery is refunded.
func (s *State) Settled(orderEnded bool) bool {
	if orderEnded && s.Booked != "" && !s.WasRefunded(s.Booked) {
		return false
	}
	for _, a := range s.Attempts {
		if a.State == AttemptStateUnmatched {
			return false
		}
	}
	for _, r := range s.Refunds {
		a, _ := s.Attempt(r.PaymentID)
		if !s.WasRefunded(r.PaymentID) && a.State != AttemptStateResolved {
			return false
		}
	}
	return true
}
