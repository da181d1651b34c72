package domain_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	"pgregory.net/rapid"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/domain/rider"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

// The world of TestHistories and TestAccepts: what may happen in it, and the
// policies that answer to it.

// pick draws one of n evenly; rapid's own integers lean to the small ones, and
// what comes late on an order's way would hardly happen.
func (w *world) pick(n int, label string) int { return even.Draw(w.T, label) % n }

var even = rapid.Custom(func(t *rapid.T) (n int) {
	for range 12 {
		n <<= 1
		if rapid.Bool().Draw(t, "bit") {
			n |= 1
		}
	}
	return n
})

// The kinds of steps. A step is chosen by a number, and each kind has the numbers below
// its bound.
const (
	runsTask       = 24
	nextStep       = 49
	accepts        = 61
	declines       = 63
	endsWave       = 65
	exhausts       = 66
	asksDispatch   = 67
	offers         = 69
	drops          = 71
	opsDrops       = 72
	picksUp        = 73
	delivers       = 74
	cancels        = 76
	rejects        = 77
	cooks          = 79
	deadlinePasses = 80
	captures       = 85
	fails          = 87
	asksToPay      = 88
	refunds        = 90
	refundsOne     = 91
	resolves       = 93
	stops          = 95
	goes           = 98
	releases       = 99
)

var customer = domain.Actor{Sub: "c1", Role: domain.Customer}

// task is a step that somebody has yet to take: a policy, for an event that it
// has yet to see, or a request between two of its steps.
type task struct {
	name   string
	policy bool // must happen; a request may die
	run    func()
}

type refusedAssign struct {
	o *anOrder
	c order.Assign
}

type anOrder struct {
	order   order.State
	payment payment.State
	events  []order.Event
	money   []payment.Event
}

type world struct {
	*rapid.T
	now     time.Time
	orders  []*anOrder
	riders  []*rider.State
	strays  map[string]*payment.State  // by payment id: money without an order
	taken   map[string]capture         // by payment id: what the gateway captured
	refused map[refusedAssign]struct{} // must stay refused
	effects []effect                   // must stay
	todo    []task
	ids     int
}

// effect is a command that took effect for good, and whether it still has.
type effect struct {
	c     domain.Command
	stays func() bool
}

type capture struct {
	amount   int64
	currency string
	o        *anOrder
	told     bool // record-payment ran for it
}

func newWorld(t *rapid.T) *world {
	w := &world{T: t, now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), strays: map[string]*payment.State{},
		taken: map[string]capture{}, refused: map[refusedAssign]struct{}{}}
	for i := range 3 {
		o := &anOrder{}
		w.orders = append(w.orders, o)
		w.order(o, order.Place{OrderID: fmt.Sprintf("o%d", i), CustomerID: "c1", RestaurantID: "res1", Currency: "INR",
			Items:      []order.Item{{ItemID: "i1", Name: "Dosa", UnitPrice: 150, Quantity: 3}},
			PickUp:     order.PickUp{Name: "Hut", Location: domain.Point{Lng: 77.5, Lat: 12.9}},
			DeliverTo:  subjectkeystest.DeliverTo("c1", `{"location":{"type":"Point","coordinates":[77.6,13]},"address":"1 Main Road"}`),
			PaymentTTL: 15 * time.Minute})
	}
	for i := range 3 {
		r := &rider.State{}
		w.riders = append(w.riders, r)
		w.rider(r, rider.Put{RiderID: fmt.Sprintf("r%d", i), Name: subjectkeystest.Name(fmt.Sprintf("r%d", i), "Una")})
		w.rider(r, rider.Verify{})
		w.rider(r, rider.GoOnline{})
	}
	return w
}

