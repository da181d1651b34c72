package simulate

import (
	"encoding/json"
	"slices"

	"tomato/domain/order"
)

// eventOfCommand names the event that an acknowledged command must have appended.
var eventOfCommand = map[string]string{
	"place": order.TypeOrderPlaced, "accept-order": order.TypeOrderAccepted, "reject": order.TypeOrderRejected,
	"preparing": order.TypeOrderPreparing, "ready": order.TypeOrderReadyForRider, "accept": order.TypeRiderAssigned,
	"pick-up": order.TypeOrderPickedUp, "deliver": order.TypeOrderDelivered, "drop": order.TypeRiderUnassigned,
	"cancel": order.TypeOrderCancelled, "dispatch": order.TypeDispatchRequested,
	// decline is left out: it appends no event if the offer has ended already.
}

// checkCommands looks for each acknowledged command in the events.
func (j *judgement) checkCommands() {
	for _, a := range j.entry.acks {
		if a.version < 1 || a.version > len(j.queried.events) {
			j.fault(faultLostCommand, "%s was acknowledged with version %d; there are %d events", a.command, a.version, len(j.queried.events))
			continue
		}
		if s := j.statuses[a.version-1]; s != a.status {
			j.fault(faultLostCommand, "%s was acknowledged with version %d as %s; the events say %s", a.command, a.version, a.status, s)
		}
		if j.paidAt > 0 && a.version >= j.paidAt && (a.paymentStatus == "pending" || a.paymentStatus == "failed") {
			j.fault(faultMoney, "%s at version %d said payment %s after ORDER_PAID", a.command, a.version, a.paymentStatus)
		}
		if (j.paidAt == 0 || a.version < j.paidAt) && a.paymentStatus == "paid" {
			j.fault(faultMoney, "%s at version %d said paid before ORDER_PAID", a.command, a.version)
		}
		want, ok := eventOfCommand[a.command]
		if !ok {
			continue
		}
		found := slices.ContainsFunc(j.queried.events[:a.version], func(e eventView) bool {
			if e.Type != want {
				return false
			}
			if a.command != "accept" {
				return true
			}
			var d eventData
			_ = json.Unmarshal(e.Data, &d) // fold has already reported an error
			return d.RiderID == a.rider || d.Ctx.RiderID == a.rider
		})
		if !found {
			j.fault(faultLostCommand, "%s was acknowledged with version %d; no %s up to there", a.command, a.version, want)
		}
	}
}
