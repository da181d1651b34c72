package simulate

import (
	"context"
	"net/http"
	"time"
)

// maxDispatch bounds how often the operator dispatches one order again.
const maxDispatch = 20

// operatorReceives handles a feed message to the operator.
func (s *simulation) operatorReceives(ctx context.Context, m message) {
	if e := s.ledger.find(m.data.OrderID); e != nil && m.Event == "dispatch:exhausted" {
		s.feedWork.Go(func() { s.dispatchAgain(ctx, e) })
	}
}

// watchExhausted looks for exhausted orders by REST until ctx ends, because a
// dispatch:exhausted may have been lost at a feed:reset.
func (s *simulation) watchExhausted(ctx context.Context) {
	t := time.NewTicker(2 * pollEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		a, ok := s.must(ctx, s.town.operatorToken, http.MethodGet, "/v1/orders?dispatch=exhausted&limit=200", nil)
		var list struct {
			Items []orderView `json:"items"`
		}
		if !ok || a.decode(&list) != nil {
			continue
		}
		for _, v := range list.Items {
			if e := s.ledger.find(v.OrderID); e != nil {
				s.dispatchAgain(ctx, e)
			}
		}
	}
}

// dispatchAgain asks for a new round for an order whose search for a rider is
// exhausted. The feed and REST may both report the same exhaustion. Then the second
// request is refused.
func (s *simulation) dispatchAgain(ctx context.Context, e *orderEntry) {
	e.mu.Lock()
	e.dispatches++
	n := e.dispatches
	e.mu.Unlock()
	if n <= maxDispatch {
		s.command(ctx, e, s.town.operatorToken, "dispatch", "", nil, "invalid_transition")
	}
}
