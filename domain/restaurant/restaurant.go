// Package restaurant is the restaurant aggregate: where it is, whether it is
// open, and its menu, from which orders are priced.
package restaurant

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"tomato/domain"
	"tomato/domain/order"
)

// MenuItem is one thing on the menu.
type MenuItem struct {
	ItemID    string       `json:"itemId"`
	Name      string       `json:"name"`
	Price     domain.Money `json:"price"`
	Available bool         `json:"available"`
}

// State is a restaurant as its events have made it. Evolve never changes the
// menu in place.
type State struct {
	ID        string              `json:"restaurantId"`
	Version   int64               `json:"version"`
	Name      string              `json:"name"`
	Location  domain.Point        `json:"location"`
	Address   string              `json:"address,omitempty"`
	Open      bool                `json:"open"`
	Menu      map[string]MenuItem `json:"menu,omitempty"` // by item id
	CreatedAt time.Time           `json:"createdAt,omitzero"`
	UpdatedAt time.Time           `json:"updatedAt,omitzero"`
}

// Exists says whether the restaurant is registered.
func (s *State) Exists() bool { return s.Version > 0 }

// Line is a wish for one menu item.
type Line struct {
	ItemID   string `json:"itemId"`
	Quantity int    `json:"quantity"`
}

// Price makes order items of the lines, with names and prices copied from the
// menu, or a *domain.Refusal: what does not fit together goes before what is
// not possible now.
func (s *State) Price(lines []Line) (items []order.Item, currency string, err error) {
	for i, l := range lines {
		m, ok := s.Menu[l.ItemID]
		if !ok {
			return nil, "", domain.Refuse(domain.UnknownItem, "items[%d] is not on this restaurant's menu", i)
		}
		if currency == "" {
			currency = m.Price.Currency
		}
		if m.Price.Currency != currency {
			return nil, "", domain.Refuse(domain.CurrencyMismatch, "items[%d] is priced in another currency than items[0]", i)
		}
		items = append(items, order.Item{ItemID: l.ItemID, Name: m.Name, UnitPrice: m.Price.Amount, Quantity: l.Quantity})
	}
	if !s.Open {
		return nil, "", domain.Refuse(domain.RestaurantClosed, "the restaurant is closed")
	}
	for i, l := range lines {
		if !s.Menu[l.ItemID].Available {
			return nil, "", domain.Refuse(domain.ItemUnavailable, "items[%d] is not available now", i)
		}
	}
	return items, currency, nil
}

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

// The commands.
type (
	// Put registers the restaurant or changes what is known of it.
	Put struct {
		RestaurantID string       `json:"restaurantId"`
		Name         string       `json:"name"`
		Location     domain.Point `json:"location"`
		Address      string       `json:"address,omitempty"`
	}
	// Open and Close say whether orders are taken.
	Open  struct{}
	Close struct{}
	// SetMenuItem puts an item on the menu or changes it.
	SetMenuItem struct {
		Item MenuItem `json:"item"`
	}
	// RemoveMenuItem takes an item off the menu.
	RemoveMenuItem struct {
		ItemID string `json:"itemId"`
	}
)

// CommandName implements domain.Command.
func (Put) CommandName() string            { return "put-restaurant" }
func (Open) CommandName() string           { return "open" }
func (Close) CommandName() string          { return "close" }
func (SetMenuItem) CommandName() string    { return "set-menu-item" }
func (RemoveMenuItem) CommandName() string { return "remove-menu-item" }

// The events, as they stand on topic restaurants.
type (
	Registered struct { // RESTAURANT_REGISTERED
		RestaurantID string       `json:"restaurantId"`
		Name         string       `json:"name"`
		Location     domain.Point `json:"location"`
		Address      string       `json:"address,omitempty"`
	}
	Updated struct { // RESTAURANT_UPDATED
		RestaurantID string       `json:"restaurantId"`
		Name         string       `json:"name"`
		Location     domain.Point `json:"location"`
		Address      string       `json:"address,omitempty"`
	}
	Opened struct { // RESTAURANT_OPENED
		RestaurantID string `json:"restaurantId"`
	}
	Closed struct { // RESTAURANT_CLOSED
		RestaurantID string `json:"restaurantId"`
	}
	MenuItemSet struct { // MENU_ITEM_SET
		RestaurantID string   `json:"restaurantId"`
		Item         MenuItem `json:"item"`
	}
	MenuItemRemoved struct { // MENU_ITEM_REMOVED
		RestaurantID string `json:"restaurantId"`
		ItemID       string `json:"itemId"`
	}
)

