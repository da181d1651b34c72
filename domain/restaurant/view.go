package restaurant

import (
	"maps"
	"slices"

	"tomato/domain"
)

// View is the restaurant as clients see it.
type View struct {
	RestaurantID string       `json:"restaurantId"`
	Version      int64        `json:"version"`
	Name         string       `json:"name"`
	Location     domain.Point `json:"location"`
	Address      string       `json:"address,omitempty"`
	Open         bool         `json:"open"`
	Menu         []MenuItem   `json:"menu"` // by item id
}

// NewView makes the view of a restaurant.
func NewView(s *State) View {
	v := View{RestaurantID: s.ID, Version: s.Version, Name: s.Name, Location: s.Location, Address: s.Address, Open: s.Open,
		Menu: make([]MenuItem, 0, len(s.Menu))}
	for _, id := range slices.Sorted(maps.Keys(s.Menu)) {
		v.Menu = append(v.Menu, s.Menu[id])
	}
	return v
}
