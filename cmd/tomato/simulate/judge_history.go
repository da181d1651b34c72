package simulate

import (
	"encoding/json"
	"slices"

	"tomato/domain/order"
)

// transition says what an event of one type does to an order's status.
type transition struct {
	from   []string // statuses in which it can occur
	to     string   // the status after it; "" if it does not change the status
	once   bool     // it occurs at most once in an order's life
	update bool     // customer and restaurant must get an order:update
}

// transitions are the transitions of an order, by event type. They are the same as in
// TestTransitions of domain/order/transitions_test.go, but written down on their own,
// so that the simulator does not judge Tomato by Tomato's code.
var transitions = map[string]transition{
	order.TypeOrderPlaced:        {from: []string{""}, to: "placed", once: true},
	order.TypeOrderPaid:          {from: []string{"placed"}, once: true, update: true},
	order.TypeOrderExpired:       {from: []string{"placed"}, to: "expired", once: true, update: true},
	order.TypeOrderAccepted:      {from: []string{"placed"}, to: "accepted", once: true, update: true},
	order.TypeOrderRejected:      {from: []string{"placed"}, to: "rejected", once: true, update: true},
	order.TypeOrderPreparing:     {from: []string{"accepted"}, to: "preparing", once: true, update: true},
	order.TypeOrderReadyForRider: {from: []string{"preparing"}, to: "ready_for_rider", once: true, update: true},
	order.TypeOrderOffered:       {from: []string{"ready_for_rider"}},
	order.TypeOfferDeclined:      {from: []string{"ready_for_rider"}},
	order.TypeOffersExpired:      {from: []string{"ready_for_rider"}},
	order.TypeDispatchExhausted:  {from: []string{"ready_for_rider"}},
	order.TypeDispatchRequested:  {from: []string{"ready_for_rider"}},
	order.TypeRiderAssigned:      {from: []string{"ready_for_rider"}, to: "rider_assigned", update: true},
	order.TypeRiderUnassigned:    {from: []string{"rider_assigned"}, to: "ready_for_rider", update: true},
	order.TypeOrderPickedUp:      {from: []string{"rider_assigned"}, to: "picked_up", once: true, update: true},
	order.TypeOrderDelivered:     {from: []string{"picked_up"}, to: "delivered", once: true, update: true},
	order.TypeOrderCancelled: {from: []string{"placed", "accepted", "preparing", "ready_for_rider", "rider_assigned", "picked_up"},
		to: "cancelled", once: true, update: true},
}

// foldEvents checks the order's history, and derives from it which messages each
// party must and may have got.
func (j *judgement) foldEvents() {
	f := historyFold{judgement: j, counts: map[string]int{}}
	for i, e := range j.queried.events {
		if e.Version != i+1 {
			j.fault(faultBrokenHistory, "event %d (%s) has version %d", i+1, e.Type, e.Version)
		}
		f.fold(e)
		j.statuses = append(j.statuses, f.status)
	}
	o := j.queried.order
	if n := len(j.queried.events); n != o.Version || f.status != o.Status {
		// The order may have changed between the two reads, so it is read again.
		j.waitFor(faultUnfinished, "the order says version %d %s, its events say %d %s", o.Version, o.Status, n, f.status)
	}
	if o.Amount != j.entry.amount || o.Currency != j.entry.currency ||
		o.CustomerID != j.entry.customer.id || o.RestaurantID != j.entry.restaurant.id {
		j.fault(faultBrokenHistory, "amount or parties differ from those in the acknowledgement: %d %s, %s, %s",
			o.Amount, o.Currency, o.CustomerID, o.RestaurantID)
	}
}

// historyFold is the state of an order while its events are folded.
type historyFold struct {
	*judgement
	status string
	holder string          // rider who has the order
	offers map[string]bool // riders with an offer in the current wave; the value is true once they declined
	counts map[string]int  // number of events, by type
}

