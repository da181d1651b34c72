package consumer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
)

// errStopped ends a worker that was told to stop.
var errStopped = errors.New("stopped")

// errStale says that a parked row is not as the worker knew it: an operator
// has changed it.
var errStale = errors.New("parked row has changed")

// worker handles one partition for one consumer, from its assignment until it
// is stopped or fails.
type worker struct {
	s   *session
	g   *group
	log *slog.Logger

	ctx    context.Context // of handlers; outlives the session's while draining
	cancel context.CancelFunc
	drain  chan struct{} // closed: begin nothing new
	once   sync.Once
	done   chan struct{} // closed: run has returned
	wake   chan struct{} // there may be something to do

	// commitMu is held while the checkpoint is being moved; it guards cp.Mark.
	commitMu sync.Mutex
	cp       *Checkpoint

	telemetry bool // IsTelemetry of the topic

	mu        sync.Mutex // guards what follows
	queue     []*kgo.Record
	bytes     int
	fetchHeld bool      // fetching is paused
	pos       Mark      // done up to here; what differs from cp is to be flushed
	dirty     time.Time // since when it differs
	headTime  time.Time // timestamp of the oldest record handed out and not done
	end       int64     // of the log, as last seen
	behind    time.Time // since when end is known to be past pos
	changed   []parkedItem
	absent    map[*absence]*absent // what lanes wait for
	overErr   error

	suspended atomic.Int32  // lanes of an Each consumer that wait for what is away, and have no place
	resumed   chan struct{} // one in it for each of these that is at work again

	skips     skips
	hasParked atomic.Bool // so that an operator may have changed a row
	heartbeat atomic.Int64
	calling   atomic.Int64 // since when the longest call of an Each handler is under way, Unix nanoseconds; 0: none is

	// Of the goroutine that runs run, and nobody else.
	read   Mark // handed out up to here
	parked *parkedSet
	room   scanRoom // of runBatches
}

func newWorker(s *session, cp *Checkpoint, parked *parkedSet) *worker {
	ctx, cancel := context.WithCancel(context.Background())
	w := &worker{
		s: s, g: s.g, cp: cp, telemetry: IsTelemetry(cp.Topic), ctx: ctx, cancel: cancel,
		log:    s.g.log.With("topic", cp.Topic, "partition", cp.Partition),
		absent: map[*absence]*absent{}, resumed: make(chan struct{}, s.g.c.Lanes), drain: make(chan struct{}), done: make(chan struct{}), wake: make(chan struct{}, 1),
		pos: cp.Mark, end: cp.Next, read: cp.Mark, parked: parked,
	}
	w.ctx = context.WithValue(w.ctx, workerKey{}, w)
	w.hasParked.Store(parked.len() > 0)
	w.beat()
	return w
}

func (w *worker) beat() { w.heartbeat.Store(time.Now().UnixNano()) }

func (w *worker) run() {
	defer close(w.done)
	err := w.keepAll()
	switch {
	case err != nil:
	case w.g.c.Each != nil:
		err = w.runEach()
	default:
		err = w.runBatches()
	}
	if err != nil && !errors.Is(err, errStopped) && w.ctx.Err() == nil {
		w.s.fail(fmt.Errorf("%s/%d: %w", w.cp.Topic, w.cp.Partition, err))
	}
}

