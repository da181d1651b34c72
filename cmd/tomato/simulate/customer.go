package simulate

import (
	"context"
	"net/http"
	"strconv"
	"time"
)

// pollEvery is how long a feed may be silent before its party reads by REST.
const pollEvery = 5 * time.Second

// customer is a party who places orders, one or several at the same time.
type customer struct {
	*party
	token string
	feed  *feed
}

// playCustomer plays the customer of one order from its placing to its end.
func (s *simulation) playCustomer(ctx context.Context, e *orderEntry, c *customer, p purchase) {
	placedAt := time.Now()
	if !s.place(ctx, e, c, p) {
		return
	}
	if e.plan.joinRoom && c.feed != nil {
		c.feed.joinOrder(ctx, e.id)
	}
	if e.plan.readBack {
		s.readBack(ctx, e, c)
	}
	if e.plan.payment == payNever {
		if e.plan.ending == endCustomerUnpaid {
			s.cancel(ctx, e, c.token, "changed my mind")
		}
		return
	}
	s.pay(ctx, e, c)
	s.followOrder(ctx, e, c)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.status == "delivered" {
		s.latency.add("e2e", time.Since(placedAt))
	}
}

// place places the order, checks the answer and reports whether there is an order.
// If the plan says so, it sends the request twice at the same time with one
// Idempotency-Key. This must make only one order.
func (s *simulation) place(ctx context.Context, e *orderEntry, c *customer, p purchase) bool {
	quantity := int64(1 + e.number%3)
	body := object{
		"restaurantId": p.restaurant.id, "items": []object{{"itemId": p.item, "quantity": quantity}},
		"deliverTo":         object{"location": p.to, "address": "Door " + strconv.Itoa(e.number)},
		"externalReference": s.reference(e.number),
	}
	request := call{token: c.token, method: http.MethodPost, path: "/v1/orders", body: body, key: s.key()}
	twin := make(chan string, 1) // the order id that the second placing was answered with
	if e.plan.placeTwice {
		go func() {
			var id string
			if a, err := s.api.do(ctx, request); err == nil && a.status == http.StatusCreated {
				v, _ := a.order()
				id = v.OrderID
			}
			twin <- id
		}()
	} else {
		twin <- ""
	}
	a, err := s.api.do(ctx, request)
	twinID := <-twin
	if err != nil {
		s.unanswered(ctx, "", err)
		return false
	}
	v, err := a.order()
	if a.status != http.StatusCreated || err != nil || v.OrderID == "" {
		s.ledger.fault(faultUnexpectedAnswer, "", "place order %d: %s", e.number, a)
		return false
	}
	s.latency.add("place", a.took)
	if twinID != "" && twinID != v.OrderID {
		s.ledger.fault(faultDuplicateEvent, v.OrderID, "one Idempotency-Key placed this order and %s", twinID)
	}
	if want := quantity * p.restaurant.price[p.item]; v.Amount != want {
		s.ledger.fault(faultMoney, v.OrderID, "the amount is %d; by the menu it is %d", v.Amount, want)
	}
	if v.Status != "placed" || v.CustomerID != c.id || v.RestaurantID != p.restaurant.id || v.PickUp.Location != p.restaurant.location {
		s.ledger.fault(faultUnexpectedAnswer, v.OrderID, "placing was answered with status %s, customer %s, restaurant %s at %v",
			v.Status, v.CustomerID, v.RestaurantID, v.PickUp.Location)
	}
	s.ledger.placed(e, v)
	s.enterAnswer(e, "place", "", a)
	s.placed.Add(1)
	return true
}

// readBack reads the order with the Consistency-Token of the last command on it. The
// answer must show the effect of that command.
func (s *simulation) readBack(ctx context.Context, e *orderEntry, c *customer) {
	e.mu.Lock()
	token, version := e.token, e.acks[len(e.acks)-1].version
	e.mu.Unlock()
	a, err := s.api.do(ctx, call{token: c.token, method: http.MethodGet, path: "/v1/orders/" + e.id, consistency: token})
	if err != nil {
		s.unanswered(ctx, e.id, err)
		return
	}
	if v, err := a.order(); !a.ok() || err != nil || v.Version < version {
		s.ledger.fault(faultStaleRead, e.id, "a read with the token of version %d was answered: %s", version, a)
	}
}

// followOrder waits until the order has ended, as far as its customer knows. It
// cancels the order if the plan says so. It reads by REST when the feed is silent.
func (s *simulation) followOrder(ctx context.Context, e *orderEntry, c *customer) {
	cancelled := false
	cancelDue := func() bool {
		switch {
		case cancelled:
			return false
		case e.plan.ending == endCustomerPaid:
			return e.status == "placed" && e.paymentStatus == "paid"
		case e.plan.ending == endCustomerAccepted:
			return e.status == "accepted"
		case e.plan.ending == endOpsAssigned:
			return e.status == "rider_assigned"
		}
		return false
	}
	for ctx.Err() == nil {
		e.await(ctx, pollEvery, func() bool { return isFinal(e.status) || cancelDue() })
		e.mu.Lock()
		done, cancel := isFinal(e.status), cancelDue()
		e.mu.Unlock()
		switch {
		case done:
			return
		case cancel:
			cancelled = true
			if e.plan.ending == endOpsAssigned {
				s.cancel(ctx, e, s.town.operatorToken, "operator's decision")
			} else {
				s.cancel(ctx, e, c.token, "changed my mind")
			}
			continue
		}
		s.readOrder(ctx, e, c.token)
		e.mu.Lock()
		awaitsRestaurant := e.paymentStatus == "paid" && e.status == "placed"
		e.mu.Unlock()
		if awaitsRestaurant && e.await(ctx, s.opt.feedPatience, func() bool { return e.status != "placed" }) {
			continue
		}
		if awaitsRestaurant && e.restaurantStarted.CompareAndSwap(false, true) {
			// order:new is overdue. The judge reports it if it never comes.
			s.feedWork.Go(func() { s.town.restaurantOf[e.restaurant].cook(ctx, s, e) })
		}
	}
}

// readOrder reads the order by REST and enters its status.
func (s *simulation) readOrder(ctx context.Context, e *orderEntry, token string) {
	a, err := s.api.do(ctx, call{token: token, method: http.MethodGet, path: "/v1/orders/" + e.id})
	if err != nil {
		s.unanswered(ctx, e.id, err)
		return
	}
	v, err := a.order()
	if err != nil || !a.ok() {
		if a.status != http.StatusNotFound { // the read model may not have the order yet
			s.ledger.fault(faultUnexpectedAnswer, e.id, "read: %s", a)
		}
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.advance(v.Version, v.Status)
	if v.PaymentStatus != "pending" {
		e.paymentStatus = v.PaymentStatus
	}
	e.wake()
}

// cancel cancels an order. From then on the commands of other parties may be
// refused.
func (s *simulation) cancel(ctx context.Context, e *orderEntry, token, reason string) {
	e.mu.Lock()
	e.cancelRequested = true
	holder := e.holder
	e.holder = ""
	e.mu.Unlock()
	if d := s.town.riderOf[holder]; d != nil {
		d.mu.Lock()
		d.cancelsUnderWay++
		d.mu.Unlock()
		defer func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.cancelsUnderWay--
			d.lastCancelled = time.Now()
		}()
	}
	if _, ok := s.command(ctx, e, token, "cancel", "", object{"reason": reason}, "invalid_transition"); !ok && holder != "" {
		e.mu.Lock()
		if e.holder == "" && !isFinal(e.status) {
			e.holder = holder
		}
		e.mu.Unlock()
	}
}
