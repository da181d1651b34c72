package feed

import (
	"encoding/json"
	"slices"

	"tomato/domain"
	"tomato/domain/rooms"
	"tomato/httpapi"
)

// These may be in the room of an order: its customer, its restaurant, operators,
// and the rider who has it. The first three never change. A rider leaves the room
// with the event that takes the order from them, and the connection is told so.

// errNotTheirs refuses a rider the room of an order that was taken from them
// while they asked.
var errNotTheirs = httpapi.NewProblem(403, "forbidden", "The order is not this rider's.")

// lastStatement returns the last message in the window that says who the order's
// parties are and which version the order has, or nil if the window has none. It is
// called with mu held.
func (h *Hub) lastStatement(orderID string) *rooms.Message {
	for _, e := range slices.Backward(h.byRoom[rooms.Order(orderID)]) {
		if e.Version > 0 {
			return &e.Message
		}
	}
	return nil
}

// follows reports whether actor may be in the order's room according to the last
// message about the order in the window, and as of which version of the order. The
// version is 0 where the window has none. The window is mostly ahead of the read
// models.
func (h *Hub) follows(actor domain.Actor, orderID string) (is bool, version int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.lastStatement(orderID)
	if m == nil {
		return false, 0
	}
	return mayFollow(actor, m), m.Version
}

func mayFollow(actor domain.Actor, m *rooms.Message) bool {
	return m.Party(actor) && (actor.Role != domain.Rider || m.RiderHas(actor.Sub))
}

// stillTheirs reports whether a rider may be in the order's room. version is the
// version of the order as of which the caller found that they may; noOrder: the
// caller found that they may not. A later version in the window decides instead.
// It is called with mu held.
func (h *Hub) stillTheirs(actor domain.Actor, orderID string, version int64) bool {
	if m := h.lastStatement(orderID); m != nil && m.Version > version {
		return mayFollow(actor, m)
	}
	return version != noOrder
}

const noOrder int64 = -1

// expel takes a rider out of the room of an order that is no longer theirs as of
// the version of e, and tells their connections.
func (h *Hub) expel(e *entry) {
	for _, room := range e.Rooms {
		if _, is := rooms.OrderID(room); !is {
			continue
		}
		for s := range h.rooms[room] {
			if s.actor.Role == domain.Rider && s.actor.Sub == e.Rider && s.orders[room] < e.Version {
				h.removeMember(s, room)
				h.withdraw(s, room)
			}
		}
	}
}

// withdraw takes a room out of the connection's cursors and tells the connection.
func (h *Hub) withdraw(s *subscriber, room string) {
	s.joined = slices.DeleteFunc(s.joined, func(r string) bool { return r == room })
	delete(s.orders, room)
	s.suffix = h.cursors.rooms(s.actor, s.joined)
	s.fail(room, httpapi.NewProblem(403, "not_allowed", "The order is no longer this rider's, and the connection has left its room."))
}

// fail queues feed:error.
func (s *subscriber) fail(room string, p *httpapi.Problem) {
	b, err := json.Marshal(struct {
		Event  string `json:"event"`
		Code   string `json:"code"`
		Detail string `json:"detail,omitempty"`
		Room   string `json:"room,omitempty"`
	}{"feed:error", p.Code, p.Detail, room})
	if err == nil { // strings only: always
		s.push(item{head: b})
	}
}

// presence follows a resuming rider through the messages that they missed in the
// room of an order. It knows at each message whether the order was theirs: what
// was emitted to the room at other times is not for them.
type presence struct {
	rider string // "": not a rider, or not the room of an order; always present
	has   bool
}

// presence begins at the positions from. theirs is whether the order is the rider's
// now.
func (h *Hub) presence(s *subscriber, room string, from *positions, theirs bool) presence {
	if _, is := rooms.OrderID(room); !is || s.actor.Role != domain.Rider {
		return presence{has: true}
	}
	p := presence{s.actor.Sub, theirs}
	for _, e := range h.byRoom[room] {
		if e.Version > 0 && !from.has(e.log, e.offset, e.i) {
			p.has = e.Rider == p.rider && !e.Assigned
			break
		}
	}
	return p
}

// hears reports whether the message is for the rider, and notes what it says about
// who has the order.
func (p *presence) hears(e *entry, from *positions) bool {
	hears := p.has || e.OfParties() // whose rights are those of the event
	if p.rider != "" && e.Version > 0 && !from.has(e.log, e.offset, e.i) {
		p.has = e.RiderHas(p.rider)
	}
	return hears
}
