package simulate

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// freeLimit is how long riders may take to become free after all orders have ended.
const freeLimit = 15 * time.Second

// checkLists reads each customer's list of orders. It must show every
// acknowledged order once, and no other order.
func (audit *auditor) checkLists(ctx context.Context) {
	acknowledged := map[*party]map[string]bool{}
	unanswered := map[string]bool{} // external references of orders whose placing was not acknowledged
	for _, e := range audit.ledger.allOrders() {
		if acknowledged[e.customer] == nil {
			acknowledged[e.customer] = map[string]bool{}
		}
		if e.id != "" {
			acknowledged[e.customer][e.id] = true
		} else {
			unanswered[audit.reference(e.number)] = true
		}
	}
	each(audit.town.customers, func(c *customer) bool {
		return audit.checkList(ctx, c, acknowledged[c.party], unanswered)
	})
}

// checkList checks the list of one customer. acknowledged are the ids of their
// acknowledged orders, unanswered the external references of orders of any customer
// whose placing was not acknowledged. It reports whether the list could be read.
func (audit *auditor) checkList(ctx context.Context, c *customer, acknowledged, unanswered map[string]bool) bool {
	listed := map[string]bool{}
	for cursor := ""; ; {
		a, ok := audit.must(ctx, c.token, http.MethodGet, "/v1/orders?limit=200"+cursor, nil)
		var page struct {
			Items      []orderView `json:"items"`
			NextCursor string      `json:"nextCursor"`
		}
		if !ok {
			return false
		}
		if err := a.decode(&page); err != nil {
			audit.ledger.fault(faultUnexpectedAnswer, "", "orders of %s: %v", c.id, err)
			return false
		}
		for _, v := range page.Items {
			switch {
			case listed[v.OrderID]:
				audit.ledger.fault(faultDuplicateEvent, v.OrderID, "listed twice to %s", c.id)
			case !acknowledged[v.OrderID] && !unanswered[v.External]:
				audit.ledger.fault(faultDuplicateEvent, v.OrderID, "%s has an order that was never acknowledged", c.id)
			}
			listed[v.OrderID] = true
		}
		if page.NextCursor == "" || len(page.Items) == 0 {
			break
		}
		cursor = "&cursor=" + url.QueryEscape(page.NextCursor)
	}
	for id := range acknowledged {
		if !listed[id] {
			audit.ledger.fault(faultLostCommand, id, "not in the list of %s", c.id)
		}
	}
	return true
}

// checkRiders checks that every rider becomes free again. It leaves out the riders of
// orders that have not ended.
func (audit *auditor) checkRiders(ctx context.Context) {
	busy := map[string]bool{}
	for _, e := range audit.ledger.allOrders() {
		if e.id != "" && !isFinal(e.final.Status) {
			busy[e.final.RiderID] = true
		}
	}
	deadline := time.Now().Add(freeLimit)
	each(audit.town.riders, func(d *rider) bool {
		return d.ineligible != "" || busy[d.id] || audit.awaitFree(ctx, d, deadline)
	})
}

// awaitFree waits until a rider is available without an order, and reports whether
// this was so before the deadline.
func (audit *auditor) awaitFree(ctx context.Context, d *rider, deadline time.Time) bool {
	for {
		a, ok := audit.must(ctx, d.token, http.MethodGet, "/v1/riders/"+d.id, nil)
		if !ok {
			return false
		}
		var v struct {
			Status  string `json:"status"`
			OrderID string `json:"orderId"`
		}
		err := a.decode(&v)
		if err == nil && v.Status == "available" && v.OrderID == "" {
			return true
		}
		if time.Now().After(deadline) {
			audit.ledger.fault(faultUnfinished, v.OrderID, "rider %s is %s although all of their orders have ended: %v", d.id, v.Status, err)
			return false
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return false
		}
	}
}

// checkDeadLetters reports dead letters that were not there before the run.
func (audit *auditor) checkDeadLetters(ctx context.Context, before int) {
	after, err := audit.deadLetters(ctx)
	switch {
	case err != nil && ctx.Err() == nil:
		audit.ledger.fault(faultUnexpectedAnswer, "", "dead letters: %v", err)
	case err == nil && after > before:
		audit.ledger.fault(faultDeadLetter, "", "there are %d more dead letters than before the run", after-before)
	}
}

// deadLetters returns the number of dead letters. It stops counting at 10,000.
func (audit *auditor) deadLetters(ctx context.Context) (int, error) {
	n := 0
	cursor := ""
	for range 50 {
		a, err := audit.api.do(ctx, call{token: audit.town.operatorToken, method: http.MethodGet, path: "/v1/ops/dead-letters?limit=200" + cursor})
		if err != nil {
			return 0, err
		}
		var page struct {
			Items      []struct{} `json:"items"`
			NextCursor string     `json:"nextCursor"`
		}
		if err := a.decode(&page); err != nil {
			return 0, err
		}
		n += len(page.Items)
		if page.NextCursor == "" {
			break
		}
		cursor = "&cursor=" + url.QueryEscape(page.NextCursor)
	}
	return n, nil
}
