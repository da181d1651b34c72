package policies

import (
	"context"
	"fmt"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
)

// PayOrder tells the order that its payment is booked. It sends the money back if
// the order has ended or was paid already.
func (p *Policies) PayOrder() consumer.Consumer {
	return consumer.Consumer{Name: payOrderPolicy, Topics: []string{eventlog.Payments}, Each: p.payOrder}
}

func (p *Policies) payOrder(ctx context.Context, e eventlog.Event) error {
	if e.Type != payment.TypePaymentSuccess {
		return nil
	}
	paid, err := decode[payment.PaymentSuccess](&e, payment.Decode)
	if err != nil {
		return err
	}
	why := causeOf(&e)
	_, err = p.execute(ctx, why, eventlog.Orders, paid.OrderID, order.MarkPaid{PaymentID: paid.PaymentID, AcceptTTL: p.AcceptTTL})
	switch domain.RefusedWith(err) {
	case "":
		return err
	case order.CodeAlreadyPaid, order.CodeClosedForPayment:
		return p.requestRefund(ctx, why, paid.OrderID, paid.PaymentID, string(domain.RefusedWith(err)))
	}
	// The order is not held any more: this money was booked more than TOMATO_ARCHIVE_AFTER ago.
	return eventlog.Poison(fmt.Errorf("payment %s cannot be told to order %s: %w", paid.PaymentID, paid.OrderID, err))
}
