// Package feed serves the realtime feeds: GET /v1/feed as a websocket and GET
// /v1/feed/sse as server-sent events.
//
// The hub (hub.go) is told every message once, in the order of each log, and
// queues it to the connections that have joined one of its rooms. Its files in
// reading order: feed.go (the endpoints and the websocket), sse.go, rooms.go (who
// may join what), locations.go and seen.go (what riders send), hub.go, latest.go (positions
// that are sent once a second), subscriber.go (one connection's queue and what a slow
// one gets), waiters.go (who waits for what), connect.go (joining without a gap),
// positions.go and place.go (how far a client is), cursor.go (its place as opaque
// text), index.go (which rooms have messages of which records), recent.go (the last
// messages), replay.go (what was missed is sent), history.go (and read from the log),
// rights.go (who sees which message of an order), cork.go, metrics.go and asyncapi.go.
package feed

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/danielgtaylor/huma/v2"
	"golang.org/x/time/rate"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/rooms"
	"tomato/eventlog"
	"tomato/httpapi"
)

// Orders is the orders read model.
type Orders interface {
	// Orders returns those of the orders that the read model has, by id. It is one query,
	// however many orders it is asked for.
	Orders(ctx context.Context, orderIDs []string) (map[string]*order.State, error)
}

// LocationReporter takes positions of riders, as PUT /v1/riders/{id}/location
// does. A zero recordedAt means now. After an error that is
// eventlog.ErrUnavailable, a repeat may succeed.
type LocationReporter interface {
	ReportLocation(ctx context.Context, riderID string, at domain.Point, recordedAt time.Time) error
}

// Feed has the endpoints of the realtime feeds: GET /v1/feed as a websocket and
// GET /v1/feed/sse as server-sent events. Both share the hub and the rules about
// rooms (rooms.go). The token names the first rooms. A client names further ones
// in the query (?room=order:<id>, repeatable); on a websocket it may also join and
// leave them later.
//
// Every message but feed:error and feed:resumed carries a cursor, and so does the
// header Feed-Cursor of the answer. The answer's Consistency-Token says what had been published
// when the rooms were joined. feed:ping goes out every PingEvery. A cursor
// contains the rooms that were joined beside those of the token, so a client that
// resumes is in them again. The close codes are in subscriber.go (closing).
type Feed struct {
	Hub            *Hub
	Auth           *httpapi.Authenticator
	Orders         Orders
	Locations      LocationReporter // nil: refused as not_configured
	Offers         OfferWatcher     // nil: the operation seen is refused as not_configured
	AllowedOrigins []string         // beside the server's own: https://app.example, *.example, or * for any
	Log            *slog.Logger     // nil: slog.Default()

	PingEvery    time.Duration // 0: 25 s
	PongWithin   time.Duration // 0: 10 s; a websocket that does not answer a ping is cut off
	WriteTimeout time.Duration // 0: 10 s; of one write to a connection
}

// Limits of one connection.
const (
	maxOpBytes      = 4 << 10
	opsPerSecond    = 20
	opsBurst        = 100
	locationsPerSec = 10
	locationsBurst  = 20
	floodAfter      = 1000 // refused operations
	maxTakeBytes    = 64 << 10

	tokenWait  = 5 * time.Second         // for a Consistency-Token
	cursorWait = 5 * time.Second         // for the hub to reach a cursor of an instance that is ahead, and for its index to reach back to one
	partyWait  = 1500 * time.Millisecond // for the read model to have a fresh order
	partyEvery = 100 * time.Millisecond
	opTimeout  = 5 * time.Second

	perUserRetry = 10 * time.Second // after too_many_connections
)

