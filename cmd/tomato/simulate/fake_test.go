package simulate

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/golang-jwt/jwt/v5"

	"tomato/domain"
)

const fakeSecret = "fake-secret-fake-secret-fake-secret"

// fake is a small server that stands in for Tomato, so that the simulator's own
// judgement can be tested. It serves the calls of /openapi.json that the simulator
// makes, from maps under one lock. By default it answers truthfully, and the
// simulator must find no fault. Its knobs make it lie, and the simulator must find
// each lie.
type fake struct {
	t   *testing.T
	srv *httptest.Server

	mu          sync.Mutex
	orders      map[string]*fakeOrder
	byGateway   map[string]*fakeOrder
	keys        map[string]*fakeOrder
	riders      map[string]*fakeRider
	restaurants map[string]*fakeRestaurant
	log         []fakeMessage
	grown       chan struct{}
	n           int

	// The knobs. Functions are called with the lock held.
	copies   func(room, event string, v object) int           // returns how often a message is sent; nil means once
	keep     func(o *fakeOrder, typ string, data object) bool // reports whether the event is kept in the history; nil keeps all
	busy     func(path string) bool                           // reports whether the call is answered with 503
	twoWin   bool                                             // an accept succeeds although the order has a rider
	noRefund bool                                             // no money is sent back
	reset    bool                                             // every reconnect gets feed:reset
}

type fakeMessage struct {
	rooms []string
	body  object
	times map[string]int
}

type fakeOrder struct {
	view     object
	id       string
	version  int
	status   string
	pay      string
	rider    string
	events   []object
	offered  map[string]bool // riders with an offer; the value is true once they declined
	excluded map[string]bool
	gateway  string
	booked   string
	payments []object
	refunds  []object
	lost     []string // ids of captured payments whose webhook was lost
}

type fakeRider struct {
	id, name         string
	verified, online bool
	suspended        bool
	fresh            bool
	order            string
}

type fakeRestaurant struct {
	location any
	name     string
	items    map[string]int64
	open     bool
}

