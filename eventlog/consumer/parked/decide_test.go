package parked

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"tomato/eventlog"
)

func TestDecide(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_000_000, 0)
	rule := RetryRule{InPlaceTries: 3, Delays: []time.Duration{5 * time.Second, 30 * time.Second}}
	one, none, telemetry := rule, rule, rule
	one.Delays, none.Delays, telemetry.Skip = rule.Delays[:1], nil, true
	fault := errors.New("no")
	poison := eventlog.Poison(fault)
	unavailable := fmt.Errorf("handler: %w", eventlog.UnavailableFrom("gateway", fault))
	deadlock := &pgconn.PgError{Code: "40P01"}
	dead := Decision{Action: DeadLetter, Stage: eventlog.DeadLetter}
	soon := Decision{Action: RetryLater, Due: now.Add(5 * time.Second), Stage: eventlog.Retry5s}
	later := Decision{Action: RetryLater, Due: now.Add(30 * time.Second), Stage: eventlog.Retry30s}
	for _, c := range []struct {
		name string
		rule RetryRule
		f    Failure
		want Decision
	}{
		{"first try", rule, Failure{Cause: fault, Tries: 1}, Decision{Action: TryAgain}},
		{"second try", rule, Failure{Cause: fault, Tries: 2}, Decision{Action: TryAgain}},
		{"first attempt", rule, Failure{Cause: fault, Tries: 3}, soon},
		{"second attempt", rule, Failure{Cause: fault, Attempts: 1, Parked: true}, later},
		{"third attempt", rule, Failure{Cause: fault, Attempts: 2, Parked: true}, dead},
		{"replayed", rule, Failure{Cause: fault, Parked: true}, soon},
		{"one delay, first attempt", one, Failure{Cause: fault, Tries: 3}, soon},
		{"one delay, second attempt", one, Failure{Cause: fault, Attempts: 1, Parked: true}, dead},
		{"no delay", none, Failure{Cause: fault, Tries: 3}, dead},
		{"poison", rule, Failure{Cause: poison, Tries: 1}, dead},
		{"poison, parked", rule, Failure{Cause: poison, Attempts: 1, Parked: true}, dead},
		{"panic", rule, Failure{Cause: Panic("no"), Tries: 1}, dead},
		{"unavailable", rule, Failure{Cause: unavailable, Tries: 3}, Decision{Action: Wait}},
		{"unavailable, parked", rule, Failure{Cause: unavailable, Attempts: 2, Parked: true}, Decision{Action: Wait}},
		{"deadlock", rule, Failure{Cause: deadlock, Tries: 1}, Decision{Action: TryAgain}},
		{"deadlock, last try", rule, Failure{Cause: deadlock, Tries: 3}, soon},
		{"deadlock, parked", rule, Failure{Cause: deadlock, Attempts: 2, Parked: true}, Decision{Action: Wait}},
		{"telemetry, first try", telemetry, Failure{Cause: fault, Tries: 1}, Decision{Action: TryAgain}},
		{"telemetry, last try", telemetry, Failure{Cause: fault, Tries: 3}, Decision{Action: Skip}},
		{"telemetry, poison", telemetry, Failure{Cause: poison, Tries: 1}, Decision{Action: Skip}},
		{"telemetry, unavailable", telemetry, Failure{Cause: unavailable, Tries: 1}, Decision{Action: Wait}},
		{"telemetry that an older build has parked", telemetry, Failure{Cause: fault, Attempts: 2, Parked: true}, dead},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if got := c.rule.Decide(c.f, now); got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestFail(t *testing.T) {
	t.Parallel()
	rule := RetryRule{InPlaceTries: 1, Delays: []time.Duration{time.Second, time.Minute}}
	var e Event
	began := time.Unix(1_000_000, 0)
	for n, state := range []State{Retry, Retry, Dead} {
		now := began.Add(time.Duration(n) * time.Hour)
		cause := fmt.Errorf("attempt %d", n+1)
		d := rule.Decide(Failure{Cause: cause, Tries: 1, Attempts: e.Attempts, Parked: n > 0}, now)
		e.Fail(cause, d, now)
		if e.State != state || e.Attempts != n+1 || e.Reason != cause.Error() || e.Class != "transient" || !e.FirstFailed.Equal(began) || !e.LastFailed.Equal(now) || !e.Due.Equal(d.Due) {
			t.Errorf("after attempt %d: %+v", n+1, e)
		}
		if runs := e.runnable(now.Add(time.Hour)); runs != (state == Retry) {
			t.Errorf("after attempt %d it is runnable: %v", n+1, runs)
		}
	}
}
