package shard

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/domain/restaurant"
	"tomato/domain/rider"
	"tomato/eventlog"
)

// The logs of a shard, by their place in eventlog.AggregateTopics.
const (
	orders = iota
	payments
	riders
	restaurants
	logCount
)

func logOf(topic string) int {
	for i, t := range eventlog.AggregateTopics {
		if t == topic {
			return i
		}
	}
	return -1
}

// entry is what is held under one id: an order and its payment, which are found
// together by every command on either, or a rider, or a restaurant. States are
// replaced, never changed, so an answer may keep them; nil is "nothing yet".
type entry struct {
	id         string
	order      *order.State
	payment    *payment.State
	rider      *rider.State
	restaurant *restaurant.State
	frozen     *frozen // order and payment, or one of them, as a snapshot has them, until somebody asks

	last    [2]int64        // ordinals of this owner's last appends, of the payment in [1]; unacknowledged while above their log's acked
	keys    []keyScope      // of idempotency keys used on it; some may be forgotten
	unsaved uint8           // bit per log: changed since the last snapshot
	kept    uint8           // bit per log: it stands in the topic of snapshots, or in the one that is being written
	ahead   uint8           // bit per log: loaded from a snapshot that may have events behind its checkpoint
	unread  *[2]*unreadable // marks of what this build cannot read, the payment's in [1]; nil: none
}

// frozen are states that are text: those that a take-over has loaded, of which most
// are not asked for within the next minutes, and reading them would be most of its
// time; and those of closed orders.
type frozen struct{ order, payment []byte }

// thaw reads what is text. What is not is left alone: answers share it.
func (e *entry) thaw() error {
	f := e.frozen
	e.frozen = nil
	var err error
	if f.order != nil {
		if err = json.Unmarshal(f.order, &e.order); err == nil && e.order != nil {
			e.order.Share()
		}
	}
	if f.payment != nil && err == nil {
		if err = json.Unmarshal(f.payment, &e.payment); err == nil && e.payment != nil {
			e.payment.Share()
		}
	}
	if err != nil {
		return fmt.Errorf("%w: %s is not readable: %w", errForeignSnapshot, e.id, err)
	}
	return nil
}

// aggregates is the state of one partition of all four topics.
type aggregates struct {
	held   [logCount]map[string]*entry // of payments the same map as of orders
	keys   keyMemory
	due    deadlines                                 // what orders' owners do when a time is reached
	closed deadlines                                 // when closed orders shrink, then leave
	marked func(e *eventlog.Event, mark *unreadable) // told of each aggregate that cannot be read on

	build   string      // of this instance
	kept    int         // aggregates in the topic of snapshots
	partial bool        // the rest came from a snapshot: not all events were folded one by one
	unsaved []*entry    // changed since the last snapshot
	gone    []recordKey // left since the last snapshot, or found in the topic and not held
}

func newAggregates() *aggregates {
	a := &aggregates{marked: func(*eventlog.Event, *unreadable) {}}
	a.held[riders], a.held[restaurants] = map[string]*entry{}, map[string]*entry{}
	a.room(0)
	return a
}

// room makes room for so many orders, of which there are none yet.
func (a *aggregates) room(n int) {
	deals := make(map[string]*entry, n)
	a.held[orders], a.held[payments] = deals, deals
	a.keys.known = make(map[keyScope]keyUse, n)
}

// find returns what is held under the id, or nil. An error says that the
// snapshot cannot be used.
func (a *aggregates) find(kind int, id string) (*entry, error) {
	e := a.held[kind][id]
	if e == nil || e.frozen == nil {
		return e, nil
	}
	return e, e.thaw()
}

// begin makes an entry for what is not held.
func (a *aggregates) begin(kind int, id string) *entry {
	e := &entry{id: id}
	a.held[kind][id] = e
	return e
}

func (a *aggregates) size() int {
	return len(a.held[orders]) + len(a.held[riders]) + len(a.held[restaurants])
}

// What Decide is given where nothing is held. Nobody writes to them.
var (
	noOrder      order.State
	noPayment    payment.State
	noRider      rider.State
	noRestaurant restaurant.State
)

// version is that of the aggregate in this log; 0 where there is none.
func (e *entry) version(kind int) int64 {
	switch {
	case e == nil:
	case kind == orders && e.order != nil:
		return e.order.Version
	case kind == payments && e.payment != nil:
		return e.payment.Version
	case kind == riders && e.rider != nil:
		return e.rider.Version
	case kind == restaurants && e.restaurant != nil:
		return e.restaurant.Version
	}
	return 0
}

