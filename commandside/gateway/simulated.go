package gateway

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"tomato/eventlog"
)

const (
	simulatedKeyID = "rzp_test_simulated"

	webhookBatch   = 256                    // webhooks that one round takes
	webhookLanes   = 16                     // of them sent at once
	webhookTimeout = 5 * time.Second        // for our endpoint to answer, as the vendor has it
	webhookLease   = time.Minute            // after which another instance takes them over
	idlePoll       = 250 * time.Millisecond // for what other instances queued, and what becomes due
	firstBackoff   = 500 * time.Millisecond
	mostBackoff    = 30 * time.Second
	webhookGiveUp  = 24 * time.Hour // as the vendor has it

	// A refund is pending for a moment, so that its outcome goes the way that
	// it goes with the real gateway.
	refundTakes = 50 * time.Millisecond

	// MaxDelay bounds how late the simulated gateway can be told to act.
	MaxDelay = 720 * time.Hour
)

// Fault is something that can go wrong between a gateway and us.
type Fault string

// The faults.
const (
	FaultDuplicate      Fault = "duplicate"       // every webhook twice, with the same event id
	FaultReordered      Fault = "reordered"       // last things first, and a late payment.authorized behind them
	FaultDropped        Fault = "dropped"         // no webhook at all: only asking the gateway finds the payment
	FaultWrongSignature Fault = "wrong_signature" // signed with a secret that is none of ours
	FaultOldSecret      Fault = "old_secret"      // signed with the last of our secrets
)

// Pay is what the simulated gateway is told to do.
type Pay struct {
	Outcome   string        // captured, authorized or failed
	Amount    int64         // minor units; 0 = what the order asks for
	Currency  string        // "" = the order's
	PaymentID string        // "" = a new one
	Delay     time.Duration // until it happens, 0 to MaxDelay
	Faults    []Fault
}

// ErrPaymentTaken says that the payment id belongs to another gateway order.
var ErrPaymentTaken = errors.New("the payment id belongs to another gateway order")

// Simulated is a gateway for where no Razorpay account is set. It has
// Razorpay's wire contract towards us: orders, payments, refunds, and webhooks
// to our own endpoint. It does nothing unasked.
//
// Its state is in the Postgres schema simulated_gateway, the same for all
// instances and authoritative: what is to be sent is a row with a due time, so
// a restart sends it still. Any instance's Run sends what is due; a row is
// leased while one does (FOR UPDATE SKIP LOCKED, then a due time in the
// future), so one that dies in the middle is followed by another. Webhooks are
// sent at least once: those not answered, or answered 429 or 5xx, again with
// growing pauses for a day; any other answer is final.
type Simulated struct {
	db      *pgxpool.Pool
	url     string
	secrets []string
	client  *http.Client
	log     *slog.Logger
	wake    chan struct{}
}

// NewSimulated returns the simulated gateway. endpoint is our own webhook
// endpoint, secrets are the webhook secrets (at least one), db has the schema
// (migrations.Core).
func NewSimulated(db *pgxpool.Pool, endpoint string, secrets []string, log *slog.Logger) *Simulated {
	if log == nil {
		log = slog.Default()
	}
	return &Simulated{db: db, url: endpoint, secrets: secrets, log: log, wake: make(chan struct{}, 1),
		client: &http.Client{Timeout: webhookTimeout, Transport: &http.Transport{MaxIdleConnsPerHost: webhookLanes, IdleConnTimeout: time.Minute}}}
}

// Provider implements Gateway.
func (*Simulated) Provider() string { return "simulated" }

// KeyID implements Gateway.
func (*Simulated) KeyID() string { return simulatedKeyID }

