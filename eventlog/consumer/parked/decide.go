package parked

import (
	"errors"
	"time"

	"tomato/eventlog"
	"tomato/eventlog/pgerr"
)

// RetryRule says how often a consumer tries an event that fails, and when.
type RetryRule struct {
	// InPlaceTries is how often an event is tried, one try right after the other,
	// before that counts as one failed attempt.
	InPlaceTries int
	// Delays are the pauses before the second and the third attempt: at most two,
	// because there are two retry topics. An event has one attempt more than there
	// are delays.
	Delays []time.Duration
	// Skip is set for topics whose events are skipped when they fail, instead of being
	// parked.
	Skip bool
}

// Failure is what is known about a try that failed.
type Failure struct {
	Cause    error
	Tries    int  // tries of the present attempt, this one included
	Attempts int  // failed attempts before the present one
	Parked   bool // the event is parked already: each of its attempts has one try
}

// Action is what happens with an event whose handler failed.
type Action int

// The actions. Wait and TryAgain count no failed attempt.
const (
	Wait       Action = iota // something that the handler needs is unavailable: wait for it, then try again
	TryAgain                 // try again after some milliseconds
	RetryLater               // the attempt failed: park the event until Decision.Due
	DeadLetter               // the last attempt failed, or the event is poison: park it until an operator acts
	Skip                     // skip the event
)

// Decision is what happens with an event whose handler failed.
type Decision struct {
	Action Action
	Due    time.Time // of RetryLater: when the event is tried again
	Stage  string    // of RetryLater and DeadLetter: the stage whose topic gets the copy
}

// Decide decides what happens with an event after a try that failed. It is the
// only place where this is decided.
func (r RetryRule) Decide(f Failure, now time.Time) Decision {
	poison := errors.Is(f.Cause, eventlog.ErrPoison)
	switch {
	case pgerr.Unavailable(f.Cause):
		return Decision{Action: Wait}
	case f.Parked && pgerr.Conflict(f.Cause):
		return Decision{Action: Wait} // the transaction may succeed when it is repeated
	case !f.Parked && !poison && f.Tries < r.InPlaceTries:
		return Decision{Action: TryAgain}
	case !f.Parked && r.Skip:
		return Decision{Action: Skip}
	case poison || f.Attempts >= len(r.Delays):
		return Decision{Action: DeadLetter, Stage: eventlog.DeadLetter}
	case f.Attempts == 0:
		return Decision{Action: RetryLater, Due: now.Add(r.Delays[0]), Stage: eventlog.Retry5s}
	}
	return Decision{Action: RetryLater, Due: now.Add(r.Delays[1]), Stage: eventlog.Retry30s}
}

// Fail counts a failed attempt of e and applies what was decided about it, which
// is RetryLater or DeadLetter.
func (e *Event) Fail(cause error, d Decision, now time.Time) {
	e.Attempts++
	e.Class, e.Reason = errorClass(cause), errorText(cause)
	e.LastFailed = now
	if e.FirstFailed.IsZero() {
		e.FirstFailed = now
	}
	e.State, e.Due, e.Backoff = Retry, d.Due, nil
	if d.Action == DeadLetter {
		e.State = Dead
	}
}
