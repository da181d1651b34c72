// Package simulate plays a town against a running Tomato: customers who pay
// and change their minds, restaurants, riders who race for orders, and the
// payment gateway with its faults, over HTTP and websocket only.
//
// A run goes through these states: register all parties and connect their
// feeds; place orders, each followed by its own goroutine; wait until every
// order has its end and every refund is done; reconcile; leave (riders go
// offline, restaurants close).
//
// Two books are compared at the end. The simulator's own (ledger) is
// authoritative for what was promised: every acknowledged command, every
// payment it made the gateway capture, every feed message received. Tomato's
// queries say what happened. What is in one and not in the other, or twice, is
// a broken promise (judge). Nothing is taken from inside Tomato.
//
// Failure handling: 429, 503, 409 idempotency_in_progress and network errors
// are retried with the same Idempotency-Key, bounded by Options.RetryFor; a
// feed reconnects with its cursor, and after feed:reset its party reads by
// REST, so that Tomato may be killed and restarted under a run. A run that
// makes no progress for Options.Timeout ends and reports what was awaited.
package simulate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tomato/domain"
)

// Options say what a run is to be. The zero value of each field has a default.
type Options struct {
	Orders  int     // default 100; with a dataset all of it, else the first so many
	Riders  int     // default 50; with a dataset those in it
	Rate    float64 // orders placed per second at most; 0 as fast as MaxOpen lets
	MaxOpen int     // orders under way at once; default twice the riders, at most 128
	Dataset string  // path of a file of deliveries; "" makes up a town

	URL         string // of a running serve, or several separated by commas; default http://127.0.0.1:8080
	JWTSecret   string // HS256; tokens for every party are made with it
	JWTIssuer   string // iss of the tokens, "" for none
	JWTAudience string // aud of the tokens, "" for none

	Seed     int64         // same seed, same plans; who wins a race is not in it
	Timeout  time.Duration // longest time without progress, default 2 min
	RetryFor time.Duration // longest time for one call with its retries, default 1 min

	// feedPatience is how long a party waits for its feed before it acts on
	// what it reads by REST; the missing message is judged at the end. Default 10 s.
	feedPatience time.Duration
	// webhookPatience is how long a customer waits before the gateway is made
	// to send a webhook again that was lost on purpose. Default 2 s.
	webhookPatience time.Duration

	JSON     bool      // the report as one JSON object
	Out      io.Writer // of the report, default os.Stdout
	Progress io.Writer // bar on a terminal, lines elsewhere; default os.Stderr
}

func (o Options) withDefaults() Options {
	if o.Orders <= 0 && o.Dataset == "" {
		o.Orders = 100
	}
	if o.Riders <= 0 {
		o.Riders = 50
	}
	if o.URL == "" {
		o.URL = "http://127.0.0.1:8080"
	}
	if o.Timeout <= 0 {
		o.Timeout = 2 * time.Minute
	}
	if o.RetryFor <= 0 {
		o.RetryFor = time.Minute
	}
	if o.feedPatience <= 0 {
		o.feedPatience = 10 * time.Second
	}
	if o.webhookPatience <= 0 {
		o.webhookPatience = 2 * time.Second
	}
	if o.Out == nil {
		o.Out = os.Stdout
	}
	if o.Progress == nil {
		o.Progress = os.Stderr
	}
	return o
}

const (
	defaultMaxOpen   = 128
	maxCustomers     = 500
	maxDials         = 32
	bulkPositions    = 500 // in one request
	positionsEvery   = time.Minute
	firstAnswerLimit = 10 * time.Second
	connectLimit     = time.Minute
	leaveLimit       = 20 * time.Second
	leftoverLimit    = 15 * time.Second
	judgeAtOnce      = 32
	maxJudgePasses   = 3 // of an order with faults and nothing awaited
	duplicateWait    = time.Second
	stallCheck       = 200 * time.Millisecond
)

// bengaluru is the middle of the made-up town.
var bengaluru = domain.Point{Lng: 77.5946, Lat: 12.9716}

type simulation struct {
	opt       Options
	run       string // a part of every id, so that runs do not meet
	api       *client
	ledger    *ledger
	opsToken  string // token
	feeds     feedCounts
	dialSlots chan struct{}
	latency

	restaurants  []*restaurant
	riders       []*rider
	customers    []*customer
	purchases    []purchase
	dataset      *Dataset
	restaurantOf map[*party]*restaurant
	riderOf      map[string]*rider

	keys       atomic.Uint64
	placed     atomic.Int64
	dispatched sync.Map       // order id → *atomic.Int64 of rounds asked for by ops
	feedWork   sync.WaitGroup // what feeds set off; held up until the feeds have ended
}

