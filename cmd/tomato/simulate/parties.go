package simulate

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"tomato/domain"
)

const (
	pollEvery = 5 * time.Second
	// maxRacers is how many riders of one wave accept an order at once; the
	// others look again when it is still open.
	maxRacers    = 4
	maxDispatch  = 20
	riderRecheck = time.Second
)

type customer struct {
	*party
	token string
	feed  *feed
}

type restaurant struct {
	*party
	token    string
	location domain.Point
	name     string
	items    []string
	price    map[string]int64
	feed     *feed
}

type rider struct {
	*party
	token   string
	name    string
	vehicle string
	home    domain.Point
	feed    *feed
	greedy  bool // accepts two orders at once

	mu      sync.Mutex
	offers  map[string]offer
	wake    chan struct{}
	rng     *rand.Rand // only run's goroutine
	freeing int        // cancels under way of an order that this rider has
	freed   time.Time  // when the last of them was answered
}

type offer struct {
	order     *record
	at        time.Time // of receipt
	expiresAt time.Time
}

type object = map[string]any

// command sends an order command and enters its answer in the book. allowed
// are the refusals that may happen here; any other is a broken promise.
func (s *sim) command(ctx context.Context, r *record, token, name, rider string, body any, allowed ...string) (answer, bool) {
	a, err := s.api.do(ctx, call{
		token: token, method: http.MethodPost, path: "/v1/orders/" + r.id + "/" + name, body: body, key: s.key(),
	})
	if err != nil {
		s.unanswered(ctx, r.id, err)
		return a, false
	}
	if a.ok() {
		s.accepted(r, name, rider, a)
		return a, true
	}
	if !slices.Contains(allowed, a.problem.Code) && !r.expects(name, a.problem.Code) {
		s.ledger.fault(faultAnswer, r.id, "%s: %s", name, a)
	}
	return a, false
}

// expects says whether a command may be refused with code for what others did
// to the order. It is asked after the answer: much happens while one waits.
func (r *record) expects(name, code string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch code {
	case "invalid_transition": // somebody cancels it, or is about to
		return r.voided || r.plan.end != endNone
	case "order_not_found": // another round began, and who is not in it is no party
		return (name == "accept" || name == "decline") && (r.drops > 0 || r.redispatched)
	}
	return false
}

// accepted checks the form of an order command's answer and books it.
func (s *sim) accepted(r *record, name, rider string, a answer) {
	v, err := a.order()
	if err != nil || v.OrderID == "" || v.Status == "" {
		s.ledger.fault(faultAnswer, r.id, "%s: no order in the answer: %v", name, err)
		return
	}
	if want := `"` + strconv.Itoa(v.Version) + `"`; a.etag != want {
		s.ledger.fault(faultAnswer, r.id, "%s: ETag %s with version %d", name, a.etag, v.Version)
	}
	if a.token == "" {
		s.ledger.fault(faultAnswer, r.id, "%s: no Consistency-Token", name)
	}
	s.ledger.acknowledged(r, name, rider, v, a.token)
}

func (s *sim) unanswered(ctx context.Context, order string, err error) {
	if ctx.Err() == nil {
		s.ledger.fault(faultUnanswered, order, "%v", err)
	}
}

