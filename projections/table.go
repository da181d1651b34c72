package projections

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"tomato/domain"
	"tomato/eventlog"
)

// A rowWriter is the handler of the consumer of one generation. It is safe for
// concurrent use.
type rowWriter struct {
	model  string
	tables map[string]table // by topic
	g      Generation
}

// write writes events, those of each partition in offset order, to the generation's
// tables within tx. It fails with eventlog.ErrUnavailable if the generation was dropped and
// its consumer has not noticed yet: nothing is wrong with the events then.
func (w *rowWriter) write(ctx context.Context, tx pgx.Tx, events []eventlog.Event) error {
	for len(events) > 0 {
		n := 1
		for n < len(events) && events[n].Topic == events[0].Topic {
			n++
		}
		t := w.tables[events[0].Topic]
		if t == nil {
			return eventlog.Poison(fmt.Errorf("%s is no topic of %s", events[0].Topic, w.model))
		}
		if err := t.apply(ctx, tx, w.g, events[:n]); err != nil {
			if undefined(err) {
				return eventlog.Unavailable(err)
			}
			return err
		}
		events = events[n:]
	}
	return nil
}

// A table writes the events of one topic to rows. It is safe for concurrent use.
type table interface {
	// apply writes events, those of each partition in offset order, to the generation g
	// within tx.
	apply(ctx context.Context, tx pgx.Tx, g Generation, events []eventlog.Event) error
}

// A foldedTable is a table whose rows can be folded from the log again. A rebuild
// fills it. The other tables are copied, see readModel.copyUnfolded.
type foldedTable interface {
	table
	// filler begins the fold of one partition for a rebuild, or goes on with one that
	// has begun: then the table may have rows of the partition. skipped are the skipped
	// events of the read model. Aggregates before historyFrom get no history.
	filler(g Generation, begun bool, skipped skips, historyFrom string) filler
	// events returns the table of the history; its name is "" if there is none.
	events() history
	// replace makes the row and the history of one aggregate again of its events, within
	// tx, and returns the version that the row has then, or 0 if there is none.
	replace(ctx context.Context, tx pgx.Tx, g Generation, key string, events []eventlog.Event) (version int64, err error)
	// names returns the tables in the database that it writes. They are equal in
	// two generations that have passed the same events.
	names() []string
}

// aggregates is the table of one kind of aggregate. It has a row per aggregate.
// A row has the state as JSON and the columns that queries need, which are all
// made from the state.
type aggregates[S, E any] struct {
	table   string
	decode  func(eventType string, version int, data []byte) (E, error)
	evolve  func(S, E, time.Time) S
	columns []column[S] // those beside id, version and state
	history history     // zero: none
	// after, if set, queues statements that run after the one that writes the rows of
	// ids, which are sorted.
	after func(batch *pgx.Batch, schema string, ids []string)
}

// history is a second table of the aggregates, which has every event as it came.
type history struct {
	table    string // "" for none
	idColumn string // the column that has the aggregate's id
}

// columns returns the columns in the order in which they are written.
func (h history) columns() string {
	return h.idColumn + `, version, type, data_version, at, actor, data`
}

// A column has a value that is made from the state. The value is written as text
// and cast to the column's type.
type column[S any] struct {
	name, cast string
	value      func(*S) string
}

// folded is an aggregate while events are folded into it.
type folded[S any] struct {
	id      string
	version int64
	state   S
	stored  bool // the database has a row of it
	dirty   bool // it has changed since it was loaded
}

