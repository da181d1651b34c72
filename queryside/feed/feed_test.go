package feed

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/rooms"
	"tomato/eventlog"
	"tomato/httpapi"
)

const secret = "a secret for tests, 32 bytes long"

// readModel is Orders and LocationReporter.
type readModel struct {
	mu        sync.Mutex
	orders    map[string]order.State
	err       error
	locations []domain.Point
	reported  chan struct{} // gets one for each position that was taken
	blocked   chan struct{} // not nil: a report waits until it is closed
	asked     int           // how often
}

func (m *readModel) Orders(_ context.Context, orderIDs []string) (map[string]*order.State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked++
	all := map[string]*order.State{}
	for _, id := range orderIDs {
		if s, ok := m.orders[id]; ok {
			all[id] = &s
		}
	}
	return all, m.err
}

func (m *readModel) ReportLocation(ctx context.Context, riderID string, at domain.Point, _ time.Time) error {
	m.mu.Lock()
	blocked := m.blocked
	m.mu.Unlock()
	if blocked != nil {
		m.reported <- struct{}{}
		<-blocked
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if riderID == "unknown" {
		return domain.Refuse(domain.NotFound, "no such rider")
	}
	if m.err != nil {
		return m.err
	}
	m.locations = append(m.locations, at)
	m.reported <- struct{}{}
	return nil
}

type server struct {
	*httptest.Server
	*Feed
	model *readModel
}

func serve(t *testing.T, change func(*Feed, *HubConfig)) *server {
	t.Helper()
	auth, err := httpapi.NewAuthenticator(httpapi.AuthConfig{Secrets: []string{secret}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(auth.Close)
	m := &readModel{orders: map[string]order.State{}, reported: make(chan struct{}, 100)}
	f := &Feed{Auth: auth, Orders: m, Locations: m, Log: slog.New(slog.DiscardHandler)}
	cfg := HubConfig{}
	if change != nil {
		change(f, &cfg)
	}
	f.Hub = openHub(t, cfg, 1)
	api := httpapi.New(httpapi.Options{Auth: auth, Log: f.Log})
	f.Routes(api)
	s := &server{httptest.NewServer(api), f, m}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := f.Hub.Drain(ctx); err != nil {
			t.Error("drain:", err)
		}
		s.Close()
		http.DefaultClient.CloseIdleConnections()
	})
	return s
}

func token(t *testing.T, a domain.Actor, ttl time.Duration) string {
	t.Helper()
	s, err := httpapi.MintToken(secret, a, ttl)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// client is a websocket that is being read.
type client struct {
	t *testing.T
	*websocket.Conn
	header http.Header
}

func (s *server) dial(t *testing.T, a domain.Actor, query string) *client {
	t.Helper()
	return s.dialWith(t, query, &websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {"Bearer " + token(t, a, time.Hour)}}})
}

func (s *server) dialWith(t *testing.T, query string, o *websocket.DialOptions) *client {
	t.Helper()
	c, r, err := websocket.Dial(t.Context(), s.URL+"/v1/feed"+query, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.CloseNow() })
	return &client{t, c, r.Header}
}

func (c *client) next() (got, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), 20*time.Second)
	defer cancel()
	_, b, err := c.Read(ctx)
	var g got
	if err == nil {
		err = json.Unmarshal(b, &g)
	}
	return g, err
}

func (c *client) want(what string) got {
	c.t.Helper()
	g, err := c.next()
	if err != nil {
		c.t.Fatal(err)
	}
	if is := strings.TrimSpace(strings.TrimSpace(g.Event+" "+g.Room+" "+g.Code) + " " + string(g.Payload)); is != what {
		c.t.Fatalf("received %q, want %q", is, what)
	}
	return g
}

func (c *client) closed(code int) {
	c.t.Helper()
	for {
		if _, err := c.next(); err != nil {
			if websocket.CloseStatus(err) != websocket.StatusCode(code) {
				c.t.Errorf("closed with %v, want %d", err, code)
			}
			return
		}
	}
}

