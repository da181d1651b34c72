package main_test

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"tomato/cmd/tomato/servertest"
	"tomato/cmd/tomato/settings"
	"tomato/commandside/gateway"
	"tomato/domain"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
	"tomato/eventlog/kafkaprocess"
)

// rush is many orders under way at once, each driven to its door by its own
// customer, kitchen and rider, who repeat what got no answer and keep what did.
type rush struct {
	*servertest.Installation
	orders   []string
	progress chan struct{} // one for each acknowledged command
	done     chan struct{} // closed when all orders are at their doors, or one failed for good
	over     chan struct{} // closed when the test is

	mu    sync.Mutex
	acks  []ack
	kinds map[string]int // answers that were no acknowledgement
}

// ack is an acknowledged command: its order and the version it was told.
type ack struct {
	request, orderID, etag string
	eventType              string
}

// rushHour prepares kitchens with a rider for each order, and starts the
// orders: n of them, so many at once.
func rushHour(a *servertest.Installation, n, atOnce int) *rush {
	a.T.Helper()
	r := &rush{Installation: a, orders: make([]string, n), progress: make(chan struct{}, 100*n), done: make(chan struct{}),
		over: make(chan struct{}), kinds: map[string]int{}}
	kitchens := (n + 9) / 10
	a.Each(kitchens, 8, func(k int) { a.AddRestaurant(fmt.Sprint("r", k), servertest.Lng+float64(k), servertest.Lat) })
	a.Each(n, 8, func(i int) { a.AddRider(fmt.Sprint("k", i), servertest.Lng+float64(i/10), servertest.Lat+0.001) })
	go func() {
		defer close(r.done)
		a.Each(n, atOnce, r.drive)
	}()
	a.T.Cleanup(func() {
		close(r.over)
		<-r.done
	})
	return r
}

// drive takes order i from the basket to the door.
func (r *rush) drive(i int) {
	cust, rest, rider := servertest.Customer(fmt.Sprint("c", i%5)), servertest.Staff(fmt.Sprint("r", i/10)), servertest.Rider(fmt.Sprint("k", i))
	basket := servertest.Basket(rest.RestaurantID)
	basket["externalReference"] = fmt.Sprint("basket", i)
	placed := r.persist(cust, "POST /v1/orders", basket, fmt.Sprint("place", i), "ORDER_PLACED")
	id := placed.Str("orderId")
	r.orders[i] = id
	paying := r.persist(cust, "POST /v1/orders/"+id+"/payment", nil, "pay", "")
	body := servertest.Capture(gateway.EventPaymentCaptured, paying.Str("gatewayOrderId"), fmt.Sprint("pay_", i), 50000)
	r.until(func() servertest.Answer { return r.Webhook(body) })
	r.persist(rest, "POST /v1/orders/"+id+"/accept-order", nil, "a", "ORDER_ACCEPTED", "order_not_paid")
	r.persist(rest, "POST /v1/orders/"+id+"/preparing", nil, "b", "ORDER_PREPARING")
	r.persist(rest, "POST /v1/orders/"+id+"/ready", nil, "c", "ORDER_READY_FOR_RIDER")
	// Until the offer comes the rider is no party to the order.
	r.persist(rider, "POST /v1/orders/"+id+"/accept", nil, "", "RIDER_ASSIGNED", "order_not_found")
	r.persist(rider, "POST /v1/orders/"+id+"/pick-up", nil, "d", "ORDER_PICKED_UP")
	r.persist(rider, "POST /v1/orders/"+id+"/deliver", nil, "e", "ORDER_DELIVERED")
}

