package shard

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/domain/restaurant"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

// forge appends a record with the id, term and seq of the owner's next append, as
// another program could that writes to the topic.
func (o *owned) forge(topic, id, eventType string, version int64, data string, change func(*eventlog.Event)) {
	o.t.Helper()
	next := make(chan eventlog.Event, 1)
	o.post(func(time.Time) {
		l := &o.logs[logOf(topic)]
		l.seq++
		next <- eventlog.Event{ID: l.eventID(o.partition), Source: o.owner.source, Term: l.rule.Term, Seq: l.seq, Time: domain.Time(time.Now())}
		l.seq--
	})
	e := <-next
	e.Type, e.Subject, e.Version, e.Data = eventType, id, version, []byte(data)
	if change != nil {
		change(&e)
	}
	r := e.NewRecord(topic, o.partition)
	r.Timestamp = time.Now() // the topic rejects other timestamps
	produce(o.t, o.owner.Kafka, r)
}

func produce(t testing.TB, cfg eventlog.Config, records ...*kgo.Record) {
	t.Helper()
	client := eventlogtest.Client(t, cfg, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for _, r := range client.ProduceSync(t.Context(), records...) {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
}

func isUnknown(err error, eventType string) bool {
	var u *UnknownEvent
	return errors.As(err, &u) && u.Type == eventType && strings.Contains(u.Detail(), eventType)
}

// Records of other programs between the appends of an owner, and before a take-over,
// change nothing, with and without snapshots: no event is lost or takes effect twice.
func TestJunkStopsNoShard(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		snapshotTopics(t, cfg)
		junk := func() { eventlogtest.AppendJunk(t, cfg, 1, eventlog.AggregateTopics[:]...) }
		junk()
		l := newLone(t, cfg)
		a := l.serve()
		a.must(eventlog.Riders, "x", "", rider.Put{RiderID: "x", Name: subjectkeystest.Name("x", "1")})
		for i, name := range []string{"2", "3", "4"} {
			junk()
			if res := a.must(eventlog.Riders, "x", "", rider.Put{RiderID: "x", Name: subjectkeystest.Name("x", name)}); res.Rider.Version != int64(i+2) {
				t.Fatalf("version %d after %d", res.Rider.Version, i+2)
			}
		}
		a.town(2)
		junk()
		if res := a.must(eventlog.Riders, "x", "", rider.Put{RiderID: "x", Name: subjectkeystest.Name("x", "4")}); res.Event != nil { // the answer is confirmed after the junk
			t.Fatalf("appended %v", res.Event)
		}
		for round, end := range []func(*owned){(*owned).kill, (*owned).leave, (*owned).kill} {
			before := a.agg.live()
			junk()
			end(a)
			junk()
			eventlogtest.AppendJunk(t, cfg, 1, eventlog.ShardSnapshots)
			no := &kgo.Record{Topic: eventlog.ShardSnapshots, Key: []byte("riders/x")} // a tombstone that was written outside of a transaction
			if round == 1 {
				no = snapshotRecord("riders/x", []byte(`{"id":"x","version":99}`)) // like an owner's record, but written outside of a transaction
				no.Topic = eventlog.ShardSnapshots
			}
			produce(t, cfg, no)
			next := l.serve()
			if d := cmp.Diff(before, next.agg.live()); d != "" {
				t.Fatalf("before (-) and after (+):\n%s", d)
			}
			a = next
			a.snapshotNow()
		}
		if got := savedKeys(t, cfg)["riders/x"]; got == nil || got.Value == nil {
			t.Error("the tombstone stands in the snapshots")
		}
	})
}

// If another program writes a record with the owner's next term and seq, that record is
// valid and the owner's own one is not. The owner acknowledges nothing, claims the shard
// again, and goes on with the state that the log has.
func TestAForgedRecordIsNotTakenForTheOwners(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		snapshotTopics(t, cfg)
		l := newLone(t, cfg)
		for name, change := range map[string]func(*eventlog.Event){
			"with the very id and source": nil,
			"of another source":           func(e *eventlog.Event) { e.Source = "/forged" },
		} {
			a := l.serve()
			before := a.must(eventlog.Riders, "x", "", rider.Put{RiderID: "x", Name: subjectkeystest.Name("x", name)}).Rider
			forged := subjectkeystest.Name("x", "forged")
			a.forge(eventlog.Riders, "x", "RIDER_UPDATED", before.Version+1, fmt.Sprintf(`{"riderId":"x","name":%q,"ctx":{}}`, forged), change)
			if res, err := a.do(eventlog.Riders, "x", "", rider.Put{RiderID: "x", Name: subjectkeystest.Name("x", "own")}); !errors.Is(err, ErrUnavailable) {
				t.Fatalf("%s: acknowledged %+v, %v", name, res, err)
			}
			a.endsWith(errBroken)
			b := l.serve()
			if res := b.must(eventlog.Riders, "x", "", Look{}); res.Rider.Name != forged {
				t.Errorf("%s: the log says forged, the next owner %s", name, res.Rider.Name)
			}
			b.must(eventlog.Riders, "x", "", rider.Put{RiderID: "x", Name: subjectkeystest.Name("x", "on it goes")})
			b.leave()
		}
	})
}

