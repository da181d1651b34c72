package consumer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
	"tomato/eventlog/consumer/parked"
	"tomato/eventlog/pgerr"
)

// errRowChanged says that a parked row is not as the worker knew it, because an
// operator has changed it.
var errRowChanged = errors.New("parked row has changed")

// failed does what was decided about a fresh event that failed, except for writing
// the row that it returns. It returns no row if the event is skipped.
func (w *worker) failed(i *item, cause error, d parked.Decision) ([]*parked.Event, error) {
	if d.Action == parked.Skip {
		w.skip(i.event.Offset, cause)
		return nil, nil
	}
	e := parked.NewEvent(i.event.Record, i.key, parked.Retry)
	e.Fail(cause, d, time.Now())
	w.countFailure(e)
	if err := w.copyTo(e, e.Record, d.Stage); err != nil {
		return nil, err
	}
	return []*parked.Event{e}, nil
}

// countFailure logs a failed attempt and counts it in the metrics.
func (w *worker) countFailure(e *parked.Event) {
	m := w.g.r.state.metrics
	if e.State == parked.Dead {
		m.deadLetter(w.g.c.Name, e.Class)
		w.log.Error("dead letter", "offset", e.Offset, "attempt", e.Attempts, "class", e.Class, "err", e.Reason)
		return
	}
	m.retry(w.g.c.Name)
	w.log.Warn("parked for retry", "offset", e.Offset, "attempt", e.Attempts, "class", e.Class, "err", e.Reason)
}

// copyTo appends a copy of rec, the record of e, to the topic of stage, and notes in
// e where the copy is. It waits while Kafka is unavailable.
func (w *worker) copyTo(e *parked.Event, rec *kgo.Record, stage string) error {
	c := e.NewCopy(rec, w.source(), stage)
	return w.untilAvailable(func() error {
		ctx, cancel := context.WithTimeout(w.ctx, 30*time.Second)
		defer cancel()
		again := *c
		offset, err := parked.ProduceCopy(ctx, w.g.aux, &again)
		if err != nil {
			return eventlog.UnavailableFrom("kafka", fmt.Errorf("append to %s: %w", c.Topic, err))
		}
		e.Copy = parked.CopyAt{Topic: c.Topic, Offset: offset}
		return nil
	})
}

// waitingRows makes the rows of records that wait behind a parked event of their
// key. If that is a dead letter, and the source topic does not keep its records for
// ever, the record is copied now.
func (w *worker) waitingRows(items []*item) ([]*parked.Event, error) {
	rows := make([]*parked.Event, 0, len(items))
	for _, i := range items {
		if i.row == nil {
			e := parked.NewEvent(i.event.Record, i.key, parked.Waiting)
			if !eventlog.IsAggregate(w.cp.Topic) && w.parked.BehindDead(i.key) {
				e.Class = "waiting"
				if err := w.copyTo(e, e.Record, eventlog.DeadLetter); err != nil {
					return nil, err
				}
			}
			i.row = e
		}
		rows = append(rows, i.row)
	}
	return rows, nil
}

// writeRows commits new parked rows. It waits while Postgres is unavailable.
func (w *worker) writeRows(rows []*parked.Event) error {
	return w.untilAvailable(func() error {
		return w.ownTx(func(tx pgx.Tx) error {
			if err := w.cp.lock(w.ctx, tx); err != nil {
				return err
			}
			return parked.Insert(w.ctx, tx, w.source(), rows)
		})
	})
}

// updateRow writes a parked event over its row, which is at rev. It waits while
// Postgres is unavailable, and reports whether the row was still at rev.
func (w *worker) updateRow(e *parked.Event, rev int) (updated bool, err error) {
	err = w.untilAvailable(func() error {
		return w.ownTx(func(tx pgx.Tx) (err error) {
			if err := w.cp.lock(w.ctx, tx); err != nil {
				return err
			}
			// Each try begins at rev. A try that was rolled back has raised e.Rev, but
			// not the row's.
			e.Rev = rev
			updated, err = e.Update(w.ctx, tx)
			return err
		})
	})
	return updated, err
}

// addParked adds events whose rows are committed to those in memory.
func (w *worker) addParked(events []*parked.Event) {
	for _, e := range events {
		w.parked.Add(e)
	}
	if len(events) > 0 {
		w.hasParked.Store(true)
	}
}

