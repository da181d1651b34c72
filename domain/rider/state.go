// Package rider is the rider aggregate: who may be offered orders, and the one
// order that a rider may have. Locations are telemetry and not part of it.
//
// The comment of package domain lists the files.
package rider

import (
	"time"

	"tomato/domain"
)

// Verification is the decision of ops about whether the rider may work. A new rider is
// unverified.
type Verification string

// The verifications.
const (
	Unverified Verification = "unverified"
	Verified   Verification = "verified"
	Suspended  Verification = "suspended"
)

// Status is what the rider is doing now. It is derived from the state.
type Status string

// The statuses.
const (
	StatusOffline   Status = "offline"
	StatusAvailable Status = "available"
	StatusBusy      Status = "busy"
)

// Claim reserves the rider for one order, before and while the order is assigned to
// them. It ends only by RIDER_RELEASED.
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
	ID           string        `json:"riderId"`
	Version      int64         `json:"version"`
	Name         domain.Sealed `json:"name"` // under the rider's key
	Vehicle      string        `json:"vehicle,omitempty"`
	Verification Verification  `json:"verification"`
	Online       bool          `json:"online,omitempty"`
	Claim        *Claim        `json:"claim,omitempty"` // never changed in place
	CreatedAt    time.Time     `json:"createdAt,omitzero"`
	UpdatedAt    time.Time     `json:"updatedAt,omitzero"`
}

// Exists reports whether the rider is registered.
func (s *State) Exists() bool { return s.Version > 0 }

// Status derives the rider's status.
func (s *State) Status() Status {
	switch {
	case s.Claim != nil:
		return StatusBusy
	case s.Online:
		return StatusAvailable
	}
	return StatusOffline
}
