// Package bench measures one part of Tomato and compares it with its limit. The limit
// is the least that any program would have to do for the same effect. Both are
// measured in the same run, on the same broker and database. Their rounds alternate,
// so that other work of the machine affects both alike. Rows are medians over the
// rounds. The first round is a warm-up and is left out.
//
// Everything runs on this machine. This process contains the callers and the server;
// the benches feed, takeover, rebuild-live and town start a server in a process of its own. The broker and
// the database are private ones in a temporary directory, unless others are
// configured.
//
// The files, in reading order:
//
//	bench.go         the command, and what all benches share
//	processes.go     starts the broker, the database and servers; their processor time
//	load.go          callers that measure latencies, and HTTP connections for them
//	commands.go      the bench commands; orders that go through their life
//	orders_ready.go  the bench orders-ready
//	town_setup.go    sets up the towns of orders-ready and town
//	sealed.go        seals what is personal in what benches hand to shards
//	live.go          writes orders into the logs, for takeover, shards and rebuilds
//	takeover.go      the bench takeover
//	shards.go        the bench shards
//	log.go           the bench consume; a log of orders for consumers
//	poison.go        the part of consume that measures poison events
//	project.go       the bench project
//	interleaved.go   writes a history of orders that go on side by side, for rebuilds
//	rebuild.go       the bench rebuild
//	rebuild_live.go  the bench rebuild-live
//	live_traffic.go  the commands and queries that go on meanwhile
//	riders.go        the bench riders
//	riders_load.go   the part of riders in which positions and searches come at once
//	feed.go          the bench feed
//	town.go          the bench town
//	town_order.go    one order of town, from its placing to its delivery
//	town_kept.go     what town's orders leave in the logs for ever
package bench

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"tomato/cmd/tomato/server"
	"tomato/cmd/tomato/settings"
	"tomato/domain"
	"tomato/eventlog"
	"tomato/httpapi"
)

// Cmd is the command bench: its flags, and what Run measures.
type Cmd struct {
	settings.Kafka
	settings.Database
	Name        string        `arg:"" enum:"commands,orders-ready,takeover,shards,consume,project,rebuild,rebuild-live,riders,feed,town" help:"commands, orders-ready, takeover, shards, consume, project, rebuild, rebuild-live, riders, feed or town."`
	JSON        bool          `name:"json" help:"The rows as one JSON object. A ratio is value / limit."`
	Broker      string        `enum:"embedded,kafka," default:"" help:"Which broker to start where KAFKA_BROKERS is unset: embedded (default), or kafka: Apache Kafka, which needs Java."`
	Rounds      int           `default:"5" help:"How often each figure is taken, after one warm-up; the median is reported. 1 to 50."`
	Duration    time.Duration `default:"2s" help:"How long one round goes on where it is not a count. 10ms to 5m."`
	Load        time.Duration `default:"20s" help:"How long positions and searches come at the same time (riders). 0: as long as one round. Up to 1h."`
	Count       int           `aliases:"orders" help:"Also --orders. Orders (orders-ready: in a burst; town: from placing to delivery; takeover, shards: live ones, with their payments; project, rebuild, rebuild-live, consume: in the log, with 6 events each), riders (riders) or connections (feed). Default: that of the bench. 1 to 1,000,000."`
	Existing    int           `help:"Orders that the read model has already (project). 0 to 10,000,000."`
	Concurrency int           `default:"32" help:"Orders that are under way at the same time (town). 1 to 100."`
	Queries     int           `default:"500" help:"Queries a second (rebuild-live); there are two commands for five queries. 5 to 10,000."`
	CPUProfile  string        `name:"cpuprofile" placeholder:"FILE" help:"Write a CPU profile of what is measured. The limit's part has the label part=limit (go tool pprof -tagignore limit)."`
	MemProfile  string        `name:"memprofile" placeholder:"FILE" help:"Write a heap profile of what the shards hold (shards)."`
	DataDir     string        `name:"data-dir" hidden:"" help:"Where to put the temporary directory."`
	progressOut io.Writer     // default os.Stderr
	out         io.Writer     // default os.Stdout
}

// Row is one figure of a report. Limit and Ratio are 0 if the figure has no limit.
type Row struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Limit float64 `json:"limit,omitzero"`
	Ratio float64 `json:"ratio,omitzero"`
}

// Report is what a bench prints with --json.
type Report struct {
	Bench   string `json:"bench"`
	Broker  string `json:"broker"`
	Machine string `json:"machine"`
	Rows    []Row  `json:"rows"`
}

