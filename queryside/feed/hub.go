package feed

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tomato/domain"
	"tomato/domain/rooms"
	"tomato/eventlog"
)

// HubConfig has the limits of a hub. A zero value stands for the default.
type HubConfig struct {
	// Key is that of the cursors' MAC. It is needed and the same on all instances.
	// It is derived from a secret and the LogID, so that cursors of other logs are
	// unknown here.
	Key []byte
	// Ends finds out that a token or cursor is beyond the ends of the logs, which
	// ends the wait for it. nil: the wait lasts as long as its context.
	Ends *eventlog.Ends
	// QueueBytes is how much may wait for one connection. A connection with more
	// is closed, and its client resumes with its cursor. It also bounds what a
	// resuming client may have missed. Default: 1 MiB.
	QueueBytes int
	// WindowBytes is how much of the past messages is kept for resuming clients.
	// Default: 64 MiB.
	WindowBytes int
	// MaxConnections may be open at once. Default: 50,000.
	MaxConnections int
	// MaxRooms is how many rooms a connection may join beside those of its token.
	// They are in its cursors. Default: 64.
	MaxRooms int
	Registry prometheus.Registerer // nil: no metrics
}

func (c *HubConfig) defaults() {
	c.QueueBytes = cmp.Or(c.QueueBytes, 1<<20)
	c.WindowBytes = cmp.Or(c.WindowBytes, 64<<20)
	c.MaxConnections = cmp.Or(c.MaxConnections, 50_000)
	c.MaxRooms = cmp.Or(c.MaxRooms, 64)
}

// Hub hands feed messages to the connections that have joined their rooms.
//
// It is fed by one projector (Begin, Publish, Ready) and has three states: not
// ready, until the projector has caught up (no connection is taken); open; and
// draining, until every connection is gone.
//
// One mutex orders everything. A message that was published before a join is in
// the window, and one that is published after it is in the connection's queue.
// So everything that is appended after a join arrives, and a resuming client gets
// what it missed, in order and once. Nothing blocks while the mutex is held.
//
// Nothing here is authoritative. The window holds messages of the recent past and
// is bounded in bytes. After a restart it is narrow; catchUp widens it down to the
// cursors with which clients return. A client that was disconnected for longer, or
// that has a cursor of other logs, is sent feed:reset and reloads over REST. When
// the projector begins anew, all connections are closed and reconnect.
//
// The message rider:location is an exception: for each order only the last
// position is kept, and only since the start of this instance.
type Hub struct {
	cfg     HubConfig
	metrics *hubMetrics

	mu       sync.Mutex // guards all below, and the fields of a subscriber that name it
	ready    bool
	draining bool
	subs     map[*subscriber]struct{}
	rooms    map[string]map[*subscriber]struct{}
	serial   uint64 // of the last message published
	least    uint64 // of the oldest message ever in the window
	epoch    int    // counts Begin
	cursors  *cursors
	at       positions // of what has been published
	text     []byte    // at as the text of a cursor; nil: not written yet
	floor    []int64
	window   []*entry // oldest first, from windowAt on
	windowAt int
	bytes    int
	byRoom   map[string][]*entry // of the window, oldest first
	latest   map[string]*entry   // room → its last Latest message; not in the window
	waiters  map[*waiter]struct{}
	behind   []*waitingClient // clients that wait for the window to be widened
	catching bool             // runCatchUp runs
	gone     chan struct{}    // closed when draining and the last is gone
}

// entry is a message of the past.
type entry struct {
	number uint64 // of the message, in the order of publishing
	log    int
	offset int64
	i, n   int // the i-th of the n messages of its record
	rooms.Message
	// queuedFor is only set while resume collects what a client has missed: the
	// message is collected already, so a second room of the client does not add it
	// again.
	queuedFor *subscriber

	// Only set while catchUp brings the message into the window.
	tp       eventlog.TopicPartition
	appended time.Time
}

func (e *entry) size() int {
	n := 256 + len(e.Payload)
	for _, r := range e.Rooms {
		n += 2*len(r) + 48
	}
	return n
}

type waiter struct {
	ok func() bool // under Hub.mu
	ch chan struct{}
}

