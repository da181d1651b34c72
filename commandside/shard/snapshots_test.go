package shard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/domain/restaurant"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

// lone is an instance that joins no group. The test opens its shards.
type lone struct {
	*Shards
	t testing.TB
}

func newLone(t testing.TB, cfg eventlog.Config) *lone {
	t.Helper()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError + 1}))
	s, err := NewShards(Config{Kafka: cfg, Partitions: 1, Menus: NewMenus(), ClusterKeys: []string{testClusterKey}, PaymentGrace: time.Hour, ArchiveAfter: 720 * time.Hour, SnapshotEvery: time.Hour,
		InboxPassed: func(context.Context, string) (bool, error) { return true, nil }, Registry: prometheus.NewRegistry(), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.closeProducer)
	return &lone{s, t}
}

// owned is a shard that serves, for the test.
type owned struct {
	*shard
	t     testing.TB
	stop  context.CancelFunc
	ended chan error
}

func (l *lone) serve() *owned {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), time.Minute)
	defer cancel()
	sh, err := l.open(ctx, 0, true)
	if err != nil {
		l.t.Fatal(err)
	}
	o := &owned{shard: sh, t: l.t, ended: make(chan error, 1)}
	sctx, stop := context.WithCancel(context.Background())
	o.stop = stop
	go func() { o.ended <- sh.serve(sctx) }()
	l.t.Cleanup(func() { stop(); <-sh.closed })
	return o
}

// leave hands the shard over. It writes a last snapshot.
func (o *owned) leave() {
	o.t.Helper()
	o.stop()
	o.endsWith(errHandedOff)
}

func (o *owned) endsWith(why error) {
	o.t.Helper()
	select {
	case err := <-o.ended:
		if !errors.Is(err, why) {
			o.t.Fatalf("it stopped with %v, not: %v", err, why)
		}
	case <-time.After(20 * time.Second):
		o.t.Fatalf("it goes on for 20 s after it should have stopped: %v", why)
	}
}

// kill stops the shard without a last snapshot.
func (o *owned) kill() {
	o.post(func(time.Time) { o.fail(errBroken) })
	<-o.ended
}

func (o *owned) do(topic, id, key string, c domain.Command) (Result, error) {
	ctx, cancel := context.WithTimeout(o.t.Context(), 20*time.Second)
	defer cancel()
	r := Request{Topic: topic, ID: id, Actor: domain.SystemActor, Command: c, IdempotencyKey: key, BodyHash: c.CommandName()}
	if isPlace(c) {
		r.Actor = domain.Actor{Sub: "c1", Role: domain.Customer}
		r.ID = newOrderID()
	}
	return o.owner.local(ctx, o.shard, &r)
}

func (o *owned) must(topic, id, key string, c domain.Command) Result {
	o.t.Helper()
	res, err := o.do(topic, id, key, c)
	if err != nil {
		o.t.Fatalf("%s %s: %v", c.CommandName(), id, err)
	}
	return res
}

