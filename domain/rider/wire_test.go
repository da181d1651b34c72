package rider_test

import (
	"testing"

	"tomato/domain"
	"tomato/domain/domaintest"
	"tomato/domain/rider"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

func TestWire(t *testing.T) {
	t.Parallel()
	name := subjectkeystest.Name("rider-5", "Una Rao")
	free := domain.Ctx{RiderID: "rider-5"}
	with := domain.Ctx{CustomerID: "cust-9", RestaurantID: "res-17", RiderID: "rider-5"}
	domaintest.Golden[rider.Event](t, rider.Decode, rider.Forms, rider.Types,
		rider.RiderRegistered{RiderID: "rider-5", Name: name, Vehicle: "scooter", Ctx: free},
		rider.RiderUpdated{RiderID: "rider-5", Name: name, Vehicle: "bicycle", Ctx: free},
		rider.RiderVerified{RiderID: "rider-5", Ctx: free},
		rider.RiderSuspended{RiderID: "rider-5", Ctx: with},
		rider.RiderOnline{RiderID: "rider-5", Ctx: free},
		rider.RiderOffline{RiderID: "rider-5", Ctx: free},
		rider.RiderClaimed{RiderID: "rider-5", RiderName: name, ClaimID: 4, OrderID: "019b7c1e-8e3c-7b1a-9d55-0a1b2c3d4e5f", Round: 1, Wave: 2, Ctx: with},
		rider.RiderReleased{RiderID: "rider-5", ClaimID: 4, OrderID: "019b7c1e-8e3c-7b1a-9d55-0a1b2c3d4e5f", Ctx: with},
	)
}
