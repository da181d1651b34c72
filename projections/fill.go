package projections

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5"

	"tomato/eventlog"
)

// A filler folds the events of one partition for a rebuild and keeps the rows in
// memory until they are written. Nobody else writes rows of that partition
// meanwhile. It is not safe for concurrent use.
type filler interface {
	// load prepares for folding events: it reads the rows of those aggregates that the
	// table may have and the filler has not, in one query.
	load(ctx context.Context, db querier, events []*eventlog.Event) error
	// fold folds one event, for which load was called. If it fails with
	// eventlog.ErrPoison, the filler is as it was before the event.
	fold(e *eventlog.Event) error
	// full reports whether the filler holds so much that it should be flushed.
	full() bool
	// flush writes everything that the filler holds, within tx. The filler must not be
	// used again if the transaction is not committed.
	flush(ctx context.Context, tx pgx.Tx) error
}

// A filler is full when it holds this much.
const (
	maxFilledRows  = 50_000
	maxFilledBytes = 32 << 20 // of the history
)

// aggregateFiller is the filler of aggregates.
type aggregateFiller[S, E any] struct {
	*aggregates[S, E]
	schema       string
	skipped      skips
	historyFrom  string
	rows         map[string]*folded[S]
	historyLines bytes.Buffer // in the text format of COPY
	flushed      bool         // the table has rows: an aggregate that is not in rows may be there
}

func (a *aggregates[S, E]) filler(g Generation, begun bool, skipped skips, historyFrom string) filler {
	return &aggregateFiller[S, E]{aggregates: a, schema: g.Schema(), skipped: skipped, historyFrom: historyFrom, rows: map[string]*folded[S]{}, flushed: begun}
}

func (f *aggregateFiller[S, E]) load(ctx context.Context, db querier, events []*eventlog.Event) error {
	var ids []string
	for _, e := range events {
		if f.rows[e.Subject] != nil {
			continue
		}
		f.rows[e.Subject] = &folded[S]{id: e.Subject}
		if f.flushed && e.Version != 1 {
			ids = append(ids, e.Subject)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	slices.Sort(ids)
	return f.aggregates.load(ctx, db, f.schema, f.rows, ids...)
}

func (f *aggregateFiller[S, E]) fold(e *eventlog.Event) error {
	took, err := f.take(f.rows[e.Subject], e, &f.skipped)
	if err != nil {
		return err
	}
	if took && f.history.table != "" && e.Subject >= f.historyFrom {
		copyLine(&f.historyLines, e.Subject, strconv.FormatInt(e.Version, 10), e.Type, strconv.Itoa(e.DataVersion()), timeText(e.Time), actorText(e.Actor), string(e.Data))
	}
	return nil
}

func (f *aggregateFiller[S, E]) full() bool {
	return len(f.rows) >= maxFilledRows || f.historyLines.Len() >= maxFilledBytes
}

func (f *aggregateFiller[S, E]) flush(ctx context.Context, tx pgx.Tx) error {
	if f.historyLines.Len() > 0 {
		if err := copyText(ctx, tx, f.schema+`.`+f.history.table+` (`+f.history.columns()+`)`, &f.historyLines); err != nil {
			return err
		}
	}
	// Rows that the table has already are upserted. All others are written by COPY.
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
	f.historyLines.Reset()
	f.rows, f.flushed = map[string]*folded[S]{}, true
	return nil
}

// copyText writes lines to a table by COPY in text format. In that format a
// geography may be written as WKT; in the binary format of pgx.CopyFrom it may
// not.
func copyText(ctx context.Context, tx pgx.Tx, into string, lines *bytes.Buffer) error {
	_, err := tx.Conn().PgConn().CopyFrom(ctx, bytes.NewReader(lines.Bytes()), `COPY `+into+` FROM STDIN`)
	return err
}
