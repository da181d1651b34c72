package simulate

import (
	"context"
	"encoding/json"
	"errors"
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
	// gapSlack widens a gap that the feed announced: what was under way when
	// the connection broke counts as lost with it.
	gapSlack = 5 * time.Second
)

// feedCounts are totals over all feeds of a run.
type feedCounts struct {
	messages, connects, reconnects, resumed, resets, locations atomic.Int64
}

// feed is one party's websocket. It reconnects with its last cursor for as
// long as it runs, and checks what every message must have. Only run reads
// the socket; send may be called from anywhere.
type feed struct {
	sim   *simulation
	party *party
	token string
	join  string // a room to join besides its own, "" for none
	rooms []string
	flaky int // drop the connection by itself after so many messages, 0 never

	onMessage func(message)
	onReset   func(ctx context.Context)

	cursor string
	mu     sync.Mutex
	conn   *websocket.Conn
}

// run connects, calls up once the rooms are joined, and reads until ctx ends
// or the server says that coming back is no use.
func (f *feed) run(ctx context.Context, up func()) {
	var lastHeard time.Time
	for attempt := 0; ctx.Err() == nil; attempt++ {
		err := f.session(ctx, &lastHeard, func() { up(); attempt = 0 })
		if ctx.Err() != nil {
			return
		}
		if isPermanent(err) {
			f.sim.ledger.fault(faultFeedProtocol, "", "%s %s: the feed closed for good: %v", f.party.role, f.party.id, err)
			return
		}
		select {
		case <-time.After(min(50*time.Millisecond<<min(attempt, 6), 2*time.Second)):
		case <-ctx.Done():
		}
	}
}

// stop says whether a closed or refused connection must not be tried again:
// refused for who we are, or closed with a code of the ranges that end.
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

var errOwnDrop = errors.New("dropped by the client itself")

func (f *feed) session(ctx context.Context, lastHeard *time.Time, up func()) error {
	resuming := f.cursor != ""
	began := *lastHeard
	conn, err := f.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.CloseNow()
	conn.SetReadLimit(maxMessageBytes)
	f.sim.feeds.connects.Add(1)
	if !began.IsZero() {
		f.sim.feeds.reconnects.Add(1)
	}
	if !resuming && !began.IsZero() {
		// Nothing had come before the break, so there was no cursor to resume from.
		f.party.addGap(feedGap{began.Add(-gapSlack), time.Now().Add(gapSlack)})
	}
	if f.join != "" {
		if err := conn.Write(ctx, websocket.MessageText, []byte(`{"op":"join","room":"`+f.join+`"}`)); err != nil {
			return err
		}
	} else {
		up()
	}
	f.mu.Lock()
	f.conn = conn
	f.mu.Unlock()
	*lastHeard = time.Now()
	if !resuming && !began.IsZero() && f.onReset != nil {
		f.onReset(ctx)
	}
	for n := 1; ; n++ {
		_, b, err := conn.Read(ctx)
		if err != nil {
			return err
		}
		f.sim.feeds.messages.Add(1)
		var m message
		if err := json.Unmarshal(b, &m); err != nil {
			f.sim.ledger.fault(faultFeedProtocol, "", "%s %s: not JSON: %v", f.party.role, f.party.id, err)
			continue
		}
		if resuming {
			resuming = false
			switch m.Event {
			case "feed:resumed":
				f.sim.feeds.resumed.Add(1)
			case "feed:reset":
			default:
				f.sim.ledger.fault(faultFeedProtocol, "", "%s %s: %s came first after a reconnect", f.party.role, f.party.id, m.Event)
			}
		}
		if m.Event == "feed:reset" {
			f.sim.feeds.resets.Add(1)
			f.party.addGap(feedGap{began.Add(-gapSlack), time.Now().Add(gapSlack)})
			if f.onReset != nil {
				f.onReset(ctx)
			}
		}
		*lastHeard = time.Now()
		if m.Cursor != "" {
			f.cursor = m.Cursor
		}
		if strings.HasPrefix(m.Event, "feed:") {
			switch m.Event {
			case "feed:joined":
				if f.join != "" {
					up()
				}
			case "feed:error":
				f.sim.ledger.fault(faultFeedProtocol, "", "%s %s: feed:error %s", f.party.role, f.party.id, m.Code)
			}
			continue
		}
		f.check(&m)
		if f.flaky > 0 && n >= f.flaky && f.cursor != "" {
			f.flaky *= 2
			conn.CloseNow()
			return errOwnDrop
		}
	}
}

// check holds one message against what all must have, and passes it on.
func (f *feed) check(m *message) {
	if m.Cursor == "" || m.Timestamp.IsZero() {
		f.sim.ledger.fault(faultFeedProtocol, "", "%s %s: %s without cursor or timestamp", f.party.role, f.party.id, m.Event)
	}
	if err := json.Unmarshal(m.Payload, &m.data); err != nil {
		f.sim.ledger.fault(faultFeedProtocol, "", "%s %s: payload of %s: %v", f.party.role, f.party.id, m.Event, err)
		return
	}
	if m.Event == "rider:location" {
		f.sim.feeds.locations.Add(1)
		return
	}
	own := false
	for _, r := range f.rooms {
		own = own || r == m.Room
	}
	if !own {
		f.sim.ledger.fault(faultFeedProtocol, m.data.OrderID, "%s %s: %s in room %s", f.party.role, f.party.id, m.Event, m.Room)
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
		// Where the server says at once where the feed begins, a connection that
		// breaks before its first message can be resumed too.
		f.cursor = res.Header.Get("Feed-Cursor")
	}
	return conn, nil
}

// locate sends the rider's position over the feed. It is telemetry: without a
// connection it is left out.
func (f *feed) locate(ctx context.Context, at domain.Point) {
	f.mu.Lock()
	conn := f.conn
	f.mu.Unlock()
	if conn == nil {
		return
	}
	b, err := json.Marshal(map[string]any{"op": "location", "location": at})
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, feedWriteLimit)
	defer cancel()
	_ = conn.Write(ctx, websocket.MessageText, b) // the reader sees a broken connection and reconnects
}

// joinOrder asks for the room of one order, for the rider's positions.
func (f *feed) joinOrder(ctx context.Context, orderID string) {
	f.mu.Lock()
	conn := f.conn
	f.mu.Unlock()
	if conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, feedWriteLimit)
	defer cancel()
	_ = conn.Write(ctx, websocket.MessageText, []byte(`{"op":"join","room":"order:`+orderID+`"}`)) // as in locate
}
