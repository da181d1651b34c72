package shard

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/domain/restaurant"
	"tomato/domain/rider"
)

// handle decides one command: lookup, rights, idempotency key, decision, If-Match.
func (s *shard) handle(c *call) {
	if s.deposed != nil {
		c.reply(Result{}, errNotDecided)
		return
	}
	if c.ctx.Err() != nil {
		c.reply(Result{}, fmt.Errorf("%w: the caller's deadline passed in the queue", ErrUnavailable))
		return
	}
	now := time.Now()
	if !c.quiet() && s.stalled(now) {
		c.reply(Result{}, fmt.Errorf("%w: appends are not acknowledged", ErrUnavailable))
		return
	}
	if asked, ok := c.req.Command.(Known); ok {
		c.reply(s.known(asked), nil)
		return
	}
	kind := logOf(c.req.Topic)
	if kind < 0 {
		c.reply(Result{}, fmt.Errorf("%q is no aggregate topic", c.req.Topic))
		return
	}
	e, err := s.agg.find(kind, c.req.ID)
	if err != nil {
		s.fail(err)
		c.reply(Result{}, errNotDecided)
		return
	}
	if err := e.undecidable(kind); err != nil {
		if e.order != nil || e.rider != nil || e.restaurant != nil { // who may not ask is not told
			err = cmp.Or(s.authorize(kind, e, &c.req, now), err)
		}
		s.confirm(c, kind, nil, Result{}, err) // a newer build may own the shard by now
		return
	}
	if _, ok := c.req.Command.(Look); ok {
		if s.deferUntil(kind, e.lastOf(kind), c) {
			return
		}
		c.reply(result(e, nil), nil)
		return
	}
	if err := s.authorize(kind, e, &c.req, now); err != nil {
		s.confirm(c, kind, nil, Result{}, err)
		return
	}
	var scope keyScope
	keyed := c.req.IdempotencyKey != ""
	if keyed {
		scope = scopeOf(&c.req)
		if used, ok := s.agg.keys.known[scope]; ok && !used.expired(now) {
			s.repeat(c, kind, used)
			return
		}
	}
	ev, err := s.decide(kind, e, c, now)
	if errors.Is(err, errDeferred) {
		return
	}
	_, asks := c.req.Command.(order.CheckOffer)
	open := asks && err == nil && e.orderState().Status == order.StatusReadyForRider
	if !matches(&c.req, e.version(kind)) && (ev != nil || open || err != nil && !badReference(err)) {
		ev, err = nil, domain.Refuse(VersionMismatch, "the resource has version %d", e.version(kind))
	}
	if ev == nil && c.quiet() {
		return
	}
	if open && err == nil {
		// Open: Assign decides, and it is what must be confirmed. But the round
		// and wave must be the log's: claimed for a pair that was never there, a
		// refused assign could be taken later, when the pair comes to be.
		if !s.deferUntil(kind, e.lastOf(kind), c) {
			c.reply(result(e, nil), nil)
		}
		return
	}
	if ev == nil {
		s.confirm(c, kind, e, result(e, nil), err)
		return
	}
	s.append(c, kind, e, ev, scope, keyed, now)
}

// matches says whether a resource of this version is the one that is meant.
func matches(r *Request, version int64) bool {
	return r.IfMatch == 0 || r.IfMatch == version || r.IfMatch == Exists && version > 0 || slices.Contains(r.OrMatch, version)
}

// badReference says whether a refusal goes before If-Match: 404, and 422 of
// what the body names.
func badReference(err error) bool {
	switch domain.RefusedWith(err) {
	case domain.NotFound, restaurant.CodeUnknown, restaurant.CodeUnknownItem, restaurant.CodeCurrencyMismatch:
		return true
	}
	return false
}

func (s *shard) stalled(now time.Time) bool {
	for i := range s.logs {
		if f := s.logs[i].inFlight; len(f) > 0 && now.Sub(f[0].at) > stallLimit {
			return true
		}
	}
	return false
}

