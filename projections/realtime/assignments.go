package realtime

import (
	"time"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/rider"
	"tomato/domain/rooms"
	"tomato/eventlog"
)

// Assignment is an order that a rider is bringing: rider_assigned or picked_up.
type Assignment struct {
	RiderID      string
	ClaimID      int64 // of the order; grows with each order that the rider gets
	OrderID      string
	CustomerID   string
	RestaurantID string
}

// assignments is rider → order, and where each rider was last: what
// rider:location needs beside the event. It follows topic orders, not riders:
// a rider is claimed before the order is really theirs, and a claim may be lost.
//
// Partitions are read side by side, so the end of one order and the assignment
// of the rider's next one come in any order; the claim id, which only grows,
// says which is the later.
type assignments struct {
	byRider map[string]Assignment
	last    map[string]lastPosition
}

type lastPosition struct {
	rider.Position
	at time.Time // when it was taken in
}

func newAssignments(loaded []Assignment) *assignments {
	a := &assignments{byRider: make(map[string]Assignment, len(loaded)), last: map[string]lastPosition{}}
	for _, l := range loaded {
		a.assign(l)
	}
	return a
}

func (a *assignments) assign(n Assignment) bool {
	if old, ok := a.byRider[n.RiderID]; ok && old.ClaimID >= n.ClaimID {
		return false
	}
	a.byRider[n.RiderID] = n
	return true
}

func (a *assignments) end(riderID string, claimID int64) {
	if old, ok := a.byRider[riderID]; ok && old.ClaimID == claimID {
		delete(a.byRider, riderID)
	}
}

// order follows an order event. An assignment that is read after a position of
// its rider which was taken in later (the topics are read side by side) gives
// that position to the order's room.
func (a *assignments) order(e *eventlog.Event) ([]rooms.Message, error) {
	switch e.Type {
	case order.TypeRiderAssigned, order.TypeRiderUnassigned, order.TypeOrderDelivered, order.TypeOrderCancelled:
	default:
		return nil, nil
	}
	decoded, err := order.Decode(e.Type, e.Data)
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

// position follows a rider's position: to the room of the rider's order, unless
// a later one has been seen.
func (a *assignments) position(e *eventlog.Event) ([]rooms.Message, error) {
	p, err := rider.ReadPosition(e.Type, e.Subject, e.Data, time.Now())
	if err != nil {
		return nil, err
	}
	if old, ok := a.last[p.RiderID]; ok && !p.RecordedAt.After(old.RecordedAt) {
		return nil, nil
	}
	a.last[p.RiderID] = lastPosition{p, e.Time}
	if n, ok := a.byRider[p.RiderID]; ok {
		return a.message(n, p, e.Time)
	}
	return nil, nil
}

func (a *assignments) message(n Assignment, p rider.Position, at time.Time) ([]rooms.Message, error) {
	m := messages{at: at}
	m.add("rider:location", domain.Ctx{CustomerID: n.CustomerID, RestaurantID: n.RestaurantID, RiderID: n.RiderID}, p, to(rooms.Order(n.OrderID)))
	if m.err == nil {
		m.all[0].Latest = true
	}
	return m.all, m.err
}