// parkedOutcome is what became of a parked event that was tried.
type parkedOutcome struct {
	event parked.Event // as its row is now
	gone  bool         // its row is deleted
}

// tryParked tries a parked event that is due, or deletes one that was discarded. It
// does not change w.parked, so that any goroutine may call it; recordParked does,
// with the outcome. After an error the worker cannot go on.
func (w *worker) tryParked(e parked.Event) (parkedOutcome, error) {
	out := parkedOutcome{event: e, gone: true}
	rec, cause, err := w.handleParked(&e)
	if cause != nil {
		out.gone = false
		out.event, err = w.failParked(e, rec, cause)
	}
	switch {
	case err == nil || endsWorker(err):
	case errors.Is(err, errRowChanged):
		out, err = w.reloadParked(e)
	case pgerr.Unavailable(err) || pgerr.Conflict(err):
		// This counts as no attempt. The event becomes due again by itself; until
		// then its key waits, and others do not.
		w.log.Debug("a parked event waits for what it needs", "offset", e.Offset, "err", err)
		if e.Backoff == nil {
			e.Backoff = newUnavailableBackoff()
		}
		e.Due = time.Now().Add(e.Backoff.NextBackOff())
		return parkedOutcome{event: e}, nil
	}
	if err != nil && w.ctx.Err() != nil {
		err = errStopped
	}
	return out, err
}

// handleParked gives a parked event to the handler and deletes its row. cause is why
// the handler failed; err is any other error. Where the handler failed, rec is the
// event's record, or nil if that is gone.
func (w *worker) handleParked(e *parked.Event) (rec *kgo.Record, cause, err error) {
	deleteRow := func(ctx context.Context, tx pgx.Tx) error {
		if err := w.cp.lock(ctx, tx); err != nil {
			return ownError(err)
		}
		deleted, err := e.Delete(ctx, tx)
		if err == nil && !deleted {
			err = errRowChanged
		}
		return ownError(err)
	}
	deleteAlone := func() error { return w.ownTx(func(tx pgx.Tx) error { return deleteRow(w.ctx, tx) }) }
	// A read model is given a discarded event once more, and passes over it: its row has
	// to know that the next event follows.
	pass := e.State == parked.Discarded && w.g.c.Rows != nil && w.g.c.Generation > 0 && eventlog.IsAggregate(w.cp.Topic) && e.Class != parked.Folded
	if e.State == parked.Discarded && !pass {
		return nil, nil, deleteAlone()
	}
	rec, err = w.recordOf(e)
	if errors.Is(err, parked.ErrGone) {
		if pass {
			return nil, nil, deleteAlone()
		}
		return nil, err, nil
	}
	if err != nil {
		return nil, nil, eventlog.UnavailableFrom("kafka", fmt.Errorf("read parked event at offset %d: %w", e.Offset, err))
	}
	event, err := eventlog.ParseRecord(rec)
	if err != nil && !pass {
		return rec, parked.Undecodable(err), nil
	}
	if pass {
		event.Subject = e.Key
	}
	if w.g.c.Rows != nil {
		return rec, w.call(func(ctx context.Context) error {
			return w.handlerTx(ctx, func(tx pgx.Tx) error {
				if err := deleteRow(ctx, tx); err != nil {
					return err
				}
				return w.g.c.Rows(ctx, tx, []eventlog.Event{event})
			})
		}), nil
	}
	// An operator may have discarded the event since it was loaded.
	now, err := w.reloadParked(*e)
	if err != nil {
		return rec, nil, err
	}
	if now.gone || now.event.Rev != e.Rev {
		return rec, nil, errRowChanged
	}
	if w.g.c.Each != nil {
		cause = w.call(func(ctx context.Context) error { return w.g.c.Each(ctx, event) })
	} else {
		cause = w.call(func(ctx context.Context) error { return w.g.c.Batch(ctx, []eventlog.Event{event}) })
	}
	if cause != nil {
		return rec, cause, nil
	}
	return rec, nil, w.untilAvailable(deleteAlone)
}