func (c Cmd) validate() error {
	switch {
	case c.Rounds < 1 || c.Rounds > 50:
		return settings.Usage("--rounds must be 1 to 50")
	case c.Duration < 10*time.Millisecond || c.Duration > 5*time.Minute:
		return settings.Usage("--duration must be 10ms to 5m")
	case c.Load < 0 || c.Load > time.Hour:
		return settings.Usage("--load must be 0 to 1h")
	case c.Count < 0 || c.Count > 1_000_000:
		return settings.Usage("--count must be 1 to 1,000,000")
	case c.Existing < 0 || c.Existing > 10_000_000:
		return settings.Usage("--existing must be 0 to 10,000,000")
	case c.Name == "town" && (c.Concurrency < 1 || c.Concurrency > maxTownConcurrency):
		return settings.Usage("--concurrency must be 1 to %d", maxTownConcurrency)
	case c.Name == "rebuild-live" && (c.Queries < 5 || c.Queries > 10_000):
		return settings.Usage("--queries must be 5 to 10,000")
	case c.Partitions < 1 || c.Partitions > 1024:
		return settings.Usage("--partitions must be 1 to 1024")
	case len(c.Brokers) > 0 && c.Broker == "embedded":
		return settings.Usage("--broker embedded starts a broker, but KAFKA_BROKERS names one: unset it")
	}
	return nil
}

// Run measures and prints. It returns a settings.UsageError if a flag is wrong.
func (c Cmd) Run(ctx context.Context) (err error) {
	if err := c.validate(); err != nil {
		return err
	}
	if c.out == nil {
		c.out = os.Stdout
	}
	if c.progressOut == nil {
		c.progressOut = os.Stderr
	}
	b := &run{Cmd: c, report: Report{Bench: c.Name, Machine: machine(), Rows: []Row{}}}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.open(ctx); err != nil {
		return err
	}
	measure := map[string]func(context.Context) error{
		"commands": b.commands, "orders-ready": b.ordersReady, "takeover": b.takeover, "shards": b.shards, "consume": b.consume,
		"project": b.project, "rebuild": b.rebuild, "rebuild-live": b.rebuildLive, "riders": b.riders, "feed": b.feed, "town": b.town,
	}[c.Name]
	if err := measure(ctx); err != nil {
		return fmt.Errorf("bench %s: %w", c.Name, err)
	}
	b.stopProfile()
	return b.print()
}

// run is one run of a bench: what it has started, and its rows.
type run struct {
	Cmd
	dir         string // temporary
	kafka       eventlog.Config
	serverURL   string // of Postgres; DatabaseURL is one of the bench's own databases there
	log         *slog.Logger
	report      Report
	brokerPID   int // 0: the broker is no process that the bench has started
	postgresPID int // 0: the bench has not started Postgres
	started     int // servers
	databases   int
	stops       []func(context.Context) error
	profiled    *os.File

	heapProfiled bool
}

func (b *run) onStop(f func(context.Context) error) { b.stops = append(b.stops, f) }

func (b *run) close() error {
	b.stopProfile()
	ctx, cancel := context.WithTimeout(context.Background(), server.StopLimit)
	defer cancel()
	var errs []error
	for _, stop := range slices.Backward(b.stops) {
		errs = append(errs, stop(ctx))
	}
	return errors.Join(errs...)
}

// tell prints what is being done. It prints to stderr, because stdout has only the
// rows.
func (b *run) tell(format string, args ...any) {
	fmt.Fprintf(b.progressOut, "bench "+b.Name+": "+format+"\n", args...)
}

// until calls condition every 20 ms until it returns true or an error, or until ctx
// ends.
func until(ctx context.Context, condition func() (bool, error)) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := condition(); ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// tokens makes the access tokens of actors and keeps them. Not for concurrent use.
type tokens map[domain.Actor]string

func (t tokens) of(a domain.Actor) (string, error) {
	if t[a] == "" {
		s, err := httpapi.MintToken(benchSecret, a, 24*time.Hour)
		if err != nil {
			return "", err
		}
		t[a] = s
	}
	return t[a], nil
}

// add adds a row. A limit of 0 means that the figure has no limit.
func (b *run) add(name, unit string, value, limit float64) {
	row := Row{Name: name, Unit: unit, Value: rounded(value), Limit: rounded(limit)}
	if limit != 0 {
		row.Ratio = rounded(value / limit)
	}
	b.report.Rows = append(b.report.Rows, row)
}