// snapshotNow makes the shard write a snapshot, and waits until it is committed.
func (o *owned) snapshotNow() {
	o.t.Helper()
	before := o.statusNow().SavedAt
	o.post(func(now time.Time) { o.snapshotAt = now })
	end := time.After(20 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !o.statusNow().SavedAt.After(before) {
		select {
		case <-tick.C:
		case err := <-o.ended:
			o.t.Fatal("no snapshot: ", err)
		case <-end:
			o.t.Fatal("no snapshot within 20 s")
		}
	}
}

func (o *owned) statusNow() Status {
	answer := make(chan Status, 1)
	select {
	case o.ask <- answer:
		return <-answer
	case <-o.closed:
		return Status{}
	}
}

// live returns the states in memory, by topic and id, and the idempotency keys.
func (a *aggregates) live() map[string]any {
	m := map[string]any{}
	for kind, held := range a.held {
		for id := range held {
			e, err := a.find(kind, id)
			if err != nil {
				m[id] = err
			}
			if e.version(kind) > 0 {
				m[recordKey{kind, id}.String()] = [logCount]any{e.order, e.payment, e.rider, e.restaurant}[kind]
			}
		}
	}
	for scope, u := range a.keys.known {
		m[fmt.Sprintf("key %x", scope)] = fmt.Sprintf("%s %s %d", u.text(scope), u.on.id, u.at)
	}
	return m
}

// town gives the shard some aggregates: n orders in various states with their payments,
// riders, and a restaurant.
func (o *owned) town(n int) {
	o.t.Helper()
	o.must(eventlog.Restaurants, "r1", "", restaurant.Put{RestaurantID: "r1", Name: "Dosa Corner", Location: domain.Point{Lng: 77.6, Lat: 12.9}})
	o.must(eventlog.Restaurants, "r1", "", restaurant.SetMenuItem{Item: restaurant.MenuItem{ItemID: "dosa", Name: "Dosa", Price: domain.Money{Amount: 12000, Currency: "INR"}, Available: true}})
	o.must(eventlog.Restaurants, "r1", "", restaurant.Open{})
	for i := range n {
		o.life(uuid.NewString(), i)
	}
}

func (o *owned) life(name string, steps int) {
	o.t.Helper()
	id := o.must(eventlog.Orders, "", name, Place{CustomerID: "c1", RestaurantID: "r1", PaymentTTL: time.Hour, Lines: []restaurant.Line{{ItemID: "dosa", Quantity: 1 + steps}},
		DeliverTo: subjectkeystest.DeliverTo("c1", `{"address":"4 Church Street"}`)}).Order.ID
	riderID, pay := "rider-"+name, "pay_"+name
	for i, step := range []func(){
		func() {
			o.must(eventlog.Payments, id, "", payment.RequestPayment{OrderID: id, Provider: "simulated", GatewayOrderID: "g" + name})
		},
		func() {
			o.must(eventlog.Payments, id, "", payment.RecordCaptured{PaymentID: pay, GatewayOrderID: "g" + name, Amount: 12000 * int64(1+steps), Currency: "INR"})
		},
		func() { o.must(eventlog.Orders, id, "", order.MarkPaid{PaymentID: pay, AcceptTTL: time.Hour}) },
		func() { o.must(eventlog.Orders, id, "a"+name, order.AcceptOrder{PrepMinutes: 10}) },
		func() { o.must(eventlog.Orders, id, "p"+name, order.Prepare{}) },
		func() { o.must(eventlog.Orders, id, "r"+name, order.Ready{}) },
		func() {
			o.must(eventlog.Orders, id, "", order.OfferWave{Round: 1, Wave: 1, Riders: []order.OfferedRider{{RiderID: riderID, DistanceMeters: 120}}, Limit: 10, TTL: time.Hour})
		},
		func() {
			o.must(eventlog.Riders, riderID, "", rider.Put{RiderID: riderID, Name: subjectkeystest.Name(riderID, "R")})
		},
		func() { o.must(eventlog.Riders, riderID, "", rider.Verify{}) },
		func() { o.must(eventlog.Riders, riderID, "", rider.GoOnline{}) },
		func() { o.must(eventlog.Riders, riderID, "", rider.ClaimFor{OrderID: id, Round: 1, Wave: 1}) },
		func() {
			o.must(eventlog.Orders, id, "", order.Assign{RiderID: riderID, RiderName: subjectkeystest.Name(riderID, "R"), ClaimID: 4, Round: 1, Wave: 1})
		},
		func() {
			o.must(eventlog.Orders, id, "x"+name, order.Cancel{Reason: "no", By: domain.Actor{Sub: "o", Role: domain.Ops}})
		},
		func() {
			o.must(eventlog.Payments, id, "", payment.RequestRefund{RefundID: uuid.NewString(), Reason: "no"})
		},
	} {
		if i >= steps {
			return
		}
		step()
	}
}

// savedKeys loads the snapshot of shard 0 as a take-over does. It also fences the
// present writer.
func savedKeys(t testing.TB, cfg eventlog.Config) map[string]*kgo.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	l := newLone(t, cfg)
	w, err := l.openSnapshots(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	last, err := w.load(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return last
}

func snapshotTopics(t testing.TB, cfg eventlog.Config) {
	t.Helper()
	eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: 1})
}

