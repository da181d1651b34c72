package shard

import (
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain"
	"tomato/domain/restaurant"
	"tomato/eventlog"
)

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
