// Package domain holds the values that all aggregates share. The aggregates
// themselves live in the packages order, payment, rider and restaurant, each
// in the same order: state, commands, events, Evolve, Decide, errors.
//
// The domain is pure: standard library only, no I/O, no clock, no ids made
// inside. Time and ids come in with the command.
package domain

// Event is something that happened to one aggregate. The events of each
// aggregate are a closed set in its package.
type Event interface {
	EventType() string // as in ce_type: ORDER_PLACED
}

// Command is a wish to change one aggregate. The commands of each aggregate
// are a closed set in its package.
type Command interface {
	CommandName() string // the operation, stable: part of the idempotency scope
}

// Ctx is what every order, payment and rider event carries, so that a row or
// a message can be made from that one event.
type Ctx struct {
	CustomerID    string `json:"customerId,omitempty"`
	RestaurantID  string `json:"restaurantId,omitempty"`
	RiderID       string `json:"riderId,omitempty"`
	Status        string `json:"status,omitempty"`        // of the order, after the event
	PaymentStatus string `json:"paymentStatus,omitempty"` // of the order, after a payment event that changed it
}