func newFake(t *testing.T) *fake {
	f := &fake{
		t: t, orders: map[string]*fakeOrder{}, byGateway: map[string]*fakeOrder{}, keys: map[string]*fakeOrder{},
		riders: map[string]*fakeRider{}, restaurants: map[string]*fakeRestaurant{}, grown: make(chan struct{}),
	}
	m := http.NewServeMux()
	handle := func(pattern string, h func(w http.ResponseWriter, r *http.Request, who claims, body object)) {
		m.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			var c claims
			_, err := jwt.ParseWithClaims(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), &c,
				func(*jwt.Token) (any, error) { return []byte(fakeSecret), nil })
			if err != nil {
				problem(w, 401, "unauthorized")
				return
			}
			body := object{}
			if r.ContentLength > 0 {
				if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
					problem(w, 400, "malformed")
					return
				}
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.busy != nil && f.busy(r.URL.Path) {
				w.Header().Set("Retry-After", "0")
				problem(w, 503, "busy")
				return
			}
			h(w, r, c, body)
		})
	}
	handle("PUT /v1/restaurants/{id}", func(w http.ResponseWriter, r *http.Request, _ claims, b object) {
		f.restaurants[r.PathValue("id")] = &fakeRestaurant{location: b["location"], name: b["name"].(string), items: map[string]int64{}}
		w.WriteHeader(201)
	})
	handle("PUT /v1/restaurants/{id}/menu/{item}", func(w http.ResponseWriter, r *http.Request, _ claims, b object) {
		f.restaurants[r.PathValue("id")].items[r.PathValue("item")] = int64(b["price"].(object)["amount"].(float64))
		w.WriteHeader(201)
	})
	handle("POST /v1/restaurants/{id}/{verb}", func(w http.ResponseWriter, r *http.Request, _ claims, _ object) {
		f.restaurants[r.PathValue("id")].open = r.PathValue("verb") == "open"
	})
	handle("PUT /v1/riders/{id}", func(w http.ResponseWriter, r *http.Request, _ claims, b object) {
		f.riders[r.PathValue("id")] = &fakeRider{id: r.PathValue("id"), name: b["name"].(string)}
		w.WriteHeader(201)
	})
	handle("GET /v1/riders/{id}", func(w http.ResponseWriter, r *http.Request, _ claims, _ object) {
		d := f.riders[r.PathValue("id")]
		v := object{"riderId": d.id, "status": "available"}
		if !d.online {
			v["status"] = "offline"
		}
		if d.order != "" {
			v["status"], v["orderId"] = "busy", d.order
		}
		reply(w, 200, v)
	})
	handle("GET /v1/riders/{id}/offers", func(w http.ResponseWriter, r *http.Request, _ claims, _ object) {
		items := []object{}
		for _, o := range f.orders {
			if declined, ok := o.offered[r.PathValue("id")]; ok && !declined {
				items = append(items, object{"orderId": o.id, "expiresAt": time.Now().Add(time.Minute)})
			}
		}
		reply(w, 200, object{"items": items})
	})
	handle("POST /v1/riders/{id}/{verb}", func(w http.ResponseWriter, r *http.Request, _ claims, _ object) {
		d := f.riders[r.PathValue("id")]
		switch r.PathValue("verb") {
		case "verify":
			d.verified = true
		case "suspend":
			d.suspended = true
		case "online":
			d.online = true
			f.freed()
		case "offline":
			d.online = false
		}
	})
	handle("POST /v1/rider-locations", func(w http.ResponseWriter, r *http.Request, _ claims, b object) {
		for _, p := range b["positions"].([]any) {
			p := p.(object)
			f.riders[p["riderId"].(string)].fresh = p["recordedAt"] == nil
		}
		reply(w, 202, object{"accepted": len(b["positions"].([]any)), "rejected": []object{}})
	})
	handle("POST /v1/orders", f.place)
	handle("GET /v1/orders", func(w http.ResponseWriter, r *http.Request, who claims, _ object) {
		items := []object{}
		for _, o := range f.orders {
			if who.Role == "ops" && r.URL.Query().Get("dispatch") == "exhausted" && o.exhausted() || who.Sub == o.view["customerId"] ||
				who.RestaurantID == o.view["restaurantId"] && who.RestaurantID != "" && r.URL.Query().Get("status") == o.status {
				items = append(items, o.answer())
			}
		}
		reply(w, 200, object{"items": items})
	})
	handle("GET /v1/orders/{id}", func(w http.ResponseWriter, r *http.Request, _ claims, _ object) {
		reply(w, 200, f.orders[r.PathValue("id")].answer())
	})
	handle("GET /v1/orders/{id}/events", func(w http.ResponseWriter, r *http.Request, _ claims, _ object) {
		reply(w, 200, object{"items": f.orders[r.PathValue("id")].events})
	})
	handle("GET /v1/payments/{id}", func(w http.ResponseWriter, r *http.Request, _ claims, _ object) {
		o := f.orders[r.PathValue("id")]
		if o.gateway == "" {
			problem(w, 404, "payment_not_found")
			return
		}
		reply(w, 200, object{"orderId": o.id, "payments": o.payments, "refunds": o.refunds})
	})
	handle("POST /v1/orders/{id}/{verb}", f.command)
	handle("POST /v1/simulated-gateway/orders/{id}/pay", f.gatewayPay)
	handle("GET /v1/ops/dead-letters", func(w http.ResponseWriter, r *http.Request, _ claims, _ object) {
		reply(w, 200, object{"items": []object{}})
	})
	m.HandleFunc("GET /v1/feed", f.feed)
	f.srv = httptest.NewServer(m)
	t.Cleanup(f.srv.Close)
	return f
}

type claims struct {
	Sub          string `json:"sub"`
	Role         string `json:"role"`
	RestaurantID string `json:"restaurantId"`
	jwt.RegisteredClaims
}

func reply(w http.ResponseWriter, status int, v any) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func problem(w http.ResponseWriter, status int, code string) {
	reply(w, status, object{"code": code, "status": status})
}

func (o *fakeOrder) answer() object {
	v := object{}
	for k, x := range o.view {
		v[k] = x
	}
	v["version"], v["status"], v["paymentStatus"] = o.version, o.status, o.pay
	if o.rider != "" {
		v["riderId"] = o.rider
	}
	return v
}

func (o *fakeOrder) exhausted() bool {
	return len(o.events) > 0 && o.events[len(o.events)-1]["type"] == "DISPATCH_EXHAUSTED"
}

func (o *fakeOrder) closed() bool { return isFinal(o.status) }

func (f *fake) answer(w http.ResponseWriter, status int, o *fakeOrder) {
	w.Header().Set("ETag", fmt.Sprintf("%q", strconv.Itoa(o.version)))
	w.Header().Set("Consistency-Token", "t"+strconv.Itoa(o.version))
	reply(w, status, o.answer())
}