// Routes adds the endpoints.
func (f *Feed) Routes(api *httpapi.API) {
	query := func(name, doc string) *huma.Param {
		return &huma.Param{Name: name, In: "query", Description: doc, Schema: &huma.Schema{Type: huma.TypeString}}
	}
	explode, most := true, f.Hub.cfg.MaxRooms
	params := func() []*huma.Param {
		return []*huma.Param{
			query("token", "The bearer token, where no header can be set."),
			query("cursor", "The cursor of the last message that was received: the first message is feed:resumed, then what was missed, or feed:reset."),
			{Name: "room", In: "query", Description: "Rooms to join beside those of the token.", Explode: &explode, Schema: &huma.Schema{Type: huma.TypeArray, MaxItems: &most,
				Items: &huma.Schema{Type: huma.TypeString, Pattern: rooms.Pattern}}},
			{Name: "Consistency-Token", In: "header", Description: "The feed waits until it has passed it. Without a cursor, the feed begins with what is after it. The token of a command names the logs of its aggregate only; in all others the feed begins at the present.", Schema: &huma.Schema{Type: huma.TypeString}},
		}
	}
	errs := []int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusUnprocessableEntity, http.StatusTooManyRequests, http.StatusServiceUnavailable}
	api.Handle(huma.Operation{Method: http.MethodGet, Path: "/v1/feed", OperationID: "feed", Tags: []string{"feed"},
		Summary: "Realtime feed as websocket", Description: "Messages are described in /asyncapi.json. The token may also be the subprotocol bearer.<token>.",
		Parameters: params(), Errors: append([]int{http.StatusUpgradeRequired}, errs...),
		Responses: map[string]*huma.Response{"101": {Description: "A websocket; the token's rooms are joined."}}}, nil, f.websocket)
	api.Handle(huma.Operation{Method: http.MethodGet, Path: "/v1/feed/sse", OperationID: "feed-sse", Tags: []string{"feed"},
		Summary: "Realtime feed as Server-Sent Events", Description: "Each event's data is a message as on the websocket, its id the cursor.",
		Parameters: append(params(), &huma.Param{Name: "Last-Event-ID", In: "header", Description: "As cursor; it goes before it.", Schema: &huma.Schema{Type: huma.TypeString}}),
		Errors:     errs,
		Responses: map[string]*huma.Response{"200": {Description: "The stream; the token's rooms are joined.",
			Content: map[string]*huma.MediaType{"text/event-stream": {Schema: &huma.Schema{Type: huma.TypeString}}}}}}, nil, f.sse)
}

// session is a connection that has joined its rooms. It is made before the answer
// is sent.
type session struct {
	*subscriber
	cursor  string // at the joining
	token   string // what has been published then
	expires time.Time
}

// session does what both endpoints have in common, up to joining the rooms. The error is a
// *httpapi.Problem.
func (f *Feed) session(r *http.Request, token httpapi.Token, cursor string) (*session, error) {
	actor := token.Actor
	if err := f.Hub.refuses(actor); err != nil {
		return nil, cannotOpen(err)
	}
	q := r.URL.Query()
	asked := slices.Compact(q["room"])
	if most := f.Hub.cfg.MaxRooms; len(asked) > most {
		return nil, httpapi.Invalid(httpapi.FieldError{Location: "query.room", Message: "at most " + strconv.Itoa(most) + " rooms"})
	}
	for _, room := range asked {
		if !rooms.Valid(room) {
			return nil, httpapi.Invalid(httpapi.FieldError{Location: "query.room", Message: "not the name of a room"})
		}
	}
	sent, err := eventlog.ParseClientToken(cmp.Or(r.Header.Get("Consistency-Token"), q.Get("consistencyToken")))
	if err != nil {
		return nil, httpapi.Invalid(httpapi.FieldError{Location: "header.Consistency-Token", Message: err.Error()})
	}
	after, err := sent.For(f.Hub.cfg.LogID)
	if err != nil {
		return nil, httpapi.UnknownToken()
	}
	if after != nil {
		ctx, cancel := context.WithTimeout(r.Context(), tokenWait)
		defer cancel()
		if err := f.Hub.passed(ctx, after); errors.Is(err, eventlog.ErrUnknownToken) {
			return nil, httpapi.UnknownToken()
		} else if err != nil {
			return nil, httpapi.Unavailable("consistency_token_not_ready", "The feed has not reached the Consistency-Token in time.", time.Second)
		}
	}
	c := connecting{actor: actor, issued: token.IssuedAt, rooms: asked, after: after}
	var refused *httpapi.Problem
	if c.orders, refused = f.mayJoin(r.Context(), actor, asked); refused != nil {
		return nil, refused
	}
	if after != nil && cursor == "" {
		if err := f.findAfter(r.Context(), &c); err != nil {
			return nil, err
		}
	}
	if cursor != "" {
		c.cursor = f.Hub.cursors.parse(cursor, actor)
		if err := f.prepareReturn(r.Context(), &c); err != nil {
			return nil, err
		}
	}
	s, at, published, err := f.Hub.connect(c)
	if err != nil {
		return nil, cannotOpen(err)
	}
	// A revocation is known before Hub.Revoke is called. So it ends this connection, or it
	// is known by now.
	if err := f.Auth.Revoked(token); err != nil {
		f.Hub.disconnect(s)
		return nil, err
	}
	return &session{subscriber: s, cursor: at, token: published, expires: token.Expires}, nil
}

// cannotOpen returns the problem of a connection that the hub does not take.
func cannotOpen(err error) *httpapi.Problem {
	switch {
	case errors.Is(err, errPerUser):
		p := httpapi.NewProblem(http.StatusTooManyRequests, "too_many_connections", "The bearer of this token has as many feeds open at this instance as they may. Close one.")
		p.RetryAfter = perUserRetry
		return p
	case errors.Is(err, errRooms):
		return httpapi.Invalid(httpapi.FieldError{Location: "query.room", Message: "more rooms than a connection may join"})
	}
	return httpapi.Unavailable("unavailable", "No feed can be opened here now: "+err.Error()+".", time.Second)
}

