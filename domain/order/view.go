package order

import (
	"time"

	"tomato/domain"
)

// PaymentStatus is how far the money of an order is.
type PaymentStatus string

// The payment statuses.
const (
	PaymentPending       PaymentStatus = "pending"
	PaymentPaid          PaymentStatus = "paid"
	PaymentFailed        PaymentStatus = "failed"
	PaymentRefundPending PaymentStatus = "refund_pending"
	PaymentRefunded      PaymentStatus = "refunded"
)

// PaymentFacts are the facts about an order's payment from which its payment status is
// derived. The zero value is an order without payment.
type PaymentFacts struct {
	Booked            bool // captured money is booked on the order
	RefundRequested   bool // of the booked payment
	RefundSucceeded   bool // of the booked payment
	LastAttemptFailed bool
}

// PaymentStatusOf derives the payment status. The first case that matches decides.
func PaymentStatusOf(s *State, p PaymentFacts) PaymentStatus {
	switch {
	case p.RefundSucceeded:
		return PaymentRefunded
	case p.RefundRequested, p.Booked && s.Status.Ended():
		return PaymentRefundPending
	case s.Paid():
		return PaymentPaid
	case p.LastAttemptFailed:
		return PaymentFailed
	}
	return PaymentPending
}

// Dispatch is how far the search for a rider is. Restaurant, ops and support see it.
type Dispatch struct {
	Round     int  `json:"round"`
	Wave      int  `json:"wave"`
	Exhausted bool `json:"exhausted"`
}

// RiderLocation is where the rider is while the order is being delivered.
type RiderLocation struct {
	RiderID    string       `json:"riderId"`
	Location   domain.Point `json:"location"`
	RecordedAt time.Time    `json:"recordedAt"`
}

// View is the order as clients see it: the answer of commands and queries, the
// payload of order:new.
type View struct {
	OrderID           string         `json:"orderId"`
	Version           int64          `json:"version"`
	Status            Status         `json:"status"`
	PaymentStatus     PaymentStatus  `json:"paymentStatus"`
	CustomerID        string         `json:"customerId,omitempty"`
	RestaurantID      string         `json:"restaurantId"`
	RiderID           string         `json:"riderId,omitempty"`
	Items             []Item         `json:"items,omitempty"`
	Amount            int64          `json:"amount"`
	Currency          string         `json:"currency"`
	PickUp            PickUp         `json:"pickUp"`
	DeliverTo         *DeliverTo     `json:"deliverTo,omitempty"`
	ExternalReference string         `json:"externalReference,omitempty"`
	RiderName         string         `json:"riderName,omitempty"`
	PaymentDueAt      time.Time      `json:"paymentDueAt,omitzero"`
	AcceptBy          time.Time      `json:"acceptBy,omitzero"`
	ReadyAt           time.Time      `json:"readyAt,omitzero"`
	Dispatch          *Dispatch      `json:"dispatch,omitempty"`
	Reason            string         `json:"reason,omitempty"`
	By                domain.Role    `json:"by,omitempty"`
	RiderLocation     *RiderLocation `json:"riderLocation,omitempty"` // queries only
	CreatedAt         time.Time      `json:"createdAt"`
	UpdatedAt         time.Time      `json:"updatedAt"`

	// Sealed has what DeliverTo and RiderName are made of. Whoever makes an answer opens it.
	Sealed SealedFields `json:"-"`
}

// SealedFields are the personal fields of a view before they are opened. Those that the
// viewer may not see are empty.
type SealedFields struct {
	DeliverTo  domain.Sealed
	CustomerID string // under whose key DeliverTo is
	RiderName  domain.Sealed
	RiderID    string // under whose key RiderName is
}

// NewView makes the full view of an order. Its personal fields are still sealed.
func NewView(s *State, payment PaymentStatus) View {
	v := View{
		OrderID: s.ID, Version: s.Version, Status: s.Status, PaymentStatus: payment,
		CustomerID: s.CustomerID, RestaurantID: s.RestaurantID, RiderID: s.RiderID,
		Items: s.Items, Amount: s.Amount, Currency: s.Currency, PickUp: s.PickUp,
		ExternalReference: s.ExternalReference, Reason: s.Reason, By: s.By,
		CreatedAt: s.CreatedAt, UpdatedAt: s.UpdatedAt, ReadyAt: s.ReadyAt,
		Sealed: SealedFields{s.DeliverTo, s.CustomerID, s.RiderName, s.RiderID},
	}
	if s.Payable() {
		v.PaymentDueAt = s.PaymentDueAt
	}
	if s.Status == StatusPlaced && s.Paid() {
		v.AcceptBy = s.AcceptBy
	}
	if s.Round > 0 {
		v.Dispatch = &Dispatch{Round: s.Round, Wave: s.Wave, Exhausted: s.Exhausted}
	}
	return v
}

// View returns the order as it is after this event, from the event alone. version and at
// are those of the event. Its personal fields are still sealed.
func (e OrderPaid) View(version int64, at time.Time) View {
	return View{
		OrderID: e.OrderID, Version: version, Status: StatusPlaced, PaymentStatus: PaymentPaid,
		CustomerID: e.Ctx.CustomerID, RestaurantID: e.Ctx.RestaurantID,
		Items: e.Items, Amount: e.Amount, Currency: e.Currency, PickUp: e.PickUp,
		ExternalReference: e.ExternalReference, AcceptBy: e.AcceptBy, CreatedAt: e.PlacedAt, UpdatedAt: at,
		Sealed: SealedFields{DeliverTo: e.DeliverTo, CustomerID: e.Ctx.CustomerID},
	}
}

// For returns the view as this party of the order may see it. The restaurant and ops see
// everything. Support sees everything except what is personal. The customer and the rider
// who has the order see everything except dispatch. Other riders, to whom the order is offered or who declined, dropped or lost
// it, see neither personal data nor the rider who has it.
func (v View) For(a domain.Actor) View {
	switch {
	case a.Role == domain.Support:
		return v.withoutTexts()
	case seesRiders(a.Role):
		return v
	case a.Role == domain.Customer, a.Role == domain.Rider && a.Sub == v.RiderID:
	default:
		v = v.WithoutParties()
		v.RiderID, v.RiderName, v.RiderLocation = "", "", nil
		v.Sealed.RiderName = ""
	}
	v.Dispatch = nil
	return v
}

// withoutTexts returns the view without addresses, names, positions, and reasons that a
// customer or a rider gave. The ids of the parties stay.
func (v View) withoutTexts() View {
	v.DeliverTo, v.RiderName, v.RiderLocation = nil, "", nil
	v.Sealed.DeliverTo, v.Sealed.RiderName = "", ""
	if v.By == domain.Customer || v.By == domain.Rider {
		v.Reason = ""
	}
	return v
}

// WithoutParties returns the view without personal data. Riders who do not have the order
// see this, and so does a rider in the answer to the command that gives the order up.
func (v View) WithoutParties() View {
	v.CustomerID, v.Items, v.DeliverTo, v.ExternalReference = "", nil, nil, ""
	v.Sealed.DeliverTo = ""
	return v
}
