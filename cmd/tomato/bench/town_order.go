package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/feedclient"
)

// townBlock is a part of the town: one restaurant, the riders near it, and one
// customer. Each of them has a websocket feed. The block has one order at a time.
type townBlock struct {
	town       *town
	number     int
	conn       *httpConn
	restaurant string // its id
	staff      string // token of the restaurant
	customer   string // token
	riders     []string
	menu       string // consistency token of the opening of the restaurant; "" once an order was priced
	seen       sightings
}

func newTownBlock(t *town, n int) (*townBlock, error) {
	k := &townBlock{town: t, number: n, conn: newHTTPConn(t.url), restaurant: townRestaurant(n), seen: sightings{first: map[string]sighting{}, changed: make(chan struct{})}}
	known := tokens{}
	var err error
	if k.staff, err = known.of(domain.Actor{Sub: k.restaurant + "-staff", Role: domain.Restaurant, RestaurantID: k.restaurant}); err != nil {
		return nil, err
	}
	if k.customer, err = known.of(domain.Actor{Sub: fmt.Sprint("bench-customer-", n), Role: domain.Customer}); err != nil {
		return nil, err
	}
	for i := range townRidersEach {
		token, err := known.of(domain.Actor{Sub: townRider(n, i), Role: domain.Rider})
		if err != nil {
			return nil, err
		}
		k.riders = append(k.riders, token)
	}
	return k, nil
}

// openRestaurant registers the restaurant with its menu and opens it.
func (k *townBlock) openRestaurant() error {
	at := townPlace(k.number)
	for _, c := range []struct{ method, path, body string }{
		{"PUT", "", fmt.Sprintf(`{"name":"Dosa Corner","location":{"type":"Point","coordinates":[%v,%v]},"address":"80 Feet Road, Koramangala, Bengaluru"}`, at.Lng, at.Lat)},
		{"PUT", "/menu/dosa", `{"name":"Masala Dosa","price":{"amount":12000,"currency":"INR"},"available":true}`},
		{"PUT", "/menu/lassi", `{"name":"Sweet Lassi","price":{"amount":6000,"currency":"INR"},"available":true}`},
		{"POST", "/open", ""},
	} {
		if err := k.conn.do(c.method, "/v1/restaurants/"+k.restaurant+c.path, k.staff, []byte(c.body)); err != nil {
			return err
		}
	}
	k.menu = k.conn.header.Get("Consistency-Token")
	return nil
}

// connect connects the feeds of the block. They are read until ctx ends.
func (k *townBlock) connect(ctx context.Context, readers *sync.WaitGroup) error {
	for rider, token := range append([]string{k.staff, k.customer}, k.riders...) {
		rider -= 2 // -2 and -1 are no riders
		conn, err := dialFeed(ctx, k.town.url, token)
		if err != nil {
			return err
		}
		readers.Go(func() {
			defer conn.Close()
			if err := k.read(ctx, conn, rider); ctx.Err() == nil {
				k.town.fail(fmt.Errorf("a feed broke: %w", err))
			}
		})
	}
	return nil
}

// read reads one feed until it breaks. Its error is never nil.
func (k *townBlock) read(ctx context.Context, conn *feedclient.Conn, rider int) error {
	expected := feedclient.OrderAvailable
	switch rider {
	case -2:
		expected = feedclient.OrderNew
	case -1:
		expected = feedclient.OrderUpdate
	}
	for {
		m, err := conn.Read(ctx)
		at := time.Now()
		if err != nil {
			return err
		}
		if m.Event != expected {
			continue
		}
		data, err := m.Data()
		if err != nil {
			return err
		}
		switch data := data.(type) {
		case *feedclient.Offer:
			k.seen.see(data.OrderID, seenOffered, sighting{at, rider})
		case *feedclient.Order:
			k.seen.see(data.OrderID, seenNew, sighting{at: at})
		case *feedclient.OrderChange:
			if data.Version > 0 && data.PaymentStatus == order.PaymentPaid {
				k.seen.see(data.OrderID, seenPaid, sighting{at: at})
			}
			if data.Version > 0 && data.Status == order.StatusDelivered {
				k.seen.see(data.OrderID, seenDelivered, sighting{at: at})
			}
		}
	}
}

// What the parties wait for on their feeds.
const (
	seenNew       = "new"       // the restaurant has a paid order
	seenPaid      = "paid"      // the customer's order is paid
	seenOffered   = "offered"   // a rider is offered the order
	seenDelivered = "delivered" // the customer's order is delivered
)

// sighting says when the first feed of a block had a message, and which rider's it was.
type sighting struct {
	at    time.Time
	rider int
}

// sightings are what the feeds of a block have received. Safe for concurrent use.
type sightings struct {
	mu      sync.Mutex
	first   map[string]sighting // by order id and kind
	changed chan struct{}       // closed and replaced at every change
}

