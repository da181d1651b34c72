package shard_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/commandside/shard"
	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/domain/restaurant"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

const partitions = 3

var customer = domain.Actor{Sub: "c1", Role: domain.Customer}
var kitchen = domain.Actor{Sub: "r1-staff", Role: domain.Restaurant, RestaurantID: "r1"}

// instance is one instance that serves shards.
type instance struct {
	*shard.Shards
	stop func()
}

func ensureTopics(t testing.TB, cfg eventlog.Config) {
	t.Helper()
	client, err := cfg.NewClient()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := eventlog.Ensure(t.Context(), kadm.NewClient(client), eventlog.Layout{Partitions: partitions}); err != nil {
		t.Fatal(err)
	}
}

func startInstance(t testing.TB, cfg eventlog.Config) *instance {
	t.Helper()
	return startProbed(t, cfg, nil)
}

// startProbed is startInstance with a probe.
func startProbed(t testing.TB, cfg eventlog.Config, probe func(shard.Step, int32)) *instance {
	t.Helper()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	menus := shard.NewMenus()
	menus.Ends = eventlog.NewEnds(eventlogtest.Client(t, cfg))
	s, err := shard.NewShards(shard.Config{Kafka: cfg, Partitions: partitions, Menus: menus, PaymentGrace: time.Hour, ArchiveAfter: 720 * time.Hour,
		InboxPassed: func(context.Context, string) (bool, error) { return true, nil },
		ClusterKeys: []string{"of the tests of the shards, 32 bytes"}, Probe: probe, Registry: prometheus.NewRegistry(), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(s.Handler())
	t.Cleanup(server.Close)
	s.URL = server.URL
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := menus.Run(ctx, cfg, log); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	stop := sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return &instance{s, stop}
}

func (i *instance) do(t testing.TB, actor domain.Actor, topic, id string, c domain.Command) (shard.Result, error) {
	t.Helper()
	return i.exec(t, shard.Request{Actor: actor, Topic: topic, ID: id, Command: c})
}

func (i *instance) exec(t testing.TB, r shard.Request) (shard.Result, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return i.Execute(ctx, r)
}

func (i *instance) must(t testing.TB, actor domain.Actor, topic, id string, c domain.Command) shard.Result {
	t.Helper()
	res, err := i.do(t, actor, topic, id, c)
	if err != nil {
		t.Fatalf("%s %s: %v", c.CommandName(), id, err)
	}
	return res
}

// openRestaurant registers r1 with one item and returns a token that covers it.
func (i *instance) openRestaurant(t testing.TB) eventlog.Token {
	t.Helper()
	i.must(t, domain.SystemActor, eventlog.Restaurants, "r1", restaurant.Put{RestaurantID: "r1", Name: "Dosa Corner", Location: domain.Point{Lng: 77.6, Lat: 12.9}})
	i.must(t, domain.SystemActor, eventlog.Restaurants, "r1", restaurant.SetMenuItem{Item: restaurant.MenuItem{ItemID: "dosa", Name: "Dosa", Price: domain.Money{Amount: 12000, Currency: "INR"}, Available: true}})
	res := i.must(t, domain.SystemActor, eventlog.Restaurants, "r1", restaurant.Open{})
	return res.Token()
}

func placeRequest(after eventlog.Token, key string) shard.Request {
	return shard.Request{Topic: eventlog.Orders, Actor: customer, IdempotencyKey: key, BodyHash: "b", After: after,
		Command: shard.Place{CustomerID: "c1", RestaurantID: "r1", Lines: []restaurant.Line{{ItemID: "dosa", Quantity: 2}},
			DeliverTo: subjectkeystest.DeliverTo("c1", `{"address":"1 Road"}`), PaymentTTL: 15 * time.Minute}}
}

func TestAnOrderGoesItsWayAndSurvivesARestart(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		ensureTopics(t, cfg)
		a := startInstance(t, cfg)
		after := a.openRestaurant(t)
		// This works also without a token, because the instance learns its own menus at once.
		if _, err := a.exec(t, placeRequest(nil, "k0")); err != nil {
			t.Fatal(err)
		}
		placed, err := a.exec(t, placeRequest(after, "k1"))
		if err != nil {
			t.Fatal(err)
		}
		id := placed.Order.ID
		if placed.Status != 201 || placed.Order.Amount != 24000 || placed.Order.Version != 1 {
			t.Fatalf("placed: status %d, %+v", placed.Status, placed.Order)
		}
		again, err := a.exec(t, placeRequest(after, "k1"))
		if err != nil || again.Order.ID != id || again.Status != 201 || again.Event != nil {
			t.Fatalf("the repeat: %+v, %v", again, err)
		}
		other := placeRequest(after, "k1")
		other.BodyHash = "another"
		if _, err := a.exec(t, other); domain.RefusedWith(err) != shard.IdempotencyKeyReused {
			t.Fatalf("another body under the same key: %v", err)
		}
		if _, err := a.do(t, kitchen, eventlog.Orders, id, order.AcceptOrder{}); domain.RefusedWith(err) != order.CodeNotPaid {
			t.Fatalf("accepting an unpaid order: %v", err)
		}
		a.must(t, customer, eventlog.Payments, id, payment.RequestPayment{OrderID: id, Provider: "simulated", GatewayOrderID: "g1"})
		a.must(t, domain.SystemActor, eventlog.Payments, id, payment.RecordCaptured{PaymentID: "p1", GatewayOrderID: "g1", Amount: 24000, Currency: "INR"})
		a.must(t, domain.SystemActor, eventlog.Orders, id, order.MarkPaid{PaymentID: "p1", AcceptTTL: 10 * time.Minute})
		a.must(t, kitchen, eventlog.Orders, id, order.AcceptOrder{PrepMinutes: 10})
		a.must(t, kitchen, eventlog.Orders, id, order.Prepare{})
		if _, err := a.exec(t, shard.Request{Topic: eventlog.Orders, ID: id, Actor: kitchen, Command: order.Ready{}, IfMatch: 1}); domain.RefusedWith(err) != shard.VersionMismatch {
			t.Fatalf("ready with an old version: %v", err)
		}
		for _, r := range []shard.Request{{IfMatch: shard.Never}, {IfMatch: 1, OrMatch: []int64{2, 3}}} {
			r.Topic, r.ID, r.Actor, r.Command = eventlog.Orders, id, kitchen, order.Ready{}
			if _, err := a.exec(t, r); domain.RefusedWith(err) != shard.VersionMismatch {
				t.Fatalf("ready with other versions: %v", err)
			}
		}
		a.stop()

		b := startInstance(t, cfg)
		again, err = b.exec(t, placeRequest(after, "k1"))
		if err != nil || again.Order.ID != id || again.Status != 201 || again.Order.Status != order.StatusPreparing || again.Order.Version != 4 {
			t.Fatalf("the repeat after a restart: %+v, %v", again, err)
		}
		ready, err := b.exec(t, shard.Request{Topic: eventlog.Orders, ID: id, Actor: kitchen, Command: order.Ready{}, IfMatch: 1, OrMatch: []int64{4}})
		if err != nil {
			t.Fatal(err)
		}
		if ready.Order.Status != order.StatusReadyForRider || ready.Order.Version != 5 {
			t.Fatalf("ready: %+v", ready.Order)
		}
		if res := b.must(t, kitchen, eventlog.Orders, id, order.Ready{}); res.Event != nil {
			t.Fatal("ready twice appended twice")
		}
		if _, err := b.do(t, domain.Actor{Sub: "c2", Role: domain.Customer}, eventlog.Orders, id, order.Cancel{}); domain.RefusedWith(err) != domain.NotFound {
			t.Fatalf("a foreign customer: %v", err)
		}
	})
}

