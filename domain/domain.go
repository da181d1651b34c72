// Package domain holds the values that all aggregates share. The aggregates are
// the packages order, payment, rider and restaurant. Each has these files, to be read
// in this order:
//
//	state.go     what the events have made of the aggregate
//	commands.go  what may be asked of it
//	events.go    what happened to it, as it is on the topic, and Decode
//	evolve.go    Evolve: state and event make the next state
//	decide.go    Decide: state and command make one event, none, or a refusal
//	errors.go    the codes with which it refuses
//	view.go      the aggregate as clients see it
//	json.go      JSON that is written without reflection; package restaurant has none
//	jsonread.go  the same JSON, read without reflection
//
// Package order also has view_events.go, which says who may see which event of an
// order. Package rider also has position.go, which reads the positions of riders, and
// verify.go, in whose place the tests of upgrades build nextepoch.go.
//
// The files of this package, in reading order:
//
//	domain.go    Event, Command, and what every event carries
//	actor.go     who issues a command
//	errors.go    Refusal
//	forms.go     versions of the data of events
//	values.go    Money, ids and times
//	point.go     positions on the earth
//	json.go      writing JSON without reflection
//	jsonread.go  reading it
//	sealed.go    personal texts in encrypted form
//	memory.go    sharing texts in memory
//
// The domain is pure: it imports only a part of the standard library, does no I/O,
// does not look at the clock and makes no ids. Times and ids come in with the
// command.
package domain

// Event is something that happened to one aggregate. The events of each
// aggregate are a closed set in its package.
type Event interface {
	EventType() string // as in ce_type: ORDER_PLACED
}

// Command asks to change one aggregate. The commands of each aggregate are a
// closed set in its package.
type Command interface {
	CommandName() string // of the operation; it never changes, being part of the idempotency scope
}

// Ctx is in every event of an order, a payment or a rider, so that a row or a message can
// be made from that one event.
type Ctx struct {
	CustomerID    string `json:"customerId,omitempty"`
	RestaurantID  string `json:"restaurantId,omitempty"`
	RiderID       string `json:"riderId,omitempty"`
	Status        string `json:"status,omitempty"`        // of the order, after the event
	PaymentStatus string `json:"paymentStatus,omitempty"` // of the order, after a payment event that changed it
}