// authorize looks at what is held and at the caller's part in it.
func (s *shard) authorize(kind int, e *entry, r *Request, now time.Time) error {
	switch kind {
	case orders, payments:
		// Of the commands on payments one is the customer's, on the order.
		_, asks := r.Command.(payment.RequestPayment)
		onOrder := kind == orders || asks
		if e == nil || e.order == nil {
			switch archived := now.Sub(placedAt(r.ID)) > s.owner.ArchiveAfter; {
			case isPlace(r.Command) || !onOrder && (r.Actor.Role == domain.System || !archived):
				return nil
			case archived:
				return domain.Refuse(order.CodeArchived, "the order is older than commands reach")
			}
			return domain.Refuse(domain.NotFound, "no such order")
		}
		if err := order.Authorize(e.order, r.Command, r.Actor); err != nil {
			return err
		}
		if onOrder && r.Actor.Role != domain.System && e.order.ClosedFor(now) > closedFor {
			return domain.Refuse(order.CodeArchived, "the order closed more than 24 hours ago")
		}
	case riders:
		return own(e != nil || isPut(r.Command), r.Actor.Role == domain.Rider && r.Actor.Sub != r.ID)
	case restaurants:
		return own(e != nil || isPut(r.Command), r.Actor.Role == domain.Restaurant && r.Actor.RestaurantID != r.ID)
	}
	return nil
}

// own refuses what is not there, then what is another's: riders and
// restaurants are no secret.
func own(there, foreign bool) error {
	switch {
	case !there:
		return domain.Refuse(domain.NotFound, "there is none with this id")
	case foreign:
		return domain.Refuse(domain.Forbidden, "only they themselves may do this")
	}
	return nil
}

// placedAt is the time inside an order id (UUIDv7, RFC 9562: the first 48 bits
// are Unix milliseconds); now for what is none.
func placedAt(orderID string) time.Time {
	id, err := uuid.Parse(orderID)
	if err != nil || id.Version() != 7 {
		return time.Now()
	}
	var ms [8]byte
	copy(ms[2:], id[:6])
	return time.UnixMilli(int64(binary.BigEndian.Uint64(ms[:])))
}

// errDeferred says that the command waits for its own shard's appends.
var errDeferred = errors.New("deferred")

// decide calls the aggregate's Decide on the speculative state. A decision that
// looks at another log of the shard waits until what it sees there is
// acknowledged: it would otherwise count although its premise does not.
func (s *shard) decide(kind int, e *entry, c *call, now time.Time) (domain.Event, error) {
	r := &c.req
	switch kind {
	case orders:
		command := r.Command
		switch cmd := command.(type) {
		case Place:
			placed, err := s.price(cmd, r.ID)
			if err != nil {
				return nil, err
			}
			command = placed
		case order.Expire:
			if u := e.unreadOf(payments); u != nil {
				return nil, u.answer(payments, e.id)
			}
			if e != nil && e.payment != nil {
				if s.deferUntil(payments, e.lastOf(payments), c) {
					return nil, errDeferred
				}
				cmd.PaymentPaid = e.payment.Booked != ""
				command = cmd
			}
		}
		return event(order.Decide(e.orderState(), command, now))
	case payments:
		if s.deferUntil(orders, e.lastOf(orders), c) {
			return nil, errDeferred
		}
		if _, asks := r.Command.(payment.RequestPayment); asks && (e == nil || e.order == nil) {
			return nil, domain.Refuse(domain.NotFound, "no such order")
		}
		return event(payment.Decide(e.paymentState(), payment.WithOrder(r.Command, e.orderFacts()), now))
	case riders:
		return event(rider.Decide(e.riderState(), r.Command, now))
	default:
		return event(restaurant.Decide(e.restaurantState(), r.Command, now))
	}
}

// event makes one interface type of the aggregates' own, keeping nil nil.
func event[E domain.Event](ev E, err error) (domain.Event, error) {
	if any(ev) == nil {
		return nil, err
	}
	return ev, err
}
