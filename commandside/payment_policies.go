package commandside

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"tomato/commandside/gateway"
	"tomato/commandside/shard"
	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
)

// The names of the payment policies. They name groups and topics: never change.
const (
	recordPaymentPolicy = "record-payment"
	payOrderPolicy      = "pay-order"
	refundOrderPolicy   = "refund-order"
	refundPolicy        = "refund"
	reconcilePolicy     = "reconcile"
)

// When reconcile asks the gateway again, counted from the order's end.
var reconcileAfter = [...]time.Duration{time.Hour, 24 * time.Hour}

const (
	refundPollFirst = 5 * time.Second // then after as long again as it has taken so far
	refundPollMost  = time.Hour
	refundUnlisted  = 10 * time.Minute // how long the gateway may not list a refund that it said is running
)

// RecordPayment turns the webhooks of the inbox into events of payments. A
// repeat changes nothing: the payment knows its attempts and refunds by id.
func (s *Side) RecordPayment() consumer.Consumer {
	return consumer.Consumer{Name: recordPaymentPolicy, Topics: []string{eventlog.PaymentWebhooks}, Each: s.recordPayment}
}

// PayOrder tells the order that its payment is booked, and sends the money
// back when the order has ended.
func (s *Side) PayOrder() consumer.Consumer {
	return consumer.Consumer{Name: payOrderPolicy, Topics: []string{eventlog.Payments}, Each: s.payOrder}
}

// RefundOrder asks for the refund of an order that ended paid, and of money
// that came for a known order and does not pay it.
func (s *Side) RefundOrder() consumer.Consumer {
	return consumer.Consumer{Name: refundOrderPolicy, Topics: []string{eventlog.Orders, eventlog.Payments}, Each: s.refundOrder}
}

// Refund carries refunds to the gateway.
func (s *Side) Refund() consumer.Consumer {
	return consumer.Consumer{Name: refundPolicy, Topics: []string{eventlog.Payments}, Each: s.refund}
}

// Reconcile asks the gateway about the money of orders that ended unpaid.
func (s *Side) Reconcile() consumer.Consumer {
	return consumer.Consumer{Name: reconcilePolicy, Topics: []string{eventlog.Orders}, Each: s.reconcile}
}

// cause is the event that makes a policy act. It is kept in timers too.
type cause struct {
	ID            string `json:"id,omitempty"`
	CorrelationID string `json:"correlationId,omitempty"`
	Traceparent   string `json:"traceparent,omitempty"`
}

func causeOf(e *eventlog.Event) *cause { return &cause{e.ID, e.CorrelationID, e.Traceparent} }

// because executes a command of a policy, or of the system where why is nil.
// An outcome that is not known is an absence.
func (s *Side) because(ctx context.Context, why *cause, topic, id string, c domain.Command) (shard.Result, error) {
	if why == nil {
		why = &cause{}
	}
	return s.policy(ctx, &eventlog.Event{ID: why.ID, CorrelationID: why.CorrelationID, Traceparent: why.Traceparent}, topic, id, c)
}

// paymentState returns the payment of an order as its shard has it, nil where
// there is none: the outcome of a refund that nobody asked for changes nothing.
func (s *Side) paymentState(ctx context.Context, why *cause, orderID string) (*payment.State, error) {
	res, err := s.because(ctx, why, eventlog.Payments, orderID, payment.RecordRefund{})
	if domain.RefusedWith(err) == domain.NotFound {
		return nil, nil
	}
	if err != nil || res.Payment == nil || !res.Payment.Exists() {
		return nil, err
	}
	return res.Payment, nil
}

func (s *Side) recordPayment(ctx context.Context, e eventlog.Event) error {
	if e.Type != webhookReceived {
		s.countWebhook("other", "skipped")
		return nil
	}
	w, err := gateway.ParseWebhook(e.Data)
	if err != nil {
		return eventlog.Poison(err)
	}
	why := causeOf(&e)
	switch w.Event {
	case gateway.EventPaymentCaptured, gateway.EventOrderPaid:
		if w.Payment.Status != gateway.StatusCaptured && w.Payment.Status != gateway.StatusRefunded {
			s.countWebhook(w.Event, "not_captured") // only captured money pays, whatever the event is called
			return nil
		}
		err = s.recordCaptured(ctx, why, *w.Payment)
	case gateway.EventPaymentFailed:
		err = s.recordFailed(ctx, why, *w.Payment)
	case gateway.EventRefundProcessed, gateway.EventRefundFailed:
		err = s.recordRefund(ctx, why, w)
	case gateway.EventPaymentAuthorized: // does not pay
	default:
		s.countWebhook("other", "skipped")
		return nil
	}
	if err == nil {
		s.countWebhook(w.Event, "handled")
	}
	return err
}

