package main_test

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"tomato/cmd/tomato/servertest"
	"tomato/eventlog/eventlogtest"
	"tomato/projections"
)

// TestRebuildWhileOrdersComeAndGo: every read model is rebuilt beside the one
// that serves, under traffic. No query fails meanwhile, and when all is quiet
// both generations have the same rows.
func TestRebuildWhileOrdersComeAndGo(t *testing.T) {
	t.Parallel()
	a := servertest.New(t, eventlogtest.Embedded(t), "--offer-ttl", "1s", "--offer-radii", "1000,3000").Start()
	a.AddRestaurant("r1", servertest.Lng, servertest.Lat)
	a.AddRiders("k", 5, servertest.Lng, servertest.Lat)
	first := a.Place("c0", "r1")
	a.AwaitQuery(servertest.Ops, "/v1/orders/"+first, "status", "placed")

	var stopped atomic.Bool
	var traffic sync.WaitGroup
	var orders, queries atomic.Int64
	end := func() {
		stopped.Store(true)
		traffic.Wait()
	}
	t.Cleanup(end)
	for lane := range 3 {
		traffic.Go(func() {
			for i := 0; !stopped.Load() && !t.Failed(); i++ {
				anOrder(a, fmt.Sprint("c", lane), lane*1000+i)
				orders.Add(1)
			}
		})
	}
	paths := []string{"/v1/orders/" + first, "/v1/orders?limit=5", "/v1/orders/" + first + "/events", "/v1/riders/k0", "/v1/riders/nearby?lat=12.9&lng=77.6",
		"/v1/restaurants/r1", "/v1/ops/payments?state=unmatched", "/v1/ops/projections"}
	traffic.Go(func() {
		pause := time.NewTicker(5 * time.Millisecond) // leave the machine to the others
		defer pause.Stop()
		for i := 0; !stopped.Load(); i++ {
			<-pause.C
			if x := a.Do(servertest.Ops, "GET "+paths[i%len(paths)], nil); x.Status != http.StatusOK {
				t.Errorf("meanwhile: %v", x.Fault())
			}
			queries.Add(1)
		}
	})

	for _, model := range projections.Models() {
		before := orders.Load()
		if said := a.Tool("rebuild", model); !strings.Contains(said, " serves; it took ") {
			t.Errorf("rebuild %s said %s", model, said)
		}
		a.Await("orders come and go", func() error {
			if orders.Load() == before {
				return fmt.Errorf("%d orders", before)
			}
			return nil
		})
	}
	end()
	if t.Failed() {
		t.FailNow()
	}
	a.AwaitIdle()
	t.Logf("%d orders and %d queries meanwhile", orders.Load(), queries.Load())

	var served []string
	for _, p := range a.Must(servertest.Ops, "GET /v1/ops/projections", nil).Get("items").([]any) {
		if servertest.Dig(p, "state") == "serving" {
			served = append(served, fmt.Sprint(servertest.Dig(p, "readModel"), " ", servertest.Dig(p, "generation")))
		}
	}
	slices.Sort(served)
	if want := []string{"orders 2", "payments 2", "restaurants 2", "riders 2"}; !slices.Equal(served, want) {
		t.Errorf("serving: %v, want %v", served, want)
	}
	for _, model := range projections.Models() {
		one, two := rows(a, model+"_g1"), rows(a, model+"_g2")
		if len(one) == 0 || !maps.Equal(one, two) {
			t.Errorf("%s: generation 1 has %v, generation 2 has %v", model, one, two)
		}
	}
	a.NoDeadLetters()
}

