// Package rider is the rider aggregate: who may be offered orders, and the one
// order that a rider may have. Positions are telemetry and not part of it.
package rider

import (
	"time"

	"tomato/domain"
)

// Verification is whether ops let the rider work. The zero value is unverified.
type Verification string

// The verifications.
const (
	Unverified Verification = "unverified"
	Verified   Verification = "verified"
	Suspended  Verification = "suspended"
)

// Status is whether the rider can take an order now; derived.
type Status string

// The statuses.
const (
	Offline   Status = "offline"
	Available Status = "available"
	Busy      Status = "busy"
)

// Claim is the one order that the rider has, or is about to have. An assigned
// claim ends only by RIDER_RELEASED.
type Claim struct {
	ID           int64  `json:"claimId"` // the rider's version when it was claimed
	OrderID      string `json:"orderId"`
	Round        int    `json:"round"`
	Wave         int    `json:"wave"`
	CustomerID   string `json:"customerId"`
	RestaurantID string `json:"restaurantId"`
}

// State is a rider as its events have made it.
type State struct {
	ID           string       `json:"riderId"`
	Version      int64        `json:"version"`
	Name         string       `json:"name"`
	Vehicle      string       `json:"vehicle,omitempty"`
	Verification Verification `json:"verification"`
	Online       bool         `json:"online,omitempty"`
	Claim        *Claim       `json:"claim,omitempty"` // never changed in place
	CreatedAt    time.Time    `json:"createdAt,omitzero"`
	UpdatedAt    time.Time    `json:"updatedAt,omitzero"`
}

// Exists says whether the rider is registered.
func (s *State) Exists() bool { return s.Version > 0 }

// Status derives the rider's status.
func (s *State) Status() Status {
	switch {
	case s.Claim != nil:
		return Busy
	case s.Online:
		return Available
	}
	return Offline
}

// View is the rider as clients see it.
type View struct {
	RiderID      string        `json:"riderId"`
	Version      int64         `json:"version"`
	Name         string        `json:"name"`
	Vehicle      string        `json:"vehicle,omitempty"`
	Verification Verification  `json:"verification"`
	Status       Status        `json:"status"`
	OrderID      string        `json:"orderId,omitempty"`
	Location     *domain.Point `json:"location,omitempty"` // last position, from queries
}

// NewView makes the view of a rider, without a position.
func NewView(s *State) View {
	v := View{RiderID: s.ID, Version: s.Version, Name: s.Name, Vehicle: s.Vehicle, Verification: s.Verification, Status: s.Status()}
	if s.Claim != nil {
		v.OrderID = s.Claim.OrderID
	}
	return v
}

// The commands.
type (
	// Put registers the rider or changes what is known of them.
	Put struct {
		RiderID string `json:"riderId"`
		Name    string `json:"name"`
		Vehicle string `json:"vehicle,omitempty"`
	}
	// Verify lets the rider work.
	Verify struct{}
	// Suspend stops them; an order under way is finished.
	Suspend struct{}
	// GoOnline and GoOffline are the rider's own switch.
	GoOnline  struct{}
	GoOffline struct{}
	// ClaimFor takes the rider for an order before the order is assigned.
	ClaimFor struct {
		OrderID      string `json:"orderId"`
		Round        int    `json:"round"`
		Wave         int    `json:"wave"`
		CustomerID   string `json:"customerId"`
		RestaurantID string `json:"restaurantId"`
	}
	// Release ends the claim with this id and no other.
	Release struct {
		ClaimID int64  `json:"claimId"`
		OrderID string `json:"orderId"`
	}
)

// CommandName implements domain.Command.
func (Put) CommandName() string       { return "put-rider" }
func (Verify) CommandName() string    { return "verify" }
func (Suspend) CommandName() string   { return "suspend" }
func (GoOnline) CommandName() string  { return "online" }
func (GoOffline) CommandName() string { return "offline" }
func (ClaimFor) CommandName() string  { return "claim" }
func (Release) CommandName() string   { return "release" }
