package simulate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"tomato/domain"
)

const (
	maxMessageBytes = 1 << 20
	feedWriteLimit  = 10 * time.Second
	dialTimeout     = 15 * time.Second
	// gapSlack widens a gap that the feed announced, on both sides, because messages
	// that were under way when the connection broke are missing, too.
	gapSlack = 5 * time.Second
)

// feedCounts are the totals of all feeds of a run.
type feedCounts struct {
	messages, connects, reconnects, resumed, resets, locations atomic.Int64
}

// feed is one party's websocket. It reconnects with its last cursor until its
// context ends. It checks that every message has what all messages must have. Only
// run reads the socket. The methods that send may be called from any goroutine.
type feed struct {
	sim        *simulation
	party      *party
	token      string
	room       string // the room that its messages come from
	mustJoin   bool   // the feed must ask to join room; otherwise the server joins it by itself
	breakAfter int    // number of messages after which the feed breaks its connection; 0 means never

	onMessage func(message)
	onReset   func(ctx context.Context) // called when messages may be missing; may be nil

	cursor string
	mu     sync.Mutex
	conn   *websocket.Conn
}

// run connects, calls up when the room is joined, and reads until ctx ends or the
// server closes the feed for good. It calls up after each reconnect, too.
func (f *feed) run(ctx context.Context, up func()) {
	var lastHeard time.Time
	for attempt := 0; ctx.Err() == nil; attempt++ {
		err := f.session(ctx, &lastHeard, func() { up(); attempt = 0 })
		if ctx.Err() != nil {
			return
		}
		if isPermanent(err) {
			f.fault("", "the server closed the feed for good: %v", err)
			return
		}
		select {
		case <-time.After(min(50*time.Millisecond<<min(attempt, 6), 2*time.Second)):
		case <-ctx.Done():
		}
	}
}

// isPermanent reports whether a client must not reconnect after this error. This is
// so if the server refused the handshake with a status that a retry does not change,
// or if it closed the connection with a code that forbids to reconnect.
func isPermanent(err error) bool {
	var refused *refusedError
	if errors.As(err, &refused) {
		return refused.status != http.StatusTooManyRequests && refused.status < 500
	}
	code := websocket.CloseStatus(err)
	return code == websocket.StatusPolicyViolation || code >= 3500 && code < 4000 || code >= 4500 && code < 5000
}

type refusedError struct{ status int }

func (e *refusedError) Error() string { return "the feed answered " + http.StatusText(e.status) }

var errOwnDrop = errors.New("the client broke the connection itself")

// fault enters a broken promise about this feed. order is the order's id, "" for
// none.
func (f *feed) fault(order, format string, args ...any) {
	f.sim.ledger.fault(faultFeedProtocol, order, "%s %s: %s", f.party.role, f.party.id, fmt.Sprintf(format, args...))
}

// session opens one connection and reads it until it ends. lastHeard is the time of
// the last message of the server. It is zero before the first connection.
func (f *feed) session(ctx context.Context, lastHeard *time.Time, up func()) error {
	resuming := f.cursor != ""
	before := *lastHeard
	conn, err := f.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.CloseNow()
	conn.SetReadLimit(maxMessageBytes)
	f.sim.feeds.connects.Add(1)
	reconnected := !before.IsZero()
	if reconnected {
		f.sim.feeds.reconnects.Add(1)
	}
	if f.mustJoin {
		if err := conn.Write(ctx, websocket.MessageText, []byte(`{"op":"join","room":"`+f.room+`"}`)); err != nil {
			return err
		}
	} else {
		up()
	}
	f.mu.Lock()
	f.conn = conn
	f.mu.Unlock()
	*lastHeard = time.Now()
	if reconnected && !resuming {
		f.missed(ctx, before) // there is no cursor to resume from, because no message had come before the connection broke
	}
	for n := 1; ; n++ {
		_, b, err := conn.Read(ctx)
		if err != nil {
			return err
		}
		f.sim.feeds.messages.Add(1)
		var m message
		if err := json.Unmarshal(b, &m); err != nil {
			f.fault("", "a message is not JSON: %v", err)
			continue
		}
		if resuming {
			resuming = false
			switch m.Event {
			case "feed:resumed":
				f.sim.feeds.resumed.Add(1)
			case "feed:reset":
			default:
				f.fault("", "%s came first after a reconnect", m.Event)
			}
		}
		if m.Event == "feed:reset" {
			f.sim.feeds.resets.Add(1)
			f.missed(ctx, before)
		}
		*lastHeard = time.Now()
		if m.Cursor != "" {
			f.cursor = m.Cursor
		}
		if strings.HasPrefix(m.Event, "feed:") {
			switch m.Event {
			case "feed:joined":
				if f.mustJoin {
					up()
				}
			case "feed:error":
				f.fault("", "feed:error %s", m.Code)
			}
			continue
		}
		f.check(&m)
		if f.breakAfter > 0 && n >= f.breakAfter && f.cursor != "" {
			f.breakAfter *= 2
			conn.CloseNow()
			return errOwnDrop
		}
	}
}

