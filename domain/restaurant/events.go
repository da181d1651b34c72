package restaurant

import (
	"encoding/json"
	"fmt"

	"tomato/domain"
)

// The types of the events, as the record header ce_type has them. The constant of
// an event is Type and the name of its Go type, and that name is the type on the
// wire in camel case.
const (
	TypeRestaurantRegistered = "RESTAURANT_REGISTERED"
	TypeRestaurantUpdated    = "RESTAURANT_UPDATED"
	TypeRestaurantOpened     = "RESTAURANT_OPENED"
	TypeRestaurantClosed     = "RESTAURANT_CLOSED"
	TypeMenuItemSet          = "MENU_ITEM_SET"
	TypeMenuItemRemoved      = "MENU_ITEM_REMOVED"
)

// Types are the types of all events of a restaurant.
var Types = []string{
	TypeRestaurantRegistered, TypeRestaurantUpdated, TypeRestaurantOpened, TypeRestaurantClosed,
	TypeMenuItemSet, TypeMenuItemRemoved,
}

// The events, as they are on topic restaurants. Records are kept for ever, so the form of an
// event is never changed. If another form is needed, Decode converts the old one.
type (
	RestaurantRegistered struct {
		RestaurantID string       `json:"restaurantId"`
		Name         string       `json:"name"`
		Location     domain.Point `json:"location"`
		Address      string       `json:"address,omitempty"`
	}
	RestaurantUpdated struct {
		RestaurantID string       `json:"restaurantId"`
		Name         string       `json:"name"`
		Location     domain.Point `json:"location"`
		Address      string       `json:"address,omitempty"`
	}
	RestaurantOpened struct {
		RestaurantID string `json:"restaurantId"`
	}
	RestaurantClosed struct {
		RestaurantID string `json:"restaurantId"`
	}
	MenuItemSet struct {
		RestaurantID string   `json:"restaurantId"`
		Item         MenuItem `json:"item"`
	}
	MenuItemRemoved struct {
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
func (RestaurantRegistered) EventType() string { return TypeRestaurantRegistered }
func (RestaurantUpdated) EventType() string    { return TypeRestaurantUpdated }
func (RestaurantOpened) EventType() string     { return TypeRestaurantOpened }
func (RestaurantClosed) EventType() string     { return TypeRestaurantClosed }
func (MenuItemSet) EventType() string          { return TypeMenuItemSet }
func (MenuItemRemoved) EventType() string      { return TypeMenuItemRemoved }

func (RestaurantRegistered) restaurantEvent() {}
func (RestaurantUpdated) restaurantEvent()    {}
func (RestaurantOpened) restaurantEvent()     {}
func (RestaurantClosed) restaurantEvent()     {}
func (MenuItemSet) restaurantEvent()          {}
func (MenuItemRemoved) restaurantEvent()      {}

// Forms are the versions of the data of events that have had more than one. None has yet.
// Decode turns an older version into the present one with Read, and a shard writes an
// older version with Write while not all owners know the present one.
var Forms = domain.Forms[Event]{}

// Decode reads the event of the given type from its data, which is of the given version.
// The error is a *domain.UnknownVersion if a newer build has written it.
func Decode(eventType string, version int, data []byte) (Event, error) {
	if e, read, err := Forms.Read(eventType, version, data); read {
		return e, err
	}
	switch eventType {
	case TypeRestaurantRegistered:
		return decode[RestaurantRegistered](data)
	case TypeRestaurantUpdated:
		return decode[RestaurantUpdated](data)
	case TypeRestaurantOpened:
		return decode[RestaurantOpened](data)
	case TypeRestaurantClosed:
		return decode[RestaurantClosed](data)
	case TypeMenuItemSet:
		return decode[MenuItemSet](data)
	case TypeMenuItemRemoved:
		return decode[MenuItemRemoved](data)
	}
	return nil, fmt.Errorf("unknown restaurant event %q", eventType)
}

func decode[E Event](data []byte) (Event, error) {
	var e E
	err := json.Unmarshal(data, &e)
	return e, err
}
