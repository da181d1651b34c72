package rider_test

import (
	"reflect"
	"testing"

	"tomato/domain"
	"tomato/domain/domaintest"
	"tomato/domain/rider"
)

var aggregate = domaintest.Aggregate[rider.State, rider.Event]{
	Evolve: rider.Evolve,
	Decide: rider.Decide,
	Show:   func(s *rider.State) string { return string(s.Status()) + ", " + string(s.Verification) },
}

var (
	given = aggregate.Given
	then  = aggregate.Then
)

// The histories that lead to the states.
var (
	busyCtx    = domain.Ctx{CustomerID: "c1", RestaurantID: "res1", RiderID: "r1"}
	unknown    []rider.Event
	unverified = then(unknown, rider.RiderRegistered{RiderID: "r1", Name: "Una"})
	verified   = then(unverified, rider.RiderVerified{RiderID: "r1"})
	available  = then(verified, rider.RiderOnline{RiderID: "r1"})
	busy       = then(available,
		rider.RiderClaimed{RiderID: "r1", RiderName: "Una", ClaimID: 4, OrderID: "X", Round: 1, Wave: 2, Ctx: busyCtx})
	suspended     = then(available, rider.RiderSuspended{RiderID: "r1"})
	suspendedBusy = then(busy, rider.RiderSuspended{RiderID: "r1"})
)

// states are the states in which TestTransitions tries each command.
var states = []domaintest.State[rider.Event]{
	{Name: "unknown", History: unknown},
	{Name: "offline, unverified", History: unverified, Shown: "offline, unverified"},
	{Name: "offline, verified", History: verified, Shown: "offline, verified"},
	{Name: "available", History: available, Shown: "available, verified"},
	{Name: "busy with X", History: busy, Shown: "busy, verified"},
	{Name: "suspended (offline)", History: suspended, Shown: "offline, suspended"},
	{Name: "suspended, busy with X", History: suspendedBusy, Shown: "busy, suspended"},
}

// TestTransitions is the table of transitions: the outcome of every command in every
// state of a rider. After an event it has the rider's status and verification.
// Locations are not events, so they are not in the table.
func TestTransitions(t *testing.T) {
	t.Parallel()
	claim := func(orderID string, round, wave int) rider.ClaimFor {
		return rider.ClaimFor{OrderID: orderID, Round: round, Wave: wave, CustomerID: "c1", RestaurantID: "res1"}
	}
	aggregate.Transitions(t, states, []domaintest.Transition{
		{Name: "PUT", Command: rider.Put{RiderID: "r1", Name: "Uma", Vehicle: "bike"}, Then: `
			unknown                | RIDER_REGISTERED → offline, unverified
			offline, unverified    | RIDER_UPDATED → offline, unverified
			offline, verified      | RIDER_UPDATED → offline, verified
			available              | RIDER_UPDATED → available, verified
			busy with X            | RIDER_UPDATED → busy, verified
			suspended (offline)    | RIDER_UPDATED → offline, suspended
			suspended, busy with X | RIDER_UPDATED → busy, suspended`},
		{Name: "PUT, nothing new", Command: rider.Put{RiderID: "r1", Name: "Una"}, Then: `
			unknown                                       | RIDER_REGISTERED → offline, unverified
			offline, unverified .. suspended, busy with X | =`},
		{Name: "verify (ops)", Command: rider.Verify{}, Then: `
			unknown                                  | 404
			offline, unverified; suspended (offline) | RIDER_VERIFIED → offline, verified
			offline, verified .. busy with X         | =
			suspended, busy with X                   | RIDER_VERIFIED → busy, verified`},
		{Name: "suspend (ops)", Command: rider.Suspend{}, Then: `
			unknown                                     | 404
			offline, unverified .. available            | RIDER_SUSPENDED → offline, suspended
			busy with X                                 | RIDER_SUSPENDED → busy, suspended
			suspended (offline); suspended, busy with X | =`},
		{Name: "online (self)", Command: rider.GoOnline{}, Then: `
			unknown                                     | 404
			offline, unverified                         | rider_not_verified
			offline, verified                           | RIDER_ONLINE → available, verified
			available; busy with X                      | =
			suspended (offline); suspended, busy with X | rider_suspended`},
		{Name: "offline (self)", Command: rider.GoOffline{}, Then: `
			unknown                                                     | 404
			offline, unverified; offline, verified; suspended (offline) | =
			available                                                   | RIDER_OFFLINE → offline, verified
			busy with X; suspended, busy with X                         | rider_busy`},
		{Name: "claim X (accept)", Command: claim("X", 1, 2), Then: `
			unknown                             | 404
			offline, unverified                 | rider_not_verified
			offline, verified                   | rider_offline
			available                           | RIDER_CLAIMED → busy, verified
			busy with X; suspended, busy with X | =
			suspended (offline)                 | rider_suspended`},
		{Name: "claim X in another wave", Command: claim("X", 1, 3), Then: `
			unknown                             | 404
			offline, unverified                 | rider_not_verified
			offline, verified                   | rider_offline
			available                           | RIDER_CLAIMED → busy, verified
			busy with X; suspended, busy with X | rider_busy
			suspended (offline)                 | rider_suspended`},
		{Name: "claim X in another round", Command: claim("X", 2, 2), Then: `
			unknown                             | 404
			offline, unverified                 | rider_not_verified
			offline, verified                   | rider_offline
			available                           | RIDER_CLAIMED → busy, verified
			busy with X; suspended, busy with X | rider_busy
			suspended (offline)                 | rider_suspended`},
		{Name: "claim Y (accept)", Command: claim("Y", 1, 2), Then: `
			unknown                             | 404
			offline, unverified                 | rider_not_verified
			offline, verified                   | rider_offline
			available                           | RIDER_CLAIMED → busy, verified
			busy with X; suspended, busy with X | rider_busy
			suspended (offline)                 | rider_suspended`},
		{Name: "release X", Command: rider.Release{ClaimID: 4, OrderID: "X"}, Then: `
			unknown                                | — 404
			offline, unverified; offline, verified | —
			available; suspended (offline)         | =
			busy with X                            | RIDER_RELEASED → available, verified
			suspended, busy with X                 | RIDER_RELEASED → offline, suspended`},
		{Name: "release of another claim", Command: rider.Release{ClaimID: 3, OrderID: "X"}, Then: `
			unknown                                | — 404
			offline, unverified; offline, verified | —
			available .. suspended, busy with X    | =`},
	})
}