// CreateOrder implements Gateway.
func (g *Simulated) CreateOrder(ctx context.Context, receipt string, amount int64, currency string) (Order, error) {
	id := newID("order_")
	_, err := g.db.Exec(ctx, `INSERT INTO simulated_gateway.orders (id, receipt, amount, currency) VALUES ($1, $2, $3, $4)`, id, receipt, amount, currency)
	if err != nil {
		return Order{}, fmt.Errorf("gateway order: %w", absent(err))
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
		return wireOrder{}, fmt.Errorf("gateway order %s: %w", id, absent(err))
	}
	o.Receipt, o.AmountDue, o.CreatedAt, o.Notes = &receipt, o.Amount, at.Unix(), notes{noteOrder: receipt}
	return o, nil
}

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
		return Payment{}, fmt.Errorf("payment %s: %w", paymentID, absent(err))
	}
	return p, nil
}

// Payments implements Gateway.
func (g *Simulated) Payments(ctx context.Context, gatewayOrderID string) ([]Payment, error) {
	rows, err := g.db.Query(ctx, `SELECT `+paymentColumns+` FROM simulated_gateway.payments p WHERE order_id = $1 AND effective_at <= now() ORDER BY effective_at, id LIMIT 100`, gatewayOrderID)
	if err != nil {
		return nil, fmt.Errorf("payments of gateway order %s: %w", gatewayOrderID, absent(err))
	}
	ps, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Payment, error) { return scanPayment(row) })
	if err != nil {
		return nil, fmt.Errorf("payments of gateway order %s: %w", gatewayOrderID, absent(err))
	}
	if len(ps) == 0 {
		if _, err := g.Order(ctx, gatewayOrderID); err != nil {
			return nil, err
		}
	}
	return ps, nil
}

// Refund implements Gateway. It is pending for a moment; then a
// refund.processed is sent.
func (g *Simulated) Refund(ctx context.Context, f Refund) (RefundState, error) {
	var state RefundState
	err := pgx.BeginFunc(ctx, g.db, func(tx pgx.Tx) error {
		p := wirePayment{ID: f.PaymentID, Entity: "payment", Status: StatusRefunded, Method: "upi", Captured: true, RefundStatus: ref("full")}
		var orderID, status string
		var at time.Time
		// The row's lock makes refunds of one payment take turns.
		err := tx.QueryRow(ctx, `SELECT order_id, amount, currency, status, effective_at FROM simulated_gateway.payments
			WHERE id = $1 AND effective_at <= now() FOR UPDATE`, f.PaymentID).Scan(&orderID, &p.Amount, &p.Currency, &status, &at)
		if err != nil {
			return err
		}
		var before int64
		var mine *time.Time
		var same *bool
		err = tx.QueryRow(ctx, `SELECT coalesce(sum(amount), 0), max(processed_at) FILTER (WHERE idempotency_key = $2),
			bool_and(amount = $3 AND aggregate_id = $4) FILTER (WHERE idempotency_key = $2)
			FROM simulated_gateway.refunds WHERE payment_id = $1`, f.PaymentID, f.RefundID, f.Amount, f.AggregateID).Scan(&before, &mine, &same)
		switch {
		case err != nil:
			return err
		case mine != nil && !*same:
			return fmt.Errorf("%w: the idempotency key was used with another body", ErrRefused)
		case mine != nil:
			if state = RefundPending; !mine.After(time.Now()) {
				state = RefundProcessed
			}
			return nil
		case status != StatusCaptured:
			return fmt.Errorf("%w: only a captured payment can be refunded", ErrRefused)
		case f.Amount <= 0 || before+f.Amount > p.Amount:
			return fmt.Errorf("%w: the refund is more than what was captured and not refunded", ErrRefused)
		}
		now := time.Now()
		r := wireRefund{ID: newID("rfnd_"), Entity: "refund", Amount: f.Amount, Currency: p.Currency, PaymentID: f.PaymentID,
			Notes: notes{noteOrder: f.AggregateID, noteRefund: f.RefundID}, Receipt: &f.RefundID, Status: string(RefundProcessed), CreatedAt: now.Unix()}
		p.OrderID, p.AmountRefunded, p.CreatedAt = ref(orderID), before+f.Amount, at.Unix()
		_, err = tx.Exec(ctx, `INSERT INTO simulated_gateway.refunds (id, idempotency_key, payment_id, aggregate_id, amount, processed_at)
			VALUES ($1, $2, $3, $4, $5, now() + $6)`, r.ID, f.RefundID, f.PaymentID, f.AggregateID, f.Amount, refundTakes)
		if err != nil {
			return err
		}
		state = RefundPending
		return g.queue(ctx, tx, lane(orderID, f.PaymentID), refundTakes, "first", newID("evt_"), wireWebhook{
			Event: RefundProcessedEv, Contains: []string{"refund", "payment"},
			Payload: wirePayload{Refund: &wireIn[wireRefund]{r}, Payment: &wireIn[wirePayment]{p}}})
	})
	if err != nil {
		return "", fmt.Errorf("refund of %s: %w", f.PaymentID, absent(err))
	}
	g.poke()
	return state, nil
}

