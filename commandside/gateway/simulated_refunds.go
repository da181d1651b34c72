package gateway

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// refundDelay is how long a refund is pending. Because of it the outcome arrives as it
// does from the real gateway: by webhook, and after the answer.
const refundDelay = 50 * time.Millisecond

// Refund implements Gateway. A new refund is pending for refundDelay; then it is
// processed, and the webhook refund.processed is sent.
func (g *Simulated) Refund(ctx context.Context, f Refund) (RefundState, error) {
	var state RefundState
	err := pgx.BeginFunc(ctx, g.db, func(tx pgx.Tx) error {
		p := wirePayment{ID: f.PaymentID, Entity: "payment", Status: StatusRefunded, Method: "upi", Captured: true, RefundStatus: ref("full")}
		var orderID, status string
		var at time.Time
		// The lock of the row lets one refund of this payment run at a time.
		err := tx.QueryRow(ctx, `SELECT order_id, amount, currency, status, effective_at FROM simulated_gateway.payments
			WHERE id = $1 AND effective_at <= now() FOR UPDATE`, f.PaymentID).Scan(&orderID, &p.Amount, &p.Currency, &status, &at)
		if err != nil {
			return err
		}
		var refundedBefore int64
		var processedAt *time.Time // of this refund, nil when it is new
		var sameBody *bool
		err = tx.QueryRow(ctx, `SELECT coalesce(sum(amount), 0), max(processed_at) FILTER (WHERE idempotency_key = $2),
			bool_and(amount = $3 AND aggregate_id = $4) FILTER (WHERE idempotency_key = $2)
			FROM simulated_gateway.refunds WHERE payment_id = $1`, f.PaymentID, f.RefundID, f.Amount, f.AggregateID).Scan(&refundedBefore, &processedAt, &sameBody)
		switch {
		case err != nil:
			return err
		case processedAt != nil && !*sameBody:
			return fmt.Errorf("%w: the idempotency key was used with another body", ErrRefused)
		case processedAt != nil:
			if state = RefundPending; !processedAt.After(time.Now()) {
				state = RefundProcessed
			}
			return nil
		case status != StatusCaptured:
			return fmt.Errorf("%w: only a captured payment can be refunded", ErrRefused)
		case f.Amount <= 0 || refundedBefore+f.Amount > p.Amount:
			return fmt.Errorf("%w: the refund is more than what was captured and not refunded", ErrRefused)
		}
		now := time.Now()
		r := wireRefund{ID: newID("rfnd_"), Entity: "refund", Amount: f.Amount, Currency: p.Currency, PaymentID: f.PaymentID,
			Notes: notes{noteOrder: f.AggregateID, noteRefund: f.RefundID}, Receipt: &f.RefundID, Status: string(RefundProcessed), CreatedAt: now.Unix()}
		p.OrderID, p.AmountRefunded, p.CreatedAt = ref(orderID), refundedBefore+f.Amount, at.Unix()
		_, err = tx.Exec(ctx, `INSERT INTO simulated_gateway.refunds (id, idempotency_key, payment_id, aggregate_id, amount, processed_at)
			VALUES ($1, $2, $3, $4, $5, now() + $6)`, r.ID, f.RefundID, f.PaymentID, f.AggregateID, f.Amount, refundDelay)
		if err != nil {
			return err
		}
		state = RefundPending
		return g.webhooks.queue(ctx, tx, queuedWebhook{
			key: cmp.Or(orderID, f.PaymentID), eventID: newID("evt_"), secret: firstSecret, delay: refundDelay,
			body: wireWebhook{
				Event: EventRefundProcessed, Contains: []string{"refund", "payment"},
				Payload: wirePayload{Refund: &wireIn[wireRefund]{r}, Payment: &wireIn[wirePayment]{p}}}})
	})
	if err != nil {
		return "", fmt.Errorf("refund of %s: %w", f.PaymentID, gatewayError(err))
	}
	g.webhooks.lookNow()
	return state, nil
}

// RefundState implements Gateway.
func (g *Simulated) RefundState(ctx context.Context, paymentID, refundID string) (RefundState, error) {
	var done bool
	err := g.db.QueryRow(ctx, `SELECT processed_at <= now() FROM simulated_gateway.refunds WHERE idempotency_key = $1 AND payment_id = $2`, refundID, paymentID).Scan(&done)
	switch {
	case err != nil:
		return "", fmt.Errorf("refund %s of %s: %w", refundID, paymentID, gatewayError(err))
	case done:
		return RefundProcessed, nil
	}
	return RefundPending, nil
}
