package main_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"tomato/cmd/tomato/server"
	"tomato/cmd/tomato/servertest"
	"tomato/cmd/tomato/settings"
	"tomato/eventlog/eventlogtest"
)

// connections returns how many connections to the database each pool has, and how many
// of them wait for a lock.
func connections(t *testing.T, db *pgxpool.Pool) (all, waiting map[string]int) {
	t.Helper()
	rows, err := db.Query(t.Context(), `SELECT application_name, count(*), count(*) FILTER (WHERE wait_event_type = 'Lock')
		FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'tomato-%' GROUP BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	all, waiting = map[string]int{}, map[string]int{}
	for rows.Next() {
		var name string
		var n, w int
		if err := rows.Scan(&name, &n, &w); err != nil {
			t.Fatal(err)
		}
		all[name], waiting[name] = n, w
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return all, waiting
}

// holdTables locks tables, so that whoever uses them waits, until release is called.
func holdTables(t *testing.T, db *pgxpool.Pool, tables string) (release func()) {
	t.Helper()
	tx, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `LOCK TABLE `+tables+` IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	return sync.OnceFunc(func() {
		if err := tx.Rollback(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// keepAsking repeats a query, so many at once, until stop is called.
func keepAsking(a *servertest.Installation, atOnce int, path string) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range atOnce {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					a.Do(servertest.Ops, "GET "+path, nil) // 503 after ten seconds
				}
			}
		})
	}
	return sync.OnceFunc(func() { close(done); wg.Wait() })
}

// Queries that take for ever use up all connections for queries. Read models are written
// and payments are recorded all the same.
func TestSlowQueriesHoldUpNeitherProjectionsNorPolicies(t *testing.T) {
	t.Parallel()
	const conns = 3
	a := servertest.New(t, eventlogtest.Embedded(t), "--db-query-conns", fmt.Sprint(conns)).Start()
	db := a.DB()
	a.AddRestaurant("r1", servertest.Lng, servertest.Lat)
	a.Must(servertest.Ops, "PUT /v1/riders/k1", servertest.RiderName("k1"))
	release := holdTables(t, db, "riders_g1.rider_positions") // nobody sends positions meanwhile
	defer release()
	stop := keepAsking(a, 2*conns, "/v1/riders/k1")
	defer stop()
	a.Await("all connections for queries are in use", func() error {
		if _, waiting := connections(t, db); waiting["tomato-query"] != conns {
			return fmt.Errorf("%v wait", waiting)
		}
		return nil
	})
	// stuck names the queries that wait. As long as they are the same ones, no other work
	// can have had one of their connections. They give up after ten seconds, so on a slow
	// machine this may need several orders.
	stuck := func() (sessions string) {
		if err := db.QueryRow(t.Context(), `SELECT coalesce(string_agg(pid || ' since ' || query_start, ', ' ORDER BY pid), '') FROM pg_stat_activity
			WHERE datname = current_database() AND application_name = 'tomato-query' AND wait_event_type = 'Lock'`).Scan(&sessions); err != nil {
			t.Fatal(err)
		}
		return sessions
	}
	order := ""
	for tries, before := 0, "-"; before != stuck(); tries++ {
		if tries == 5 {
			t.Fatal("no order was handled while the queries waited, only when one of them had ended")
		}
		before = stuck()
		order = a.Place("c1", "r1")
		a.Await("the order is in the read model", func() error {
			var status string
			return db.QueryRow(t.Context(), `SELECT status FROM orders_g1.orders WHERE id = $1`, order).Scan(&status)
		})
		a.Pay("c1", order)
	}
	a.Await("all connections for queries are in use", func() error {
		if n := a.Metric("tomato_db_connections_in_use", `pool="query"`); n != conns {
			return fmt.Errorf("the metric shows %v connections in use, want %d", n, conns)
		}
		return nil
	})
	if a.Metric("tomato_db_connection_waits_total", `pool="query"`) == 0 {
		t.Error("the metric does not show that queries waited for a connection")
	}
	release()
	stop()
	a.AwaitQuery(servertest.Customer("c1"), "/v1/orders/"+order, "paymentStatus", "paid")
}

