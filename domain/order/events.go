package order

import (
	"fmt"
	"time"

	"tomato/domain"
)

// The types of the events, as the record header ce_type has them. The constant of
// an event is Type and the name of its Go type, and that name is the type on the
// wire in camel case.
const (
	TypeOrderPlaced        = "ORDER_PLACED"
	TypeOrderPaid          = "ORDER_PAID"
	TypeOrderExpired       = "ORDER_EXPIRED"
	TypeOrderAccepted      = "ORDER_ACCEPTED"
	TypeOrderRejected      = "ORDER_REJECTED"
	TypeOrderPreparing     = "ORDER_PREPARING"
	TypeOrderReadyForRider = "ORDER_READY_FOR_RIDER"
	TypeOrderOffered       = "ORDER_OFFERED"
	TypeOfferDeclined      = "OFFER_DECLINED"
	TypeOffersExpired      = "OFFERS_EXPIRED"
	TypeRiderAssigned      = "RIDER_ASSIGNED"
	TypeRiderUnassigned    = "RIDER_UNASSIGNED"
	TypeDispatchExhausted  = "DISPATCH_EXHAUSTED"
	TypeDispatchRequested  = "DISPATCH_REQUESTED"
	TypeOrderPickedUp      = "ORDER_PICKED_UP"
	TypeOrderDelivered     = "ORDER_DELIVERED"
	TypeOrderCancelled     = "ORDER_CANCELLED"
)

// Types are the types of all events of an order.
var Types = []string{
	TypeOrderPlaced, TypeOrderPaid, TypeOrderExpired, TypeOrderAccepted, TypeOrderRejected,
	TypeOrderPreparing, TypeOrderReadyForRider, TypeOrderOffered, TypeOfferDeclined,
	TypeOffersExpired, TypeRiderAssigned, TypeRiderUnassigned, TypeDispatchExhausted,
	TypeDispatchRequested, TypeOrderPickedUp, TypeOrderDelivered, TypeOrderCancelled,
}

// OfferedRider is one rider of a wave.
type OfferedRider struct {
	RiderID        string `json:"riderId"`
	DistanceMeters int    `json:"distanceMeters"`
}

