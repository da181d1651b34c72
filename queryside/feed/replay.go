package feed

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"

	"tomato/domain"
	"tomato/domain/rooms"
)

// A replay brings a client that has returned up to the present: it is sent what its rooms
// were sent while it was away. What is recent is queued at once when it connects (goLive).
// Otherwise its connection's writer reads what was missed from the log, batch by batch, as
// fast as the client takes it (replay), and goes live when the rest is recent. Until then
// nothing is queued for it, so what it missed is bounded by nothing but the history.
type replay struct {
	index   *index               // the hub's when the client connected; when the hub has another one, it has begun anew
	from    positions            // everything for its rooms up to here was sent
	came    positions            // what it had been sent when it came back
	rooms   []string             // the connection's, in the order of joining
	hashes  []uint32             // of rooms
	present map[string]*presence // for a rider, by room of an order
	orders  map[string]int64     // see connecting
	silent  bool                 // the client began at a token: there is no feed:resumed
	batch   int                  // how many records are read at a time
	told    bool                 // feed:resumed was sent
	begun   bool                 // present is known
}

func (h *Hub) newReplay(s *subscriber, from positions, orders map[string]int64) *replay {
	r := &replay{index: h.index, from: from, came: from.clone(), batch: batchRecords, rooms: slices.Concat(s.own, s.joined), orders: orders}
	for _, room := range r.rooms {
		r.hashes = append(r.hashes, h.index.hash(room))
	}
	return r
}

// missed are the records that a client has not been sent, with their messages.
type missed struct {
	records  []record
	messages [][]rooms.Message
}

// begin sets what the rider was to each order at the beginning. first returns the first
// message about an order that the client has missed, or nil; lost are the rooms that are
// not theirs now.
func (r *replay) begin(s *subscriber, lost []string, first func(room string) *rooms.Message) {
	if r.begun {
		return
	}
	r.begun = true
	if s.actor.Role != domain.Rider {
		return
	}
	r.present = map[string]*presence{}
	for _, room := range r.rooms {
		if _, is := rooms.OrderID(room); !is {
			continue
		}
		p := &presence{rider: s.actor.Sub, has: !slices.Contains(lost, room)}
		if m := first(room); m != nil {
			p.has = m.Rider == p.rider && !m.Assigned
		}
		r.present[room] = p
	}
}

// statement returns the first message about the order that the client has not been sent.
func (r *replay) statement(room string, all missed) *rooms.Message {
	for n, rec := range all.records {
		for i := range all.messages[n] {
			if m := &all.messages[n][i]; m.Version > 0 && slices.Contains(m.Rooms, room) && !r.from.has(rec.log(), rec.offset(), i) {
				return m
			}
		}
	}
	return nil
}

// take returns the messages for the client, and moves on behind them.
func (r *replay) take(s *subscriber, all missed) (items []item) {
	for n, rec := range all.records {
		messages := all.messages[n]
		for i := range messages {
			st := step{rec.log(), rec.offset(), i, len(messages)}
			if r.from.has(st.log, st.offset, i) {
				continue
			}
			if room := r.room(s, &messages[i]); room != "" {
				items = append(items, item{head: messageHead(&messages[i], room), cursor: true, sent: st, rooms: s.suffix})
			}
		}
		r.from.advance(step{rec.log(), rec.offset(), 0, 1})
	}
	return items
}

// room returns the room in which the client is sent the message, or "". It notes what the
// message says about who has the order.
func (r *replay) room(s *subscriber, m *rooms.Message) (room string) {
	for _, name := range m.Rooms {
		if !slices.Contains(r.rooms, name) {
			continue
		}
		hears := true
		if p := r.present[name]; p != nil {
			hears = p.hears(m)
		}
		if hears && room == "" && m.VisibleTo(s.actor, name) {
			room = name
		}
	}
	return room
}

// learn notes in orders what the messages so far have said about who has the orders, where
// that is later than what was known when the rider connected.
func (r *replay) learn() {
	for room, p := range r.present {
		version, theirs := r.orders[room]
		switch {
		case p.version == 0 || theirs && p.version <= version:
		case !p.has:
			delete(r.orders, room)
		case r.orders == nil:
			r.orders = map[string]int64{room: p.version}
		default:
			r.orders[room] = p.version
		}
	}
}

// alwaysQueued is how many bytes of what a client missed are queued at once, however many
// wait in all queues.
const alwaysQueued = 16 << 10

// share is how many bytes of the messages of a replay a client may hold at a time.
func (h *Hub) share() int { return min(1<<20, h.cfg.ReplayBytes/2) }

// fitting returns the first of the records, and as many more as fit into the share, with the
// bytes that their messages take.
func (h *Hub) fitting(all missed) (fit missed, size int) {
	n := 0
	for ; n < len(all.records); n++ {
		more := messagesSize(all.messages[n])
		if n > 0 && size+more > h.share() {
			break
		}
		size += more
	}
	return missed{all.records[:n], slices.Clone(all.messages[:n])}, size
}

