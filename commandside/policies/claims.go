package policies

import (
	"context"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
)

// Claims finishes an accept that ended after the rider was claimed and before the
// order was assigned, because the instance that ran the request ended or got no
// answer. It also frees a rider at the end of an assignment. Every step is the same
// command that the request would have sent, so both may send it.
func (p *Policies) Claims() consumer.Consumer {
	return consumer.Consumer{Name: claimsPolicy, Topics: []string{eventlog.Riders, eventlog.Orders}, Each: p.handleClaims}
}

func (p *Policies) handleClaims(ctx context.Context, e eventlog.Event) error {
	switch e.Type {
	case rider.TypeRiderClaimed:
		c, err := decode[rider.RiderClaimed](&e, rider.Decode)
		if err != nil {
			return err
		}
		_, err = p.execute(ctx, causeOf(&e), eventlog.Orders, c.OrderID, order.Assign{RiderID: c.RiderID, RiderName: c.RiderName,
			ClaimID: c.ClaimID, Round: c.Round, Wave: c.Wave})
		if domain.RefusedWith(err) != "" {
			return p.release(ctx, causeOf(&e), c.RiderID, c.ClaimID, c.OrderID)
		}
		return err
	case order.TypeRiderUnassigned:
		ev, err := decode[order.RiderUnassigned](&e, order.Decode)
		if err != nil {
			return err
		}
		return p.release(ctx, causeOf(&e), ev.RiderID, ev.ClaimID, ev.OrderID)
	case order.TypeOrderDelivered:
		ev, err := decode[order.OrderDelivered](&e, order.Decode)
		if err != nil {
			return err
		}
		return p.release(ctx, causeOf(&e), ev.RiderID, ev.ClaimID, ev.OrderID)
	case order.TypeOrderCancelled:
		ev, err := decode[order.OrderCancelled](&e, order.Decode)
		if err != nil {
			return err
		}
		return p.release(ctx, causeOf(&e), ev.RiderID, ev.ClaimID, ev.OrderID)
	}
	return nil
}

// release frees the rider from the claim. A claimID of 0 is that of an order which
// had no rider: there is nothing to release.
func (p *Policies) release(ctx context.Context, why cause, riderID string, claimID int64, orderID string) error {
	if claimID == 0 {
		return nil
	}
	_, err := p.execute(ctx, why, eventlog.Riders, riderID, rider.Release{ClaimID: claimID, OrderID: orderID})
	return err
}
