package shard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/eventlog"
)

const (
	queueLength    = 4096                  // commands waiting to be taken by the loop, which may have as many in hand; more are refused with ErrUnavailable
	turnLength     = 256                   // commands that are handled before acknowledgements have their turn
	maxInFlight    = 8192                  // unacknowledged appends of one shard, over which it takes no more commands
	stallLimit     = 5 * time.Second       // oldest unacknowledged append, over which new commands are refused at once
	drainLimit     = 2 * time.Second       // for appends in flight when the shard is handed over
	verifyLimit    = 5 * time.Second       // to read what stands between an expected and an actual offset
	seenIntervalLo = 2 * time.Millisecond  // between two SHARD_SEEN while the shard writes
	seenIntervalHi = 50 * time.Millisecond // between two while it writes nothing else
	closedFor      = 24 * time.Hour        // after which a closed order takes no commands
)

// Why a shard stopped serving.
var (
	errDeposed   = errors.New("deposed by a higher claim")
	errBroken    = errors.New("an append failed")
	errHandedOff = errors.New("handed over")

	// errNotDecided says that a stopped shard has appended nothing for a
	// command: it may be given to the next owner.
	errNotDecided = errors.New("the shard stopped before the command was decided")
)

// call is a command on its way through the loop.
type call struct {
	ctx     context.Context
	req     Request
	res     Result // this and err are the answer: the caller's once done says so, the loop's until then
	err     error
	done    chan struct{} // buffered, sent to once; nil: nobody waits
	settled bool          // answered; loop only
	first   atomic.Bool   // a repeat whose first run is not acknowledged yet
}

// dones are channels to wait for an answer with: of a call that was answered the
// channel is empty, and nobody sends to it any more. The calls themselves are not
// used again: several waiters may name one, and reply to it again.
var dones = sync.Pool{New: func() any { return make(chan struct{}, 1) }}

func (c *call) reply(res Result, err error) {
	if c.settled {
		return
	}
	c.settled = true
	if c.done != nil {
		c.res, c.err = res, err
		c.done <- struct{}{}
	}
}

// quiet says that nobody waits for the answer: a deadline's.
func (c *call) quiet() bool { return c.done == nil }

// waiter holds a call's answer, which stands in the call already, back until the
// appends it waits for are acknowledged.
type waiter struct {
	call *call
	left int
}

// pending is an append on its way.
type pending struct {
	log     int
	ordinal int64
	seq     int64
	at      time.Time
	own     waiter    // of the command that appended it; no call: a SEEN
	waiters []*waiter // further ones that wait for it
}

// ack is what the producer says of one append.
type ack struct {
	log     int
	ordinal int64
	offset  int64
	err     error
}

// partitionLog is the shard's end of one of its four logs.
type partitionLog struct {
	topic    string
	rule     eventlog.Rule // as of next: the prefix that is known
	next     int64         // offset at which the oldest append in flight must land
	seq      int64         // last sent under this claim
	ordinal  int64         // last sent by this owner, of any kind
	acked    int64         // last ordinal acknowledged
	inFlight []*pending    // oldest first
	lastOff  int64         // offset of the last append known to count: what an answer's token names
	// awaiting are answers that rest on this log as it was when their command
	// came in: the next append of anything confirms them.
	awaiting []*waiter
	lost     bool       // another's claim counts: none of what was in flight does
	deferred []deferral // commands that wait for this log's own appends, as they came: each waits for those before it too
}

// eventID is unique for an event that counts: nobody else appends under this term.
func (l *partitionLog) eventID(partition int32) string {
	b := append(make([]byte, 0, 48), l.topic...)
	b = strconv.AppendInt(append(b, '-'), int64(partition), 10)
	b = strconv.AppendInt(append(b, '-'), l.rule.Term, 10)
	return string(strconv.AppendInt(append(b, '-'), l.seq, 10))
}

type deferral struct {
	ordinal int64
	call    *call
}

