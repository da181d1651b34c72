// Package feed is the vocabulary of the realtime feeds: rooms, and messages to
// them. The realtime projector makes messages of events, the hub hands them to
// those who joined the rooms, and internal/emit makes them directly.
package feed

import (
	"encoding/json"
	"regexp"
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
}

// Message is one message to the connections that have joined one of its rooms.
// It reaches each of them once, with the first of Rooms that it has joined.
type Message struct {
	Event     string
	Rooms     []string // in the order of the contract's table, no duplicates
	Payload   []byte   // JSON
	Timestamp time.Time

	// Customer, Restaurant and Rider are the order's parties as of this event.
	// Where one is set, the room order:<id> shows the message to them and to ops
	// alone, whoever else has joined it (a rider who dropped the order, say).
	Customer   string
	Restaurant string
	Rider      string

	// Latest marks a message that a later one of the same event and room
	// replaces wherever it still waits.
	Latest bool
	// Final says that the Latest message of its rooms, if any, no longer holds.
	Final bool
}

// VisibleTo says whether actor, having joined room, may see m there.
func (m *Message) VisibleTo(actor domain.Actor, room string) bool {
	if actor.Role == domain.Ops || m.Customer == "" && m.Restaurant == "" && m.Rider == "" || !strings.HasPrefix(room, orderPrefix) {
		return true
	}
	return m.Party(actor)
}

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
	OpsRoom          = "ops"
	userPrefix       = "user:"
	restaurantPrefix = "restaurant:"
	orderPrefix      = "order:"
)

// UserRoom is the room of one customer or rider.
func UserRoom(id string) string { return userPrefix + id }

// RestaurantRoom is the room of one restaurant.
func RestaurantRoom(id string) string { return restaurantPrefix + id }

// OrderRoom is the room of one order.
func OrderRoom(id string) string { return orderPrefix + id }

// OrderOf returns the order id of an order's room.
func OrderOf(room string) (orderID string, ok bool) { return strings.CutPrefix(room, orderPrefix) }

// RoomsOf returns the rooms that actor joins at connection.
func RoomsOf(actor domain.Actor) []string {
	switch actor.Role {
	case domain.Customer, domain.Rider:
		return []string{UserRoom(actor.Sub)}
	case domain.Restaurant:
		return []string{RestaurantRoom(actor.RestaurantID)}
	}
	return nil
}

var (
	roomPattern  = regexp.MustCompile(`^(ops|(user|restaurant|order):[A-Za-z0-9_-]{1,64})$`)
	eventPattern = regexp.MustCompile(`^[A-Za-z0-9_.-]+(:[A-Za-z0-9_.-]+)*$`)
)

// ValidRoom reports whether room is the name of a room.
func ValidRoom(room string) bool { return len(room) <= 80 && roomPattern.MatchString(room) }

// ValidEvent reports whether name may be emitted: letters, digits, _ . - and
// colons between, at most 100. Names that begin with feed: are the feed's own.
func ValidEvent(name string) bool {
	return len(name) <= 100 && eventPattern.MatchString(name) && !strings.HasPrefix(name, "feed:")
}
