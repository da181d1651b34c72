package rider

import (
	"encoding/json"
	"fmt"

	"tomato/domain"
)

// The events, as they stand on topic riders.
type (
	RiderRegistered struct { // RIDER_REGISTERED
		RiderID string     `json:"riderId"`
		Name    string     `json:"name"`
		Vehicle string     `json:"vehicle,omitempty"`
		Ctx     domain.Ctx `json:"ctx"`
	}
	RiderUpdated struct { // RIDER_UPDATED
		RiderID string     `json:"riderId"`
		Name    string     `json:"name"`
		Vehicle string     `json:"vehicle,omitempty"`
		Ctx     domain.Ctx `json:"ctx"`
	}
	RiderVerified struct { // RIDER_VERIFIED
		RiderID string     `json:"riderId"`
		Ctx     domain.Ctx `json:"ctx"`
	}
	RiderSuspended struct { // RIDER_SUSPENDED
		RiderID string     `json:"riderId"`
		Ctx     domain.Ctx `json:"ctx"`
	}
	RiderOnline struct { // RIDER_ONLINE
		RiderID string     `json:"riderId"`
		Ctx     domain.Ctx `json:"ctx"`
	}
	RiderOffline struct { // RIDER_OFFLINE
		RiderID string     `json:"riderId"`
		Ctx     domain.Ctx `json:"ctx"`
	}
	RiderClaimed struct { // RIDER_CLAIMED
		RiderID   string     `json:"riderId"`
		RiderName string     `json:"riderName"`
		ClaimID   int64      `json:"claimId"`
		OrderID   string     `json:"orderId"`
		Round     int        `json:"round"`
		Wave      int        `json:"wave"`
		Ctx       domain.Ctx `json:"ctx"`
	}
	RiderReleased struct { // RIDER_RELEASED
		RiderID string     `json:"riderId"`
		ClaimID int64      `json:"claimId"`
		OrderID string     `json:"orderId"`
		Ctx     domain.Ctx `json:"ctx"`
	}
)

// Event is an event of a rider: one of the types above.
type Event interface {
	domain.Event
	riderEvent()
}

// EventType implements domain.Event.
func (RiderRegistered) EventType() string { return "RIDER_REGISTERED" }
func (RiderUpdated) EventType() string    { return "RIDER_UPDATED" }
func (RiderVerified) EventType() string   { return "RIDER_VERIFIED" }
func (RiderSuspended) EventType() string  { return "RIDER_SUSPENDED" }
func (RiderOnline) EventType() string     { return "RIDER_ONLINE" }
func (RiderOffline) EventType() string    { return "RIDER_OFFLINE" }
func (RiderClaimed) EventType() string    { return "RIDER_CLAIMED" }
func (RiderReleased) EventType() string   { return "RIDER_RELEASED" }

func (RiderRegistered) riderEvent() {}
func (RiderUpdated) riderEvent()    {}
func (RiderVerified) riderEvent()   {}
func (RiderSuspended) riderEvent()  {}
func (RiderOnline) riderEvent()     {}
func (RiderOffline) riderEvent()    {}
func (RiderClaimed) riderEvent()    {}
func (RiderReleased) riderEvent()   {}

// Decode reads the event of the given type from its data.
func Decode(eventType string, data []byte) (Event, error) {
	switch eventType {
	case "RIDER_REGISTERED":
		return decode[RiderRegistered](data)
	case "RIDER_UPDATED":
		return decode[RiderUpdated](data)
	case "RIDER_VERIFIED":
		return decode[RiderVerified](data)
	case "RIDER_SUSPENDED":
		return decode[RiderSuspended](data)
	case "RIDER_ONLINE":
		return decode[RiderOnline](data)
	case "RIDER_OFFLINE":
		return decode[RiderOffline](data)
	case "RIDER_CLAIMED":
		return decode[RiderClaimed](data)
	case "RIDER_RELEASED":
		return decode[RiderReleased](data)
	}
	return nil, fmt.Errorf("unknown rider event %q", eventType)
}

func decode[E Event](data []byte) (Event, error) {
	var e E
	err := json.Unmarshal(data, &e)
	return e, err
}
