package server_test

import (
	"bufio"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"tomato/cmd/tomato/servertest"
	"tomato/domain"
	"tomato/feedclient"
)

func (c *contract) webhook(t *testing.T, body string) *reply {
	t.Helper()
	mac := hmac.New(sha256.New, []byte(servertest.WebhookSecret))
	mac.Write([]byte(body))
	return c.send(t, "POST", "/v1/webhooks/razorpay", body, "X-Razorpay-Signature", hex.EncodeToString(mac.Sum(nil)))
}

// listener is a feed client whose messages are read as JSON of any form.
type listener struct{ *servertest.FeedClient }

// listen opens a feed with the given query. If opts is nil, the token is sent in the
// header. At the end of the test each message is checked with faultsOfAny.
func (c *contract) listen(t *testing.T, a domain.Actor, query string, opts *feedclient.DialOptions) *listener {
	t.Helper()
	if opts == nil {
		opts = servertest.WithToken(servertest.Token(t, a))
	}
	l := &listener{servertest.OpenFeed(t, c.URL, query, opts)}
	t.Cleanup(func() {
		for _, m := range l.all() {
			for _, f := range faultsOfAny(m, "") {
				t.Errorf("a feed message: %s in %v", f, m)
			}
		}
	})
	return l
}

func (l *listener) all() (messages []map[string]any) {
	for _, m := range l.All() {
		messages = append(messages, asJSON(m))
	}
	return messages
}

func asJSON(m servertest.Message) (v map[string]any) {
	_ = json.Unmarshal(m.Raw, &v) // cannot fail, because the client has already read it as JSON
	return v
}

// lines returns each message as a line with event, room and payload. It leaves out pings,
// and events that begin with skip.
func (l *listener) lines(skip ...string) (lines []string) {
	for _, m := range l.all() {
		event, _ := m["event"].(string)
		if event == "feed:ping" || len(skip) > 0 && strings.HasPrefix(event, skip[0]) {
			continue
		}
		lines = append(lines, asLine(m))
	}
	return lines
}

func asLine(m map[string]any) string {
	line, _ := m["event"].(string)
	if r, ok := m["room"].(string); ok {
		line += " " + r
	}
	if p, ok := m["payload"]; ok {
		b, _ := json.Marshal(p)
		line += " " + string(b)
	}
	if code, ok := m["code"].(string); ok {
		line += " " + code
	}
	return line
}

// until waits for a message whose line contains the text, and returns it.
func (l *listener) until(text string) map[string]any {
	return asJSON(l.WaitFor(func(m servertest.Message) bool {
		return m.Event != "feed:ping" && strings.Contains(asLine(asJSON(m)), text)
	}, text))
}

// offersSeen lets a rider see their offer. The restaurant is told so once, and it and ops
// find it among the order's offers.
func (c *contract) offersSeen(t *testing.T, s *scene, rider, restaurant *listener) {
	t.Helper()
	began := time.Now().Add(-time.Second)
	for range 2 {
		rider.Send(`{"op":"seen","orderId":"` + s.order + `"}`)
	}
	rider.Send(`{"op":"seen","orderId":"` + noOrder + `"}`)
	rider.until("feed:error order:" + noOrder + " order_not_found") // by now the two before are handled
	prefix := "order:offer_seen restaurant:" + s.rest + ` {"orderId":"` + s.order + `","riderId":"` + s.loser + `","seenAt":"`
	restaurant.until(prefix)
	for _, a := range []domain.Actor{s.restaurant, anOps} {
		seen := 0
		for _, item := range c.do(t, a, "GET", "/v1/orders/"+s.order+"/offers", nil).want(t, 200).items() {
			offer := item.(map[string]any)
			at, err := time.Parse(time.RFC3339, fmt.Sprint(offer["seenAt"]))
			if is := offer["riderId"] == s.loser; is != (err == nil) || is && at.Before(began) || offer["state"] != "open" || offer["wave"] != 1.0 {
				t.Errorf("%s finds the offer %v", a.Role, offer)
			}
			seen++
		}
		if seen != 3 {
			t.Errorf("%s finds %d offers", a.Role, seen)
		}
	}
	count := 0
	for _, line := range restaurant.lines() {
		if strings.HasPrefix(line, "order:offer_seen") {
			count++
		}
	}
	if count != 1 {
		t.Errorf("the restaurant was told %d times", count)
	}
}

