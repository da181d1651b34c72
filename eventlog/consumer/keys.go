package consumer

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"

	"tomato/eventlog/consumer/parked"
)

// keyedWorker is the state of the loop of an Each consumer. Only the goroutine of the
// loop uses it. The loop starts a goroutine for each key that has a slot. Such a
// goroutine handles the first event of the key's queue and sends the outcome to results.
type keyedWorker struct {
	*worker
	unfinished []*entry             // from the oldest record that is not done, in offset order
	queues     map[string]*keyQueue // by key; only those with something in them
	ready      []string             // keys whose queues wait for a slot
	running    int
	results    chan keyResult

	begun        int64 // highest offset whose handling was begun
	draining     bool
	callsChecked time.Time // when checkCalls last looked
}

// entry is a record in keyedWorker.unfinished.
type entry struct {
	*item
	done bool
}

// keyQueue is what is under way or waits for one key.
type keyQueue struct {
	entries []*entry      // fresh records; the first one is under way if the key has a slot and parked is nil
	parked  *parked.Event // a parked event that is under way or will be next
	callAt  atomic.Int64  // when the running call of the handler began, Unix nanoseconds; 0: none is running
}

// keyResult is what became of the first event of a key queue.
type keyResult struct {
	key    string
	rows   []*parked.Event // of a fresh event that failed: its row
	parked parkedOutcome   // of a parked event
	err    error           // with which the worker cannot go on
}

// runEach is the loop of Each consumers. It handles the events of a key in order, and
// up to ConcurrentKeys keys at the same time. The position is that of the oldest
// record that is not done.
func (w *worker) runEach() error {
	k := &keyedWorker{worker: w, queues: map[string]*keyQueue{}, results: make(chan keyResult, w.g.c.ConcurrentKeys)}
	err := k.loop()
	// Wait for the goroutines that are still running, so that all of them have ended
	// when the worker is done. They stop when drain is closed or ctx ends.
	//
	// The next owner of the partition begins at the oldest record that is not done, and
	// handles everything after it again. Before a drain ends, the records before the
	// last one that was begun are therefore handled too (start). Otherwise one record
	// that still waits for its turn would make the next owner repeat later records that
	// are done already.
	k.draining = true
	for {
		if errors.Is(err, errStopped) && k.ctx.Err() == nil {
			k.start()
		}
		if k.running == 0 {
			break
		}
		r := <-k.results
		k.running--
		if r.err == nil {
			r.err = k.finish(r)
		}
		if r.err != nil {
			if errors.Is(err, errStopped) {
				err = r.err
			}
			k.ready = nil // the next owner handles the rest again
		}
	}
	k.advance()
	return err
}

func (k *keyedWorker) loop() error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		k.beat()
		k.checkCalls()
		if k.stopping() {
			return errStopped
		}
		k.applyChanges(func(key string) bool { return k.queues[key] != nil })
		k.queueParked()
		if free := k.g.c.MaxBatch - len(k.unfinished); free > 0 {
			if recs := k.dequeue(free); len(recs) > 0 {
				b, err := k.scan(recs, &scanBuffer{})
				if err != nil {
					return err
				}
				if err := k.admit(b.items); err != nil {
					return err
				}
				k.advance()
			}
		}
		k.start()
		// A wake-up for which there is nothing to do is cheap, and several are merged.
		timer.Reset(k.pause())
		select {
		case r := <-k.results:
			k.running--
			if r.err != nil {
				return r.err
			}
			if err := k.finish(r); err != nil {
				return err
			}
			k.advance()
		case <-k.wake:
		case <-timer.C:
		case <-k.drain:
		case <-k.ctx.Done():
		}
	}
}

// checkCalls notes when the longest running call began. Without it nobody would see
// a handler that never returns, because the loop's heartbeat goes on beside it.
func (k *keyedWorker) checkCalls() {
	now := time.Now()
	if now.Sub(k.callsChecked) < time.Second {
		return
	}
	k.callsChecked = now
	oldest := int64(0)
	for _, q := range k.queues {
		if at := q.callAt.Load(); at > 0 && (oldest == 0 || at < oldest) {
			oldest = at
		}
	}
	k.longestCallAt.Store(oldest)
}

// admit puts fresh records into their key queues. It parks those that must wait
// behind a parked event of their key.
func (k *keyedWorker) admit(items []*item) error {
	var behind []*entry
	for _, i := range items {
		e := &entry{item: i}
		k.unfinished = append(k.unfinished, e)
		if k.blocked(i) {
			behind = append(behind, e)
			continue
		}
		k.push(e)
	}
	return k.parkBehind(behind)
}

func (k *keyedWorker) push(e *entry) {
	q := k.queues[e.key]
	if q == nil {
		q = &keyQueue{}
		k.queues[e.key] = q
		k.ready = append(k.ready, e.key)
	}
	q.entries = append(q.entries, e)
}

// parkBehind writes the rows of records that wait behind a parked event of their key.
// With their rows written they are done, as far as the position is concerned.
func (k *keyedWorker) parkBehind(entries []*entry) error {
	if len(entries) == 0 {
		return nil
	}
	items := make([]*item, len(entries))
	for n, e := range entries {
		items[n] = e.item
	}
	rows, err := k.waitingRows(items)
	if err != nil {
		return err
	}
	if err := k.writeRows(rows); err != nil {
		return err
	}
	k.addParked(rows)
	for _, e := range entries {
		e.done = true
	}
	return nil
}

