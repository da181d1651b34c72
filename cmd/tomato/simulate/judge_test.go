package simulate

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"tomato/domain"
)

// story is one order: what the ledger says about it, and what the queries say about
// it. The two agree until a test changes one of them.
type story struct {
	ledger               *ledger
	entry                *orderEntry
	queried              queried
	customer, restaurant *party
	riders               []*party
	t0                   time.Time
}

// delivered returns the story of an order that is offered to three riders. The first
// rider takes it and drops it. Then it is offered to the other two, and the second
// rider delivers it.
func delivered(t *testing.T) *story {
	t.Helper()
	s := &story{ledger: newLedger(), t0: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	s.customer = s.ledger.addParty(domain.Customer, "c")
	s.restaurant = s.ledger.addParty(domain.Restaurant, "k")
	for _, id := range []string{"r0", "r1", "r2"} {
		s.riders = append(s.riders, s.ledger.addParty(domain.Rider, id))
	}
	s.entry = s.ledger.add(plan{}, s.customer, s.restaurant, domain.Point{})
	s.ledger.placed(s.entry, orderView{OrderID: "o1", Amount: 500, Currency: "INR"})
	s.entry.paymentRequested = true
	s.entry.captures = []capture{{"p1", 500}}

	offered := func(ids ...string) object {
		var riders []object
		for _, id := range ids {
			riders = append(riders, object{"riderId": id})
		}
		return object{"riders": riders}
	}
	s.append(t, "ORDER_PLACED", nil)
	s.ack("place", "", "placed", "pending")
	s.append(t, "ORDER_PAID", object{"paymentId": "p1"})
	s.tell(s.restaurant, kindNew, 0, "")
	s.update(s.customer, s.restaurant)
	for _, x := range [][3]string{{"ORDER_ACCEPTED", "accept-order", "accepted"}, {"ORDER_PREPARING", "preparing", "preparing"}, {"ORDER_READY_FOR_RIDER", "ready", "ready_for_rider"}} {
		s.append(t, x[0], nil)
		s.ack(x[1], "", x[2], "paid")
		s.update(s.customer, s.restaurant)
	}
	s.append(t, "ORDER_OFFERED", offered("r0", "r1", "r2", "of another run"))
	for _, p := range s.riders {
		s.tell(p, kindAvailable, 0, "")
	}
	s.append(t, "RIDER_ASSIGNED", object{"riderId": "r0", "riders": []string{"r1", "r2"}})
	s.ack("accept", "r0", "rider_assigned", "paid")
	s.update(s.customer, s.restaurant, s.riders[0])
	s.tell(s.riders[1], kindTaken, 0, "")
	s.tell(s.riders[2], kindTaken, 0, "")
	s.tell(s.customer, kindRiderAssigned, 0, "r0")
	s.tell(s.restaurant, kindRiderAssigned, 0, "r0")
	s.append(t, "RIDER_UNASSIGNED", object{"riderId": "r0"})
	s.ack("drop", "r0", "ready_for_rider", "paid")
	s.update(s.customer, s.restaurant, s.riders[0])
	s.append(t, "ORDER_OFFERED", offered("r1", "r2"))
	s.tell(s.riders[1], kindAvailable, 0, "")
	s.tell(s.riders[2], kindAvailable, 0, "")
	s.append(t, "OFFER_DECLINED", object{"riderId": "r2"})
	s.append(t, "RIDER_ASSIGNED", object{"riderId": "r1"})
	s.ack("accept", "r1", "rider_assigned", "paid")
	s.update(s.customer, s.restaurant, s.riders[1])
	s.tell(s.customer, kindRiderAssigned, 0, "r1")
	s.tell(s.restaurant, kindRiderAssigned, 0, "r1")
	for _, x := range [][3]string{{"ORDER_PICKED_UP", "pick-up", "picked_up"}, {"ORDER_DELIVERED", "deliver", "delivered"}} {
		s.append(t, x[0], object{"riderId": "r1"})
		s.ack(x[1], "r1", x[2], "paid")
		s.update(s.customer, s.restaurant, s.riders[1])
	}
	s.queried.order = orderView{OrderID: "o1", Version: len(s.queried.events), Status: "delivered", PaymentStatus: "paid",
		Amount: 500, Currency: "INR", CustomerID: "c", RestaurantID: "k"}
	s.payment(t, `{"payments":[{"paymentId":"p1","amount":500}]}`)
	return s
}

func (s *story) append(t *testing.T, typ string, data object) {
	t.Helper()
	b, err := json.Marshal(data)
	if err != nil {
		t.Fatal(err)
	}
	n := len(s.queried.events)
	s.queried.events = append(s.queried.events, eventView{typ, n + 1, s.t0.Add(time.Duration(n) * time.Second), b})
}

func (s *story) ack(command, rider, status, pay string) {
	s.entry.acks = append(s.entry.acks, ack{command, rider, len(s.queried.events), status, pay})
}

func (s *story) tell(p *party, k messageKind, version int, tag string) {
	s.entry.receipts = append(s.entry.receipts, receipt{party: p.number, kind: k, version: int32(version), tag: s.ledger.tag(tag)})
}

func (s *story) update(to ...*party) {
	for _, p := range to {
		s.tell(p, kindUpdate, len(s.queried.events), "")
	}
}

func (s *story) payment(t *testing.T, text string) {
	t.Helper()
	s.queried.payment = &paymentView{}
	if err := json.Unmarshal([]byte(text), s.queried.payment); err != nil {
		t.Fatal(err)
	}
}

func (s *story) judge() verdict { return judge(s.ledger, s.entry, s.queried, s.ledger.rider, s.t0) }

// lose removes the party's first message of the kind from the ledger.
func (s *story) lose(p *party, k messageKind) {
	i := slices.IndexFunc(s.entry.receipts, func(m receipt) bool { return m.party == p.number && m.kind == k })
	s.entry.receipts = slices.Delete(s.entry.receipts, i, i+1)
}

// again enters the party's first message of the kind a second time.
func (s *story) again(p *party, k messageKind) {
	i := slices.IndexFunc(s.entry.receipts, func(m receipt) bool { return m.party == p.number && m.kind == k })
	s.entry.receipts = append(s.entry.receipts, s.entry.receipts[i])
}

func TestAnHonestHistoryIsClean(t *testing.T) {
	t.Parallel()
	v := delivered(t).judge()
	if len(v.faults) > 0 || len(v.waiting) > 0 {
		t.Errorf("faults %v, waiting %v", v.faults, v.waiting)
	}
	if len(v.assignments) != 2 || v.assignments[0].rider != "r0" || v.assignments[1].rider != "r1" || v.assignments[1].to.IsZero() {
		t.Errorf("spans %v", v.assignments)
	}
}

func TestWhatWasSpoiledIsFound(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		spoil   func(t *testing.T, s *story)
		kind    string
		text    string // part of the detail
		waiting bool   // the fault is in waiting, because what is missing may still come
	}{
		"acknowledged, not in the events": {func(_ *testing.T, s *story) {
			s.entry.acks = append(s.entry.acks, ack{command: "cancel", version: 99, status: "cancelled"})
		}, faultLostCommand, "cancel was acknowledged with version 99", false},
		"acknowledged with another status": {func(_ *testing.T, s *story) { s.entry.acks[1].status = "rejected" }, faultLostCommand, "as rejected", false},
		"acknowledged to another rider":    {func(_ *testing.T, s *story) { s.entry.acks[4].rider = "r2" }, faultLostCommand, "accept was acknowledged", false},
		"no event of the command": {func(_ *testing.T, s *story) {
			s.entry.acks = append(s.entry.acks, ack{command: "cancel", version: 13, status: "delivered", paymentStatus: "paid"})
		}, faultLostCommand, "no ORDER_CANCELLED", false},
		"version with a hole": {func(_ *testing.T, s *story) { s.queried.events[4].Version = 6 }, faultBrokenHistory, "has version 6", false},
		"unknown event":       {func(_ *testing.T, s *story) { s.queried.events[4].Type = "ORDER_EATEN" }, faultBrokenHistory, "unknown event type", false},
		"paid twice":          {func(_ *testing.T, s *story) { s.queried.events[2].Type = "ORDER_PAID" }, faultDuplicateEvent, "ORDER_PAID again", false},
		"two riders":          {func(_ *testing.T, s *story) { s.queried.events[7].Type = "OFFER_DECLINED" }, faultTwoRiders, "while r0 has it", false},
		"delivered before it is picked up": {func(_ *testing.T, s *story) {
			s.queried.events[11].Type, s.queried.events[12].Type = s.queried.events[12].Type, s.queried.events[11].Type
		}, faultBrokenHistory, `ORDER_DELIVERED at version 12 in status "rider_assigned"`, false},
		"another amount":       {func(_ *testing.T, s *story) { s.queried.order.Amount = 501 }, faultBrokenHistory, "amount or parties", false},
		"events behind":        {func(_ *testing.T, s *story) { s.queried.order.Version++ }, faultUnfinished, "the order says version", true},
		"paid before its time": {func(_ *testing.T, s *story) { s.entry.acks[0].paymentStatus = "paid" }, faultMoney, "before ORDER_PAID", false},

		"order:new lost":                  {func(_ *testing.T, s *story) { s.lose(s.restaurant, kindNew) }, faultLostMessage, "restaurant k got order:new", true},
		"order:new twice":                 {func(_ *testing.T, s *story) { s.again(s.restaurant, kindNew) }, faultDuplicateMessage, "order:new", false},
		"order:update lost":               {func(_ *testing.T, s *story) { s.lose(s.customer, kindUpdate) }, faultLostMessage, "customer c got order:update version 2", true},
		"order:update twice":              {func(_ *testing.T, s *story) { s.again(s.customer, kindUpdate) }, faultDuplicateMessage, "version 2 2 times", false},
		"order:update of the rider":       {func(_ *testing.T, s *story) { s.lose(s.riders[1], kindUpdate) }, faultLostMessage, "rider r1", true},
		"order:available lost":            {func(_ *testing.T, s *story) { s.lose(s.riders[2], kindAvailable) }, faultLostMessage, "1 times, due 2", true},
		"order:available thrice":          {func(_ *testing.T, s *story) { s.again(s.riders[2], kindAvailable) }, faultDuplicateMessage, "3 times, due 2", false},
		"order:available to a stranger":   {func(_ *testing.T, s *story) { s.tell(s.ledger.addParty(domain.Rider, "r9"), kindAvailable, 0, "") }, faultUncalledMessage, "rider r9", false},
		"order:taken lost":                {func(_ *testing.T, s *story) { s.lose(s.riders[2], kindTaken) }, faultLostMessage, "order:taken", true},
		"order:taken to the winner":       {func(_ *testing.T, s *story) { s.tell(s.riders[0], kindTaken, 0, "") }, faultUncalledMessage, "rider r0", false},
		"order:rider_assigned lost":       {func(_ *testing.T, s *story) { s.lose(s.customer, kindRiderAssigned) }, faultLostMessage, "order:rider_assigned", true},
		"order:rider_assigned of another": {func(_ *testing.T, s *story) { s.tell(s.customer, kindRiderAssigned, 0, "r2") }, faultUncalledMessage, "order:rider_assigned", false},
		"an update to a stranger":         {func(_ *testing.T, s *story) { s.tell(s.riders[2], kindUpdate, 3, "") }, faultUncalledMessage, "rider r2 got order:update version 3", false},
		"updates out of order": {func(_ *testing.T, s *story) {
			mine := func(m receipt) bool { return m.party == s.customer.number && m.kind == kindUpdate }
			i := slices.IndexFunc(s.entry.receipts, mine)
			j := i + 1 + slices.IndexFunc(s.entry.receipts[i+1:], mine)
			s.entry.receipts[i], s.entry.receipts[j] = s.entry.receipts[j], s.entry.receipts[i]
		}, faultMisorderedMessage, "got version 2 after 3", false},

		"captured and not listed": {func(t *testing.T, s *story) { s.payment(t, `{}`) }, faultMoney, "is not listed", true},
		"listed with another amount": {func(t *testing.T, s *story) {
			s.payment(t, `{"payments":[{"paymentId":"p1","amount":400}]}`)
		}, faultMoney, "captured 500, listed with 400", false},
		"second payment kept": {func(t *testing.T, s *story) {
			s.entry.captures = append(s.entry.captures, capture{"p2", 500})
			s.payment(t, `{"payments":[{"paymentId":"p1","amount":500},{"paymentId":"p2","amount":500}]}`)
		}, faultMoney, "kept [p1 500 p2 500]", true},
		"booked payment refunded instead": {func(t *testing.T, s *story) {
			s.entry.captures = append(s.entry.captures, capture{"p2", 500})
			s.payment(t, `{"payments":[{"paymentId":"p1","amount":500},{"paymentId":"p2","amount":500}],"refunds":[{"refundId":"f","paymentId":"p1","amount":500,"status":"succeeded"}]}`)
		}, faultMoney, "kept [p2 500]", true},
		"refunded twice": {func(t *testing.T, s *story) {
			s.entry.captures = append(s.entry.captures, capture{"p2", 70})
			s.payment(t, `{"payments":[{"paymentId":"p1","amount":500},{"paymentId":"p2","amount":70}],"refunds":[{"paymentId":"p2","amount":70,"status":"succeeded"},{"paymentId":"p2","amount":70,"status":"succeeded"}]}`)
		}, faultMoney, "p2 is refunded twice", false},
		"refund of another amount": {func(t *testing.T, s *story) {
			s.entry.captures = append(s.entry.captures, capture{"p2", 70})
			s.payment(t, `{"payments":[{"paymentId":"p1","amount":500},{"paymentId":"p2","amount":70}],"refunds":[{"paymentId":"p2","amount":500,"status":"succeeded"}]}`)
		}, faultMoney, "refund of 500 for payment p2 of 70", false},
		"refund under way": {func(t *testing.T, s *story) {
			s.entry.captures = append(s.entry.captures, capture{"p2", 70})
			s.payment(t, `{"payments":[{"paymentId":"p1","amount":500},{"paymentId":"p2","amount":70}],"refunds":[{"refundId":"f2","paymentId":"p2","amount":70,"status":"requested"}]}`)
		}, faultMoney, "refund f2 is requested", true},
		"refund of nobody's money": {func(t *testing.T, s *story) {
			s.payment(t, `{"payments":[{"paymentId":"p1","amount":500}],"refunds":[{"refundId":"f3","paymentId":"p3","amount":70,"status":"succeeded"}]}`)
		}, faultMoney, "never captured", false},
		"all money refunded": {func(t *testing.T, s *story) {
			s.payment(t, `{"payments":[{"paymentId":"p1","amount":500}],"refunds":[{"refundId":"f","paymentId":"p1","amount":500,"status":"succeeded"}]}`)
		}, faultMoney, "all money was refunded", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := delivered(t)
			tc.spoil(t, s)
			v := s.judge()
			in := v.faults
			if tc.waiting {
				in = v.waiting
			}
			if !slices.ContainsFunc(in, func(f Fault) bool { return f.Kind == tc.kind && strings.Contains(f.Detail, tc.text) }) {
				t.Errorf("%s %q not found: faults %v, waiting %v", tc.kind, tc.text, v.faults, v.waiting)
			}
			if tc.waiting && len(v.faults) > 0 {
				t.Errorf("already broken: %v", v.faults)
			}
		})
	}
}

