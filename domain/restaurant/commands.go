package restaurant

import "tomato/domain"

// The commands.
type (
	// Put registers the restaurant or changes what is known of it.
	Put struct {
		RestaurantID string       `json:"restaurantId"`
		Name         string       `json:"name"`
		Location     domain.Point `json:"location"`
		Address      string       `json:"address,omitempty"`
	}
	// Open and Close begin and end the taking of orders.
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
