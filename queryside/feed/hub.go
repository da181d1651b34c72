package feed

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"tomato/domain"
	"tomato/domain/rooms"
	"tomato/eventlog"
)

// HubConfig has the limits of a hub. A zero value stands for the default.
type HubConfig struct {
	// Keys are those of the cursors' MACs, each of 16 bytes or more. At least one is
	// needed. The first one writes cursors, and each of them reads them. They are derived
	// from secrets that all instances share, and from the LogID, so that cursors of other
	// logs are unknown here.
	Keys [][]byte
	// LogID is that of the logs, for tokens.
	LogID eventlog.LogID
	// Ends finds out that a token or cursor is beyond the ends of the logs, which
	// ends the wait for it. nil: the wait lasts as long as its context.
	Ends *eventlog.Ends
	// History reads what clients have missed and is no longer in memory. nil: they must
	// reload.
	History History
	// QueueBytes is how much may wait for one connection. A connection with more
	// is closed, and its client resumes with its cursor. Default: 1 MiB.
	QueueBytes int
	// RecentBytes is how much of the last messages is kept in memory, so that clients which
	// were away for a moment need not wait for the log. Default: 64 MiB.
	RecentBytes int
	// IndexBytes bounds the index of what the log has for each room. Default: 256 MiB.
	IndexBytes int
	// IndexAge is how far back the index goes. Default: 24 hours.
	IndexAge time.Duration
	// MaxConnections may be open at once. Default: 50,000.
	MaxConnections int
	// MaxPerUser is how many connections of one user may be open at once: of one role and
	// sub. 0: no limit.
	MaxPerUser int
	// MaxRooms is how many rooms a connection may join beside those of its token.
	// They are in its cursors. Default: 64; at most 255.
	MaxRooms int
	// ReplayBytes is how many bytes of messages the replays of all clients may hold together,
	// and how many may wait in all queues before a client that comes back has to be sent what
	// it missed by a replay. Clients take turns in the order in which they came. Default: 64
	// MiB.
	ReplayBytes int
	// DrainSpread is the time over which clients are asked to come back whose connections
	// the hub ends together: when it drains or begins anew. Each is advised another wait. 0:
	// they are advised none.
	DrainSpread time.Duration
	// PositionEvery is the least time between two positions of an order's rider. Default:
	// one second. Negative: none.
	PositionEvery time.Duration
	Registry      prometheus.Registerer // nil: no metrics
	Log           *slog.Logger          // nil: slog.Default()
}

func (c *HubConfig) defaults() {
	c.QueueBytes = cmp.Or(c.QueueBytes, 1<<20)
	c.RecentBytes = cmp.Or(c.RecentBytes, 64<<20)
	c.IndexBytes = cmp.Or(c.IndexBytes, 256<<20)
	c.IndexAge = cmp.Or(c.IndexAge, 24*time.Hour)
	c.MaxConnections = cmp.Or(c.MaxConnections, 50_000)
	c.ReplayBytes = cmp.Or(c.ReplayBytes, 64<<20)
	c.PositionEvery = cmp.Or(c.PositionEvery, time.Second)
	c.MaxRooms = min(cmp.Or(c.MaxRooms, 64), maxCursorRooms)
}

