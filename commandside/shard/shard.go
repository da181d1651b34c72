package shard

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/domain/restaurant"
	"tomato/domain/rider"
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

// handle decides one command: lookup, rights, idempotency key, decision, If-Match.
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
	if !c.quiet() && s.stalled(now) {
		c.reply(Result{}, fmt.Errorf("%w: appends are not acknowledged", ErrUnavailable))
		return
	}
	if asked, ok := c.req.Command.(Known); ok {
		c.reply(s.known(asked), nil)
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
		if e.order != nil || e.rider != nil || e.restaurant != nil { // who may not ask is not told
			err = cmp.Or(s.authorize(kind, e, &c.req, now), err)
		}
		s.confirm(c, kind, nil, Result{}, err) // a newer build may own the shard by now
		return
	}
	if _, ok := c.req.Command.(Look); ok {
		if s.deferUntil(kind, e.lastOf(kind), c) {
			return
		}
		c.reply(result(e, nil), nil)
		return
	}
	if err := s.authorize(kind, e, &c.req, now); err != nil {
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
	ev, err := s.decide(kind, e, c, now)
	if errors.Is(err, errDeferred) {
		return
	}
	_, asks := c.req.Command.(order.CheckOffer)
	open := asks && err == nil && e.orderState().Status == order.StatusReadyForRider
	if !matches(&c.req, e.version(kind)) && (ev != nil || open || err != nil && !badReference(err)) {
		ev, err = nil, domain.Refuse(VersionMismatch, "the resource has version %d", e.version(kind))
	}
	if ev == nil && c.quiet() {
		return
	}
	if open && err == nil {
		// Open: Assign decides, and it is what must be confirmed. But the round
		// and wave must be the log's: claimed for a pair that was never there, a
		// refused assign could be taken later, when the pair comes to be.
		if !s.deferUntil(kind, e.lastOf(kind), c) {
			c.reply(result(e, nil), nil)
		}
		return
	}
	if ev == nil {
		s.confirm(c, kind, e, result(e, nil), err)
		return
	}
	s.append(c, kind, e, ev, scope, keyed, now)
}

// matches says whether a resource of this version is the one that is meant.
func matches(r *Request, version int64) bool {
	return r.IfMatch == 0 || r.IfMatch == version || r.IfMatch == Exists && version > 0 || slices.Contains(r.OrMatch, version)
}

// badReference says whether a refusal goes before If-Match: 404, and 422 of
// what the body names.
func badReference(err error) bool {
	switch domain.RefusedWith(err) {
	case domain.NotFound, restaurant.CodeUnknown, restaurant.CodeUnknownItem, restaurant.CodeCurrencyMismatch:
		return true
	}
	return false
}

func (s *shard) stalled(now time.Time) bool {
	for i := range s.logs {
		if f := s.logs[i].inFlight; len(f) > 0 && now.Sub(f[0].at) > stallLimit {
			return true
		}
	}
	return false
}

// authorize looks at what is held and at the caller's part in it.
func (s *shard) authorize(kind int, e *entry, r *Request, now time.Time) error {
	switch kind {
	case orders, payments:
		// Of the commands on payments one is the customer's, on the order.
		_, asks := r.Command.(payment.RequestPayment)
		onOrder := kind == orders || asks
		if e == nil || e.order == nil {
			switch archived := now.Sub(placedAt(r.ID)) > s.owner.ArchiveAfter; {
			case isPlace(r.Command) || !onOrder && (r.Actor.Role == domain.System || !archived):
				return nil
			case archived:
				return domain.Refuse(order.CodeArchived, "the order is older than commands reach")
			}
			return domain.Refuse(domain.NotFound, "no such order")
		}
		if err := order.Authorize(e.order, r.Command, r.Actor); err != nil {
			return err
		}
		if onOrder && r.Actor.Role != domain.System && e.order.ClosedFor(now) > closedFor {
			return domain.Refuse(order.CodeArchived, "the order closed more than 24 hours ago")
		}
	case riders:
		return own(e != nil || isPut(r.Command), r.Actor.Role == domain.Rider && r.Actor.Sub != r.ID)
	case restaurants:
		return own(e != nil || isPut(r.Command), r.Actor.Role == domain.Restaurant && r.Actor.RestaurantID != r.ID)
	}
	return nil
}

