package projections

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"

	"tomato/eventlog/pgerr"
)

// Switch makes the standby the generation that serves, and the one that served before the
// standby. It fails with *StateError if g is not the standby, or if it is behind the one
// that serves and does not catch up within seconds: nobody brings it up to date then, and
// queries would show old rows. With force, it switches although g is behind. It fails with
// *UnfinishedError while a rebuild of the read model is unfinished, and with ErrRunning
// while one is running.
func (m *ReadModels) Switch(ctx context.Context, g Generation, force bool) error {
	unlock, err := m.exclusive(ctx, g.Model)
	if err != nil {
		return err
	}
	defer unlock()
	if !force {
		behind, err := m.behind(ctx, g)
		if err != nil {
			return err
		}
		if behind > 0 {
			return &StateError{g, fmt.Sprintf("is %d events behind the generation that serves, and does not catch up. Start `tomato serve` with the role project in the version that made it, and switch then. "+
				"With --force it serves all the same, with old rows, and a position of a rider who was erased more than a day after it stopped stays in it", behind)}
		}
	}
	if err := m.switchTo(ctx, g); err != nil {
		return err
	}
	return m.finishDrops(ctx, g.Model)
}

// switchTo is Switch for a caller that has the lock. It leaves generations that have gone
// to finishDrops.
func (m *ReadModels) switchTo(ctx context.Context, g Generation) error {
	err := pgx.BeginFunc(ctx, m.DB, func(tx pgx.Tx) error {
		var old int
		if err := tx.QueryRow(ctx, `SELECT serving FROM tomato.read_models WHERE model = $1 FOR UPDATE`, g.Model).Scan(&old); err != nil {
			return err
		}
		if old == g.Number {
			return nil
		}
		tag, err := tx.Exec(ctx, `UPDATE tomato.generations SET state = $3 WHERE model = $1 AND generation = $2 AND state IN ('verified', 'standby')`,
			g.Model, g.Number, StateServing)
		if err != nil {
			return err
		}
		if tag.RowsAffected() != 1 {
			return &StateError{g, fmt.Sprintf("is neither %s nor %s, so it cannot serve", StateVerified, StateStandby)}
		}
		batch := &pgx.Batch{}
		batch.Queue(`UPDATE tomato.generations SET state = $2 WHERE model = $1 AND state = 'standby'`, g.Model, StateGone)
		batch.Queue(`UPDATE tomato.generations SET state = $3 WHERE model = $1 AND generation = $2`, g.Model, old, StateStandby)
		batch.Queue(`UPDATE tomato.read_models SET serving = $2 WHERE model = $1`, g.Model, g.Number)
		return tx.SendBatch(ctx, batch).Close()
	})
	if err != nil {
		return fmt.Errorf("switching to %s: %w", g, err)
	}
	return m.Refresh(ctx)
}

// Drop removes a generation with its tables, its checkpoints, its parked events and its
// consumer group. It fails if g serves or does not exist, and with ErrRunning if a
// rebuild of the read model is running. Queries that use g go on with the generation
// that serves.
func (m *ReadModels) Drop(ctx context.Context, g Generation) error {
	l, err := m.lock(ctx, g.Model, false)
	if err != nil {
		return err
	}
	defer l.unlock()
	return m.drop(ctx, g)
}

// drop is Drop for a caller that has the lock.
func (m *ReadModels) drop(ctx context.Context, g Generation) error {
	tag, err := m.DB.Exec(ctx, `UPDATE tomato.generations g SET state = $3 WHERE model = $1 AND generation = $2
		AND NOT EXISTS (SELECT FROM tomato.read_models r WHERE r.model = g.model AND r.serving = g.generation)`, g.Model, g.Number, StateGone)
	if err != nil {
		return fmt.Errorf("dropping %s: %w", g, err)
	}
	if tag.RowsAffected() != 1 {
		return &StateError{g, "cannot be dropped: it serves, or it does not exist"}
	}
	return m.finishDrops(ctx, g.Model)
}

// finishDrops removes the generations that have gone, when the consumers and queries of
// all processes have had the time to notice.
func (m *ReadModels) finishDrops(ctx context.Context, model string) error {
	if err := m.Refresh(ctx); err != nil {
		return err
	}
	if !m.seen.Load().hasGone(model) {
		return nil
	}
	if err := pause(ctx, 2*pollInterval); err != nil {
		return err
	}
	return m.removeGone(ctx, model)
}

