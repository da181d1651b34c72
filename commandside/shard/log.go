package shard

import (
	"strconv"
	"time"

	"tomato/eventlog"
)

// This file owns what a shard's owner knows of one of its four logs: the expected
// offset, the appends in flight, and the calls that wait for acknowledgements.

// partitionLog is one log of the shard as its owner knows it. Every append of this
// owner to the log has an ordinal: 1, 2, 3 and so on.
type partitionLog struct {
	topic     string
	rule      eventlog.Rule // the reader rule, applied to all records before next
	next      int64         // the offset that the oldest append in flight is expected to get
	seq       int64         // seq of the last append under this claim
	ordinal   int64         // ordinal of the last append
	acked     int64         // ordinal of the last append that is acknowledged
	inFlight  []*pending    // appends that are not acknowledged, oldest first
	lastValid int64         // offset of the last record known to be valid; the consistency token of an answer names it

	// awaiting are answers that rest on the state of this log at the time when
	// their command came in. The next append to the log confirms them, or a check
	// (fence.go).
	awaiting []*waiter

	// deferred are commands that cannot be decided before an append of this log is
	// acknowledged, in the order in which they came in. Each also waits for those
	// before it.
	deferred []deferral

	fenced bool // another instance's claim is valid, so all appends that were in flight are invalid
}

// pending is an append in flight.
type pending struct {
	log     int
	ordinal int64
	seq     int64
	at      time.Time
	own     waiter    // of the command that made the append
	waiters []*waiter // of other commands whose answer needs this append's acknowledgement
}

// waiter holds back an answer, which is already in the call, until the given
// number of appends are acknowledged.
type waiter struct {
	call *call
	left int
}

// deferral is a command that is handled again once the append with the ordinal
// is acknowledged.
type deferral struct {
	ordinal int64
	call    *call
}

// ack is the producer's result for one append.
type ack struct {
	log     int // or fenceLog
	ordinal int64
	offset  int64
	err     error
}

// deferUntil keeps the call until the append with this ordinal is acknowledged.
// It returns false, and does not keep the call, if that is already so.
func (l *partitionLog) deferUntil(ordinal int64, c *call) bool {
	if ordinal <= l.acked {
		return false
	}
	l.deferred = append(l.deferred, deferral{ordinal, c})
	return true
}

// await makes the waiter wait for the append with this ordinal, too, unless it is
// already acknowledged.
func (l *partitionLog) await(ordinal int64, w *waiter) {
	if ordinal <= l.acked {
		return
	}
	if i := ordinal - l.acked - 1; i < int64(len(l.inFlight)) { // the ordinals in flight have no gaps
		w.left++
		p := l.inFlight[i]
		p.waiters = append(p.waiters, w)
	}
}

// eventID returns the id of the event with the last seq. It is unique among valid
// events, because no other instance appends under this term.
func (l *partitionLog) eventID(partition int32) string {
	b := append(make([]byte, 0, 48), l.topic...)
	b = strconv.AppendInt(append(b, '-'), int64(partition), 10)
	b = strconv.AppendInt(append(b, '-'), l.rule.Term, 10)
	return string(strconv.AppendInt(append(b, '-'), l.seq, 10))
}
