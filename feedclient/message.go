package feedclient

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"tomato/domain"
	"tomato/domain/order"
)

// Message is one message of a feed. Fields that do not apply are empty.
type Message struct {
	Event     string          `json:"event"`
	Room      string          `json:"room"`
	Payload   json.RawMessage `json:"payload"`
	Timestamp time.Time       `json:"timestamp"` // of the event that the message is about
	Cursor    string          `json:"cursor"`    // opaque

	ConsistencyToken string `json:"consistencyToken"` // of the feed's own messages: what queries should wait for
	Reason           string `json:"reason"`           // of Reset
	Count            int64  `json:"count"`            // of Resumed: how many messages were missed
	Code             string `json:"code"`             // of Error; stable
	Detail           string `json:"detail"`           // of Error; for people

	Raw []byte `json:"-"` // as it came; nil if the client made the message
}

// The events of orders, with the type of their payload.
const (
	OrderNew          = "order:new"            // Order
	OrderUpdate       = "order:update"         // OrderChange
	OrderAvailable    = "order:available"      // Offer
	OrderTaken        = "order:taken"          // OfferEnd
	RiderAssigned     = "order:rider_assigned" // Assignment
	RiderMoved        = "rider:location"       // RiderLocation
	DispatchExhausted = "dispatch:exhausted"   // Exhaustion
	OfferSeen         = "order:offer_seen"     // OfferView
)

// The messages of the feed itself. They have no payload.
const (
	Resumed = "feed:resumed" // what was missed follows
	Reset   = "feed:reset"   // messages may be missing: load everything again; Reason says why
	Joined  = "feed:joined"
	Left    = "feed:left"
	Error   = "feed:error" // an operation was refused, or the server has taken the client out of Room
	Ping    = "feed:ping"  // the present cursor, now and then
)

// The reasons of a Reset that the client makes. Those of the server are in /asyncapi.json.
const (
	ReasonBegin    = "begin"     // the feed begins
	ReasonNoCursor = "no_cursor" // the connection ended before there was a cursor
)

// Order is the payload of order:new, and the answer of GET /v1/orders/{id}.
type Order = order.View

// OrderChange is the payload of order:update: what changed. Version is that of the order
// after the event, and 0 if the event was one of its payment.
type OrderChange struct {
	OrderID       string              `json:"orderId"`
	Status        order.Status        `json:"status"`
	PaymentStatus order.PaymentStatus `json:"paymentStatus"`
	Version       int64               `json:"version"`
}

// Offer is the payload of order:available. Location is where the food is picked up.
type Offer struct {
	OrderID        string       `json:"orderId"`
	RestaurantID   string       `json:"restaurantId"`
	Location       domain.Point `json:"location"`
	DistanceMeters int64        `json:"distanceMeters"`
	ExpiresAt      time.Time    `json:"expiresAt"`
}

// OfferEnd is the payload of order:taken. Reason is assigned, cancelled or expired.
type OfferEnd struct {
	OrderID string `json:"orderId"`
	Reason  string `json:"reason"`
}

// Assignment is the payload of order:rider_assigned.
type Assignment struct {
	OrderID   string `json:"orderId"`
	RiderID   string `json:"riderId"`
	RiderName string `json:"riderName"`
}

// RiderLocation is the payload of rider:location.
type RiderLocation = order.RiderLocation

// Exhaustion is the payload of dispatch:exhausted: nobody took the order.
type Exhaustion struct {
	OrderID string `json:"orderId"`
	Waves   int64  `json:"waves"`
}

// OfferView is the payload of order:offer_seen: a rider has seen the order's offer.
type OfferView struct {
	OrderID string    `json:"orderId"`
	RiderID string    `json:"riderId"`
	SeenAt  time.Time `json:"seenAt"`
}

// Data decodes the payload. It returns a pointer to the type that belongs to the event. For
// events that this package does not know it returns Payload, and for the feed's own
// messages nil. Fields that are unknown are ignored. The error names the event.
func (m *Message) Data() (any, error) {
	var data any
	switch m.Event {
	case OrderNew:
		data = new(Order)
	case OrderUpdate:
		data = new(OrderChange)
	case OrderAvailable:
		data = new(Offer)
	case OrderTaken:
		data = new(OfferEnd)
	case RiderAssigned:
		data = new(Assignment)
	case RiderMoved:
		data = new(RiderLocation)
	case DispatchExhausted:
		data = new(Exhaustion)
	case OfferSeen:
		data = new(OfferView)
	default:
		if m.OfFeed() {
			return nil, nil
		}
		return m.Payload, nil
	}
	if err := json.Unmarshal(m.Payload, data); err != nil {
		return nil, fmt.Errorf("feedclient: the payload of %s: %w", m.Event, err)
	}
	return data, nil
}

// OfFeed reports whether the message is one of the feed itself.
func (m *Message) OfFeed() bool { return strings.HasPrefix(m.Event, "feed:") }

// op is an operation that a client sends.
type op struct {
	Op       string        `json:"op"`
	Room     string        `json:"room,omitempty"`
	Location *domain.Point `json:"location,omitempty"`
}
