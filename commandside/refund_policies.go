package commandside

import (
	"context"
	"errors"
	"time"

	"tomato/commandside/gateway"
	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/eventlog"
)

func (s *Side) refundOrder(ctx context.Context, e eventlog.Event) error {
	switch e.Type {
	case order.TypeOrderCancelled, order.TypeOrderRejected:
		ev, err := order.Decode(e.Type, e.Data)
		if err != nil {
			return eventlog.Poison(err)
		}
		paymentID, reason := "", "order_rejected"
		switch ev := ev.(type) {
		case order.OrderCancelled:
			paymentID, reason = ev.PaymentID, "order_cancelled"
		case order.OrderRejected:
			paymentID = ev.PaymentID
		}
		if paymentID == "" {
			return nil
		}
		return s.requestRefund(ctx, causeOf(&e), e.Subject, paymentID, reason)
	case payment.TypePaymentUnmatched:
		ev, err := payment.Decode(e.Type, e.Data)
		if err != nil {
			return eventlog.Poison(err)
		}
		u := ev.(payment.PaymentUnmatched)
		if u.OrderID == "" {
			return nil // an operator's
		}
		return s.requestRefund(ctx, causeOf(&e), u.OrderID, u.PaymentID, u.Reason)
	}
	return nil
}

// refundTimer is a refund whose outcome is not known yet.
type refundTimer struct {
	AggregateID string    `json:"aggregateId"`
	PaymentID   string    `json:"paymentId"`
	Since       time.Time `json:"since"`
	Cause       cause     `json:"cause"`
}

func (s *Side) refund(ctx context.Context, e eventlog.Event) error {
	if e.Type != payment.TypeRefundRequested {
		return nil
	}
	ev, err := payment.Decode(e.Type, e.Data)
	if err != nil {
		return eventlog.Poison(err)
	}
	r := ev.(payment.RefundRequested)
	state, err := s.Gateway.Refund(ctx, gateway.Refund{PaymentID: r.PaymentID, RefundID: r.RefundID, AggregateID: e.Subject, Amount: r.Amount})
	reason := ""
	switch {
	case errors.Is(err, gateway.ErrRefused), errors.Is(err, gateway.ErrUnknown):
		state, reason = gateway.RefundFailed, err.Error()
	case err != nil:
		return err
	}
	if state == gateway.RefundPending {
		now := time.Now()
		return s.setTimer(ctx, refundPolicy, r.RefundID, now.Add(refundPollFirst),
			refundTimer{AggregateID: e.Subject, PaymentID: r.PaymentID, Since: now, Cause: *causeOf(&e)})
	}
	return s.recordOutcome(ctx, causeOf(&e), e.Subject, r.RefundID, state, reason)
}

func (s *Side) recordOutcome(ctx context.Context, why *cause, aggregateID, refundID string, state gateway.RefundState, reason string) error {
	if state == gateway.RefundFailed {
		if reason == "" {
			reason = "failed at the gateway"
		}
		s.Log.Warn("a refund failed; an operator must see to it", "aggregate", aggregateID, "refundId", refundID, "reason", reason)
	}
	_, err := s.because(ctx, why, eventlog.Payments, aggregateID, payment.RecordRefund{
		RefundID: refundID, Succeeded: state == gateway.RefundProcessed, Reason: reason})
	if domain.RefusedWith(err) == domain.NotFound {
		s.Log.Error("the outcome of a refund belongs to nothing that is held", "aggregate", aggregateID, "refundId", refundID)
		return nil
	}
	return err
}

// pollRefund asks for a refund's outcome. again is when to ask next; zero: done.
func (s *Side) pollRefund(ctx context.Context, refundID string, t refundTimer, now time.Time) (again time.Time, err error) {
	state, err := s.Gateway.RefundState(ctx, t.PaymentID, refundID)
	reason := ""
	age := now.Sub(t.Since)
	switch {
	case errors.Is(err, gateway.ErrUnknown) && age < refundUnlisted:
		state = gateway.RefundPending // still running: it is not listed yet
	case errors.Is(err, gateway.ErrUnknown), errors.Is(err, gateway.ErrRefused):
		state, reason = gateway.RefundFailed, err.Error()
	case err != nil:
		return now, err
	}
	if state == gateway.RefundPending && s.ArchiveAfter > 0 && age > s.ArchiveAfter*9/10 {
		// Later the payment would be gone, and nobody would hear of it.
		state, reason = gateway.RefundFailed, "no outcome for "+age.Round(time.Hour).String()
	}
	if state == gateway.RefundPending {
		return now.Add(min(max(age, refundPollFirst), refundPollMost)), nil
	}
	return time.Time{}, s.recordOutcome(ctx, &t.Cause, t.AggregateID, refundID, state, reason)
}

// reconcileTimer is an order that ended with an open gateway order.
type reconcileTimer struct {
	GatewayOrderID string    `json:"gatewayOrderId"`
	EndedAt        time.Time `json:"endedAt"`
	Asked          int       `json:"asked"` // how many of reconcileAfter are done
	Cause          cause     `json:"cause"`
}

func (s *Side) reconcile(ctx context.Context, e eventlog.Event) error {
	switch e.Type {
	case order.TypeOrderExpired, order.TypeOrderCancelled, order.TypeOrderRejected:
	default:
		return nil
	}
	why := causeOf(&e)
	state, err := s.paymentState(ctx, why, e.Subject)
	if err != nil || state == nil || !state.AwaitsMoney() || state.Provider != s.Gateway.Provider() {
		return err
	}
	t := reconcileTimer{GatewayOrderID: state.GatewayOrderID, EndedAt: e.Time, Cause: *why}
	if err := s.setTimer(ctx, reconcilePolicy, e.Subject, e.Time.Add(reconcileAfter[0]), t); err != nil {
		return err
	}
	return s.askGateway(ctx, t)
}

// askGateway records what was captured on a gateway order, as if its webhooks
// had come.
func (s *Side) askGateway(ctx context.Context, t reconcileTimer) error {
	ps, err := s.Gateway.Payments(ctx, t.GatewayOrderID)
	if errors.Is(err, gateway.ErrUnknown) || errors.Is(err, gateway.ErrRefused) {
		s.Log.Warn("the gateway does not know a gateway order that it made", "gatewayOrderId", t.GatewayOrderID, "err", err)
		return nil
	}
	if err != nil {
		return err
	}
	for _, p := range ps {
		if p.Status == gateway.StatusCaptured {
			if err := s.recordCaptured(ctx, &t.Cause, p); err != nil {
				return err
			}
		}
	}
	return nil
}
