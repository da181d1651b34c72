package queryside_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"tomato/domain"
)

// statements is a tracer that keeps the statement of the last query.
type statements struct {
	sql  string
	args []any
}

func (s *statements) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	s.sql, s.args = q.SQL, q.Args
	return ctx
}

func (s *statements) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// planNode is a node of a plan that was executed.
type planNode struct {
	Type     string     `json:"Node Type"`
	Relation string     `json:"Relation Name"`
	Index    string     `json:"Index Name"`
	Rows     float64    `json:"Actual Rows"`
	Loops    float64    `json:"Actual Loops"`
	Removed  float64    `json:"Rows Removed by Filter"`
	Hit      int        `json:"Shared Hit Blocks"`
	Read     int        `json:"Shared Read Blocks"`
	Plans    []planNode `json:"Plans"`
}

// literal returns an argument of a statement as SQL.
func literal(v any) string {
	switch v := v.(type) {
	case []string:
		return `'{"` + strings.Join(v, `","`) + `"}'`
	case time.Time:
		return "'" + v.Format(time.RFC3339Nano) + "'"
	}
	return "'" + fmt.Sprint(v) + "'"
}

// plan returns the plan that Postgres uses for a statement which a client prepares once
// and executes again and again.
func (q *queries) plan(s statements) planNode {
	q.t.Helper()
	conn, err := q.db.Acquire(q.t.Context())
	if err != nil {
		q.t.Fatal(err)
	}
	defer conn.Release()
	exec := func(sql string) {
		if _, err := conn.Conn().PgConn().Exec(q.t.Context(), sql).ReadAll(); err != nil {
			q.t.Fatalf("%s: %v", sql, err)
		}
	}
	exec(`PREPARE planned AS ` + s.sql)
	defer exec(`DEALLOCATE planned`)
	args := make([]string, len(s.args))
	for i, a := range s.args {
		args[i] = literal(a)
	}
	execute := `EXECUTE planned`
	if len(args) > 0 {
		execute += `(` + strings.Join(args, ", ") + `)`
	}
	for range 6 { // from the sixth execution on, Postgres may use one plan for all arguments
		exec(execute)
	}
	results, err := conn.Conn().PgConn().Exec(q.t.Context(), `EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) `+execute).ReadAll()
	if err != nil {
		q.t.Fatal(err)
	}
	var explained []struct{ Plan planNode }
	if err := json.Unmarshal(results[0].Rows[0][0], &explained); err != nil {
		q.t.Fatal(err)
	}
	return explained[0].Plan
}

// grow fills the tables with a million orders and their payments: 65,536 customers, 4,096
// riders and 1,024 restaurants, and one of each with 100,000 orders, which are all
// delivered but for one in 20,000. 2,000 orders are open, and dispatch has given up 40 of
// those.
func (q *queries) grow() {
	q.t.Helper()
	for _, table := range []string{"orders_g1.orders", "orders_g1.order_events", "payments_g1.payments"} {
		q.exec(`ALTER TABLE ` + table + ` SET UNLOGGED`)
	}
	rows, err := q.db.Query(q.t.Context(), `SELECT indexdef, 'DROP INDEX ' || quote_ident(schemaname) || '.' || quote_ident(indexname) FROM pg_indexes
		WHERE schemaname IN ('orders_g1', 'payments_g1') AND indexname NOT LIKE '%\_pkey' AND indexname NOT LIKE 'schema_migrations%'`)
	if err != nil {
		q.t.Fatal(err)
	}
	var create []string
	var add, drop string
	var drops []string
	if _, err := pgx.ForEachRow(rows, []any{&add, &drop}, func() error { create, drops = append(create, add), append(drops, drop); return nil }); err != nil {
		q.t.Fatal(err)
	}
	for _, sql := range drops {
		q.exec(sql)
	}
	q.exec(`INSERT INTO orders_g1.orders (id, version, status, closed, customer_id, restaurant_id, rider_id, exhausted, pick_up, round, wave, waiting, wave_open, asked, created_at, state)
		SELECT '01980000-0000-7000-8000-' || lpad(n::text, 12, '0'), 2, CASE closed WHEN '' THEN 'ready_for_rider' ELSE closed END, closed,
			CASE WHEN n % 10 = 1 THEN 'busy' ELSE 'c' || (hashint8(n) & 65535) END, CASE WHEN n % 10 = 2 THEN 'busy' ELSE 'r' || (hashint8(n + 7) & 1023) END,
			CASE WHEN n % 10 = 1 THEN 'busy' ELSE 'rider' || (hashint8(n + 9) & 4095) END, closed = '' AND n % 50 = 0, place, 1, 1, false, false, '{}',
			timestamptz '2026-01-01' + n * interval '10 seconds', '{"ID":"01980000-0000-7000-8000-' || lpad(n::text, 12, '0') || '"}'
		FROM (SELECT n, ST_MakePoint(77.5, 12.9)::geography AS place,
			CASE WHEN n >= 998000 THEN '' WHEN n % 20000 IN (1, 2) THEN 'cancelled' ELSE 'delivered' END AS closed FROM generate_series(0, 999999) n) o`)
	q.exec(`INSERT INTO orders_g1.order_events SELECT id, v, 'ORDER_PAID', 1, created_at, '', '{}' FROM orders_g1.orders, generate_series(1, 2) v`)
	q.exec(`INSERT INTO payments_g1.payments (id, version, order_id, gateway_order_id, booked, refund_requested, refund_succeeded, last_attempt_failed, has_unmatched, refund_failed, created_at, state)
		SELECT id, 1, id, 'order_' || id, true, false, false, false, right(id, 5) = '00000', right(id, 5) = '00001', created_at, '{}' FROM orders_g1.orders`)
	for _, sql := range create {
		q.exec(sql)
	}
	q.exec(`VACUUM ANALYZE orders_g1.orders, orders_g1.order_events, payments_g1.payments`)
}