// purchase is one order to be placed.
type purchase struct {
	restaurant *restaurant
	item       string
	to         domain.Point
}

// Run plays the simulation and writes its report to o.Out. The error says that
// it could not be played at all, or that ctx ended it early; broken promises
// are in the report.
func Run(ctx context.Context, o Options) (Report, error) {
	o = o.withDefaults()
	s := &simulation{
		opt: o, api: newClient(o), ledger: newLedger(), dialSlots: make(chan struct{}, maxDials),
		run:          strconv.FormatInt(time.Now().UnixMilli(), 36),
		restaurantOf: map[*party]*restaurant{}, riderOf: map[string]*rider{},
	}
	defer s.api.transport.CloseIdleConnections()
	if len(o.JWTSecret) == 0 {
		return Report{}, errors.New("simulate: no JWT secret to make tokens with")
	}
	for _, u := range s.api.urls {
		if p, err := url.Parse(u); err != nil || p.Scheme != "http" && p.Scheme != "https" || p.Host == "" {
			return Report{}, fmt.Errorf("simulate: %q is no http URL", u)
		}
	}
	if err := s.populate(); err != nil {
		return Report{}, fmt.Errorf("simulate: %w", err)
	}
	start := time.Now()
	err := s.play(ctx)
	rep := s.report(time.Since(start))
	rep.Interrupted = ctx.Err() != nil
	if err != nil && ctx.Err() == nil {
		return rep, fmt.Errorf("simulate: %w", err)
	}
	if werr := rep.Write(o.Out, o.JSON); werr != nil {
		return rep, fmt.Errorf("simulate: %w", werr)
	}
	return rep, ctx.Err()
}

// play is the run between population and report.
func (s *simulation) play(ctx context.Context) error {
	s.api.patience = min(s.opt.RetryFor, firstAnswerLimit) // a wrong URL should not take long to say
	before, err := s.deadLetters(ctx)
	if err != nil {
		return err
	}
	s.api.patience = s.opt.RetryFor
	if err := s.register(ctx); err != nil {
		return err
	}

	// Feeds and riders go on while the buyers' orders are awaited and judged.
	running, stopRunning := context.WithCancel(ctx)
	s.feedWork.Add(1)
	var feeds, others sync.WaitGroup
	end := sync.OnceFunc(func() {
		stopRunning()
		feeds.Wait()
		s.feedWork.Done()
		s.feedWork.Wait()
		others.Wait()
	})
	defer end()
	defer s.leave(ctx)
	if err := s.connect(running, &feeds); err != nil {
		return err
	}
	if err := s.open(ctx); err != nil {
		return err
	}
	others.Go(func() { s.keepPositions(running) })
	others.Go(func() { s.watchExhausted(running) })
	for _, d := range s.riders {
		if d.ineligible == "" {
			others.Go(func() { d.run(running, s) })
		}
	}

	show := newProgress(s.opt.Progress, len(s.purchases))
	others.Go(func() { show.run(running, s) })
	s.ledger.lastProgress.Store(time.Now().UnixNano())
	s.placeAll(running)
	show.phase("reconciling")
	s.reconcile(running)
	switch {
	case ctx.Err() != nil:
	case s.stalled():
		s.ledger.fault(faultUnfinished, "", "lists, riders and dead letters were not checked: nothing moved for %s", s.opt.Timeout)
	default:
		s.checkLists(running)
		s.checkRiders(running)
		after, err := s.deadLetters(running)
		switch {
		case err != nil && ctx.Err() == nil:
			s.ledger.fault(faultUnexpectedAnswer, "", "dead letters: %v", err)
		case after > before:
			s.ledger.fault(faultDeadLetter, "", "%d more dead letters than before", after-before)
		}
	}
	end()
	show.done()
	return ctx.Err()
}