// step decides one command and holds what is true of every command and event.
func step[S any, E domain.Event](w *world, s *S, c domain.Command, decide func(*S, domain.Command, time.Time) (E, error),
	evolve func(S, E, time.Time) S, decode func(string, int, []byte) (E, error), version func(*S) int64, tookEffect func(*S, domain.Command) bool) (E, error) {
	w.now = w.now.Add(time.Second)
	old := *s
	var deepCopy S
	w.through(old, &deepCopy)
	e, err := decide(s, c, w.now)
	if tookEffect(s, c) {
		if any(e) != nil {
			w.Fatalf("%#v took effect before, and now gives %#v", c, e)
		}
		w.effects = append(w.effects, effect{c, func() bool { return tookEffect(s, c) }})
	}
	if any(e) == nil {
		if r := (*domain.Refusal)(nil); err != nil && !errors.As(err, &r) {
			w.Fatalf("%T: an error that is no refusal: %v", c, err)
		}
		return e, err
	}
	if err != nil {
		w.Fatalf("%T: an event and an error: %#v, %v", c, e, err)
	}
	data, err := json.Marshal(e)
	if err != nil {
		w.Fatal(err)
	}
	if bytes.Contains(data, []byte("null")) {
		w.Fatalf("null on the wire: %s", data)
	}
	read, err := decode(e.EventType(), 1, data)
	if err != nil || !reflect.DeepEqual(read, e) {
		w.Fatalf("through the wire (%v):\n%#v\nwant\n%#v", err, read, e)
	}
	next := evolve(old, e, w.now)
	if !reflect.DeepEqual(old, deepCopy) || !reflect.DeepEqual(*s, deepCopy) {
		w.Fatalf("%T: Decide or Evolve changed its input:\n%#v\nwas\n%#v", c, old, deepCopy)
	}
	if folded := evolve(deepCopy, read, w.now); !reflect.DeepEqual(folded, next) {
		w.Fatalf("%T: folded from the wire:\n%#v\nwant\n%#v", c, folded, next)
	}
	if version(&next) != version(&old)+1 {
		w.Fatalf("%T: version %d after %d", c, version(&next), version(&old))
	}
	if again, _ := decide(&next, c, w.now.Add(time.Second)); any(again) != nil {
		w.Fatalf("%#v decided again gives a second event:\n%#v\nafter\n%#v", c, again, e)
	}
	*s = next
	return e, nil
}

// through puts a state through JSON and holds that it comes back the same.
func (w *world) through(state, back any) {
	b, err := json.Marshal(state)
	if err != nil {
		w.Fatal(err)
	}
	if err := json.Unmarshal(b, back); err != nil {
		w.Fatal(err)
	}
	if got := reflect.ValueOf(back).Elem().Interface(); !reflect.DeepEqual(got, state) {
		w.Fatalf("through JSON:\n%#v\nwant\n%#v", got, state)
	}
}

// order decides a command on an order and queues what policies do on its event.
func (w *world) order(o *anOrder, c domain.Command) (order.Event, error) {
	s := &o.order
	decide := order.Decide
	if p, ok := c.(order.Place); ok { // places once; the shard draws a new id
		decide = func(s *order.State, _ domain.Command, now time.Time) (order.Event, error) {
			if s.Exists() {
				return nil, nil
			}
			return order.Decide(s, p, now)
		}
	}
	e, err := step(w, s, c, decide, order.Evolve, order.Decode, func(s *order.State) int64 { return s.Version }, order.TookEffect)
	if e == nil {
		return nil, err
	}
	o.events = append(o.events, e)
	w.viewShape(o)
	if ctx := contextOf(w, e); ctx.Status != string(s.Status) || ctx.CustomerID != "c1" || ctx.RestaurantID != "res1" || s.RiderID != "" && ctx.RiderID != s.RiderID {
		w.Fatalf("ctx %+v of %s does not fit %+v", ctx, e.EventType(), s)
	}
	release := func(riderID string, claimID int64) {
		if claimID != 0 {
			w.queue("claims: release "+riderID, true, func() { w.rider(w.riderBy(riderID), rider.Release{ClaimID: claimID, OrderID: s.ID}) })
		}
	}
	refund := func(paymentID, why string) {
		if paymentID != "" {
			w.queue("refund-order", true, func() {
				w.pay(o, payment.RequestRefund{PaymentID: paymentID, RefundID: w.id("rf"), Reason: why})
			})
		}
	}
	switch e := e.(type) {
	case order.OrderRejected:
		refund(e.PaymentID, "rejected")
	case order.OrderCancelled:
		refund(e.PaymentID, "cancelled")
		release(e.RiderID, e.ClaimID)
	case order.RiderUnassigned:
		release(e.RiderID, e.ClaimID)
	case order.OrderDelivered:
		release(e.RiderID, e.ClaimID)
	}
	return e, nil
}

