package shard

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain"
)

// This file owns the loop of one shard, which takes commands from the queue and
// handles them one after the other, from lookup to append or answer.

const (
	queueLength      = 4096                  // commands in the queue, above which more are refused with ErrUnavailable; the loop may have taken as many
	turnLength       = 256                   // commands that are handled before the loop looks at acknowledgements
	maxInFlight      = 8192                  // unacknowledged appends of one shard, above which the loop handles no more commands
	stallLimit       = 5 * time.Second       // age of the oldest unacknowledged append, above which commands are refused at once
	drainLimit       = 2 * time.Second       // time for the acknowledgement of appends in flight when the shard is handed over
	verifyLimit      = 5 * time.Second       // time to read the records between an expected and an actual offset
	checkIntervalMin = 2 * time.Millisecond  // between two checks while the shard appends events
	checkIntervalMax = 50 * time.Millisecond // between two checks while it appends no events
	closedFor        = 24 * time.Hour        // time after which a closed order takes no commands
)

// shard owns one partition of the four aggregate topics under one claim. Its
// fields belong to the loop (serve), unless a comment says otherwise.
type shard struct {
	owner     *Shards
	partition int32
	term      int64 // of the claim on orders; the terms in the four logs may differ
	claimedAt int64 // offset of that claim
	producer  *kgo.Client
	log       *slog.Logger

	queue    *queue                   // for any goroutine
	taken    []*call                  // what was taken from the queue the last time
	todo     []*call                  // the rest of taken, which is not handled yet
	released []*call                  // deferred commands that are to be handled now
	tasks    chan func(now time.Time) // work for the loop from the shard's own goroutines, apart from the bounded queue
	closed   chan struct{}            // closed after the loop has ended and all callers are answered
	ask      chan chan Status

	ackMu     sync.Mutex
	acks      []ack         // results that the loop has not taken; guarded by ackMu
	spareAcks []ack         // memory for the next acks
	ackWake   chan struct{} // has a buffer of one; receives a value when acks is not empty

	snapshots   *snapshots
	snapshotAt  time.Time     // when the next snapshot is due; zero while one is being written
	quiesceBy   time.Time     // the loop handles no commands until all appends are acknowledged, or until this time; zero if it handles them
	quiesceFor  time.Duration // how long that may last; doubled each time that it was not enough
	writing     *snapshot     // the snapshot that is being written; nil if none is
	written     chan error    // its outcome
	savedAt     time.Time     // when the last snapshot was committed
	sinceCut    int           // valid records since the last snapshot
	revoked     atomic.Bool   // the group has revoked the shard: another instance fences, or has fenced, its snapshots; for any goroutine
	snapshotErr error         // why a snapshot failed while the shard was revoked; no other can be written under this claim

	agg            *aggregates
	logs           [logCount]partitionLog
	fence          fence
	lastCheck      time.Time
	checkInterval  time.Duration
	checkAt        time.Time // when the next check is due; zero if no answer waits for one
	failed         error     // why the loop ends; nil while it goes on
	deposed        error     // not nil after another instance has claimed one of the logs, or has announced that it will
	invalidRecords int64     // invalid records read since the take-over began
	replayed       int64     // valid records folded during the take-over
	openedAt       time.Time
	took           time.Duration
}

