package rider

import "time"

// Evolve returns the state after the event e, which happened at time at.
func Evolve(s State, e Event, at time.Time) State {
	s.Version++
	s.UpdatedAt = at
	switch e := e.(type) {
	case RiderRegistered:
		s.ID, s.Name, s.Vehicle, s.Verification, s.CreatedAt = e.RiderID, e.Name, e.Vehicle, Unverified, at
	case RiderUpdated:
		s.Name, s.Vehicle = e.Name, e.Vehicle
	case RiderVerified:
		s.Verification = Verified
		s.Online = s.Claim != nil // a rider with an order is online again
	case RiderSuspended:
		s.Verification, s.Online = Suspended, false
	case RiderOnline:
		s.Online = true
	case RiderOffline:
		s.Online = false
	case RiderClaimed:
		s.Claim = &Claim{ID: e.ClaimID, OrderID: e.OrderID, Round: e.Round, Wave: e.Wave,
			CustomerID: e.Ctx.CustomerID, RestaurantID: e.Ctx.RestaurantID}
	case RiderReleased:
		s.Claim = nil
	}
	return s
}