// rider decides a command on a rider and queues what the claims policy does.
func (w *world) rider(r *rider.State, c domain.Command) (rider.Event, error) {
	e, err := step(w, r, c, rider.Decide, rider.Evolve, rider.Decode, func(s *rider.State) int64 { return s.Version }, rider.TookEffect)
	if e, ok := e.(rider.RiderClaimed); ok {
		w.queue("claims: settle "+e.RiderID, true, func() { w.assign(r, e, true) })
	}
	return e, err
}

// assign repeats a claim's own assign; a refusal releases the claim, in a step
// of its own.
func (w *world) assign(r *rider.State, c rider.RiderClaimed, policy bool) {
	o := w.orderBy(c.OrderID)
	a := order.Assign{RiderID: c.RiderID, RiderName: c.RiderName, ClaimID: c.ClaimID, Round: c.Round, Wave: c.Wave}
	if _, err := w.order(o, a); err != nil {
		w.refused[refusedAssign{o, a}] = struct{}{}
		w.queue("release "+c.RiderID, policy, func() { w.rider(r, rider.Release{ClaimID: c.ClaimID, OrderID: c.OrderID}) })
	}
}

// accept is a rider's request: ask the order, claim the rider, assign, each in
// a step of its own, before which anything may happen.
func (w *world) accept(o *anOrder, r *rider.State) {
	c := order.CheckOffer{RiderID: r.ID}
	if order.Authorize(&o.order, c, domain.Actor{Sub: r.ID, Role: domain.Rider}) != nil {
		return
	}
	if _, err := w.order(o, c); err != nil || o.order.Status != order.StatusReadyForRider {
		return
	}
	round, wave := o.order.Round, o.order.Wave
	w.queue("accept: claim "+r.ID, false, func() {
		_, err := w.rider(r, rider.ClaimFor{OrderID: o.order.ID, Round: round, Wave: wave, CustomerID: "c1", RestaurantID: "res1"})
		if r.Claim == nil {
			return
		}
		// Its own claim, or another's that is in the way: both are settled the same way.
		claimed := rider.RiderClaimed{RiderID: r.ID, RiderName: r.Name, ClaimID: r.Claim.ID, OrderID: r.Claim.OrderID, Round: r.Claim.Round, Wave: r.Claim.Wave}
		w.queue("accept: assign "+r.ID, false, func() { w.assign(r, claimed, false) })
		if domain.RefusedWith(err) == rider.CodeBusy {
			w.queue("accept: again "+r.ID, false, func() { w.accept(o, r) })
		}
	})
}

// pay decides a command on a payment and queues what policies do on its event.
func (w *world) pay(o *anOrder, c domain.Command) (payment.Event, error) {
	before := order.PaymentStatusOf(&o.order, o.payment.Facts())
	c = payment.WithOrder(c, payment.OrderFacts{Payable: o.order.Payable(), Ended: o.order.Status.Ended(), Status: string(o.order.Status),
		Amount: o.order.Amount, Currency: o.order.Currency, CustomerID: o.order.CustomerID, RestaurantID: o.order.RestaurantID})
	e, err := step(w, &o.payment, c, payment.Decide, payment.Evolve, payment.Decode, func(s *payment.State) int64 { return s.Version }, payment.TookEffect)
	if e == nil {
		return nil, err
	}
	o.money = append(o.money, e)
	after := order.PaymentStatusOf(&o.order, o.payment.Facts())
	if ctx := contextOf(w, e); ctx.CustomerID != "c1" || ctx.RestaurantID != "res1" ||
		ctx.PaymentStatus != string(after) && (ctx.PaymentStatus != "" || before != after) {
		w.Fatalf("%s says %+v, the payment status went from %s to %s", e.EventType(), ctx, before, after)
	}
	switch e := e.(type) {
	case payment.PaymentSuccess:
		w.queue("pay-order", true, func() {
			if _, err := w.order(o, order.MarkPaid{PaymentID: e.PaymentID, AcceptTTL: 10 * time.Minute}); err != nil {
				w.pay(o, payment.RequestRefund{PaymentID: e.PaymentID, RefundID: w.id("rf"), Reason: "order closed"})
			}
		})
	case payment.PaymentUnmatched:
		w.queue("refund-order", true, func() {
			w.pay(o, payment.RequestRefund{PaymentID: e.PaymentID, RefundID: w.id("rf"), Reason: e.Reason})
		})
	case payment.RefundRequested:
		if got := w.taken[e.PaymentID]; e.Amount != got.amount || e.Currency != got.currency {
			w.Fatalf("refund of %d %s, captured was %+v", e.Amount, e.Currency, got)
		}
		outcomes := rapid.SampledFrom([][]bool{{true}, {false}, {false, true}, {true, true}, {false, false}}).Draw(w.T, "refund outcome")
		for _, ok := range outcomes {
			w.queue("record-refund", true, func() { w.pay(o, payment.RecordRefund{RefundID: e.RefundID, Succeeded: ok, Reason: "bank"}) })
		}
	}
	return e, nil
}