// buy plays the customer of one order from placing to the end.
func (s *sim) buy(ctx context.Context, r *record, c *customer, from *restaurant, item string, to domain.Point) {
	quantity := int64(1 + r.n%3)
	body := object{
		"restaurantId": from.id, "items": []object{{"itemId": item, "quantity": quantity}},
		"deliverTo":         object{"location": to, "address": "Door " + strconv.Itoa(r.n)},
		"externalReference": s.reference(r.n),
	}
	q := call{token: c.token, method: http.MethodPost, path: "/v1/orders", body: body, key: s.key()}
	r.mu.Lock()
	r.starts.place = time.Now()
	placedAt := r.starts.place
	r.mu.Unlock()
	twin := make(chan string, 1)
	if r.plan.again {
		go func() {
			var id string
			if a, err := s.api.do(ctx, q); err == nil && a.status == http.StatusCreated {
				v, _ := a.order()
				id = v.OrderID
			}
			twin <- id
		}()
	} else {
		twin <- ""
	}
	a, err := s.api.do(ctx, q)
	second := <-twin
	if err != nil {
		s.unanswered(ctx, "", err)
		return
	}
	v, err := a.order()
	if a.status != http.StatusCreated || err != nil || v.OrderID == "" {
		s.ledger.fault(faultAnswer, "", "place order %d: %s", r.n, a)
		return
	}
	s.latency.add("place", a.took)
	if second != "" && second != v.OrderID {
		s.ledger.fault(faultTwice, v.OrderID, "one Idempotency-Key placed it and %s", second)
	}
	if want := quantity * from.price[item]; v.Amount != want {
		s.ledger.fault(faultMoney, v.OrderID, "amount %d, the menu makes it %d", v.Amount, want)
	}
	if v.Status != "placed" || v.CustomerID != c.id || v.RestaurantID != from.id || v.PickUp.Location != from.location {
		s.ledger.fault(faultAnswer, v.OrderID, "placed as %s by %s at %s, %v", v.Status, v.CustomerID, v.RestaurantID, v.PickUp.Location)
	}
	s.ledger.placed(r, v)
	s.accepted(r, "place", "", a)
	s.placed.Add(1)

	if r.plan.watch && c.feed != nil {
		c.feed.joinOrder(ctx, r.id)
	}
	if r.plan.readBack {
		s.readBack(ctx, r, c)
	}
	if r.plan.pay == payNever {
		if r.plan.end == endCustomerUnpaid {
			s.cancel(ctx, r, c.token, "changed my mind")
		}
		return
	}
	s.pay(ctx, r, c)
	s.follow(ctx, r, c)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.status == "delivered" {
		s.latency.add("e2e", time.Since(placedAt))
	}
}

// reference is the order's externalReference.
func (s *sim) reference(n int) string { return s.run + "-" + strconv.Itoa(n) }

// readBack reads the order with the token of its own command.
func (s *sim) readBack(ctx context.Context, r *record, c *customer) {
	r.mu.Lock()
	token, version := r.token, r.acks[len(r.acks)-1].version
	r.mu.Unlock()
	a, err := s.api.do(ctx, call{token: c.token, method: http.MethodGet, path: "/v1/orders/" + r.id, consistency: token})
	if err != nil {
		s.unanswered(ctx, r.id, err)
		return
	}
	if v, err := a.order(); !a.ok() || err != nil || v.Version < version {
		s.ledger.fault(faultStale, r.id, "read with the token of version %d: %s", version, a)
	}
}

