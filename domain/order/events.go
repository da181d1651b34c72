package order

import (
	"encoding/json"
	"fmt"
	"time"

	"tomato/domain"
)

// OfferedRider is one rider of a wave.
type OfferedRider struct {
	RiderID        string `json:"riderId"`
	DistanceMeters int    `json:"distanceMeters"`
}

// The events, as they stand on topic orders. Shapes are never changed; an old
// one is upcast in Decode.
type (
	OrderPlaced struct { // ORDER_PLACED
		OrderID           string     `json:"orderId"`
		CustomerID        string     `json:"customerId"`
		RestaurantID      string     `json:"restaurantId"`
		Items             []Item     `json:"items"`
		Amount            int64      `json:"amount"`
		Currency          string     `json:"currency"`
		PickUp            PickUp     `json:"pickUp"`
		DeliverTo         DeliverTo  `json:"deliverTo"`
		ExternalReference string     `json:"externalReference,omitempty"`
		PaymentDueAt      time.Time  `json:"paymentDueAt"`
		Ctx               domain.Ctx `json:"ctx"`
	}
	OrderPaid struct { // ORDER_PAID
		OrderID   string     `json:"orderId"`
		PaymentID string     `json:"paymentId"`
		AcceptBy  time.Time  `json:"acceptBy"`
		Order     View       `json:"order"` // the order as the restaurant first sees it
		Ctx       domain.Ctx `json:"ctx"`
	}
	OrderExpired struct { // ORDER_EXPIRED
		OrderID string     `json:"orderId"`
		Ctx     domain.Ctx `json:"ctx"`
	}
	OrderAccepted struct { // ORDER_ACCEPTED
		OrderID     string     `json:"orderId"`
		PrepMinutes int        `json:"prepMinutes,omitempty"`
		ReadyAt     time.Time  `json:"readyAt,omitzero"` // expected
		Ctx         domain.Ctx `json:"ctx"`
	}
	OrderRejected struct { // ORDER_REJECTED
		OrderID   string      `json:"orderId"`
		Reason    string      `json:"reason"`
		By        domain.Role `json:"by"`
		PaymentID string      `json:"paymentId,omitempty"` // paid by it: refund
		Ctx       domain.Ctx  `json:"ctx"`
	}
	OrderPreparing struct { // ORDER_PREPARING
		OrderID string     `json:"orderId"`
		Ctx     domain.Ctx `json:"ctx"`
	}
	OrderReadyForRider struct { // ORDER_READY_FOR_RIDER
		OrderID      string       `json:"orderId"`
		RestaurantID string       `json:"restaurantId"`
		Location     domain.Point `json:"location"` // of the restaurant
		Round        int          `json:"round"`
		Ctx          domain.Ctx   `json:"ctx"`
	}
	OrderOffered struct { // ORDER_OFFERED
		OrderID   string         `json:"orderId"`
		Round     int            `json:"round"`
		Wave      int            `json:"wave"`
		Riders    []OfferedRider `json:"riders"`
		Location  domain.Point   `json:"location"` // of the pick-up
		ExpiresAt time.Time      `json:"expiresAt"`
		Ctx       domain.Ctx     `json:"ctx"`
	}
	OfferDeclined struct { // OFFER_DECLINED
		OrderID  string       `json:"orderId"`
		RiderID  string       `json:"riderId"`
		Round    int          `json:"round"`
		Wave     int          `json:"wave"`
		WaveOver bool         `json:"waveOver"` // nobody of the wave is left
		Location domain.Point `json:"location"`
		Ctx      domain.Ctx   `json:"ctx"`
	}
	OffersExpired struct { // OFFERS_EXPIRED
		OrderID  string       `json:"orderId"`
		Round    int          `json:"round"`
		Wave     int          `json:"wave"`
		Riders   []string     `json:"riders"` // whose offer ends
		Location domain.Point `json:"location"`
		Ctx      domain.Ctx   `json:"ctx"`
	}
	RiderAssigned struct { // RIDER_ASSIGNED
		OrderID   string     `json:"orderId"`
		RiderID   string     `json:"riderId"`
		RiderName string     `json:"riderName"`
		ClaimID   int64      `json:"claimId"`
		Round     int        `json:"round"`
		Wave      int        `json:"wave"`
		Riders    []string   `json:"riders"` // the others whose offer ends
		Ctx       domain.Ctx `json:"ctx"`
	}
	RiderUnassigned struct { // RIDER_UNASSIGNED
		OrderID  string       `json:"orderId"`
		RiderID  string       `json:"riderId"`
		ClaimID  int64        `json:"claimId"`
		Reason   string       `json:"reason"`
		By       domain.Role  `json:"by"`
		Round    int          `json:"round"` // that begins
		Location domain.Point `json:"location"`
		Ctx      domain.Ctx   `json:"ctx"`
	}
	DispatchExhausted struct { // DISPATCH_EXHAUSTED
		OrderID string     `json:"orderId"`
		Round   int        `json:"round"`
		Waves   int        `json:"waves"` // that were tried in the round
		Ctx     domain.Ctx `json:"ctx"`
	}
	DispatchRequested struct { // DISPATCH_REQUESTED
		OrderID  string       `json:"orderId"`
		Round    int          `json:"round"` // that begins
		Location domain.Point `json:"location"`
		Ctx      domain.Ctx   `json:"ctx"`
	}
	OrderPickedUp struct { // ORDER_PICKED_UP
		OrderID string     `json:"orderId"`
		RiderID string     `json:"riderId"`
		Ctx     domain.Ctx `json:"ctx"`
	}
	OrderDelivered struct { // ORDER_DELIVERED
		OrderID string     `json:"orderId"`
		RiderID string     `json:"riderId"`
		ClaimID int64      `json:"claimId"`
		Ctx     domain.Ctx `json:"ctx"`
	}
	OrderCancelled struct { // ORDER_CANCELLED
		OrderID   string      `json:"orderId"`
		Reason    string      `json:"reason"`
		By        domain.Role `json:"by"`
		PaymentID string      `json:"paymentId,omitempty"` // paid by it: refund
		RiderID   string      `json:"riderId,omitempty"`   // assigned: released
		ClaimID   int64       `json:"claimId,omitempty"`
		Riders    []string    `json:"riders"` // whose offer ends
		Ctx       domain.Ctx  `json:"ctx"`
	}
)

