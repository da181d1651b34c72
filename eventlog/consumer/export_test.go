package consumer

import "time"

// Hasten makes parked events due sooner than in production, and makes changes of
// operators noticed sooner.
func (r *Runtime) Hasten(first, second time.Duration) {
	r.state.delays = [2]time.Duration{first, second}
	r.state.lookInterval = 50 * time.Millisecond
}

// IdleTx sets after how long Postgres ends the transaction of a stopped process.
func (r *Runtime) IdleTx(d time.Duration) { r.state.idleTx = d }

// StoppedAfter sets after how long anything counts as stopped.
func (r *Runtime) StoppedAfter(d time.Duration) { r.state.stoppedAfter = d }

// Abandon returns a func that makes Run end as if the process had been killed: nothing
// is drained and no position is written. Only the members' requests to leave their
// groups are sent. Abandon must be called before Run.
func (r *Runtime) Abandon() func() {
	ch := make(chan struct{})
	r.state.abandon = ch
	return func() { close(ch) }
}