// pay opens the payment and makes the gateway act as planned.
func (s *sim) pay(ctx context.Context, r *record, c *customer) {
	a, err := s.api.do(ctx, call{token: c.token, method: http.MethodPost, path: "/v1/orders/" + r.id + "/payment", key: s.key()})
	if err != nil {
		s.unanswered(ctx, r.id, err)
		return
	}
	var opened struct {
		GatewayOrderID string `json:"gatewayOrderId"`
		Amount         int64  `json:"amount"`
	}
	if err := unmarshal(a, &opened); err != nil || opened.GatewayOrderID == "" {
		s.ledger.fault(faultAnswer, r.id, "payment: %s", a)
		return
	}
	r.mu.Lock()
	r.request = true
	r.mu.Unlock()
	if opened.Amount != r.amount {
		s.ledger.fault(faultMoney, r.id, "payment opened over %d, the order is %d", opened.Amount, r.amount)
	}
	gateway := "/v1/simulated-gateway/orders/" + opened.GatewayOrderID + "/pay"
	n := 0
	newPayment := func() string {
		n++
		return fmt.Sprintf("pay_%s%06d%d", s.run, r.n, n)
	}
	send := func(id, outcome string, amount int64, fault string) bool {
		body := object{"outcome": outcome, "paymentId": id}
		if amount != r.amount {
			body["amount"] = amount
		}
		if fault != "" {
			body["faults"] = []string{fault}
		}
		if outcome == "captured" {
			// Booked before it is sent: whatever the answer, it may have been captured.
			r.mu.Lock()
			if !slices.ContainsFunc(r.captured, func(m money) bool { return m.paymentID == id }) {
				r.captured = append(r.captured, money{id, amount})
			}
			r.mu.Unlock()
		}
		a, err := s.api.do(ctx, call{token: c.token, method: http.MethodPost, path: gateway, body: body, key: s.key()})
		if err != nil {
			s.unanswered(ctx, r.id, err)
			return false
		}
		if a.status != http.StatusAccepted {
			s.ledger.fault(faultAnswer, r.id, "simulated gateway, %s: %s", outcome, a)
			return false
		}
		return true
	}
	paid := func() bool { return r.payment == "paid" || r.payment == "refund_pending" || r.payment == "refunded" }

	id := newPayment()
	switch p := r.plan.pay; p {
	case payLate:
		s.cancel(ctx, r, c.token, "too slow")
		send(id, "captured", r.amount, "")
	case payDroppedGone:
		send(id, "captured", r.amount, faults[p])
		r.await(ctx, s.opt.webhookPatience, paid)
		s.cancel(ctx, r, c.token, "no confirmation")
	case payWrongAmount:
		send(id, "captured", max(1, r.amount+r.plan.wrongBy), "")
		send(newPayment(), "captured", r.amount, "")
	case payFailedFirst:
		send(id, "failed", r.amount, "")
		send(newPayment(), "captured", r.amount, "")
	case payAuthorizedFirst:
		send(id, "authorized", r.amount, "")
		send(id, "captured", r.amount, "")
	case payTwice:
		send(id, "captured", r.amount, "")
		send(newPayment(), "captured", r.amount, "")
	case payPlain:
		r.mu.Lock()
		r.starts.pay = time.Now()
		r.mu.Unlock()
		send(id, "captured", r.amount, "")
	default:
		send(id, "captured", r.amount, faults[p])
		// The gateway sends the same payment's webhook again until it is taken.
		for range 5 {
			if r.await(ctx, s.opt.webhookPatience, paid) || ctx.Err() != nil {
				break
			}
			send(id, "captured", r.amount, "")
		}
	}
}

// follow waits for the end of the order as its customer sees it, ends it where
// that is planned, and reads by REST when the feed is silent for long.
func (s *sim) follow(ctx context.Context, r *record, c *customer) {
	cancelled := false
	cancelDue := func() bool {
		switch {
		case cancelled:
			return false
		case r.plan.end == endCustomerPaid:
			return r.status == "placed" && r.payment == "paid"
		case r.plan.end == endCustomerAccepted:
			return r.status == "accepted"
		case r.plan.end == endOpsAssigned:
			return r.status == "rider_assigned"
		}
		return false
	}
	for ctx.Err() == nil {
		r.await(ctx, pollEvery, func() bool { return closed(r.status) || cancelDue() })
		r.mu.Lock()
		done, cancel := closed(r.status), cancelDue()
		r.mu.Unlock()
		switch {
		case done:
			return
		case cancel:
			cancelled = true
			if r.plan.end == endOpsAssigned {
				s.cancel(ctx, r, s.ops, "operator's decision")
			} else {
				s.cancel(ctx, r, c.token, "changed my mind")
			}
			continue
		}
		s.look(ctx, r, c.token)
		r.mu.Lock()
		start := r.payment == "paid" && r.status == "placed"
		r.mu.Unlock()
		if start && r.await(ctx, s.opt.feedPatience, func() bool { return r.status != "placed" }) {
			continue
		}
		if start && r.cooking.CompareAndSwap(false, true) {
			// order:new is overdue; if it never comes it is reported at the end.
			s.work.Go(func() { s.cook(ctx, r, s.restaurantOf[r.restaurant]) })
		}
	}
}

// look reads the order by REST.
func (s *sim) look(ctx context.Context, r *record, token string) {
	a, err := s.api.do(ctx, call{token: token, method: http.MethodGet, path: "/v1/orders/" + r.id})
	if err != nil {
		s.unanswered(ctx, r.id, err)
		return
	}
	v, err := a.order()
	if err != nil || !a.ok() {
		if a.status != http.StatusNotFound { // the read model may not have it yet
			s.ledger.fault(faultAnswer, r.id, "read: %s", a)
		}
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.advance(v.Version, v.Status)
	if v.PaymentStatus != "pending" {
		r.payment = v.PaymentStatus
	}
	r.wake()
}

// cancel ends an order. From then on the refusals of the others are expected.
func (s *sim) cancel(ctx context.Context, r *record, token, reason string) {
	r.mu.Lock()
	r.voided = true
	holder := r.holder
	r.holder = ""
	r.mu.Unlock()
	if p := s.riderOf[holder]; p != nil {
		p.mu.Lock()
		p.freeing++
		p.mu.Unlock()
		defer func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.freeing--
			p.freed = time.Now()
		}()
	}
	if _, ok := s.command(ctx, r, token, "cancel", "", object{"reason": reason}, "invalid_transition"); !ok && holder != "" {
		r.mu.Lock()
		if r.holder == "" && !closed(r.status) {
			r.holder = holder
		}
		r.mu.Unlock()
	}
}

