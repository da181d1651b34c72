package server_test

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"tomato/cmd/tomato/servertest"
	"tomato/domain"
)

// contractRow is one operation of /openapi.json, with what the tests know about it.
type contractRow struct {
	method, path string   // the path names something that does not exist
	roles        string   // roles that may call the operation
	body         string   // a valid body; "" if the operation takes none
	required     []string // required fields of the body
	unknown      string   // code of the answer to the valid request; "" if it succeeds although nothing exists
	aid          string   // which other inputs the operation has: c(ommand headers), q(uery token), p(age), i(d in the path)
}

const (
	noOrder    = "019a0000-0000-7000-8000-00000000dead"
	freshOrder = "01ffffff-0000-7000-8000-00000000dead" // an id with a time in the future, so that the order cannot be archived
	aPoint     = `{"type":"Point","coordinates":[77.6,12.9]}`
	aReason    = `{"reason":"why"}`
)

var contractRows = []contractRow{
	{"PUT", "/v1/restaurants/none", "ops restaurant", `{"name":"N","location":` + aPoint + `,"address":"A"}`, []string{"name", "location"}, "", "ci"},
	{"POST", "/v1/restaurants/none/open", "ops restaurant", "", nil, "restaurant_not_found", "ci"},
	{"POST", "/v1/restaurants/none/close", "ops restaurant", "", nil, "restaurant_not_found", "ci"},
	{"PUT", "/v1/restaurants/none/menu/i", "ops restaurant", `{"name":"N","price":{"amount":1,"currency":"INR"},"available":true}`, []string{"name", "price", "available"}, "restaurant_not_found", "ci"},
	{"DELETE", "/v1/restaurants/none/menu/i", "ops restaurant", "", nil, "restaurant_not_found", "ci"},
	{"PUT", "/v1/riders/none", "ops rider", `{"name":"N","vehicle":"bike"}`, []string{"name"}, "", "ci"},
	{"POST", "/v1/riders/none/verify", "ops", "", nil, "rider_not_found", "ci"},
	{"POST", "/v1/riders/none/suspend", "ops", "", nil, "rider_not_found", "ci"},
	{"POST", "/v1/riders/none/online", "rider", "", nil, "rider_not_found", "ci"},
	{"POST", "/v1/riders/none/offline", "rider", "", nil, "rider_not_found", "ci"},
	{"PUT", "/v1/riders/none/location", "rider", `{"location":` + aPoint + `}`, []string{"location"}, "rider_not_found", "i"},
	{"POST", "/v1/rider-locations", "ops", `{"positions":[{"riderId":"none","location":` + aPoint + `}]}`, []string{"positions"}, "", ""},
	{"POST", "/v1/orders", "customer", `{"restaurantId":"none","items":[{"itemId":"i","quantity":1}],"deliverTo":{"location":` + aPoint + `,"address":"A"}}`, []string{"restaurantId", "items", "deliverTo"}, "unknown_restaurant", "c"},
	{"POST", "/v1/orders/" + freshOrder + "/payment", "customer", "", nil, "order_not_found", "ci"},
	{"POST", "/v1/orders/" + freshOrder + "/accept-order", "restaurant", `{"prepMinutes":5}`, nil, "order_not_found", "ci"},
	{"POST", "/v1/orders/" + freshOrder + "/reject", "restaurant", aReason, []string{"reason"}, "order_not_found", "ci"},
	{"POST", "/v1/orders/" + freshOrder + "/preparing", "restaurant", "", nil, "order_not_found", "ci"},
	{"POST", "/v1/orders/" + freshOrder + "/ready", "restaurant", "", nil, "order_not_found", "ci"},
	{"POST", "/v1/orders/" + freshOrder + "/accept", "rider", "", nil, "order_not_found", "ci"},
	{"POST", "/v1/orders/" + freshOrder + "/decline", "rider", "", nil, "order_not_found", "ci"},
	{"POST", "/v1/orders/" + freshOrder + "/pick-up", "rider", "", nil, "order_not_found", "ci"},
	{"POST", "/v1/orders/" + freshOrder + "/deliver", "rider", "", nil, "order_not_found", "ci"},
	{"POST", "/v1/orders/" + freshOrder + "/drop", "rider ops", aReason, []string{"reason"}, "order_not_found", "ci"},
	{"POST", "/v1/orders/" + freshOrder + "/cancel", "customer restaurant ops", aReason, []string{"reason"}, "order_not_found", "ci"},
	{"POST", "/v1/orders/" + freshOrder + "/dispatch", "ops", "", nil, "order_not_found", "ci"},
	{"POST", "/v1/payments/" + freshOrder + "/refund", "ops", aReason, []string{"reason"}, "payment_not_found", "ci"},
	{"POST", "/v1/ops/payments/none/resolve", "ops", aReason, []string{"reason"}, "payment_not_found", "ci"},
	{"POST", "/v1/simulated-gateway/orders/none/pay", "customer ops", `{"outcome":"captured"}`, []string{"outcome"}, "gateway_order_not_found", "i"},
	{"GET", "/v1/orders/" + noOrder, "customer restaurant rider ops support", "", nil, "order_not_found", "qi"},
	{"GET", "/v1/orders", "customer restaurant rider ops support", "", nil, "", "qp"},
	{"GET", "/v1/orders/" + noOrder + "/events", "customer restaurant rider ops support", "", nil, "order_not_found", "qi"},
	{"GET", "/v1/orders/" + noOrder + "/offers", "restaurant ops support", "", nil, "order_not_found", "qi"},
	{"GET", "/v1/riders/nearby?lat=1&lng=1", "ops restaurant support", "", nil, "", "q"},
	{"GET", "/v1/riders/none", "ops rider support", "", nil, "rider_not_found", "qi"},
	{"GET", "/v1/riders/none/offers", "ops rider support", "", nil, "rider_not_found", "qi"},
	{"GET", "/v1/restaurants/nearby?lat=1&lng=1", "customer restaurant rider ops support", "", nil, "", "q"},
	{"GET", "/v1/restaurants/none", "customer restaurant rider ops support", "", nil, "restaurant_not_found", "qi"},
	{"GET", "/v1/payments/" + noOrder, "customer restaurant ops support", "", nil, "payment_not_found", "qi"},
	{"GET", "/v1/ops/payments", "ops support", "", nil, "", "qp"},
	{"GET", "/v1/ops/projections", "ops support", "", nil, "", ""},
	{"GET", "/v1/ops/shards", "ops support", "", nil, "", ""},
	{"GET", "/v1/ops/consumers", "ops support", "", nil, "", ""},
	{"GET", "/v1/ops/dead-letters", "ops support", "", nil, "", "p"},
	{"GET", "/v1/ops/dead-letters/999999", "ops support", "", nil, "dead_letter_not_found", ""},
	{"POST", "/v1/ops/dead-letters/999999/replay", "ops", "", nil, "dead_letter_not_found", ""},
	{"POST", "/v1/ops/dead-letters/999999/discard", "ops", aReason, []string{"reason"}, "dead_letter_not_found", ""},
	{"GET", "/v1/ops/erasures", "ops support", "", nil, "", "p"},
	{"POST", "/v1/ops/revocations", "ops", `{"sub":"nobody","reason":"a lost phone"}`, []string{"sub", "reason"}, "", ""},
	{"POST", "/v1/ops/erasures", "ops", `{"customerId":"nobody","reason":"asked by letter"}`, []string{"reason"}, "", ""},
	{"POST", "/v1/ops/dead-letters/replay", "ops", `{"consumer":"orders","all":true,"dryRun":true}`, []string{"consumer"}, "", ""},
}