// NewHub makes a hub that is not ready.
func NewHub(cfg HubConfig) (*Hub, error) {
	if len(cfg.Key) < 16 {
		return nil, errors.New("the feed needs a cursor key of 16 bytes or more")
	}
	cfg.defaults()
	m, err := newHubMetrics(cfg.Registry)
	if err != nil {
		return nil, err
	}
	return &Hub{cfg: cfg, metrics: m, subs: map[*subscriber]struct{}{}, rooms: map[string]map[*subscriber]struct{}{},
		cursors: newCursors(cfg.Key), waiters: map[*waiter]struct{}{}, gone: make(chan struct{})}, nil
}

// Begin is told where the projector begins. The hub forgets what it knew, and
// closes all connections, whose clients reconnect.
func (h *Hub) Begin(passed map[eventlog.TopicPartition]int64) {
	partitions := int32(1)
	for tp := range passed {
		partitions = max(partitions, tp.Partition+1)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ready = false
	h.epoch++
	h.serial, h.least = 1<<40, 1<<40+1
	h.at, h.text = newPositions(int(partitions)), nil
	for tp, o := range passed {
		if l := h.at.log(tp); l != noLog {
			h.at.done[l] = o
		}
	}
	h.floor = slices.Clone(h.at.done)
	h.window, h.windowAt, h.bytes = nil, 0, 0
	h.byRoom, h.latest = map[string][]*entry{}, map[string]*entry{}
	for s := range h.subs {
		s.lastSent = 0
		s.close(&closeRestart)
	}
}

// Ready opens the hub.
func (h *Hub) Ready() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ready = true
	h.wakeWaiters()
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
	for i := range all {
		if i == len(all)-1 {
			h.at.partial, h.at.done[log] = noLog, offset
		} else {
			h.at.partial, h.at.offset, h.at.messages = log, offset, i+1
		}
		h.text = nil
		h.serial++
		e := &entry{number: h.serial, log: log, offset: offset, i: i, n: len(all), Message: all[i]}
		h.keep(e)
		h.send(e)
	}
	if len(all) == 0 {
		h.at.done[log], h.text = offset, nil
	}
	if len(h.waiters) > 0 {
		h.wakeWaiters()
	}
}

// keep puts a message into the window and evicts what no longer fits.
func (h *Hub) keep(e *entry) {
	if e.Final {
		for _, r := range e.Rooms {
			delete(h.latest, r)
		}
	}
	if e.Latest {
		for _, r := range e.Rooms {
			h.latest[r] = e
		}
		return
	}
	h.window = append(h.window, e)
	h.bytes += e.size()
	for _, r := range e.Rooms {
		h.byRoom[r] = append(h.byRoom[r], e)
	}
	h.evict()
}

// send queues a message to everybody who has joined one of its rooms, once each.
func (h *Hub) send(e *entry) {
	for _, room := range e.Rooms {
		subs := h.rooms[room]
		if len(subs) == 0 {
			continue
		}
		var it item
		for s := range subs {
			if s.lastSent == e.number || !e.VisibleTo(s.actor, room) {
				continue
			}
			s.lastSent = e.number
			if it.head == nil {
				it = item{head: e.head(room), cursor: h.cursor()}
				if e.Latest {
					it.latest = e.Event + " " + room
				}
			}
			it.rooms = s.suffix
			s.push(it)
			h.metrics.messages.Inc()
		}
	}
	if e.Unassigned {
		h.expel(e)
	}
}

// head returns the message's JSON up to its cursor. Names of events and rooms
// contain nothing that JSON would escape.
func (e *entry) head(room string) []byte {
	b := make([]byte, 0, len(e.Payload)+len(e.Event)+len(room)+96)
	b = append(b, `{"event":`...)
	b = strconv.AppendQuote(b, e.Event)
	b = append(b, `,"room":`...)
	b = strconv.AppendQuote(b, room)
	b = append(b, `,"payload":`...)
	b = append(b, e.Payload...)
	b = append(b, `,"timestamp":"`...)
	b = e.Timestamp.UTC().AppendFormat(b, time.RFC3339Nano)
	return append(b, `","cursor":"`...)
}

