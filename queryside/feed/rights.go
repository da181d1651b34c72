package feed

import (
	"encoding/json"
	"slices"
	"time"

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

// lastStatement returns the last message in memory that says who the order's parties are
// and which version the order has, or nil if there is none. It is called with mu held.
func (h *Hub) lastStatement(orderID string) (last *rooms.Message) {
	room := rooms.Order(orderID)
	h.index.last(room, func(r record) bool {
		all, ok := h.recent.get(r)
		for i := range slices.Backward(all) {
			if all[i].Version > 0 && slices.Contains(all[i].Rooms, room) {
				last = &all[i]
			}
		}
		return ok && last == nil
	})
	return last
}

// follows reports whether actor may be in the order's room according to the last
// message about the order in the window, and as of which version of the order. The
// version is 0 where there is none. The hub is mostly ahead of the read models.
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
// caller found that they may not. A later version in memory decides instead.
// It is called with mu held.
func (h *Hub) stillTheirs(actor domain.Actor, orderID string, version int64) bool {
	if m := h.lastStatement(orderID); m != nil && m.Version > version {
		return mayFollow(actor, m)
	}
	return version != noOrder
}

const noOrder int64 = -1

// expel takes a rider out of the room of an order that is no longer theirs as of
// the version of m, and tells their connections.
func (h *Hub) expel(m *rooms.Message) {
	for _, room := range m.Rooms {
		if _, is := rooms.OrderID(room); !is {
			continue
		}
		for s := range h.rooms[room] {
			if s.actor.Role == domain.Rider && s.actor.Sub == m.Rider && s.orders[room] < m.Version {
				h.removeMember(s, room)
				h.withdraw(s, room)
			}
		}
	}
}

// withdraw takes a room out of the connection's cursors and tells the connection.
func (h *Hub) withdraw(s *subscriber, room string) {
	s.joined = slices.DeleteFunc(slices.Clone(s.joined), func(r string) bool { return r == room })
	delete(s.orders, room)
	s.suffix = roomsPart(s.joined)
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
	rider   string
	has     bool
	version int64 // of the last message that said so; 0: none has
}

// hears reports whether the message is for the rider, and notes what it says about
// who has the order.
func (p *presence) hears(m *rooms.Message) bool {
	hears := p.has || m.OfParties() // whose rights are those of the event
	if m.Version > 0 {
		p.has, p.version = m.RiderHas(p.rider), m.Version
	}
	return hears
}

// Revoke ends the connections of a subject whose tokens were issued up to this time. They
// are sent nothing more.
func (h *Hub) Revoke(sub string, upTo time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs {
		if s.actor.Sub == sub && !s.issued.After(upTo) {
			s.endNow(&closeRevoked)
		}
	}
}
