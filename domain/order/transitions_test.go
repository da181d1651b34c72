package order_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"tomato/domain"
	"tomato/domain/domaintest"
	"tomato/domain/order"
	"tomato/domain/payment"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// The cast. r1 is offered the order, wins it, carries it; r2 declined it; r3's
// offer ended with an earlier wave; r4 is offered it and loses; r0 had it and
// gave it back; r5 was never asked.
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

// The histories that lead to the columns.
var (
	placed = []order.Event{order.OrderPlaced{OrderID: "o1", CustomerID: "c1", RestaurantID: "res1",
		Items: []order.Item{{ItemID: "i1", Name: "Dosa", UnitPrice: 150, Quantity: 3}}, Amount: 450, Currency: "INR",
		PickUp:       order.PickUp{Name: "Hut", Location: domain.Point{Lng: 77.5, Lat: 12.9}},
		DeliverTo:    order.DeliverTo{Location: domain.Point{Lng: 77.6, Lat: 13}, Address: "1 Main Road"},
		PaymentDueAt: t0.Add(15 * time.Minute)}}
	paid      = then(placed, order.OrderPaid{OrderID: "o1", PaymentID: "p1", AcceptBy: t0.Add(10 * time.Minute)})
	accepted  = then(paid, order.OrderAccepted{OrderID: "o1"})
	preparing = then(accepted, order.OrderPreparing{OrderID: "o1"})
	justReady = then(preparing, order.OrderReadyForRider{OrderID: "o1", RestaurantID: "res1", Round: 1})
	hadByR0   = then(justReady,
		order.OrderOffered{OrderID: "o1", Round: 1, Wave: 1, Riders: riders("r0"), ExpiresAt: t0.Add(time.Minute)},
		order.RiderAssigned{OrderID: "o1", RiderID: "r0", RiderName: "Nil", ClaimID: 3, Round: 1, Wave: 1})
	droppedByR0  = then(hadByR0, order.RiderUnassigned{OrderID: "o1", RiderID: "r0", ClaimID: 3, By: domain.Rider, Round: 2})
	droppedByOps = then(hadByR0, order.RiderUnassigned{OrderID: "o1", RiderID: "r0", ClaimID: 3, By: domain.Ops, Round: 2})
	betweenWaves = then(droppedByR0,
		order.OrderOffered{OrderID: "o1", Round: 2, Wave: 1, Riders: riders("r1", "r2", "r3"), ExpiresAt: t0.Add(time.Minute)},
		order.OffersExpired{OrderID: "o1", Round: 2, Wave: 1, Riders: []string{"r1", "r2", "r3"}})
	readyForRider = then(betweenWaves,
		order.OrderOffered{OrderID: "o1", Round: 2, Wave: 2, Riders: riders("r1", "r2", "r4"), ExpiresAt: t0.Add(2 * time.Minute)},
		order.OfferDeclined{OrderID: "o1", RiderID: "r2", Round: 2, Wave: 2})
	lastWaveOver  = then(readyForRider, order.OffersExpired{OrderID: "o1", Round: 2, Wave: 2, Riders: []string{"r1", "r4"}})
	exhausted     = then(lastWaveOver, order.DispatchExhausted{OrderID: "o1", Round: 2, Waves: 2})
	riderAssigned = then(readyForRider, order.RiderAssigned{OrderID: "o1", RiderID: "r1", RiderName: "Una", ClaimID: 7, Round: 2, Wave: 2, Riders: []string{"r4"}})
	pickedUp      = then(riderAssigned, order.OrderPickedUp{OrderID: "o1", RiderID: "r1"})
	delivered     = then(pickedUp, order.OrderDelivered{OrderID: "o1", RiderID: "r1", ClaimID: 7})
	cancelled     = then(riderAssigned, order.OrderCancelled{OrderID: "o1", By: domain.Ops, PaymentID: "p1", RiderID: "r1", ClaimID: 7})
	rejected      = then(placed, order.OrderRejected{OrderID: "o1", Reason: "no dough", By: domain.Restaurant})
	expired       = then(placed, order.OrderExpired{OrderID: "o1"})
)