// populate makes up the parties and the orders; nothing is sent yet.
func (s *simulation) populate() error {
	rng := rand.New(rand.NewPCG(uint64(s.opt.Seed), 0))
	var err error
	if s.opsToken, err = s.api.token(domain.Ops, "sim-ops-"+s.run, ""); err != nil {
		return err
	}
	if s.opt.Dataset != "" {
		err = s.populateDataset(rng)
	} else {
		err = s.populateTown(rng)
	}
	if err != nil {
		return err
	}
	// Riders to whom no offer may ever come, among the others.
	for i, why := range []string{"unverified", "offline", "suspended", "stale"} {
		near := s.restaurants[i%len(s.restaurants)].location
		d, err := s.addRider("sim-"+why+"-"+s.run, "Rider who is "+why, "", scatter(rng, near, 300))
		if err != nil {
			return err
		}
		d.ineligible = why
	}
	for i := range min(len(s.purchases), maxCustomers) {
		id := fmt.Sprintf("sim-c%d-%s", i, s.run)
		c := &customer{party: s.ledger.addParty(domain.Customer, id)}
		if c.token, err = s.api.token(domain.Customer, id, ""); err != nil {
			return err
		}
		s.customers = append(s.customers, c)
	}
	if s.opt.MaxOpen <= 0 {
		s.opt.MaxOpen = min(2*len(s.riders), defaultMaxOpen)
	}
	return nil
}

func (s *simulation) populateTown(rng *rand.Rand) error {
	for i := range max(5, s.opt.Orders/5) {
		id := fmt.Sprintf("sim-k%d-%s", i, s.run)
		if err := s.addRestaurant(rng, id, "Kitchen "+strconv.Itoa(i), scatter(rng, bengaluru, 3000), []string{"meal", "snack", "drinks"}); err != nil {
			return err
		}
	}
	for i := range s.opt.Riders {
		if _, err := s.addRider(fmt.Sprintf("sim-r%d-%s", i, s.run), "Rider "+strconv.Itoa(i), "motorcycle", scatter(rng, bengaluru, 1500)); err != nil {
			return err
		}
	}
	for range s.opt.Orders {
		k := s.restaurants[rng.IntN(len(s.restaurants))]
		s.purchases = append(s.purchases, purchase{k, k.items[rng.IntN(len(k.items))], scatter(rng, k.location, 4000)})
	}
	return nil
}

// populateDataset takes restaurants, riders and addresses from where the file
// has them. Menu prices are not in it: they are the simulator's own.
func (s *simulation) populateDataset(rng *rand.Rand) error {
	d, err := LoadDataset(s.opt.Dataset)
	if err != nil {
		return err
	}
	if len(d.Deliveries) == 0 {
		return fmt.Errorf("dataset %s: none of its %d rows can be used", s.opt.Dataset, d.Rows)
	}
	s.dataset = d
	at := map[string]*restaurant{}
	for _, site := range d.Sites {
		if err := s.addRestaurant(rng, site.ID+"-"+s.run, site.ID, site.Location, site.Items); err != nil {
			return err
		}
		at[site.ID] = s.restaurants[len(s.restaurants)-1]
	}
	for _, c := range d.Couriers {
		if _, err := s.addRider(c.ID+"-"+s.run, c.ID, c.Vehicle, scatter(rng, c.Home, 500)); err != nil {
			return err
		}
	}
	deliveries := d.Deliveries
	if s.opt.Orders > 0 && s.opt.Orders < len(deliveries) {
		deliveries = deliveries[:s.opt.Orders]
	}
	for _, x := range deliveries {
		s.purchases = append(s.purchases, purchase{at[x.Restaurant], x.Item, x.DeliverTo})
	}
	return nil
}

func (s *simulation) addRestaurant(rng *rand.Rand, id, name string, at domain.Point, items []string) error {
	k := &restaurant{party: s.ledger.addParty(domain.Restaurant, id), name: name, location: at, items: items, price: map[string]int64{}}
	for _, item := range items {
		k.price[item] = 100 * (50 + rng.Int64N(450)) // 50 to 499 rupees, in paise
	}
	var err error
	k.token, err = s.api.token(domain.Restaurant, id, id)
	s.restaurants = append(s.restaurants, k)
	s.restaurantOf[k.party] = k
	return err
}

func (s *simulation) addRider(id, name, vehicle string, home domain.Point) (*rider, error) {
	n := uint64(len(s.riders))
	d := &rider{
		party: s.ledger.addParty(domain.Rider, id), name: name, vehicle: vehicle, home: home,
		offers: map[string]offer{}, wake: make(chan struct{}, 1), acceptsTwo: n%10 == 9,
		rng: rand.New(rand.NewPCG(uint64(s.opt.Seed), 1<<32+n)),
	}
	var err error
	d.token, err = s.api.token(domain.Rider, id, "")
	s.riders = append(s.riders, d)
	s.riderOf[id] = d
	return d, err
}

