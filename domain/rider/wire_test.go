package rider_test

import (
	"strings"
	"testing"

	"tomato/domain"
	"tomato/domain/domaintest"
	"tomato/domain/rider"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

// TestPlainNamesAreRefused: builds before the sealing wrote names in plain text. They were
// once taken for sealed texts that nobody can read.
func TestPlainNamesAreRefused(t *testing.T) {
	t.Parallel()
	for eventType, data := range map[string]string{
		rider.TypeRiderRegistered: `{"riderId":"rider-5","name":"Una Rao","ctx":{}}`,
		rider.TypeRiderUpdated:    `{"riderId":"rider-5","name":"s1.Una","ctx":{}}`,
		rider.TypeRiderClaimed:    `{"riderId":"rider-5","riderName":"Una Rao","ctx":{}}`,
	} {
		if e, err := rider.Decode(eventType, 1, []byte(data)); err == nil || !strings.Contains(err.Error(), "no sealed text") || strings.Contains(err.Error(), "Una") {
			t.Errorf("%s is %+v, %v", data, e, err)
		}
	}
}

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
