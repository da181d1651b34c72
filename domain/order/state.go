// Package order is the order aggregate: what a customer wants from a
// restaurant, until it is delivered or closed otherwise.
//
// The comment of package domain lists the files.
package order

import (
	"slices"
	"time"

	"tomato/domain"
)

// Status is how far an order is. The zero value is "not placed".
type Status string

// The statuses. Delivered, Cancelled, Rejected and Expired are final.
const (
	StatusPlaced        Status = "placed"
	StatusAccepted      Status = "accepted"
	StatusPreparing     Status = "preparing"
	StatusReadyForRider Status = "ready_for_rider"
	StatusRiderAssigned Status = "rider_assigned"
	StatusPickedUp      Status = "picked_up"
	StatusDelivered     Status = "delivered"
	StatusCancelled     Status = "cancelled"
	StatusRejected      Status = "rejected"
	StatusExpired       Status = "expired"
)

// Statuses are all statuses, from placed to delivered, then those without delivery.
var Statuses = []Status{StatusPlaced, StatusAccepted, StatusPreparing, StatusReadyForRider, StatusRiderAssigned, StatusPickedUp, StatusDelivered, StatusCancelled, StatusRejected, StatusExpired}

// Closed reports whether the status is final.
func (s Status) Closed() bool {
	return s == StatusDelivered || s.Ended()
}

// Ended reports whether the order closed without delivery. Its booked payment is
// refunded.
func (s Status) Ended() bool {
	return s == StatusCancelled || s == StatusRejected || s == StatusExpired
}

// progress is the number of the status between placed and delivered. Statuses without
// delivery have -1.
func (s Status) progress() int {
	return slices.Index(Statuses[:7], s)
}

// Item is one line of an order, priced from the menu when it was placed.
type Item struct {
	ItemID    string `json:"itemId"`
	Name      string `json:"name"`
	UnitPrice int64  `json:"unitPrice"` // minor units of the order's currency
	Quantity  int    `json:"quantity"`
}

// PickUp is where the rider fetches the order: the restaurant as it was at placing.
type PickUp struct {
	Name     string       `json:"name"`
	Location domain.Point `json:"location"`
	Address  string       `json:"address,omitempty"`
}

// DeliverTo is where the order goes, as clients see it. Events and states have it in
// sealed form only.
type DeliverTo struct {
	Location     *domain.Point `json:"location,omitempty"`
	Address      string        `json:"address,omitempty"`
	Instructions string        `json:"instructions,omitempty"`
	Erased       bool          `json:"erased,omitempty"` // the customer was erased, and the other fields are empty
}

// OfferState is what became of an offer to one rider in the current round.
type OfferState string

// The offer states.
const (
	OfferStateOpen     OfferState = "open"
	OfferStateDeclined OfferState = "declined" // by the rider, who is not asked again in this round
	OfferStateEnded    OfferState = "ended"    // its wave is over, or another rider was assigned
)

// Offer is the order offered to one rider in the current round.
type Offer struct {
	RiderID        string     `json:"riderId"`
	Wave           int        `json:"wave"` // the last in which it was offered
	DistanceMeters int        `json:"distanceMeters"`
	State          OfferState `json:"state"`
}

// Drop says that a rider dropped the order, or that ops took it from the rider.
type Drop struct {
	RiderID string      `json:"riderId"`
	ClaimID int64       `json:"claimId"`
	Round   int         `json:"round"` // that began with the drop, and leaves the rider out
	By      domain.Role `json:"by"`    // the rider, or ops
}

// State is an order as its events have made it. Evolve never changes a slice in
// place, so a copy may be read concurrently.
type State struct {
	ID                string        `json:"orderId"`
	Version           int64         `json:"version"`
	Status            Status        `json:"status"`
	CustomerID        string        `json:"customerId"`
	RestaurantID      string        `json:"restaurantId"`
	Items             []Item        `json:"items"`
	Amount            int64         `json:"amount"` // minor units
	Currency          string        `json:"currency"`
	PickUp            PickUp        `json:"pickUp"`
	DeliverTo         domain.Sealed `json:"deliverTo"` // DeliverTo as JSON, under the customer's key
	ExternalReference string        `json:"externalReference,omitempty"`
	PaymentID         string        `json:"paymentId,omitempty"` // the payment that paid it; "" while unpaid
	PaymentDueAt      time.Time     `json:"paymentDueAt,omitzero"`
	AcceptBy          time.Time     `json:"acceptBy,omitzero"`
	ReadyAt           time.Time     `json:"readyAt,omitzero"` // expected from the preparation time, then actual

	Round      int       `json:"round,omitempty"` // of dispatch, 1 from ready_for_rider on
	Wave       int       `json:"wave,omitempty"`  // last wave offered in the round
	WaveOpen   bool      `json:"waveOpen,omitempty"`
	WaveEndsAt time.Time `json:"waveEndsAt,omitzero"`
	Offers     []Offer   `json:"offers,omitempty"` // of this round, one per rider
	Drops      []Drop    `json:"drops,omitempty"`
	Exhausted  bool      `json:"exhausted,omitempty"`

	RiderID   string        `json:"riderId,omitempty"`
	RiderName domain.Sealed `json:"riderName,omitempty"` // under the rider's key
	ClaimID   int64         `json:"claimId,omitempty"`   // of the assigned rider; kept when the order closes

	Reason    string      `json:"reason,omitempty"`
	By        domain.Role `json:"by,omitempty"`
	CreatedAt time.Time   `json:"createdAt,omitzero"`
	UpdatedAt time.Time   `json:"updatedAt,omitzero"`
	ClosedAt  time.Time   `json:"closedAt,omitzero"`
}

