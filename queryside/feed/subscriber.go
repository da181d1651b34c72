package feed

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"tomato/domain"
)

// closing is why the hub ends a connection: a websocket close code and reason.
//
// The code tells a client what to do. After 1001 and after 4000 to 4499 the client
// reconnects with its last cursor after the wait that the reason advises ("retry after 1500
// ms") and a random one. After 1003 and after 4500 to
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

	wait time.Duration // how long the client is advised to wait; 0: no advice
}

// after returns the closing with the advice to wait, which the reason says, too.
func (c *closing) after(wait time.Duration) *closing {
	ms := wait.Milliseconds()
	if ms == 0 {
		return c
	}
	advised := *c
	advised.wait = wait
	advised.reason += "; retry after " + strconv.FormatInt(ms, 10) + " ms"
	return &advised
}

var (
	closeDrain   = closing{1001, "shutting down, reconnect with the cursor", "drain", 0}
	closeSlow    = closing{4000, "too slow, reconnect with the cursor", "slow", 0}
	closeHistory = closing{4002, "what was missed cannot be read now, reconnect with the cursor", "history", 0}
	closeRestart = closing{4001, "the feed began anew, reconnect with the cursor", "restart", 0}
	closeExpired = closing{4500, "the token has expired, reconnect with a new one and the cursor", "token_expired", 0}
	closeRevoked = closing{closeExpired.code, "the token was revoked, reconnect with a new one and the cursor", "token_revoked", 0}
	closeFlood   = closing{4501, "too many operations", "flood", 0}
	closeText    = closing{1003, "text messages only", "unsupported_data", 0}
)

// item is one message to one connection. As text it is head, followed by the cursor and
// `"}`. A message without a cursor is its head alone.
type item struct {
	head   []byte   // shared among connections, never changed
	cursor bool     // the message has a cursor, for which the connection's place is moved on:
	base   *base    // by a later base, if it is not nil,
	joined []change // by what there was in a room that was joined,
	sent   step     // and by the message that this is; n is 0 if it is one of the feed's own
	rooms  []byte   // the rooms part of the cursor
	latest string   // "" or what a later one replaces
}

// cursorGuess stands for the bytes of a cursor in what is queued.
const cursorGuess = 64

func (it *item) len() int { return len(it.head) + len(it.rooms) + cursorGuess }

// move moves the place on by the message.
func (p *place) move(it *item) {
	p.rebase(it.base)
	for _, c := range it.joined {
		p.raise(c.log, c.offset)
	}
	if it.sent.n > 0 {
		p.advance(it.sent)
	}
}

// text moves the connection on by the message, and returns the text of its cursor, or nil.
// It is called for each message once, in their order, by the connection's writer alone. The
// text is valid until the next call.
func (s *subscriber) text(it *item) []byte {
	if !it.cursor {
		return nil
	}
	s.place.move(it)
	s.scratch = s.cursors.append(s.scratch[:0], &s.place, s.actor, it.rooms)
	return s.scratch
}

// appendJSON appends the message with its cursor as it goes out.
func (it *item) appendJSON(b, cursor []byte) []byte {
	b = append(b, it.head...)
	if !it.cursor {
		return b
	}
	return append(append(append(b, `,"cursor":"`...), cursor...), '"', '}')
}

// A subscriber is the hub's side of one connection: a bounded queue of messages.
// The hub puts messages in while it holds Hub.mu, and the connection's writer takes
// them out.
type subscriber struct {
	actor   domain.Actor
	issued  time.Time     // when the token was issued; zero if the token does not say
	wake    chan struct{} // holds one: there is something to take
	limit   int           // bytes
	total   *atomic.Int64 // bytes that wait for all connections
	cursors *cursors

	// These are the writer's, once the connection is made.
	place   place   // up to where the client was sent the messages
	replay  *replay // nil: it is live from the beginning
	scratch []byte  // of the cursor's text

	live chan struct{} // closed when the replay is done; nil: there is none

	// Guarded by Hub.mu.
	own      []string        // rooms of the token
	joined   []string        // rooms beside those
	suffix   []byte          // joined, as the rooms part of its cursors. Neither is changed, only replaced or appended to
	lastSent uint64          // the number of the last message that was queued for it
	ahead    map[string]step // by room, positions that it was sent when it came back, and that wait for others
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

// push queues a message. A message that replaces a waiting one of the same log keeps that
// one's slot, unless others of this log wait behind it: these move up, so that the messages
// stay in the order of the log, and a cursor never passes over one.
func (s *subscriber) push(it item) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != nil {
		return
	}
	if it.latest != "" {
		if n, ok := s.latest[it.latest]; ok && n >= s.first {
			at := n - s.first
			if s.items[at].sent.log == it.sent.log {
				s.count(len(it.head) - len(s.items[at].head))
				for i := at + 1; i < len(s.items); i++ {
					if s.items[i].latest != "" && s.items[i].sent.log == it.sent.log {
						s.items[at].take(&s.items[i])
						s.latest[s.items[at].latest] = s.first + at
						at = i
					}
				}
				s.items[at].take(&it)
				s.latest[it.latest] = s.first + at
				return
			}
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

// take makes the item another message, in the same place of the queue.
func (it *item) take(other *item) {
	it.head, it.sent, it.latest = other.head, other.sent, other.latest
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

// endNow ends the connection without what is in its queue.
func (s *subscriber) endNow(c *closing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end(c, true)
}

// ended reports whether the connection is to be ended.
func (s *subscriber) ended() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed != nil
}

// waitUntilLive waits until the connection is in its rooms. It returns false if ctx ends
// before.
func (s *subscriber) waitUntilLive(ctx context.Context) bool {
	if s.live == nil {
		return true
	}
	select {
	case <-s.live:
		return true
	case <-ctx.Done():
		return false
	}
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
	s.total.Add(int64(n))
}

func (s *subscriber) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
