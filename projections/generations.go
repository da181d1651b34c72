package projections

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Switch makes a live generation the one that answers queries. To go back to the
// generation that served before, switch to that one. It fails if g is not live.
func (m *ReadModels) Switch(ctx context.Context, g Generation) error {
	tag, err := m.DB.Exec(ctx, `UPDATE tomato.read_models SET serving = $2 WHERE model = $1
		AND EXISTS (SELECT FROM tomato.generations WHERE model = $1 AND generation = $2 AND state = 'live')`, g.Model, g.Number)
	if err != nil {
		return fmt.Errorf("switching to %s: %w", g, err)
	}
	if tag.RowsAffected() != 1 {
		return fmt.Errorf("%s is not live", g)
	}
	return m.Refresh(ctx)
}

// Drop removes a generation and its tables. It fails if g serves, and with ErrRunning
// if a rebuild of the read model is running.
func (m *ReadModels) Drop(ctx context.Context, g Generation) error {
	unlock, err := m.lock(ctx, g.Model, false)
	if err != nil {
		return err
	}
	defer unlock()
	return m.drop(ctx, g)
}

func (m *ReadModels) drop(ctx context.Context, g Generation) error {
	// A foreign key from read_models makes this fail if the generation serves.
	if _, err := m.DB.Exec(ctx, `DELETE FROM tomato.generations WHERE model = $1 AND generation = $2`, g.Model, g.Number); err != nil {
		return fmt.Errorf("dropping %s: %w", g, err)
	}
	if err := m.Refresh(ctx); err != nil {
		return err
	}
	// Consumers and queries of other processes notice at their next poll.
	if err := pause(ctx, 2*pollInterval); err != nil {
		return err
	}
	return m.remove(ctx, g)
}

// removeUnfinished removes the generations that killed rebuilds have left in state
// filling. The caller holds the read model's lock, so nobody fills one, and nobody
// reads a filling generation.
func (m *ReadModels) removeUnfinished(ctx context.Context, model string) error {
	rows, err := m.DB.Query(ctx, `DELETE FROM tomato.generations WHERE model = $1 AND state = 'filling' RETURNING generation`, model)
	if err != nil {
		return err
	}
	numbers, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil {
		return err
	}
	for _, n := range numbers {
		if err := m.remove(ctx, Generation{model, n}); err != nil {
			return err
		}
	}
	return nil
}

// remove removes the generation's tables, its checkpoints and its parked rows.
func (m *ReadModels) remove(ctx context.Context, g Generation) error {
	batch := &pgx.Batch{}
	batch.Queue(`DROP SCHEMA IF EXISTS ` + g.Schema() + ` CASCADE`)
	batch.Queue(`DELETE FROM tomato.checkpoints WHERE consumer = $1 AND generation = $2`, g.Model, g.Number)
	batch.Queue(`DELETE FROM tomato.parked WHERE consumer = $1 AND generation = $2`, g.Model, g.Number)
	if err := m.DB.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("removing %s: %w", g, err)
	}
	return nil
}