// scatter returns a place within so many metres of p, rounded to centimetres.
func scatter(rng *rand.Rand, p domain.Point, meters float64) domain.Point {
	const metersPerDegree = 111_320
	r, a := meters*math.Sqrt(rng.Float64()), 2*math.Pi*rng.Float64()
	round := func(x float64) float64 { return math.Round(x*1e7) / 1e7 }
	return domain.Point{
		Lat: round(p.Lat + r*math.Sin(a)/metersPerDegree),
		Lng: round(p.Lng + r*math.Cos(a)/(metersPerDegree*math.Cos(p.Lat*math.Pi/180))),
	}
}

func (s *simulation) key() string { return s.run + "-" + strconv.FormatUint(s.keys.Add(1), 36) }

// must makes a call that has to succeed; anything else is a broken promise.
func (s *simulation) must(ctx context.Context, token, method, path string, body any) (answer, bool) {
	a, err := s.api.do(ctx, call{token: token, method: method, path: path, body: body, key: s.key()})
	if err != nil {
		s.unanswered(ctx, "", err)
		return a, false
	}
	if !a.ok() {
		s.ledger.fault(faultUnexpectedAnswer, "", "%s %s: %s", method, path, a)
		return a, false
	}
	return a, true
}

// each runs f for every i below n at once (the client bounds the requests)
// and says whether all succeeded.
func each(n int, f func(i int) bool) bool {
	var wg sync.WaitGroup
	var failed atomic.Bool
	for i := range n {
		wg.Go(func() {
			if !f(i) {
				failed.Store(true)
			}
		})
	}
	wg.Wait()
	return !failed.Load()
}

func (s *simulation) setupError(ctx context.Context, what string) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	if len(s.ledger.faults) > 0 {
		return fmt.Errorf("%s: %s", what, s.ledger.faults[0].Detail)
	}
	return errors.New(what)
}

// register makes restaurants with menus and riders known, with positions.
func (s *simulation) register(ctx context.Context) error {
	ok := each(len(s.restaurants), func(i int) bool {
		k := s.restaurants[i]
		if _, ok := s.must(ctx, k.token, http.MethodPut, "/v1/restaurants/"+k.id, object{"name": k.name, "location": k.location}); !ok {
			return false
		}
		for _, item := range k.items {
			if _, ok := s.must(ctx, k.token, http.MethodPut, "/v1/restaurants/"+k.id+"/menu/"+item, object{
				"name": item, "price": object{"amount": k.price[item], "currency": "INR"}, "available": true,
			}); !ok {
				return false
			}
		}
		return true
	})
	ok = each(len(s.riders), func(i int) bool {
		d := s.riders[i]
		body := object{"name": d.name}
		if d.vehicle != "" {
			body["vehicle"] = d.vehicle
		}
		if _, ok := s.must(ctx, d.token, http.MethodPut, "/v1/riders/"+d.id, body); !ok {
			return false
		}
		if d.ineligible == "unverified" {
			return true
		}
		_, ok := s.must(ctx, s.opsToken, http.MethodPost, "/v1/riders/"+d.id+"/verify", nil)
		if ok && d.ineligible == "suspended" {
			_, ok = s.must(ctx, s.opsToken, http.MethodPost, "/v1/riders/"+d.id+"/suspend", nil)
		}
		return ok
	}) && ok
	if !ok {
		return s.setupError(ctx, "registering")
	}
	return nil
}

// open sends the first positions, then opens restaurants and sends riders online.
func (s *simulation) open(ctx context.Context) error {
	ok := s.sendPositions(ctx, true)
	ok = each(len(s.restaurants), func(i int) bool {
		_, ok := s.must(ctx, s.restaurants[i].token, http.MethodPost, "/v1/restaurants/"+s.restaurants[i].id+"/open", nil)
		return ok
	}) && ok
	ok = each(len(s.riders), func(i int) bool {
		d := s.riders[i]
		switch d.ineligible {
		case "", "stale":
			_, ok := s.must(ctx, d.token, http.MethodPost, "/v1/riders/"+d.id+"/online", nil)
			return ok
		}
		return true
	}) && ok
	if !ok {
		return s.setupError(ctx, "opening")
	}
	return nil
}