// serve is the loop. It returns the reason for which the shard stopped, after all
// callers have their answers.
func (s *shard) serve(ctx context.Context) error {
	defer s.shutDown()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	every := s.owner.SnapshotEvery
	s.snapshotAt = time.Now().Add(every/4 + rand.N(every)) // spreads the snapshots of an instance's shards over time
	if s.replayed > snapshotWorth {
		s.snapshotAt = time.Now().Add(rand.N(every / 4)) // soon, so that the next owner has less to read
	}
	done := ctx.Done()
	leaving := false // a last snapshot is due or being written
	var leave, drain <-chan time.Time
	for s.failed == nil {
		wake, more := s.queue.wake, always
		switch {
		case s.deposed == nil && (s.unacked() >= maxInFlight || drain != nil || !s.quiesceBy.IsZero()):
			wake, more = nil, nil // a deposed shard takes commands all the same, and returns them at once
		case len(s.todo) > 0:
			wake = nil
		default:
			more = nil
		}
		s.arm(timer)
		select {
		case <-wake:
			s.taken = s.queue.take(s.taken)
			s.todo = s.taken
			s.turn()
		case <-more:
			s.turn()
		case task := <-s.tasks:
			task(time.Now())
		case <-s.ackWake:
			s.takeAcks(ctx)
			s.handleReleased()
		case answer := <-s.ask:
			answer <- s.status()
		case now := <-timer.C:
			s.tick(now)
		case err := <-s.written:
			s.snapshotWritten(err)
		case <-done:
			if done = nil; s.revoked.Load() { // another instance takes the shard over and has fenced the snapshots, or will
				drain = time.After(drainLimit)
				break
			}
			// A last snapshot is written while commands go on, so that the next
			// owner has little to read.
			leaving, leave = true, time.After(leaveLimit)
			s.snapshotAt = time.Now()
			s.tick(s.snapshotAt)
		case <-leave:
			leaving, drain = false, time.After(drainLimit)
		case <-drain:
			s.fail(cmp.Or(s.deposed, errHandedOff))
		}
		if s.deposed != nil && drain == nil { // the appends in flight in the logs that are not claimed may still be acknowledged
			done, leaving, leave, drain = nil, false, nil, time.After(drainLimit)
		}
		s.cutIfQuiet()
		if leaving && s.writing == nil && s.quiesceBy.IsZero() {
			leaving, leave, drain = false, nil, time.After(drainLimit)
		}
		if drain != nil && s.unacked() == 0 {
			s.fail(cmp.Or(s.deposed, errHandedOff))
		}
	}
	return s.failed
}

// always is a channel from which a receive never blocks.
var always = func() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// turn handles at most turnLength of the commands that were taken from the queue.
func (s *shard) turn() {
	n := 0
	for n < min(len(s.todo), turnLength) && s.failed == nil && (n == 0 || s.unacked() < maxInFlight) {
		s.handle(s.todo[n])
		s.todo[n] = nil
		n++
	}
	s.todo = s.todo[n:]
}

// handleReleased handles the commands that were deferred until an append was
// acknowledged, which now is.
func (s *shard) handleReleased() {
	n := 0
	for n < len(s.released) && s.failed == nil {
		s.handle(s.released[n])
		n++
	}
	s.released = append(s.released[:0], s.released[n:]...)
}

// handle handles one command: lookup, rights, idempotency key, decision, If-Match.
// It ends in one of four ways: it answers the call at once, it defers the command
// until an append is acknowledged, it holds back the answer until it is confirmed
// (confirm.go), or it appends an event (append.go).
func (s *shard) handle(c *call) {
	if s.deposed != nil {
		c.reply(Result{}, errNotDecided)
		return
	}
	if c.ctx.Err() != nil {
		c.reply(Result{}, fmt.Errorf("%w: the caller's deadline passed in the queue", ErrUnavailable))
		return
	}
	now := time.Now()
	if c.hasCaller() && s.stalled(now) {
		c.reply(Result{}, fmt.Errorf("%w: appends are not acknowledged", ErrUnavailable))
		return
	}
	if known, ok := c.req.Command.(Known); ok {
		c.reply(s.agg.known(known), nil)
		return
	}
	kind := logOf(c.req.Topic)
	if kind < 0 {
		c.reply(Result{}, fmt.Errorf("%q is no aggregate topic", c.req.Topic))
		return
	}
	e, err := s.agg.find(kind, c.req.ID)
	if err != nil {
		s.fail(err)
		c.reply(Result{}, errNotDecided)
		return
	}
	if err := e.undecidable(kind); err != nil {
		if e.order != nil || e.rider != nil || e.restaurant != nil { // a caller without rights is told that, and nothing about the log
			err = cmp.Or(authorize(kind, e, &c.req, s.owner.ArchiveAfter, now), err)
		}
		s.confirm(c, kind, nil, Result{}, err) // a newer build, which can read the event, may own the shard by now
		return
	}
	if _, ok := c.req.Command.(Look); ok {
		if !s.logs[kind].deferUntil(e.lastAppend(kind), c) {
			c.reply(resultOf(e, nil), nil)
		}
		return
	}
	if err := authorize(kind, e, &c.req, s.owner.ArchiveAfter, now); err != nil {
		s.confirm(c, kind, nil, Result{}, err)
		return
	}
	var scope keyScope
	keyed := c.req.IdempotencyKey != ""
	if keyed {
		scope = scopeOf(&c.req)
		if used, ok := s.agg.keys.known[scope]; ok && !used.expired(now) {
			s.repeat(c, kind, used)
			return
		}
	}
	if log, ordinal := premise(kind, e, &c.req); s.logs[log].deferUntil(ordinal, c) {
		return
	}
	ev, err := decide(kind, e, &c.req, s.owner.Menus, now)
	open := err == nil && isOpenOffer(e, &c.req)
	if !matches(&c.req, e.version(kind)) && (ev != nil || open || err != nil && !badReference(err)) {
		ev, err = nil, domain.Refuse(VersionMismatch, "the resource has version %d", e.version(kind))
	}
	switch {
	case ev == nil && !c.hasCaller(): // the command of a deadline that has nothing to do: nobody waits for an answer
	case open && err == nil:
		// The answer says that the offer is open. It need not be confirmed, because
		// the rider claim and the later Assign are checked on their own. But the
		// offer itself must be acknowledged. Otherwise, if this owner is deposed, the
		// rider could be claimed for a round and wave that are not in the log. That
		// Assign would be refused now, but could be accepted later, when the next
		// owner makes the same round and wave.
		if !s.logs[kind].deferUntil(e.lastAppend(kind), c) {
			c.reply(resultOf(e, nil), nil)
		}
	case ev == nil && err == nil && onlyEffectCounts(&c.req) && tookEffect(kind, e, c.req.Command):
		// The answer is a fact of the past, which no later event changes. It needs the
		// events behind it, and no proof that this owner was not deposed since.
		if !s.logs[kind].deferUntil(e.lastAppend(kind), c) {
			c.reply(resultOf(e, nil), nil)
		}
	case ev == nil:
		s.confirm(c, kind, e, resultOf(e, nil), err)
	default:
		version, older, err := s.owner.choose(ev)
		switch {
		case err == nil:
			s.append(c, kind, e, ev, version, older, scope, keyed, now)
		case c.hasCaller():
			c.reply(Result{}, err)
		default:
			s.decideAgain(c.req.ID)
		}
	}
}

