package consumer

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"tomato/eventlog"
	"tomato/eventlog/pgerr"
)

// --- batches

// runBatches is the loop of Rows and Batch consumers.
func (w *worker) runBatches() error {
	const parkedPerRound = 64 // then fresh records have their turn again
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		w.beat()
		if w.stopping() {
			return errStopped
		}
		w.takeTold(func(string) bool { return false })
		due := w.parked.due(time.Now())
		for _, it := range due[:min(len(due), parkedPerRound)] {
			if w.stopping() {
				return errStopped
			}
			now, gone, err := w.runParked(w.parked.snapshot(it))
			if err == nil {
				err = w.settle(it, now, gone)
			}
			if err != nil {
				return err
			}
			w.beat()
		}
		recs := w.take(w.g.c.MaxBatch)
		if len(recs) > 0 {
			b, err := w.scan(recs, &w.room)
			if err != nil {
				return err
			}
			if len(b.items) > 0 {
				if err := w.apply(b, w.read); err != nil {
					return err
				}
			}
			w.at(w.read)
			w.head(time.Time{})
		}
		if len(due) > 0 || len(recs) > 0 {
			continue
		}
		w.room.forget()
		timer.Reset(w.pause())
		select {
		case <-w.wake:
		case <-timer.C:
		case <-w.drain:
		case <-w.ctx.Done():
		}
	}
}

// apply handles a batch in order, and moves the checkpoint to end: what fails is
// isolated by halving and parked, what queues behind it becomes rows.
func (w *worker) apply(b batch, end Mark) error {
	var away absence
	defer away.gaveUp()
	for try := 1; ; {
		err := w.attempt(b, end)
		switch {
		case err == nil:
			away.over()
			return nil
		case giveUp(err):
			return err
		case w.ctx.Err() != nil:
			return errStopped
		case pgerr.Unavailable(err):
			if err := away.wait(w, err, anyPlace); err != nil {
				return err
			}
			continue
		}
		away.over()
		retriable := !errors.Is(err, eventlog.ErrPoison)
		if try < w.g.c.InPlaceTries && retriable && (len(b.items) == 1 || pgerr.Conflict(err)) {
			try++
			if err := w.sleep(inPlaceWait(try)); err != nil {
				return err
			}
			continue
		}
		if len(b.items) == 1 {
			return w.park(b.items[0], end, err)
		}
		mid := len(b.items) / 2
		if err := w.apply(b.part(0, mid), b.items[mid].before); err != nil {
			return err
		}
		return w.apply(b.part(mid, len(b.items)), end)
	}
}

// attempt hands a batch to the handler once, all together, but for those behind a
// parked record, and commits what goes with it.
func (w *worker) attempt(b batch, end Mark) error {
	events := b.events
	var queued []*item
	for n, i := range b.items {
		switch {
		case w.blocked(i):
			if queued == nil {
				events = slices.Clone(events[:n])
			}
			queued = append(queued, i)
		case i.bad != nil:
			return i.bad
		case queued != nil:
			events = append(events, *i.event)
		}
	}
	rows, err := w.behindParked(queued)
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
		// The effect has happened; that it is known may come a little later, in
		// one statement for all partitions. A batch that waited for a commit of its
		// own would be several times as slow as its handler.
		w.at(end)
	} else if err := w.commit(end, rows, apply, events); err != nil {
		return err
	}
	w.g.r.state.metrics.handled(w.g.c.Name, len(events))
	return nil
}

// blocked says whether a fresh record must queue behind a parked one of its key.
func (w *worker) blocked(i *item) bool {
	return !w.telemetry && w.parked.blocks(i.key, i.event.Offset)
}

// park writes the row of a record that failed, and moves the checkpoint.
func (w *worker) park(i *item, end Mark, cause error) error {
	if w.telemetry {
		w.skip(i.event.Offset, cause)
		return w.insist(func() error { return w.commit(end, nil, nil, nil) })
	}
	it, err := w.newlyFailed(i, cause)
	if err != nil {
		return err
	}
	return w.insist(func() error { return w.commit(end, []*parkedItem{it}, nil, nil) })
}

// commit moves the checkpoint to end, with parked rows and a read model's rows
// in the same transaction. The move comes first: of two who think that they own
// the partition, the second waits there, and touches nothing else.
func (w *worker) commit(end Mark, rows []*parkedItem, apply func(context.Context, pgx.Tx, []eventlog.Event) error, events []eventlog.Event) error {
	w.commitMu.Lock()
	defer w.commitMu.Unlock()
	err := w.call(func(ctx context.Context) error {
		return w.rawTx(ctx, func(tx pgx.Tx) error {
			if err := w.cp.Move(ctx, tx, end); err != nil {
				return ownWork(err)
			}
			if err := insertParked(ctx, tx, w.cp, rows); err != nil {
				return ownWork(err)
			}
			if apply != nil {
				return apply(ctx, tx, events)
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	w.moved(end)
	w.addParked(rows)
	return nil
}

// inPlaceWait is the pause before a further try in place, with full jitter.
func inPlaceWait(try int) time.Duration {
	return jitter(10 * time.Millisecond << try)
}

func jitter(most time.Duration) time.Duration { return rand.N(most) + time.Millisecond }
