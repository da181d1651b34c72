package projections

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// tendEvery is the longest time between two rounds of TendRiders.
	tendEvery = 10 * time.Second
	// staleMargin is added to the age from which a position is stale, because the clocks
	// of the processes that search may be behind the clock of this one.
	staleMargin = time.Minute
	// staleAtOnce is how many rows one transaction marks. Whoever reports a position of
	// one of these riders waits for that transaction.
	staleAtOnce = 1000
	// fewDeadRows are too few for a vacuum, however small the table is.
	fewDeadRows = 1000
)

// TendRiders keeps searches for riders fast, until ctx ends. In each round it does two
// things for the generations that this process keeps up to date. A process that projects
// runs it once, beside Follow, and one process at a time does the work. It logs the first
// of several failures in a row.
//
// It takes riders whose last position is older than maxAge out of the index that searches
// walk. No search finds them anyway; without this, each search would walk past everybody
// who has gone home without going offline. The next position of a rider puts the rider
// back, whatever its age. maxAge must be the largest age that any process searches with.
//
// It vacuums the positions when more rows are dead than live. Each position of a free
// rider leaves a dead row and a dead entry in the index, past which searches walk. With
// 20,000 positions a second, these are ten times as many as the riders before autovacuum
// looks at the table again, which it does once a minute by default: searches then took
// several times as long, and the index became four times as large.
func (m *ReadModels) TendRiders(ctx context.Context, maxAge time.Duration) {
	tick := time.NewTicker(min(max(maxAge/5, time.Second), tendEvery))
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := m.tendRiders(ctx, time.Now().Add(-maxAge-staleMargin))
		if err != nil && !failing && ctx.Err() == nil {
			m.log().Warn("searches for riders become slower, because riders with old positions cannot be hidden, or dead rows not be removed", "err", err)
		}
		failing = err != nil
	}
}

// tendRiders does one round. Positions that were recorded before the given time are stale.
func (m *ReadModels) tendRiders(ctx context.Context, before time.Time) error {
	now, _, err := m.changed(ctx)
	if err != nil {
		return err
	}
	for g, is := range now.all {
		if g.Model != Riders || !m.projects(g, is) {
			continue
		}
		for more := true; more && err == nil; {
			more, err = m.hideSome(ctx, g, before)
		}
		if err == nil {
			err = m.vacuumPositions(ctx, g)
		}
		if err != nil && !undefined(err) { // undefined: the generation was dropped
			return err
		}
	}
	return nil
}

// vacuumPositions vacuums rider_positions if most of its rows are dead, unless somebody
// else is doing that. It does not shorten the file, because that would lock the table.
func (m *ReadModels) vacuumPositions(ctx context.Context, g Generation) error {
	var due bool
	err := m.DB.QueryRow(ctx, `SELECT coalesce((SELECT n_dead_tup > n_live_tup + $2 FROM pg_stat_user_tables WHERE schemaname = $1 AND relname = 'rider_positions'), false)`,
		g.Schema(), fewDeadRows).Scan(&due)
	if err != nil || !due {
		return err
	}
	_, err = m.DB.Exec(ctx, `VACUUM (SKIP_LOCKED, TRUNCATE false) `+g.Schema()+`.rider_positions`)
	return err
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