// feeds plays an order to its end and checks the feeds of all parties.
func (c *contract) feeds(t *testing.T) {
	s := c.newScene(t)
	tok := servertest.Token(t, s.customer)
	customer := c.listen(t, s.customer, "?token="+tok, &feedclient.DialOptions{})
	restaurant := c.listen(t, s.restaurant, "", &feedclient.DialOptions{Subprotocols: []string{"bearer." + servertest.Token(t, s.restaurant)}})
	if got := restaurant.Subprotocol(); !strings.HasPrefix(got, "bearer.") {
		t.Errorf("subprotocol %q", got)
	}
	winner, loser := c.listen(t, s.won, "", nil), c.listen(t, s.offered, "", nil)
	op := c.listen(t, anOps, "", nil)
	op.Send(`{"op":"join","room":"restaurant:` + s.rest + `"}`)
	op.until("feed:joined restaurant:" + s.rest)

	s.place(t)
	room := "order:" + s.order
	customer.Send(`{"op":"join","room":"` + room + `"}`)
	customer.until("feed:joined " + room)
	s.pay(t)
	s.must(t, s.restaurant, "accept-order")
	s.must(t, s.restaurant, "preparing")
	s.must(t, s.restaurant, "ready")
	s.untilOffered(t, s.winner, s.loser, s.decliner)
	c.offersSeen(t, s, loser, restaurant)
	s.must(t, s.won, "accept")
	for _, l := range []*listener{winner, loser} {
		l.until("order:available")
	}
	winner.Send(`{"op":"location","location":{"type":"Point","coordinates":[1.5,2.5]}}`)
	customer.until("rider:location " + room + ` {"location":{"coordinates":[1.5,2.5],"type":"Point"},"recordedAt":"`)
	s.must(t, s.won, "pick-up")
	s.must(t, s.won, "deliver")
	for _, l := range []*listener{customer, restaurant, winner, op} {
		l.until(`"status":"delivered"`)
	}
	id := `{"orderId":"` + s.order + `",`
	update := func(room, status string, version string) string {
		return "order:update " + room + " " + id + `"status":"` + status + `","version":` + version + "}"
	}
	path := func(room string, wave bool) []string {
		l := []string{update(room, "accepted", "3"), update(room, "preparing", "4"), update(room, "ready_for_rider", "5"), update(room, "rider_assigned", "7"),
			"order:rider_assigned " + room + ` {"orderId":"` + s.order + `","riderId":"` + s.winner + `","riderName":"` + s.winner + `"}`,
			update(room, "picked_up", "8"), update(room, "delivered", "9")}
		return l
	}
	// in checks that lines of the feed begin with these texts, in this order.
	in := func(who string, l *listener, want ...string) {
		t.Helper()
		lines := l.lines()
		i := 0
		for _, line := range lines {
			if i < len(want) && strings.HasPrefix(line, want[i]) {
				i++
			}
		}
		if i < len(want) {
			t.Errorf("%s: no %s in order in\n%s", who, want[i], strings.Join(lines, "\n"))
		}
	}
	user := "user:" + s.cust
	in("customer", customer, append([]string{update(user, "placed", "1"), "order:update " + user + " " + id + `"paymentStatus":"paid","status":"placed","version":2}`}, path(user, false)...)...)
	in("restaurant", restaurant, append([]string{"order:new restaurant:" + s.rest + " {"}, path("restaurant:"+s.rest, false)...)...)
	in("ops", op, append([]string{"feed:joined", "order:new restaurant:" + s.rest + " {"}, path("restaurant:"+s.rest, false)...)...)
	in("winner", winner, "order:available user:"+s.winner+" {", update("user:"+s.winner, "rider_assigned", "7"), update("user:"+s.winner, "picked_up", "8"))
	in("loser", loser, "order:available user:"+s.loser+" {", `order:taken user:`+s.loser+` {"orderId":"`+s.order+`","reason":"assigned"}`)
	for _, line := range append(winner.lines(), customer.lines()...) {
		if strings.HasPrefix(line, "order:taken") || strings.HasPrefix(line, "order:new") {
			t.Errorf("not theirs: %s", line)
		}
	}
	for _, m := range append(customer.all(), loser.all()...) {
		if strings.HasPrefix(m["event"].(string), "feed:") {
			continue
		}
		if len(m) != 5 || m["cursor"] == "" || m["timestamp"] == nil {
			t.Errorf("a message: %v", m)
		}
	}
	offer := loser.until("order:available")["payload"].(map[string]any)
	if len(offer) != 5 || offer["restaurantId"] != s.rest || offer["distanceMeters"].(float64) <= 0 {
		t.Errorf("an offer: %v", offer)
	}
	news := restaurant.until("order:new")["payload"].(map[string]any)
	if news["orderId"] != s.order || news["paymentStatus"] != "paid" || news["amount"] != 45000.0 || news["acceptBy"] == nil {
		t.Errorf("order:new: %v", news)
	}

	// A feed that is resumed gets the messages that it missed, and no others.
	cursor := customer.until(update(user, "rider_assigned", "7"))["cursor"].(string)
	again := c.listen(t, s.customer, "?cursor="+cursor, nil)
	again.until(update(user, "delivered", "9"))
	if lines := again.lines("rider:"); lines[0] != "feed:resumed" || strings.Join(lines[1:], "\n") != strings.Join(path(user, false)[4:], "\n") {
		t.Errorf("resumed with\n%s", strings.Join(lines, "\n"))
	}
	for _, bad := range []string{"x", "AAAA", cursor[:len(cursor)-2] + "zz"} {
		l := c.listen(t, s.customer, "?cursor="+bad, nil)
		l.until("feed:reset")
		if lines := l.lines(); lines[0] != "feed:reset" {
			t.Errorf("cursor %s: %v", bad, lines)
		}
	}

	// Messages that the server refuses on a socket.
	for _, r := range []struct {
		l        *listener
		op, code string
	}{
		{loser, `{"op":"join","room":"user:somebody"}`, "forbidden"},
		{loser, `{"op":"join","room":"ops"}`, "forbidden"},
		{loser, `{"op":"join","room":"nowhere"}`, "validation_failed"},
		{restaurant, `{"op":"join","room":"order:` + noOrder + `"}`, "order_not_found"},
		{loser, `{"op":"dance"}`, "unknown_op"},
		{loser, `{"op":"seen"}`, "validation_failed"},
		{loser, `{"op":"seen","orderId":"` + s.order + `"}`, "offer_expired"},
		{customer, `{"op":"seen","orderId":"` + s.order + `"}`, "forbidden"},
		{loser, `{"op":`, "malformed_json"},
		{loser, `{"op":"location","location":{"type":"Point","coordinates":[12.9,97]}}`, "validation_failed"},
		{loser, `{"op":"location"}`, "validation_failed"},
		{customer, `{"op":"location","location":` + aPoint + `}`, "forbidden"},
	} {
		before := len(r.l.lines())
		r.l.Send(r.op)
		servertest.Until(t, "feed:error for "+r.op, func() bool { return len(r.l.lines()) > before })
		if lines := r.l.lines(); !strings.HasPrefix(lines[before], "feed:error") || !strings.HasSuffix(lines[before], " "+r.code) {
			t.Errorf("%s: %s", r.op, lines[before])
		}
	}

	// An emitted message reaches those who are in the room, and not those who have left it.
	emit := func(room, event string) {
		t.Helper()
		x := c.send(t, "POST", "/api/v1/internal/emit", `{"event":"`+event+`","room":"`+room+`","payload":{"a":1}}`, "x-internal-key", servertest.InternalKey).want(t, 202)
		if x.Token() != "" || x.Header.Get("ETag") != "" {
			t.Errorf("a 202 with %v", x.Header)
		}
	}
	emit(room, "promo:one")
	customer.until("promo:one " + room + ` {"a":1}`)
	customer.Send(`{"op":"leave","room":"` + room + `"}`)
	customer.Send(`{"op":"dance"}`)
	customer.until("unknown_op") // by now the server has handled the leave
	emit(room, "promo:two")
	emit(user, "promo:three")
	customer.until("promo:three " + user)
	for _, line := range customer.lines() {
		if strings.HasPrefix(line, "promo:two") {
			t.Error("a left room still sends")
		}
	}

	// Handshakes that the server refuses, and Server-Sent Events.
	for _, path := range []string{"/v1/feed", "/v1/feed/sse"} {
		c.send(t, "GET", path, nil).want(t, 401, "unauthorized")
		c.send(t, "GET", path+"?token=x", nil).want(t, 401, "unauthorized")
		c.send(t, "POST", path, nil).want(t, 405)
	}
	c.do(t, s.customer, "GET", "/v1/feed", nil).want(t, 426)
	c.do(t, s.customer, "GET", "/v1/feed/sse?room=ops", nil).want(t, 403, "forbidden")
	c.do(t, s.customer, "GET", "/v1/feed/sse?room=x", nil).want(t, 422)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", c.URL+"/v1/feed/sse?token="+tok, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Last-Event-ID", cursor)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if ct := resp.Header.Get("Content-Type"); !strings.HasPrefix(ct, "text/event-stream") {
		t.Error(ct)
	}
	first, ids := "", 0
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		data, is := strings.CutPrefix(lines.Text(), "data: ")
		if strings.HasPrefix(lines.Text(), "id: ") {
			ids++
		}
		if is && first == "" {
			first = data
		}
		if is && strings.Contains(data, `"promo:three"`) {
			break
		}
	}
	if !strings.Contains(first, "feed:resumed") || ids < 3 {
		t.Errorf("SSE begins with %s and has %d ids", first, ids)
	}
}

