package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"tomato/cmd/tomato/settings"
	"tomato/commandside/gateway"
	"tomato/domain"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
	"tomato/eventlog/kafkaprocess"
	"tomato/migrations/cluster"
)

// rush is many orders under way at once, each driven to its door by its own
// customer, kitchen and rider, who repeat what got no answer and keep what did.
type rush struct {
	*town
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
func (a *town) rushHour(n, atOnce int) *rush {
	a.t.Helper()
	r := &rush{town: a, orders: make([]string, n), progress: make(chan struct{}, 100*n), done: make(chan struct{}),
		over: make(chan struct{}), kinds: map[string]int{}}
	kitchens := (n + 9) / 10
	a.each(kitchens, 8, func(k int) { a.restaurant(fmt.Sprint("r", k), lng0+float64(k), lat0) })
	a.each(n, 8, func(i int) { a.rider(fmt.Sprint("k", i), lng0+float64(i/10), lat0+0.001) })
	go func() {
		defer close(r.done)
		a.each(n, atOnce, r.drive)
	}()
	a.t.Cleanup(func() {
		close(r.over)
		<-r.done
	})
	return r
}

// drive takes order i from the basket to the door.
func (r *rush) drive(i int) {
	cust, rest, rider := customer(fmt.Sprint("c", i%5)), staff(fmt.Sprint("r", i/10)), courier(fmt.Sprint("k", i))
	basket := basket(rest.RestaurantID)
	basket["externalReference"] = fmt.Sprint("basket", i)
	placed := r.persist(cust, "POST /v1/orders", basket, fmt.Sprint("place", i), "ORDER_PLACED")
	id := placed.str("orderId")
	r.orders[i] = id
	paying := r.persist(cust, "POST /v1/orders/"+id+"/payment", nil, "pay", "")
	body := capture(gateway.EventPaymentCaptured, paying.str("gatewayOrderId"), fmt.Sprint("pay_", i), 50000)
	r.until(func() answer { return r.webhook(body) })
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
func (r *rush) persist(who domain.Actor, call string, body any, key, eventType string, early ...string) answer {
	var header []string
	if key != "" {
		header = []string{"Idempotency-Key", key}
	}
	x := r.until(func() answer { return r.do(who, call, body, header...) }, early...)
	id := x.str("orderId")
	if id == "" {
		_, id = aggregateOf(call)
	}
	r.mu.Lock()
	r.acks = append(r.acks, ack{x.request, id, x.etag(), eventType})
	r.mu.Unlock()
	r.progress <- struct{}{}
	return x
}

func (r *rush) until(ask func() answer, early ...string) answer {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(patience); ; {
		x := ask()
		if x.err == nil && x.status < 300 {
			return x
		}
		kind := fmt.Sprint(x.status, " ", x.code())
		switch {
		case x.err != nil:
			kind = "no answer"
		case x.status == http.StatusServiceUnavailable || x.code() == "idempotency_in_progress":
			if x.header.Get("Retry-After") == "" {
				r.t.Errorf("no Retry-After: %v", x.fault())
			}
		case slices.Contains(early, x.code()):
		default:
			r.t.Fatal(x.fault())
		}
		r.mu.Lock()
		r.kinds[kind]++
		r.mu.Unlock()
		select {
		case <-tick.C:
		case <-r.over:
			runtime.Goexit()
		case <-end:
			r.t.Fatalf("never acknowledged: %v", x.fault())
		}
	}
}

// reached waits until so many commands more were acknowledged.
func (r *rush) reached(acks int) {
	r.t.Helper()
	end := time.After(2 * patience)
	for range acks {
		select {
		case <-r.progress:
		case <-r.done:
			r.t.Fatal("the orders were done before it broke")
		case <-end:
			r.t.Fatal("the orders do not go on")
		}
	}
}

// check waits for the end and holds the logs to what was acknowledged: all of
// it is there, and nothing twice.
func (r *rush) check() {
	r.t.Helper()
	select {
	case <-r.done:
	case <-time.After(3 * patience):
		r.t.Fatal("the orders never came to their doors")
	}
	if r.t.Failed() {
		r.t.FailNow()
	}
	r.t.Logf("%d commands acknowledged; else: %v", len(r.acks), r.kinds)
	want := []string{"ORDER_PLACED", "ORDER_PAID", "ORDER_ACCEPTED", "ORDER_PREPARING", "ORDER_READY_FOR_RIDER", "RIDER_ASSIGNED", "ORDER_PICKED_UP", "ORDER_DELIVERED"}
	for i, id := range r.orders {
		events := r.history(eventlog.Orders, id)
		got := slices.DeleteFunc(types(events), func(s string) bool { return s == "ORDER_OFFERED" })
		if !slices.Equal(got, want) {
			r.t.Errorf("order %d: %v", i, types(events))
		}
		if got := types(r.history(eventlog.Payments, id)); !slices.Equal(got, []string{"PAYMENT_REQUESTED", "PAYMENT_SUCCESS"}) {
			r.t.Errorf("payment of order %d: %v", i, got)
		}
		// The rider policy releases them where the request could not.
		rider := fmt.Sprint("k", i)
		r.awaitEvent(eventlog.Riders, rider, "RIDER_RELEASED", 1)
		if h := r.history(eventlog.Riders, rider); count(h, "RIDER_CLAIMED") != count(h, "RIDER_RELEASED") {
			r.t.Errorf("rider %s: %v", rider, types(h))
		}
	}
	for _, k := range r.acks {
		if k.eventType == "" {
			continue
		}
		version, err := strconv.Atoi(strings.Trim(k.etag, `"`))
		events := r.history(eventlog.Orders, k.orderID)
		i := slices.IndexFunc(events, func(e eventlog.Event) bool { return e.Type == k.eventType })
		// A repeat may be told a later version than its event's, never an earlier one.
		if err != nil || i < 0 || version <= i || version > len(events) {
			r.t.Errorf("%s was acknowledged at version %s; the log has %v", k.request, k.etag, types(events))
		}
	}
	baskets := map[string]int{}
	r.log.mu.Lock()
	for key, events := range r.log.events {
		if strings.HasPrefix(key, eventlog.Orders+"/") {
			baskets[fmt.Sprint(data(events[0], "externalReference"))]++
		}
	}
	r.log.mu.Unlock()
	for i := range r.orders {
		if n := baskets[fmt.Sprint("basket", i)]; n != 1 {
			r.t.Errorf("basket %d was placed %d times", i, n)
		}
	}
	r.idle()
	r.noDeadLetters()
	for i, id := range r.orders {
		r.must(customer(fmt.Sprint("c", i%5)), "GET /v1/orders/"+id, nil).want("status", "delivered", "paymentStatus", "paid")
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
		a := newTown(t, kafka)
		serve := a.spawnServer("--offer-ttl", "10m")
		n := rushSize(t)
		r := a.rushHour(n, 40)
		watched := customer("c0")
		feed := a.feed(watched)
		var told []message
		for range 2 {
			r.reached(n * 9 / 3)
			serve.kill()
			feed.ended()
			told = append(told, feed.all()...)
			serve = a.spawnServer("--offer-ttl", "10m")
			feed = a.feedFrom(watched, lastCursor(told))
			if m := feed.waitFor(func(m message) bool { return strings.HasPrefix(m.Event, "feed:re") }, "feed:resumed or feed:reset"); m.Event != "feed:resumed" {
				t.Errorf("after the kill the feed was told %s", m.Event)
			}
		}
		r.check()
		var mine []string
		for i, id := range r.orders {
			if i%5 == 0 {
				mine = append(mine, id)
				delivered := func(m message) bool { return of(id)(m) && m.payload("status") == "delivered" }
				if !slices.ContainsFunc(told, delivered) {
					feed.expect("order:update", delivered)
				}
			}
		}
		told = append(told, feed.all()...)
		for _, id := range mine {
			var versions []float64
			statuses := map[any]bool{}
			for _, m := range told {
				if v, ok := m.payload("version").(float64); ok && m.Event == "order:update" && m.payload("orderId") == id {
					versions = append(versions, v)
					statuses[m.payload("status")] = true
				}
			}
			if !slices.IsSorted(versions) || len(slices.Compact(slices.Clone(versions))) != len(versions) || len(statuses) != 7 {
				t.Errorf("the customer was told versions %v, statuses %v of order %s", versions, statuses, id)
			}
		}
	})
}

// ended waits until the connection is gone.
func (f *feedClient) ended() {
	f.t.Helper()
	end := time.After(patience)
	for {
		f.mu.Lock()
		err, changed := f.err, f.changed
		f.mu.Unlock()
		if err != nil {
			return
		}
		select {
		case <-changed:
		case <-end:
			f.t.Fatal("the feed goes on")
		}
	}
}

func (f *feedClient) all() []message {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.messages)
}

