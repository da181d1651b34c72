package rider_test

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"tomato/domain"
	"tomato/domain/domaintest"
	"tomato/domain/rider"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// The histories that lead to the columns.
var (
	busyCtx       = domain.Ctx{CustomerID: "c1", RestaurantID: "res1", RiderID: "r1"}
	unknown       []rider.Event
	unverified    = then(unknown, rider.RiderRegistered{RiderID: "r1", Name: "Una"})
	verified      = then(unverified, rider.RiderVerified{RiderID: "r1"})
	available     = then(verified, rider.RiderOnline{RiderID: "r1"})
	busy          = then(available, rider.RiderClaimed{RiderID: "r1", RiderName: "Una", ClaimID: 4, OrderID: "X", Round: 1, Wave: 2, Ctx: busyCtx})
	suspended     = then(available, rider.RiderSuspended{RiderID: "r1"})
	suspendedBusy = then(busy, rider.RiderSuspended{RiderID: "r1"})
)

func then(history []rider.Event, events ...rider.Event) []rider.Event {
	return append(append([]rider.Event{}, history...), events...)
}

func given(history []rider.Event) rider.State {
	var s rider.State
	for i, e := range history {
		s = rider.Evolve(s, e, t0.Add(time.Duration(i)*time.Second))
	}
	return s
}

var columns = []struct {
	name    string
	history []rider.Event
}{
	{"unknown", unknown}, {"offline, unverified", unverified}, {"offline, verified", verified}, {"available", available},
	{"busy with X", busy}, {"suspended (offline)", suspended}, {"suspended, busy with X", suspendedBusy},
}

// TestTransitions is the document's table; after an event stand status and
// verification. Positions are no events and not here.
func TestTransitions(t *testing.T) {
	t.Parallel()
	claim := func(orderID string, round, wave int) rider.ClaimFor {
		return rider.ClaimFor{OrderID: orderID, Round: round, Wave: wave, CustomerID: "c1", RestaurantID: "res1"}
	}
	const busyAvailable = "RIDER_CLAIMED → busy, verified"
	for _, row := range []struct {
		name    string
		command domain.Command
		cells   string
	}{
		// command                                    unknown | offline, unverified | offline, verified | available | busy with X | suspended (offline) | suspended, busy with X
		{"PUT", rider.Put{RiderID: "r1", Name: "Uma", Vehicle: "bike"}, "RIDER_REGISTERED → offline, unverified | RIDER_UPDATED → offline, unverified | RIDER_UPDATED → offline, verified | RIDER_UPDATED → available, verified | RIDER_UPDATED → busy, verified | RIDER_UPDATED → offline, suspended | RIDER_UPDATED → busy, suspended"},
		{"PUT, nothing new", rider.Put{RiderID: "r1", Name: "Una"}, "RIDER_REGISTERED → offline, unverified | = | = | = | = | = | ="},
		{"verify (ops)", rider.Verify{}, "404 | RIDER_VERIFIED → offline, verified | = | = | = | RIDER_VERIFIED → offline, verified | RIDER_VERIFIED → busy, verified"},
		{"suspend (ops)", rider.Suspend{}, "404 | RIDER_SUSPENDED → offline, suspended | RIDER_SUSPENDED → offline, suspended | RIDER_SUSPENDED → offline, suspended | RIDER_SUSPENDED → busy, suspended | = | ="},
		{"online (self)", rider.GoOnline{}, "404 | rider_not_verified | RIDER_ONLINE → available, verified | = | = | rider_suspended | rider_suspended"},
		{"offline (self)", rider.GoOffline{}, "404 | = | = | RIDER_OFFLINE → offline, verified | rider_busy | = | rider_busy"},
		{"claim X (accept)", claim("X", 1, 2), "404 | rider_not_verified | rider_offline | RIDER_CLAIMED → busy, verified | = | rider_suspended | ="},
		{"claim X in another wave", claim("X", 1, 3), "404 | rider_not_verified | rider_offline | RIDER_CLAIMED → busy, verified | rider_busy | rider_suspended | rider_busy"},
		{"claim X in another round", claim("X", 2, 2), "404 | rider_not_verified | rider_offline | RIDER_CLAIMED → busy, verified | rider_busy | rider_suspended | rider_busy"},
		{"claim Y (accept)", claim("Y", 1, 2), "404 | rider_not_verified | rider_offline | " + busyAvailable + " | rider_busy | rider_suspended | rider_busy"},
		{"release X", rider.Release{ClaimID: 4, OrderID: "X"}, "— 404 | — | — | = | RIDER_RELEASED → available, verified | = | RIDER_RELEASED → offline, suspended"},
		{"release of another claim", rider.Release{ClaimID: 3, OrderID: "X"}, "— 404 | — | — | = | = | = | ="},
	} {
		cells := domaintest.Columns(row.cells)
		if len(cells) != len(columns) {
			t.Errorf("%s: %d cells for %d columns", row.name, len(cells), len(columns))
			continue
		}
		for i, column := range columns {
			t.Run(row.name+"/"+column.name, func(t *testing.T) {
				t.Parallel()
				s := given(column.history)
				e, err := rider.Decide(&s, row.command, t0)
				got := domaintest.Outcome(t, e, err, "")
				if e != nil {
					after := rider.Evolve(s, e, t0)
					got += fmt.Sprintf(" → %s, %s", after.Status(), after.Verification)
				}
				if want := cells[i]; got != want && (want != "—" || got != "=") && want != "— "+got {
					t.Errorf("got %s, want %s", got, want)
				}
			})
		}
	}
}

