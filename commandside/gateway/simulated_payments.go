package gateway

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// paymentColumns are the columns that scanPayment reads. A captured payment with a
// processed refund has the status refunded.
const paymentColumns = `p.id, p.order_id, p.amount, p.currency, p.reason,
	CASE WHEN p.status = 'captured' AND EXISTS (SELECT FROM simulated_gateway.refunds r WHERE r.payment_id = p.id AND r.processed_at <= now())
	THEN 'refunded' ELSE p.status END`

func scanPayment(row pgx.Row) (p Payment, err error) {
	err = row.Scan(&p.PaymentID, &p.GatewayOrderID, &p.Amount, &p.Currency, &p.Reason, &p.Status)
	return p, err
}

// Payment implements Gateway.
func (g *Simulated) Payment(ctx context.Context, paymentID string) (Payment, error) {
	p, err := scanPayment(g.db.QueryRow(ctx, `SELECT `+paymentColumns+` FROM simulated_gateway.payments p WHERE id = $1 AND effective_at <= now()`, paymentID))
	if err != nil {
		return Payment{}, fmt.Errorf("payment %s: %w", paymentID, gatewayError(err))
	}
	return p, nil
}

// Payments implements Gateway.
func (g *Simulated) Payments(ctx context.Context, gatewayOrderID string) ([]Payment, error) {
	rows, err := g.db.Query(ctx, `SELECT `+paymentColumns+` FROM simulated_gateway.payments p WHERE order_id = $1 AND effective_at <= now() ORDER BY effective_at, id LIMIT 100`, gatewayOrderID)
	if err != nil {
		return nil, fmt.Errorf("payments of gateway order %s: %w", gatewayOrderID, gatewayError(err))
	}
	ps, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Payment, error) { return scanPayment(row) })
	if err != nil {
		return nil, fmt.Errorf("payments of gateway order %s: %w", gatewayOrderID, gatewayError(err))
	}
	if len(ps) == 0 {
		if _, err := g.Order(ctx, gatewayOrderID); err != nil {
			return nil, err
		}
	}
	return ps, nil
}

// Accepted tells the gateway about the payment in a webhook with a valid signature. Such
// a webhook may have been made by a test or a script. From then on its payment exists at
// the simulated gateway, so that it is listed and can be refunded.
func (g *Simulated) Accepted(ctx context.Context, p Payment) error {
	switch p.Status {
	case StatusCaptured, StatusRefunded:
		p.Status = StatusCaptured
	case "authorized", StatusFailed:
	default:
		return nil
	}
	// Nearly all webhooks were sent by the simulated gateway itself, about payments that
	// are stored already.
	var status string
	err := g.db.QueryRow(ctx, `SELECT status FROM simulated_gateway.payments WHERE id = $1 AND effective_at <= now()`, p.PaymentID).Scan(&status)
	if err == nil && (status == p.Status || status == StatusCaptured) {
		return nil
	}
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return gatewayError(err)
	}
	_, err = upsertPayment(ctx, g.db, p, 0)
	return gatewayError(err)
}

// upsertPayment stores a payment, which takes effect once delay has passed. A payment
// that is stored already keeps its gateway order. Its status changes, but a captured
// payment stays captured, and a failed one does not become authorized. upsertPayment
// returns the gateway order that the payment belongs to.
func upsertPayment(ctx context.Context, q querier, p Payment, delay time.Duration) (gatewayOrderID string, err error) {
	err = q.QueryRow(ctx, `INSERT INTO simulated_gateway.payments AS p (id, order_id, amount, currency, status, reason, effective_at)
		VALUES ($1, $2, $3, $4, $5, $6, now() + $7)
		ON CONFLICT (id) DO UPDATE SET
			status = CASE WHEN p.order_id <> excluded.order_id OR p.status = 'captured' OR (p.status = 'failed' AND excluded.status = 'authorized') THEN p.status ELSE excluded.status END,
			amount = CASE WHEN p.order_id <> excluded.order_id OR p.status = 'captured' THEN p.amount ELSE excluded.amount END,
			currency = CASE WHEN p.order_id <> excluded.order_id OR p.status = 'captured' THEN p.currency ELSE excluded.currency END,
			effective_at = CASE WHEN p.order_id <> excluded.order_id THEN p.effective_at
				WHEN p.status = 'captured' THEN least(p.effective_at, excluded.effective_at)
				WHEN excluded.status = 'captured' THEN excluded.effective_at ELSE least(p.effective_at, excluded.effective_at) END
		RETURNING order_id`,
		p.PaymentID, p.GatewayOrderID, p.Amount, p.Currency, p.Status, p.Reason, delay).Scan(&gatewayOrderID)
	return gatewayOrderID, err
}