// cursor returns the present positions as text.
func (h *Hub) cursor() []byte {
	if h.text == nil {
		h.text = h.cursors.positions(&h.at)
	}
	return h.text
}

var (
	errNotReady    = errors.New("the feed is starting")
	errDraining    = errors.New("the feed is shutting down")
	errConnections = errors.New("too many connections")
	errRooms       = errors.New("too many rooms")
)

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
	s.suffix = h.cursors.rooms(s.actor, s.joined)
	h.addMember(s, room)
	h.tell(s, "feed:joined", room)
	return nil
}

// leaveRoom takes the connection out of a room and queues the answer. A room of
// the token is joined again by the next connection.
func (h *Hub) leaveRoom(s *subscriber, room string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	is := func(r string) bool { return r == room }
	s.own = slices.DeleteFunc(slices.Clone(s.own), is)
	s.joined = slices.DeleteFunc(s.joined, is)
	s.suffix = h.cursors.rooms(s.actor, s.joined)
	h.removeMember(s, room)
	h.tell(s, "feed:left", room)
}

// tell queues one of the feed's own messages with the present cursor.
func (h *Hub) tell(s *subscriber, event, room string) {
	b := append([]byte(`{"event":`), strconv.Quote(event)...)
	if room != "" {
		b = append(append(b, `,"room":`...), strconv.Quote(room)...)
	}
	s.push(item{head: append(b, `,"cursor":"`...), cursor: h.cursor(), rooms: s.suffix})
}

// ping queues the present cursor, so that a client of quiet rooms has a recent one.
func (h *Hub) ping(s *subscriber) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tell(s, "feed:ping", "")
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
	for _, r := range slices.Concat(s.own, s.joined) {
		h.removeMember(s, r)
	}
	h.metrics.connections.Dec()
	if h.draining && len(h.subs) == 0 {
		close(h.gone)
	}
}

// Drain closes all connections, whose clients reconnect to another instance, and
// waits until they are closed or ctx ends. New ones are refused from then on. It
// may be called once.
func (h *Hub) Drain(ctx context.Context) error {
	h.mu.Lock()
	h.draining = true
	none := len(h.subs) == 0
	for s := range h.subs {
		s.close(&closeDrain)
	}
	h.wakeWaiters()
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

// passed waits until everything that the token names has been published. It
// ignores positions in topics that feeds do not read. The error is ctx's cause, or
// eventlog.ErrUnknownToken.
func (h *Hub) passed(ctx context.Context, t eventlog.Token) error {
	need := eventlog.Token{}
	for tp, o := range t {
		if slices.Contains(cursorTopics[:], tp.Topic) {
			need[tp] = o
		}
	}
	return h.wait(ctx, need, func() bool {
		if !h.ready {
			return false
		}
		for tp, o := range need {
			if l := h.at.log(tp); l == noLog || h.at.done[l] < o {
				return false
			}
		}
		return true
	})
}

// reachedCursor waits until this hub has published everything that the cursor names.
// Another instance, which was ahead, may have made the cursor. The error is ctx's
// cause, or eventlog.ErrUnknownToken if the cursor is beyond the end of a log.
func (h *Hub) reachedCursor(ctx context.Context, c *cursor) error {
	return h.wait(ctx, c.token(), func() bool { return h.ready && (c.partitions != h.at.partitions || h.at.reached(&c.positions)) })
}

// wait waits until ok returns true, which it does once need has been published.
func (h *Hub) wait(ctx context.Context, need eventlog.Token, ok func() bool) error {
	h.mu.Lock()
	if ok() {
		h.mu.Unlock()
		return nil
	}
	w := &waiter{ok: ok, ch: make(chan struct{})}
	h.waiters[w] = struct{}{}
	h.mu.Unlock()
	ctx, stop := h.cfg.Ends.Watch(ctx, need)
	defer stop()
	select {
	case <-w.ch:
		return nil
	case <-ctx.Done():
		h.mu.Lock()
		delete(h.waiters, w)
		h.mu.Unlock()
		return context.Cause(ctx)
	}
}

func (h *Hub) wakeWaiters() {
	for w := range h.waiters {
		if h.draining || w.ok() {
			close(w.ch)
			delete(h.waiters, w)
		}
	}
}
