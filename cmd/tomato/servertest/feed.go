package servertest

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"tomato/domain"
	"tomato/feedclient"
)

// FeedClient is a party at one connection to its feed, which it does not open again. It
// keeps what it is sent. Safe for concurrent use, except for Next.
type FeedClient struct {
	t    testing.TB
	Who  domain.Actor
	conn *feedclient.Conn

	mu       sync.Mutex
	messages []Message
	changed  chan struct{}
	err      error
	returned int // of messages, by Next
}

// Message is one message of a feed.
type Message struct{ feedclient.Message }

// Value finds a value in the payload by a path such as order.status; nil: absent.
func (m Message) Value(path string) any {
	var v any
	if json.Unmarshal(m.Payload, &v) != nil {
		return nil
	}
	return Dig(v, path)
}

// WithToken sends a token in the header Authorization.
func WithToken(token string) *feedclient.DialOptions {
	return &feedclient.DialOptions{Token: token}
}

// OpenFeed opens a websocket of the server at url. query begins with "?", or is "".
func OpenFeed(t testing.TB, url, query string, options *feedclient.DialOptions) *FeedClient {
	t.Helper()
	f, err := dial(t, url, query, options)
	if err != nil {
		t.Fatal("a feed cannot be opened:", err)
	}
	return f
}

// OpenFeedWhenReady is OpenFeed at a server that may still be starting its feed.
func OpenFeedWhenReady(t testing.TB, url string, who domain.Actor, query string) (f *FeedClient) {
	t.Helper()
	Await(t, "the feed opens", func() error {
		var err error
		f, err = dial(t, url, query, WithToken(Token(t, who)))
		var refused *feedclient.RefusedError
		if err != nil && (!errors.As(err, &refused) || refused.Status != http.StatusServiceUnavailable) {
			t.Fatal("a feed cannot be opened:", err)
		}
		return err
	})
	f.Who = who
	return f
}

func dial(t testing.TB, url, query string, options *feedclient.DialOptions) (*FeedClient, error) {
	conn, err := feedclient.Dial(t.Context(), url+"/v1/feed"+query, options)
	if err != nil {
		return nil, err
	}
	f := &FeedClient{t: t, conn: conn, changed: make(chan struct{})}
	done := make(chan struct{})
	go f.read(done)
	t.Cleanup(func() {
		f.Close()
		<-done
	})
	return f, nil
}

// Subprotocol returns what the server chose of those that were offered.
func (f *FeedClient) Subprotocol() string { return f.conn.Subprotocol() }

// Close ends the connection without a word.
func (f *FeedClient) Close() { f.conn.Close() }

// Feed opens a party's websocket and joins the rooms.
func (a *Installation) Feed(who domain.Actor, rooms ...string) *FeedClient {
	a.T.Helper()
	return a.FeedFrom(who, "", rooms...)
}

// FeedFrom is Feed that continues at a cursor, which may be "".
func (a *Installation) FeedFrom(who domain.Actor, cursor string, rooms ...string) *FeedClient {
	a.T.Helper()
	f := OpenFeed(a.T, a.URL, "?cursor="+cursor, WithToken(Token(a.T, who)))
	f.Who = who
	for _, room := range rooms {
		f.Send(map[string]any{"op": "join", "room": room})
		f.Expect("feed:joined", func(m Message) bool { return m.Room == room })
	}
	return f
}

// Send sends an operation as JSON; a string is sent as it is.
func (f *FeedClient) Send(op any) {
	f.t.Helper()
	var err error
	if text, is := op.(string); is {
		err = f.conn.SendText(f.t.Context(), []byte(text))
	} else {
		err = f.conn.Send(f.t.Context(), op)
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

// Next returns the first message that Next has not returned before, when it comes.
func (f *FeedClient) Next() Message {
	f.t.Helper()
	n := f.returned
	f.returned++
	return f.wait(func(messages []Message) int {
		if n < len(messages) {
			return n
		}
		return -1
	}, "any more")
}

func (f *FeedClient) read(done chan struct{}) {
	defer close(done)
	for {
		m, err := f.conn.Read(context.Background())
		f.mu.Lock()
		if f.err = err; err == nil {
			f.messages = append(f.messages, Message{m})
		}
		close(f.changed)
		f.changed = make(chan struct{})
		f.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// Expect waits for a message of the event that matches; nil matches all.
func (f *FeedClient) Expect(event string, match func(Message) bool) Message {
	f.t.Helper()
	return f.WaitFor(func(m Message) bool { return m.Event == event && (match == nil || match(m)) }, event)
}

// WaitFor returns the first message that matches, when it comes.
func (f *FeedClient) WaitFor(match func(Message) bool, what string) Message {
	f.t.Helper()
	return f.wait(func(messages []Message) int { return slices.IndexFunc(messages, match) }, what)
}

// wait returns the message that find finds, when it is there.
func (f *FeedClient) wait(find func([]Message) int, what string) Message {
	f.t.Helper()
	end := time.After(Patience)
	for {
		f.mu.Lock()
		messages, changed, err := f.messages, f.changed, f.err
		f.mu.Unlock()
		if i := find(messages); i >= 0 {
			return messages[i]
		}
		if err != nil {
			f.t.Fatalf("%s: the feed ended before %s: %v; it had %v", f.Who.Sub, what, err, Said(messages))
		}
		select {
		case <-changed:
		case <-end:
			f.t.Fatalf("%s was never told %s; it had %v", f.Who.Sub, what, Said(messages))
		}
	}
}

// About matches messages about an order.
func About(orderID string) func(Message) bool {
	return func(m Message) bool { return m.Value("orderId") == orderID }
}

// Told returns what the party has been told of an order: events, with the status
// where they have one.
func (f *FeedClient) Told(orderID string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var ms []Message
	for _, m := range f.messages {
		if m.Value("orderId") == orderID {
			ms = append(ms, m)
		}
	}
	return Said(ms)
}

// Said returns messages in words: events, with the status or the reason where they
// have one.
func Said(messages []Message) []string {
	all := make([]string, len(messages))
	for i, m := range messages {
		all[i] = m.Event
		for _, p := range []string{"status", "reason"} {
			if s, ok := m.Value(p).(string); ok && m.Event != "order:new" {
				all[i] += " " + s
			}
		}
	}
	return all
}

// Ended waits until the connection is gone, and returns why: a *feedclient.ClosedError if
// the server has ended it.
func (f *FeedClient) Ended() error {
	f.t.Helper()
	end := time.After(Patience)
	for {
		f.mu.Lock()
		err, changed := f.err, f.changed
		f.mu.Unlock()
		if err != nil {
			return err
		}
		select {
		case <-changed:
		case <-end:
			f.t.Fatal("the feed goes on")
		}
	}
}

// All returns all messages so far.
func (f *FeedClient) All() []Message {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.messages)
}