// step folds one event into f. It fails with eventlog.ErrPoison if the event does
// not follow f's version or cannot be decoded or written; f is then unchanged.
func (a *aggregates[S, E]) step(f *folded[S], e *eventlog.Event) error {
	if e.Fault != nil {
		return eventlog.Poison(fmt.Errorf("%s/%d@%d: %w", e.Topic, e.Partition, e.Offset, e.Fault))
	}
	if e.Version != f.version+1 {
		return eventlog.Poison(fmt.Errorf("%s %s is at version %d, the event %s/%d@%d has version %d: not the next one",
			a.table, f.id, f.version, e.Topic, e.Partition, e.Offset, e.Version))
	}
	event, err := a.decode(e.Type, e.DataVersion(), e.Data)
	if err != nil {
		return eventlog.Poison(fmt.Errorf("%s/%d@%d: %w", e.Topic, e.Partition, e.Offset, err))
	}
	next := a.evolve(f.state, event, e.Time)
	if len(e.Data) > maxIndexed { // in a shorter event, every text is shorter too
		for _, c := range a.columns {
			if c.cast == "text" && len(c.value(&next)) > maxIndexed {
				return eventlog.Poison(fmt.Errorf("%s/%d@%d: its %s is longer than %d bytes", e.Topic, e.Partition, e.Offset, c.name, maxIndexed))
			}
		}
	}
	f.state, f.version, f.dirty = next, e.Version, true
	return nil
}

// take folds one event into f as step does, or moves f past it if it is skipped. took
// reports whether the event has taken effect.
func (a *aggregates[S, E]) take(f *folded[S], e *eventlog.Event, skipped *skips) (took bool, err error) {
	if !skipped.has(e) {
		return true, a.step(f, e)
	}
	if f.version > 0 { // otherwise the aggregate's first event is skipped, too, and there is no row
		f.version, f.dirty = max(f.version+1, e.Version), true
	}
	return false, nil
}

// maxIndexed is how many bytes of text an index of the tables takes at most.
const maxIndexed = 2000

func (a *aggregates[S, E]) apply(ctx context.Context, tx pgx.Tx, g Generation, events []eventlog.Event) error {
	schema := g.Schema()
	rows := make(map[string]*folded[S], len(events))
	ids := make([]string, 0, len(events))
	for i := range events {
		id := events[i].Subject
		if _, ok := rows[id]; !ok {
			rows[id] = nil
			ids = append(ids, id)
		}
	}
	var skipped skips
	load := &pgx.Batch{}
	load.Queue(a.loadSQL(schema), ids).Query(func(found pgx.Rows) error { return a.loaded(found, schema, rows, ids...) })
	load.Queue(skipsSQL, g.Model, ids).Query(func(found pgx.Rows) error { return skipped.loaded(found) })
	if err := tx.SendBatch(ctx, load).Close(); err != nil {
		return err
	}
	for i := range events {
		if _, err := a.take(rows[events[i].Subject], &events[i], &skipped); err != nil {
			return err
		}
	}
	batch := &pgx.Batch{}
	a.queueUpsert(batch, schema, rows)
	if a.after != nil {
		slices.Sort(ids)
		a.after(batch, schema, ids)
	}
	a.queueHistory(batch, g, skipped.without(events))
	return tx.SendBatch(ctx, batch).Close()
}

// load puts the aggregates of ids into rows. An aggregate that has no row in the
// table begins at version 0.
func (a *aggregates[S, E]) load(ctx context.Context, db querier, schema string, rows map[string]*folded[S], ids ...string) error {
	found, err := db.Query(ctx, a.loadSQL(schema), ids)
	if err != nil {
		return err
	}
	return a.loaded(found, schema, rows, ids...)
}

// loadSQL returns the statement whose rows loaded takes. Its argument are the ids.
func (a *aggregates[S, E]) loadSQL(schema string) string {
	return `SELECT id, version, state FROM ` + schema + `.` + a.table + ` WHERE id = ANY($1)`
}

// loaded is load with the rows that were found.
func (a *aggregates[S, E]) loaded(found pgx.Rows, schema string, rows map[string]*folded[S], ids ...string) error {
	for _, id := range ids {
		rows[id] = &folded[S]{id: id}
	}
	var id string
	var version int64
	var state []byte
	_, err := pgx.ForEachRow(found, []any{&id, &version, (*pgtype.DriverBytes)(&state)}, func() error {
		f := rows[id]
		f.version, f.stored = version, true
		if err := domain.DecodeJSON(state, &f.state); err != nil {
			return eventlog.Poison(fmt.Errorf("%s.%s %s has a state that cannot be read: %w", schema, a.table, id, err))
		}
		return nil
	})
	return err
}

