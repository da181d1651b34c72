package server

import (
	"context"
	"errors"
	"log/slog"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tomato/eventlog/eventlogtest"
	"tomato/httpapi"
	"tomato/migrations/postgrestest"
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

// Concurrent callers share one run of the checks, and a caller a second later runs them
// again. A check that does not return does not hold up the others, and is not called
// again meanwhile. A change is logged once.
func TestReadinessIsAskedOnceASecond(t *testing.T) {
	t.Parallel()
	var asked, hung, atOnce atomic.Int32
	bad := errors.New("it is bad")
	release := make(chan struct{})
	together := make(chan struct{})
	meet := func(context.Context) error { // returns when both checks run
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

// The serving checks of a role are those that its requests need, and no others.
func TestServingChecksOfEachRole(t *testing.T) {
	t.Parallel()
	running := start(t)
	for role, want := range map[string]string{
		RoleCommand: "shards menus owners broker",
		RoleQuery:   "database",
		RoleFeed:    "feed",
		RoleProject: "",
		RoleReact:   "",
	} {
		s := &Server{config: Config{Role: []string{role}}, log: slog.New(slog.DiscardHandler), registry: prometheus.NewRegistry(), db: running.db, runtime: running.runtime}
		if role == RoleCommand || role == RoleFeed || role == RoleReact {
			s.side, s.shards, s.menus = running.side, running.shards, running.menus
		}
		if role == RoleFeed {
			s.hub = running.hub
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

// start starts a server with its own broker and database.
func start(t *testing.T) *Server {
	t.Helper()
	c, err := ParseConfig("--dev", "--http-addr", "127.0.0.1:0", "--partitions", "4", "--log-level", "error", "--data-dir", t.TempDir(),
		"--kafka-brokers", eventlogtest.Embedded(t).Brokers[0], "--database-url", postgrestest.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	s, err := Start(t.Context(), c, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}
