package main_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"tomato/cmd/tomato/servertest"
	"tomato/domain"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
	"tomato/projections"
)

// everyTopic are those that Tomato reads.
var everyTopic = append(eventlog.AggregateTopics[:], eventlog.RiderLocations, eventlog.PaymentWebhooks, eventlog.Feed, eventlog.ShardOwners, eventlog.ShardSnapshots, eventlog.ShardFence)

// Records of any kind on any topic, while serve runs and before it starts, are
// skipped and counted: commands, queries, feeds and rebuilds go on.
func TestJunkOnEveryTopicStopsNothing(t *testing.T) {
	t.Parallel()
	a := servertest.New(t, eventlogtest.Embedded(t)).Start()
	a.AddRestaurant("r1", servertest.Lng, servertest.Lat)
	a.AddRider("k1", servertest.Lng, servertest.Lat)
	for round := range 2 {
		eventlogtest.AppendJunk(t, a.Kafka, servertest.Partitions, everyTopic...)
		eventlogtest.AppendJunk(t, a.Kafka, 1, eventlog.SubjectKeys)
		cust, room := fmt.Sprint("c", round), fmt.Sprint("user:c", round)
		feed := a.Feed(servertest.Customer(cust))
		id := a.ReadyOrder(cust, "r1")
		a.Await("the rider has the order", func() error {
			if x := a.Do(servertest.Rider("k1"), "POST /v1/orders/"+id+"/accept", nil); x.Status != http.StatusOK {
				return x.Fault()
			}
			return nil
		})
		a.Must(servertest.Rider("k1"), "POST /v1/orders/"+id+"/pick-up", nil)
		a.Must(servertest.Rider("k1"), "POST /v1/orders/"+id+"/deliver", nil)
		a.AwaitQuery(servertest.Customer(cust), "/v1/orders/"+id, "status", "delivered", "paymentStatus", "paid")
		feed.WaitFor(func(m servertest.Message) bool { return servertest.About(id)(m) && m.Value("status") == "delivered" }, "that the order is delivered")
		a.Must(domain.Actor{}, "POST /api/v1/internal/emit", map[string]any{"event": "promo:new", "room": room, "payload": 1}, "x-internal-key", servertest.InternalKey)
		feed.Expect("promo:new", nil)
		models := projections.Models()
		a.Each(len(models), len(models), func(i int) {
			if said := a.Tool("rebuild", models[i]); !strings.Contains(said, " serves; it took ") {
				t.Errorf("rebuild %s said %s", models[i], said)
			}
		})
		a.AwaitIdle()
		a.NoDeadLetters()
		for _, name := range []string{"tomato_void_records_total", "tomato_shard_void_records_total", "tomato_feed_void_records_total"} {
			if n := a.Metric(name, `reason="no_event"`); n == 0 {
				t.Errorf("%s counts nothing", name)
			}
		}
		if round == 0 {
			a.Stop()
			eventlogtest.AppendJunk(t, a.Kafka, servertest.Partitions, everyTopic...)
			eventlogtest.AppendJunk(t, a.Kafka, 1, eventlog.SubjectKeys)
			a.Start()
		}
	}
}

// After a roll back the logs have events that this build does not know. Each stops
// its own aggregate: commands on it are 503 unknown_event, its row is parked. serve
// starts, and all others work.
func TestUnknownEventsStopTheirAggregatesAlone(t *testing.T) {
	t.Parallel()
	a := servertest.New(t, eventlogtest.Embedded(t)).Start()
	for _, id := range []string{"r1", "r2"} {
		a.AddRestaurant(id, servertest.Lng, servertest.Lat)
	}
	a.AddRider("k1", servertest.Lng, servertest.Lat)
	a.Must(servertest.Ops, "PUT /v1/riders/k2", servertest.RiderName("k2"))
	odd, split := a.Place("c1", "r1"), a.Place("c1", "r1")
	a.Pay("c1", split)
	a.AwaitIdle()
	a.Stop()
	a.Append(eventlog.Restaurants, "r2", "RESTAURANT_MOVED", `{"restaurantId":"r2"}`)
	a.Append(eventlog.Restaurants, "r9", "RESTAURANT_MOVED", `{"restaurantId":"r9"}`)
	a.Append(eventlog.Riders, "k2", "RIDER_PROMOTED", `{"riderId":"k2"}`)
	a.Append(eventlog.Orders, odd, "ORDER_GIFTED", `{}`)
	a.Append(eventlog.Payments, split, "PAYMENT_SPLIT", `{}`)
	for round := range 2 {
		a.Start() // it starts, and is ready
		for _, c := range []struct {
			who       domain.Actor
			call      string
			body      any
			eventType string
		}{
			{servertest.Staff("r2"), "POST /v1/restaurants/r2/close", nil, "RESTAURANT_MOVED"},
			{servertest.Ops, "PUT /v1/restaurants/r9", map[string]any{"name": "Kitchen r9", "location": servertest.Point(servertest.Lng, servertest.Lat)}, "RESTAURANT_MOVED"},
			{servertest.Customer("c1"), "POST /v1/orders", servertest.Basket("r2"), "RESTAURANT_MOVED"},
			{servertest.Ops, "POST /v1/riders/k2/verify", nil, "RIDER_PROMOTED"},
			{servertest.Ops, "POST /v1/orders/" + odd + "/cancel", reason, "ORDER_GIFTED"},
			{servertest.Customer("c1"), "POST /v1/orders/" + odd + "/payment", nil, "ORDER_GIFTED"},
			{servertest.Ops, "POST /v1/payments/" + split + "/refund", reason, "PAYMENT_SPLIT"},
		} {
			x := a.Do(c.who, c.call, c.body)
			if x.Status != http.StatusServiceUnavailable || x.Code() != "unknown_event" || !strings.Contains(x.Str("detail"), c.eventType) ||
				x.Str("type") != "/problems/unknown-event" || x.Header.Get("Retry-After") == "" {
				t.Errorf("round %d: %v", round, x.Fault())
			}
		}
		if x := a.Must(domain.Actor{}, "GET /problems/unknown-event", nil); !strings.Contains(string(x.Body), "503.") {
			t.Errorf("the problem's page: %s", x.Body)
		}
		// What is not concerned goes on: the order whose payment is unknown, too.
		a.Must(servertest.Staff("r1"), "POST /v1/orders/"+split+"/accept-order", nil)
		a.Must(servertest.Staff("r1"), "POST /v1/orders/"+split+"/preparing", nil)
		id := a.Cook("c2", "r1")
		a.AwaitQuery(servertest.Customer("c2"), "/v1/orders/"+id, "status", "preparing")
		a.Must(servertest.Ops, "PUT /v1/riders/k1", map[string]any{"name": fmt.Sprint("Rider ", round)})
		a.Must(servertest.Ops, "GET /v1/restaurants/r2", nil) // as of the event before
		a.Must(servertest.Customer("c1"), "GET /v1/orders/"+odd, nil)
		parked := map[string]bool{}
		a.Await("the rows are parked", func() error {
			items, _ := a.Must(servertest.Ops, "GET /v1/ops/dead-letters", nil).Get("items").([]any)
			for _, i := range items {
				parked[fmt.Sprint(servertest.Dig(i, "consumer"), " ", servertest.Dig(i, "key"))] = true
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
		a.AwaitIdle()
		a.Stop()
	}
}
