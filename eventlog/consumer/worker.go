package consumer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
	"tomato/eventlog/pgerr"
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
		case err == nil || !pgerr.Unavailable(err) && !pgerr.Conflict(err):
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