// send puts one message into rooms. A connection gets it once, unless copies says
// otherwise.
func (f *fake) send(event string, v object, rooms ...string) {
	times := map[string]int{}
	for _, r := range rooms {
		times[r] = 1
		if f.copies != nil {
			times[r] = f.copies(r, event, v)
		}
	}
	f.log = append(f.log, fakeMessage{rooms, object{"event": event, "payload": v, "timestamp": time.Now(), "cursor": strconv.Itoa(len(f.log) + 1)}, times})
	close(f.grown)
	f.grown = make(chan struct{})
}

// event appends an event to the order's history and sends the messages that follow
// from it.
func (f *fake) event(o *fakeOrder, typ, status string, data object) {
	o.version++
	if status != "" {
		o.status = status
	}
	if f.keep == nil || f.keep(o, typ, data) {
		o.events = append(o.events, object{"type": typ, "version": o.version, "timestamp": time.Now(), "data": data})
	}
	rooms := []string{"user:" + o.view["customerId"].(string), "restaurant:" + o.view["restaurantId"].(string)}
	v := object{"orderId": o.id, "version": o.version, "status": o.status}
	if typ == "ORDER_PAID" {
		v["paymentStatus"] = "paid"
		f.send("order:new", o.answer(), rooms[1])
	}
	withdraw := func(winner, reason string) {
		for id, declined := range o.offered {
			if id != winner && !declined {
				f.send("order:taken", object{"orderId": o.id, "reason": reason}, "user:"+id)
			}
		}
		o.offered = nil
	}
	switch typ {
	case "ORDER_OFFERED", "OFFER_DECLINED", "DISPATCH_REQUESTED", "ORDER_PLACED":
		return
	case "DISPATCH_EXHAUSTED":
		f.send("dispatch:exhausted", object{"orderId": o.id, "waves": 1}, rooms[1], "ops")
		return
	case "RIDER_ASSIGNED":
		withdraw(o.rider, "assigned")
		f.send("order:rider_assigned", object{"orderId": o.id, "riderId": o.rider, "riderName": "x"}, rooms...)
	case "ORDER_CANCELLED":
		withdraw("", "cancelled")
	}
	if o.rider != "" {
		rooms = append(rooms, "user:"+o.rider)
	}
	f.send("order:update", v, rooms...)
}

func (f *fake) place(w http.ResponseWriter, r *http.Request, who claims, b object) {
	key := who.Sub + r.Header.Get("Idempotency-Key")
	if o := f.keys[key]; o != nil {
		f.answer(w, 201, o)
		return
	}
	k := f.restaurants[b["restaurantId"].(string)]
	line := b["items"].([]any)[0].(object)
	f.n++
	o := &fakeOrder{id: fmt.Sprintf("o%d", f.n), pay: "pending", excluded: map[string]bool{}}
	o.view = object{
		"orderId": o.id, "customerId": who.Sub, "restaurantId": b["restaurantId"], "currency": "INR",
		"amount": k.items[line["itemId"].(string)] * int64(line["quantity"].(float64)),
		"pickUp": object{"location": k.location}, "externalReference": b["externalReference"],
		"paymentDueAt": time.Now().Add(15 * time.Minute),
	}
	f.orders[o.id], f.keys[key] = o, o
	f.event(o, "ORDER_PLACED", "placed", object{})
	f.answer(w, 201, o)
}

func (f *fake) gatewayPay(w http.ResponseWriter, r *http.Request, _ claims, b object) {
	o := f.byGateway[r.PathValue("id")]
	w.WriteHeader(202)
	amount := o.view["amount"].(int64)
	if a, ok := b["amount"].(float64); ok {
		amount = int64(a)
	}
	id := b["paymentId"].(string)
	lost := false
	if fs, ok := b["faults"].([]any); ok {
		lost = fs[0] == "dropped" || fs[0] == "wrong_signature"
	}
	known := slices.IndexFunc(o.payments, func(p object) bool { return p["paymentId"] == id })
	switch {
	case b["outcome"] == "failed":
		if o.pay == "pending" || o.pay == "failed" {
			o.pay = "failed"
			f.send("order:update", object{"orderId": o.id, "paymentStatus": "failed"}, "user:"+o.view["customerId"].(string), "restaurant:"+o.view["restaurantId"].(string))
		}
	case b["outcome"] == "captured" && lost:
		o.lost = append(o.lost, id)
	case b["outcome"] == "captured" && known < 0:
		o.lost = slices.DeleteFunc(o.lost, func(x string) bool { return x == id })
		f.capture(o, id, amount)
	}
}

