// Package feedclient follows a realtime feed of Tomato over a websocket: GET /v1/feed,
// as /asyncapi.json describes it. A Client reconnects with its last cursor, so its caller
// is handed every message of its rooms once and in order, or is told to load everything
// again:
//
//	client, err := feedclient.New(feedclient.Options{
//		URLs:  []string{"https://tomato.example"},
//		Token: func(ctx context.Context) (string, error) { return token, nil },
//		Rooms: []string{"order:" + orderID},
//	})
//	…
//	err = client.Run(ctx, func(ctx context.Context, m feedclient.Message) error {
//		if m.Event == feedclient.Reset {
//			return show.load(ctx) // over REST
//		}
//		data, err := m.Data()
//		if err != nil {
//			return err
//		}
//		switch data := data.(type) {
//		case *feedclient.OrderChange:
//			show.status(data.OrderID, data.Status)
//		case *feedclient.RiderLocation:
//			show.rider(data.Location)
//		}
//		return nil
//	})
//
// # What to do for a message
//
// Reset (feed:reset) is the first message of a feed that begins without a cursor, and it
// comes again whenever messages may be missing. The rooms are joined by then. Load
// everything that you show, and send the ConsistencyToken of the message, if it has one, in
// the header Consistency-Token of your queries. What changes while you load comes as
// messages afterwards.
//
// Joined (feed:joined) answers a call of Join. Load what the room is about.
//
// What you load may already contain the changes that the next messages tell about.
// Compare the version of an order with the Version of an OrderChange, and ignore messages
// that are not newer.
//
// Unknown events are passed on with their raw payload, because servers add events. Ignore
// those that you do not know.
//
// # Connections
//
// Run handles one message after the other, and reads the next one when the handler has
// returned. A handler that takes long delays the messages, but none is lost and none is
// kept in memory: the client stops reading, and if the server therefore ends the
// connection, the client goes on from the last message that the handler has finished.
//
// After a connection has ended, Run waits for a random time whose bound doubles with each
// attempt that brings no message, from MinWait to MaxWait. If the server asks for a delay
// (Retry-After of a refusal, or the words "retry after 1500 ms" in the reason of a close),
// Run waits for that as well. The function Token is called before every attempt.
//
// Run returns when its context ends, when the handler returns an error, and when a new
// attempt would be of no use: the server refused the connection (*RefusedError) or ended it
// (*ClosedError) for a reason that the caller must remove. No goroutine outlives Run.
//
// # One connection
//
// Conn is one connection without any of this. It is for tests and for measurements.
//
// The files, in reading order: feedclient.go (what a caller uses), run.go (one connection
// after the other), rooms.go (which rooms the client is to be in), wait.go (when to
// reconnect, and when not to), message.go (messages and their payloads) and conn.go (one
// connection).
package feedclient

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tomato/domain"
)

// Options are the options of a Client. URLs and Token are needed.
type Options struct {
	// URLs are those of the server's instances, such as https://tomato.example. The
	// first one is used. When an attempt gets no answer, or a 5xx, the next one is tried.
	URLs []string

	// Token returns the bearer token for the next attempt to connect. It is called
	// before each attempt, from the goroutine of Run, with a context that ends after
	// DialTimeout. It should return a new token when the last one is about to expire.
	// When it fails, Run waits and calls it again.
	Token func(context.Context) (string, error)

	// Rooms are joined beside those of the token. Join adds further ones.
	Rooms []string

	// Cursor is where the feed goes on: what Client.Cursor returned. "": the feed begins
	// now.
	Cursor string

	// Connected is called after each handshake, and before the first message of the
	// connection is handled. resuming says whether it continues from a cursor. nil:
	// nothing is called. Both functions are called from the goroutine of Run, which does
	// not read meanwhile.
	Connected func(resuming bool)

	// Disconnected is called when a connection has ended, or could not be made, and Run
	// is about to wait for the next attempt.
	Disconnected func(err error, wait time.Duration)

	// HTTPClient makes the handshakes. nil: one of its own with the default transport's
	// settings. Its Timeout must be zero.
	HTTPClient *http.Client

	MinWait time.Duration // bound of the first random wait; 0: 500 ms
	MaxWait time.Duration // bound of all random waits; 0: 30 s

	// DialTimeout bounds one attempt: the call of Token and the handshake. 0: 15 s.
	DialTimeout time.Duration

	// IdleTimeout is how long Run waits for a message before it takes the connection for
	// broken. The server sends feed:ping every 25 s. 0: 75 s.
	IdleTimeout time.Duration

	// MaxMessageBytes bounds one message. A larger one ends Run. 0: 16 MiB.
	MaxMessageBytes int64
}