// A take-over that loads a snapshot has the same states and idempotency keys as one that
// reads the whole logs, and it reads fewer events.
func TestASnapshotAndTheTailAreTheWholeLog(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		snapshotTopics(t, cfg)
		a := newLone(t, cfg).serve()
		a.town(15)
		a.snapshotNow()
		a.life("between", 14)
		a.snapshotNow()
		a.town(4) // its commands on the restaurant are repeats and append nothing
		a.kill()

		b := newLone(t, cfg)
		loaded := b.serve()
		loaded.leave()
		if loaded.replayed > 60 {
			t.Errorf("%d events were read after the snapshot", loaded.replayed)
		}
		whole := newLone(t, cfg)
		sh := whole.newShard(0, whole.producer)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		ends, err := eventlog.EndOffsets(ctx, whole.producer, eventlog.AggregateTopics[:]...)
		if err != nil {
			t.Fatal(err)
		}
		if err := sh.read(ctx, nil, ends); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(sh.agg.live(), loaded.agg.live()); d != "" {
			t.Errorf("whole log (-) and snapshot with tail (+):\n%s", d)
		}
		if sh.replayed < 150 || len(sh.agg.live()) < 40 {
			t.Errorf("%d events, %d things: the test has too little in it", sh.replayed, len(sh.agg.live()))
		}
		// After the last snapshot, at the hand-over, nothing is left to read, and
		// repeats of idempotency keys are answered from it.
		c := newLone(t, cfg).serve()
		if c.replayed != 0 {
			t.Errorf("%d events were left after a hand-over", c.replayed)
		}
		if res := c.must(eventlog.Orders, "", "between", Place{CustomerID: "c1"}); !res.Repeated || res.Status != 201 || res.Order.Status != order.StatusCancelled {
			t.Errorf("the repeat: %+v", res)
		}
	})
}

// A deposed owner cannot write a snapshot after its successor. Its attempt fails and
// ends its claim, and the topic has the successor's snapshot.
func TestADeposedOwnersSnapshotIsNotKept(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		snapshotTopics(t, cfg)
		a := newLone(t, cfg).serve()
		a.town(2)
		a.snapshotNow()
		a.must(eventlog.Riders, "x", "", rider.Put{RiderID: "x", Name: subjectkeystest.Name("x", "of A")})
		b := newLone(t, cfg).serve()
		b.must(eventlog.Riders, "x", "", rider.Put{RiderID: "x", Name: subjectkeystest.Name("x", "of B")})
		b.snapshotNow()
		a.post(func(now time.Time) { a.snapshotAt = now })
		a.endsWith(errSnapshot)
		b.kill()
		if got := string(savedKeys(t, cfg)["riders/x"].Value); !strings.Contains(got, string(subjectkeystest.Name("x", "of B"))) {
			t.Errorf("the topic has %s", got)
		}
		c := newLone(t, cfg).serve()
		if res := c.must(eventlog.Riders, "x", "", rider.Put{RiderID: "x", Name: subjectkeystest.Name("x", "of C")}); res.Rider.Version != 3 {
			t.Errorf("the next owner: %+v", res.Rider)
		}
	})
}

// A take-over that fails after it has fenced the snapshots leaves an owner whose claim
// is still valid, but who cannot write snapshots. The owner ends its claim and takes the
// shard over anew; nothing is lost.
func TestAFencedOwnerTakesOverAnew(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	snapshotTopics(t, cfg)
	l := newLone(t, cfg)
	a := l.serve()
	a.must(eventlog.Riders, "x", "", rider.Put{RiderID: "x", Name: subjectkeystest.Name("x", "A")})
	savedKeys(t, cfg) // calls InitProducerID, but does not claim
	a.must(eventlog.Riders, "x", "", rider.Put{RiderID: "x", Name: subjectkeystest.Name("x", "B")})
	a.post(func(now time.Time) { a.snapshotAt = now })
	a.endsWith(errSnapshot)
	again := l.serve()
	if res := again.must(eventlog.Riders, "x", "", rider.Put{RiderID: "x", Name: subjectkeystest.Name("x", "C")}); res.Rider.Version != 3 {
		t.Errorf("taken over anew: %+v", res.Rider)
	}
	again.leave()
	if saved := savedKeys(t, cfg); !strings.Contains(string(saved["riders/x"].Value), `"version":3`) {
		t.Errorf("its first snapshot has %s", saved["riders/x"].Value)
	}
}