// rounded returns f with four significant digits, because more digits would be noise.
// It returns 0 for a value that is not finite.
func rounded(f float64) float64 {
	if f == 0 || math.IsNaN(f) || math.IsInf(f, 0) {
		return 0
	}
	scale := math.Pow(10, 3-math.Floor(math.Log10(math.Abs(f))))
	return math.Round(f*scale) / scale
}

// profile begins the CPU profile if one is wanted and none has begun. Benches call it
// after their preparations, so that the profile shows only what is measured.
func (b *run) profile() error {
	if b.CPUProfile == "" || b.profiled != nil {
		return nil
	}
	f, err := os.Create(b.CPUProfile)
	if err != nil {
		return err
	}
	b.profiled = f
	return pprof.StartCPUProfile(f)
}

func (b *run) stopProfile() {
	if b.profiled != nil {
		pprof.StopCPUProfile()
		_ = b.profiled.Close() // if this fails, only the profile is lost
		b.profiled = nil
	}
}

// asLimit runs the limit's part under the profile label part=limit. Goroutines that it
// starts inherit the label.
func asLimit(ctx context.Context, run func(context.Context) error) (err error) {
	pprof.Do(ctx, pprof.Labels("part", "limit"), func(ctx context.Context) { err = run(ctx) })
	return err
}

// alternating runs limit and measured in turns. limit may be nil. It runs b.Rounds
// rounds after a first one, which is a warm-up. limit and measured return their
// figures by name. alternating returns the medians over all rounds but the first.
func (b *run) alternating(ctx context.Context, what string, limit, measured func(context.Context) (map[string]float64, error)) (ofLimit, ofMeasured map[string]float64, err error) {
	var limits, values []map[string]float64
	for round := range b.Rounds + 1 {
		var l, v map[string]float64
		if limit != nil {
			if err := asLimit(ctx, func(ctx context.Context) (err error) { l, err = limit(ctx); return err }); err != nil {
				return nil, nil, fmt.Errorf("%s, the limit: %w", what, err)
			}
		}
		if v, err = measured(ctx); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", what, err)
		}
		if round == 0 {
			b.tell("%s: warm", what)
			continue
		}
		b.tell("%s: round %d of %d: %s; limit: %s", what, round, b.Rounds, figures(v), figures(l))
		limits, values = append(limits, l), append(values, v)
	}
	return medians(limits), medians(values), nil
}

func figures(m map[string]float64) string {
	var s []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		s = append(s, fmt.Sprint(k, "=", rounded(m[k])))
	}
	return cmp.Or(strings.Join(s, " "), "-")
}

func medians(rounds []map[string]float64) map[string]float64 {
	all := map[string][]float64{}
	for _, r := range rounds {
		for k, v := range r {
			all[k] = append(all[k], v)
		}
	}
	m := map[string]float64{}
	for k, vs := range all {
		slices.Sort(vs)
		m[k] = vs[len(vs)/2]
		if len(vs)%2 == 0 {
			m[k] = (vs[len(vs)/2-1] + m[k]) / 2
		}
	}
	return m
}

func (b *run) print() error {
	if b.JSON {
		return json.NewEncoder(b.out).Encode(b.report)
	}
	fmt.Fprintf(b.out, "%s on %s, %s\n", b.report.Bench, b.report.Broker, b.report.Machine)
	w := tabwriter.NewWriter(b.out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "ROW\tVALUE\tUNIT\tLIMIT\tVALUE/LIMIT")
	for _, r := range b.report.Rows {
		limit, ratio := "", ""
		if r.Limit != 0 {
			limit, ratio = fmt.Sprint(r.Limit), fmt.Sprint(r.Ratio)
		}
		fmt.Fprintf(w, "%s\t%v\t%s\t%s\t%s\n", r.Name, r.Value, r.Unit, limit, ratio)
	}
	return w.Flush()
}

// machine describes the machine on which the bench runs.
func machine() string {
	s := fmt.Sprintf("%d CPUs, %s/%s, %s", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version())
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				return strings.TrimSpace(value) + ", " + s
			}
		}
	}
	return s
}

// logLevel returns the log level of the servers that a bench starts in this process.
// TOMATO_BENCH_LOG_LEVEL=debug helps to find out what a bench does.
func logLevel() slog.Level {
	if os.Getenv("TOMATO_BENCH_LOG_LEVEL") == "debug" {
		return slog.LevelDebug
	}
	return slog.LevelWarn
}
