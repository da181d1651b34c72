package order_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"tomato/domain"
	"tomato/domain/domaintest"
	"tomato/domain/order"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

// TestEvents is what the events carry, and the decisions that depend on more of the
// history than the states of TestTransitions have.
func TestEvents(t *testing.T) {
	t.Parallel()
	ctx := func(status order.Status, riderID ...string) domain.Ctx {
		return domain.Ctx{CustomerID: "c1", RestaurantID: "res1", RiderID: strings.Join(riderID, ""), Status: string(status)}
	}
	at := given(placed).PickUp.Location
	offer := func(round, wave, limit int, ids ...string) order.OfferWave {
		return order.OfferWave{Round: round, Wave: wave, Riders: riders(ids...), TTL: time.Minute, Limit: limit}
	}
	offered := func(round, wave int, expires time.Time, rr ...order.OfferedRider) order.Event {
		return order.OrderOffered{
			OrderID: "o1", Round: round, Wave: wave, Riders: append([]order.OfferedRider{}, rr...), Location: at,
			ExpiresAt: expires, Ctx: ctx(order.StatusReadyForRider),
		}
	}
	r1AndR4Asked := then(betweenWaves,
		order.OrderOffered{OrderID: "o1", Round: 2, Wave: 2, Riders: riders("r1", "r4"), ExpiresAt: t0.Add(2 * time.Minute)})
	aggregate.Examples(t, []domaintest.Example[order.Event]{
		{
			Name:  "accepted, ready expected",
			Given: paid,
			When:  order.AcceptOrder{PrepMinutes: 20},
			Then: order.OrderAccepted{
				OrderID: "o1", PrepMinutes: 20, ReadyAt: t0.Add(20 * time.Minute), Ctx: ctx(order.StatusAccepted),
			},
		},
		{
			Name:  "accepted, no time said",
			Given: paid,
			When:  order.AcceptOrder{},
			Then:  order.OrderAccepted{OrderID: "o1", Ctx: ctx(order.StatusAccepted)},
		},
		{
			Name:  "rejected unpaid: nothing to refund",
			Given: placed,
			When:  order.Reject{Reason: "no dough"},
			Then: order.OrderRejected{
				OrderID: "o1", Reason: "no dough", By: domain.Restaurant, Ctx: ctx(order.StatusRejected),
			},
		},
		{
			Name:  "rejected paid: names the money",
			Given: paid,
			When:  order.Reject{Reason: "no dough"},
			Then: order.OrderRejected{
				OrderID: "o1", Reason: "no dough", By: domain.Restaurant, PaymentID: "p1",
				Ctx: ctx(order.StatusRejected),
			},
		},
		{
			Name:  "not accepted in time",
			Given: paid,
			When:  order.CancelUnaccepted{},
			Then: order.OrderCancelled{
				OrderID: "o1", Reason: "not_accepted_in_time", By: domain.System, PaymentID: "p1", Riders: []string{},
				Ctx: ctx(order.StatusCancelled),
			},
		},
		{
			Name:  "ready begins round 1",
			Given: preparing,
			When:  order.Ready{},
			Then: order.OrderReadyForRider{
				OrderID: "o1", RestaurantID: "res1", Location: at, Round: 1, Ctx: ctx(order.StatusReadyForRider),
			},
		},

		{
			Name:  "first wave",
			Given: justReady,
			When:  offer(1, 1, 50, "r1", "r2"),
			Then:  offered(1, 1, t0.Add(time.Minute), riders("r1", "r2")...),
		},
		{
			Name:  "a wave that found nobody is skipped",
			Given: justReady,
			When:  offer(1, 2, 50, "r1"),
			Then:  offered(1, 2, t0.Add(time.Minute), riders("r1")...),
		},
		{
			Name:  "the last wave is recorded with nobody",
			Given: betweenWaves,
			When:  offer(2, 3, 50),
			Then:  offered(2, 3, t0.Add(time.Minute)),
		},
		{
			Name:  "a wave holds no more than the limit",
			Given: justReady,
			When:  offer(1, 1, 2, "r1", "r2", "r3"),
			Then:  offered(1, 1, t0.Add(time.Minute), riders("r1", "r2")...),
		},
		{
			Name:  "nobody twice in a wave",
			Given: justReady,
			When:  offer(1, 1, 50, "r1", "r1"),
			Then:  offered(1, 1, t0.Add(time.Minute), riders("r1")...),
		},
		{
			Name:  "who ignored an offer is asked again, who dropped is not",
			Given: betweenWaves,
			When:  offer(2, 2, 50, "r0", "r1"),
			Then:  offered(2, 2, t0.Add(time.Minute), riders("r0", "r1")[1]),
		},
		{
			Name:  "who declined is not asked again",
			Given: lastWaveOver,
			When:  offer(2, 3, 50, "r2", "r3"),
			Then:  offered(2, 3, t0.Add(time.Minute), riders("r2", "r3")[1]),
		},
		{
			Name:  "who declined is asked again in the next round",
			Given: then(exhausted, order.DispatchRequested{OrderID: "o1", Round: 3}),
			When:  offer(3, 1, 50, "r2"),
			Then:  offered(3, 1, t0.Add(time.Minute), riders("r2")...),
		},
		{
			Name:  "who dropped is asked again in the next round",
			Given: then(exhausted, order.DispatchRequested{OrderID: "o1", Round: 3}),
			When:  offer(3, 1, 50, "r0"),
			Then:  offered(3, 1, t0.Add(time.Minute), riders("r0")...),
		},
		{
			Name:  "the running wave takes whom it has not",
			Given: readyForRider,
			When:  offer(2, 2, 50, "r0", "r1", "r2", "r3", "r5"),
			Then:  offered(2, 2, t0.Add(2*time.Minute), riders("r0", "r1", "r2", "r3", "r5")[3:]...),
		},
		{
			Name:  "the running wave up to its limit",
			Given: readyForRider,
			When:  offer(2, 2, 4, "r3", "r5"),
			Then:  offered(2, 2, t0.Add(2*time.Minute), riders("r3")...),
		},
		{Name: "the running wave is full", Given: readyForRider, When: offer(2, 2, 3, "r3", "r5")},
		{Name: "the running wave knows them all", Given: readyForRider, When: offer(2, 2, 50, "r1", "r4")},
		{Name: "a wave that is over", Given: readyForRider, When: offer(2, 1, 50, "r5")},
		{Name: "a wave that was ended", Given: lastWaveOver, When: offer(2, 2, 50, "r5")},
		{Name: "a wave of another round", Given: betweenWaves, When: offer(1, 2, 50, "r5")},
		{Name: "a wave of a round to come", Given: betweenWaves, When: offer(3, 1, 50, "r5")},
		{Name: "no wave after exhaustion", Given: exhausted, When: offer(2, 3, 50, "r5")},

		{
			Name:  "end of wave names whose offer ends",
			Given: readyForRider,
			When:  order.EndWave{Round: 2, Wave: 2},
			Then: order.OffersExpired{
				OrderID: "o1", Round: 2, Wave: 2, Riders: []string{"r1", "r4"}, Location: at,
				Ctx: ctx(order.StatusReadyForRider),
			},
		},
		{Name: "end of another wave", Given: readyForRider, When: order.EndWave{Round: 2, Wave: 1}},
		{Name: "end of a wave of another round", Given: readyForRider, When: order.EndWave{Round: 1, Wave: 2}},
		{Name: "the wave is over already", Given: lastWaveOver, When: order.EndWave{Round: 2, Wave: 2}},
		{
			Name:  "exhaust after the last wave",
			Given: lastWaveOver,
			When:  order.Exhaust{Round: 2, LastWave: 2},
			Then:  order.DispatchExhausted{OrderID: "o1", Round: 2, Waves: 2, Ctx: ctx(order.StatusReadyForRider)},
		},
		{Name: "exhaust before the last wave", Given: lastWaveOver, When: order.Exhaust{Round: 2, LastWave: 3}},
		{Name: "exhaust of another round", Given: lastWaveOver, When: order.Exhaust{Round: 1, LastWave: 2}},
		{Name: "exhausted already", Given: exhausted, When: order.Exhaust{Round: 2, LastWave: 2}},
		{
			Name:  "dispatch after exhaustion",
			Given: exhausted,
			When:  order.RequestDispatch{},
			Then:  order.DispatchRequested{OrderID: "o1", Round: 3, Location: at, Ctx: ctx(order.StatusReadyForRider)},
		},

		{
			Name:  "assigned: the others' offers end",
			Given: readyForRider,
			When:  order.Assign{RiderID: "r1", RiderName: subjectkeystest.Name("r1", "Una"), ClaimID: 7, Round: 2, Wave: 2},
			Then: order.RiderAssigned{
				OrderID: "o1", RiderID: "r1", RiderName: subjectkeystest.Name("r1", "Una"), ClaimID: 7, Round: 2, Wave: 2, Riders: []string{"r4"},
				Ctx: ctx(order.StatusRiderAssigned, "r1"),
			},
		},
		{
			Name:    "assigned already, under another claim",
			Given:   riderAssigned,
			When:    order.Assign{RiderID: "r1", ClaimID: 8, Round: 2, Wave: 2},
			Refused: order.CodeAlreadyAssigned,
		},
		{
			Name:    "a dropped assignment is not taken up again",
			Given:   droppedByR0,
			When:    order.Assign{RiderID: "r0", ClaimID: 3, Round: 1, Wave: 1},
			Refused: order.CodeOfferExpired,
		},
		{
			Name:    "no offers after the wave",
			Given:   lastWaveOver,
			When:    order.CheckOffer{RiderID: "r1"},
			Refused: order.CodeOfferExpired,
		},
		{
			Name:  "declined, others remain",
			Given: r1AndR4Asked,
			When:  order.Decline{RiderID: "r1"},
			Then: order.OfferDeclined{
				OrderID: "o1", RiderID: "r1", Round: 2, Wave: 2, Location: at, Ctx: ctx(order.StatusReadyForRider),
			},
		},
		{
			Name:  "declined by the last: the wave is over",
			Given: then(r1AndR4Asked, order.OfferDeclined{OrderID: "o1", RiderID: "r1", Round: 2, Wave: 2}),
			When:  order.Decline{RiderID: "r4"},
			Then: order.OfferDeclined{
				OrderID: "o1", RiderID: "r4", Round: 2, Wave: 2, WaveOver: true, Location: at,
				Ctx: ctx(order.StatusReadyForRider),
			},
		},

		{
			Name:  "dropped by its rider",
			Given: riderAssigned,
			When:  order.DropOrder{By: r1, Reason: "flat tyre"},
			Then: order.RiderUnassigned{
				OrderID: "o1", RiderID: "r1", ClaimID: 7, Reason: "flat tyre", By: domain.Rider, Round: 3, Location: at,
				Ctx: ctx(order.StatusReadyForRider, "r1"),
			},
		},
		{Name: "dropped by ops, who did so already", Given: droppedByOps, When: order.DropOrder{By: ops}},
		{Name: "dropped by ops: also so to the rider", Given: droppedByOps, When: order.DropOrder{By: r0}},
		{
			Name:    "dropped by the rider: not so to ops",
			Given:   droppedByR0,
			When:    order.DropOrder{By: ops},
			Refused: domain.InvalidTransition,
		},
		{
			Name: "dropped by ops again, from the next rider",
			Given: then(
				droppedByOps,
				order.OrderOffered{OrderID: "o1", Round: 2, Wave: 1, Riders: riders("r1")},
				order.RiderAssigned{OrderID: "o1", RiderID: "r1", ClaimID: 8, Round: 2, Wave: 1},
			),
			When: order.DropOrder{By: ops, Reason: "lost"},
			Then: order.RiderUnassigned{
				OrderID: "o1", RiderID: "r1", ClaimID: 8, Reason: "lost", By: domain.Ops, Round: 3, Location: at,
				Ctx: ctx(order.StatusReadyForRider, "r1"),
			},
		},
		{
			Name: "dropped again by the rider who got it again",
			Given: then(
				exhausted,
				order.DispatchRequested{OrderID: "o1", Round: 3},
				order.OrderOffered{OrderID: "o1", Round: 3, Wave: 1, Riders: riders("r0")},
				order.RiderAssigned{OrderID: "o1", RiderID: "r0", ClaimID: 9, Round: 3, Wave: 1},
			),
			When: order.DropOrder{By: r0, Reason: "again"},
			Then: order.RiderUnassigned{
				OrderID: "o1", RiderID: "r0", ClaimID: 9, Reason: "again", By: domain.Rider, Round: 4, Location: at,
				Ctx: ctx(order.StatusReadyForRider, "r0"),
			},
		},

		{
			Name:  "picked up",
			Given: riderAssigned,
			When:  order.PickUpOrder{},
			Then:  order.OrderPickedUp{OrderID: "o1", RiderID: "r1", Ctx: ctx(order.StatusPickedUp, "r1")},
		},
		{
			Name:  "delivered: the claim that ends",
			Given: pickedUp,
			When:  order.Deliver{},
			Then:  order.OrderDelivered{OrderID: "o1", RiderID: "r1", ClaimID: 7, Ctx: ctx(order.StatusDelivered, "r1")},
		},
		{
			Name:  "cancelled unpaid",
			Given: placed,
			When:  order.Cancel{By: customer, Reason: "late"},
			Then: order.OrderCancelled{
				OrderID: "o1", Reason: "late", By: domain.Customer, Riders: []string{}, Ctx: ctx(order.StatusCancelled),
			},
		},
		{
			Name:  "cancelled: offers withdrawn",
			Given: readyForRider,
			When:  order.Cancel{By: restaurant, Reason: "fire"},
			Then: order.OrderCancelled{
				OrderID: "o1", Reason: "fire", By: domain.Restaurant, PaymentID: "p1", Riders: []string{"r1", "r4"},
				Ctx: ctx(order.StatusCancelled),
			},
		},
		{
			Name:  "cancelled: rider released",
			Given: pickedUp,
			When:  order.Cancel{By: ops, Reason: "crash"},
			Then: order.OrderCancelled{
				OrderID: "o1", Reason: "crash", By: domain.Ops, PaymentID: "p1", RiderID: "r1", ClaimID: 7,
				Riders: []string{}, Ctx: ctx(order.StatusCancelled, "r1"),
			},
		},
		{
			Name:    "cancelled while offered: the offer is gone",
			Given:   then(readyForRider, order.OrderCancelled{OrderID: "o1", By: domain.Ops}),
			When:    order.CheckOffer{RiderID: "r1"},
			Refused: domain.InvalidTransition,
		},
		{Name: "paid by the payment that paid it, though cancelled", Given: cancelled, When: order.MarkPaid{PaymentID: "p1"}},
		{Name: "nothing happens to what was never placed", When: order.Ready{}, Refused: domain.NotFound},
	})
}

