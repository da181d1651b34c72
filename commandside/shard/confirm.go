package shard

import (
	"fmt"
	"time"

	"tomato/domain"
	"tomato/domain/payment"
)

// This file owns the answers that append nothing, such as refusals and repeats. It
// holds them back until they are confirmed: by a later append to each log that they
// rest on, or by a SHARD_CHECK (fence.go) if nothing else is appended.

// confirm holds back an answer that appends nothing. The answer leaves when an event
// that was appended after its command came in is acknowledged in every log that the
// answer rests on, or when a later SHARD_CHECK and the appends in flight are
// acknowledged. Only that proves that this owner was not deposed before, and that the
// state which the answer rests on is valid.
func (s *shard) confirm(c *call, kind int, e *entry, res Result, err error) {
	if s.fence.checkStalled(time.Now()) { // commands that append go on
		c.reply(Result{}, fmt.Errorf("%w: checks are not acknowledged", ErrUnavailable))
		return
	}
	c.res, c.err = res, err
	w := &waiter{call: c, left: 1}
	s.logs[kind].awaiting = append(s.logs[kind].awaiting, w)
	if _, ok := c.req.Command.(payment.RequestPayment); ok {
		w.left++
		s.logs[orders].awaiting = append(s.logs[orders].awaiting, w)
	} else if err == nil {
		s.awaitOtherLog(kind, e, w)
	}
}

// repeat answers a command whose idempotency key was used before. The answer has
// the status of the first answer and the present state of the resource. It waits
// until the first command's event is acknowledged.
func (s *shard) repeat(c *call, kind int, used keyUse) {
	if used.body != bodyOf(&c.req) {
		s.confirm(c, kind, nil, Result{}, domain.Refuse(IdempotencyKeyReused, "this Idempotency-Key was used with another body"))
		return
	}
	c.firstPending.Store(used.ordinal > s.logs[kind].acked)
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
	res := resultOf(e, nil)
	res.Repeated, res.Status = true, int(used.status)
	s.confirm(c, kind, e, res, nil)
}

// checkDue returns when the next SHARD_CHECK is to be appended: the zero time if no
// answer waits for one, and not before now.
func (s *shard) checkDue(now time.Time) time.Time {
	for i := range s.logs {
		if len(s.logs[i].awaiting) > 0 {
			if at := s.lastCheck.Add(s.checkInterval); at.After(now) {
				return at
			}
			return now
		}
	}
	return time.Time{}
}
