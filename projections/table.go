package projections

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"tomato/domain"
	"tomato/eventlog"
	"tomato/eventlog/pgerr"
)

// A table turns the events of one topic into rows of one table (and its
// history, where it has one).
type table interface {
	// apply folds events into the rows, in tx. schema is the generation's.
	apply(ctx context.Context, tx pgx.Tx, schema string, events []eventlog.Event) error
	// filler starts a fold that keeps its rows in memory until they are
	// written, for a rebuild; nil for telemetry, which is copied instead.
	filler(schema string) filler
	// names of the tables that must be equal after a rebuild.
	names() []string
}

// A filler is table for a rebuild: one partition, no other writer. Not safe for
// concurrent use.
type filler interface {
	// fold takes one event. After a poison error it is as before the event.
	fold(ctx context.Context, tx pgx.Tx, e *eventlog.Event) error
	// full says that it is time to flush.
	full() bool
	// flush writes everything, in tx, and forgets it.
	flush(ctx context.Context, tx pgx.Tx) error
}

// aggregates is the table of one aggregate: a row per aggregate with its state
// as JSON, beside the columns that queries need, all of them made from the
// state.
type aggregates[S, E any] struct {
	table   string
	decode  func(eventType string, data []byte) (E, error)
	evolve  func(S, E, time.Time) S
	columns []column[S] // beside id, version and state
	history string      // table of the events as they came; "" for none
	// around, if set, puts statements before and after those that write the
	// rows of ids. All events are of one partition.
	around func(batch *pgx.Batch, schema string, partition int32, ids []string, write func())
}

// column is made from the state, as text that casts to its type.
type column[S any] struct {
	name, cast string
	value      func(*S) string
}

// folded is an aggregate while events are folded into it.
type folded[S any] struct {
	id      string
	version int64
	state   S
	stored  bool // there is a row
	dirty   bool
}

// step folds one event in.
func (a *aggregates[S, E]) step(f *folded[S], e *eventlog.Event) error {
	if e.Version != f.version+1 {
		return eventlog.Poison(fmt.Errorf("%s %s is at version %d, the event %s/%d@%d has version %d: not the next one",
			a.table, f.id, f.version, e.Topic, e.Partition, e.Offset, e.Version))
	}
	event, err := a.decode(e.Type, e.Data)
	if err != nil {
		return eventlog.Poison(fmt.Errorf("%s/%d@%d: %w", e.Topic, e.Partition, e.Offset, err))
	}
	next := a.evolve(f.state, event, e.Time)
	if len(e.Data) > maxIndexed { // most are shorter, and so is every text in them
		for _, c := range a.columns {
			if c.cast == "text" && len(c.value(&next)) > maxIndexed {
				return eventlog.Poison(fmt.Errorf("%s/%d@%d: its %s is longer than %d bytes", e.Topic, e.Partition, e.Offset, c.name, maxIndexed))
			}
		}
	}
	f.state, f.version, f.dirty = next, e.Version, true
	return nil
}

// maxIndexed is how many bytes of text the indexes of the tables take.
const maxIndexed = 2000

func (a *aggregates[S, E]) apply(ctx context.Context, tx pgx.Tx, schema string, events []eventlog.Event) error {
	rows := make(map[string]*folded[S], len(events))
	ids := make([]string, 0, len(events))
	for i := range events {
		id := events[i].Subject
		if _, ok := rows[id]; !ok {
			rows[id] = nil
			ids = append(ids, id)
		}
	}
	if err := a.load(ctx, tx, schema, rows, ids...); err != nil {
		return err
	}
	for i := range events {
		if err := a.step(rows[events[i].Subject], &events[i]); err != nil {
			return err
		}
	}
	batch := &pgx.Batch{}
	write := func() { a.queueUpsert(batch, schema, rows) }
	if a.around != nil {
		slices.Sort(ids)
		a.around(batch, schema, events[0].Partition, ids, write)
	} else {
		write()
	}
	a.queueHistory(batch, schema, events)
	return tx.SendBatch(ctx, batch).Close()
}