func (s *Side) countWebhook(event, outcome string) {
	if s.WebhooksHandled != nil {
		s.WebhooksHandled.WithLabelValues(event, outcome).Inc()
	}
}

// recordCaptured records money that the gateway took, by webhook or found by
// asking.
func (s *Side) recordCaptured(ctx context.Context, why *cause, p gateway.Payment) error {
	reason := payment.ReasonUnknownOrder
	orderID, known, err := s.orderOf(ctx, p.GatewayOrderID)
	if err != nil {
		return err
	}
	if known {
		_, err := s.because(ctx, why, eventlog.Payments, orderID, payment.RecordCaptured{
			PaymentID: p.PaymentID, GatewayOrderID: p.GatewayOrderID, Amount: p.Amount, Currency: p.Currency})
		switch domain.RefusedWith(err) {
		case "":
			return err
		case payment.CodeNotRequested, domain.NotFound, order.CodeArchived:
			reason = payment.ReasonNotRequested
		default:
			return fmt.Errorf("record payment %s of order %s: %w", p.PaymentID, orderID, err)
		}
	}
	s.Log.Warn("captured money belongs to no payment that was asked for; an operator must see to it",
		"paymentId", p.PaymentID, "gatewayOrderId", p.GatewayOrderID, "reason", reason)
	_, err = s.because(ctx, why, eventlog.Payments, p.PaymentID, payment.RecordUnmatched{
		PaymentID: p.PaymentID, GatewayOrderID: p.GatewayOrderID, Amount: p.Amount, Currency: p.Currency, Reason: reason})
	return err
}

func (s *Side) recordFailed(ctx context.Context, why *cause, p gateway.Payment) error {
	orderID, known, err := s.orderOf(ctx, p.GatewayOrderID)
	if err != nil || !known {
		return err // no money moved
	}
	_, err = s.because(ctx, why, eventlog.Payments, orderID, payment.RecordFailed{
		PaymentID: p.PaymentID, GatewayOrderID: p.GatewayOrderID, Amount: p.Amount, Currency: p.Currency, Reason: p.Reason})
	if domain.RefusedWith(err) == domain.NotFound {
		return nil
	}
	return err
}

// recordRefund records how a refund ended. Ours come back with their ids; one
// without them is taken for ours only when it is the whole of the one that is
// under way for this payment, for operators refund by hand too.
func (s *Side) recordRefund(ctx context.Context, why *cause, w gateway.Webhook) error {
	n := *w.Refund
	if n.AggregateID == "" || n.RefundID == "" {
		gatewayOrderID := n.GatewayOrderID
		if gatewayOrderID == "" {
			p, err := s.Gateway.Payment(ctx, n.PaymentID)
			if err != nil && !errors.Is(err, gateway.ErrUnknown) && !errors.Is(err, gateway.ErrRefused) {
				return err
			}
			gatewayOrderID = p.GatewayOrderID
		}
		orderID, known, err := s.orderOf(ctx, gatewayOrderID)
		if err != nil {
			return err
		}
		var state *payment.State
		if known {
			if state, err = s.paymentState(ctx, why, orderID); err != nil {
				return err
			}
		}
		if state == nil {
			s.countWebhook(w.Event, "not_ours")
			return nil
		}
		r, ok := state.Refund(n.RefundID)
		if !ok {
			r, ok = state.RefundOf(n.PaymentID)
			ok = ok && r.Status == payment.RefundStatusRequested && r.Amount == n.Amount
		}
		if !ok {
			s.countWebhook(w.Event, "not_ours")
			return nil
		}
		n.AggregateID, n.RefundID = orderID, r.RefundID
	}
	state := gateway.RefundProcessed
	if w.Event == gateway.EventRefundFailed {
		state = gateway.RefundFailed
	}
	return s.recordOutcome(ctx, why, n.AggregateID, n.RefundID, state, n.Reason)
}

// orderOf finds the order of a gateway order; known is false only when the
// gateway itself says that there is no such order, or that it is not ours.
//
// A webhook may come before the index has seen its PAYMENT_REQUESTED. The
// client learned the gateway order only after that event was acknowledged, so
// it is before the log's present end: the index is asked again once it has
// passed that. The gateway's word covers what is left, an index that is rebuilt
// or a log's end told by a broker that leads no more.
func (s *Side) orderOf(ctx context.Context, gatewayOrderID string) (orderID string, known bool, err error) {
	if gatewayOrderID == "" {
		return "", false, nil
	}
	// An index that is behind, or away, is no attempt: it must not cost a webhook its tries.
	if orderID, known, err = s.GatewayOrders.OrderOf(ctx, gatewayOrderID, nil); err != nil {
		return "", false, unread(err)
	} else if known {
		return orderID, true, nil
	}
	after, err := eventlog.EndToken(ctx, s.Producer, eventlog.Payments)
	if err != nil {
		return "", false, eventlog.Unavailable(fmt.Errorf("end of %s: %w", eventlog.Payments, err))
	}
	if orderID, known, err = s.GatewayOrders.OrderOf(ctx, gatewayOrderID, after); err != nil {
		return "", false, unread(err)
	} else if known {
		return orderID, true, nil
	}
	receipt, err := s.Gateway.Order(ctx, gatewayOrderID)
	if errors.Is(err, gateway.ErrUnknown) || errors.Is(err, gateway.ErrRefused) {
		return "", false, nil
	}
	return receipt, err == nil && domain.ValidID(receipt), err
}