func (e *entry) ordinal(kind int) *int64 {
	if kind == payments {
		return &e.last[1]
	}
	return &e.last[0]
}

// lastOf is the ordinal of this owner's last append to the aggregate.
func (e *entry) lastOf(kind int) int64 {
	if e == nil {
		return 0
	}
	return *e.ordinal(kind)
}

func (e *entry) orderState() *order.State {
	if e == nil || e.order == nil {
		return &noOrder
	}
	return e.order
}

func (e *entry) paymentState() *payment.State {
	if e == nil || e.payment == nil {
		return &noPayment
	}
	return e.payment
}

func (e *entry) riderState() *rider.State {
	if e == nil || e.rider == nil {
		return &noRider
	}
	return e.rider
}

func (e *entry) restaurantState() *restaurant.State {
	if e == nil || e.restaurant == nil {
		return &noRestaurant
	}
	return e.restaurant
}

// orderFacts is what the order says to a payment command.
func (e *entry) orderFacts() payment.OrderFacts {
	if e == nil || e.order == nil {
		return payment.OrderFacts{}
	}
	s := e.order
	return payment.OrderFacts{Payable: s.Payable(), Ended: s.Status.Ended(), Status: string(s.Status),
		Amount: s.Amount, Currency: s.Currency, CustomerID: s.CustomerID, RestaurantID: s.RestaurantID}
}

// evolve moves one aggregate on and returns its new version. While replaying,
// ordinal is 0, and deadlines are left to scheduleAll: only the last state's matter.
func (a *aggregates) evolve(kind int, e *entry, ev domain.Event, at time.Time, ordinal int64) int64 {
	switch kind {
	case orders:
		next := new(order.State)
		*next = *e.orderState()
		next.Apply(ev.(order.Event), at)
		if e.order = next; ordinal > 0 {
			a.schedule(next)
		} else if next.Version == 1 {
			next.Share()
		}
	case payments:
		next := payment.Evolve(*e.paymentState(), ev.(payment.Event), at)
		e.payment = &next
		if ordinal == 0 && next.Version == 1 {
			next.Share()
		}
	case riders:
		next := rider.Evolve(*e.riderState(), ev.(rider.Event), at)
		e.rider = &next
	default:
		next := restaurant.Evolve(*e.restaurantState(), ev.(restaurant.Event), at)
		e.restaurant = &next
	}
	*e.ordinal(kind) = ordinal
	a.changed(kind, e)
	return e.version(kind)
}

// changed puts the aggregate into the next snapshot.
func (a *aggregates) changed(kind int, e *entry) {
	if e.unsaved == 0 {
		a.unsaved = append(a.unsaved, e)
	}
	e.unsaved |= 1 << kind
}

// replay folds a valid event of an aggregate, unless a snapshot has it. What cannot
// be folded marks its aggregate and concerns no other. An error says that the
// snapshot cannot be used: where the version is not the next one after what it has,
// it is not of this log, as far as can be known.
func (a *aggregates) replay(e *eventlog.Event, now time.Time) error {
	kind := logOf(e.Topic)
	held, err := a.find(kind, e.Subject)
	if err != nil {
		return err
	}
	if held == nil {
		held = a.begin(kind, e.Subject)
	}
	if held.unreadOf(kind) != nil {
		a.keys.replay(held, e, now) // a repeat must not be taken for something new
		return nil
	}
	version := held.version(kind)
	if held.ahead&(1<<kind) != 0 {
		if e.Fault == nil && e.Version > 0 && e.Version <= version {
			return nil // the snapshot was later
		}
		held.ahead &^= 1 << kind
	}
	if a.partial && e.Fault == nil && e.Version != version+1 {
		return fmt.Errorf("%w: %s/%d@%d (%s %s) has version %d where %d must follow", errForeignSnapshot,
			e.Topic, e.Partition, e.Offset, eventlog.LogText(e.Type), e.Subject, e.Version, version+1)
	}
	mark := foldNext(e, version, func(ev domain.Event) { a.evolve(kind, held, ev, e.Time, 0) })
	if mark != nil {
		mark.Build = a.build
		held.setUnread(kind, mark)
		a.changed(kind, held)
		a.marked(e, mark)
		a.keys.replay(held, e, now)
		return nil
	}
	if kind == orders && held.order.ClosedFor(now) > closedFor {
		a.shrink(held) // at once: a long history is not held whole on the way
	}
	a.keys.replay(held, e, now)
	return nil
}

