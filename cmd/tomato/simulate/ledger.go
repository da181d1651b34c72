package simulate

import (
	"fmt"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tomato/domain"
)

// ledger is the simulator's own account of a run: what Tomato promised (every
// acknowledged command), what the gateway was made to capture, and what the feeds
// received. At the end judge compares it with what Tomato's queries say. Safe for
// concurrent use.
//
// A goroutine that holds the ledger's lock must not take the lock of an orderEntry.
type ledger struct {
	mu           sync.Mutex
	parties      []*party
	byName       map[string]*party      // by role and id, such as "rider:<id>"
	byID         map[string]*orderEntry // the acknowledged orders, by order id
	beforePlaced map[string][]message   // messages about orders that were not acknowledged yet, by order id
	orders       []*orderEntry          // by number
	faults       []Fault                // the first maxFaultsKept
	counts       map[string]int         // the number of faults, by kind
	seed         maphash.Seed           // of tag

	lastProgress    atomic.Int64 // when the run last made progress, in Unix nanoseconds
	foreignMessages atomic.Int64 // messages to riders about orders of other runs
}

func newLedger() *ledger {
	return &ledger{
		byName: map[string]*party{}, byID: map[string]*orderEntry{}, beforePlaced: map[string][]message{},
		counts: map[string]int{}, seed: maphash.MakeSeed(),
	}
}

// noteProgress notes that the run has made progress.
func (l *ledger) noteProgress() { l.lastProgress.Store(time.Now().UnixNano()) }

// addParty enters a party.
func (l *ledger) addParty(role domain.Role, id string) *party {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := &party{number: int32(len(l.parties)), role: role, id: id}
	l.parties = append(l.parties, p)
	l.byName[string(role)+":"+id] = p
	return p
}

// rider returns the rider with this id, or nil if it is a rider of another run.
func (l *ledger) rider(id string) *party {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.byName[string(domain.Rider)+":"+id]
}

// partyAt returns the party with this number.
func (l *ledger) partyAt(n int32) *party {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.parties[n]
}

// name returns the role and the id of the party with this number.
func (l *ledger) name(n int32) string {
	p := l.partyAt(n)
	return string(p.role) + " " + p.id
}

// add enters an order that is about to be placed.
func (l *ledger) add(p plan, customer, restaurant *party, to domain.Point) *orderEntry {
	e := &orderEntry{plan: p, customer: customer, restaurant: restaurant, deliverTo: to, judgedReceipts: -1, changed: make(chan struct{})}
	l.mu.Lock()
	defer l.mu.Unlock()
	e.number = len(l.orders)
	l.orders = append(l.orders, e)
	return e
}

// find returns the order with this id. It returns nil if the order was not
// acknowledged yet, or is an order of another run.
func (l *ledger) find(orderID string) *orderEntry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.byID[orderID]
}

// placed enters that the placing of an order was acknowledged. Messages about the
// order may have come before that. They are entered now.
func (l *ledger) placed(e *orderEntry, v orderView) {
	e.mu.Lock()
	e.id, e.amount, e.currency, e.dueAt = v.OrderID, v.Amount, v.Currency, v.PaymentDueAt
	e.pickUp = v.PickUp.Location
	e.mu.Unlock()
	l.mu.Lock()
	other := l.byID[v.OrderID]
	l.byID[v.OrderID] = e
	messages := l.beforePlaced[v.OrderID]
	delete(l.beforePlaced, v.OrderID)
	l.mu.Unlock()
	if other != nil {
		l.fault(faultDuplicateEvent, v.OrderID, "two orders were placed, and both were answered with this order id")
	}
	for _, m := range messages {
		l.addReceipt(e, m)
	}
}

// acknowledged enters a command that succeeded, and the order in its answer.
func (l *ledger) acknowledged(e *orderEntry, command, rider string, v orderView, token string) {
	l.noteProgress()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.acks = append(e.acks, ack{command, rider, v.Version, v.Status, v.PaymentStatus})
	if token != "" && v.Version >= e.version {
		e.token = token
	}
	e.advance(v.Version, v.Status)
	if v.PaymentStatus != "" {
		e.paymentStatus = v.PaymentStatus
	}
	e.wake()
}

