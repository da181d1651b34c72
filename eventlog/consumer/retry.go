package consumer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
	"tomato/eventlog/pgerr"
)

// --- parked records

// runParked tries a parked record, or takes away what was discarded. It does
// not change the set; settle does, with what comes back: gone, or the item as
// its row is now. The error is one to give up on.
func (w *worker) runParked(it parkedItem) (now parkedItem, gone bool, err error) {
	now, gone, err = w.tryParked(it)
	switch {
	case err == nil || giveUp(err):
	case errors.Is(err, errStale):
		now, gone, err = w.reload(it)
	case pgerr.Unavailable(err) || pgerr.Conflict(err):
		// No attempt. It comes up again by itself; its key waits, others do not.
		it.awayTries++
		it.due = time.Now().Add(jitter(min(50*time.Millisecond<<min(it.awayTries, 6), 2*time.Second)))
		w.log.Debug("parked record waits for what it needs", "offset", it.offset, "error", err)
		return it, false, nil
	}
	if err != nil && w.ctx.Err() != nil {
		err = errStopped
	}
	return now, gone, err
}

func (w *worker) reload(it parkedItem) (parkedItem, bool, error) {
	var now *parkedItem
	err := w.insist(func() (err error) {
		ctx, cancel := context.WithTimeout(w.ctx, readTimeout)
		defer cancel()
		now, err = scanParked(w.g.r.DB.QueryRow(ctx, `SELECT `+parkedColumns+` FROM tomato.parked WHERE id = $1`, it.id))
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		return ownWork(err)
	})
	if err != nil || now == nil {
		return it, err == nil, err
	}
	return *now, false, nil
}

func (w *worker) tryParked(it parkedItem) (parkedItem, bool, error) {
	remove := func(ctx context.Context, tx pgx.Tx) error {
		if err := w.cp.hold(ctx, tx); err != nil {
			return ownWork(err)
		}
		ok, err := deleteParked(ctx, tx, &it)
		if err == nil && !ok {
			err = errStale
		}
		return ownWork(err)
	}
	if it.state == stateDiscarded {
		return it, true, w.tx(w.ctx, func(tx pgx.Tx) error { return remove(w.ctx, tx) })
	}
	rec, err := w.recordOf(&it)
	var cause error
	switch {
	case errors.Is(err, errGone):
		cause = goneError{}
	case err != nil:
		return it, false, eventlog.UnavailableFrom("kafka", fmt.Errorf("read parked record at %d: %w", it.offset, err))
	default:
		e, perr := eventlog.ParseRecord(rec)
		switch {
		case perr != nil:
			cause = decodeError{perr}
		case w.g.c.Rows != nil:
			cause = w.call(func(ctx context.Context) error {
				return w.rawTx(ctx, func(tx pgx.Tx) error {
					if err := remove(ctx, tx); err != nil {
						return err
					}
					return w.g.c.Rows(ctx, tx, []eventlog.Event{e})
				})
			})
		default:
			// An operator may have discarded it in the meantime.
			if now, gone, err := w.reload(it); err != nil || gone || now.rev != it.rev {
				return now, gone, err
			}
			if w.g.c.Each != nil {
				cause = w.call(func(ctx context.Context) error { return w.g.c.Each(ctx, e) })
			} else {
				cause = w.call(func(ctx context.Context) error { return w.g.c.Batch(ctx, []eventlog.Event{e}) })
			}
			if cause == nil {
				err := w.insist(func() error { return w.tx(w.ctx, func(tx pgx.Tx) error { return remove(w.ctx, tx) }) })
				return it, err == nil, err
			}
		}
	}
	switch {
	case cause == nil:
		return it, true, nil
	case giveUp(cause) || errors.Is(cause, errStale) || pgerr.Unavailable(cause) || pgerr.Conflict(cause):
		return it, false, cause
	case w.ctx.Err() != nil:
		return it, false, errStopped
	}
	// A further failed attempt.
	next := it
	next.awayTries = 0
	stage := next.failed(cause, time.Now(), w.g.delays())
	w.countFailure(&next)
	if rec != nil {
		if err := w.copyTo(rec, &next, stage); err != nil {
			return it, false, err
		}
	}
	err = w.insist(func() error {
		return w.tx(w.ctx, func(tx pgx.Tx) error {
			if err := w.cp.hold(w.ctx, tx); err != nil {
				return err
			}
			// Each try begins at the row's rev: one that was rolled back has not
			// raised it, and the failed attempt would be taken for unknown.
			next.rev = it.rev
			ok, err := updateParked(w.ctx, tx, &next)
			if err == nil && !ok {
				err = errStale
			}
			return ownWork(err)
		})
	})
	return next, false, err
}