func (c *client) send(text string) {
	c.t.Helper()
	if err := c.Write(c.t.Context(), websocket.MessageText, []byte(text)); err != nil {
		c.t.Fatal(err)
	}
}

func TestTheTokensRoomsAreJoinedBeforeTheAnswer(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	u := s.dial(t, customer("u1"), "")
	r := s.dial(t, domain.Actor{Sub: "someone", Role: domain.Restaurant, RestaurantID: "r1"}, "")
	k := s.dial(t, domain.Actor{Sub: "k1", Role: domain.Rider}, "")
	s.Hub.Publish(orders0, 0, time.Time{}, msg("user:u1", "restaurant:r1", "user:k1", "user:u2"))
	u.want("e user:u1 1")
	r.want("e restaurant:r1 1")
	k.want("e user:k1 1")
}

func TestTheTokenComesThreeWays(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	tok := token(t, customer("u1"), time.Hour)
	header := s.dialWith(t, "", &websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {"Bearer " + tok}}})
	query := s.dialWith(t, "?token="+tok, nil)
	sub := s.dialWith(t, "", &websocket.DialOptions{Subprotocols: []string{"other", "bearer." + tok}})
	if sub.Subprotocol() != "bearer."+tok {
		t.Error("the subprotocol is not echoed:", sub.Subprotocol())
	}
	s.Hub.Publish(orders0, 0, time.Time{}, msg("user:u1"))
	for _, c := range []*client{header, query, sub} {
		c.want("e user:u1 1")
	}
}

func TestFaultsBeforeTheUpgradeAreProblems(t *testing.T) {
	t.Parallel()
	s := serve(t, func(f *Feed, _ *HubConfig) { f.AllowedOrigins = []string{"https://good.example"} })
	upgrade := map[string]string{"Connection": "keep-alive, Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
	tok := token(t, customer("u1"), time.Hour)
	for name, c := range map[string]struct {
		path    string
		header  map[string]string
		upgrade bool
		status  int
		code    string
	}{
		"no token":             {"/v1/feed", nil, true, 401, "unauthorized"},
		"no token, no upgrade": {"/v1/feed", nil, false, 401, "unauthorized"},
		"bad token":            {"/v1/feed?token=x", nil, true, 401, "unauthorized"},
		"expired token":        {"/v1/feed?token=" + token(t, customer("u1"), -time.Minute), nil, true, 401, "unauthorized"},
		"no upgrade":           {"/v1/feed?token=" + tok, nil, false, 426, "upgrade_required"},
		"wrong key":            {"/v1/feed?token=" + tok, map[string]string{"Sec-WebSocket-Key": "x"}, true, 400, "bad_handshake"},
		"wrong version":        {"/v1/feed?token=" + tok, map[string]string{"Sec-WebSocket-Version": "8"}, true, 400, "bad_handshake"},
		"foreign origin":       {"/v1/feed?token=" + tok, map[string]string{"Origin": "https://evil.example"}, true, 403, "origin_not_allowed"},
		"no room":              {"/v1/feed?room=nowhere&token=" + tok, nil, true, 422, "validation_failed"},
		"foreign room":         {"/v1/feed?room=user:u2&token=" + tok, nil, true, 403, "forbidden"},
		"foreign order":        {"/v1/feed?room=order:o1&token=" + tok, nil, true, 404, "order_not_found"},
		"bad consistency":      {"/v1/feed?token=" + tok, map[string]string{"Consistency-Token": "*"}, true, 422, "validation_failed"},
		"sse, no token":        {"/v1/feed/sse", nil, false, 401, "unauthorized"},
		"sse, foreign room":    {"/v1/feed/sse?room=ops&token=" + tok, nil, false, 403, "forbidden"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+c.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if c.upgrade {
				for k, v := range upgrade {
					req.Header.Set(k, v)
				}
			}
			for k, v := range c.header {
				req.Header.Set(k, v)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			var p httpapi.Problem
			if err := json.NewDecoder(resp.Body).Decode(&p); err != nil || resp.StatusCode != c.status || p.Code != c.code || resp.Header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("%d %q %v, want %d %q", resp.StatusCode, p.Code, err, c.status, c.code)
			}
			if c.status == 401 && resp.Header.Get("WWW-Authenticate") == "" {
				t.Error("401 without WWW-Authenticate")
			}
		})
	}
}

