package simulate

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"tomato/domain"
)

// orderEntry is what the ledger keeps about one order of the run: its plan, what
// was promised about it, and what the judge found. mu guards the fields below it,
// except the atomic ones. id, amount and pickUp do not change once the order is
// placed; from then on they may be read without mu.
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
	dueAt            time.Time // when the order expires if it is not paid
	acks             []ack
	captures         []capture
	paymentRequested bool // the call that opens the payment succeeded
	receipts         []receipt
	token            string // Consistency-Token of the highest acknowledged version
	version          int    // highest version in an answer or feed message
	status           string // at that version
	paymentStatus    string // the last one that was received
	holder           string // rider whose accept was acknowledged, until deliver, drop or cancel is sent
	drops            int    // how often a rider dropped the order
	cancelRequested  bool   // a cancel was sent, so the commands of other parties may be refused
	dispatches       int    // how often the order was reported as exhausted to the operator
	verdict          verdict
	final            orderView // the order as it was read for the last judgement
	judgedReceipts   int       // len(receipts) at the last judgement, -1 before the first one
	judgements       int
	staleReported    bool          // a stale read was reported
	changed          chan struct{} // closed by wake

	restaurantStarted atomic.Bool  // the restaurant has begun to work on the order
	acceptsUnderWay   atomic.Int32 // how many riders are accepting or declining the order now
	latencyStarts     latencyStarts
}

// ack is one acknowledged command on an order.
type ack struct {
	command       string
	rider         string // the rider who sent it; "" if another party sent it
	version       int
	status        string
	paymentStatus string
}

// capture is one payment that the simulated gateway was made to capture.
type capture struct {
	paymentID string
	amount    int64
}

// latencyStarts are the times from which latencies are measured. A time is zero
// before it has come, and again after its latency has been measured. orderEntry.mu
// guards them.
type latencyStarts struct {
	capture, cooked time.Time
}

// advance enters the status of a version, if that version is newer than the one that
// is known. The caller holds e.mu.
func (e *orderEntry) advance(version int, status string) {
	if version > e.version && status != "" {
		e.version, e.status = version, status
	}
}

// wake makes every await look at the order again. The caller holds e.mu.
func (e *orderEntry) wake() {
	close(e.changed)
	e.changed = make(chan struct{})
}

// await waits until cond returns true, and reports whether it did before patience was
// over or ctx ended. It calls cond with e.mu held.
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

// hasEnded reports whether the last status that was received is final.
func (e *orderEntry) hasEnded() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return isFinal(e.status)
}

// released notes that the order's rider is about to send drop or deliver. It must be
// called before the command is sent, because another rider may get the order before
// the answer comes.
func (e *orderEntry) released() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.holder = ""
}
