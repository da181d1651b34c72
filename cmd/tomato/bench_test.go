package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tomato/migrations/postgrestest"
)

// asTomato makes the test binary the tomato binary: benches start it as another
// instance.
const asTomato = "TOMATO_BENCH_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(asTomato) != "" && !slices.Contains(os.Args, "-test.fuzzworker") { // those inherit it
		main()
	}
	if err := os.Setenv(asTomato, "1"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

func TestBenchesHaveTheirRows(t *testing.T) {
	t.Parallel()
	rows := map[string][]string{
		"commands":     {"callers_1_p50_ms", "callers_256_per_s", "callers_256_p99_ms", "callers_2048_per_s", "http_per_s"},
		"orders-ready": {"http_phase_ms", "last_offer_ms", "sustained_orders_per_s", "e2e_p50_ms", "e2e_p99_ms"},
		"takeover":     {"kill_ms", "handover_ms", "open_ms"},
		"shards":       {"kib_per_live_order", "replay_ms", "snapshot_load_ms"},
		"consume":      {"events_per_s", "poison_each_p50_ms", "poison_each_p99_ms", "poison_rows_p50_ms", "poison_rows_p99_ms"},
		"project":      {"events_per_s", "visible_p50_ms"},
		"rebuild":      {"events_per_s"},
		"riders":       {"updates_per_s", "searches_per_s", "search_p99_ms"},
		"feed":         {"connections", "kib_per_connection", "fanout_per_s", "e2e_p50_ms", "e2e_p99_ms"},
	}
	for name, want := range rows {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			var out bytes.Buffer
			var progress lockedText
			c := benchCmd{Name: name, JSON: true, Rounds: 1, Duration: 50 * time.Millisecond, Count: 20, DataDir: t.TempDir(), out: &out, progressOut: &progress}
			c.Partitions, c.DatabaseURL = 4, postgrestest.URL(t)
			if err := c.Run(ctx); err != nil {
				t.Fatalf("%v\n%s", err, &progress)
			}
			var report benchReport
			if err := json.Unmarshal(out.Bytes(), &report); err != nil {
				t.Fatalf("%v in %s", err, &out)
			}
			if report.Bench != name || report.Broker != "embedded" || report.Machine == "" {
				t.Errorf("the report's head: %+v", report)
			}
			for _, row := range want {
				i := slices.IndexFunc(report.Rows, func(r benchRow) bool { return r.Name == row })
				if i < 0 || report.Rows[i].Unit == "" {
					t.Errorf("row %s is missing or has no unit: %+v", row, report.Rows)
				}
			}
		})
	}
}

// lockedText takes what a bench and the servers that it starts say.
type lockedText struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lockedText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
