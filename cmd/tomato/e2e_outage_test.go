package main_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/cmd/tomato/servertest"
	"tomato/commandside/gateway"
	"tomato/commandside/shard"
	"tomato/domain"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/eventlogtest"
	"tomato/migrations/cluster"
)

// outage is how long something is away in these tests: 10 s, or TOMATO_OUTAGE.
func outage(t *testing.T) time.Duration {
	t.Helper()
	s := os.Getenv("TOMATO_OUTAGE")
	if s == "" {
		return 10 * time.Second
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// A gate lets connections through to a server, or closes them as soon as they
// come, as long as it is shut.
type gate struct {
	addr string
	to   string

	mu    sync.Mutex
	shut  bool
	conns map[net.Conn]bool
}

func newGate(t *testing.T) *gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{addr: l.Addr().String(), conns: map[net.Conn]bool{}}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { g.pass(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		g.close()
		all.Wait()
	})
	return g
}

func (g *gate) pass(c net.Conn) {
	defer c.Close()
	g.mu.Lock()
	to, shut := g.to, g.shut
	g.mu.Unlock()
	if shut {
		return
	}
	s, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer s.Close()
	g.mu.Lock()
	if g.shut {
		g.mu.Unlock()
		return
	}
	g.conns[c], g.conns[s] = true, true
	g.mu.Unlock()
	go func() {
		_, _ = io.Copy(s, c)
		_ = s.Close()
	}()
	_, _ = io.Copy(c, s)
	g.mu.Lock()
	delete(g.conns, c)
	delete(g.conns, s)
	g.mu.Unlock()
}

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = true
	for c := range g.conns {
		_ = c.Close()
	}
}

func (g *gate) open(to string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut, g.to = false, to
}

// razorpay is a stand-in for the gateway's API behind a gate: it makes orders,
// knows those, and refunds whatever it is asked to.
func razorpay(t *testing.T) *gate {
	t.Helper()
	var mu sync.Mutex
	orders := map[string]map[string]any{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		var in map[string]any
		_ = json.NewDecoder(r.Body).Decode(&in)
		var out any
		parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
		switch {
		case r.Method == http.MethodPost && r.URL.Path == "/v1/orders":
			o := map[string]any{"id": fmt.Sprint("order_", len(orders)), "amount": in["amount"], "currency": in["currency"], "receipt": in["receipt"], "notes": in["notes"], "status": "created"}
			orders[fmt.Sprint(o["id"])] = o
			out = o
		case parts[1] == "orders" && len(parts) == 4:
			out = map[string]any{"items": []any{}}
		case parts[1] == "orders" && orders[parts[2]] != nil:
			out = orders[parts[2]]
		case strings.HasSuffix(r.URL.Path, "/refund"):
			out = map[string]any{"id": "rfnd_" + parts[2], "status": "processed"}
		default:
			w.WriteHeader(http.StatusBadRequest)
			out = map[string]any{"error": map[string]any{"code": "BAD_REQUEST_ERROR", "description": "The id provided does not exist"}}
		}
		_ = json.NewEncoder(w).Encode(out)
	}))
	t.Cleanup(s.Close)
	g := newGate(t)
	g.open(strings.TrimPrefix(s.URL, "http://"))
	return g
}

