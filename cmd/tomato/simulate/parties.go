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
	maxConcurrentAccepts = 4
	maxDispatch          = 20
	riderRecheck         = time.Second
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
	token      string
	name       string
	vehicle    string
	home       domain.Point
	feed       *feed
	acceptsTwo bool // accepts two orders at once

	mu              sync.Mutex
	offers          map[string]offer
	wake            chan struct{}
	rng             *rand.Rand // only run's goroutine
	cancelsUnderWay int        // cancels under way of an order that this rider has
	lastCancelled   time.Time  // when the last of them was answered
}

type offer struct {
	order     *orderEntry
	at        time.Time // of receipt
	expiresAt time.Time
}

type object = map[string]any

// command sends an order command and enters its answer in the book. allowed
// are the refusals that may happen here; any other is a broken promise.
func (s *simulation) command(ctx context.Context, r *orderEntry, token, name, rider string, body any, allowed ...string) (answer, bool) {
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
		s.ledger.fault(faultUnexpectedAnswer, r.id, "%s: %s", name, a)
	}
	return a, false
}

// expects says whether a command may be refused with code for what others did
// to the order. It is asked after the answer: much happens while one waits.
func (r *orderEntry) expects(name, code string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch code {
	case "invalid_transition": // somebody cancels it, or is about to
		return r.cancelRequested || r.plan.ending != endNone
	case "order_not_found": // another round began, and who is not in it is no party
		return (name == "accept" || name == "decline") && (r.drops > 0 || r.redispatched)
	}
	return false
}

// accepted checks the form of an order command's answer and books it.
func (s *simulation) accepted(r *orderEntry, name, rider string, a answer) {
	v, err := a.order()
	if err != nil || v.OrderID == "" || v.Status == "" {
		s.ledger.fault(faultUnexpectedAnswer, r.id, "%s: no order in the answer: %v", name, err)
		return
	}
	if want := `"` + strconv.Itoa(v.Version) + `"`; a.etag != want {
		s.ledger.fault(faultUnexpectedAnswer, r.id, "%s: ETag %s with version %d", name, a.etag, v.Version)
	}
	if a.token == "" {
		s.ledger.fault(faultUnexpectedAnswer, r.id, "%s: no Consistency-Token", name)
	}
	s.ledger.acknowledged(r, name, rider, v, a.token)
}

func (s *simulation) unanswered(ctx context.Context, order string, err error) {
	if ctx.Err() == nil {
		s.ledger.fault(faultUnanswered, order, "%v", err)
	}
}

// buy plays the customer of one order from placing to the end.
func (s *simulation) playCustomer(ctx context.Context, r *orderEntry, c *customer, from *restaurant, item string, to domain.Point) {
	quantity := int64(1 + r.number%3)
	body := object{
		"restaurantId": from.id, "items": []object{{"itemId": item, "quantity": quantity}},
		"deliverTo":         object{"location": to, "address": "Door " + strconv.Itoa(r.number)},
		"externalReference": s.reference(r.number),
	}
	q := call{token: c.token, method: http.MethodPost, path: "/v1/orders", body: body, key: s.key()}
	r.mu.Lock()
	r.latencyStarts.placing = time.Now()
	placedAt := r.latencyStarts.placing
	r.mu.Unlock()
	twin := make(chan string, 1)
	if r.plan.placeTwice {
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
		s.ledger.fault(faultUnexpectedAnswer, "", "place order %d: %s", r.number, a)
		return
	}
	s.latency.add("place", a.took)
	if second != "" && second != v.OrderID {
		s.ledger.fault(faultDuplicateEvent, v.OrderID, "one Idempotency-Key placed it and %s", second)
	}
	if want := quantity * from.price[item]; v.Amount != want {
		s.ledger.fault(faultMoney, v.OrderID, "amount %d, the menu makes it %d", v.Amount, want)
	}
	if v.Status != "placed" || v.CustomerID != c.id || v.RestaurantID != from.id || v.PickUp.Location != from.location {
		s.ledger.fault(faultUnexpectedAnswer, v.OrderID, "placed as %s by %s at %s, %v", v.Status, v.CustomerID, v.RestaurantID, v.PickUp.Location)
	}
	s.ledger.placed(r, v)
	s.accepted(r, "place", "", a)
	s.placed.Add(1)

	if r.plan.joinRoom && c.feed != nil {
		c.feed.joinOrder(ctx, r.id)
	}
	if r.plan.readBack {
		s.readBack(ctx, r, c)
	}
	if r.plan.payment == payNever {
		if r.plan.ending == endCustomerUnpaid {
			s.cancel(ctx, r, c.token, "changed my mind")
		}
		return
	}
	s.pay(ctx, r, c)
	s.followOrder(ctx, r, c)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.status == "delivered" {
		s.latency.add("e2e", time.Since(placedAt))
	}
}