func TestAGapExcusesOnlyWhatFellIntoIt(t *testing.T) {
	t.Parallel()
	s := delivered(t)
	s.lose(s.restaurant, kindNew) // of version 2, a second after the first
	s.restaurant.addGap(feedGap{s.t0.Add(2 * time.Second), s.t0.Add(3 * time.Second)})
	if v := s.judge(); len(v.waiting) != 1 || v.missedInGap != 0 {
		t.Errorf("a gap after it excuses it: %v, %d", v.waiting, v.missedInGap)
	}
	s.restaurant.addGap(feedGap{s.t0, s.t0.Add(time.Second)})
	if v := s.judge(); len(v.waiting)+len(v.faults) != 0 || v.missedInGap != 1 {
		t.Errorf("the gap that it fell into does not excuse it: %v %v, %d", v.waiting, v.faults, v.missedInGap)
	}
}

func TestClosedWithoutDeliveryKeepsNoMoney(t *testing.T) {
	t.Parallel()
	s := delivered(t)
	// Cancelled while placed and paid.
	s.queried.events = s.queried.events[:2]
	s.append(t, "ORDER_CANCELLED", nil)
	s.entry.acks = s.entry.acks[:1]
	s.entry.receipts = nil
	s.tell(s.restaurant, kindNew, 0, "")
	for v := 2; v <= 3; v++ {
		s.tell(s.customer, kindUpdate, v, "")
		s.tell(s.restaurant, kindUpdate, v, "")
	}
	s.queried.order.Version, s.queried.order.Status, s.queried.order.PaymentStatus = 3, "cancelled", "refund_pending"
	if v := s.judge(); len(v.faults) > 0 || len(v.waiting) != 2 {
		t.Errorf("before the refund: faults %v, waiting %v", v.faults, v.waiting)
	}
	s.queried.order.PaymentStatus = "refunded"
	s.payment(t, `{"payments":[{"paymentId":"p1","amount":500}],"refunds":[{"refundId":"f","paymentId":"p1","amount":500,"status":"succeeded"}]}`)
	if v := s.judge(); len(v.faults) > 0 || len(v.waiting) != 2 { // order:update refunded, two parties
		t.Errorf("after the refund, before its messages: faults %v, waiting %v", v.faults, v.waiting)
	}
	s.tell(s.customer, kindUpdate, 0, "refunded")
	s.tell(s.restaurant, kindUpdate, 0, "refunded")
	if v := s.judge(); len(v.faults) > 0 || len(v.waiting) > 0 {
		t.Errorf("at the end: faults %v, waiting %v", v.faults, v.waiting)
	}
	s.tell(s.customer, kindUpdate, 0, "refunded")
	if v := s.judge(); len(v.faults) != 1 || v.faults[0].Kind != faultDuplicateMessage {
		t.Errorf("told twice: %v", v.faults)
	}
}

