package projections

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"tomato/eventlog"
	"tomato/eventlog/pgerr"
)

// foldWorkers is how many partitions a rebuild folds at once.
const foldWorkers = 4

// outageLimit is how long a rebuild waits for a database or brokers that do not answer.
const outageLimit = 2 * time.Minute

// diskFull is what Postgres answers when it has no more room.
const diskFull = "53100"

// bounds are the answers that do not change when one waits: no more room, a statement
// that was canceled because of a limit of time or by hand, more temporary files than a
// session may have.
var bounds = []string{diskFull, "57014", "53400"}

// foldTo folds every partition up to its target, foldWorkers at a time. The caller has
// begun the phase.
func (r *rebuild) foldTo(ctx context.Context, targets map[eventlog.TopicPartition]int64, bulk bool) error {
	eg, ctx := errgroup.WithContext(ctx)
	eg.SetLimit(foldWorkers)
	for _, tp := range slices.SortedFunc(maps.Keys(targets), func(a, b eventlog.TopicPartition) int { return int(a.Partition - b.Partition) }) {
		eg.Go(func() error { return r.folds[tp].to(ctx, targets[tp], bulk) })
	}
	err := eg.Wait()
	r.meter.tell()
	return err
}

// throttle waits until the next record may be read.
func (r *rebuild) throttle(ctx context.Context) error {
	if r.limiter == nil || r.hurry.Load() {
		return nil
	}
	return r.limiter.Wait(ctx)
}

// again runs a step, and runs it again while the database or the brokers do not answer,
// for outageLimit at most without any progress. Before that it takes the lock again, which
// a restart of the database has released.
func (r *rebuild) again(ctx context.Context, step func(ctx context.Context) error) error {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 100*time.Millisecond, 3*time.Second
	var since time.Time // of the outage
	moves := r.meter.moves.Load()
	for {
		err := step(ctx)
		if err == nil || ctx.Err() != nil || !outage(err) {
			return err
		}
		if now := r.meter.moves.Load(); since.IsZero() || now != moves {
			since, moves = time.Now(), now
			wait.Reset()
		}
		if time.Since(since) > outageLimit {
			return fmt.Errorf("no answer for %v: %w", outageLimit, err)
		}
		r.m.log().Warn("a rebuild waits", "generation", r.g.String(), "err", err)
		if err := pause(ctx, wait.NextBackOff()); err != nil {
			return err
		}
		if err := r.holdLock(ctx); err != nil {
			return err
		}
	}
}

// outage reports whether a step failed because something did not answer, so that it may
// succeed later.
func outage(err error) bool {
	if slices.Contains(bounds, pgerr.Code(err)) || errors.Is(err, eventlog.ErrPoison) {
		return false
	}
	return pgerr.Unavailable(err) || pgerr.Conflict(err) || pgerr.Code(err) == "" && (errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF))
}

// holdLock takes the lock again if the database has lost it, once the database answers.
func (r *rebuild) holdLock(ctx context.Context) error {
	r.lockMu.Lock()
	defer r.lockMu.Unlock()
	if err := r.lock.hold(ctx); errors.Is(err, ErrRunning) {
		return err
	}
	return nil // the next step shows whether the database answers
}

// takeIndexes drops the indexes that a fill does not need, which are all but the
// primary keys by which upserts find their rows (those of tables with a column id). It
// stores the statements that create them again. To create an index for a full table costs
// a fraction of what it costs to keep it while the table is filled. It does nothing if
// the statements are stored already, as when the answer of the commit was lost.
func (r *rebuild) takeIndexes(ctx context.Context) error {
	return pgx.BeginFunc(ctx, r.m.DB, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, `SELECT indexes FROM tomato.generations WHERE model = $1 AND generation = $2 FOR UPDATE`, r.g.Model, r.g.Number).Scan(&r.indexes)
		if err != nil || r.indexes != nil {
			return err
		}
		rows, err := tx.Query(ctx, `
			SELECT CASE WHEN c.oid IS NULL THEN pg_get_indexdef(i.indexrelid)
			            ELSE format('ALTER TABLE %s ADD CONSTRAINT %I %s', i.indrelid::regclass, c.conname, pg_get_constraintdef(c.oid)) END,
			       CASE WHEN c.oid IS NULL THEN format('DROP INDEX %s', i.indexrelid::regclass)
			            ELSE format('ALTER TABLE %s DROP CONSTRAINT %I', i.indrelid::regclass, c.conname) END
			FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid
			LEFT JOIN pg_constraint c ON c.conindid = i.indexrelid
			WHERE t.relnamespace = $1::regnamespace AND t.relname = ANY ($2)
			  AND NOT (i.indisprimary AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = t.oid AND a.attname = 'id'))`,
			r.g.Schema(), foldedNames(r.g.Model))
		if err != nil {
			return err
		}
		r.indexes = []string{}
		batch := &pgx.Batch{}
		var add, drop string
		if _, err := pgx.ForEachRow(rows, []any{&add, &drop}, func() error {
			r.indexes = append(r.indexes, add)
			batch.Queue(drop)
			return nil
		}); err != nil {
			return err
		}
		slices.Sort(r.indexes) // ALTER TABLE comes before CREATE INDEX; it locks another table than they do
		batch.Queue(`UPDATE tomato.generations SET indexes = $3 WHERE model = $1 AND generation = $2`, r.g.Model, r.g.Number, r.indexes)
		return tx.SendBatch(ctx, batch).Close()
	})
}