// goLive queues what the client has still missed and puts it into its rooms: from then on
// everything that is published there is in its queue. It does nothing and returns false
// if that is not in memory or is more than may be queued. It is called with mu held.
func (h *Hub) goLive(s *subscriber, r *replay) bool {
	all, ok := h.recentlyMissed(r, min(s.limit/2, max(alwaysQueued, h.cfg.ReplayBytes-int(h.metrics.queued.Load()))))
	if !ok {
		return false
	}
	r.begin(s, h.notTheirs(s, r.orders), func(room string) *rooms.Message { return r.statement(room, all) })
	items := r.take(s, all)
	r.learn()
	lost := h.notTheirs(s, r.orders)
	items = append(items, h.newestFor(s, r)...)
	if !r.told && !r.silent {
		s.push(h.resumed(len(items)))
	}
	for _, it := range items {
		s.push(it)
		h.metrics.messages.Inc()
	}
	h.enter(s, lost)
	return true
}

func (h *Hub) resumed(count int) item {
	b := append([]byte(`{"event":"feed:resumed","count":`), strconv.Itoa(count)...)
	return item{head: append(h.appendToken(b, ""), '}')}
}

// enter puts a connection into its rooms, but not into those that it has lost, and tells
// it of these.
func (h *Hub) enter(s *subscriber, lost []string) {
	for _, room := range lost {
		h.withdraw(s, room)
	}
	for _, room := range slices.Concat(s.own, s.joined) {
		h.addMember(s, room)
	}
	if s.live != nil {
		close(s.live)
	}
}

// recentlyMissed returns what the client has missed, if all of it is in memory and it is
// not more than so many bytes.
func (h *Hub) recentlyMissed(r *replay, most int) (all missed, ok bool) {
	records := h.index.head.find(r.hashes, &r.from)
	if !within(h.index.head.begin, r.from.done) {
		parts := partsAfter(h.index.parts, &r.from)
		if len(parts) > recentParts {
			return all, false
		}
		older, through := find(parts, r.hashes, &r.from, batchRecords)
		if through != nil {
			return all, false
		}
		records = append(older, records...)
	}
	if len(records) > batchRecords {
		return all, false
	}
	for _, rec := range partialFirst(records, &r.from) {
		messages, ok := h.recent.get(rec)
		if most -= messagesSize(messages); !ok || most < 0 {
			return all, false
		}
		all.records, all.messages = append(all.records, rec), append(all.messages, messages)
	}
	return all, true
}

// recentParts is how many parts of the index are searched while the hub is locked.
const recentParts = 8

// older returns records that the client has missed, the oldest first. Everything up to
// through is among them. all says that everything until now is. covered is false if the
// history does not reach back to the client.
func (h *Hub) older(r *replay) (records []record, through []int64, all, covered bool) {
	parts, head, now, same := h.lookUp(r, r.hashes)
	if !same || !within(floorOf(parts, now), r.from.done) {
		return nil, nil, false, false
	}
	if r.from.partial != noLog { // first, because the cursors of what follows say that all of it was sent
		return []record{newRecord(r.from.partial, r.from.offset)}, nil, false, true
	}
	if records, through = find(parts, r.hashes, &r.from, batchRecords); through == nil {
		records, through, all = append(records, head...), now, true
	}
	return records, through, all, true
}

// lookUp returns the parts of the index, the records of the head that may be for the rooms,
// and where the head begins. same is false if the hub has begun anew since the client
// connected: its logs and their numbers, and the hashes, may be others then, and the
// connection is being closed.
func (h *Hub) lookUp(r *replay, hashes []uint32) (parts []*part, head []record, begin []int64, same bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.index != r.index {
		return nil, nil, nil, false
	}
	return h.index.parts, h.index.head.find(hashes, &r.from), h.index.head.begin, true
}

var errAnew = errors.New("the feed began anew")

// read returns the messages of records, from memory or from the log. It fails with errAnew
// if the hub has begun anew.
func (h *Hub) read(ctx context.Context, r *replay, records []record) (all missed, err error) {
	all = missed{records, make([][]rooms.Message, len(records))}
	var lacking []record
	var where []int
	at := positions{partitions: r.from.partitions}
	h.mu.Lock()
	if h.index != r.index {
		h.mu.Unlock()
		return all, errAnew
	}
	for i, rec := range records {
		messages, ok := h.recent.get(rec)
		if all.messages[i] = messages; !ok {
			lacking, where = append(lacking, rec), append(where, i)
		}
	}
	h.mu.Unlock()
	for len(lacking) > 0 {
		n := min(len(lacking), batchRecords)
		read, err := h.reader.messages(ctx, lacking[:n], &at)
		if err != nil {
			return all, err
		}
		for i, messages := range read {
			all.messages[where[i]] = messages
		}
		h.metrics.replayed.Add(float64(n))
		lacking, where = lacking[n:], where[n:]
	}
	return all, nil
}

