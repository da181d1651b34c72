// Package rooms is the vocabulary of the realtime feeds: rooms, and messages to
// them. The realtime projector makes messages of events, the hub hands them to
// those who joined the rooms, and internal/emit makes them directly.
package rooms

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"time"

	"tomato/domain"
)

// Emitted is the type of the records on topic feed: what internal/emit was
// asked to send. Key is the room, the data an Emit.
const Emitted = "FEED_EMIT"

// Emit is the data of a FEED_EMIT record.
type Emit struct {
	Event   string          `json:"event"`
	Room    string          `json:"room"`
	Payload json.RawMessage `json:"payload"`
	Role    domain.Role     `json:"role,omitempty"` // in a room user:<id>: of whom it is for; "" is whoever has joined
}

// Message is one message to the connections that have joined one of its rooms.
// It reaches each of them once, with the first of Rooms that it has joined.
type Message struct {
	Event string
	Rooms []string // in the order of the table in projections/realtime/rooms.go, no duplicates
	// Roles says for whom the message is in a room user:<id>, which a customer
	// and a rider may share: Roles[i] is for Rooms[i]. None, or "", is whoever
	// has joined the room.
	Roles     []domain.Role
	Payload   []byte // JSON
	Timestamp time.Time

	// Customer, Restaurant and Rider are the order's parties as of this event.
	// Where one is set, the room order:<id> shows the message to them and to ops
	// alone, whoever else has joined it (a rider who dropped the order, say).
	Customer   string
	Restaurant string
	Rider      string

	// Version is the order's after the event that the message tells of; 0 where
	// it does not come from an event of an order. With such an event Rider either
	// has the order before and after it, or Assigned says that they have it from
	// then on, or Unassigned that they have it no longer.
	Version              int64
	Assigned, Unassigned bool

	// Latest marks a message that a later one of the same event and room
	// replaces wherever it still waits.
	Latest bool
	// Final says that the Latest message of its rooms, if any, no longer holds.
	Final bool
}

// VisibleTo reports whether actor, having joined room, may see m there. Ops see
// all that their rooms are told.
func (m *Message) VisibleTo(actor domain.Actor, room string) bool {
	switch {
	case actor.Role == domain.Ops:
		return true
	case strings.HasPrefix(room, userPrefix):
		i := slices.Index(m.Rooms, room)
		return i < 0 || i >= len(m.Roles) || m.Roles[i] == "" || m.Roles[i] == actor.Role
	case strings.HasPrefix(room, orderPrefix):
		return !m.OfParties() || m.Party(actor)
	}
	return true
}

// OfParties reports whether m tells of an order, and so is shown in the order's
// room to its parties alone. What is emitted to the room is for all in it.
func (m *Message) OfParties() bool {
	return m.Customer != "" || m.Restaurant != "" || m.Rider != ""
}

// RiderHas reports whether the rider has the order after the event that m tells of.
func (m *Message) RiderHas(riderID string) bool { return m.Rider == riderID && !m.Unassigned }

// Party reports whether actor is the customer, the restaurant or the rider of the
// order that m tells of.
func (m *Message) Party(actor domain.Actor) bool {
	switch actor.Role {
	case domain.Customer:
		return actor.Sub == m.Customer
	case domain.Restaurant:
		return actor.RestaurantID == m.Restaurant
	case domain.Rider:
		return actor.Sub == m.Rider
	}
	return false
}

// The rooms.
const (
	Ops              = "ops"
	userPrefix       = "user:"
	restaurantPrefix = "restaurant:"
	orderPrefix      = "order:"
)

// User is the room of one customer or rider.
func User(id string) string { return userPrefix + id }

// IsUser reports whether room is that of one customer or rider.
func IsUser(room string) bool { return strings.HasPrefix(room, userPrefix) }

// Restaurant is the room of one restaurant.
func Restaurant(id string) string { return restaurantPrefix + id }

// Order is the room of one order.
func Order(id string) string { return orderPrefix + id }

// OrderID returns the order id of an order's room.
func OrderID(room string) (orderID string, ok bool) { return strings.CutPrefix(room, orderPrefix) }

// What the names of rooms and events look like.
const (
	Pattern      = `^(ops|(user|restaurant|order):[A-Za-z0-9_-]{1,64})$`
	EventPattern = `^[A-Za-z0-9_.-]+(:[A-Za-z0-9_.-]+)*$`
)

// JoinedBy returns the rooms that actor joins at connection.
func JoinedBy(actor domain.Actor) []string {
	switch actor.Role {
	case domain.Customer, domain.Rider:
		return []string{User(actor.Sub)}
	case domain.Restaurant:
		return []string{Restaurant(actor.RestaurantID)}
	}
	return nil
}

var (
	roomPattern  = regexp.MustCompile(Pattern)
	eventPattern = regexp.MustCompile(EventPattern)
)

// Valid reports whether room is the name of a room.
func Valid(room string) bool { return len(room) <= 80 && roomPattern.MatchString(room) }

// ValidEvent reports whether name may be emitted: letters, digits, _ . - and
// colons between, at most 100. Names that begin with feed: are the feed's own.
func ValidEvent(name string) bool {
	return len(name) <= 100 && eventPattern.MatchString(name) && !strings.HasPrefix(name, "feed:")
}
