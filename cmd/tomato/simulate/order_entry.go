package simulate

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"tomato/domain"
)

// orderEntry is what the ledger keeps about one order of the run: its plan, what
// was promised about it, and what the judge found. The fields below mu are read
// and written with mu held. id, amount and pickUp do not change once the order is
// placed.
type orderEntry struct {
	number     int
	plan       plan
	customer   *party
	restaurant *party
	deliverTo  domain.Point

	mu               sync.Mutex
	id               string
	amount           int64
	currency         string
	pickUp           domain.Point
	dueAt            time.Time // when an unpaid order expires
	acks             []ack
	captures         []capture
	paymentRequested bool // the call that opens the payment succeeded
	receipts         []receipt
	token            string // Consistency-Token of the highest acknowledged version
	version          int    // highest version in an answer or feed message
	status           string // at that version
	paymentStatus    string // as last heard
	holder           string // rider whose accept was acknowledged, until deliver, drop or cancel is sent
	drops            int    // by riders
	cancelRequested  bool   // the commands of others may be refused from now on
	dispatches       int    // new rounds that the operator was to ask for
	verdict          verdict
	final            orderView // as the last judgement read it
	judgedReceipts   int       // len(receipts) at the last judgement, -1 before the first
	judgements       int
	staleReported    bool          // a stale read was reported
	changed          chan struct{} // closed by wake

	restaurantStarted atomic.Bool  // the restaurant has taken up the order
	acceptsUnderWay   atomic.Int32 // of riders
	latencyStarts     latencyStarts
}

// ack is one acknowledged command on an order.
type ack struct {
	command       string
	rider         string // whose command it is; "" for those of other parties
	version       int
	status        string
	paymentStatus string
}

// capture is one payment that the simulated gateway was made to capture.
type capture struct {
	paymentID string
	amount    int64
}

// latencyStarts are the times from which latencies are measured. A zero time has
// not come yet, or its latency has been measured.
type latencyStarts struct {
	capture, cooked time.Time
}

// advance takes over the status of a newer version. e.mu is held.
func (e *orderEntry) advance(version int, status string) {
	if version > e.version && status != "" {
		e.version, e.status = version, status
	}
}

// wake makes every await look at the order again. e.mu is held.
func (e *orderEntry) wake() {
	close(e.changed)
	e.changed = make(chan struct{})
}

// await waits until cond, which it calls with e.mu held, returns true. It returns
// false when patience is over or ctx ends first.
func (e *orderEntry) await(ctx context.Context, patience time.Duration, cond func() bool) bool {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		e.mu.Lock()
		ok, changed := cond(), e.changed
		e.mu.Unlock()
		if ok {
			return true
		}
		select {
		case <-changed:
		case <-timer.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// isFinal reports whether no other status can follow this one.
func isFinal(status string) bool {
	return status == "delivered" || status == "cancelled" || status == "rejected" || status == "expired"
}

// hasEnded reports whether the order has a final status, as last heard.
func (e *orderEntry) hasEnded() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return isFinal(e.status)
}

// released enters that the rider is about to send drop or deliver. It is called
// before the command is sent.
func (e *orderEntry) released() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.holder = ""
}
