package consumer

import (
	"context"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5"

	"tomato/eventlog"
	"tomato/eventlog/consumer/parked"
	"tomato/eventlog/pgerr"
)

// runBatches is the loop of Rows and Batch consumers.
func (w *worker) runBatches() error {
	const parkedPerRound = 64 // then it is the turn of fresh records again
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		w.beat()
		if w.stopping() {
			return errStopped
		}
		w.applyChanges(func(string) bool { return false })
		due := w.parked.Due(time.Now())
		for _, e := range due[:min(len(due), parkedPerRound)] {
			if w.stopping() {
				return errStopped
			}
			now, err := w.tryParked(w.parked.Snapshot(e))
			if err == nil {
				err = w.recordParked(e, now)
			}
			if err != nil {
				return err
			}
			w.beat()
		}
		recs := w.dequeue(w.g.c.MaxBatch)
		if len(recs) > 0 {
			b, err := w.scan(recs, &w.buf)
			if err != nil {
				return err
			}
			if len(b.items) > 0 {
				if err := w.apply(b, w.read); err != nil {
					return err
				}
				w.alone = false
			}
			w.reached(w.read)
			w.setOldestInWork(time.Time{})
		}
		if len(due) > 0 || len(recs) > 0 {
			continue
		}
		w.buf.release()
		timer.Reset(w.pause())
		select {
		case <-w.wake:
		case <-timer.C:
		case <-w.drain:
		case <-w.ctx.Done():
		}
	}
}

// apply handles a batch in order and moves the checkpoint to end. If the batch
// fails, it is halved until the event that fails is alone.
func (w *worker) apply(b batch, end Mark) error {
	var wait dependencyWait
	defer wait.abandon()
	var pauses *backoff.ExponentialBackOff // between tries in place
	for tries := 1; ; {
		err := w.try(b, end)
		switch {
		case err == nil:
			wait.end()
			return nil
		case endsWorker(err):
			return err
		case w.ctx.Err() != nil:
			return errStopped
		}
		d := w.retryRule.Decide(parked.Failure{Cause: err, Tries: tries}, time.Now())
		if d.Action == parked.Wait {
			if err := wait.forTurn(w, err, noSlot); err != nil {
				return err
			}
			continue
		}
		wait.end()
		switch alone := len(b.items) == 1; {
		case d.Action == parked.TryAgain && (alone || pgerr.Conflict(err)):
			tries++
			if pauses == nil {
				pauses = newInPlaceBackoff()
			}
			if err := w.sleep(pauses.NextBackOff()); err != nil {
				return err
			}
		case alone:
			return w.applyDecision(b.items[0], end, err, d)
		default:
			mid := len(b.items) / 2
			if err := w.apply(b.part(0, mid), b.items[mid].before); err != nil {
				return err
			}
			return w.apply(b.part(mid, len(b.items)), end)
		}
	}
}

// applyDecision does what was decided about an event that failed, in one transaction
// with the move of the checkpoint to end.
func (w *worker) applyDecision(i *item, end Mark, cause error, d parked.Decision) error {
	rows, err := w.failed(i, cause, d)
	if err != nil {
		return err
	}
	return w.untilAvailable(func() error { return w.commit(end, rows, nil, nil) })
}

// try calls the handler once with the events of a batch, and commits what belongs to
// them. Events that wait behind a parked event of their key become rows instead.
func (w *worker) try(b batch, end Mark) error {
	events := b.events
	var waiting []*item
	for n, i := range b.items {
		switch {
		case w.blocked(i):
			if waiting == nil {
				events = slices.Clone(events[:n])
			}
			waiting = append(waiting, i)
		case i.fault != nil:
			return i.fault
		case waiting != nil:
			events = append(events, *i.event)
		}
	}
	rows, err := w.waitingRows(waiting)
	if err != nil {
		return err
	}
	if w.g.c.Batch != nil && len(events) > 0 {
		if err := w.call(func(ctx context.Context) error { return w.g.c.Batch(ctx, events) }); err != nil {
			return err
		}
	}
	apply := w.g.c.Rows
	if len(events) == 0 {
		apply = nil
	}
	if w.g.c.Batch != nil && len(rows) == 0 {
		// The effect has happened. The checkpoint is written a little later, in one
		// statement for all partitions, because a batch that waited for a commit of
		// its own would take several times as long as its handler.
		w.reached(end)
	} else if err := w.commit(end, rows, apply, events); err != nil {
		return err
	}
	w.g.r.state.metrics.handled(w.g.c.Name, len(events))
	return nil
}

// blocked reports whether a fresh record must wait behind a parked event of its key.
func (w *worker) blocked(i *item) bool {
	return !w.telemetry && w.parked.Blocks(i.key, i.event.Offset)
}

// commit moves the checkpoint to end, and writes parked rows and a read model's rows
// in the same transaction.
func (w *worker) commit(end Mark, rows []*parked.Event, apply func(context.Context, pgx.Tx, []eventlog.Event) error, events []eventlog.Event) error {
	w.commitMu.Lock()
	defer w.commitMu.Unlock()
	alone := func() error {
		err := w.commitAlone(end, rows, apply, events)
		w.alone = w.alone || err != nil
		return err
	}
	var err error
	if apply == nil || len(rows) > 0 || len(events) > combineLimit || w.telemetry || w.alone {
		err = alone()
	} else {
		err = w.commitWithOthers(end, events, alone)
	}
	if err != nil {
		return err
	}
	w.checkpointMoved(end)
	w.addParked(rows)
	return nil
}

// commitAlone is commit in a transaction of this worker only. The checkpoint is moved
// first: if two instances believe that they own the partition, the second waits there
// and changes nothing else.
func (w *worker) commitAlone(end Mark, rows []*parked.Event, apply func(context.Context, pgx.Tx, []eventlog.Event) error, events []eventlog.Event) error {
	return w.call(func(ctx context.Context) error {
		return w.handlerTx(ctx, func(tx pgx.Tx) error {
			if err := w.cp.Move(ctx, tx, end); err != nil {
				return ownError(err)
			}
			if err := parked.Insert(ctx, tx, w.source(), rows); err != nil {
				return ownError(err)
			}
			if apply != nil {
				return apply(ctx, tx, events)
			}
			return nil
		})
	})
}