// webhook is the gateway's word on a payment; it is told at least once.
func (w *world) webhook(o *anOrder, id string, captured bool) {
	if !captured {
		w.queue("record-payment: failed", true, func() {
			w.pay(o, payment.RecordFailed{PaymentID: id, GatewayOrderID: "g-" + o.order.ID, Amount: o.order.Amount, Currency: "INR", Reason: "bank"})
		})
		return
	}
	got, ok := w.taken[id]
	if !ok {
		got = rapid.SampledFrom([]capture{{amount: 450, currency: "INR"}, {amount: 450, currency: "INR"}, {amount: 449, currency: "INR"}, {amount: 450, currency: "USD"}}).Draw(w.T, "money")
		got.o = o
		w.taken[id] = got
	}
	w.queue("record-payment: captured", true, func() {
		_, err := w.pay(o, payment.RecordCaptured{PaymentID: id, GatewayOrderID: "g-" + o.order.ID, Amount: got.amount, Currency: got.currency})
		if domain.RefusedWith(err) == payment.CodeNotRequested {
			s := w.strays[id]
			if s == nil {
				s = &payment.State{}
				w.strays[id] = s
			}
			step(w, s, payment.RecordUnmatched{PaymentID: id, Amount: got.amount, Currency: got.currency, Reason: payment.ReasonNotRequested},
				payment.Decide, payment.Evolve, payment.Decode, func(s *payment.State) int64 { return s.Version }, payment.TookEffect)
		}
		got := w.taken[id]
		got.told = true
		w.taken[id] = got
	})
}

func (w *world) queue(name string, policy bool, run func()) {
	w.todo = append(w.todo, task{name, policy, run})
}

// runTask takes a step that is due, any of them. A policy may take it again
// later; a request may have died before it.
func (w *world) runTask() {
	i := w.pick(len(w.todo), "task")
	next := w.todo[i]
	w.todo = slices.Delete(w.todo, i, i+1)
	switch fate := w.pick(10, next.name); {
	case fate == 9 && next.policy:
		w.todo = append(w.todo, next)
	case fate >= 8 && !next.policy:
		return
	}
	next.run()
}