// RefundState implements Gateway.
func (g *Simulated) RefundState(ctx context.Context, paymentID, refundID string) (RefundState, error) {
	var done bool
	err := g.db.QueryRow(ctx, `SELECT processed_at <= now() FROM simulated_gateway.refunds WHERE idempotency_key = $1 AND payment_id = $2`, refundID, paymentID).Scan(&done)
	switch {
	case err != nil:
		return "", fmt.Errorf("refund %s of %s: %w", refundID, paymentID, absent(err))
	case done:
		return RefundProcessed, nil
	}
	return RefundPending, nil
}

// Pay makes a payment on a gateway order and queues its webhooks. It returns
// the payment's id, ErrUnknown, ErrPaymentTaken or an absence. When it has
// returned, it will happen: now, or when the delay is over.
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
		kept, err := upsertPayment(ctx, tx, Payment{PaymentID: p.PaymentID, GatewayOrderID: o.ID, Amount: p.Amount, Currency: p.Currency,
			Status: p.Outcome, Reason: reason}, p.Delay)
		if err != nil {
			return err
		}
		if kept != o.ID {
			return ErrPaymentTaken
		}
		if slices.Contains(p.Faults, FaultDropped) {
			return nil
		}
		secret := "first"
		switch {
		case slices.Contains(p.Faults, FaultWrongSignature):
			secret = "wrong"
		case slices.Contains(p.Faults, FaultOldSecret):
			secret = "last"
		}
		copies := 1
		if slices.Contains(p.Faults, FaultDuplicate) {
			copies = 2
		}
		for _, w := range p.webhooks(o, reason) {
			event := newID("evt_")
			for range copies {
				if err := g.queue(ctx, tx, o.ID, p.Delay, secret, event, w); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return "", absent(err)
	}
	g.poke()
	return p.PaymentID, nil
}

// webhooks are those of the outcome, in the order in which they are sent.
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
		ws := []wireWebhook{of(PaymentFailed, entity)}
		if reordered {
			ws = append(ws, of(PaymentAuthorized, authorized))
		}
		return ws
	case StatusCaptured:
		entity.Captured = true
		o.Status, o.AmountPaid, o.AmountDue, o.Attempts = "paid", p.Amount, max(0, o.Amount-p.Amount), 1
		ws := []wireWebhook{of(PaymentCaptured, entity), of(OrderPaid, entity)}
		ws[1].Contains, ws[1].Payload.Order = []string{"payment", "order"}, &wireIn[wireOrder]{o}
		if reordered {
			ws[0], ws[1] = ws[1], ws[0]
			ws = append(ws, of(PaymentAuthorized, authorized))
		}
		return ws
	}
	return []wireWebhook{of(PaymentAuthorized, authorized)}
}

// Accepted tells the gateway of a payment in a webhook with a good signature,
// wherever that came from: it exists, so it is listed and can be refunded.
func (g *Simulated) Accepted(ctx context.Context, p Payment) error {
	switch p.Status {
	case StatusCaptured, StatusRefunded:
		p.Status = StatusCaptured
	case "authorized", StatusFailed:
	default:
		return nil
	}
	// Our own webhooks are by far the most; they change nothing.
	var status string
	err := g.db.QueryRow(ctx, `SELECT status FROM simulated_gateway.payments WHERE id = $1 AND effective_at <= now()`, p.PaymentID).Scan(&status)
	if err == nil && (status == p.Status || status == StatusCaptured) {
		return nil
	}
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return absent(err)
	}
	_, err = upsertPayment(ctx, g.db, p, 0)
	return absent(err)
}

