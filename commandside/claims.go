package commandside

import (
	"context"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
)

// Claims is the policy that finishes what an accept began and died in the
// middle of, and that frees a rider at the end of an assignment. Every step is
// the very step that the request would have taken, so both may do it.
func (s *Side) Claims() consumer.Consumer {
	return consumer.Consumer{Name: "claims", Topics: []string{eventlog.Riders, eventlog.Orders}, Each: s.handleClaims}
}

func (s *Side) handleClaims(ctx context.Context, e eventlog.Event) error {
	switch e.Type {
	case rider.TypeRiderClaimed:
		ev, err := rider.Decode(e.Type, e.Data)
		if err != nil {
			return eventlog.Poison(err)
		}
		c := ev.(rider.RiderClaimed)
		_, err = s.policy(ctx, &e, eventlog.Orders, c.OrderID, order.Assign{RiderID: c.RiderID, RiderName: c.RiderName,
			ClaimID: c.ClaimID, Round: c.Round, Wave: c.Wave})
		if domain.RefusedWith(err) != "" {
			return s.release(ctx, &e, c.RiderID, c.ClaimID, c.OrderID)
		}
		return err
	case order.TypeRiderUnassigned, order.TypeOrderDelivered, order.TypeOrderCancelled:
		ev, err := order.Decode(e.Type, e.Data)
		if err != nil {
			return eventlog.Poison(err)
		}
		switch ev := ev.(type) {
		case order.RiderUnassigned:
			return s.release(ctx, &e, ev.RiderID, ev.ClaimID, ev.OrderID)
		case order.OrderDelivered:
			return s.release(ctx, &e, ev.RiderID, ev.ClaimID, ev.OrderID)
		case order.OrderCancelled:
			return s.release(ctx, &e, ev.RiderID, ev.ClaimID, ev.OrderID)
		}
	}
	return nil
}

func (s *Side) release(ctx context.Context, cause *eventlog.Event, riderID string, claimID int64, orderID string) error {
	if claimID == 0 {
		return nil
	}
	_, err := s.policy(ctx, cause, eventlog.Riders, riderID, rider.Release{ClaimID: claimID, OrderID: orderID})
	return err
}
