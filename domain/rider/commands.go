package rider

import "tomato/domain"

// The commands.
type (
	// Put registers the rider or changes what is known of them.
	Put struct {
		RiderID string        `json:"riderId"`
		Name    domain.Sealed `json:"name"`
		Vehicle string        `json:"vehicle,omitempty"`
	}
	// Verify allows the rider to work.
	Verify struct{}
	// Suspend forbids it. The rider still delivers the order that they have.
	Suspend struct{}
	// GoOnline and GoOffline are issued by the rider.
	GoOnline  struct{}
	GoOffline struct{}
	// ClaimFor reserves the rider for an order, before the order is assigned.
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
