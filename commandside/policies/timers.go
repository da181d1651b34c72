package policies

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"tomato/commandside/lease"
	"tomato/domain"
	"tomato/eventlog"
)

const (
	timerPoll     = time.Second      // between two looks at the table
	timerBatch    = 32               // timers that one round takes
	timerWorkers  = 8                // of them at the same time
	timerDeadline = 15 * time.Second // for the work of one timer
	timerLease    = 10 * time.Minute // more than timerBatch × timerDeadline; after it another instance takes the timer
	timerBackoff  = time.Minute      // at most, after failures in a row
)

// timerTable shares the timers among the instances.
var timerTable = lease.Table{Name: "tomato.timers", Key: []string{"policy", "key"},
	Columns: []string{"policy", "key", "data", "attempts", "due_at"}, Batch: timerBatch, For: timerLease}

// setTimer sets a timer of a policy, unless the policy has one for this key
// already. It is called before the event's checkpoint is written, so that a
// crash loses no timer.
func (p *Policies) setTimer(ctx context.Context, policy, key string, due time.Time, data any) error {
	b, err := json.Marshal(data)
	if err != nil {
		return err
	}
	_, err = p.DB.Exec(ctx, `INSERT INTO tomato.timers (policy, key, due_at, data) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING`, policy, key, due, b)
	if err != nil {
		return eventlog.Unavailable(fmt.Errorf("timer of %s: %w", policy, err))
	}
	return nil
}

// RunTimers runs due timers until ctx ends. Every instance of the role react may
// call it: a timer is leased to one of them, and when that one dies another
// takes it. A timer that fails is tried again with growing pauses and is never
// given up, because money depends on it.
func (p *Policies) RunTimers(ctx context.Context) error {
	failing := func(err error) {
		p.Log.Error("the timers of payment policies cannot be read or written; trying goes on", "err", err)
	}
	lease.Loop(ctx, nil, failing, func(ctx context.Context) (time.Duration, error) {
		n, err := p.timerRound(ctx, time.Now())
		if n == timerBatch {
			return 0, err // more may be due
		}
		return timerPoll, err
	})
	return nil
}

type timerRow struct {
	policy, key string
	data        []byte
	attempts    int
	leasedUntil time.Time
}

func scanTimer(r pgx.CollectableRow) (t timerRow, err error) {
	err = r.Scan(&t.policy, &t.key, &t.data, &t.attempts, &t.leasedUntil)
	return t, err
}

// timerRound runs the timers that are due at now, at most one batch, and returns
// how many there were.
func (p *Policies) timerRound(ctx context.Context, now time.Time) (int, error) {
	due, err := lease.Take(ctx, p.DB, timerTable, now, scanTimer)
	if err != nil {
		return 0, err
	}
	var work errgroup.Group // without its context: the failure of one timer must not end the others
	work.SetLimit(timerWorkers)
	for _, t := range due {
		if ctx.Err() != nil {
			break // the others run when their leases end
		}
		work.Go(func() error { return p.runDueTimer(ctx, t, now) })
	}
	return len(due), work.Wait()
}

// runDueTimer runs one leased timer, and then deletes it or sets when it is due
// next.
func (p *Policies) runDueTimer(ctx context.Context, t timerRow, now time.Time) error {
	work, cancel := context.WithTimeout(ctx, timerDeadline)
	again, next, err := p.runTimer(work, t.policy, t.key, t.data, now)
	cancel()
	// Only while this instance holds the lease: when the work took longer, another
	// instance may have taken the timer.
	const leased = ` WHERE policy = $1 AND key = $2 AND due_at = $3`
	switch {
	case err != nil:
		level := p.Log.Error
		if errors.Is(err, eventlog.ErrUnavailable) || domain.RefusedWith(err) != "" {
			level = p.Log.Warn
		}
		level("a policy's timer failed and is tried again", "policy", t.policy, "key", t.key, "attempts", t.attempts, "err", err)
		pause := min(timerBackoff, timerPoll<<min(t.attempts-1, 10))
		_, err = p.DB.Exec(ctx, `UPDATE tomato.timers SET due_at = $4`+leased, t.policy, t.key, t.leasedUntil, now.Add(pause))
	case again.IsZero():
		_, err = p.DB.Exec(ctx, `DELETE FROM tomato.timers`+leased, t.policy, t.key, t.leasedUntil)
	default:
		var data []byte
		if data, err = json.Marshal(next); err != nil {
			return err
		}
		_, err = p.DB.Exec(ctx, `UPDATE tomato.timers SET due_at = $4, attempts = 0, data = $5`+leased, t.policy, t.key, t.leasedUntil, again, data)
	}
	return err
}

// runTimer does what is due of one timer. again is when it is due next; zero: never.
// next is what it holds then.
func (p *Policies) runTimer(ctx context.Context, policy, key string, data []byte, now time.Time) (again time.Time, next any, err error) {
	switch policy {
	case refundPolicy:
		var t refundTimer
		if err := json.Unmarshal(data, &t); err != nil {
			return time.Time{}, nil, err
		}
		again, err := p.pollRefund(ctx, key, t, now)
		return again, t, err
	case reconcilePolicy:
		var t reconcileTimer
		if err := json.Unmarshal(data, &t); err != nil {
			return time.Time{}, nil, err
		}
		return p.reconcileAgain(ctx, t, now)
	}
	return time.Time{}, nil, fmt.Errorf("no policy %s has timers", policy)
}