// upsertPayment keeps a payment from after delay on. Of one that is known only
// the status moves on, never away from captured. It returns the gateway order
// that the payment belongs to.
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

func lane(gatewayOrderID, paymentID string) string {
	if gatewayOrderID != "" {
		return gatewayOrderID
	}
	return paymentID
}

// queue writes a webhook down; the transaction's commit makes it go out.
func (g *Simulated) queue(ctx context.Context, tx pgx.Tx, lane string, delay time.Duration, secret, event string, w wireWebhook) error {
	w.Entity, w.AccountID = "event", "acc_simulated"
	if w.CreatedAt == 0 {
		w.CreatedAt = time.Now().Add(delay).Unix()
	}
	body, err := json.Marshal(w)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `INSERT INTO simulated_gateway.webhooks (lane, event_id, body, secret, due_at, give_up_at)
		VALUES ($1, $2, $3, $4, now() + $5, now() + $6)`, lane, event, body, secret, delay, delay+webhookGiveUp)
	return err
}

func (g *Simulated) poke() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// Run sends webhooks until ctx ends. One call per instance.
func (g *Simulated) Run(ctx context.Context) error {
	defer g.client.CloseIdleConnections()
	idle := time.NewTimer(0)
	defer idle.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-g.wake:
		case <-idle.C:
		}
		n, next, err := g.round(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			if !failing {
				g.log.Error("the simulated gateway cannot send webhooks; it goes on trying", "error", err)
			}
			failing, next = true, time.Second
		default:
			failing = false
		}
		if n == webhookBatch {
			next = 0
		}
		idle.Reset(next)
	}
}

type webhookRow struct {
	id       int64
	lane     string
	event    string
	body     []byte
	secret   string
	giveUpAt time.Time
	attempts int
}

// round sends what is due, at most one batch, and says how many that were and
// when to look again.
func (g *Simulated) round(ctx context.Context) (n int, next time.Duration, err error) {
	// Order is kept within a batch only: no gateway promises more.
	rows, err := g.db.Query(ctx, `UPDATE simulated_gateway.webhooks w SET due_at = now() + $2, attempts = attempts + 1
		FROM (SELECT id FROM simulated_gateway.webhooks WHERE due_at <= now() ORDER BY due_at, id LIMIT $1 FOR UPDATE SKIP LOCKED) due
		WHERE w.id = due.id RETURNING w.id, w.lane, w.event_id, w.body, w.secret, w.give_up_at, w.attempts`, webhookBatch, webhookLease)
	if err != nil {
		return 0, 0, err
	}
	due, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (w webhookRow, err error) {
		err = r.Scan(&w.id, &w.lane, &w.event, &w.body, &w.secret, &w.giveUpAt, &w.attempts)
		return w, err
	})
	if err != nil {
		return 0, 0, err
	}
	g.sendAll(ctx, due)
	if len(due) == 0 {
		var wait *time.Duration
		if err := g.db.QueryRow(ctx, `SELECT min(due_at) - now() FROM simulated_gateway.webhooks`).Scan(&wait); err != nil {
			return 0, 0, err
		}
		if next = idlePoll; wait != nil {
			next = min(idlePoll, max(time.Millisecond, *wait))
		}
	}
	return len(due), next, nil
}