// An event that this build cannot read stops its own aggregate: commands on it are
// answered with an UnknownEvent. Everything else goes on. This is so after a take-over
// from the logs and from a snapshot alike.
func TestAnUnknownEventStopsItsAggregateAlone(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		snapshotTopics(t, cfg)
		l := newLone(t, cfg)
		a := l.serve()
		a.town(0)
		placed := func(key string) string {
			return a.must(eventlog.Orders, "", key, Place{CustomerID: "c1", RestaurantID: "r1", PaymentTTL: time.Hour, Lines: []restaurant.Line{{ItemID: "dosa", Quantity: 1}}}).Order.ID
		}
		odd, paid, unpaid, other := placed("odd"), placed("paid"), placed("unpaid"), placed("other")
		pay := func(id string) {
			a.must(eventlog.Payments, id, "", payment.RequestPayment{OrderID: id, Provider: "simulated", GatewayOrderID: "g" + id})
			a.must(eventlog.Payments, id, "", payment.RecordCaptured{PaymentID: "pay" + id, GatewayOrderID: "g" + id, Amount: 12000, Currency: "INR"})
			a.must(eventlog.Orders, id, "", order.MarkPaid{PaymentID: "pay" + id, AcceptTTL: time.Hour})
		}
		pay(paid)
		pay(other)
		a.must(eventlog.Payments, unpaid, "", payment.RequestPayment{OrderID: unpaid, Provider: "simulated", GatewayOrderID: "g" + unpaid})
		l.InboxPassed = func(context.Context, string) (bool, error) {
			t.Error("a deadline of a marked aggregate asks about the inbox")
			return false, nil
		}
		for _, id := range []string{"type", "body", "gap", "back", "time", "version", "other"} {
			a.must(eventlog.Riders, id, "", rider.Put{RiderID: id, Name: subjectkeystest.Name(id, id)})
		}
		a.snapshotNow()
		a.forgeAll(
			func() { a.forge(eventlog.Riders, "type", "RIDER_PROMOTED", 2, `{"riderId":"type"}`, nil) },
			func() { a.forge(eventlog.Riders, "body", "RIDER_VERIFIED", 2, `{"riderId":`, nil) },
			func() { a.forge(eventlog.Riders, "gap", "RIDER_VERIFIED", 7, `{"riderId":"gap"}`, nil) },
			func() { a.forge(eventlog.Riders, "back", "RIDER_VERIFIED", 1, `{"riderId":"back"}`, nil) },
			func() { a.forge(eventlog.Riders, "first", "RIDER_IMAGINED", 1, `{}`, nil) },
			func() {
				a.forge(eventlog.Riders, "time", "RIDER_VERIFIED", 2, `{"riderId":"time"}`, func(e *eventlog.Event) { e.Time = time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC) })
			},
			func() {
				a.forge(eventlog.Riders, "version", "RIDER_VERIFIED", 2, `{"rider":"version"}`, func(e *eventlog.Event) { e.Schema = 2 })
			},
			func() { a.forge(eventlog.Riders, "type", "RIDER_VERIFIED", 3, `{"riderId":"type"}`, nil) },
			func() { a.forge(eventlog.Orders, odd, "ORDER_GIFTED", 2, `{}`, nil) },
			func() { a.forge(eventlog.Payments, paid, "PAYMENT_SPLIT", 3, `{}`, nil) },
			func() { a.forge(eventlog.Payments, unpaid, "PAYMENT_SPLIT", 2, `{}`, nil) },
			func() { a.forge(eventlog.Restaurants, "r2", "RESTAURANT_MOVED", 1, `{}`, nil) },
		)
		for round, end := range []func(*owned){(*owned).kill, (*owned).leave, (*owned).kill} {
			end(a)
			if round == 0 { // this snapshot is not used; the next one removes only what is not in memory
				produce(t, cfg, &kgo.Record{Topic: eventlog.ShardSnapshots, Key: []byte("riders/first"), Value: []byte("junk")})
			}
			a = l.serve()
			for _, c := range []struct {
				topic, id, eventType string
				command              domain.Command
			}{
				{eventlog.Riders, "type", "RIDER_PROMOTED", rider.Verify{}},
				{eventlog.Riders, "type", "RIDER_PROMOTED", Look{}},
				{eventlog.Riders, "body", "RIDER_VERIFIED", rider.Put{RiderID: "body", Name: subjectkeystest.Name("body", "n")}},
				{eventlog.Riders, "gap", "RIDER_VERIFIED", rider.Verify{}},
				{eventlog.Riders, "back", "RIDER_VERIFIED", rider.Verify{}},
				{eventlog.Riders, "time", "RIDER_VERIFIED", rider.Verify{}},
				{eventlog.Riders, "version", "RIDER_VERIFIED/2", rider.Verify{}},
				{eventlog.Riders, "first", "RIDER_IMAGINED", rider.Put{RiderID: "first", Name: subjectkeystest.Name("first", "n")}},
				{eventlog.Orders, odd, "ORDER_GIFTED", order.AcceptOrder{}},
				{eventlog.Payments, odd, "ORDER_GIFTED", payment.RequestPayment{OrderID: odd, Provider: "simulated"}},
				{eventlog.Payments, paid, "PAYMENT_SPLIT", payment.RequestRefund{}},
				{eventlog.Restaurants, "r2", "RESTAURANT_MOVED", restaurant.Put{RestaurantID: "r2", Name: "n"}},
			} {
				if res, err := a.do(c.topic, c.id, "", c.command); !isUnknown(err, c.eventType) {
					t.Errorf("round %d: %s of %s: %+v, %v", round, c.command.CommandName(), c.id, res, err)
				}
			}
			if _, err := a.do(eventlog.Orders, "", "odd", Place{CustomerID: "c1", RestaurantID: "r1"}); !isUnknown(err, "ORDER_GIFTED") {
				t.Errorf("round %d: the repeat of the order's key: %v", round, err)
			}
			// The payment cannot be read, but commands on the order are still decided.
			if res := a.must(eventlog.Orders, paid, "", order.AcceptOrder{PrepMinutes: 5}); res.Order.Status != order.StatusAccepted {
				t.Errorf("round %d: the order is %s", round, res.Order.Status)
			}
			a.must(eventlog.Riders, "other", "", rider.Put{RiderID: "other", Name: subjectkeystest.Name("other", time.Now().String())})
			a.must(eventlog.Orders, other, "", order.AcceptOrder{PrepMinutes: 5})
			due := make(chan bool, 1)
			a.post(func(now time.Time) {
				for _, id := range []string{odd, unpaid} { // the payment that cannot be read may have been paid
					e, err := a.agg.find(orders, id)
					if err != nil {
						t.Error(err)
						continue
					}
					a.deadlineReached(deadline{at: e.order.PaymentDueAt, orderID: id}, now.Add(90*time.Minute))
					a.retire(id, now.Add(10_000*time.Hour))
				}
				due <- a.unacked() > 0 || !a.agg.due.next().IsZero() && a.agg.due.next().Before(now)
			})
			if <-due {
				t.Errorf("round %d: a deadline of a marked aggregate had an effect", round)
			}
			if res := a.must(eventlog.Orders, unpaid, "", Look{}); res.Order.Status != order.StatusPlaced {
				t.Errorf("round %d: the unpaid order is %s", round, res.Order.Status)
			}
		}
		if a.replayed > 30 {
			t.Errorf("%d events were read after a snapshot: the marks are not in it", a.replayed)
		}
		a.leave()
	})
}

