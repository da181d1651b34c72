package gateway

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"tomato/eventlog"
	"tomato/eventlog/pgerr"
)

const simulatedKeyID = "rzp_test_simulated"

// Simulated is the gateway that is used if no Razorpay account is configured. It has
// orders, payments and refunds as Razorpay does, and sends Razorpay's webhooks to our
// own endpoint. It makes a payment only if Pay is called.
//
// Its state is in the Postgres schema simulated_gateway, which all instances share. A
// webhook that is to be sent is a row there with a due time. So it is sent even after
// a restart, by whichever instance takes the row. Safe for concurrent use.
type Simulated struct {
	db       *pgxpool.Pool
	webhooks *webhookSender
}

// NewSimulated returns the simulated gateway. db must have the schema (migrations.Core).
// endpoint is the URL of our own webhook endpoint. secrets are the webhook secrets, of
// which there must be at least one. If log is nil, it is slog.Default().
func NewSimulated(db *pgxpool.Pool, endpoint string, secrets []string, log *slog.Logger) *Simulated {
	if log == nil {
		log = slog.Default()
	}
	return &Simulated{db: db, webhooks: newWebhookSender(db, endpoint, secrets, log)}
}

// Run sends webhooks until ctx ends. Each instance calls it once.
func (g *Simulated) Run(ctx context.Context) error { return g.webhooks.run(ctx) }

// Provider implements Gateway.
func (*Simulated) Provider() string { return "simulated" }

// KeyID implements Gateway.
func (*Simulated) KeyID() string { return simulatedKeyID }

// CreateOrder implements Gateway.
func (g *Simulated) CreateOrder(ctx context.Context, receipt string, amount int64, currency string) (Order, error) {
	id := newID("order_")
	_, err := g.db.Exec(ctx, `INSERT INTO simulated_gateway.orders (id, receipt, amount, currency) VALUES ($1, $2, $3, $4)`, id, receipt, amount, currency)
	if err != nil {
		return Order{}, fmt.Errorf("gateway order: %w", gatewayError(err))
	}
	return Order{GatewayOrderID: id, KeyID: simulatedKeyID, Amount: amount, Currency: currency}, nil
}

// Order implements Gateway.
func (g *Simulated) Order(ctx context.Context, gatewayOrderID string) (string, error) {
	o, err := g.order(ctx, g.db, gatewayOrderID)
	return deref(o.Receipt), err
}

type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func (g *Simulated) order(ctx context.Context, q querier, id string) (wireOrder, error) {
	if !gatewayID.MatchString(id) {
		return wireOrder{}, ErrUnknown
	}
	var receipt string
	var at time.Time
	o := wireOrder{ID: id, Entity: "order", Status: "created"}
	err := q.QueryRow(ctx, `SELECT receipt, amount, currency, created_at FROM simulated_gateway.orders WHERE id = $1`, id).
		Scan(&receipt, &o.Amount, &o.Currency, &at)
	if err != nil {
		return wireOrder{}, fmt.Errorf("gateway order %s: %w", id, gatewayError(err))
	}
	o.Receipt, o.AmountDue, o.CreatedAt, o.Notes = &receipt, o.Amount, at.Unix(), notes{noteOrder: receipt}
	return o, nil
}

// gatewayError turns an error of the database into an error of the Gateway interface. If
// a row does not exist, that is ErrUnknown. If the database did not answer, the gateway
// is unavailable.
func gatewayError(err error) error {
	switch {
	case err == nil, errors.Is(err, ErrRefused), errors.Is(err, ErrUnknown), errors.Is(err, ErrPaymentTaken), errors.Is(err, eventlog.ErrUnavailable):
		return err
	case errors.Is(err, pgx.ErrNoRows):
		return ErrUnknown
	case pgerr.Code(err) != "" && !pgerr.Unavailable(err) && !pgerr.Conflict(err):
		return err // a mistake in our own SQL, so waiting would not help
	}
	return eventlog.Unavailable(err)
}

// newID returns an id in the form of Razorpay's ids: the prefix and 14 letters or digits.
func newID(prefix string) string {
	const alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	b := make([]byte, 0, len(prefix)+14)
	b = append(b, prefix...)
	for len(b) < len(prefix)+14 {
		var r [16]byte
		_, _ = rand.Read(r[:]) // never fails
		for _, x := range r {
			if int(x) < 4*len(alphabet) && len(b) < len(prefix)+14 { // larger bytes are skipped, because they would make some letters likelier
				b = append(b, alphabet[int(x)%len(alphabet)])
			}
		}
	}
	return string(b)
}
