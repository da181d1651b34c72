package simulate

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// reconcile judges every acknowledged order, again and again while something
// is awaited, until nothing is or nothing has moved for Options.Timeout.
func (s *simulation) reconcile(running context.Context) {
	if s.stalled() {
		s.ledger.lastProgress.Store(time.Now().UnixNano()) // the refunds have their own time
	}
	ctx, stop := s.untilStalled(running)
	defer stop()
	s.ledger.mu.Lock()
	open := make([]*orderEntry, 0, len(s.ledger.orders))
	for _, r := range s.ledger.orders {
		if r.id != "" {
			open = append(open, r)
		}
	}
	all := open
	s.ledger.mu.Unlock()

	pause := 100 * time.Millisecond
	for {
		open = s.judgeAll(ctx, open)
		if len(open) == 0 || ctx.Err() != nil {
			break
		}
		pause = min(2*pause, 2*time.Second)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
	// A duplicate may come after its order was found in order.
	select {
	case <-time.After(duplicateWait):
	case <-ctx.Done():
	}
	var late []*orderEntry
	for _, r := range all {
		r.mu.Lock()
		if r.judgedReceipts >= 0 && r.judgedReceipts != len(r.receipts) {
			late = append(late, r)
		}
		r.mu.Unlock()
	}
	s.judgeAll(ctx, late)

	for _, r := range all {
		r.mu.Lock()
		faults := slices.Concat(r.verdict.faults, r.verdict.waiting)
		judged := r.judgedReceipts >= 0
		r.mu.Unlock()
		for _, f := range faults {
			s.ledger.fault(f.Kind, f.Order, "%s", f.Detail)
		}
		if !judged && running.Err() == nil {
			s.ledger.fault(faultUnfinished, r.id, "its history could not be read")
		}
	}
	for _, f := range overlaps(all) {
		s.ledger.fault(f.Kind, f.Order, "%s", f.Detail)
	}
	s.ledger.mu.Lock()
	early := s.ledger.beforePlaced
	s.ledger.beforePlaced = nil
	unanswered := s.ledger.counts[faultUnanswered] > 0
	s.ledger.mu.Unlock()
	for id, ms := range early {
		if !unanswered { // else it may be an order whose placing was never answered
			s.ledger.fault(faultUncalledMessage, id, "%s %s got %s of an order it did not place", ms[0].receiver.role, ms[0].receiver.id, ms[0].Event)
		}
	}
}

// judgeAll judges records and returns those that must be judged again.
func (s *simulation) judgeAll(ctx context.Context, records []*orderEntry) []*orderEntry {
	var (
		mu    sync.Mutex
		again []*orderEntry
		next  atomic.Int64
		wg    sync.WaitGroup
	)
	for range min(judgeAtOnce, len(records)) {
		wg.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(records) {
					return
				}
				if !s.judgeOne(ctx, records[i]) {
					mu.Lock()
					again = append(again, records[i])
					mu.Unlock()
				} else {
					s.ledger.lastProgress.Store(time.Now().UnixNano())
				}
			}
		})
	}
	wg.Wait()
	return again
}

