package rider

import "time"

// Evolve returns the state after e, which happened at time at.
func Evolve(s State, e Event, at time.Time) State {
	s.Version++
	s.UpdatedAt = at
	switch e := e.(type) {
	case Registered:
		s.ID, s.Name, s.Vehicle, s.Verification, s.CreatedAt = e.RiderID, e.Name, e.Vehicle, Unverified, at
	case Updated:
		s.Name, s.Vehicle = e.Name, e.Vehicle
	case VerifiedEvent:
		s.Verification = Verified
		s.Online = s.Claim != nil // who still has an order goes on as before
	case SuspendedEvent:
		s.Verification, s.Online = Suspended, false
	case WentOnline:
		s.Online = true
	case WentOffline:
		s.Online = false
	case Claimed:
		s.Claim = &Claim{ID: e.ClaimID, OrderID: e.OrderID, Round: e.Round, Wave: e.Wave,
			CustomerID: e.Ctx.CustomerID, RestaurantID: e.Ctx.RestaurantID}
	case Released:
		s.Claim = nil
	}
	return s
}