// A closed order is held encoded once a snapshot has it, and a command on it loads the
// same state again. An open order is not encoded, nor one that has changed while the
// snapshot was written.
func TestClosedOrdersAreHeldEncoded(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	snapshotTopics(t, cfg)
	o := newLone(t, cfg).serve()
	inLoop := func(look func()) {
		done := make(chan struct{})
		o.post(func(time.Time) { look(); close(done) })
		<-done
	}
	o.town(0)
	o.life("closed", 13)
	o.life("open", 6)
	var before map[string]any
	inLoop(func() { before = o.agg.live() })
	o.snapshotNow()
	var id string
	inLoop(func() {
		for _, e := range o.agg.held[orders] {
			switch {
			case e.encoded == nil && !e.order.Status.Closed():
			case e.encoded != nil && e.order == nil && e.payment == nil && strings.Contains(string(e.encoded.order), `"status":"cancelled"`) && e.encoded.payment != nil:
				id = e.id
			default:
				t.Errorf("%+v, encoded %+v", e.order, e.encoded)
			}
		}
		if diff := cmp.Diff(before, o.agg.live()); diff != "" {
			t.Errorf("it is not what it was (-before +after):\n%s", diff)
		}
		if e := o.agg.held[orders][id]; e == nil || e.encoded != nil {
			t.Errorf("it should be loaded, and is %+v", e)
		}
	})
	res := o.must(eventlog.Payments, id, "", payment.RequestRefund{RefundID: uuid.NewString(), Reason: "no"})
	if len(res.Payment.Refunds) != 1 || res.Order.Status != order.StatusCancelled {
		t.Errorf("a command on it: %+v, %+v", res.Payment, res.Order)
	}
	inLoop(func() { before = o.agg.live() })
	o.snapshotNow() // has only the payment
	inLoop(func() {
		if e := o.agg.held[orders][id]; e.order == nil || e.encoded == nil || e.encoded.order != nil {
			t.Errorf("only the payment was written, and %+v is encoded", e.encoded)
		}
		whole := *o.agg.held[orders][id].order
		whole.Items = append(make([]order.Item, 0, 9), whole.Items...)
		o.agg.held[orders][id].order = &whole
		if _, err := o.agg.find(payments, id); err != nil || cap(whole.Items) != 9 {
			t.Error("loading the payment changed the order, which answers may refer to: ", err)
		}
		if diff := cmp.Diff(before, o.agg.live()); diff != "" {
			t.Errorf("it is not what it was (-before +after):\n%s", diff)
		}
		e := o.agg.held[orders][id]
		c := &snapshot{changed: []saved{{key: recordKey{orders, id}, on: e, state: e.order, value: []byte("{}")}, {key: recordKey{payments, id}, on: e, state: &payment.State{}, value: []byte("{}")}}}
		e.unsaved = 1 << orders
		if c.keepEncoded(); e.encoded != nil {
			t.Error("a state that has changed since the cut is encoded")
		}
		e.unsaved = 0
		if c.keepEncoded(); e.encoded == nil || e.order != nil || e.payment == nil {
			t.Error("only the states that were written should be encoded")
		}
	})
}

