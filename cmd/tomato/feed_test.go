package main_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"tomato/cmd/tomato/servertest"
	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/rider"
	"tomato/domain/rooms"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/eventlogtest"
	"tomato/eventlog/subjectkeys/subjectkeystest"
	"tomato/httpapi"
	"tomato/projections/realtime"
	"tomato/queryside/feed"
)

// noModels stands for read models that have nothing yet.
type noModels struct{ start realtime.Start }

func (m noModels) FeedStart(context.Context) (realtime.Start, error) { return m.start, nil }

func (noModels) Orders(context.Context, []string) (map[string]*order.State, error) { return nil, nil }

// startFeeds is an instance with feeds and nothing else.
func startFeeds(t *testing.T, cfg eventlog.Config, start realtime.Start) (url string, stop func()) {
	t.Helper()
	f := newFeeds(t, cfg, start)
	return f.URL, f.stop
}

// feeds is an instance with feeds and nothing else.
type feeds struct {
	*httptest.Server
	stop func() // closes all connections as serve does, once

	mu    sync.Mutex // guards conns
	conns []net.Conn
}

// kill cuts all connections, as if the process were killed.
func (f *feeds) kill() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conns {
		_ = c.Close()
	}
}

func newFeeds(t *testing.T, cfg eventlog.Config, start realtime.Start) *feeds {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	auth, err := httpapi.NewAuthenticator(httpapi.AuthConfig{Secrets: []string{servertest.JWTSecret}})
	if err != nil {
		t.Fatal(err)
	}
	hub, err := feed.NewHub(feed.HubConfig{Keys: [][]byte{[]byte("0123456789abcdef")}})
	if err != nil {
		t.Fatal(err)
	}
	api := httpapi.New(httpapi.Options{Auth: auth, Log: log})
	p := &realtime.Projector{Kafka: cfg, Runtime: &consumer.Runtime{Kafka: cfg}, Keys: &subjectkeystest.Keys{}, Loader: noModels{start}, Sink: hub, Log: log}
	hub.ReadHistory(p)
	(&feed.Feed{Hub: hub, Auth: auth, Orders: noModels{}, Log: log}).Routes(api)
	f := &feeds{Server: httptest.NewUnstartedServer(api)}
	f.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.conns = append(f.conns, c)
		return ctx
	}
	f.Start()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	f.stop = sync.OnceFunc(func() {
		drain, end := context.WithTimeout(context.Background(), 20*time.Second)
		defer end()
		if err := hub.Drain(drain); err != nil {
			t.Error("drain:", err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error("projector:", err)
		}
		f.Close()
		auth.Close()
	})
	t.Cleanup(f.stop)
	return f
}

func expectFeed(t *testing.T, c *servertest.FeedClient, event, room string) servertest.Message {
	t.Helper()
	m := c.Next()
	if m.Event != event || m.Room != room {
		t.Fatalf("received %s in %s (%s), want %s in %s", m.Event, m.Room, m.Payload, event, room)
	}
	return m
}