const opTimeout = 10 * time.Second // of sending one operation

// Client follows one feed. Run does the work. The other methods may be called from any
// goroutine, at any time.
type Client struct {
	o       Options
	started atomic.Bool

	mu     sync.Mutex
	conn   *Conn // nil: not connected
	cursor string
	rooms  []*room
	skip   chan struct{} // holds one while the next wait is to be left out
}

// New returns a client. It does not connect; Run does. The error says which option is
// wrong.
func New(o Options) (*Client, error) {
	if len(o.URLs) == 0 {
		return nil, errors.New("feedclient: Options.URLs is empty; it needs the URL of the server")
	}
	o.URLs = slices.Clone(o.URLs)
	for i, s := range o.URLs {
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" {
			return nil, fmt.Errorf("feedclient: %q is not the URL of a server, such as https://tomato.example", s)
		}
		o.URLs[i] = strings.TrimRight(s, "/")
	}
	if o.Token == nil {
		return nil, errors.New("feedclient: Options.Token is nil; every feed needs a token")
	}
	o.MinWait = cmp.Or(o.MinWait, 500*time.Millisecond)
	o.MaxWait = cmp.Or(o.MaxWait, 30*time.Second)
	o.DialTimeout = cmp.Or(o.DialTimeout, 15*time.Second)
	o.IdleTimeout = cmp.Or(o.IdleTimeout, 75*time.Second)
	c := &Client{o: o, cursor: o.Cursor, skip: make(chan struct{}, 1)}
	for _, name := range o.Rooms {
		if c.room(name) == nil {
			c.rooms = append(c.rooms, &room{name: name, state: roomNew})
		}
	}
	return c, nil
}

// Cursor returns the cursor of the last message that was handled. A caller that keeps it
// can go on from there with another Client (Options.Cursor).
func (c *Client) Cursor() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cursor
}

// Join makes the client be in a room, now and after each reconnect. The answer is a
// message: feed:joined, or feed:error if the server refuses. After a refusal the client
// does not ask for the room again, except after the codes unavailable and
// too_many_requests: then it asks at the next reconnect. The server takes 20 operations
// per second.
func (c *Client) Join(ctx context.Context, name string) {
	c.mu.Lock()
	r := c.room(name)
	if r == nil {
		r = &room{name: name}
		c.rooms = append(c.rooms, r)
	}
	r.state = roomJoining
	conn := c.conn
	c.mu.Unlock()
	if conn != nil {
		_ = send(ctx, conn, op{Op: "join", Room: name}) // Run notices a broken connection, and asks again
	}
}

// Leave makes the client leave a room. The answer is the message feed:left. The next
// connection joins a room of the token again.
func (c *Client) Leave(ctx context.Context, name string) {
	c.mu.Lock()
	if r := c.room(name); r != nil {
		r.state = roomLeaving
	} else {
		c.rooms = append(c.rooms, &room{name: name, state: roomLeaving})
	}
	conn := c.conn
	c.mu.Unlock()
	if conn != nil {
		_ = send(ctx, conn, op{Op: "leave", Room: name})
	}
}

// ErrNotConnected is the error of operations that are not sent again later.
var ErrNotConnected = errors.New("feedclient: not connected")

// Location sends the position of the rider whose token the client has. A refusal comes
// as the message feed:error. Without a connection the error is ErrNotConnected: send the
// next position when there is one.
func (c *Client) Location(ctx context.Context, at domain.Point) error {
	return c.Send(ctx, op{Op: "location", Location: &at})
}

// Send sends any operation that /asyncapi.json describes, as JSON. Use Join and Leave for
// rooms, because the client must know them. Without a connection the error is
// ErrNotConnected.
func (c *Client) Send(ctx context.Context, operation any) error {
	c.mu.Lock()
	conn := c.conn
	c.mu.Unlock()
	if conn == nil {
		return ErrNotConnected
	}
	return send(ctx, conn, operation)
}

// Reconnect ends the present connection, or the present wait, and lets Run connect at
// once: for a device that has changed its network.
func (c *Client) Reconnect() {
	select {
	case c.skip <- struct{}{}:
	default:
	}
	c.mu.Lock()
	conn := c.conn
	c.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
}

func send(ctx context.Context, conn *Conn, operation any) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	return conn.Send(ctx, operation)
}
