package projections

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// ErrTooYoung says that history is too young to be removed.
var ErrTooYoung = fmt.Errorf("only history of more than %d days ago can be removed: orders of that age are closed", historyDays)

// historyDays is how old an aggregate must be at least before its history can be removed.
const historyDays = 60

// historyBatch is how many events are removed in one transaction.
const historyBatch = 20_000

// TrimHistory removes the history of the aggregates of a read model that were made before
// a time, in all generations, and keeps it out of generations that a rebuild makes later.
// Rows, and so lists, stay as they are, and the log keeps everything: with an earlier
// time, the next rebuild brings the history back from there. It removes some thousand
// events at a time, tells progress how many there were so far, and can be repeated after
// an error. It fails with ErrTooYoung, and otherwise as Skip does.
//
// Aggregates are ordered by their ids, which begin with the time at which they were made
// (UUIDv7).
func (m *ReadModels) TrimHistory(ctx context.Context, model string, before time.Time, progress func(removed int64)) (removed int64, err error) {
	if _, ok := registry[model]; !ok {
		return 0, noModel(model)
	}
	tables := historyTables(model)
	if len(tables) == 0 {
		return 0, fmt.Errorf("%w: %s keeps no history of events", ErrNoEvents, model)
	}
	if before.After(time.Now().AddDate(0, 0, -historyDays)) {
		return 0, ErrTooYoung
	}
	from := firstID(before)
	unlock, err := m.exclusive(ctx, model)
	if err != nil {
		return 0, err
	}
	defer unlock()
	if _, err := m.DB.Exec(ctx, `UPDATE tomato.read_models SET history_from = $2 WHERE model = $1`, model, from); err != nil {
		return 0, err
	}
	// Transactions that began before that may still add history. They hold checkpoints.
	if _, err := m.DB.Exec(ctx, `SELECT FROM tomato.checkpoints WHERE consumer = $1 AND generation > 0 ORDER BY generation, topic, partition FOR UPDATE`, model); err != nil {
		return 0, err
	}
	if err := m.Refresh(ctx); err != nil {
		return 0, err
	}
	for g, is := range m.seen.Load().all {
		if g.Model != model || !is.state.keptUp() {
			continue
		}
		for _, h := range tables {
			for last := ""; last < from; {
				n, next, err := m.trimBatch(ctx, g, h, last, from)
				if err != nil {
					return removed, fmt.Errorf("removing history of %s: %w", g, err)
				}
				removed, last = removed+n, next
				progress(removed)
			}
		}
	}
	return removed, nil
}

// trimBatch removes the history of aggregates after last and before from, up to next.
func (m *ReadModels) trimBatch(ctx context.Context, g Generation, h history, last, from string) (removed int64, next string, err error) {
	table := g.Schema() + `.` + h.table
	err = m.DB.QueryRow(ctx, `SELECT `+h.idColumn+` FROM `+table+` WHERE `+h.idColumn+` > $1 AND `+h.idColumn+` < $2 ORDER BY `+h.idColumn+` OFFSET $3 LIMIT 1`,
		last, from, historyBatch).Scan(&next)
	if errors.Is(err, pgx.ErrNoRows) {
		next, err = from, nil
	}
	if err != nil {
		return 0, "", err
	}
	tag, err := m.DB.Exec(ctx, `DELETE FROM `+table+` WHERE `+h.idColumn+` > $1 AND `+h.idColumn+` <= $2 AND `+h.idColumn+` < $3`, last, next, from)
	return tag.RowsAffected(), next, err
}

// firstID returns the smallest id that an aggregate can have that was made at that time.
func firstID(at time.Time) string {
	hex := fmt.Sprintf("%012x", max(0, at.UnixMilli()))
	return hex[:8] + "-" + hex[8:]
}

// historyTables returns the tables of history of a read model.
func historyTables(model string) (tables []history) {
	for _, t := range foldedTables(model) {
		if h := t.events(); h.table != "" {
			tables = append(tables, h)
		}
	}
	return tables
}

func (a *aggregates[S, E]) events() history { return a.history }

// historyFrom returns the id from which on the read model keeps history; "": of all.
func historyFrom(ctx context.Context, db querier, model string) (string, error) {
	rows, err := db.Query(ctx, `SELECT history_from FROM tomato.read_models WHERE model = $1`, model)
	if err != nil {
		return "", err
	}
	from, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[string])
	if errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	return from, err
}

// ParseMonth reads the beginning of a month, such as 2026-01, or of a day.
func ParseMonth(text string) (time.Time, error) {
	for _, layout := range []string{"2006-01", time.DateOnly} {
		if t, err := time.Parse(layout, strings.TrimSpace(text)); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no month: expected YYYY-MM or YYYY-MM-DD", text)
}