// makeIndexes creates the indexes that are missing, two at a time. Each is created in one
// transaction with the note that it is there.
func (r *rebuild) makeIndexes(ctx context.Context) error {
	r.meter.beginIndexes(len(r.indexes))
	stop := r.meter.every(func() {
		if err := r.indexProgress(ctx); err != nil && ctx.Err() == nil {
			r.m.log().Debug("the progress of an index cannot be read", "err", err)
		}
	})
	defer stop()
	eg, building := errgroup.WithContext(ctx) // not ctx, which the meter reads meanwhile
	eg.SetLimit(2)
	for _, sql := range r.indexes {
		eg.Go(func() error {
			err := r.again(building, func(ctx context.Context) error {
				return r.m.unbounded(ctx, func(tx pgx.Tx) error {
					var missing bool // it is there if the answer of the commit was lost
					err := tx.QueryRow(ctx, `SELECT $3 = ANY (indexes) FROM tomato.generations WHERE model = $1 AND generation = $2`, r.g.Model, r.g.Number, sql).Scan(&missing)
					if err != nil || !missing {
						return err
					}
					if _, err := tx.Exec(ctx, sql); err != nil {
						return err
					}
					_, err = tx.Exec(ctx, `UPDATE tomato.generations SET indexes = array_remove(indexes, $3) WHERE model = $1 AND generation = $2`, r.g.Model, r.g.Number, sql)
					return err
				})
			})
			if err == nil {
				r.meter.indexMade()
			}
			return err
		})
	}
	return eg.Wait()
}

// indexProgress tells the meter how far Postgres is with the indexes that are being
// created. An index is built in two passes: the table is scanned, and then what was found
// is written in order.
func (r *rebuild) indexProgress(ctx context.Context) error {
	var underWay float64
	err := r.m.DB.QueryRow(ctx, `
		SELECT coalesce(sum(CASE WHEN p.tuples_total > 0 THEN 0.5 + 0.5 * p.tuples_done / p.tuples_total
		                         WHEN p.blocks_total > 0 THEN 0.5 * p.blocks_done / p.blocks_total ELSE 0 END), 0)::float8
		FROM pg_stat_progress_create_index p JOIN pg_class t ON t.oid = p.relid
		WHERE t.relnamespace = to_regnamespace($1)`, r.g.Schema()).Scan(&underWay)
	if err == nil {
		r.meter.indexing(underWay)
	}
	return err
}

// checkpointsOf returns the positions that a generation has reached.
func checkpointsOf(ctx context.Context, db querier, g Generation) (map[eventlog.TopicPartition]int64, error) {
	rows, err := db.Query(ctx, `SELECT topic, partition, next_offset FROM tomato.checkpoints WHERE consumer = $1 AND generation = $2`, g.Model, g.Number)
	if err != nil {
		return nil, err
	}
	passed := map[eventlog.TopicPartition]int64{}
	var tp eventlog.TopicPartition
	var next int64
	_, err = pgx.ForEachRow(rows, []any{&tp.Topic, &tp.Partition, &next}, func() error {
		passed[tp] = next
		return nil
	})
	return passed, err
}

// foldedTopics returns the topics whose tables a rebuild folds.
func foldedTopics(model string) []string {
	return slices.Sorted(maps.Keys(foldedTables(model)))
}

// targetsText returns targets as the column targets has them.
func targetsText(targets map[eventlog.TopicPartition]int64) map[string]int64 {
	text := make(map[string]int64, len(targets))
	for tp, o := range targets {
		text[fmt.Sprintf("%s/%d", tp.Topic, tp.Partition)] = o
	}
	return text
}

func parseTargets(text map[string]int64) (map[eventlog.TopicPartition]int64, error) {
	targets := make(map[eventlog.TopicPartition]int64, len(text))
	for name, o := range text {
		topic, number, _ := strings.Cut(name, "/")
		p, err := strconv.ParseInt(number, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("the target %q names no partition", name)
		}
		targets[eventlog.TopicPartition{Topic: topic, Partition: int32(p)}] = o
	}
	return targets, nil
}
