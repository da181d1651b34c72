package order

import (
	"time"

	"tomato/domain"
)

// The commands. By is who asks; Authorize looks at it, and cancel decides on it.
type (
	// Place begins an order. Items are priced already.
	Place struct {
		OrderID           string        `json:"orderId"`
		CustomerID        string        `json:"customerId"`
		RestaurantID      string        `json:"restaurantId"`
		Items             []Item        `json:"items"`
		Currency          string        `json:"currency"`
		PickUp            PickUp        `json:"pickUp"`
		DeliverTo         DeliverTo     `json:"deliverTo"`
		ExternalReference string        `json:"externalReference,omitempty"`
		PaymentTTL        time.Duration `json:"paymentTTL"`
	}
	// MarkPaid says that the booked payment is this one.
	MarkPaid struct {
		PaymentID string        `json:"paymentId"`
		AcceptTTL time.Duration `json:"acceptTTL"`
	}
	// Expire ends an order whose payment deadline has passed.
	Expire struct {
		PaymentPaid bool `json:"paymentPaid,omitempty"` // the payment aggregate holds booked money
	}
	// CancelUnaccepted ends a paid order whose acceptance deadline has passed.
	CancelUnaccepted struct{}
	// AcceptOrder is the restaurant's yes.
	AcceptOrder struct {
		PrepMinutes int `json:"prepMinutes,omitempty"`
	}
	// Reject is the restaurant's no.
	Reject struct {
		Reason string `json:"reason"`
	}
	// Prepare says that the kitchen began.
	Prepare struct{}
	// Ready says that a rider may come.
	Ready struct{}
	// Offer offers the order to riders: a new wave, or more riders of the running one.
	Offer struct {
		Round  int            `json:"round"`
		Wave   int            `json:"wave"`
		Riders []OfferedRider `json:"riders"` // nearest first
		TTL    time.Duration  `json:"ttl"`
		Limit  int            `json:"limit"` // riders in one wave
	}
	// EndWave ends the running wave when its time is over.
	EndWave struct {
		Round int `json:"round"`
		Wave  int `json:"wave"`
	}
	// Exhaust says that the last wave is over and nobody is left to ask.
	Exhaust struct {
		Round    int `json:"round"`
		LastWave int `json:"lastWave"`
	}
	// RequestDispatch begins a new round after exhaustion.
	RequestDispatch struct{}
	// Accept asks whether the order is still open to this rider. It appends
	// nothing: the rider is claimed next, then Assign decides.
	Accept struct {
		RiderID string `json:"riderId"`
	}
	// Assign gives the order to a rider who was claimed for it. It is taken
	// only in the very (round, wave) that the claim names.
	Assign struct {
		RiderID   string `json:"riderId"`
		RiderName string `json:"riderName"`
		ClaimID   int64  `json:"claimId"`
		Round     int    `json:"round"`
		Wave      int    `json:"wave"`
	}
	// Decline is an offered rider's no.
	Decline struct {
		RiderID string `json:"riderId"`
	}
	// DropOrder gives the order back to dispatch before it is picked up.
	DropOrder struct {
		By     domain.Actor `json:"by"`
		Reason string       `json:"reason"`
	}
	// PickUpOrder says that the rider has it.
	PickUpOrder struct{}
	// Deliver says that the customer has it.
	Deliver struct{}
	// Cancel ends the order.
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
func (Offer) CommandName() string            { return "offer" }
func (EndWave) CommandName() string          { return "end-wave" }
func (Exhaust) CommandName() string          { return "exhaust" }
func (RequestDispatch) CommandName() string  { return "dispatch" }
func (Accept) CommandName() string           { return "accept" }
func (Assign) CommandName() string           { return "assign" }
func (Decline) CommandName() string          { return "decline" }
func (DropOrder) CommandName() string        { return "drop" }
func (PickUpOrder) CommandName() string      { return "pick-up" }
func (Deliver) CommandName() string          { return "deliver" }
func (Cancel) CommandName() string           { return "cancel" }