// missed notes that messages since the time before may be missing, and lets the
// party read by REST what it may have missed.
func (f *feed) missed(ctx context.Context, before time.Time) {
	f.party.addGap(feedGap{before.Add(-gapSlack), time.Now().Add(gapSlack)})
	if f.onReset != nil {
		f.onReset(ctx)
	}
}

// check checks that the message has what all messages must have, and passes it on.
func (f *feed) check(m *message) {
	if m.Cursor == "" || m.Timestamp.IsZero() {
		f.fault("", "%s without cursor or timestamp", m.Event)
	}
	if err := json.Unmarshal(m.Payload, &m.data); err != nil {
		f.fault("", "payload of %s: %v", m.Event, err)
		return
	}
	if m.Event == "rider:location" {
		f.sim.feeds.locations.Add(1)
		return
	}
	if m.Room != f.room {
		f.fault(m.data.OrderID, "%s came from room %s", m.Event, m.Room)
	}
	m.receiver = f.party
	f.onMessage(*m)
}

func (f *feed) dial(ctx context.Context) (*websocket.Conn, error) {
	select {
	case f.sim.dialSlots <- struct{}{}:
		defer func() { <-f.sim.dialSlots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	api := f.sim.api
	base := api.urls[(int(api.next.Load())+int(f.party.number))%len(api.urls)]
	u := base + "/v1/feed"
	if f.cursor != "" {
		u += "?cursor=" + url.QueryEscape(f.cursor)
	}
	conn, res, err := websocket.Dial(ctx, u, &websocket.DialOptions{
		HTTPClient: api.http,
		HTTPHeader: http.Header{"Authorization": {"Bearer " + f.token}},
	})
	if err != nil {
		if res != nil && res.StatusCode != http.StatusSwitchingProtocols {
			return nil, &refusedError{res.StatusCode}
		}
		if len(api.urls) > 1 {
			api.next.Add(1)
		}
		return nil, err
	}
	if f.cursor == "" {
		// The server may send the cursor at which the feed begins. With it, a
		// connection that breaks before its first message can be resumed, too.
		f.cursor = res.Header.Get("Feed-Cursor")
	}
	return conn, nil
}

// locate sends the rider's position. It sends nothing while there is no connection.
// This does no harm, because a later position follows.
func (f *feed) locate(ctx context.Context, at domain.Point) {
	f.send(ctx, object{"op": "location", "location": at})
}

// joinOrder joins the room of one order, which has the rider's positions.
func (f *feed) joinOrder(ctx context.Context, orderID string) {
	f.send(ctx, object{"op": "join", "room": "order:" + orderID})
}

// send sends a message to the server, if there is a connection.
func (f *feed) send(ctx context.Context, m object) {
	f.mu.Lock()
	conn := f.conn
	f.mu.Unlock()
	if conn == nil {
		return
	}
	b, err := json.Marshal(m)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, feedWriteLimit)
	defer cancel()
	_ = conn.Write(ctx, websocket.MessageText, b) // session notices a broken connection
}
