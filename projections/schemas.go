package projections

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"tomato/migrations"
)

// Generations returns the generations of all read models, sorted by model and number,
// without how far they are. It needs no brokers.
func (m *ReadModels) Generations(ctx context.Context) ([]Status, error) {
	if err := m.Refresh(ctx); err != nil {
		return nil, err
	}
	known, due := m.seen.Load(), m.RebuildDue()
	var out []Status
	for g, is := range known.all {
		out = append(out, Status{Generation: g, State: is.state, Fold: is.fold, Due: is.state == StateServing && slices.Contains(due, g.Model)})
	}
	slices.SortFunc(out, func(a, b Status) int { return cmp.Or(cmp.Compare(a.Model, b.Model), cmp.Compare(a.Number, b.Number)) })
	return out, nil
}

// MakeMissing makes the first generation of each read model that has none, with empty
// tables, and returns those that it has made. It needs no brokers: Ensure checks, before
// a consumer begins to fill a generation, that the logs still have their beginnings.
// Several processes may call it at once.
func (m *ReadModels) MakeMissing(ctx context.Context) (made []Generation, err error) {
	if err := m.nameUnknownFolds(ctx); err != nil {
		return nil, err
	}
	if err := m.Refresh(ctx); err != nil {
		return nil, err
	}
	known := m.seen.Load()
	for _, model := range Models() {
		if _, ok := known.serving[model]; ok {
			continue
		}
		if err := m.first(ctx, model); err != nil {
			return made, fmt.Errorf("read model %s: %w", model, err)
		}
		made = append(made, Generation{model, 1})
	}
	return made, m.Refresh(ctx)
}

// checkRights fails if the database user may not write the generations that this process
// uses.
func (m *ReadModels) checkRights(ctx context.Context) error {
	var schemas []string
	for g, is := range m.seen.Load().all {
		if is.state.keptUp() {
			schemas = append(schemas, g.Schema())
		}
	}
	return migrations.CheckRights(ctx, m.DB, schemas...)
}

// Orphans returns the schemas that look like those of generations but belong to none, as
// an older build may have left them. Nothing uses them.
func (m *ReadModels) Orphans(ctx context.Context) ([]Generation, error) {
	if err := m.Refresh(ctx); err != nil {
		return nil, err
	}
	rows, err := m.DB.Query(ctx, `SELECT n[1], n[2]::int FROM pg_namespace, regexp_match(nspname, $1) AS n WHERE n IS NOT NULL ORDER BY 1, 2`,
		"^("+strings.Join(slices.Sorted(maps.Keys(registry)), "|")+")_g([1-9][0-9]{0,8})$")
	if err != nil {
		return nil, err
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (g Generation, err error) {
		return g, row.Scan(&g.Model, &g.Number)
	})
	known := m.seen.Load().all
	return slices.DeleteFunc(all, func(g Generation) bool { _, ok := known[g]; return ok }), err
}

// DropOrphan drops a schema that Orphans has returned, and all that is in it. It fails
// with ErrRunning if another process is making or dropping generations of the read model,
// and if g is a generation.
func (m *ReadModels) DropOrphan(ctx context.Context, g Generation) error {
	l, err := m.lock(ctx, g.Model, false)
	if err != nil {
		return err
	}
	defer l.unlock()
	orphans, err := m.Orphans(ctx) // again, under the lock
	if err != nil {
		return err
	}
	if !slices.Contains(orphans, g) {
		return errors.New(g.String() + " is not without a generation")
	}
	_, err = m.DB.Exec(ctx, `DROP SCHEMA `+g.Schema()+` CASCADE`)
	return err
}
