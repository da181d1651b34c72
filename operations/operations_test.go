package operations_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"tomato/domain"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/consumer/parked"
	"tomato/httpapi"
	"tomato/migrations"
	"tomato/migrations/postgrestest"
	"tomato/operations"
	"tomato/projections"
)

const secret = "0123456789abcdef0123456789abcdef"

var (
	customer = domain.Actor{Sub: "c1", Role: domain.Customer}
	kitchen  = domain.Actor{Sub: "k1", Role: domain.Restaurant, RestaurantID: "r1"}
	courier  = domain.Actor{Sub: "rider1", Role: domain.Rider}
	ops      = domain.Actor{Sub: "o1", Role: domain.Ops}
)

// calls are the operators' calls on a database that the test fills by itself.
type calls struct {
	t       *testing.T
	db      *pgxpool.Pool
	api     *httpapi.API
	skipped []string // what the read models were told to skip
}

// readModels stands in for the read models.
type readModels []projections.Status

func (r readModels) Status(context.Context) ([]projections.Status, error) { return r, nil }

func newCalls(t *testing.T) *calls {
	t.Helper()
	url := postgrestest.URL(t)
	if err := migrations.Core(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	db, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	auth, err := httpapi.NewAuthenticator(httpapi.AuthConfig{Secrets: []string{secret}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(auth.Close)
	c := &calls{t: t, db: db, api: httpapi.New(httpapi.Options{Auth: auth, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})}
	o := &operations.Operations{
		DeadLetters: &parked.DeadLetters{DB: db, Skip: func(ctx context.Context, model string, at eventlog.Position, reason, who string) error {
			c.skipped = append(c.skipped, fmt.Sprint(model, " ", at, " ", reason, " ", who))
			_, err := db.Exec(ctx, `UPDATE tomato.parked SET state = 'discarded' WHERE source_offset = $1`, at.Offset)
			return err
		}},
		ReadModels: readModels{{Generation: projections.Generation{Model: "orders", Number: 3}, State: "serving",
			LagEvents: 5, LagSeconds: 1.5, EventsPerSecond: 20,
			Tables: []projections.Table{{Name: "order_events", LiveRows: 7, DeadRows: 2, Bytes: 8192}, {Name: "orders", LiveRows: 1, Bytes: 4096, LastVacuum: time.Unix(0, 0).UTC()}}}},
		Consumers: func(context.Context) ([]consumer.ConsumerStatus, error) { return nil, nil },
	}
	o.Routes(c.api)
	return c
}

func (c *calls) exec(sql string, args ...any) {
	c.t.Helper()
	if _, err := c.db.Exec(c.t.Context(), sql, args...); err != nil {
		c.t.Fatal(err)
	}
}

type answer struct {
	status int
	body   map[string]any
}

func (a answer) items() []any {
	items, _ := a.body["items"].([]any)
	return items
}

func (c *calls) do(actor domain.Actor, method, path, body string) answer {
	c.t.Helper()
	token, err := httpapi.MintToken(secret, actor, time.Hour)
	if err != nil {
		c.t.Fatal(err)
	}
	r := httptest.NewRequestWithContext(c.t.Context(), method, path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+token)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	w := httptest.NewRecorder()
	c.api.ServeHTTP(w, r)
	a := answer{status: w.Code}
	if err := json.Unmarshal(w.Body.Bytes(), &a.body); err != nil {
		c.t.Fatalf("%s %s: %d %q", method, path, w.Code, w.Body)
	}
	return a
}

func (c *calls) get(actor domain.Actor, path string) answer {
	c.t.Helper()
	return c.do(actor, http.MethodGet, path, "")
}

func text(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func TestTheCallsAreForOperatorsAlone(t *testing.T) {
	t.Parallel()
	c := newCalls(t)
	for path, status := range map[string]int{"/v1/ops/projections": 200, "/v1/ops/consumers": 200, "/v1/ops/dead-letters": 200, "/v1/ops/dead-letters/7": 404} {
		for _, actor := range []domain.Actor{customer, kitchen, courier} {
			if a := c.get(actor, path); a.status != 403 {
				t.Errorf("%s as %s: %d %v", path, actor.Role, a.status, a.body)
			}
		}
		if a := c.get(ops, path); a.status != status {
			t.Errorf("%s: %d %v, want %d", path, a.status, a.body, status)
		}
	}
}

func TestReadModelsAreShownByGeneration(t *testing.T) {
	t.Parallel()
	want := `[{"eventsPerSecond":20,"generation":3,"lagEvents":5,"lagSeconds":1.5,"readModel":"orders","state":"serving",` +
		`"tables":[{"bytes":8192,"deadRows":2,"liveRows":7,"table":"order_events"},{"bytes":4096,"deadRows":0,"lastVacuum":"1970-01-01T00:00:00Z","liveRows":1,"table":"orders"}]}]`
	if a := newCalls(t).get(ops, "/v1/ops/projections"); text(a.items()) != want {
		t.Errorf("%v, want %s", a.body, want)
	}
}

func TestBrokenParametersAreNamed(t *testing.T) {
	t.Parallel()
	c := newCalls(t)
	for path, want := range map[string]string{
		"/v1/ops/dead-letters?cursor=!": `["invalid_cursor","query.cursor"]`,
		"/v1/ops/dead-letters?limit=0":  `["validation_failed","query.limit"]`,
		"/v1/ops/dead-letters/x":        `["validation_failed","path.id"]`,
	} {
		a := c.get(ops, path)
		var location any
		if faults, _ := a.body["errors"].([]any); len(faults) == 1 {
			location = faults[0].(map[string]any)["location"]
		}
		if got := text([]any{a.body["code"], location}); a.status != 422 || got != want {
			t.Errorf("%s: %d %s, want %s", path, a.status, got, want)
		}
	}
}

func TestACallOfAnotherProcessDoesNotExist(t *testing.T) {
	t.Parallel()
	c := newCalls(t) // it serves no shards
	if a := c.get(ops, "/v1/ops/shards"); a.status != 404 {
		t.Errorf("%d %v", a.status, a.body)
	}
	paths, _ := c.get(ops, "/openapi.json").body["paths"].(map[string]any)
	for p, described := range map[string]bool{"/v1/ops/projections": true, "/v1/ops/consumers": true, "/v1/ops/dead-letters": true, "/v1/ops/shards": false} {
		if (paths[p] != nil) != described {
			t.Errorf("%s: described %v", p, paths[p] != nil)
		}
	}
}

func TestDeadLettersAreReplayedAndDiscarded(t *testing.T) {
	t.Parallel()
	c := newCalls(t)
	c.exec(`INSERT INTO tomato.generations (model, generation, state) VALUES ('orders', 1, 'standby')`)
	for i := range 3 {
		c.exec(`INSERT INTO tomato.parked (consumer, generation, topic, partition, source_offset, source_time, key, state, class)
			VALUES ('orders', 1, 'orders', 0, $1, now(), $2, 'dead', 'poison')`, i, []byte{byte('a' + i)})
	}
	list := c.get(ops, "/v1/ops/dead-letters?consumer=orders&limit=2")
	if len(list.items()) != 2 || list.body["nextCursor"] == nil {
		t.Fatalf("%v", list.body)
	}
	for _, call := range []struct {
		path, body string
		status     int
		want       string
	}{
		{"/v1/ops/dead-letters/replay", `{"consumer":"orders","all":true,"dryRun":true}`, 202, `{"matched":3,"replayed":0}`},
		{"/v1/ops/dead-letters/replay", `{"consumer":"orders","key":"a"}`, 202, `{"matched":1,"replayed":1}`},
		{"/v1/ops/dead-letters/replay", `{"consumer":"orders","key":"a","all":true}`, 422, ""},
		{"/v1/ops/dead-letters/replay", `{"consumer":"orders"}`, 422, ""},
		{"/v1/ops/dead-letters/2/replay", ``, 202, `{"matched":1,"replayed":1}`},
		{"/v1/ops/dead-letters/99/replay", ``, 404, ""},
		{"/v1/ops/dead-letters/3/discard", ``, 422, ""},
		{"/v1/ops/dead-letters/3/discard", `{"reason":"a test"}`, 200, ""},
		{"/v1/ops/dead-letters/3/discard", `{"reason":"a test"}`, 404, ""},
	} {
		a := c.do(ops, http.MethodPost, call.path, call.body)
		if a.status != call.status || call.want != "" && text(a.body) != call.want {
			t.Errorf("%s %s: %d %v", call.path, call.body, a.status, a.body)
		}
	}
	if want := []string{"orders {{orders 0} 2} a test o1"}; !slices.Equal(c.skipped, want) {
		t.Errorf("the read models skip %q, not %q", c.skipped, want)
	}
	if a := c.do(customer, http.MethodPost, "/v1/ops/dead-letters/1/replay", ""); a.status != 403 {
		t.Errorf("a customer: %d", a.status)
	}
}