// removeGone removes the generations of the read model whose state is gone. The caller
// has the read model's lock.
func (m *ReadModels) removeGone(ctx context.Context, model string) error {
	rows, err := m.DB.Query(ctx, `SELECT generation FROM tomato.generations WHERE model = $1 AND state = 'gone'`, model)
	if err != nil {
		return err
	}
	numbers, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil || len(numbers) == 0 {
		return err
	}
	for _, n := range numbers {
		err := m.remove(ctx, Generation{model, n})
		if pgerr.Conflict(err) {
			m.log().Warn("a generation that has gone is not removed yet, because something else uses its tables; `tomato serve` tries again", "generation", Generation{model, n}.String(), "err", err)
			continue
		}
		if err != nil {
			return fmt.Errorf("removing %s: %w", Generation{model, n}, err)
		}
	}
	if err := m.Refresh(ctx); err != nil {
		return err
	}
	if err := m.removeGroups(ctx, model); err != nil {
		m.log().Warn("consumer groups of dropped generations are left; the next rebuild of the read model tries again", "model", model, "err", err)
	}
	return nil
}

// dropLockTimeout is how long the removal of a schema waits for the locks of its tables.
// It is shorter than the time after which Postgres looks for deadlocks, so that a query
// which has some of the locks and waits for others goes on.
const dropLockTimeout = 200 * time.Millisecond

// dropLimit is how long the removal is tried while something else uses the tables, such as
// a dump of the database.
const dropLimit = 10 * time.Second

// remove removes the generation's schema and its row. The checkpoints and the parked
// events go with the row (a foreign key), and cannot come back. It fails with a conflict
// if the tables are in use for dropLimit.
func (m *ReadModels) remove(ctx context.Context, g Generation) error {
	for until := time.Now().Add(dropLimit); ; {
		err := pgx.BeginFunc(ctx, m.DB, func(tx pgx.Tx) error {
			batch := &pgx.Batch{}
			batch.Queue(unboundedSQL, true)
			batch.Queue(fmt.Sprintf(`SET LOCAL lock_timeout = %d`, dropLockTimeout.Milliseconds()))
			batch.Queue(`DROP SCHEMA IF EXISTS ` + g.Schema() + ` CASCADE`)
			batch.Queue(`SET LOCAL lock_timeout = 0`)
			batch.Queue(`DELETE FROM tomato.generations WHERE model = $1 AND generation = $2 AND state = 'gone'`, g.Model, g.Number)
			return tx.SendBatch(ctx, batch).Close()
		})
		if !pgerr.Conflict(err) || time.Now().After(until) {
			return err
		}
		if err := pause(ctx, dropLockTimeout/2); err != nil {
			return err
		}
	}
}

// removeGroups deletes the Kafka groups of generations that do not exist any more. A
// group that still has members cannot be deleted; its consumers leave it within seconds.
func (m *ReadModels) removeGroups(ctx context.Context, model string) error {
	client, err := m.Kafka.NewClient()
	if err != nil {
		return err
	}
	defer client.Close()
	adm := kadm.NewClient(client)
	for try := 0; ; try++ {
		left, err := m.leftGroups(ctx, adm, model)
		if err != nil || len(left) == 0 {
			return err
		}
		deleted, err := adm.DeleteGroups(ctx, left...)
		if err == nil {
			err = deleted.Error()
		}
		if err == nil || try == groupTries {
			return err
		}
		if err := pause(ctx, pollInterval); err != nil {
			return err
		}
	}
}

// groupTries is how often the deletion of consumer groups is tried again.
const groupTries = 10

// leftGroups returns the names of the groups of the read model's generations that do not
// exist any more.
func (m *ReadModels) leftGroups(ctx context.Context, adm *kadm.Client, model string) ([]string, error) {
	listed, err := adm.ListGroups(ctx)
	if err != nil {
		return nil, err
	}
	known := m.seen.Load()
	var last int
	err = m.DB.QueryRow(ctx, `SELECT last FROM tomato.read_models WHERE model = $1`, model).Scan(&last)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var left []string
	for n := 1; n <= last; n++ {
		g := Generation{model, n}
		if _, exists := known.all[g]; exists {
			continue
		}
		if _, is := listed[g.Consumer().Group()]; is {
			left = append(left, g.Consumer().Group())
		}
	}
	slices.SortFunc(left, strings.Compare)
	return left, nil
}

func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
