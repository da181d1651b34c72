package shard

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"tomato/domain"
	"tomato/eventlog"
)

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