func (s *sightings) see(orderID, what string, at sighting) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := orderID + " " + what
	if _, known := s.first[key]; known {
		return
	}
	s.first[key] = at
	close(s.changed)
	s.changed = make(chan struct{})
}

// await waits until a feed has the message.
func (s *sightings) await(ctx context.Context, orderID, what string) (sighting, error) {
	for {
		s.mu.Lock()
		found, ok := s.first[orderID+" "+what]
		changed := s.changed
		s.mu.Unlock()
		if ok {
			return found, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return sighting{}, fmt.Errorf("order %s is not %s on the feed: %w", orderID, what, context.Cause(ctx))
		}
	}
}

// clear forgets the orders of before.
func (s *sightings) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.first)
}

// townKeys numbers the Idempotency-Keys of a process.
var townKeys atomic.Int64

// command sends a command with an Idempotency-Key of its own. It repeats the command
// where the contract asks for it: after 429 and 503, and for a rider whose previous
// order is not quite finished.
func (k *townBlock) command(ctx context.Context, method, path, token, body string) error {
	k.conn.idempotencyKey = fmt.Sprint("bench-", townKeys.Add(1))
	defer func() { k.conn.idempotencyKey = "" }()
	for {
		err := k.conn.do(method, path, token, []byte(body))
		switch status := k.conn.status; {
		case err == nil:
			return nil
		case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable,
			status == http.StatusConflict && bytes.Contains(k.conn.body.Bytes(), []byte("rider_busy")):
		default:
			return err
		}
		k.town.repeats.Add(1)
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
}

// townSteps are the steps of an order whose latencies are taken. The step of an order
// begins with the request, or with due for the first one.
var townSteps = []string{"place", "paid", "accept", "offered", "claim", "pick_up", "deliver", "order"}

// play plays one order of the block from its placing, which was due at a given time,
// to its delivery. It returns how long each of townSteps took.
func (k *townBlock) play(ctx context.Context, due time.Time) (map[string]time.Duration, error) {
	k.seen.clear()
	took := map[string]time.Duration{}
	var id string
	step := func(name, token, command, body string) error {
		start := time.Now()
		if err := k.command(ctx, http.MethodPost, "/v1/orders/"+id+command, token, body); err != nil {
			return err
		}
		if name != "" {
			took[name] = time.Since(start)
		}
		return nil
	}

	k.conn.consistencyToken = k.menu
	err := k.command(ctx, http.MethodPost, "/v1/orders", k.customer, fmt.Sprintf(`{"restaurantId":"%s","items":[{"itemId":"dosa","quantity":2},{"itemId":"lassi","quantity":1}],`+
		`"deliverTo":{"location":{"type":"Point","coordinates":[%v,%v]},"address":"14 Church Street, Bengaluru"}}`, k.restaurant, townPlace(k.number).Lng, townPlace(k.number).Lat+0.02))
	k.conn.consistencyToken = ""
	if err != nil {
		return nil, err
	}
	took["place"] = time.Since(due)
	k.menu = ""
	id = path.Base(k.conn.header.Get("Location"))

	if err := step("", k.customer, "/payment", ""); err != nil {
		return nil, err
	}
	var payment struct{ GatewayOrderID string }
	if err := json.Unmarshal(k.conn.body.Bytes(), &payment); err != nil {
		return nil, err
	}
	start := time.Now()
	if err := k.command(ctx, http.MethodPost, "/v1/simulated-gateway/orders/"+payment.GatewayOrderID+"/pay", k.customer, `{"outcome":"captured"}`); err != nil {
		return nil, err
	}
	paid, err := k.seen.await(ctx, id, seenPaid)
	if err != nil {
		return nil, err
	}
	took["paid"] = paid.at.Sub(start)

	if _, err := k.seen.await(ctx, id, seenNew); err != nil {
		return nil, err
	}
	if err := step("accept", k.staff, "/accept-order", `{"prepMinutes":20}`); err != nil {
		return nil, err
	}
	if err := step("", k.staff, "/preparing", ""); err != nil {
		return nil, err
	}
	start = time.Now()
	if err := step("", k.staff, "/ready", ""); err != nil {
		return nil, err
	}
	offer, err := k.seen.await(ctx, id, seenOffered)
	if err != nil {
		return nil, err
	}
	took["offered"] = offer.at.Sub(start)

	rider := k.riders[offer.rider]
	for _, c := range []struct{ name, command string }{{"claim", "/accept"}, {"pick_up", "/pick-up"}, {"deliver", "/deliver"}} {
		if err := step(c.name, rider, c.command, ""); err != nil {
			return nil, err
		}
	}
	delivered, err := k.seen.await(ctx, id, seenDelivered)
	if err != nil {
		return nil, err
	}
	took["order"] = delivered.at.Sub(due)
	return took, nil
}