// act is one thing that somebody does.
func (w *world) act(what int) {
	o := w.orders[w.pick(len(w.orders), "order")]
	r := w.riders[w.pick(len(w.riders), "rider")]
	id := fmt.Sprintf("p%d-%s", w.pick(3, "payment"), o.order.ID)
	self := domain.Actor{Sub: r.ID, Role: domain.Rider}
	by := rapid.SampledFrom([]domain.Actor{customer, {Sub: "staff", Role: domain.Restaurant, RestaurantID: "res1"}, {Sub: "olga", Role: domain.Ops}}).Draw(w.T, "by")
	ask := func(a domain.Actor, c domain.Command) {
		if order.Authorize(&o.order, c, a) == nil {
			w.order(o, c)
		}
	}
	switch {
	case what <= runsTask && len(w.todo) > 0:
		w.runTask()
	case what <= nextStep: // the next step on the order's way
		switch s := &o.order; s.Status {
		case order.StatusPlaced:
			if o.payment.Status == payment.StatusNone {
				w.pay(o, payment.RequestPayment{OrderID: s.ID, Provider: "simulated", GatewayOrderID: "g-" + s.ID})
			} else if s.Paid() {
				w.order(o, order.AcceptOrder{PrepMinutes: 10})
			} else {
				w.webhook(o, id, true)
			}
		case order.StatusAccepted:
			w.order(o, order.Prepare{})
		case order.StatusPreparing:
			w.order(o, order.Ready{})
		case order.StatusReadyForRider:
			wave := s.Wave
			if !s.WaveOpen {
				wave++
			}
			w.order(o, w.offer(s.Round, wave))
		case order.StatusRiderAssigned:
			ask(domain.Actor{Sub: s.RiderID, Role: domain.Rider}, order.PickUpOrder{})
		case order.StatusPickedUp:
			ask(domain.Actor{Sub: s.RiderID, Role: domain.Rider}, order.Deliver{})
		}
	case what <= accepts:
		w.accept(o, r)
	case what <= declines:
		ask(self, order.Decline{RiderID: r.ID})
	case what <= endsWave:
		w.order(o, order.EndWave{Round: o.order.Round, Wave: o.order.Wave})
	case what <= exhausts:
		w.order(o, order.Exhaust{Round: o.order.Round, LastWave: 1})
	case what <= asksDispatch:
		w.order(o, order.RequestDispatch{})
	case what <= offers:
		w.order(o, w.offer(w.pick(4, "round"), w.pick(4, "wave")))
	case what <= drops:
		ask(self, order.DropOrder{By: self, Reason: "flat tyre"})
	case what <= opsDrops:
		w.order(o, order.DropOrder{By: domain.Actor{Sub: "olga", Role: domain.Ops}, Reason: "lost"})
	case what <= picksUp:
		ask(self, order.PickUpOrder{})
	case what <= delivers:
		ask(self, order.Deliver{})
	case what <= cancels:
		w.order(o, order.Cancel{By: by, Reason: "no"})
	case what <= rejects:
		w.order(o, order.Reject{Reason: "no dough"})
	case what <= cooks:
		w.order(o, rapid.SampledFrom([]domain.Command{order.AcceptOrder{}, order.Prepare{}, order.Ready{}}).Draw(w.T, "kitchen"))
	case what <= deadlinePasses:
		if at, c := o.order.NextDeadline(); c != nil {
			w.now = maxTime(w.now, at)
			if _, ok := c.(order.Expire); ok {
				c = order.Expire{PaymentPaid: o.payment.Booked != ""}
			}
			w.order(o, c)
		}
	case what <= captures:
		w.webhook(o, id, true)
	case what <= fails:
		w.webhook(o, id, false)
	case what <= asksToPay:
		w.pay(o, payment.RequestPayment{OrderID: o.order.ID, Provider: "simulated", GatewayOrderID: "g-" + o.order.ID})
	case what <= refunds:
		w.pay(o, payment.RequestRefund{RefundID: w.id("rf"), Reason: "again", ByOps: true})
	case what <= refundsOne:
		w.pay(o, payment.RequestRefund{PaymentID: id, RefundID: w.id("rf"), Reason: "again", ByOps: true})
	case what <= resolves:
		w.pay(o, payment.Resolve{PaymentID: id, Reason: "by hand", By: "olga"})
	case what <= stops:
		w.rider(r, rapid.SampledFrom([]domain.Command{rider.GoOffline{}, rider.Suspend{}}).Draw(w.T, "stop"))
	case what <= goes:
		w.rider(r, rapid.SampledFrom([]domain.Command{rider.Verify{}, rider.GoOnline{}}).Draw(w.T, "go"))
	default:
		w.rider(r, rider.Release{ClaimID: int64(w.pick(4, "claim")), OrderID: o.order.ID})
	}
}

func (w *world) offer(round, wave int) order.OfferWave {
	c := order.OfferWave{Round: round, Wave: wave, TTL: 30 * time.Second, Limit: 1 + w.pick(3, "limit")}
	for i, r := range rapid.Permutation(w.riders).Draw(w.T, "nearest")[:w.pick(4, "found")] {
		c.Riders = append(c.Riders, order.OfferedRider{RiderID: r.ID, DistanceMeters: 100 * i})
	}
	return c
}

func (w *world) riderBy(id string) *rider.State {
	for _, r := range w.riders {
		if r.ID == id {
			return r
		}
	}
	w.Fatalf("no rider %q", id)
	return nil
}

func (w *world) orderBy(id string) *anOrder {
	for _, o := range w.orders {
		if o.order.ID == id {
			return o
		}
	}
	w.Fatalf("no order %q", id)
	return nil
}

func (w *world) id(kind string) string {
	w.ids++
	return fmt.Sprintf("%s%d", kind, w.ids)
}

func contextOf(w *world, e domain.Event) domain.Ctx {
	b, err := json.Marshal(e)
	if err != nil {
		w.Fatal(err)
	}
	var v struct {
		Ctx domain.Ctx `json:"ctx"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		w.Fatal(err)
	}
	return v.Ctx
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
