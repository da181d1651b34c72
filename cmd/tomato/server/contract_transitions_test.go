package server_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"tomato/cmd/tomato/servertest"
	"tomato/domain"
)

// scene is a restaurant far from all others, its customer, and four riders. Three riders
// are near the restaurant, of whom the decliner declines the offer. The stranger has no
// position.
type scene struct {
	c                                  *contract
	rest, cust                         string
	winner, loser, decliner, stranger  string
	order, gatewayOrder, token         string
	lng, lat                           float64
	version                            int
	restaurant, customer, won, offered domain.Actor
}

func (c *contract) newScene(t *testing.T) *scene {
	t.Helper()
	n := float64(c.names.Add(1))
	s := &scene{c: c, lng: -170 + float64(int(n)%340), lat: -60 + float64(int(n)/340), rest: c.name("rest"), cust: c.name("cust"),
		winner: c.name("winner"), loser: c.name("loser"), decliner: c.name("decliner"), stranger: c.name("stranger")}
	s.restaurant, s.customer, s.won, s.offered = restaurantActor(s.rest), customerActor(s.cust), riderActor(s.winner), riderActor(s.loser)
	c.command(t, anOps, "PUT", "/v1/restaurants/"+s.rest, map[string]any{"name": "Rest", "location": pointAt(s.lng, s.lat)}).want(t, 201)
	c.command(t, s.restaurant, "PUT", "/v1/restaurants/"+s.rest+"/menu/dosa", `{"name":"Dosa","price":{"amount":15000,"currency":"INR"},"available":true}`)
	c.command(t, s.restaurant, "POST", "/v1/restaurants/"+s.rest+"/open", nil)
	for _, r := range []string{s.winner, s.loser, s.decliner, s.stranger} {
		c.command(t, anOps, "PUT", "/v1/riders/"+r, `{"name":"`+r+`"}`).want(t, 201)
		c.command(t, anOps, "POST", "/v1/riders/"+r+"/verify", nil)
		c.command(t, riderActor(r), "POST", "/v1/riders/"+r+"/online", nil)
		if r != s.stranger {
			c.do(t, riderActor(r), "PUT", "/v1/riders/"+r+"/location", map[string]any{"location": pointAt(s.lng+0.01, s.lat)}).want(t, 202)
		}
	}
	return s
}

// place places an order.
func (s *scene) place(t *testing.T) *reply {
	t.Helper()
	x := s.c.command(t, s.customer, "POST", "/v1/orders", map[string]any{"restaurantId": s.rest, "items": []any{map[string]any{"itemId": "dosa", "quantity": 3}},
		"deliverTo": map[string]any{"location": pointAt(s.lng, s.lat), "address": "1 Street"}}).want(t, 201)
	s.order, s.token = x.Str("orderId"), x.Token()
	return x
}

func (s *scene) open(t *testing.T) {
	t.Helper()
	x := s.c.command(t, s.customer, "POST", "/v1/orders/"+s.order+"/payment", nil).want(t, 200)
	s.gatewayOrder = x.Str("gatewayOrderId")
}

func (s *scene) pay(t *testing.T) {
	t.Helper()
	s.open(t)
	s.simulate(t, `{"outcome":"captured"}`)
	s.untilPayment(t, "paid")
}

func (s *scene) simulate(t *testing.T, body string) {
	t.Helper()
	s.c.do(t, s.customer, "POST", "/v1/simulated-gateway/orders/"+s.gatewayOrder+"/pay", body).want(t, 202)
}

func (s *scene) untilPayment(t *testing.T, status string) {
	t.Helper()
	servertest.Until(t, "paymentStatus "+status, func() bool {
		return s.c.do(t, s.customer, "GET", "/v1/orders/"+s.order, nil).Str("paymentStatus") == status
	})
}

func (s *scene) untilOffered(t *testing.T, riders ...string) {
	t.Helper()
	for _, r := range riders {
		servertest.Until(t, "an offer to "+r, func() bool {
			return len(s.c.do(t, riderActor(r), "GET", "/v1/riders/"+r+"/offers", nil).items()) > 0
		})
	}
}

func (s *scene) do(t *testing.T, a domain.Actor, command string, headers ...string) *reply {
	t.Helper()
	var body any
	switch command {
	case "reject", "drop", "cancel":
		body = aReason
	}
	return s.c.do(t, a, "POST", "/v1/orders/"+s.order+"/"+command, body, headers...)
}

func (s *scene) must(t *testing.T, a domain.Actor, command string) *reply {
	t.Helper()
	x := s.do(t, a, command).want(t, 200)
	s.checkOrder(t, x, a.Role, command)
	s.token = x.Token()
	return x
}

