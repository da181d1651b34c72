package shard

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/domain/restaurant"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

// driver sends commands from concurrent clients to the instances, and records the
// answers.
type driver struct {
	t          testing.TB
	seed       uint64
	partitions int32
	instances  []*instanceSlot
	limit      time.Duration // a caller's deadline
	start      time.Time
	http       *http.Client
	shop       eventlog.Token // has the position of the restaurant at which orders are placed

	asked, answered atomic.Int64 // commands

	mu     sync.Mutex
	ops    []*operation
	things []*thing // present things; each is replaced by a new one after some commands
	made   int
}

// instanceSlot is one of the instances. Its process changes when it is restarted.
type instanceSlot struct {
	n     int
	addr  atomic.Value // string
	mu    sync.Mutex
	proc  *child
	all   []*child // all its processes so far
	lives int
}

func (s *instanceSlot) child() *child {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proc
}

// thing is the target of commands, as the clients know it.
type thing struct {
	kind   string // rider, restaurant or order
	object string
	id     string // of an order, "" until an answer has it
	n      int
	left   int // number of commands until it is replaced

	mu         sync.Mutex
	order      *order.State
	payment    *payment.State
	rider      *rider.State
	restaurant *restaurant.State
	keyed      []Request // requests that were sent with an idempotency key
	place      *Request
}

// commandsPerThing bounds the history of one thing that porcupine has to check.
const commandsPerThing = 90

func newDriver(t testing.TB, seed uint64, partitions int32, instances []*instanceSlot) *driver {
	d := &driver{t: t, seed: seed, partitions: partitions, instances: instances, limit: 2500 * time.Millisecond, start: time.Now(),
		http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}}}
	for _, kind := range []string{"rider", "rider", "rider", "rider", "restaurant", "restaurant", "order", "order", "order", "order", "order", "order"} {
		d.things = append(d.things, d.newThing(kind))
	}
	t.Cleanup(d.http.CloseIdleConnections)
	return d
}

func (d *driver) newThing(kind string) *thing {
	d.made++
	th := &thing{kind: kind, n: d.made, object: fmt.Sprintf("%s-%d", kind, d.made), left: commandsPerThing}
	if kind != "order" {
		th.id = th.object
	}
	return th
}

// pick chooses a thing for the next command.
func (d *driver) pick(rng *rand.Rand) *thing {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := rng.IntN(len(d.things))
	th := d.things[i]
	if th.left--; th.left == 0 {
		d.things[i] = d.newThing(th.kind)
	}
	return th
}

// run sends commands until ctx ends, or until most were sent if most is not 0. It sends
// about rate per second, or as fast as the answers come if rate is 0.
func (d *driver) run(ctx context.Context, clients int, rate float64, most int64) {
	var wg sync.WaitGroup
	for n := range clients {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(d.seed, uint64(n)))
			var pace <-chan time.Time
			if rate > 0 {
				tick := time.NewTicker(time.Duration(float64(clients) / rate * float64(time.Second)))
				defer tick.Stop()
				pace = tick.C
			}
			for ctx.Err() == nil && (most == 0 || d.asked.Load() < most) {
				if pace != nil {
					select {
					case <-pace:
					case <-ctx.Done():
						return
					}
				}
				d.step(rng)
			}
		})
	}
	wg.Wait()
}

// step sends one command of one client. If the outcome is not known and the command
// has an idempotency key, step sometimes repeats it.
func (d *driver) step(rng *rand.Rand) {
	th := d.pick(rng)
	th.mu.Lock()
	r := d.next(rng, th)
	th.mu.Unlock()
	for try := 0; ; try++ {
		op := d.do(rng.IntN(len(d.instances)), th.object, r)
		if op == nil {
			return
		}
		d.learn(th, op)
		if op.outcome.known || r.IdempotencyKey == "" || try == 3 || rng.IntN(4) == 0 {
			return
		}
		if isPlace(r.Command) {
			r.ID = d.orderID(&r) // every try draws a new id
		}
	}
}

