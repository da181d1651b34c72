package projections

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Switch lets a live generation serve, the one before included: a roll back.
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

// Drop removes a generation that does not serve.
func (m *ReadModels) Drop(ctx context.Context, g Generation) error {
	unlock, err := m.lock(ctx, g.Model, false)
	if err != nil {
		return err
	}
	defer unlock()
	return m.drop(ctx, g)
}

func (m *ReadModels) drop(ctx context.Context, g Generation) error {
	// A serving one is held by its row in read_models.
	if _, err := m.DB.Exec(ctx, `DELETE FROM tomato.generations WHERE model = $1 AND generation = $2`, g.Model, g.Number); err != nil {
		return fmt.Errorf("dropping %s: %w", g, err)
	}
	if err := m.Refresh(ctx); err != nil {
		return err
	}
	// Consumers and queries of other processes notice within a poll.
	if err := pause(ctx, 2*pollInterval); err != nil {
		return err
	}
	return m.remove(ctx, g)
}

// removeUnfinished removes what rebuilds that were killed have left. Nobody
// follows a filling generation, and the lock says that nobody fills it.
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

// remove removes tables, checkpoints and parked rows.
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
