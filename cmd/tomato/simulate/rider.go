package simulate

import (
	"cmp"
	"context"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"tomato/domain"
)

const (
	// maxConcurrentAccepts bounds how many riders accept one order at the same
	// time. The other riders keep the offer and look at it again later.
	maxConcurrentAccepts = 4
	riderRecheck         = time.Second
)

// The reasons for which a rider must not get any offer.
const (
	riderUnverified = "unverified"
	riderOffline    = "offline"
	riderSuspended  = "suspended"
	riderStale      = "stale" // the last position is too old
)

// rider is a party who takes offers and delivers orders.
type rider struct {
	*party
	token      string
	name       string
	vehicle    string
	home       domain.Point
	feed       *feed
	acceptsTwo bool       // the rider accepts two orders at the same time, of which one must be refused
	rng        *rand.Rand // used by the goroutine of run only
	wake       chan struct{}

	mu              sync.Mutex
	offers          map[string]offer // open offers, by order id
	cancelsUnderWay int              // cancels of orders that this rider has
	lastCancelled   time.Time        // when the last such cancel was answered
}

// offer is an offer of one order to one rider.
type offer struct {
	order      *orderEntry
	receivedAt time.Time
	expiresAt  time.Time
}

// receive handles a feed message to the rider.
func (d *rider) receive(s *simulation, m message) {
	e := s.ledger.received(m)
	if e == nil {
		return
	}
	switch m.Event {
	case "order:available":
		if d.ineligible != "" {
			s.ledger.fault(faultUncalledMessage, e.id, "rider %s is %s and was offered the order", d.id, d.ineligible)
			return
		}
		if m.data.Location != e.pickUp || m.data.RestaurantID != e.restaurant.id {
			s.ledger.fault(faultFeedProtocol, e.id, "order:available names restaurant %s at %v", m.data.RestaurantID, m.data.Location)
		}
		e.mu.Lock()
		if !e.latencyStarts.cooked.IsZero() {
			s.latency.add("ready_to_order_available", time.Since(e.latencyStarts.cooked))
			e.latencyStarts.cooked = time.Time{}
		}
		e.mu.Unlock()
		d.mu.Lock()
		d.offers[e.id] = offer{e, time.Now(), m.data.ExpiresAt}
		d.mu.Unlock()
	case "order:taken":
		d.mu.Lock()
		delete(d.offers, e.id)
		d.mu.Unlock()
	default:
		return
	}
	d.wakeUp()
}

// wakeUp makes run look at the offers again.
func (d *rider) wakeUp() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// reload reads the rider's open offers by REST. Their order:available may have been
// lost at a feed:reset.
func (d *rider) reload(ctx context.Context, s *simulation) {
	if d.ineligible != "" {
		return
	}
	a, ok := s.must(ctx, d.token, http.MethodGet, "/v1/riders/"+d.id+"/offers", nil)
	var list struct {
		Items []payload `json:"items"`
	}
	if !ok || a.decode(&list) != nil {
		return
	}
	d.mu.Lock()
	for _, o := range list.Items {
		if e := s.ledger.find(o.OrderID); e != nil {
			d.offers[e.id] = offer{e, time.Now(), o.ExpiresAt}
		}
	}
	d.mu.Unlock()
	d.wakeUp()
}

// run plays the rider until ctx ends.
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

// takeOffers chooses one offer, or two if the rider accepts two at the same time. It
// declines or accepts them, and delivers the orders that the rider got. It reports
// whether there was an offer.
func (d *rider) takeOffers(ctx context.Context, s *simulation) bool {
	chosen := d.chooseOffers()
	if len(chosen) == 0 {
		return false
	}
	if d.rng.IntN(100) < 5 {
		d.decline(ctx, s, chosen[0])
		chosen = chosen[1:]
	}
	won := make([]bool, len(chosen))
	var accepts sync.WaitGroup
	for i, e := range chosen {
		accepts.Go(func() {
			defer e.acceptsUnderWay.Add(-1)
			won[i] = d.accept(ctx, s, e, len(chosen) > 1)
		})
	}
	accepts.Wait()
	var has *orderEntry
	for i, e := range chosen {
		if won[i] {
			s.ledger.assigned(e, d.id, has)
			has = e
		}
	}
	for i, e := range chosen {
		if won[i] {
			d.carry(ctx, s, e)
		}
	}
	return true
}