// own refuses what is not there, then what is another's: riders and
// restaurants are no secret.
func own(there, foreign bool) error {
	switch {
	case !there:
		return domain.Refuse(domain.NotFound, "there is none with this id")
	case foreign:
		return domain.Refuse(domain.Forbidden, "only they themselves may do this")
	}
	return nil
}

// placedAt is the time inside an order id (UUIDv7, RFC 9562: the first 48 bits
// are Unix milliseconds); now for what is none.
func placedAt(orderID string) time.Time {
	id, err := uuid.Parse(orderID)
	if err != nil || id.Version() != 7 {
		return time.Now()
	}
	var ms [8]byte
	copy(ms[2:], id[:6])
	return time.UnixMilli(int64(binary.BigEndian.Uint64(ms[:])))
}

// errDeferred says that the command waits for its own shard's appends.
var errDeferred = errors.New("deferred")

// decide calls the aggregate's Decide on the speculative state. A decision that
// looks at another log of the shard waits until what it sees there is
// acknowledged: it would otherwise count although its premise does not.
func (s *shard) decide(kind int, e *entry, c *call, now time.Time) (domain.Event, error) {
	r := &c.req
	switch kind {
	case orders:
		command := r.Command
		switch cmd := command.(type) {
		case Place:
			placed, err := s.price(cmd, r.ID)
			if err != nil {
				return nil, err
			}
			command = placed
		case order.Expire:
			if u := e.unreadOf(payments); u != nil {
				return nil, u.answer(payments, e.id)
			}
			if e != nil && e.payment != nil {
				if s.deferUntil(payments, e.lastOf(payments), c) {
					return nil, errDeferred
				}
				cmd.PaymentPaid = e.payment.Booked != ""
				command = cmd
			}
		}
		return event(order.Decide(e.orderState(), command, now))
	case payments:
		if s.deferUntil(orders, e.lastOf(orders), c) {
			return nil, errDeferred
		}
		if _, asks := r.Command.(payment.RequestPayment); asks && (e == nil || e.order == nil) {
			return nil, domain.Refuse(domain.NotFound, "no such order")
		}
		return event(payment.Decide(e.paymentState(), payment.WithOrder(r.Command, e.orderFacts()), now))
	case riders:
		return event(rider.Decide(e.riderState(), r.Command, now))
	default:
		return event(restaurant.Decide(e.restaurantState(), r.Command, now))
	}
}

// event makes one interface type of the aggregates' own, keeping nil nil.
func event[E domain.Event](ev E, err error) (domain.Event, error) {
	if any(ev) == nil {
		return nil, err
	}
	return ev, err
}

// deferUntil parks the call until the log's append with this ordinal is
// acknowledged; false where it is already.
func (s *shard) deferUntil(log int, ordinal int64, c *call) bool {
	l := &s.logs[log]
	if ordinal <= l.acked {
		return false
	}
	l.deferred = append(l.deferred, deferral{ordinal, c})
	return true
}

// repeat answers a known idempotency key: the first status with the present
// resource, once the first event is acknowledged.
func (s *shard) repeat(c *call, kind int, used keyUse) {
	if used.body != bodyOf(&c.req) {
		s.confirm(c, kind, nil, Result{}, domain.Refuse(IdempotencyKeyReused, "this Idempotency-Key was used with another body"))
		return
	}
	c.first.Store(used.ordinal > s.logs[kind].acked)
	c.req.ID = used.on.id
	e, err := s.agg.find(kind, used.on.id)
	if err != nil {
		s.fail(err)
		c.reply(Result{}, errNotDecided)
		return
	}
	if err := e.undecidable(kind); err != nil {
		s.confirm(c, kind, nil, Result{}, err)
		return
	}
	res := result(e, nil)
	res.Repeated, res.Status = true, int(used.status)
	s.confirm(c, kind, e, res, nil)
}

