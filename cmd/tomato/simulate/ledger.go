package simulate

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tomato/domain"
)

// ledger is the simulator's own book: what it was promised (every command
// that was acknowledged), what it sent as money, and what its feeds received.
// It knows nothing of Tomato's inside. At the end judge compares it with what
// Tomato says happened. Safe for concurrent use.
type ledger struct {
	mu           sync.Mutex
	parties      []*party
	byName       map[string]*party // "rider:<id>"
	byID         map[string]*orderEntry
	beforePlaced map[string][]message // messages of own parties on orders not yet acknowledged
	orders       []*orderEntry
	faults       []Fault
	counts       map[string]int // faults by kind
	seed         maphash.Seed

	lastProgress    atomic.Int64 // unix nanoseconds of the last thing that moved an order
	foreignMessages atomic.Int64 // messages to riders on orders of other runs
}

func newLedger() *ledger {
	return &ledger{
		byName: map[string]*party{}, byID: map[string]*orderEntry{}, beforePlaced: map[string][]message{},
		counts: map[string]int{}, seed: maphash.MakeSeed(),
	}
}

// party is who has a feed and may be called by its id.
type party struct {
	number     int32
	role       domain.Role
	id         string
	ineligible string // why no offer may ever reach this rider; "" for the others

	mu   sync.Mutex
	gaps []feedGap // spans in which the feed said that it lost its place
}

// gap is a span, by the local clock, for which a feed told its client to
// reload: what is missing in it was announced as missing.
type feedGap struct{ from, to time.Time }

func (p *party) addGap(g feedGap) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gaps = append(p.gaps, g)
}

// excused says whether a message of an event at t may be missing.
func (p *party) excused(t time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, g := range p.gaps {
		if t.IsZero() || !t.Before(g.from) && !t.After(g.to) {
			return true
		}
	}
	return false
}

// kind is a feed message's kind, as far as it is kept.
type messageKind uint8

const (
	kindNew messageKind = iota + 1
	kindUpdate
	kindAvailable
	kindTaken
	kindRiderAssigned
	kindExhausted
)

var messageKinds = map[string]messageKind{
	"order:new": kindNew, "order:update": kindUpdate, "order:available": kindAvailable,
	"order:taken": kindTaken, "order:rider_assigned": kindRiderAssigned, "dispatch:exhausted": kindExhausted,
}

