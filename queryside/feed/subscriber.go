package feed

import (
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"tomato/domain"
)

// closing is why the hub ends a connection: a websocket close code and reason.
//
// The code tells a client what to do. After 1001 and after 4000 to 4499 the client
// reconnects with its last cursor after a random wait. After 1003 and after 4500 to
// 4999 it must first change what it sends, or get a new token; otherwise it would be
// closed again.
//
// The websocket library ends a connection by itself in two cases, which need a change
// of the client too: with 1009 if an operation is larger than maxOpBytes, and with
// 1002 if a frame breaks the protocol. A connection whose client does not answer a
// ping within Feed.PongWithin, or does not take a write within Feed.WriteTimeout, ends
// without a code (1006 in a browser), and its client reconnects as after 1001.
// asyncapi.json tells clients the same.
type closing struct {
	code   int
	reason string
	label  string // of the metric
}

var (
	closeDrain   = closing{1001, "shutting down, reconnect with the cursor", "drain"}
	closeSlow    = closing{4000, "too slow, reconnect with the cursor", "slow"}
	closeRestart = closing{4001, "the feed began anew, reconnect with the cursor", "restart"}
	closeExpired = closing{4500, "the token has expired, reconnect with a new one and the cursor", "token_expired"}
	closeFlood   = closing{4501, "too many operations", "flood"}
	closeText    = closing{1003, "text messages only", "unsupported_data"}
)

// item is one message to one connection. As text it is head, cursor and rooms,
// followed by `"}`. A message without a cursor is its head alone.
type item struct {
	head   []byte // shared among connections, never changed
	cursor []byte // shared too
	rooms  []byte // the connection's part of the cursor
	latest string // "" or what a later one replaces
}

func (it *item) len() int { return len(it.head) + len(it.cursor) + len(it.rooms) + 2 }

// appendJSON appends the message as it goes out.
func (it *item) appendJSON(b []byte) []byte {
	b = append(b, it.head...)
	if it.cursor == nil {
		return b
	}
	b = append(append(b, it.cursor...), it.rooms...)
	return append(b, '"', '}')
}

// A subscriber is the hub's side of one connection: a bounded queue of messages.
// The hub puts messages in while it holds Hub.mu, and the connection's writer takes
// them out.
type subscriber struct {
	actor domain.Actor
	wake  chan struct{} // holds one: there is something to take
	limit int           // bytes
	total prometheus.Gauge

	// Guarded by Hub.mu.
	own      []string // rooms of the token
	joined   []string // rooms beside those
	suffix   []byte   // joined, as the second part of its cursors
	lastSent uint64   // the number of the last message that was queued for it
	// orders are the joined rooms of a rider's orders, each with the version of
	// the order as of which it was the rider's. nil for others.
	orders map[string]int64

	mu     sync.Mutex // taken alone or while Hub.mu is held, never before it
	items  []item
	first  int            // number of items[0]: how many were taken before
	latest map[string]int // number of the waiting item of that kind
	bytes  int
	closed *closing
}

// push queues a message. A message that replaces a waiting one keeps the waiting
// one's slot and cursor: a later cursor would skip the messages between the two.
func (s *subscriber) push(it item) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != nil {
		return
	}
	if it.latest != "" {
		if n, ok := s.latest[it.latest]; ok && n >= s.first {
			old := &s.items[n-s.first]
			s.count(len(it.head) - len(old.head))
			old.head = it.head
			return
		}
		if s.latest == nil {
			s.latest = map[string]int{}
		}
		s.latest[it.latest] = s.first + len(s.items)
	}
	if s.bytes+it.len() > s.limit {
		s.end(&closeSlow, true)
		return
	}
	s.items = append(s.items, it)
	s.count(it.len())
	s.signal()
}

// take removes messages of up to max bytes from the queue, but at least one. Once
// the queue is empty, closed is why the connection should end; nil: it should not.
func (s *subscriber) take(into []item, max int) (items []item, closed *closing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, size := 0, 0
	for n < len(s.items) && (n == 0 || size+s.items[n].len() <= max) {
		size += s.items[n].len()
		n++
	}
	items = append(into[:0], s.items[:n]...)
	if s.first += n; n == len(s.items) {
		clear(s.items) // else an idle connection holds its last messages
		s.items, s.latest = s.items[:0], nil
		if cap(s.items) > 32 {
			s.items = nil
		}
	} else {
		s.items = slices.Delete(s.items, 0, n)
	}
	s.count(-size)
	if len(s.items) > 0 {
		s.signal()
		return items, nil
	}
	if n > 0 && s.closed != nil {
		s.signal()
		return items, nil
	}
	return items, s.closed
}

// close ends the connection after everything in its queue has been written.
func (s *subscriber) close(c *closing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end(c, false)
}

// discard empties the queue of a connection that has ended.
func (s *subscriber) discard() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end(&closing{}, true)
}

func (s *subscriber) end(c *closing, drop bool) {
	if s.closed == nil {
		s.closed = c
	}
	if drop {
		s.count(-s.bytes)
		s.first += len(s.items)
		s.items, s.latest = nil, nil
	}
	s.signal()
}

func (s *subscriber) count(n int) {
	s.bytes += n
	s.total.Add(float64(n))
}

func (s *subscriber) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