func (s *shard) append(c *call, kind int, held *entry, ev domain.Event, scope keyScope, keyed bool, now time.Time) {
	at := domain.Time(now)
	room := rooms.Get().(*eventlog.Room)
	var err error
	if room.Data, err = encode(room.Data[:0], ev); err != nil {
		c.reply(Result{}, fmt.Errorf("encoding %s: %w", ev.EventType(), err))
		return
	}
	l := &s.logs[kind]
	l.ordinal++
	l.seq++
	begins := begins(kind, held, c.req.Command)
	if held == nil {
		held = s.agg.begin(kind, c.req.ID)
	}
	version := s.agg.evolve(kind, held, ev, at, l.ordinal)
	e := eventlog.Event{
		ID:     l.eventID(s.partition),
		Source: s.owner.source, Type: ev.EventType(), Time: at, Subject: c.req.ID,
		Version: version, Term: l.rule.Term, Seq: l.seq, Data: room.Data,
		CausationID: c.req.CausationID, CorrelationID: c.req.CorrelationID, Traceparent: c.req.Traceparent,
	}
	res := result(held, ev)
	if begins {
		res.Status = 201
	}
	if keyed {
		use := keyUse{body: bodyOf(&c.req), status: int32(res.Status), ordinal: l.ordinal, at: at.UnixMilli()}
		e.Idempotency = use.text(scope)
		s.agg.keys.add(held, scope, use)
	}
	c.res = res
	s.awaitOther(kind, held, s.produce(kind, &e, room, now, waiter{call: c, left: 1}))
	s.seenInterval = seenIntervalLo
}

// begins says whether the command, which appends, makes something that was not
// there: an order, a rider, a restaurant, an item on its menu.
func begins(kind int, e *entry, c domain.Command) bool {
	if set, ok := c.(restaurant.SetMenuItem); ok {
		_, there := e.restaurantState().Menu[set.Item.ItemID]
		return !there
	}
	return e.version(kind) == 0 && (isPlace(c) || isPut(c))
}

// awaitOther makes an answer that shows order and payment wait for the other
// one's unacknowledged appends too.
func (s *shard) awaitOther(kind int, e *entry, w *waiter) {
	other := payments
	switch kind {
	case payments:
		other = orders
	case riders, restaurants:
		return
	}
	l := &s.logs[other]
	last := e.lastOf(other)
	if last <= l.acked {
		return
	}
	if i := last - l.acked - 1; i < int64(len(l.inFlight)) { // ordinals are contiguous
		w.left++
		p := l.inFlight[i]
		p.waiters = append(p.waiters, w)
	}
}

// rooms are for records on their way.
var rooms = sync.Pool{New: func() any { return new(eventlog.Room) }}

const maxRoom = 64 << 10 // bytes of data, above which a room is not kept

// produce sends an event of this claim without waiting, and returns the waiter
// that it keeps. The answers that awaited any append of this log are confirmed
// by this one.
func (s *shard) produce(kind int, e *eventlog.Event, room *eventlog.Room, now time.Time, own waiter) *waiter {
	l := &s.logs[kind]
	p := &pending{log: kind, ordinal: l.ordinal, seq: l.seq, at: now, own: own, waiters: l.awaiting}
	l.awaiting = nil
	l.inFlight = append(l.inFlight, p)
	s.owner.outbox.put(outgoing{s.producer, e.RecordIn(room, l.topic, s.partition), func(r *kgo.Record, err error) {
		s.owner.at(StepAppendLanded, s.partition)
		s.acknowledge(ack{p.log, p.ordinal, r.Offset, err})
		if cap(room.Data) <= maxRoom {
			rooms.Put(room) // the producer is done with the record
		}
	}})
	s.owner.at(StepAppendSent, s.partition)
	s.rearmSeen(now)
	return &p.own
}

func (s *shard) acknowledge(a ack) {
	s.ackMu.Lock()
	s.acks = append(s.acks, a)
	s.ackMu.Unlock()
	select {
	case s.ackWake <- struct{}{}:
	default:
	}
}

// confirm holds an answer that appends nothing until something appended after
// its command came in is acknowledged, in every log that the answer rests on:
// only that proves that this owner was not deposed, and that the state it rests
// on counts.
func (s *shard) confirm(c *call, kind int, e *entry, res Result, err error) {
	c.res, c.err = res, err
	w := &waiter{call: c, left: 1}
	s.logs[kind].awaiting = append(s.logs[kind].awaiting, w)
	if _, ok := c.req.Command.(payment.RequestPayment); ok {
		w.left++
		s.logs[orders].awaiting = append(s.logs[orders].awaiting, w)
	} else if err == nil {
		s.awaitOther(kind, e, w)
	}
	s.rearmSeen(time.Now())
}