// sendPositions tells where the riders are at home; the stale one's only once,
// as of long ago.
func (s *simulation) sendPositions(ctx context.Context, first bool) bool {
	ok := true
	var batch []object
	flush := func() {
		if len(batch) == 0 {
			return
		}
		a, sent := s.must(ctx, s.opsToken, http.MethodPost, "/v1/rider-locations", object{"positions": batch})
		var res struct {
			Accepted int `json:"accepted"`
			Rejected []struct {
				Index int    `json:"index"`
				Code  string `json:"code"`
			} `json:"rejected"`
		}
		if sent {
			if err := unmarshal(a, &res); err != nil || len(res.Rejected) > 0 {
				s.ledger.fault(faultUnexpectedAnswer, "", "positions: %s", a)
			}
		}
		ok = ok && sent
		batch = batch[:0]
	}
	for _, d := range s.riders {
		p := object{"riderId": d.id, "location": d.home}
		if d.ineligible == "stale" {
			if !first {
				continue
			}
			p["recordedAt"] = time.Now().Add(-10 * time.Minute).UTC().Format(time.RFC3339)
		}
		if batch = append(batch, p); len(batch) == bulkPositions {
			flush()
		}
	}
	flush()
	return ok
}

// keepPositions keeps the riders fresh: a position older than five minutes
// gets no offers.
func (s *simulation) keepPositions(ctx context.Context) {
	t := time.NewTicker(positionsEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			s.sendPositions(ctx, false)
		}
	}
}