// persist repeats a command until it is acknowledged, and keeps that. early are
// refusals that pass with time.
func (r *rush) persist(who domain.Actor, call string, body any, key, eventType string, early ...string) servertest.Answer {
	var header []string
	if key != "" {
		header = []string{"Idempotency-Key", key}
	}
	x := r.until(func() servertest.Answer { return r.Do(who, call, body, header...) }, early...)
	id := x.Str("orderId")
	if id == "" {
		_, id = servertest.AggregateOf(call)
	}
	r.mu.Lock()
	r.acks = append(r.acks, ack{x.Request, id, x.ETag(), eventType})
	r.mu.Unlock()
	r.progress <- struct{}{}
	return x
}

func (r *rush) until(ask func() servertest.Answer, early ...string) servertest.Answer {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(servertest.Patience); ; {
		x := ask()
		if x.Err == nil && x.Status < 300 {
			return x
		}
		kind := fmt.Sprint(x.Status, " ", x.Code())
		switch {
		case x.Err != nil:
			kind = "no answer"
		case x.Status == http.StatusServiceUnavailable || x.Code() == "idempotency_in_progress":
			if x.Header.Get("Retry-After") == "" {
				r.T.Errorf("no Retry-After: %v", x.Fault())
			}
		case slices.Contains(early, x.Code()):
		default:
			r.T.Fatal(x.Fault())
		}
		r.mu.Lock()
		r.kinds[kind]++
		r.mu.Unlock()
		select {
		case <-tick.C:
		case <-r.over:
			runtime.Goexit()
		case <-end:
			r.T.Fatalf("never acknowledged: %v", x.Fault())
		}
	}
}

// reached waits until so many commands more were acknowledged.
func (r *rush) reached(acks int) {
	r.T.Helper()
	end := time.After(2 * servertest.Patience)
	for range acks {
		select {
		case <-r.progress:
		case <-r.done:
			r.T.Fatal("the orders were done before it broke")
		case <-end:
			r.T.Fatal("the orders do not go on")
		}
	}
}

// check waits for the end and holds the logs to what was acknowledged: all of
// it is there, and nothing twice.
func (r *rush) check() {
	r.T.Helper()
	select {
	case <-r.done:
	case <-time.After(3 * servertest.Patience):
		r.T.Fatal("the orders never came to their doors")
	}
	if r.T.Failed() {
		r.T.FailNow()
	}
	r.T.Logf("%d commands acknowledged; else: %v", len(r.acks), r.kinds)
	want := []string{"ORDER_PLACED", "ORDER_PAID", "ORDER_ACCEPTED", "ORDER_PREPARING", "ORDER_READY_FOR_RIDER", "RIDER_ASSIGNED", "ORDER_PICKED_UP", "ORDER_DELIVERED"}
	for i, id := range r.orders {
		events := r.History(eventlog.Orders, id)
		got := slices.DeleteFunc(servertest.Types(events), func(s string) bool { return s == "ORDER_OFFERED" })
		if !slices.Equal(got, want) {
			r.T.Errorf("order %d: %v", i, servertest.Types(events))
		}
		if got := servertest.Types(r.History(eventlog.Payments, id)); !slices.Equal(got, []string{"PAYMENT_REQUESTED", "PAYMENT_SUCCESS"}) {
			r.T.Errorf("payment of order %d: %v", i, got)
		}
		// The rider policy releases them where the request could not.
		rider := fmt.Sprint("k", i)
		r.AwaitEvent(eventlog.Riders, rider, "RIDER_RELEASED", 1)
		if h := r.History(eventlog.Riders, rider); servertest.Count(h, "RIDER_CLAIMED") != servertest.Count(h, "RIDER_RELEASED") {
			r.T.Errorf("rider %s: %v", rider, servertest.Types(h))
		}
	}
	for _, k := range r.acks {
		if k.eventType == "" {
			continue
		}
		version, err := strconv.Atoi(strings.Trim(k.etag, `"`))
		events := r.History(eventlog.Orders, k.orderID)
		i := slices.IndexFunc(events, func(e eventlog.Event) bool { return e.Type == k.eventType })
		// A repeat may be told a later version than its event's, never an earlier one.
		if err != nil || i < 0 || version <= i || version > len(events) {
			r.T.Errorf("%s was acknowledged at version %s; the log has %v", k.request, k.etag, servertest.Types(events))
		}
	}
	baskets := map[string]int{}
	for key, events := range r.Log.All() {
		if strings.HasPrefix(key, eventlog.Orders+"/") {
			baskets[fmt.Sprint(servertest.Data(events[0], "externalReference"))]++
		}
	}
	for i := range r.orders {
		if n := baskets[fmt.Sprint("basket", i)]; n != 1 {
			r.T.Errorf("basket %d was placed %d times", i, n)
		}
	}
	r.AwaitIdle()
	r.NoDeadLetters()
	for i, id := range r.orders {
		r.Must(servertest.Customer(fmt.Sprint("c", i%5)), "GET /v1/orders/"+id, nil).Want("status", "delivered", "paymentStatus", "paid")
	}
}