// stop ends the worker. With a bound, what is under way may end within it and
// the position is written; without, everything is broken off.
func (w *worker) stop(bound time.Duration) {
	w.once.Do(func() { close(w.drain) })
	if bound > 0 {
		t := time.NewTimer(bound)
		defer t.Stop()
		select {
		case <-w.done:
			ctx, cancel := context.WithTimeout(w.ctx, bound)
			if err := w.g.flush(ctx, []*worker{w}, time.Time{}); err != nil {
				w.log.Warn("last position not written; its events come again", "error", err)
			}
			cancel()
		case <-t.C:
			w.log.Warn("handler still at work when its partition went away", "bound", bound)
		}
	}
	w.cancel()
	t := time.NewTimer(lostTimeout)
	defer t.Stop()
	select {
	case <-w.done:
	case <-t.C:
		w.log.Error("handler does not heed its context")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log.Info("partition released", "position", w.pos.Next, "drained", bound > 0)
}

func (w *worker) stopping() bool {
	select {
	case <-w.drain:
		return true
	default:
		return w.ctx.Err() != nil
	}
}

// --- the queue

func (w *worker) enqueue(recs []*kgo.Record, end int64) {
	w.mu.Lock()
	w.queue = append(w.queue, recs...)
	for _, r := range recs {
		w.bytes += len(r.Value)
	}
	w.end = max(w.end, end)
	if !w.fetchHeld && (len(w.queue) > 2*w.g.c.MaxBatch || w.bytes > maxQueueBytes) {
		w.fetchHeld = true
		w.holdFetching(true)
	}
	w.mu.Unlock()
	w.poke()
}

// holdFetching is called with mu held, so that hold and release of one
// partition do not overtake each other.
func (w *worker) holdFetching(hold bool) {
	w.g.mu.Lock()
	cl := w.g.client
	w.g.mu.Unlock()
	if cl == nil {
		return
	}
	m := map[string][]int32{w.cp.Topic: {w.cp.Partition}}
	if hold {
		cl.PauseFetchPartitions(m)
	} else {
		cl.ResumeFetchPartitions(m)
	}
}

func (w *worker) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// take returns up to n of the records that wait; none while too much is parked.
func (w *worker) take(n int) []*kgo.Record {
	over := w.overBudget()
	w.mu.Lock()
	defer w.mu.Unlock()
	if (over == nil) != (w.overErr == nil) {
		if over != nil {
			w.log.Error("partition paused", "reason", over)
		} else {
			w.log.Info("partition goes on: enough has been replayed or discarded")
		}
	}
	w.overErr = over
	if over != nil || len(w.queue) == 0 {
		return nil
	}
	n = min(n, len(w.queue))
	out := w.queue[:n:n]
	w.queue = w.queue[n:]
	if len(w.queue) == 0 {
		w.queue = nil
	}
	for _, r := range out {
		w.bytes -= len(r.Value)
	}
	if w.headTime.IsZero() {
		w.headTime = out[0].Timestamp
	}
	if w.fetchHeld && len(w.queue) < w.g.c.MaxBatch/2+1 && w.bytes < maxQueueBytes/2 {
		w.fetchHeld = false
		w.holdFetching(false)
	}
	return out
}

func (w *worker) overBudget() error {
	switch {
	case w.telemetry: // what an older build has parked holds nothing up
		return nil
	case w.parked.len() >= w.g.c.Budget:
		return fmt.Errorf("%d records are parked (budget %d)", w.parked.len(), w.g.c.Budget)
	case w.parked.overKeys > 0:
		return fmt.Errorf("%d keys have %d or more records parked", w.parked.overKeys, w.g.c.KeyBudget)
	}
	return nil
}

// --- positions

// at says that everything before m is done or parked.
func (w *worker) at(m Mark) {
	w.mu.Lock()
	if m.Next > w.pos.Next {
		w.pos, w.behind = m, time.Time{}
		if w.dirty.IsZero() {
			w.dirty = time.Now()
		}
	}
	w.mu.Unlock()
	// Who waits in this process need not wait until the row says so: claims and
	// SEENs change no rows of a read model.
	w.g.r.Positions.moved(w.cp.Consumer, w.cp.Generation, w.cp.TopicPartition, m.Next)
}

// head notes the timestamp of the oldest record in work; zero: none is.
func (w *worker) head(t time.Time) {
	w.mu.Lock()
	w.headTime = t
	w.mu.Unlock()
}

// moved says that the checkpoint stands at m. The caller holds commitMu.
func (w *worker) moved(m Mark) {
	w.cp.Mark = m
	w.at(m)
	w.mu.Lock()
	w.dirty = time.Time{}
	if w.pos.Next > m.Next {
		w.dirty = time.Now()
	}
	w.mu.Unlock()
}

// toFlush returns where the checkpoint should move, if anywhere. The caller
// holds commitMu. The zero now means at once.
func (w *worker) toFlush(now time.Time) (Mark, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pos.Next == w.cp.Next {
		return Mark{}, false
	}
	if w.g.c.Rows != nil && !now.IsZero() && now.Sub(w.dirty) < quietFlush {
		return Mark{}, false // a batch that is coming will move it
	}
	return w.pos, true
}

func (w *worker) sawEnd(end int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.end = max(w.end, end)
	if w.end > w.pos.Next && w.behind.IsZero() {
		w.behind = time.Now()
	}
}

// --- reading

// item is a record that counts, with the place before it.
type item struct {
	before Mark
	event  *eventlog.Event
	bad    error // why its attributes cannot be read
	key    string
	queued *parkedItem // its row, once it was found to queue behind another
}

// batch is items with their events, which stand side by side: a handler of many
// is given them as they are.
type batch struct {
	items  []*item
	events []eventlog.Event
}

func (b batch) part(from, to int) batch { return batch{b.items[from:to:to], b.events[from:to:to]} }

// scanRoom is memory for the items of one scan, which come and go together.
type scanRoom struct {
	list   []*item
	items  []item
	events []eventlog.Event
}

func (room *scanRoom) of(n int) {
	if cap(room.items) < n {
		room.list, room.items, room.events = make([]*item, 0, n), make([]item, n), make([]eventlog.Event, n)
	}
	if n < len(room.items) { // forget does not come to what is beyond
		clear(room.items[n:])
		clear(room.events[n:])
	}
	room.items, room.events = room.items[:n], room.events[:n]
}

// forget lets go of the records of the last scan.
func (room *scanRoom) forget() {
	clear(room.items)
	clear(room.events)
}

// scan applies the reader rule and returns what the handler is concerned with. What
// the last scan has put into room is gone then. It moves read.
func (w *worker) scan(recs []*kgo.Record, room *scanRoom) (batch, error) {
	aggregate := eventlog.IsAggregate(w.cp.Topic)
	room.of(len(recs))
	items := room.list[:0]
	for _, r := range recs {
		if r.Offset < w.read.Next {
			continue
		}
		if aggregate && r.Offset > w.read.Next {
			return batch{}, fmt.Errorf("hole before offset %d, expected %d: an aggregate topic keeps everything", r.Offset, w.read.Next)
		}
		before := w.read
		before.Next = r.Offset
		e := &room.events[len(items)]
		e.Parse(r)
		w.read.Next, w.read.Time = r.Offset+1, r.Timestamp
		take, skipped := e.Fault == nil || w.telemetry, eventlog.SkipNoEvent // of telemetry see below
		if aggregate {
			take, skipped = w.read.Rule.Take(e)
		}
		if !take {
			if skipped != "" {
				w.g.r.state.metrics.void(w.cp.Topic, skipped)
				w.log.Warn("invalid record skipped", "offset", r.Offset, "reason", skipped, "type", eventlog.LogText(e.Type), "term", e.Term, "seq", e.Seq)
			}
			continue
		}
		if !w.cp.Since.IsZero() && r.Timestamp.Before(w.cp.Since) {
			continue
		}
		if w.parked.has(r.Offset) {
			continue // parked before a crash, ahead of the checkpoint
		}
		if w.telemetry && (e.Fault != nil || r.Value == nil) {
			if r.Value != nil {
				w.skip(r.Offset, e.Fault)
			}
			continue
		}
		it := &room.items[len(items)]
		*it = item{before: before, event: e, key: e.Subject}
		if !aggregate && string(r.Key) != it.key { // of an inbox record
			it.key = parkedKey(r.Key)
		}
		if e.Fault != nil {
			it.bad = decodeError{e.Fault}
		}
		items = append(items, it)
	}
	return batch{items, room.events[:len(items):len(items)]}, nil
}

// --- handling

// call runs a handler: bounded in time, its panic an error.
func (w *worker) call(fn func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(w.ctx, handlerTimeout)
	defer cancel()
	return w.guard(func() error { return fn(ctx) })
}

// guard makes a panic of fn an error.
func (w *worker) guard(fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			w.log.Error("handler panic", "panic", p, "stack", string(debug.Stack()))
			err = panicError{p}
		}
	}()
	return fn()
}

