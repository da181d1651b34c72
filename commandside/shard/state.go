package shard

import (
	"encoding/json"
	"fmt"
	"time"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/domain/restaurant"
	"tomato/domain/rider"
	"tomato/eventlog"
)

// This file owns the state of a shard in memory: its aggregates, and how events move
// them on, in the loop and in the replay of a take-over.

// The logs of a shard, by their index in eventlog.AggregateTopics. A variable with the
// name kind or log has one of these values.
const (
	orders = iota
	payments
	riders
	restaurants
	logCount
)

// logOf returns the log of a topic, or -1 if it is no aggregate topic.
func logOf(topic string) int {
	for i, t := range eventlog.AggregateTopics {
		if t == topic {
			return i
		}
	}
	return -1
}

// entry is what is held under one id: a rider, or a restaurant, or an order together
// with its payment. The two are one entry because decisions about the one need the
// other: every command on a payment looks at the order, Expire looks at the payment,
// and the answer to either shows both. A state is replaced by a new one and never changed, so an answer may refer to it. A
// state is nil if the aggregate has no event.
type entry struct {
	id         string
	order      *order.State
	payment    *payment.State
	rider      *rider.State
	restaurant *restaurant.State
	encoded    *encodedState // states that are not loaded; nil if all are

	last    [2]int64        // ordinals of this owner's last appends, of the payment in [1]; see partitionLog.acked
	keys    []keyScope      // idempotency keys that were used on it; keyMemory may have forgotten some
	unsaved uint8           // one bit per log: changed since the last snapshot
	kept    uint8           // one bit per log: the topic of snapshots has it, or the snapshot that is being written
	ahead   uint8           // one bit per log: the snapshot may have events of it that follow the checkpoint
	marks   *[2]*unreadable // marks of events that this build cannot read, the payment's in [1]; nil if there are none
}

// encodedState are states of an entry that are held as JSON; nil if a state is not.
// After a take-over these are the states from the snapshot: no command asks for most
// of them within the next minutes, and decoding all would be most of the take-over's
// time. Later they are the states of closed orders.
type encodedState struct{ order, payment []byte }

// load decodes the states that are held as JSON. It leaves the other one alone,
// because answers may refer to it.
func (e *entry) load() error {
	encoded := e.encoded
	e.encoded = nil
	var err error
	if encoded.order != nil {
		if e.order, err = readState[order.State](encoded.order); err == nil && e.order != nil {
			e.order.Share()
		}
	}
	if encoded.payment != nil && err == nil {
		if e.payment, err = readState[payment.State](encoded.payment); err == nil && e.payment != nil {
			e.payment.Share()
		}
	}
	if err != nil {
		return fmt.Errorf("%w: %s is not readable: %w", errForeignSnapshot, e.id, err)
	}
	return nil
}

// readState reads a state from JSON. It is nil if the JSON is null.
func readState[S any](data []byte) (s *S, err error) {
	s = new(S)
	if r, ok := any(s).(domain.JSONReadable); ok && domain.ReadJSON(data, r) {
		return s, nil
	}
	s = nil
	err = json.Unmarshal(data, &s)
	return s, err
}

// aggregates is the state of one shard. Only the loop uses it, and before that the
// take-over.
type aggregates struct {
	held         [logCount]map[string]*entry // by id; orders and payments are one map
	keys         keyMemory
	due          deadlines                                 // deadlines of orders
	closed       deadlines                                 // when closed orders shrink or are evicted
	onUnreadable func(e *eventlog.Event, mark *unreadable) // called for each aggregate that gets a mark

	build        string      // the build of this instance
	kept         int         // aggregates that have the bit entry.kept
	fromSnapshot bool        // the state is made of a snapshot and the events after it, not of all events
	unsaved      []*entry    // changed since the last snapshot
	removed      []recordKey // to be removed from the topic with the next snapshot
}

func newAggregates() *aggregates {
	a := &aggregates{onUnreadable: func(*eventlog.Event, *unreadable) {}}
	a.held[riders], a.held[restaurants] = map[string]*entry{}, map[string]*entry{}
	a.allocateOrders(0)
	return a
}

// allocateOrders makes empty maps of orders and idempotency keys, with space for n.
func (a *aggregates) allocateOrders(n int) {
	deals := make(map[string]*entry, n)
	a.held[orders], a.held[payments] = deals, deals
	a.keys.known = make(map[keyScope]keyUse, n)
}

// find returns the loaded entry under the id, or nil if there is none. An error means
// that the snapshot cannot be used.
func (a *aggregates) find(kind int, id string) (*entry, error) {
	e := a.held[kind][id]
	if e == nil || e.encoded == nil {
		return e, nil
	}
	return e, e.load()
}

