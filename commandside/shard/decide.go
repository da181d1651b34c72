package shard

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/google/uuid"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/domain/restaurant"
	"tomato/domain/rider"
)

// This file owns the decision about a command: rights, preconditions and the call
// of the aggregate's Decide, all as functions over the state that they are given.

// authorize checks that the command's resource exists and that the actor has the
// right to use the command on it. The error is a refusal.
func authorize(kind int, e *entry, r *Request, archiveAfter time.Duration, now time.Time) error {
	switch kind {
	case orders, payments:
		// One command on payments is the customer's, and it is about the order.
		_, requestsPayment := r.Command.(payment.RequestPayment)
		onOrder := kind == orders || requestsPayment
		if e == nil || e.order == nil {
			switch archived := now.Sub(placedAt(r.ID)) > archiveAfter; {
			case isPlace(r.Command) || !onOrder && (r.Actor.Role == domain.System || !archived):
				return nil
			case archived:
				return domain.Refuse(order.CodeArchived, "the order is too old for commands")
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
		return authorizeOwn(e != nil || isPut(r.Command), r.Actor.Role == domain.Rider && r.Actor.Sub != r.ID)
	case restaurants:
		return authorizeOwn(e != nil || isPut(r.Command), r.Actor.Role == domain.Restaurant && r.Actor.RestaurantID != r.ID)
	}
	return nil
}

// authorizeOwn refuses a command on a rider or restaurant that does not exist, and
// then one on a rider or restaurant that is not the actor's own. The order of the
// two tells everybody which ids exist, and these are no secret.
func authorizeOwn(exists, foreign bool) error {
	switch {
	case !exists:
		return domain.Refuse(domain.NotFound, "nothing has this id")
	case foreign:
		return domain.Refuse(domain.Forbidden, "the caller may do this only for itself")
	}
	return nil
}

// placedAt returns the time in an order id (UUIDv7, RFC 9562: the first 48 bits are
// Unix milliseconds). It returns the present time if the id is no UUIDv7.
func placedAt(orderID string) time.Time {
	id, err := uuid.Parse(orderID)
	if err != nil || id.Version() != 7 {
		return time.Now()
	}
	var ms [8]byte
	copy(ms[2:], id[:6])
	return time.UnixMilli(int64(binary.BigEndian.Uint64(ms[:])))
}

// premise returns the last append, as log and ordinal, that must be acknowledged
// before the command can be decided; the ordinal is 0 if there is none. A decision
// that looks at another log of the shard waits until what it sees there is
// acknowledged. Otherwise its event could be valid although the event on which it
// was decided is not.
func premise(kind int, e *entry, r *Request) (log int, ordinal int64) {
	switch kind {
	case orders:
		if _, ok := r.Command.(order.Expire); ok && e != nil && e.payment != nil && e.markOf(payments) == nil {
			return payments, e.lastAppend(payments)
		}
	case payments:
		return orders, e.lastAppend(orders)
	}
	return kind, 0
}

// decide calls the aggregate's Decide on the state in memory, which may include
// appends that are not acknowledged. It returns an event, or nil if nothing is to
// be appended, or an error: a refusal or an *UnknownEvent.
func decide(kind int, e *entry, r *Request, menus *Menus, now time.Time) (domain.Event, error) {
	switch kind {
	case orders:
		command := r.Command
		switch cmd := command.(type) {
		case Place:
			priced, err := price(menus, cmd, r.ID)
			if err != nil {
				return nil, err
			}
			command = priced
		case order.Expire:
			if mark := e.markOf(payments); mark != nil {
				return nil, mark.answer(payments, e.id)
			}
			if e != nil && e.payment != nil {
				cmd.PaymentPaid = e.payment.Booked != ""
				command = cmd
			}
		}
		return event(order.Decide(e.orderState(), command, now))
	case payments:
		if _, ok := r.Command.(payment.RequestPayment); ok && (e == nil || e.order == nil) {
			return nil, domain.Refuse(domain.NotFound, "no such order")
		}
		return event(payment.Decide(e.paymentState(), payment.WithOrder(r.Command, e.orderFacts()), now))
	case riders:
		return event(rider.Decide(e.riderState(), r.Command, now))
	default:
		return event(restaurant.Decide(e.restaurantState(), r.Command, now))
	}
}

// event converts the aggregate's own event type to domain.Event. A nil event stays
// nil.
func event[E domain.Event](ev E, err error) (domain.Event, error) {
	if any(ev) == nil {
		return nil, err
	}
	return ev, err
}

// isOpenOffer reports whether the command asks for an open offer of an order that
// waits for a rider.
func isOpenOffer(e *entry, r *Request) bool {
	_, ok := r.Command.(order.CheckOffer)
	return ok && e.orderState().Status == order.StatusReadyForRider
}

// onlyEffectCounts reports whether the caller needs to know of a command without an event
// only that it took effect, and nothing about the present state. That is true of the
// commands that policies repeat (tookEffect): a policy names the event that made it act.
func onlyEffectCounts(r *Request) bool {
	return r.Actor.Role == domain.System && r.CausationID != "" && r.IdempotencyKey == "" && r.IfMatch == 0
}

// tookEffect reports whether the command has taken effect in the past, for good.
func tookEffect(kind int, e *entry, c domain.Command) bool {
	switch kind {
	case orders:
		return order.TookEffect(e.orderState(), c)
	case payments:
		return payment.TookEffect(e.paymentState(), c)
	case riders:
		return rider.TookEffect(e.riderState(), c)
	}
	return false
}

// matches reports whether a resource of this version meets the request's If-Match.
func matches(r *Request, version int64) bool {
	return r.IfMatch == 0 || r.IfMatch == version || r.IfMatch == Exists && version > 0 || slices.Contains(r.OrMatch, version)
}

// badReference reports whether a refusal takes precedence over a failed If-Match:
// 404, and 422 for what the body refers to.
func badReference(err error) bool {
	switch domain.RefusedWith(err) {
	case domain.NotFound, restaurant.CodeUnknown, restaurant.CodeUnknownItem, restaurant.CodeCurrencyMismatch:
		return true
	}
	return false
}