func TestNeverPaidMayStayUntilItIsDue(t *testing.T) {
	t.Parallel()
	l := newLedger()
	c, k := l.addParty(domain.Customer, "c"), l.addParty(domain.Restaurant, "k")
	r := l.add(plan{payment: payNever}, c, k, domain.Point{})
	due := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	l.placed(r, orderView{OrderID: "o", Amount: 1, PaymentDueAt: due})
	h := queried{order: orderView{Version: 1, Status: "placed", PaymentStatus: "pending", Amount: 1, CustomerID: "c", RestaurantID: "k"},
		events: []eventView{{Type: "ORDER_PLACED", Version: 1, Data: []byte("{}")}}}
	if v := judge(l, r, h, l.rider, due.Add(-time.Second)); len(v.waiting)+len(v.faults) > 0 {
		t.Errorf("before: %v %v", v.waiting, v.faults)
	}
	if v := judge(l, r, h, l.rider, due); len(v.waiting) != 1 {
		t.Errorf("when due: %v %v", v.waiting, v.faults)
	}
}

func TestOneRiderWithTwoOrdersIsFound(t *testing.T) {
	t.Parallel()
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	rec := func(id string, spans ...assignment) *orderEntry {
		return &orderEntry{id: id, verdict: verdict{assignments: spans}}
	}
	if f := overlaps([]*orderEntry{rec("a", assignment{"r", at(1), at(2)}), rec("b", assignment{"r", at(2), at(3)}), rec("c", assignment{"q", at(1), at(3)})}); len(f) != 0 {
		t.Errorf("one after the other: %v", f)
	}
	f := overlaps([]*orderEntry{rec("a", assignment{"r", at(1), at(4)}), rec("b", assignment{"r", at(3), at(5)}), rec("c", assignment{"r", at(6), time.Time{}}), rec("d", assignment{"r", at(7), at(8)})})
	if len(f) != 2 || f[0].Order != "b" || f[1].Order != "d" || f[0].Kind != faultTwoOrders {
		t.Errorf("%v", f)
	}
}