// deadlines checks what happens when deadlines pass. It needs a server with short
// deadlines.
func (c *contract) deadlines(t *testing.T) {
	t.Run("not accepted", func(t *testing.T) {
		t.Parallel()
		s := c.newScene(t)
		s.place(t)
		s.pay(t)
		servertest.Until(t, "cancellation", func() bool {
			x := c.do(t, s.customer, "GET", "/v1/orders/"+s.order, nil)
			return x.Str("status") == "cancelled" && x.Str("by") == "system" && x.Str("reason") == "not_accepted_in_time"
		})
		s.untilPayment(t, "refunded")
	})
	t.Run("exhausted", func(t *testing.T) {
		t.Parallel()
		s := c.newScene(t)
		feed, loser := c.listen(t, s.restaurant, "", nil), c.listen(t, s.offered, "", nil)
		room := c.listen(t, anOps, "?room=ops", nil)
		s.place(t)
		s.pay(t)
		s.must(t, s.restaurant, "accept-order")
		s.must(t, s.restaurant, "preparing")
		s.must(t, s.restaurant, "ready")
		text := `dispatch:exhausted restaurant:` + s.rest + ` {"orderId":"` + s.order + `","waves":`
		feed.until(text)
		room.until(strings.Replace(text, "restaurant:"+s.rest, "ops", 1))
		loser.until(`order:taken user:` + s.loser + ` {"orderId":"` + s.order + `","reason":"expired"}`)
		servertest.Until(t, "the list of the exhausted", func() bool {
			return strings.Contains(string(c.do(t, anOps, "GET", "/v1/orders?dispatch=exhausted", nil).want(t, 200).Body), s.order)
		})
		s.do(t, s.offered, "accept").want(t, 409, "offer_expired")
		x := s.do(t, anOps, "dispatch").want(t, 200)
		if d, _ := x.body["dispatch"].(map[string]any); x.Str("status") != "ready_for_rider" || d["round"] != 2.0 || d["exhausted"] != false {
			t.Errorf("dispatched again: %s", x.Body)
		}
		s.untilOffered(t, s.winner)
		s.do(t, anOps, "cancel").want(t, 200)
		loser.until(`{"orderId":"` + s.order + `","reason":"cancelled"}`)
	})
}