// load puts into rows, under ids, what the table has, or new aggregates.
func (a *aggregates[S, E]) load(ctx context.Context, tx pgx.Tx, schema string, rows map[string]*folded[S], ids ...string) error {
	for _, id := range ids {
		rows[id] = &folded[S]{id: id}
	}
	found, err := tx.Query(ctx, `SELECT id, version, state FROM `+schema+`.`+a.table+` WHERE id = ANY($1)`, ids)
	if err != nil {
		return err
	}
	var id string
	var version int64
	var state []byte
	_, err = pgx.ForEachRow(found, []any{&id, &version, (*pgtype.DriverBytes)(&state)}, func() error {
		f := rows[id]
		f.version, f.stored = version, true
		if err := json.Unmarshal(state, &f.state); err != nil {
			return eventlog.Poison(fmt.Errorf("%s.%s %s has a state that cannot be read: %w", schema, a.table, id, err))
		}
		return nil
	})
	return err
}

// sorted are the changed rows by id: all writers lock rows in one order.
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

// upsertSQL takes one array of text per column.
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

func (a *aggregates[S, E]) queueHistory(batch *pgx.Batch, schema string, events []eventlog.Event) {
	if a.history == "" || len(events) == 0 {
		return
	}
	n := len(events)
	ids, versions, types, times, data := make([]string, n), make([]int64, n), make([]string, n), make([]time.Time, n), make([]string, n)
	for i := range events {
		e := &events[i]
		ids[i], versions[i], types[i], times[i], data[i] = e.Subject, e.Version, e.Type, e.Time, string(e.Data)
	}
	batch.Queue(`INSERT INTO `+schema+`.`+a.history+` (order_id, version, type, at, data)
		SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::timestamptz[], $5::text[])`, ids, versions, types, times, data)
}

func (a *aggregates[S, E]) names() []string {
	if a.history != "" {
		return []string{a.table, a.history}
	}
	return []string{a.table}
}

// marshal writes a state. States are structs of plain values, so it cannot fail;
// if one does, the row must not be written.
func marshal(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("a state cannot be written as JSON: %v", err))
	}
	return string(b)
}

// --- rebuild

// Bounds of what one filler holds before it writes.
const (
	maxFilledRows  = 50_000
	maxFilledBytes = 32 << 20 // of history
)

type aggregateFiller[S, E any] struct {
	*aggregates[S, E]
	schema  string
	rows    map[string]*folded[S]
	history bytes.Buffer // in COPY's text format
	flushed bool         // something was: an aggregate that is not in rows may be in the table
}

func (a *aggregates[S, E]) filler(schema string) filler {
	return &aggregateFiller[S, E]{aggregates: a, schema: schema, rows: map[string]*folded[S]{}}
}

func (f *aggregateFiller[S, E]) fold(ctx context.Context, tx pgx.Tx, e *eventlog.Event) error {
	row := f.rows[e.Subject]
	if row == nil {
		if !f.flushed || e.Version == 1 {
			f.rows[e.Subject] = &folded[S]{id: e.Subject}
		} else {
			if err := f.load(ctx, tx, f.schema, f.rows, e.Subject); err != nil {
				return err
			}
		}
		row = f.rows[e.Subject]
	}
	if err := f.step(row, e); err != nil {
		return err
	}
	if f.aggregates.history != "" {
		copyLine(&f.history, e.Subject, strconv.FormatInt(e.Version, 10), e.Type, timeText(e.Time), string(e.Data))
	}
	return nil
}

func (f *aggregateFiller[S, E]) full() bool {
	return len(f.rows) >= maxFilledRows || f.history.Len() >= maxFilledBytes
}