// reach returns a new scene whose order is in this state of the table.
func (c *contract) reach(t *testing.T, state string) *scene {
	t.Helper()
	s := c.newScene(t)
	s.checkOrder(t, s.place(t), domain.Customer, "")
	steps := []struct {
		state string
		do    func()
	}{
		{"placed, paid", func() { s.pay(t) }},
		{"accepted", func() { s.must(t, s.restaurant, "accept-order") }},
		{"preparing", func() { s.must(t, s.restaurant, "preparing") }},
		{"ready_for_rider", func() {
			s.must(t, s.restaurant, "ready")
			s.untilOffered(t, s.winner, s.loser, s.decliner)
			s.must(t, riderActor(s.decliner), "decline")
		}},
		{"rider_assigned", func() { s.must(t, s.won, "accept") }},
		{"picked_up", func() { s.must(t, s.won, "pick-up") }},
		{"delivered", func() { s.must(t, s.won, "deliver") }},
	}
	until := state
	switch state {
	case "cancelled":
		until = "rider_assigned"
	case "rejected":
		until = "placed, paid"
	}
	if state != "placed, unpaid" && state != "expired" {
		for _, step := range steps {
			step.do()
			if step.state == until {
				break
			}
		}
	}
	switch state {
	case "cancelled":
		s.must(t, anOps, "cancel")
	case "rejected":
		s.must(t, s.restaurant, "reject")
	case "expired":
		servertest.Until(t, "the order to expire", func() bool {
			return c.do(t, s.customer, "GET", "/v1/orders/"+s.order, nil).Str("status") == "expired"
		})
	}
	s.version = s.seen(t, s.token)
	return s
}

// seen returns the order's version as queries show it when they have waited for token. It
// checks that the order has at least as many events.
func (s *scene) seen(t *testing.T, token string) int {
	t.Helper()
	v := s.c.do(t, anOps, "GET", "/v1/orders/"+s.order, nil, "Consistency-Token", token).want(t, 200).num("version")
	if n := len(s.c.do(t, anOps, "GET", "/v1/orders/"+s.order+"/events", nil, "Consistency-Token", token).want(t, 200).items()); n < v {
		t.Errorf("order of version %d has %d events", v, n)
	}
	return v
}

// checkOrder checks which fields an order in an answer has. They depend on the role of
// the caller and on the command.
func (s *scene) checkOrder(t *testing.T, x *reply, role domain.Role, command string) {
	t.Helper()
	if x.Status >= 300 {
		return // the caller has already reported the status
	}
	must := []string{"orderId", "version", "status", "paymentStatus", "customerId", "restaurantId", "items", "amount", "currency", "pickUp", "deliverTo", "createdAt", "updatedAt"}
	may := []string{"riderId", "externalReference", "riderName", "paymentDueAt", "acceptBy", "readyAt", "reason", "by", "riderLocation"}
	if role == domain.Restaurant || role == domain.Ops {
		may = append(may, "dispatch")
	}
	if command == "decline" || command == "drop" || role == domain.Rider && x.body["riderId"] == nil { // the order is not this rider's
		must = slices.DeleteFunc(must, func(n string) bool { return n == "customerId" || n == "items" || n == "deliverTo" })
	}
	for _, n := range must {
		if _, ok := x.body[n]; !ok {
			t.Errorf("%s: lacks %s: %s", x.Request, n, x.Body)
		}
	}
	for n := range x.body {
		if !slices.Contains(must, n) && !slices.Contains(may, n) {
			t.Errorf("%s: has %s: %s", x.Request, n, x.Body)
		}
	}
	if x.num("amount") != 45000 || x.Str("currency") != "INR" || x.Str("orderId") != s.order {
		t.Errorf("%s: %s", x.Request, x.Body)
	}
	status, paid := x.Str("status"), x.Str("paymentStatus") == "paid"
	for name, want := range map[string]bool{"paymentDueAt": status == "placed" && !paid, "acceptBy": status == "placed" && paid,
		"riderName": x.body["riderId"] != nil, "by": status == "cancelled" || status == "rejected"} {
		if _, has := x.body[name]; has != want {
			t.Errorf("%s: %s is there: %v: %s", x.Request, name, has, x.Body)
		}
	}
}

var states = []string{"placed, unpaid", "placed, paid", "accepted", "preparing", "ready_for_rider", "rider_assigned", "picked_up", "delivered", "cancelled", "rejected", "expired"}