// TestEvents is what the events carry.
func TestEvents(t *testing.T) {
	t.Parallel()
	aggregate.Examples(t, []domaintest.Example[rider.Event]{
		{
			Name:  "registered",
			Given: unknown,
			When:  rider.Put{RiderID: "r1", Name: "Una", Vehicle: "bike"},
			Then:  rider.RiderRegistered{RiderID: "r1", Name: "Una", Vehicle: "bike", Ctx: domain.Ctx{RiderID: "r1"}},
		},
		{
			Name:  "updated: a PUT replaces all",
			Given: then(unknown, rider.RiderRegistered{RiderID: "r1", Name: "Una", Vehicle: "bike"}),
			When:  rider.Put{RiderID: "r1", Name: "Una"},
			Then:  rider.RiderUpdated{RiderID: "r1", Name: "Una", Ctx: domain.Ctx{RiderID: "r1"}},
		},
		{
			Name:  "claimed: the claim's id is the version that it makes",
			Given: available,
			When:  rider.ClaimFor{OrderID: "Y", Round: 3, Wave: 1, CustomerID: "c2", RestaurantID: "res2"},
			Then: rider.RiderClaimed{
				RiderID: "r1", RiderName: "Una", ClaimID: 4, OrderID: "Y", Round: 3, Wave: 1,
				Ctx: domain.Ctx{CustomerID: "c2", RestaurantID: "res2", RiderID: "r1"},
			},
		},
		{
			Name:  "released: says to whom",
			Given: busy,
			When:  rider.Release{ClaimID: 4, OrderID: "X"},
			Then:  rider.RiderReleased{RiderID: "r1", ClaimID: 4, OrderID: "X", Ctx: busyCtx},
		},
		{
			Name:  "suspended while busy: says to whom",
			Given: busy,
			When:  rider.Suspend{},
			Then:  rider.RiderSuspended{RiderID: "r1", Ctx: busyCtx},
		},
	})
}

func TestClaim(t *testing.T) {
	t.Parallel()
	s := given(busy)
	want := &rider.Claim{ID: 4, OrderID: "X", Round: 1, Wave: 2, CustomerID: "c1", RestaurantID: "res1"}
	if !reflect.DeepEqual(s.Claim, want) || s.Claim.ID != s.Version {
		t.Errorf("claim %+v at version %d, want %+v", s.Claim, s.Version, want)
	}
	// Verified again in the middle of an order, the rider is free at its end, as before.
	back := given(then(suspendedBusy, rider.RiderVerified{RiderID: "r1"}, rider.RiderReleased{RiderID: "r1", ClaimID: 4, OrderID: "X"}))
	if back.Status() != rider.StatusAvailable || back.Verification != rider.Verified {
		t.Errorf("after suspension, verification and release: %s, %s", back.Status(), back.Verification)
	}
	view := rider.View{RiderID: "r1", Version: 4, Sealed: "Una", Verification: rider.Verified, Status: rider.StatusBusy, OrderID: "X"}
	if got := rider.NewView(&s); got != view {
		t.Errorf("view %+v, want %+v", got, view)
	}
}