// recordOf returns the source record of a parked item: from memory, from its
// source position, or from its newest copy.
func (w *worker) recordOf(it *parkedItem) (*kgo.Record, error) {
	if it.rec != nil {
		return it.rec, nil
	}
	var rec *kgo.Record
	err := fetchAt(w.ctx, w.g.r.Kafka, w.cp.TopicPartition, it.offset, func(r *kgo.Record) {
		if r.Offset == it.offset {
			rec = r
		} else {
			w.parked.hold(r) // what comes along is often what comes next
		}
	})
	if errors.Is(err, errGone) && it.copyOffset >= 0 {
		var c *kgo.Record
		err = fetchAt(w.ctx, w.g.r.Kafka, eventlog.TopicPartition{Topic: it.copyTopic, Partition: w.cp.Partition}, it.copyOffset, func(r *kgo.Record) {
			if r.Offset == it.copyOffset {
				c = r
			}
		})
		if err == nil {
			if rec = originalOf(c, w.cp.TopicPartition, it.offset); rec == nil {
				err = errGone
			}
		}
	}
	return rec, err
}

// settle takes the outcome of runParked into the set.
func (w *worker) settle(it *parkedItem, now parkedItem, gone bool) error {
	if gone {
		w.parked.remove(it)
		w.hasParked.Store(w.parked.len() > 0)
		return nil
	}
	died := it.state != stateDead && now.state == stateDead
	w.parked.set(it, now)
	if died && !eventlog.IsAggregate(w.cp.Topic) {
		return w.keepFollowers(it.key)
	}
	return nil
}

// keepAll does what an earlier owner may not have come to: a record died, and
// its crash was before all that queues behind it had been copied.
func (w *worker) keepAll() error {
	if eventlog.IsAggregate(w.cp.Topic) {
		return nil
	}
	for _, key := range w.parked.deadKeys() {
		if err := w.keepFollowers(key); err != nil {
			return err
		}
	}
	return nil
}

// keepFollowers copies what queues behind a record that just died, where the
// source topic does not keep it for ever.
func (w *worker) keepFollowers(key string) error {
	for _, f := range w.parked.followers(key) {
		if f.copyOffset >= 0 {
			continue
		}
		w.beat()
		var rec *kgo.Record
		err := w.insist(func() (err error) {
			it := w.parked.snapshot(f)
			if rec, err = w.recordOf(&it); err != nil && !errors.Is(err, errGone) {
				err = eventlog.UnavailableFrom("kafka", err)
			}
			return err
		})
		if errors.Is(err, errGone) {
			continue // shows when its turn comes
		}
		if err != nil {
			return err
		}
		next := w.parked.snapshot(f)
		next.class = "waiting"
		if err := w.copyTo(rec, &next, eventlog.DeadLetter); err != nil {
			return err
		}
		err = w.insist(func() error {
			return w.tx(w.ctx, func(tx pgx.Tx) error {
				if err := w.cp.hold(w.ctx, tx); err != nil {
					return err
				}
				next.rev = f.rev
				// A row that an operator changed meanwhile keeps the older copy.
				_, err := updateParked(w.ctx, tx, &next)
				return ownWork(err)
			})
		})
		if err != nil {
			return err
		}
		w.parked.set(f, next)
	}
	return nil
}

// tell hands rows over that an operator has changed.
func (w *worker) tell(rows []parkedItem) {
	w.mu.Lock()
	w.changed = rows
	w.mu.Unlock()
	w.poke()
}

// takeTold takes what tell brought into the set. busy says which keys have
// something under way and are left for the next time.
func (w *worker) takeTold(busy func(key string) bool) {
	w.mu.Lock()
	rows := w.changed
	w.changed = nil
	w.mu.Unlock()
	for _, row := range rows {
		it := w.parked.byOffset[row.offset]
		if it != nil && it.rev < row.rev && !busy(it.key) {
			w.parked.set(it, row)
		}
	}
}

// pause returns how long the worker may sleep when nothing wakes it.
func (w *worker) pause() time.Duration {
	d := time.Second
	if next := w.parked.nextDue; !next.IsZero() {
		d = min(d, max(time.Until(next), time.Millisecond))
	}
	return d
}
