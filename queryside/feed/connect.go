package feed

import (
	"cmp"
	"slices"

	"tomato/domain"
	"tomato/domain/rooms"
	"tomato/eventlog"
)

// connecting is a client that asks to be connected.
type connecting struct {
	actor domain.Actor
	rooms []string // to join beside those of the token; the actor is allowed to
	// cursor is what the client came back with; nil: it is new.
	cursor *cursor
	// orders are the rooms of orders, those of the cursor included, that a rider
	// may join because the order is theirs. The value is the version of the order
	// as of which it is.
	orders map[string]int64
}

// connect joins a new connection to its rooms: from then on everything
// published there is in its queue. With a cursor, the first message is
// feed:resumed, followed by what it missed, or feed:reset. The cursor returned
// is the present one. The caller must call disconnect when the connection has ended.
func (h *Hub) connect(c connecting) (*subscriber, string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.draining:
		return nil, "", errDraining
	case !h.ready:
		return nil, "", errNotReady
	case len(h.subs) >= h.cfg.MaxConnections:
		return nil, "", errConnections
	}
	s := &subscriber{actor: c.actor, wake: make(chan struct{}, 1), limit: h.cfg.QueueBytes, total: h.metrics.queued, own: rooms.JoinedBy(c.actor)}
	for _, r := range c.rooms {
		if err := h.addRoom(s, r); err != nil {
			return nil, "", err
		}
	}
	var why string // feed:reset
	if c.cursor != nil {
		if why = c.cursor.fault; why == "" {
			for _, r := range c.cursor.rooms {
				if h.addRoom(s, r) != nil {
					why = resetUnknown
				}
			}
		}
	}
	lost := h.notTheirs(s, c.orders)
	s.suffix = h.cursors.rooms(c.actor, s.joined)
	if c.cursor != nil {
		if why == "" {
			why = h.resume(s, c.cursor.positions, lost)
		}
		if why != "" {
			s.push(item{head: []byte(`{"event":"feed:reset","reason":"` + why + `","cursor":"`), cursor: h.cursor(), rooms: s.suffix})
		}
		h.metrics.resume(why == "")
	}
	for _, r := range lost {
		h.withdraw(s, r)
	}
	for _, r := range slices.Concat(s.own, s.joined) {
		h.addMember(s, r)
	}
	h.subs[s] = struct{}{}
	h.metrics.connections.Inc()
	return s, string(h.cursor()) + string(s.suffix), nil
}

// notTheirs returns the joined rooms of orders that a rider may not be in. It
// notes the others with the versions of their orders.
func (h *Hub) notTheirs(s *subscriber, orders map[string]int64) (lost []string) {
	if s.actor.Role != domain.Rider {
		return nil
	}
	for _, room := range s.joined {
		id, is := rooms.OrderID(room)
		if !is {
			continue
		}
		version, asked := orders[room]
		if !asked {
			version = noOrder
		}
		if !h.stillTheirs(s.actor, id, version) {
			lost = append(lost, room)
			continue
		}
		if s.orders == nil {
			s.orders = map[string]int64{}
		}
		s.orders[room] = max(version, 0)
	}
	return lost
}

// Why a client must reload: reasons of feed:reset.
const (
	resetExpired = "expired"        // what the client missed is no longer held, or cannot be read now
	resetUnknown = "unknown_cursor" // the cursor was not made here for this client, or is one of another log
	resetTooMuch = "too_much"       // the client missed more than may wait for one connection
)

// resume queues the messages that the rooms of s were sent after from. If it
// cannot, it returns the reason of the feed:reset. lost are the rooms that s is
// about to leave.
func (h *Hub) resume(s *subscriber, from positions, lost []string) (why string) {
	if from.partitions != h.at.partitions {
		return resetUnknown
	}
	if !h.at.reached(&from) {
		return resetExpired // this instance is behind the one that the client comes from
	}
	for l, floor := range h.floor {
		if floor > from.done[l] && cursorTopics[l/from.partitions] != eventlog.RiderLocations {
			return resetExpired
		}
	}
	type missed struct {
		*entry
		room string
	}
	var all []missed
	size := 0
	look := func(e *entry, own []string, present *presence) {
		if !present.hears(e, &from) || e.queuedFor == s || from.has(e.log, e.offset, e.i) {
			return
		}
		for _, room := range e.Rooms {
			if slices.Contains(own, room) && e.VisibleTo(s.actor, room) {
				e.queuedFor = s
				all = append(all, missed{e, room})
				size += e.size() + 2*len(h.cursor()) + len(s.suffix)
				return
			}
		}
	}
	own := slices.Concat(s.own, s.joined)
	for _, room := range own {
		present := h.presence(s, room, &from, !slices.Contains(lost, room))
		for _, e := range h.byRoom[room] {
			look(e, own, &present)
		}
		if e := h.latest[room]; e != nil {
			look(e, own, &present)
		}
	}
	for _, m := range all {
		m.queuedFor = nil
	}
	if size > s.limit {
		return resetTooMuch
	}
	slices.SortFunc(all, func(a, b missed) int {
		// The rest of a record that was sent in part goes first, because the
		// cursors of the messages behind it say that all of it was sent.
		aPart, bPart := a.log == from.partial && a.offset == from.offset, b.log == from.partial && b.offset == from.offset
		switch {
		case aPart && !bPart:
			return -1
		case bPart && !aPart:
			return 1
		}
		return cmp.Compare(a.number, b.number)
	})
	s.push(item{head: []byte(`{"event":"feed:resumed"}`)})
	// The cursor of each message is the client's own positions, moved on by what
	// it has been sent since. The hub's positions at that time would be wrong: the
	// client may come from an instance that had read the logs in another order.
	at := from.clone()
	for _, m := range all {
		if at.partial != noLog && (at.partial != m.log || at.offset != m.offset) {
			at.done[at.partial] = max(at.done[at.partial], at.offset) // the rest of that record is for others
			at.partial = noLog
		}
		if m.i == m.n-1 {
			at.partial, at.done[m.log] = noLog, m.offset
		} else {
			at.partial, at.offset, at.messages = m.log, m.offset, m.i+1
		}
		it := item{head: m.head(m.room), cursor: h.cursors.positions(&at), rooms: s.suffix}
		if m.Latest {
			it.latest = m.Event + " " + m.room
		}
		s.push(it)
		h.metrics.messages.Inc()
	}
	return ""
}