func (a *aggregates) schedule(s *order.State) {
	if due, _ := s.NextDeadline(); !due.IsZero() {
		a.due.push(due, s.ID)
	}
	if s.Status.Closed() {
		a.closed.push(s.ClosedAt.Add(closedFor), s.ID)
	}
}

// scheduleAll fills the deadlines after a replay.
func (a *aggregates) scheduleAll() {
	for _, e := range a.held[orders] {
		if e.order != nil && e.unreadOf(orders) == nil { // of the frozen ones the snapshot told
			a.schedule(e.order)
		}
	}
}

// keyTTL is how long an idempotency key is remembered.
const keyTTL = 24 * time.Hour

// keyScope is what an idempotency key is unique in: caller, operation,
// aggregate and the key itself, hashed.
type keyScope [16]byte

// keyUse is the first, successful use of a key.
type keyUse struct {
	body    [8]byte
	on      *entry
	ordinal int64 // of the append in this ownership; 0 when replayed
	at      int64 // Unix milliseconds
	status  int32
}

func (u keyUse) expired(now time.Time) bool {
	return now.UnixMilli()-u.at > keyTTL.Milliseconds()
}

// keyMemory remembers idempotency keys for keyTTL. It is rebuilt from the
// events, which carry key and body hash, and from snapshots.
type keyMemory struct {
	known map[keyScope]keyUse
	order []keyAge // oldest first, as far as one clock goes
}

type keyAge struct {
	scope keyScope
	at    int64 // Unix milliseconds
}

func (m *keyMemory) add(e *entry, scope keyScope, u keyUse) {
	if old, ok := m.known[scope]; !ok || old.on != e || old.at != u.at { // an expired one may be used again, on another aggregate
		m.order = append(m.order, keyAge{scope, u.at})
		if len(e.keys) == cap(e.keys) { // what is forgotten makes room
			e.keys = slices.DeleteFunc(e.keys, func(k keyScope) bool { return m.known[k].on != e })
		}
		e.keys = append(e.keys, scope)
	}
	u.on = e
	m.known[scope] = u
}

func (m *keyMemory) forget(now time.Time) {
	n := 0
	for n < len(m.order) && (keyUse{at: m.order[n].at}).expired(now) {
		if k := m.order[n]; m.known[k.scope].at == k.at { // else it was used again
			delete(m.known, k.scope)
		}
		n++
	}
	m.order = m.order[n:]
}

func (m *keyMemory) replay(held *entry, e *eventlog.Event, now time.Time) {
	if e.Idempotency == "" {
		return
	}
	if scope, u, ok := parseKeyUse(e.Idempotency); ok {
		if u.at = e.Time.UnixMilli(); !u.expired(now) {
			m.add(held, scope, u)
		}
	}
}

// text is the use as an event's header has it: scope, body and status.
func (u keyUse) text(scope keyScope) string {
	return hex.EncodeToString(scope[:]) + "." + hex.EncodeToString(u.body[:]) + "." + strconv.Itoa(int(u.status))
}

// parseKeyUse reads what text wrote; whatever follows after a further dot is
// left to the caller.
func parseKeyUse(s string) (scope keyScope, u keyUse, ok bool) {
	parts := strings.Split(s, ".")
	if len(parts) < 3 {
		return scope, u, false
	}
	if n, err := hex.Decode(scope[:], []byte(parts[0])); err != nil || n != len(scope) {
		return scope, u, false
	}
	if n, err := hex.Decode(u.body[:], []byte(parts[1])); err != nil || n != len(u.body) {
		return scope, u, false
	}
	status, err := strconv.ParseInt(parts[2], 10, 32)
	u.status = int32(status)
	return scope, u, err == nil
}

func scopeOf(r *Request) keyScope {
	id := r.ID
	if isPlace(r.Command) {
		id = "" // drawn anew for every try
	}
	h := sha256.New()
	for _, s := range []string{string(r.Actor.Role), r.Actor.Sub, r.Command.CommandName(), r.Topic, id, r.IdempotencyKey} {
		h.Write([]byte(s))
		h.Write([]byte{0})
	}
	return keyScope(h.Sum(nil)[:16])
}

func bodyOf(r *Request) [8]byte {
	sum := sha256.Sum256([]byte(r.BodyHash))
	return [8]byte(sum[:8])
}

// encode appends v as json.Marshal would write it, without reflection where v
// knows how.
func encode(b []byte, v any) ([]byte, error) {
	if w, ok := v.(domain.JSONWriter); ok {
		return domain.AppendEncoded(b, w), nil
	}
	data, err := json.Marshal(v)
	return append(b, data...), err
}