func someActor(role string) domain.Actor {
	switch role {
	case "customer":
		return customerActor("some-customer")
	case "restaurant":
		return restaurantActor("some-restaurant")
	case "rider":
		return riderActor("some-rider")
	case "support":
		return aSupport
	}
	return anOps
}

// refusedRequests sends requests to every contractRow that it must refuse. Then it checks
// that none of them has appended anything.
func (c *contract) refusedRequests(t *testing.T) {
	before := c.ends(t)
	for _, e := range contractRows {
		t.Run(e.method+" "+e.path, func(t *testing.T) {
			roles := strings.Fields(e.roles)
			actor := someActor(roles[0])
			var body any
			if e.body != "" {
				body = e.body
			}
			send := func(b any, headers ...string) *reply { return c.do(t, actor, e.method, e.path, b, headers...) }
			for what, token := range c.badTokens(t, actor) {
				x := c.send(t, e.method, e.path, "{", "Authorization", "Bearer "+token) // the token is checked before the body
				if x.Status != 401 {
					t.Errorf("token %s: %d", what, x.Status)
				}
			}
			c.send(t, e.method, e.path, body, "Authorization", "Basic b3BzOm9wcw==").want(t, 401, "unauthorized")
			for _, role := range []string{"customer", "restaurant", "rider", "ops", "support"} {
				if !slices.Contains(roles, role) {
					c.do(t, someActor(role), e.method, e.path, "{").want(t, 403, "forbidden") // the role is checked before the body
				}
			}
			c.do(t, actor, "PATCH", strings.Split(e.path, "?")[0], nil).want(t, 405, "method_not_allowed")
			if e.unknown != "" {
				status := 404
				if e.unknown == "unknown_restaurant" {
					status = 422
				}
				send(body).want(t, status, e.unknown)
			}
			if e.method == "POST" || e.method == "PUT" {
				c.refusedBodies(t, e, send)
			}
			bad := map[string][]string{}
			if strings.Contains(e.aid, "c") {
				bad["Idempotency-Key"] = []string{"a b", strings.Repeat("x", 256), "\"\"", "schlüssel"}
				bad["If-Match"] = []string{"abc", `"1" "2"`, "W/1", `*, "1"`}
			}
			if strings.Contains(e.aid, "c") || strings.Contains(e.aid, "q") {
				bad["Consistency-Token"] = []string{"!", "A", strings.Repeat("x", 3), "////"}
			}
			for header, values := range bad {
				for _, v := range values {
					if x := send(body, header, v).want(t, 422, "validation_failed"); x.locations() != "header."+header {
						t.Errorf("%s %q: located at %q", header, v, x.locations())
					}
				}
			}
			if strings.Contains(e.aid, "i") {
				parts := strings.Split(e.path, "/")
				at := slices.IndexFunc(parts, func(p string) bool { return p == "none" || p == noOrder || p == freshOrder })
				for _, id := range []string{"a%20b", strings.Repeat("x", 65), "a.b", "%C3%A9", "a%2Fb"} {
					parts[at] = id
					x := c.do(t, actor, e.method, strings.Join(parts, "/"), body)
					if x.want(t, 422, "validation_failed"); !slices.Contains([]string{"path.id", "path.orderId", "path.paymentId", "path.gatewayOrderId"}, x.locations()) {
						t.Errorf("path id %s: %d located at %q", id, x.Status, x.locations())
					}
				}
			}
			if strings.Contains(e.aid, "p") {
				for _, q := range []string{"limit=0", "limit=201", "limit=x", "limit=-1", "limit=1.5", "limit=", "limit=99999999999999999999"} {
					if x := c.do(t, actor, "GET", e.path+"?"+q, nil).want(t, 422, "validation_failed"); x.locations() != "query.limit" {
						t.Errorf("%s: located at %q", q, x.locations())
					}
				}
				for _, cursor := range []string{"x", "AAAA", "not-a-cursor", "a+b", "_" + strings.Repeat("A", 500)} {
					c.do(t, actor, "GET", e.path+"?cursor="+cursor, nil).want(t, 422, "invalid_cursor")
				}
			}
		})
	}
	t.Run("by field", func(t *testing.T) { c.refusedFields(t) })
	t.Run("without a token", func(t *testing.T) {
		hook := `{"event":"payment.captured"}`
		c.send(t, "POST", "/v1/webhooks/razorpay", hook).want(t, 401)
		c.send(t, "POST", "/v1/webhooks/razorpay", hook, "X-Razorpay-Signature", strings.Repeat("0", 64)).want(t, 401)
		c.send(t, "POST", "/v1/webhooks/razorpay", "x", "X-Razorpay-Signature", "not hex").want(t, 401)
		c.send(t, "POST", "/v1/webhooks/razorpay", strings.Repeat("x", 256<<10+1), "X-Razorpay-Signature", strings.Repeat("0", 64)).want(t, 413, "body_too_large")
		good := `{"event":"promo","room":"user:u","payload":{}}`
		emit := func(body string, headers ...string) *reply {
			return c.send(t, "POST", "/api/v1/internal/emit", body, append([]string{"x-internal-key", servertest.InternalKey}, headers...)...)
		}
		emit(good, "x-internal-key", "").want(t, 401)
		emit(good, "x-internal-key", "wrong").want(t, 401)
		emit("{", "x-internal-key", servertest.InternalKey+"x").want(t, 401) // the key is checked before the body
		emit("{").want(t, 400, "malformed_json")
		emit(good, "Content-Type", "text/plain").want(t, 415, "unsupported_media_type")
		emit(`{"event":"promo","room":"user:u","payload":"`+strings.Repeat("x", 1<<20)+`"}`).want(t, 413)
		for body, at := range map[string]string{
			`{"event":"feed:reset","room":"user:u","payload":{}}`:  "body.event",
			`{"event":"","room":"user:u","payload":{}}`:            "body.event",
			`{"event":"promo","room":"nowhere","payload":{}}`:      "body.room",
			`{"event":"promo","room":"user:a b","payload":{}}`:     "body.room",
			`{"event":"promo","room":"user:u"}`:                    "body.payload",
			`{"event":"promo","room":"user:u","payload":{},"x":1}`: "body.x",
			`{"event":"promo","room":"user:u","payload":null}`:     "body.payload",
			`{}`: "body.event body.payload body.room",
		} {
			if x := emit(body).want(t, 422, "validation_failed"); x.locations() != at {
				t.Errorf("%s: located at %q", body, x.locations())
			}
		}
		c.send(t, "GET", "/v1/nothing", nil).want(t, 404, "not_found")
		c.do(t, anOps, "POST", "/v1/orders/"+noOrder+"/fly", nil).want(t, 404, "not_found")
		c.send(t, "GET", "/", nil)
		for path, want := range map[string]string{"/healthz": "", "/readyz": "", "/metrics": "", "/openapi.json": "application/json", "/asyncapi.json": "application/json"} {
			x := c.send(t, "GET", path, nil)
			if x.Status != 200 || !strings.HasPrefix(x.Header.Get("Content-Type"), want) {
				t.Errorf("%s: %d %s", path, x.Status, x.Header.Get("Content-Type"))
			}
			c.send(t, "POST", path, nil).want(t, 405)
		}
		if v := c.spec["openapi"].(string); !strings.HasPrefix(v, "3.1") {
			t.Error("openapi", v)
		}
	})
	if types := c.appendedSince(t, before); len(types) > 0 {
		t.Errorf("refused requests appended %v", types)
	}
}

