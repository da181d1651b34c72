package policies

import (
	"context"
	"errors"
	"fmt"

	"tomato/commandside/gateway"
	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/subjectkeys"
)

// RecordPayment turns the webhooks of the inbox into events of payments. A repeat
// changes nothing, because the payment knows its attempts and refunds by id.
func (p *Policies) RecordPayment() consumer.Consumer {
	return consumer.Consumer{Name: recordPaymentPolicy, Topics: []string{eventlog.PaymentWebhooks}, Each: p.recordPayment}
}

func (p *Policies) recordPayment(ctx context.Context, e eventlog.Event) error {
	if e.Type != gateway.TypeWebhookReceived {
		p.countWebhook("other", "skipped")
		return nil
	}
	w, err := p.webhook(ctx, e.Data)
	if err != nil {
		return err
	}
	why := causeOf(&e)
	switch w.Event {
	case gateway.EventPaymentCaptured, gateway.EventOrderPaid:
		if w.Payment.Status != gateway.StatusCaptured && w.Payment.Status != gateway.StatusRefunded {
			p.countWebhook(w.Event, "not_captured") // only captured money pays, whatever the event is called
			return nil
		}
		err = p.recordCaptured(ctx, why, *w.Payment)
	case gateway.EventPaymentFailed:
		err = p.recordFailed(ctx, why, *w.Payment)
	case gateway.EventRefundProcessed, gateway.EventRefundFailed:
		err = p.recordRefund(ctx, why, w)
	case gateway.EventPaymentAuthorized: // does not pay
	default:
		p.countWebhook("other", "skipped")
		return nil
	}
	if err == nil {
		p.countWebhook(w.Event, "handled")
	}
	return err
}

// webhook reads the data of a record in the inbox. The body of a webhook that could not be
// decoded when it came is opened and read again, because this build may know more. The
// error is eventlog.ErrPoison, or eventlog.ErrUnavailable while the key cannot be read.
func (p *Policies) webhook(ctx context.Context, data []byte) (gateway.Webhook, error) {
	if s, ok := gateway.ReadSealedBody(data); ok {
		subject, err := subjectkeys.ParseSubject(s.Subject)
		if err != nil {
			return gateway.Webhook{}, eventlog.Poison(err)
		}
		data, err = p.Keys.Open(ctx, subject, subjectkeys.FieldBody, domain.Sealed(s.Sealed))
		switch {
		case errors.Is(err, subjectkeys.ErrErased):
			return gateway.Webhook{}, eventlog.Poison(errors.New("webhook: its body was erased; discard it"))
		case errors.Is(err, subjectkeys.ErrUnreadable):
			return gateway.Webhook{}, eventlog.Poison(fmt.Errorf("webhook: its sealed body: %w", err))
		case err != nil:
			return gateway.Webhook{}, err
		}
	}
	w, err := gateway.ParseWebhook(data)
	return w, eventlog.Poison(err)
}

func (p *Policies) countWebhook(event, outcome string) {
	if p.WebhooksHandled != nil {
		p.WebhooksHandled.WithLabelValues(event, outcome).Inc()
	}
}

// recordCaptured records money that the gateway took. A webhook told of it, or
// reconcile found it.
func (p *Policies) recordCaptured(ctx context.Context, why cause, paid gateway.Payment) error {
	reason := payment.ReasonUnknownOrder
	orderID, known, err := p.Orders.OrderOf(ctx, paid.GatewayOrderID)
	if err != nil {
		return err
	}
	if known {
		_, err := p.execute(ctx, why, eventlog.Payments, orderID, payment.RecordCaptured{
			PaymentID: paid.PaymentID, GatewayOrderID: paid.GatewayOrderID, Amount: paid.Amount, Currency: paid.Currency})
		switch domain.RefusedWith(err) {
		case "":
			return err
		case payment.CodeNotRequested, domain.NotFound, order.CodeArchived:
			reason = payment.ReasonNotRequested
		default:
			return fmt.Errorf("record payment %s of order %s: %w", paid.PaymentID, orderID, err)
		}
	}
	p.Log.Warn("captured money belongs to no payment that was asked for; an operator must see to it",
		"paymentId", paid.PaymentID, "gatewayOrderId", paid.GatewayOrderID, "reason", reason)
	_, err = p.execute(ctx, why, eventlog.Payments, paid.PaymentID, payment.RecordUnmatched{
		PaymentID: paid.PaymentID, GatewayOrderID: paid.GatewayOrderID, Amount: paid.Amount, Currency: paid.Currency, Reason: reason})
	return err
}

func (p *Policies) recordFailed(ctx context.Context, why cause, failed gateway.Payment) error {
	orderID, known, err := p.Orders.OrderOf(ctx, failed.GatewayOrderID)
	if err != nil || !known {
		return err // no money moved
	}
	_, err = p.execute(ctx, why, eventlog.Payments, orderID, payment.RecordFailed{
		PaymentID: failed.PaymentID, GatewayOrderID: failed.GatewayOrderID, Amount: failed.Amount, Currency: failed.Currency, Reason: failed.Reason})
	if domain.RefusedWith(err) == domain.NotFound {
		return nil
	}
	return err
}

// recordRefund records how a refund ended. A refund that we asked for comes back
// with our ids. Operators refund at the gateway by hand too, so a refund without our
// ids is taken for ours only if ours is under way for this payment and has the same
// amount.
func (p *Policies) recordRefund(ctx context.Context, why cause, w gateway.Webhook) error {
	n := *w.Refund
	if n.AggregateID == "" || n.RefundID == "" {
		gatewayOrderID := n.GatewayOrderID
		if gatewayOrderID == "" {
			found, err := p.Gateway.Payment(ctx, n.PaymentID)
			if err != nil && !errors.Is(err, gateway.ErrUnknown) && !errors.Is(err, gateway.ErrRefused) {
				return err
			}
			gatewayOrderID = found.GatewayOrderID
		}
		orderID, known, err := p.Orders.OrderOf(ctx, gatewayOrderID)
		if err != nil {
			return err
		}
		var state *payment.State
		if known {
			if state, err = p.paymentState(ctx, why, orderID); err != nil {
				return err
			}
		}
		if state == nil {
			p.countWebhook(w.Event, "not_ours")
			return nil
		}
		r, ok := state.Refund(n.RefundID)
		if !ok {
			r, ok = state.RefundOf(n.PaymentID)
			ok = ok && r.Status == payment.RefundStatusRequested && r.Amount == n.Amount
		}
		if !ok {
			p.countWebhook(w.Event, "not_ours")
			return nil
		}
		n.AggregateID, n.RefundID = orderID, r.RefundID
	}
	state := gateway.RefundProcessed
	if w.Event == gateway.EventRefundFailed {
		state = gateway.RefundFailed
	}
	return p.recordOutcome(ctx, why, n.AggregateID, n.RefundID, state, n.Reason)
}
