package feed

import (
	"cmp"
	"slices"
	"time"

	"tomato/domain/rooms"
	"tomato/eventlog"
)

// A message with Latest, which is a position of an order's rider, reaches a room at most
// once in HubConfig.PositionEvery, whatever brought it to the log. The first one is queued
// at once; of those that come within the time after it, the newest is queued at the end of
// that time.
//
// A cursor is one offset for each log. So as long as a position of a log waits, no later
// position of that log is queued, whatever room it is for: a client that was cut off
// between the two would never be sent the one that waited. All that wait in a log are
// queued together, in the order of the log. For the same reason a base becomes that of
// cursors only when no position waits that the base says was published.

// latest is the newest message with Latest of a room. It is not in the index.
type latest struct {
	*rooms.Message
	sent  step
	last  time.Time // when one was queued to the room
	waits bool      // the message is not queued yet
}

// waitingLog has the rooms for which a message of one log waits.
type waitingLog struct {
	rooms map[string]struct{}
	timer *time.Timer
}

// heldBase is a base that becomes that of cursors when the logs have queued what waits.
type heldBase struct {
	*base
	logs map[int]struct{}
}

// position takes a message with Latest, whose only room is that of an order.
func (h *Hub) position(m *rooms.Message, sent step) {
	room, now, log := m.Rooms[0], time.Now(), sent.log
	e := h.latest[room]
	if e == nil {
		e = &latest{}
		h.latest[room] = e
	}
	e.Message, e.sent, e.waits = m, sent, false
	w := h.waiting[log]
	// A record of another topic means more than this message, and is not held up.
	if w == nil && now.Sub(e.last) >= h.cfg.PositionEvery || !h.at.ofPositions(log) {
		e.last = now
		h.send(m, sent)
		return
	}
	if w == nil {
		w = &waitingLog{rooms: map[string]struct{}{}}
		w.timer = time.AfterFunc(h.cfg.PositionEvery, func() { h.queueWaiting(log, w) })
		h.waiting[log] = w
	}
	w.rooms[room] = struct{}{}
	e.waits = true
}

// queueWaiting queues what waits in a log.
func (h *Hub) queueWaiting(log int, w *waitingLog) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.waiting[log] != w {
		return // the hub has begun anew
	}
	delete(h.waiting, log)
	var all []*latest
	for room := range w.rooms {
		if e := h.latest[room]; e != nil && e.waits && e.sent.log == log {
			all = append(all, e)
		}
	}
	slices.SortFunc(all, func(a, b *latest) int { return cmp.Compare(a.sent.offset, b.sent.offset) })
	now := time.Now()
	for _, e := range all {
		h.serial++
		e.waits, e.last = false, now
		h.send(e.Message, e.sent)
	}
	if h.held != nil {
		delete(h.held.logs, log)
		h.adoptHeld()
	}
}

// stopWaiting drops what waits.
func (h *Hub) stopWaiting() {
	for _, w := range h.waiting {
		w.timer.Stop()
	}
	h.waiting, h.held = map[int]*waitingLog{}, nil
}

// Base is told of a later base.
func (h *Hub) Base(later eventlog.FeedBase) {
	b := newBase(later)
	h.mu.Lock()
	defer h.mu.Unlock()
	b.epoch = h.epoch
	if b.partitions != h.at.partitions || !h.at.reached(&b.positions) {
		return
	}
	h.reader.keep(b)
	h.held = &heldBase{b, map[int]struct{}{}}
	for log, w := range h.waiting {
		for room := range w.rooms {
			if e := h.latest[room]; e != nil && e.waits && e.sent.log == log && e.sent.offset <= b.done[log] {
				h.held.logs[log] = struct{}{}
				break
			}
		}
	}
	h.adoptHeld()
}

// adoptHeld makes the held base that of cursors if nothing that it has waits.
func (h *Hub) adoptHeld() {
	if len(h.held.logs) == 0 {
		h.base, h.held = h.held.base, nil
		h.reader.setCurrent(h.base)
	}
}

// newestFor returns the newest positions in the rooms of a client that comes back, as far
// as it was not sent them, in the order of their logs. Those that wait are not queued for
// it again.
func (h *Hub) newestFor(s *subscriber, r *replay) (items []item) {
	for _, room := range r.rooms {
		e := h.latest[room]
		if e == nil || r.room(s, e.Message) != room {
			continue
		}
		from := &r.from
		if h.at.ofPositions(e.sent.log) {
			from = &r.came // a replay passes over positions, because they are not in the index
		}
		if e.waits {
			if s.ahead == nil {
				s.ahead = map[string]step{}
			}
			s.ahead[room] = e.sent
		}
		if !from.has(e.sent.log, e.sent.offset, e.sent.i) {
			items = append(items, item{head: messageHead(e.Message, room), cursor: true, sent: e.sent, rooms: s.suffix, latest: e.Event + " " + room})
		}
	}
	slices.SortFunc(items, func(a, b item) int {
		return cmp.Or(cmp.Compare(a.sent.log, b.sent.log), cmp.Compare(a.sent.offset, b.sent.offset))
	})
	return items
}