// querier runs a query: a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// sorted returns the changed rows, sorted by id. All writers lock rows in this
// order, so they do not deadlock.
func sorted[S any](rows map[string]*folded[S]) []*folded[S] {
	dirty := make([]*folded[S], 0, len(rows))
	for _, f := range rows {
		if f.dirty {
			dirty = append(dirty, f)
		}
	}
	slices.SortFunc(dirty, func(x, y *folded[S]) int { return strings.Compare(x.id, y.id) })
	return dirty
}

// upsertSQL returns the statement that writes rows. Its arguments are arrays of
// the ids, the versions and the states, and one array of text per column.
func (a *aggregates[S, E]) upsertSQL(schema string) string {
	var names, values, sets strings.Builder
	for i, c := range a.columns {
		fmt.Fprintf(&names, ", %s", c.name)
		fmt.Fprintf(&values, ", u.c%d::%s", i, c.cast)
		fmt.Fprintf(&sets, ", %s = EXCLUDED.%s", c.name, c.name)
	}
	var from, as strings.Builder
	for i := range a.columns {
		fmt.Fprintf(&from, ", $%d::text[]", i+4)
		fmt.Fprintf(&as, ", c%d", i)
	}
	return `INSERT INTO ` + schema + `.` + a.table + ` (id, version, state` + names.String() + `)
		SELECT u.id, u.version, u.state` + values.String() + `
		FROM unnest($1::text[], $2::bigint[], $3::text[]` + from.String() + `) AS u(id, version, state` + as.String() + `)
		ON CONFLICT (id) DO UPDATE SET version = EXCLUDED.version, state = EXCLUDED.state` + sets.String()
}

// queueUpsert queues the statement that writes the changed rows, if there are any.
func (a *aggregates[S, E]) queueUpsert(batch *pgx.Batch, schema string, rows map[string]*folded[S]) {
	dirty := sorted(rows)
	if len(dirty) == 0 {
		return
	}
	ids, versions, states := make([]string, len(dirty)), make([]int64, len(dirty)), make([]string, len(dirty))
	columns := make([][]string, len(a.columns))
	for i := range columns {
		columns[i] = make([]string, len(dirty))
	}
	for i, f := range dirty {
		ids[i], versions[i], states[i] = f.id, f.version, marshal(&f.state)
		for j := range a.columns {
			columns[j][i] = a.columns[j].value(&f.state)
		}
	}
	args := []any{ids, versions, states}
	for _, c := range columns {
		args = append(args, c)
	}
	batch.Queue(a.upsertSQL(schema), args...)
}

// queueHistory queues the statement that adds events to the history, if the table
// has one. Aggregates whose history was removed (TrimHistory) get none.
func (a *aggregates[S, E]) queueHistory(batch *pgx.Batch, g Generation, events []eventlog.Event) {
	if a.history.table == "" || len(events) == 0 {
		return
	}
	n := len(events)
	ids, versions, types, times := make([]string, n), make([]int64, n), make([]string, n), make([]time.Time, n)
	forms, actors, data := make([]int32, n), make([]string, n), make([]string, n)
	for i := range events {
		e := &events[i]
		ids[i], versions[i], types[i], forms[i], times[i] = e.Subject, e.Version, e.Type, int32(e.DataVersion()), e.Time
		actors[i], data[i] = actorText(e.Actor), string(e.Data)
	}
	batch.Queue(`INSERT INTO `+g.Schema()+`.`+a.history.table+` (`+a.history.columns()+`)
		SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::int[], $5::timestamptz[], $6::text[], $7::text[]) AS u(id)
		WHERE u.id >= coalesce((SELECT history_from FROM tomato.read_models WHERE model = $8), '')`, ids, versions, types, forms, times, actors, data, g.Model)
}

func (a *aggregates[S, E]) names() []string {
	if a.history.table != "" {
		return []string{a.table, a.history.table}
	}
	return []string{a.table}
}
