package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"tomato/cmd/tomato/server"
	"tomato/cmd/tomato/settings"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/migrations/postgrestest"
	"tomato/projections"
)

// asTomato is an environment variable. If it is set, the test binary runs serve,
// because benches start their own binary as another instance.
const asTomato = "TOMATO_BENCH_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(asTomato) != "" {
		command := map[string]func([]string) error{"serve": serve, "broker": broker, "rebuild": rebuildOrders}[os.Args[1]]
		if err := command(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "tomato:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if err := os.Setenv(asTomato, "1"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// serve runs the command serve with these flags.
func serve(flags []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	c, err := server.ParseConfig(flags...)
	if err != nil {
		return err
	}
	s, err := server.Start(ctx, c, server.Options{})
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

// broker is the command broker, with these flags.
func broker(flags []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	set := flag.NewFlagSet("broker", flag.ContinueOnError)
	dir, addr := set.String("data-dir", "", ""), set.String("addr", "", "")
	if err := set.Parse(flags); err != nil {
		return err
	}
	b, err := eventlog.StartBroker(filepath.Join(*dir, "broker"), *addr)
	if err != nil {
		return err
	}
	defer b.Close()
	fmt.Println("broker listening on", b.Addr())
	<-ctx.Done()
	return nil
}

// rebuildOrders is the command rebuild for the read model orders, as far as benches use
// it, with these arguments.
func rebuildOrders(args []string) error {
	ctx := context.Background()
	set := flag.NewFlagSet("rebuild", flag.ContinueOnError)
	set.Bool("json", true, "")
	partitions, resume, dropOld := set.Int("partitions", 0, ""), set.Bool("resume", false, ""), set.Bool("drop-old", false, "")
	if err := set.Parse(args[1:]); err != nil {
		return err
	}
	db, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	defer db.Close()
	kafka := settings.Kafka{Brokers: strings.Split(os.Getenv("KAFKA_BROKERS"), ",")}.Config("rebuild")
	models := &projections.ReadModels{DB: db, DatabaseURL: os.Getenv("DATABASE_URL"), Kafka: kafka, Positions: consumer.NewPositions(db), Log: slog.New(slog.DiscardHandler)}
	out := json.NewEncoder(os.Stdout)
	_, err = models.Rebuild(ctx, args[0], projections.RebuildOptions{Resume: *resume, DropOld: *dropOld,
		Runtime:  &consumer.Runtime{Kafka: kafka, Partitions: int32(*partitions), DB: db, Log: models.Log},
		Progress: func(p projections.Progress) { _ = out.Encode(map[string]any{"progress": p}) }})
	return err
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
		"rebuild":      {"events_per_s", "without_verify_events_per_s", "tables_events_per_s", "fill_ms", "indexes_ms", "verify_ms", "hand_over_ms", "events", "payments_events_per_s"},
		"rebuild-live": {"queries", "commands", "before_p50_ms", "before_p99_ms", "switch_p99_ms", "switch_worst_p99_ms", "rebuild_p99_ms", "rebuild_ms", "switches"},
		"riders": {"updates_per_s", "searches_per_s", "search_p99_ms", "load_updates_per_s", "load_searches_per_s", "load_catch_up_ms",
			"load_search_p50_ms_begin", "load_search_p99_ms_begin", "load_search_p50_ms_end", "load_search_p99_ms_end", "load_mb_begin", "load_mb_end"},
		"town": {"delivered_orders_per_s", "orders", "tomato_cpu_ms_per_order", "broker_cpu_ms_per_order", "postgres_cpu_ms_per_order",
			"kept_records_per_order", "kept_bytes_per_order", "kept_disk_bytes_per_order", "records_orders_ORDER_DELIVERED", "bytes_payments_PAYMENT_REQUESTED", "bytes_riders_RIDER_CLAIMED",
			"place_p50_ms", "paid_p99_ms", "accept_p50_ms", "offered_p50_ms", "claim_p99_ms", "pick_up_p50_ms", "deliver_p50_ms", "order_p99_ms"},
		"feed": {"connections", "kib_per_connection", "fanout_per_s", "e2e_p50_ms", "e2e_p99_ms"},
	}
	zero := []string{"failed_queries"} // rows that must be 0
	for name, want := range rows {
		t.Run(name, func(t *testing.T) {
			count := 20
			if name == "shards" { // not in parallel, because it measures the heap of this process
				count = 2000
			} else {
				t.Parallel()
			}
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			var out bytes.Buffer
			var progress lockedText
			c := Cmd{Name: name, JSON: true, Rounds: 1, Duration: 50 * time.Millisecond, Count: count, Queries: 50, DataDir: t.TempDir(), out: &out, progressOut: &progress}
			c.Partitions, c.DatabaseURL = 4, postgrestest.URL(t)
			if name == "town" { // it measures a Postgres that it starts itself
				c.Concurrency, c.DatabaseURL = 4, ""
			}
			if err := c.Run(ctx); err != nil {
				t.Fatalf("%v\n%s", err, &progress)
			}
			var report Report
			if err := json.Unmarshal(out.Bytes(), &report); err != nil {
				t.Fatalf("%v in %s", err, &out)
			}
			if report.Bench != name || report.Broker != "embedded" || report.Machine == "" {
				t.Errorf("the report's head: %+v", report)
			}
			for _, row := range want {
				i := slices.IndexFunc(report.Rows, func(r Row) bool { return r.Name == row })
				if i < 0 || report.Rows[i].Unit == "" || !(report.Rows[i].Value > 0) {
					t.Errorf("row %s is missing, has no unit or is not above 0: %+v", row, report.Rows)
				}
			}
			if i := slices.IndexFunc(report.Rows, func(r Row) bool { return r.Name == "failed_queries" }); name == "rebuild-live" && i < 0 {
				t.Errorf("row failed_queries is missing: %+v", report.Rows)
			}
			for _, r := range report.Rows {
				if slices.Contains(zero, r.Name) {
					if r.Unit == "" || r.Value != 0 {
						t.Errorf("row %s has no unit or is not 0: %+v\n%s", r.Name, r, &progress)
					}
					continue
				}
				if r.Unit == "" || !(r.Value > 0) || r.Limit < 0 || (r.Limit > 0) != (r.Ratio > 0) {
					t.Errorf("row %s has no unit, or a figure that nothing measured: %+v", r.Name, r)
				}
			}
		})
	}
}

// lockedText collects the output of a bench and of the servers that it starts. Safe
// for concurrent use.
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