func then(history []order.Event, events ...order.Event) []order.Event {
	return append(append([]order.Event{}, history...), events...)
}

func given(history []order.Event) order.State {
	var s order.State
	for i, e := range history {
		s = order.Evolve(s, e, t0.Add(time.Duration(i)*time.Second))
	}
	return s
}

var columns = []struct {
	name    string
	history []order.Event
}{
	{"placed, unpaid", placed}, {"placed, paid", paid}, {"accepted", accepted}, {"preparing", preparing},
	{"ready_for_rider", readyForRider}, {"rider_assigned", riderAssigned}, {"picked_up", pickedUp},
	{"delivered", delivered}, {"cancelled", cancelled}, {"rejected", rejected}, {"expired", expired},
}

// TestTransitions is the document's table. A cell is what the command makes of
// the column's history: an event and the status after it, = (already so),
// — (dropped: no event), ! (409 invalid_transition), 404, 403, or a code.
func TestTransitions(t *testing.T) {
	t.Parallel()
	nextWave := order.OfferWave{Round: 2, Wave: 3, Riders: riders("r1", "r3"), TTL: time.Minute, Limit: 50}
	moreRiders := order.OfferWave{Round: 2, Wave: 2, Riders: riders("r5"), TTL: time.Minute, Limit: 50}
	r1Takes := order.Assign{RiderID: "r1", RiderName: "Una", ClaimID: 7, Round: 2, Wave: 2}
	drop := func(by domain.Actor) order.DropOrder { return order.DropOrder{By: by, Reason: "flat tyre"} }
	cancel := func(by domain.Actor) order.Cancel { return order.Cancel{By: by, Reason: "no"} }
	for _, row := range []struct {
		name    string
		actor   domain.Actor
		command domain.Command
		cells   string
	}{
		// command (actor)                                                                placed, unpaid | placed, paid | accepted | preparing | ready_for_rider | rider_assigned | picked_up | delivered | cancelled | rejected | expired
		{"MarkPaid (pay-order)", system, order.MarkPaid{PaymentID: "p1", AcceptTTL: time.Minute}, "ORDER_PAID → placed | = | = | = | = | = | = | = | = | order_closed_for_payment | order_closed_for_payment"},
		{"MarkPaid (another payment)", system, order.MarkPaid{PaymentID: "p2"}, "ORDER_PAID → placed | order_already_paid | order_already_paid | order_already_paid | order_already_paid | order_already_paid | order_already_paid | order_already_paid | order_already_paid | order_closed_for_payment | order_closed_for_payment"},
		{"payment deadline (owner)", system, order.Expire{}, "ORDER_EXPIRED → expired | — | — | — | — | — | — | — | — | — | —"},
		{"payment deadline while its payment is paid", system, order.Expire{PaymentPaid: true}, "— | — | — | — | — | — | — | — | — | — | —"},
		{"accept-order (its restaurant)", restaurant, order.AcceptOrder{PrepMinutes: 20}, "order_not_paid | ORDER_ACCEPTED → accepted | = | = | = | = | = | = | ! | ! | !"},
		{"acceptance deadline (owner)", system, order.CancelUnaccepted{}, "— | ORDER_CANCELLED → cancelled | — | — | — | — | — | — | — | — | —"},
		{"reject (its restaurant)", restaurant, order.Reject{Reason: "no dough"}, "ORDER_REJECTED → rejected | ORDER_REJECTED → rejected | ! | ! | ! | ! | ! | ! | ! | = | !"},
		{"preparing (its restaurant)", restaurant, order.Prepare{}, "order_not_paid | ! | ORDER_PREPARING → preparing | = | = | = | = | = | ! | ! | !"},
		{"ready (its restaurant)", restaurant, order.Ready{}, "order_not_paid | ! | ! | ORDER_READY_FOR_RIDER → ready_for_rider | = | = | = | = | ! | ! | !"},
		{"Offer, the running wave (dispatch)", system, moreRiders, "— | — | — | — | ORDER_OFFERED → ready_for_rider | — | — | — | — | — | —"},
		{"Offer, a wave while another runs", system, nextWave, "— | — | — | — | — | — | — | — | — | — | —"},
		{"end of wave (owner)", system, order.EndWave{Round: 2, Wave: 2}, "— | — | — | — | OFFERS_EXPIRED → ready_for_rider | — | — | — | — | — | —"},
		{"Exhaust while the wave runs (dispatch)", system, order.Exhaust{Round: 2, LastWave: 2}, "— | — | — | — | — | — | — | — | — | — | —"},
		{"dispatch, not exhausted (ops)", ops, order.RequestDispatch{}, "! | ! | ! | ! | ! | ! | ! | ! | ! | ! | !"},
		{"accept: still open to me? (r1)", r1, order.CheckOffer{RiderID: "r1"}, "404 | 404 | 404 | 404 | = | = | = | = | ! | 404 | 404"},
		{"accept: assign (r1, open offer)", r1, r1Takes, "404 | 404 | 404 | 404 | RIDER_ASSIGNED → rider_assigned | = | = | = | ! | 404 | 404"},
		{"accept (r4, open offer, then lost)", r4, order.CheckOffer{RiderID: "r4"}, "404 | 404 | 404 | 404 | = | order_already_assigned | order_already_assigned | order_already_assigned | ! | 404 | 404"},
		{"accept (r2, declined)", r2, order.CheckOffer{RiderID: "r2"}, "404 | 404 | 404 | 404 | offer_expired | order_already_assigned | order_already_assigned | order_already_assigned | ! | 404 | 404"},
		{"accept (r3, offer ended)", r3, order.CheckOffer{RiderID: "r3"}, "404 | 404 | 404 | 404 | offer_expired | order_already_assigned | order_already_assigned | order_already_assigned | ! | 404 | 404"},
		{"assign (r3, offer ended)", r3, order.Assign{RiderID: "r3", ClaimID: 9, Round: 2, Wave: 1}, "404 | 404 | 404 | 404 | offer_expired | order_already_assigned | order_already_assigned | order_already_assigned | ! | 404 | 404"},
		{"assign (r1, of the wave before)", r1, order.Assign{RiderID: "r1", ClaimID: 6, Round: 2, Wave: 1}, "404 | 404 | 404 | 404 | offer_expired | order_already_assigned | order_already_assigned | order_already_assigned | ! | 404 | 404"},
		{"assign (r1, of the round before)", r1, order.Assign{RiderID: "r1", ClaimID: 6, Round: 1, Wave: 2}, "404 | 404 | 404 | 404 | offer_expired | order_already_assigned | order_already_assigned | order_already_assigned | ! | 404 | 404"},
		{"accept (r5, never offered)", r5, order.CheckOffer{RiderID: "r5"}, "404 | 404 | 404 | 404 | 404 | 404 | 404 | 404 | 404 | 404 | 404"},
		{"decline (r1, open offer, then its rider)", r1, order.Decline{RiderID: "r1"}, "404 | 404 | 404 | 404 | OFFER_DECLINED → ready_for_rider | ! | ! | ! | = | 404 | 404"},
		{"decline (r4, open offer, then lost)", r4, order.Decline{RiderID: "r4"}, "404 | 404 | 404 | 404 | OFFER_DECLINED → ready_for_rider | = | = | = | = | 404 | 404"},
		{"decline (r2, declined)", r2, order.Decline{RiderID: "r2"}, "404 | 404 | 404 | 404 | = | = | = | = | = | 404 | 404"},
		{"decline (r3, offer ended)", r3, order.Decline{RiderID: "r3"}, "404 | 404 | 404 | 404 | = | = | = | = | = | 404 | 404"},
		{"decline (r5, never offered)", r5, order.Decline{RiderID: "r5"}, "404 | 404 | 404 | 404 | 404 | 404 | 404 | 404 | 404 | 404 | 404"},
		{"drop (r1, its rider)", r1, drop(r1), "404 | 404 | 404 | 404 | 403 | RIDER_UNASSIGNED → ready_for_rider | ! | ! | ! | 404 | 404"},
		{"drop (r0, who dropped it before)", r0, drop(r0), "404 | 404 | 404 | 404 | = | = | ! | ! | ! | 404 | 404"},
		{"drop (r4, a party)", r4, drop(r4), "404 | 404 | 404 | 404 | 403 | 403 | 403 | 403 | 403 | 404 | 404"},
		{"drop (r5, no party)", r5, drop(r5), "404 | 404 | 404 | 404 | 404 | 404 | 404 | 404 | 404 | 404 | 404"},
		{"drop (ops)", ops, drop(ops), "! | ! | ! | ! | ! | RIDER_UNASSIGNED → ready_for_rider | ! | ! | ! | ! | !"},
		{"pick-up, whoever asks", system, order.PickUpOrder{}, "! | ! | ! | ! | ! | ORDER_PICKED_UP → picked_up | = | = | ! | ! | !"},
		{"pick-up (r1, its rider)", r1, order.PickUpOrder{}, "404 | 404 | 404 | 404 | 403 | ORDER_PICKED_UP → picked_up | = | = | ! | 404 | 404"},
		{"pick-up (r4, a party)", r4, order.PickUpOrder{}, "404 | 404 | 404 | 404 | 403 | 403 | 403 | 403 | 403 | 404 | 404"},
		{"pick-up (r0, who dropped it)", r0, order.PickUpOrder{}, "404 | 404 | 404 | 404 | 403 | 403 | 403 | 403 | 403 | 404 | 404"},
		{"pick-up (r5, no party)", r5, order.PickUpOrder{}, "404 | 404 | 404 | 404 | 404 | 404 | 404 | 404 | 404 | 404 | 404"},
		{"deliver, whoever asks", system, order.Deliver{}, "! | ! | ! | ! | ! | ! | ORDER_DELIVERED → delivered | = | ! | ! | !"},
		{"deliver (r1, its rider)", r1, order.Deliver{}, "404 | 404 | 404 | 404 | 403 | ! | ORDER_DELIVERED → delivered | = | ! | 404 | 404"},
		{"deliver (r4, a party)", r4, order.Deliver{}, "404 | 404 | 404 | 404 | 403 | 403 | 403 | 403 | 403 | 404 | 404"},
		{"deliver (r5, no party)", r5, order.Deliver{}, "404 | 404 | 404 | 404 | 404 | 404 | 404 | 404 | 404 | 404 | 404"},
		{"cancel (its customer)", customer, cancel(customer), "ORDER_CANCELLED → cancelled | ORDER_CANCELLED → cancelled | ORDER_CANCELLED → cancelled | ! | ! | ! | ! | ! | = | ! | !"},
		{"cancel (its restaurant)", restaurant, cancel(restaurant), "ORDER_CANCELLED → cancelled | ORDER_CANCELLED → cancelled | ORDER_CANCELLED → cancelled | ORDER_CANCELLED → cancelled | ORDER_CANCELLED → cancelled | ORDER_CANCELLED → cancelled | ! | ! | = | ! | !"},
		{"cancel (ops)", ops, cancel(ops), "ORDER_CANCELLED → cancelled | ORDER_CANCELLED → cancelled | ORDER_CANCELLED → cancelled | ORDER_CANCELLED → cancelled | ORDER_CANCELLED → cancelled | ORDER_CANCELLED → cancelled | ORDER_CANCELLED → cancelled | ! | = | ! | !"},
		{"cancel (a rider)", r1, cancel(r1), "404 | 404 | 404 | 404 | ! | ! | ! | ! | = | 404 | 404"},
		{"cancel (another customer)", domain.Actor{Sub: "c2", Role: domain.Customer}, order.Cancel{}, "404 | 404 | 404 | 404 | 404 | 404 | 404 | 404 | 404 | 404 | 404"},
		{"ready (another restaurant)", domain.Actor{Sub: "x", Role: domain.Restaurant, RestaurantID: "res2"}, order.Ready{}, "404 | 404 | 404 | 404 | 404 | 404 | 404 | 404 | 404 | 404 | 404"},
		{"anything (nobody)", domain.Actor{}, order.Ready{}, "404 | 404 | 404 | 404 | 404 | 404 | 404 | 404 | 404 | 404 | 404"},
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
				if got, want := when(t, s, row.actor, row.command), cells[i]; got != want && (want != "—" || got != "=") {
					t.Errorf("got %s, want %s", got, want)
				}
			})
		}
	}
}