// failParked does what is decided about a parked event that failed again, and
// returns the event as its row is now. It returns cause if that counts as no failed
// attempt.
func (w *worker) failParked(e parked.Event, rec *kgo.Record, cause error) (parked.Event, error) {
	d := w.retryRule.Decide(parked.Failure{Cause: cause, Attempts: e.Attempts, Parked: true}, time.Now())
	switch {
	case endsWorker(cause) || errors.Is(cause, errRowChanged) || d.Action == parked.Wait:
		return e, cause
	case w.ctx.Err() != nil:
		return e, errStopped
	}
	next := e
	next.Fail(cause, d, time.Now())
	w.countFailure(&next)
	if rec != nil {
		if err := w.copyTo(&next, rec, d.Stage); err != nil {
			return e, err
		}
	}
	updated, err := w.updateRow(&next, e.Rev)
	if err == nil && !updated {
		err = errRowChanged
	}
	return next, err
}

// reloadParked reads the row of e again. It waits while Postgres is unavailable.
func (w *worker) reloadParked(e parked.Event) (parkedOutcome, error) {
	var now *parked.Event
	err := w.untilAvailable(func() (err error) {
		ctx, cancel := context.WithTimeout(w.ctx, readTimeout)
		defer cancel()
		now, err = parked.LoadOne(ctx, w.g.db(), e.ID)
		return ownError(err)
	})
	switch {
	case err != nil:
		return parkedOutcome{event: e}, err
	case now == nil:
		return parkedOutcome{event: e, gone: true}, nil
	}
	return parkedOutcome{event: *now}, nil
}

// recordOf returns the source record of a parked event, from memory or from Kafka.
func (w *worker) recordOf(e *parked.Event) (*kgo.Record, error) {
	if e.Record != nil {
		return e.Record, nil
	}
	// The records that come along are often those of the next parked events.
	return parked.ReadRecord(w.ctx, w.g.r.Kafka, w.cp.TopicPartition, e.Offset, e.Copy, w.parked.Hold)
}

// recordParked notes in w.parked what became of e.
func (w *worker) recordParked(e *parked.Event, out parkedOutcome) error {
	if out.gone {
		w.parked.Remove(e)
		w.hasParked.Store(w.parked.Len() > 0)
		return nil
	}
	died := e.State != parked.Dead && out.event.State == parked.Dead
	w.parked.Replace(e, out.event)
	if died {
		return w.copyFollowers(e.Key)
	}
	return nil
}

// copyAllFollowers finishes what a crash of an earlier owner may have left undone:
// copying the events that wait behind a new dead letter.
func (w *worker) copyAllFollowers() error {
	for _, key := range w.parked.DeadKeys() {
		if err := w.copyFollowers(key); err != nil {
			return err
		}
	}
	return nil
}

// copyFollowers copies the events of key that wait behind a dead letter, if the
// source topic does not keep its records for ever.
func (w *worker) copyFollowers(key string) error {
	if eventlog.IsAggregate(w.cp.Topic) {
		return nil
	}
	for _, f := range w.parked.Followers(key) {
		if f.Copy.Offset >= 0 {
			continue
		}
		w.beat()
		var rec *kgo.Record
		err := w.untilAvailable(func() (err error) {
			e := w.parked.Snapshot(f)
			if rec, err = w.recordOf(&e); err != nil && !errors.Is(err, parked.ErrGone) {
				err = eventlog.UnavailableFrom("kafka", err)
			}
			return err
		})
		if errors.Is(err, parked.ErrGone) {
			continue // it becomes a dead letter when it is tried
		}
		if err != nil {
			return err
		}
		next := w.parked.Snapshot(f)
		next.Class = "waiting"
		if err := w.copyTo(&next, rec, eventlog.DeadLetter); err != nil {
			return err
		}
		// If an operator has changed the row meanwhile, it keeps its older copy.
		if _, err := w.updateRow(&next, f.Rev); err != nil {
			return err
		}
		w.parked.Replace(f, next)
	}
	return nil
}

// tellChanges gives rows that an operator has changed to the worker's loop.
func (w *worker) tellChanges(rows []*parked.Event) {
	w.mu.Lock()
	w.changes = rows
	w.mu.Unlock()
	w.wakeUp()
}

// applyChanges applies the rows of tellChanges to w.parked. It leaves out the keys for
// which busy reports that an event is under way; the next look finds them again.
func (w *worker) applyChanges(busy func(key string) bool) {
	w.mu.Lock()
	rows := w.changes
	w.changes = nil
	w.mu.Unlock()
	for _, row := range rows {
		e := w.parked.At(row.Offset)
		if e != nil && e.Rev < row.Rev && !busy(e.Key) {
			w.parked.Replace(e, *row)
		}
	}
}