// begin makes an empty entry.
func (a *aggregates) begin(kind int, id string) *entry {
	e := &entry{id: id}
	a.held[kind][id] = e
	return e
}

func (a *aggregates) size() int {
	return len(a.held[orders]) + len(a.held[riders]) + len(a.held[restaurants])
}

// Empty states, which Decide gets if there is no aggregate. Nobody writes to them.
var (
	noOrder      order.State
	noPayment    payment.State
	noRider      rider.State
	noRestaurant restaurant.State
)

// version returns the version of the aggregate in this log, or 0 if it has no event.
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

// lastAppend returns the ordinal of this owner's last append to the aggregate.
func (e *entry) lastAppend(kind int) int64 {
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

// orderFacts returns what a payment command needs to know of the order.
func (e *entry) orderFacts() payment.OrderFacts {
	if e == nil || e.order == nil {
		return payment.OrderFacts{}
	}
	s := e.order
	return payment.OrderFacts{Payable: s.Payable(), Ended: s.Status.Ended(), Status: string(s.Status),
		Amount: s.Amount, Currency: s.Currency, CustomerID: s.CustomerID, RestaurantID: s.RestaurantID}
}

// evolve applies an event to one aggregate and returns its new version. In a replay
// the ordinal is 0, and deadlines are left to scheduleAll, because only those of the
// last state matter.
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

// changed notes that the next snapshot must have the aggregate.
func (a *aggregates) changed(kind int, e *entry) {
	if e.unsaved == 0 {
		a.unsaved = append(a.unsaved, e)
	}
	e.unsaved |= 1 << kind
}

// replay folds a valid event of an aggregate, unless the snapshot has it already. An
// event that cannot be folded marks its own aggregate and has no effect on others.
// An error means that the snapshot cannot be used: the version of an event does not
// follow the version in the snapshot, so the snapshot is probably not of this log.
func (a *aggregates) replay(e *eventlog.Event, now time.Time) error {
	kind := logOf(e.Topic)
	held, err := a.find(kind, e.Subject)
	if err != nil {
		return err
	}
	if held == nil {
		held = a.begin(kind, e.Subject)
	}
	if held.markOf(kind) != nil {
		a.keys.replay(held, e, now) // so that a repeat is not decided as a new command
		return nil
	}
	version := held.version(kind)
	if held.ahead&(1<<kind) != 0 {
		if e.Fault == nil && e.Version > 0 && e.Version <= version {
			return nil // the state in the snapshot has this event
		}
		held.ahead &^= 1 << kind
	}
	if a.fromSnapshot && e.Fault == nil && e.Version != version+1 {
		return fmt.Errorf("%w: %s/%d@%d (%s %s) has version %d where %d must follow", errForeignSnapshot,
			e.Topic, e.Partition, e.Offset, eventlog.LogText(e.Type), e.Subject, e.Version, version+1)
	}
	mark := foldNext(e, version, func(ev domain.Event) { a.evolve(kind, held, ev, e.Time, 0) })
	if mark != nil {
		mark.Build = a.build
		held.setMark(kind, mark)
		a.changed(kind, held)
		a.onUnreadable(e, mark)
		a.keys.replay(held, e, now)
		return nil
	}
	if kind == orders && held.order.ClosedFor(now) > closedFor {
		a.shrink(held) // at once, so that the replay of a long log does not hold all orders whole
	}
	a.keys.replay(held, e, now)
	return nil
}

// schedule adds the deadlines of an order.
func (a *aggregates) schedule(s *order.State) {
	if due, _ := s.NextDeadline(); !due.IsZero() {
		a.due.push(due, s.ID)
	}
	if s.Status.Closed() {
		a.closed.push(s.ClosedAt.Add(closedFor), s.ID)
	}
}

// scheduleAll adds the deadlines of all loaded orders after a replay. Those of the
// encoded ones are in the headers of the snapshot; see restoreOne.
func (a *aggregates) scheduleAll() {
	for _, e := range a.held[orders] {
		if e.order != nil && e.markOf(orders) == nil {
			a.schedule(e.order)
		}
	}
}

// encode appends v to b as json.Marshal would write it. It needs no reflection if v
// is a domain.JSONWriter.
func encode(b []byte, v any) ([]byte, error) {
	if w, ok := v.(domain.JSONWriter); ok {
		return domain.AppendEncoded(b, w), nil
	}
	data, err := json.Marshal(v)
	return append(b, data...), err
}

// known returns which of the riders are registered.
func (a *aggregates) known(k Known) (res Result) {
	res.Known = make([]bool, len(k.RiderIDs))
	for i, id := range k.RiderIDs {
		res.Known[i] = a.held[riders][id] != nil
	}
	return res
}
