package projections

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"tomato/eventlog"
)

// verifyPause is the pause before the serving generation is looked at again, while it is
// behind the one that is compared with it.
const verifyPause = time.Second

// verifyTries is how often it is looked at, at most.
const verifyTries = 30

// fewEvents are so few that they are folded at once while a transaction sees the serving
// rows as of one moment.
const fewEvents = 200

// catchUp folds up to where the serving generation is, again and again until few events
// are left, or until it comes no nearer. Postgres keeps all old versions of rows while a
// transaction sees them, so the bulk of the events is folded before that begins.
func (r *rebuild) catchUp(ctx context.Context) error {
	for last := int64(-1); ; {
		to, left := map[eventlog.TopicPartition]int64{}, int64(0)
		if err := r.again(ctx, func(ctx context.Context) error {
			serving, err := checkpointsOf(ctx, r.m.DB, r.before)
			if err != nil {
				return err
			}
			passed, err := checkpointsOf(ctx, r.m.DB, r.g)
			if err != nil {
				return err
			}
			left = 0
			for tp := range r.targets {
				to[tp] = serving[tp]
				left += max(0, serving[tp]-passed[tp])
			}
			return nil
		}); err != nil {
			return err
		}
		if last < 0 { // only once: the targets of a phase do not change
			r.meter.begin(PhaseCatchingUp, to)
		}
		if left <= fewEvents || last >= 0 && left > last/2 {
			return nil
		}
		last = left
		if err := r.foldTo(ctx, to, false); err != nil {
			return fmt.Errorf("catching up: %w", err)
		}
	}
}

// verify compares the rows of the new generation with those that serve. Both must have
// passed the same events: it reads the serving rows as of one moment, brings the new
// generation to exactly the positions that the serving one had then, and compares. If the
// serving one has passed nothing, nothing is compared. If it stays behind, verify fails,
// unless differences are accepted.
func (r *rebuild) verify(ctx context.Context) (c Comparison, err error) {
	if err := r.catchUp(ctx); err != nil {
		return c, err
	}
	r.hurry.Store(true)
	defer r.hurry.Store(false)
	for try := 1; ; try++ {
		behind := false
		err := r.again(ctx, func(ctx context.Context) error {
			return r.m.snapshot(ctx, func(serving pgx.Tx) (err error) {
				c, behind, err = r.verifyAt(ctx, serving)
				return err
			})
		})
		if err != nil || !behind {
			return c, err
		}
		if r.o.AcceptDifferences {
			c.Skipped = fmt.Sprintf("%s has not passed the events that %s has", r.before, r.g)
			return c, nil
		}
		if try == verifyTries {
			return c, fmt.Errorf("the rows cannot be compared, because %s, which serves, has not passed the events that %s has, and nobody brings it up to date: start `tomato serve` with the role project in the version that made it, or run `tomato rebuild %s --resume --accept-differences` to switch without a comparison",
				r.before, r.g, r.g.Model)
		}
		if err := pause(ctx, verifyPause); err != nil {
			return c, err
		}
	}
}

// verifyAt is verify at the moment that the transaction sees. behind reports that the
// serving generation is behind the new one, so that nothing can be compared.
func (r *rebuild) verifyAt(ctx context.Context, serving pgx.Tx) (c Comparison, behind bool, err error) {
	vector, err := checkpointsOf(ctx, serving, r.before)
	if err != nil {
		return c, false, err
	}
	passed, err := checkpointsOf(ctx, r.m.DB, r.g)
	if err != nil {
		return c, false, err
	}
	to, nothing := map[eventlog.TopicPartition]int64{}, true
	for tp := range r.targets {
		to[tp] = vector[tp]
		nothing = nothing && vector[tp] == 0
		behind = behind || passed[tp] > vector[tp]
	}
	switch {
	case nothing:
		return Comparison{Skipped: fmt.Sprintf("%s has passed no event, so there is nothing to compare", r.before)}, false, nil
	case behind:
		return Comparison{}, true, nil
	}
	if err := r.foldTo(ctx, to, false); err != nil {
		return c, false, fmt.Errorf("catching up: %w", err)
	}
	err = r.m.snapshot(ctx, func(rebuilt pgx.Tx) error {
		var rows, n int64
		for _, part := range foldedParts(r.g.Model) {
			if err := rebuilt.QueryRow(ctx, `SELECT count(*) FROM `+part.from(r.g)).Scan(&n); err != nil {
				return err
			}
			rows += n
		}
		r.meter.beginCount(PhaseVerifying, rows)
		c, err = compare(ctx, side{r.before, serving}, side{r.g, rebuilt}, r.meter.count)
		return err
	})
	if err != nil {
		return c, false, fmt.Errorf("comparing %s with %s: %w", r.g, r.before, err)
	}
	return c, false, nil
}
