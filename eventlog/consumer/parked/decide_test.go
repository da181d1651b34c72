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
	policy := Policy{InPlaceTries: 3, Delays: []time.Duration{5 * time.Second, 30 * time.Second}}
	one, none, telemetry := policy, policy, policy
	one.Delays, none.Delays, telemetry.Skip = policy.Delays[:1], nil, true
	fault := errors.New("no")
	poison := eventlog.Poison(fault)
	unavailable := fmt.Errorf("handler: %w", eventlog.UnavailableFrom("gateway", fault))
	deadlock := &pgconn.PgError{Code: "40P01"}
	dead := Decision{Action: DeadLetter, Stage: eventlog.DeadLetter}
	soon := Decision{Action: RetryLater, Due: now.Add(5 * time.Second), Stage: eventlog.Retry5s}
	later := Decision{Action: RetryLater, Due: now.Add(30 * time.Second), Stage: eventlog.Retry30s}
	for _, c := range []struct {
		name   string
		policy Policy
		f      Failure
		want   Decision
	}{
		{"first try", policy, Failure{Cause: fault, Tries: 1}, Decision{Action: TryAgain}},
		{"second try", policy, Failure{Cause: fault, Tries: 2}, Decision{Action: TryAgain}},
		{"first attempt", policy, Failure{Cause: fault, Tries: 3}, soon},
		{"second attempt", policy, Failure{Cause: fault, Attempts: 1, Parked: true}, later},
		{"third attempt", policy, Failure{Cause: fault, Attempts: 2, Parked: true}, dead},
		{"replayed", policy, Failure{Cause: fault, Parked: true}, soon},
		{"one delay, first attempt", one, Failure{Cause: fault, Tries: 3}, soon},
		{"one delay, second attempt", one, Failure{Cause: fault, Attempts: 1, Parked: true}, dead},
		{"no delay", none, Failure{Cause: fault, Tries: 3}, dead},
		{"poison", policy, Failure{Cause: poison, Tries: 1}, dead},
		{"poison, parked", policy, Failure{Cause: poison, Attempts: 1, Parked: true}, dead},
		{"panic", policy, Failure{Cause: Panic("no"), Tries: 1}, dead},
		{"unavailable", policy, Failure{Cause: unavailable, Tries: 3}, Decision{Action: Wait}},
		{"unavailable, parked", policy, Failure{Cause: unavailable, Attempts: 2, Parked: true}, Decision{Action: Wait}},
		{"deadlock", policy, Failure{Cause: deadlock, Tries: 1}, Decision{Action: TryAgain}},
		{"deadlock, last try", policy, Failure{Cause: deadlock, Tries: 3}, soon},
		{"deadlock, parked", policy, Failure{Cause: deadlock, Attempts: 2, Parked: true}, Decision{Action: Wait}},
		{"telemetry, first try", telemetry, Failure{Cause: fault, Tries: 1}, Decision{Action: TryAgain}},
		{"telemetry, last try", telemetry, Failure{Cause: fault, Tries: 3}, Decision{Action: Skip}},
		{"telemetry, poison", telemetry, Failure{Cause: poison, Tries: 1}, Decision{Action: Skip}},
		{"telemetry, unavailable", telemetry, Failure{Cause: unavailable, Tries: 1}, Decision{Action: Wait}},
		{"telemetry that an older build has parked", telemetry, Failure{Cause: fault, Attempts: 2, Parked: true}, dead},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if got := c.policy.Decide(c.f, now); got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestFail(t *testing.T) {
	t.Parallel()
	policy := Policy{InPlaceTries: 1, Delays: []time.Duration{time.Second, time.Minute}}
	var e Event
	began := time.Unix(1_000_000, 0)
	for n, state := range []State{Retry, Retry, Dead} {
		now := began.Add(time.Duration(n) * time.Hour)
		cause := fmt.Errorf("attempt %d", n+1)
		d := policy.Decide(Failure{Cause: cause, Tries: 1, Attempts: e.Attempts, Parked: n > 0}, now)
		e.Fail(cause, d, now)
		if e.State != state || e.Attempts != n+1 || e.Reason != cause.Error() || e.Class != "transient" || !e.FirstFailed.Equal(began) || !e.LastFailed.Equal(now) || !e.Due.Equal(d.Due) {
			t.Errorf("after attempt %d: %+v", n+1, e)
		}
		if runs := e.runnable(now.Add(time.Hour)); runs != (state == Retry) {
			t.Errorf("after attempt %d it is runnable: %v", n+1, runs)
		}
	}
}
