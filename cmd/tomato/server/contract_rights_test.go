package server_test

import (
	"net/http"
	"strings"
	"testing"

	"tomato/cmd/tomato/servertest"
	"tomato/domain"
)

// rightBodies has a valid body for each operation that needs one. Nothing of what they
// name exists, so that the calls of operators change nothing.
var rightBodies = map[string]string{
	"PUT /v1/restaurants/{id}":                               `{"name":"N","location":` + aPoint + `}`,
	"PUT /v1/restaurants/{id}/menu/{itemId}":                 `{"name":"N","price":{"amount":1,"currency":"INR"},"available":true}`,
	"PUT /v1/riders/{id}":                                    `{"name":"N"}`,
	"PUT /v1/riders/{id}/location":                           `{"location":` + aPoint + `}`,
	"POST /v1/rider-locations":                               `{"positions":[{"riderId":"none","location":` + aPoint + `}]}`,
	"POST /v1/orders":                                        `{"restaurantId":"none","items":[{"itemId":"i","quantity":1}],"deliverTo":{"location":` + aPoint + `,"address":"A"}}`,
	"POST /v1/orders/{id}/reject":                            aReason,
	"POST /v1/orders/{id}/drop":                              aReason,
	"POST /v1/orders/{id}/cancel":                            aReason,
	"POST /v1/payments/{orderId}/refund":                     aReason,
	"POST /v1/simulated-gateway/orders/{gatewayOrderId}/pay": `{"outcome":"authorized"}`,
	"POST /v1/ops/payments/{paymentId}/resolve":              aReason,
	"POST /v1/ops/projections/{readModel}/switch":            `{"generation":999}`,
	"POST /v1/ops/projections/{readModel}/drop":              `{"generation":999}`,
	"POST /v1/ops/projections/{readModel}/rebuild-one":       `{"key":"nobody"}`,
	"POST /v1/ops/projections/{readModel}/skip":              `{"topic":"orders","partition":0,"offset":999999999,"reason":"why"}`,
	"POST /v1/ops/projections/{readModel}/unskip":            `{"topic":"orders","partition":0,"offset":999999999}`,
	"POST /v1/ops/dead-letters/{id}/discard":                 aReason,
	"POST /v1/ops/dead-letters/replay":                       `{"consumer":"orders","all":true,"dryRun":true}`,
	"POST /v1/ops/revocations":                               `{"sub":"nobody","reason":"asked by letter"}`,
	"POST /v1/ops/erasures":                                  `{"customerId":"nobody","reason":"asked by letter"}`,
}

// rights checks every cell of the table of rights (rights_test.go) against the running
// server. It has an order that one rider has and that was offered to another.
func (c *contract) rights(t *testing.T) {
	t.Run("every route", func(t *testing.T) { everyRouteHasARight(t, c.api) })
	s := c.reach(t, "rider_assigned")
	for _, r := range rights {
		method, _, _ := strings.Cut(r.operation, " ")
		t.Run(r.operation, func(t *testing.T) {
			switch {
			case r.key != "":
				s.withoutToken(t, r)
			case method == "JOIN" || method == "SEND":
				for i, cell := range strings.Fields(r.cells) {
					s.feedRight(t, r.operation, i, cell)
				}
			default:
				method, path, body := s.requestOf(r.operation, 0)
				c.send(t, method, path, body).want(t, 401, "unauthorized")
				for i, cell := range strings.Fields(r.cells) {
					s.restRight(t, r.operation, i, cell)
				}
			}
		})
	}
}

// callerOf returns who the caller of a column is in the scene.
func (s *scene) callerOf(column int) domain.Actor {
	return []domain.Actor{s.customer, customerActor("another"), s.restaurant, restaurantActor("another"),
		s.won, s.offered, riderActor(s.stranger), anOps, aSupport}[column]
}