// sendAll sends the webhooks: of one lane in sequence, lanes beside each other.
func (g *Simulated) sendAll(ctx context.Context, due []webhookRow) {
	slices.SortFunc(due, func(a, b webhookRow) int { return int(a.id - b.id) })
	byLane := map[string][]webhookRow{}
	for _, w := range due {
		byLane[w.lane] = append(byLane[w.lane], w)
	}
	lanes := make(chan []webhookRow)
	var mu sync.Mutex
	var done []int64
	var wg sync.WaitGroup
	for range min(webhookLanes, len(byLane)) {
		wg.Go(func() {
			for ws := range lanes {
				for i := range ws {
					if ctx.Err() != nil {
						return // the lease ends, and somebody sends it
					}
					if g.send(ctx, &ws[i]) {
						mu.Lock()
						done = append(done, ws[i].id)
						mu.Unlock()
						continue
					}
					g.again(ctx, &ws[i])
				}
			}
		})
	}
feed:
	for _, ws := range byLane {
		select {
		case lanes <- ws:
		case <-ctx.Done():
			break feed
		}
	}
	close(lanes)
	wg.Wait()
	if len(done) == 0 {
		return
	}
	// Also when ctx has ended: they were answered.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if _, err := g.db.Exec(ctx, `DELETE FROM simulated_gateway.webhooks WHERE id = ANY($1)`, done); err != nil {
		g.log.Warn("sent webhooks will be sent again", "count", len(done), "error", err)
	}
}

// send posts one webhook and says whether that was the end of it.
func (g *Simulated) send(ctx context.Context, w *webhookRow) (done bool) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, g.url, bytes.NewReader(w.body))
	if err != nil {
		g.log.Error("webhook given up", "event", w.event, "error", err)
		return true
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(EventIDHeader, w.event)
	req.Header.Set(SignatureHeader, Sign(g.secret(w.secret), w.body))
	resp, err := g.client.Do(req)
	status := 0
	if err == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
		resp.Body.Close()
		if status = resp.StatusCode; status < 500 && status != http.StatusTooManyRequests {
			return true
		}
	}
	if ctx.Err() == nil && time.Now().After(w.giveUpAt) {
		g.log.Error("webhook given up", "event", w.event, "attempts", w.attempts, "status", status, "error", err)
		return true
	}
	return false
}

// again makes a webhook that was not answered due later.
func (g *Simulated) again(ctx context.Context, w *webhookRow) {
	pause := min(mostBackoff, firstBackoff<<min(w.attempts-1, 10))
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if _, err := g.db.Exec(ctx, `UPDATE simulated_gateway.webhooks SET due_at = now() + $2 WHERE id = $1`, w.id, pause); err != nil {
		g.log.Warn("a webhook is sent again only when its lease ends", "event", w.event, "error", err)
	}
}

func (g *Simulated) secret(which string) string {
	switch {
	case which == "wrong" || len(g.secrets) == 0:
		return "none of ours: " + uuid.NewString()
	case which == "last":
		return g.secrets[len(g.secrets)-1]
	}
	return g.secrets[0]
}

// absent makes a definite no of a row that is not there, and an absence of a
// database that did not answer.
func absent(err error) error {
	var pg *pgconn.PgError
	switch {
	case err == nil, errors.Is(err, ErrRefused), errors.Is(err, ErrUnknown), errors.Is(err, ErrPaymentTaken), errors.Is(err, eventlog.ErrAway):
		return err
	case errors.Is(err, pgx.ErrNoRows):
		return ErrUnknown
	case errors.As(err, &pg) && !slices.Contains([]string{"08", "40", "53", "57", "58"}, pg.Code[:min(2, len(pg.Code))]):
		return err // our own mistake: waiting would not help
	}
	return eventlog.Away(err)
}

// newID returns an id such as the vendor's: the prefix and 14 letters or digits.
func newID(prefix string) string {
	const alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	b := make([]byte, 0, len(prefix)+14)
	b = append(b, prefix...)
	for len(b) < len(prefix)+14 {
		var r [16]byte
		_, _ = rand.Read(r[:]) // never fails
		for _, x := range r {
			if int(x) < 4*len(alphabet) && len(b) < len(prefix)+14 { // else some letters would be likelier
				b = append(b, alphabet[int(x)%len(alphabet)])
			}
		}
	}
	return string(b)
}