func TestPlace(t *testing.T) {
	t.Parallel()
	p := placed[0].(order.OrderPlaced)
	place := order.Place{OrderID: "o1", CustomerID: "c1", RestaurantID: "res1", Items: p.Items, Currency: "INR", PickUp: p.PickUp, DeliverTo: p.DeliverTo,
		ExternalReference: "x", PaymentTTL: 15 * time.Minute}
	e, err := order.Decide(&order.State{}, place, t0.Add(time.Microsecond))
	want := p
	want.ExternalReference, want.Ctx = "x", domain.Ctx{CustomerID: "c1", RestaurantID: "res1", Status: "placed"}
	if err != nil || !reflect.DeepEqual(e, want) {
		t.Errorf("got %#v, %v\nwant %#v", e, err, want)
	}
	s := given(placed)
	if e, err := order.Decide(&s, place, t0); err == nil || e != nil {
		t.Errorf("placed twice: %#v, %v", e, err)
	}
	if e, err := order.Decide(&s, nil, t0); err == nil || e != nil {
		t.Errorf("no command: %#v, %v", e, err)
	}
}

// The restaurant hears of an order with ORDER_PAID, so the view that is made from that
// event alone is that of the state after it.
func TestPaidCarriesOrder(t *testing.T) {
	t.Parallel()
	s := given(placed)
	e, err := order.Decide(&s, order.MarkPaid{PaymentID: "p1", AcceptTTL: 10 * time.Minute}, t0)
	if err != nil {
		t.Fatal(err)
	}
	after := order.Evolve(s, e, t0)
	if got, want := e.(order.OrderPaid).View(after.Version, t0), order.NewView(&after, order.PaymentPaid); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	if after.Version != 2 || !after.AcceptBy.Equal(t0.Add(10*time.Minute)) {
		t.Errorf("version %d, accept by %v", after.Version, after.AcceptBy)
	}
}

