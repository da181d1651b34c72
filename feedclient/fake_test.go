package feedclient_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"tomato/feedclient"
)

const patience = 30 * time.Second

// object is JSON of any shape.
type object map[string]any

// connection is one connection at the server's end.
type connection struct {
	*websocket.Conn
	t       *testing.T
	number  int // from 1
	request *http.Request
}

func (c *connection) cursor() string  { return c.request.URL.Query().Get("cursor") }
func (c *connection) rooms() []string { return c.request.URL.Query()["room"] }

// send sends a message. It fails when the client is gone.
func (c *connection) send(message any) error {
	b, err := json.Marshal(message)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return c.Write(ctx, websocket.MessageText, b)
}

// receive returns the next operation of the client.
func (c *connection) receive() (o object) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, b, err := c.Read(ctx)
	if err == nil {
		err = json.Unmarshal(b, &o)
	}
	if err != nil {
		c.t.Errorf("connection %d: no operation came: %v", c.number, err)
	}
	return o
}

// untilGone returns when the client has ended the connection.
func (c *connection) untilGone() {
	<-c.CloseRead(context.Background()).Done()
}

// serve is a server of feeds that plays script for each connection, and cuts it
// afterwards. refuse may answer a handshake, and returns true then; nil refuses none.
func serve(t *testing.T, refuse func(http.ResponseWriter, *http.Request) bool, script func(*connection)) (url string) {
	var number atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/feed" {
			t.Errorf("a request for %s", r.URL)
		}
		if refuse != nil && refuse(w, r) {
			return
		}
		n := int(number.Add(1))
		w.Header().Set("Feed-Cursor", "began")
		w.Header().Set("Consistency-Token", "token-of-the-beginning")
		if script == nil {
			t.Error("a handshake that should have been refused")
			return
		}
		ws, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer ws.CloseNow()
		script(&connection{Conn: ws, t: t, number: n, request: r})
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

// options of a client of the server, which waits no longer than it must.
func options(url string) feedclient.Options {
	return feedclient.Options{URLs: []string{url}, MinWait: time.Millisecond, MaxWait: 20 * time.Millisecond,
		Token: func(context.Context) (string, error) { return "token", nil }}
}

// run runs a client until the handler, or the server, ends it, and returns the error.
func run(t *testing.T, c *feedclient.Client, handle func(feedclient.Message) error) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := c.Run(ctx, func(_ context.Context, m feedclient.Message) error { return handle(m) })
	if ctx.Err() != nil {
		t.Fatal("the client goes on:", err)
	}
	return err
}

func newClient(t *testing.T, o feedclient.Options) *feedclient.Client {
	t.Helper()
	c, err := feedclient.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
