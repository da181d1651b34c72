package projections

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// staleMargin is added to the age from which a position is stale, because the clocks
	// of the processes that search may be behind the clock of this one.
	staleMargin = time.Minute
	// staleAtOnce is how many rows one transaction marks. Whoever reports a position of
	// one of these riders waits for that transaction.
	staleAtOnce = 1000
	// staleEvery is the longest time between two rounds.
	staleEvery = 30 * time.Second
)

// HideStaleRiders takes riders whose last position is older than maxAge out of the index
// that searches walk, until ctx ends. No search finds them anyway; without this, each
// search would walk past everybody who has gone home without going offline. The next
// position of a rider puts the rider back, whatever its age. maxAge must be the largest
// age that any process searches with. A process that projects runs it once, beside
// Follow, and one process at a time does the work. It logs the first of several failures
// in a row.
func (m *ReadModels) HideStaleRiders(ctx context.Context, maxAge time.Duration) {
	tick := time.NewTicker(min(max(maxAge/5, time.Second), staleEvery))
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := m.hideStale(ctx, time.Now().Add(-maxAge-staleMargin))
		if err != nil && !failing && ctx.Err() == nil {
			m.log().Warn("riders with old positions cannot be taken out of the index of searches", "err", err)
		}
		failing = err != nil
	}
}

// hideStale marks the positions that were recorded before the given time, in the
// generations that this process keeps up to date. It does nothing if another process is
// at it.
func (m *ReadModels) hideStale(ctx context.Context, before time.Time) error {
	now, _, err := m.changed(ctx)
	if err != nil {
		return err
	}
	for g, is := range now.all {
		if g.Model != Riders || !m.projects(g, is) {
			continue
		}
		for more := true; more; {
			if more, err = m.hideSome(ctx, g, before); err != nil && !undefined(err) {
				return err
			}
		}
	}
	return nil
}

// hideSome marks staleAtOnce rows at most. It reports whether there may be more.
//
// It cannot hide a new position. It skips rows that somebody else has locked, and Postgres
// checks the condition again on the newest version of each row that it locks. For the
// same reason it waits for nobody and so has no part in a deadlock.
func (m *ReadModels) hideSome(ctx context.Context, g Generation, before time.Time) (more bool, err error) {
	err = pgx.BeginFunc(ctx, m.DB, func(tx pgx.Tx) error {
		var mine bool
		if err := tx.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock(hashtextextended('tomato stale '||$1, 0))`, g.Schema()).Scan(&mine); err != nil || !mine {
			return err
		}
		done, err := tx.Exec(ctx, `UPDATE `+g.Schema()+`.rider_positions SET stale = true WHERE rider_id = ANY (ARRAY(
			SELECT rider_id FROM `+g.Schema()+`.rider_positions WHERE eligible AND NOT stale AND recorded_at < $1 LIMIT $2 FOR UPDATE SKIP LOCKED))`,
			before, staleAtOnce)
		more = done.RowsAffected() == staleAtOnce
		return err
	})
	return more && err == nil, err
}
