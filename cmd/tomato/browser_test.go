package main_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/coder/websocket"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"tomato/cmd/tomato/servertest"
	"tomato/domain"
	"tomato/eventlog/eventlogtest"
)

const examples = "../../docs/examples"

// TestTheOrderPageFollowsAnOrder opens docs/examples/order.html in Chromium, from another
// origin than the server's. The order goes on, also while the page has no connection, and
// the page shows every step without a reload.
func TestTheOrderPageFollowsAnOrder(t *testing.T) {
	t.Parallel()
	browser := servertest.OpenBrowser(t)
	pages := httptest.NewServer(http.FileServer(http.Dir(examples)))
	t.Cleanup(pages.Close)
	a := servertest.New(t, eventlogtest.Embedded(t), "--allowed-origins", pages.URL).Start()
	network := toxiproxy.NewProxy(toxiproxy.NewServer(toxiproxy.NewMetricsContainer(prometheus.NewRegistry()), zerolog.New(io.Discard)),
		"server", "127.0.0.1:0", strings.TrimPrefix(a.URL, "http://"))
	if err := network.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(network.Stop)

	a.AddRestaurant("r1", servertest.Lng, servertest.Lat)
	a.AddRider("k1", servertest.Lng, servertest.Lat+0.001)
	id := a.Place("c1", "r1")
	step := func(who domain.Actor, name string) {
		t.Helper()
		a.Must(who, "POST /v1/orders/"+id+"/"+name, nil)
	}
	browser.Open(pages.URL + "/order.html#" + url.Values{"url": {"http://" + network.Listen},
		"token": {servertest.Token(t, servertest.Customer("c1"))}, "order": {id}}.Encode())
	now := `document.querySelector("li.now")?.dataset.status ?? ""`
	browser.Until(now, "placed")
	browser.Eval(`window.loadedOnce = "yes"`)
	browser.Until(`document.getElementById("payment").textContent`, "pending (500.00 INR)")
	a.Pay("c1", id)
	browser.Until(`document.getElementById("payment").textContent`, "paid (500.00 INR)")
	step(servertest.Staff("r1"), "accept-order")
	browser.Until(now, "accepted")

	network.Stop()
	browser.Until(`document.getElementById("connection").textContent.split(":")[0]`, "waiting")
	step(servertest.Staff("r1"), "preparing")
	step(servertest.Staff("r1"), "ready")
	a.AwaitQuery(servertest.Rider("k1"), "/v1/riders/k1/offers", "items.0.orderId", id)
	step(servertest.Rider("k1"), "accept")
	network.Listen = strings.TrimPrefix(network.Listen, "http://") // the same port
	if err := network.Start(); err != nil {
		t.Fatal(err)
	}
	browser.Until(now, "rider_assigned")
	browser.Until(`document.getElementById("rider").textContent`, "Rider k1 brings it.")
	// The times come with the messages: nothing that happened meanwhile is missing.
	browser.Until(`[...document.querySelectorAll("li.done")].filter((li) => li.querySelector("time").textContent).map((li) => li.dataset.status).join()`,
		"placed,accepted,preparing,ready_for_rider,rider_assigned")

	a.Must(servertest.Rider("k1"), "PUT /v1/riders/k1/location", map[string]any{"location": servertest.Point(77.61, 12.91)})
	browser.Until(`document.getElementById("rider").textContent`, "Rider k1 is at 12.9100, 77.6100.")
	browser.Until(`String(document.querySelectorAll("#map circle").length)`, "3")
	step(servertest.Rider("k1"), "pick-up")
	browser.Until(now, "picked_up")
	if dir := os.Getenv("TOMATO_SCREENSHOTS"); dir != "" {
		browser.Screenshot(filepath.Join(dir, "order.png"))
	}
	step(servertest.Rider("k1"), "deliver")
	browser.Until(now, "delivered")
	browser.Until(`document.getElementById("connection").textContent`, "connected")
	if browser.Eval(`window.loadedOnce ?? ""`) != "yes" {
		t.Error("the page was loaded again")
	}
}