// Event is an event of an order: one of the types above.
type Event interface {
	domain.Event
	orderEvent()
}

// EventType implements domain.Event.
func (OrderPlaced) EventType() string        { return "ORDER_PLACED" }
func (OrderPaid) EventType() string          { return "ORDER_PAID" }
func (OrderExpired) EventType() string       { return "ORDER_EXPIRED" }
func (OrderAccepted) EventType() string      { return "ORDER_ACCEPTED" }
func (OrderRejected) EventType() string      { return "ORDER_REJECTED" }
func (OrderPreparing) EventType() string     { return "ORDER_PREPARING" }
func (OrderReadyForRider) EventType() string { return "ORDER_READY_FOR_RIDER" }
func (OrderOffered) EventType() string       { return "ORDER_OFFERED" }
func (OfferDeclined) EventType() string      { return "OFFER_DECLINED" }
func (OffersExpired) EventType() string      { return "OFFERS_EXPIRED" }
func (RiderAssigned) EventType() string      { return "RIDER_ASSIGNED" }
func (RiderUnassigned) EventType() string    { return "RIDER_UNASSIGNED" }
func (DispatchExhausted) EventType() string  { return "DISPATCH_EXHAUSTED" }
func (DispatchRequested) EventType() string  { return "DISPATCH_REQUESTED" }
func (OrderPickedUp) EventType() string      { return "ORDER_PICKED_UP" }
func (OrderDelivered) EventType() string     { return "ORDER_DELIVERED" }
func (OrderCancelled) EventType() string     { return "ORDER_CANCELLED" }

func (OrderPlaced) orderEvent()        {}
func (OrderPaid) orderEvent()          {}
func (OrderExpired) orderEvent()       {}
func (OrderAccepted) orderEvent()      {}
func (OrderRejected) orderEvent()      {}
func (OrderPreparing) orderEvent()     {}
func (OrderReadyForRider) orderEvent() {}
func (OrderOffered) orderEvent()       {}
func (OfferDeclined) orderEvent()      {}
func (OffersExpired) orderEvent()      {}
func (RiderAssigned) orderEvent()      {}
func (RiderUnassigned) orderEvent()    {}
func (DispatchExhausted) orderEvent()  {}
func (DispatchRequested) orderEvent()  {}
func (OrderPickedUp) orderEvent()      {}
func (OrderDelivered) orderEvent()     {}
func (OrderCancelled) orderEvent()     {}

// Decode reads the event of the given type from its data.
func Decode(eventType string, data []byte) (Event, error) {
	switch eventType {
	case "ORDER_PLACED":
		return decode[OrderPlaced](data)
	case "ORDER_PAID":
		return decode[OrderPaid](data)
	case "ORDER_EXPIRED":
		return decode[OrderExpired](data)
	case "ORDER_ACCEPTED":
		return decode[OrderAccepted](data)
	case "ORDER_REJECTED":
		return decode[OrderRejected](data)
	case "ORDER_PREPARING":
		return decode[OrderPreparing](data)
	case "ORDER_READY_FOR_RIDER":
		return decode[OrderReadyForRider](data)
	case "ORDER_OFFERED":
		return decode[OrderOffered](data)
	case "OFFER_DECLINED":
		return decode[OfferDeclined](data)
	case "OFFERS_EXPIRED":
		return decode[OffersExpired](data)
	case "RIDER_ASSIGNED":
		return decode[RiderAssigned](data)
	case "RIDER_UNASSIGNED":
		return decode[RiderUnassigned](data)
	case "DISPATCH_EXHAUSTED":
		return decode[DispatchExhausted](data)
	case "DISPATCH_REQUESTED":
		return decode[DispatchRequested](data)
	case "ORDER_PICKED_UP":
		return decode[OrderPickedUp](data)
	case "ORDER_DELIVERED":
		return decode[OrderDelivered](data)
	case "ORDER_CANCELLED":
		return decode[OrderCancelled](data)
	}
	return nil, fmt.Errorf("unknown order event %q", eventType)
}

func decode[E Event](data []byte) (Event, error) {
	var e E
	err := json.Unmarshal(data, &e)
	return e, err
}