// do sends one command to one instance and records the answer. It returns nil if the
// specification says nothing about the answer.
func (d *driver) do(at int, object string, r Request) *operation {
	op := &operation{id: fmt.Sprint("op-", d.asked.Add(1)), object: object, at: at, ret: math.MaxInt64}
	r.CausationID = op.id
	op.req = r
	addr, _ := d.instances[at].addr.Load().(string)
	op.call = int64(time.Since(d.start))
	res, err := execute(context.Background(), d.http, addr, r, d.limit)
	ret := int64(time.Since(d.start))
	var refusal *domain.Refusal
	switch {
	case errors.Is(err, ErrUnavailable):
		op.failure = err
	case err != nil && !errors.As(err, &refusal):
		d.t.Errorf("%s: %v", describe(op), err)
		return nil
	case refusal != nil && refusal.Code == IdempotencyInProgress:
		op.failure = err // an earlier command with this key is still in flight
	default:
		if _, ok := r.Command.(order.CheckOffer); ok && err == nil && res.Order != nil && res.Order.Status == order.StatusReadyForRider {
			return nil // the answer that the offer is open promises nothing; Assign decides
		}
		d.answered.Add(1)
		op.ret, op.outcome = ret, outcomeOf(r.Topic, res, err)
	}
	d.mu.Lock()
	d.ops = append(d.ops, op)
	d.mu.Unlock()
	return op.withResult(res)
}

func (op *operation) withResult(res Result) *operation { op.result = res; return op }

// learn keeps the states in an answer, so that the next commands fit them.
func (d *driver) learn(th *thing, op *operation) {
	th.mu.Lock()
	defer th.mu.Unlock()
	res := op.result
	if res.Order != nil && (th.order == nil || th.order.Version <= res.Order.Version) {
		th.order, th.id = res.Order, res.Order.ID
	}
	if res.Payment != nil && (th.payment == nil || th.payment.Version <= res.Payment.Version) {
		th.payment = res.Payment
	}
	if res.Rider != nil && (th.rider == nil || th.rider.Version <= res.Rider.Version) {
		th.rider = res.Rider
	}
	if res.Restaurant != nil && (th.restaurant == nil || th.restaurant.Version <= res.Restaurant.Version) {
		th.restaurant = res.Restaurant
	}
}

// orderID draws the id of an order, as an instance does.
func (d *driver) orderID(r *Request) string {
	c := *r
	c.ID = ""
	(&Shards{Config: Config{Partitions: d.partitions}}).partitionOf(&c)
	return c.ID
}

// next returns the next command for a thing, mostly one that its state allows.
func (d *driver) next(rng *rand.Rand, th *thing) Request {
	if len(th.keyed) > 0 && rng.IntN(10) == 0 { // a repeat, perhaps long after the first
		r := th.keyed[rng.IntN(len(th.keyed))]
		if rng.IntN(12) == 0 {
			r.BodyHash = "another"
		}
		if isPlace(r.Command) {
			r.ID = d.orderID(&r)
		}
		return r
	}
	var r Request
	switch th.kind {
	case "rider":
		r = nextOfRider(rng, th)
	case "restaurant":
		r = nextOfRestaurant(rng, th)
	default:
		r = d.nextOfOrder(rng, th)
	}
	if r.IdempotencyKey == "" && rng.IntN(5) < 2 {
		r.IdempotencyKey, r.BodyHash = uuid.NewString(), "body"
	}
	if _, accept := r.Command.(order.CheckOffer); accept {
		r.IdempotencyKey, r.BodyHash = "", ""
	} else if !isPlace(r.Command) && rng.IntN(10) == 0 {
		r.IfMatch = Exists
		if v := th.version(r.Topic); v > 0 && rng.IntN(3) > 0 {
			if r.IfMatch = v; rng.IntN(2) == 0 {
				r.IfMatch, r.OrMatch = v+7, []int64{v}
			}
		}
	}
	if r.IdempotencyKey != "" {
		th.keyed = append(th.keyed, r)
	}
	return r
}

func (th *thing) version(topic string) int64 {
	o := object{order: th.order, payment: th.payment, rider: th.rider, restaurant: th.restaurant}
	return o.version(topic)
}

func oneOf[T any](rng *rand.Rand, all ...T) T { return all[rng.IntN(len(all))] }

