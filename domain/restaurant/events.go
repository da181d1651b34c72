package restaurant

import (
	"encoding/json"
	"fmt"

	"tomato/domain"
)

// The events, as they stand on topic restaurants.
type (
	RestaurantRegistered struct { // RESTAURANT_REGISTERED
		RestaurantID string       `json:"restaurantId"`
		Name         string       `json:"name"`
		Location     domain.Point `json:"location"`
		Address      string       `json:"address,omitempty"`
	}
	RestaurantUpdated struct { // RESTAURANT_UPDATED
		RestaurantID string       `json:"restaurantId"`
		Name         string       `json:"name"`
		Location     domain.Point `json:"location"`
		Address      string       `json:"address,omitempty"`
	}
	RestaurantOpened struct { // RESTAURANT_OPENED
		RestaurantID string `json:"restaurantId"`
	}
	RestaurantClosed struct { // RESTAURANT_CLOSED
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
func (RestaurantRegistered) EventType() string { return "RESTAURANT_REGISTERED" }
func (RestaurantUpdated) EventType() string    { return "RESTAURANT_UPDATED" }
func (RestaurantOpened) EventType() string     { return "RESTAURANT_OPENED" }
func (RestaurantClosed) EventType() string     { return "RESTAURANT_CLOSED" }
func (MenuItemSet) EventType() string          { return "MENU_ITEM_SET" }
func (MenuItemRemoved) EventType() string      { return "MENU_ITEM_REMOVED" }

func (RestaurantRegistered) restaurantEvent() {}
func (RestaurantUpdated) restaurantEvent()    {}
func (RestaurantOpened) restaurantEvent()     {}
func (RestaurantClosed) restaurantEvent()     {}
func (MenuItemSet) restaurantEvent()          {}
func (MenuItemRemoved) restaurantEvent()      {}

// Decode reads the event of the given type from its data.
func Decode(eventType string, data []byte) (Event, error) {
	switch eventType {
	case "RESTAURANT_REGISTERED":
		return decode[RestaurantRegistered](data)
	case "RESTAURANT_UPDATED":
		return decode[RestaurantUpdated](data)
	case "RESTAURANT_OPENED":
		return decode[RestaurantOpened](data)
	case "RESTAURANT_CLOSED":
		return decode[RestaurantClosed](data)
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
