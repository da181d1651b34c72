// Package nearby has the questions that dispatch asks of the read models of
// riders and orders, and the answers. The command side asks, the projections
// answer, and neither imports the other.
package nearby

import "tomato/domain"

// Search asks for free riders near one order.
type Search struct {
	OrderID      string
	Point        domain.Point
	RadiusMeters int
	Limit        int
	Without      []string // the ids of riders who must not be in the answer
}

// Rider is a rider found for a search.
type Rider struct {
	RiderID        string
	DistanceMeters int
}

// WaitingOrder is an order that waits for a rider, and the rider who came within
// its radius.
type WaitingOrder struct {
	OrderID        string
	RiderID        string
	DistanceMeters int
}