func (k messageKind) String() string {
	for name, v := range messageKinds {
		if v == k {
			return name
		}
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// seen is one received feed message, kept small: a large run holds a million.
type receipt struct {
	party   int32
	version int32  // of an order:update that an order event caused, else 0
	tag     uint64 // what tells messages of the kind apart: rider, payment status
	kind    messageKind
}

// ack is one acknowledged command on an order.
type ack struct {
	command       string
	rider         string // whose command, of accept, decline and drop
	version       int
	status        string
	paymentStatus string
}

// money is one payment that the simulated gateway was made to capture.
type capture struct {
	paymentID string
	amount    int64
}

// record is one order of the run.
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
	dueAt            time.Time // paymentDueAt
	acks             []ack
	captures         []capture
	paymentRequested bool // /payment was answered
	receipts         []receipt
	token            string // Consistency-Token of the highest acknowledged version
	version          int    // highest version known by answer or feed
	status           string // at that version
	paymentStatus    string // paymentStatus, as last heard
	holder           string // rider whose accept was acknowledged and whose deliver or drop was not sent
	drops            int
	cancelRequested  bool // somebody cancels it: refusals of the others are expected
	redispatched     bool // ops asked for a new round
	verdict          verdict
	final            orderView
	judgedReceipts   int // len(seen) when it was last judged, -1 before
	judgements       int
	staleReported    bool
	changed          chan struct{}

	restaurantStarted atomic.Bool
	acceptsUnderWay   atomic.Int32
	latencyStarts     latencyStarts
}

// starts are moments of the local clock from which latencies are counted;
// a zero one is not set, or already used.
type latencyStarts struct {
	placing, capture, cooked time.Time
}

// span is the time in which a rider had the order, by the events' own times.
type assignment struct {
	rider    string
	from, to time.Time // to is zero while it lasts
}

// Fault is a broken promise.
type Fault struct {
	Kind   string `json:"kind"`
	Order  string `json:"order,omitempty"`
	Detail string `json:"detail"`
}

// The kinds of faults.
const (
	faultLostCommand       = "lost_command"       // acknowledged, and not in the order's events
	faultLostMessage       = "lost_message"       // a feed message that its party never got
	faultDuplicateMessage  = "duplicate_message"  // a feed message that came twice
	faultUncalledMessage   = "uncalled_message"   // a feed message that no event explains, or to no party
	faultMisorderedMessage = "misordered_message" // an older version after a newer one
	faultFeedProtocol      = "feed_protocol"      // no cursor, wrong room, no feed:resumed
	faultDuplicateEvent    = "duplicate_event"    // an event that can occur once occurred twice
	faultBrokenHistory     = "broken_history"     // versions with a hole, an impossible transition
	faultTwoRiders         = "two_riders"         // two riders on one order
	faultTwoOrders         = "two_orders"         // two orders on one rider
	faultMoney             = "money"              // kept or given back what is not due
	faultStaleRead         = "stale_read"         // a read with a token that does not show the command
	faultUnexpectedAnswer  = "unexpected_answer"  // an answer that the contract does not have here
	faultUnanswered        = "unanswered"         // no definite answer in spite of retries
	faultUnfinished        = "unfinished"         // awaited until the time was over
	faultDeadLetter        = "dead_letter"        // parked during the run
)

func (l *ledger) fault(kind, order, format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts[kind]++
	if len(l.faults) < maxFaultsKept {
		l.faults = append(l.faults, Fault{Kind: kind, Order: order, Detail: fmt.Sprintf(format, args...)})
	}
}

// maxFaultsKept bounds the list; the counts go on.
const maxFaultsKept = 1000

func (l *ledger) addParty(role domain.Role, id string) *party {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := &party{number: int32(len(l.parties)), role: role, id: id}
	l.parties = append(l.parties, p)
	l.byName[string(role)+":"+id] = p
	return p
}

func (l *ledger) rider(id string) *party {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.byName[string(domain.Rider)+":"+id]
}

func (l *ledger) add(p plan, customer, restaurant *party, to domain.Point) *orderEntry {
	r := &orderEntry{plan: p, customer: customer, restaurant: restaurant, deliverTo: to, judgedReceipts: -1, changed: make(chan struct{})}
	l.mu.Lock()
	defer l.mu.Unlock()
	r.number = len(l.orders)
	l.orders = append(l.orders, r)
	return r
}

func (l *ledger) find(orderID string) *orderEntry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.byID[orderID]
}

// placed enters an order that was acknowledged, and gives it what its feeds
// had already told.
func (l *ledger) placed(r *orderEntry, v orderView) {
	r.mu.Lock()
	r.id, r.amount, r.currency, r.dueAt = v.OrderID, v.Amount, v.Currency, v.PaymentDueAt
	r.pickUp = v.PickUp.Location
	r.mu.Unlock()
	l.mu.Lock()
	other := l.byID[v.OrderID]
	l.byID[v.OrderID] = r
	early := l.beforePlaced[v.OrderID]
	delete(l.beforePlaced, v.OrderID)
	l.mu.Unlock()
	if other != nil {
		l.fault(faultDuplicateEvent, v.OrderID, "two placements answered with this order")
	}
	for _, m := range early {
		l.addReceipt(r, m)
	}
}

// acknowledged enters a command that was answered with success.
func (l *ledger) acknowledged(r *orderEntry, command, rider string, v orderView, token string) {
	l.lastProgress.Store(time.Now().UnixNano())
	r.mu.Lock()
	defer r.mu.Unlock()
	r.acks = append(r.acks, ack{command, rider, v.Version, v.Status, v.PaymentStatus})
	if token != "" && v.Version >= r.version {
		r.token = token
	}
	r.advance(v.Version, v.Status)
	if v.PaymentStatus != "" {
		r.paymentStatus = v.PaymentStatus
	}
	r.wake()
}

// advance takes a newer version's status. r.mu is held.
func (r *orderEntry) advance(version int, status string) {
	if version > r.version && status != "" {
		r.version, r.status = version, status
	}
}

// wake lets everyone look again who waits for the order. r.mu is held.
func (r *orderEntry) wake() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// await returns true when cond, called with r.mu held, holds; false when the
// patience or the context is over first.
func (r *orderEntry) await(ctx context.Context, patience time.Duration, cond func() bool) bool {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		r.mu.Lock()
		ok, changed := cond(), r.changed
		r.mu.Unlock()
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

// closed says whether the status is one that nothing follows.
func isFinal(status string) bool {
	return status == "delivered" || status == "cancelled" || status == "rejected" || status == "expired"
}

func (r *orderEntry) hasEnded() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return isFinal(r.status)
}

