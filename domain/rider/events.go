package rider

import (
	"encoding/json"
	"fmt"

	"tomato/domain"
)

// The events, as they stand on topic riders.
type (
	Registered struct { // RIDER_REGISTERED
		RiderID string     `json:"riderId"`
		Name    string     `json:"name"`
		Vehicle string     `json:"vehicle,omitempty"`
		Ctx     domain.Ctx `json:"ctx"`
	}
	Updated struct { // RIDER_UPDATED
		RiderID string     `json:"riderId"`
		Name    string     `json:"name"`
		Vehicle string     `json:"vehicle,omitempty"`
		Ctx     domain.Ctx `json:"ctx"`
	}
	VerifiedEvent struct { // RIDER_VERIFIED
		RiderID string     `json:"riderId"`
		Ctx     domain.Ctx `json:"ctx"`
	}
	SuspendedEvent struct { // RIDER_SUSPENDED
		RiderID string     `json:"riderId"`
		Ctx     domain.Ctx `json:"ctx"`
	}
	WentOnline struct { // RIDER_ONLINE
		RiderID string     `json:"riderId"`
		Ctx     domain.Ctx `json:"ctx"`
	}
	WentOffline struct { // RIDER_OFFLINE
		RiderID string     `json:"riderId"`
		Ctx     domain.Ctx `json:"ctx"`
	}
	Claimed struct { // RIDER_CLAIMED
		RiderID   string     `json:"riderId"`
		RiderName string     `json:"riderName"`
		ClaimID   int64      `json:"claimId"`
		OrderID   string     `json:"orderId"`
		Round     int        `json:"round"`
		Wave      int        `json:"wave"`
		Ctx       domain.Ctx `json:"ctx"`
	}
	Released struct { // RIDER_RELEASED
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
func (Registered) EventType() string     { return "RIDER_REGISTERED" }
func (Updated) EventType() string        { return "RIDER_UPDATED" }
func (VerifiedEvent) EventType() string  { return "RIDER_VERIFIED" }
func (SuspendedEvent) EventType() string { return "RIDER_SUSPENDED" }
func (WentOnline) EventType() string     { return "RIDER_ONLINE" }
func (WentOffline) EventType() string    { return "RIDER_OFFLINE" }
func (Claimed) EventType() string        { return "RIDER_CLAIMED" }
func (Released) EventType() string       { return "RIDER_RELEASED" }

func (Registered) riderEvent()     {}
func (Updated) riderEvent()        {}
func (VerifiedEvent) riderEvent()  {}
func (SuspendedEvent) riderEvent() {}
func (WentOnline) riderEvent()     {}
func (WentOffline) riderEvent()    {}
func (Claimed) riderEvent()        {}
func (Released) riderEvent()       {}

// Decode reads the event of the given type from its data.
func Decode(eventType string, data []byte) (Event, error) {
	switch eventType {
	case "RIDER_REGISTERED":
		return decode[Registered](data)
	case "RIDER_UPDATED":
		return decode[Updated](data)
	case "RIDER_VERIFIED":
		return decode[VerifiedEvent](data)
	case "RIDER_SUSPENDED":
		return decode[SuspendedEvent](data)
	case "RIDER_ONLINE":
		return decode[WentOnline](data)
	case "RIDER_OFFLINE":
		return decode[WentOffline](data)
	case "RIDER_CLAIMED":
		return decode[Claimed](data)
	case "RIDER_RELEASED":
		return decode[Released](data)
	}
	return nil, fmt.Errorf("unknown rider event %q", eventType)
}

func decode[E Event](data []byte) (Event, error) {
	var e E
	err := json.Unmarshal(data, &e)
	return e, err
}
