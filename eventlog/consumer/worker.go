package consumer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog/consumer/parked"
)

// errStopped ends a worker that was told to stop.
var errStopped = errors.New("stopped")

// endsWorker reports whether a worker cannot go on after err.
func endsWorker(err error) bool { return errors.Is(err, ErrFenced) || errors.Is(err, errStopped) }

// worker handles one partition for one consumer, from its assignment until it
// is stopped or fails.
type worker struct {
	s   *session
	g   *group
	log *slog.Logger

	ctx    context.Context // of handlers; it outlives the session's during a drain
	cancel context.CancelFunc
	drain  chan struct{} // when closed, nothing new is begun
	once   sync.Once     // closes drain
	done   chan struct{} // closed when run has returned
	wake   chan struct{} // has something in it when there may be something to do

	// commitMu is held while the checkpoint is being moved. It guards cp.Mark.
	commitMu sync.Mutex
	cp       *Checkpoint

	retryRule parked.RetryRule
	telemetry bool // IsTelemetry of the topic

	mu            sync.Mutex // guards what follows
	queue         []*kgo.Record
	queueBytes    int
	fetched       int64                          // the offset after the last record that was put into the queue
	fetchPaused   bool                           // until the queue is short again
	shared        bool                           // the tail reads the partition, and the session's client does not
	offCursor     bool                           // the session's client would go on elsewhere than at fetched
	left          bool                           // the worker has ended and joins the tail no more
	stalledAt     time.Time                      // since when the tail has brought nothing although the log has grown; zero: it brings what there is
	stalledNext   int64                          // fetched at stalledAt
	pos           Mark                           // everything before it is done or parked; the checkpoint follows
	dirtySince    time.Time                      // since when pos is ahead of the checkpoint; zero: it is not
	oldestInWork  time.Time                      // timestamp of the oldest record that was dequeued and is not done; zero: there is none
	end           int64                          // of the log, as last seen
	behindSince   time.Time                      // since when end is known to be after pos
	changes       []*parked.Event                // rows that an operator has changed
	waits         map[*dependencyWait]*waitState // of goroutines that wait for a dependency
	overBudgetErr error                          // why the partition is paused; nil: it is not

	skips         skips         // of a telemetry topic
	yieldedSlots  atomic.Int32  // key queues that wait for a dependency, and have given up their slots
	extraSlots    chan struct{} // has an element for each of those that handles an event again
	hasParked     atomic.Bool   // an operator may have changed a row
	heartbeat     atomic.Int64  // Unix nanoseconds
	longestCallAt atomic.Int64  // when the longest running call of Each began, Unix nanoseconds; 0: there is none

	// Only the goroutine of run uses these, apart from the methods of parked that are
	// safe for concurrent use.
	read   Mark // everything before it was dequeued
	parked *parked.Set
	buf    scanBuffer // of runBatches
	alone  bool       // a commit of the present batch has failed: the next ones are not made together with other workers
}

func newWorker(s *session, cp *Checkpoint, set *parked.Set) *worker {
	ctx, cancel := context.WithCancel(context.Background())
	w := &worker{
		s: s, g: s.g, cp: cp, ctx: ctx, cancel: cancel,
		log:   s.g.log.With("topic", cp.Topic, "partition", cp.Partition),
		drain: make(chan struct{}), done: make(chan struct{}), wake: make(chan struct{}, 1),
		waits: map[*dependencyWait]*waitState{}, extraSlots: make(chan struct{}, s.g.c.ConcurrentKeys),
		telemetry: IsTelemetry(cp.Topic),
		retryRule: parked.RetryRule{InPlaceTries: s.g.c.InPlaceTries, Delays: s.g.delays(), Skip: IsTelemetry(cp.Topic)},
		pos:       cp.Mark, end: cp.Next, read: cp.Mark, fetched: cp.Next, parked: set,
	}
	w.ctx = context.WithValue(w.ctx, workerKey{}, w)
	w.hasParked.Store(set.Len() > 0)
	w.beat()
	return w
}

func (w *worker) beat() { w.heartbeat.Store(time.Now().UnixNano()) }

func (w *worker) run() {
	defer close(w.done)
	defer w.leaveTail()
	defer w.g.r.Positions.released(w.cp.Consumer, w.cp.Generation, w.cp.TopicPartition)
	err := w.copyAllFollowers()
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

// stop ends the worker. With a bound, calls under way may end within it, and the
// checkpoint is written. With a bound of 0 everything is cancelled.
func (w *worker) stop(bound time.Duration) {
	w.once.Do(func() { close(w.drain) })
	if bound > 0 {
		t := time.NewTimer(bound)
		defer t.Stop()
		select {
		case <-w.done:
			ctx, cancel := context.WithTimeout(w.ctx, bound)
			if err := w.g.flush(ctx, []*worker{w}, time.Time{}); err != nil {
				w.log.Warn("the last checkpoint could not be written; the events after it will be handled again", "err", err)
			}
			cancel()
		case <-t.C:
			w.log.Warn("a handler is still at work although its partition was revoked", "bound", bound)
		}
	}
	w.cancel()
	t := time.NewTimer(lostTimeout)
	defer t.Stop()
	select {
	case <-w.done:
	case <-t.C:
		w.log.Error("a handler does not return although its context has ended")
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

// source names the partition and the consumer, for parked rows and copies.
func (w *worker) source() parked.Source {
	return parked.Source{Consumer: w.g.c.Name, Generation: w.g.c.Generation, TopicPartition: w.cp.TopicPartition}
}

// pause returns how long the worker's loop may sleep if nothing wakes it.
func (w *worker) pause() time.Duration {
	d := time.Second
	if next := w.parked.NextDue(); !next.IsZero() {
		d = min(d, max(time.Until(next), time.Millisecond))
	}
	return d
}