// A snapshot has only confirmed state: the cut waits until no append is in flight, and
// is put off if that takes too long.
func TestACutHasConfirmedStateOnly(t *testing.T) {
	t.Parallel()
	s := newLoop(t)
	l := &s.logs[riders]
	l.next, l.ordinal, l.seq, l.rule.Term = 10, 1, 1, 1
	e := s.agg.begin(riders, "x")
	s.agg.evolve(riders, e, rider.RiderRegistered{RiderID: "x", Name: subjectkeystest.Name("x", "X")}, time.Now(), 1)
	l.inFlight = []*pending{{ordinal: 1, seq: 1, at: time.Now(), own: waiter{call: newCall(Request{Topic: eventlog.Orders}), left: 1}}}
	due := time.Now()
	s.snapshotAt = due
	s.tick(due)
	s.cutIfQuiet()
	if s.writing != nil || s.quiesceBy.IsZero() {
		t.Fatalf("an append is in flight: writing %v, waits until %v", s.writing, s.quiesceBy)
	}
	s.quiesceBy = time.Now().Add(-time.Millisecond)
	s.cutIfQuiet()
	if s.writing != nil || !s.quiesceBy.IsZero() || s.snapshotAt.IsZero() {
		t.Fatal("a slow broker holds commands up")
	}
	s.tick(s.snapshotAt)
	s.putAck(ack{log: riders, ordinal: 1, offset: 10})
	s.takeAcks(t.Context())
	s.cutIfQuiet()
	if s.writing == nil || e.unsaved != 0 {
		t.Fatal("nothing is in flight, and nothing is saved")
	}
}

// A snapshot of another version of the fold is not used, nor one that does not match the logs
// because the broker has lost acknowledged records. The next snapshot removes from the
// topic what is not in memory.
func TestSnapshotsThatDoNotFitAreIgnored(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(map[string]*kgo.Record) []*kgo.Record{
		"another fold": func(saved map[string]*kgo.Record) []*kgo.Record {
			rs := slices.Collect(maps.Values(saved))
			for _, r := range rs {
				r.Headers = []kgo.RecordHeader{{Key: hdrFold, Value: []byte("0")}}
			}
			return rs
		},
		"a part of another fold": func(saved map[string]*kgo.Record) []*kgo.Record {
			r := saved["restaurants/r1"] // as an owner leaves it that dies in the middle of a snapshot
			r.Headers = []kgo.RecordHeader{{Key: hdrFold, Value: []byte("9")}}
			return []*kgo.Record{r}
		},
		"a record that is not readable": func(saved map[string]*kgo.Record) []*kgo.Record {
			r := saved["restaurants/r1"]
			r.Value = []byte("{")
			return []*kgo.Record{r}
		},
		"a checkpoint that is not readable": func(saved map[string]*kgo.Record) []*kgo.Record {
			r := saved[checkpointKey]
			r.Value = []byte("{")
			return []*kgo.Record{r}
		},
		"ahead of the log": func(saved map[string]*kgo.Record) []*kgo.Record {
			r := saved[checkpointKey]
			r.Value = []byte(strings.Replace(string(r.Value), `"offset":`, `"offset":1000`, 1))
			return []*kgo.Record{r}
		},
		"another record": func(saved map[string]*kgo.Record) []*kgo.Record {
			r := saved[checkpointKey]
			r.Value = []byte(strings.Replace(string(r.Value), `"seq":`, `"seq":7`, 1))
			return []*kgo.Record{r}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := eventlogtest.Embedded(t)
			snapshotTopics(t, cfg)
			a := newLone(t, cfg).serve()
			a.town(3)
			a.leave()
			saved := savedKeys(t, cfg)
			l := newLone(t, cfg)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			w, err := l.openSnapshots(ctx, 0)
			if err != nil {
				t.Fatal(err)
			}
			stale := &kgo.Record{Key: []byte("riders/nobody"), Value: []byte(`{"riderId":"nobody","version":9}`), Headers: saved[checkpointKey].Headers}
			if err := w.commit(ctx, append(spoil(saved), stale)); err != nil {
				t.Fatal(err)
			}
			w.close()
			b := l.serve()
			if b.replayed < 10 {
				t.Fatalf("only %d events were read", b.replayed)
			}
			b.leave()
			saved = savedKeys(t, cfg)
			if saved["riders/nobody"] != nil {
				t.Error("an aggregate that does not exist is still in the topic")
			}
			if c := newLone(t, cfg).serve(); c.replayed != 0 || len(c.agg.live()) != len(b.agg.live()) {
				t.Errorf("the next take-over read %d events, holds %d of %d things", c.replayed, len(c.agg.live()), len(b.agg.live()))
			}
		})
	}
}

