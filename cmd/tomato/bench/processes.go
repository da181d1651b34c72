package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"tomato/cmd/tomato/server"
	"tomato/cmd/tomato/settings"
	"tomato/commandside/shard"
	"tomato/eventlog"
	"tomato/eventlog/kafkaprocess"
	"tomato/migrations/cluster"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
)

// open starts the broker and the database.
func (b *run) open(ctx context.Context) (err error) {
	b.log = slog.New(slog.NewTextHandler(b.progressOut, &slog.HandlerOptions{Level: logLevel()}))
	if b.dir, err = os.MkdirTemp(b.DataDir, "tomato-bench-"); err != nil {
		return err
	}
	b.onStop(func(context.Context) error { return os.RemoveAll(b.dir) })
	b.report.Broker = "kafka"
	switch {
	case len(b.Brokers) > 0:
		if err := b.checkAlone(ctx); err != nil {
			return err
		}
	case b.Broker == "kafka":
		b.tell("starting Apache Kafka")
		kctx, cancel := context.WithTimeout(ctx, 5*time.Minute) // the jars may have to be fetched
		defer cancel()
		p, err := kafkaprocess.Start(kctx, filepath.Join(b.dir, "kafka"), kafkaprocess.Options{})
		if err != nil {
			return err
		}
		b.onStop(p.Stop)
		b.Brokers, b.brokerPID = []string{p.Addr()}, p.PID()
	case b.Name == "town": // it measures the processor time of the broker
		b.report.Broker = "embedded"
		if err := b.startBrokerChild(ctx); err != nil {
			return err
		}
	default:
		b.report.Broker = "embedded"
		e, err := eventlog.StartBroker(filepath.Join(b.dir, "broker"), "127.0.0.1:0")
		if err != nil {
			return err
		}
		b.onStop(func(context.Context) error { e.Close(); return nil })
		b.Brokers = []string{e.Addr()}
	}
	b.kafka = b.Kafka.Config("tomato-bench")
	if b.serverURL = b.DatabaseURL; b.serverURL == "" {
		b.tell("starting a private Postgres")
		pg, err := cluster.Start(ctx, filepath.Join(b.dir, "postgres"), cluster.Options{})
		if err != nil {
			return err
		}
		b.onStop(pg.Stop)
		b.serverURL, b.postgresPID = pg.URL(), pg.PID()
	}
	// The bench needs a database of its own even if one is configured, because the
	// read models in the configured one belong to another log.
	var drop func(context.Context) error
	if b.DatabaseURL, drop, err = b.newDatabase(ctx); err != nil {
		return err
	}
	b.onStop(drop)
	return nil
}