// TestWhatIsAwayIsWaitedFor: Postgres, then the gateway, is away for a while.
// The lag shows, no event costs an attempt, and afterwards all is caught up by
// itself. Without the gateway, which few need, orders go on to their doors, on
// the very partition on which others wait for it.
func TestWhatIsAwayIsWaitedFor(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "postgres")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	startDatabase := func() *cluster.Cluster { return servertest.Postgres(t, ctx, dir) } // until the whole test ends
	pg, away := startDatabase(), outage(t)
	vendor := razorpay(t)
	a := servertest.NewOn(t, eventlogtest.Embedded(t), pg.URL(), "--offer-ttl", "10m", "--partitions", "1")
	a.Config.KeyID, a.Config.KeySecret, a.Options.GatewayURL = "rzp_test", "secret", "http://"+vendor.addr
	a.Start()
	a.AddRestaurant("r1", servertest.Lng, servertest.Lat)
	a.AddRiders("k", 4, servertest.Lng, servertest.Lat)
	const n = 20
	orders, gatewayOrders := make([]string, n), make([]string, n)
	open := func() {
		a.Each(n, 8, func(i int) {
			orders[i] = a.Place("c1", "r1")
			gatewayOrders[i] = a.OpenPayment("c1", orders[i])
		})
	}
	pay := func(i int) {
		t.Helper()
		if x := a.Webhook(servertest.Capture(gateway.EventPaymentCaptured, gatewayOrders[i], "pay_"+gatewayOrders[i], 50000)); x.Status != http.StatusOK {
			t.Fatal(x.Fault())
		}
	}

	t.Run("postgres", func(t *testing.T) {
		open()
		if err := pg.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		for i := range n {
			pay(i)
		}
		a.AwaitUnavailable("record-payment", "postgres")
		a.Wait(away)
		a.AwaitUnavailable("record-payment", "postgres")
		if away > 35*time.Second {
			if x := a.Do(domain.Actor{}, "GET /readyz", nil); !strings.Contains(string(x.Body), `"consumers":`) {
				t.Error(x.Fault())
			}
		}
		startDatabase()
		for _, id := range orders {
			a.AwaitEvent(eventlog.Orders, id, "ORDER_PAID", 1)
		}
		a.AwaitIdle()
		a.NothingFailed()
		a.AwaitReady()
	})

	t.Run("gateway", func(t *testing.T) {
		cancelled, back := orders[0], "pay_"+gatewayOrders[0]
		open()
		vendor.close()
		if x := a.Do(servertest.Customer("c1"), "POST /v1/orders/"+a.Place("c1", "r1")+"/payment", nil); x.Status != http.StatusServiceUnavailable || x.Header.Get("Retry-After") == "" {
			t.Error("a payment without the gateway: ", x.Fault())
		}
		// More wait for the gateway's word than a partition has lanes.
		const unknown = 40
		for i := range unknown {
			if x := a.Webhook(servertest.Capture(gateway.EventPaymentCaptured, fmt.Sprint("order_ofNobody", i), fmt.Sprint("pay_ofNobody", i), 100)); x.Status != http.StatusOK {
				t.Fatal(x.Fault())
			}
		}
		a.Must(servertest.Customer("c1"), "POST /v1/orders/"+cancelled+"/cancel", reason)
		a.AwaitUnavailable("record-payment", "gateway")
		a.AwaitUnavailable("refund", "gateway")
		for i, id := range orders {
			pay(i)
			a.AwaitEvent(eventlog.Orders, id, "ORDER_PAID", 1)
			if i >= 4 {
				continue
			}
			rider := servertest.Rider(fmt.Sprint("k", i))
			for _, step := range []string{"accept-order", "preparing", "ready"} {
				a.Must(servertest.Staff("r1"), "POST /v1/orders/"+id+"/"+step, nil)
			}
			a.AwaitEvent(eventlog.Orders, id, "ORDER_OFFERED", 1)
			for _, step := range []string{"accept", "pick-up", "deliver"} {
				a.Must(rider, "POST /v1/orders/"+id+"/"+step, nil)
			}
		}
		a.Wait(away)
		a.AwaitUnavailable("record-payment", "gateway")
		a.AwaitUnavailable("refund", "gateway")
		if events := a.History(eventlog.Payments, cancelled); servertest.Count(events, "REFUND_SUCCESS")+servertest.Count(events, "REFUND_FAILED") > 0 {
			t.Errorf("without the gateway: %v", servertest.Types(events))
		}
		vendor.open(vendor.to)
		e := a.AwaitEvent(eventlog.Payments, cancelled, "REFUND_SUCCESS", 1)
		if servertest.Data(e, "paymentId") != back {
			t.Errorf("refunded: %s", e.Data)
		}
		for i := range unknown {
			a.AwaitEvent(eventlog.Payments, fmt.Sprint("pay_ofNobody", i), "PAYMENT_UNMATCHED", 1)
		}
		a.AwaitIdle()
		a.NothingFailed()
	})
}