// With a million orders, every query and every list reads some pages by an index, and
// never a table. If a list loses its index, the answer is the same and takes a thousand
// times as long, which no other test notices.
func TestQueriesReadFewPagesOfAMillionOrders(t *testing.T) {
	if testing.Short() {
		t.Skip("it fills tables with a million rows")
	}
	t.Parallel()
	seen := &statements{}
	q := newTracedQueries(t, seen)
	q.grow()
	busyCustomer, busyRider := domain.Actor{Sub: "busy", Role: domain.Customer}, domain.Actor{Sub: "busy", Role: domain.Rider}
	busyKitchen := domain.Actor{Sub: "k", Role: domain.Restaurant, RestaurantID: "busy"}
	order := "/v1/orders/" + orderID(500_000)
	for _, c := range []struct {
		actor domain.Actor
		path  string
		pages int // at most
	}{
		{ops, order, 30},
		{ops, order + "/events", 30},
		{ops, "/v1/payments/" + orderID(500_000), 10},
		{busyCustomer, "/v1/orders", 1000},
		{busyCustomer, "/v1/orders?status=cancelled", 1000},
		{busyCustomer, "/v1/orders?status=ready_for_rider&status=delivered", 1000},
		{busyRider, "/v1/orders", 1000},
		{busyRider, "/v1/orders?status=cancelled", 1000},
		{busyKitchen, "/v1/orders", 1000},
		{busyKitchen, "/v1/orders?status=cancelled", 1000},
		{busyKitchen, "/v1/orders?status=delivered", 1000},
		{customer, "/v1/orders", 1000},
		{courier, "/v1/orders", 1000},
		{ops, "/v1/orders", 1000},
		{ops, "/v1/orders?status=delivered", 1000},
		{ops, "/v1/orders?status=cancelled&status=rejected", 1000},
		{ops, "/v1/orders?customerId=busy", 1000},
		{ops, "/v1/orders?riderId=busy&status=cancelled", 1000},
		{ops, "/v1/orders?dispatch=exhausted", 1000},
		{ops, "/v1/ops/payments?state=unmatched", 200},
		{ops, "/v1/ops/payments?state=refund_failed", 200},
		{ops, "/v1/ops/payments", 200},
	} {
		t.Run(string(c.actor.Role)+" "+c.path, func(t *testing.T) {
			q.t = t
			a := q.get(c.actor, c.path)
			if a.status != 200 {
				t.Fatalf("%d %v", a.status, a.body)
			}
			pages := []string{c.path}
			if next, ok := a.body["nextCursor"].(string); ok {
				sep := "?"
				if strings.Contains(c.path, "?") {
					sep = "&"
				}
				pages = append(pages, c.path+sep+"cursor="+next)
			}
			for _, page := range pages {
				q.get(c.actor, page)
				root := q.plan(*seen)
				if n := root.Hit + root.Read; n > c.pages {
					t.Errorf("%s reads %d pages, more than %d", page, n, c.pages)
				}
				var walk func(n planNode)
				walk = func(n planNode) {
					if n.Type == "Seq Scan" || n.Type == "Sort" && n.Rows*n.Loops > 300 || n.Removed*n.Loops > 300 {
						t.Errorf("%s: %s %s %s, %v rows, %v removed by a filter, %v loops", page, n.Type, n.Relation, n.Index, n.Rows, n.Removed, n.Loops)
					}
					for _, p := range n.Plans {
						walk(p)
					}
				}
				walk(root)
			}
		})
	}
}