// requestOf returns the request of a caller: about the order of the scene, its restaurant
// and the rider who has it.
func (s *scene) requestOf(operation string, column int) (method, path string, body any) {
	method, path, _ = strings.Cut(operation, " ")
	if b := rightBodies[operation]; b != "" {
		body = b
	}
	id := map[string]string{"restaurants": s.rest, "riders": s.winner, "orders": s.order}[strings.Split(path, "/")[2]]
	if strings.HasPrefix(path, "/v1/ops/") {
		id = "999999"
	}
	path = strings.NewReplacer("{id}", id, "{itemId}", "nothing", "{orderId}", s.order, "{gatewayOrderId}", s.gatewayOrder,
		"{paymentId}", "none", "{readModel}", "orders").Replace(path)
	switch operation {
	case "GET /v1/riders/nearby", "GET /v1/restaurants/nearby":
		path += "?lat=1&lng=1"
	case "GET /v1/orders":
		path += map[domain.Role]string{domain.Customer: "?customerId=" + s.cust, domain.Restaurant: "?restaurantId=" + s.rest, domain.Rider: "?riderId=" + s.winner}[callers[column].role]
	}
	return method, path, body
}

// restRight sends the request of one cell. It has an If-Match that no version has, so that
// a command which the caller may give changes nothing.
func (s *scene) restRight(t *testing.T, operation string, column int, cell string) {
	t.Helper()
	who := callers[column]
	if cell == "-" {
		return
	}
	method, path, body := s.requestOf(operation, column)
	if operation == "GET /v1/feed/sse" {
		s.opens(t, s.callerOf(column))
		return
	}
	x := s.c.do(t, s.callerOf(column), method, path, body, "If-Match", `"999999"`)
	code := x.Str("code")
	about := strings.Contains(operation, "{id}") || strings.Contains(operation, "{orderId}") || strings.Contains(operation, "{gatewayOrderId}")
	var ok bool
	switch cell {
	case "yes":
		ok = x.Status != 401 && x.Status != 403 && x.Status != 400 && x.Status != 415 && code != "validation_failed" && // the handler was reached
			(x.Status != 404 || !about || strings.Contains(operation, "/ops/"))
	case "no", "403":
		ok = x.Status == 403 && code == "forbidden"
	case "404":
		ok = x.Status == 404 && strings.HasSuffix(code, "_not_found")
	}
	if !ok {
		t.Errorf("%s %s, %s: got %d %.300s, want %s", who.role, who.relation, x.Request, x.Status, x.Body, cell)
	}
}

// opens opens Server-Sent Events.
func (s *scene) opens(t *testing.T, a domain.Actor) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", s.c.URL+"/v1/feed/sse", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+servertest.Token(t, a))
	resp, err := s.c.Client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("%s: %s", a.Role, resp.Status)
	}
}

// feedRight checks one cell of an operation of an open feed. A room that may not be joined
// may not be named when a feed is opened, either.
func (s *scene) feedRight(t *testing.T, operation string, column int, cell string) {
	t.Helper()
	who, caller := callers[column], s.callerOf(column)
	code := map[string]string{"no": "forbidden", "403": "forbidden", "404": "order_not_found"}[cell]
	if cell == "-" {
		return
	}
	feed := s.c.listen(t, caller, "", nil)
	if operation == "SEND location" {
		feed.Send(`{"op":"location","location":` + aPoint + `}`)
		feed.Send(`{"op":"dance"}`)
		feed.until("feed:error unknown_op") // by now the server has handled the location
		if lines := feed.lines(); (lines[0] == "feed:error forbidden") != (cell == "no") {
			t.Errorf("%s %s: %q, want %s", who.role, who.relation, lines, cell)
		}
		return
	}
	if operation == "SEND seen" {
		feed.Send(`{"op":"seen","orderId":"` + s.order + `"}`)
		feed.until(map[string]string{"no": "feed:error forbidden", "404": "feed:error order:" + s.order + " order_not_found",
			"yes": "feed:error order:" + s.order + " offer_expired"}[cell]) // the offers of the order have ended
		return
	}
	id := map[string]string{"JOIN user:{id}": s.cust, "JOIN restaurant:{id}": s.rest, "JOIN order:{id}": s.order}[operation]
	if operation == "JOIN user:{id}" && who.role == domain.Rider {
		id = s.winner
	}
	room := strings.Replace(strings.TrimPrefix(operation, "JOIN "), "{id}", id, 1)
	feed.Send(`{"op":"join","room":"` + room + `"}`)
	if cell == "yes" {
		feed.until("feed:joined " + room)
		return
	}
	feed.until("feed:error " + room + " " + code)
	status := 403
	if cell == "404" {
		status = 404
	}
	s.c.do(t, caller, "GET", "/v1/feed/sse?room="+room, nil).want(t, status, code)
}