// TestAShardThatNobodyServesIsWaitedFor: one of two owners cannot be reached;
// then there is none at all. Payments of orders elsewhere are recorded
// meanwhile, from the same partitions of the inbox; those of the orders that
// nobody serves wait, cost no attempt, and are recorded as soon as somebody
// does. And what a consumer of another process waits for, operators see.
func TestAShardThatNobodyServesIsWaitedFor(t *testing.T) {
	t.Parallel()
	away := outage(t)
	a := servertest.New(t, eventlogtest.Embedded(t), "--role", "query,feed,project,react")
	near, far, road := newInstance(a, 1), newInstance(a, 2), newGate(t)
	far.args = []string{"--advertised-url", "http://" + road.addr}
	near.start()
	far.start()
	road.open(far.addr)
	near.serves(servertest.Partitions / 2)
	far.serves(servertest.Partitions / 2)
	a.Start()
	here := *a // where commands go
	here.URL = near.url
	here.AddRestaurant("r1", servertest.Lng, servertest.Lat)
	const n = 32
	orders, gatewayOrders := make([]string, n), make([]string, n)
	open := func() {
		here.Each(n, 8, func(i int) {
			orders[i] = here.Place("c1", "r1")
			gatewayOrders[i] = here.OpenPayment("c1", orders[i])
		})
	}
	open()
	var served struct{ Items []shard.Status }
	if err := json.Unmarshal(here.Must(servertest.Ops, "GET /v1/ops/shards", nil).Body, &served); err != nil {
		t.Fatal(err)
	}
	mine := map[int32]bool{}
	for _, s := range served.Items {
		mine[s.Shard] = s.State == "serving"
	}
	atHand := func(i int) bool { return mine[eventlog.PartitionFor(orders[i], servertest.Partitions)] }

	road.close()
	waiting, inbox := "", map[int32]map[bool]int{}
	for i := range n {
		if x := here.Webhook(servertest.Capture(gateway.EventPaymentCaptured, gatewayOrders[i], "pay_"+gatewayOrders[i], 50000)); x.Status != http.StatusOK {
			t.Fatal(x.Fault())
		}
		p := eventlog.PartitionFor(gatewayOrders[i], servertest.Partitions)
		if inbox[p] == nil {
			inbox[p] = map[bool]int{}
		}
		if inbox[p][atHand(i)]++; !atHand(i) {
			waiting = orders[i]
		}
	}
	both := 0
	for _, kinds := range inbox {
		if kinds[true] > 0 && kinds[false] > 0 {
			both++
		}
	}
	if both == 0 {
		t.Fatalf("no partition of the inbox has both kinds: %v", inbox)
	}
	a.AwaitUnavailable("record-payment", "shard ")
	paid := func(i int) bool { return servertest.Count(a.History(eventlog.Orders, orders[i]), "ORDER_PAID") > 0 }
	for i := range n {
		if atHand(i) {
			a.AwaitEvent(eventlog.Orders, orders[i], "ORDER_PAID", 1)
		}
	}
	a.Wait(away)
	a.AwaitUnavailable("record-payment", "shard ")
	for i := range n {
		if paid(i) != atHand(i) {
			t.Errorf("order %d: paid %v, its shard at hand %v", i, paid(i), atHand(i))
		}
	}
	a.Await("operators see the lag", func() error {
		x := a.Must(servertest.Ops, "GET /v1/ops/consumers", nil)
		var all struct{ Items []consumer.ConsumerStatus }
		if err := json.Unmarshal(x.Body, &all); err != nil {
			return err
		}
		for _, c := range all.Items {
			for _, p := range c.Partitions {
				if c.Consumer == "record-payment" && p.LagRecords > 0 {
					return nil
				}
			}
		}
		return x.Fault()
	})
	if away > 35*time.Second {
		if x := a.Do(domain.Actor{}, "GET /readyz", nil); x.Status != http.StatusOK || x.Str("status") != "degraded" || !strings.Contains(string(x.Body), `"consumers":`) {
			t.Error(x.Fault())
		}
	}
	road.open(far.addr)
	a.AwaitEvent(eventlog.Orders, waiting, "ORDER_PAID", 1)
	for _, id := range orders {
		a.AwaitEvent(eventlog.Orders, id, "ORDER_PAID", 1)
	}
	a.AwaitIdle()
	a.NothingFailed()

	// Nobody at all: the inbox gets its records as from a process that died then.
	open()
	near.process.Kill()
	far.process.Kill()
	road.close()
	var recs []*kgo.Record
	for i, g := range gatewayOrders {
		e := eventlog.Event{ID: fmt.Sprint("late-", i), Source: "/test", Type: "WEBHOOK_RECEIVED", Time: domain.Time(time.Now()), Subject: g,
			Data: servertest.Capture(gateway.EventPaymentCaptured, g, "pay_"+g, 50000)}
		recs = append(recs, e.NewRecord(eventlog.PaymentWebhooks, eventlog.PartitionFor(g, servertest.Partitions)))
	}
	writer := eventlogtest.Client(t, a.Kafka, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err := writer.ProduceSync(t.Context(), recs...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	a.AwaitUnavailable("record-payment", "shard ")
	a.Wait(away)
	a.AwaitUnavailable("record-payment", "shard ")
	near.start()
	for _, id := range orders {
		a.AwaitEvent(eventlog.Orders, id, "ORDER_PAID", 1)
	}
	a.AwaitIdle()
	a.NothingFailed()
}

// TestADispatchThatKeepsFailingEndsInItsDLQ: three failed attempts, of which
// the topics tell, then a dead letter of dispatch and of nobody else, which
// operators see, mend and replay.
func TestADispatchThatKeepsFailingEndsInItsDLQ(t *testing.T) {
	t.Parallel()
	a := servertest.New(t, eventlogtest.Embedded(t), "--offer-ttl", "10m").Start()
	a.AddRestaurant("r1", servertest.Lng, servertest.Lat)
	a.AddRider("k1", servertest.Lng, servertest.Lat)
	id := a.Cook("c1", "r1")
	a.AwaitIdle()
	g, err := a.Server.ReadModels().Serving(t.Context(), "riders")
	if err != nil {
		t.Fatal(err)
	}
	// The search for riders is broken: Postgres answers, and the answer is an error.
	exec := func(sql string) {
		t.Helper()
		if _, err := a.DB().Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	exec(`ALTER TABLE ` + g.Schema() + `.free_riders RENAME COLUMN recorded_at TO broken`)
	began := time.Now()
	a.Must(servertest.Staff("r1"), "POST /v1/orders/"+id+"/ready", nil)
	a.AwaitQuery(servertest.Ops, "/v1/ops/dead-letters?consumer=dispatch", "items.0.key", id, "items.0.attempt", "3", "items.0.class", "pg_42703",
		"items.0.eventType", "ORDER_READY_FOR_RIDER", "items.0.topic", "orders", "items.1", "")
	if took := time.Since(began); took < 35*time.Second {
		t.Errorf("dead after %v: three attempts take 35 s", took)
	}
	// On the topics, one copy of each failed attempt, and none of another consumer.
	want := map[string]int64{}
	for _, stage := range []string{"retry-5s", "retry-30s", "dlq"} {
		want[eventlog.ParkedTopic(eventlog.Orders, "dispatch", stage)] = 1
	}
	if got := a.Copies(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("copies on %v, want %v", got, want)
	}
	letters := a.Must(servertest.Ops, "GET /v1/ops/dead-letters", nil).Want("items.0.consumer", "dispatch", "items.1", "")
	letter := fmt.Sprint(letters.Get("items.0.id"))
	a.Must(servertest.Ops, "GET /v1/ops/dead-letters/"+letter, nil).Want("state", "dead", "data.orderId", id)
	dead, inRetry := map[string]int{}, 0
	var all struct{ Items []consumer.ConsumerStatus }
	if err := json.Unmarshal(a.Must(servertest.Ops, "GET /v1/ops/consumers", nil).Body, &all); err != nil {
		t.Fatal(err)
	}
	for _, c := range all.Items {
		for _, p := range c.Partitions {
			if p.Dead > 0 {
				dead[c.Consumer] += p.Dead
			}
			inRetry += p.Retrying
		}
	}
	if len(dead) != 1 || dead["dispatch"] != 1 || inRetry != 0 {
		t.Errorf("consumers show %v dead, %d in retry", dead, inRetry)
	}
	if n := a.Metric("tomato_consumer_dead", `consumer="dispatch"`); n != 1 {
		t.Errorf("tomato_consumer_dead is %v", n)
	}
	a.Must(servertest.Ops, "GET /v1/orders/"+id, nil).Want("status", "ready_for_rider")
	if n := servertest.Count(a.History(eventlog.Orders, id), "ORDER_OFFERED"); n != 0 {
		t.Errorf("offered %d times by a search that fails", n)
	}

	exec(`ALTER TABLE ` + g.Schema() + `.free_riders RENAME COLUMN broken TO recorded_at`)
	a.Must(servertest.Ops, "POST /v1/ops/dead-letters/"+letter+"/replay", nil).Want("matched", "1", "replayed", "1")
	a.AwaitEvent(eventlog.Orders, id, "ORDER_OFFERED", 1)
	a.Await("nothing is parked", func() error {
		if n := a.Metric("tomato_consumer_parked_keys"); n != 0 {
			return fmt.Errorf("%v keys", n)
		}
		return nil
	})
	a.Must(servertest.Rider("k1"), "POST /v1/orders/"+id+"/accept", nil).Want("status", "rider_assigned")
	a.NoDeadLetters()
}

// TestAConsumerThatCannotGoOnDegrades: /readyz says so and stays 200, until it can.
func TestAConsumerThatCannotGoOnDegrades(t *testing.T) {
	t.Parallel()
	a := servertest.New(t, eventlogtest.Embedded(t), "--partitions", "1").Start()
	a.AddRestaurant("r1", servertest.Lng, servertest.Lat)
	a.AwaitIdle()
	move := func(by int) {
		t.Helper()
		// Another owner took the checkpoint, to where there is no log.
		if _, err := a.DB().Exec(t.Context(), `UPDATE tomato.checkpoints SET next_offset = next_offset + $1, epoch = epoch + 1
			WHERE consumer = 'claims' AND topic = 'orders'`, by); err != nil {
			t.Fatal(err)
		}
	}
	move(1_000_000)
	a.Place("c1", "r1") // there is something to move over
	a.Await("readyz says so", func() error {
		x := a.Do(domain.Actor{}, "GET /readyz", nil)
		if x.Status != http.StatusOK || x.Str("status") != "degraded" || !strings.Contains(string(x.Body), `"consumers":`) {
			return x.Fault()
		}
		if strings.Contains(string(x.Body), "claims") || strings.Contains(string(x.Body), "orders/0") {
			t.Errorf("it tells everybody too much: %s", x.Body)
		}
		return nil
	})
	if a.Metric("tomato_ready") != 1 || a.Metric("tomato_degraded", `check="consumers"`) != 1 {
		t.Error("the metrics say otherwise")
	}
	if x := a.Do(domain.Actor{}, "GET /healthz", nil); x.Status != http.StatusOK {
		t.Error("it lives: ", x.Fault())
	}
	a.Pay("c1", a.Place("c1", "r1")) // the others go on
	move(-1_000_000)
	a.AwaitReady()
	a.AwaitIdle()
	a.NoDeadLetters()
}