// rearmSeen sets when the next SHARD_SEEN is due: never where nobody waits.
func (s *shard) rearmSeen(now time.Time) {
	for i := range s.logs {
		if len(s.logs[i].awaiting) > 0 {
			if s.seenAt.IsZero() {
				s.seenAt = s.lastSeen.Add(s.seenInterval)
				if s.seenAt.Before(now) {
					s.seenAt = now
				}
			}
			return
		}
	}
	s.seenAt = time.Time{}
}

func (s *shard) appendSeen(now time.Time) {
	s.seenAt = time.Time{}
	s.lastSeen = now
	for i := range s.logs {
		l := &s.logs[i]
		if len(l.awaiting) == 0 {
			continue
		}
		l.ordinal++
		l.seq++
		s.produce(i, &eventlog.Event{
			ID:     l.eventID(s.partition),
			Source: s.owner.source, Type: eventlog.ShardSeen, Time: domain.Time(now),
			Term: l.rule.Term, Seq: l.seq, Data: []byte("{}"),
		}, rooms.Get().(*eventlog.Room), now, waiter{})
		s.owner.metrics.seen.Inc()
	}
	s.seenInterval = min(2*s.seenInterval, seenIntervalHi)
}

// settle takes the producer's acknowledgements in.
func (s *shard) settle(ctx context.Context) {
	s.ackMu.Lock()
	acks := s.acks
	s.acks, s.ackRoom = s.ackRoom[:0], acks // the two change places: no room is made anew
	s.ackMu.Unlock()
	for _, a := range acks {
		if s.failed != nil {
			return
		}
		l := &s.logs[a.log]
		switch {
		case l.lost:
		case a.err != nil:
			s.log.Error("append failed; the shard is claimed anew", "topic", l.topic, "partition", s.partition, "err", a.err)
			s.owner.replaceProducer(s.producer)
			s.fail(fmt.Errorf("%w: %w", errBroken, a.err))
		case a.offset < l.next && a.ordinal <= l.acked:
			// Read past already, while an earlier answer was verified.
		case a.offset < l.next: // left alone, it would stay in flight for ever, and the shard stalled
			s.fail(fmt.Errorf("%w: it landed at %s@%d, where the log was known up to %d: records are lost", errBroken, l.topic, a.offset, l.next))
		case a.offset == l.next && len(l.inFlight) > 0 && l.inFlight[0].ordinal == a.ordinal:
			// It landed where it must: nothing stands between, so no higher
			// claim does. It counts, for ever.
			l.next = a.offset + 1
			s.settled(l, a.offset)
		default:
			s.verify(ctx, a)
		}
	}
}

// settled acknowledges the oldest append in flight.
func (s *shard) settled(l *partitionLog, offset int64) {
	p := l.inFlight[0]
	l.inFlight = l.inFlight[1:]
	l.rule.Seq = p.seq
	l.acked = p.ordinal
	l.lastOff = offset
	s.sinceCut++
	if p.log == restaurants && p.own.call != nil { // orders are priced from it as soon as it counts
		s.owner.Menus.learn(p.own.call.res.Restaurant)
	}
	s.owner.at(StepSettled, s.partition)
	if p.own.call != nil {
		s.waited(&p.own)
	}
	for _, w := range p.waiters {
		s.waited(w)
	}
	s.owner.at(StepAnswered, s.partition)
	n := 0
	for n < len(l.deferred) && l.deferred[n].ordinal <= l.acked {
		c := l.deferred[n].call
		n++
		s.handle(c)
	}
	l.deferred = l.deferred[n:]
}

// waited answers the caller if this was the last acknowledgement it waited for.
func (s *shard) waited(w *waiter) {
	if w.left--; w.left == 0 && !w.call.settled {
		s.reached(&w.call.req, &w.call.res)
		w.call.reply(w.call.res, w.call.err)
	}
}