// forgeAll calls functions that forge events, and gives each event the next seq. The
// owner does not notice before it is killed, because it appends nothing in between.
func (o *owned) forgeAll(all ...func()) {
	o.t.Helper()
	for _, f := range all {
		f()
		o.post(func(time.Time) {})
		done := make(chan struct{})
		o.post(func(time.Time) { close(done) })
		<-done
		o.bump()
	}
}

// bump moves the owner's seqs and offsets on past the forged events.
func (o *owned) bump() {
	done := make(chan struct{})
	o.post(func(time.Time) {
		defer close(done)
		for i := range o.logs {
			l := &o.logs[i]
			ends, err := eventlog.EndOffsets(o.t.Context(), o.producer, l.topic)
			if err != nil {
				o.t.Error(err)
				return
			}
			end := ends[eventlog.TopicPartition{Topic: l.topic, Partition: o.partition}]
			l.seq += end - l.next
			l.next = end
		}
	})
	<-done
}

// A build that can read the event does not use a snapshot with the mark. It reads the
// log and folds the event.
func TestABuildThatKnowsTheEventFoldsIt(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	snapshotTopics(t, cfg)
	l := newLone(t, cfg)
	a := l.serve()
	a.must(eventlog.Riders, "x", "", rider.Put{RiderID: "x", Name: subjectkeystest.Name("x", "X")})
	a.must(eventlog.Riders, "x", "", rider.Verify{})
	done := make(chan struct{})
	a.post(func(time.Time) { // the state of an older build that cannot read RIDER_VERIFIED
		e := a.agg.held[riders]["x"]
		old := rider.Evolve(rider.State{}, rider.RiderRegistered{RiderID: "x", Name: subjectkeystest.Name("x", "X")}, time.Now())
		e.rider = &old
		e.setMark(riders, &unreadable{Type: "RIDER_VERIFIED", Why: "unknown", Data: []byte(`{"riderId":"x","ctx":{}}`), Undecoded: true})
		a.agg.changed(riders, e)
		close(done)
	})
	<-done
	if _, err := a.do(eventlog.Riders, "x", "", rider.GoOnline{}); !isUnknown(err, "RIDER_VERIFIED") {
		t.Fatal(err)
	}
	a.leave()
	b := l.serve()
	if res := b.must(eventlog.Riders, "x", "", Look{}); res.Rider.Version != 2 || res.Rider.Verification != rider.Verified {
		t.Errorf("%+v", res.Rider)
	}
	b.leave()
}