// fold applies one event.
func (f *historyFold) fold(e eventView) {
	t, known := transitions[e.Type]
	if !known {
		f.fault(faultBrokenHistory, "unknown event type %q at version %d", e.Type, e.Version)
	}
	var d eventData
	if err := json.Unmarshal(e.Data, &d); err != nil {
		f.fault(faultBrokenHistory, "data of %s at version %d: %v", e.Type, e.Version, err)
	}
	if d.RiderID == "" && (e.Type == order.TypeRiderAssigned || e.Type == order.TypeOfferDeclined) {
		d.RiderID = d.Ctx.RiderID
	}
	f.counts[e.Type]++
	switch {
	case t.once && f.counts[e.Type] > 1:
		f.fault(faultDuplicateEvent, "%s again at version %d", e.Type, e.Version)
	case e.Type == order.TypeRiderAssigned && f.holder != "":
		f.fault(faultTwoRiders, "%s assigned at version %d while %s has it", d.RiderID, e.Version, f.holder)
	case known && !slices.Contains(t.from, f.status):
		f.fault(faultBrokenHistory, "%s at version %d in status %q", e.Type, e.Version, f.status)
	}

	update := receipt{kind: kindUpdate, version: int32(e.Version)}
	least := 0
	if t.update {
		least = 1
	}
	f.expect(f.entry.customer, update, least, 1, e.Timestamp)
	f.expect(f.entry.restaurant, update, least, 1, e.Timestamp)
	f.expectOthers(e, d, update)

	if f.holder != "" && (e.Type == order.TypeOrderPickedUp || e.Type == order.TypeOrderDelivered || e.Type == order.TypeOrderCancelled) {
		f.expect(f.rider(f.holder), update, 1, 1, e.Timestamp)
	}
	if t.to != "" {
		f.status = t.to
	}
	if f.holder != "" && f.status != "rider_assigned" && f.status != "picked_up" {
		f.assignments[len(f.assignments)-1].to = e.Timestamp
		f.holder = ""
	}
}

// expectOthers derives the messages that only some events cause. It also keeps track
// of offers and assignments.
func (f *historyFold) expectOthers(e eventView, d eventData, update receipt) {
	switch e.Type {
	case order.TypeOrderPaid:
		f.paidAt = e.Version
		f.expect(f.entry.restaurant, receipt{kind: kindNew}, 1, 1, e.Timestamp)
	case order.TypeOrderOffered:
		if f.offers == nil {
			f.offers = map[string]bool{}
		}
		var riders []offeredRider
		if err := json.Unmarshal(d.Riders, &riders); err != nil {
			f.fault(faultBrokenHistory, "riders of %s at version %d: %v", e.Type, e.Version, err)
		}
		for _, x := range riders {
			f.offers[x.RiderID] = false
			f.expect(f.rider(x.RiderID), receipt{kind: kindAvailable}, 1, 1, e.Timestamp)
		}
	case order.TypeOfferDeclined:
		if _, ok := f.offers[d.RiderID]; ok {
			f.offers[d.RiderID] = true
		}
	case order.TypeOffersExpired:
		f.withdrawOffers(e, "")
	case order.TypeDispatchExhausted:
		f.expect(f.entry.restaurant, receipt{kind: kindExhausted}, 1, 1, e.Timestamp)
	case order.TypeRiderAssigned:
		if d.RiderID == "" {
			f.fault(faultBrokenHistory, "RIDER_ASSIGNED at version %d names no rider", e.Version)
		}
		f.withdrawOffers(e, d.RiderID)
		f.holder = d.RiderID
		f.assignments = append(f.assignments, assignment{rider: f.holder, from: e.Timestamp})
		told := receipt{kind: kindRiderAssigned, tag: f.ledger.tag(f.holder)}
		f.expect(f.entry.customer, told, 1, 1, e.Timestamp)
		f.expect(f.entry.restaurant, told, 1, 1, e.Timestamp)
		f.expect(f.rider(f.holder), update, 1, 1, e.Timestamp)
	case order.TypeRiderUnassigned:
		f.expect(f.rider(f.holder), update, 0, 1, e.Timestamp)
	case order.TypeOrderCancelled:
		f.withdrawOffers(e, "")
	}
}

// withdrawOffers ends the wave. Every rider with an open offer must get order:taken,
// except the winner. A rider who declined may get it.
func (f *historyFold) withdrawOffers(e eventView, winner string) {
	for id, declined := range f.offers {
		if id == winner {
			continue
		}
		least := 1
		if declined {
			least = 0
		}
		f.expect(f.rider(id), receipt{kind: kindTaken}, least, 1, e.Timestamp)
	}
	f.offers = nil
}