// An encoded state is decoded when a command needs it. If it cannot be decoded, the
// claim ends, and the next take-over reads the logs instead.
func TestASnapshotThatIsNotReadableIsLeft(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	snapshotTopics(t, cfg)
	a := newLone(t, cfg).serve()
	a.town(3)
	a.leave()
	l := newLone(t, cfg)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	saved := savedKeys(t, cfg)
	var id string
	for key, r := range saved {
		if after, ok := strings.CutPrefix(key, "orders/"); ok {
			id, r.Value = after, []byte(`{"orderId":7}`)
			w, err := l.openSnapshots(ctx, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := w.commit(ctx, []*kgo.Record{r}); err != nil {
				t.Fatal(err)
			}
			w.close()
			break
		}
	}
	b := l.serve()
	if _, err := b.do(eventlog.Orders, id, "", Look{}); !errors.Is(err, errNotDecided) {
		t.Fatalf("answered with %v", err)
	}
	b.endsWith(errForeignSnapshot)
	sh, err := l.open(ctx, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	defer sh.snapshots.close()
	if e, err := sh.agg.find(orders, id); err != nil || e == nil || e.order.Version == 0 || sh.replayed < 10 {
		t.Fatalf("after %d events it has %+v, %v", sh.replayed, e, err)
	}
}

// There was a defect: the state of one restaurant was larger than a batch may be, so
// every snapshot with it failed, and each failure ended the claim of its shard.
func TestTheLargestRestaurantIsSaved(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		snapshotTopics(t, cfg)
		a := newLone(t, cfg).serve()
		a.must(eventlog.Restaurants, "r1", "", restaurant.Put{RestaurantID: "r1", Name: "R"})
		set := func(n int) error {
			// This text does not compress, and is twice as long as JSON.
			name := strings.Repeat("<", 100)
			for len([]rune(name)) < 500 {
				name += string(rune(0x4e00 + rand.N(20000)))
			}
			_, err := a.do(eventlog.Restaurants, "r1", fmt.Sprint("key", n), restaurant.SetMenuItem{Item: restaurant.MenuItem{ItemID: fmt.Sprint("item", n), Name: name, Price: domain.Money{Amount: 1, Currency: "INR"}}})
			return err
		}
		var g errgroup.Group
		g.SetLimit(64)
		for n := range restaurant.MaxMenuItems {
			g.Go(func() error { return set(n) })
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		if err := set(restaurant.MaxMenuItems); domain.RefusedWith(err) != restaurant.CodeMenuFull {
			t.Errorf("one more: %v", err)
		}
		a.snapshotNow()
		a.leave()
		b := newLone(t, cfg).serve()
		if res := b.must(eventlog.Restaurants, "r1", "", Look{}); len(res.Restaurant.Menu) != restaurant.MaxMenuItems || b.replayed != 0 {
			t.Errorf("it has %d items, after %d events", len(res.Restaurant.Menu), b.replayed)
		}
	})
}

// A closed order shrinks after a day and is evicted after ArchiveAfter, also across
// take-overs. Commands on it are then refused as archived, and late money for it is
// unmatched. An order with an open refund stays in memory.
func TestClosedOrdersShrinkThenLeave(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	snapshotTopics(t, cfg)
	w := eventlogtest.NewWriter(t, cfg, 1)
	id := func(age time.Duration) string { // a UUIDv7 of that time
		u, err := uuid.NewV7()
		if err != nil {
			t.Fatal(err)
		}
		ms := time.Now().Add(-age).UnixMilli()
		for i := range 6 {
			u[i] = byte(ms >> (8 * (5 - i)))
		}
		return u.String()
	}
	const day = 24 * time.Hour
	ids := map[string]string{}
	for name, age := range map[string]time.Duration{"yesterday": day - time.Hour, "last week": 7 * day, "long ago": 31 * day, "unsettled": 32 * day} {
		o := id(age)
		ids[name] = o
		w.At(time.Now().Add(-age))
		ctx := domain.Ctx{CustomerID: "c1", RestaurantID: "r1"}
		w.Append(eventlog.Orders, o, order.OrderPlaced{OrderID: o, CustomerID: "c1", RestaurantID: "r1", Items: []order.Item{{ItemID: "dosa", Quantity: 1, UnitPrice: 5}}, Amount: 5, Currency: "INR", Ctx: ctx})
		w.Append(eventlog.Payments, o, payment.PaymentRequested{OrderID: o, GatewayOrderID: "g" + o, Amount: 5, Currency: "INR", Ctx: ctx},
			payment.PaymentSuccess{OrderID: o, PaymentID: "p" + o, GatewayOrderID: "g" + o, Amount: 5, Currency: "INR", Booked: true, Ctx: ctx})
		w.Append(eventlog.Orders, o, order.OrderPaid{OrderID: o, PaymentID: "p" + o}, order.OrderCancelled{OrderID: o, Reason: "no", By: domain.Ops, PaymentID: "p" + o})
		w.Append(eventlog.Payments, o, payment.RefundRequested{OrderID: o, PaymentID: "p" + o, RefundID: "f" + o, Amount: 5, Currency: "INR", Booked: true, Ctx: ctx})
		if name != "unsettled" {
			w.Append(eventlog.Payments, o, payment.RefundSuccess{OrderID: o, PaymentID: "p" + o, RefundID: "f" + o, Amount: 5, Currency: "INR", Booked: true, Ctx: ctx})
		}
	}
	check := func(s *owned) {
		t.Helper()
		s.must(eventlog.Riders, "tick", "", rider.Put{RiderID: "tick", Name: subjectkeystest.Name("tick", uuid.NewString())}) // after this answer the loop has done what was due
		for name, want := range map[string]struct {
			code  domain.Code // of a customer's cancel
			whole bool
			held  bool
		}{
			"yesterday": {"", true, true}, "last week": {order.CodeArchived, false, true},
			"long ago": {order.CodeArchived, false, false}, "unsettled": {order.CodeArchived, false, true},
		} {
			o := ids[name]
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			_, err := s.owner.local(ctx, s.shard, &Request{Topic: eventlog.Orders, ID: o, Actor: domain.Actor{Sub: "c1", Role: domain.Customer}, Command: order.Cancel{By: domain.Actor{Sub: "c1", Role: domain.Customer}, Reason: "?"}})
			if domain.RefusedWith(err) != want.code {
				t.Errorf("%s: cancel: %v", name, err)
			}
			look := s.must(eventlog.Orders, o, "", Look{})
			if held := look.Order != nil; held != want.held || held && (len(look.Order.Items) > 0) != want.whole || held != (look.Payment != nil) {
				t.Errorf("%s: holds %+v, %+v", name, look.Order, look.Payment)
			}
			_, err = s.do(eventlog.Payments, o, "", payment.RecordCaptured{PaymentID: "late" + o, GatewayOrderID: "g" + o, Amount: 5, Currency: "INR"})
			if want := map[bool]domain.Code{true: "", false: payment.CodeNotRequested}[want.held]; domain.RefusedWith(err) != want {
				t.Errorf("%s: late money: %v", name, err)
			}
		}
	}
	a := newLone(t, cfg).serve()
	check(a)
	a.leave()
	saved := savedKeys(t, cfg)
	if saved["orders/"+ids["long ago"]] != nil || saved["payments/"+ids["long ago"]] != nil {
		t.Error("an evicted order is still in the topic")
	}
	b := newLone(t, cfg).serve()
	check(b)
	// The refund is done, but the late capture above still waits.
	b.must(eventlog.Payments, ids["unsettled"], "", payment.RecordRefund{RefundID: "f" + ids["unsettled"], Succeeded: true})
	b.post(func(now time.Time) { b.retire(ids["unsettled"], now) })
	if late := b.must(eventlog.Orders, ids["unsettled"], "", Look{}); late.Order == nil {
		t.Error("it was evicted although the late capture is neither refunded nor resolved")
	}
	b.leave()
}