func TestAcknowledgedToTwoIsFoundWithoutAClock(t *testing.T) {
	t.Parallel()
	l := newLedger()
	a, b := &orderEntry{id: "a", changed: make(chan struct{})}, &orderEntry{id: "b", changed: make(chan struct{})}
	l.assigned(a, "r1", nil)
	l.assigned(a, "r2", nil)
	l.assigned(b, "r1", a)
	if l.counts[faultTwoRiders] != 1 || l.counts[faultTwoOrders] != 1 {
		t.Errorf("%v", l.counts)
	}
	a.released()
	l.assigned(a, "r3", nil)
	if l.counts[faultTwoRiders] != 1 {
		t.Errorf("after a drop: %v", l.counts)
	}
}

func TestPlansFollowFromTheSeed(t *testing.T) {
	t.Parallel()
	same, other := 0, 0
	pays, ends := map[payment]int{}, map[ending]int{}
	for n := range 2000 {
		p := planOf(5, n)
		if p == planOf(5, n) {
			same++
		}
		if p != planOf(6, n) {
			other++
		}
		pays[p.payment]++
		ends[p.ending]++
	}
	if same != 2000 || other == 0 {
		t.Errorf("same seed %d of 2000 the same; another seed %d different", same, other)
	}
	for p := payPlain; p <= payNever; p++ {
		if pays[p] == 0 {
			t.Errorf("no order pays as %d", p)
		}
	}
	for e := endNone; e <= endOpsAssigned; e++ {
		if ends[e] == 0 {
			t.Errorf("no order ends as %d", e)
		}
	}
}