// checkAlone fails if a serve works with these brokers. The bench would fill the log of
// that serve, and the two would share the shards.
func (b *run) checkAlone(ctx context.Context) error {
	client, err := b.Kafka.Config("tomato-bench").NewClient()
	if err != nil {
		return settings.UsageError{Err: err}
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var groups kadm.DescribedGroups
	var last error
	err = until(ctx, func() (bool, error) { // repeated, because a new broker has no coordinator at first
		groups, last = kadm.NewClient(client).DescribeGroups(ctx, shard.Group)
		return last == nil, nil
	})
	if err != nil {
		return fmt.Errorf("brokers %v: %w", b.Brokers, errors.Join(last, err))
	}
	if n := len(groups[shard.Group].Members); n > 0 {
		return settings.Usage("%d serve with brokers %v: a bench writes orders to the log, so it needs brokers of its own", n, b.Brokers)
	}
	return nil
}

// newDatabase makes a database in the server at b.serverURL. It returns the database's
// URL and a function that drops it.
func (b *run) newDatabase(ctx context.Context) (databaseURL string, drop func(context.Context) error, err error) {
	given, err := url.Parse(b.serverURL)
	if err != nil {
		return "", nil, settings.Usage("DATABASE_URL: %w", err)
	}
	b.databases++
	name := fmt.Sprintf("tomato_bench_%d_%d_%d", os.Getpid(), time.Now().UnixMilli(), b.databases)
	do := func(ctx context.Context, sql string) error {
		conn, err := pgx.Connect(ctx, b.serverURL)
		if err != nil {
			return settings.Usage("DATABASE_URL: %w", err)
		}
		_, err = conn.Exec(ctx, sql)
		return errors.Join(err, conn.Close(ctx))
	}
	if err := do(ctx, "CREATE DATABASE "+name); err != nil {
		return "", nil, fmt.Errorf("a bench makes databases of its own beside the given one: %w", err)
	}
	given.Path = "/" + name
	return given.String(), func(ctx context.Context) error { return do(ctx, "DROP DATABASE "+name+" WITH (FORCE)") }, nil
}

// serveConfig returns the configuration of a serve with the defaults and these roles.
// Its deadlines are so long that none of them passes while something is measured.
func (b *run) serveConfig(roles ...string) (server.Config, error) {
	s, err := server.ParseConfig()
	if err != nil {
		return server.Config{}, err
	}
	b.started++
	s.DataDir, s.LogLevel = filepath.Join(b.dir, fmt.Sprint("serve", b.started)), strings.ToLower(logLevel().String())
	s.Kafka, s.DatabaseURL = b.Kafka, b.DatabaseURL
	s.Role, s.HTTPAddr, s.Advertised = roles, "127.0.0.1:0", ""
	s.Secrets = settings.Secrets{JWTSecret: benchSecret, ClusterKey: benchClusterKey, InternalKey: benchSecret, WebhookSecrets: []string{benchSecret}}
	s.JWTIssuer, s.JWTAudience, s.KeyID, s.KeySecret = "", "", "", ""
	s.PaymentTTL, s.AcceptTTL, s.OfferTTL, s.PositionAge = settings.Duration(12*time.Hour), settings.Duration(12*time.Hour), settings.Duration(12*time.Hour), settings.Duration(12*time.Hour)
	s.OfferRadii, s.OfferLimit, s.SearchWait = []int{5000, 8000, 12000}, 50, settings.Duration(500*time.Millisecond)
	return s, nil
}

// The secrets of the servers that a bench starts. They may be public, because these
// servers listen on 127.0.0.1 and end with the bench.
const (
	benchSecret     = "a secret of servers that nobody else talks to"
	benchClusterKey = "the cluster key of servers that nobody else talks to"
)

// serve starts a server in this process and returns when it is ready.
func (b *run) serve(ctx context.Context, c server.Config, o server.Options) (*server.Server, error) {
	s, err := server.Start(ctx, c, o)
	if err != nil {
		return nil, err
	}
	b.onStop(func(context.Context) error { return s.Close() })
	return s, ready(ctx, s.URL())
}

// ready waits until the server at base answers that it is ready.
func ready(ctx context.Context, base string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var last string
	err := until(ctx, func() (bool, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/readyz", nil)
		if err != nil {
			return false, err
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			last = err.Error()
			return false, nil
		}
		defer res.Body.Close()
		body, _ := io.ReadAll(io.LimitReader(res.Body, 4<<10)) // only used in the text of an error
		last = string(body)
		return res.StatusCode == http.StatusOK && strings.Contains(last, `"status":"ready"`), nil
	})
	if err != nil {
		return fmt.Errorf("the server does not become ready: %w: %s", err, last)
	}
	return nil
}

// startBrokerChild starts an embedded broker in a process of its own.
func (b *run) startBrokerChild(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, "broker", "--data-dir", b.dir, "--addr", "127.0.0.1:0")
	cmd.Stderr = b.progressOut
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() }) // so that the read below ends
	line, err := bufio.NewReader(out).ReadString('\n')
	stop()
	b.onStop(func(context.Context) error {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		return nil
	})
	addr, ok := strings.CutPrefix(strings.TrimSpace(line), "broker listening on ")
	if err != nil || !ok {
		return fmt.Errorf("the embedded broker did not start: %q: %w", line, err)
	}
	b.Brokers, b.brokerPID = []string{addr}, cmd.Process.Pid
	return nil
}

// child is a serve in a process of its own.
type child struct {
	cmd  *exec.Cmd
	url  string
	done chan error // has the result of cmd.Wait once the process has ended; whoever takes it puts it back
}

// startChild starts a serve with the bench's broker and database, and returns
// when it is ready.
func (b *run) startChild(ctx context.Context, roles ...string) (*child, error) {
	return b.startChildWith(ctx, nil, roles...)
}