// stalled reports whether an append has been in flight for longer than stallLimit.
func (s *shard) stalled(now time.Time) bool {
	for i := range s.logs {
		if f := s.logs[i].inFlight; len(f) > 0 && now.Sub(f[0].at) > stallLimit {
			return true
		}
	}
	return false
}

// unacked returns the number of appends in flight.
func (s *shard) unacked() (n int) {
	for i := range s.logs {
		n += len(s.logs[i].inFlight)
	}
	return n
}

// arm sets the timer to the earliest time at which something is due.
func (s *shard) arm(timer *time.Timer) {
	now := time.Now()
	at := now.Add(time.Hour)
	snapshotAt := s.snapshotAt
	if s.writing != nil { // the outcome of the snapshot sets the time of the next one
		snapshotAt = time.Time{}
	}
	s.checkAt = s.checkDue(now)
	for _, t := range [...]time.Time{s.agg.due.next(), s.agg.closed.next(), s.checkAt, snapshotAt, s.quiesceBy} {
		if !t.IsZero() && t.Before(at) {
			at = t
		}
	}
	timer.Reset(max(0, time.Until(at)))
}

// tick does what is due at now.
func (s *shard) tick(now time.Time) {
	if !s.checkAt.IsZero() && !now.Before(s.checkAt) {
		s.appendCheck(now)
	}
	s.snapshotDue(now)
	for n := 0; n < 256; n++ {
		d, ok := s.agg.due.pop(now)
		if !ok {
			break
		}
		s.deadlineReached(d, now)
	}
	for n := 0; n < 256; n++ {
		d, ok := s.agg.closed.pop(now)
		if !ok {
			break
		}
		s.retire(d.orderID, now)
	}
	s.agg.keys.forget(now)
}

// deadlineReached handles the command that an order issues at its deadline.
func (s *shard) deadlineReached(d deadline, now time.Time) {
	if c := s.deadlineCommand(d, now); c != nil {
		s.handle(c)
	}
}

// post gives the loop work from another goroutine of the shard.
func (s *shard) post(task func(now time.Time)) {
	select {
	case s.tasks <- task:
	case <-s.closed:
	}
}

// isClosed reports whether the loop has ended and all callers are answered. It may
// be called from any goroutine.
func (s *shard) isClosed() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}