// when is the outcome of the command in the words of the table.
func when(t *testing.T, s order.State, a domain.Actor, c domain.Command) string {
	t.Helper()
	if err := order.Authorize(&s, c, a); err != nil {
		return domaintest.Outcome(t, nil, err, "")
	}
	e, err := order.Decide(&s, c, t0)
	out := domaintest.Outcome(t, e, err, string(s.Status))
	if e == nil {
		return out
	}
	return fmt.Sprintf("%s → %s", out, order.Evolve(s, e, t0).Status)
}

// TestPaymentRow is the row "payment (its customer)": what the order says to
// the payment that is asked for. A paid order's payment is paid, an ended
// one's may be anything.
func TestPaymentRow(t *testing.T) {
	t.Parallel()
	cells := domaintest.Columns("PAYMENT_REQUESTED | order_already_paid | order_already_paid | order_already_paid | order_already_paid | order_already_paid | order_already_paid | order_already_paid | ! | ! | !")
	for i, column := range columns {
		s := given(column.history)
		e, err := payment.Decide(&payment.State{}, payment.RequestPayment{OrderID: s.ID, GatewayOrderID: "g1", Order: payment.OrderFacts{
			Payable: s.Payable(), Ended: s.Status.Ended(), Status: string(s.Status), Amount: s.Amount, Currency: s.Currency}}, t0)
		if got := domaintest.Outcome(t, e, err, string(s.Status)); got != cells[i] {
			t.Errorf("%s: got %s, want %s", column.name, got, cells[i])
		}
	}
}