// refusedBodies sends broken variants of the valid body.
func (c *contract) refusedBodies(t *testing.T, e contractRow, send func(any, ...string) *reply) {
	t.Helper()
	good := e.body
	if good == "" {
		good = "{}"
	}
	for _, b := range []string{"{", `{"a":1}}`, `{"a":1} x`, "nope", `{'a':1}`, "\xff", `{"a":"` + "\xff" + `"}`, "\ufeff{}"} {
		send(b).want(t, 400, "malformed_json")
	}
	for _, b := range []string{"[]", "1", "null", `"x"`, "true"} {
		if x := send(b).want(t, 422, "validation_failed"); x.locations() != "body" {
			t.Errorf("%s: located at %q", b, x.locations())
		}
	}
	unknown := strings.TrimSuffix(good, "}") + `,"zzz":1}`
	if good == "{}" {
		unknown = `{"zzz":1}`
	}
	if x := send(unknown).want(t, 422, "validation_failed"); x.locations() != "body.zzz" || strings.Contains(string(x.Body), "9999") {
		t.Errorf("an unknown field: located at %q", x.locations())
	}
	for _, ct := range []string{"", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin1", "application/jsonp"} {
		send(good, "Content-Type", ct).want(t, 415, "unsupported_media_type")
	}
	send(good, "Content-Encoding", "gzip").want(t, 415)
	large := `{"zzz":"` + strings.Repeat("x", 1<<20) + `"}`
	send(large).want(t, 413, "body_too_large")
	if len(e.required) > 0 {
		for _, none := range []any{nil, "", "{}"} {
			x := send(none).want(t, 422, "validation_failed")
			for _, f := range e.required {
				if !slices.Contains(strings.Fields(x.locations()), "body."+f) {
					t.Errorf("without a body: located at %q, want body.%s", x.locations(), f)
				}
			}
		}
	}
	var m map[string]any
	if err := json.Unmarshal([]byte(good), &m); err != nil {
		t.Fatal(err)
	}
	for name, v := range m {
		m[name] = nil
		if x := send(m).want(t, 422, "validation_failed"); x.locations() != "body."+name {
			t.Errorf("%s null: located at %q", name, x.locations())
		}
		m[name] = map[string]any{"wrong": []int{1}}
		if x := send(m).want(t, 422); !strings.Contains(x.locations(), "body."+name) || strings.Contains(string(x.Body), "[1]") {
			t.Errorf("%s of the wrong type: located at %q", name, x.locations())
		}
		m[name] = v
	}
}