func rushSize(t *testing.T) int {
	t.Helper()
	if testing.Short() {
		return 30
	}
	return 200
}

// TestAKilledServerLosesNothing: serve is killed twice in the middle of many
// orders and started again on the same data. Everything acknowledged is there,
// nothing is there twice, all orders go on to their doors, and a feed client
// resumes where it was.
func TestAKilledServerLosesNothing(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, kafka eventlog.Config) {
		a := servertest.New(t, kafka)
		serve := a.SpawnServer("--offer-ttl", "10m")
		n := rushSize(t)
		r := rushHour(a, n, 40)
		watched := servertest.Customer("c0")
		feed := a.Feed(watched)
		var told []servertest.Message
		for range 2 {
			r.reached(n * 9 / 3)
			serve.Kill()
			feed.Ended()
			told = append(told, feed.All()...)
			serve = a.SpawnServer("--offer-ttl", "10m")
			feed = a.FeedFrom(watched, lastCursor(told))
			if m := feed.WaitFor(func(m servertest.Message) bool { return strings.HasPrefix(m.Event, "feed:re") }, "feed:resumed or feed:reset"); m.Event != "feed:resumed" {
				t.Errorf("after the kill the feed was told %s", m.Raw)
			}
		}
		r.check()
		var mine []string
		for i, id := range r.orders {
			if i%5 == 0 {
				mine = append(mine, id)
				delivered := func(m servertest.Message) bool { return servertest.About(id)(m) && m.Value("status") == "delivered" }
				if !slices.ContainsFunc(told, delivered) {
					feed.Expect("order:update", delivered)
				}
			}
		}
		told = append(told, feed.All()...)
		for _, id := range mine {
			var versions []float64
			statuses := map[any]bool{}
			for _, m := range told {
				if v, ok := m.Value("version").(float64); ok && m.Event == "order:update" && m.Value("orderId") == id {
					versions = append(versions, v)
					statuses[m.Value("status")] = true
				}
			}
			if !slices.IsSorted(versions) || len(slices.Compact(slices.Clone(versions))) != len(versions) || len(statuses) != 7 {
				t.Errorf("the customer was told versions %v, statuses %v of order %s", versions, statuses, id)
			}
		}
	})
}

func lastCursor(messages []servertest.Message) string {
	for _, m := range slices.Backward(messages) {
		if m.Cursor != "" {
			return m.Cursor
		}
	}
	return ""
}

// TestAKilledBrokerLosesNothing: the broker is killed in the middle of many
// orders and started again on its data. Meanwhile commands are 503, and queries
// still answer; afterwards everything goes on by itself.
func TestAKilledBrokerLosesNothing(t *testing.T) {
	t.Parallel()
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		a := servertest.New(t, eventlog.Config{Brokers: []string{"127.0.0.1:0"}, ClientID: t.Name()})
		dir := t.TempDir()
		b, addr := a.SpawnBroker(dir, "127.0.0.1:0")
		a.Config.Brokers, a.Kafka.Brokers = []string{addr}, []string{addr}
		brokerOutage(a, b.Kill, func() { a.SpawnBroker(dir, addr) })
	})
	t.Run("kafka", func(t *testing.T) {
		t.Parallel()
		k := eventlogtest.KafkaProcess(t)
		a := servertest.New(t, eventlog.Config{Brokers: []string{k.Addr()}, ClientID: t.Name()})
		brokerOutage(a, k.Kill, func() {
			again, err := kafkaprocess.Start(t.Context(), k.Dir(), eventlogtest.Options)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(again.Kill)
		})
	})
}