// Hub hands feed messages to the connections that have joined their rooms.
//
// It is fed by one projector (Begin, Publish, Ready) and has three states: not
// ready, until the projector has caught up (no connection is taken); open; and
// draining, until every connection is gone.
//
// One mutex orders everything. A record that was published before a connection went live
// is in the index, and one that is published after it is in the connection's queue. So
// everything that is appended after a join arrives, and a resuming client gets what it
// missed, in order and once. Nothing blocks while the mutex is held.
//
// Nothing here is authoritative, and the history is not here: it is the log. The hub has an
// index that says which records have messages for which rooms (index.go), and the messages
// of the last records. What a client missed is found in the index and, if it is not in
// memory, read from the log again (replay.go, history.go). After a restart the projector
// reads the log back, the newest part first, and the index grows backwards (Older). A client
// is sent feed:reset and reloads over REST only if the log, or the history that is
// configured, does not reach back to its cursor, or if the cursor is of other logs. When the
// projector begins anew, all connections are closed and reconnect.
//
// The message rider:location is an exception: for each order only the last
// position is kept, and only since the start of this instance, and it is sent once a second
// at most (latest.go).
type Hub struct {
	cfg     HubConfig
	metrics *hubMetrics
	cursors *cursors
	reader  *reader
	replays *semaphore.Weighted // of ReplayBytes; it serves in the order of requests

	mu       sync.Mutex // guards all below, and the fields of a subscriber that name it
	ready    bool
	opened   chan struct{} // closed when ready
	draining bool
	subs     map[*subscriber]struct{}
	users    map[user]int // connections of each
	rooms    map[string]map[*subscriber]struct{}
	serial   uint64    // of the last message published
	epoch    int       // counts Begin
	at       positions // of what has been published
	base     *base     // the last one; at has reached it
	index    *index
	recent   *recent             // the messages of the last records
	latest   map[string]*latest  // by room
	waiting  map[int]*waitingLog // by log
	held     *heldBase           // nil: none
	waiters  waiters
	noOlder  bool          // the index does not grow backwards any more
	reach    []int64       // in each log, up to where the index will never reach back; nil: not known
	grown    chan struct{} // closed when it has, or will not any more
	gone     chan struct{} // closed when draining and the last is gone
}

// NewHub makes a hub that is not ready.
func NewHub(cfg HubConfig) (*Hub, error) {
	if len(cfg.Keys) == 0 || slices.ContainsFunc(cfg.Keys, func(key []byte) bool { return len(key) < 16 }) {
		return nil, errors.New("the feed needs cursor keys of 16 bytes or more")
	}
	cfg.defaults()
	m, err := newHubMetrics(cfg.Registry)
	if err != nil {
		return nil, err
	}
	h := &Hub{cfg: cfg, metrics: m, subs: map[*subscriber]struct{}{}, users: map[user]int{}, rooms: map[string]map[*subscriber]struct{}{},
		cursors: newCursors(cfg.Keys...), reader: newReader(), opened: make(chan struct{}), grown: make(chan struct{}), gone: make(chan struct{})}
	h.reader.history = cfg.History
	h.replays = semaphore.NewWeighted(int64(cfg.ReplayBytes))
	return h, nil
}

// ReadHistory sets the history before the first Begin.
func (h *Hub) ReadHistory(history History) { h.reader.history = history }

func (h *Hub) log() *slog.Logger {
	if h.cfg.Log != nil {
		return h.cfg.Log
	}
	return slog.Default()
}

// Begin is told where the projector begins, which is also what the base says. The hub
// forgets what it knew, and closes all connections, whose clients reconnect.
func (h *Hub) Begin(began eventlog.FeedBase) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ready {
		h.ready, h.opened = false, make(chan struct{})
	}
	h.epoch++
	h.serial = 1
	h.base = newBase(began)
	h.base.epoch = h.epoch
	h.reader.begin(h.base)
	h.at = h.base.clone()
	h.index = newIndex(&h.at, h.cfg.IndexBytes, h.cfg.IndexAge)
	h.recent, h.latest = newRecent(h.cfg.RecentBytes), map[string]*latest{}
	h.noOlder, h.reach = false, nil
	h.stopWaiting()
	for s := range h.subs {
		s.lastSent, s.ahead = 0, nil
	}
	h.closeAll(&closeRestart)
}

// Ready opens the hub.
func (h *Hub) Ready() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.ready {
		h.ready = true
		close(h.opened)
	}
}

// Publish takes a record with the messages that it means. One goroutine calls it,
// with the records of each log in order.
func (h *Hub) Publish(tp eventlog.TopicPartition, offset int64, appended time.Time, all []rooms.Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	log := h.at.log(tp)
	if log == noLog {
		return
	}
	if h.ready {
		h.metrics.lag.Observe(time.Since(appended).Seconds())
	}
	h.at.done[log] = offset
	kept := false
	for i := range all {
		h.serial++
		sent := step{log, offset, i, len(all)}
		if all[i].Latest {
			h.position(&all[i], sent)
			continue
		}
		if all[i].Final {
			for _, room := range all[i].Rooms {
				delete(h.latest, room)
			}
		}
		h.send(&all[i], sent)
		kept = true
	}
	if kept {
		r := newRecord(log, offset)
		h.index.head.add(r, appended, h.index.hashes(nil, all))
		h.index.grow(&h.at)
		h.recent.add(r, all)
		h.metrics.indexed.Set(float64(h.index.bytes))
	}
	h.waiters.published(log, offset)
}

