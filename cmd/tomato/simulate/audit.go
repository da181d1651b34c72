package simulate

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	judgeWorkers  = 32
	maxJudgements = 3 // of an order that has faults, but nothing that may still come
	duplicateWait = time.Second
)

// auditor finds out whether Tomato kept its promises. It judges every order. Then it
// checks what is not about a single order.
type auditor struct {
	*caller
	town     *town
	watchdog watchdog
}

// reconcile judges every acknowledged order. It judges an order again while something
// about it may still come, until nothing is left to wait for or the run has stalled.
// Then it enters the faults into the ledger.
func (audit *auditor) reconcile(running context.Context) {
	if audit.watchdog.stalled() {
		audit.ledger.noteProgress() // begins the timeout anew, so that refunds have time to come
	}
	ctx, stop := audit.watchdog.watch(running)
	defer stop()
	all := audit.ledger.acknowledgedOrders()
	audit.judgeUntilDone(ctx, all)
	audit.judgeChanged(ctx, all)

	for _, e := range all {
		e.mu.Lock()
		faults := slices.Concat(e.verdict.faults, e.verdict.waiting)
		judged := e.judgedReceipts >= 0
		e.mu.Unlock()
		audit.enter(faults)
		if !judged && running.Err() == nil {
			audit.ledger.fault(faultUnfinished, e.id, "the order's history could not be read")
		}
	}
	audit.enter(overlaps(all))
	audit.enter(audit.ledger.unplacedMessages())
}

// judgeUntilDone judges the orders until none of them has to be judged again, or
// until ctx ends.
func (audit *auditor) judgeUntilDone(ctx context.Context, orders []*orderEntry) {
	pause := 100 * time.Millisecond
	for {
		orders = audit.judgeAll(ctx, orders)
		if len(orders) == 0 || ctx.Err() != nil {
			return
		}
		pause = min(2*pause, 2*time.Second)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// judgeChanged waits for duplicateWait. Then it judges those orders again that got a
// message since their last judgement, because that message may be a duplicate.
func (audit *auditor) judgeChanged(ctx context.Context, orders []*orderEntry) {
	select {
	case <-time.After(duplicateWait):
	case <-ctx.Done():
	}
	var changed []*orderEntry
	for _, e := range orders {
		e.mu.Lock()
		if e.judgedReceipts >= 0 && e.judgedReceipts != len(e.receipts) {
			changed = append(changed, e)
		}
		e.mu.Unlock()
	}
	audit.judgeAll(ctx, changed)
}

func (audit *auditor) enter(faults []Fault) {
	for _, f := range faults {
		audit.ledger.fault(f.Kind, f.Order, "%s", f.Detail)
	}
}

// judgeAll judges the orders, several at the same time, and returns those that
// must be judged again.
func (audit *auditor) judgeAll(ctx context.Context, orders []*orderEntry) []*orderEntry {
	var (
		mu      sync.Mutex
		again   []*orderEntry
		next    atomic.Int64
		workers sync.WaitGroup
	)
	for range min(judgeWorkers, len(orders)) {
		workers.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(orders) {
					return
				}
				if !audit.judgeOne(ctx, orders[i]) {
					mu.Lock()
					again = append(again, orders[i])
					mu.Unlock()
				} else {
					audit.ledger.noteProgress()
				}
			}
		})
	}
	workers.Wait()
	return again
}

// judgeOne reads what the queries say about one order and judges it. It reports
// whether the verdict is final; otherwise the order must be judged again.
func (audit *auditor) judgeOne(ctx context.Context, e *orderEntry) bool {
	q, ok := audit.queryOrder(ctx, e)
	if !ok {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.judgements++
	before := len(e.verdict.waiting)
	e.verdict = judge(audit.ledger, e, q, audit.ledger.rider, time.Now())
	e.final = q.order
	e.judgedReceipts = len(e.receipts)
	if len(e.verdict.waiting) < before {
		audit.ledger.noteProgress()
	}
	if len(e.verdict.waiting) > 0 {
		return false
	}
	return len(e.verdict.faults) == 0 || e.judgements >= maxJudgements
}

// queryOrder reads what Tomato's queries say about an order. It reads with the
// Consistency-Token of the last acknowledged command, so the answers must show the
// effect of that command. ok is false if they could not be read or did not show it.
func (audit *auditor) queryOrder(ctx context.Context, e *orderEntry) (q queried, ok bool) {
	e.mu.Lock()
	token, version := e.token, 0
	for _, a := range e.acks {
		version = max(version, a.version)
	}
	e.mu.Unlock()
	get := func(path string) (answer, bool) {
		a, err := audit.api.do(ctx, call{token: audit.town.operatorToken, method: http.MethodGet, path: path, consistency: token})
		if err != nil {
			audit.unanswered(ctx, e.id, err)
			return a, false
		}
		return a, true
	}
	a, ok := get("/v1/orders/" + e.id)
	if !ok {
		return q, false
	}
	if err := a.decode(&q.order); err != nil || q.order.Version < version {
		audit.reportStale(e, "version %d was acknowledged, a read with its token was answered: %s", version, a)
		return q, false
	}
	if a, ok = get("/v1/orders/" + e.id + "/events"); !ok {
		return q, false
	}
	var list struct {
		Items []eventView `json:"items"`
	}
	if err := a.decode(&list); err != nil || len(list.Items) < version {
		audit.reportStale(e, "version %d was acknowledged, a read of the events with its token showed %d (%v)", version, len(list.Items), err)
		return q, false
	}
	q.events = list.Items
	if a, ok = get("/v1/payments/" + e.id); !ok {
		return q, false
	}
	if a.status == http.StatusNotFound {
		return q, true
	}
	q.payment = &paymentView{}
	if err := a.decode(q.payment); err != nil {
		audit.reportStale(e, "the payment cannot be read: %v", err)
		return q, false
	}
	return q, true
}

// reportStale enters a fault for a read that did not show the effect of the command
// that its token belongs to. It does so once per order.
func (audit *auditor) reportStale(e *orderEntry, format string, args ...any) {
	e.mu.Lock()
	reported := e.staleReported
	e.staleReported = true
	e.mu.Unlock()
	if !reported {
		audit.ledger.fault(faultStaleRead, e.id, format, args...)
	}
}
