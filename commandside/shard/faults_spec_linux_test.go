package shard

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/domain/restaurant"
	"tomato/domain/rider"
	"tomato/eventlog"
)

// operation is one command as its client saw it, answered or not.
type operation struct {
	id      string // the request's causation id, which its event has, too
	object  string // the target; an order and its payment are one object
	req     Request
	at      int   // the instance that got the command
	call    int64 // time of the command, in nanoseconds since the run began
	ret     int64 // time of the answer; math.MaxInt64 if there is none
	outcome outcome
	failure error  // why the outcome is unknown
	result  Result // the answer
}

// outcome is the part of an answer that is compared. Times are not compared, because
// each owner has a clock of its own.
type outcome struct {
	known    bool   // the command was answered; if not, its event was found in the log, or the operation is left out
	code     string // of a refusal, with the order's status if it has one
	event    string // type of the event; "" if nothing was appended
	version  int64  // of the aggregate after the event
	repeated bool
	status   int
	shown    string // the states in the answer
}

func outcomeOf(topic string, res Result, err error) outcome {
	o := outcome{known: true}
	if err != nil {
		r := err.(*domain.Refusal)
		o.code = strings.TrimSpace(string(r.Code) + " " + r.CurrentStatus)
		return o
	}
	if res.Event != nil {
		o.event = res.Event.EventType()
		o.version = shownVersion(topic, res)
	}
	o.repeated, o.status = res.Repeated, res.Status
	o.shown = showAll(res.Order, res.Payment, res.Rider, res.Restaurant)
	return o
}

func shownVersion(topic string, res Result) int64 {
	switch {
	case topic == eventlog.Orders && res.Order != nil:
		return res.Order.Version
	case topic == eventlog.Payments && res.Payment != nil:
		return res.Payment.Version
	case topic == eventlog.Riders && res.Rider != nil:
		return res.Rider.Version
	case topic == eventlog.Restaurants && res.Restaurant != nil:
		return res.Restaurant.Version
	}
	return -1
}

func showAll(o *order.State, p *payment.State, r *rider.State, m *restaurant.State) string {
	return showOrder(o) + "\n" + showPayment(p) + "\n" + show(r, func(s *rider.State) { s.CreatedAt, s.UpdatedAt = time.Time{}, time.Time{} }) + "\n" +
		show(m, func(s *restaurant.State) { s.CreatedAt, s.UpdatedAt = time.Time{}, time.Time{} })
}

func showOrder(o *order.State) string {
	return show(o, func(s *order.State) {
		var never time.Time
		s.PaymentDueAt, s.AcceptBy, s.ReadyAt, s.WaveEndsAt, s.CreatedAt, s.UpdatedAt, s.ClosedAt = never, never, never, never, never, never, never
	})
}

func showPayment(p *payment.State) string {
	return show(p, func(s *payment.State) { s.CreatedAt, s.UpdatedAt = time.Time{}, time.Time{} })
}

