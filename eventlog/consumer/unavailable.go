package consumer

import (
	"errors"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sony/gobreaker/v2"

	"tomato/eventlog"
	"tomato/eventlog/pgerr"
)

// What a dependency's absence costs. Who needs it waits. Of those who wait one at
// a time asks whether it is back, on behalf of all, in whichever lane, partition
// or consumer of the process; a fresh event's first try, and a parked one that is
// due, find out for themselves. Who does not need it is not held up.
const (
	breakerTrips = 3                      // failures in a row, after which one at a time asks
	breakerOpen  = 500 * time.Millisecond // between two such questions
	breakerPoll  = 100 * time.Millisecond // how soon the others notice the answer
)

// dependencyOf names what err says is away; "" where that is not known, or is
// no dependency but one thing that is not there yet.
func dependencyOf(err error) string {
	switch {
	case pgerr.Conflict(err):
	case eventlog.DependencyOf(err) != "":
		return eventlog.DependencyOf(err)
	case pgerr.FromPostgres(err):
		return "postgres"
	}
	return ""
}

// breakers are those of a runtime, by dependency.
type breakers struct {
	state *prometheus.GaugeVec

	mu sync.Mutex
	by map[string]*gobreaker.TwoStepCircuitBreaker[struct{}]
}

func (b *breakers) of(dependency string) *gobreaker.TwoStepCircuitBreaker[struct{}] {
	b.mu.Lock()
	defer b.mu.Unlock()
	cb := b.by[dependency]
	if cb == nil {
		cb = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
			Name: dependency, MaxRequests: 1, Timeout: breakerOpen,
			IsExcluded:  func(err error) bool { return errors.Is(err, errNotAsked) },
			ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= breakerTrips },
			OnStateChange: func(name string, _, to gobreaker.State) {
				b.state.WithLabelValues(name).Set(map[gobreaker.State]float64{gobreaker.StateHalfOpen: 1, gobreaker.StateOpen: 2}[to])
			},
		})
		b.by[dependency] = cb
		b.state.WithLabelValues(dependency).Set(0)
	}
	return cb
}

// absence is one lane's wait for what is away, from the first failure until it
// gets through. The zero value waits for nothing. Of one goroutine.
type absence struct {
	w          *worker
	dependency string
	backoff    *backoff.ExponentialBackOff
	asked      func(error) // tells the breaker what the present try came to; nil: it did not let it through
}

// errNotAsked gives a breaker's leave back.
var errNotAsked = errors.New("not asked")

// wait is called after each try that failed because something is away. It
// returns when it is this lane's turn to try again, or errStopped. place takes
// what the lane needs for that, without waiting; false: not now.
func (a *absence) wait(w *worker, err error, place func() bool) error {
	if a.w == nil {
		a.w, a.backoff = w, newBackoff(50*time.Millisecond, 2*time.Second)
		w.awaits(a)
	}
	w.awaiting(a, err)
	if dependency := dependencyOf(err); dependency != a.dependency {
		a.tell(nil) // what it waited for before has answered
		a.dependency = dependency
	}
	if a.dependency != "" && a.asked == nil { // the first try needed no leave; it tells all the same
		a.asked, _ = w.g.r.state.breakers.of(a.dependency).Allow()
	}
	a.tell(err)
	for d := a.backoff.NextBackOff(); ; d = breakerPoll/2 + jitter(breakerPoll) {
		if err := w.sleep(d); err != nil {
			return err
		}
		if a.dependency != "" {
			var closed error
			if a.asked, closed = w.g.r.state.breakers.of(a.dependency).Allow(); closed != nil {
				a.asked = nil
				continue
			}
		}
		if place() {
			return nil
		}
		a.tell(errNotAsked) // whoever has a place may ask
	}
}

// anyPlace is of who keeps its place while it waits.
func anyPlace() bool { return true }

// tell says to the breaker what the try that it allowed came to.
func (a *absence) tell(err error) {
	if a.asked != nil {
		a.asked(err)
		a.asked = nil
	}
}

// over ends the wait, whatever the last try came to: the dependency answered.
func (a *absence) over() {
	a.tell(nil)
	if a.w != nil {
		a.w.awaitsNoMore(a)
		a.w = nil
	}
}

// gaveUp ends the wait of a lane that was stopped: nothing is known.
func (a *absence) gaveUp() {
	a.tell(errNotAsked)
	a.over()
}

// absent is what a worker knows of an absence.
type absent struct {
	err   error
	since time.Time
	told  time.Time // when it was logged
}

func (w *worker) awaits(a *absence) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.absent[a] = &absent{since: now, told: now.Add(awayTellFirst - awayTellEvery)}
}

func (w *worker) awaiting(a *absence, err error) {
	now := time.Now()
	w.mu.Lock()
	x := w.absent[a]
	x.err = err
	tell := now.Sub(x.told) >= awayTellEvery
	if tell { // one lane's word is enough
		for _, other := range w.absent {
			other.told = now
		}
	}
	w.mu.Unlock()
	if tell { // what is away for long may be something that nobody will bring back
		w.log.Warn("waiting", "since", x.since.UTC().Format(time.RFC3339), "error", err)
	}
	w.log.Debug("away", "error", err)
}

func (w *worker) awaitsNoMore(a *absence) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.absent, a)
}

// longestAbsent is what has been waited for longest; nil: nothing. The caller
// holds mu.
func (w *worker) longestAbsent() (longest *absent) {
	for _, x := range w.absent {
		if x.err != nil && (longest == nil || x.since.Before(longest.since)) {
			longest = x
		}
	}
	return longest
}

// sleep waits for d; it ends early with errStopped.
func (w *worker) sleep(d time.Duration) error {
	w.beat()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-w.drain:
		return errStopped
	case <-w.ctx.Done():
		return errStopped
	}
}
