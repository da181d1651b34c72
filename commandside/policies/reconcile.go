package policies

import (
	"context"
	"errors"
	"time"

	"tomato/commandside/gateway"
	"tomato/domain/order"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
)

// reconcileAfter is when reconcile asks the gateway again, counted from the order's end.
var reconcileAfter = [...]time.Duration{time.Hour, 24 * time.Hour}

// Reconcile asks the gateway about the money of orders that ended unpaid.
func (p *Policies) Reconcile() consumer.Consumer {
	return consumer.Consumer{Name: reconcilePolicy, Topics: []string{eventlog.Orders}, Each: p.reconcile}
}

// reconcileTimer is an order that ended with an open gateway order.
type reconcileTimer struct {
	GatewayOrderID string    `json:"gatewayOrderId"`
	EndedAt        time.Time `json:"endedAt"`
	Asked          int       `json:"asked"` // how many of reconcileAfter are done
	Cause          cause     `json:"cause"`
}

func (p *Policies) reconcile(ctx context.Context, e eventlog.Event) error {
	switch e.Type {
	case order.TypeOrderExpired, order.TypeOrderCancelled, order.TypeOrderRejected:
	default:
		return nil
	}
	why := causeOf(&e)
	state, err := p.paymentState(ctx, why, e.Subject)
	if err != nil || state == nil || !state.AwaitsMoney() || state.Provider != p.Gateway.Provider() {
		return err
	}
	t := reconcileTimer{GatewayOrderID: state.GatewayOrderID, EndedAt: e.Time, Cause: why}
	if err := p.setTimer(ctx, reconcilePolicy, e.Subject, e.Time.Add(reconcileAfter[0]), t); err != nil {
		return err
	}
	return p.askGateway(ctx, t)
}

// reconcileAgain asks once more for the timer. again is when to ask next; zero:
// never. next is what the timer holds then.
func (p *Policies) reconcileAgain(ctx context.Context, t reconcileTimer, now time.Time) (again time.Time, next reconcileTimer, err error) {
	if err := p.askGateway(ctx, t); err != nil {
		return now, t, err
	}
	if t.Asked++; t.Asked == len(reconcileAfter) {
		return time.Time{}, t, nil
	}
	return t.EndedAt.Add(reconcileAfter[t.Asked]), t, nil
}

// askGateway records what was captured on a gateway order, as if its webhooks
// had come.
func (p *Policies) askGateway(ctx context.Context, t reconcileTimer) error {
	payments, err := p.Gateway.Payments(ctx, t.GatewayOrderID)
	if errors.Is(err, gateway.ErrUnknown) || errors.Is(err, gateway.ErrRefused) {
		p.Log.Warn("the gateway does not know a gateway order that it made", "gatewayOrderId", t.GatewayOrderID, "err", err)
		return nil
	}
	if err != nil {
		return err
	}
	for _, found := range payments {
		if found.Status == gateway.StatusCaptured {
			if err := p.recordCaptured(ctx, t.Cause, found); err != nil {
				return err
			}
		}
	}
	return nil
}