// Exists reports whether the order was placed.
func (s *State) Exists() bool { return s.Version > 0 }

// Paid reports whether ORDER_PAID happened.
func (s *State) Paid() bool { return s.PaymentID != "" }

// Share makes the order use the one copy in memory of texts that many orders have.
// Nobody else may have the receiver yet, as after decoding.
func (s *State) Share() {
	s.Status, s.By = domain.Shared(s.Status), domain.Shared(s.By)
	s.RestaurantID, s.Currency = domain.Shared(s.RestaurantID), domain.Shared(s.Currency)
	s.PickUp.Name, s.PickUp.Address = domain.Shared(s.PickUp.Name), domain.Shared(s.PickUp.Address)
	for i := range s.Items {
		s.Items[i].ItemID, s.Items[i].Name = domain.Shared(s.Items[i].ItemID), domain.Shared(s.Items[i].Name)
	}
	for i := range s.Offers {
		s.Offers[i].RiderID, s.Offers[i].State = domain.Shared(s.Offers[i].RiderID), domain.Shared(s.Offers[i].State)
	}
	s.Items, s.Offers, s.Drops = domain.Fitted(s.Items), domain.Fitted(s.Offers), domain.Fitted(s.Drops)
}

// ClosedFor returns how long the order has been closed, or 0 while it is open.
func (s *State) ClosedFor(now time.Time) time.Duration {
	if !s.Status.Closed() {
		return 0
	}
	return now.Sub(s.ClosedAt)
}

// Archived returns the part of the state that is kept when the order has been closed for
// long. Refusals and commands on its payment need that part.
func (s *State) Archived() State {
	return State{
		ID: s.ID, Version: s.Version, Status: s.Status,
		CustomerID: s.CustomerID, RestaurantID: s.RestaurantID, RiderID: s.RiderID,
		Amount: s.Amount, Currency: s.Currency, PaymentID: s.PaymentID,
		CreatedAt: s.CreatedAt, UpdatedAt: s.UpdatedAt, ClosedAt: s.ClosedAt,
	}
}

// Payable reports whether a payment may still pay the order.
func (s *State) Payable() bool { return s.Status == StatusPlaced && !s.Paid() }

func (s *State) offer(riderID string) *Offer {
	for i := range s.Offers {
		if s.Offers[i].RiderID == riderID {
			return &s.Offers[i]
		}
	}
	return nil
}

func (s *State) openOffers() (riders []string) {
	for _, o := range s.Offers {
		if o.State == OfferStateOpen {
			riders = append(riders, o.RiderID)
		}
	}
	return riders
}

// DropBy returns the last drop by this rider.
func (s *State) DropBy(riderID string) (Drop, bool) {
	for _, d := range slices.Backward(s.Drops) {
		if d.RiderID == riderID {
			return d, true
		}
	}
	return Drop{}, false
}

// OfferedTo reports whether the rider has an open offer.
func (s *State) OfferedTo(riderID string) bool {
	o := s.offer(riderID)
	return s.Status == StatusReadyForRider && s.WaveOpen && o != nil && o.State == OfferStateOpen
}

// Unavailable returns the riders who get no further offer in the current round: those who
// declined, and the one whose drop began the round.
func (s *State) Unavailable() (riders []string) {
	for _, o := range s.Offers {
		if o.State == OfferStateDeclined {
			riders = append(riders, o.RiderID)
		}
	}
	for _, d := range s.Drops {
		if d.Round == s.Round {
			riders = append(riders, d.RiderID)
		}
	}
	return riders
}

// Party reports whether the actor is a party of the order: its customer, its
// restaurant, its rider, a rider who was offered it in the current round or who
// dropped it, ops, support, or the system. For anyone else the order does not exist.
func (s *State) Party(a domain.Actor) bool {
	switch a.Role {
	case domain.Ops, domain.Support, domain.System:
		return true
	case domain.Customer:
		return a.Sub == s.CustomerID
	case domain.Restaurant:
		return a.RestaurantID == s.RestaurantID
	case domain.Rider:
		_, dropped := s.DropBy(a.Sub)
		return dropped || a.Sub == s.RiderID && a.Sub != "" || s.offer(a.Sub) != nil
	}
	return false
}

// MayFollow reports whether the actor may be in the order's room of the feed. All parties
// may, except that of the riders only the one who has the order may.
func (s *State) MayFollow(a domain.Actor) bool {
	return s.Party(a) && (a.Role != domain.Rider || a.Sub == s.RiderID)
}

// NextDeadline returns the command that the order's shard issues by itself at time at, or
// nil if the order waits for no deadline.
func (s *State) NextDeadline() (at time.Time, command domain.Command) {
	switch {
	case s.Payable():
		return s.PaymentDueAt, Expire{}
	case s.Status == StatusPlaced:
		return s.AcceptBy, CancelUnaccepted{}
	case s.Status == StatusReadyForRider && s.WaveOpen:
		return s.WaveEndsAt, EndWave{Round: s.Round, Wave: s.Wave}
	}
	return time.Time{}, nil
}
