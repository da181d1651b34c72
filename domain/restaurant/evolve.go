package restaurant

import (
	"maps"
	"time"
)

// Evolve returns the state after the event e, which happened at time at.
func Evolve(s State, e Event, at time.Time) State {
	s.Version++
	s.UpdatedAt = at
	switch e := e.(type) {
	case RestaurantRegistered:
		s.ID, s.Name, s.Location, s.Address, s.CreatedAt = e.RestaurantID, e.Name, e.Location, e.Address, at
	case RestaurantUpdated:
		s.Name, s.Location, s.Address = e.Name, e.Location, e.Address
	case RestaurantOpened:
		s.Open = true
	case RestaurantClosed:
		s.Open = false
	case MenuItemSet:
		menu := make(map[string]MenuItem, len(s.Menu)+1)
		maps.Copy(menu, s.Menu)
		menu[e.Item.ItemID] = e.Item
		s.Menu = menu
	case MenuItemRemoved:
		s.Menu = maps.Clone(s.Menu)
		delete(s.Menu, e.ItemID)
		if len(s.Menu) == 0 {
			s.Menu = nil // as it is read back from JSON
		}
	}
	return s
}