func lastCursor(messages []message) string {
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
		a := newTown(t, eventlog.Config{Brokers: []string{"127.0.0.1:0"}, ClientID: t.Name()})
		dir := t.TempDir()
		b, addr := a.spawnBroker(dir, "127.0.0.1:0")
		a.cmd.Brokers, a.kafka.Brokers = []string{addr}, []string{addr}
		brokerOutage(a, b.kill, func() { a.spawnBroker(dir, addr) })
	})
	t.Run("kafka", func(t *testing.T) {
		t.Parallel()
		k := eventlogtest.KafkaProcess(t)
		a := newTown(t, eventlog.Config{Brokers: []string{k.Addr()}, ClientID: t.Name()})
		brokerOutage(a, k.Kill, func() {
			again, err := kafkaprocess.Start(t.Context(), k.Dir(), eventlogtest.Options)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(again.Kill)
		})
	})
}

// spawnBroker runs `tomato broker` as a process of its own.
func (a *town) spawnBroker(dir, addr string) (*child, string) {
	a.t.Helper()
	c := a.spawn("broker", "--data-dir", dir, "--addr", addr)
	line := ""
	a.await("the broker listens", func() error {
		var ok bool
		if line, ok = strings.CutPrefix(c.firstLine(), "broker listening on "); !ok {
			return fmt.Errorf("it says %q", c.firstLine())
		}
		return nil
	})
	return c, line
}

