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

// This file owns the append of a decided event: it moves the state in memory on,
// makes the record and gives it to the producer.

// append applies a decided event to the state in memory and gives the event to the
// producer, in the version of its data that choose has returned: as older, unless that is
// nil. It does not wait for the acknowledgement. It writes the answer into c;
// the caller gets it once the append is acknowledged (acknowledge.go).
func (s *shard) append(c *call, kind int, e *entry, ev domain.Event, schema int, older any, scope keyScope, keyed bool, now time.Time) {
	at, eventType := domain.Time(now), ev.EventType()
	buffer := recordBuffers.Get().(*eventlog.RecordBuffer)
	var err error
	if older == nil {
		buffer.Data, err = encode(buffer.Data[:0], ev)
	} else if buffer.Data, err = encode(buffer.Data[:0], older); err == nil { // the state must be what readers will make of the data
		ev, err = decodeEvent(s.logs[kind].topic, eventType, schema, buffer.Data)
	}
	if err != nil {
		c.reply(Result{}, fmt.Errorf("encoding version %d of %s: %w", schema, eventType, err))
		return
	}
	l := &s.logs[kind]
	l.ordinal++
	l.seq++
	creates := creates(kind, e, c.req.Command)
	if e == nil {
		e = s.agg.begin(kind, c.req.ID)
	}
	version := s.agg.evolve(kind, e, ev, at, l.ordinal)
	record := eventlog.Event{
		ID:     l.eventID(s.partition),
		Source: s.owner.source, Type: eventType, Schema: schema, Time: at, Subject: c.req.ID,
		Version: version, Term: l.rule.Term, Seq: l.seq, Data: buffer.Data,
		CausationID: c.req.CausationID, CorrelationID: c.req.CorrelationID, Traceparent: c.req.Traceparent,
		Actor: actorText(c.req.Actor),
	}
	res := resultOf(e, ev)
	res.schema = schema
	if creates {
		res.Status = 201
	}
	if keyed {
		use := keyUse{body: bodyOf(&c.req), status: int32(res.Status), ordinal: l.ordinal, at: at.UnixMilli()}
		record.Idempotency = use.text(scope)
		s.agg.keys.add(e, scope, use)
	}
	c.res = res
	s.awaitOtherLog(kind, e, s.produce(kind, &record, buffer, now, waiter{call: c, left: 1}))
	s.checkInterval = checkIntervalMin
}

// actorText returns who an event is made by, as the record has it; "" for the system.
func actorText(a domain.Actor) string {
	if a.Role == domain.System {
		return ""
	}
	return string(a.Role) + ":" + a.Sub
}

// creates reports whether a command that appends an event creates a resource: an
// order, a rider, a restaurant, or an item on a menu.
func creates(kind int, e *entry, c domain.Command) bool {
	if set, ok := c.(restaurant.SetMenuItem); ok {
		_, exists := e.restaurantState().Menu[set.Item.ItemID]
		return !exists
	}
	return e.version(kind) == 0 && (isPlace(c) || isPut(c))
}

// awaitOtherLog makes an answer that shows an order with its payment also wait for
// the unacknowledged appends to the other one of the two.
func (s *shard) awaitOtherLog(kind int, e *entry, w *waiter) {
	other := payments
	switch kind {
	case payments:
		other = orders
	case riders, restaurants:
		return
	}
	s.logs[other].await(e.lastAppend(other), w)
}

// recordBuffers is memory for records that are on their way to the broker.
var recordBuffers = sync.Pool{New: func() any { return new(eventlog.RecordBuffer) }}

const maxPooledData = 64 << 10 // bytes of event data; a larger buffer is not put back into recordBuffers

// produce gives an event to the outbox without waiting. It returns its copy of own.
// All answers that awaited an append to this log are
// confirmed when this one is acknowledged.
func (s *shard) produce(kind int, e *eventlog.Event, buffer *eventlog.RecordBuffer, now time.Time, own waiter) *waiter {
	l := &s.logs[kind]
	p := &pending{log: kind, ordinal: l.ordinal, seq: l.seq, at: now, own: own, waiters: l.awaiting}
	l.awaiting = nil
	l.inFlight = append(l.inFlight, p)
	s.owner.outbox.put(outgoing{s.producer, e.RecordIn(buffer, l.topic, s.partition), func(r *kgo.Record, err error) {
		s.owner.at(StepAppendLanded, s.partition)
		s.putAck(ack{p.log, p.ordinal, r.Offset, err})
		if cap(buffer.Data) <= maxPooledData {
			recordBuffers.Put(buffer) // the producer does not need the record any more
		}
	}})
	s.owner.at(StepAppendSent, s.partition)
	return &p.own // the waiter that the append holds, which the caller can make wait for more appends
}
