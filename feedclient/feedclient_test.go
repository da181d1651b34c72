package feedclient_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"tomato/domain"
	"tomato/feedclient"
)

var errEnough = errors.New("enough")

func say(m feedclient.Message) string {
	return strings.TrimSpace(m.Event + " " + m.Room + m.Reason + string(m.Payload))
}

// Connections are cut at random, before, between and after messages. The caller is
// handed each message once and in order.
func TestEachMessageOnceAndInOrderThroughCuts(t *testing.T) {
	t.Parallel()
	const messages = 2000
	var cuts atomic.Int64
	url := serve(t, nil, func(c *connection) {
		rng := rand.New(rand.NewPCG(1, uint64(c.number)))
		next := 1
		if cursor := c.cursor(); cursor != "" && cursor != "began" {
			n, err := strconv.Atoi(cursor)
			if err != nil {
				t.Error(err)
			}
			next = n + 1
		}
		if c.cursor() != "" && c.send(object{"event": "feed:resumed", "count": messages - next + 1}) != nil {
			return
		}
		for until := next + rng.IntN(60); next <= messages; next++ {
			if next == until {
				cuts.Add(1)
				return
			}
			if c.send(object{"event": "test:tick", "room": "ops", "payload": next, "timestamp": time.Now(), "cursor": strconv.Itoa(next)}) != nil {
				return
			}
		}
		c.untilGone()
	})
	c := newClient(t, options(url))
	var have []string
	err := run(t, c, func(m feedclient.Message) error {
		have = append(have, say(m))
		if len(have) == 1 && (m.Cursor != "began" || m.ConsistencyToken != "token-of-the-beginning") {
			t.Errorf("the feed begins with %+v", m)
		}
		if string(m.Payload) == strconv.Itoa(messages) {
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) {
		t.Error("Run ended with", err)
	}
	if have[0] != "feed:reset begin" {
		t.Error("the first message is", have[0])
	}
	have = slices.DeleteFunc(have, func(s string) bool { return strings.HasPrefix(s, "feed:") })
	for i, s := range have {
		if s != fmt.Sprint("test:tick ops", i+1) {
			t.Fatalf("message %d is %s", i+1, s)
		}
	}
	if len(have) != messages || cuts.Load() < 20 {
		t.Errorf("%d messages, %d cuts", len(have), cuts.Load())
	}
	if c.Cursor() != strconv.Itoa(messages-1) {
		t.Errorf("the cursor is %s after the last message was not handled", c.Cursor())
	}
}

// A handler that does not return makes the client stop reading, until the server cannot
// write any more and ends the connection. Then the client goes on after the message that
// was handled last.
func TestASlowCallerLosesNothing(t *testing.T) {
	t.Parallel()
	const messages = 4000
	stuck, gone := make(chan struct{}), make(chan struct{})
	filling := strings.Repeat("x", 8<<10)
	url := serve(t, nil, func(c *connection) {
		next, limit := 0, time.Second
		if c.number > 1 {
			next, _ = strconv.Atoi(c.cursor())
			limit = patience
			_ = c.send(object{"event": "feed:resumed"})
		}
		for next++; next <= messages; next++ {
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			err := c.Write(ctx, websocket.MessageText, fmt.Appendf(nil, `{"event":"test:tick","payload":%d,"cursor":"%d","filling":"%s"}`, next, next, filling))
			cancel()
			if err != nil {
				if c.number > 1 {
					t.Error("connection 2:", err)
				} else {
					close(stuck)
				}
				return
			}
		}
		c.untilGone()
	})
	o := options(url)
	o.Disconnected = func(error, time.Duration) {
		select {
		case <-gone:
		default:
			close(gone)
		}
	}
	c := newClient(t, o)
	want := 1
	err := run(t, c, func(m feedclient.Message) error {
		if strings.HasPrefix(m.Event, "feed:") {
			return nil
		}
		if string(m.Payload) != strconv.Itoa(want) {
			return fmt.Errorf("%s came, not %d", m.Payload, want)
		}
		if want == 3 {
			select {
			case <-stuck: // the client does not read
			case <-time.After(patience):
				return errors.New("the server could write everything")
			}
		}
		if want++; want > messages {
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) {
		t.Error(err)
	}
	select {
	case <-gone:
	default:
		t.Error("there was one connection only")
	}
}

func TestRoomsAreJoinedAgain(t *testing.T) {
	t.Parallel()
	joined := func(room, cursor string) object {
		return object{"event": "feed:joined", "room": room, "cursor": cursor}
	}
	want := func(c *connection, cursor string, rooms ...string) {
		if c.cursor() != cursor || !slices.Equal(c.rooms(), rooms) {
			t.Errorf("connection %d: cursor %q, rooms %v; want %q, %v", c.number, c.cursor(), c.rooms(), cursor, rooms)
		}
	}
	wantOps := func(c *connection, ops ...string) {
		for _, w := range ops {
			if o := c.receive(); fmt.Sprint(o["op"], " ", o["room"]) != w {
				t.Errorf("connection %d: operation %v, want %s", c.number, o, w)
			}
		}
	}
	refusals := 0
	url := serve(t, func(w http.ResponseWriter, r *http.Request) bool {
		// The last connection names a room that is refused.
		if r.URL.Query().Get("cursor") != "5" || len(r.URL.Query()["room"]) == 0 {
			return false
		}
		refusals++
		w.WriteHeader(http.StatusForbidden)
		return true
	}, func(c *connection) {
		switch c.number {
		case 1:
			want(c, "", "order:a")
			wantOps(c, "join order:b", "join order:c")
			_ = c.send(joined("order:b", "1")) // c gets no answer
		case 2:
			want(c, "1", "order:a", "order:b")
			wantOps(c, "join order:c")
			_ = c.send(object{"event": "feed:resumed"})
			_ = c.send(joined("order:c", "2"))
			wantOps(c, "leave order:b") // without an answer
		case 3:
			want(c, "2", "order:a", "order:c")
			wantOps(c, "leave order:b")
			_ = c.send(object{"event": "feed:reset", "reason": "unknown_cursor", "cursor": "3"})
			_ = c.send(object{"event": "feed:left", "room": "order:b", "cursor": "4"})
			_ = c.send(object{"event": "feed:error", "room": "order:a", "code": "not_allowed"})
			_ = c.send(object{"event": "test:go", "cursor": "5"})
		case 4: // after the refusal the rooms are joined one by one; the cursor has order:c
			want(c, "5")
			_ = c.send(object{"event": "feed:reset", "reason": "expired", "cursor": "6"})
			wantOps(c, "join order:c")
			_ = c.send(object{"event": "feed:error", "room": "order:c", "code": "forbidden"})
			_ = c.send(object{"event": "test:go"})
		case 5:
			want(c, "6")
			_ = c.send(object{"event": "test:end"})
			c.untilGone()
		}
	})
	o := options(url)
	o.Rooms = []string{"order:a"}
	c := newClient(t, o)
	var have []string
	err := run(t, c, func(m feedclient.Message) error {
		have = append(have, say(m))
		switch {
		case m.Reason == feedclient.ReasonBegin:
			c.Join(t.Context(), "order:b")
			c.Join(t.Context(), "order:c")
		case m.Event == feedclient.Joined && m.Room == "order:c":
			c.Leave(t.Context(), "order:b")
		case m.Event == "test:end":
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) || refusals != 1 {
		t.Errorf("%v; %d refusals", err, refusals)
	}
	wanted := []string{"feed:reset begin", "feed:joined order:b", "feed:resumed", "feed:joined order:c", "feed:reset unknown_cursor",
		"feed:left order:b", "feed:error order:a", "test:go", "feed:reset expired", "feed:error order:c", "test:go", "test:end"}
	if !slices.Equal(have, wanted) {
		t.Errorf("received\n%s\nwant\n%s", strings.Join(have, "\n"), strings.Join(wanted, "\n"))
	}
}

// A handshake names 64 rooms at most. The others are joined by operations.
func TestManyRooms(t *testing.T) {
	t.Parallel()
	url := serve(t, nil, func(c *connection) {
		if n := len(c.rooms()); n != 64 {
			t.Errorf("%d rooms in the query", n)
		}
		for i := 64; i < 70; i++ {
			if o := c.receive(); o["room"] != fmt.Sprint("order:", i) {
				t.Errorf("%v instead of order:%d", o, i)
			}
		}
		_ = c.send(object{"event": "test:end"})
		c.untilGone()
	})
	o := options(url)
	for i := range 70 {
		o.Rooms = append(o.Rooms, fmt.Sprint("order:", i))
	}
	if err := run(t, newClient(t, o), untilEvent("test:end")); !errors.Is(err, errEnough) {
		t.Error(err)
	}
}

func untilEvent(event string) func(feedclient.Message) error {
	return func(m feedclient.Message) error {
		if m.Event == event {
			return errEnough
		}
		return nil
	}
}

// What the server says when it ends or refuses a connection decides whether the client
// comes back.
func TestWhatEndsRun(t *testing.T) {
	t.Parallel()
	for code, ends := range map[int]bool{1000: false, 1001: false, 1002: true, 1003: true, 1008: true, 1009: true, 1011: false, 1012: false, 1013: false,
		4000: false, 4001: false, 4499: false, 4500: false, 4501: true, 4999: true} {
		t.Run(strconv.Itoa(code), func(t *testing.T) {
			t.Parallel()
			url := serve(t, nil, func(c *connection) {
				if c.number == 1 {
					_ = c.Close(websocket.StatusCode(code), "because")
					return
				}
				_ = c.send(object{"event": "test:end"})
				c.untilGone()
			})
			err := run(t, newClient(t, options(url)), untilEvent("test:end"))
			var closed *feedclient.ClosedError
			if is := errors.As(err, &closed); is != ends || is && (closed.Code != code || closed.Reason != "because") || !is && !errors.Is(err, errEnough) {
				t.Errorf("after %d Run ended with: %v", code, err)
			}
		})
	}
	for status, ends := range map[int]bool{400: true, 401: true, 403: true, 404: true, 408: false, 422: true, 426: true, 429: false, 500: false, 502: false, 503: false} {
		t.Run(strconv.Itoa(status), func(t *testing.T) {
			t.Parallel()
			var refused atomic.Int64
			url := serve(t, func(w http.ResponseWriter, r *http.Request) bool {
				if !ends && refused.Load() > 0 {
					return false
				}
				refused.Add(1)
				w.WriteHeader(status)
				_, _ = fmt.Fprint(w, `{"code":"some_code","detail":"Some detail."}`)
				return true
			}, func(c *connection) {
				_ = c.send(object{"event": "test:end"})
				c.untilGone()
			})
			err := run(t, newClient(t, options(url)), untilEvent("test:end"))
			var e *feedclient.RefusedError
			if is := errors.As(err, &e); is != ends || is && (e.Status != status || e.Code != "some_code" || e.Detail != "Some detail.") || !is && !errors.Is(err, errEnough) {
				t.Errorf("after %d Run ended with: %v", status, err)
			}
		})
	}
	t.Run("not a message", func(t *testing.T) {
		t.Parallel()
		url := serve(t, nil, func(c *connection) {
			_ = c.Write(t.Context(), websocket.MessageText, []byte("<html>"))
			c.untilGone()
		})
		if err := run(t, newClient(t, options(url)), untilEvent("test:end")); err == nil || !strings.Contains(err.Error(), "no message of a feed") {
			t.Error("Run ended with", err)
		}
	})
	t.Run("too large", func(t *testing.T) {
		t.Parallel()
		url := serve(t, nil, func(c *connection) {
			_ = c.send(object{"event": strings.Repeat("x", 2000)})
			c.untilGone()
		})
		o := options(url)
		o.MaxMessageBytes = 1000
		if err := run(t, newClient(t, o), untilEvent("test:end")); !errors.Is(err, websocket.ErrMessageTooBig) {
			t.Error("Run ended with", err)
		}
	})
}

// The server's advice is waited for on top of the random wait.
func TestAdviceOfTheServer(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		retryAfter string // of a 503
		reason     string // of a close with 1001
		want       time.Duration
	}{
		"none":        {reason: "shutting down, reconnect with the cursor", want: 0},
		"reason":      {reason: "shutting down, reconnect with the cursor; retry after 7300 ms", want: 7300 * time.Millisecond},
		"Retry-After": {retryAfter: "3", want: 3 * time.Second},
		"much":        {retryAfter: "999999999", want: time.Hour},
		"of a date":   {retryAfter: "Wed, 21 Oct 2026 07:28:00 GMT", want: 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := serve(t, func(w http.ResponseWriter, _ *http.Request) bool {
				if c.retryAfter == "" {
					return false
				}
				w.Header().Set("Retry-After", c.retryAfter)
				w.WriteHeader(http.StatusServiceUnavailable)
				return true
			}, func(conn *connection) { _ = conn.Close(websocket.StatusGoingAway, c.reason) })
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			o := options(url)
			var wait time.Duration
			o.Disconnected = func(_ error, w time.Duration) {
				wait = w
				cancel() // the wait ends, too
			}
			if err := newClient(t, o).Run(ctx, func(context.Context, feedclient.Message) error { return nil }); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			if wait < c.want || wait > c.want+20*time.Millisecond {
				t.Errorf("the client waits for %s, want %s", wait, c.want)
			}
		})
	}
}

// The bound of the random waits doubles up to MaxWait, and a message sets it back.
func TestWaits(t *testing.T) {
	t.Parallel()
	const attempts = 40
	var refusing atomic.Bool
	refusing.Store(true)
	url := serve(t, func(w http.ResponseWriter, _ *http.Request) bool {
		if refusing.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		return refusing.Load()
	}, func(c *connection) { _ = c.send(object{"event": "test:tick"}) })
	o := options(url)
	o.MinWait, o.MaxWait = time.Hour, 16*time.Hour
	var client *feedclient.Client
	var waits []time.Duration
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o.Disconnected = func(_ error, wait time.Duration) {
		waits = append(waits, wait)
		if len(waits) == attempts {
			refusing.Store(false)
		}
		if len(waits) == attempts+2 {
			cancel()
		}
		client.Reconnect() // leaves the wait out
	}
	client = newClient(t, o)
	if err := client.Run(ctx, func(context.Context, feedclient.Message) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	var most time.Duration
	low := 0
	for i, wait := range waits[:attempts] {
		if bound := min(time.Hour<<min(i, 10), 16*time.Hour); wait > bound {
			t.Errorf("wait %d is %s, more than %s", i, wait, bound)
		}
		most = max(most, wait)
		if i >= 4 && wait < 4*time.Hour {
			low++
		}
	}
	if most < 8*time.Hour || low == 0 {
		t.Errorf("the waits are not spread between 0 and 16 h: %v", waits)
	}
	for _, wait := range waits[attempts:] {
		if wait > time.Hour {
			t.Errorf("after a message the wait is %s", wait)
		}
	}
}

func TestTokens(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	o := options(serve(t, func(w http.ResponseWriter, r *http.Request) bool {
		switch r.Header.Get("Authorization") {
		case "Bearer 2", "Bearer 4":
			return false
		}
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}, func(c *connection) {
		if c.number == 1 {
			_ = c.Close(4500, "the token has expired")
		}
		_ = c.send(object{"event": "test:end"})
		c.untilGone()
	}))
	o.Token = func(context.Context) (string, error) {
		n := asked.Add(1)
		if n == 3 {
			return "", errors.New("no token now")
		}
		return strconv.FormatInt(n, 10), nil
	}
	if err := run(t, newClient(t, o), untilEvent("test:end")); !errors.Is(err, errEnough) || asked.Load() != 4 {
		t.Errorf("%v after %d tokens", err, asked.Load())
	}
}

func TestASilentConnectionIsReplaced(t *testing.T) {
	t.Parallel()
	url := serve(t, nil, func(c *connection) {
		if c.number == 2 {
			_ = c.send(object{"event": "test:end"})
		}
		c.untilGone()
	})
	o := options(url)
	o.IdleTimeout = 50 * time.Millisecond
	if err := run(t, newClient(t, o), untilEvent("test:end")); !errors.Is(err, errEnough) {
		t.Error(err)
	}
}

// An instance that does not answer is left for the next one, and a client without a
// cursor tells its caller that messages may be missing.
func TestSeveralInstances(t *testing.T) {
	t.Parallel()
	down := serve(t, func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusBadGateway); return true }, nil)
	url := serve(t, nil, func(c *connection) {
		if c.number > 1 {
			_ = c.send(object{"event": "test:end"})
			c.untilGone()
		}
	})
	o := options(url)
	o.URLs = []string{"http://127.0.0.1:1", down, url}
	o.HTTPClient = &http.Client{Transport: withoutCursor{http.DefaultTransport.(*http.Transport)}}
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	var reasons []string
	err := run(t, newClient(t, o), func(m feedclient.Message) error {
		if m.Event == feedclient.Reset {
			reasons = append(reasons, m.Reason)
		}
		return untilEvent("test:end")(m)
	})
	if !errors.Is(err, errEnough) || !slices.Equal(reasons, []string{feedclient.ReasonBegin, feedclient.ReasonNoCursor}) {
		t.Errorf("%v; resets %v", err, reasons)
	}
}

// withoutCursor is a proxy that drops headers.
type withoutCursor struct{ *http.Transport }

func (w withoutCursor) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := w.Transport.RoundTrip(r)
	if err == nil {
		resp.Header.Del("Feed-Cursor")
	}
	return resp, err
}

func TestOperations(t *testing.T) {
	t.Parallel()
	url := serve(t, nil, func(c *connection) {
		if o := c.receive(); fmt.Sprint(o) != "map[location:map[coordinates:[77.5 12.9] type:Point] op:location]" {
			t.Errorf("a location was sent as %v", o)
		}
		if o := c.receive(); fmt.Sprint(o) != "map[op:seen orderId:o1]" {
			t.Errorf("seen was sent as %v", o)
		}
		_ = c.send(object{"event": "test:end"})
		c.untilGone()
	})
	c := newClient(t, options(url))
	if err := c.Location(t.Context(), domain.Point{}); !errors.Is(err, feedclient.ErrNotConnected) {
		t.Error("before Run:", err)
	}
	err := run(t, c, func(m feedclient.Message) error {
		if m.Event == feedclient.Reset {
			return errors.Join(c.Location(t.Context(), domain.Point{Lng: 77.5, Lat: 12.9}), c.Send(t.Context(), object{"op": "seen", "orderId": "o1"}))
		}
		return untilEvent("test:end")(m)
	})
	if !errors.Is(err, errEnough) {
		t.Error(err)
	}
	if err := c.Location(t.Context(), domain.Point{}); !errors.Is(err, feedclient.ErrNotConnected) {
		t.Error("after Run:", err)
	}
	if err := c.Run(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "Run was called before") {
		t.Error("a second Run:", err)
	}
}

// Run ends with its context, wherever it is.
func TestRunEndsWithItsContext(t *testing.T) {
	t.Parallel()
	for name, set := range map[string]func(*feedclient.Options, context.CancelFunc){
		"in the token": func(o *feedclient.Options, cancel context.CancelFunc) {
			o.Token = func(ctx context.Context) (string, error) {
				cancel()
				<-ctx.Done()
				return "", ctx.Err()
			}
		},
		"in a wait": func(o *feedclient.Options, cancel context.CancelFunc) {
			o.URLs, o.MinWait, o.MaxWait = []string{"http://127.0.0.1:1"}, time.Hour, time.Hour
			o.Disconnected = func(error, time.Duration) { cancel() }
		},
		"while it reads": func(o *feedclient.Options, cancel context.CancelFunc) {
			o.Connected = func(bool) { time.AfterFunc(10*time.Millisecond, cancel) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			o := options(serve(t, nil, func(c *connection) { c.untilGone() }))
			set(&o, cancel)
			ended := make(chan error, 1)
			c := newClient(t, o)
			go func() { ended <- c.Run(ctx, func(context.Context, feedclient.Message) error { return nil }) }()
			select {
			case err := <-ended:
				if !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			case <-time.After(patience):
				t.Fatal("Run goes on")
			}
		})
	}
}

func TestNewRefusesWhatCannotWork(t *testing.T) {
	t.Parallel()
	token := options("").Token
	for want, o := range map[string]feedclient.Options{
		"URLs is empty":                        {Token: token},
		"Token is nil":                         {URLs: []string{"http://127.0.0.1:8080"}},
		`"ws://x" is not the URL of a server`:  {URLs: []string{"ws://x"}, Token: token},
		`"x:8080" is not the URL of a server`:  {URLs: []string{"x:8080"}, Token: token},
		`"http://x?a=b" is not the URL`:        {URLs: []string{"http://x?a=b"}, Token: token},
		`"http://%zz" is not the URL of a ser`: {URLs: []string{"http://%zz"}, Token: token},
	} {
		if _, err := feedclient.New(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v instead of %s", err, want)
		}
	}
}