func nextOfRider(rng *rand.Rand, th *thing) Request {
	r := Request{Topic: eventlog.Riders, ID: th.id, Actor: domain.SystemActor}
	self := domain.Actor{Sub: th.id, Role: domain.Rider}
	put := rider.Put{RiderID: th.id, Name: subjectkeystest.Name(th.id, oneOf(rng, "Una", "Uma", "Ula"))}
	claim := rider.ClaimFor{OrderID: oneOf(rng, anOrder, otherOrder), Round: 1 + rng.IntN(2), Wave: 1, CustomerID: "c", RestaurantID: "shop"}
	release := rider.Release{ClaimID: int64(1 + rng.IntN(7)), OrderID: anOrder}
	s := th.rider
	if s != nil && s.Claim != nil {
		release.ClaimID, release.OrderID = s.Claim.ID, s.Claim.OrderID
	}
	switch {
	case s == nil:
		r.Command = oneOf[domain.Command](rng, put, put, put, rider.Verify{}, rider.GoOnline{})
	case rng.IntN(3) == 0:
		r.Command = oneOf[domain.Command](rng, put, rider.Verify{}, rider.Suspend{}, rider.GoOnline{}, rider.GoOffline{}, claim, release)
	case s.Verification != rider.Verified:
		r.Command = rider.Verify{}
	case s.Claim != nil:
		r.Command = oneOf[domain.Command](rng, release, release, claim)
	case !s.Online:
		r.Command = rider.GoOnline{}
	default:
		r.Command = claim
	}
	switch r.Command.(type) {
	case rider.GoOnline, rider.GoOffline:
		r.Actor = self
		if rng.IntN(20) == 0 {
			r.Actor.Sub = "somebody"
		}
	}
	return r
}

func nextOfRestaurant(rng *rand.Rand, th *thing) Request {
	r := Request{Topic: eventlog.Restaurants, ID: th.id, Actor: domain.SystemActor}
	put := restaurant.Put{RestaurantID: th.id, Name: oneOf(rng, "Dosa", "Idli", "Vada"), Location: domain.Point{Lng: 77.6, Lat: 12.9}}
	if th.restaurant == nil && rng.IntN(5) > 0 {
		r.Command = put
		return r
	}
	item := oneOf(rng, "a", "b", "c")
	set := restaurant.SetMenuItem{Item: restaurant.MenuItem{ItemID: item, Name: item, Price: domain.Money{Amount: int64(100 * (1 + rng.IntN(3))), Currency: "INR"}, Available: rng.IntN(2) == 0}}
	r.Command = oneOf[domain.Command](rng, put, restaurant.Open{}, restaurant.Close{}, restaurant.Open{}, restaurant.Close{}, set, set, set, restaurant.RemoveMenuItem{ItemID: item})
	if rng.IntN(3) == 0 {
		r.Actor = domain.Actor{Sub: "staff", Role: domain.Restaurant, RestaurantID: th.id}
	}
	return r
}

