package payment

import (
	"fmt"
	"time"

	"tomato/domain"
	"tomato/domain/order"
)

// Decide returns the event that the command makes, or nil if the payment is already
// as the command asks, or a *domain.Refusal.
func Decide(s *State, c domain.Command, _ time.Time) (Event, error) {
	switch c := c.(type) {
	case RequestPayment:
		return requestPayment(s, c)
	case RecordCaptured:
		return recordCaptured(s, c)
	case RecordFailed:
		if !s.AwaitsMoney() {
			return nil, nil
		}
		if _, ok := s.Attempt(c.PaymentID); ok {
			return nil, nil // a repeat, or a failure that was reported after the capture
		}
		return PaymentFailed{OrderID: s.OrderID, PaymentID: c.PaymentID, Amount: c.Amount, Currency: c.Currency,
			GatewayOrderID: c.GatewayOrderID, Reason: c.Reason, Ctx: s.ctx(order.PaymentFailed)}, nil
	case RecordUnmatched:
		if _, ok := s.Attempt(c.PaymentID); ok {
			return nil, nil
		}
		return PaymentUnmatched{PaymentID: c.PaymentID, Amount: c.Amount, Currency: c.Currency,
			GatewayOrderID: c.GatewayOrderID, Reason: c.Reason}, nil
	case RequestRefund:
		return requestRefund(s, c)
	case RecordRefund:
		return recordRefund(s, c)
	case Resolve:
		return resolve(s, c)
	}
	return nil, fmt.Errorf("payment: unknown command %T", c)
}

// TookEffect reports whether the command has taken effect in the past, and whether that
// can never change: once it is true, it is true after all later events. It is false for
// all commands but the one that a policy repeats.
func TookEffect(s *State, c domain.Command) bool {
	if c, ok := c.(RecordCaptured); ok {
		a, known := s.Attempt(c.PaymentID)
		return known && a.State != AttemptStateFailed
	}
	return false
}

func requestPayment(s *State, c RequestPayment) (Event, error) {
	switch {
	case c.Order.Ended || s.Status == StatusRefunded:
		return nil, invalid("payment", c.Order.Status)
	case s.Booked != "" || !c.Order.Payable:
		return nil, domain.Refuse(order.CodeAlreadyPaid, "the order is paid")
	case s.AwaitsMoney() || c.GatewayOrderID == "":
		return nil, nil
	}
	return PaymentRequested{OrderID: c.OrderID, Provider: c.Provider, GatewayOrderID: c.GatewayOrderID,
		Amount: c.Order.Amount, Currency: c.Order.Currency,
		Ctx: domain.Ctx{CustomerID: c.Order.CustomerID, RestaurantID: c.Order.RestaurantID}}, nil
}

func recordCaptured(s *State, c RecordCaptured) (Event, error) {
	a, known := s.Attempt(c.PaymentID)
	switch {
	case s.Status == StatusNone:
		return nil, domain.Refuse(CodeNotRequested, "no payment was asked for")
	case known && a.State != AttemptStateFailed:
		return nil, nil // it is booked, or it was unmatched and may have been resolved or refunded since
	}
	reason := ""
	switch {
	case c.Amount != s.Amount || c.Currency != s.Currency || c.GatewayOrderID != s.GatewayOrderID:
		reason = ReasonAmountMismatch
	case s.Booked != "":
		reason = ReasonAlreadyPaid
	}
	if reason != "" {
		return PaymentUnmatched{OrderID: s.OrderID, PaymentID: c.PaymentID, Amount: c.Amount, Currency: c.Currency,
			GatewayOrderID: c.GatewayOrderID, Reason: reason, Ctx: s.ctx("")}, nil
	}
	var shown order.PaymentStatus // paid only from ORDER_PAID on; the money of an order that ended is refunded
	switch {
	case c.Order.Ended:
		shown = order.PaymentRefundPending
	case s.Status == StatusFailed:
		shown = order.PaymentPending
	}
	return PaymentSuccess{OrderID: s.OrderID, PaymentID: c.PaymentID, Amount: c.Amount, Currency: c.Currency,
		GatewayOrderID: c.GatewayOrderID, Booked: true, Ctx: s.ctx(shown)}, nil
}