func TestEvents(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		given []rider.Event
		when  domain.Command
		then  rider.Event
	}{
		{"registered", unknown, rider.Put{RiderID: "r1", Name: "Una", Vehicle: "bike"}, rider.RiderRegistered{RiderID: "r1", Name: "Una", Vehicle: "bike", Ctx: domain.Ctx{RiderID: "r1"}}},
		{"updated: a PUT replaces all", then(unknown, rider.RiderRegistered{RiderID: "r1", Name: "Una", Vehicle: "bike"}), rider.Put{RiderID: "r1", Name: "Una"}, rider.RiderUpdated{RiderID: "r1", Name: "Una", Ctx: domain.Ctx{RiderID: "r1"}}},
		{"claimed: the claim's id is the version that it makes", available, rider.ClaimFor{OrderID: "Y", Round: 3, Wave: 1, CustomerID: "c2", RestaurantID: "res2"},
			rider.RiderClaimed{RiderID: "r1", RiderName: "Una", ClaimID: 4, OrderID: "Y", Round: 3, Wave: 1, Ctx: domain.Ctx{CustomerID: "c2", RestaurantID: "res2", RiderID: "r1"}}},
		{"released: says to whom", busy, rider.Release{ClaimID: 4, OrderID: "X"}, rider.RiderReleased{RiderID: "r1", ClaimID: 4, OrderID: "X", Ctx: busyCtx}},
		{"suspended while busy: says to whom", busy, rider.Suspend{}, rider.RiderSuspended{RiderID: "r1", Ctx: busyCtx}},
	} {
		s := given(c.given)
		if e, err := rider.Decide(&s, c.when, t0); err != nil || !reflect.DeepEqual(e, c.then) {
			t.Errorf("%s: got\n%#v, %v\nwant\n%#v", c.name, e, err, c.then)
		}
	}
	s := given(busy)
	if want := (&rider.Claim{ID: 4, OrderID: "X", Round: 1, Wave: 2, CustomerID: "c1", RestaurantID: "res1"}); !reflect.DeepEqual(s.Claim, want) || s.Claim.ID != s.Version {
		t.Errorf("claim %+v at version %d, want %+v", s.Claim, s.Version, want)
	}
	// Verified again in the middle of an order, the rider is free at its end, as before.
	back := given(then(suspendedBusy, rider.RiderVerified{RiderID: "r1"}, rider.RiderReleased{RiderID: "r1", ClaimID: 4, OrderID: "X"}))
	if back.Status() != rider.StatusAvailable || back.Verification != rider.Verified {
		t.Errorf("after suspension, verification and release: %s, %s", back.Status(), back.Verification)
	}
	if _, err := rider.Decide(&s, nil, t0); err == nil {
		t.Error("no command is decided")
	}
	if v, want := rider.NewView(&s), (rider.View{RiderID: "r1", Version: 4, Name: "Una", Verification: rider.Verified, Status: rider.StatusBusy, OrderID: "X"}); v != want {
		t.Errorf("view %+v, want %+v", v, want)
	}
}