func TestNextDeadline(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		history []order.Event
		at      time.Time
		command domain.Command
	}{
		{placed, t0.Add(15 * time.Minute), order.Expire{}},
		{paid, t0.Add(10 * time.Minute), order.CancelUnaccepted{}},
		{accepted, time.Time{}, nil},
		{justReady, time.Time{}, nil},
		{readyForRider, t0.Add(2 * time.Minute), order.EndWave{Round: 2, Wave: 2}},
		{lastWaveOver, time.Time{}, nil},
		{riderAssigned, time.Time{}, nil},
		{delivered, time.Time{}, nil},
		{cancelled, time.Time{}, nil},
		{rejected, time.Time{}, nil},
		{expired, time.Time{}, nil},
	} {
		s := given(c.history)
		if at, command := s.NextDeadline(); !at.Equal(c.at) || command != c.command {
			t.Errorf("%s: due %v %#v, want %v %#v", s.Status, at, command, c.at, c.command)
		}
	}
}

// TestClosedAt: a closed order knows since when it is closed, an open one does not.
func TestClosedAt(t *testing.T) {
	t.Parallel()
	for _, state := range states {
		s := given(state.History)
		want := slices.Contains([]order.Status{order.StatusDelivered, order.StatusCancelled, order.StatusRejected, order.StatusExpired}, s.Status)
		if s.Status.Closed() != want || s.ClosedAt.IsZero() == want {
			t.Errorf("%s: closed %v at %v", state.Name, s.Status.Closed(), s.ClosedAt)
		}
	}
}
