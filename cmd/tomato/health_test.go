package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tomato/domain"
	"tomato/eventlog/eventlogtest"
	"tomato/httpapi"
)

func testHealth(log *strings.Builder, checks ...*check) *health {
	return &health{checks: checks, cached: time.Hour, stopping: new(atomic.Bool), log: slog.New(slog.NewTextHandler(log, nil))}
}

func failing(name string, serving bool, err error) *check {
	return &check{name: name, serving: serving, reason: "Reason of " + name + ".", ask: func(context.Context) error { return err }}
}

func TestReadinessSaysWhetherRequestsAreTaken(t *testing.T) {
	t.Parallel()
	secret := errors.New("dial tcp 10.0.0.7:5432: user tomato, topic payments")
	for name, c := range map[string]struct {
		checks   []*check
		stopping bool
		status   int
		body     string
	}{
		"well":               {[]*check{failing("a", true, nil), failing("b", false, nil)}, false, 200, `{"status":"ready"}`},
		"degraded":           {[]*check{failing("a", true, nil), failing("b", false, secret)}, false, 200, `{"status":"degraded","reasons":{"b":"Reason of b."}}`},
		"not ready":          {[]*check{failing("a", true, secret), failing("b", false, nil)}, false, 503, `{"status":"not_ready","reasons":{"a":"Reason of a."}}`},
		"not ready, and bad": {[]*check{failing("b", false, secret), failing("a", true, secret), failing("c", false, secret)}, false, 503, `{"status":"not_ready","reasons":{"a":"Reason of a.","b":"Reason of b.","c":"Reason of c."}}`},
		"stopping":           {[]*check{failing("a", true, nil)}, true, 503, `{"status":"not_ready","reasons":{"server":"It is stopping."}}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var log strings.Builder
			h := testHealth(&log, c.checks...)
			h.stopping.Store(c.stopping)
			api := httpapi.New(httpapi.Options{})
			api.Router.Get("/readyz", h.ServeHTTP)
			for _, method := range []string{"GET", "HEAD"} {
				w := httptest.NewRecorder()
				api.ServeHTTP(w, httptest.NewRequest(method, "/readyz", nil))
				if w.Code != c.status || strings.TrimSpace(w.Body.String()) != c.body || w.Header().Get("Content-Type") != "application/json" || (w.Header().Get("Retry-After") != "") != (c.status == 503) {
					t.Errorf("%s: %d %v %s", method, w.Code, w.Header(), w.Body)
				}
			}
			if said := strings.Contains(log.String(), secret.Error()); said != strings.Contains(c.body, "Reason of") {
				t.Errorf("the log: %s", log.String())
			}
			registry := prometheus.NewRegistry()
			registry.MustRegister(h)
			families, err := registry.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range families {
				for _, m := range f.GetMetric() {
					want := c.status == 200
					if f.GetName() == "tomato_degraded" {
						want = strings.Contains(c.body, `"`+m.GetLabel()[0].GetValue()+`":`)
					}
					if (m.GetGauge().GetValue() == 1) != want {
						t.Errorf("%s %v", f.GetName(), m)
					}
				}
			}
		})
	}
}

// Concurrent callers share one run of the checks, and one a second later runs
// them again; a check that does not return holds up no other and is not asked
// again meanwhile; a change is logged once.
func TestReadinessIsAskedOnceASecond(t *testing.T) {
	t.Parallel()
	var asked, hung, atOnce atomic.Int32
	bad := errors.New("it is bad")
	release := make(chan struct{})
	together := make(chan struct{})
	meet := func(context.Context) error { // returns once both run
		if atOnce.Add(1) == 2 {
			close(together)
		}
		<-together
		return nil
	}
	var log strings.Builder
	h := testHealth(&log,
		&check{name: "counted", ask: func(context.Context) error { asked.Add(1); return bad }},
		&check{name: "hangs", reason: "It hangs.", ask: func(context.Context) error { hung.Add(1); <-release; return nil }},
		&check{name: "one", ask: meet}, &check{name: "other", ask: meet})
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if r := h.report(); r.Status != degraded || r.Reasons["hangs"] == "" {
				t.Errorf("%+v", r)
			}
		})
	}
	wg.Wait()
	if asked.Load() != 1 {
		t.Errorf("asked %d times", asked.Load())
	}
	for _, c := range h.checks[2:] {
		c.ask = func(context.Context) error { return nil }
	}
	h.until = time.Time{} // a second has passed
	h.report()
	if asked.Load() != 2 || hung.Load() != 1 {
		t.Errorf("asked %d times, and what hangs %d times", asked.Load(), hung.Load())
	}
	close(release)
	bad = nil
	h.until = time.Time{}
	for end := time.Now().Add(time.Minute); h.report().Status != healthy; h.until = (time.Time{}) {
		if time.Now().After(end) {
			t.Fatalf("%+v", h.report())
		}
	}
	if n := strings.Count(log.String(), "it is bad"); n != 1 || strings.Count(log.String(), "passes again") != 2 {
		t.Errorf("the log: %s", log.String())
	}
}

// An instance that takes commands goes on to be ready while Postgres is away, and
// says that it is degraded; one that answers queries is not.
func TestReadinessWithoutPostgres(t *testing.T) {
	t.Parallel()
	for roles, want := range map[string]string{"command,react,project": degraded, "feed,react": degraded, "command,query": notReady} {
		t.Run(roles, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			pg := startPostgres(t, ctx, dir)
			a := newTownOn(t, eventlogtest.Embedded(t), pg.URL(), "--role", roles).open()
			if err := pg.Stop(ctx); err != nil {
				t.Fatal(err)
			}
			var r healthReport
			a.await("readyz says that the database is away", func() error {
				x := a.do(domain.Actor{}, "GET /readyz", nil)
				r = healthReport{}
				if err := json.Unmarshal(x.body, &r); err != nil || r.Reasons["database"] == "" {
					return x.fault()
				}
				if (x.status == http.StatusOK) != (want != notReady) {
					t.Error(x.fault())
				}
				return nil
			})
			if r.Status != want {
				t.Errorf("%+v, want %s", r, want)
			}
			if a.metric("tomato_degraded", `check="database"`) != 1 || (a.metric("tomato_ready") == 1) != (want != notReady) {
				t.Error("the metrics say otherwise")
			}
			if strings.HasPrefix(roles, "command,react") {
				a.must(office, "PUT /v1/riders/k1", map[string]any{"name": "K"})
			}
		})
	}
}

// What a role's requests need is a serving check of it, and nothing else is.
func TestServingChecksOfEachRole(t *testing.T) {
	t.Parallel()
	a := newTown(t, eventlogtest.Embedded(t)).open()
	for role, want := range map[string]string{
		roleCommand: "shards menus owners broker",
		roleQuery:   "database",
		roleFeed:    "feed",
		roleProject: "",
		roleReact:   "",
	} {
		s := &server{cmd: serveCmd{Role: []string{role}}, log: slog.New(slog.DiscardHandler), registry: prometheus.NewRegistry(), db: a.server.db, runtime: a.server.runtime}
		if role == roleCommand || role == roleFeed || role == roleReact {
			s.side, s.shards, s.menus = a.server.side, a.server.shards, a.server.menus
		}
		if role == roleFeed {
			s.hub = a.server.hub
		}
		var serving []string
		for _, c := range s.newHealth().checks {
			if c.serving {
				serving = append(serving, c.name)
			}
		}
		if got := strings.Join(serving, " "); got != want {
			t.Errorf("%s: %s, want %s", role, got, want)
		}
	}
}