// tx runs fn in a transaction that ends by itself if this process stops
// running. Its errors are classified as the runtime's own work.
func (w *worker) tx(ctx context.Context, fn func(tx pgx.Tx) error) error {
	return ownWork(w.rawTx(ctx, fn))
}

func (w *worker) rawTx(ctx context.Context, fn func(tx pgx.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, handlerTimeout)
	defer cancel()
	begin := "begin; set local idle_in_transaction_session_timeout = " + strconv.Itoa(int(w.g.r.state.idleTx.Milliseconds()))
	tx, err := w.g.r.DB.BeginTx(ctx, pgx.TxOptions{BeginQuery: begin})
	if err != nil {
		return ownWork(err)
	}
	// Guarded here, inside the transaction: a handler's panic must not leave it
	// open, its connection never returned.
	err = w.guard(func() error { return fn(tx) })
	if err == nil {
		return ownWork(tx.Commit(ctx))
	}
	if tx.Conn().IsClosed() && !errors.Is(err, eventlog.ErrPoison) {
		err = eventlog.UnavailableFrom("postgres", err)
	}
	rctx, rcancel := context.WithTimeout(context.WithoutCancel(ctx), readTimeout)
	defer rcancel()
	_ = tx.Rollback(rctx) // the connection is closed where that fails
	return err
}

