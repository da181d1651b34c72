package restaurant

import (
	"encoding/json"
	"fmt"

	"tomato/domain"
)

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
