package consumer

import (
	"context"
	"errors"
	"slices"
	"time"

	"tomato/eventlog/consumer/parked"
)

const (
	// flushInterval is the pause between writes of checkpoints. After a crash, the
	// events of this time are handled again. With 50 ms, these writes were a sixth of
	// the work of Postgres.
	flushInterval      = 200 * time.Millisecond
	quietFlushInterval = 100 * time.Millisecond // for a position that only claims have moved
	lookInterval       = 500 * time.Millisecond // how soon a replay or discard is noticed
	endsInterval       = time.Second            // between reads of the ends of the topics
)

// upkeep does what is due from time to time, until ctx ends. It writes the
// checkpoints that no transaction of a worker writes, reads the ends of the topics,
// and looks for parked rows that an operator has changed.
func (s *session) upkeep(ctx context.Context) {
	g := s.g
	tick := time.NewTicker(flushInterval)
	defer tick.Stop()
	var ends, looked time.Time // when each was last done
	for {
		var now time.Time
		select {
		case now = <-tick.C:
		case <-ctx.Done():
			return
		}
		g.mu.Lock()
		ws := make([]*worker, 0, len(g.workers))
		for _, w := range g.workers {
			ws = append(ws, w)
		}
		g.mu.Unlock()
		if err := g.flush(ctx, ws, now); err != nil {
			if errors.Is(err, ErrFenced) {
				s.fail(err)
				return
			}
			if ctx.Err() == nil {
				g.log.Debug("write checkpoints", "err", err)
			}
		}
		if now.Sub(looked) >= g.r.state.lookInterval {
			looked = now
			g.lookForChanges(ctx, ws)
		}
		if now.Sub(ends) >= endsInterval {
			ends = now
			ectx, cancel := context.WithTimeout(ctx, readTimeout)
			list, err := g.adm.ListEndOffsets(ectx, g.c.Topics...)
			cancel()
			if err == nil {
				for _, w := range ws {
					if o, ok := list.Lookup(w.cp.Topic, w.cp.Partition); ok && o.Err == nil {
						w.sawEnd(o.Offset)
						w.noticeStall(o.Offset, now)
					}
				}
			}
		}
	}
}

// flush writes the checkpoints of all workers that are further than theirs, in one
// statement. It leaves out a worker whose own transaction is moving its checkpoint,
// unless now is zero: then it waits for that transaction.
func (g *group) flush(ctx context.Context, ws []*worker, now time.Time) error {
	var locked []*worker
	var cps []*Checkpoint
	var to []Mark
	for _, w := range ws {
		if now.IsZero() {
			w.commitMu.Lock()
		} else if !w.commitMu.TryLock() {
			continue
		}
		m, ok := w.toFlush(now)
		if !ok {
			w.commitMu.Unlock()
			continue
		}
		locked, cps, to = append(locked, w), append(cps, w.cp), append(to, m)
	}
	if len(locked) == 0 {
		return nil
	}
	defer func() {
		for _, w := range locked {
			w.commitMu.Unlock()
		}
	}()
	// The end of the session must not cancel the statement. Nobody would know
	// whether it had moved the checkpoints, and the last positions of a drain could
	// not be written. So the statement has a timeout of its own.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readTimeout)
	defer cancel()
	if err := moveAll(ctx, g.db(), cps, to); err != nil {
		return err
	}
	for i, w := range locked {
		w.checkpointMoved(to[i])
	}
	return nil
}

// lookForChanges tells the workers about parked rows that an operator has changed.
// If the rows cannot be read, the next call looks again.
func (g *group) lookForChanges(ctx context.Context, ws []*worker) {
	if !slices.ContainsFunc(ws, func(w *worker) bool { return w.hasParked.Load() }) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	changed, err := parked.LoadChanged(ctx, g.db(), g.c.Name, g.c.Generation)
	if err != nil {
		g.log.Debug("read parked rows", "err", err)
		return
	}
	for _, w := range ws {
		if rows := changed[w.cp.TopicPartition]; len(rows) > 0 {
			w.tellChanges(rows)
		}
	}
}