func (f *aggregateFiller[S, E]) flush(ctx context.Context, tx pgx.Tx) error {
	if f.history.Len() > 0 {
		if err := copyText(ctx, tx, f.schema+`.`+f.aggregates.history+` (order_id, version, type, at, data)`, &f.history); err != nil {
			return err
		}
	}
	batch := &pgx.Batch{}
	stored := map[string]*folded[S]{}
	maps.Copy(stored, f.rows)
	maps.DeleteFunc(stored, func(_ string, r *folded[S]) bool { return !r.stored })
	f.queueUpsert(batch, f.schema, stored)
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return err
	}
	maps.DeleteFunc(f.rows, func(_ string, r *folded[S]) bool { return r.stored })
	var lines bytes.Buffer
	cells := make([]string, 3+len(f.columns))
	for _, r := range sorted(f.rows) {
		cells[0], cells[1], cells[2] = r.id, strconv.FormatInt(r.version, 10), marshal(&r.state)
		for i := range f.columns {
			cells[3+i] = f.columns[i].value(&r.state)
		}
		copyLine(&lines, cells...)
	}
	if lines.Len() > 0 {
		into := f.schema + `.` + f.table + ` (id, version, state`
		for _, c := range f.columns {
			into += `, ` + c.name
		}
		if err := copyText(ctx, tx, into+`)`, &lines); err != nil {
			return err
		}
	}
	f.history.Reset()
	f.rows, f.flushed = map[string]*folded[S]{}, true
	return nil
}

// copyText is COPY in text format: it takes a geography as WKT, which the
// binary format of pgx.CopyFrom does not.
func copyText(ctx context.Context, tx pgx.Tx, into string, lines *bytes.Buffer) error {
	_, err := tx.Conn().PgConn().CopyFrom(ctx, bytes.NewReader(lines.Bytes()), `COPY `+into+` FROM STDIN`)
	return err
}

func copyLine(b *bytes.Buffer, cells ...string) {
	for i, c := range cells {
		if i > 0 {
			b.WriteByte('\t')
		}
		if strings.IndexByte(c, '\\') < 0 && strings.IndexByte(c, '\n') < 0 && strings.IndexByte(c, '\t') < 0 && strings.IndexByte(c, '\r') < 0 {
			b.WriteString(c)
			continue
		}
		for j := range len(c) {
			switch c[j] {
			case '\\':
				b.WriteString(`\\`)
			case '\n':
				b.WriteString(`\n`)
			case '\t':
				b.WriteString(`\t`)
			case '\r':
				b.WriteString(`\r`)
			default:
				b.WriteByte(c[j])
			}
		}
	}
	b.WriteByte('\n')
}

// --- values as text

func boolText(b bool) string { return strconv.FormatBool(b) }

func timeText(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// pointText is a point as WKT.
func pointText(p domain.Point) string {
	b := make([]byte, 0, 48)
	b = append(b, "POINT("...)
	b = strconv.AppendFloat(b, p.Lng, 'g', -1, 64)
	b = append(b, ' ')
	b = strconv.AppendFloat(b, p.Lat, 'g', -1, 64)
	return string(append(b, ')'))
}

// arrayText is an array of ids.
func arrayText(ids []string) string {
	if len(ids) == 0 {
		return "{}"
	}
	quoted := make([]string, len(ids))
	for i, id := range ids {
		quoted[i] = arrayQuotes.Replace(id)
	}
	return `{"` + strings.Join(quoted, `","`) + `"}`
}

var arrayQuotes = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// refusesData reports whether Postgres takes the statement, but not a value in it: a
// text with NUL, a number that is too large for its column, a second row of one id.
func refusesData(err error) bool {
	return slices.Contains([]string{"22", "23", "54"}, pgerr.Class(err))
}

// undefined reports whether a table or schema is not there: its generation was dropped.
func undefined(err error) bool {
	return slices.Contains([]string{"42P01", "3F000"}, pgerr.Code(err))
}
