package shard

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"tomato/domain"
	"tomato/eventlog"
)

// This file owns the acknowledgement of appends: it compares each record's offset
// with the expected one, answers the callers, and reads the log if the offset is
// another one.

// putAck brings the producer's result of an append to the loop. It may be called
// from any goroutine.
func (s *shard) putAck(a ack) {
	s.ackMu.Lock()
	s.acks = append(s.acks, a)
	s.ackMu.Unlock()
	select {
	case s.ackWake <- struct{}{}:
	default:
	}
}

// takeAcks processes the results that the producer has reported. Commands that
// were deferred until one of these appends is acknowledged are put into
// s.released.
func (s *shard) takeAcks(ctx context.Context) {
	s.ackMu.Lock()
	acks := s.acks
	s.acks, s.spareAcks = s.spareAcks[:0], acks // the two slices are used in turns, which saves allocations
	s.ackMu.Unlock()
	for _, a := range acks {
		if s.failed != nil {
			return
		}
		if a.log == fenceLog {
			s.takeCheckAck(ctx, a)
			continue
		}
		l := &s.logs[a.log]
		switch {
		case l.fenced:
		case a.err != nil:
			s.log.Error("append failed; the shard is claimed anew", "topic", l.topic, "partition", s.partition, "err", a.err)
			s.owner.replaceProducer(s.producer)
			s.fail(fmt.Errorf("%w: %w", errBroken, a.err))
		case a.offset < l.next && a.ordinal <= l.acked:
			// The record was already read when an earlier append was verified.
		case a.offset < l.next:
			// The broker has lost records. Without this error the append would stay
			// in flight for ever, and the shard would refuse all commands.
			s.fail(fmt.Errorf("%w: its offset is %s@%d, and the log was known up to offset %d: the broker has lost records", errBroken, l.topic, a.offset, l.next))
		case a.offset == l.next && len(l.inFlight) > 0 && l.inFlight[0].ordinal == a.ordinal:
			// The offset is the expected one, so no other writer appended in
			// between, and the event is valid for good.
			l.next = a.offset + 1
			s.acknowledgeOldest(l, a.offset)
		default:
			s.verify(ctx, a)
		}
	}
}

// acknowledgeOldest acknowledges the oldest append in flight, which is known to be
// valid. It answers the calls that waited for it and releases deferred commands.
func (s *shard) acknowledgeOldest(l *partitionLog, offset int64) {
	p := l.inFlight[0]
	l.inFlight = l.inFlight[1:]
	l.rule.Seq = p.seq
	l.acked = p.ordinal
	l.lastValid = offset
	s.sinceCut++
	if p.log == restaurants { // this instance prices orders from the new state at once
		s.owner.Menus.learn(p.own.call.res.Restaurant)
	}
	s.owner.at(StepAppendValid, s.partition)
	s.acknowledgeWaiter(&p.own)
	for _, w := range p.waiters {
		s.acknowledgeWaiter(w)
	}
	s.owner.at(StepAnswered, s.partition)
	n := 0
	for n < len(l.deferred) && l.deferred[n].ordinal <= l.acked {
		s.released = append(s.released, l.deferred[n].call)
		n++
	}
	l.deferred = l.deferred[n:]
}

// acknowledgeWaiter notes that one of the appends that the waiter waits for is
// acknowledged. It answers the call if that was the last one.
func (s *shard) acknowledgeWaiter(w *waiter) {
	if w.left--; w.left == 0 && !w.call.answered {
		s.setPositions(&w.call.req, &w.call.res)
		w.call.reply(w.call.res, w.call.err)
	}
}

// verify reads the records from the expected to the actual offset of an append,
// and applies the reader rule to them. The owner's valid appends among them are
// acknowledged, also the first copy of a record that was appended twice. If
// another instance's claim is valid, the shard is deposed. If the append is
// invalid, its seq is missing in the log, no later append of this claim can be
// valid, and the shard has to be claimed anew.
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
			s.countInvalid(l, skipped)
		}
		switch {
		case l.rule == before:
		case l.rule.Term != term:
			return errDeposed
		case len(l.inFlight) == 0 || l.inFlight[0].seq != e.Seq || !s.isOwn(e, l.inFlight[0]):
			// A foreign record has the term and seq of this owner's next append,
			// which is therefore invalid. The state in memory has the effect of
			// that append, so it no longer matches the log.
			return fmt.Errorf("%w: another program has written the record at %s@%d with this owner's next term and seq", errBroken, l.topic, e.Offset)
		default:
			s.acknowledgeOldest(l, e.Offset)
		}
		return nil
	})
	switch {
	case errors.Is(err, errDeposed):
		s.depose(a.log)
	case err != nil:
		s.fail(err)
	case a.ordinal > l.acked:
		s.fail(fmt.Errorf("%w: the append at %s@%d is invalid", errBroken, l.topic, a.offset))
	}
}

// isOwn reports whether a valid record is this append, or a copy of it that has the
// same effect. The record's id is not enough, because another program can write a
// record with the same id.
func (s *shard) isOwn(e *eventlog.Event, p *pending) bool {
	if e.Source != s.owner.source || !e.Time.Equal(domain.Time(p.at)) || e.Fault != nil {
		return false
	}
	c := p.own.call
	if e.Subject != c.req.ID {
		return false
	}
	if c.answered { // its caller got ErrUnavailable when another log was fenced; the result is gone
		return true
	}
	data, err := encode(nil, inVersion(c.res.Event, c.res.schema))
	return err == nil && e.DataVersion() == max(1, c.res.schema) && e.Type == c.res.Event.EventType() && e.Actor == actorText(c.req.Actor) && e.Version == c.res.version(p.log) && bytes.Equal(e.Data, data)
}

// countInvalid counts an invalid record that was read and skipped.
func (s *shard) countInvalid(l *partitionLog, reason string) {
	s.invalidRecords++
	s.owner.metrics.invalid.WithLabelValues(l.topic, reason).Inc()
}

// setPositions writes the positions that an answer rests on into its result.
func (s *shard) setPositions(r *Request, res *Result) {
	n := 0
	add := func(log int) {
		if l := &s.logs[log]; l.lastValid >= 0 && n < len(res.positions) {
			res.positions[n] = eventlog.Position{TopicPartition: eventlog.TopicPartition{Topic: l.topic, Partition: s.partition}, Offset: l.lastValid}
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