// judgeOne reads one order's history and judges it; false asks for another time.
func (s *simulation) judgeOne(ctx context.Context, r *orderEntry) bool {
	h, ok := s.queryOrder(ctx, r)
	if !ok {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.judgements++
	before := len(r.verdict.waiting)
	r.verdict = judge(s.ledger, r, h, s.ledger.rider, time.Now())
	r.final = h.order
	r.judgedReceipts = len(r.receipts)
	if len(r.verdict.waiting) < before {
		s.ledger.lastProgress.Store(time.Now().UnixNano())
	}
	if len(r.verdict.waiting) > 0 {
		return false
	}
	return len(r.verdict.faults) == 0 || r.judgements >= maxJudgePasses
}

// history reads what Tomato says of an order, waiting for the last
// acknowledged command on it.
func (s *simulation) queryOrder(ctx context.Context, r *orderEntry) (h queried, ok bool) {
	r.mu.Lock()
	token, version := r.token, 0
	for _, a := range r.acks {
		version = max(version, a.version)
	}
	r.mu.Unlock()
	get := func(path string) (answer, bool) {
		a, err := s.api.do(ctx, call{token: s.opsToken, method: http.MethodGet, path: path, consistency: token})
		if err != nil {
			s.unanswered(ctx, r.id, err)
			return a, false
		}
		return a, true
	}
	a, ok := get("/v1/orders/" + r.id)
	if !ok {
		return h, false
	}
	if err := unmarshal(a, &h.order); err != nil || h.order.Version < version {
		s.reportStale(r, "version %d was acknowledged, read with its token: %s", version, a)
		return h, false
	}
	if a, ok = get("/v1/orders/" + r.id + "/events"); !ok {
		return h, false
	}
	var list struct {
		Items []eventView `json:"items"`
	}
	if err := unmarshal(a, &list); err != nil || len(list.Items) < version {
		s.reportStale(r, "version %d was acknowledged, events read with its token: %d %v", version, len(list.Items), err)
		return h, false
	}
	h.events = list.Items
	if a, ok = get("/v1/payments/" + r.id); !ok {
		return h, false
	}
	if a.status == http.StatusNotFound {
		return h, true
	}
	h.payment = &paymentView{}
	if err := unmarshal(a, h.payment); err != nil {
		s.reportStale(r, "payment: %v", err)
		return h, false
	}
	return h, true
}

// stale reports a read that did not show what its token names, once per order.
func (s *simulation) reportStale(r *orderEntry, format string, args ...any) {
	r.mu.Lock()
	again := r.staleReported
	r.staleReported = true
	r.mu.Unlock()
	if !again {
		s.ledger.fault(faultStaleRead, r.id, format, args...)
	}
}

// checkLists reads each customer's list: every acknowledged order is in it
// once, and nothing else.
func (s *simulation) checkLists(ctx context.Context) {
	mine := map[*party]map[string]bool{}
	unsure := map[string]bool{} // external references of orders never acknowledged
	s.ledger.mu.Lock()
	for _, r := range s.ledger.orders {
		if mine[r.customer] == nil {
			mine[r.customer] = map[string]bool{}
		}
		if r.id != "" {
			mine[r.customer][r.id] = true
		} else {
			unsure[s.reference(r.number)] = true
		}
	}
	s.ledger.mu.Unlock()
	each(len(s.customers), func(i int) bool {
		c := s.customers[i]
		seen := map[string]bool{}
		for cursor := ""; ; {
			a, ok := s.must(ctx, c.token, http.MethodGet, "/v1/orders?limit=200"+cursor, nil)
			var page struct {
				Items      []orderView `json:"items"`
				NextCursor string      `json:"nextCursor"`
			}
			if !ok {
				return false
			}
			if err := unmarshal(a, &page); err != nil {
				s.ledger.fault(faultUnexpectedAnswer, "", "orders of %s: %v", c.id, err)
				return false
			}
			for _, v := range page.Items {
				switch {
				case seen[v.OrderID]:
					s.ledger.fault(faultDuplicateEvent, v.OrderID, "listed twice to %s", c.id)
				case !mine[c.party][v.OrderID] && !unsure[v.External]:
					s.ledger.fault(faultDuplicateEvent, v.OrderID, "%s has an order that was never acknowledged", c.id)
				}
				seen[v.OrderID] = true
			}
			if page.NextCursor == "" || len(page.Items) == 0 {
				break
			}
			cursor = "&cursor=" + url.QueryEscape(page.NextCursor)
		}
		for id := range mine[c.party] {
			if !seen[id] {
				s.ledger.fault(faultLostCommand, id, "not in the list of %s", c.id)
			}
		}
		return true
	})
}

// checkRiders looks whether every rider is free when no order is under way.
// Riders of orders that did not end are left out.
func (s *simulation) checkRiders(ctx context.Context) {
	busy := map[string]bool{}
	s.ledger.mu.Lock()
	records := s.ledger.orders
	s.ledger.mu.Unlock()
	for _, r := range records {
		if r.id != "" && !isFinal(r.final.Status) {
			busy[r.final.RiderID] = true
		}
	}
	deadline := time.Now().Add(leftoverLimit)
	each(len(s.riders), func(i int) bool {
		d := s.riders[i]
		if d.ineligible != "" || busy[d.id] {
			return true
		}
		for {
			a, ok := s.must(ctx, d.token, http.MethodGet, "/v1/riders/"+d.id, nil)
			if !ok {
				return false
			}
			var v struct {
				Status  string `json:"status"`
				OrderID string `json:"orderId"`
			}
			err := unmarshal(a, &v)
			if err == nil && v.Status == "available" && v.OrderID == "" {
				return true
			}
			if time.Now().After(deadline) {
				s.ledger.fault(faultUnfinished, v.OrderID, "%s is %s without an order under way: %v", d.id, v.Status, err)
				return false
			}
			select {
			case <-time.After(200 * time.Millisecond):
			case <-ctx.Done():
				return false
			}
		}
	})
}

// deadLetters counts what is parked for good, up to 10,000.
func (s *simulation) deadLetters(ctx context.Context) (int, error) {
	n := 0
	cursor := ""
	for range 50 {
		a, err := s.api.do(ctx, call{token: s.opsToken, method: http.MethodGet, path: "/v1/ops/dead-letters?limit=200" + cursor})
		if err != nil {
			return 0, err
		}
		var page struct {
			Items      []struct{} `json:"items"`
			NextCursor string     `json:"nextCursor"`
		}
		if err := unmarshal(a, &page); err != nil {
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
