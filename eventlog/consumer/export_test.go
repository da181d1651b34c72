package consumer

import "time"

// Hasten makes parked records due sooner than in earnest, and what operators
// do noticed sooner.
func (r *Runtime) Hasten(first, second time.Duration) {
	r.state.delays = [2]time.Duration{first, second}
	r.state.tools = 50 * time.Millisecond
}

// IdleTx sets after what time Postgres ends a transaction of a stopped process.
func (r *Runtime) IdleTx(d time.Duration) { r.state.idleTx = d }

// StillAfter sets after what time anything counts as standing still.
func (r *Runtime) StillAfter(d time.Duration) { r.state.still = d }

// Abandon makes Run end as if the process had been killed, but for the leave
// request of its group members: nothing is drained, no position written. It
// must be called before Run; the returned func does it.
func (r *Runtime) Abandon() func() {
	ch := make(chan struct{})
	r.state.abandon = ch
	return func() { close(ch) }
}