// insist repeats fn for as long as what it needs is away.
func (w *worker) insist(fn func() error) error {
	var away absence
	for {
		err := fn()
		switch {
		case w.ctx.Err() != nil && err != nil:
			away.gaveUp()
			return errStopped
		case err == nil || !isAway(err) && !isConflict(err):
			away.over()
			return err
		}
		if err := away.wait(w, err, anyPlace); err != nil {
			away.gaveUp()
			return err
		}
	}
}

// giveUp says whether err is one that the worker cannot go on from.
func giveUp(err error) bool { return errors.Is(err, ErrFenced) || errors.Is(err, errStopped) }

// copyTo appends a copy of rec to the parked topic of stage and notes in it
// where; it insists.
func (w *worker) copyTo(rec *kgo.Record, it *parkedItem, stage string) error {
	c := parkedCopy(rec, w.cp.TopicPartition, w.g.c.Name, w.g.c.Generation, it, stage)
	return w.insist(func() error {
		ctx, cancel := context.WithTimeout(w.ctx, 30*time.Second)
		defer cancel()
		again := *c
		offset, err := produceCopy(ctx, w.g.aux, &again)
		if err != nil {
			return eventlog.UnavailableFrom("kafka", fmt.Errorf("append to %s: %w", c.Topic, err))
		}
		it.copyTopic, it.copyOffset = c.Topic, offset
		return nil
	})
}

// newlyFailed makes the parked item of a record whose first attempt failed,
// its copy appended. The row is not written yet.
func (w *worker) newlyFailed(i *item, cause error) (*parkedItem, error) {
	it := &parkedItem{offset: i.event.Offset, key: i.key, rec: i.event.Record, copyOffset: -1}
	stage := it.failed(cause, time.Now(), w.g.delays())
	w.countFailure(it)
	return it, w.copyTo(it.rec, it, stage)
}

func (w *worker) countFailure(it *parkedItem) {
	m := w.g.r.state.metrics
	if it.state == stateDead {
		m.dead(w.g.c.Name, it.class)
		w.log.Error("dead letter", "offset", it.offset, "attempt", it.attempt, "class", it.class, "error", it.text)
		return
	}
	m.retry(w.g.c.Name)
	w.log.Warn("parked for retry", "offset", it.offset, "attempt", it.attempt, "class", it.class, "error", it.text)
}

// behindParked makes the rows of records that queue behind a parked one of
// their key. Where the source forgets and an operator is waited for, the record
// is copied now.
func (w *worker) behindParked(items []*item) ([]*parkedItem, error) {
	out := make([]*parkedItem, 0, len(items))
	for _, i := range items {
		if i.queued == nil {
			it := &parkedItem{offset: i.event.Offset, key: i.key, state: stateWaiting, rec: i.event.Record, copyOffset: -1}
			if !eventlog.IsAggregate(w.cp.Topic) && w.parked.behindDead(i.key) {
				it.class = "waiting"
				if err := w.copyTo(it.rec, it, eventlog.DeadLetter); err != nil {
					return nil, err
				}
			}
			i.queued = it
		}
		out = append(out, i.queued)
	}
	return out, nil
}

// addParked takes items whose rows are committed into memory.
func (w *worker) addParked(items []*parkedItem) {
	for _, it := range items {
		w.parked.add(it)
	}
	if len(items) > 0 {
		w.hasParked.Store(true)
	}
}

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
	case isAway(err) || isConflict(err):
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
	case giveUp(cause) || errors.Is(cause, errStale) || isAway(cause) || isConflict(cause):
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
		case isAway(err):
			if err := away.wait(w, err, anyPlace); err != nil {
				return err
			}
			continue
		}
		away.over()
		retriable := !errors.Is(err, eventlog.ErrPoison)
		if try < w.g.c.InPlaceTries && retriable && (len(b.items) == 1 || isConflict(err)) {
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
