package gateway

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"tomato/commandside/lease"
)

const (
	webhookBatch    = 256                    // webhooks that one round takes
	webhookWorkers  = 16                     // goroutines that send them
	webhookTimeout  = 5 * time.Second        // for our endpoint to answer; Razorpay has the same limit
	webhookLease    = time.Minute            // after this another instance sends the webhooks that this one took
	webhookPoll     = 250 * time.Millisecond // between two looks for webhooks that other instances queued
	minWebhookPause = 500 * time.Millisecond // before the second attempt; doubles with each further attempt
	maxWebhookPause = 30 * time.Second
	webhookGiveUp   = 24 * time.Hour  // Razorpay has the same limit
	webhookDBLimit  = 5 * time.Second // for writing an outcome to the database, even after ctx has ended
)

// The secret that signs a webhook. The database has these values.
const (
	firstSecret = "first"
	lastSecret  = "last"
	wrongSecret = "wrong" // not one of ours
)

// webhookTable shares the queued webhooks among the instances.
var webhookTable = lease.Table{Name: "simulated_gateway.webhooks", Key: []string{"id"},
	Columns: []string{"id", "lane", "event_id", "body", "secret", "give_up_at", "attempts"}, Batch: webhookBatch, For: webhookLease}

// webhookSender sends the simulated gateway's webhooks to our endpoint. The webhooks
// that are to be sent are rows in Postgres, which all instances share. A webhook is
// sent at least once. If there is no answer, or the answer is 429 or 5xx, it is sent
// again for a day, with growing pauses. Any other answer is final.
type webhookSender struct {
	db       *pgxpool.Pool
	endpoint string // URL
	secrets  []string
	client   *http.Client
	log      *slog.Logger
	wake     chan struct{}
}

func newWebhookSender(db *pgxpool.Pool, endpoint string, secrets []string, log *slog.Logger) *webhookSender {
	return &webhookSender{db: db, endpoint: endpoint, secrets: secrets, log: log, wake: make(chan struct{}, 1),
		client: &http.Client{Timeout: webhookTimeout, Transport: &http.Transport{MaxIdleConnsPerHost: webhookWorkers, IdleConnTimeout: time.Minute}}}
}

// queuedWebhook is a webhook that is to be sent once delay has passed. Webhooks with the
// same key are sent one after the other, in the order in which they were queued. The
// key is kept in the column lane.
type queuedWebhook struct {
	key     string
	eventID string
	secret  string
	delay   time.Duration
	body    wireWebhook
}

// queue stores a webhook within tx. The webhook is sent after tx has been committed.
func (s *webhookSender) queue(ctx context.Context, tx pgx.Tx, q queuedWebhook) error {
	w := q.body
	w.Entity, w.AccountID = "event", "acc_simulated"
	if w.CreatedAt == 0 {
		w.CreatedAt = time.Now().Add(q.delay).Unix()
	}
	body, err := json.Marshal(w)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `INSERT INTO simulated_gateway.webhooks (lane, event_id, body, secret, due_at, give_up_at)
		VALUES ($1, $2, $3, $4, now() + $5, now() + $6)`, q.key, q.eventID, body, q.secret, q.delay, q.delay+webhookGiveUp)
	return err
}

// lookNow makes run look for due webhooks without waiting for its next poll.
func (s *webhookSender) lookNow() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run sends webhooks until ctx ends.
func (s *webhookSender) run(ctx context.Context) error {
	defer s.client.CloseIdleConnections()
	failing := func(err error) {
		s.log.Error("the simulated gateway cannot read its webhooks; it keeps trying", "err", err)
	}
	lease.Loop(ctx, s.wake, failing, s.round)
	return nil
}

type webhookRow struct {
	id       int64
	key      string
	eventID  string
	body     []byte
	secret   string
	giveUpAt time.Time
	attempts int
}

func scanWebhook(r pgx.CollectableRow) (w webhookRow, err error) {
	err = r.Scan(&w.id, &w.key, &w.eventID, &w.body, &w.secret, &w.giveUpAt, &w.attempts)
	return w, err
}

