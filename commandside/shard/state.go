package shard

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
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

// entry is one aggregate in memory. state is replaced, never changed, so an
// answer may keep it.
type entry[S any] struct {
	state *S
	last  int64 // ordinal of its last append of this owner; unacknowledged while above the log's acked
}

// aggregates is the state of one partition of all four topics.
type aggregates struct {
	orders      map[string]*entry[order.State]
	payments    map[string]*entry[payment.State]
	riders      map[string]*entry[rider.State]
	restaurants map[string]*entry[restaurant.State]
	keys        keyMemory
	due         deadlines
}

func newAggregates() *aggregates {
	return &aggregates{
		orders:      map[string]*entry[order.State]{},
		payments:    map[string]*entry[payment.State]{},
		riders:      map[string]*entry[rider.State]{},
		restaurants: map[string]*entry[restaurant.State]{},
		keys:        keyMemory{known: map[keyScope]keyUse{}},
	}
}

// replay folds an event that counts. It fails where the log is corrupt: an
// event that cannot be read, or whose version is not the next one.
func (a *aggregates) replay(e *eventlog.Event) error {
	if e.Type == eventlog.ShardClaimed || e.Type == eventlog.ShardSeen {
		return nil
	}
	kind := logOf(e.Topic)
	ev, err := decodeEvent(e.Topic, e.Type, e.Data)
	if err == nil {
		if got := a.evolve(kind, e.Subject, ev, e.Time, 0); got != e.Version {
			err = fmt.Errorf("version %d where %d must follow", e.Version, got)
		}
	}
	if err != nil {
		return fmt.Errorf("%s/%d@%d (%s %s) is corrupt: %w", e.Topic, e.Partition, e.Offset, e.Type, e.Subject, err)
	}
	a.keys.replay(e, time.Now())
	return nil
}

// evolve moves one aggregate on and returns its new version.
func (a *aggregates) evolve(kind int, id string, ev domain.Event, at time.Time, ordinal int64) int64 {
	switch kind {
	case orders:
		s := evolve(a.orders, id, ev.(order.Event), at, ordinal, order.Evolve)
		if ordinal > 0 { // while replaying, only the last state's deadline matters: see scheduleAll
			a.schedule(s)
		}
		return s.Version
	case payments:
		return evolve(a.payments, id, ev.(payment.Event), at, ordinal, payment.Evolve).Version
	case riders:
		return evolve(a.riders, id, ev.(rider.Event), at, ordinal, rider.Evolve).Version
	default:
		return evolve(a.restaurants, id, ev.(restaurant.Event), at, ordinal, restaurant.Evolve).Version
	}
}

func (a *aggregates) schedule(s *order.State) {
	if due, _ := s.NextDeadline(); !due.IsZero() {
		a.due.push(due, s.ID)
	}
}

// scheduleAll fills the deadlines after a replay.
func (a *aggregates) scheduleAll() {
	for _, e := range a.orders {
		a.schedule(e.state)
	}
}

func evolve[S, E any](held map[string]*entry[S], id string, ev E, at time.Time, ordinal int64, f func(S, E, time.Time) S) *S {
	e := held[id]
	if e == nil {
		e = &entry[S]{state: new(S)}
		held[id] = e
	}
	next := f(*e.state, ev, at)
	e.state, e.last = &next, ordinal
	return e.state
}

// orderFacts is what the order says to a payment command.
func (a *aggregates) orderFacts(orderID string) payment.OrderFacts {
	e := a.orders[orderID]
	if e == nil {
		return payment.OrderFacts{}
	}
	s := e.state
	return payment.OrderFacts{Payable: s.Payable(), Ended: s.Status.Ended(), Status: string(s.Status),
		Amount: s.Amount, Currency: s.Currency, CustomerID: s.CustomerID, RestaurantID: s.RestaurantID}
}

// keyTTL is how long an idempotency key is remembered.
const keyTTL = 24 * time.Hour

// keyScope is what an idempotency key is unique in: caller, operation,
// aggregate and the key itself, hashed.
type keyScope [16]byte

// keyUse is the first, successful use of a key.
type keyUse struct {
	body    [8]byte
	status  int
	id      string // of the aggregate
	ordinal int64  // of the append in this ownership; 0 when replayed
	at      time.Time
}

// keyMemory remembers idempotency keys for keyTTL. It is rebuilt from the
// events, which carry key and body hash.
type keyMemory struct {
	known map[keyScope]keyUse
	order []keyScope // oldest first
}

func (m *keyMemory) add(scope keyScope, u keyUse) {
	if _, ok := m.known[scope]; !ok {
		m.order = append(m.order, scope)
	}
	m.known[scope] = u
}

func (m *keyMemory) forget(now time.Time) {
	n := 0
	for n < len(m.order) && now.Sub(m.known[m.order[n]].at) > keyTTL {
		delete(m.known, m.order[n])
		n++
	}
	m.order = m.order[n:]
}

func (m *keyMemory) replay(e *eventlog.Event, now time.Time) {
	if e.Idempotency == "" || now.Sub(e.Time) > keyTTL {
		return
	}
	parts := strings.Split(e.Idempotency, ".")
	if len(parts) != 3 {
		return
	}
	var scope keyScope
	u := keyUse{id: e.Subject, at: e.Time}
	if n, err := hex.Decode(scope[:], []byte(parts[0])); err != nil || n != len(scope) {
		return
	}
	if n, err := hex.Decode(u.body[:], []byte(parts[1])); err != nil || n != len(u.body) {
		return
	}
	u.status, _ = strconv.Atoi(parts[2])
	m.add(scope, u)
}

func (u keyUse) header(scope keyScope) string {
	return hex.EncodeToString(scope[:]) + "." + hex.EncodeToString(u.body[:]) + "." + strconv.Itoa(u.status)
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

func encode(ev domain.Event) ([]byte, error) {
	if w, ok := ev.(domain.JSONWriter); ok {
		return domain.EncodeJSON(w), nil
	}
	return json.Marshal(ev)
}