// verify reads what stands between the expected and the actual offset, with
// the reader rule. What counts is acknowledged (a first copy of a record that
// was sent twice included); behind another's claim the shard is deposed; an
// append that does not count has left a hole, and the shard is claimed anew.
func (s *shard) verify(ctx context.Context, a ack) {
	l := &s.logs[a.log]
	s.owner.metrics.verified.Inc()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), verifyLimit)
	defer cancel()
	tp := eventlog.TopicPartition{Topic: l.topic, Partition: s.partition}
	term := l.rule.Term
	err := eventlog.Read(ctx, s.owner.Kafka, map[eventlog.TopicPartition]eventlog.Range{tp: {From: l.next, To: a.offset + 1}}, func(e *eventlog.Event) error {
		l.next = e.Offset + 1
		before := l.rule
		if _, skipped := l.rule.Take(e); skipped != "" {
			s.void(l, skipped)
		}
		switch {
		case l.rule == before:
		case l.rule.Term != term:
			return errDeposed
		case len(l.inFlight) == 0 || l.inFlight[0].seq != e.Seq || !s.isOwn(e, l.inFlight[0]):
			// It has the place of an append of this owner, which is invalid thereby;
			// what this owner holds in memory is not what the log says any more.
			return fmt.Errorf("%w: the record at %s@%d has this owner's next term and seq, and another has written it", errBroken, l.topic, e.Offset)
		default:
			s.settled(l, e.Offset)
		}
		return nil
	})
	switch {
	case errors.Is(err, errDeposed):
		s.depose(a.log)
	case err != nil:
		s.fail(err)
	case a.ordinal > l.acked:
		s.fail(fmt.Errorf("%w: the append at %s@%d is void", errBroken, l.topic, a.offset))
	}
}

// isOwn says whether a valid record is this append, or a copy of it that has the
// same effect. Its id alone would not do: others can write that, too.
func (s *shard) isOwn(e *eventlog.Event, p *pending) bool {
	if e.Source != s.owner.source || !e.Time.Equal(domain.Time(p.at)) || e.Fault != nil {
		return false
	}
	c := p.own.call
	if c == nil {
		return e.Type == eventlog.ShardSeen
	}
	if e.Subject != c.req.ID {
		return false
	}
	if c.settled { // given up while another log was lost: nobody is told
		return true
	}
	data, err := encode(nil, c.res.Event)
	return err == nil && e.Type == c.res.Event.EventType() && e.Version == c.res.version(p.log) && bytes.Equal(e.Data, data)
}

func (s *shard) void(l *partitionLog, reason string) {
	s.voids++
	s.owner.metrics.void.WithLabelValues(l.topic, reason).Inc()
}

// marked tells of an aggregate that cannot be read on.
func (s *shard) marked(e *eventlog.Event, mark *unreadable) {
	s.owner.metrics.unknown.WithLabelValues(e.Topic).Inc()
	s.log.Error("an event cannot be read: commands on its aggregate are 503 unknown_event, others go on", "topic", e.Topic, "partition", e.Partition,
		"offset", e.Offset, "id", e.Subject, "type", eventlog.LogText(mark.Type), "err", mark.Why)
}

// reached names the positions that an answer rests on.
func (s *shard) reached(r *Request, res *Result) {
	n := 0
	add := func(log int) {
		if l := &s.logs[log]; l.lastOff >= 0 && n < len(res.reached) {
			res.reached[n] = eventlog.Position{TopicPartition: eventlog.TopicPartition{Topic: l.topic, Partition: s.partition}, Offset: l.lastOff}
			n++
		}
	}
	if res.Payment != nil {
		add(orders)
		add(payments)
		return
	}
	add(logOf(r.Topic))
}

// result collects the states that an answer shows.
func result(e *entry, ev domain.Event) Result {
	res := Result{Event: ev, Status: 200}
	if e != nil {
		res.Order, res.Payment, res.Rider, res.Restaurant = e.order, e.payment, e.rider, e.restaurant
	}
	return res
}

func (s *shard) known(k Known) (res Result) {
	res.Known = make([]bool, len(k.RiderIDs))
	for i, id := range k.RiderIDs {
		res.Known[i] = s.agg.held[riders][id] != nil
	}
	return res
}