// A token with a position beyond the end of the topic restaurants is refused at once,
// also if the command is forwarded.
func TestATokenBeyondTheMenusEndIsRefused(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	ensureTopics(t, cfg)
	a, b := startInstance(t, cfg), startInstance(t, cfg)
	eventually(t, func() bool { n, _ := b.Serving(); m, _ := a.Serving(); return n > 0 && m > 0 })
	seen := a.openRestaurant(t)
	for n := range 8 {
		r := shard.Request{Actor: domain.SystemActor, Topic: eventlog.Riders, ID: fmt.Sprint("z", n), Command: rider.Put{RiderID: fmt.Sprint("z", n), Name: subjectkeystest.Name(fmt.Sprint("z", n), "A")}, After: seen}
		if _, err := a.exec(t, r); err != nil {
			t.Fatal("after what was appended:", err)
		}
		r.After = eventlog.Token{{Topic: eventlog.Restaurants, Partition: 0}: 1 << 40}
		if _, err := a.exec(t, r); domain.RefusedWith(err) != shard.UnknownConsistencyToken {
			t.Fatal(err)
		}
	}
}

// Two instances share the shards. When one stops, the other takes its shards over, and
// the versions of each aggregate go on.
func TestShardsMoveBetweenInstances(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		ensureTopics(t, cfg)
		a := startInstance(t, cfg)
		a.must(t, domain.SystemActor, eventlog.Riders, "x1", rider.Put{RiderID: "x1", Name: subjectkeystest.Name("x1", "A")})
		b := startInstance(t, cfg)
		eventually(t, func() bool { n, _ := b.Serving(); return n > 0 })
		for n := range 12 { // each instance answers for all shards, and forwards commands on those of the other
			a.must(t, domain.SystemActor, eventlog.Riders, fmt.Sprint("y", n), rider.Put{RiderID: fmt.Sprint("y", n), Name: subjectkeystest.Name(fmt.Sprint("y", n), "A")})
			if res := b.must(t, domain.SystemActor, eventlog.Riders, fmt.Sprint("y", n), rider.Verify{}); res.Rider.Version != 2 || res.Event == nil {
				t.Fatalf("on the other instance: %+v", res)
			}
			if _, err := a.do(t, domain.SystemActor, eventlog.Riders, fmt.Sprint("y", n), rider.ClaimFor{OrderID: "0199f3a2-7c1e-7cc0-8000-5a1f0e6a4b11", CustomerID: "c1", RestaurantID: "r1"}); domain.RefusedWith(err) != rider.CodeOffline {
				t.Fatalf("a forwarded refusal: %v", err)
			}
		}
		states := map[string]int{}
		for _, st := range b.Status(t.Context()) {
			states[st.State]++
			if st.Term == 0 || st.Owner == "" || st.State == "serving" && st.Terms[eventlog.Orders] != st.Term {
				t.Errorf("status %+v", st)
			}
		}
		if serving, _ := b.Serving(); states["serving"] != serving || states["elsewhere"] != partitions-serving || len(b.Unreachable()) > 0 {
			t.Errorf("%d served here, states %v, unreachable %v", serving, states, b.Unreachable())
		}
		a.stop()
		eventually(t, func() bool { n, _ := b.Serving(); return n == partitions })
		for n := range 30 {
			id := fmt.Sprintf("x%d", n)
			res := b.must(t, domain.SystemActor, eventlog.Riders, id, rider.Put{RiderID: id, Name: subjectkeystest.Name(id, "B")})
			if want := map[bool]int64{true: 2, false: 1}[n == 1]; res.Rider.Version != want {
				t.Fatalf("%s has version %d", id, res.Rider.Version)
			}
		}
	})
}