// setHeaders sets the headers of the answer.
func (s *session) setHeaders(h http.Header) {
	h.Set("Feed-Cursor", s.cursor)
	if s.token != "" {
		h.Set("Consistency-Token", s.token)
	}
}

// websocket serves GET /v1/feed.
func (f *Feed) websocket(w http.ResponseWriter, r *http.Request) {
	text, subprotocol := httpapi.StreamToken(r)
	token, err := f.Auth.Authenticate(text)
	if err != nil {
		httpapi.WriteProblem(w, httpapi.FromError("feed", err))
		return
	}
	s, err := f.session(r, token, cmp.Or(r.URL.Query().Get("cursor"), r.Header.Get("Last-Event-ID")))
	if err != nil {
		httpapi.WriteProblem(w, httpapi.FromError("feed", err))
		return
	}
	s.setHeaders(w.Header())
	corked := &corkWriter{ResponseWriter: w, timeout: cmp.Or(f.WriteTimeout, 10*time.Second)}
	opts := &websocket.AcceptOptions{OriginPatterns: f.AllowedOrigins}
	if subprotocol != "" {
		opts.Subprotocols = []string{subprotocol}
	}
	conn, err := websocket.Accept(corked, r, opts)
	if err != nil {
		f.Hub.disconnect(s.subscriber)
		if corked.refused != 0 {
			w.Header().Del("Feed-Cursor")
			w.Header().Del("Consistency-Token")
			httpapi.WriteProblem(w, handshakeProblem(corked.refused))
			return
		}
		f.log().Warn("a feed could not be upgraded", "err", err)
		return
	}
	// The request ends here, and with it everything that the HTTP server keeps for one.
	go f.serveWebsocket(conn, corked.conn, s)
}

// serveWebsocket reads and writes until the connection ends.
func (f *Feed) serveWebsocket(conn *websocket.Conn, cork *corkConn, s *session) {
	defer f.Hub.disconnect(s.subscriber)
	defer conn.CloseNow()
	conn.SetReadLimit(maxOpBytes)
	s.cursor, s.token = "", "" // they were sent
	ctx, cancel := context.WithCancel(context.Background())
	writerDone := make(chan struct{})
	go func() {
		defer close(writerDone)
		defer cancel() // ends the reader too
		f.writeWebsocket(ctx, conn, cork, s)
	}()
	f.readOps(ctx, conn, s)
	cancel()
	<-writerDone
}

// handshakeProblem is the problem of a request that the websocket library
// refused to upgrade with this status.
func handshakeProblem(status int) *httpapi.Problem {
	switch status {
	case http.StatusForbidden:
		return httpapi.NewProblem(http.StatusForbidden, "origin_not_allowed", "The page's origin may not open feeds here.")
	case http.StatusBadRequest:
		return httpapi.NewProblem(http.StatusBadRequest, "bad_handshake", "A websocket handshake of version 13 with one Sec-WebSocket-Key, 16 bytes in base64, is needed.")
	}
	return httpapi.NewProblem(http.StatusUpgradeRequired, "upgrade_required", "This is a websocket; /v1/feed/sse is the same as Server-Sent Events.")
}

// pump moves messages from the queue to the connection until the connection ends.
// It returns why the server ends it, or nil where the client or ctx ended it.
func (f *Feed) pump(ctx context.Context, s *session, write func([]item) error, ping func()) *closing {
	if s.replay != nil {
		err := f.Hub.replay(ctx, s.subscriber, func(items []item) error {
			if ctx.Err() == nil && time.Now().After(s.expires) {
				s.close(&closeExpired)
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			return write(items)
		})
		s.replay = nil
		if err != nil {
			return nil
		}
	}
	pings := time.NewTicker(cmp.Or(f.PingEvery, 25*time.Second))
	defer pings.Stop()
	expiry := time.NewTimer(time.Until(s.expires))
	defer expiry.Stop()
	var items []item
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-pings.C:
			f.Hub.ping(s.subscriber)
			ping()
		case <-expiry.C:
			s.close(&closeExpired)
		case <-s.wake:
			var end *closing
			items, end = s.take(items, maxTakeBytes)
			if len(items) > 0 {
				if write(items) != nil {
					return nil
				}
				if clear(items); cap(items) > 32 {
					items = nil
				}
			} else if end != nil {
				return end
			}
		}
	}
}