// shard owns one partition of the four aggregate topics under one claim. Its
// fields belong to the loop (serve); queue and the acks are how others reach it.
type shard struct {
	owner     *Shards
	partition int32
	term      int64 // of the claim on orders; the four may differ
	claimedAt int64 // offset of that claim
	producer  *kgo.Client
	log       *slog.Logger

	queue    *queue
	taken    []*call                  // from the queue, the last time
	todo     []*call                  // of taken: what is not handled yet
	internal chan func(now time.Time) // what the shard's own goroutines let the loop do: not bounded by the queue
	closed   chan struct{}
	ask      chan chan Status

	ackMu   sync.Mutex
	acks    []ack
	ackRoom []ack // of the loop
	ackWake chan struct{}

	snapshots  *snapshots
	snapshotAt time.Time     // when the next one is due; zero while one is written
	quiesceBy  time.Time     // no commands are taken until all appends are acknowledged, or this; zero: they are
	written    chan error    // the outcome of the one that is written
	writing    *snapshot     // the cut that is written; nil: none is
	savedAt    time.Time     // of the last one that was kept
	quiesceFor time.Duration // how long appends may take to be acknowledged; doubled where they take longer
	sinceCut   int           // records that count since the last one
	passing    atomic.Bool   // another may take it over: it has fenced the snapshots then, or will
	unkept     error         // why one was not kept while passing: none can be any more under this claim

	agg          *aggregates
	logs         [logCount]partitionLog
	lastSeen     time.Time
	seenInterval time.Duration
	seenAt       time.Time // when the next SHARD_SEEN is due; zero = nobody waits
	failed       error
	deposed      error // by a claim in one of the logs; the loop ends when the others have settled
	voids        int64 // records read that do not count
	replayed     int64 // events folded when it was taken over
	openedAt     time.Time
	took         time.Duration
}

// serve is the loop. It returns why it stopped; all callers have their answer then.
func (s *shard) serve(ctx context.Context) error {
	defer s.abandon()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	every := s.owner.SnapshotEvery
	s.snapshotAt = time.Now().Add(every/4 + rand.N(every)) // the shards of an instance in turns
	if s.replayed > snapshotWorth {
		s.snapshotAt = time.Now().Add(rand.N(every / 4)) // whoever is next is to have less to read
	}
	done := ctx.Done()
	leaving := false
	var leave, drain <-chan time.Time
	for s.failed == nil {
		wake, more := s.queue.wake, always
		switch {
		case s.deposed == nil && (s.unacked() >= maxInFlight || drain != nil || !s.quiesceBy.IsZero()):
			wake, more = nil, nil // of a deposed one commands are given back at once
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
		case do := <-s.internal:
			do(time.Now())
		case <-s.ackWake:
			s.settle(ctx)
		case answer := <-s.ask:
			answer <- s.status()
		case now := <-timer.C:
			s.tick(now)
		case err := <-s.written:
			s.snapshotWritten(err)
		case <-done:
			if done = nil; s.passing.Load() { // the next owner is there
				drain = time.After(drainLimit)
				break
			}
			// the next owner is to have little to read: a last snapshot, while commands go on
			leaving, leave = true, time.After(leaveLimit)
			s.snapshotAt = time.Now()
			s.tick(s.snapshotAt)
		case <-leave:
			leaving, drain = false, time.After(drainLimit)
		case <-drain:
			s.fail(cmp.Or(s.deposed, errHandedOff))
		}
		if s.deposed != nil && drain == nil { // in one log; what is in flight in the others settles first
			done, leaving, leave, drain = nil, false, nil, time.After(drainLimit)
		}
		s.quiesced()
		if leaving && s.writing == nil && s.quiesceBy.IsZero() {
			leaving, leave, drain = false, nil, time.After(drainLimit)
		}
		if drain != nil && s.unacked() == 0 {
			s.fail(cmp.Or(s.deposed, errHandedOff))
		}
	}
	return s.failed
}

// always is ready.
var always = func() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// turn handles some of what was taken from the queue.
func (s *shard) turn() {
	n := 0
	for n < min(len(s.todo), turnLength) && s.failed == nil && (n == 0 || s.unacked() < maxInFlight) {
		s.handle(s.todo[n])
		s.todo[n] = nil
		n++
	}
	s.todo = s.todo[n:]
}

func (s *shard) fail(err error) {
	if s.failed == nil {
		s.failed = err
	}
}

func (s *shard) unacked() (n int) {
	for i := range s.logs {
		n += len(s.logs[i].inFlight)
	}
	return n
}

// abandon answers everybody who still waits, then closes the shard. An append
// may or may not take effect, a retry finds out; who has appended nothing may
// be decided by the next owner. Whatever was put into the queue is answered, and
// nothing is let in any more: callers know by their answer alone what became of
// their command.
func (s *shard) abandon() {
	defer close(s.closed)
	defer s.snapshots.close() // one that is being written is given up
	for i := range s.logs {
		s.giveUp(i, fmt.Errorf("%w: %w", ErrUnavailable, s.failed))
	}
	for _, c := range slices.Concat(s.todo, s.queue.close()) {
		c.reply(Result{}, errNotDecided)
	}
}