// The events, as they are on topic orders. Records are kept for ever, so the form of an
// event is never changed. If another form is needed, Decode converts the old one.
type (
	OrderPlaced struct {
		OrderID           string        `json:"orderId"`
		CustomerID        string        `json:"customerId"`
		RestaurantID      string        `json:"restaurantId"`
		Items             []Item        `json:"items"`
		Amount            int64         `json:"amount"`
		Currency          string        `json:"currency"`
		PickUp            PickUp        `json:"pickUp"`
		DeliverTo         domain.Sealed `json:"deliverTo"` // DeliverTo as JSON, under the customer's key
		ExternalReference string        `json:"externalReference,omitempty"`
		PaymentDueAt      time.Time     `json:"paymentDueAt"`
		Ctx               domain.Ctx    `json:"ctx"`
	}
	// OrderPaid has what the restaurant is shown of the order, because it hears of
	// the order with this event.
	OrderPaid struct {
		OrderID           string        `json:"orderId"`
		PaymentID         string        `json:"paymentId"`
		AcceptBy          time.Time     `json:"acceptBy"`
		Items             []Item        `json:"items"`
		Amount            int64         `json:"amount"`
		Currency          string        `json:"currency"`
		PickUp            PickUp        `json:"pickUp"`
		DeliverTo         domain.Sealed `json:"deliverTo"` // DeliverTo as JSON, under the customer's key
		ExternalReference string        `json:"externalReference,omitempty"`
		PlacedAt          time.Time     `json:"placedAt"`
		Ctx               domain.Ctx    `json:"ctx"`
	}
	OrderExpired struct {
		OrderID string     `json:"orderId"`
		Ctx     domain.Ctx `json:"ctx"`
	}
	OrderAccepted struct {
		OrderID     string     `json:"orderId"`
		PrepMinutes int        `json:"prepMinutes,omitempty"`
		ReadyAt     time.Time  `json:"readyAt,omitzero"` // expected
		Ctx         domain.Ctx `json:"ctx"`
	}
	OrderRejected struct {
		OrderID   string      `json:"orderId"`
		Reason    string      `json:"reason"`
		By        domain.Role `json:"by"`
		PaymentID string      `json:"paymentId,omitempty"` // to be refunded; "" if the order is unpaid
		Ctx       domain.Ctx  `json:"ctx"`
	}
	OrderPreparing struct {
		OrderID string     `json:"orderId"`
		Ctx     domain.Ctx `json:"ctx"`
	}
	OrderReadyForRider struct {
		OrderID      string       `json:"orderId"`
		RestaurantID string       `json:"restaurantId"`
		Location     domain.Point `json:"location"` // of the restaurant
		Round        int          `json:"round"`
		Ctx          domain.Ctx   `json:"ctx"`
	}
	OrderOffered struct {
		OrderID   string         `json:"orderId"`
		Round     int            `json:"round"`
		Wave      int            `json:"wave"`
		Riders    []OfferedRider `json:"riders"`
		Location  domain.Point   `json:"location"` // of the pick-up
		ExpiresAt time.Time      `json:"expiresAt"`
		Ctx       domain.Ctx     `json:"ctx"`
	}
	OfferDeclined struct {
		OrderID  string       `json:"orderId"`
		RiderID  string       `json:"riderId"`
		Round    int          `json:"round"`
		Wave     int          `json:"wave"`
		WaveOver bool         `json:"waveOver"` // this was the last open offer of the wave
		Location domain.Point `json:"location"`
		Ctx      domain.Ctx   `json:"ctx"`
	}
	OffersExpired struct {
		OrderID  string       `json:"orderId"`
		Round    int          `json:"round"`
		Wave     int          `json:"wave"`
		Riders   []string     `json:"riders"` // whose open offers end
		Location domain.Point `json:"location"`
		Ctx      domain.Ctx   `json:"ctx"`
	}
	RiderAssigned struct {
		OrderID   string        `json:"orderId"`
		RiderID   string        `json:"riderId"`
		RiderName domain.Sealed `json:"riderName"` // under the rider's key
		ClaimID   int64         `json:"claimId"`
		Round     int           `json:"round"`
		Wave      int           `json:"wave"`
		Riders    []string      `json:"riders"` // the others, whose open offers end
		Ctx       domain.Ctx    `json:"ctx"`
	}
	RiderUnassigned struct {
		OrderID  string       `json:"orderId"`
		RiderID  string       `json:"riderId"`
		ClaimID  int64        `json:"claimId"`
		Reason   string       `json:"reason"`
		By       domain.Role  `json:"by"`
		Round    int          `json:"round"` // the one that begins
		Location domain.Point `json:"location"`
		Ctx      domain.Ctx   `json:"ctx"`
	}
	DispatchExhausted struct {
		OrderID string     `json:"orderId"`
		Round   int        `json:"round"`
		Waves   int        `json:"waves"` // that were tried in the round
		Ctx     domain.Ctx `json:"ctx"`
	}
	DispatchRequested struct {
		OrderID  string       `json:"orderId"`
		Round    int          `json:"round"` // the one that begins
		Location domain.Point `json:"location"`
		Ctx      domain.Ctx   `json:"ctx"`
	}
	OrderPickedUp struct {
		OrderID string     `json:"orderId"`
		RiderID string     `json:"riderId"`
		Ctx     domain.Ctx `json:"ctx"`
	}
	OrderDelivered struct {
		OrderID string     `json:"orderId"`
		RiderID string     `json:"riderId"`
		ClaimID int64      `json:"claimId"`
		Ctx     domain.Ctx `json:"ctx"`
	}
	OrderCancelled struct {
		OrderID   string      `json:"orderId"`
		Reason    string      `json:"reason"`
		By        domain.Role `json:"by"`
		PaymentID string      `json:"paymentId,omitempty"` // to be refunded; "" if the order is unpaid
		RiderID   string      `json:"riderId,omitempty"`   // to be released; "" if no rider is assigned
		ClaimID   int64       `json:"claimId,omitempty"`
		Riders    []string    `json:"riders"` // whose open offers end
		Ctx       domain.Ctx  `json:"ctx"`
	}
)

