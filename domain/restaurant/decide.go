package restaurant

import (
	"fmt"
	"time"

	"tomato/domain"
)

// MaxMenuItems bounds a menu, because a restaurant is stored and read as a whole.
const MaxMenuItems = 1000

// Decide returns the event that the command makes, or nil if the restaurant is already
// as the command asks, or a *domain.Refusal.
func Decide(s *State, c domain.Command, _ time.Time) (Event, error) {
	if p, ok := c.(Put); ok {
		switch {
		case !s.Exists():
			return RestaurantRegistered(p), nil
		case s.Name == p.Name && s.Location == p.Location && s.Address == p.Address:
			return nil, nil
		}
		return RestaurantUpdated(p), nil
	}
	if !s.Exists() {
		return nil, domain.Refuse(domain.NotFound, "no such restaurant")
	}
	switch c := c.(type) {
	case Open:
		if s.Open {
			return nil, nil
		}
		return RestaurantOpened{RestaurantID: s.ID}, nil
	case Close:
		if !s.Open {
			return nil, nil
		}
		return RestaurantClosed{RestaurantID: s.ID}, nil
	case SetMenuItem:
		old, ok := s.Menu[c.Item.ItemID]
		switch {
		case ok && old == c.Item:
			return nil, nil
		case !ok && len(s.Menu) >= MaxMenuItems:
			return nil, domain.Refuse(CodeMenuFull, "a menu has at most %d items: remove one first", MaxMenuItems)
		}
		return MenuItemSet{RestaurantID: s.ID, Item: c.Item}, nil
	case RemoveMenuItem:
		if _, ok := s.Menu[c.ItemID]; !ok {
			return nil, nil
		}
		return MenuItemRemoved{RestaurantID: s.ID, ItemID: c.ItemID}, nil
	}
	return nil, fmt.Errorf("restaurant: unknown command %T", c)
}