// connect opens the feed of every party and returns when all are up.
func (s *simulation) connect(ctx context.Context, wg *sync.WaitGroup) error {
	rng := rand.New(rand.NewPCG(uint64(s.opt.Seed), 1<<33))
	var all []*feed
	add := func(p *party, token, room string, on func(message), reset func(context.Context)) *feed {
		f := &feed{sim: s, party: p, token: token, rooms: []string{room}, onMessage: on, onReset: reset}
		if rng.IntN(16) == 0 {
			f.flaky = 5 + rng.IntN(40)
		}
		all = append(all, f)
		return f
	}
	for _, k := range s.restaurants {
		k.feed = add(k.party, k.token, "restaurant:"+k.id,
			func(m message) { k.receive(ctx, s, m) },
			func(context.Context) { s.feedWork.Go(func() { s.reloadRestaurant(ctx, k) }) })
	}
	for _, d := range s.riders {
		d.feed = add(d.party, d.token, "user:"+d.id,
			func(m message) { d.receive(s, m) },
			func(context.Context) { s.feedWork.Go(func() { s.reloadRider(ctx, d) }) })
	}
	for _, c := range s.customers {
		c.feed = add(c.party, c.token, "user:"+c.id, func(m message) { s.ledger.received(m) }, nil)
	}
	ops := s.ledger.addParty(domain.Ops, "sim-ops-"+s.run)
	f := add(ops, s.opsToken, "ops", func(m message) {
		if r := s.ledger.find(m.data.OrderID); r != nil && m.Event == "dispatch:exhausted" {
			s.feedWork.Go(func() { s.dispatchAgain(ctx, r) })
		}
	}, nil)
	f.join, f.flaky = "ops", 0

	up := make(chan struct{}, len(all))
	for _, f := range all {
		once := sync.OnceFunc(func() { up <- struct{}{} })
		wg.Go(func() { f.run(ctx, once) })
	}
	limit := time.NewTimer(connectLimit)
	defer limit.Stop()
	for n := range all {
		select {
		case <-up:
		case <-limit.C:
			return s.setupError(ctx, fmt.Sprintf("%d of %d feeds were up within %s", n, len(all), connectLimit))
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// reloadRestaurant takes up the orders whose order:new may have been lost.
func (s *simulation) reloadRestaurant(ctx context.Context, k *restaurant) {
	a, ok := s.must(ctx, k.token, http.MethodGet, "/v1/orders?status=placed&limit=200", nil)
	var list struct {
		Items []orderView `json:"items"`
	}
	if !ok || unmarshal(a, &list) != nil {
		return
	}
	for _, v := range list.Items {
		if r := s.ledger.find(v.OrderID); r != nil && v.PaymentStatus == "paid" && r.restaurantStarted.CompareAndSwap(false, true) {
			s.cook(ctx, r, k)
		}
	}
}

// reloadRider takes up the offers that are still open.
func (s *simulation) reloadRider(ctx context.Context, d *rider) {
	if d.ineligible != "" {
		return
	}
	a, ok := s.must(ctx, d.token, http.MethodGet, "/v1/riders/"+d.id+"/offers", nil)
	var list struct {
		Items []payload `json:"items"`
	}
	if !ok || unmarshal(a, &list) != nil {
		return
	}
	d.mu.Lock()
	for _, o := range list.Items {
		if r := s.ledger.find(o.OrderID); r != nil {
			d.offers[r.id] = offer{r, time.Now(), o.ExpiresAt}
		}
	}
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// watchExhausted lets ops see exhausted orders even when its feed missed one.
func (s *simulation) watchExhausted(ctx context.Context) {
	t := time.NewTicker(2 * pollEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		a, ok := s.must(ctx, s.opsToken, http.MethodGet, "/v1/orders?dispatch=exhausted&limit=200", nil)
		var list struct {
			Items []orderView `json:"items"`
		}
		if !ok || unmarshal(a, &list) != nil {
			continue
		}
		for _, v := range list.Items {
			if r := s.ledger.find(v.OrderID); r != nil {
				s.dispatchAgain(ctx, r)
			}
		}
	}
}

// dispatchAgain plays the operator whom an exhausted order comes before. It
// may be asked twice for one exhaustion: the second is refused.
func (s *simulation) dispatchAgain(ctx context.Context, r *orderEntry) {
	v, _ := s.dispatched.LoadOrStore(r.id, new(atomic.Int64))
	if v.(*atomic.Int64).Add(1) > maxDispatch {
		return
	}
	r.mu.Lock()
	r.redispatched = true
	r.mu.Unlock()
	s.command(ctx, r, s.opsToken, "dispatch", "", nil, "invalid_transition")
}

// buyAll places the orders and returns when each has its end, or nothing has
// moved for Options.Timeout.
func (s *simulation) placeAll(ctx context.Context) {
	ctx, stop := s.untilStalled(ctx)
	defer stop()
	var pace <-chan time.Time
	if s.opt.Rate > 0 {
		t := time.NewTicker(max(time.Microsecond, time.Duration(float64(time.Second)/s.opt.Rate)))
		defer t.Stop()
		pace = t.C
	}
	slots := make(chan struct{}, s.opt.MaxOpen)
	var buyers sync.WaitGroup
place:
	for i, p := range s.purchases {
		if pace != nil {
			select {
			case <-pace:
			case <-ctx.Done():
				break place
			}
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			break place
		}
		c := s.customers[i%len(s.customers)]
		r := s.ledger.add(planOf(s.opt.Seed, i), c.party, p.restaurant.party, p.to)
		buyers.Go(func() {
			defer func() { <-slots }()
			s.playCustomer(ctx, r, c, p.restaurant, p.item, p.to)
		})
	}
	buyers.Wait()
}

// untilStalled returns a context that ends when nothing has moved for
// Options.Timeout. stop releases what watches it.
func (s *simulation) untilStalled(ctx context.Context) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		t := time.NewTicker(stallCheck)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				if s.stalled() {
					cancel()
				}
			}
		}
	})
	return ctx, func() { cancel(); watch.Wait() }
}

func (s *simulation) stalled() bool {
	return time.Since(time.Unix(0, s.ledger.lastProgress.Load())) > s.opt.Timeout
}

// leave takes the parties out of the way of the next run, as far as it goes.
func (s *simulation) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveLimit)
	defer cancel()
	each(len(s.riders), func(i int) bool {
		d := s.riders[i]
		_, err := s.api.do(ctx, call{token: d.token, method: http.MethodPost, path: "/v1/riders/" + d.id + "/offline", key: s.key()})
		return err == nil
	})
	each(len(s.restaurants), func(i int) bool {
		k := s.restaurants[i]
		_, err := s.api.do(ctx, call{token: k.token, method: http.MethodPost, path: "/v1/restaurants/" + k.id + "/close", key: s.key()})
		return err == nil
	})
}

// unmarshal decodes a successful answer.
func unmarshal(a answer, v any) error {
	if !a.ok() {
		return errors.New(a.String())
	}
	if err := json.Unmarshal(a.body, v); err != nil {
		return fmt.Errorf("%w in %s", err, clip(strings.TrimSpace(string(a.body))))
	}
	return nil
}