func (f *fake) capture(o *fakeOrder, id string, amount int64) {
	o.payments = append(o.payments, object{"paymentId": id, "amount": amount, "state": "captured"})
	switch {
	case amount != o.view["amount"].(int64) || o.booked != "":
		f.refund(o, id, amount)
	case o.closed():
		o.booked = id
		f.refund(o, id, amount)
	default:
		o.booked, o.pay = id, "paid"
		f.event(o, "ORDER_PAID", "", object{"paymentId": id})
	}
}

func (f *fake) refund(o *fakeOrder, id string, amount int64) {
	if f.noRefund {
		return
	}
	o.refunds = append(o.refunds, object{"refundId": "r-" + id, "paymentId": id, "amount": amount, "status": "processed"})
	if id == o.booked {
		o.pay = "refunded"
		for _, p := range []string{"refund_pending", "refunded"} {
			f.send("order:update", object{"orderId": o.id, "paymentStatus": p}, "user:"+o.view["customerId"].(string), "restaurant:"+o.view["restaurantId"].(string))
		}
	}
}

// offer offers the order to every free rider who has not got an offer in this wave.
func (f *fake) offer(o *fakeOrder) {
	if o.status != "ready_for_rider" || o.exhausted() {
		return
	}
	var riders []object
	if o.offered == nil {
		o.offered = map[string]bool{}
	}
	for id, d := range f.riders {
		if _, seen := o.offered[id]; !seen && d.verified && d.online && d.fresh && !d.suspended && d.order == "" && !o.excluded[id] {
			riders = append(riders, object{"riderId": id, "distanceMeters": 1})
		}
	}
	if len(riders) > 0 {
		f.event(o, "ORDER_OFFERED", "", object{"riders": riders, "wave": 1})
		for _, d := range riders {
			o.offered[d["riderId"].(string)] = false
			f.send("order:available", object{
				"orderId": o.id, "restaurantId": o.view["restaurantId"], "location": o.view["pickUp"].(object)["location"],
				"distanceMeters": 1, "expiresAt": time.Now().Add(time.Minute),
			}, "user:"+d["riderId"].(string))
		}
	}
	for _, declined := range o.offered {
		if !declined {
			return
		}
	}
	if len(o.offered)+len(o.excluded) > 0 {
		f.event(o, "DISPATCH_EXHAUSTED", "", object{})
	}
}

func (f *fake) freed() {
	for _, o := range f.orders {
		f.offer(o)
	}
}