// cook plays the restaurant for one paid order.
func (s *sim) cook(ctx context.Context, r *record, k *restaurant) {
	switch {
	case r.plan.end == endReject:
		s.command(ctx, r, k.token, "reject", "", object{"reason": "sold out"})
		return
	case r.plan.end == endCustomerPaid:
		// The customer cancels a paid order that nobody has accepted yet.
		if r.await(ctx, s.opt.feedPatience, func() bool { return closed(r.status) }) {
			return
		}
	}
	if _, ok := s.command(ctx, r, k.token, "accept-order", "", object{"prepMinutes": 5}); !ok {
		return
	}
	if r.plan.end == endCustomerAccepted && r.await(ctx, s.opt.feedPatience, func() bool { return closed(r.status) }) {
		return
	}
	if _, ok := s.command(ctx, r, k.token, "preparing", "", nil); !ok {
		return
	}
	if r.plan.end == endRestaurantPreparing {
		s.cancel(ctx, r, k.token, "the oven broke")
		return
	}
	r.mu.Lock()
	r.starts.ready = time.Now()
	r.mu.Unlock()
	if _, ok := s.command(ctx, r, k.token, "ready", "", nil); !ok {
		return
	}
	if r.plan.end == endRestaurantReady {
		s.cancel(ctx, r, k.token, "it fell")
	}
}

// heard handles a message at a restaurant.
func (k *restaurant) heard(ctx context.Context, s *sim, m message) {
	r := s.ledger.received(m)
	if r == nil || m.Event != "order:new" {
		return
	}
	r.mu.Lock()
	if !r.starts.pay.IsZero() {
		s.latency.add("pay_to_order_new", time.Since(r.starts.pay))
		r.starts.pay = time.Time{}
	}
	r.mu.Unlock()
	if r.cooking.CompareAndSwap(false, true) {
		s.work.Go(func() { s.cook(ctx, r, k) })
	}
}

// heard handles a message at a rider.
func (d *rider) heard(s *sim, m message) {
	r := s.ledger.received(m)
	if r == nil {
		return
	}
	switch m.Event {
	case "order:available":
		if d.ineligible != "" {
			s.ledger.fault(faultUncalled, r.id, "%s is %s and was offered it", d.id, d.ineligible)
			return
		}
		if m.data.Location != r.pickUp || m.data.RestaurantID != r.restaurant.id {
			s.ledger.fault(faultFeed, r.id, "order:available from %s at %v", m.data.RestaurantID, m.data.Location)
		}
		r.mu.Lock()
		if !r.starts.ready.IsZero() {
			s.latency.add("ready_to_order_available", time.Since(r.starts.ready))
			r.starts.ready = time.Time{}
		}
		r.mu.Unlock()
		d.mu.Lock()
		d.offers[r.id] = offer{r, time.Now(), m.data.ExpiresAt}
		d.mu.Unlock()
	case "order:taken":
		d.mu.Lock()
		delete(d.offers, r.id)
		d.mu.Unlock()
	default:
		return
	}
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// ride is a rider's working day: one order at a time from the offers at hand.
func (d *rider) ride(ctx context.Context, s *sim) {
	tick := time.NewTicker(riderRecheck)
	defer tick.Stop()
	for {
		for ctx.Err() == nil && d.work(ctx, s) {
		}
		select {
		case <-ctx.Done():
			return
		case <-d.wake:
		case <-tick.C:
		}
	}
}

// work takes up one offer, or two at once if greedy, and says whether there
// was one to take up.
func (d *rider) work(ctx context.Context, s *sim) bool {
	var chosen []*record
	want := 1
	if d.greedy {
		want = 2
	}
	d.mu.Lock()
	now := time.Now()
	open := slices.SortedFunc(maps.Values(d.offers), func(a, b offer) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.order.n, b.order.n)) })
	for _, o := range open {
		if !o.expiresAt.IsZero() && now.After(o.expiresAt.Add(time.Second)) {
			delete(d.offers, o.order.id)
			continue
		}
		if len(chosen) == want {
			break
		}
		if o.order.racing.Add(1) > maxRacers {
			o.order.racing.Add(-1)
			continue
		}
		chosen = append(chosen, o.order)
		delete(d.offers, o.order.id)
	}
	d.mu.Unlock()
	if len(chosen) == 0 {
		return false
	}
	if d.rng.IntN(100) < 5 {
		r := chosen[0]
		if a, ok := s.command(ctx, r, d.token, "decline", d.id, nil); ok {
			if v, err := a.order(); err == nil && v.CustomerID != "" {
				s.ledger.fault(faultAnswer, r.id, "decline answered with the customer")
			}
		}
		r.racing.Add(-1)
		chosen = chosen[1:]
	}
	won := make([]bool, len(chosen))
	var both sync.WaitGroup
	for i, r := range chosen {
		both.Go(func() {
			defer r.racing.Add(-1)
			won[i] = d.accept(ctx, s, r, len(chosen) > 1)
		})
	}
	both.Wait()
	var has *record
	for i, r := range chosen {
		if won[i] {
			s.ledger.assigned(r, d.id, has)
			has = r
		}
	}
	for i, r := range chosen {
		if won[i] {
			d.carry(ctx, s, r)
		}
	}
	return true
}