// chooseOffers removes the oldest open offers from d.offers and returns their orders:
// one, or two if the rider accepts two. It also adds the rider to acceptsUnderWay of
// each order. The caller subtracts them again.
func (d *rider) chooseOffers() []*orderEntry {
	want := 1
	if d.acceptsTwo {
		want = 2
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	var chosen []*orderEntry
	oldestFirst := slices.SortedFunc(maps.Values(d.offers), func(a, b offer) int {
		return cmp.Or(a.receivedAt.Compare(b.receivedAt), cmp.Compare(a.order.number, b.order.number))
	})
	for _, o := range oldestFirst {
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
	return chosen
}

// decline declines an offer that chooseOffers chose.
func (d *rider) decline(ctx context.Context, s *simulation, e *orderEntry) {
	defer e.acceptsUnderWay.Add(-1)
	if a, ok := s.command(ctx, e, d.token, "decline", d.id, nil); ok {
		if v, err := a.order(); err == nil && v.CustomerID != "" {
			s.ledger.fault(faultUnexpectedAnswer, e.id, "the answer to decline names the customer")
		}
	}
}

// accept accepts an offer and reports whether the rider got the order. two is true if
// the rider accepts another order at the same time. An offer that was refused is not
// tried again, unless it was refused with rider_busy, which leaves it open.
func (d *rider) accept(ctx context.Context, s *simulation, e *orderEntry, two bool) bool {
	start := time.Now()
	a, ok := s.command(ctx, e, d.token, "accept", d.id, nil, "order_already_assigned", "offer_expired", "rider_busy")
	if ok {
		s.latency.add("accept", a.took)
		v, err := a.order()
		if err == nil && v.RiderID != d.id {
			s.ledger.fault(faultTwoRiders, e.id, "the accept of %s succeeded, and its answer names rider %s", d.id, v.RiderID)
		}
	}
	if a.problem.Code == "rider_busy" {
		d.mu.Lock()
		if !two && d.cancelsUnderWay == 0 && !d.lastCancelled.After(start) {
			// The rider sent no second accept, and no cancel under way was about to
			// free them.
			s.ledger.fault(faultUnexpectedAnswer, e.id, "accept: %s, although %s has no order", a, d.id)
		}
		if _, newer := d.offers[e.id]; !newer && !e.hasEnded() {
			d.offers[e.id] = offer{order: e, receivedAt: time.Now(), expiresAt: time.Now().Add(riderRecheck)}
		}
		d.mu.Unlock()
	}
	return ok
}

// carry brings an order from its restaurant to its customer. If the plan says so, the
// first rider of the order drops it instead.
func (d *rider) carry(ctx context.Context, s *simulation, e *orderEntry) {
	e.mu.Lock()
	drop := e.plan.riderDrops && e.drops == 0
	if drop {
		e.drops++
	}
	e.mu.Unlock()
	if drop {
		e.released()
		if a, ok := s.command(ctx, e, d.token, "drop", d.id, object{"reason": "flat tyre"}); ok {
			if v, err := a.order(); err == nil && v.CustomerID != "" {
				s.ledger.fault(faultUnexpectedAnswer, e.id, "the answer to drop names the customer")
			}
		}
		return
	}
	d.feed.locate(ctx, e.pickUp)
	if e.plan.ending == endOpsAssigned && e.await(ctx, s.opt.feedPatience, func() bool { return isFinal(e.status) }) {
		return
	}
	if _, ok := s.command(ctx, e, d.token, "pick-up", d.id, nil); !ok {
		return
	}
	d.feed.locate(ctx, e.deliverTo)
	e.released()
	s.command(ctx, e, d.token, "deliver", d.id, nil)
	d.feed.locate(ctx, d.home)
	if d.rng.IntN(100) < 5 {
		s.must(ctx, d.token, http.MethodPost, "/v1/riders/"+d.id+"/offline", nil)
		s.must(ctx, d.token, http.MethodPost, "/v1/riders/"+d.id+"/online", nil)
	}
}
