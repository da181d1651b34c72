package consumer

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"tomato/eventlog"
)

// This file merges the small transactions of a Rows consumer's workers. While one of
// them is under way, the commits of other partitions wait, and the next transaction
// takes all of them. This is the group commit of databases: a consumer that keeps up
// commits each event at once, and one that is busy commits many events of many
// partitions for the price of one transaction.

// combineLimit is the largest number of events of one worker that are committed
// together with those of others. A worker with more events, which is catching up, is
// better off with a transaction of its own, because those run in parallel.
const combineLimit = 64

// combineWait is how long a worker waits for a common transaction to begin. If the
// transaction that is under way takes longer, something holds up one of its
// partitions, and that must not hold up the others.
const combineWait = time.Second

// combiner decides which worker of a group makes the next common transaction. Safe for
// concurrent use.
type combiner struct {
	mu      sync.Mutex
	busy    bool          // a common transaction is under way
	began   time.Time     // when that transaction began
	waiting []*rowsCommit // for the end of it, in the order in which they came

	combined atomic.Int64 // commits that another worker's transaction has made, for tests
}

// rowsCommit is what one worker wants to commit: the rows of its events, and the move of
// its checkpoint to end.
type rowsCommit struct {
	w      *worker
	end    Mark
	events []eventlog.Event
	turn   chan turn // has a buffer of one
}

// turn tells a waiting worker what to do.
type turn struct {
	lead []*rowsCommit // not nil: make the transaction for these, the first of which is its own
	err  error         // if lead is nil: what came of the transaction, which another worker has made
}

// commitWithOthers moves the checkpoint to end and writes the rows of events. It does
// both in one transaction with other workers of the group if they have something to
// commit, too. Otherwise, or if that transaction fails or does not begin soon, it calls
// alone, which does it for this worker only. The caller holds commitMu, and notes that its checkpoint has
// moved.
func (w *worker) commitWithOthers(end Mark, events []eventlog.Event, alone func() error) error {
	k, c := &w.g.combiner, &rowsCommit{w: w, end: end, events: events, turn: make(chan turn, 1)}
	k.mu.Lock()
	switch {
	case !k.busy:
		k.busy, k.began = true, time.Now()
		c.turn <- turn{lead: []*rowsCommit{c}}
	case time.Since(k.began) >= combineWait:
		k.mu.Unlock()
		return alone()
	default:
		k.waiting = append(k.waiting, c)
	}
	k.mu.Unlock()
	timer := time.NewTimer(combineWait)
	defer timer.Stop()
	var t turn
	select {
	case t = <-c.turn:
	case <-timer.C:
		if k.leave(c) {
			return alone()
		}
		t = <-c.turn
	case <-w.ctx.Done():
		if k.leave(c) {
			return w.ctx.Err()
		}
		t = <-c.turn // another worker has taken it into its transaction, which ends soon, because this context has ended
	}
	if len(t.lead) == 1 {
		defer k.next(w.g.c.MaxBatch)
		return alone()
	}
	if t.lead != nil {
		t.err = w.g.commitTogether(t.lead)
		if t.err == nil {
			k.combined.Add(int64(len(t.lead) - 1))
		}
		for _, m := range t.lead[1:] {
			m.turn <- turn{err: t.err}
		}
		k.next(w.g.c.MaxBatch)
	}
	if t.err != nil { // alone shows whether this worker was the cause
		return alone()
	}
	return nil
}

// leave takes c out of those that wait. It returns false if c does not wait any more.
func (k *combiner) leave(c *rowsCommit) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	i := slices.Index(k.waiting, c)
	if i >= 0 {
		k.waiting = slices.Delete(k.waiting, i, i+1)
	}
	return i >= 0
}

// next hands the lead to the worker that has waited longest. That worker takes as many
// of the others as fit into maxEvents.
func (k *combiner) next(maxEvents int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.waiting) == 0 {
		k.busy = false
		return
	}
	n, events := 1, len(k.waiting[0].events)
	for n < len(k.waiting) && events+len(k.waiting[n].events) <= maxEvents {
		events += len(k.waiting[n].events)
		n++
	}
	k.began = time.Now()
	lead := slices.Clone(k.waiting[:n])
	k.waiting = slices.Delete(k.waiting, 0, n)
	lead[0].turn <- turn{lead: lead}
}

// commitTogether moves the checkpoints of all members, and writes the rows of their
// events, in one transaction, within handlerTimeout. It ends early if the context of one
// member ends. If it fails, nothing of it has taken effect, apart from a commit whose
// answer was lost; then the checkpoints have moved, and each member finds that out on
// its own.
func (g *group) commitTogether(members []*rowsCommit) error {
	lead := members[0].w
	ctx, cancel := context.WithTimeout(lead.ctx, handlerTimeout)
	defer cancel()
	for _, m := range members[1:] {
		defer context.AfterFunc(m.w.ctx, cancel)()
	}
	ordered := slices.Clone(members) // the handler is given the events of one topic after the other
	slices.SortFunc(ordered, func(a, b *rowsCommit) int {
		return eventlog.CompareTopicPartitions(a.w.cp.TopicPartition, b.w.cp.TopicPartition)
	})
	var cps []*Checkpoint
	var ends []Mark
	var events []eventlog.Event
	for _, m := range ordered {
		cps, ends, events = append(cps, m.w.cp), append(ends, m.end), append(events, m.events...)
	}
	return lead.handlerTx(ctx, func(tx pgx.Tx) error {
		if err := moveAll(ctx, tx, cps, ends); err != nil {
			return err
		}
		return g.c.Rows(ctx, tx, events)
	})
}