func (f *Feed) writeWebsocket(ctx context.Context, conn *websocket.Conn, cork *corkConn, s *session) {
	end := f.pump(ctx, s, func(items []item) error {
		cork.cork()
		buf := borrow()
		defer giveBack(buf)
		for i := range items {
			*buf = items[i].appendJSON((*buf)[:0], s.text(&items[i]))
			if err := conn.Write(ctx, websocket.MessageText, *buf); err != nil {
				return err
			}
		}
		return cork.flush()
	}, func() {
		go func() {
			ctx, cancel := context.WithTimeout(ctx, cmp.Or(f.PongWithin, 10*time.Second))
			defer cancel()
			if conn.Ping(ctx) != nil {
				conn.CloseNow()
			}
		}()
	})
	if end == nil {
		conn.CloseNow()
		return
	}
	f.Hub.metrics.closes.WithLabelValues(end.label).Inc()
	_ = conn.Close(websocket.StatusCode(end.code), end.reason)
}

// op is what a client may send.
type op struct {
	Op       string          `json:"op"`
	Room     string          `json:"room"`
	OrderID  string          `json:"orderId"`
	Location json.RawMessage `json:"location"`
}

// readOps reads the client's operations and executes them until the connection ends. On a
// connection that is being sent what it missed, joins and leaves wait until that is done.
// Reading goes on meanwhile, so that the end of the connection is seen.
func (f *Feed) readOps(ctx context.Context, conn *websocket.Conn, s *session) {
	ctx, cancel := context.WithCancel(ctx)
	var waiting chan op
	var executed sync.WaitGroup
	defer func() {
		cancel()
		if waiting != nil {
			close(waiting)
		}
		executed.Wait()
	}()
	locations := &locationSender{feed: f, session: s, limit: rate.NewLimiter(locationsPerSec, locationsBurst), running: &executed}
	seen := &seenSender{feed: f, session: s, running: &executed}
	ops, flood := rate.NewLimiter(opsPerSecond, opsBurst), 0
	for {
		kind, b, err := conn.Read(ctx)
		if err != nil {
			return
		}
		if kind != websocket.MessageText {
			s.close(&closeText)
			continue
		}
		if !ops.Allow() {
			if flood++; flood > floodAfter {
				s.close(&closeFlood)
			}
			s.fail("", httpapi.NewProblem(http.StatusTooManyRequests, "too_many_requests", "Too many operations."))
			continue
		}
		var o op
		if err := json.Unmarshal(b, &o); err != nil {
			s.fail("", httpapi.NewProblem(http.StatusBadRequest, "malformed_json", "The operation is not a JSON object of op, room, location and orderId."))
			continue
		}
		if o.Op == "location" {
			if p := locations.take(ctx, o); p != nil {
				s.fail("", p)
			}
			continue
		}
		if o.Op == "seen" {
			if p := seen.take(ctx, o); p != nil {
				s.fail("", p)
			}
			continue
		}
		if s.live == nil {
			if p := f.do(ctx, s, o); p != nil {
				s.fail(o.Room, p)
			}
			continue
		}
		if waiting == nil {
			waiting = make(chan op, opsBurst)
			executed.Go(func() { f.doWhenLive(ctx, s, waiting) })
		}
		select {
		case waiting <- o:
		default:
			s.fail(o.Room, httpapi.NewProblem(http.StatusTooManyRequests, "too_many_requests", "Too many operations wait until what was missed has been sent."))
		}
	}
}

// doWhenLive executes operations in their order once the connection is in its rooms.
func (f *Feed) doWhenLive(ctx context.Context, s *session, waiting <-chan op) {
	if !s.waitUntilLive(ctx) {
		return
	}
	for o := range waiting {
		if ctx.Err() != nil {
			return
		}
		if p := f.do(ctx, s, o); p != nil {
			s.fail(o.Room, p)
		}
	}
}

func invalidOp(why string) *httpapi.Problem {
	return httpapi.NewProblem(http.StatusUnprocessableEntity, "validation_failed", why)
}

func (f *Feed) do(ctx context.Context, s *session, o op) *httpapi.Problem {
	switch o.Op {
	case "join", "leave":
		if !rooms.Valid(o.Room) {
			return invalidOp("room is not the name of a room.")
		}
		if o.Op == "leave" {
			f.Hub.leaveRoom(s.subscriber, o.Room)
			return nil
		}
		versions, p := f.mayJoin(ctx, s.actor, []string{o.Room})
		if p != nil {
			return p
		}
		switch err := f.Hub.join(s.subscriber, o.Room, versions[o.Room]); {
		case errors.Is(err, errNotTheirs):
			return errNotTheirs
		case err != nil:
			return httpapi.NewProblem(http.StatusTooManyRequests, "too_many_rooms", "The connection has joined as many rooms as it may; leave one.")
		}
		return nil
	}
	return httpapi.NewProblem(http.StatusBadRequest, "unknown_op", "op is join, leave, location or seen.")
}

func (f *Feed) log() *slog.Logger {
	if f.Log != nil {
		return f.Log
	}
	return slog.Default()
}
