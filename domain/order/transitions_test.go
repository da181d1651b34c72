package order_test

import (
	"testing"
	"time"

	"tomato/domain"
	"tomato/domain/domaintest"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

var t0 = domaintest.T0

var aggregate = domaintest.Aggregate[order.State, order.Event]{
	Evolve:      order.Evolve,
	Decide:      order.Decide,
	Authorize:   order.Authorize,
	Show:        func(s *order.State) string { return string(s.Status) },
	OrderStatus: func(s *order.State, _ domain.Command) string { return string(s.Status) },
}

// The actors. Rider r1 is offered the order, wins it and delivers it. r2 declined it.
// r3's offer ended with an earlier wave. r4 is offered it and loses. r0 had it and
// dropped it. r5 was never asked.
var (
	system     = domain.SystemActor
	customer   = domain.Actor{Sub: "c1", Role: domain.Customer}
	restaurant = domain.Actor{Sub: "staff", Role: domain.Restaurant, RestaurantID: "res1"}
	ops        = domain.Actor{Sub: "olga", Role: domain.Ops}
	r0         = rider("r0")
	r1         = rider("r1")
	r2         = rider("r2")
	r3         = rider("r3")
	r4         = rider("r4")
	r5         = rider("r5")
)

func rider(id string) domain.Actor { return domain.Actor{Sub: id, Role: domain.Rider} }

func riders(ids ...string) (offered []order.OfferedRider) {
	for i, id := range ids {
		offered = append(offered, order.OfferedRider{RiderID: id, DistanceMeters: 100 * (i + 1)})
	}
	return offered
}

var (
	given = aggregate.Given
	then  = aggregate.Then
)

// The histories that lead to the states.
var (
	placed = []order.Event{order.OrderPlaced{OrderID: "o1", CustomerID: "c1", RestaurantID: "res1",
		Items: []order.Item{{ItemID: "i1", Name: "Dosa", UnitPrice: 150, Quantity: 3}}, Amount: 450, Currency: "INR",
		PickUp:       order.PickUp{Name: "Hut", Location: domain.Point{Lng: 77.5, Lat: 12.9}},
		DeliverTo:    subjectkeystest.DeliverTo("c1", `{"location":{"type":"Point","coordinates":[77.6,13]},"address":"1 Main Road"}`),
		PaymentDueAt: t0.Add(15 * time.Minute)}}
	paid      = then(placed, order.OrderPaid{OrderID: "o1", PaymentID: "p1", AcceptBy: t0.Add(10 * time.Minute)})
	accepted  = then(paid, order.OrderAccepted{OrderID: "o1"})
	preparing = then(accepted, order.OrderPreparing{OrderID: "o1"})
	justReady = then(preparing, order.OrderReadyForRider{OrderID: "o1", RestaurantID: "res1", Round: 1})
	hadByR0   = then(justReady,
		order.OrderOffered{OrderID: "o1", Round: 1, Wave: 1, Riders: riders("r0"), ExpiresAt: t0.Add(time.Minute)},
		order.RiderAssigned{OrderID: "o1", RiderID: "r0", RiderName: subjectkeystest.Name("r0", "Nil"), ClaimID: 3, Round: 1, Wave: 1})
	droppedByR0 = then(hadByR0,
		order.RiderUnassigned{OrderID: "o1", RiderID: "r0", ClaimID: 3, By: domain.Rider, Round: 2})
	droppedByOps = then(hadByR0,
		order.RiderUnassigned{OrderID: "o1", RiderID: "r0", ClaimID: 3, By: domain.Ops, Round: 2})
	betweenWaves = then(droppedByR0,
		order.OrderOffered{OrderID: "o1", Round: 2, Wave: 1, Riders: riders("r1", "r2", "r3"), ExpiresAt: t0.Add(time.Minute)},
		order.OffersExpired{OrderID: "o1", Round: 2, Wave: 1, Riders: []string{"r1", "r2", "r3"}})
	readyForRider = then(betweenWaves,
		order.OrderOffered{OrderID: "o1", Round: 2, Wave: 2, Riders: riders("r1", "r2", "r4"), ExpiresAt: t0.Add(2 * time.Minute)},
		order.OfferDeclined{OrderID: "o1", RiderID: "r2", Round: 2, Wave: 2})
	lastWaveOver = then(readyForRider,
		order.OffersExpired{OrderID: "o1", Round: 2, Wave: 2, Riders: []string{"r1", "r4"}})
	exhausted     = then(lastWaveOver, order.DispatchExhausted{OrderID: "o1", Round: 2, Waves: 2})
	riderAssigned = then(readyForRider,
		order.RiderAssigned{OrderID: "o1", RiderID: "r1", RiderName: subjectkeystest.Name("r1", "Una"), ClaimID: 7, Round: 2, Wave: 2, Riders: []string{"r4"}})
	pickedUp  = then(riderAssigned, order.OrderPickedUp{OrderID: "o1", RiderID: "r1"})
	delivered = then(pickedUp, order.OrderDelivered{OrderID: "o1", RiderID: "r1", ClaimID: 7})
	cancelled = then(riderAssigned,
		order.OrderCancelled{OrderID: "o1", By: domain.Ops, PaymentID: "p1", RiderID: "r1", ClaimID: 7})
	rejected = then(placed, order.OrderRejected{OrderID: "o1", Reason: "no dough", By: domain.Restaurant})
	expired  = then(placed, order.OrderExpired{OrderID: "o1"})
)

// states are the states in which TestTransitions tries each command.
var states = []domaintest.State[order.Event]{
	{Name: "placed, unpaid", History: placed, Shown: "placed"},
	{Name: "placed, paid", History: paid, Shown: "placed"},
	{Name: "accepted", History: accepted, Shown: "accepted"},
	{Name: "preparing", History: preparing, Shown: "preparing"},
	{Name: "ready_for_rider", History: readyForRider, Shown: "ready_for_rider"},
	{Name: "rider_assigned", History: riderAssigned, Shown: "rider_assigned"},
	{Name: "picked_up", History: pickedUp, Shown: "picked_up"},
	{Name: "delivered", History: delivered, Shown: "delivered"},
	{Name: "cancelled", History: cancelled, Shown: "cancelled"},
	{Name: "rejected", History: rejected, Shown: "rejected"},
	{Name: "expired", History: expired, Shown: "expired"},
}

// TestTransitions is the table of transitions: the outcome of every command in every
// state of an order.
func TestTransitions(t *testing.T) {
	t.Parallel()
	nextWave := order.OfferWave{Round: 2, Wave: 3, Riders: riders("r1", "r3"), TTL: time.Minute, Limit: 50}
	moreRiders := order.OfferWave{Round: 2, Wave: 2, Riders: riders("r5"), TTL: time.Minute, Limit: 50}
	r1Takes := order.Assign{RiderID: "r1", RiderName: subjectkeystest.Name("r1", "Una"), ClaimID: 7, Round: 2, Wave: 2}
	drop := func(by domain.Actor) order.DropOrder { return order.DropOrder{By: by, Reason: "flat tyre"} }
	cancel := func(by domain.Actor) order.Cancel { return order.Cancel{By: by, Reason: "no"} }
	aggregate.Transitions(t, states, []domaintest.Transition{
		{
			Name:    "MarkPaid (pay-order)",
			Actor:   system,
			Command: order.MarkPaid{PaymentID: "p1", AcceptTTL: time.Minute},
			Then: `
			placed, unpaid            | ORDER_PAID → placed
			placed, paid .. cancelled | =
			rejected; expired         | order_closed_for_payment`,
		},
		{Name: "MarkPaid (another payment)", Actor: system, Command: order.MarkPaid{PaymentID: "p2"}, Then: `
			placed, unpaid            | ORDER_PAID → placed
			placed, paid .. cancelled | order_already_paid
			rejected; expired         | order_closed_for_payment`},
		{Name: "payment deadline (owner)", Actor: system, Command: order.Expire{}, Then: `
			placed, unpaid          | ORDER_EXPIRED → expired
			placed, paid .. expired | —`},
		{
			Name:    "payment deadline while its payment is paid",
			Actor:   system,
			Command: order.Expire{PaymentPaid: true},
			Then: `
			placed, unpaid .. expired | —`,
		},
		{Name: "accept-order (its restaurant)", Actor: restaurant, Command: order.AcceptOrder{PrepMinutes: 20}, Then: `
			placed, unpaid        | order_not_paid
			placed, paid          | ORDER_ACCEPTED → accepted
			accepted .. delivered | =
			cancelled .. expired  | !`},
		{Name: "acceptance deadline (owner)", Actor: system, Command: order.CancelUnaccepted{}, Then: `
			placed, unpaid; accepted .. expired | —
			placed, paid                        | ORDER_CANCELLED → cancelled`},
		{Name: "reject (its restaurant)", Actor: restaurant, Command: order.Reject{Reason: "no dough"}, Then: `
			placed, unpaid; placed, paid   | ORDER_REJECTED → rejected
			accepted .. cancelled; expired | !
			rejected                       | =`},
		{Name: "preparing (its restaurant)", Actor: restaurant, Command: order.Prepare{}, Then: `
			placed, unpaid                     | order_not_paid
			placed, paid; cancelled .. expired | !
			accepted                           | ORDER_PREPARING → preparing
			preparing .. delivered             | =`},
		{Name: "ready (its restaurant)", Actor: restaurant, Command: order.Ready{}, Then: `
			placed, unpaid                               | order_not_paid
			placed, paid; accepted; cancelled .. expired | !
			preparing                                    | ORDER_READY_FOR_RIDER → ready_for_rider
			ready_for_rider .. delivered                 | =`},
		{Name: "Offer, the running wave (dispatch)", Actor: system, Command: moreRiders, Then: `
			placed, unpaid .. preparing; rider_assigned .. expired | —
			ready_for_rider                                        | ORDER_OFFERED → ready_for_rider`},
		{Name: "Offer, a wave while another runs", Actor: system, Command: nextWave, Then: `
			placed, unpaid .. expired | —`},
		{Name: "end of wave (owner)", Actor: system, Command: order.EndWave{Round: 2, Wave: 2}, Then: `
			placed, unpaid .. preparing; rider_assigned .. expired | —
			ready_for_rider                                        | OFFERS_EXPIRED → ready_for_rider`},
		{
			Name:    "Exhaust while the wave runs (dispatch)",
			Actor:   system,
			Command: order.Exhaust{Round: 2, LastWave: 2},
			Then: `
			placed, unpaid .. expired | —`,
		},
		{Name: "dispatch, not exhausted (ops)", Actor: ops, Command: order.RequestDispatch{}, Then: `
			placed, unpaid .. expired | !`},
		{Name: "accept: still open to me? (r1)", Actor: r1, Command: order.CheckOffer{RiderID: "r1"}, Then: `
			placed, unpaid .. preparing; rejected; expired | 404
			ready_for_rider .. delivered                   | =
			cancelled                                      | !`},
		{Name: "accept: assign (r1, open offer)", Actor: r1, Command: r1Takes, Then: `
			placed, unpaid .. preparing; rejected; expired | 404
			ready_for_rider                                | RIDER_ASSIGNED → rider_assigned
			rider_assigned .. delivered                    | =
			cancelled                                      | !`},
		{Name: "accept (r4, open offer, then lost)", Actor: r4, Command: order.CheckOffer{RiderID: "r4"}, Then: `
			placed, unpaid .. preparing; rejected; expired | 404
			ready_for_rider                                | =
			rider_assigned .. delivered                    | order_already_assigned
			cancelled                                      | !`},
		{Name: "accept (r2, declined)", Actor: r2, Command: order.CheckOffer{RiderID: "r2"}, Then: `
			placed, unpaid .. preparing; rejected; expired | 404
			ready_for_rider                                | offer_expired
			rider_assigned .. delivered                    | order_already_assigned
			cancelled                                      | !`},
		{Name: "accept (r3, offer ended)", Actor: r3, Command: order.CheckOffer{RiderID: "r3"}, Then: `
			placed, unpaid .. preparing; rejected; expired | 404
			ready_for_rider                                | offer_expired
			rider_assigned .. delivered                    | order_already_assigned
			cancelled                                      | !`},
		{
			Name:    "assign (r3, offer ended)",
			Actor:   r3,
			Command: order.Assign{RiderID: "r3", ClaimID: 9, Round: 2, Wave: 1},
			Then: `
			placed, unpaid .. preparing; rejected; expired | 404
			ready_for_rider                                | offer_expired
			rider_assigned .. delivered                    | order_already_assigned
			cancelled                                      | !`,
		},
		{
			Name:    "assign (r1, of the wave before)",
			Actor:   r1,
			Command: order.Assign{RiderID: "r1", ClaimID: 6, Round: 2, Wave: 1},
			Then: `
			placed, unpaid .. preparing; rejected; expired | 404
			ready_for_rider                                | offer_expired
			rider_assigned .. delivered                    | order_already_assigned
			cancelled                                      | !`,
		},
		{
			Name:    "assign (r1, of the round before)",
			Actor:   r1,
			Command: order.Assign{RiderID: "r1", ClaimID: 6, Round: 1, Wave: 2},
			Then: `
			placed, unpaid .. preparing; rejected; expired | 404
			ready_for_rider                                | offer_expired
			rider_assigned .. delivered                    | order_already_assigned
			cancelled                                      | !`,
		},
		{Name: "accept (r5, never offered)", Actor: r5, Command: order.CheckOffer{RiderID: "r5"}, Then: `
			placed, unpaid .. expired | 404`},
		{Name: "decline (r1, open offer, then its rider)", Actor: r1, Command: order.Decline{RiderID: "r1"}, Then: `
			placed, unpaid .. preparing; rejected; expired | 404
			ready_for_rider                                | OFFER_DECLINED → ready_for_rider
			rider_assigned .. delivered                    | !
			cancelled                                      | =`},
		{Name: "decline (r4, open offer, then lost)", Actor: r4, Command: order.Decline{RiderID: "r4"}, Then: `
			placed, unpaid .. preparing; rejected; expired | 404
			ready_for_rider                                | OFFER_DECLINED → ready_for_rider
			rider_assigned .. cancelled                    | =`},
		{Name: "decline (r2, declined)", Actor: r2, Command: order.Decline{RiderID: "r2"}, Then: `
			placed, unpaid .. preparing; rejected; expired | 404
			ready_for_rider .. cancelled                   | =`},
		{Name: "decline (r3, offer ended)", Actor: r3, Command: order.Decline{RiderID: "r3"}, Then: `
			placed, unpaid .. preparing; rejected; expired | 404
			ready_for_rider .. cancelled                   | =`},
		{Name: "decline (r5, never offered)", Actor: r5, Command: order.Decline{RiderID: "r5"}, Then: `
			placed, unpaid .. expired | 404`},
		{Name: "drop (r1, its rider)", Actor: r1, Command: drop(r1), Then: `
			placed, unpaid .. preparing; rejected; expired | 404
			ready_for_rider                                | 403
			rider_assigned                                 | RIDER_UNASSIGNED → ready_for_rider
			picked_up .. cancelled                         | !`},
		{Name: "drop (r0, who dropped it before)", Actor: r0, Command: drop(r0), Then: `
			placed, unpaid .. preparing; rejected; expired | 404
			ready_for_rider; rider_assigned                | =
			picked_up .. cancelled                         | !`},
		{Name: "drop (r4, a party)", Actor: r4, Command: drop(r4), Then: `
			placed, unpaid .. preparing; rejected; expired | 404
			ready_for_rider .. cancelled                   | 403`},
		{Name: "drop (r5, no party)", Actor: r5, Command: drop(r5), Then: `
			placed, unpaid .. expired | 404`},
		{Name: "drop (ops)", Actor: ops, Command: drop(ops), Then: `
			placed, unpaid .. ready_for_rider; picked_up .. expired | !
			rider_assigned                                          | RIDER_UNASSIGNED → ready_for_rider`},
		{Name: "pick-up, whoever asks", Actor: system, Command: order.PickUpOrder{}, Then: `
			placed, unpaid .. ready_for_rider; cancelled .. expired | !
			rider_assigned                                          | ORDER_PICKED_UP → picked_up
			picked_up; delivered                                    | =`},
		{Name: "pick-up (r1, its rider)", Actor: r1, Command: order.PickUpOrder{}, Then: `
			placed, unpaid .. preparing; rejected; expired | 404
			ready_for_rider                                | 403
			rider_assigned                                 | ORDER_PICKED_UP → picked_up
			picked_up; delivered                           | =
			cancelled                                      | !`},
		{Name: "pick-up (r4, a party)", Actor: r4, Command: order.PickUpOrder{}, Then: `
			placed, unpaid .. preparing; rejected; expired | 404
			ready_for_rider .. cancelled                   | 403`},
		{Name: "pick-up (r0, who dropped it)", Actor: r0, Command: order.PickUpOrder{}, Then: `
			placed, unpaid .. preparing; rejected; expired | 404
			ready_for_rider .. cancelled                   | 403`},
		{Name: "pick-up (r5, no party)", Actor: r5, Command: order.PickUpOrder{}, Then: `
			placed, unpaid .. expired | 404`},
		{Name: "deliver, whoever asks", Actor: system, Command: order.Deliver{}, Then: `
			placed, unpaid .. rider_assigned; cancelled .. expired | !
			picked_up                                              | ORDER_DELIVERED → delivered
			delivered                                              | =`},
		{Name: "deliver (r1, its rider)", Actor: r1, Command: order.Deliver{}, Then: `
			placed, unpaid .. preparing; rejected; expired | 404
			ready_for_rider                                | 403
			rider_assigned; cancelled                      | !
			picked_up                                      | ORDER_DELIVERED → delivered
			delivered                                      | =`},
		{Name: "deliver (r4, a party)", Actor: r4, Command: order.Deliver{}, Then: `
			placed, unpaid .. preparing; rejected; expired | 404
			ready_for_rider .. cancelled                   | 403`},
		{Name: "deliver (r5, no party)", Actor: r5, Command: order.Deliver{}, Then: `
			placed, unpaid .. expired | 404`},
		{Name: "cancel (its customer)", Actor: customer, Command: cancel(customer), Then: `
			placed, unpaid .. accepted                | ORDER_CANCELLED → cancelled
			preparing .. delivered; rejected; expired | !
			cancelled                                 | =`},
		{Name: "cancel (its restaurant)", Actor: restaurant, Command: cancel(restaurant), Then: `
			placed, unpaid .. rider_assigned        | ORDER_CANCELLED → cancelled
			picked_up; delivered; rejected; expired | !
			cancelled                               | =`},
		{Name: "cancel (ops)", Actor: ops, Command: cancel(ops), Then: `
			placed, unpaid .. picked_up  | ORDER_CANCELLED → cancelled
			delivered; rejected; expired | !
			cancelled                    | =`},
		{Name: "cancel (a rider)", Actor: r1, Command: cancel(r1), Then: `
			placed, unpaid .. preparing; rejected; expired | 404
			ready_for_rider .. delivered                   | !
			cancelled                                      | =`},
		{
			Name:    "cancel (another customer)",
			Actor:   domain.Actor{Sub: "c2", Role: domain.Customer},
			Command: order.Cancel{},
			Then: `
			placed, unpaid .. expired | 404`,
		},
		{
			Name:    "ready (another restaurant)",
			Actor:   domain.Actor{Sub: "x", Role: domain.Restaurant, RestaurantID: "res2"},
			Command: order.Ready{},
			Then: `
			placed, unpaid .. expired | 404`,
		},
		{Name: "anything (nobody)", Actor: domain.Actor{}, Command: order.Ready{}, Then: `
			placed, unpaid .. expired | 404`},
	})
}

// TestPaymentRow is the row "payment (its customer)": what the order says to
// the payment that is asked for. A paid order's payment is paid, an ended
// one's may be anything.
func TestPaymentRow(t *testing.T) {
	t.Parallel()
	names := make([]string, len(states))
	for i, state := range states {
		names[i] = state.Name
	}
	outcomes := domaintest.Outcomes(t, "payment (its customer)", names, `
		placed, unpaid            | PAYMENT_REQUESTED
		placed, paid .. delivered | order_already_paid
		cancelled .. expired      | !`)
	for i, state := range states {
		s := given(state.History)
		facts := payment.OrderFacts{Payable: s.Payable(), Ended: s.Status.Ended(), Status: string(s.Status), Amount: s.Amount, Currency: s.Currency}
		e, err := payment.Decide(&payment.State{}, payment.RequestPayment{OrderID: s.ID, GatewayOrderID: "g1", Order: facts}, t0)
		if got := domaintest.Outcome(t, e, err, string(s.Status)); got != outcomes[i] {
			t.Errorf("%s: got %s, want %s", state.Name, got, outcomes[i])
		}
	}
}
