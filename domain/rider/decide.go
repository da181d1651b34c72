package rider

import (
	"fmt"
	"time"

	"tomato/domain"
)

// Decide returns the event that the command makes, or nil if the rider is already
// as the command asks, or a *domain.Refusal.
func Decide(s *State, c domain.Command, _ time.Time) (Event, error) {
	if p, ok := c.(Put); ok {
		switch {
		case !s.Exists():
			return RiderRegistered{RiderID: p.RiderID, Name: p.Name, Vehicle: p.Vehicle, Ctx: domain.Ctx{RiderID: p.RiderID}}, nil
		case s.Name == p.Name && s.Vehicle == p.Vehicle:
			return nil, nil
		}
		return RiderUpdated{RiderID: s.ID, Name: p.Name, Vehicle: p.Vehicle, Ctx: s.ctx()}, nil
	}
	if !s.Exists() {
		return nil, domain.Refuse(domain.NotFound, "no such rider")
	}
	switch c := c.(type) {
	case Verify:
		return verify(s), nil
	case Suspend:
		if s.Verification == Suspended {
			return nil, nil
		}
		return RiderSuspended{RiderID: s.ID, Ctx: s.ctx()}, nil
	case GoOnline:
		switch {
		case s.Verification == Suspended:
			return nil, domain.Refuse(CodeSuspended, "suspended riders stay offline")
		case s.Verification != Verified:
			return nil, domain.Refuse(CodeNotVerified, "ops must verify the rider first")
		case s.Online:
			return nil, nil
		}
		return RiderOnline{RiderID: s.ID, Ctx: s.ctx()}, nil
	case GoOffline:
		switch {
		case s.Claim != nil:
			return nil, domain.Refuse(CodeBusy, "the rider has an order")
		case !s.Online:
			return nil, nil
		}
		return RiderOffline{RiderID: s.ID, Ctx: s.ctx()}, nil
	case ClaimFor:
		return claim(s, c)
	case Release:
		if s.Claim == nil || s.Claim.ID != c.ClaimID {
			return nil, nil
		}
		return RiderReleased{RiderID: s.ID, ClaimID: s.Claim.ID, OrderID: s.Claim.OrderID, Ctx: s.ctx()}, nil
	}
	return nil, fmt.Errorf("rider: unknown command %T", c)
}

// TookEffect reports whether the command has taken effect in the past, and whether that
// can never change: once it is true, it is true after all later events. It is false for
// all commands but the one that a policy repeats. A claim's id is the version that the
// rider got with it, so a rider with a lower version may not have been claimed yet.
func TookEffect(s *State, c domain.Command) bool {
	if c, ok := c.(Release); ok {
		return s.Version >= c.ClaimID && (s.Claim == nil || s.Claim.ID != c.ClaimID)
	}
	return false
}

func claim(s *State, c ClaimFor) (Event, error) {
	switch {
	case s.Claim != nil && s.Claim.OrderID == c.OrderID && s.Claim.Round == c.Round && s.Claim.Wave == c.Wave:
		return nil, nil
	case s.Claim == nil && s.Verification == Suspended:
		return nil, domain.Refuse(CodeSuspended, "the rider is suspended")
	case s.Claim != nil:
		return nil, domain.Refuse(CodeBusy, "the rider has an order")
	case s.Verification != Verified:
		return nil, domain.Refuse(CodeNotVerified, "the rider is not verified")
	case !s.Online:
		return nil, domain.Refuse(CodeOffline, "the rider is offline")
	}
	return RiderClaimed{RiderID: s.ID, RiderName: s.Name, ClaimID: s.Version + 1, OrderID: c.OrderID, Round: c.Round, Wave: c.Wave,
		Ctx: domain.Ctx{CustomerID: c.CustomerID, RestaurantID: c.RestaurantID, RiderID: s.ID}}, nil
}

func (s *State) ctx() domain.Ctx {
	x := domain.Ctx{RiderID: s.ID}
	if s.Claim != nil {
		x.CustomerID, x.RestaurantID = s.Claim.CustomerID, s.Claim.RestaurantID
	}
	return x
}