// table returns the transitions of an order over REST, with a cell for each of states.
// They follow from TestTransitions in domain/order/transitions_test.go. A cell is
//
//	>status   200, and an event after which the order has this status
//	=         200, and no event, because the command has been carried out already
//	!         409 invalid_transition
//	200       200, for a command on the payment
//	403, 404  forbidden, order_not_found
//	code      409 with this code
func (s *scene) table() []struct {
	who, command string
	cells        string
} {
	return []struct{ who, command, cells string }{
		{"customer", "payment", "200 order_already_paid order_already_paid order_already_paid order_already_paid order_already_paid order_already_paid order_already_paid ! ! !"},
		{"restaurant", "accept-order", "order_not_paid >accepted = = = = = = ! ! !"},
		{"restaurant", "reject", ">rejected >rejected ! ! ! ! ! ! ! = !"},
		{"restaurant", "preparing", "order_not_paid ! >preparing = = = = = ! ! !"},
		{"restaurant", "ready", "order_not_paid ! ! >ready_for_rider = = = = ! ! !"},
		{"ops", "dispatch", "! ! ! ! ! ! ! ! ! ! !"},
		{"winner", "accept", "404 404 404 404 >rider_assigned = = = ! 404 404"},
		{"loser", "accept", "404 404 404 404 >rider_assigned order_already_assigned order_already_assigned order_already_assigned ! 404 404"},
		{"decliner", "accept", "404 404 404 404 offer_expired order_already_assigned order_already_assigned order_already_assigned ! 404 404"},
		{"stranger", "accept", "404 404 404 404 404 404 404 404 404 404 404"},
		{"stranger", "decline", "404 404 404 404 404 404 404 404 404 404 404"},
		{"loser", "decline", "404 404 404 404 >ready_for_rider = = = = 404 404"},
		{"decliner", "decline", "404 404 404 404 = = = = = 404 404"},
		{"winner", "decline", "404 404 404 404 >ready_for_rider ! ! ! = 404 404"},
		{"ops", "drop", "! ! ! ! ! >ready_for_rider ! ! ! ! !"},
		{"winner", "drop", "404 404 404 404 403 >ready_for_rider ! ! ! 404 404"},
		{"loser", "drop", "404 404 404 404 403 403 403 403 403 404 404"},
		{"stranger", "drop", "404 404 404 404 404 404 404 404 404 404 404"},
		{"winner", "pick-up", "404 404 404 404 403 >picked_up = = ! 404 404"},
		{"loser", "pick-up", "404 404 404 404 403 403 403 403 403 404 404"},
		{"winner", "deliver", "404 404 404 404 403 ! >delivered = ! 404 404"},
		{"decliner", "deliver", "404 404 404 404 403 403 403 403 403 404 404"},
		{"customer", "cancel", ">cancelled >cancelled >cancelled ! ! ! ! ! = ! !"},
		{"restaurant", "cancel", ">cancelled >cancelled >cancelled >cancelled >cancelled >cancelled ! ! = ! !"},
		{"ops", "cancel", ">cancelled >cancelled >cancelled >cancelled >cancelled >cancelled >cancelled ! = ! !"},
		{"another customer", "cancel", "404 404 404 404 404 404 404 404 404 404 404"},
		{"another customer", "payment", "404 404 404 404 404 404 404 404 404 404 404"},
		{"another restaurant", "accept-order", "404 404 404 404 404 404 404 404 404 404 404"},
		{"another restaurant", "cancel", "404 404 404 404 404 404 404 404 404 404 404"},
	}
}

func (s *scene) actor(who string) domain.Actor {
	return map[string]domain.Actor{"customer": s.customer, "restaurant": s.restaurant, "ops": anOps, "winner": s.won, "loser": s.offered,
		"decliner": riderActor(s.decliner), "stranger": riderActor(s.stranger), "another customer": customerActor("another"), "another restaurant": restaurantActor("another")}[who]
}

