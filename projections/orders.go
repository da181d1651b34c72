package projections

import (
	"slices"
	"strconv"

	"tomato/domain/order"
	"tomato/eventlog"
)

// Orders is the read model of the orders. Its tables are orders and order_events
// (migrations/orders).
const Orders = "orders"

var _ = register(readModel{name: Orders, tables: map[string]table{eventlog.Orders: orders}})

var orders = &aggregates[order.State, order.Event]{
	table: "orders", decode: order.Decode, evolve: order.Evolve,
	history: history{table: "order_events", idColumn: "order_id"},
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

// waveOpen reports whether the order waits for the answers to a wave of offers.
func waveOpen(s *order.State) bool { return s.Status == order.StatusReadyForRider && s.WaveOpen }

// asked returns the riders to whom the open wave makes no further offer: those
// who have an offer in it, and those who declined or dropped the order in this
// round. It returns nil if no wave is open.
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
