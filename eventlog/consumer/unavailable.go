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

// While a dependency is unavailable, everything that needs it waits, and nothing
// else does. Of all goroutines of the process that wait for one dependency, in
// whichever key queue, partition or consumer, one at a time calls it to find out
// whether it answers again. The first try of a fresh event, and of a parked event
// that is due, does not ask for this permission.
const (
	breakerTrips = 3                      // failures in a row, after which only one goroutine at a time calls
	breakerOpen  = 500 * time.Millisecond // between two such calls
	breakerPoll  = 100 * time.Millisecond // how soon the others notice the answer
)

const (
	unavailableLogFirst = 2 * time.Second  // of waiting, before it is logged
	unavailableLogEvery = 10 * time.Second // between further log entries
	unavailableStopped  = 30 * time.Second // of waiting, before Stopped names the partition
)

// dependencyOf returns the name of the dependency that err says is unavailable. It
// returns "" if the name is not known, or if err is about one missing thing and not
// about a dependency.
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

// breakers are the circuit breakers of a runtime, one for each dependency.
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
			IsExcluded:  func(err error) bool { return errors.Is(err, errNotCalled) },
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

// dependencyWait is the wait of one goroutine for an unavailable dependency, from the
// first failed call until a call gets through. The zero value waits for nothing.
// Not safe for concurrent use.
type dependencyWait struct {
	w          *worker
	dependency string
	pauses     *backoff.ExponentialBackOff
	report     func(error) // tells the breaker the result of the call that it permitted; nil: it permitted none
}

// errNotCalled tells a breaker that a permitted call was not made.
var errNotCalled = errors.New("not called")

// forTurn is called after each try that failed with err because a dependency is
// unavailable. It returns nil when this goroutine may try again, or errStopped.
// takeSlot takes what the goroutine needs for another try; if it reports false, the
// goroutine waits on.
func (d *dependencyWait) forTurn(w *worker, err error, takeSlot func() bool) error {
	if d.w == nil {
		d.w, d.pauses = w, newUnavailableBackoff()
		w.beginWait(d)
	}
	w.noteWait(d, err)
	if dependency := dependencyOf(err); dependency != d.dependency {
		d.tell(nil) // the dependency that it waited for before has answered
		d.dependency = dependency
	}
	if d.dependency != "" && d.report == nil { // the first try asked for no permission, but its failure counts
		d.report, _ = w.g.r.state.breakers.of(d.dependency).Allow()
	}
	d.tell(err)
	for pause := d.pauses.NextBackOff(); ; pause = breakerPoll/2 + jitter(breakerPoll) {
		if err := w.sleep(pause); err != nil {
			return err
		}
		if d.dependency != "" {
			var refused error
			if d.report, refused = w.g.r.state.breakers.of(d.dependency).Allow(); refused != nil {
				d.report = nil
				continue
			}
		}
		if takeSlot() {
			return nil
		}
		d.tell(errNotCalled) // another goroutine, which has a slot, may call
	}
}

// noSlot is the takeSlot of a goroutine that needs none.
func noSlot() bool { return true }

// tell gives the breaker the result of the call that it permitted, if any.
func (d *dependencyWait) tell(err error) {
	if d.report != nil {
		d.report(err)
		d.report = nil
	}
}

// end ends the wait: the dependency has answered, whatever the answer was.
func (d *dependencyWait) end() {
	d.tell(nil)
	if d.w != nil {
		d.w.endWait(d)
		d.w = nil
	}
}

// abandon ends the wait of a goroutine that stops: whether the dependency answers is
// not known.
func (d *dependencyWait) abandon() {
	d.tell(errNotCalled)
	d.end()
}

// waitState is what a worker knows of the wait of one of its goroutines.
type waitState struct {
	err      error // of the last try
	since    time.Time
	loggedAt time.Time
}

func (w *worker) beginWait(d *dependencyWait) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waits[d] = &waitState{since: now, loggedAt: now.Add(unavailableLogFirst - unavailableLogEvery)}
}

// noteWait notes the error of the last try, and logs now and then that the worker
// waits: perhaps the dependency will not answer before somebody acts.
func (w *worker) noteWait(d *dependencyWait, err error) {
	now := time.Now()
	w.mu.Lock()
	x := w.waits[d]
	x.err = err
	logNow := now.Sub(x.loggedAt) >= unavailableLogEvery
	if logNow { // one entry for all goroutines of the worker
		for _, other := range w.waits {
			other.loggedAt = now
		}
	}
	w.mu.Unlock()
	if logNow {
		w.log.Warn("waiting", "since", x.since.UTC().Format(time.RFC3339), "err", err)
	}
	w.log.Debug("unavailable", "err", err)
}

func (w *worker) endWait(d *dependencyWait) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.waits, d)
}

// longestWait returns the wait that has lasted longest, or nil. The caller holds mu.
func (w *worker) longestWait() (longest *waitState) {
	for _, x := range w.waits {
		if x.err != nil && (longest == nil || x.since.Before(longest.since)) {
			longest = x
		}
	}
	return longest
}