// round sends at most one batch of due webhooks, and returns how long to wait before the
// next round. It returns 0 if it has sent any, because more may be due.
func (s *webhookSender) round(ctx context.Context) (wait time.Duration, err error) {
	due, err := lease.Take(ctx, s.db, webhookTable, time.Time{}, scanWebhook)
	if err != nil {
		return 0, err
	}
	if len(due) > 0 {
		s.sendAll(ctx, due)
		return 0, nil
	}
	var next *time.Duration // until the next webhook is due, nil when none is queued
	if err := s.db.QueryRow(ctx, `SELECT min(due_at) - now() FROM simulated_gateway.webhooks`).Scan(&next); err != nil {
		return 0, err
	}
	if next == nil {
		return webhookPoll, nil
	}
	return min(webhookPoll, max(time.Millisecond, *next)), nil
}

// sendAll sends a batch. It sends webhooks of one key one after the other, and webhooks
// of different keys at the same time. Then it deletes those that need not be sent
// again. It keeps the order of a key within one batch only. This is enough, because no
// gateway promises an order.
func (s *webhookSender) sendAll(ctx context.Context, due []webhookRow) {
	slices.SortFunc(due, func(a, b webhookRow) int { return cmp.Compare(a.id, b.id) })
	byKey := map[string][]webhookRow{}
	for _, w := range due {
		byKey[w.key] = append(byKey[w.key], w)
	}
	queues := make(chan []webhookRow)
	var mu sync.Mutex
	var done []int64
	var workers sync.WaitGroup
	for range min(webhookWorkers, len(byKey)) {
		workers.Go(func() {
			for queue := range queues {
				for i := range queue {
					if ctx.Err() != nil {
						return // another instance sends the remaining webhooks when the lease ends
					}
					if !s.send(ctx, &queue[i]) {
						s.postpone(ctx, &queue[i])
						continue
					}
					mu.Lock()
					done = append(done, queue[i].id)
					mu.Unlock()
				}
			}
		})
	}
hand:
	for _, queue := range byKey {
		select {
		case queues <- queue:
		case <-ctx.Done():
			break hand
		}
	}
	close(queues)
	workers.Wait()
	if len(done) == 0 {
		return
	}
	// This is done even if ctx has ended, because our endpoint has accepted these
	// webhooks.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), webhookDBLimit)
	defer cancel()
	if _, err := s.db.Exec(ctx, `DELETE FROM simulated_gateway.webhooks WHERE id = ANY($1)`, done); err != nil {
		s.log.Warn("webhooks were sent but could not be removed from the queue; they are sent again", "count", len(done), "err", err)
	}
}

// send posts one webhook and reports whether it is done, that is, whether it need not be
// sent again. It is done if the answer is final or if the webhook is given up.
func (s *webhookSender) send(ctx context.Context, w *webhookRow) (done bool) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.endpoint, bytes.NewReader(w.body))
	if err != nil {
		s.log.Error("gave up a webhook: the endpoint's URL cannot be used", "event", w.eventID, "err", err)
		return true
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(EventIDHeader, w.eventID)
	req.Header.Set(SignatureHeader, Sign(s.secret(w.secret), w.body))
	resp, err := s.client.Do(req)
	status := 0
	if err == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
		resp.Body.Close()
		if status = resp.StatusCode; status < 500 && status != http.StatusTooManyRequests {
			return true
		}
	}
	if ctx.Err() == nil && time.Now().After(w.giveUpAt) {
		s.log.Error("gave up a webhook: the endpoint has not accepted it for a day", "event", w.eventID, "attempts", w.attempts, "status", status, "err", err)
		return true
	}
	return false
}

// postpone makes a webhook that our endpoint did not accept due again later.
func (s *webhookSender) postpone(ctx context.Context, w *webhookRow) {
	pause := min(maxWebhookPause, minWebhookPause<<min(w.attempts-1, 10))
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), webhookDBLimit)
	defer cancel()
	if _, err := s.db.Exec(ctx, `UPDATE simulated_gateway.webhooks SET due_at = now() + $2 WHERE id = $1`, w.id, pause); err != nil {
		s.log.Warn("a webhook could not be queued again; it is sent when its lease ends", "event", w.eventID, "err", err)
	}
}

func (s *webhookSender) secret(which string) string {
	switch {
	case which == wrongSecret || len(s.secrets) == 0:
		return "none of ours: " + uuid.NewString()
	case which == lastSecret:
		return s.secrets[len(s.secrets)-1]
	}
	return s.secrets[0]
}