// withoutToken checks a row with a key: no token opens it. That the key opens it is tested
// where the key is.
func (s *scene) withoutToken(t *testing.T, r right) {
	t.Helper()
	method, path, _ := strings.Cut(r.operation, " ")
	path = strings.Replace(path, "{name}", "forbidden", 1)
	if r.key == "nothing" {
		if x := s.c.send(t, method, path, nil); x.Status != 200 {
			t.Errorf("%s: %d", r.operation, x.Status)
		}
		return
	}
	s.c.send(t, method, path, "{}").want(t, 401, "unauthorized")
	for column := range callers {
		s.c.do(t, s.callerOf(column), method, path, "{}").want(t, 401, "unauthorized")
	}
}

// support checks that role support is shown what ops is shown, without what is personal.
func (c *contract) support(t *testing.T) {
	s := c.newScene(t)
	c.command(t, anOps, "PUT", "/v1/riders/"+s.winner, `{"name":"Asha Rao"}`)
	s.place(t)
	cancelled := s.order
	s.do(t, s.customer, "cancel").want(t, 200) // with aReason
	s.place(t)
	room := "order:" + s.order
	feed, own := c.listen(t, aSupport, "?room="+room+"&room=restaurant:"+s.rest, nil), c.listen(t, s.customer, "?room="+room, nil)
	s.pay(t)
	s.must(t, s.restaurant, "accept-order")
	s.must(t, s.restaurant, "preparing")
	s.must(t, s.restaurant, "ready")
	s.untilOffered(t, s.winner, s.loser)
	s.must(t, s.won, "accept")
	c.send(t, "POST", "/api/v1/internal/emit", `{"event":"order:update","room":"`+room+`","payload":"1 Street"}`, "x-internal-key", servertest.InternalKey).want(t, 202)
	own.until(`"1 Street"`)
	c.do(t, s.won, "PUT", "/v1/riders/"+s.winner+"/location", map[string]any{"location": pointAt(12.345678, 1)}).want(t, 202)
	own.until("12.345678")
	s.must(t, s.won, "pick-up")
	feed.until(`"status":"picked_up"`)
	personal := []string{"1 Street", "Asha Rao", "12.345678", `"why"`, "riderLocation", "deliverTo"}
	shown := strings.Join(feed.lines(), "\n")
	for _, word := range personal {
		if strings.Contains(shown, word) {
			t.Errorf("the feed shows %s: %s", word, shown)
		}
	}
	if n := strings.Count(shown, "order:update"); n < 5 {
		t.Errorf("%d updates: %s", n, shown)
	}
	seenByOps := ""
	for _, path := range []string{"/v1/orders/" + s.order, "/v1/orders/" + s.order + "/events", "/v1/orders?customerId=" + s.cust, "/v1/orders/" + cancelled,
		"/v1/orders/" + cancelled + "/events", "/v1/riders/" + s.winner, "/v1/riders/nearby?lat=1&lng=12.3&radius=50000", "/v1/payments/" + s.order} {
		ops, support := c.do(t, anOps, "GET", path, nil, "Consistency-Token", s.token).want(t, 200), c.do(t, aSupport, "GET", path, nil, "Consistency-Token", s.token).want(t, 200)
		seenByOps += string(ops.Body)
		for _, word := range personal {
			if strings.Contains(string(support.Body), word) {
				t.Errorf("%s shows %s: %s", path, word, support.Body)
			}
		}
		if len(ops.items()) != len(support.items()) || len(ops.items()) == 0 && support.body["version"] == nil && !strings.Contains(path, "nearby") {
			t.Errorf("%s: ops %s, support %s", path, ops.Body, support.Body)
		}
	}
	for _, word := range personal {
		if !strings.Contains(seenByOps, word) {
			t.Errorf("ops is not shown %s", word)
		}
	}
	if x := c.do(t, aSupport, "GET", "/v1/orders/"+s.order+"/events", nil); !strings.Contains(string(x.Body), s.winner) || !strings.Contains(string(x.Body), s.loser) {
		t.Errorf("support is not shown the riders: %s", x.Body)
	}
}
