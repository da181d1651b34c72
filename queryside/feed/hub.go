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

// HubConfig are the limits of a hub. Zero values take the defaults.
type HubConfig struct {
	// Key of the cursors' MAC; needed, the same on all instances. Made of a secret
	// and the LogID, it makes cursors of other logs unknown.
	Key []byte
	// Ends ends the wait for a token or cursor that is beyond the logs' ends; nil:
	// it lasts as long as its context.
	Ends *eventlog.Ends
	// QueueBytes may wait for one connection; over it the connection is closed
	// to resume with its cursor. Default 1 MiB. It is the bound of what a
	// resuming client may have missed, too.
	QueueBytes int
	// WindowBytes of past messages are kept for resuming clients. Default 64 MiB.
	WindowBytes int
	// MaxConnections at once. Default 50,000.
	MaxConnections int
	// MaxRooms that a connection may join beside its own. Default 64: they are
	// in its cursors.
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
// One mutex orders everything: a message is either published before a join,
// and then it is in the window, or after it, and then it is in the connection's
// queue. So everything that is appended after a join arrives, and a resuming
// client gets what it missed, in order and once. Nothing blocks under it.
//
// Nothing here is authoritative. The window, messages of the recent past, is
// bounded in bytes. After a restart it is narrow, and is widened down to the
// cursors that come (catchUp). A client that was away for longer, or comes with
// a cursor that was not made here, is told feed:reset and reloads over REST. A
// projector that begins anew sends all connections away to reconnect.
//
// rider:location is the exception: of each order only the last position is
// kept, and only since this instance's start.
type Hub struct {
	cfg     HubConfig
	metrics *hubMetrics

	mu       sync.Mutex // guards all below, and what subscriber says
	ready    bool
	draining bool
	subs     map[*subscriber]struct{}
	rooms    map[string]map[*subscriber]struct{}
	serial   uint64 // of the last message published
	least    uint64 // of the oldest message ever in the window
	epoch    int    // counts Begin
	cursors  *cursors
	at       place  // what has been published
	text     []byte // at as cursor; nil: not written yet
	floor    []int64
	window   []*entry // oldest first, from windowAt on
	windowAt int
	bytes    int
	byRoom   map[string][]*entry // of the window, oldest first
	latest   map[string]*entry   // room → its last Latest message; not in the window
	waiters  map[*waiter]struct{}
	behind   []*behind     // clients that wait for the window to be widened
	catching bool          // runCatchUp runs
	gone     chan struct{} // closed when draining and the last is gone
}

// entry is a message of the past.
type entry struct {
	number uint64 // of the message, in the order of publishing
	log    int
	offset int64
	i, n   int // the i-th of the n messages of its record
	rooms.Message
	mark *subscriber // while one resumes: it has it already

	// While it is on its way into the window from behind.
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

// Begin says where the projector begins. What the hub knew is void, and
// connections are sent away to reconnect.
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
	h.at, h.text = newPlace(int(partitions)), nil
	for tp, o := range passed {
		if l := h.at.log(tp); l != noLog {
			h.at.done[l] = o
		}
	}
	h.floor = slices.Clone(h.at.done)
	h.window, h.windowAt, h.bytes = nil, 0, 0
	h.byRoom, h.latest = map[string][]*entry{}, map[string]*entry{}
	for s := range h.subs {
		s.mark = 0
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

// Publish takes a record with the messages that it means. Called by one
// goroutine, the records of one log in order.
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

// keep puts a message in the window, and what no longer fits out of it.
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

// send queues a message to all who have joined one of its rooms, to each once.
func (h *Hub) send(e *entry) {
	for _, room := range e.Rooms {
		subs := h.rooms[room]
		if len(subs) == 0 {
			continue
		}
		var it item
		for s := range subs {
			if s.mark == e.number || !e.VisibleTo(s.actor, room) {
				continue
			}
			s.mark = e.number
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

// head is the message up to its cursor. Names of events and rooms hold nothing
// that JSON would escape.
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

// cursor is the present place as text.
func (h *Hub) cursor() []byte {
	if h.text == nil {
		h.text = h.cursors.place(&h.at)
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

func (h *Hub) enter(s *subscriber, room string) {
	if h.rooms[room] == nil {
		h.rooms[room] = map[*subscriber]struct{}{}
	}
	h.rooms[room][s] = struct{}{}
}

func (h *Hub) exit(s *subscriber, room string) {
	delete(h.rooms[room], s)
	if len(h.rooms[room]) == 0 {
		delete(h.rooms, room)
	}
}

// join adds a room and queues the answer. version is that of the order as of
// which the actor may follow it, 0 for other rooms.
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
	h.enter(s, room)
	h.tell(s, "feed:joined", room)
	return nil
}

// part takes a room away and queues the answer. A room of the token comes back
// with the next connection.
func (h *Hub) part(s *subscriber, room string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	is := func(r string) bool { return r == room }
	s.own = slices.DeleteFunc(slices.Clone(s.own), is)
	s.joined = slices.DeleteFunc(s.joined, is)
	s.suffix = h.cursors.rooms(s.actor, s.joined)
	h.exit(s, room)
	h.tell(s, "feed:left", room)
}

// tell queues a message of the feed's own with the present cursor.
func (h *Hub) tell(s *subscriber, event, room string) {
	b := append([]byte(`{"event":`), strconv.Quote(event)...)
	if room != "" {
		b = append(append(b, `,"room":`...), strconv.Quote(room)...)
	}
	s.push(item{head: append(b, `,"cursor":"`...), cursor: h.cursor(), rooms: s.suffix})
}

// ping queues the present cursor, so that the one of a quiet room does not age.
func (h *Hub) ping(s *subscriber) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tell(s, "feed:ping", "")
}

// leave ends a connection.
func (h *Hub) leave(s *subscriber) {
	s.discard()
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.subs[s]; !ok {
		return
	}
	delete(h.subs, s)
	for _, r := range slices.Concat(s.own, s.joined) {
		h.exit(s, r)
	}
	h.metrics.connections.Dec()
	if h.draining && len(h.subs) == 0 {
		close(h.gone)
	}
}

// Drain sends all connections away to reconnect elsewhere and waits until they
// are gone or ctx ends. New ones are refused from then on. Call it once.
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

// IsReady says whether connections are taken.
func (h *Hub) IsReady() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ready && !h.draining
}

// passed waits until all that the token names has been published; positions in
// topics that are not the feed's are none of its business. The error is ctx's
// cause, or eventlog.ErrUnknownToken.
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

// reachedCursor waits until this hub is not behind the one that made the
// cursor. The error is ctx's cause, or eventlog.ErrUnknownToken where the cursor
// is beyond the end of a log.
func (h *Hub) reachedCursor(ctx context.Context, c *cursor) error {
	return h.wait(ctx, c.token(), func() bool { return h.ready && (c.partitions != h.at.partitions || h.at.reached(&c.place)) })
}

// wait waits until ok, which will be so once need is passed.
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
