package policies

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
)

// RefundOrder asks for the refund of an order that ended after it was paid, and of
// money that came for a known order and does not pay it.
func (p *Policies) RefundOrder() consumer.Consumer {
	return consumer.Consumer{Name: refundOrderPolicy, Topics: []string{eventlog.Orders, eventlog.Payments}, Each: p.refundOrder}
}

func (p *Policies) refundOrder(ctx context.Context, e eventlog.Event) error {
	switch e.Type {
	case order.TypeOrderCancelled:
		cancelled, err := decode[order.OrderCancelled](&e, order.Decode)
		if err != nil || cancelled.PaymentID == "" {
			return err
		}
		return p.requestRefund(ctx, causeOf(&e), e.Subject, cancelled.PaymentID, "order_cancelled")
	case order.TypeOrderRejected:
		rejected, err := decode[order.OrderRejected](&e, order.Decode)
		if err != nil || rejected.PaymentID == "" {
			return err
		}
		return p.requestRefund(ctx, causeOf(&e), e.Subject, rejected.PaymentID, "order_rejected")
	case payment.TypePaymentUnmatched:
		unmatched, err := decode[payment.PaymentUnmatched](&e, payment.Decode)
		if err != nil {
			return err
		}
		if unmatched.OrderID == "" {
			return nil // nobody knows its order: an operator decides
		}
		return p.requestRefund(ctx, causeOf(&e), unmatched.OrderID, unmatched.PaymentID, unmatched.Reason)
	}
	return nil
}

// requestRefund asks the payment to send the money of one payment at the gateway
// back. It may be called again: a repeat finds the first refund.
func (p *Policies) requestRefund(ctx context.Context, why cause, orderID, paymentID, reason string) error {
	_, err := p.execute(ctx, why, eventlog.Payments, orderID, payment.RequestRefund{
		PaymentID: paymentID, RefundID: refundID(why, paymentID), Reason: reason})
	switch domain.RefusedWith(err) {
	case "":
		return err
	case payment.CodeUnsettled:
		state, serr := p.paymentState(ctx, why, orderID)
		if serr != nil {
			return serr
		}
		if state != nil {
			if a, ok := state.Attempt(paymentID); ok && a.State == payment.AttemptStateResolved {
				return nil // an operator was faster
			}
		}
	}
	return eventlog.Poison(fmt.Errorf("payment %s of order %s cannot be refunded: %w", paymentID, orderID, err))
}

// refundID returns the id of the refund that this event asks for: the same one at
// every repeat.
func refundID(why cause, paymentID string) string {
	return uuid.NewSHA1(uuid.NameSpaceURL, []byte("tomato:refund:"+why.ID+":"+paymentID)).String()
}