// orderTable checks one column of the table. All commands that append nothing are sent to
// one order. Each command that appends an event is sent to an order of its own.
func (c *contract) orderTable(t *testing.T, column int) {
	state := states[column]
	still := c.reach(t, state)
	last := ""
	for _, row := range still.table() {
		cell := strings.Fields(row.cells)[column]
		name := row.who + " " + row.command
		if next, changes := strings.CutPrefix(cell, ">"); changes {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				s := c.reach(t, state)
				a := s.actor(row.who)
				s.do(t, a, row.command, "If-Match", fmt.Sprintf(`"%d"`, s.version+7)).want(t, 412, "precondition_failed")
				s.do(t, a, row.command, "If-Match", fmt.Sprintf(`W/"%d", "%d"`, s.version, s.version+7)).want(t, 412, "precondition_failed")
				x := s.do(t, a, row.command, "If-Match", fmt.Sprintf(`"%d", "%d"`, s.version+7, s.version)).want(t, 200)
				s.checkOrder(t, x, a.Role, row.command)
				if x.Str("status") != next || x.num("version") != s.version+1 {
					t.Errorf("%s in %s: %s", name, state, x.Body)
				}
				if y := s.do(t, a, row.command, "If-Match", `"1"`).want(t, 200); y.num("version") < x.num("version") { // a command that has been carried out already is not 412
					t.Errorf("repeated: %s", y.Body)
				}
				if q := c.do(t, a, "GET", "/v1/orders/"+s.order, nil, "Consistency-Token", x.Token()).want(t, 200); q.num("version") < s.version+1 {
					t.Errorf("the token was not waited for: %s", q.Body)
				} else {
					s.checkOrder(t, q, a.Role, "")
				}
				if next == "cancelled" || next == "rejected" {
					if (state == "placed, unpaid") != (x.Str("paymentStatus") == "pending") || x.Str("by") != string(a.Role) || x.Str("reason") != "why" {
						t.Errorf("closed: %s", x.Body)
					}
					if state != "placed, unpaid" {
						s.untilPayment(t, "refunded")
					}
				}
			})
			continue
		}
		failed := t.Failed()
		x := still.do(t, still.actor(row.who), row.command)
		switch cell {
		case "200":
			x.want(t, 200)
		case "=":
			if x.want(t, 200); x.num("version") != still.version {
				t.Errorf("%s in %s: %s", name, state, x.Body)
			}
			still.checkOrder(t, x, still.actor(row.who).Role, row.command)
			last = x.Token()
		case "!":
			x.want(t, 409, "invalid_transition")
			if x.Str("currentStatus") != strings.Split(state, ",")[0] {
				t.Errorf("%s in %s: %s", name, state, x.Body)
			}
		case "403":
			x.want(t, 403, "forbidden")
		case "404":
			x.want(t, 404, "order_not_found")
		default:
			x.want(t, 409, cell)
		}
		if t.Failed() && !failed {
			t.Logf("that was %s in %s", name, state)
		}
	}
	if v := still.seen(t, last); v != still.version {
		t.Errorf("%s: the version went from %d to %d", state, still.version, v)
	}
	// Some parties may not read the order. A rider with an offer may.
	for who, path := range map[string]string{"another customer": "", "another restaurant": "", "stranger": "/events"} {
		c.do(t, still.actor(who), "GET", "/v1/orders/"+still.order+path, nil).want(t, 404, "order_not_found")
	}
	if state == "ready_for_rider" {
		c.do(t, still.offered, "GET", "/v1/orders/"+still.order, nil).want(t, 200)
	}
}