// queueParked makes key queues for parked events that are due. If a key has fresh
// records under way, which are older ones that are handled again after a restart, its
// parked event comes later.
func (k *keyedWorker) queueParked() {
	for _, e := range k.parked.Due(time.Now()) {
		if e.Offset >= k.read.Next || k.queues[e.Key] != nil {
			continue
		}
		k.queues[e.Key] = &keyQueue{parked: e}
		k.ready = append(k.ready, e.Key)
	}
}

// start starts the first event of each ready key queue, while there are free slots.
func (k *keyedWorker) start() {
	for k.running-int(k.yieldedSlots.Load()) < k.g.c.ConcurrentKeys && len(k.ready) > 0 {
		key := k.ready[0]
		k.ready = k.ready[1:]
		q := k.queues[key]
		if k.draining && (q.parked != nil || q.entries[0].event.Offset > k.begun) {
			continue
		}
		k.running++
		if q.parked != nil {
			e := k.parked.Snapshot(q.parked)
			go func() {
				r := keyResult{key: key}
				q.callAt.Store(time.Now().UnixNano())
				r.parked, r.err = k.tryParked(e)
				q.callAt.Store(0)
				k.results <- r
			}()
			continue
		}
		e := q.entries[0]
		k.begun = max(k.begun, e.event.Offset)
		go func() {
			rows, err := k.handle(e.item, &q.callAt)
			k.results <- keyResult{key: key, rows: rows, err: err}
		}()
	}
}

// handle handles one fresh event until it is done or parked. It returns the row of an
// event that it parked.
func (w *worker) handle(i *item, callAt *atomic.Int64) ([]*parked.Event, error) {
	var wait dependencyWait
	defer wait.abandon()
	var s slot
	defer s.release(w)
	var pauses *backoff.ExponentialBackOff // between tries in place
	for tries := 1; ; {
		err := i.fault
		if err == nil {
			callAt.Store(time.Now().UnixNano())
			err = w.call(func(ctx context.Context) error { return w.g.c.Each(ctx, *i.event) })
			callAt.Store(0)
		}
		switch {
		case err == nil:
			wait.end()
			w.g.r.state.metrics.handled(w.g.c.Name, 1)
			return nil, nil
		case w.ctx.Err() != nil:
			return nil, errStopped
		}
		d := w.retryRule.Decide(parked.Failure{Cause: err, Tries: tries}, time.Now())
		if d.Action == parked.Wait {
			s.yield(w)
			if err := wait.forTurn(w, err, func() bool { return s.takeExtra(w) }); err != nil {
				return nil, err
			}
			continue
		}
		wait.end()
		if d.Action == parked.TryAgain {
			tries++
			if pauses == nil {
				pauses = newInPlaceBackoff()
			}
			if err := w.sleep(pauses.NextBackOff()); err != nil {
				return nil, err
			}
			continue
		}
		rows, err := w.failed(i, err, d)
		if err != nil || len(rows) == 0 {
			return nil, err
		}
		return rows, w.writeRows(rows)
	}
}

// slot is a key queue's permission to handle an event. A key queue that waits for an
// unavailable dependency yields its slot to another key, which may need something
// else. To try again it takes an extra slot; there are as many extra slots as
// ordinary ones.
type slot struct{ yielded, extra bool }

// yield gives the slot up, if the key queue has one.
func (s *slot) yield(w *worker) {
	if s.extra {
		<-w.extraSlots
		s.extra = false
	}
	if !s.yielded {
		s.yielded = true
		w.yieldedSlots.Add(1)
		w.wakeUp()
	}
}

// takeExtra takes an extra slot, and reports whether there was one.
func (s *slot) takeExtra(w *worker) bool {
	select {
	case w.extraSlots <- struct{}{}:
		s.extra = true
	default:
	}
	return s.extra
}

// release is called when the key queue's event is done.
func (s *slot) release(w *worker) {
	if s.extra {
		<-w.extraSlots
	}
	if s.yielded {
		w.yieldedSlots.Add(-1)
	}
}

// finish notes the result of a key queue's first event, and makes the queue ready for
// its next one.
func (k *keyedWorker) finish(r keyResult) error {
	q := k.queues[r.key]
	switch {
	case q.parked != nil:
		e := q.parked
		q.parked = nil
		if err := k.recordParked(e, r.parked); err != nil {
			return err
		}
	case len(r.rows) > 0:
		k.addParked(r.rows)
		q.entries[0].done = true
		rest := q.entries[1:]
		q.entries = nil
		if err := k.parkBehind(rest); err != nil {
			return err
		}
	default:
		q.entries[0].done = true
		q.entries = q.entries[1:]
	}
	if len(q.entries) > 0 {
		k.ready = append(k.ready, r.key)
	} else {
		delete(k.queues, r.key)
	}
	return nil
}

// advance moves the position over the records that are done.
func (k *keyedWorker) advance() {
	n := 0
	for n < len(k.unfinished) && k.unfinished[n].done {
		n++
	}
	k.unfinished = k.unfinished[n:]
	if len(k.unfinished) == 0 {
		k.unfinished = nil
		k.reached(k.read)
		k.setOldestInWork(time.Time{})
		return
	}
	k.reached(k.unfinished[0].before)
	k.setOldestInWork(k.unfinished[0].event.Timestamp)
}