// startChildWith does the same with further flags.
func (b *run) startChildWith(ctx context.Context, flags []string, roles ...string) (*child, error) {
	c, err := b.serveConfig(roles...)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, append([]string{"serve", "--role", strings.Join(roles, ","), "--data-dir", c.DataDir, "--http-addr", c.HTTPAddr, "--log-level", "error",
		"--partitions", fmt.Sprint(b.Partitions), "--replication", fmt.Sprint(b.Replication)}, flags...)...)
	cmd.Env = b.childEnv()
	cmd.Stderr = b.progressOut
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ch := &child{cmd: cmd, done: make(chan error, 1)}
	go func() { ch.done <- cmd.Wait() }()
	b.onStop(func(context.Context) error { ch.kill(); return nil })
	wctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err = until(wctx, func() (bool, error) {
		select {
		case err := <-ch.done:
			ch.done <- err
			return false, fmt.Errorf("a server ended: %w", err)
		default:
		}
		r, err := settings.ReadRunning(c.DataDir)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		ch.url = r.URL
		return err == nil, err
	})
	if err == nil {
		err = ready(ctx, ch.url)
	}
	if err != nil {
		ch.kill()
		return nil, err
	}
	return ch, nil
}

// childEnv returns the environment of processes that work with the bench's broker and
// database.
func (b *run) childEnv() []string {
	return append(slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "TOMATO_") && !strings.HasPrefix(v, "TOMATO_BENCH_")
	}), "KAFKA_BROKERS="+strings.Join(b.Brokers, ","), "DATABASE_URL="+b.DatabaseURL,
		"TOMATO_JWT_SECRET="+benchSecret, "TOMATO_CLUSTER_KEY="+benchClusterKey, "TOMATO_INTERNAL_KEY="+benchSecret, "TOMATO_RAZORPAY_WEBHOOK_SECRETS="+benchSecret)
}

// kill ends the process if it has not ended, and waits until it has.
func (c *child) kill() {
	_ = c.cmd.Process.Kill() // fails if the process has ended, which does not matter
	err := <-c.done
	c.done <- err
}

// residentKiB returns the resident memory of the process in KiB, or 0 if it is not
// known.
func (c *child) residentKiB() float64 {
	b, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(c.cmd.Process.Pid), "status"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		var kib float64
		if n, _ := fmt.Sscanf(line, "VmRSS: %f kB", &kib); n == 1 {
			return kib
		}
	}
	return 0
}

// ticksPerSecond is the unit of the processor times in /proc. It is 100 on every
// architecture that Go supports.
const ticksPerSecond = 100

// cpuMS returns the processor time in milliseconds that a process and all its
// descendants have used until now, those that have ended included. It returns 0 if the
// machine does not tell.
func cpuMS(pid int) float64 {
	parents, times := map[int]int{}, map[int]float64{}
	entries, err := os.ReadDir("/proc")
	if err != nil || pid == 0 {
		return 0
	}
	for _, e := range entries {
		if id, err := strconv.Atoi(e.Name()); err == nil {
			if parent, _, all, ok := procStat(id); ok {
				parents[id], times[id] = parent, all
			}
		}
	}
	var sum float64
	for id, t := range times {
		for p, depth := id, 0; p > 1 && depth < 100; p, depth = parents[p], depth+1 {
			if p == pid {
				sum += t
				break
			}
		}
	}
	return sum
}

// ownCPUMS returns the processor time of this process in milliseconds, without that of
// its children.
func ownCPUMS() float64 {
	_, own, _, _ := procStat(os.Getpid())
	return own
}

// procStat reads the parent and the processor times in milliseconds of one process:
// its own time, and that with the time of its children that have ended. ok is false if
// the process has ended.
func procStat(pid int) (parent int, own, all float64, ok bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, 0, false
	}
	// The second field is the name in parentheses, which may contain anything.
	_, rest, found := strings.Cut(string(b[bytes.LastIndexByte(b, ')')+1:]), " ")
	f := strings.Fields(rest)
	if !found || len(f) < 15 {
		return 0, 0, 0, false
	}
	n := func(i int) float64 { v, _ := strconv.ParseFloat(f[i], 64); return v * 1000 / ticksPerSecond }
	parent, err = strconv.Atoi(f[1])
	own = n(11) + n(12)                                 // utime, stime
	return parent, own, own + n(13) + n(14), err == nil // cutime, cstime
}