// reference is the order's externalReference.
func (s *simulation) reference(n int) string { return s.run + "-" + strconv.Itoa(n) }

// readBack reads the order with the token of its own command.
func (s *simulation) readBack(ctx context.Context, r *orderEntry, c *customer) {
	r.mu.Lock()
	token, version := r.token, r.acks[len(r.acks)-1].version
	r.mu.Unlock()
	a, err := s.api.do(ctx, call{token: c.token, method: http.MethodGet, path: "/v1/orders/" + r.id, consistency: token})
	if err != nil {
		s.unanswered(ctx, r.id, err)
		return
	}
	if v, err := a.order(); !a.ok() || err != nil || v.Version < version {
		s.ledger.fault(faultStaleRead, r.id, "read with the token of version %d: %s", version, a)
	}
}

// pay opens the payment and makes the gateway act as planned.
func (s *simulation) pay(ctx context.Context, r *orderEntry, c *customer) {
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
		s.ledger.fault(faultUnexpectedAnswer, r.id, "payment: %s", a)
		return
	}
	r.mu.Lock()
	r.paymentRequested = true
	r.mu.Unlock()
	if opened.Amount != r.amount {
		s.ledger.fault(faultMoney, r.id, "payment opened over %d, the order is %d", opened.Amount, r.amount)
	}
	gateway := "/v1/simulated-gateway/orders/" + opened.GatewayOrderID + "/pay"
	n := 0
	newPayment := func() string {
		n++
		return fmt.Sprintf("pay_%s%06d%d", s.run, r.number, n)
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
			if !slices.ContainsFunc(r.captures, func(m capture) bool { return m.paymentID == id }) {
				r.captures = append(r.captures, capture{id, amount})
			}
			r.mu.Unlock()
		}
		a, err := s.api.do(ctx, call{token: c.token, method: http.MethodPost, path: gateway, body: body, key: s.key()})
		if err != nil {
			s.unanswered(ctx, r.id, err)
			return false
		}
		if a.status != http.StatusAccepted {
			s.ledger.fault(faultUnexpectedAnswer, r.id, "simulated gateway, %s: %s", outcome, a)
			return false
		}
		return true
	}
	paid := func() bool {
		return r.paymentStatus == "paid" || r.paymentStatus == "refund_pending" || r.paymentStatus == "refunded"
	}

	id := newPayment()
	switch p := r.plan.payment; p {
	case payLate:
		s.cancel(ctx, r, c.token, "too slow")
		send(id, "captured", r.amount, "")
	case payDroppedCancelled:
		send(id, "captured", r.amount, gatewayFaults[p])
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
		r.latencyStarts.capture = time.Now()
		r.mu.Unlock()
		send(id, "captured", r.amount, "")
	default:
		send(id, "captured", r.amount, gatewayFaults[p])
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
func (s *simulation) followOrder(ctx context.Context, r *orderEntry, c *customer) {
	cancelled := false
	cancelDue := func() bool {
		switch {
		case cancelled:
			return false
		case r.plan.ending == endCustomerPaid:
			return r.status == "placed" && r.paymentStatus == "paid"
		case r.plan.ending == endCustomerAccepted:
			return r.status == "accepted"
		case r.plan.ending == endOpsAssigned:
			return r.status == "rider_assigned"
		}
		return false
	}
	for ctx.Err() == nil {
		r.await(ctx, pollEvery, func() bool { return isFinal(r.status) || cancelDue() })
		r.mu.Lock()
		done, cancel := isFinal(r.status), cancelDue()
		r.mu.Unlock()
		switch {
		case done:
			return
		case cancel:
			cancelled = true
			if r.plan.ending == endOpsAssigned {
				s.cancel(ctx, r, s.opsToken, "operator's decision")
			} else {
				s.cancel(ctx, r, c.token, "changed my mind")
			}
			continue
		}
		s.readOrder(ctx, r, c.token)
		r.mu.Lock()
		start := r.paymentStatus == "paid" && r.status == "placed"
		r.mu.Unlock()
		if start && r.await(ctx, s.opt.feedPatience, func() bool { return r.status != "placed" }) {
			continue
		}
		if start && r.restaurantStarted.CompareAndSwap(false, true) {
			// order:new is overdue; if it never comes it is reported at the end.
			s.feedWork.Go(func() { s.cook(ctx, r, s.restaurantOf[r.restaurant]) })
		}
	}
}

// look reads the order by REST.
func (s *simulation) readOrder(ctx context.Context, r *orderEntry, token string) {
	a, err := s.api.do(ctx, call{token: token, method: http.MethodGet, path: "/v1/orders/" + r.id})
	if err != nil {
		s.unanswered(ctx, r.id, err)
		return
	}
	v, err := a.order()
	if err != nil || !a.ok() {
		if a.status != http.StatusNotFound { // the read model may not have it yet
			s.ledger.fault(faultUnexpectedAnswer, r.id, "read: %s", a)
		}
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.advance(v.Version, v.Status)
	if v.PaymentStatus != "pending" {
		r.paymentStatus = v.PaymentStatus
	}
	r.wake()
}

// cancel ends an order. From then on the refusals of the others are expected.
func (s *simulation) cancel(ctx context.Context, r *orderEntry, token, reason string) {
	r.mu.Lock()
	r.cancelRequested = true
	holder := r.holder
	r.holder = ""
	r.mu.Unlock()
	if p := s.riderOf[holder]; p != nil {
		p.mu.Lock()
		p.cancelsUnderWay++
		p.mu.Unlock()
		defer func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.cancelsUnderWay--
			p.lastCancelled = time.Now()
		}()
	}
	if _, ok := s.command(ctx, r, token, "cancel", "", object{"reason": reason}, "invalid_transition"); !ok && holder != "" {
		r.mu.Lock()
		if r.holder == "" && !isFinal(r.status) {
			r.holder = holder
		}
		r.mu.Unlock()
	}
}

// cook plays the restaurant for one paid order.
func (s *simulation) cook(ctx context.Context, r *orderEntry, k *restaurant) {
	switch {
	case r.plan.ending == endReject:
		s.command(ctx, r, k.token, "reject", "", object{"reason": "sold out"})
		return
	case r.plan.ending == endCustomerPaid:
		// The customer cancels a paid order that nobody has accepted yet.
		if r.await(ctx, s.opt.feedPatience, func() bool { return isFinal(r.status) }) {
			return
		}
	}
	if _, ok := s.command(ctx, r, k.token, "accept-order", "", object{"prepMinutes": 5}); !ok {
		return
	}
	if r.plan.ending == endCustomerAccepted && r.await(ctx, s.opt.feedPatience, func() bool { return isFinal(r.status) }) {
		return
	}
	if _, ok := s.command(ctx, r, k.token, "preparing", "", nil); !ok {
		return
	}
	if r.plan.ending == endRestaurantPreparing {
		s.cancel(ctx, r, k.token, "the oven broke")
		return
	}
	r.mu.Lock()
	r.latencyStarts.cooked = time.Now()
	r.mu.Unlock()
	if _, ok := s.command(ctx, r, k.token, "ready", "", nil); !ok {
		return
	}
	if r.plan.ending == endRestaurantReady {
		s.cancel(ctx, r, k.token, "it fell")
	}
}

// heard handles a message at a restaurant.
func (k *restaurant) receive(ctx context.Context, s *simulation, m message) {
	r := s.ledger.received(m)
	if r == nil || m.Event != "order:new" {
		return
	}
	r.mu.Lock()
	if !r.latencyStarts.capture.IsZero() {
		s.latency.add("pay_to_order_new", time.Since(r.latencyStarts.capture))
		r.latencyStarts.capture = time.Time{}
	}
	r.mu.Unlock()
	if r.restaurantStarted.CompareAndSwap(false, true) {
		s.feedWork.Go(func() { s.cook(ctx, r, k) })
	}
}

// heard handles a message at a rider.
func (d *rider) receive(s *simulation, m message) {
	r := s.ledger.received(m)
	if r == nil {
		return
	}
	switch m.Event {
	case "order:available":
		if d.ineligible != "" {
			s.ledger.fault(faultUncalledMessage, r.id, "%s is %s and was offered it", d.id, d.ineligible)
			return
		}
		if m.data.Location != r.pickUp || m.data.RestaurantID != r.restaurant.id {
			s.ledger.fault(faultFeedProtocol, r.id, "order:available from %s at %v", m.data.RestaurantID, m.data.Location)
		}
		r.mu.Lock()
		if !r.latencyStarts.cooked.IsZero() {
			s.latency.add("ready_to_order_available", time.Since(r.latencyStarts.cooked))
			r.latencyStarts.cooked = time.Time{}
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
func (d *rider) run(ctx context.Context, s *simulation) {
	tick := time.NewTicker(riderRecheck)
	defer tick.Stop()
	for {
		for ctx.Err() == nil && d.takeOffers(ctx, s) {
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
func (d *rider) takeOffers(ctx context.Context, s *simulation) bool {
	var chosen []*orderEntry
	want := 1
	if d.acceptsTwo {
		want = 2
	}
	d.mu.Lock()
	now := time.Now()
	open := slices.SortedFunc(maps.Values(d.offers), func(a, b offer) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.order.number, b.order.number)) })
	for _, o := range open {
		if !o.expiresAt.IsZero() && now.After(o.expiresAt.Add(time.Second)) {
			delete(d.offers, o.order.id)
			continue
		}
		if len(chosen) == want {
			break
		}
		if o.order.acceptsUnderWay.Add(1) > maxConcurrentAccepts {
			o.order.acceptsUnderWay.Add(-1)
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
				s.ledger.fault(faultUnexpectedAnswer, r.id, "decline answered with the customer")
			}
		}
		r.acceptsUnderWay.Add(-1)
		chosen = chosen[1:]
	}
	won := make([]bool, len(chosen))
	var both sync.WaitGroup
	for i, r := range chosen {
		both.Go(func() {
			defer r.acceptsUnderWay.Add(-1)
			won[i] = d.accept(ctx, s, r, len(chosen) > 1)
		})
	}
	both.Wait()
	var has *orderEntry
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
func (d *rider) accept(ctx context.Context, s *simulation, r *orderEntry, two bool) bool {
	start := time.Now()
	a, ok := s.command(ctx, r, d.token, "accept", d.id, nil, "order_already_assigned", "offer_expired", "rider_busy")
	if ok {
		s.latency.add("accept", a.took)
		v, err := a.order()
		if err == nil && v.RiderID != d.id {
			s.ledger.fault(faultTwoRiders, r.id, "%s was told that it won, and that %s has it", d.id, v.RiderID)
		}
	}
	if a.problem.Code == "rider_busy" {
		d.mu.Lock()
		if !two && d.cancelsUnderWay == 0 && !d.lastCancelled.After(start) {
			// Neither two accepts at once, nor a cancel under way that frees the rider.
			s.ledger.fault(faultUnexpectedAnswer, r.id, "accept: %s, and %s has nothing", a, d.id)
		}
		if _, newer := d.offers[r.id]; !newer && !r.hasEnded() {
			d.offers[r.id] = offer{order: r, at: time.Now(), expiresAt: time.Now().Add(riderRecheck)}
		}
		d.mu.Unlock()
	}
	return ok
}

// carry brings an order from its restaurant to its customer, or drops it.
func (d *rider) carry(ctx context.Context, s *simulation, r *orderEntry) {
	r.mu.Lock()
	drop := r.plan.riderDrops && r.drops == 0
	if drop {
		r.drops++
	}
	r.mu.Unlock()
	if drop {
		r.released()
		if a, ok := s.command(ctx, r, d.token, "drop", d.id, object{"reason": "flat tyre"}); ok {
			if v, err := a.order(); err == nil && v.CustomerID != "" {
				s.ledger.fault(faultUnexpectedAnswer, r.id, "drop answered with the customer")
			}
		}
		return
	}
	d.feed.locate(ctx, r.pickUp)
	if r.plan.ending == endOpsAssigned && r.await(ctx, s.opt.feedPatience, func() bool { return isFinal(r.status) }) {
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
