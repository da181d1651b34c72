package simulate

import (
	"context"
	"net/http"
	"time"

	"tomato/domain"
)

// restaurant is a party that cooks. Its fields do not change during the run.
type restaurant struct {
	*party
	token    string
	location domain.Point
	name     string
	items    []string
	price    map[string]int64 // of each item, in minor units
	feed     *feed
}

// receive handles a feed message to the restaurant.
func (k *restaurant) receive(ctx context.Context, s *simulation, m message) {
	e := s.ledger.received(m)
	if e == nil || m.Event != "order:new" {
		return
	}
	e.mu.Lock()
	if !e.latencyStarts.capture.IsZero() {
		s.latency.add("pay_to_order_new", time.Since(e.latencyStarts.capture))
		e.latencyStarts.capture = time.Time{}
	}
	e.mu.Unlock()
	if e.restaurantStarted.CompareAndSwap(false, true) {
		s.feedWork.Go(func() { k.cook(ctx, s, e) })
	}
}

// reload looks for paid orders by REST and cooks them. Their order:new may have been
// lost at a feed:reset.
func (k *restaurant) reload(ctx context.Context, s *simulation) {
	a, ok := s.must(ctx, k.token, http.MethodGet, "/v1/orders?status=placed&limit=200", nil)
	var list struct {
		Items []orderView `json:"items"`
	}
	if !ok || a.decode(&list) != nil {
		return
	}
	for _, v := range list.Items {
		if e := s.ledger.find(v.OrderID); e != nil && v.PaymentStatus == "paid" && e.restaurantStarted.CompareAndSwap(false, true) {
			k.cook(ctx, s, e)
		}
	}
}

// cook plays the restaurant for one paid order. It is called once for each order.
func (k *restaurant) cook(ctx context.Context, s *simulation, e *orderEntry) {
	switch {
	case e.plan.ending == endReject:
		s.command(ctx, e, k.token, "reject", "", object{"reason": "sold out"})
		return
	case e.plan.ending == endCustomerPaid:
		// The customer cancels the paid order before the restaurant accepts it.
		if e.await(ctx, s.opt.feedPatience, func() bool { return isFinal(e.status) }) {
			return
		}
	}
	if _, ok := s.command(ctx, e, k.token, "accept-order", "", object{"prepMinutes": 5}); !ok {
		return
	}
	if e.plan.ending == endCustomerAccepted && e.await(ctx, s.opt.feedPatience, func() bool { return isFinal(e.status) }) {
		return
	}
	if _, ok := s.command(ctx, e, k.token, "preparing", "", nil); !ok {
		return
	}
	if e.plan.ending == endRestaurantPreparing {
		s.cancel(ctx, e, k.token, "the oven broke")
		return
	}
	e.mu.Lock()
	e.latencyStarts.cooked = time.Now()
	e.mu.Unlock()
	if _, ok := s.command(ctx, e, k.token, "ready", "", nil); !ok {
		return
	}
	if e.plan.ending == endRestaurantReady {
		s.cancel(ctx, e, k.token, "it fell")
	}
}
