package feed

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"tomato/domain"
	"tomato/domain/rooms"
	"tomato/eventlog"
	"tomato/httpapi"
)

// OfferWatcher notes that a rider has seen their open offer of an order. After an error that
// is eventlog.ErrUnavailable, a repeat may succeed.
type OfferWatcher interface {
	SeeOffer(ctx context.Context, riderID, orderID string) error
}

// maxSeen is how many operations seen of one connection may wait.
const maxSeen = 32

// seenSender notes the offers that a rider says over one websocket to have seen, one after
// the other, while the connection goes on reading operations.
type seenSender struct {
	feed    *Feed
	session *session
	running *sync.WaitGroup

	mu     sync.Mutex // guards what follows
	orders []string   // that wait
	busy   bool       // a goroutine notes them
}

// take checks the operation and returns without waiting. If an offer cannot be noted, the
// connection is sent feed:error with the order's room.
func (n *seenSender) take(ctx context.Context, o op) *httpapi.Problem {
	switch {
	case n.session.actor.Role != domain.Rider:
		return httpapi.NewProblem(http.StatusForbidden, "forbidden", "Only riders see offers.")
	case n.feed.Offers == nil:
		return httpapi.NewProblem(http.StatusNotFound, "not_configured", "This instance does not note who has seen an offer.")
	case o.OrderID == "" || !rooms.Valid(rooms.Order(o.OrderID)):
		return invalidOp("orderId is the id of an order.")
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.orders) >= maxSeen {
		return httpapi.NewProblem(http.StatusTooManyRequests, "too_many_requests", "Too many operations wait.")
	}
	n.orders = append(n.orders, o.OrderID)
	if !n.busy {
		n.busy = true
		n.running.Go(func() { n.run(ctx) })
	}
	return nil
}

func (n *seenSender) run(ctx context.Context) {
	for {
		n.mu.Lock()
		if n.busy = len(n.orders) > 0 && ctx.Err() == nil; !n.busy {
			n.orders = nil
			n.mu.Unlock()
			return
		}
		id := n.orders[0]
		n.orders = n.orders[1:]
		n.mu.Unlock()
		if p := n.note(ctx, id); p != nil {
			n.session.fail(rooms.Order(id), p)
		}
	}
}

func (n *seenSender) note(ctx context.Context, orderID string) *httpapi.Problem {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	err := n.feed.Offers.SeeOffer(ctx, n.session.actor.Sub, orderID)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, eventlog.ErrUnavailable):
		n.feed.log().Warn("it could not be noted that a rider has seen an offer", "order", orderID, "err", err)
		return httpapi.Unavailable("unavailable", "It could not be noted now that the offer was seen.", time.Second)
	}
	p := httpapi.FromError("order", err)
	if p.Status == http.StatusInternalServerError {
		n.feed.log().Error("it could not be noted that a rider has seen an offer", "order", orderID, "err", err)
	}
	return p
}