// show returns a state as text, without its times.
func show[S any](s *S, timeless func(*S)) string {
	if s == nil {
		return ""
	}
	c := *s
	timeless(&c)
	b, err := json.Marshal(c)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// object is the state of one object in the sequential specification: a rider, a
// restaurant, or an order with its payment, because decisions on a payment look at the
// order, and answers show both. It is never changed in place.
type object struct {
	order      *order.State
	payment    *payment.State
	rider      *rider.State
	restaurant *restaurant.State
	keys       *usedKey
	shown      string
}

type usedKey struct {
	scope, body string
	status      int
	before      *usedKey
	digest      string
}

func (o *object) digest() string {
	if o.keys == nil {
		return o.shown
	}
	return o.shown + o.keys.digest
}

func keyOf(r *Request) string {
	id := r.ID
	if isPlace(r.Command) {
		id = ""
	}
	return fmt.Sprint(r.Actor.Role, "/", r.Actor.Sub, "/", r.Command.CommandName(), "/", r.Topic, "/", id, "/", r.IdempotencyKey)
}

// theShop is the restaurant from whose menu all orders of a run are priced. It is
// registered before the run and does not change, because this specification does not
// cover Menus, which follow the log with a delay.
var theShop = restaurant.State{ID: "shop", Version: 3, Name: "Dosa Corner", Location: domain.Point{Lng: 77.6, Lat: 12.9}, Open: true,
	Menu: map[string]restaurant.MenuItem{"dosa": {ItemID: "dosa", Name: "Dosa", Price: domain.Money{Amount: 12000, Currency: "INR"}, Available: true}}}

// apply executes a command on an object, without concurrency. It returns the next
// state and the outcome that the answer must have. The steps and their order (rights,
// idempotency key, decision, If-Match) are those of handle in shard.go, written a second
// time on purpose. Decide and Evolve are the domain's own.
func (o *object) apply(r *Request, now time.Time) (*object, outcome) {
	refused := func(err error) (*object, outcome) { return o, outcomeOf(r.Topic, Result{}, err) }
	if err := o.allowed(r); err != nil {
		return refused(err)
	}
	if r.IdempotencyKey != "" {
		scope := keyOf(r)
		for k := o.keys; k != nil; k = k.before {
			if k.scope != scope {
				continue
			}
			if k.body != r.BodyHash {
				return refused(domain.Refuse(IdempotencyKeyReused, ""))
			}
			return o, outcome{known: true, repeated: true, status: k.status, shown: o.shown}
		}
	}
	ev, err := o.decide(r, now)
	version := o.version(r.Topic)
	met := r.IfMatch == 0 || r.IfMatch == version || r.IfMatch == Exists && version > 0 || slices.Contains(r.OrMatch, version)
	reference := err != nil && domain.RefusedWith(err) == domain.NotFound
	if !met && !reference && (ev != nil || err != nil) {
		return refused(domain.Refuse(VersionMismatch, ""))
	}
	if err != nil {
		return refused(err)
	}
	if ev == nil {
		return o, outcome{known: true, status: 200, shown: o.shown}
	}
	status := 200
	switch c := r.Command.(type) {
	case Place, rider.Put, restaurant.Put:
		if version == 0 {
			status = 201
		}
	case restaurant.SetMenuItem:
		if _, ok := o.restaurant.Menu[c.Item.ItemID]; !ok {
			status = 201
		}
	}
	next := *o
	switch r.Topic {
	case eventlog.Orders:
		next.order = fold(o.order, ev.(order.Event), now, order.Evolve)
	case eventlog.Payments:
		next.payment = fold(o.payment, ev.(payment.Event), now, payment.Evolve)
	case eventlog.Riders:
		next.rider = fold(o.rider, ev.(rider.Event), now, rider.Evolve)
	case eventlog.Restaurants:
		next.restaurant = fold(o.restaurant, ev.(restaurant.Event), now, restaurant.Evolve)
	}
	next.shown = showAll(next.order, next.payment, next.rider, next.restaurant)
	if r.IdempotencyKey != "" {
		k := &usedKey{scope: keyOf(r), body: r.BodyHash, status: status, before: o.keys}
		k.digest = k.scope + k.body
		if o.keys != nil {
			k.digest += o.keys.digest
		}
		next.keys = k
	}
	return &next, outcome{known: true, event: ev.EventType(), version: version + 1, status: status, shown: next.shown}
}

func fold[S, E any](s *S, ev E, now time.Time, evolve func(S, E, time.Time) S) *S {
	if s == nil {
		s = new(S)
	}
	next := evolve(*s, ev, now)
	return &next
}

func orNew[S any](s *S) *S {
	if s == nil {
		return new(S)
	}
	return s
}

func (o *object) version(topic string) int64 {
	switch topic {
	case eventlog.Orders:
		return orNew(o.order).Version
	case eventlog.Payments:
		return orNew(o.payment).Version
	case eventlog.Riders:
		return orNew(o.rider).Version
	}
	return orNew(o.restaurant).Version
}

// allowed returns the refusal of an actor without the right to the command, or of a
// command on an object that does not exist.
func (o *object) allowed(r *Request) error {
	switch r.Topic {
	case eventlog.Orders, eventlog.Payments:
		if o.order != nil {
			return order.Authorize(o.order, r.Command, r.Actor)
		}
		_, asks := r.Command.(payment.RequestPayment)
		if asks || r.Topic == eventlog.Orders && !isPlace(r.Command) {
			return domain.Refuse(domain.NotFound, "")
		}
	case eventlog.Riders:
		if _, put := r.Command.(rider.Put); o.rider == nil && !put {
			return domain.Refuse(domain.NotFound, "")
		}
		if r.Actor.Role == domain.Rider && r.Actor.Sub != r.ID {
			return domain.Refuse(domain.Forbidden, "")
		}
	case eventlog.Restaurants:
		if _, put := r.Command.(restaurant.Put); o.restaurant == nil && !put {
			return domain.Refuse(domain.NotFound, "")
		}
		if r.Actor.Role == domain.Restaurant && r.Actor.RestaurantID != r.ID {
			return domain.Refuse(domain.Forbidden, "")
		}
	}
	return nil
}

func (o *object) decide(r *Request, now time.Time) (domain.Event, error) {
	switch r.Topic {
	case eventlog.Orders:
		command := r.Command
		if p, ok := command.(Place); ok {
			items, currency, err := theShop.Price(p.Lines)
			if err != nil {
				return nil, err
			}
			command = order.Place{OrderID: r.ID, CustomerID: p.CustomerID, RestaurantID: p.RestaurantID, Items: items, Currency: currency, DeliverTo: p.DeliverTo,
				ExternalReference: p.ExternalReference, PaymentTTL: p.PaymentTTL,
				PickUp: order.PickUp{Name: theShop.Name, Location: theShop.Location, Address: theShop.Address}}
		}
		return event(order.Decide(orNew(o.order), command, now))
	case eventlog.Payments:
		var facts payment.OrderFacts
		if s := o.order; s != nil {
			facts = payment.OrderFacts{Payable: s.Payable(), Ended: s.Status.Ended(), Status: string(s.Status),
				Amount: s.Amount, Currency: s.Currency, CustomerID: s.CustomerID, RestaurantID: s.RestaurantID}
		}
		return event(payment.Decide(orNew(o.payment), payment.WithOrder(r.Command, facts), now))
	case eventlog.Riders:
		return event(rider.Decide(orNew(o.rider), r.Command, now))
	}
	return event(restaurant.Decide(orNew(o.restaurant), r.Command, now))
}

// specification is the sequential behaviour of objects for porcupine. It is
// deterministic. The outcome of a command without an answer is read from the log, where
// the event has the id of its command. If the log has a valid event, the command took
// effect with the event's version, at some time after it was sent. If not, the command
// changed nothing and is left out. The alternative would be to let porcupine try both
// outcomes at any time, which takes exponentially long in the number of unknown
// outcomes. It would accept every history that this specification accepts.
var specification = porcupine.Model{
	Init: func() any { return &object{shown: showAll(nil, nil, nil, nil)} },
	Step: func(state, input, output any) (bool, any) {
		op, got := input.(*operation), output.(*outcome)
		next, want := state.(*object).apply(&op.req, modelTime)
		if !got.known {
			return want.event == got.event && want.version == got.version, next
		}
		return *got == want, next
	},
	Equal: func(a, b any) bool { return a == b || a.(*object).digest() == b.(*object).digest() },
	Hash: func(s any) uint64 {
		h := fnv.New64a()
		h.Write([]byte(s.(*object).shown))
		return h.Sum64()
	},
	DescribeOperation: func(input, output any) string {
		return fmt.Sprintf("%s → %+v", describe(input.(*operation)), *output.(*outcome))
	},
	DescribeState: func(s any) string { return s.(*object).shown },
}

var modelTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func describe(op *operation) string {
	b, err := json.Marshal(op.req.Command)
	if err != nil {
		panic(err)
	}
	return fmt.Sprintf("%s at %d: %s %s %s%s by %s %s key=%q if=%d", op.id, op.at, op.req.Topic, op.req.ID, op.req.Command.CommandName(), b, op.req.Actor.Role, op.req.Actor.Sub,
		op.req.IdempotencyKey, op.req.IfMatch)
}

// checkLinearizable compares the history of each object with the specification. If a
// history is not linearizable, it reports the longest part that is, and the operation
// that does not fit.
func checkLinearizable(t testing.TB, ops []*operation) {
	t.Helper()
	byObject := map[string][]porcupine.Operation{}
	for _, op := range ops {
		if !op.outcome.known && op.outcome.event == "" {
			continue
		}
		byObject[op.object] = append(byObject[op.object], porcupine.Operation{Input: op, Output: &op.outcome, Call: op.call, Return: op.ret})
	}
	start := time.Now()
	bad, most := 0, 0
	for _, name := range slices.Sorted(maps.Keys(byObject)) {
		history := byObject[name]
		most = max(most, len(history))
		result, info := porcupine.CheckOperationsVerbose(specification, history, 3*time.Minute)
		if result == porcupine.Ok {
			continue
		}
		if bad++; bad > 3 {
			continue
		}
		t.Errorf("the history of %s is not linearizable: %s\n%s", name, result, explain(history, info))
	}
	t.Logf("%d operations on %d objects, at most %d on one, checked in %s", len(ops), len(byObject), most, time.Since(start).Round(time.Millisecond))
}

func explain(history []porcupine.Operation, info porcupine.LinearizationInfo) string {
	longest := []int{}
	for _, partial := range info.PartialLinearizations()[0] {
		if len(partial) > len(longest) {
			longest = partial
		}
	}
	var b strings.Builder
	state := specification.Init()
	placed := map[int]bool{}
	line := func(mark string, i int) {
		op, out := history[i].Input.(*operation), history[i].Output.(*outcome)
		end := "…"
		if op.ret != math.MaxInt64 {
			end = time.Duration(op.ret).Round(time.Microsecond).String()
		}
		fmt.Fprintf(&b, "%s [%s %s] %s\n      answered %s\n", mark, time.Duration(op.call).Round(time.Microsecond), end, describe(op), short(*out))
	}
	for n, i := range longest {
		placed[i] = true
		_, state = specification.Step(state, history[i].Input, history[i].Output)
		if n >= len(longest)-12 {
			line("  ok", i)
		}
	}
	fmt.Fprintf(&b, "then the state is %s\n", state.(*object).shown)
	n := 0
	for i := range history {
		if placed[i] || n == 6 {
			continue
		}
		n++
		line("  ??", i)
		_, want := state.(*object).apply(&history[i].Input.(*operation).req, modelTime)
		fmt.Fprintf(&b, "      wanted   %s\n", short(want))
	}
	return b.String()
}

func short(o outcome) string {
	return fmt.Sprintf("known=%v code=%q event=%s@%d repeated=%v status=%d shown=%s", o.known, o.code, o.event, o.version, o.repeated, o.status, strings.TrimSpace(o.shown))
}
