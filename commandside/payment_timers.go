package commandside

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"tomato/domain"
	"tomato/eventlog"
)

const (
	timerPoll     = time.Second      // how late a timer may be noticed
	timerBatch    = 32               // timers that one round takes
	timerLanes    = 8                // of them at once
	timerDeadline = 15 * time.Second // of one timer's work
	timerLease    = 10 * time.Minute // over timerBatch × timerDeadline: then another instance takes it over
	timerBackoff  = time.Minute      // at most, after failures in a row
)

// setTimer makes a policy's timer due, unless it has one for this key already.
// Called before the source offset moves, so that a crash loses no timer.
func (s *Side) setTimer(ctx context.Context, policy, key string, due time.Time, data any) error {
	b, err := json.Marshal(data)
	if err != nil {
		return err
	}
	_, err = s.DB.Exec(ctx, `INSERT INTO tomato.timers (policy, key, due_at, data) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING`, policy, key, due, b)
	if err != nil {
		return eventlog.Away(fmt.Errorf("timer of %s: %w", policy, err))
	}
	return nil
}

// RunTimers does what is due until ctx ends. Every instance of the role react
// may run it: a timer is leased to one of them, and taken over when that one
// dies. What fails is tried again with growing pauses, for ever: money waits
// behind it.
func (s *Side) RunTimers(ctx context.Context) error {
	poll := time.NewTicker(timerPoll)
	defer poll.Stop()
	failing := false
	for {
		n, err := s.timerRound(ctx, time.Now())
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !failing {
			s.Log.Error("the timers of policies cannot be read; it goes on trying", "error", err)
		}
		if failing = err != nil; n == timerBatch {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-poll.C:
		}
	}
}

type timerRow struct {
	policy, key string
	data        []byte
	attempts    int
	lease       time.Time
}

// timerRound does what is due at now, at most one batch, and says how many
// timers that were.
func (s *Side) timerRound(ctx context.Context, now time.Time) (int, error) {
	rows, err := s.DB.Query(ctx, `UPDATE tomato.timers t SET due_at = $2, attempts = attempts + 1
		FROM (SELECT policy, key FROM tomato.timers WHERE due_at <= $1 ORDER BY due_at LIMIT $3 FOR UPDATE SKIP LOCKED) due
		WHERE t.policy = due.policy AND t.key = due.key RETURNING t.policy, t.key, t.data, t.attempts, t.due_at`, now, now.Add(timerLease), timerBatch)
	if err != nil {
		return 0, err
	}
	due, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (t timerRow, err error) {
		err = r.Scan(&t.policy, &t.key, &t.data, &t.attempts, &t.lease)
		return t, err
	})
	if err != nil {
		return 0, err
	}
	var work errgroup.Group // without its context: one timer's failure is not the others'
	work.SetLimit(timerLanes)
	for _, t := range due {
		if ctx.Err() != nil {
			break // the leases end
		}
		work.Go(func() error { return s.timerDue(ctx, t, now) })
	}
	return len(due), work.Wait()
}

func (s *Side) timerDue(ctx context.Context, t timerRow, now time.Time) error {
	work, cancel := context.WithTimeout(ctx, timerDeadline)
	again, next, err := s.runTimer(work, t.policy, t.key, t.data, now)
	cancel()
	// Only while the lease is ours: another instance may have it by now.
	const mine = ` WHERE policy = $1 AND key = $2 AND due_at = $3`
	switch {
	case err != nil:
		level := s.Log.Error
		if errors.Is(err, eventlog.ErrAway) || domain.RefusedWith(err) != "" {
			level = s.Log.Warn
		}
		level("a policy's timer failed and is tried again", "policy", t.policy, "key", t.key, "attempts", t.attempts, "error", err)
		pause := min(timerBackoff, timerPoll<<min(t.attempts-1, 10))
		_, err = s.DB.Exec(ctx, `UPDATE tomato.timers SET due_at = $4`+mine, t.policy, t.key, t.lease, now.Add(pause))
	case again.IsZero():
		_, err = s.DB.Exec(ctx, `DELETE FROM tomato.timers`+mine, t.policy, t.key, t.lease)
	default:
		var data []byte
		if data, err = json.Marshal(next); err != nil {
			return err
		}
		_, err = s.DB.Exec(ctx, `UPDATE tomato.timers SET due_at = $4, attempts = 0, data = $5`+mine, t.policy, t.key, t.lease, again, data)
	}
	return err
}

// inboxMarks remember, per gateway order, where its inbox partition ended when
// its order's deadline came. Losing them is harmless: they are taken anew.
type inboxMarks struct {
	mu   sync.Mutex
	ends map[string]int64
}

const maxInboxMarks = 1 << 16

func (m *inboxMarks) mark(gatewayOrderID string) (int64, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	end, ok := m.ends[gatewayOrderID]
	return end, ok
}

func (m *inboxMarks) setMark(gatewayOrderID string, end int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ends == nil || len(m.ends) >= maxInboxMarks {
		m.ends = map[string]int64{}
	}
	m.ends[gatewayOrderID] = end
}

func (m *inboxMarks) forget(gatewayOrderID string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.ends, gatewayOrderID)
}