// riderTable checks those transitions of TestTransitions in
// domain/rider/transitions_test.go that can be reached over REST.
func (c *contract) riderTable(t *testing.T) {
	id := c.name("rider")
	self := riderActor(id)
	path := "/v1/riders/" + id
	check := func(x *reply, status, verification string, version int) {
		t.Helper()
		if x.Str("status") != status || x.Str("verification") != verification || x.num("version") != version || x.Str("riderId") != id {
			t.Errorf("%s: %s, want %s %s %d", x.Request, x.Body, status, verification, version)
		}
	}
	check(c.command(t, self, "PUT", path, `{"name":"A"}`).want(t, 201), "offline", "unverified", 1)
	check(c.command(t, anOps, "PUT", path, `{"name":"A"}`).want(t, 200), "offline", "unverified", 1)
	check(c.command(t, anOps, "PUT", path, `{"name":"  A ","vehicle":"bike"}`).want(t, 200), "offline", "unverified", 2)
	if x := c.command(t, anOps, "PUT", path, `{"name":"A"}`); x.body["vehicle"] != nil { // a PUT replaces all fields
		t.Errorf("%s", x.Body)
	}
	c.do(t, self, "POST", path+"/online", nil).want(t, 409, "rider_not_verified")
	check(c.command(t, self, "POST", path+"/offline", nil), "offline", "unverified", 3)
	check(c.command(t, anOps, "POST", path+"/verify", "{}"), "offline", "verified", 4)
	check(c.command(t, anOps, "POST", path+"/verify", ""), "offline", "verified", 4)
	check(c.command(t, self, "POST", path+"/online", nil), "available", "verified", 5)
	check(c.command(t, self, "POST", path+"/online", nil), "available", "verified", 5)
	check(c.command(t, anOps, "POST", path+"/suspend", nil), "offline", "suspended", 6)
	check(c.command(t, anOps, "POST", path+"/suspend", nil), "offline", "suspended", 6)
	c.do(t, self, "POST", path+"/online", nil).want(t, 409, "rider_suspended")
	check(c.command(t, self, "POST", path+"/offline", nil), "offline", "suspended", 6)
	verified := c.command(t, anOps, "POST", path+"/verify", nil)
	check(verified, "offline", "verified", 7)
	c.do(t, riderActor("another"), "POST", path+"/online", nil).want(t, 403, "forbidden")
	c.do(t, riderActor("another"), "GET", path, nil, "Consistency-Token", verified.Token()).want(t, 403, "forbidden")
	c.do(t, riderActor("another"), "GET", path+"/offers", nil, "Consistency-Token", verified.Token()).want(t, 403, "forbidden")
	c.do(t, riderActor("another"), "PUT", path+"/location", `{"location":`+aPoint+`}`).want(t, 403, "forbidden")
	x := c.do(t, self, "PUT", path+"/location", `{"location":{"type":"Point","coordinates":[10,20,300]},"recordedAt":"`+time.Now().UTC().Format(time.RFC3339)+`"}`).want(t, 202)
	if x.Token() != "" || x.Header.Get("ETag") != "" || len(x.Body) != 0 {
		t.Errorf("a 202 with %v %s", x.Header, x.Body)
	}
	servertest.Until(t, "the position", func() bool {
		at, _ := c.do(t, self, "GET", path, nil).body["location"].(map[string]any)
		return at != nil && fmt.Sprint(at["coordinates"]) == "[10 20]"
	})
	// A rider who is free and verified and has a fresh position is nearby.
	near := func() string {
		return string(c.do(t, anOps, "GET", "/v1/riders/nearby?lat=20&lng=10", nil).want(t, 200).Body)
	}
	if strings.Contains(near(), id) {
		t.Error("an offline rider is nearby")
	}
	tok := c.command(t, self, "POST", path+"/online", nil).Token()
	if x := c.do(t, anOps, "GET", "/v1/riders/nearby?lat=20&lng=10", nil, "Consistency-Token", tok); !strings.Contains(string(x.Body), id) {
		t.Errorf("a free rider is not nearby: %s", x.Body)
	}
	// A rider is busy, and is suspended while they are busy.
	s := c.reach(t, "rider_assigned")
	w := "/v1/riders/" + s.winner
	c.do(t, s.won, "POST", w+"/offline", nil).want(t, 409, "rider_busy")
	online := c.command(t, s.won, "POST", w+"/online", nil)
	if x := c.do(t, s.won, "GET", w, nil, "Consistency-Token", online.Token()).want(t, 200); x.Str("status") != "busy" || x.Str("orderId") != s.order {
		t.Errorf("busy: %s", x.Body)
	}
	if x := c.command(t, anOps, "POST", w+"/suspend", nil); x.Str("status") != "busy" || x.Str("verification") != "suspended" {
		t.Errorf("suspended while busy: %s", x.Body)
	}
	c.do(t, s.won, "POST", w+"/online", nil).want(t, 409, "rider_suspended")
	c.do(t, s.won, "POST", w+"/offline", nil).want(t, 409, "rider_busy")
	if x := c.do(t, s.won, "GET", w+"/offers", nil).want(t, 200); len(x.items()) > 0 {
		t.Errorf("offers while busy: %s", x.Body)
	}
	s.must(t, s.won, "pick-up")
	s.must(t, s.won, "deliver")
	if x := c.do(t, anOps, "GET", w, nil).want(t, 200); x.Str("status") == "available" {
		t.Errorf("after the last order: %s", x.Body)
	}
}