// From the log to sockets of two instances, and from one to the other.
func TestFeedFromTheLogToTheSockets(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		const partitions = 3
		eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: partitions})
		w := eventlogtest.NewWriter(t, cfg, partitions)
		one, stopOne := startFeeds(t, cfg, realtime.Start{})
		two, _ := startFeeds(t, cfg, realtime.Start{})

		const id = "01990000-0000-7000-8000-000000000001"
		status := func(rider, s string) domain.Ctx {
			return domain.Ctx{CustomerID: "u1", RestaurantID: "r1", RiderID: rider, Status: s}
		}
		customer := servertest.OpenFeedWhenReady(t, one, domain.Actor{Sub: "u1", Role: domain.Customer}, "")
		restaurant := servertest.OpenFeedWhenReady(t, two, domain.Actor{Sub: "m1", Role: domain.Restaurant, RestaurantID: "r1"}, "")
		winner := servertest.OpenFeedWhenReady(t, one, domain.Actor{Sub: "k1", Role: domain.Rider}, "")
		loser := servertest.OpenFeedWhenReady(t, two, domain.Actor{Sub: "k2", Role: domain.Rider}, "")
		ops := servertest.OpenFeedWhenReady(t, one, domain.Actor{Sub: "op", Role: domain.Ops}, "?room=ops")

		w.Append(eventlog.Orders, id,
			order.OrderPlaced{OrderID: id, CustomerID: "u1", RestaurantID: "r1", Ctx: status("", "placed")},
			order.OrderPaid{OrderID: id, PaymentID: "p1", Ctx: status("", "placed")},
			order.OrderOffered{OrderID: id, Round: 1, Wave: 1, Riders: []order.OfferedRider{{RiderID: "k1"}, {RiderID: "k2"}}, Ctx: status("", "ready_for_rider")})
		expectFeed(t, customer, "order:update", "user:u1")
		expectFeed(t, customer, "order:update", "user:u1")
		expectFeed(t, restaurant, "order:update", "restaurant:r1")
		expectFeed(t, restaurant, "order:new", "restaurant:r1")
		expectFeed(t, restaurant, "order:update", "restaurant:r1")
		expectFeed(t, winner, "order:available", "user:k1")
		expectFeed(t, loser, "order:available", "user:k2")

		// The window knows the order's customer before any read model does.
		customer.Send(`{"op":"join","room":"order:` + id + `"}`)
		expectFeed(t, customer, "feed:joined", "order:"+id)
		w.Append(eventlog.Orders, id, order.RiderAssigned{OrderID: id, RiderID: "k1", RiderName: subjectkeystest.Name("k1", "Una"), ClaimID: 4, Riders: []string{"k2"}, Ctx: status("k1", "rider_assigned")})
		expectFeed(t, customer, "order:update", "user:u1")
		expectFeed(t, customer, "order:rider_assigned", "user:u1")
		expectFeed(t, winner, "order:update", "user:k1")
		expectFeed(t, loser, "order:taken", "user:k2")
		expectFeed(t, restaurant, "order:update", "restaurant:r1")
		expectFeed(t, restaurant, "order:rider_assigned", "restaurant:r1")

		w.Telemetry(eventlog.RiderLocations, "k1", rider.PositionType, rider.Position{RiderID: "k1", RecordedAt: time.Now()})
		cursor := expectFeed(t, customer, "rider:location", "order:"+id).Cursor

		// One instance goes away; what happens meanwhile comes from the other.
		for _, c := range []*servertest.FeedClient{customer, winner, ops} {
			c.Close()
		}
		stopOne()
		w.Append(eventlog.Orders, id, order.OrderPickedUp{OrderID: id, RiderID: "k1", Ctx: status("k1", "picked_up")})
		w.Telemetry(eventlog.Feed, "user:u1", rooms.Emitted, rooms.Emit{Event: "promo", Room: "order:" + id, Payload: json.RawMessage(`1`)})
		customer = servertest.OpenFeedWhenReady(t, two, domain.Actor{Sub: "u1", Role: domain.Customer}, "?cursor="+cursor)
		expectFeed(t, customer, "feed:resumed", "")
		seen := map[string]bool{}
		for range 2 { // of two logs: in any order
			m := customer.Next()
			seen[m.Event+" "+m.Room] = true
		}
		if !seen["order:update user:u1"] || !seen["promo order:"+id] {
			t.Errorf("resumed with %v", seen)
		}
		w.Append(eventlog.Orders, id, order.OrderDelivered{OrderID: id, RiderID: "k1", ClaimID: 4, Ctx: status("k1", "delivered")})
		expectFeed(t, customer, "order:update", "user:u1")
	})
}

// Everything restarts, and begins where the read models stand: behind what
// clients have missed. They used to be told feed:reset, all at once.
func TestAFeedResumesAcrossARestart(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: 1})
	w := eventlogtest.NewWriter(t, cfg, 1)
	url, stop := startFeeds(t, cfg, realtime.Start{})
	customer := servertest.OpenFeedWhenReady(t, url, domain.Actor{Sub: "u1", Role: domain.Customer}, "")
	ctx := domain.Ctx{CustomerID: "u1", RestaurantID: "r1", Status: "preparing"}
	w.Append(eventlog.Orders, "o1", order.OrderPreparing{OrderID: "o1", Ctx: ctx})
	cursor := expectFeed(t, customer, "order:update", "user:u1").Cursor
	customer.Close()
	stop()

	w.Claim(eventlog.Orders)
	missed := w.Append(eventlog.Orders, "o1", order.OrderReadyForRider{OrderID: "o1", Ctx: ctx}, order.OrderPickedUp{OrderID: "o1", Ctx: ctx})
	marks := map[eventlog.TopicPartition]consumer.Mark{}
	for tp, o := range missed {
		marks[tp] = consumer.Mark{Next: o + 1, Rule: eventlog.Rule{Term: 2, Seq: 2}}
	}
	url, _ = startFeeds(t, cfg, realtime.Start{Marks: marks})
	customer = servertest.OpenFeedWhenReady(t, url, domain.Actor{Sub: "u1", Role: domain.Customer}, "?cursor="+cursor)
	expectFeed(t, customer, "feed:resumed", "")
	for _, version := range []string{"2", "3"} {
		m := expectFeed(t, customer, "order:update", "user:u1")
		if want := `{"orderId":"o1","status":"preparing","version":` + version + `}`; string(m.Payload) != want {
			t.Errorf("resumed with %s, want %s", m.Payload, want)
		}
	}
}