func brokerOutage(a *servertest.Installation, kill, start func()) {
	a.T.Helper()
	a.Config.OfferTTL = settings.Duration(10 * time.Minute)
	a.Start()
	n := rushSize(a.T.(*testing.T))
	r := rushHour(a, n, 40)
	r.reached(n * 9 / 3)
	known := r.acknowledged()[0].orderID
	a.AwaitQuery(servertest.Ops, "/v1/orders/"+known, "orderId", known)
	kill()
	// A command cannot be kept, and says so; a query can be answered.
	a.Each(4, 4, func(int) {
		x := a.Do(servertest.Customer("other"), "POST /v1/orders", servertest.Basket("r0"))
		if x.Status != http.StatusServiceUnavailable || x.Header.Get("Retry-After") == "" || x.Code() == "" {
			a.T.Errorf("without a broker: %v, Retry-After %q", x.Fault(), x.Header.Get("Retry-After"))
		}
	})
	if x := a.Do(servertest.Ops, "GET /v1/orders/"+known, nil); x.Status != http.StatusOK {
		a.T.Error("a query without a broker: ", x.Fault())
	}
	// It used to hang until the gateway gave up.
	if x := a.Webhook(servertest.Capture(gateway.EventPaymentCaptured, "order_x", "pay_x", 1)); x.Status != http.StatusServiceUnavailable {
		a.T.Error("a webhook without a broker: ", x.Fault())
	}
	start()
	r.check()
	a.AwaitReady()
}

func (r *rush) acknowledged() []ack {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.acks)
}

// TestPostgresComesAndGoes: it is stopped in the middle of many orders and
// started again. Queries are 503 meanwhile; commands go on, or are 503; nothing
// becomes a dead letter.
func TestPostgresComesAndGoes(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "postgres")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	pg := servertest.Postgres(t, ctx, dir)
	a := servertest.NewOn(t, eventlogtest.Embedded(t), pg.URL(), "--offer-ttl", "10m").Start()
	n := rushSize(t)
	r := rushHour(a, n, 40)
	r.reached(n * 9 / 3)
	stopCtx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	if err := pg.Stop(stopCtx); err != nil {
		t.Fatal(err)
	}
	id := r.acknowledged()[0].orderID
	for _, path := range []string{"/v1/orders/" + id, "/v1/orders", "/v1/riders/nearby?lat=12.9&lng=77.6", "/v1/payments/" + id, "/v1/ops/dead-letters"} {
		if x := a.Do(servertest.Ops, "GET "+path, nil); x.Status != http.StatusServiceUnavailable || x.Header.Get("Retry-After") == "" || x.Code() == "" {
			t.Errorf("without Postgres: %v, Retry-After %q", x.Fault(), x.Header.Get("Retry-After"))
		}
	}
	if x := a.Do(domain.Actor{}, "GET /readyz", nil); x.Status != http.StatusServiceUnavailable || x.Str("status") != "not_ready" { // queries are 503
		t.Error("readyz without Postgres: ", x.Fault())
	}
	// Commands need the log alone.
	if x := a.Do(servertest.Customer("other"), "POST /v1/orders", servertest.Basket("r0")); x.Status != http.StatusCreated && x.Status != http.StatusServiceUnavailable {
		t.Error("a command without Postgres: ", x.Fault())
	}
	servertest.Postgres(t, ctx, dir)
	r.check()
	a.AwaitReady()
}