// Three instances with all roles and the default settings stay below the 97 connections
// that Postgres gives to ordinary users by default, also when everything waits for locks.
func TestThreeInstancesStayBelowTheConnectionsOfPostgres(t *testing.T) {
	t.Parallel()
	const instances, limit = 3, 97
	a := servertest.New(t, eventlogtest.Embedded(t)).Start()
	all := []*servertest.Installation{a}
	for range instances - 1 {
		b := *a
		b.Config.DataDir = t.TempDir()
		s, err := server.Start(t.Context(), b.Config, server.Options{})
		if err != nil {
			t.Fatal(err)
		}
		b.Server, b.URL = s, s.URL()
		t.Cleanup(b.Stop)
		b.AwaitReady()
		all = append(all, &b)
	}
	config, db := a.Config, a.DB()
	a.AddRestaurant("r1", servertest.Lng, servertest.Lat)
	a.AddRiders("k", 4, servertest.Lng, servertest.Lat)

	most, mostOfAll := map[string]int{}, 0
	sample := func() {
		now, _ := connections(t, db)
		sum := 0
		for name, n := range now {
			most[name] = max(most[name], n)
			sum += n
		}
		mostOfAll = max(mostOfAll, sum)
	}
	release := holdTables(t, db, "orders_g1.orders, tomato.timers, simulated_gateway.orders, tomato.generations")
	defer release()
	var stops []func()
	for _, b := range all {
		stops = append(stops, keepAsking(b, 2*int(config.QueryConns), "/v1/orders"))
	}
	stopAll := sync.OnceFunc(func() {
		for _, stop := range stops {
			stop()
		}
	})
	defer stopAll()
	placed := make([]string, 48)
	a.Each(len(placed), 16, func(i int) { placed[i] = all[i%instances].Place(fmt.Sprint("c", i), "r1") })
	for i := range placed {
		go all[i%instances].Do(servertest.Customer(fmt.Sprint("c", i)), "POST /v1/orders/"+placed[i]+"/payment", nil)
	}
	a.Await("the pools for queries and policies are full", func() error {
		sample()
		for name, want := range map[string]int32{"tomato-query": config.QueryConns, "tomato-policy": config.PolicyConns} {
			if most[name] < instances*int(want) {
				return fmt.Errorf("%s: %d connections", name, most[name])
			}
		}
		return nil
	})
	release()
	stopAll()
	for i := range placed { // the rest of the way, with everything at work
		a.Pay(fmt.Sprint("c", i), placed[i])
		sample()
	}
	a.AwaitIdle()
	sample()
	t.Logf("at most %d connections, by pool %v", mostOfAll, most)
	per := int(config.QueryConns + config.ProjectionConns + config.PolicyConns + settings.SharedConns)
	if mostOfAll > instances*per || instances*per > limit {
		t.Errorf("%d connections were open and %d are allowed, of %d", mostOfAll, instances*per, limit)
	}
	a.NothingFailed()
}

// With the smallest pools everything goes on, only more slowly: no part holds a
// connection while it waits for another one.
func TestTheSmallestPoolsAreEnough(t *testing.T) {
	t.Parallel()
	a := servertest.New(t, eventlogtest.Embedded(t), "--db-query-conns", "2", "--db-projection-conns", "2", "--db-policy-conns", "2").Start()
	a.AddRestaurant("r1", servertest.Lng, servertest.Lat)
	a.AddRiders("k", 4, servertest.Lng, servertest.Lat)
	a.Each(16, 16, func(i int) {
		order := a.ReadyOrder(fmt.Sprint("c", i), "r1")
		a.AwaitQuery(servertest.Customer(fmt.Sprint("c", i)), "/v1/orders/"+order, "status", "ready_for_rider")
	})
	a.AwaitIdle()
	a.NothingFailed()
	for _, pool := range []string{"query", "projection", "policy"} {
		if n := a.Metric("tomato_db_connections_max", `pool="`+pool+`"`); n != 2 {
			t.Errorf("pool %s may have %v connections", pool, n)
		}
	}
}