// If the version of an event after the snapshot does not follow the version in the
// snapshot, the take-over first assumes that the snapshot is not of this log.
func TestAVersionThatDoesNotFollowASnapshotIsLookedUpInTheLog(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	snapshotTopics(t, cfg)
	l := newLone(t, cfg)
	a := l.serve()
	for _, name := range []string{"1", "2", "3"} {
		a.must(eventlog.Riders, "x", "", rider.Put{RiderID: "x", Name: subjectkeystest.Name("x", name)})
	}
	a.snapshotNow()
	w, err := l.openSnapshots(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	saved, err := w.load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	old := snapshotRecord("riders/x", []byte(`{"id":"x","version":1,"name":"1"}`))
	if err := w.commit(t.Context(), []*kgo.Record{old, snapshotRecord(checkpointKey, saved[checkpointKey].Value)}); err != nil {
		t.Fatal(err)
	}
	w.close()
	a.must(eventlog.Riders, "x", "", rider.Put{RiderID: "x", Name: subjectkeystest.Name("x", "4")})
	a.kill()
	b := l.serve()
	if res := b.must(eventlog.Riders, "x", "", Look{}); res.Rider.Version != 4 || res.Rider.Name != subjectkeystest.Name("x", "4") {
		t.Errorf("%+v", res.Rider)
	}
	b.leave()
}

// Orders at a restaurant with an event that cannot be read are not priced, because its
// menu is not known. Other restaurants are not affected, and Menus go on.
func TestMenusMarkTheRestaurantAlone(t *testing.T) {
	t.Parallel()
	m := NewMenus()
	rule := &eventlog.Rule{}
	for _, r := range eventlogtest.Junk(eventlog.Restaurants, 0) {
		if mark := m.fold(r, rule); mark != nil {
			t.Errorf("junk marks a restaurant: %+v", mark)
		}
	}
	seq := int64(0)
	fold := func(id, eventType string, version int64, data string) *unreadable {
		seq++
		e := eventlog.Event{ID: "e", Source: "/test", Type: eventType, Subject: id, Version: version, Term: 1, Seq: seq, Time: time.Now(), Data: []byte(data)}
		return m.fold(e.NewRecord(eventlog.Restaurants, 0), rule)
	}
	claim := eventlog.Event{Type: eventlog.ShardClaimed, Subject: "r1", Version: 1, Term: 1, Time: time.Now()}
	m.fold(claim.NewRecord(eventlog.Restaurants, 0), rule)
	for _, id := range []string{"known", "type", "body", "gap", "twice"} {
		if mark := fold(id, "RESTAURANT_REGISTERED", 1, `{"restaurantId":"`+id+`"}`); mark != nil {
			t.Fatal(mark)
		}
	}
	m.learn(&restaurant.State{ID: "known", Version: 3})
	if fold("known", "RESTAURANT_OPENED", 2, `{}`) != nil || fold("known", "RESTAURANT_OPENED", 3, `{}`) != nil {
		t.Error("a state that was learned from a shard caused a gap")
	}
	if fold("type", "RESTAURANT_MOVED", 2, `{}`) == nil || fold("body", "RESTAURANT_OPENED", 2, `{`) == nil || fold("gap", "RESTAURANT_OPENED", 3, `{}`) == nil || fold("twice", "RESTAURANT_OPENED", 1, `{}`) == nil {
		t.Error("not marked")
	}
	fold("type", "RESTAURANT_OPENED", 3, `{}`)
	var unknown []string
	for _, id := range []string{"known", "type", "body", "gap", "twice", "nobody"} {
		_, err := price(m, Place{RestaurantID: id}, "o")
		if u := (*UnknownEvent)(nil); errors.As(err, &u) {
			unknown = append(unknown, id)
		} else if id == "nobody" != (domain.RefusedWith(err) == restaurant.CodeUnknown) {
			t.Errorf("%s: %v", id, err)
		}
	}
	if !slices.Equal(unknown, []string{"type", "body", "gap", "twice"}) {
		t.Errorf("unknown: %v", unknown)
	}
}

// The answer is the same if the command is forwarded.
func TestUnknownEventTravels(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	snapshotTopics(t, cfg)
	l := newLone(t, cfg)
	a := l.serve()
	a.must(eventlog.Riders, "x", "", rider.Put{RiderID: "x", Name: subjectkeystest.Name("x", "X")})
	a.forge(eventlog.Riders, "x", "RIDER_PROMOTED", 2, `{}`, nil)
	a.kill()
	a = l.serve()
	l.setServing(0, a.shard)
	server := httptest.NewServer(l.Handler())
	defer server.Close()
	other := newLone(t, cfg)
	other.owners.learn(Owner{Shard: 0, Term: 9, Owner: l.Instance, URL: server.URL})
	_, err := other.Execute(t.Context(), Request{Topic: eventlog.Riders, ID: "x", Actor: domain.SystemActor, Command: rider.Verify{}})
	var u *UnknownEvent
	if !errors.As(err, &u) || *u != (UnknownEvent{Topic: eventlog.Riders, ID: "x", Type: "RIDER_PROMOTED"}) {
		t.Errorf("%v", err)
	}
	l.setServing(0, nil)
}

// A record is the owner's append, or a copy of it, only if it has the same effect.
// Everything that makes the effect is compared, not only the id, which another program
// can write, too.
func TestAnAppendIsKnownByItsEffect(t *testing.T) {
	t.Parallel()
	s := newLoop(t)
	s.owner.source = "/own"
	at := time.Now()
	ev := rider.RiderUpdated{RiderID: "x", Name: "X"}
	c := newCall(Request{Topic: eventlog.Riders, ID: "x", Actor: domain.SystemActor})
	c.res = Result{Event: ev, Rider: &rider.State{ID: "x", Version: 2}}
	p := &pending{log: riders, at: at, own: waiter{call: c}}
	data, err := encode(nil, ev)
	if err != nil {
		t.Fatal(err)
	}
	own := eventlog.Event{Source: "/own", Type: "RIDER_UPDATED", Subject: "x", Version: 2, Time: domain.Time(at), Data: data}
	if !s.isOwn(&own, p) {
		t.Error("its own append is not recognized")
	}
	for name, change := range map[string]func(*eventlog.Event){
		"source":  func(e *eventlog.Event) { e.Source = "/other" },
		"type":    func(e *eventlog.Event) { e.Type = "RIDER_REGISTERED" },
		"subject": func(e *eventlog.Event) { e.Subject = "y" },
		"version": func(e *eventlog.Event) { e.Version = 3 },
		"schema":  func(e *eventlog.Event) { e.Schema = 2 },
		"time":    func(e *eventlog.Event) { e.Time = e.Time.Add(time.Second) },
		"data":    func(e *eventlog.Event) { e.Data = []byte(`{}`) },
		"actor":   func(e *eventlog.Event) { e.Actor = "ops:o1" },
		"fault":   func(e *eventlog.Event) { e.Fault = errors.New("a fault") },
	} {
		e := own
		if change(&e); s.isOwn(&e, p) {
			t.Errorf("another %s is taken for its own", name)
		}
	}
}
