package shard

import (
	"time"

	"tomato/domain"
	"tomato/domain/payment"
	"tomato/eventlog"
)

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