// A foreign claim with a higher term deposes the owner. Its append in flight is fenced,
// the shard is claimed again, and the command is decided under the new claim.
func TestADeposedOwnerAcknowledgesNothing(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		ensureTopics(t, cfg)
		a := startInstance(t, cfg)
		a.must(t, domain.SystemActor, eventlog.Riders, "x1", rider.Put{RiderID: "x1", Name: subjectkeystest.Name("x1", "A")})
		p := eventlog.PartitionFor("x1", partitions)
		client, err := cfg.NewClient(kgo.RecordPartitioner(kgo.ManualPartitioner()))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		claim := eventlog.Event{ID: "usurper", Source: "/test", Type: eventlog.ShardClaimed, Time: time.Now(), Term: 2, Data: []byte(`{"term":2}`)}
		if err := client.ProduceSync(t.Context(), claim.NewRecord(eventlog.Riders, p)).FirstErr(); err != nil {
			t.Fatal(err)
		}
		res := a.must(t, domain.SystemActor, eventlog.Riders, "x1", rider.Put{RiderID: "x1", Name: subjectkeystest.Name("x1", "B")})
		if res.Rider.Version != 2 || res.Rider.Name != subjectkeystest.Name("x1", "B") {
			t.Fatalf("after the new claim: %+v", res.Rider)
		}
		var terms []int64 // of the records with the second version of x1: the first is fenced, the second is under the third claim
		ends, err := eventlog.EndOffsets(t.Context(), client, eventlog.Riders)
		if err != nil {
			t.Fatal(err)
		}
		tp, rule := eventlog.TopicPartition{Topic: eventlog.Riders, Partition: p}, eventlog.Rule{}
		if err := eventlog.Read(t.Context(), cfg, map[eventlog.TopicPartition]eventlog.Range{tp: {To: ends[tp]}}, func(e *eventlog.Event) error {
			if valid := rule.Accepts(e); e.Subject == "x1" && e.Version == 2 {
				if valid != (e.Term == 3) {
					t.Errorf("term %d at offset %d: valid is %v", e.Term, e.Offset, valid)
				}
				terms = append(terms, e.Term)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(terms, []int64{1, 3}) {
			t.Errorf("the command was appended under terms %v, want 1 and 3", terms)
		}
	})
}

func eventually(t testing.TB, ok func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatal("the condition was not met within 30 s")
		case <-tick.C:
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	cfg := eventlogtest.Embedded(b)
	if os.Getenv("BENCH_KAFKA") != "" {
		cfg = eventlogtest.Kafka(b)
	}
	ensureTopics(b, cfg)
	a := startInstance(b, cfg)
	for _, callers := range []int{1, 256} {
		b.Run(fmt.Sprint(callers, "callers"), func(b *testing.B) {
			b.SetParallelism(callers / 2)
			if callers == 1 {
				for n := 0; b.Loop(); n++ {
					a.must(b, domain.SystemActor, eventlog.Riders, fmt.Sprint("r", n%1000), rider.Put{RiderID: fmt.Sprint("r", n%1000), Name: subjectkeystest.Name(fmt.Sprint("r", n%1000), fmt.Sprint(n))})
				}
				return
			}
			var mu sync.Mutex
			next := 0
			b.RunParallel(func(pb *testing.PB) {
				mu.Lock()
				next++
				id := fmt.Sprint("p", next)
				mu.Unlock()
				for n := 0; pb.Next(); n++ {
					a.must(b, domain.SystemActor, eventlog.Riders, id, rider.Put{RiderID: id, Name: subjectkeystest.Name(id, fmt.Sprint(b.N, n))})
				}
			})
		})
	}
}
