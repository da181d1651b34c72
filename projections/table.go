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
	"tomato/eventlog/consumer"
)

// A table is what the events of one topic are written to. It is safe for concurrent use.
type table interface {
	// writer returns what writes events to the generation g.
	writer(g Generation) writer
}

// A writer writes the events of one topic to the rows of one generation. It is safe for
// concurrent use.
type writer interface {
	// apply writes events, those of each partition in offset order, within tx.
	apply(ctx context.Context, tx pgx.Tx, events []eventlog.Event) error
}

// A foldedTable is a table whose rows can be folded from the log again. A rebuild
// fills it. The other tables are copied, see readModel.copyUnfolded.
type foldedTable interface {
	table
	// apply writes events, those of each partition in offset order, to the generation g
	// within tx. It reads all rows.
	apply(ctx context.Context, tx pgx.Tx, g Generation, events []eventlog.Event) error
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
	row     int64  // the version of its row in the database; 0: there is none
	xmin    uint32 // of that row: the transaction that has written it
	cached  bool   // it was taken from a cache, so the database may have another row
	dirty   bool   // it has changed since it was loaded
	text    string // the state as it was written last
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
	return `SELECT id, version, state, xmin FROM ` + schema + `.` + a.table + ` WHERE id = ANY($1)`
}

// loaded is load with the rows that were found.
func (a *aggregates[S, E]) loaded(found pgx.Rows, schema string, rows map[string]*folded[S], ids ...string) error {
	for _, id := range ids {
		rows[id] = &folded[S]{id: id}
	}
	var id string
	var version int64
	var state []byte
	var xmin uint32
	_, err := pgx.ForEachRow(found, []any{&id, &version, (*pgtype.DriverBytes)(&state), &xmin}, func() error {
		f := rows[id]
		f.version, f.row, f.xmin = version, version, xmin
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

// insertSQL returns the statement that inserts rows which the database does not have. Its
// arguments are arrays of the ids, the versions and the states, and one array of text per
// column. It returns a line for each row that it has inserted.
func (a *aggregates[S, E]) insertSQL(schema string) string {
	var names, values strings.Builder
	for i, c := range a.columns {
		fmt.Fprintf(&names, ", %s", c.name)
		fmt.Fprintf(&values, ", u.c%d::%s", i, c.cast)
	}
	return `INSERT INTO ` + schema + `.` + a.table + ` (id, version, state` + names.String() + `)
		SELECT u.id, u.version, u.state` + values.String() + ` FROM ` + a.unnest() + `
		ON CONFLICT (id) DO NOTHING RETURNING xmin`
}

// updateSQL returns the statement that updates rows. Its arguments are those of insertSQL,
// and arrays of the versions and of the xmins that the rows have. It returns a line for
// each row that it has updated, and leaves the others as they are.
//
// OFFSET 0 keeps the search for one row by its key a part of its own, so that Postgres has
// no other plan for it, however few rows the table has when the plan is made. The row is
// then updated where it was found. If it was changed since, it is somewhere else.
func (a *aggregates[S, E]) updateSQL(schema string) string {
	var sets strings.Builder
	for i, c := range a.columns {
		fmt.Fprintf(&sets, ", %s = u.c%d::%s", c.name, i, c.cast)
	}
	return `UPDATE ` + schema + `.` + a.table + ` t SET version = u.version, state = u.state` + sets.String() + `
		FROM ` + a.unnest("bigint", "xid") + `
		CROSS JOIN LATERAL (SELECT f.ctid AS place FROM ` + schema + `.` + a.table + ` f WHERE f.id = u.id AND f.version = u.p0 AND f.xmin = u.p1 OFFSET 0) found
		WHERE t.ctid = found.place RETURNING t.xmin`
}

// unnest returns the arguments of insertSQL, and further arrays of these types, as rows of
// a table u. The further columns are p0, p1 and so on.
func (a *aggregates[S, E]) unnest(further ...string) string {
	arrays, names := []string{"$1::text[]", "$2::bigint[]", "$3::text[]"}, []string{"id", "version", "state"}
	add := func(name, kind string) {
		names, arrays = append(names, name), append(arrays, fmt.Sprintf("$%d::%s[]", len(arrays)+1, kind))
	}
	for i := range a.columns {
		add(fmt.Sprintf("c%d", i), "text")
	}
	for i, kind := range further {
		add(fmt.Sprintf("p%d", i), kind)
	}
	return `unnest(` + strings.Join(arrays, ", ") + `) AS u(` + strings.Join(names, ", ") + `)`
}

// queueRows queues the statements that write the changed rows, if there are any. The batch
// fails with consumer.ErrOutdated if the database has other rows than these were folded
// from: a row that is written has the version and the xmin that it had when it was read or
// written last, or it is new. Otherwise the rows have their new versions and xmins once
// the batch is done.
func (a *aggregates[S, E]) queueRows(batch *pgx.Batch, schema string, rows map[string]*folded[S]) {
	var old, fresh []*folded[S]
	for _, f := range sorted(rows) {
		if f.row > 0 {
			old = append(old, f)
		} else {
			fresh = append(fresh, f)
		}
	}
	if len(old) > 0 {
		were, xmins := make([]int64, len(old)), make([]uint32, len(old))
		for i, f := range old {
			were[i], xmins[i] = f.row, f.xmin
		}
		batch.Queue(a.updateSQL(schema), append(a.values(old), were, xmins)...).Query(a.written(old))
	}
	if len(fresh) > 0 {
		batch.Queue(a.insertSQL(schema), a.values(fresh)...).Query(a.written(fresh))
	}
}

// values returns the arguments of insertSQL.
func (a *aggregates[S, E]) values(rows []*folded[S]) []any {
	ids, versions, states := make([]string, len(rows)), make([]int64, len(rows)), make([]string, len(rows))
	args := []any{ids, versions, states}
	for i, f := range rows {
		f.text = marshal(&f.state)
		ids[i], versions[i], states[i] = f.id, f.version, f.text
	}
	for _, c := range a.columns {
		texts := make([]string, len(rows))
		for i, f := range rows {
			texts[i] = c.value(&f.state)
		}
		args = append(args, texts)
	}
	return args
}

// written checks that a statement has written all of the rows. They have all been written
// by the same transaction.
func (a *aggregates[S, E]) written(rows []*folded[S]) func(pgx.Rows) error {
	return func(lines pgx.Rows) error {
		var xmin uint32
		n := 0
		if _, err := pgx.ForEachRow(lines, []any{&xmin}, func() error { n++; return nil }); err != nil {
			return err
		}
		if n != len(rows) {
			return fmt.Errorf("%d of %d rows of %s: %w", len(rows)-n, len(rows), a.table, consumer.ErrOutdated)
		}
		for _, f := range rows {
			f.row, f.xmin, f.dirty = f.version, xmin, false
		}
		return nil
	}
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
