package main_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"tomato/cmd/tomato/servertest"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
)

// TestOperatorsLookAfterReadModels: the commands and the calls by which operators list,
// compare, switch, drop and mend read models, while a server runs.
func TestOperatorsLookAfterReadModels(t *testing.T) {
	t.Parallel()
	a := servertest.New(t, eventlogtest.Embedded(t)).Start()
	a.AddRestaurant("r1", servertest.Lng, servertest.Lat)
	id := a.Cook("c1", "r1")
	a.AwaitQuery(servertest.Ops, "/v1/orders/"+id, "status", "preparing")
	db := a.DB()
	defer db.Close()
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := db.Exec(t.Context(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	says := func(said string, words ...string) {
		t.Helper()
		for _, word := range words {
			if !strings.Contains(said, word) {
				t.Errorf("it does not say %q: %s", word, said)
			}
		}
	}
	var listed struct {
		Items []struct {
			ReadModel, State string
			Generation       int
			Rows, Bytes      int64
			SkippedEvents    int
		}
	}
	list := func() string {
		t.Helper()
		if err := json.Unmarshal([]byte(a.Tool("projections", "list", "--json")), &listed); err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, l := range listed.Items {
			if l.Bytes == 0 {
				t.Errorf("%+v", l)
			}
			if l.ReadModel == "orders" {
				all = append(all, fmt.Sprint(l.Generation, " ", l.State, " ", l.SkippedEvents))
			}
		}
		return strings.Join(all, ", ")
	}
	if got := list(); got != "1 serving 0" {
		t.Error(got)
	}
	says(a.Tool("projections", "list"), "READ MODEL", "restaurants")

	// A second generation, and the way back and forth.
	says(a.ToolRefused("", "projections", "switch", "orders", "7"), "orders_g7 is neither verified nor standby", "tomato projections list")
	says(a.ToolRefused("", "projections", "drop", "orders", "1"), "it serves, or it does not exist")
	a.Tool("rebuild", "orders")
	if got := list(); got != "1 standby 0, 2 serving 0" {
		t.Error(got)
	}
	says(a.Tool("projections", "verify", "orders"), "compared with orders_g2", "0 missing, 0 extra, 0 changed")
	exec(`UPDATE orders_g1.orders SET customer_id = 'c2' WHERE id = $1`, id)
	says(a.ToolRefused("", "projections", "verify", "orders"), "changed: orders "+id+" (customer_id)", "the rows differ")
	v := a.Must(servertest.Ops, "POST /v1/ops/projections/orders/verify", map[string]any{})
	if v.Get("equal") != false || v.Str("comparison.differences.0.columns.0") != "customer_id" {
		t.Errorf("%v", v.Body)
	}
	says(a.Tool("projections", "rebuild-one", "orders/"+id), "orders_g1: folded again", "orders_g2: folded again")
	says(a.Tool("projections", "verify", "orders", "--generation", "1"), "0 changed")
	says(a.Tool("projections", "verify", "orders", "--log"), "0 changed", "--dry-run")
	says(a.Tool("projections", "switch", "orders", "1"), "orders_g1 serves")
	a.Must(servertest.Ops, "POST /v1/ops/projections/orders/switch", map[string]any{"generation": 2})
	if got := list(); got != "1 standby 0, 2 serving 0" {
		t.Error(got)
	}

	// An event that took effect is skipped, over HTTP, and comes back.
	history := a.History(eventlog.Orders, id)
	last := history[len(history)-1]
	if last.Type != "ORDER_PREPARING" {
		t.Fatal(servertest.Types(history))
	}
	event := map[string]any{"topic": last.Topic, "partition": last.Partition, "offset": last.Offset}
	position := fmt.Sprintf("%s/%d@%d", last.Topic, last.Partition, last.Offset)
	skip := map[string]any{"topic": last.Topic, "partition": last.Partition, "offset": last.Offset, "reason": "a test"}
	x := a.Must(servertest.Ops, "POST /v1/ops/projections/orders/skip", skip)
	if x.Str("event.key") != id || x.Str("event.type") != "ORDER_PREPARING" || x.Get("generations.1.version") != float64(last.Version) {
		t.Errorf("%v", x.Body)
	}
	a.AwaitQuery(servertest.Ops, "/v1/orders/"+id, "status", "accepted")
	if n := len(a.Must(servertest.Ops, "GET /v1/orders/"+id+"/events", nil).Get("items").([]any)); n != len(history)-1 {
		t.Errorf("%d events are shown, of %d", n, len(history))
	}
	says(a.Tool("projections", "skipped"), position, id, "a test", servertest.Ops.Sub)
	says(a.Tool("projections", "verify", "orders"), "0 changed", "skipped: "+position)
	if got := list(); got != "1 standby 1, 2 serving 1" {
		t.Error(got)
	}
	if n := len(a.Must(servertest.Ops, "GET /v1/ops/skipped-events?readModel=orders", nil).Get("items").([]any)); n != 1 {
		t.Errorf("%d events are skipped", n)
	}
	says(a.Tool("projections", "unskip", "orders", position), "orders_g2: folded again, now at version")
	a.AwaitQuery(servertest.Ops, "/v1/orders/"+id, "status", "preparing")
	says(a.ToolRefused("", "projections", "unskip", "orders", position), "no such event is skipped")

	// What is refused, and who may do it.
	for _, r := range []struct {
		action string
		body   map[string]any
		status int
		code   string
	}{
		{"dishes/drop", map[string]any{"generation": 1}, 404, "read_model_not_found"},
		{"orders/drop", map[string]any{"generation": 2}, 409, "generation_state"},
		{"orders/drop", map[string]any{"generation": 0}, 422, "validation_failed"},
		{"orders/switch", map[string]any{"generation": 7}, 409, "generation_state"},
		{"payments/verify", map[string]any{}, 409, "generation_state"},
		{"orders/rebuild-one", map[string]any{"key": "nobody"}, 404, "not_found"},
		{"orders/skip", event, 422, "validation_failed"},
		{"payments/skip", skip, 404, "not_found"},
		{"orders/unskip", event, 404, "not_found"},
	} {
		a.Do(servertest.Ops, "POST /v1/ops/projections/"+r.action, r.body).ThenRefused(r.status, r.code)
		a.Do(servertest.Customer("c1"), "POST /v1/ops/projections/"+r.action, r.body).ThenRefused(http.StatusForbidden, "forbidden")
	}
	a.Must(servertest.Ops, "POST /v1/ops/projections/orders/rebuild-one", map[string]any{"key": id})
	a.Must(servertest.Ops, "POST /v1/ops/projections/orders/drop", map[string]any{"generation": 1})
	if got := list(); got != "2 serving 0" {
		t.Error(got)
	}
	var actions string
	if err := db.QueryRow(t.Context(), `SELECT string_agg(action || ' ' || CASE WHEN who LIKE 'cli%' THEN 'cli' ELSE who END, ', ' ORDER BY id) FROM tomato.read_model_actions`).Scan(&actions); err != nil {
		t.Fatal(err)
	}
	ops := servertest.Ops.Sub
	if want := strings.Join([]string{"rebuild-one cli", "switch cli", "switch " + ops, "skip " + ops, "unskip cli", "rebuild-one " + ops, "drop " + ops}, ", "); actions != want {
		t.Errorf("recorded: %s, not %s", actions, want)
	}
	a.NoDeadLetters()
}