// message is a feed message as it comes, with the union of the payloads.
type message struct {
	Event     string          `json:"event"`
	Room      string          `json:"room"`
	Payload   json.RawMessage `json:"payload"`
	Timestamp time.Time       `json:"timestamp"`
	Cursor    string          `json:"cursor"`
	Code      string          `json:"code"` // of feed:error

	receiver *party
	data     payload
}

type payload struct {
	OrderID       string       `json:"orderId"`
	RestaurantID  string       `json:"restaurantId"`
	RiderID       string       `json:"riderId"`
	RiderName     string       `json:"riderName"`
	Status        string       `json:"status"`
	PaymentStatus string       `json:"paymentStatus"`
	Version       int          `json:"version"`
	Reason        string       `json:"reason"`
	Location      domain.Point `json:"location"`
	ExpiresAt     time.Time    `json:"expiresAt"`
}

// received enters a feed message and returns the order it is about, nil when
// that is not (yet) known.
func (l *ledger) received(m message) *orderEntry {
	if messageKinds[m.Event] == 0 {
		return nil
	}
	l.mu.Lock()
	r := l.byID[m.data.OrderID]
	if r == nil {
		if m.receiver.role == domain.Rider {
			l.foreignMessages.Add(1) // an order of somebody else, near our rider
		} else {
			l.beforePlaced[m.data.OrderID] = append(l.beforePlaced[m.data.OrderID], m)
		}
	}
	l.mu.Unlock()
	if r != nil {
		l.addReceipt(r, m)
	}
	return r
}

func (l *ledger) addReceipt(r *orderEntry, m message) {
	s := receipt{party: m.receiver.number, kind: messageKinds[m.Event]}
	switch s.kind {
	case kindUpdate:
		s.version = int32(m.data.Version)
		if s.version == 0 {
			s.tag = l.tag(m.data.PaymentStatus)
		}
		l.lastProgress.Store(time.Now().UnixNano())
	case kindRiderAssigned:
		s.tag = l.tag(m.data.RiderID)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.receipts = append(r.receipts, s)
	if s.kind == kindUpdate {
		r.advance(m.data.Version, m.data.Status)
		if m.data.PaymentStatus != "" && m.receiver == r.customer {
			r.paymentStatus = m.data.PaymentStatus
		}
		r.wake()
	}
}

func (l *ledger) tag(s string) uint64 {
	if s == "" {
		return 0
	}
	return maphash.String(l.seed, s)
}

// assigned enters that a rider's accept was acknowledged. A rider who already
// has an order, or an order that another has, is a broken promise: seen here
// without any clock, by the order of requests and answers alone.
func (l *ledger) assigned(r *orderEntry, rider string, has *orderEntry) {
	r.mu.Lock()
	other := r.holder
	if !isFinal(r.status) {
		r.holder = rider
	}
	r.mu.Unlock()
	if other != "" && other != rider {
		l.fault(faultTwoRiders, r.id, "assigned to %s, and acknowledged to %s", other, rider)
	}
	if has != nil && has != r {
		l.fault(faultTwoOrders, r.id, "acknowledged to %s, who has %s", rider, has.id)
	}
}

// released enters that the end of the assignment was asked for.
func (r *orderEntry) released() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holder = ""
}

// overlaps finds riders who had two orders at once by the events' own times.
func overlaps(records []*orderEntry) []Fault {
	type held struct {
		assignment
		order string
	}
	byRider := map[string][]held{}
	for _, r := range records {
		for _, s := range r.verdict.assignments {
			byRider[s.rider] = append(byRider[s.rider], held{s, r.id})
		}
	}
	var faults []Fault
	for rider, hs := range byRider {
		slices.SortFunc(hs, func(a, b held) int {
			return cmp.Or(a.from.Compare(b.from), cmp.Compare(a.order, b.order))
		})
		for i := 1; i < len(hs); i++ {
			a, b := hs[i-1], hs[i]
			if a.to.IsZero() || a.to.After(b.from) {
				faults = append(faults, Fault{faultTwoOrders, b.order, fmt.Sprintf(
					"%s took it at %s, while it had %s", rider, b.from.Format(time.RFC3339Nano), a.order)})
			}
		}
	}
	slices.SortFunc(faults, func(a, b Fault) int { return cmp.Compare(a.Order, b.Order) })
	return faults
}
