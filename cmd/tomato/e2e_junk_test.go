package main

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
	"tomato/projections"
)

// everyTopic are those that Tomato reads.
var everyTopic = append(eventlog.AggregateTopics[:], eventlog.RiderLocations, eventlog.PaymentWebhooks, eventlog.Feed, eventlog.ShardOwners, eventlog.ShardSnapshots)

// Records of any kind on any topic, while serve runs and before it starts, are
// skipped and counted: commands, queries, feeds and rebuilds go on.
func TestJunkOnEveryTopicStopsNothing(t *testing.T) {
	t.Parallel()
	a := newTown(t, eventlogtest.Embedded(t)).open()
	a.restaurant("r1", lng0, lat0)
	a.rider("k1", lng0, lat0)
	for round := range 2 {
		eventlogtest.AppendJunk(t, a.kafka, townPartitions, everyTopic...)
		cust, room := fmt.Sprint("c", round), fmt.Sprint("user:c", round)
		feed := a.feed(customer(cust))
		id := a.readyOrder(cust, "r1")
		a.await("the rider has the order", func() error {
			if x := a.do(courier("k1"), "POST /v1/orders/"+id+"/accept", nil); x.status != http.StatusOK {
				return x.fault()
			}
			return nil
		})
		a.must(courier("k1"), "POST /v1/orders/"+id+"/pick-up", nil)
		a.must(courier("k1"), "POST /v1/orders/"+id+"/deliver", nil)
		a.awaitQuery(customer(cust), "/v1/orders/"+id, "status", "delivered", "paymentStatus", "paid")
		feed.waitFor(func(m message) bool { return of(id)(m) && m.payload("status") == "delivered" }, "that the order is delivered")
		a.must(domain.Actor{}, "POST /api/v1/internal/emit", map[string]any{"event": "promo:new", "room": room, "payload": 1}, "x-internal-key", townInternalKey)
		feed.expect("promo:new", nil)
		for _, model := range projections.Models() {
			if said := a.tool("rebuild", model); !strings.Contains(said, " serves; it took ") {
				t.Errorf("rebuild %s said %s", model, said)
			}
		}
		a.idle()
		a.noDeadLetters()
		for _, name := range []string{"tomato_void_records_total", "tomato_shard_void_records_total", "tomato_feed_void_records_total"} {
			if n := a.metric(name, `reason="no_event"`); n == 0 {
				t.Errorf("%s counts nothing", name)
			}
		}
		if round == 0 {
			a.stop()
			eventlogtest.AppendJunk(t, a.kafka, townPartitions, everyTopic...)
			a.open()
		}
	}
}

