package simulate

import (
	"fmt"
	"time"

	"tomato/domain"
	"tomato/feedclient"
)

// message is a feed message. Its data has the fields of all kinds of payloads.
type message struct {
	feedclient.Message
	receiver *party  // whose feed it came over
	data     payload // Payload, decoded
}

type payload struct {
	OrderID       string       `json:"orderId"`
	RestaurantID  string       `json:"restaurantId"`
	RiderID       string       `json:"riderId"`
	RiderName     string       `json:"riderName"`
	Status        string       `json:"status"`
	PaymentStatus string       `json:"paymentStatus"`
	Version       int          `json:"version"`
	Reason        string       `json:"reason"`
	Location      domain.Point `json:"location"`
	ExpiresAt     time.Time    `json:"expiresAt"`
}

// messageKind is the kind of a feed message that the ledger keeps.
type messageKind uint8

const (
	kindNew messageKind = iota + 1
	kindUpdate
	kindAvailable
	kindTaken
	kindRiderAssigned
	kindExhausted
)

var messageKinds = map[string]messageKind{
	"order:new": kindNew, "order:update": kindUpdate, "order:available": kindAvailable,
	"order:taken": kindTaken, "order:rider_assigned": kindRiderAssigned, "dispatch:exhausted": kindExhausted,
}

func (k messageKind) String() string {
	for name, v := range messageKinds {
		if v == k {
			return name
		}
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// receipt is one received feed message. It is small, because a large run keeps a
// million of them.
type receipt struct {
	party   int32  // number of the party that received it
	version int32  // the order's version, in an order:update that an event of the order caused; else 0
	tag     uint64 // ledger.tag of the rider or the payment status, where messages of a kind differ in it
	kind    messageKind
}