// send queues a message to everybody who has joined one of its rooms, once each.
func (h *Hub) send(m *rooms.Message, sent step) {
	for _, room := range m.Rooms {
		subs := h.rooms[room]
		if len(subs) == 0 {
			continue
		}
		var it item
		for s := range subs {
			if s.lastSent == h.serial || !m.VisibleTo(s.actor, room) {
				continue
			}
			s.lastSent = h.serial
			if ahead, ok := s.ahead[room]; ok && m.Latest {
				if delete(s.ahead, room); ahead == sent {
					continue
				}
			}
			if it.head == nil {
				it = item{head: messageHead(m, room), cursor: true, base: h.base, sent: sent}
				if m.Latest {
					it.latest = m.Event + " " + room
				}
			}
			it.rooms = s.suffix
			s.push(it)
			h.metrics.messages.Inc()
		}
	}
	if m.Unassigned {
		h.expel(m)
	}
}

// messageHead returns the message's JSON up to its cursor. Names of events and rooms
// contain nothing that JSON would escape.
func messageHead(m *rooms.Message, room string) []byte {
	b := make([]byte, 0, len(m.Payload)+len(m.Event)+len(room)+96)
	b = append(b, `{"event":`...)
	b = strconv.AppendQuote(b, m.Event)
	b = append(b, `,"room":`...)
	b = strconv.AppendQuote(b, room)
	b = append(b, `,"payload":`...)
	b = append(b, m.Payload...)
	b = append(b, `,"timestamp":"`...)
	b = m.Timestamp.UTC().AppendFormat(b, time.RFC3339Nano)
	return append(b, '"')
}

var (
	errNotReady    = errors.New("the feed is starting")
	errDraining    = errors.New("the feed is shutting down")
	errConnections = errors.New("too many connections")
	errPerUser     = errors.New("too many connections of this user")
	errRooms       = errors.New("too many rooms")
)

// user is whose connections are counted together.
type user struct {
	role domain.Role
	sub  string
}

// refuses returns why the hub takes no connection of the actor now, or nil.
func (h *Hub) refuses(actor domain.Actor) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.full(actor)
}

// full returns errConnections or errPerUser if no further connection of the actor may be
// open. It is called with mu held.
func (h *Hub) full(actor domain.Actor) error {
	switch {
	case len(h.subs) >= h.cfg.MaxConnections:
		return errConnections
	case h.cfg.MaxPerUser > 0 && h.users[user{actor.Role, actor.Sub}] >= h.cfg.MaxPerUser:
		return errPerUser
	}
	return nil
}

func (h *Hub) addRoom(s *subscriber, room string) error {
	if slices.Contains(s.own, room) || slices.Contains(s.joined, room) {
		return nil
	}
	if len(s.joined) >= h.cfg.MaxRooms {
		return errRooms
	}
	s.joined = append(s.joined, room)
	return nil
}

func (h *Hub) addMember(s *subscriber, room string) {
	if h.rooms[room] == nil {
		h.rooms[room] = map[*subscriber]struct{}{}
	}
	h.rooms[room][s] = struct{}{}
}

func (h *Hub) removeMember(s *subscriber, room string) {
	delete(h.rooms[room], s)
	if len(h.rooms[room]) == 0 {
		delete(h.rooms, room)
	}
}

// join adds a room and queues the answer. version is the version of the order as
// of which the actor may follow it; 0 for other rooms.
func (h *Hub) join(s *subscriber, room string, version int64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if id, is := rooms.OrderID(room); is && s.actor.Role == domain.Rider {
		if !h.stillTheirs(s.actor, id, version) {
			return errNotTheirs
		}
		if s.orders == nil {
			s.orders = map[string]int64{}
		}
		s.orders[room] = max(s.orders[room], version)
	}
	if err := h.addRoom(s, room); err != nil {
		return err
	}
	s.suffix = roomsPart(s.joined)
	h.addMember(s, room)
	h.tell(s, h.appendToken(own("feed:joined", room), room), h.changes(room))
	return nil
}

