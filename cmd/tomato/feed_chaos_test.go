package main_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"tomato/cmd/tomato/servertest"
	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/rooms"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
	"tomato/eventlog/subjectkeys/subjectkeystest"
	"tomato/projections/realtime"
)

// wanderer is a client whose connection is cut at random. It keeps what it was sent, by the
// partition of the order.
type wanderer struct {
	who    domain.Actor
	cursor string
	begun  chan struct{} // closed when it has the first one

	mu  sync.Mutex // guards got
	got map[int32][]string
	n   int
}

const chaosPartitions = 4

func chaosKey(event string, payload []byte) (partition int32, text string) {
	var of struct {
		OrderID string `json:"orderId"`
	}
	_ = json.Unmarshal(payload, &of)
	return eventlog.PartitionFor(of.OrderID, chaosPartitions), event + " " + string(payload)
}

// wander is connected, to any of the instances, for two seconds on average at a time.
func (w *wanderer) wander(ctx context.Context, t *testing.T, url func() string, resets *atomic.Int64) {
	token := servertest.Token(t, w.who)
	for ctx.Err() == nil {
		stay, cut := context.WithTimeout(ctx, time.Duration(rand.ExpFloat64()*2*float64(time.Second)))
		query := ""
		if w.cursor != "" {
			query = "?cursor=" + w.cursor
		}
		conn, resp, err := websocket.Dial(stay, url()+"/v1/feed"+query, &websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {"Bearer " + token}}})
		if err != nil {
			cut()
			time.Sleep(20 * time.Millisecond)
			continue
		}
		if w.cursor == "" {
			w.cursor = resp.Header.Get("Feed-Cursor")
			close(w.begun)
		}
		conn.SetReadLimit(1 << 20)
		for {
			_, b, err := conn.Read(stay)
			if err != nil {
				break
			}
			var m struct {
				Event, Cursor string
				Payload       json.RawMessage
			}
			if err := json.Unmarshal(b, &m); err != nil {
				t.Error(err)
				break
			}
			switch m.Event {
			case "feed:reset":
				resets.Add(1)
			case "feed:resumed", "feed:ping":
			default:
				p, text := chaosKey(m.Event, m.Payload)
				w.mu.Lock()
				w.got[p] = append(w.got[p], text)
				w.n++
				w.mu.Unlock()
			}
			if m.Cursor != "" {
				w.cursor = m.Cursor
			}
		}
		_ = conn.CloseNow()
		cut()
	}
}

