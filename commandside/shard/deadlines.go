package shard

import (
	"container/heap"
	"context"
	"time"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/eventlog"
)

// This file owns the deadlines of orders and the commands that they issue.

// deadlines is a heap of times at which something is due for an order, earliest
// first. An entry is not removed when its order moves on. Whoever pops an entry
// therefore asks the order whether the deadline is still its own.
type deadlines struct{ h deadlineHeap }

type deadline struct {
	at      time.Time
	orderID string
}

func (d *deadlines) push(at time.Time, orderID string) { heap.Push(&d.h, deadline{at, orderID}) }

// next returns when the earliest entry is due, or the zero time if there is none.
func (d *deadlines) next() time.Time {
	if len(d.h) == 0 {
		return time.Time{}
	}
	return d.h[0].at
}

// pop removes and returns the earliest entry if it is due at now.
func (d *deadlines) pop(now time.Time) (deadline, bool) {
	if len(d.h) == 0 || d.h[0].at.After(now) {
		return deadline{}, false
	}
	return heap.Pop(&d.h).(deadline), true
}

type deadlineHeap []deadline

func (h deadlineHeap) Len() int           { return len(h) }
func (h deadlineHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h deadlineHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *deadlineHeap) Push(x any)        { *h = append(*h, x.(deadline)) }
func (h *deadlineHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

// deadlineCommand returns the command that the order issues at its deadline. It
// returns nil if the order has moved on since the deadline was set, or if the
// order must wait for payments that may have arrived.
func (s *shard) deadlineCommand(d deadline, now time.Time) *call {
	e, err := s.agg.find(orders, d.orderID)
	if err != nil {
		s.fail(err)
		return nil
	}
	if e == nil || e.order == nil || e.markOf(orders) != nil {
		return nil
	}
	at, command := e.order.NextDeadline()
	if command == nil || !at.Equal(d.at) {
		return nil
	}
	c := &call{ctx: context.Background(), req: Request{Topic: eventlog.Orders, ID: d.orderID, Actor: domain.SystemActor, Command: command}}
	if _, expiring := command.(order.Expire); expiring {
		if e.markOf(payments) != nil { // the event that cannot be read may have paid the order
			return nil
		}
		if p := e.paymentState(); p.AwaitsMoney() && now.Sub(at) < s.owner.PaymentGrace {
			s.expireWhenInboxPassed(c, p.GatewayOrderID, d)
			return nil
		}
	}
	return c
}

// expireWhenInboxPassed asks, outside of the loop, whether every webhook that is
// in the inbox now has been recorded, because money that has arrived pays the
// order. If so, it gives the loop the command. If not, or if that cannot be known,
// the deadline is looked at again after a second.
func (s *shard) expireWhenInboxPassed(c *call, gatewayOrderID string, d deadline) {
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		passed, err := s.owner.InboxPassed(ctx, gatewayOrderID)
		if err == nil && passed {
			s.post(func(time.Time) { s.handle(c) })
			return
		}
		select {
		case <-s.closed:
		case <-time.After(time.Second):
			s.post(func(now time.Time) { s.deadlineReached(d, now) })
		}
	}()
}