func (d *driver) nextOfOrder(rng *rand.Rand, th *thing) Request {
	customer := domain.Actor{Sub: "c-" + th.object, Role: domain.Customer}
	if th.id == "" {
		if th.place == nil || rng.IntN(8) == 0 {
			th.place = &Request{Topic: eventlog.Orders, Actor: customer, IdempotencyKey: "place", BodyHash: "body",
				Command: Place{CustomerID: customer.Sub, RestaurantID: "shop", Lines: []restaurant.Line{{ItemID: oneOf(rng, "dosa", "dosa", "dosa", "dosa", "none"), Quantity: 1 + rng.IntN(3)}},
					DeliverTo: subjectkeystest.DeliverTo(customer.Sub, `{"address":"1 Road"}`), PaymentTTL: time.Hour}, After: d.shop}
		}
		r := *th.place
		r.ID = d.orderID(&r)
		return r
	}
	kitchen := domain.Actor{Sub: "staff", Role: domain.Restaurant, RestaurantID: "shop"}
	ops := domain.Actor{Sub: "ops", Role: domain.Ops}
	on := func(actor domain.Actor, c domain.Command) Request {
		return Request{Topic: eventlog.Orders, ID: th.id, Actor: actor, Command: c}
	}
	pay := func(actor domain.Actor, c domain.Command) Request {
		return Request{Topic: eventlog.Payments, ID: th.id, Actor: actor, Command: c}
	}
	s := th.order
	p := th.payment
	if p == nil {
		p = &payment.State{}
	}
	gateway, money := "g-"+th.object, oneOf(rng, s.Amount, s.Amount, s.Amount, s.Amount, s.Amount, 1)
	request := pay(customer, payment.RequestPayment{OrderID: th.id, Provider: "simulated", GatewayOrderID: gateway})
	captured := pay(domain.SystemActor, payment.RecordCaptured{PaymentID: oneOf(rng, "p1", "p1", "p2"), GatewayOrderID: gateway, Amount: money, Currency: s.Currency})
	failed := pay(domain.SystemActor, payment.RecordFailed{PaymentID: oneOf(rng, "p3", "p4"), GatewayOrderID: gateway, Amount: money, Currency: s.Currency, Reason: "declined"})
	refund := pay(domain.SystemActor, payment.RequestRefund{RefundID: oneOf(rng, "f1", "f2"), Reason: "because", ByOps: rng.IntN(2) == 0})
	refunded := pay(domain.SystemActor, payment.RecordRefund{RefundID: oneOf(rng, "f1", "f2"), Succeeded: rng.IntN(3) > 0})
	resolve := pay(ops, payment.Resolve{PaymentID: oneOf(rng, "p1", "p2"), Reason: "looked at", By: "ops"})
	paid := on(domain.SystemActor, order.MarkPaid{PaymentID: oneOf(rng, "p1", "p1", "p1", "p2"), AcceptTTL: time.Hour})
	who := oneOf(rng, "r1", "r2", "r3", "r4")
	offer := on(domain.SystemActor, order.OfferWave{Round: max(1, s.Round), Wave: s.Wave + rng.IntN(2), TTL: oneOf(rng, 100*time.Millisecond, time.Second, time.Hour), Limit: 3,
		Riders: []order.OfferedRider{{RiderID: who, DistanceMeters: 100}, {RiderID: oneOf(rng, "r1", "r2"), DistanceMeters: 200}}})
	assign := on(domain.SystemActor, order.Assign{RiderID: who, RiderName: subjectkeystest.Name(who, "Una"), ClaimID: int64(1 + rng.IntN(3)), Round: s.Round, Wave: s.Wave})
	by := func(a domain.Actor) Request { return on(a, order.Cancel{By: a, Reason: "changed my mind"}) }
	dropBy := oneOf(rng, ops, domain.Actor{Sub: who, Role: domain.Rider})
	if s.RiderID != "" && rng.IntN(3) > 0 {
		dropBy = domain.Actor{Sub: s.RiderID, Role: domain.Rider}
	}
	drop := on(dropBy, order.DropOrder{By: dropBy, Reason: "flat tyre"})
	carrier := domain.Actor{Sub: s.RiderID, Role: domain.Rider}
	if s.RiderID == "" {
		carrier.Sub = who
	}
	accept, prepare, ready := on(kitchen, order.AcceptOrder{PrepMinutes: 10}), on(kitchen, order.Prepare{}), on(kitchen, order.Ready{})
	pickUp, deliver := on(carrier, order.PickUpOrder{}), on(carrier, order.Deliver{})
	decline := on(domain.Actor{Sub: who, Role: domain.Rider}, order.Decline{RiderID: who})
	asks := on(domain.Actor{Sub: who, Role: domain.Rider}, order.CheckOffer{RiderID: who})
	exhaust := on(domain.SystemActor, order.Exhaust{Round: s.Round, LastWave: 2})
	dispatch := on(ops, order.RequestDispatch{})
	stranger := on(domain.Actor{Sub: "stranger", Role: domain.Customer}, order.Cancel{By: domain.Actor{Sub: "stranger", Role: domain.Customer}, Reason: "because"})
	if rng.IntN(4) == 0 {
		return oneOf(rng, request, captured, failed, refund, refunded, resolve, paid, offer, assign, drop, accept, prepare, ready, pickUp, deliver, decline, asks, exhaust, dispatch, stranger)
	}
	if rng.IntN(60) == 0 {
		return by(oneOf(rng, customer, kitchen, ops))
	}
	switch s.Status {
	case order.StatusPlaced:
		switch {
		case s.Paid():
			return oneOf(rng, accept, accept, accept, paid, refund)
		case p.Booked != "":
			return oneOf(rng, paid, paid, captured, request)
		case p.AwaitsMoney():
			return oneOf(rng, captured, captured, failed, request, paid)
		}
		return request
	case order.StatusAccepted:
		return oneOf(rng, prepare, prepare, accept)
	case order.StatusPreparing:
		return oneOf(rng, ready, ready, prepare)
	case order.StatusReadyForRider:
		if s.Exhausted {
			return oneOf(rng, dispatch, dispatch, assign)
		}
		if !s.WaveOpen {
			return oneOf(rng, offer, offer, offer, exhaust)
		}
		return oneOf(rng, assign, assign, assign, offer, decline, asks)
	case order.StatusRiderAssigned:
		return oneOf(rng, pickUp, pickUp, drop, assign, asks)
	case order.StatusPickedUp:
		return oneOf(rng, deliver, deliver, pickUp)
	}
	return oneOf(rng, refund, refund, refunded, refunded, captured, resolve, deliver, by(ops))
}
