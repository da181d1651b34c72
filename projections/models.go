package projections

import (
	"slices"
	"strconv"

	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/domain/restaurant"
	"tomato/domain/rider"
	"tomato/eventlog"
)

// The read models. A consumer of the same name fills each.
const (
	Orders      = "orders"
	Payments    = "payments"
	Riders      = "riders"
	Restaurants = "restaurants"
)

// Models are all of them.
var Models = []string{Orders, Payments, Riders, Restaurants}

// Topics returns the topics that the read model is made of, nil for none.
func Topics(model string) []string {
	topics := make([]string, 0, 2)
	for t := range tables(model) {
		topics = append(topics, t)
	}
	slices.Sort(topics)
	return topics
}

// tables returns the tables of a read model by the topic that they are made of.
func tables(model string) map[string]table {
	switch model {
	case Orders:
		return map[string]table{eventlog.Orders: orders}
	case Payments:
		return map[string]table{eventlog.Payments: payments}
	case Riders:
		return map[string]table{eventlog.Riders: riders, eventlog.RiderLocations: positions{}}
	case Restaurants:
		return map[string]table{eventlog.Restaurants: restaurants}
	}
	return nil
}

var orders = &aggregates[order.State, order.Event]{
	table: "orders", history: "order_events", decode: order.Decode, evolve: order.Evolve,
	columns: []column[order.State]{
		{"status", "text", func(s *order.State) string { return string(s.Status) }},
		{"closed", "text", func(s *order.State) string {
			if s.Status.Closed() {
				return string(s.Status)
			}
			return ""
		}},
		{"customer_id", "text", func(s *order.State) string { return s.CustomerID }},
		{"restaurant_id", "text", func(s *order.State) string { return s.RestaurantID }},
		{"rider_id", "text", func(s *order.State) string { return s.RiderID }},
		{"exhausted", "boolean", func(s *order.State) string { return boolText(s.Status == order.StatusReadyForRider && s.Exhausted) }},
		{"pick_up", "geography", func(s *order.State) string { return pointText(s.PickUp.Location) }},
		{"round", "integer", func(s *order.State) string { return strconv.Itoa(s.Round) }},
		{"wave", "integer", func(s *order.State) string { return strconv.Itoa(s.Wave) }},
		{"waiting", "boolean", func(s *order.State) string { return boolText(s.Status == order.StatusReadyForRider && !s.Exhausted) }},
		{"wave_open", "boolean", func(s *order.State) string { return boolText(waveOpen(s)) }},
		{"asked", "text[]", func(s *order.State) string { return arrayText(asked(s)) }},
		{"created_at", "timestamptz", func(s *order.State) string { return timeText(s.CreatedAt) }},
	},
}

func waveOpen(s *order.State) bool { return s.Status == order.StatusReadyForRider && s.WaveOpen }

// asked are the riders whom the running wave has no further offer for.
func asked(s *order.State) []string {
	if !waveOpen(s) {
		return nil
	}
	ids := s.Unavailable()
	for _, o := range s.Offers {
		if o.State == order.OfferStateOpen && o.Wave == s.Wave {
			ids = append(ids, o.RiderID)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

var payments = &aggregates[payment.State, payment.Event]{
	table: "payments", decode: payment.Decode, evolve: payment.Evolve,
	columns: []column[payment.State]{
		{"order_id", "text", func(s *payment.State) string { return s.OrderID }},
		{"gateway_order_id", "text", func(s *payment.State) string { return s.GatewayOrderID }},
		{"booked", "boolean", func(s *payment.State) string { return boolText(s.Facts().Booked) }},
		{"refund_requested", "boolean", func(s *payment.State) string { return boolText(s.Facts().RefundRequested) }},
		{"refund_succeeded", "boolean", func(s *payment.State) string { return boolText(s.Facts().RefundSucceeded) }},
		{"last_attempt_failed", "boolean", func(s *payment.State) string { return boolText(s.Facts().LastAttemptFailed) }},
		{"has_unmatched", "boolean", func(s *payment.State) string {
			return boolText(slices.ContainsFunc(s.Attempts, func(a payment.Attempt) bool { return a.State == payment.AttemptStateUnmatched }))
		}},
		{"refund_failed", "boolean", func(s *payment.State) string { return boolText(refundFailed(s)) }},
		{"created_at", "timestamptz", func(s *payment.State) string { return timeText(s.CreatedAt) }},
	},
}

// refundFailed says whether the last refund of some payment failed.
func refundFailed(s *payment.State) bool {
	return slices.ContainsFunc(s.Attempts, func(a payment.Attempt) bool {
		r, ok := s.RefundOf(a.PaymentID)
		return ok && r.Status == payment.RefundStatusFailed && a.State != payment.AttemptStateResolved
	})
}

var riders = &aggregates[rider.State, rider.Event]{
	table: "riders", decode: rider.Decode, evolve: rider.Evolve, around: keepFreeRiders,
	columns: []column[rider.State]{
		{"name", "text", func(s *rider.State) string { return s.Name }},
		{"eligible", "boolean", func(s *rider.State) string {
			return boolText(s.Verification == rider.Verified && s.Status() == rider.StatusAvailable)
		}},
		{"order_id", "text", func(s *rider.State) string {
			if s.Claim == nil {
				return ""
			}
			return s.Claim.OrderID
		}},
		{"claim_id", "bigint", func(s *rider.State) string {
			if s.Claim == nil {
				return "0"
			}
			return strconv.FormatInt(s.Claim.ID, 10)
		}},
	},
}

var restaurants = &aggregates[restaurant.State, restaurant.Event]{
	table: "restaurants", decode: restaurant.Decode, evolve: restaurant.Evolve,
	columns: []column[restaurant.State]{
		{"open", "boolean", func(s *restaurant.State) string { return boolText(s.Open) }},
		{"location", "geography", func(s *restaurant.State) string { return pointText(s.Location) }},
	},
}
