package main_test

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"tomato/cmd/tomato/servertest"
	"tomato/domain"
	"tomato/eventlog/eventlogtest"
)

// An instance that takes commands goes on to be ready while Postgres is away, and
// says that it is degraded; one that answers queries is not.
func TestReadinessWithoutPostgres(t *testing.T) {
	t.Parallel()
	for roles, want := range map[string]string{"command,react,project": "degraded", "feed,react": "degraded", "command,query": "not_ready"} {
		t.Run(roles, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			pg := servertest.Postgres(t, ctx, dir)
			a := servertest.NewOn(t, eventlogtest.Embedded(t), pg.URL(), "--role", roles).Start()
			if err := pg.Stop(ctx); err != nil {
				t.Fatal(err)
			}
			var r struct {
				Status  string
				Reasons map[string]string
			}
			a.Await("readyz says that the database is away", func() error {
				x := a.Do(domain.Actor{}, "GET /readyz", nil)
				r.Status, r.Reasons = "", nil
				if err := json.Unmarshal(x.Body, &r); err != nil || r.Reasons["database"] == "" {
					return x.Fault()
				}
				if (x.Status == http.StatusOK) != (want != "not_ready") {
					t.Error(x.Fault())
				}
				return nil
			})
			if r.Status != want {
				t.Errorf("%+v, want %s", r, want)
			}
			if a.Metric("tomato_degraded", `check="database"`) != 1 || (a.Metric("tomato_ready") == 1) != (want != "not_ready") {
				t.Error("the metrics say otherwise")
			}
			if strings.HasPrefix(roles, "command,react") {
				a.Must(servertest.Ops, "PUT /v1/riders/k1", map[string]any{"name": "K"})
			}
		})
	}
}