// TestClientsThatAreCutOffSeeTheExactSequence: connections are cut every two seconds on
// average, and instances are killed and started, while orders with ten offers each go
// through. In the end each client was sent what the log means for it: nothing is missing,
// doubled or out of order, and nobody was told to reload. TOMATO_FEED_CHAOS=5m plays 500
// clients and 50 orders/s for five minutes.
func TestClientsThatAreCutOffSeeTheExactSequence(t *testing.T) {
	t.Parallel()
	clients, perSecond, length := 60, 10, 12*time.Second
	if long := os.Getenv("TOMATO_FEED_CHAOS"); long != "" {
		var err error
		if length, err = time.ParseDuration(long); err != nil {
			t.Fatal(err)
		}
		clients, perSecond = 500, 50
	}
	cfg := eventlogtest.Embedded(t)
	eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: chaosPartitions})
	w := eventlogtest.NewWriter(t, cfg, chaosPartitions)
	var mu sync.Mutex // guards instances
	instances := []*feeds{newFeeds(t, cfg, realtime.Start{}), newFeeds(t, cfg, realtime.Start{})}
	url := func() string {
		mu.Lock()
		defer mu.Unlock()
		return instances[rand.IntN(len(instances))].URL
	}
	for _, f := range instances {
		servertest.OpenFeedWhenReady(t, f.URL, domain.Actor{Sub: "nobody", Role: domain.Customer}, "").Close()
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var all []*wanderer
	var resets atomic.Int64
	var running sync.WaitGroup
	for i := range clients {
		who := domain.Actor{Sub: fmt.Sprint("k", i/3), Role: domain.Rider}
		switch i % 3 {
		case 1:
			who = domain.Actor{Sub: fmt.Sprint("c", i/3), Role: domain.Customer}
		case 2:
			who = domain.Actor{Sub: "m", Role: domain.Restaurant, RestaurantID: fmt.Sprint("r", i/3)}
		}
		x := &wanderer{who: who, begun: make(chan struct{}), got: map[int32][]string{}}
		all = append(all, x)
		running.Go(func() { x.wander(ctx, t, url, &resets) })
	}
	for _, x := range all { // everybody has a cursor before the first order
		select {
		case <-x.begun:
		case <-t.Context().Done():
			t.Fatal("a client could not begin")
		}
	}

	// The instances are killed and started again, one after the other.
	kills := 0
	running.Go(func() {
		for ctx.Err() == nil {
			select {
			case <-time.After(3 * time.Second):
			case <-ctx.Done():
				return
			}
			mu.Lock()
			old := instances[kills%2]
			mu.Unlock()
			old.kill()
			old.stop()
			next := newFeeds(t, cfg, realtime.Start{})
			mu.Lock()
			instances[kills%2] = next
			mu.Unlock()
			kills++
		}
	})
	third := max(1, clients/3)
	end := eventlog.Token{}
	tick := time.NewTicker(time.Second / time.Duration(perSecond))
	defer tick.Stop()
	for n, until := 0, time.Now().Add(length); time.Now().Before(until); n++ {
		<-tick.C
		id, c, r := fmt.Sprint("order-", n), fmt.Sprint("c", n%third), fmt.Sprint("r", n%third)
		of := func(rider, status string) domain.Ctx {
			return domain.Ctx{CustomerID: c, RestaurantID: r, RiderID: rider, Status: status}
		}
		var offers []order.OfferedRider
		var losers []string
		for _, k := range rand.Perm(third)[:min(10, third)] {
			offers = append(offers, order.OfferedRider{RiderID: fmt.Sprint("k", k)})
			losers = append(losers, fmt.Sprint("k", k))
		}
		winner := losers[0]
		end.Merge(w.Append(eventlog.Orders, id,
			order.OrderPlaced{OrderID: id, CustomerID: c, RestaurantID: r, Ctx: of("", "placed")},
			order.OrderOffered{OrderID: id, Round: 1, Wave: 1, Riders: offers, Ctx: of("", "ready_for_rider")},
			order.RiderAssigned{OrderID: id, RiderID: winner, RiderName: subjectkeystest.Name(winner, "Una"), ClaimID: int64(n), Riders: losers[1:], Ctx: of(winner, "rider_assigned")},
			order.OrderPickedUp{OrderID: id, RiderID: winner, Ctx: of(winner, "picked_up")},
			order.OrderDelivered{OrderID: id, RiderID: winner, ClaimID: int64(n), Ctx: of(winner, "delivered")}))
	}

	// What the log means for each room.
	want := map[string]map[int32][]string{}
	ranges := map[eventlog.TopicPartition]eventlog.Range{}
	for tp, o := range end {
		ranges[tp] = eventlog.Range{To: o + 1}
	}
	err := eventlog.Read(t.Context(), cfg, ranges, func(e *eventlog.Event) error {
		if e.Type == eventlog.ShardClaimed {
			return nil
		}
		messages, err := realtime.Rooms(t.Context(), &subjectkeystest.Keys{}, e)
		for _, m := range messages {
			p, text := chaosKey(m.Event, m.Payload)
			for _, room := range m.Rooms {
				if want[room] == nil {
					want[room] = map[int32][]string{}
				}
				want[room][p] = append(want[room][p], text)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	messages := 0
	for _, x := range all {
		expected, n := want[rooms.JoinedBy(x.who)[0]], 0
		for _, texts := range expected {
			n += len(texts)
		}
		messages += n
		servertest.Await(t, fmt.Sprint(x.who.Sub, " has been sent everything"), func() error {
			x.mu.Lock()
			defer x.mu.Unlock()
			if x.n < n {
				return fmt.Errorf("%d of %d messages", x.n, n)
			}
			return nil
		})
		x.mu.Lock()
		for p, texts := range expected {
			if !slices.Equal(x.got[p], texts) {
				t.Errorf("%s %s was sent %d messages of partition %d, and %d are meant for it", x.who.Role, x.who.Sub, len(x.got[p]), p, len(texts))
			}
		}
		x.mu.Unlock()
	}
	stop()
	running.Wait()
	if resets.Load() > 0 || messages == 0 || kills == 0 {
		t.Errorf("%d messages, %d kills, %d clients were told to reload", messages, kills, resets.Load())
	}
	t.Logf("%d messages to %d clients, %d kills", messages, clients, kills)
}

// TestAFeedOf1024PartitionsResumes: a cursor is short however many partitions there are.
// Cursors with the positions of 4,096 logs were too long to come back with.
func TestAFeedOf1024PartitionsResumes(t *testing.T) {
	t.Parallel()
	const partitions = 1024
	cfg := eventlogtest.Embedded(t)
	eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: partitions})
	w := eventlogtest.NewWriter(t, cfg, partitions)
	who := domain.Actor{Sub: "u1", Role: domain.Customer}
	preparing := func(id string) {
		w.Append(eventlog.Orders, id, order.OrderPreparing{OrderID: id, Ctx: domain.Ctx{CustomerID: "u1", RestaurantID: "r1", Status: "preparing"}})
	}
	url, stop := startFeeds(t, cfg, realtime.Start{})
	c := servertest.OpenFeedWhenReady(t, url, who, "")
	var cursor string
	for i := range 20 {
		preparing(fmt.Sprint("o", i))
		if cursor = expectFeed(t, c, "order:update", "user:u1").Cursor; len(cursor) > 200 {
			t.Errorf("the cursor of message %d has %d characters", i, len(cursor))
		}
	}
	c.Close()
	stop()
	preparing("missed")
	url, _ = startFeeds(t, cfg, realtime.Start{})
	c = servertest.OpenFeedWhenReady(t, url, who, "?cursor="+cursor)
	expectFeed(t, c, "feed:resumed", "")
	if m := expectFeed(t, c, "order:update", "user:u1"); m.Value("orderId") != "missed" {
		t.Errorf("resumed with %s", m.Payload)
	}
}
