// Package rooms has the names of the rooms of the realtime feeds, and the messages that
// are sent to them. The realtime projector (projections/realtime) makes messages of
// events, and of the records that internal/emit appends. The hub (queryside/feed) sends
// them to the connections that have joined the rooms.
package rooms

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"time"

	"tomato/domain"
)

// Emitted is the type of the records on topic feed, which internal/emit appends. The key
// of such a record is the room, and the data is an Emit.
const Emitted = "FEED_EMIT"

// Emit is the data of a FEED_EMIT record.
type Emit struct {
	Event   string          `json:"event"`
	Room    string          `json:"room"`
	Payload json.RawMessage `json:"payload"`
	Role    domain.Role     `json:"role,omitempty"` // in a room user:<id>: the role that the message is for; "" is everybody in the room
}

// Message is one message to the connections that have joined one of its rooms.
// It reaches each of them once, with the first of Rooms that it has joined.
type Message struct {
	Event string
	Rooms []string // without duplicates, in the order in which projections/realtime/rooms.go makes them
	// Roles[i] is the role that the message is for in Rooms[i], if that is a room
	// user:<id>, which a customer and a rider may share. If it is "" or missing, the
	// message is for everybody in the room.
	Roles     []domain.Role
	Payload   []byte // JSON
	Timestamp time.Time

	// Customer, Restaurant and Rider are the order's parties as of this event. If one
	// of them is set, only they, ops and support see the message in the room order:<id>, even if
	// others have joined it, such as a rider who dropped the order.
	Customer   string
	Restaurant string
	Rider      string

	// Version is the order's version after the event that the message is made of, or 0
	// if that is not an event of an order. If it is, Rider has the order before and
	// after the event, unless Assigned or Unassigned is set: with Assigned, Rider has
	// the order from this event on; with Unassigned, until this event.
	Version              int64
	Assigned, Unassigned bool

	// Latest means that a later message with the same event and room replaces this one,
	// if it has not been sent yet.
	Latest bool
	// Final means that the last message with Latest in the same rooms is no longer true.
	Final bool
}

// supportSees are the events whose messages have ids, times and states, but no address, no
// name and no position of a person.
var supportSees = []string{"order:update", "order:available", "order:taken", "dispatch:exhausted"}

// VisibleTo reports whether actor, who has joined room, may see m there. Ops see every
// message in the rooms that they have joined. Support sees those of supportSees, and none
// that internal/emit has made, because nobody knows what is in them.
func (m *Message) VisibleTo(actor domain.Actor, room string) bool {
	switch {
	case actor.Role == domain.Ops:
		return true
	case actor.Role == domain.Support:
		return m.OfParties() && slices.Contains(supportSees, m.Event)
	case strings.HasPrefix(room, userPrefix):
		i := slices.Index(m.Rooms, room)
		return i < 0 || i >= len(m.Roles) || m.Roles[i] == "" || m.Roles[i] == actor.Role
	case strings.HasPrefix(room, orderPrefix):
		return !m.OfParties() || m.Party(actor)
	}
	return true
}

// OfParties reports whether m is about an order, so that in the order's room only its
// parties see it. Messages from internal/emit are for everybody in the room.
func (m *Message) OfParties() bool {
	return m.Customer != "" || m.Restaurant != "" || m.Rider != ""
}

// RiderHas reports whether the rider has the order after the event that m is made of.
func (m *Message) RiderHas(riderID string) bool { return m.Rider == riderID && !m.Unassigned }

// Party reports whether actor is the customer, the restaurant or the rider of the order
// that m is about.
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

// User returns the room of one customer or rider.
func User(id string) string { return userPrefix + id }

// IsUser reports whether room is that of one customer or rider.
func IsUser(room string) bool { return strings.HasPrefix(room, userPrefix) }

// Restaurant returns the room of one restaurant.
func Restaurant(id string) string { return restaurantPrefix + id }

// Order returns the room of one order.
func Order(id string) string { return orderPrefix + id }

// OrderID returns the id of the order whose room it is. ok is false if room is not the
// room of an order.
func OrderID(room string) (orderID string, ok bool) { return strings.CutPrefix(room, orderPrefix) }

// The regular expressions that the names of rooms and events match.
const (
	Pattern      = `^(ops|(user|restaurant|order):[A-Za-z0-9_-]{1,64})$`
	EventPattern = `^[A-Za-z0-9_.-]+(:[A-Za-z0-9_.-]+)*$`
)

// JoinedBy returns the rooms that a connection of actor joins when it is opened.
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

// ValidEvent reports whether a message with this event may be emitted. The name has
// letters, digits, "_", "." and "-", with colons in between, and at most 100 characters.
// Names that begin with feed: are reserved for the feed's own messages.
func ValidEvent(name string) bool {
	return len(name) <= 100 && eventPattern.MatchString(name) && !strings.HasPrefix(name, "feed:")
}
