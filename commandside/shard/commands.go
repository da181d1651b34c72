package shard

import (
	"time"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/restaurant"
	"tomato/domain/rider"
)

// This file owns the commands that are not of the domain, and the pricing of orders.

// Place is the command to place an order that is not priced yet. The shard prices
// it from the menu after it has looked at the idempotency key.
type Place struct {
	CustomerID        string            `json:"customerId"`
	RestaurantID      string            `json:"restaurantId"`
	Lines             []restaurant.Line `json:"lines"`
	DeliverTo         domain.Sealed     `json:"deliverTo"`
	ExternalReference string            `json:"externalReference,omitempty"`
	PaymentTTL        time.Duration     `json:"paymentTTL"`
}

// CommandName implements domain.Command.
func (Place) CommandName() string { return "place" }

// Known asks which of these riders, all of one shard, are registered. The answer is
// not confirmed, because nothing is decided on it.
type Known struct {
	RiderIDs []string `json:"riderIds"`
}

// CommandName implements domain.Command.
func (Known) CommandName() string { return "known" }

// Look asks for the state of an aggregate. The answer waits until this owner's own
// appends to the aggregate are acknowledged, so the state is one that the log had.
// It is not confirmed: the state of a deposed owner may be an old one. A caller may
// therefore decide on it only what a later command checks again.
type Look struct{}

// CommandName implements domain.Command.
func (Look) CommandName() string { return "look" }

func isPlace(c domain.Command) bool {
	_, ok := c.(Place)
	return ok
}

// isPut reports whether the command creates a rider or restaurant that does not exist.
func isPut(c domain.Command) bool {
	switch c.(type) {
	case rider.Put, restaurant.Put:
		return true
	}
	return false
}

// price returns the domain's command to place an order, with the prices of the menu.
func price(menus *Menus, p Place, orderID string) (order.Place, error) {
	r, err := menus.Restaurant(p.RestaurantID)
	if err != nil {
		return order.Place{}, err
	}
	if r == nil {
		return order.Place{}, domain.Refuse(restaurant.CodeUnknown, "restaurantId names no restaurant")
	}
	items, currency, err := r.Price(p.Lines)
	if err != nil {
		return order.Place{}, err
	}
	return order.Place{
		OrderID: orderID, CustomerID: p.CustomerID, RestaurantID: p.RestaurantID,
		Items: items, Currency: currency, DeliverTo: p.DeliverTo, ExternalReference: p.ExternalReference,
		PickUp:     order.PickUp{Name: r.Name, Location: r.Location, Address: r.Address},
		PaymentTTL: p.PaymentTTL,
	}, nil
}
