package simulate

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"
)

// pay opens the payment of an order and makes the simulated gateway do what the plan
// says.
func (s *simulation) pay(ctx context.Context, e *orderEntry, c *customer) {
	a, err := s.api.do(ctx, call{token: c.token, method: http.MethodPost, path: "/v1/orders/" + e.id + "/payment", key: s.key()})
	if err != nil {
		s.unanswered(ctx, e.id, err)
		return
	}
	var opened struct {
		GatewayOrderID string `json:"gatewayOrderId"`
		Amount         int64  `json:"amount"`
	}
	if err := a.decode(&opened); err != nil || opened.GatewayOrderID == "" {
		s.ledger.fault(faultUnexpectedAnswer, e.id, "payment: %s", a)
		return
	}
	e.mu.Lock()
	e.paymentRequested = true
	e.mu.Unlock()
	if opened.Amount != e.amount {
		s.ledger.fault(faultMoney, e.id, "the payment was opened over %d, the order's amount is %d", opened.Amount, e.amount)
	}
	p := payer{caller: s.caller, entry: e, token: c.token, path: "/v1/simulated-gateway/orders/" + opened.GatewayOrderID + "/pay"}
	paid := func() bool {
		return e.paymentStatus == "paid" || e.paymentStatus == "refund_pending" || e.paymentStatus == "refunded"
	}

	id := p.newID()
	switch e.plan.payment {
	case payLate:
		s.cancel(ctx, e, c.token, "too slow")
		p.capture(ctx, id, e.amount, "")
	case payDroppedCancelled:
		p.capture(ctx, id, e.amount, gatewayFaults[e.plan.payment])
		e.await(ctx, s.opt.webhookPatience, paid)
		s.cancel(ctx, e, c.token, "no confirmation")
	case payWrongAmount:
		p.capture(ctx, id, max(1, e.amount+e.plan.wrongBy), "")
		p.capture(ctx, p.newID(), e.amount, "")
	case payFailedFirst:
		p.send(ctx, id, "failed", e.amount, "")
		p.capture(ctx, p.newID(), e.amount, "")
	case payAuthorizedFirst:
		p.send(ctx, id, "authorized", e.amount, "")
		p.capture(ctx, id, e.amount, "")
	case payTwice:
		p.capture(ctx, id, e.amount, "")
		p.capture(ctx, p.newID(), e.amount, "")
	case payPlain:
		e.mu.Lock()
		e.latencyStarts.capture = time.Now()
		e.mu.Unlock()
		p.capture(ctx, id, e.amount, "")
	default:
		p.capture(ctx, id, e.amount, gatewayFaults[e.plan.payment])
		// The gateway sends the webhook of the same payment again until Tomato
		// shows the order as paid.
		for range 5 {
			if e.await(ctx, s.opt.webhookPatience, paid) || ctx.Err() != nil {
				break
			}
			p.capture(ctx, id, e.amount, "")
		}
	}
}

// payer makes the payments of one order at the simulated gateway.
type payer struct {
	*caller
	entry *orderEntry
	token string // of the customer
	path  string // of the gateway order's pay call
	made  int    // how many payment ids were made
}

func (p *payer) newID() string {
	p.made++
	return fmt.Sprintf("pay_%s%06d%d", p.run, p.entry.number, p.made)
}

// capture makes the gateway capture a payment. It enters the payment into the ledger
// before it sends the call, because the payment may be captured whatever the answer
// is.
func (p *payer) capture(ctx context.Context, id string, amount int64, fault string) {
	p.entry.mu.Lock()
	if !slices.ContainsFunc(p.entry.captures, func(c capture) bool { return c.paymentID == id }) {
		p.entry.captures = append(p.entry.captures, capture{id, amount})
	}
	p.entry.mu.Unlock()
	p.send(ctx, id, "captured", amount, fault)
}

// send tells the gateway the outcome of a payment. fault is a fault that the gateway
// is to have, "" for none.
func (p *payer) send(ctx context.Context, id, outcome string, amount int64, fault string) {
	body := object{"outcome": outcome, "paymentId": id}
	if amount != p.entry.amount {
		body["amount"] = amount
	}
	if fault != "" {
		body["faults"] = []string{fault}
	}
	a, err := p.api.do(ctx, call{token: p.token, method: http.MethodPost, path: p.path, body: body, key: p.key()})
	if err != nil {
		p.unanswered(ctx, p.entry.id, err)
		return
	}
	if a.status != http.StatusAccepted {
		p.ledger.fault(faultUnexpectedAnswer, p.entry.id, "simulated gateway, %s: %s", outcome, a)
	}
}