// received enters a feed message and returns the order that it is about. It returns
// nil if the order was not acknowledged yet, or is an order of another run.
func (l *ledger) received(m message) *orderEntry {
	if messageKinds[m.Event] == 0 {
		return nil
	}
	l.mu.Lock()
	e := l.byID[m.data.OrderID]
	if e == nil {
		if m.receiver.role == domain.Rider {
			l.foreignMessages.Add(1) // an order of another run, near our rider
		} else {
			l.beforePlaced[m.data.OrderID] = append(l.beforePlaced[m.data.OrderID], m)
		}
	}
	l.mu.Unlock()
	if e != nil {
		l.addReceipt(e, m)
	}
	return e
}

// addReceipt enters a feed message about an order. If it is an order:update, it also
// enters the status in the message.
func (l *ledger) addReceipt(e *orderEntry, m message) {
	s := receipt{party: m.receiver.number, kind: messageKinds[m.Event]}
	switch s.kind {
	case kindUpdate:
		s.version = int32(m.data.Version)
		if s.version == 0 {
			s.tag = l.tag(m.data.PaymentStatus)
		}
		l.noteProgress()
	case kindRiderAssigned:
		s.tag = l.tag(m.data.RiderID)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.receipts = append(e.receipts, s)
	if s.kind == kindUpdate {
		e.advance(m.data.Version, m.data.Status)
		if m.data.PaymentStatus != "" && m.receiver == e.customer {
			e.paymentStatus = m.data.PaymentStatus
		}
		e.wake()
	}
}

// tag returns a number that stands for a text in a receipt; 0 for "".
func (l *ledger) tag(s string) uint64 {
	if s == "" {
		return 0
	}
	return maphash.String(l.seed, s)
}

// assigned enters that a rider's accept was acknowledged. has is an order that the
// rider already has, or nil. It is a broken promise if the order already has another
// rider, or the rider another order. assigned concludes this from the sequence of
// requests and answers alone, so no clock can mislead it.
func (l *ledger) assigned(e *orderEntry, rider string, has *orderEntry) {
	e.mu.Lock()
	other := e.holder
	if !isFinal(e.status) {
		e.holder = rider
	}
	e.mu.Unlock()
	if other != "" && other != rider {
		l.fault(faultTwoRiders, e.id, "rider %s has the order, and the accept of %s was acknowledged", other, rider)
	}
	if has != nil && has != e {
		l.fault(faultTwoOrders, e.id, "the accept of %s was acknowledged, who has order %s", rider, has.id)
	}
}

// allOrders returns the orders that were to be placed so far.
func (l *ledger) allOrders() []*orderEntry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.orders)
}

// acknowledgedOrders returns the orders whose placing was acknowledged.
func (l *ledger) acknowledgedOrders() []*orderEntry {
	var orders []*orderEntry
	for _, e := range l.allOrders() {
		if e.id != "" {
			orders = append(orders, e)
		}
	}
	return orders
}

// unplacedMessages returns a fault for each order that our parties got messages
// about although none of them placed it. It returns no fault if any call was not
// answered, because that call may have placed the order.
func (l *ledger) unplacedMessages() []Fault {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.counts[faultUnanswered] > 0 {
		return nil
	}
	var faults []Fault
	for id, ms := range l.beforePlaced {
		to := ms[0].receiver
		faults = append(faults, Fault{faultUncalledMessage, id, fmt.Sprintf("%s %s got %s of an order that it did not place", to.role, to.id, ms[0].Event)})
	}
	return faults
}

// progressCounts returns how many orders have ended, by the last status that was
// received, and how many faults there are.
func (l *ledger) progressCounts() (ended, faults int) {
	for _, e := range l.allOrders() {
		if e.hasEnded() {
			ended++
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range l.counts {
		faults += n
	}
	return ended, faults
}
