package policies

import (
	"context"
	"errors"
	"time"

	"tomato/commandside/gateway"
	"tomato/domain"
	"tomato/domain/payment"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
)

const (
	refundPollFirst = 5 * time.Second // then after as long again as it has taken so far
	refundPollMost  = time.Hour
	refundUnlisted  = 10 * time.Minute // how long the gateway may not list a refund that it said is running
)

// Refund carries refunds to the gateway.
func (p *Policies) Refund() consumer.Consumer {
	return consumer.Consumer{Name: refundPolicy, Topics: []string{eventlog.Payments}, Each: p.refund}
}

// refundTimer is a refund whose outcome is not known yet.
type refundTimer struct {
	AggregateID string    `json:"aggregateId"`
	PaymentID   string    `json:"paymentId"`
	Since       time.Time `json:"since"`
	Cause       cause     `json:"cause"`
}

func (p *Policies) refund(ctx context.Context, e eventlog.Event) error {
	if e.Type != payment.TypeRefundRequested {
		return nil
	}
	r, err := decode[payment.RefundRequested](&e, payment.Decode)
	if err != nil {
		return err
	}
	state, err := p.Gateway.Refund(ctx, gateway.Refund{PaymentID: r.PaymentID, RefundID: r.RefundID, AggregateID: e.Subject, Amount: r.Amount})
	reason := ""
	switch {
	case errors.Is(err, gateway.ErrRefused), errors.Is(err, gateway.ErrUnknown):
		state, reason = gateway.RefundFailed, err.Error()
	case err != nil:
		return err
	}
	if state == gateway.RefundPending {
		now := time.Now()
		return p.setTimer(ctx, refundPolicy, r.RefundID, now.Add(refundPollFirst),
			refundTimer{AggregateID: e.Subject, PaymentID: r.PaymentID, Since: now, Cause: causeOf(&e)})
	}
	return p.recordOutcome(ctx, causeOf(&e), e.Subject, r.RefundID, state, reason)
}

// recordOutcome records how a refund of ours ended: RefundProcessed or RefundFailed.
func (p *Policies) recordOutcome(ctx context.Context, why cause, aggregateID, refundID string, state gateway.RefundState, reason string) error {
	if state == gateway.RefundFailed {
		if reason == "" {
			reason = "failed at the gateway"
		}
		p.Log.Warn("a refund failed; an operator must see to it", "aggregate", aggregateID, "refundId", refundID, "reason", reason)
	}
	_, err := p.execute(ctx, why, eventlog.Payments, aggregateID, payment.RecordRefund{
		RefundID: refundID, Succeeded: state == gateway.RefundProcessed, Reason: reason})
	if domain.RefusedWith(err) == domain.NotFound {
		p.Log.Error("the outcome of a refund belongs to nothing that is held", "aggregate", aggregateID, "refundId", refundID)
		return nil
	}
	return err
}

// pollRefund asks the gateway for a refund's outcome. again is when to ask next;
// zero: never, because the outcome is recorded.
func (p *Policies) pollRefund(ctx context.Context, refundID string, t refundTimer, now time.Time) (again time.Time, err error) {
	state, err := p.Gateway.RefundState(ctx, t.PaymentID, refundID)
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
	if state == gateway.RefundPending && p.ArchiveAfter > 0 && age > p.ArchiveAfter*9/10 {
		// Later the payment would be gone, and nobody would hear of it.
		state, reason = gateway.RefundFailed, "no outcome for "+age.Round(time.Hour).String()
	}
	if state == gateway.RefundPending {
		return now.Add(min(max(age, refundPollFirst), refundPollMost)), nil
	}
	return time.Time{}, p.recordOutcome(ctx, t.Cause, t.AggregateID, refundID, state, reason)
}