// places searches next to the axes of the globe. There PostGIS reports that its index
// returned results in the wrong order. Because of this the searches were answered 500,
// and dispatch made no progress.
func (c *contract) places(t *testing.T) {
	for i, x := range []struct{ lng, lat, dLng, dLat float64 }{
		{0, 0, 1.2835730153149793e-267, 4.988407669981693e-14}, {180, 45, -1e-10, 1e-12}, {-180, -33, 1e-10, 0}, {90, 0, 0, 1e-12}, {30, 90, 0, -5e-14}, {40, -90, 0, 1e-12},
	} {
		rest, cust, rider := c.name("place"), c.name("cust"), c.name("rider")
		s := &scene{c: c, rest: rest, cust: cust, restaurant: restaurantActor(rest), customer: customerActor(cust), lng: x.lng, lat: x.lat, won: riderActor(rider)}
		c.command(t, anOps, "PUT", "/v1/restaurants/"+rest, map[string]any{"name": "R", "location": pointAt(x.lng, x.lat)})
		c.command(t, anOps, "PUT", "/v1/restaurants/"+rest+"/menu/dosa", `{"name":"Dosa","price":{"amount":15000,"currency":"INR"},"available":true}`)
		c.command(t, anOps, "PUT", "/v1/riders/"+rider, `{"name":"N"}`)
		c.command(t, anOps, "POST", "/v1/riders/"+rider+"/verify", nil)
		c.command(t, s.won, "POST", "/v1/riders/"+rider+"/online", nil)
		at := pointAt(x.lng+x.dLng, x.lat+x.dLat)
		c.do(t, s.won, "PUT", "/v1/riders/"+rider+"/location", map[string]any{"location": at}).want(t, 202)
		tok := c.command(t, anOps, "POST", "/v1/restaurants/"+rest+"/open", nil).Token()
		near := fmt.Sprintf("/nearby?lat=%v&lng=%v&limit=200", x.lat+x.dLat, x.lng+x.dLng)
		if y := c.do(t, anOps, "GET", "/v1/restaurants"+near, nil, "Consistency-Token", tok).want(t, 200); !strings.Contains(string(y.Body), rest) {
			t.Errorf("%d: %s", i, y.Body)
		}
		for _, p := range []string{near, fmt.Sprintf("/nearby?lat=%v&lng=%v", x.lat, x.lng)} {
			servertest.Until(t, "the rider nearby", func() bool {
				return strings.Contains(string(c.do(t, anOps, "GET", "/v1/riders"+p, nil).want(t, 200).Body), rider)
			})
		}
		s.place(t)
		s.pay(t)
		s.must(t, s.restaurant, "accept-order")
		s.must(t, s.restaurant, "preparing")
		s.must(t, s.restaurant, "ready")
		s.untilOffered(t, rider)
	}
}

