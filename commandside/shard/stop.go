package shard

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// This file owns the end of a shard: the errors for which it stops, and what the
// callers that still wait are told.

// Why a shard stopped serving.
var (
	errDeposed   = errors.New("deposed by a higher claim")
	errBroken    = errors.New("an append failed")
	errHandedOff = errors.New("handed over")

	// errNotDecided is the answer to a command for which a stopped shard has
	// appended nothing. The next owner may decide the command.
	errNotDecided = errors.New("the shard stopped before the command was decided")
)

// fail makes the loop end with this error. The first error is kept.
func (s *shard) fail(err error) {
	if s.failed == nil {
		s.failed = err
	}
}

// depose gives up one log after another instance's claim in it has become valid.
// The owner has read the log up to that claim, so none of its appends in flight
// is or will be valid, and the next owner may decide their commands. The loop ends
// when the appends to the other logs are acknowledged.
func (s *shard) depose(log int) {
	s.answerWaiting(log, errNotDecided)
	l := &s.logs[log]
	l.inFlight, l.awaiting, l.deferred, l.fenced = nil, nil, nil, true
	s.deposed = errDeposed
}

// shutDown answers every call that still waits, and then closes the shard. The
// queue accepts no calls any more. Callers learn from their answer alone what
// became of their command: an append in flight may or may not take effect, and a
// repeat finds out; a command that has appended nothing goes to the next owner.
func (s *shard) shutDown() {
	defer close(s.closed)
	defer s.snapshots.close() // ends the transaction of a snapshot that is being written
	for i := range s.logs {
		s.answerWaiting(i, fmt.Errorf("%w: %w", ErrUnavailable, s.failed))
	}
	s.answerUnconfirmed()
	for _, c := range slices.Concat(s.released, s.todo, s.queue.close()) {
		c.reply(Result{}, errNotDecided)
	}
}

// answerWaiting answers all calls that wait for this log. A call with an append in
// flight in this log gets errInFlight. A call with an append to another log, which
// may still be valid, gets ErrUnavailable. A call that has appended nothing gets
// errNotDecided, and the next owner may decide it.
func (s *shard) answerWaiting(log int, errInFlight error) {
	l := &s.logs[log]
	answer := func(waiters []*waiter) {
		for _, w := range waiters {
			if w.call.res.Event == nil {
				w.call.reply(Result{}, errNotDecided)
			} else {
				w.call.reply(Result{}, fmt.Errorf("%w: %w", ErrUnavailable, cmp.Or(s.failed, errDeposed)))
			}
		}
	}
	for _, p := range l.inFlight {
		p.own.call.reply(Result{}, errInFlight)
		answer(p.waiters)
	}
	answer(l.awaiting)
	for _, d := range l.deferred {
		d.call.reply(Result{}, errNotDecided)
	}
}

// answerUnconfirmed answers all calls that wait for a check. They have appended
// nothing, so the next owner may decide them.
func (s *shard) answerUnconfirmed() {
	for _, c := range s.fence.inFlight {
		for _, w := range c.waiters {
			w.call.reply(Result{}, errNotDecided)
		}
	}
	for i := range s.logs {
		for _, w := range s.logs[i].awaiting {
			w.call.reply(Result{}, errNotDecided)
		}
		s.logs[i].awaiting = nil
	}
	s.fence.inFlight = nil
}
