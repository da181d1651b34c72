package realtime

import (
	"time"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/rider"
	"tomato/domain/rooms"
	"tomato/eventlog"
)

// Assignment is an order and the rider who is bringing it. The order's status is
// rider_assigned or picked_up.
type Assignment struct {
	RiderID      string
	ClaimID      int64 // of the rider's claim; a later claim of the rider has a higher one
	OrderID      string
	CustomerID   string
	RestaurantID string

	ended bool // the rider does not bring the order any more; a claim that is not later changes nothing
}

// assignments has each rider's order and latest position. The message
// rider:location is made from these. The orders come from topic orders and not from
// topic riders, because a rider is claimed before the order is assigned to them, and
// a claim may end without an assignment.
//
// The projector reads the partitions independently of one another. So the end of a
// rider's order may be read after the assignment of the rider's next order. The
// higher claim id tells which of the two is later. The logs are also read back, part by
// part, from before the start: what is known of a later claim stays.
//
// It is not safe for concurrent use.
type assignments struct {
	byRider map[string]Assignment
	last    map[string]lastPosition
}

type lastPosition struct {
	rider.Position
	at time.Time // of the event: when the command side accepted it
}

func newAssignments(loaded []Assignment) *assignments {
	a := &assignments{byRider: make(map[string]Assignment, len(loaded)), last: map[string]lastPosition{}}
	for _, l := range loaded {
		a.assign(l)
	}
	return a
}

// assign takes the assignment in, and reports whether it is the rider's latest.
func (a *assignments) assign(n Assignment) bool {
	if old, ok := a.byRider[n.RiderID]; ok && old.ClaimID >= n.ClaimID {
		return false
	}
	a.byRider[n.RiderID] = n
	return true
}

// end notes that the rider's claim has ended.
func (a *assignments) end(riderID string, claimID int64) {
	if old, ok := a.byRider[riderID]; riderID != "" && (!ok || old.ClaimID <= claimID) {
		a.byRider[riderID] = Assignment{RiderID: riderID, ClaimID: claimID, ended: true}
	}
}

// order takes an event of an order in. If it is an assignment, and a position of the
// rider that was accepted after it has been read already, order returns the message
// for that position: when the position was read, it was not known whose room it is
// for.
func (a *assignments) order(e *eventlog.Event) ([]rooms.Message, error) {
	switch e.Type {
	case order.TypeRiderAssigned, order.TypeRiderUnassigned, order.TypeOrderDelivered, order.TypeOrderCancelled:
	default:
		return nil, nil
	}
	decoded, err := order.Decode(e.Type, e.DataVersion(), e.Data)
	if err != nil {
		return nil, err
	}
	switch o := decoded.(type) {
	case order.RiderAssigned:
		n := Assignment{RiderID: o.RiderID, ClaimID: o.ClaimID, OrderID: o.OrderID, CustomerID: o.Ctx.CustomerID, RestaurantID: o.Ctx.RestaurantID}
		if p, ok := a.last[o.RiderID]; a.assign(n) && ok && !p.at.Before(e.Time) {
			return a.message(n, p.Position, p.at)
		}
	case order.RiderUnassigned:
		a.end(o.RiderID, o.ClaimID)
	case order.OrderDelivered:
		a.end(o.RiderID, o.ClaimID)
	case order.OrderCancelled:
		a.end(o.RiderID, o.ClaimID)
	}
	return nil, nil
}

// position takes a rider's position in, and returns the message to the room of the
// rider's order if there is one. A position that was recorded before the last one
// changes nothing.
func (a *assignments) position(e *eventlog.Event) ([]rooms.Message, error) {
	p, err := rider.ReadPosition(e.Type, e.Subject, e.Data, time.Now())
	if err != nil {
		return nil, err
	}
	if old, ok := a.last[p.RiderID]; ok && !p.RecordedAt.After(old.RecordedAt) {
		return nil, nil
	}
	a.last[p.RiderID] = lastPosition{p, e.Time}
	if n, ok := a.byRider[p.RiderID]; ok && !n.ended {
		return a.message(n, p, e.Time)
	}
	return nil, nil
}

// forget takes out the last position of a rider, which was deleted.
func (a *assignments) forget(riderID string) { delete(a.last, riderID) }

func (a *assignments) message(n Assignment, p rider.Position, at time.Time) ([]rooms.Message, error) {
	m := messages{at: at}
	m.add("rider:location", domain.Ctx{CustomerID: n.CustomerID, RestaurantID: n.RestaurantID, RiderID: n.RiderID}, p, to(rooms.Order(n.OrderID)))
	if m.err == nil {
		m.all[0].Latest = true
	}
	return m.all, m.err
}