// placing checks how the menu affects the placing of orders, and how Idempotency-Key and
// If-Match work.
func (c *contract) placing(t *testing.T) {
	s := c.newScene(t)
	menu := "/v1/restaurants/" + s.rest + "/menu/"
	put := func(item, currency string, available bool) int {
		return c.command(t, s.restaurant, "PUT", menu+item, fmt.Sprintf(`{"name":"N","price":{"amount":100,"currency":%q},"available":%v}`, currency, available)).Status
	}
	if put("chai", "USD", true) != 201 || put("chai", "USD", true) != 200 || put("idli", "INR", false) != 201 {
		t.Error("a new item is 201, a known one 200")
	}
	body := func(items ...string) string {
		var lines []string
		for _, i := range items {
			lines = append(lines, `{"itemId":"`+i+`","quantity":2}`)
		}
		return `{"restaurantId":"` + s.rest + `","items":[` + strings.Join(lines, ",") + `],"deliverTo":{"location":` + aPoint + `,"address":" A "},"externalReference":"ref"}`
	}
	tok := c.command(t, s.restaurant, "PUT", menu+"last", `{"name":"N","price":{"amount":100,"currency":"INR"},"available":true}`).Token()
	place := func(b string, headers ...string) *reply {
		return c.do(t, s.customer, "POST", "/v1/orders", b, append([]string{"Consistency-Token", tok}, headers...)...)
	}
	place(body("pizza")).want(t, 422, "unknown_item")
	place(body("dosa", "chai")).want(t, 422, "currency_mismatch")
	place(body("idli")).want(t, 409, "item_unavailable")
	place(body("dosa"), "If-Match", `"3"`).want(t, 412)
	first := place(body("dosa", "last"), "Idempotency-Key", "k1").want(t, 201)
	if first.num("amount") != 30200 || first.Str("externalReference") != "ref" || first.num("version") != 1 || first.Header.Get("ETag") != `"1"` ||
		first.Str("status") != "placed" || first.Str("paymentStatus") != "pending" || first.body["pickUp"].(map[string]any)["name"] != "Rest" {
		t.Errorf("%s", first.Body)
	}
	if due, err := time.Parse(time.RFC3339, first.Str("paymentDueAt")); err != nil || time.Until(due) < 14*time.Minute || time.Until(due) > 15*time.Minute {
		t.Errorf("paymentDueAt %s", first.Str("paymentDueAt"))
	}
	if x := place(body("dosa", "last"), "Idempotency-Key", `"k1"`).want(t, 201); x.Str("orderId") != first.Str("orderId") {
		t.Errorf("repeated: %s", x.Body)
	}
	place(body("dosa"), "Idempotency-Key", "k1").want(t, 422, "idempotency_key_reused")
	if x := c.do(t, customerActor(c.name("cust")), "POST", "/v1/orders", body("dosa"), "Idempotency-Key", "k1").want(t, 201); x.Str("orderId") == first.Str("orderId") {
		t.Error("a key is the caller's own")
	}
	place(body("idli"), "Idempotency-Key", "k2").want(t, 409) // only a success is kept for the key
	place(body("dosa"), "Idempotency-Key", "k2").want(t, 201)
	c.command(t, s.restaurant, "DELETE", menu+"chai", nil).want(t, 200)
	v := c.command(t, s.restaurant, "DELETE", menu+"chai", nil).want(t, 200).num("version")
	closed := c.command(t, s.restaurant, "POST", "/v1/restaurants/"+s.rest+"/close", nil)
	if again := c.command(t, s.restaurant, "POST", "/v1/restaurants/"+s.rest+"/close", nil); closed.num("version") != v+1 || again.num("version") != v+1 || again.body["open"] != false {
		t.Errorf("closed twice: %s", again.Body)
	}
	tok = closed.Token()
	place(body("dosa")).want(t, 409, "restaurant_closed")
	place(body("pizza")).want(t, 422, "unknown_item") // references are checked before the state
	place(strings.Replace(body("dosa"), s.rest, "none", 1)).want(t, 422, "unknown_restaurant")
	place(body("dosa", "last"), "Idempotency-Key", "k1").want(t, 201) // the key is checked before references and state
	c.do(t, restaurantActor("another"), "POST", "/v1/restaurants/"+s.rest+"/open", nil).want(t, 403, "forbidden")
	c.do(t, restaurantActor("another"), "PUT", menu+"x", `{"name":"N","price":{"amount":100,"currency":"INR"},"available":true}`).want(t, 403, "forbidden")
	c.do(t, s.restaurant, "POST", "/v1/restaurants/"+s.rest+"/open", nil, "If-Match", `"0"`).want(t, 412, "precondition_failed")
	c.do(t, s.restaurant, "POST", "/v1/restaurants/"+s.rest+"/open", nil, "If-Match", `W/"`+fmt.Sprint(v+1)+`"`).want(t, 412)
	c.do(t, anOps, "PUT", "/v1/riders/"+c.name("new"), `{"name":"N"}`, "If-Match", "*").want(t, 412, "precondition_failed")
	opened := c.do(t, s.restaurant, "POST", "/v1/restaurants/"+s.rest+"/open", nil, "If-Match", "*").want(t, 200)

	// Lists.
	seen := map[string]bool{}
	for cursor := ""; ; {
		x := c.do(t, s.customer, "GET", "/v1/orders?limit=1&customerId="+s.cust+cursor, nil, "Consistency-Token", first.Token()).want(t, http.StatusOK)
		for _, o := range x.items() {
			seen[o.(map[string]any)["orderId"].(string)] = true
		}
		if x.Str("nextCursor") == "" {
			break
		}
		cursor = "&cursor=" + x.Str("nextCursor")
	}
	if len(seen) != 2 {
		t.Errorf("a list of %d pages, want 2", len(seen))
	}
	if x := c.do(t, s.restaurant, "GET", "/v1/orders?status=placed&status=accepted", nil).want(t, 200); len(x.items()) != 3 {
		t.Errorf("the restaurant's list: %s", x.Body)
	}
	if x := c.do(t, s.restaurant, "GET", "/v1/orders?status=delivered", nil).want(t, 200); len(x.items()) != 0 || x.body["items"] == nil {
		t.Errorf("an empty list: %s", x.Body)
	}
	x := c.do(t, customerActor("x"), "GET", "/v1/restaurants/"+s.rest, nil, "Consistency-Token", opened.Token()).want(t, 200)
	if x.body["menu"] == nil || x.body["open"] != true || x.Header.Get("ETag") == "" || x.Token() == "" {
		t.Errorf("a restaurant: %v %s", x.Header, x.Body)
	}
	if x := c.do(t, s.customer, "GET", fmt.Sprintf("/v1/restaurants/nearby?lat=%v&lng=%v&open=true", s.lat, s.lng), nil).want(t, 200); len(x.items()) != 1 {
		t.Errorf("restaurants nearby: %s", x.Body)
	}
	if e := c.do(t, s.customer, "GET", "/v1/orders/"+first.Str("orderId")+"/events", nil, "Consistency-Token", first.Token()).want(t, 200).items(); len(e) != 1 || e[0].(map[string]any)["type"] != "ORDER_PLACED" || e[0].(map[string]any)["version"] != 1.0 || len(e[0].(map[string]any)) != 5 ||
		fmt.Sprint(e[0].(map[string]any)["actor"]) != "map[role:customer sub:"+s.cust+"]" {
		t.Errorf("events: %v", e)
	}
}

