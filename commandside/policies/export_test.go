package policies

import (
	"context"
	"time"
)

// RefundPollFirst is when a refund's outcome is asked for the first time.
const RefundPollFirst = refundPollFirst

// TimerRound runs the timers that are due at now.
func (p *Policies) TimerRound(ctx context.Context, now time.Time) (int, error) {
	return p.timerRound(ctx, now)
}

// SetReconcileTimer sets a timer of reconcile that is due now.
func (p *Policies) SetReconcileTimer(ctx context.Context, orderID, gatewayOrderID string, endedAt time.Time, asked int) error {
	return p.setTimer(ctx, reconcilePolicy, orderID, time.Now(), reconcileTimer{GatewayOrderID: gatewayOrderID, EndedAt: endedAt, Asked: asked})
}