// script is a server of feeds that plays one function for each connection, and cuts it
// afterwards.
type script struct {
	t     *testing.T
	mu    sync.Mutex
	next  int
	parts []func(*scripted)
}

// scripted is one connection of a script.
type scripted struct {
	t      *testing.T
	conn   *websocket.Conn
	cursor string
	token  string
}

// ServeHTTP implements http.Handler.
func (s *script) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	n := s.next
	s.next++
	s.mu.Unlock()
	if n >= len(s.parts) {
		w.WriteHeader(http.StatusServiceUnavailable)
		s.t.Error("a connection too much")
		return
	}
	subprotocol := r.Header.Get("Sec-WebSocket-Protocol")
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{OriginPatterns: []string{"*"}, Subprotocols: []string{subprotocol}})
	if err != nil {
		s.t.Error(err)
		return
	}
	defer conn.CloseNow()
	s.parts[n](&scripted{s.t, conn, r.URL.Query().Get("cursor"), strings.TrimPrefix(subprotocol, "bearer.")})
}

func (c *scripted) begins(cursor, token string) {
	if c.cursor != cursor || c.token != token {
		c.t.Errorf("a connection with cursor %q and token %q, want %q and %q", c.cursor, c.token, cursor, token)
	}
}

func (c *scripted) send(messages ...string) {
	for _, m := range messages {
		if err := c.conn.Write(context.Background(), websocket.MessageText, []byte(m)); err != nil {
			c.t.Error(err)
		}
	}
}

// joins expects the operations that join these rooms.
func (c *scripted) joins(rooms ...string) {
	ctx, cancel := context.WithTimeout(context.Background(), servertest.Patience)
	defer cancel()
	for _, room := range rooms {
		_, b, err := c.conn.Read(ctx)
		var o struct{ Op, Room string }
		if err != nil || json.Unmarshal(b, &o) != nil || o.Op != "join" || o.Room != room {
			c.t.Errorf("%s, %v instead of joining %s", b, err, room)
		}
	}
}

func (c *scripted) untilGone() { <-c.conn.CloseRead(context.Background()).Done() }

func told(event, room, cursor, rest string) string {
	return fmt.Sprintf(`{"event":%q,"room":%q,"cursor":%q%s}`, event, room, cursor, rest)
}

