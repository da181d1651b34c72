package feed

import (
	"context"
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
	// base is that of the cursor, if the cursor is without fault.
	base *base
	// after is the token after which a new client begins; nil: it begins at the present.
	after eventlog.Token
	// orders are the rooms of orders, those of the cursor included, that a rider
	// may join because the order is theirs. The value is the version of the order
	// as of which it is.
	orders map[string]int64
}

// Why a client must reload: reasons of feed:reset.
const (
	resetExpired = "expired"        // the log or the history that is kept does not reach back to the cursor
	resetUnknown = "unknown_cursor" // the cursor was not made here for this client, or is one of another log
)

// connect joins a new connection to its rooms: from then on everything published there is
// sent to it. With a cursor, the first message is feed:resumed, followed by what it missed,
// or feed:reset. If what it missed is not in memory, the connection has a replay, which
// its writer must run. The cursor returned is that of the connection's beginning, and token is
// what has been published. The caller must call disconnect when the connection has ended.
func (h *Hub) connect(c connecting) (s *subscriber, cursor, token string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.draining:
		return nil, "", "", errDraining
	case !h.ready:
		return nil, "", "", errNotReady
	}
	if err := h.full(c.actor); err != nil {
		return nil, "", "", err
	}
	s = &subscriber{actor: c.actor, wake: make(chan struct{}, 1), limit: h.cfg.QueueBytes, total: h.metrics.queued, own: rooms.JoinedBy(c.actor), cursors: h.cursors}
	for _, r := range c.rooms {
		if err := h.addRoom(s, r); err != nil {
			return nil, "", "", err
		}
	}
	var why string // feed:reset
	var from place
	if c.cursor != nil {
		why = c.cursor.fault
		for _, r := range c.cursor.rooms { // also after a feed:reset
			if h.addRoom(s, r) != nil {
				why = resetUnknown
			}
		}
		if why == "" {
			var ok bool
			if from, ok = h.cursors.place(c.cursor, c.actor, c.base); !ok || c.base.partitions != h.at.partitions {
				why = resetUnknown
			}
		}
	}
	s.suffix = roomsPart(s.joined)
	switch {
	case c.cursor != nil && why == "":
		why = h.resume(s, c, from, false)
	case c.cursor == nil && c.after != nil:
		why = h.resume(s, c, h.placeAfter(s, c.after), true)
	case c.cursor == nil:
		s.place = h.place(s)
		h.enter(s, h.notTheirs(s, c.orders))
	}
	if why != "" {
		lost := h.notTheirs(s, c.orders)
		h.reset(s, why)
		h.enter(s, lost)
	}
	if c.cursor != nil {
		h.metrics.resume(why == "")
	}
	h.subs[s] = struct{}{}
	h.users[user{s.actor.Role, s.actor.Sub}]++
	h.metrics.connections.Inc()
	return s, string(h.cursors.append(nil, &s.place, s.actor, s.suffix)), h.token(""), nil
}

// resume lets a connection go on from a place: at once, or with a replay. If it cannot, it
// returns the reason of the feed:reset.
func (h *Hub) resume(s *subscriber, c connecting, from place, silent bool) (why string) {
	at := from.positions()
	if !h.at.reached(&at) || !h.index.covers(&at) {
		return resetExpired // this instance is behind the one that the client comes from, or has no history of that time
	}
	s.place = from
	r := h.newReplay(s, at, c.orders)
	r.silent = silent
	if !h.goLive(s, r) {
		s.replay, s.live = r, make(chan struct{})
	}
	return ""
}

// reset tells a client that it must reload. Its place is the present.
func (h *Hub) reset(s *subscriber, why string) {
	s.place = h.place(s)
	b := []byte(`{"event":"feed:reset","reason":"` + why + `"`)
	s.push(item{head: h.appendToken(b, ""), cursor: true, rooms: s.suffix})
}

// place returns the present as the place of a connection in its rooms.
func (h *Hub) place(s *subscriber) place {
	p := newPlace(h.base)
	for _, c := range h.changes(slices.Concat(s.own, s.joined)...) {
		p.set(c.log, c.offset)
	}
	return p
}

// placeAfter returns the place of a client that has seen what the token names: in the logs
// that it names this is the token, and in all others the present.
func (h *Hub) placeAfter(s *subscriber, after eventlog.Token) place {
	p := h.place(s)
	for tp, o := range after {
		if l := h.at.log(tp); l != noLog && o < h.at.done[l] {
			p.set(l, o)
		}
	}
	return p
}

// coveredAfter is covered for a client that begins at a token.
func (h *Hub) coveredAfter(ctx context.Context, after eventlog.Token) bool {
	h.mu.Lock()
	if !h.ready || h.draining {
		h.mu.Unlock()
		return true
	}
	at := h.at.clone()
	h.mu.Unlock()
	for tp, o := range after {
		if l := at.log(tp); l != noLog {
			at.done[l] = min(at.done[l], o)
		}
	}
	return h.covered(ctx, &at)
}

// changes returns the logs in which the rooms have had messages since the base, with the
// offset of the last record.
func (h *Hub) changes(names ...string) []change {
	from := h.base.positions
	var hashes []uint32
	for _, room := range names {
		hashes = append(hashes, h.index.hash(room))
	}
	records := h.index.head.find(hashes, &from)
	if !within(h.index.head.begin, from.done) {
		older, _ := find(h.index.parts, hashes, &from, 1<<62)
		records = append(older, records...)
	}
	last := map[int]int64{}
	for _, r := range records {
		last[r.log()] = max(last[r.log()], r.offset())
	}
	var all []change
	for l, o := range last {
		all = append(all, change{l, o})
	}
	return all
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
