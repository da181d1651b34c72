package order

import (
	"time"

	"tomato/domain"
)

// The commands. A command has a field By, the actor who issues it, if Decide depends on
// the actor.
type (
	// Place creates an order. Its items have their prices already.
	Place struct {
		OrderID           string        `json:"orderId"`
		CustomerID        string        `json:"customerId"`
		RestaurantID      string        `json:"restaurantId"`
		Items             []Item        `json:"items"`
		Currency          string        `json:"currency"`
		PickUp            PickUp        `json:"pickUp"`
		DeliverTo         domain.Sealed `json:"deliverTo"`
		ExternalReference string        `json:"externalReference,omitempty"`
		PaymentTTL        time.Duration `json:"paymentTTL"`
	}
	// MarkPaid records which payment pays the order.
	MarkPaid struct {
		PaymentID string        `json:"paymentId"`
		AcceptTTL time.Duration `json:"acceptTTL"`
	}
	// Expire closes an unpaid order whose payment deadline has passed.
	Expire struct {
		PaymentPaid bool `json:"paymentPaid,omitempty"` // the payment aggregate holds booked money
	}
	// CancelUnaccepted cancels a paid order whose acceptance deadline has passed.
	CancelUnaccepted struct{}
	// AcceptOrder is the acceptance by the restaurant. A rider accepts an offer by
	// CheckOffer and then Assign.
	AcceptOrder struct {
		PrepMinutes int `json:"prepMinutes,omitempty"`
	}
	// Reject is the restaurant's refusal.
	Reject struct {
		Reason string `json:"reason"`
	}
	// Prepare records that the kitchen has begun.
	Prepare struct{}
	// Ready records that a rider may pick the order up, and begins round 1.
	Ready struct{}
	// OfferWave offers the order to riders. It begins a new wave, or adds riders
	// to the open one.
	OfferWave struct {
		Round  int            `json:"round"`
		Wave   int            `json:"wave"`
		Riders []OfferedRider `json:"riders"` // nearest first
		TTL    time.Duration  `json:"ttl"`
		Limit  int            `json:"limit"` // riders in one wave
	}
	// EndWave ends the open wave when its time is over.
	EndWave struct {
		Round int `json:"round"`
		Wave  int `json:"wave"`
	}
	// Exhaust ends a round whose last wave is over without a rider.
	Exhaust struct {
		Round    int `json:"round"`
		LastWave int `json:"lastWave"`
	}
	// RequestDispatch begins a new round after one that was exhausted.
	RequestDispatch struct{}
	// CheckOffer is the first step of a rider's acceptance: it checks that the
	// order is still open to the rider. It makes no event. The rider is claimed
	// next, and Assign decides.
	CheckOffer struct {
		RiderID string `json:"riderId"`
	}
	// Assign gives the order to a rider who was claimed for it. It succeeds only
	// in the round and wave that the claim names.
	Assign struct {
		RiderID   string        `json:"riderId"`
		RiderName domain.Sealed `json:"riderName"`
		ClaimID   int64         `json:"claimId"`
		Round     int           `json:"round"`
		Wave      int           `json:"wave"`
	}
	// Decline is the refusal of an offer by its rider.
	Decline struct {
		RiderID string `json:"riderId"`
	}
	// DropOrder gives the order back to dispatch before it is picked up.
	DropOrder struct {
		By     domain.Actor `json:"by"`
		Reason string       `json:"reason"`
	}
	// PickUpOrder records that the rider has the order.
	PickUpOrder struct{}
	// Deliver records that the customer has the order.
	Deliver struct{}
	// Cancel closes the order without delivery.
	Cancel struct {
		By     domain.Actor `json:"by"`
		Reason string       `json:"reason"`
	}
)

// CommandName implements domain.Command.
func (Place) CommandName() string            { return "place" }
func (MarkPaid) CommandName() string         { return "mark-paid" }
func (Expire) CommandName() string           { return "expire" }
func (CancelUnaccepted) CommandName() string { return "cancel-unaccepted" }
func (AcceptOrder) CommandName() string      { return "accept-order" }
func (Reject) CommandName() string           { return "reject" }
func (Prepare) CommandName() string          { return "preparing" }
func (Ready) CommandName() string            { return "ready" }
func (OfferWave) CommandName() string        { return "offer" }
func (EndWave) CommandName() string          { return "end-wave" }
func (Exhaust) CommandName() string          { return "exhaust" }
func (RequestDispatch) CommandName() string  { return "dispatch" }
func (CheckOffer) CommandName() string       { return "accept" }
func (Assign) CommandName() string           { return "assign" }
func (Decline) CommandName() string          { return "decline" }
func (DropOrder) CommandName() string        { return "drop" }
func (PickUpOrder) CommandName() string      { return "pick-up" }
func (Deliver) CommandName() string          { return "deliver" }
func (Cancel) CommandName() string           { return "cancel" }
