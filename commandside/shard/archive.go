package shard

import (
	"time"

	"tomato/domain/order"
)

// Closed orders keep their whole state for closedFor, in which commands on them
// answer with it. Then they shrink to what payment commands and refusals need.
// After ArchiveAfter they leave memory, with their payment, unless money of
// theirs is still on its way or before an operator. Their ids, whose time is
// inside, are refused as archived from then on; captured money that still comes
// for them is PAYMENT_UNMATCHED under its own id.

// retireAt is when a closed order is to be looked at next: to shrink, or to leave.
func retireAt(o *order.State, archiveAfter time.Duration) time.Time {
	switch {
	case !o.Status.Closed():
		return time.Time{}
	case o.Items == nil: // it has shrunk
		return o.ClosedAt.Add(archiveAfter)
	}
	return o.ClosedAt.Add(closedFor)
}

// retireAgain is when an order that cannot leave yet is looked at again.
const retireAgain = time.Hour

// retire lets a closed order whose time has come shrink, or leave.
func (s *shard) retire(id string, now time.Time) {
	e, err := s.agg.find(orders, id)
	if err != nil {
		s.fail(err)
		return
	}
	if e == nil || e.order == nil || !e.order.Status.Closed() || e.unreadOf(orders) != nil {
		return
	}
	leaves := e.order.ClosedAt.Add(s.owner.ArchiveAfter)
	switch {
	case e.last[0] > s.logs[orders].acked || e.last[1] > s.logs[payments].acked:
		s.agg.closed.push(now.Add(time.Second), id) // a snapshot has confirmed state only
	case now.Before(leaves):
		s.agg.shrink(e)
		s.agg.closed.push(leaves, id)
	case e.unreadOf(payments) != nil, e.payment != nil && !e.payment.Settled(e.order.Status.Ended()):
		s.agg.shrink(e)
		s.agg.closed.push(now.Add(retireAgain), id)
	default:
		s.agg.leave(e)
	}
}

func (a *aggregates) shrink(e *entry) {
	if e.order.Items == nil {
		return
	}
	small := e.order.Archived()
	e.order = &small
	a.changed(orders, e)
}

func (a *aggregates) leave(e *entry) {
	delete(a.held[orders], e.id)
	for _, scope := range e.keys {
		if a.keys.known[scope].on == e {
			delete(a.keys.known, scope) // whoever repeats is told that it is archived
		}
	}
	for kind := orders; kind <= payments; kind++ {
		if e.version(kind) > 0 {
			a.gone = append(a.gone, recordKey{kind, e.id})
		}
		a.keep(kind, e, false)
	}
	e.order, e.payment, e.unsaved = nil, nil, 0
}