// leaveRoom takes the connection out of a room and queues the answer. A room of
// the token is joined again by the next connection.
func (h *Hub) leaveRoom(s *subscriber, room string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	is := func(r string) bool { return r == room }
	s.own = slices.DeleteFunc(slices.Clone(s.own), is)
	s.joined = slices.DeleteFunc(slices.Clone(s.joined), is)
	s.suffix = roomsPart(s.joined)
	h.removeMember(s, room)
	h.tell(s, own("feed:left", room), nil)
}

// own returns the head of one of the feed's own messages.
func own(event, room string) []byte {
	b := append([]byte(`{"event":`), strconv.Quote(event)...)
	if room != "" {
		b = append(append(b, `,"room":`...), strconv.Quote(room)...)
	}
	return b
}

// tell queues one of the feed's own messages with the present cursor. joined is what there
// was since the base in a room that was joined.
func (h *Hub) tell(s *subscriber, head []byte, joined []change) {
	s.push(item{head: head, cursor: true, base: h.base, joined: joined, rooms: s.suffix})
}

// token returns the Consistency-Token of what has been published: a query that has passed
// it answers everything that the feed has sent, or will not send. A room of an order needs
// the logs of the order only. The base stands for all logs that the token leaves out, if a
// feed begins after it (eventlog.FeedBases).
func (h *Hub) token(room string) string {
	id, ofOrder := rooms.OrderID(room)
	partition := eventlog.PartitionFor(id, int32(h.at.partitions))
	var at []eventlog.Position
	for l, o := range h.at.done {
		tp := h.at.tp(l)
		if o >= 0 && eventlog.IsAggregate(tp.Topic) && (!ofOrder || tp.Partition == partition) {
			at = append(at, eventlog.Position{TopicPartition: tp, Offset: o})
		}
	}
	if h.base.id != eventlog.NoFeedBase {
		at = append(at, eventlog.Position{TopicPartition: eventlog.FeedBases(int32(h.at.partitions)), Offset: h.base.id})
	}
	return h.cfg.LogID.Format(eventlog.TokenString(at))
}

// appendToken appends the token to the head of one of the feed's own messages.
func (h *Hub) appendToken(b []byte, room string) []byte {
	token := h.token(room)
	if token == "" {
		return b
	}
	return append(append(append(b, `,"consistencyToken":"`...), token...), '"')
}

// ping queues the present cursor, so that a client of quiet rooms has a recent one.
func (h *Hub) ping(s *subscriber) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tell(s, own("feed:ping", ""), nil)
}

// disconnect removes a connection.
func (h *Hub) disconnect(s *subscriber) {
	s.discard()
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.subs[s]; !ok {
		return
	}
	delete(h.subs, s)
	u := user{s.actor.Role, s.actor.Sub}
	if h.users[u]--; h.users[u] == 0 {
		delete(h.users, u)
	}
	for _, r := range slices.Concat(s.own, s.joined) {
		h.removeMember(s, r)
	}
	h.metrics.connections.Dec()
	if h.draining && len(h.subs) == 0 {
		close(h.gone)
	}
}

// closeAll ends all connections. Their clients are advised to come back one after the other,
// evenly over DrainSpread. It is called with mu held.
func (h *Hub) closeAll(c *closing) {
	n := 0
	for s := range h.subs {
		s.close(c.after(h.cfg.DrainSpread * time.Duration(n) / time.Duration(len(h.subs))))
		n++
	}
}

// Drain closes all connections, whose clients reconnect to another instance, and
// waits until they are closed or ctx ends. New ones are refused from then on. It
// may be called once.
func (h *Hub) Drain(ctx context.Context) error {
	h.mu.Lock()
	h.draining = true
	none := len(h.subs) == 0
	h.closeAll(&closeDrain)
	h.waiters.wakeAll()
	if !h.ready {
		h.ready = true // nobody has to wait for that any more
		close(h.opened)
	}
	h.mu.Unlock()
	if none {
		return nil
	}
	select {
	case <-h.gone:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// IsReady reports whether connections are accepted.
func (h *Hub) IsReady() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ready && !h.draining
}
