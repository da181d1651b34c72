package gateway

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// MaxDelay bounds the delay of a simulated payment.
const MaxDelay = 720 * time.Hour

// Fault is a fault that the simulated gateway has when it sends the webhooks of a
// payment.
type Fault string

// The faults.
const (
	FaultDuplicate      Fault = "duplicate"       // sends every webhook twice, with the same event id
	FaultReordered      Fault = "reordered"       // sends the webhooks in the wrong order, and payment.authorized last
	FaultDropped        Fault = "dropped"         // sends no webhook, so the payment is found only by asking the gateway
	FaultWrongSignature Fault = "wrong_signature" // signs with a secret that is not one of ours
	FaultOldSecret      Fault = "old_secret"      // signs with the last of our secrets
)

// Pay is a payment that the simulated gateway is to make.
type Pay struct {
	Outcome   string        // captured, authorized or failed
	Amount    int64         // minor units; 0 means the gateway order's
	Currency  string        // "" means the gateway order's
	PaymentID string        // "" means a new one
	Delay     time.Duration // until the payment happens, 0 to MaxDelay
	Faults    []Fault
}

// ErrPaymentTaken means that the payment id belongs to another gateway order.
var ErrPaymentTaken = errors.New("the payment id belongs to another gateway order")

// Pay makes a payment on a gateway order and queues its webhooks. It returns the
// payment's id. It fails with ErrUnknown or ErrPaymentTaken. If the database does not
// answer, it fails with eventlog.ErrUnavailable. Once it has returned without an error,
// the payment happens after the delay, even if Tomato is restarted in between.
func (g *Simulated) Pay(ctx context.Context, gatewayOrderID string, p Pay) (string, error) {
	if p.PaymentID == "" {
		p.PaymentID = newID("pay_")
	}
	err := pgx.BeginFunc(ctx, g.db, func(tx pgx.Tx) error {
		o, err := g.order(ctx, tx, gatewayOrderID)
		if err != nil {
			return err
		}
		if p.Amount == 0 {
			p.Amount = o.Amount
		}
		if p.Currency == "" {
			p.Currency = o.Currency
		}
		reason := ""
		if p.Outcome == StatusFailed {
			reason = "Payment failed"
		}
		owner, err := upsertPayment(ctx, tx, Payment{PaymentID: p.PaymentID, GatewayOrderID: o.ID, Amount: p.Amount, Currency: p.Currency,
			Status: p.Outcome, Reason: reason}, p.Delay)
		if err != nil {
			return err
		}
		if owner != o.ID {
			return ErrPaymentTaken
		}
		if slices.Contains(p.Faults, FaultDropped) {
			return nil
		}
		secret := firstSecret
		switch {
		case slices.Contains(p.Faults, FaultWrongSignature):
			secret = wrongSecret
		case slices.Contains(p.Faults, FaultOldSecret):
			secret = lastSecret
		}
		copies := 1
		if slices.Contains(p.Faults, FaultDuplicate) {
			copies = 2
		}
		for _, w := range p.webhooks(o, reason) {
			event := newID("evt_")
			for range copies {
				if err := g.webhooks.queue(ctx, tx, queuedWebhook{key: o.ID, eventID: event, secret: secret, delay: p.Delay, body: w}); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return "", gatewayError(err)
	}
	g.webhooks.lookNow()
	return p.PaymentID, nil
}

// webhooks returns the webhooks of the payment's outcome, in the order in which
// they are sent.
func (p *Pay) webhooks(o wireOrder, reason string) []wireWebhook {
	at := time.Now().Add(p.Delay).Unix()
	entity := wirePayment{ID: p.PaymentID, Entity: "payment", Amount: p.Amount, Currency: p.Currency, Status: p.Outcome,
		OrderID: &o.ID, Method: "upi", CreatedAt: at}
	reordered := slices.Contains(p.Faults, FaultReordered)
	authorized := entity
	authorized.Status = "authorized"
	of := func(event string, e wirePayment) wireWebhook {
		return wireWebhook{Event: event, Contains: []string{"payment"}, CreatedAt: at, Payload: wirePayload{Payment: &wireIn[wirePayment]{e}}}
	}
	switch p.Outcome {
	case StatusFailed:
		entity.ErrorCode, entity.ErrorDescription = ref("BAD_REQUEST_ERROR"), &reason
		ws := []wireWebhook{of(EventPaymentFailed, entity)}
		if reordered {
			ws = append(ws, of(EventPaymentAuthorized, authorized))
		}
		return ws
	case StatusCaptured:
		entity.Captured = true
		o.Status, o.AmountPaid, o.AmountDue, o.Attempts = "paid", p.Amount, max(0, o.Amount-p.Amount), 1
		ws := []wireWebhook{of(EventPaymentCaptured, entity), of(EventOrderPaid, entity)}
		ws[1].Contains, ws[1].Payload.Order = []string{"payment", "order"}, &wireIn[wireOrder]{o}
		if reordered {
			ws[0], ws[1] = ws[1], ws[0]
			ws = append(ws, of(EventPaymentAuthorized, authorized))
		}
		return ws
	}
	return []wireWebhook{of(EventPaymentAuthorized, authorized)}
}
