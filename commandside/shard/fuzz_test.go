package shard

import (
	"bytes"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain/order"
	"tomato/domain/restaurant"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
)

// Whatever records a log has, a shard can fold them and decide commands on the state,
// and the state is the same after it was written to a snapshot and loaded again.

func FuzzShardFoldsOrders(f *testing.F)      { fuzzShard(f, orders, "order") }
func FuzzShardFoldsPayments(f *testing.F)    { fuzzShard(f, payments, "payment") }
func FuzzShardFoldsRiders(f *testing.F)      { fuzzShard(f, riders, "rider") }
func FuzzShardFoldsRestaurants(f *testing.F) { fuzzShard(f, restaurants, "restaurant") }

func fuzzShard(f *testing.F, kind int, noun string) {
	client, err := kgo.NewClient() // it is never connected
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(client.Close)
	owner := &Shards{Config: Config{Partitions: 1, ArchiveAfter: 720 * time.Hour, Menus: NewMenus(), Log: slog.New(slog.NewTextHandler(io.Discard, nil))}}
	owner.metrics = &metrics{invalid: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "v"}, []string{"topic", "reason"}),
		unknown: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "u"}, []string{"topic"})}
	now := time.Unix(1_767_323_045, 0)
	topic := eventlog.AggregateTopics[kind]
	eventlogtest.FuzzRecords(f, topic, "../../domain/"+noun+"/testdata/*.v1.json", func(t *testing.T, r *kgo.Record) {
		s := owner.newShard(0, client)
		s.logs[kind].rule = eventlog.Rule{Term: 1}
		e, _ := eventlog.ParseRecord(r)
		for range 3 { // the same event again, with the next version, so that more states are reached
			if err := s.fold(&e, now); err != nil {
				t.Fatalf("folding is an error: %v", err)
			}
			e.Seq, e.Version = e.Seq+1, e.Version+1
		}
		s.agg.scheduleAll()
		for id := range s.agg.held[kind] {
			held, err := s.agg.find(kind, id)
			if err != nil {
				t.Fatal(err)
			}
			if held.undecidable(kind) != nil {
				continue
			}
			for _, rule := range commands {
				c, err := rule.decode([]byte("{}"))
				if err != nil {
					t.Fatal(err)
				}
				_, _ = decide(kind, held, &Request{Topic: topic, ID: id, Command: c}, s.owner.Menus, now)
			}
			if held.order != nil {
				order.NewView(held.order, order.PaymentStatusOf(held.order, held.paymentState().Facts()))
			}
			if held.restaurant != nil {
				restaurant.NewView(held.restaurant)
			}
		}
		again := newAggregates()
		for _, c := range s.cut(now).changed {
			saved, err := c.record(owner.ArchiveAfter)
			if err != nil {
				t.Fatalf("it cannot be saved: %v", err)
			}
			if err := again.restoreOne(c.key, saved, headersOf(saved), false, now); err != nil {
				t.Fatalf("what was saved as %s with %s cannot be loaded: %v", saved.Value, saved.Headers, err)
			}
			held, err := again.find(c.key.kind, c.key.id)
			if err != nil {
				t.Fatal(err)
			}
			if (held.markOf(kind) == nil) != (c.mark == nil) || held.version(kind) != c.on.version(kind) {
				t.Fatalf("saved with version %d and mark %v, loaded with %d and %v", c.on.version(kind), c.mark, held.version(kind), held.markOf(kind))
			}
			if c.state == nil {
				continue
			}
			state := [logCount]any{held.order, held.payment, held.rider, held.restaurant}[kind]
			if b, err := encode(nil, state); err != nil || !bytes.Equal(b, c.value) {
				t.Fatalf("%s was loaded as %s: %v", c.value, b, err)
			}
		}
	})
}

// FuzzMenus checks that no record on the topic restaurants makes Menus panic.
func FuzzMenus(f *testing.F) {
	eventlogtest.FuzzRecords(f, eventlog.Restaurants, "../../domain/restaurant/testdata/*.v1.json", func(t *testing.T, r *kgo.Record) {
		m, rule := NewMenus(), &eventlog.Rule{Term: 1}
		m.fold(r, rule)
		rule.Seq = 0
		m.fold(r, rule) // a second time, with a version that does not follow
		for id := range m.held {
			if held, err := m.Restaurant(id); err == nil && held != nil {
				_, _, _ = held.Price([]restaurant.Line{{ItemID: "dosa", Quantity: 1}})
			}
		}
	})
}
