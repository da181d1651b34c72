package shard

import (
	"time"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/restaurant"
	"tomato/domain/rider"
)

// Place is a wish for an order, not priced yet: the shard prices it from the
// menu after it has looked at the idempotency key.
type Place struct {
	CustomerID        string            `json:"customerId"`
	RestaurantID      string            `json:"restaurantId"`
	Lines             []restaurant.Line `json:"lines"`
	DeliverTo         order.DeliverTo   `json:"deliverTo"`
	ExternalReference string            `json:"externalReference,omitempty"`
	PaymentTTL        time.Duration     `json:"paymentTTL"`
}

// CommandName implements domain.Command.
func (Place) CommandName() string { return "place" }

// Known asks which of these riders, all of one shard, are registered. Nothing
// is decided on it, so nothing confirms it.
type Known struct {
	RiderIDs []string `json:"riderIds"`
}

// CommandName implements domain.Command.
func (Known) CommandName() string { return "known" }

// Look returns the state as the shard has it, once what this owner appended to
// it is acknowledged: it stood in the log, but a deposed owner's may be an old
// one. Nothing may be decided on it but what a later command decides again.
type Look struct{}

// CommandName implements domain.Command.
func (Look) CommandName() string { return "look" }

func isPlace(c domain.Command) bool {
	_, ok := c.(Place)
	return ok
}

// isPut says whether the command may begin a rider or a restaurant.
func isPut(c domain.Command) bool {
	switch c.(type) {
	case rider.Put, restaurant.Put:
		return true
	}
	return false
}

// price makes an order of a wish.
func (s *shard) price(p Place, orderID string) (order.Place, error) {
	r, err := s.owner.Menus.Restaurant(p.RestaurantID)
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
