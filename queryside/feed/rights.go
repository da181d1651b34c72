package feed

import (
	"encoding/json"
	"slices"

	"tomato/domain"
	"tomato/domain/rooms"
	"tomato/httpapi"
)

// Who may be in the room of an order: its customer, its restaurant, ops, and
// the rider who has it. The first three never change. A rider's place ends with
// the event that takes the order from them, and the connection is told so.

// errNotTheirs refuses a rider the room of an order that was taken from them
// while they asked.
var errNotTheirs = httpapi.NewProblem(403, "forbidden", "The order is not this rider's.")

// standing is what the window last heard of an order: who its parties are and
// as of which version of it. nil is nothing. Called with mu held.
func (h *Hub) standing(orderID string) *rooms.Message {
	for _, e := range slices.Backward(h.byRoom[rooms.Order(orderID)]) {
		if e.Version > 0 {
			return &e.Message
		}
	}
	return nil
}

// follows says whether actor may be in the order's room, by the last that the
// window has of the order, and as of which version of the order; 0 is that the
// window knows nothing of it. It is mostly ahead of the read models.
func (h *Hub) follows(actor domain.Actor, orderID string) (is bool, version int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.standing(orderID)
	if m == nil {
		return false, 0
	}
	return mayFollow(actor, m), m.Version
}

func mayFollow(actor domain.Actor, m *rooms.Message) bool {
	return m.Party(actor) && (actor.Role != domain.Rider || m.RiderHas(actor.Sub))
}

// stillTheirs says whether a rider who might be in the order's room as of the
// given version (noOrder: as far as the asker knew, they might not) may be there
// by what the window has. Called with mu held.
func (h *Hub) stillTheirs(actor domain.Actor, orderID string, version int64) bool {
	if m := h.standing(orderID); m != nil && m.Version > version {
		return mayFollow(actor, m)
	}
	return version != noOrder
}

const noOrder int64 = -1

// expel ends the place of a rider in the room of an order that is no longer
// theirs, as of the version of e, and tells their connections.
func (h *Hub) expel(e *entry) {
	for _, room := range e.Rooms {
		if _, is := rooms.OrderID(room); !is {
			continue
		}
		for s := range h.rooms[room] {
			if s.actor.Role == domain.Rider && s.actor.Sub == e.Rider && s.orders[room] < e.Version {
				h.exit(s, room)
				h.withdraw(s, room)
			}
		}
	}
}

// withdraw takes a room out of the connection's cursors and says so.
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

// presence says, of the messages that a resuming rider missed in the room of an
// order, during which the order was theirs: what was emitted to the room at
// other times is not for them. theirs is whether it is so now.
type presence struct {
	rider string // "": not a rider, or not the room of an order; always present
	has   bool
}

func (h *Hub) presence(s *subscriber, room string, from *place, theirs bool) presence {
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

// hears says whether the message is for the rider, and follows what it tells.
func (p *presence) hears(e *entry, from *place) bool {
	hears := p.has || e.OfParties() // whose rights are those of the event
	if p.rider != "" && e.Version > 0 && !from.has(e.log, e.offset, e.i) {
		p.has = e.RiderHas(p.rider)
	}
	return hears
}
