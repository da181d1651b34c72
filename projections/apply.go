package projections

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"tomato/eventlog"
	"tomato/eventlog/consumer"
)

// A rowWriter is the handler of the consumer of one generation. It is safe for
// concurrent use.
type rowWriter struct {
	model   string
	writers map[string]writer // by topic
}

func newRowWriter(g Generation) *rowWriter {
	w := &rowWriter{model: g.Model, writers: map[string]writer{}}
	for topic, t := range registry[g.Model].tables {
		w.writers[topic] = t.writer(g)
	}
	return w
}

// write writes events, those of each partition in offset order, to the generation's
// tables within tx. It fails with eventlog.ErrUnavailable if the generation was dropped and
// its consumer has not noticed yet: nothing is wrong with the events then. It fails with
// consumer.ErrOutdated if rows are not as this process has written them.
func (w *rowWriter) write(ctx context.Context, tx pgx.Tx, events []eventlog.Event) error {
	for len(events) > 0 {
		n := 1
		for n < len(events) && events[n].Topic == events[0].Topic {
			n++
		}
		t := w.writers[events[0].Topic]
		if t == nil {
			return eventlog.Poison(fmt.Errorf("%s is no topic of %s", events[0].Topic, w.model))
		}
		if err := t.apply(ctx, tx, events[:n]); err != nil {
			if undefined(err) {
				return eventlog.Unavailable(err)
			}
			return err
		}
		events = events[n:]
	}
	return nil
}

// An aggregatesWriter writes events to the rows of one generation. It folds them into the
// states that it has written before, if its cache still has them, and reads the rows of
// the others.
//
// What the cache has may be wrong. Another process may have written the row since, or an
// operator (rebuild-one, skip, a statement of their own), or the transaction that wrote it
// may have failed, or its commit may have, or the database was restored. So each row is
// written only if it has the xmin, which is the number of the transaction that wrote it,
// and the version with which the cache has it; and events are taken as not skipped only
// if, within the same transaction, no event of their aggregates is skipped. If any of this
// does not hold, the transaction ends with consumer.ErrOutdated before it is committed,
// and is made once more with what the database has.
//
// The number of a transaction comes again after four thousand million others, or after a
// database was restored or has lost its newest transactions. That does no harm either:
// that very transaction would have to write that very row at that very version, and rows
// of one version are the same fold of the log, unless an event was skipped.
//
// Between the check and the commit nobody changes a row or skips an event, because the
// transaction has moved the checkpoint of the partition before. Everybody who writes to
// rows holds it: a worker of another process, which is fenced by its epoch, rebuild-one
// and skip. A statement of an operator's own waits for the lock of the row.
type aggregatesWriter[S, E any] struct {
	*aggregates[S, E]
	g     Generation
	cache *cache[S] // nil: all rows are read
}

func (a *aggregates[S, E]) writer(g Generation) writer {
	return &aggregatesWriter[S, E]{a, g, &cache[S]{}}
}

func (a *aggregates[S, E]) apply(ctx context.Context, tx pgx.Tx, g Generation, events []eventlog.Event) error {
	return (&aggregatesWriter[S, E]{a, g, nil}).apply(ctx, tx, events)
}

func (w *aggregatesWriter[S, E]) apply(ctx context.Context, tx pgx.Tx, events []eventlog.Event) error {
	schema := w.g.Schema()
	rows, ids, missing := w.known(events)
	consumer.CountCache(ctx, len(ids)-len(missing), len(missing))
	var skipped skips
	readSkips := func(batch *pgx.Batch, then func() error) {
		batch.Queue(skipsSQL, w.g.Model, ids).Query(func(found pgx.Rows) error {
			if err := skipped.loaded(found); err != nil {
				return err
			}
			return then()
		})
	}
	batch := &pgx.Batch{}
	if len(missing) > 0 {
		batch.Queue(w.loadSQL(schema), missing).Query(func(found pgx.Rows) error { return w.loaded(found, schema, rows, missing...) })
		readSkips(batch, func() error { return nil })
		if err := tx.SendBatch(ctx, batch).Close(); err != nil {
			return err
		}
		batch = &pgx.Batch{}
	} else {
		readSkips(batch, func() error {
			if len(skipped.events) > 0 {
				return fmt.Errorf("skipped events of %s: %w", w.table, consumer.ErrOutdated)
			}
			return nil
		})
	}
	for i := range events {
		f := rows[events[i].Subject]
		if _, err := w.take(f, &events[i], &skipped); err != nil {
			if f.cached { // the row may be another one, which the event follows
				err = fmt.Errorf("%w: %w", consumer.ErrOutdated, err)
				w.cache.mistrust(ids)
			}
			return err
		}
	}
	w.queueRows(batch, schema, rows)
	if w.after != nil {
		slices.Sort(ids)
		w.after(batch, schema, ids)
	}
	w.queueHistory(batch, w.g, skipped.without(events))
	err := tx.SendBatch(ctx, batch).Close()
	if errors.Is(err, consumer.ErrOutdated) {
		w.cache.mistrust(ids)
	}
	if err == nil {
		// The transaction may still fail. Its xmin is in no row then, and its number is
		// not given to another transaction.
		w.cache.put(rows)
	}
	return err
}

// known returns the aggregates of events as they are before them, as far as that is known
// without the database, and the ids of all and of those whose rows must be read. An
// aggregate that begins with these events is taken to have no row.
func (w *aggregatesWriter[S, E]) known(events []eventlog.Event) (rows map[string]*folded[S], ids, missing []string) {
	rows = make(map[string]*folded[S], len(events))
	ids = make([]string, 0, len(events))
	for i := range events {
		id := events[i].Subject
		if _, ok := rows[id]; ok {
			continue
		}
		ids = append(ids, id)
		rows[id] = w.cache.get(id, events[i].Version == 1)
		if rows[id] == nil {
			missing = append(missing, id)
		}
	}
	return rows, ids, missing
}