// depose gives back what is in flight in a log in which a higher claim counts: up
// to the claim everything was read, so none of it counts or ever will, and the
// next owner may decide it. The shard ends when its other logs have settled.
func (s *shard) depose(log int) {
	s.giveUp(log, errNotDecided)
	l := &s.logs[log]
	l.inFlight, l.awaiting, l.deferred, l.lost = nil, nil, nil, true
	s.deposed = errDeposed
}

// giveUp answers all who wait for this log: with appended who has an append of
// its own in flight here. Who only waits here for an append to another log may
// see that one count; who has appended nothing may be decided by the next owner.
func (s *shard) giveUp(log int, appended error) {
	l := &s.logs[log]
	behind := func(ws []*waiter) {
		for _, w := range ws {
			if w.call.res.Event == nil {
				w.call.reply(Result{}, errNotDecided)
			} else {
				w.call.reply(Result{}, fmt.Errorf("%w: %w", ErrUnavailable, cmp.Or(s.failed, errDeposed)))
			}
		}
	}
	for _, p := range l.inFlight {
		if p.own.call != nil {
			p.own.call.reply(Result{}, appended)
		}
		behind(p.waiters)
	}
	behind(l.awaiting)
	for _, d := range l.deferred {
		d.call.reply(Result{}, errNotDecided)
	}
}

// arm sets the timer to what is due first.
func (s *shard) arm(timer *time.Timer) {
	at := time.Now().Add(time.Hour)
	snapshotAt := s.snapshotAt
	if s.writing != nil { // it is set anew then
		snapshotAt = time.Time{}
	}
	for _, t := range [...]time.Time{s.agg.due.next(), s.agg.closed.next(), s.seenAt, snapshotAt, s.quiesceBy} {
		if !t.IsZero() && t.Before(at) {
			at = t
		}
	}
	timer.Reset(max(0, time.Until(at)))
}

func (s *shard) tick(now time.Time) {
	if !s.seenAt.IsZero() && !now.Before(s.seenAt) {
		s.appendSeen(now)
	}
	s.snapshotDue(now)
	for n := 0; n < 256; n++ {
		d, ok := s.agg.due.pop(now)
		if !ok {
			break
		}
		s.deadlineDue(d, now)
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

// deadlineDue issues the order's own command, if the deadline still holds.
func (s *shard) deadlineDue(d deadline, now time.Time) {
	e, err := s.agg.find(orders, d.orderID)
	if err != nil {
		s.fail(err)
		return
	}
	if e == nil || e.order == nil || e.unreadOf(orders) != nil {
		return
	}
	at, command := e.order.NextDeadline()
	if command == nil || !at.Equal(d.at) {
		return
	}
	req := Request{Topic: eventlog.Orders, ID: d.orderID, Actor: domain.SystemActor, Command: command}
	if _, expiring := command.(order.Expire); expiring {
		if e.unreadOf(payments) != nil { // it may be paid
			return
		}
		if p := e.paymentState(); p.AwaitsMoney() && now.Sub(at) < s.owner.PaymentGrace {
			s.expireWhenInboxPassed(req, p.GatewayOrderID, d)
			return
		}
	}
	s.handle(deadlineCall(req))
}

func deadlineCall(req Request) *call {
	return &call{ctx: context.Background(), req: req}
}

// expireWhenInboxPassed asks, outside the loop, whether every webhook that came
// before now is recorded: money that is already here pays the order. Where it
// is not, or cannot be known, the deadline is looked at again in a second.
func (s *shard) expireWhenInboxPassed(req Request, gatewayOrderID string, d deadline) {
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		passed, err := s.owner.InboxPassed(ctx, gatewayOrderID)
		if err == nil && passed {
			s.post(func(time.Time) { s.handle(deadlineCall(req)) })
			return
		}
		select {
		case <-s.closed:
		case <-time.After(time.Second):
			s.post(func(now time.Time) { s.deadlineDue(d, now) })
		}
	}()
}

// post hands work to the loop from another goroutine of the shard's own.
func (s *shard) post(do func(now time.Time)) {
	select {
	case s.internal <- do:
	case <-s.closed:
	}
}