// replay sends a client what it has missed, until it is live or its connection ends. write
// sends messages and returns when the connection has taken them. The error is that of
// write.
func (h *Hub) replay(ctx context.Context, s *subscriber, write func([]item) error) error {
	r := s.replay
	for !s.ended() {
		records, through, all, covered := h.older(r)
		if !covered {
			h.startOver(s, resetExpired)
			return nil
		}
		if err := h.beginReplay(ctx, s, r); err != nil {
			return h.replayFailed(ctx, s, err)
		}
		if !r.told && !r.silent && (through != nil && !all || len(records) > batchRecords) {
			// There is too much to look at all of it first.
			if err := write([]item{h.announce(r)}); err != nil {
				return err
			}
			r.told = true
		}
		for len(records) > 0 && !s.ended() {
			sent, failed, err := h.replayBatch(ctx, s, records[:min(len(records), r.batch)], write)
			switch {
			case failed != nil:
				return h.replayFailed(ctx, s, failed)
			case err != nil:
				return err
			}
			records = records[sent:]
		}
		if len(records) > 0 {
			break
		}
		r.from.raise(through)
		if !all {
			continue
		}
		h.mu.Lock()
		live := !s.ended() && h.goLive(s, r)
		h.mu.Unlock()
		if live {
			return nil
		}
	}
	return nil
}

// replayBatch sends a client the messages of the first of these records, as many as fit into
// its share of the bytes of all replays. It waits for the share in the order of the
// requests, and holds it while it reads and writes: a client that takes long to read holds
// up others by one write at most. failed is an error of reading, err one of write or ctx.
func (h *Hub) replayBatch(ctx context.Context, s *subscriber, records []record, write func([]item) error) (sent int, failed, err error) {
	r, held := s.replay, int64(h.share())
	if err := h.replays.Acquire(ctx, held); err != nil {
		return 0, nil, err
	}
	defer func() { h.replays.Release(held) }()
	if s.ended() {
		return 0, nil, nil
	}
	read, failed := h.read(ctx, r, records)
	if failed != nil {
		return 0, failed, nil
	}
	read, size := h.fitting(read)
	if r.batch = len(read.records); len(read.records) == len(records) {
		r.batch = min(2*max(r.batch, 1), batchRecords)
	}
	if unused := held - int64(size); unused > 0 {
		h.replays.Release(unused)
		held -= unused
	}
	items := r.take(s, read)
	if !r.told && !r.silent {
		h.mu.Lock()
		first := h.resumed(len(items))
		h.mu.Unlock()
		items = slices.Insert(items, 0, first)
		r.told = true
	}
	h.metrics.messages.Add(float64(len(items)))
	return len(read.records), nil, write(items)
}

// announce returns feed:resumed for a client that has missed much: count is then the
// number of records.
func (h *Hub) announce(r *replay) item {
	parts, head, _, _ := h.lookUp(r, r.hashes)
	found, _ := find(parts, r.hashes, &r.from, 1<<62)
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.resumed(len(head) + len(found))
}

// beginReplay finds out what a rider was to each order of its rooms.
func (h *Hub) beginReplay(ctx context.Context, s *subscriber, r *replay) (failed error) {
	if r.begun {
		return nil
	}
	h.mu.Lock()
	lost := h.notTheirs(s, r.orders)
	h.mu.Unlock()
	r.begin(s, lost, func(room string) *rooms.Message {
		hashes := []uint32{r.index.hash(room)}
		parts, newest, _, same := h.lookUp(r, hashes)
		if !same {
			failed = errAnew
			return nil
		}
		records, _ := find(parts, hashes, &r.from, 1<<62)
		records = append(records, newest...)
		records = slices.DeleteFunc(records, func(rec record) bool { return rec.log() >= r.from.partitions }) // only topic orders says who has the order
		for len(records) > 0 && failed == nil {
			n := min(len(records), 8)
			all, err := h.read(ctx, r, records[:n])
			if failed = err; err == nil {
				if m := r.statement(room, all); m != nil {
					return m
				}
			}
			records = records[n:]
		}
		return nil
	})
	r.begun = failed == nil
	return failed
}

// replayFailed ends a replay that cannot read the log.
func (h *Hub) replayFailed(ctx context.Context, s *subscriber, err error) error {
	switch {
	case errors.Is(err, errAnew): // the connection is being closed
	case gone(err):
		h.startOver(s, resetExpired)
	case ctx.Err() == nil:
		h.log().Warn("A client cannot be sent what it missed now; it is told to reconnect.", "err", err)
		s.close(closeHistory.after(rand.N(h.cfg.DrainSpread + 1)))
	}
	return nil
}

// startOver tells a client that it must reload, and goes on from the present.
func (h *Hub) startOver(s *subscriber, why string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !s.ended() {
		s.replay.learn()
		lost := h.notTheirs(s, s.replay.orders)
		h.reset(s, why)
		h.enter(s, lost)
	}
}