func requestRefund(s *State, c RequestRefund) (Event, error) {
	if c.PaymentID == "" {
		c.PaymentID = s.Booked
	}
	a, ok := s.Attempt(c.PaymentID)
	if !ok || s.Status == StatusNone { // an operator decides about money without an order; it is never refunded automatically
		return nil, domain.Refuse(CodeUnsettled, "there is no captured payment to refund")
	}
	booked := c.PaymentID == s.Booked
	if !booked && a.State != AttemptStateUnmatched {
		if a.State == AttemptStateRefunded {
			return nil, nil
		}
		return nil, domain.Refuse(CodeUnsettled, "this payment is %s: there is nothing to refund", a.State)
	}
	if _, ok := s.Refund(c.RefundID); ok || s.WasRefunded(c.PaymentID) {
		return nil, nil
	}
	if r, ok := s.RefundOf(c.PaymentID); ok && (r.Status != RefundStatusFailed || !c.ByOps) {
		return nil, nil // a payment is refunded once; only ops may ask again, after a failure
	}
	e := RefundRequested{OrderID: s.OrderID, PaymentID: c.PaymentID, RefundID: c.RefundID, Amount: a.Amount, Currency: a.Currency,
		Reason: c.Reason, Booked: booked, Ctx: s.ctx("")}
	if booked {
		e.Ctx.PaymentStatus = string(order.PaymentRefundPending)
	}
	return e, nil
}

func recordRefund(s *State, c RecordRefund) (Event, error) {
	r, ok := s.Refund(c.RefundID)
	if !ok || s.WasRefunded(r.PaymentID) || r.Status == RefundStatusFailed && !c.Succeeded {
		return nil, nil // after one refund has succeeded, the outcome of another changes nothing
	}
	booked := r.PaymentID == s.Booked
	if !c.Succeeded {
		return RefundFailed{OrderID: s.OrderID, PaymentID: r.PaymentID, RefundID: r.RefundID, Amount: r.Amount, Currency: r.Currency,
			Reason: c.Reason, Booked: booked, Ctx: s.ctx("")}, nil
	}
	e := RefundSuccess{OrderID: s.OrderID, PaymentID: r.PaymentID, RefundID: r.RefundID, Amount: r.Amount, Currency: r.Currency,
		Booked: booked, Ctx: s.ctx("")}
	if booked {
		e.Ctx.PaymentStatus = string(order.PaymentRefunded)
	}
	return e, nil
}

func resolve(s *State, c Resolve) (Event, error) {
	a, ok := s.Attempt(c.PaymentID)
	if !ok {
		return nil, domain.Refuse(domain.NotFound, "no such payment")
	}
	switch a.State {
	case AttemptStateResolved:
		return nil, nil
	case AttemptStateUnmatched:
	default:
		return nil, domain.Refuse(CodeUnsettled, "only an unmatched payment can be resolved; this one is %s", a.State)
	}
	if r, ok := s.RefundOf(c.PaymentID); ok && r.Status == RefundStatusRequested {
		return nil, domain.Refuse(CodeUnsettled, "a refund of this payment is under way")
	}
	return PaymentResolved{OrderID: s.OrderID, PaymentID: c.PaymentID, Reason: c.Reason, By: c.By, Ctx: s.ctx("")}, nil
}

// ctx returns the Ctx of an event. shown is the order's payment status after the event, or
// "" if the event does not change it.
func (s *State) ctx(shown order.PaymentStatus) domain.Ctx {
	return domain.Ctx{CustomerID: s.CustomerID, RestaurantID: s.RestaurantID, PaymentStatus: string(shown)}
}
