package server_test

import (
	"strings"
	"testing"

	"tomato/cmd/tomato/servertest"
	"tomato/domain"
)

// privacy follows an order from one rider to the next. It checks what each rider is shown
// before the order is theirs, while it is theirs, and afterwards.
func (c *contract) privacy(t *testing.T) {
	s := c.newScene(t)
	x := c.command(t, s.customer, "POST", "/v1/orders", map[string]any{"restaurantId": s.rest, "items": []any{map[string]any{"itemId": "dosa", "quantity": 3}},
		"deliverTo":         map[string]any{"location": pointAt(s.lng, s.lat), "address": "4 Church Street", "instructions": "ring twice"},
		"externalReference": "till-3"}).want(t, 201)
	s.order, s.token = x.Str("orderId"), x.Token()
	s.pay(t)
	s.must(t, s.restaurant, "accept-order")
	s.must(t, s.restaurant, "preparing")
	s.must(t, s.restaurant, "ready")
	s.untilOffered(t, s.winner, s.loser, s.decliner)
	path := "/v1/orders/" + s.order
	personal := []string{s.cust, "4 Church Street", "ring twice", "till-3", "deliverTo", "customerId", "externalReference"}
	shows := func(x *reply, sees bool, riders ...string) {
		t.Helper()
		x.want(t, 200)
		for _, word := range personal {
			if !sees && strings.Contains(string(x.Body), word) {
				t.Errorf("%s shows %s: %s", x.Request, word, x.Body)
			}
		}
		if sees != strings.Contains(string(x.Body), "ring twice") {
			t.Errorf("%s: %s", x.Request, x.Body)
		}
		for _, r := range riders {
			if strings.Contains(string(x.Body), r) {
				t.Errorf("%s shows the rider %s: %s", x.Request, r, x.Body)
			}
		}
	}
	both := func(a domain.Actor, sees bool, riders ...string) {
		t.Helper()
		shows(c.do(t, a, "GET", path, nil, "Consistency-Token", s.token), sees, riders...)
		shows(c.do(t, a, "GET", path+"/events", nil, "Consistency-Token", s.token), sees, riders...)
	}
	both(s.won, false, s.loser, s.decliner)
	both(s.customer, true, s.winner, s.loser, s.decliner)
	for range 2 { // the second time with the same Idempotency-Key
		shows(s.do(t, riderActor(s.decliner), "decline", "Idempotency-Key", "k"), false, s.winner, s.loser)
	}
	shows(s.must(t, s.won, "accept"), true, s.loser)
	both(s.won, true, s.loser, s.decliner)
	both(s.offered, false, s.winner, s.decliner)
	both(s.customer, true, s.loser, s.decliner)
	if events := string(c.do(t, s.restaurant, "GET", path+"/events", nil).Body); !strings.Contains(events, s.loser) || !strings.Contains(events, s.decliner) {
		t.Errorf("the restaurant is not shown all riders: %s", events)
	}
	if x := s.do(t, s.offered, "accept").want(t, 409, "order_already_assigned"); strings.Contains(string(x.Body), s.winner) {
		t.Errorf("who lost is told who won: %s", x.Body)
	}

	// The rider of the order may be in the order's room until they drop the order.
	room := "order:" + s.order
	emit := func(event string) {
		t.Helper()
		c.send(t, "POST", "/api/v1/internal/emit", `{"event":"`+event+`","room":"`+room+`","payload":1}`, "x-internal-key", servertest.InternalKey).want(t, 202)
	}
	join := `{"op":"join","room":"` + room + `"}`
	rider, loser, customer := c.listen(t, s.won, "", nil), c.listen(t, s.offered, "", nil), c.listen(t, s.customer, "?room="+room, nil)
	rider.Send(join)
	joined := rider.until("feed:joined " + room)["cursor"].(string)
	loser.Send(join)
	loser.until("feed:error " + room + " forbidden")
	emit("note:one")
	rider.until("note:one")
	for range 2 {
		shows(s.do(t, s.won, "drop", "Idempotency-Key", "k"), false, s.loser)
	}
	s.token = s.do(t, s.won, "drop").Token()
	both(s.won, false, s.loser, s.decliner)
	rider.until("feed:error " + room + " not_allowed")
	emit("note:two")
	customer.until("note:two")
	rider.Send(join)
	rider.until("feed:error " + room + " forbidden")
	again := c.listen(t, s.won, "?cursor="+joined, nil)
	again.until("feed:error " + room + " not_allowed")
	emit("note:three")
	customer.until("note:three")
	for _, l := range []*listener{rider, again} {
		l.Send(`{"op":"dance"}`)
		l.until("unknown_op") // by now all earlier messages have come
		if lines := strings.Join(l.lines(), "\n"); !strings.Contains(lines, "note:one") || strings.Contains(lines, "note:two") || strings.Contains(lines, "note:three") {
			t.Errorf("who dropped the order was told\n%s", lines)
		}
	}

	// A customer and a rider with the same id have the same room, but do not get each
	// other's messages.
	namesake := customerActor(s.loser)
	c1, r1 := c.listen(t, namesake, "", nil), c.listen(t, s.offered, "", nil)
	s.untilOffered(t, s.loser)
	s.token = s.must(t, s.offered, "accept").Token()
	r1.until(`"status":"rider_assigned"`)
	for _, role := range []string{"customer", "rider", ""} {
		body := `{"event":"for:all","room":"user:` + s.loser + `","payload":1}`
		if role != "" {
			body = `{"event":"for:` + role + `","room":"user:` + s.loser + `","payload":1,"role":"` + role + `"}`
		}
		c.send(t, "POST", "/api/v1/internal/emit", body, "x-internal-key", servertest.InternalKey).want(t, 202)
	}
	c1.until("for:all")
	r1.until("for:all")
	if lines := strings.Join(c1.lines(), "\n"); strings.Contains(lines, "order:") || strings.Contains(lines, "for:rider") || !strings.Contains(lines, "for:customer") {
		t.Errorf("the customer of a rider's id was told\n%s", lines)
	}
	if lines := strings.Join(r1.lines(), "\n"); strings.Contains(lines, "for:customer") || !strings.Contains(lines, "for:rider") {
		t.Errorf("the rider of a customer's id was told\n%s", lines)
	}
}