// TestAKilledRebuildIsResumedUnderLoad: `tomato rebuild` is killed while it fills and again
// later, and another process goes on and drops the old generation. Meanwhile orders are
// placed and read at once with their tokens: no query fails or is behind.
func TestAKilledRebuildIsResumedUnderLoad(t *testing.T) {
	t.Parallel()
	a := servertest.New(t, eventlogtest.Embedded(t)).Start()
	a.AddRestaurant("r1", servertest.Lng, servertest.Lat)
	var stopped atomic.Bool
	var traffic sync.WaitGroup
	var queries atomic.Int64
	end := func() {
		stopped.Store(true)
		traffic.Wait()
	}
	t.Cleanup(end)
	for lane := range 4 {
		traffic.Go(func() {
			pause := time.NewTicker(10 * time.Millisecond) // leave the machine to the others
			defer pause.Stop()
			for !stopped.Load() && !t.Failed() {
				<-pause.C
				who := servertest.Customer(fmt.Sprint("c", lane))
				placed := a.Do(who, "POST /v1/orders", servertest.Basket("r1"))
				if placed.Status == http.StatusTooManyRequests {
					continue
				}
				id := placed.Str("orderId")
				x := a.Do(who, "GET /v1/orders/"+id, nil, "Consistency-Token", placed.Token())
				if x.Status != http.StatusOK || x.Str("orderId") != id {
					t.Errorf("an order that was just placed: %v", x.Fault())
				}
				a.Do(who, "POST /v1/orders/"+id+"/cancel", reason)
				queries.Add(1)
			}
		})
	}
	a.Await("orders are there", func() error {
		if n := queries.Load(); n < 150 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	killedAt := func(text string, args ...string) (output string) {
		t.Helper()
		p := a.SpawnTool(append([]string{"rebuild", "orders", "--json"}, args...)...)
		a.Await("the rebuild says "+text, func() error {
			if out := p.Output(); !strings.Contains(out, text) && !strings.Contains(out, `"result"`) {
				return fmt.Errorf("it says %s", out)
			}
			return nil
		})
		p.Kill()
		return p.Output()
	}
	if out := killedAt(`"phase":"filling","done":1`, "--throttle", "150"); strings.Contains(out, `"result"`) {
		t.Fatalf("the rebuild was not killed: %s", out)
	}
	refused := a.SpawnTool("rebuild", "orders")
	<-refused.Ended
	if out := refused.Output(); refused.Cmd.ProcessState.ExitCode() != 1 || !strings.Contains(out, "`tomato rebuild orders --resume`") || !strings.Contains(out, "`tomato rebuild orders --cancel`") {
		t.Errorf("a rebuild beside an unfinished one exits with %d: %s", refused.Cmd.ProcessState.ExitCode(), out)
	}
	if out := killedAt(`"phase":"catching_up"`, "--resume", "--throttle", "400"); strings.Contains(out, `"result"`) {
		t.Fatalf("the rebuild was not killed: %s", out)
	}
	said := a.Tool("rebuild", "orders", "--resume", "--drop-old")
	if !strings.Contains(said, "orders_g2 serves; it took ") || !strings.Contains(said, "0 missing, 0 extra, 0 changed") {
		t.Errorf("resumed: %s", said)
	}
	before := queries.Load()
	a.Await("orders are read from the new generation", func() error {
		if queries.Load() < before+20 {
			return fmt.Errorf("%d", queries.Load()-before)
		}
		return nil
	})
	end()
	t.Logf("%d orders were placed, read and canceled", queries.Load())
	if len(rows(a, "orders_g1")) != 0 || len(rows(a, "orders_g2")) == 0 {
		t.Error("the old generation is there, or the new one is not")
	}
	a.NoDeadLetters()
}

// Postgres is restarted in the middle of a fill. The rebuild waits for it and goes on.
func TestARebuildWaitsForAPostgresThatRestarts(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	dir := filepath.Join(t.TempDir(), "postgres")
	pg := servertest.Postgres(t, ctx, dir)
	a := servertest.NewOn(t, eventlogtest.Embedded(t), pg.URL()).Start()
	a.AddRestaurant("r1", servertest.Lng, servertest.Lat)
	for n := range 60 {
		a.Place(fmt.Sprint("c", n), "r1")
	}
	a.AwaitIdle()
	p := a.SpawnTool("rebuild", "orders", "--json", "--throttle", "15")
	a.Await("the rebuild fills", func() error {
		if out := p.Output(); !strings.Contains(out, `"phase":"filling","done":1`) {
			return fmt.Errorf("it says %s", out)
		}
		return nil
	})
	if err := pg.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	a.Wait(6 * time.Second) // until all is read, and the rows cannot be written
	select {
	case <-p.Ended:
		t.Fatalf("the rebuild has not waited: %s", p.Output())
	default:
	}
	servertest.Postgres(t, ctx, dir)
	<-p.Ended
	if out := p.Output(); !p.Cmd.ProcessState.Success() || !strings.Contains(out, `"switched":true`) {
		t.Errorf("%v: %s", p.Cmd.ProcessState, out)
	}
	if r := rows(a, "orders_g2"); !strings.HasPrefix(r["orders"], "60 rows") {
		t.Errorf("%v", r)
	}
}

// anOrder is placed and paid, and ends in one of several ways.
func anOrder(a *servertest.Installation, customerID string, i int) {
	cancel := "POST /v1/orders/%s/cancel"
	id := a.Do(servertest.Customer(customerID), "POST /v1/orders", servertest.Basket("r1")).Str("orderId")
	if i%4 == 0 {
		a.Do(servertest.Customer(customerID), fmt.Sprintf(cancel, id), reason)
		return
	}
	gatewayOrder := a.Do(servertest.Customer(customerID), "POST /v1/orders/"+id+"/payment", nil).Str("gatewayOrderId")
	for _, b := range [][]byte{servertest.Capture("payment.failed", gatewayOrder, "pay_f"+id, 50000), servertest.Capture("payment.captured", gatewayOrder, "pay_"+id, 50000)} {
		a.Webhook(b)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(servertest.Patience); time.Now().Before(end); <-tick.C {
		if x := a.Do(servertest.Staff("r1"), "POST /v1/orders/"+id+"/accept-order", nil); x.Status == http.StatusOK {
			break
		} else if x.Code() != "order_not_paid" {
			a.T.Error(x.Fault())
			return
		}
	}
	if i%4 == 1 {
		a.Do(servertest.Ops, fmt.Sprintf(cancel, id), reason)
		return
	}
	a.Do(servertest.Staff("r1"), "POST /v1/orders/"+id+"/preparing", nil)
	a.Do(servertest.Staff("r1"), "POST /v1/orders/"+id+"/ready", nil)
	rider := fmt.Sprint("k", i%5)
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); <-tick.C {
		a.Do(servertest.Rider(rider), "PUT /v1/riders/"+rider+"/location", map[string]any{"location": servertest.Point(servertest.Lng, servertest.Lat+float64(i%7)*0.001)})
		if x := a.Do(servertest.Rider(rider), "POST /v1/orders/"+id+"/accept", nil); x.Status != http.StatusOK {
			continue // not offered yet, or busy
		}
		for _, step := range []string{"pick-up", "deliver"} {
			if x := a.Do(servertest.Rider(rider), "POST /v1/orders/"+id+"/"+step, nil); x.Status != http.StatusOK {
				a.T.Error(x.Fault())
			}
		}
		return
	}
	a.Do(servertest.Ops, fmt.Sprintf(cancel, id), reason)
}

// rows are the number and a digest of the rows of each table of a generation.
// Positions are telemetry: a rebuild copies them.
func rows(a *servertest.Installation, schema string) map[string]string {
	a.T.Helper()
	db := a.DB()
	defer db.Close()
	found, err := db.Query(a.T.Context(), `SELECT table_name FROM information_schema.tables WHERE table_schema = $1 AND table_name NOT IN ('schema_migrations', 'rider_positions', 'free_riders')`, schema)
	if err != nil {
		a.T.Fatal(err)
	}
	tables, err := pgx.CollectRows(found, pgx.RowTo[string])
	if err != nil {
		a.T.Fatal(err)
	}
	rows := map[string]string{}
	for _, table := range tables {
		var digest string
		name := pgx.Identifier{schema, table}.Sanitize()
		err := db.QueryRow(a.T.Context(), `SELECT count(*) || ' rows ' || coalesce(md5(string_agg(r::text, E'\n' ORDER BY r::text)), '') FROM `+name+` r`).Scan(&digest)
		if err != nil {
			a.T.Fatal(err)
		}
		rows[table] = digest
	}
	return rows
}