// firstLine is the first that the child has printed, "" before.
func (c *child) firstLine() string {
	s := bufio.NewScanner(strings.NewReader(c.out.String()))
	s.Scan()
	return s.Text()
}

func brokerOutage(a *town, kill, start func()) {
	a.t.Helper()
	a.cmd.OfferTTL = settings.Duration(10 * time.Minute)
	a.open()
	n := rushSize(a.t.(*testing.T))
	r := a.rushHour(n, 40)
	r.reached(n * 9 / 3)
	known := r.acknowledged()[0].orderID
	a.awaitQuery(office, "/v1/orders/"+known, "orderId", known)
	kill()
	// A command cannot be kept, and says so; a query can be answered.
	a.each(4, 4, func(int) {
		x := a.do(customer("other"), "POST /v1/orders", basket("r0"))
		if x.status != http.StatusServiceUnavailable || x.header.Get("Retry-After") == "" || x.code() == "" {
			a.t.Errorf("without a broker: %v, Retry-After %q", x.fault(), x.header.Get("Retry-After"))
		}
	})
	if x := a.do(office, "GET /v1/orders/"+known, nil); x.status != http.StatusOK {
		a.t.Error("a query without a broker: ", x.fault())
	}
	// It used to hang until the gateway gave up.
	if x := a.webhook(capture(gateway.EventPaymentCaptured, "order_x", "pay_x", 1)); x.status != http.StatusServiceUnavailable {
		a.t.Error("a webhook without a broker: ", x.fault())
	}
	start()
	r.check()
	a.ready()
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
	pg := startPostgres(t, ctx, dir)
	a := newTownOn(t, eventlogtest.Embedded(t), pg.URL(), "--offer-ttl", "10m").open()
	n := rushSize(t)
	r := a.rushHour(n, 40)
	r.reached(n * 9 / 3)
	stopCtx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	if err := pg.Stop(stopCtx); err != nil {
		t.Fatal(err)
	}
	id := r.acknowledged()[0].orderID
	for _, path := range []string{"/v1/orders/" + id, "/v1/orders", "/v1/riders/nearby?lat=12.9&lng=77.6", "/v1/payments/" + id, "/v1/ops/dead-letters"} {
		if x := a.do(office, "GET "+path, nil); x.status != http.StatusServiceUnavailable || x.header.Get("Retry-After") == "" || x.code() == "" {
			t.Errorf("without Postgres: %v, Retry-After %q", x.fault(), x.header.Get("Retry-After"))
		}
	}
	if x := a.do(domain.Actor{}, "GET /readyz", nil); x.status != http.StatusServiceUnavailable || x.str("status") != "not_ready" { // queries are 503
		t.Error("readyz without Postgres: ", x.fault())
	}
	// Commands need the log alone.
	if x := a.do(customer("other"), "POST /v1/orders", basket("r0")); x.status != http.StatusCreated && x.status != http.StatusServiceUnavailable {
		t.Error("a command without Postgres: ", x.fault())
	}
	startPostgres(t, ctx, dir)
	r.check()
	a.ready()
}

func startPostgres(t *testing.T, ctx context.Context, dir string) *cluster.Cluster {
	t.Helper()
	pg, err := cluster.Start(ctx, dir, cluster.Options{Settings: map[string]string{"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}})
	if errors.Is(err, cluster.ErrAbsent) && os.Getenv("TOMATO_REQUIRE_POSTGIS") != "1" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_ = pg.Stop(ctx)
	})
	return pg
}