// TestTheBrowserClient plays the server's part against docs/examples/feed.js in Chromium.
func TestTheBrowserClient(t *testing.T) {
	t.Parallel()
	browser := servertest.OpenBrowser(t)
	tick := func(n int) string {
		return told("tick", "order:b", fmt.Sprint("t", n), fmt.Sprintf(`,"payload":%d`, n))
	}
	joined := func(room, cursor string) string {
		return told("feed:joined", room, cursor, `,"consistencyToken":"of-`+cursor+`"`)
	}
	server := &script{t: t, parts: []func(*scripted){
		func(c *scripted) { // ends before a room is joined
			c.begins("", "token1")
			c.joins("order:a", "order:b")
		},
		func(c *scripted) { // there is no cursor yet
			c.begins("", "token2")
			c.joins("order:a", "order:b")
			c.send(joined("order:a", "1"))
		},
		func(c *scripted) { // b had no answer
			c.begins("1", "token3")
			c.joins("order:b")
			c.send(`{"event":"feed:resumed","count":0}`, joined("order:b", "2"), tick(1), tick(2))
			_ = c.conn.Close(4500, "the token has expired")
		},
		func(c *scripted) { // the message 4 fails, 5 waits behind it
			c.begins("t2", "token4")
			c.send(`{"event":"feed:resumed","count":3}`, tick(3), tick(4), tick(5))
			c.untilGone()
		},
		func(c *scripted) {
			c.begins("t3", "token5")
			c.send(`{"event":"feed:resumed","count":2}`, tick(4), tick(5), `{"event":"feed:error","code":"not_allowed","room":"order:x"}`)
			_ = c.conn.Close(1001, "shutting down; retry after 700 ms")
		},
		func(c *scripted) { // everything is loaded again; the load of b fails
			c.begins("t5", "token6")
			c.send(told("feed:reset", "", "7", `,"reason":"expired"`))
			c.joins("order:a", "order:b")
			c.send(joined("order:a", "8"), joined("order:b", "9"))
			c.untilGone()
		},
		func(c *scripted) { // silent
			c.begins("8", "token7")
			c.joins("order:b")
			c.send(`{"event":"feed:resumed","count":0}`, joined("order:b", "10"))
			c.untilGone()
		},
		func(c *scripted) {
			c.begins("10", "token8")
			c.send(`{"event":"feed:resumed","count":0}`, tick(6))
			_ = c.conn.Close(4501, "too many operations")
		},
	}}
	mux := http.NewServeMux()
	mux.Handle("/v1/feed", server)
	mux.Handle("/", http.FileServer(http.Dir(examples)))
	mux.HandleFunc("/test.html", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `<!doctype html><script type="module">
			import { follow } from "./feed.js";
			window.log = [];
			let tokens = 0, loads = 0, fours = 0;
			follow({
				url: location.origin + "/", rooms: ["order:a", "order:b"], minWait: 5, maxWait: 20, idle: 1500,
				token: async () => "token" + ++tokens,
				load: async (room, token) => {
					log.push("load " + room + " " + token);
					await new Promise((done) => setTimeout(done, 50)); // what comes meanwhile waits
					if (++loads === 4) throw new Error("cannot load");
					log.push("loaded " + room);
				},
				message: async (m) => {
					log.push(m.event + " " + m.payload);
					if (m.payload === 4 && ++fours === 1) throw new Error("cannot show");
				},
				state: (name, why) => log.push(name + (why ? " " + why : "")),
			});
		</script>`)
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	browser.Open(srv.URL + "/test.html")
	browser.Until(`log.at(-1) ?? ""`, "ended 4501: too many operations")
	log := strings.Split(browser.Eval(`log.join("\n")`), "\n")
	var advised bool
	for i, line := range log {
		if line, wait, is := strings.Cut(line, "; next attempt in "); is {
			log[i] = line
			var ms int
			if _, err := fmt.Sscanf(wait, "%d ms", &ms); err != nil || ms > 720 || (ms >= 700) != strings.Contains(line, "retry after") {
				t.Errorf("the wait after %q is %s", line, wait)
			}
			advised = advised || ms >= 700
		}
	}
	log = slices.DeleteFunc(log, func(line string) bool { return line == "connected" || line == "waiting the connection was lost" })
	want := []string{
		"load order:a of-1", "loaded order:a",
		"load order:b of-2", "loaded order:b", "tick 1", "tick 2", "waiting the token has expired",
		"tick 3", "tick 4", "waiting cannot show",
		"tick 4", "tick 5", "refused not_allowed:  order:x", "waiting shutting down; retry after 700 ms",
		"load order:a of-8", "loaded order:a", "load order:b of-9", "waiting cannot load",
		"load order:b of-10", "loaded order:b", "waiting nothing came for 1500 ms",
		"tick 6", "ended 4501: too many operations",
	}
	if !slices.Equal(log, want) || !advised {
		t.Errorf("advised %v, the log is\n%s\nwant\n%s", advised, strings.Join(log, "\n"), strings.Join(want, "\n"))
	}
	if b, err := os.ReadFile(filepath.Join(examples, "feed.js")); err != nil || strings.Count(string(b), "\n") >= 100 {
		t.Errorf("feed.js has 100 lines or more, or cannot be read: %v", err)
	}
}
