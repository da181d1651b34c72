package simulate

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
)

// object is a JSON object to be sent.
type object = map[string]any

// caller makes calls for the parties and enters the answers into the ledger. A call
// that fails although it must succeed is a broken promise. Safe for concurrent use.
type caller struct {
	api    *client
	ledger *ledger
	run    string // a part of every id, so that no two runs share an id
	keys   atomic.Uint64
}

// key returns a new Idempotency-Key.
func (c *caller) key() string { return c.run + "-" + strconv.FormatUint(c.keys.Add(1), 36) }

func (c *caller) operatorID() string { return "sim-ops-" + c.run }

// reference returns the externalReference of the order with this number.
func (c *caller) reference(n int) string { return c.run + "-" + strconv.Itoa(n) }

// must makes a call that has to succeed, and reports whether it succeeded. A failure
// is a broken promise.
func (c *caller) must(ctx context.Context, token, method, path string, body any) (answer, bool) {
	a, err := c.api.do(ctx, call{token: token, method: method, path: path, body: body, key: c.key()})
	if err != nil {
		c.unanswered(ctx, "", err)
		return a, false
	}
	if !a.ok() {
		c.ledger.fault(faultUnexpectedAnswer, "", "%s %s: %s", method, path, a)
		return a, false
	}
	return a, true
}

// command sends an order command, enters its answer into the ledger and reports
// whether it succeeded. rider is the id of the rider who sends the command, or "" if
// another party sends it. allowed are the problem codes with which the command may
// be refused here. Any other refusal is a broken promise.
func (c *caller) command(ctx context.Context, e *orderEntry, token, name, rider string, body any, allowed ...string) (answer, bool) {
	a, err := c.api.do(ctx, call{
		token: token, method: http.MethodPost, path: "/v1/orders/" + e.id + "/" + name, body: body, key: c.key(),
	})
	if err != nil {
		c.unanswered(ctx, e.id, err)
		return a, false
	}
	if a.ok() {
		c.enterAnswer(e, name, rider, a)
		return a, true
	}
	if !slices.Contains(allowed, a.problem.Code) && !e.mayBeRefused(name, a.problem.Code) {
		c.ledger.fault(faultUnexpectedAnswer, e.id, "%s: %s", name, a)
	}
	return a, false
}

// mayBeRefused reports whether a command may be refused with this problem code
// because of what other parties did to the order. It must be called after the
// answer, because the other parties may act while the command is under way.
func (e *orderEntry) mayBeRefused(name, code string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch code {
	case "invalid_transition": // another party ended the order, or is about to
		return e.cancelRequested || e.plan.ending != endNone
	case "order_not_found": // a new round began, and a rider without an offer in it may not see the order
		return (name == "accept" || name == "decline") && (e.drops > 0 || e.dispatches > 0)
	}
	return false
}

// enterAnswer checks the form of a successful answer to an order command and
// enters it into the ledger.
func (c *caller) enterAnswer(e *orderEntry, name, rider string, a answer) {
	v, err := a.order()
	if err != nil || v.OrderID == "" || v.Status == "" {
		c.ledger.fault(faultUnexpectedAnswer, e.id, "%s: no order in the answer: %v", name, err)
		return
	}
	if want := `"` + strconv.Itoa(v.Version) + `"`; a.etag != want {
		c.ledger.fault(faultUnexpectedAnswer, e.id, "%s: ETag %s with version %d", name, a.etag, v.Version)
	}
	if a.token == "" {
		c.ledger.fault(faultUnexpectedAnswer, e.id, "%s: no Consistency-Token", name)
	}
	c.ledger.acknowledged(e, name, rider, v, a.token)
}

// unanswered enters a call without a definite answer as a broken promise, unless the
// call failed because the run was ended.
func (c *caller) unanswered(ctx context.Context, order string, err error) {
	if ctx.Err() == nil {
		c.ledger.fault(faultUnanswered, order, "%v", err)
	}
}

// each calls f for all items at the same time and reports whether f returned true
// for all of them. It does not bound the number of goroutines; the client bounds the
// requests under way.
func each[Item any](items []Item, f func(Item) bool) bool {
	var calls sync.WaitGroup
	var failed atomic.Bool
	for _, item := range items {
		calls.Go(func() {
			if !f(item) {
				failed.Store(true)
			}
		})
	}
	calls.Wait()
	return !failed.Load()
}