// Event is an event of a restaurant: one of the types above.
type Event interface {
	domain.Event
	restaurantEvent()
}

// EventType implements domain.Event.
func (Registered) EventType() string      { return "RESTAURANT_REGISTERED" }
func (Updated) EventType() string         { return "RESTAURANT_UPDATED" }
func (Opened) EventType() string          { return "RESTAURANT_OPENED" }
func (Closed) EventType() string          { return "RESTAURANT_CLOSED" }
func (MenuItemSet) EventType() string     { return "MENU_ITEM_SET" }
func (MenuItemRemoved) EventType() string { return "MENU_ITEM_REMOVED" }

func (Registered) restaurantEvent()      {}
func (Updated) restaurantEvent()         {}
func (Opened) restaurantEvent()          {}
func (Closed) restaurantEvent()          {}
func (MenuItemSet) restaurantEvent()     {}
func (MenuItemRemoved) restaurantEvent() {}

// Decode reads the event of the given type from its data.
func Decode(eventType string, data []byte) (Event, error) {
	switch eventType {
	case "RESTAURANT_REGISTERED":
		return decode[Registered](data)
	case "RESTAURANT_UPDATED":
		return decode[Updated](data)
	case "RESTAURANT_OPENED":
		return decode[Opened](data)
	case "RESTAURANT_CLOSED":
		return decode[Closed](data)
	case "MENU_ITEM_SET":
		return decode[MenuItemSet](data)
	case "MENU_ITEM_REMOVED":
		return decode[MenuItemRemoved](data)
	}
	return nil, fmt.Errorf("unknown restaurant event %q", eventType)
}

func decode[E Event](data []byte) (Event, error) {
	var e E
	err := json.Unmarshal(data, &e)
	return e, err
}

// Evolve returns the state after e, which happened at time at.
func Evolve(s State, e Event, at time.Time) State {
	s.Version++
	s.UpdatedAt = at
	switch e := e.(type) {
	case Registered:
		s.ID, s.Name, s.Location, s.Address, s.CreatedAt = e.RestaurantID, e.Name, e.Location, e.Address, at
	case Updated:
		s.Name, s.Location, s.Address = e.Name, e.Location, e.Address
	case Opened:
		s.Open = true
	case Closed:
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

// MaxMenuItems bounds a menu. A restaurant is kept, and read, as one.
const MaxMenuItems = 1000

// Decide returns the event that the command makes of the restaurant, nil where
// it is already so, or a *domain.Refusal.
func Decide(s *State, c domain.Command, _ time.Time) (Event, error) {
	if p, ok := c.(Put); ok {
		switch {
		case !s.Exists():
			return Registered(p), nil
		case s.Name == p.Name && s.Location == p.Location && s.Address == p.Address:
			return nil, nil
		}
		return Updated(p), nil
	}
	if !s.Exists() {
		return nil, domain.Refuse(domain.NotFound, "no such restaurant")
	}
	switch c := c.(type) {
	case Open:
		if s.Open {
			return nil, nil
		}
		return Opened{RestaurantID: s.ID}, nil
	case Close:
		if !s.Open {
			return nil, nil
		}
		return Closed{RestaurantID: s.ID}, nil
	case SetMenuItem:
		old, ok := s.Menu[c.Item.ItemID]
		switch {
		case ok && old == c.Item:
			return nil, nil
		case !ok && len(s.Menu) >= MaxMenuItems:
			return nil, domain.Refuse(domain.MenuFull, "a menu has at most %d items: remove one first", MaxMenuItems)
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
