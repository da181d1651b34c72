package feed

import (
	"context"
	"slices"
	"time"

	"tomato/domain"
	"tomato/domain/rooms"
	"tomato/eventlog"
	"tomato/httpapi"
)

// connecting is a client that asks to be connected.
type connecting struct {
	actor  domain.Actor
	issued time.Time // when the token was issued; zero if the token does not say
	rooms  []string  // to join beside those of the token; the actor is allowed to
	// cursor is what the client came back with; nil: it is new.
	cursor *cursor
	// base is that of the cursor, if the cursor is without fault, or that of after, if after
	// names one.
	base *base
	// after is the token after which a new client begins; nil: it begins at the present.
	after eventlog.Token
	// expired: the log does not have the base of after any more.
	expired bool
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
	s = &subscriber{actor: c.actor, issued: c.issued, wake: make(chan struct{}, 1), limit: h.cfg.QueueBytes, total: h.metrics.queued, own: rooms.JoinedBy(c.actor), cursors: h.cursors}
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
		why = h.beginAfter(s, c)
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

// findAfter finds the base that a token names for the logs that it leaves out, and waits
// until the hub has reached it and its index reaches back to where the client begins. The
// error is a *httpapi.Problem.
func (f *Feed) findAfter(ctx context.Context, c *connecting) error {
	ctx, cancel := context.WithTimeout(ctx, tokenWait)
	defer cancel()
	id, ok := f.Hub.baseOf(c.after)
	var err error
	if ok {
		if c.base, err = f.Hub.reader.baseUpTo(ctx, id); err == nil {
			err = f.Hub.reachedPlace(ctx, &c.base.positions)
		}
	}
	switch {
	case gone(err):
		c.expired = true
		return nil
	case err != nil:
		f.log().Warn("A client cannot be sent what was appended after its Consistency-Token now.", "err", err)
	case f.Hub.coveredAfter(ctx, c):
		return nil
	}
	return httpapi.Unavailable("unavailable", "The feed cannot read its history back to the Consistency-Token now, or has not yet.", time.Second)
}

// baseOf returns the position that a token names in the log of the bases.
func (h *Hub) baseOf(after eventlog.Token) (id int64, ok bool) {
	h.mu.Lock()
	partitions := h.at.partitions
	h.mu.Unlock()
	if partitions == 0 {
		return 0, false
	}
	id, ok = after[eventlog.FeedBases(int32(partitions))]
	return id, ok
}

// beginning returns where a client begins that has seen what its token names: in each log
// that it names there, and in all others where its base was. Without a base it is the
// present in these. It is called with mu held.
func (h *Hub) beginning(c *connecting) positions {
	at := h.at.clone()
	if c.base != nil {
		at = c.base.clone()
	}
	for tp, o := range c.after {
		if l := at.log(tp); l != noLog {
			at.done[l] = min(o, h.at.done[l])
		}
	}
	return at
}

// beginAfter lets a connection begin after its token. If it cannot, it returns the reason of
// the feed:reset.
func (h *Hub) beginAfter(s *subscriber, c connecting) (why string) {
	if c.expired || c.base != nil && c.base.partitions != h.at.partitions {
		return resetExpired
	}
	relative := h.base
	if c.base != nil {
		relative = c.base
	}
	at := h.beginning(&c)
	first := at.clone() // in each log, the earlier one of the two
	for l, o := range relative.done {
		first.done[l] = min(first.done[l], o)
	}
	if !h.index.covers(&at) {
		return resetExpired
	}
	// Where its rooms have no records between the two, the base stands for the client's place.
	p := newPlace(relative)
	for _, r := range h.find(&first, slices.Concat(s.own, s.joined)...) {
		l := r.log()
		if at.done[l] != relative.done[l] && r.offset() <= max(at.done[l], relative.done[l]) {
			p.set(l, at.done[l])
		}
	}
	return h.resume(s, c, p, true)
}

// coveredAfter is covered for a client that begins at a token.
func (h *Hub) coveredAfter(ctx context.Context, c *connecting) bool {
	h.mu.Lock()
	if !h.ready || h.draining || c.base != nil && c.base.partitions != h.at.partitions {
		h.mu.Unlock()
		return true
	}
	at := h.beginning(c)
	h.mu.Unlock()
	return h.covered(ctx, &at)
}

// find returns the records after from that the rooms have, as far as the index reaches. It
// is called with mu held.
func (h *Hub) find(from *positions, names ...string) []record {
	var hashes []uint32
	for _, room := range names {
		hashes = append(hashes, h.index.hash(room))
	}
	records := h.index.head.find(hashes, from)
	if !within(h.index.head.begin, from.done) {
		older, _ := find(h.index.parts, hashes, from, 1<<62)
		records = append(older, records...)
	}
	return records
}

// changes returns the logs in which the rooms have had messages since the base, with the
// offset of the last record.
func (h *Hub) changes(names ...string) []change {
	records := h.find(&h.base.positions, names...)
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