// accept is one attempt at an offer. A refused one is gone, but for
// rider_busy, which leaves the offer open.
func (d *rider) accept(ctx context.Context, s *sim, r *record, two bool) bool {
	start := time.Now()
	a, ok := s.command(ctx, r, d.token, "accept", d.id, nil, "order_already_assigned", "offer_expired", "rider_busy")
	if ok {
		s.latency.add("accept", a.took)
		v, err := a.order()
		if err == nil && v.RiderID != d.id {
			s.ledger.fault(faultDoubleRider, r.id, "%s was told that it won, and that %s has it", d.id, v.RiderID)
		}
	}
	if a.problem.Code == "rider_busy" {
		d.mu.Lock()
		if !two && d.freeing == 0 && !d.freed.After(start) {
			// Neither two accepts at once, nor a cancel under way that frees the rider.
			s.ledger.fault(faultAnswer, r.id, "accept: %s, and %s has nothing", a, d.id)
		}
		if _, newer := d.offers[r.id]; !newer && !r.isClosed() {
			d.offers[r.id] = offer{order: r, at: time.Now(), expiresAt: time.Now().Add(riderRecheck)}
		}
		d.mu.Unlock()
	}
	return ok
}

// carry brings an order from its restaurant to its customer, or drops it.
func (d *rider) carry(ctx context.Context, s *sim, r *record) {
	r.mu.Lock()
	drop := r.plan.drop && r.drops == 0
	if drop {
		r.drops++
	}
	r.mu.Unlock()
	if drop {
		r.released()
		if a, ok := s.command(ctx, r, d.token, "drop", d.id, object{"reason": "flat tyre"}); ok {
			if v, err := a.order(); err == nil && v.CustomerID != "" {
				s.ledger.fault(faultAnswer, r.id, "drop answered with the customer")
			}
		}
		return
	}
	d.feed.locate(ctx, r.pickUp)
	if r.plan.end == endOpsAssigned && r.await(ctx, s.opt.feedPatience, func() bool { return closed(r.status) }) {
		return
	}
	if _, ok := s.command(ctx, r, d.token, "pick-up", d.id, nil); !ok {
		return
	}
	d.feed.locate(ctx, r.deliverTo)
	r.released()
	s.command(ctx, r, d.token, "deliver", d.id, nil)
	d.feed.locate(ctx, d.home)
	if d.rng.IntN(100) < 5 {
		s.must(ctx, d.token, http.MethodPost, "/v1/riders/"+d.id+"/offline", nil)
		s.must(ctx, d.token, http.MethodPost, "/v1/riders/"+d.id+"/online", nil)
	}
}