// refusedFields sends bodies and queries with invalid fields, and checks that the answer
// names the location of each fault.
func (c *contract) refusedFields(t *testing.T) {
	order := func(items, to string) string {
		return `{"restaurantId":"none","items":` + items + `,"deliverTo":` + to + `}`
	}
	const line, to = `[{"itemId":"i","quantity":1}]`, `{"location":` + aPoint + `,"address":"A"}`
	long := strings.Repeat("é", 501)
	at := func(coordinates string) string {
		return `{"location":{"type":"Point","coordinates":` + coordinates + `}}`
	}
	big := "[" + strings.TrimSuffix(strings.Repeat(`{"itemId":"i","quantity":1},`, 101), ",") + "]"
	for _, r := range []struct {
		actor              domain.Actor
		method, path, body string
		at                 string
	}{
		{someActor("customer"), "POST", "/v1/orders", order(`[{"itemId":"i","quantity":0}]`, to), "body.items[0].quantity"},
		{someActor("customer"), "POST", "/v1/orders", order(`[{"itemId":"i","quantity":1},{"itemId":"i","quantity":1000000000}]`, to), "body.items[1].quantity"},
		{someActor("customer"), "POST", "/v1/orders", order(`[{"itemId":"i","quantity":101}]`, to), "body.items[0].quantity"},
		{someActor("customer"), "POST", "/v1/orders", order(`[{"itemId":"i","quantity":-1}]`, to), "body.items[0].quantity"},
		{someActor("customer"), "POST", "/v1/orders", order(`[{"itemId":"i","quantity":1.5}]`, to), "body.items[0].quantity"},
		{someActor("customer"), "POST", "/v1/orders", order(`[{"itemId":"i","quantity":"1"}]`, to), "body.items[0].quantity"},
		{someActor("customer"), "POST", "/v1/orders", order(`[{"itemId":"i","quantity":1e400}]`, to), "body.items[0].quantity"},
		{someActor("customer"), "POST", "/v1/orders", order(`[{"itemId":"a b","quantity":1}]`, to), "body.items[0].itemId"},
		{someActor("customer"), "POST", "/v1/orders", order(`[{"itemId":"i","quantity":1,"price":1}]`, to), "body.items[0].price"},
		{someActor("customer"), "POST", "/v1/orders", order(`[]`, to), "body.items"},
		{someActor("customer"), "POST", "/v1/orders", order(big, to), "body.items"},
		{someActor("customer"), "POST", "/v1/orders", order(line, `{"address":"A"}`), "body.deliverTo.location"},
		{someActor("customer"), "POST", "/v1/orders", order(line, `{"location":`+aPoint+`,"address":"  "}`), "body.deliverTo.address"},
		{someActor("customer"), "POST", "/v1/orders", order(line, `{"location":`+aPoint+`,"address":"`+long+`"}`), "body.deliverTo.address"},
		{someActor("customer"), "POST", "/v1/orders", order(line, `{"location":`+aPoint+`,"address":"A","instructions":""}`), "body.deliverTo.instructions"},
		{someActor("customer"), "POST", "/v1/orders", order(line, `{"location":`+aPoint+`,"address":"a\u0000b"}`), "body.deliverTo.address"},
		{someActor("customer"), "POST", "/v1/orders", order(`[{"itemId":"i","quantity":0}]`, `{"location":`+aPoint+`}`), "body.deliverTo.address body.items[0].quantity"}, // all faults are named
		{someActor("rider"), "PUT", "/v1/riders/some-rider/location", at(`[12.9,97.6]`), "body.location.coordinates[1]"},                                                  // longitude and latitude are swapped
		{someActor("rider"), "PUT", "/v1/riders/some-rider/location", at(`[181,0]`), "body.location.coordinates[0]"},
		{someActor("rider"), "PUT", "/v1/riders/some-rider/location", at(`[-180.0001,-90.1]`), "body.location.coordinates[0] body.location.coordinates[1]"},
		{someActor("rider"), "PUT", "/v1/riders/some-rider/location", at(`[1]`), "body.location.coordinates"},
		{someActor("rider"), "PUT", "/v1/riders/some-rider/location", at(`[1,2,3,4]`), "body.location.coordinates"},
		{someActor("rider"), "PUT", "/v1/riders/some-rider/location", at(`["1",2]`), "body.location.coordinates[0]"},
		{someActor("rider"), "PUT", "/v1/riders/some-rider/location", `{"location":{"type":"LineString","coordinates":[1,2]}}`, "body.location.type"},
		{someActor("rider"), "PUT", "/v1/riders/some-rider/location", `{"location":{"lat":1,"lng":2}}`, "body.location.coordinates body.location.lat body.location.lng body.location.type"},
		{someActor("rider"), "PUT", "/v1/riders/some-rider/location", `{"location":` + aPoint + `,"recordedAt":"2999-01-01T00:00:00Z"}`, "body.recordedAt"},
		{someActor("rider"), "PUT", "/v1/riders/some-rider/location", `{"location":` + aPoint + `,"recordedAt":"yesterday"}`, "body.recordedAt"},
		{someActor("rider"), "PUT", "/v1/riders/some-rider/location", `{"location":` + aPoint + `,"recordedAt":1}`, "body.recordedAt"},
		{anOps, "POST", "/v1/rider-locations", `{"positions":[]}`, "body.positions"},
		{anOps, "POST", "/v1/rider-locations", `{"positions":[{"riderId":"a b","location":` + aPoint + `}]}`, "body.positions[0].riderId"},
		{anOps, "PUT", "/v1/restaurants/r/menu/i", `{"name":"N","price":{"amount":0,"currency":"INR"},"available":true}`, "body.price.amount"},
		{anOps, "PUT", "/v1/restaurants/r/menu/i", `{"name":"N","price":{"amount":100000001,"currency":"INR"},"available":true}`, "body.price.amount"},
		{anOps, "PUT", "/v1/restaurants/r/menu/i", `{"name":"N","price":{"amount":1,"currency":"inr"},"available":true}`, "body.price.currency"},
		{anOps, "PUT", "/v1/restaurants/r/menu/i", `{"name":"N","price":{"amount":1,"currency":"INR"},"available":"yes"}`, "body.available"},
		{anOps, "PUT", "/v1/restaurants/r/menu/a.b", `{"name":"N","price":{"amount":1,"currency":"INR"},"available":true}`, "path.itemId"},
		{someActor("restaurant"), "POST", "/v1/orders/" + freshOrder + "/accept-order", `{"prepMinutes":0}`, "body.prepMinutes"},
		{someActor("restaurant"), "POST", "/v1/orders/" + freshOrder + "/accept-order", `{"prepMinutes":241}`, "body.prepMinutes"},
		{someActor("restaurant"), "POST", "/v1/orders/not-a-uuid/ready", "", "path.id"},
		{anOps, "GET", "/v1/riders/nearby", "", "query.lat query.lng"},
		{anOps, "GET", "/v1/riders/nearby?lat=91&lng=181&radius=50001&limit=201", "", "query.lat query.lng query.radius query.limit"},
		{anOps, "GET", "/v1/riders/nearby?lat=NaN&lng=1&radius=0", "", "query.lat query.radius"},
		{anOps, "GET", "/v1/restaurants/nearby?lat=1&lng=Inf", "", "query.lng"},
		{anOps, "GET", "/v1/restaurants/nearby?lat=1&lng=1&open=maybe", "", "query.open"},
		{anOps, "GET", "/v1/orders?status=eaten", "", "query.status[0]"},
		{anOps, "GET", "/v1/orders?status=placed&status=x", "", "query.status[1]"},
		{anOps, "GET", "/v1/orders?customerId=a%20b", "", "query.customerId"},
		{anOps, "GET", "/v1/orders?dispatch=yes", "", "query.dispatch"},
		{anOps, "GET", "/v1/ops/payments?state=lost", "", "query.state"},
		{anOps, "GET", "/v1/ops/dead-letters/x", "", "path.id"},
		{anOps, "POST", "/v1/ops/erasures", `{"reason":"r"}`, "body"},
		{anOps, "POST", "/v1/ops/erasures", `{"customerId":"c","riderId":"r","reason":"r"}`, "body"},
		{anOps, "POST", "/v1/ops/erasures", `{"customerId":"a b","reason":"r"}`, "body.customerId"},
		{anOps, "POST", "/v1/ops/dead-letters/replay", `{"consumer":"orders"}`, "body"},
		{anOps, "POST", "/v1/ops/dead-letters/replay", `{"consumer":"orders","all":true,"key":"k"}`, "body"},
		{anOps, "POST", "/v1/simulated-gateway/orders/x/pay", `{"outcome":"captured","delay":"-1s"}`, "body.delay"},
		{anOps, "POST", "/v1/simulated-gateway/orders/x/pay", `{"outcome":"stolen"}`, "body.outcome"},
		{anOps, "POST", "/v1/simulated-gateway/orders/x/pay", `{"outcome":"captured","faults":["late"]}`, "body.faults[0]"},
	} {
		var body any
		if r.body != "" {
			body = r.body
		}
		if x := c.do(t, r.actor, r.method, r.path, body).want(t, http.StatusUnprocessableEntity, "validation_failed"); x.locations() != r.at {
			t.Errorf("%s %.200s: located at %q, want %q", x.Request, r.body, x.locations(), r.at)
		}
	}
	// The list of somebody else, or a parameter that is for other roles.
	for _, r := range []struct{ role, query string }{{"customer", "customerId=x"}, {"customer", "restaurantId=x"}, {"restaurant", "restaurantId=x"}, {"restaurant", "riderId=x"},
		{"rider", "riderId=x"}, {"rider", "customerId=some-rider"}, {"customer", "dispatch=exhausted"}} {
		c.do(t, someActor(r.role), "GET", "/v1/orders?"+r.query, nil).want(t, 403, "forbidden")
	}
	// A restaurant or a rider that does not exist yet and has another id than the caller.
	c.do(t, someActor("restaurant"), "PUT", "/v1/restaurants/none", `{"name":"N","location":`+aPoint+`}`).want(t, 403, "forbidden")
	c.do(t, someActor("rider"), "PUT", "/v1/riders/none", `{"name":"N"}`).want(t, 403, "forbidden")
	c.do(t, anOps, "PUT", "/v1/riders/none", `{"name":"N"}`, "If-Match", `"3"`).want(t, 412, "precondition_failed")
	x := c.do(t, anOps, "POST", "/v1/rider-locations", `{"positions":[{"riderId":"none","location":`+aPoint+`},{"riderId":"none","location":`+aPoint+`,"recordedAt":"2999-01-01T00:00:00Z"}]}`).want(t, 202)
	if x.num("accepted") != 0 || x.Token() != "" || x.Header.Get("ETag") != "" || strings.Count(string(x.Body), `"index"`) != 2 {
		t.Errorf("bulk: %v %s", x.Header, x.Body)
	}
}