// TestEvents is what stands in a cell's event, and the cells that ask for more
// of the history than their column says.
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
		return order.OrderOffered{OrderID: "o1", Round: round, Wave: wave, Riders: append([]order.OfferedRider{}, rr...), Location: at, ExpiresAt: expires, Ctx: ctx(order.StatusReadyForRider)}
	}
	r1AndR4Asked := then(betweenWaves, order.OrderOffered{OrderID: "o1", Round: 2, Wave: 2, Riders: riders("r1", "r4"), ExpiresAt: t0.Add(2 * time.Minute)})
	for _, c := range []struct {
		name  string
		given []order.Event
		when  domain.Command
		then  order.Event // nil: =
		code  domain.Code
	}{
		{"accepted, ready expected", paid, order.AcceptOrder{PrepMinutes: 20},
			order.OrderAccepted{OrderID: "o1", PrepMinutes: 20, ReadyAt: t0.Add(20 * time.Minute), Ctx: ctx(order.StatusAccepted)}, ""},
		{"accepted, no time said", paid, order.AcceptOrder{}, order.OrderAccepted{OrderID: "o1", Ctx: ctx(order.StatusAccepted)}, ""},
		{"rejected unpaid: nothing to refund", placed, order.Reject{Reason: "no dough"},
			order.OrderRejected{OrderID: "o1", Reason: "no dough", By: domain.Restaurant, Ctx: ctx(order.StatusRejected)}, ""},
		{"rejected paid: names the money", paid, order.Reject{Reason: "no dough"},
			order.OrderRejected{OrderID: "o1", Reason: "no dough", By: domain.Restaurant, PaymentID: "p1", Ctx: ctx(order.StatusRejected)}, ""},
		{"not accepted in time", paid, order.CancelUnaccepted{},
			order.OrderCancelled{OrderID: "o1", Reason: "not_accepted_in_time", By: domain.System, PaymentID: "p1", Riders: []string{}, Ctx: ctx(order.StatusCancelled)}, ""},
		{"ready begins round 1", preparing, order.Ready{},
			order.OrderReadyForRider{OrderID: "o1", RestaurantID: "res1", Location: at, Round: 1, Ctx: ctx(order.StatusReadyForRider)}, ""},

		{"first wave", justReady, offer(1, 1, 50, "r1", "r2"), offered(1, 1, t0.Add(time.Minute), riders("r1", "r2")...), ""},
		{"a wave that found nobody is skipped", justReady, offer(1, 2, 50, "r1"), offered(1, 2, t0.Add(time.Minute), riders("r1")...), ""},
		{"the last wave is recorded with nobody", betweenWaves, offer(2, 3, 50), offered(2, 3, t0.Add(time.Minute)), ""},
		{"a wave holds no more than the limit", justReady, offer(1, 1, 2, "r1", "r2", "r3"), offered(1, 1, t0.Add(time.Minute), riders("r1", "r2")...), ""},
		{"nobody twice in a wave", justReady, offer(1, 1, 50, "r1", "r1"), offered(1, 1, t0.Add(time.Minute), riders("r1")...), ""},
		{"who ignored an offer is asked again, who dropped is not", betweenWaves, offer(2, 2, 50, "r0", "r1"), offered(2, 2, t0.Add(time.Minute), riders("r0", "r1")[1]), ""},
		{"who declined is not asked again", lastWaveOver, offer(2, 3, 50, "r2", "r3"), offered(2, 3, t0.Add(time.Minute), riders("r2", "r3")[1]), ""},
		{"who declined is asked again in the next round", then(exhausted, order.DispatchRequested{OrderID: "o1", Round: 3}), offer(3, 1, 50, "r2"), offered(3, 1, t0.Add(time.Minute), riders("r2")...), ""},
		{"who dropped is asked again in the next round", then(exhausted, order.DispatchRequested{OrderID: "o1", Round: 3}), offer(3, 1, 50, "r0"), offered(3, 1, t0.Add(time.Minute), riders("r0")...), ""},
		{"the running wave takes whom it has not", readyForRider, offer(2, 2, 50, "r0", "r1", "r2", "r3", "r5"),
			offered(2, 2, t0.Add(2*time.Minute), riders("r0", "r1", "r2", "r3", "r5")[3:]...), ""},
		{"the running wave up to its limit", readyForRider, offer(2, 2, 4, "r3", "r5"), offered(2, 2, t0.Add(2*time.Minute), riders("r3")...), ""},
		{"the running wave is full", readyForRider, offer(2, 2, 3, "r3", "r5"), nil, ""},
		{"the running wave knows them all", readyForRider, offer(2, 2, 50, "r1", "r4"), nil, ""},
		{"a wave that is over", readyForRider, offer(2, 1, 50, "r5"), nil, ""},
		{"a wave that was ended", lastWaveOver, offer(2, 2, 50, "r5"), nil, ""},
		{"a wave of another round", betweenWaves, offer(1, 2, 50, "r5"), nil, ""},
		{"a wave of a round to come", betweenWaves, offer(3, 1, 50, "r5"), nil, ""},
		{"no wave after exhaustion", exhausted, offer(2, 3, 50, "r5"), nil, ""},

		{"end of wave names whose offer ends", readyForRider, order.EndWave{Round: 2, Wave: 2},
			order.OffersExpired{OrderID: "o1", Round: 2, Wave: 2, Riders: []string{"r1", "r4"}, Location: at, Ctx: ctx(order.StatusReadyForRider)}, ""},
		{"end of another wave", readyForRider, order.EndWave{Round: 2, Wave: 1}, nil, ""},
		{"end of a wave of another round", readyForRider, order.EndWave{Round: 1, Wave: 2}, nil, ""},
		{"the wave is over already", lastWaveOver, order.EndWave{Round: 2, Wave: 2}, nil, ""},
		{"exhaust after the last wave", lastWaveOver, order.Exhaust{Round: 2, LastWave: 2},
			order.DispatchExhausted{OrderID: "o1", Round: 2, Waves: 2, Ctx: ctx(order.StatusReadyForRider)}, ""},
		{"exhaust before the last wave", lastWaveOver, order.Exhaust{Round: 2, LastWave: 3}, nil, ""},
		{"exhaust of another round", lastWaveOver, order.Exhaust{Round: 1, LastWave: 2}, nil, ""},
		{"exhausted already", exhausted, order.Exhaust{Round: 2, LastWave: 2}, nil, ""},
		{"dispatch after exhaustion", exhausted, order.RequestDispatch{},
			order.DispatchRequested{OrderID: "o1", Round: 3, Location: at, Ctx: ctx(order.StatusReadyForRider)}, ""},

		{"assigned: the others' offers end", readyForRider, order.Assign{RiderID: "r1", RiderName: "Una", ClaimID: 7, Round: 2, Wave: 2},
			order.RiderAssigned{OrderID: "o1", RiderID: "r1", RiderName: "Una", ClaimID: 7, Round: 2, Wave: 2, Riders: []string{"r4"}, Ctx: ctx(order.StatusRiderAssigned, "r1")}, ""},
		{"assigned already, under another claim", riderAssigned, order.Assign{RiderID: "r1", ClaimID: 8, Round: 2, Wave: 2}, nil, order.CodeAlreadyAssigned},
		{"a dropped assignment is not taken up again", droppedByR0, order.Assign{RiderID: "r0", ClaimID: 3, Round: 1, Wave: 1}, nil, order.CodeOfferExpired},
		{"no offers after the wave", lastWaveOver, order.CheckOffer{RiderID: "r1"}, nil, order.CodeOfferExpired},
		{"declined, others remain", r1AndR4Asked, order.Decline{RiderID: "r1"},
			order.OfferDeclined{OrderID: "o1", RiderID: "r1", Round: 2, Wave: 2, Location: at, Ctx: ctx(order.StatusReadyForRider)}, ""},
		{"declined by the last: the wave is over", then(r1AndR4Asked, order.OfferDeclined{OrderID: "o1", RiderID: "r1", Round: 2, Wave: 2}), order.Decline{RiderID: "r4"},
			order.OfferDeclined{OrderID: "o1", RiderID: "r4", Round: 2, Wave: 2, WaveOver: true, Location: at, Ctx: ctx(order.StatusReadyForRider)}, ""},

		{"dropped by its rider", riderAssigned, order.DropOrder{By: r1, Reason: "flat tyre"},
			order.RiderUnassigned{OrderID: "o1", RiderID: "r1", ClaimID: 7, Reason: "flat tyre", By: domain.Rider, Round: 3, Location: at, Ctx: ctx(order.StatusReadyForRider, "r1")}, ""},
		{"dropped by ops, who did so already", droppedByOps, order.DropOrder{By: ops}, nil, ""},
		{"dropped by ops: also so to the rider", droppedByOps, order.DropOrder{By: r0}, nil, ""},
		{"dropped by the rider: not so to ops", droppedByR0, order.DropOrder{By: ops}, nil, domain.InvalidTransition},
		{"dropped by ops again, from the next rider",
			then(droppedByOps, order.OrderOffered{OrderID: "o1", Round: 2, Wave: 1, Riders: riders("r1")}, order.RiderAssigned{OrderID: "o1", RiderID: "r1", ClaimID: 8, Round: 2, Wave: 1}),
			order.DropOrder{By: ops, Reason: "lost"},
			order.RiderUnassigned{OrderID: "o1", RiderID: "r1", ClaimID: 8, Reason: "lost", By: domain.Ops, Round: 3, Location: at, Ctx: ctx(order.StatusReadyForRider, "r1")}, ""},
		{"dropped again by the rider who got it again",
			then(exhausted, order.DispatchRequested{OrderID: "o1", Round: 3}, order.OrderOffered{OrderID: "o1", Round: 3, Wave: 1, Riders: riders("r0")}, order.RiderAssigned{OrderID: "o1", RiderID: "r0", ClaimID: 9, Round: 3, Wave: 1}),
			order.DropOrder{By: r0, Reason: "again"},
			order.RiderUnassigned{OrderID: "o1", RiderID: "r0", ClaimID: 9, Reason: "again", By: domain.Rider, Round: 4, Location: at, Ctx: ctx(order.StatusReadyForRider, "r0")}, ""},

		{"picked up", riderAssigned, order.PickUpOrder{}, order.OrderPickedUp{OrderID: "o1", RiderID: "r1", Ctx: ctx(order.StatusPickedUp, "r1")}, ""},
		{"delivered: the claim that ends", pickedUp, order.Deliver{}, order.OrderDelivered{OrderID: "o1", RiderID: "r1", ClaimID: 7, Ctx: ctx(order.StatusDelivered, "r1")}, ""},
		{"cancelled unpaid", placed, order.Cancel{By: customer, Reason: "late"},
			order.OrderCancelled{OrderID: "o1", Reason: "late", By: domain.Customer, Riders: []string{}, Ctx: ctx(order.StatusCancelled)}, ""},
		{"cancelled: offers withdrawn", readyForRider, order.Cancel{By: restaurant, Reason: "fire"},
			order.OrderCancelled{OrderID: "o1", Reason: "fire", By: domain.Restaurant, PaymentID: "p1", Riders: []string{"r1", "r4"}, Ctx: ctx(order.StatusCancelled)}, ""},
		{"cancelled: rider released", pickedUp, order.Cancel{By: ops, Reason: "crash"},
			order.OrderCancelled{OrderID: "o1", Reason: "crash", By: domain.Ops, PaymentID: "p1", RiderID: "r1", ClaimID: 7, Riders: []string{}, Ctx: ctx(order.StatusCancelled, "r1")}, ""},
		{"cancelled while offered: the offer is gone", then(readyForRider, order.OrderCancelled{OrderID: "o1", By: domain.Ops}), order.CheckOffer{RiderID: "r1"}, nil, domain.InvalidTransition},
		{"paid by the payment that paid it, though cancelled", cancelled, order.MarkPaid{PaymentID: "p1"}, nil, ""},
		{"nothing happens to what was never placed", nil, order.Ready{}, nil, domain.NotFound},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := given(c.given)
			e, err := order.Decide(&s, c.when, t0)
			if domain.RefusedWith(err) != c.code || err != nil && c.code == "" {
				t.Fatalf("got error %v, want %q", err, c.code)
			}
			if !reflect.DeepEqual(e, c.then) {
				t.Errorf("got\n%#v\nwant\n%#v", e, c.then)
			}
		})
	}
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

// TestPaidCarriesOrder: the restaurant's first sight of the order is that event.
func TestPaidCarriesOrder(t *testing.T) {
	t.Parallel()
	s := given(placed)
	e, err := order.Decide(&s, order.MarkPaid{PaymentID: "p1", AcceptTTL: 10 * time.Minute}, t0)
	if err != nil {
		t.Fatal(err)
	}
	after := order.Evolve(s, e, t0)
	if got, want := e.(order.OrderPaid).Order, order.NewView(&after, order.PaymentPaid); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	if after.Version != 2 || e.(order.OrderPaid).Order.Version != 2 || !after.AcceptBy.Equal(t0.Add(10*time.Minute)) {
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

// TestClosedAt: an order that closed knows since when, one under way does not.
func TestClosedAt(t *testing.T) {
	t.Parallel()
	for _, c := range columns {
		s := given(c.history)
		if want := s.Status == order.StatusDelivered || s.Status == order.StatusCancelled || s.Status == order.StatusRejected || s.Status == order.StatusExpired; s.Status.Closed() != want || s.ClosedAt.IsZero() == want {
			t.Errorf("%s: closed %v at %v", c.name, s.Status.Closed(), s.ClosedAt)
		}
	}
}