func TestPagesOfAllowedOriginsOpenFeeds(t *testing.T) {
	t.Parallel()
	s := serve(t, func(f *Feed, _ *HubConfig) { f.AllowedOrigins = []string{"https://good.example"} })
	tok := "?token=" + token(t, customer("u1"), time.Hour)
	for _, origin := range []string{"https://good.example", s.URL} {
		s.dialWith(t, tok, &websocket.DialOptions{HTTPHeader: http.Header{"Origin": {origin}}})
	}
}

func TestAnInstanceThatIsNotReadyTakesNoFeeds(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	s.Hub.Begin(baseAt(1, none(1)))
	resp, err := http.Get(s.URL + "/v1/feed/sse?token=" + token(t, customer("u1"), time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		t.Error(resp.Status, resp.Header)
	}
}

// Who may join which room.
func TestJoining(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	old, placed := "order:o1", uuid.Must(uuid.NewV7()).String()
	s.model.orders["o1"] = order.State{Version: 9, CustomerID: "u1", RestaurantID: "r7", RiderID: "k2", Offers: []order.Offer{{RiderID: "k3"}}, Drops: []order.Drop{{RiderID: "k4"}}}
	restaurant := domain.Actor{Sub: "m1", Role: domain.Restaurant, RestaurantID: "r1"}
	rider := domain.Actor{Sub: "k1", Role: domain.Rider}
	for _, c := range []struct {
		actor domain.Actor
		room  string
		code  string
	}{
		{customer("u1"), "user:u1", ""},
		{customer("u1"), "user:u2", "forbidden"},
		{customer("u1"), "restaurant:r1", "forbidden"},
		{customer("u1"), "ops", "forbidden"},
		{customer("u1"), old, ""},
		{customer("u2"), old, "order_not_found"},
		{customer("u1"), "order:nosuch", "order_not_found"},
		{restaurant, "restaurant:r1", ""},
		{restaurant, "restaurant:r2", "forbidden"},
		{restaurant, old, "order_not_found"},
		{rider, "user:k1", ""},
		{rider, old, "order_not_found"},
		{domain.Actor{Sub: "k2", Role: domain.Rider}, old, ""},
		{domain.Actor{Sub: "k3", Role: domain.Rider}, old, "forbidden"}, // it is offered to them
		{domain.Actor{Sub: "k4", Role: domain.Rider}, old, "forbidden"}, // they dropped it
		{domain.Actor{Sub: "k2", Role: domain.Customer}, old, "order_not_found"},
		{ops, "user:u1", ""},
		{ops, "restaurant:r9", ""},
		{ops, "order:any", ""},
		{ops, "ops", ""},
		{ops, "no room", "validation_failed"},
	} {
		t.Run(string(c.actor.Role)+" "+c.room, func(t *testing.T) {
			t.Parallel()
			conn := s.dial(t, c.actor, "")
			b, _ := json.Marshal(op{Op: "join", Room: c.room})
			conn.send(string(b))
			if c.code == "" {
				conn.want("feed:joined " + c.room)
			} else {
				conn.want("feed:error " + c.room + " " + c.code)
			}
		})
	}
	t.Run("fresh", func(t *testing.T) {
		t.Parallel()
		// The hub has seen the order, the read model not yet.
		s.Hub.Publish(orders0, 0, time.Time{}, []rooms.Message{{Event: "e", Rooms: []string{"order:" + placed}, Payload: []byte("1"), Customer: "u1", Restaurant: "r1", Version: 1}})
		conn := s.dial(t, customer("u1"), "")
		conn.send(`{"op":"join","room":"order:` + placed + `"}`)
		conn.want("feed:joined order:" + placed)
		foreign := s.dial(t, customer("u2"), "")
		foreign.send(`{"op":"join","room":"order:` + placed + `"}`)
		foreign.want("feed:error order:" + placed + " order_not_found")
	})
	t.Run("soon", func(t *testing.T) {
		t.Parallel()
		id := uuid.Must(uuid.NewV7()).String()
		conn := s.dial(t, customer("u1"), "")
		conn.send(`{"op":"join","room":"order:` + id + `"}`)
		s.model.mu.Lock()
		s.model.orders[id] = order.State{Version: 1, CustomerID: "u1"} // the read model follows
		s.model.mu.Unlock()
		conn.want("feed:joined order:" + id)
	})
}

func TestOperationsThatAreRefused(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	c := s.dial(t, customer("u1"), "")
	for op, code := range map[string]string{
		`{`:             "malformed_json",
		`[]`:            "malformed_json",
		`{"op":"fly"}`:  "unknown_op",
		`{"op":"join"}`: "validation_failed",
		`{"op":"location","location":{"type":"Point","coordinates":[1,2]}}`: "forbidden",
	} {
		c.send(op)
		c.want("feed:error  " + code)
	}
	s.model.mu.Lock()
	s.model.err = errors.New("database away")
	s.model.mu.Unlock()
	c.send(`{"op":"join","room":"order:o1"}`)
	c.want("feed:error order:o1 unavailable")
}

func TestRidersReportTheirLocation(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	k := s.dial(t, domain.Actor{Sub: "k1", Role: domain.Rider}, "")
	k.send(`{"op":"location","location":{"type":"Point","coordinates":[77.5,12.9]}}`)
	k.send(`{"op":"location","location":{"type":"Point","coordinates":[200,12.9]}}`)
	k.want("feed:error  validation_failed")
	k.send(`{"op":"location"}`)
	k.want("feed:error  validation_failed")
	<-s.model.reported
	s.model.mu.Lock()
	if d := cmp.Diff([]domain.Point{{Lng: 77.5, Lat: 12.9}}, s.model.locations); d != "" {
		t.Error(d)
	}
	s.model.err = eventlog.Unavailable(errors.New("no owner"))
	s.model.mu.Unlock()
	k.send(`{"op":"location","location":{"type":"Point","coordinates":[77.5,12.9]}}`)
	k.want("feed:error  unavailable")
	u := s.dial(t, domain.Actor{Sub: "unknown", Role: domain.Rider}, "")
	u.send(`{"op":"location","location":{"type":"Point","coordinates":[77.5,12.9]}}`)
	u.want("feed:error  rider_not_found")
}

func TestOperationsAreBounded(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	c := s.dial(t, customer("u1"), "")
	for range opsBurst + 5 {
		c.send(`{"op":"leave","room":"ops"}`)
	}
	for {
		g, err := c.next()
		if err != nil {
			t.Fatal(err)
		}
		if g.Code == "too_many_requests" {
			break
		}
	}
	// A message that is too long ends the connection.
	_ = c.Write(t.Context(), websocket.MessageText, make([]byte, maxOpBytes+1))
	c.closed(int(websocket.StatusMessageTooBig))
}

func TestAClientResumesWhereItWas(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	s.model.orders["o1"] = order.State{Version: 9, CustomerID: "u1", RestaurantID: "r7", RiderID: "k2", Offers: []order.Offer{{RiderID: "k3"}}, Drops: []order.Drop{{RiderID: "k4"}}}
	c := s.dial(t, customer("u1"), "")
	if c.header.Get("Feed-Cursor") == "" {
		t.Error("no Feed-Cursor")
	}
	c.send(`{"op":"join","room":"order:o1"}`)
	c.want("feed:joined order:o1")
	s.Hub.Publish(orders0, 0, time.Time{}, msg("user:u1"))
	cursor := c.want("e user:u1 1").Cursor
	_ = c.CloseNow()
	s.Hub.Publish(orders0, 1, time.Time{}, msg("order:o1"))
	s.Hub.Publish(orders0, 2, time.Time{}, msg("order:o1", "user:u1"))

	c = s.dial(t, customer("u1"), "?cursor="+cursor)
	c.want("feed:resumed")
	c.want("e order:o1 1") // its rooms are in the cursor
	c.want("e order:o1 1")
	s.Hub.Publish(orders0, 3, time.Time{}, msg("order:o1"))
	c.want("e order:o1 1")

	c = s.dial(t, customer("u1"), "?cursor=garbage")
	c.want("feed:reset")
	s.Hub.Publish(orders0, 4, time.Time{}, msg("user:u1"))
	c.want("e user:u1 1")
}

func TestACursorGoesOutWithEachPing(t *testing.T) {
	t.Parallel()
	s := serve(t, func(f *Feed, _ *HubConfig) { f.PingEvery = 10 * time.Millisecond })
	c := s.dial(t, customer("u1"), "")
	s.Hub.Publish(orders0, 0, time.Time{}, msg("user:somebody"))
	at := none(1)
	at[orders0] = 0
	s.Hub.Base(baseAt(7, at))
	for {
		g := c.want("feed:ping")
		if p := newCursors(testKey).parse(g.Cursor, customer("u1")); p.fault == "" && p.base == 7 {
			return // the quiet room's cursor has moved on
		}
	}
}

func TestATokensEndIsTheConnections(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	// exp is in whole seconds.
	c := s.dialWith(t, "?token="+token(t, customer("u1"), 2*time.Second), nil)
	c.closed(closeExpired.code)
}

// revocations are those of one subject.
type revocations struct {
	mu   sync.Mutex
	upTo map[string]time.Time
}

func (r *revocations) RevokedUpTo(sub string) (time.Time, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	upTo, ok := r.upTo[sub]
	return upTo, ok
}

// A revocation ends the connections of the subject's earlier tokens and no others, and their
// clients do not get in again with the same token.
func TestARevocationEndsConnections(t *testing.T) {
	t.Parallel()
	known := &revocations{upTo: map[string]time.Time{}}
	s := serve(t, func(f *Feed, _ *HubConfig) {
		auth, err := httpapi.NewAuthenticator(httpapi.AuthConfig{Secrets: []string{secret}, Revocations: known})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(auth.Close)
		f.Auth = auth
	})
	mine, other := s.dial(t, customer("u1"), ""), s.dial(t, customer("u2"), "")
	stream, err := http.Get(s.URL + "/v1/feed/sse?token=" + token(t, customer("u1"), time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	now := time.Now()
	s.Hub.Revoke("u1", now.Add(-time.Hour)) // of an hour ago: the tokens are newer
	s.Hub.Publish(orders0, 0, time.Time{}, msg("user:u1", "user:u2"))
	mine.want("e user:u1 1")
	known.mu.Lock()
	known.upTo["u1"] = now
	known.mu.Unlock()
	s.Hub.Revoke("u1", now)
	mine.closed(closeRevoked.code)
	if _, err := io.Copy(io.Discard, stream.Body); err != nil { // it ends
		t.Error(err)
	}
	again, err := http.Get(s.URL + "/v1/feed/sse?token=" + token(t, customer("u1"), time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Body.Close()
	if again.StatusCode != http.StatusUnauthorized {
		t.Errorf("the token opens another one: %s", again.Status)
	}
	other.want("e user:u2 1")
	s.Hub.Publish(orders0, 1, time.Time{}, msg("user:u2"))
	other.want("e user:u2 1")
}

// late are revocations that become known while a connection is being made, after its token
// was verified.
type late struct{ asked atomic.Int32 }

func (l *late) RevokedUpTo(string) (time.Time, bool) { return time.Now(), l.asked.Add(1) > 1 }

func TestARevocationDuringTheConnectingIsNotMissed(t *testing.T) {
	t.Parallel()
	s := serve(t, func(f *Feed, _ *HubConfig) {
		auth, err := httpapi.NewAuthenticator(httpapi.AuthConfig{Secrets: []string{secret}, Revocations: &late{}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(auth.Close)
		f.Auth = auth
	})
	resp, err := http.Get(s.URL + "/v1/feed/sse?token=" + token(t, customer("u1"), time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("%s", resp.Status)
	}
}

func TestDrainingSendsClientsAwayWithAllTheyWereDue(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	c := s.dial(t, customer("u1"), "")
	s.Hub.Publish(orders0, 0, time.Time{}, msg("user:u1"))
	done := make(chan error, 1)
	go func() { done <- s.Hub.Drain(t.Context()) }()
	c.want("e user:u1 1")
	c.closed(closeDrain.code)
	if err := <-done; err != nil {
		t.Error(err)
	}
	s.Hub = openHub(t, HubConfig{}, 1) // for the cleanup
}

func TestASlowClientIsToldToReconnect(t *testing.T) {
	t.Parallel()
	s := serve(t, func(f *Feed, c *HubConfig) {
		c.QueueBytes = 256 << 10
		f.PingEvery, f.WriteTimeout = time.Hour, time.Minute
	})
	slow := s.dial(t, customer("u1"), "")
	quick := s.dial(t, customer("u1"), "")
	big := []rooms.Message{{Event: "e", Rooms: []string{"user:u1"}, Payload: []byte(`"` + strings.Repeat("x", 64<<10) + `"`)}}
	slow.SetReadLimit(-1)
	quick.SetReadLimit(-1)
	for o := range int64(500) { // more than the sockets' buffers take
		s.Hub.Publish(orders0, o, time.Time{}, big)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if _, _, err := quick.Read(ctx); err != nil {
			t.Fatal("the quick one was held up:", err)
		}
		cancel()
	}
	slow.closed(closeSlow.code)
}

func TestServerSentEvents(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	open := func(lastID string) (*bufio.Scanner, io.Closer) {
		t.Helper()
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/v1/feed/sse?token="+token(t, customer("u1"), time.Hour), nil)
		req.Header.Set("Last-Event-ID", lastID)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
			t.Fatal(resp.Status, resp.Header)
		}
		return bufio.NewScanner(resp.Body), resp.Body
	}
	event := func(lines *bufio.Scanner) (id, data string) {
		t.Helper()
		for lines.Scan() {
			if lines.Text() == "" {
				return id, data
			}
			if v, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
				id = v
			}
			if v, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				data = v
			}
		}
		t.Fatal("the stream ended:", lines.Err())
		return
	}
	stream, body := open("")
	s.Hub.Publish(orders0, 0, time.Time{}, msg("user:u1"))
	id, data := event(stream)
	var g got
	if err := json.Unmarshal([]byte(data), &g); err != nil || g.Room != "user:u1" || g.Cursor != id {
		t.Errorf("%s %s %v", id, data, err)
	}
	body.Close()
	s.Hub.Publish(orders0, 1, time.Time{}, msg("user:u1"))
	stream, body = open(id)
	defer body.Close()
	if id, data := event(stream); id != "" || !strings.HasPrefix(data, `{"event":"feed:resumed","count":1,"consistencyToken":"`) {
		t.Error(id, data)
	}
	if id, data := event(stream); id == "" || !strings.Contains(data, `"room":"user:u1"`) {
		t.Error(id, data)
	}
}

// A feed with a Consistency-Token opens when the hub has passed it.
func TestAFeedWaitsForItsConsistencyToken(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	after := eventlog.Token{}
	after.Add(eventlog.Orders, 0, 0)
	opened := make(chan struct{})
	go func() {
		defer close(opened)
		c, _, err := websocket.Dial(t.Context(), s.URL+"/v1/feed", &websocket.DialOptions{HTTPHeader: http.Header{
			"Authorization": {"Bearer " + token(t, customer("u1"), time.Hour)}, "Consistency-Token": {eventlog.LogID{}.Format(after.String())}}})
		if err != nil {
			t.Error(err)
			return
		}
		_ = c.CloseNow()
	}()
	s.Hub.Publish(orders0, 0, time.Time{}, msg("user:u1"))
	<-opened
}
