package projections

import (
	"strconv"

	"tomato/domain/rider"
	"tomato/eventlog"
)

// Riders is the read model of the riders (migrations/riders). It is made of two
// topics and so has a table for each: riders and rider_positions. The latter also has a
// copy of what a search needs of the former (rider_positions.go).
const Riders = "riders"

var _ = register(readModel{
	name:         Riders,
	tables:       map[string]table{eventlog.Riders: riders, eventlog.RiderLocations: riderPositions{}},
	halves:       []foldedRows{{table: "rider_positions", columns: []string{"rider_id", "name", "eligible"}, where: "name IS NOT NULL"}},
	copyUnfolded: copyPositions,
})

var riders = &aggregates[rider.State, rider.Event]{
	table: "riders", decode: rider.Decode, evolve: rider.Evolve, after: keepFreeRiders,
	columns: []column[rider.State]{
		{"name", "text", func(s *rider.State) string { return string(s.Name) }},
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
