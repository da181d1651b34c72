package payment

import (
	"slices"
	"time"
)

// Evolve returns the state after the event e, which happened at time at.
func Evolve(s State, e Event, at time.Time) State {
	s.Version++
	s.UpdatedAt = at
	if s.CreatedAt.IsZero() {
		s.CreatedAt = at
	}
	switch e := e.(type) {
	case PaymentRequested:
		s.ID, s.OrderID, s.Status = e.OrderID, e.OrderID, StatusRequested
		s.Provider, s.GatewayOrderID, s.Amount, s.Currency = e.Provider, e.GatewayOrderID, e.Amount, e.Currency
		s.CustomerID, s.RestaurantID = e.Ctx.CustomerID, e.Ctx.RestaurantID
	case PaymentSuccess:
		s.Status, s.Booked = StatusPaid, e.PaymentID
		s.setAttempt(Attempt{PaymentID: e.PaymentID, Amount: e.Amount, Currency: e.Currency, State: AttemptStateBooked, GatewayStatus: "captured"})
	case PaymentFailed:
		s.Status = StatusFailed
		s.setAttempt(Attempt{PaymentID: e.PaymentID, Amount: e.Amount, Currency: e.Currency, State: AttemptStateFailed, GatewayStatus: "failed", Reason: e.Reason})
	case PaymentUnmatched:
		if s.ID == "" {
			s.ID, s.GatewayOrderID = e.PaymentID, e.GatewayOrderID
		}
		s.setAttempt(Attempt{PaymentID: e.PaymentID, Amount: e.Amount, Currency: e.Currency, State: AttemptStateUnmatched, GatewayStatus: "captured", Reason: e.Reason})
	case PaymentResolved:
		s.markAttempt(e.PaymentID, AttemptStateResolved)
	case RefundRequested:
		s.Refunds = append(slices.Clip(s.Refunds), Refund{RefundID: e.RefundID, PaymentID: e.PaymentID, Amount: e.Amount, Currency: e.Currency, Status: RefundStatusRequested})
		if e.Booked {
			s.Status = StatusRefundPending
		}
	case RefundSuccess:
		s.setRefund(e.RefundID, RefundStatusSucceeded)
		if e.Booked {
			s.Status = StatusRefunded
		} else {
			s.markAttempt(e.PaymentID, AttemptStateRefunded)
		}
	case RefundFailed:
		s.setRefund(e.RefundID, RefundStatusFailed)
	}
	return s
}

func (s *State) setAttempt(a Attempt) {
	s.Attempts = slices.Clone(s.Attempts)
	if i := slices.IndexFunc(s.Attempts, func(o Attempt) bool { return o.PaymentID == a.PaymentID }); i >= 0 {
		s.Attempts[i] = a
		return
	}
	s.Attempts = append(s.Attempts, a)
}

func (s *State) markAttempt(paymentID string, state AttemptState) {
	if a, ok := s.Attempt(paymentID); ok {
		a.State = state
		s.setAttempt(a)
	}
}

func (s *State) setRefund(refundID string, status RefundStatus) {
	s.Refunds = slices.Clone(s.Refunds)
	for i := range s.Refunds {
		if s.Refunds[i].RefundID == refundID {
			s.Refunds[i].Status = status
		}
	}
}