func (s *Side) payOrder(ctx context.Context, e eventlog.Event) error {
	if e.Type != payment.TypePaymentSuccess {
		return nil
	}
	ev, err := payment.Decode(e.Type, e.Data)
	if err != nil {
		return eventlog.Poison(err)
	}
	p := ev.(payment.PaymentSuccess)
	why := causeOf(&e)
	_, err = s.because(ctx, why, eventlog.Orders, p.OrderID, order.MarkPaid{PaymentID: p.PaymentID, AcceptTTL: s.AcceptTTL})
	switch domain.RefusedWith(err) {
	case "":
		return err
	case order.CodeAlreadyPaid, order.CodeClosedForPayment:
		return s.requestRefund(ctx, why, p.OrderID, p.PaymentID, string(domain.RefusedWith(err)))
	}
	// Not held any more: this money was booked more than TOMATO_ARCHIVE_AFTER ago.
	return eventlog.Poison(fmt.Errorf("payment %s cannot be told to order %s: %w", p.PaymentID, p.OrderID, err))
}

// requestRefund is asked once per payment, however often it is called: a repeat
// finds the first refund.
func (s *Side) requestRefund(ctx context.Context, why *cause, orderID, paymentID, reason string) error {
	_, err := s.because(ctx, why, eventlog.Payments, orderID, payment.RequestRefund{
		PaymentID: paymentID, RefundID: refundID(why, paymentID), Reason: reason})
	switch domain.RefusedWith(err) {
	case "":
		return err
	case payment.CodeUnsettled:
		state, serr := s.paymentState(ctx, why, orderID)
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

// refundID is the same for the same wish.
func refundID(why *cause, paymentID string) string {
	return uuid.NewSHA1(uuid.NameSpaceURL, []byte("tomato:refund:"+why.ID+":"+paymentID)).String()
}

// InboxPassed says whether record-payment has dealt with every webhook of the
// gateway order that was in the inbox when this was first asked for it, with
// nothing parked. Later webhooks do not move the mark: on a busy partition the
// answer would never be yes.
func (s *Side) InboxPassed(ctx context.Context, gatewayOrderID string) (bool, error) {
	partition := eventlog.PartitionFor(gatewayOrderID, s.Partitions)
	end, marked := s.inbox.mark(gatewayOrderID)
	if !marked {
		ends, err := eventlog.EndOffsets(ctx, s.Producer, eventlog.PaymentWebhooks)
		if err != nil {
			return false, eventlog.Unavailable(fmt.Errorf("end of %s/%d is not known: %w", eventlog.PaymentWebhooks, partition, err))
		}
		var ok bool
		if end, ok = ends[eventlog.TopicPartition{Topic: eventlog.PaymentWebhooks, Partition: partition}]; !ok {
			return false, eventlog.Unavailable(fmt.Errorf("%s has no partition %d", eventlog.PaymentWebhooks, partition))
		}
		s.inbox.setMark(gatewayOrderID, end)
	}
	passed, err := s.Inbox.Passed(ctx, recordPaymentPolicy, eventlog.PaymentWebhooks, partition, end-1, gatewayOrderID)
	if passed {
		s.inbox.forget(gatewayOrderID)
	}
	return passed, err
}

// runTimer does what is due of one timer. again is when it is due next; zero: never.
func (s *Side) runTimer(ctx context.Context, policy, key string, data []byte, now time.Time) (again time.Time, next any, err error) {
	switch policy {
	case refundPolicy:
		var t refundTimer
		if err := json.Unmarshal(data, &t); err != nil {
			return time.Time{}, nil, err
		}
		again, err := s.pollRefund(ctx, key, t, now)
		return again, t, err
	case reconcilePolicy:
		var t reconcileTimer
		if err := json.Unmarshal(data, &t); err != nil {
			return time.Time{}, nil, err
		}
		if err := s.askGateway(ctx, t); err != nil {
			return now, nil, err
		}
		if t.Asked++; t.Asked == len(reconcileAfter) {
			return time.Time{}, nil, nil
		}
		return t.EndedAt.Add(reconcileAfter[t.Asked]), t, nil
	}
	return time.Time{}, nil, fmt.Errorf("no policy %s has timers", policy)
}
