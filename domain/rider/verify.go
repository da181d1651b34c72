//go:build !nextepoch

package rider

import "tomato/domain"

// RiderVerified is an event. It and verify are in a file of their own because the tests
// of upgrades build a program in which both are different (nextepoch.go).
type RiderVerified struct {
	RiderID string     `json:"riderId"`
	Ctx     domain.Ctx `json:"ctx"`
}

// verify returns the event of Verify, or nil if the rider is verified already.
func verify(s *State) Event {
	if s.Verification == Verified {
		return nil
	}
	return RiderVerified{RiderID: s.ID, Ctx: s.ctx()}
}
