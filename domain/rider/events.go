package rider

import (
	"fmt"

	"tomato/domain"
)

// The types of the events, as the record header ce_type has them. The constant of
// an event is Type and the name of its Go type, and that name is the type on the
// wire in camel case.
const (
	TypeRiderRegistered = "RIDER_REGISTERED"
	TypeRiderUpdated    = "RIDER_UPDATED"
	TypeRiderVerified   = "RIDER_VERIFIED"
	TypeRiderSuspended  = "RIDER_SUSPENDED"
	TypeRiderOnline     = "RIDER_ONLINE"
	TypeRiderOffline    = "RIDER_OFFLINE"
	TypeRiderClaimed    = "RIDER_CLAIMED"
	TypeRiderReleased   = "RIDER_RELEASED"
)

// Types are the types of all events of a rider.
var Types = []string{
	TypeRiderRegistered, TypeRiderUpdated, TypeRiderVerified, TypeRiderSuspended,
	TypeRiderOnline, TypeRiderOffline, TypeRiderClaimed, TypeRiderReleased,
}

// The events, as they are on topic riders. Records are kept for ever, so the form of an
// event is never changed. If another form is needed, Decode converts the old one.
type (
	RiderRegistered struct {
		RiderID string        `json:"riderId"`
		Name    domain.Sealed `json:"name"` // under the rider's key
		Vehicle string        `json:"vehicle,omitempty"`
		Ctx     domain.Ctx    `json:"ctx"`
	}
	RiderUpdated struct {
		RiderID string        `json:"riderId"`
		Name    domain.Sealed `json:"name"` // under the rider's key
		Vehicle string        `json:"vehicle,omitempty"`
		Ctx     domain.Ctx    `json:"ctx"`
	}
	RiderSuspended struct {
		RiderID string     `json:"riderId"`
		Ctx     domain.Ctx `json:"ctx"`
	}
	RiderOnline struct {
		RiderID string     `json:"riderId"`
		Ctx     domain.Ctx `json:"ctx"`
	}
	RiderOffline struct {
		RiderID string     `json:"riderId"`
		Ctx     domain.Ctx `json:"ctx"`
	}
	RiderClaimed struct {
		RiderID   string        `json:"riderId"`
		RiderName domain.Sealed `json:"riderName"`
		ClaimID   int64         `json:"claimId"`
		OrderID   string        `json:"orderId"`
		Round     int           `json:"round"`
		Wave      int           `json:"wave"`
		Ctx       domain.Ctx    `json:"ctx"`
	}
	RiderReleased struct {
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
func (RiderRegistered) EventType() string { return TypeRiderRegistered }
func (RiderUpdated) EventType() string    { return TypeRiderUpdated }
func (RiderVerified) EventType() string   { return TypeRiderVerified }
func (RiderSuspended) EventType() string  { return TypeRiderSuspended }
func (RiderOnline) EventType() string     { return TypeRiderOnline }
func (RiderOffline) EventType() string    { return TypeRiderOffline }
func (RiderClaimed) EventType() string    { return TypeRiderClaimed }
func (RiderReleased) EventType() string   { return TypeRiderReleased }

func (RiderRegistered) riderEvent() {}
func (RiderUpdated) riderEvent()    {}
func (RiderVerified) riderEvent()   {}
func (RiderSuspended) riderEvent()  {}
func (RiderOnline) riderEvent()     {}
func (RiderOffline) riderEvent()    {}
func (RiderClaimed) riderEvent()    {}
func (RiderReleased) riderEvent()   {}

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
	case TypeRiderRegistered:
		return decode[RiderRegistered](data)
	case TypeRiderUpdated:
		return decode[RiderUpdated](data)
	case TypeRiderVerified:
		return decode[RiderVerified](data)
	case TypeRiderSuspended:
		return decode[RiderSuspended](data)
	case TypeRiderOnline:
		return decode[RiderOnline](data)
	case TypeRiderOffline:
		return decode[RiderOffline](data)
	case TypeRiderClaimed:
		return decode[RiderClaimed](data)
	case TypeRiderReleased:
		return decode[RiderReleased](data)
	}
	return nil, fmt.Errorf("unknown rider event %q", eventType)
}

func decode[E Event](data []byte) (Event, error) {
	var e E
	if err := domain.DecodeJSON(data, &e); err != nil {
		return e, err
	}
	switch e := any(e).(type) {
	case RiderRegistered:
		return e, e.Name.Check("name")
	case RiderUpdated:
		return e, e.Name.Check("name")
	case RiderClaimed:
		return e, e.RiderName.Check("riderName")
	}
	return e, nil
}