// append appends a valid event to an aggregate's log, as a newer build might have
// written it: nobody serves meanwhile.
func (a *town) append(topic, id, eventType, data string) {
	a.t.Helper()
	history := a.history(topic, id) // brings the chronicle up to date
	tp := eventlog.TopicPartition{Topic: topic, Partition: eventlog.PartitionFor(id, townPartitions)}
	a.log.mu.Lock()
	rule := a.log.rules[tp]
	a.log.mu.Unlock()
	e := eventlog.Event{ID: "newer", Source: "/newer", Type: eventType, Subject: id, Version: int64(len(history) + 1), Term: rule.Term, Seq: rule.Seq + 1,
		Time: domain.Time(time.Now()), Data: []byte(data)}
	client := eventlogtest.Client(a.t, a.kafka, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err := client.ProduceSync(a.t.Context(), e.NewRecord(topic, tp.Partition)).FirstErr(); err != nil {
		a.t.Fatal(err)
	}
}

// After a roll back the logs have events that this build does not know. Each stops
// its own aggregate: commands on it are 503 unknown_event, its row is parked. serve
// starts, and all others work.
func TestUnknownEventsStopTheirAggregatesAlone(t *testing.T) {
	t.Parallel()
	a := newTown(t, eventlogtest.Embedded(t)).open()
	for _, id := range []string{"r1", "r2"} {
		a.restaurant(id, lng0, lat0)
	}
	a.rider("k1", lng0, lat0)
	a.must(office, "PUT /v1/riders/k2", riderName("k2"))
	odd, split := a.place("c1", "r1"), a.place("c1", "r1")
	a.pay("c1", split)
	a.idle()
	a.stop()
	a.append(eventlog.Restaurants, "r2", "RESTAURANT_MOVED", `{"restaurantId":"r2"}`)
	a.append(eventlog.Restaurants, "r9", "RESTAURANT_MOVED", `{"restaurantId":"r9"}`)
	a.append(eventlog.Riders, "k2", "RIDER_PROMOTED", `{"riderId":"k2"}`)
	a.append(eventlog.Orders, odd, "ORDER_GIFTED", `{}`)
	a.append(eventlog.Payments, split, "PAYMENT_SPLIT", `{}`)
	for round := range 2 {
		a.open() // it starts, and is ready
		for _, c := range []struct {
			who       domain.Actor
			call      string
			body      any
			eventType string
		}{
			{staff("r2"), "POST /v1/restaurants/r2/close", nil, "RESTAURANT_MOVED"},
			{office, "PUT /v1/restaurants/r9", map[string]any{"name": "Kitchen r9", "location": point(lng0, lat0)}, "RESTAURANT_MOVED"},
			{customer("c1"), "POST /v1/orders", basket("r2"), "RESTAURANT_MOVED"},
			{office, "POST /v1/riders/k2/verify", nil, "RIDER_PROMOTED"},
			{office, "POST /v1/orders/" + odd + "/cancel", reason, "ORDER_GIFTED"},
			{customer("c1"), "POST /v1/orders/" + odd + "/payment", nil, "ORDER_GIFTED"},
			{office, "POST /v1/payments/" + split + "/refund", reason, "PAYMENT_SPLIT"},
		} {
			x := a.do(c.who, c.call, c.body)
			if x.status != http.StatusServiceUnavailable || x.code() != "unknown_event" || !strings.Contains(x.str("detail"), c.eventType) ||
				x.str("type") != "/problems/unknown-event" || x.header.Get("Retry-After") == "" {
				t.Errorf("round %d: %v", round, x.fault())
			}
		}
		if x := a.must(domain.Actor{}, "GET /problems/unknown-event", nil); !strings.Contains(string(x.body), "503.") {
			t.Errorf("the problem's page: %s", x.body)
		}
		// What is not concerned goes on: the order whose payment is unknown, too.
		a.must(staff("r1"), "POST /v1/orders/"+split+"/accept-order", nil)
		a.must(staff("r1"), "POST /v1/orders/"+split+"/preparing", nil)
		id := a.cook("c2", "r1")
		a.awaitQuery(customer("c2"), "/v1/orders/"+id, "status", "preparing")
		a.must(office, "PUT /v1/riders/k1", map[string]any{"name": fmt.Sprint("Rider ", round)})
		a.must(office, "GET /v1/restaurants/r2", nil) // as of the event before
		a.must(customer("c1"), "GET /v1/orders/"+odd, nil)
		parked := map[string]bool{}
		a.await("the rows are parked", func() error {
			items, _ := a.must(office, "GET /v1/ops/dead-letters", nil).get("items").([]any)
			for _, i := range items {
				parked[fmt.Sprint(dig(i, "consumer"), " ", dig(i, "key"))] = true
			}
			for _, want := range []string{"restaurants r2", "restaurants r9", "riders k2", "orders " + odd, "payments " + split} {
				if !parked[want] {
					return fmt.Errorf("%s is not among %v", want, items)
				}
			}
			return nil
		})
		if len(parked) != 5 { // policies skip what they do not know
			t.Errorf("round %d: parked are %v", round, parked)
		}
		a.idle()
		a.stop()
	}
}