func (f *fake) command(w http.ResponseWriter, r *http.Request, who claims, b object) {
	o := f.orders[r.PathValue("id")]
	verb := r.PathValue("verb")
	release := func() {
		if o.rider != "" {
			f.riders[o.rider].order = ""
			f.freed()
		}
	}
	step := func(from []string, typ, to string) bool {
		if !slices.Contains(from, o.status) {
			if o.status == to {
				f.answer(w, 200, o)
			} else {
				problem(w, 409, "invalid_transition")
			}
			return false
		}
		f.event(o, typ, to, object{"riderId": o.rider, "ctx": domain.Ctx{Status: to}})
		f.answer(w, 200, o)
		return true
	}
	end := func(from []string, typ, to string) {
		if step(from, typ, to) {
			if o.booked != "" {
				f.refund(o, o.booked, o.view["amount"].(int64))
			}
			for _, id := range o.lost { // Tomato would find these payments by asking the gateway
				f.capture(o, id, o.view["amount"].(int64))
			}
			release()
		}
	}
	switch verb {
	case "payment":
		o.gateway = "g-" + o.id
		f.byGateway[o.gateway] = o
		reply(w, 200, object{"gatewayOrderId": o.gateway, "amount": o.view["amount"]})
	case "accept-order":
		step([]string{"placed"}, "ORDER_ACCEPTED", "accepted")
	case "preparing":
		step([]string{"accepted"}, "ORDER_PREPARING", "preparing")
	case "ready":
		if step([]string{"preparing"}, "ORDER_READY_FOR_RIDER", "ready_for_rider") {
			f.offer(o)
		}
	case "reject":
		end([]string{"placed"}, "ORDER_REJECTED", "rejected")
	case "cancel":
		from := []string{"placed", "accepted"}
		if who.Role != "customer" {
			from = append(from, "preparing", "ready_for_rider", "rider_assigned")
		}
		if who.Role == "ops" {
			from = append(from, "picked_up")
		}
		end(from, "ORDER_CANCELLED", "cancelled")
	case "accept":
		d := f.riders[who.Sub]
		declined, offered := o.offered[who.Sub]
		switch {
		case f.twoWin && o.rider != "" && !o.closed():
			v := o.answer()
			v["riderId"] = who.Sub
			w.Header().Set("ETag", fmt.Sprintf("%q", strconv.Itoa(o.version)))
			w.Header().Set("Consistency-Token", "t")
			reply(w, 200, v)
		case o.status == "cancelled":
			problem(w, 409, "invalid_transition")
		case o.rider != "":
			problem(w, 409, "order_already_assigned")
		case !offered || declined:
			problem(w, 409, "offer_expired")
		case d.order != "":
			problem(w, 409, "rider_busy")
		default:
			d.order, o.rider = o.id, d.id
			f.event(o, "RIDER_ASSIGNED", "rider_assigned", object{"riderId": d.id})
			f.answer(w, 200, o)
		}
	case "decline":
		if declined, offered := o.offered[who.Sub]; offered && !declined {
			o.offered[who.Sub], o.excluded[who.Sub] = true, true
			f.event(o, "OFFER_DECLINED", "", object{"riderId": who.Sub})
			f.offer(o)
		}
		v := o.answer()
		delete(v, "customerId")
		w.Header().Set("ETag", fmt.Sprintf("%q", strconv.Itoa(o.version)))
		w.Header().Set("Consistency-Token", "t")
		reply(w, 200, v)
	case "pick-up":
		step([]string{"rider_assigned"}, "ORDER_PICKED_UP", "picked_up")
	case "deliver":
		if step([]string{"picked_up"}, "ORDER_DELIVERED", "delivered") {
			release()
		}
	case "drop":
		if o.status != "rider_assigned" {
			problem(w, 409, "invalid_transition")
			return
		}
		d := f.riders[o.rider]
		f.event(o, "RIDER_UNASSIGNED", "ready_for_rider", object{"riderId": o.rider})
		d.order, o.rider, o.excluded[d.id] = "", "", true
		v := o.answer()
		delete(v, "customerId")
		w.Header().Set("ETag", fmt.Sprintf("%q", strconv.Itoa(o.version)))
		w.Header().Set("Consistency-Token", "t")
		reply(w, 200, v)
		f.offer(o)
		f.freed()
	case "dispatch":
		if !o.exhausted() {
			problem(w, 409, "invalid_transition")
			return
		}
		o.excluded, o.offered = map[string]bool{}, nil
		f.event(o, "DISPATCH_REQUESTED", "", object{})
		f.answer(w, 200, o)
		f.offer(o)
	}
}

func (f *fake) feed(w http.ResponseWriter, r *http.Request) {
	var c claims
	if _, err := jwt.ParseWithClaims(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), &c,
		func(*jwt.Token) (any, error) { return []byte(fakeSecret), nil }); err != nil {
		problem(w, 401, "unauthorized")
		return
	}
	f.mu.Lock()
	next := len(f.log)
	f.mu.Unlock()
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer conn.CloseNow()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	write := func(v any) bool {
		b, _ := json.Marshal(v)
		return conn.Write(ctx, websocket.MessageText, b) == nil
	}
	if cur := r.URL.Query().Get("cursor"); cur != "" {
		if f.reset {
			write(object{"event": "feed:reset"})
		} else {
			next, _ = strconv.Atoi(cur)
			write(object{"event": "feed:resumed"})
		}
	}
	room := "user:" + c.Sub
	if c.Role == "restaurant" {
		room = "restaurant:" + c.RestaurantID
	}
	go func() {
		for {
			_, b, err := conn.Read(ctx)
			if err != nil {
				cancel()
				return
			}
			var op struct{ Op, Room string }
			_ = json.Unmarshal(b, &op)
			if op.Op == "join" {
				write(object{"event": "feed:joined", "room": op.Room})
			}
		}
	}()
	if c.Role == "ops" {
		room = "ops"
	}
	for {
		f.mu.Lock()
		batch, grown := f.log[next:], f.grown
		next = len(f.log)
		f.mu.Unlock()
		for _, m := range batch {
			if !slices.Contains(m.rooms, room) {
				continue
			}
			v := object{}
			for k, x := range m.body {
				v[k] = x
			}
			v["room"] = room
			for range m.times[room] {
				if !write(v) {
					return
				}
			}
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return
		}
	}
}
