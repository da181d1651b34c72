package shard

import (
	"time"

	"tomato/domain/order"
)

// This file owns the retirement of closed orders.
//
// A closed order keeps its whole state for the time closedFor, so that commands on
// it can answer with the state. Then it shrinks to what payment commands and
// refusals need. After ArchiveAfter it is evicted together with its payment, unless
// money of the order is still on its way or waits for an operator. From then on,
// commands on its id are refused as archived, because the id has the time of the
// order in it. Captured money that still arrives for it is recorded as
// PAYMENT_UNMATCHED under its own id.

// retireAt returns when a closed order is to shrink or to be evicted next, or the
// zero time if the order is not closed.
func retireAt(o *order.State, archiveAfter time.Duration) time.Time {
	switch {
	case !o.Status.Closed():
		return time.Time{}
	case o.Items == nil: // the order has shrunk
		return o.ClosedAt.Add(archiveAfter)
	}
	return o.ClosedAt.Add(closedFor)
}

// retireAgain is the time after which an order that could not be evicted is looked
// at again.
const retireAgain = time.Hour

// retire shrinks or evicts a closed order whose time has come.
func (s *shard) retire(id string, now time.Time) {
	e, err := s.agg.find(orders, id)
	if err != nil {
		s.fail(err)
		return
	}
	if e == nil || e.order == nil || !e.order.Status.Closed() || e.markOf(orders) != nil {
		return
	}
	evictAt := e.order.ClosedAt.Add(s.owner.ArchiveAfter)
	switch {
	case e.last[0] > s.logs[orders].acked || e.last[1] > s.logs[payments].acked:
		s.agg.closed.push(now.Add(time.Second), id) // a snapshot has only confirmed state
	case now.Before(evictAt):
		s.agg.shrink(e)
		s.agg.closed.push(evictAt, id)
	case e.markOf(payments) != nil, e.payment != nil && !e.payment.Settled(e.order.Status.Ended()):
		s.agg.shrink(e)
		s.agg.closed.push(now.Add(retireAgain), id)
	default:
		s.agg.evict(e)
	}
}

// shrink removes from a closed order what is no longer needed.
func (a *aggregates) shrink(e *entry) {
	if e.order.Items == nil {
		return
	}
	small := e.order.Archived()
	e.order = &small
	a.changed(orders, e)
}

// evict removes an order and its payment from memory, and from the next snapshot.
func (a *aggregates) evict(e *entry) {
	delete(a.held[orders], e.id)
	for _, scope := range e.keys {
		if a.keys.known[scope].on == e {
			delete(a.keys.known, scope) // a repeat is refused as archived
		}
	}
	for kind := orders; kind <= payments; kind++ {
		if e.version(kind) > 0 {
			a.removed = append(a.removed, recordKey{kind, e.id})
		}
		a.noteSaved(kind, e, false)
	}
	e.order, e.payment, e.unsaved = nil, nil, 0
}
