package simulate

import "fmt"

// Fault is a broken promise. Kind is one of the names below. Order is the order's id
// if the fault is about one order, else "".
type Fault struct {
	Kind   string `json:"kind"`
	Order  string `json:"order,omitempty"`
	Detail string `json:"detail"`
}

// The kinds of faults.
const (
	faultLostCommand       = "lost_command"       // an acknowledged command whose effect is not in the order's events
	faultLostMessage       = "lost_message"       // a feed message that a party should have got and did not
	faultDuplicateMessage  = "duplicate_message"  // a feed message that came more often than it should
	faultUncalledMessage   = "uncalled_message"   // a feed message that no event explains, or that came to the wrong party
	faultMisorderedMessage = "misordered_message" // a message of an older version after one of a newer version
	faultFeedProtocol      = "feed_protocol"      // a message without cursor, of another room, or no feed:resumed
	faultDuplicateEvent    = "duplicate_event"    // something that can happen once happened twice
	faultBrokenHistory     = "broken_history"     // a version is missing, or a transition is impossible
	faultTwoRiders         = "two_riders"         // two riders had one order at the same time
	faultTwoOrders         = "two_orders"         // one rider had two orders at the same time
	faultMoney             = "money"              // money was kept or refunded although it should not have been
	faultStaleRead         = "stale_read"         // a read with a Consistency-Token did not show the token's command
	faultUnexpectedAnswer  = "unexpected_answer"  // an answer that /openapi.json does not allow, or that does not fit what the party has done
	faultUnanswered        = "unanswered"         // a call without a definite answer in spite of retries
	faultUnfinished        = "unfinished"         // something that had not happened when the run stalled
	faultDeadLetter        = "dead_letter"        // there are more dead letters than before the run
)

// maxFaultsKept bounds the list of faults. Faults beyond it are only counted.
const maxFaultsKept = 1000

// fault enters a broken promise. order is the order's id, "" for none.
func (l *ledger) fault(kind, order, format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts[kind]++
	if len(l.faults) < maxFaultsKept {
		l.faults = append(l.faults, Fault{Kind: kind, Order: order, Detail: fmt.Sprintf(format, args...)})
	}
}

// firstFault returns the first fault, if there is one.
func (l *ledger) firstFault() (first Fault, found bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.faults) == 0 {
		return Fault{}, false
	}
	return l.faults[0], true
}
