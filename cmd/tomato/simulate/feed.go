package simulate

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"tomato/domain"
	"tomato/feedclient"
)

const (
	feedMinWait = 100 * time.Millisecond
	feedMaxWait = 4 * time.Second
	// gapSlack widens a gap that the feed announced, on both sides, because messages
	// that were under way when the connection broke are missing, too.
	gapSlack = 5 * time.Second
)

// feedCounts are the totals of all feeds of a run.
type feedCounts struct {
	messages, connects, reconnects, resumed, resets, locations atomic.Int64
}

// feed is one party's feed. Its client reconnects with the last cursor. The feed checks
// that every message has what all messages must have.
type feed struct {
	sim        *simulation
	party      *party
	room       string // the room that its messages come from
	breakAfter int    // number of messages of one connection after which the feed breaks it; 0 means never

	onMessage func(message)
	onReset   func(ctx context.Context) // called when messages may be missing; may be nil

	client *feedclient.Client
	up     func() // called when the rooms are joined, at every connection

	// Only the goroutine of run uses these.
	connections int
	resuming    bool      // the first message of a connection that resumes is expected
	received    int       // messages of this connection
	heard       time.Time // when the last message came
	before      time.Time // when the last message of the connection before came
}

// newFeed makes the feed of a party. join says that the client must ask for the room;
// otherwise the server joins it by itself.
func (s *simulation) newFeed(p *party, token, room string, join bool) (*feed, error) {
	f := &feed{sim: s, party: p, room: room}
	urls := make([]string, len(s.api.urls))
	for i := range urls { // parties begin at different instances
		urls[i] = s.api.urls[(i+int(p.number))%len(urls)]
	}
	o := feedclient.Options{
		URLs: urls, Token: func(context.Context) (string, error) { return token, nil },
		HTTPClient: &http.Client{Transport: handshakes{s.dialSlots, s.api.transport}},
		MinWait:    feedMinWait, MaxWait: feedMaxWait, Connected: f.connected,
	}
	if join {
		o.Rooms = []string{room}
	}
	var err error
	f.client, err = feedclient.New(o)
	return f, err
}

// handshakes bounds the handshakes that are under way at the same time.
type handshakes struct {
	slots     chan struct{}
	transport http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (h handshakes) RoundTrip(r *http.Request) (*http.Response, error) {
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	return h.transport.RoundTrip(r)
}

// run follows the feed until ctx ends or the server closes it for good. It calls up when
// the rooms are joined, after each reconnect, too.
func (f *feed) run(ctx context.Context, up func()) {
	f.up = up
	if err := f.client.Run(ctx, f.receive); ctx.Err() == nil {
		f.fault("", "the server closed the feed for good: %v", err)
	}
}

// fault enters a broken promise about this feed. order is the order's id, "" for
// none.
func (f *feed) fault(order, format string, args ...any) {
	f.sim.ledger.fault(faultFeedProtocol, order, "%s %s: %s", f.party.role, f.party.id, fmt.Sprintf(format, args...))
}

// connected notes a new connection.
func (f *feed) connected(resuming bool) {
	f.sim.feeds.connects.Add(1)
	if f.connections++; f.connections > 1 {
		f.sim.feeds.reconnects.Add(1)
	}
	f.resuming, f.received = resuming, 0
	f.before, f.heard = f.heard, time.Now()
	f.up()
}

// receive checks a message and passes it on.
func (f *feed) receive(ctx context.Context, m feedclient.Message) error {
	if m.Raw != nil { // else the client made it
		f.sim.feeds.messages.Add(1)
		f.received++
	}
	switch {
	case m.Event == feedclient.Reset && m.Reason == feedclient.ReasonBegin:
	case m.Event == feedclient.Reset:
		if f.resuming {
			f.sim.feeds.resets.Add(1)
		}
		f.missed(ctx)
	case m.Event == feedclient.Resumed && f.resuming:
		f.sim.feeds.resumed.Add(1)
	case f.resuming:
		f.fault("", "%s came first after a reconnect", m.Event)
	case m.Event == feedclient.Error:
		f.fault("", "feed:error %s", m.Code)
	}
	f.resuming = false
	f.heard = time.Now()
	if m.OfFeed() {
		return nil
	}
	f.check(&message{Message: m})
	if f.breakAfter > 0 && f.received >= f.breakAfter && m.Cursor != "" {
		f.breakAfter *= 2
		f.client.Reconnect()
	}
	return nil
}

// missed notes that messages may be missing since the end of the connection before, and
// lets the party read by REST what it may have missed.
func (f *feed) missed(ctx context.Context) {
	f.party.addGap(feedGap{f.before.Add(-gapSlack), time.Now().Add(gapSlack)})
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
	if m.Event == feedclient.RiderMoved {
		f.sim.feeds.locations.Add(1)
		return
	}
	if m.Room != f.room {
		f.fault(m.data.OrderID, "%s came from room %s", m.Event, m.Room)
	}
	m.receiver = f.party
	f.onMessage(*m)
}

// locate sends the rider's position. It sends nothing while there is no connection.
// This does no harm, because a later position follows.
func (f *feed) locate(ctx context.Context, at domain.Point) { _ = f.client.Location(ctx, at) }

// joinOrder joins the room of one order, which has the rider's positions.
func (f *feed) joinOrder(ctx context.Context, orderID string) {
	f.client.Join(ctx, "order:"+orderID)
}