// Event is an event of an order: one of the types above.
type Event interface {
	domain.Event
	orderEvent()
}

// EventType implements domain.Event.
func (OrderPlaced) EventType() string        { return TypeOrderPlaced }
func (OrderPaid) EventType() string          { return TypeOrderPaid }
func (OrderExpired) EventType() string       { return TypeOrderExpired }
func (OrderAccepted) EventType() string      { return TypeOrderAccepted }
func (OrderRejected) EventType() string      { return TypeOrderRejected }
func (OrderPreparing) EventType() string     { return TypeOrderPreparing }
func (OrderReadyForRider) EventType() string { return TypeOrderReadyForRider }
func (OrderOffered) EventType() string       { return TypeOrderOffered }
func (OfferDeclined) EventType() string      { return TypeOfferDeclined }
func (OffersExpired) EventType() string      { return TypeOffersExpired }
func (RiderAssigned) EventType() string      { return TypeRiderAssigned }
func (RiderUnassigned) EventType() string    { return TypeRiderUnassigned }
func (DispatchExhausted) EventType() string  { return TypeDispatchExhausted }
func (DispatchRequested) EventType() string  { return TypeDispatchRequested }
func (OrderPickedUp) EventType() string      { return TypeOrderPickedUp }
func (OrderDelivered) EventType() string     { return TypeOrderDelivered }
func (OrderCancelled) EventType() string     { return TypeOrderCancelled }

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

// Forms are the versions of the data of events that have had more than one. None has yet.
// Decode turns an older version into the present one with Read, and a shard writes an
// older version with Write while not all owners know the present one.
var Forms = domain.Forms[Event]{}

// Decode reads the event of the given type from its data, which is of the given version.
// The error is a *domain.UnknownVersion if a newer build has written it.
func Decode(eventType string, version int, data []byte) (Event, error) {
	if e, read, err := Forms.Read(eventType, version, data); read {
		return e, err
	}
	switch eventType {
	case TypeOrderPlaced:
		return decode[OrderPlaced](data)
	case TypeOrderPaid:
		return decode[OrderPaid](data)
	case TypeOrderExpired:
		return decode[OrderExpired](data)
	case TypeOrderAccepted:
		return decode[OrderAccepted](data)
	case TypeOrderRejected:
		return decode[OrderRejected](data)
	case TypeOrderPreparing:
		return decode[OrderPreparing](data)
	case TypeOrderReadyForRider:
		return decode[OrderReadyForRider](data)
	case TypeOrderOffered:
		return decode[OrderOffered](data)
	case TypeOfferDeclined:
		return decode[OfferDeclined](data)
	case TypeOffersExpired:
		return decode[OffersExpired](data)
	case TypeRiderAssigned:
		return decode[RiderAssigned](data)
	case TypeRiderUnassigned:
		return decode[RiderUnassigned](data)
	case TypeDispatchExhausted:
		return decode[DispatchExhausted](data)
	case TypeDispatchRequested:
		return decode[DispatchRequested](data)
	case TypeOrderPickedUp:
		return decode[OrderPickedUp](data)
	case TypeOrderDelivered:
		return decode[OrderDelivered](data)
	case TypeOrderCancelled:
		return decode[OrderCancelled](data)
	}
	return nil, fmt.Errorf("unknown order event %q", eventType)
}

func decode[E Event](data []byte) (Event, error) {
	var e E
	if err := domain.DecodeJSON(data, &e); err != nil {
		return e, err
	}
	switch e := any(e).(type) {
	case OrderPlaced:
		return e, e.DeliverTo.Check("deliverTo")
	case OrderPaid:
		return e, e.DeliverTo.Check("deliverTo")
	case RiderAssigned:
		return e, e.RiderName.Check("riderName")
	}
	return e, nil
}
