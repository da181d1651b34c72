package projections

import (
	"tomato/domain/restaurant"
	"tomato/eventlog"
)

// Restaurants is the read model of the restaurants. Its table is restaurants
// (migrations/restaurants).
const Restaurants = "restaurants"

var _ = register(readModel{name: Restaurants, tables: map[string]table{eventlog.Restaurants: restaurants}})

var restaurants = &aggregates[restaurant.State, restaurant.Event]{
	table: "restaurants", decode: restaurant.Decode, evolve: restaurant.Evolve,
	columns: []column[restaurant.State]{
		{"open", "boolean", func(s *restaurant.State) string { return boolText(s.Open) }},
		{"location", "geography", func(s *restaurant.State) string { return pointText(s.Location) }},
	},
}