// payments checks payments that fail, have another amount or come twice, and refunds.
func (c *contract) payments(t *testing.T) {
	s := c.newScene(t)
	s.place(t)
	get := func(a domain.Actor) *reply { return c.do(t, a, "GET", "/v1/payments/"+s.order, nil) }
	c.do(t, anOps, "POST", "/v1/payments/"+s.order+"/refund", aReason).want(t, 404, "payment_not_found")
	s.open(t)
	opened := c.command(t, s.customer, "POST", "/v1/orders/"+s.order+"/payment", "{}")
	if opened.Str("gatewayOrderId") != s.gatewayOrder || opened.num("amount") != 45000 || opened.Str("provider") != "simulated" || opened.Str("keyId") == "" || len(opened.body) != 5 {
		t.Errorf("opened again: %s", opened.Body)
	}
	c.do(t, customerActor("another"), "POST", "/v1/simulated-gateway/orders/"+s.gatewayOrder+"/pay", `{"outcome":"captured"}`).want(t, 404, "gateway_order_not_found")
	x := c.do(t, s.customer, "GET", "/v1/payments/"+s.order, nil, "Consistency-Token", opened.Token()).want(t, 200)
	if x.Str("state") != "requested" || x.body["payments"] == nil || x.body["refunds"] == nil || x.Header.Get("ETag") == "" || x.Str("gatewayOrderId") != s.gatewayOrder || x.Str("provider") != "simulated" {
		t.Errorf("a payment: %s", x.Body)
	}
	get(customerActor("another")).want(t, 404, "payment_not_found")
	get(restaurantActor("another")).want(t, 404, "payment_not_found")
	get(s.restaurant).want(t, 200)
	c.do(t, anOps, "POST", "/v1/payments/"+s.order+"/refund", aReason).want(t, 409, "payment_unsettled")
	s.simulate(t, `{"outcome":"failed"}`)
	s.untilPayment(t, "failed")
	s.simulate(t, `{"outcome":"authorized"}`)
	s.simulate(t, `{"outcome":"captured","amount":100}`)
	servertest.Until(t, "the refund of another amount", func() bool {
		refunds, _ := get(s.customer).body["refunds"].([]any)
		return len(refunds) == 1 && refunds[0].(map[string]any)["status"] == "succeeded" && refunds[0].(map[string]any)["amount"] == 100.0
	})
	if x := c.do(t, s.customer, "GET", "/v1/orders/"+s.order, nil); x.Str("status") != "placed" || x.Str("paymentStatus") != "failed" {
		t.Errorf("still payable: %s", x.Body)
	}
	s.simulate(t, `{"outcome":"captured","faults":["duplicate","reordered","old_secret"]}`)
	s.untilPayment(t, "paid")
	s.simulate(t, `{"outcome":"captured"}`)
	servertest.Until(t, "the refund of the second payment", func() bool {
		refunds, _ := get(s.customer).body["refunds"].([]any)
		return len(refunds) == 2 && refunds[1].(map[string]any)["status"] == "succeeded"
	})
	if x := get(anOps); x.Str("state") != "paid" {
		t.Errorf("%s", x.Body)
	}
	refunded := c.command(t, anOps, "POST", "/v1/payments/"+s.order+"/refund", aReason)
	if refunded.Str("state") != "refund_pending" || refunded.Str("orderId") != s.order {
		t.Errorf("%s", refunded.Body)
	}
	s.untilPayment(t, "refunded")
	if again := c.command(t, anOps, "POST", "/v1/payments/"+s.order+"/refund", aReason); again.Str("state") != "refunded" {
		t.Errorf("%s", again.Body)
	}
	c.do(t, anOps, "POST", "/v1/ops/payments/none/resolve", aReason).want(t, 404, "payment_not_found")

	// A payment of an unknown gateway order.
	id, hook := c.name("pay"), func(id string) string {
		return `{"entity":"event","account_id":"a","event":"payment.captured","contains":["payment"],"created_at":1,"payload":{"payment":{"entity":{"id":"` + id +
			`","entity":"payment","amount":700,"currency":"INR","status":"captured","order_id":"order_unknown1","method":"upi","captured":true,"notes":[],"created_at":1}}}}`
	}
	c.webhook(t, hook(id)).want(t, 200)
	c.webhook(t, `{"event":"subscription.paused","payload":{}}`).want(t, 200)
	c.webhook(t, `not JSON at all`).want(t, 200)
	servertest.Until(t, "the payment before an operator", func() bool {
		return strings.Contains(string(c.do(t, anOps, "GET", "/v1/ops/payments?state=unmatched&limit=200", nil).Body), id)
	})
	resolved := c.command(t, anOps, "POST", "/v1/ops/payments/"+id+"/resolve", aReason)
	v := c.command(t, anOps, "POST", "/v1/ops/payments/"+id+"/resolve", aReason).num("version")
	if x := c.do(t, anOps, "GET", "/v1/ops/payments?state=unmatched", nil, "Consistency-Token", resolved.Token()); strings.Contains(string(x.Body), id) || v != resolved.num("version") {
		t.Errorf("resolved: %s", x.Body)
	}
}
