package servertest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tomato/cmd/tomato/settings"
	"tomato/migrations/cluster"
)

// Process is a process of its own that runs a command of tomato, to be killed. It is the
// test binary, which TestMain makes do so where AsTomato is set, or another program.
type Process struct {
	Cmd   *exec.Cmd
	Ended chan struct{}
	out   *output // of both streams
}

// output is a buffer that may be read while it is written.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// Spawn runs tomato with args beside the test.
func (a *Installation) Spawn(args ...string) *Process {
	a.T.Helper()
	self, err := os.Executable()
	if err != nil {
		a.T.Fatal(err)
	}
	return a.SpawnProgram(self, args...)
}

// SpawnProgram runs another build of tomato with args beside the test.
func (a *Installation) SpawnProgram(program string, args ...string) *Process {
	a.T.Helper()
	return a.spawn(program, "", args)
}

// spawn runs a program with stdin beside the test.
func (a *Installation) spawn(program, stdin string, args []string) *Process {
	a.T.Helper()
	c := &Process{Cmd: exec.Command(program, args...), Ended: make(chan struct{}), out: &output{}}
	c.Cmd.Env = append(os.Environ(), AsTomato+"=1", "TOMATO_JWT_SECRET="+JWTSecret, "TOMATO_CLUSTER_KEY="+ClusterKey, "TOMATO_INTERNAL_KEY="+InternalKey,
		"TOMATO_RAZORPAY_WEBHOOK_SECRETS="+WebhookSecret)
	c.Cmd.Stdin, c.Cmd.Stdout, c.Cmd.Stderr = strings.NewReader(stdin), c.out, c.out
	if err := c.Cmd.Start(); err != nil {
		a.T.Fatal(err)
	}
	go func() {
		defer close(c.Ended)
		_ = c.Cmd.Wait()
	}()
	a.T.Cleanup(func() {
		c.Kill()
		if a.T.Failed() {
			a.T.Logf("%v said:\n%s", args, c.out)
		}
	})
	return c
}

// Kill ends it as a power cut would, without a chance to say anything, and waits for
// its end.
func (c *Process) Kill() {
	_ = c.Cmd.Process.Signal(syscall.SIGKILL)
	<-c.Ended
}

// Output returns what the process has printed so far, on both streams.
func (c *Process) Output() string { return c.out.String() }

// SpawnTool runs a command of the command line beside the test, on this installation.
func (a *Installation) SpawnTool(args ...string) *Process {
	a.T.Helper()
	return a.Spawn(append(args, a.toolArgs()...)...)
}

// SpawnServer runs serve as a process of its own and returns when it is ready.
func (a *Installation) SpawnServer(args ...string) *Process {
	a.T.Helper()
	_ = os.Remove(settings.RunningFile(a.Config.DataDir)) // of one that was killed
	c := a.Spawn(append([]string{"serve", "--database-url", a.Config.DatabaseURL, "--kafka-brokers", strings.Join(a.Kafka.Brokers, ","),
		"--data-dir", a.Config.DataDir, "--http-addr", a.Config.HTTPAddr, "--partitions", fmt.Sprint(a.Config.Partitions), "--log-level", LogLevel()}, args...)...)
	a.Await("serve has started", func() error {
		select {
		case <-c.Ended:
			a.T.Fatal("serve ended")
		default:
		}
		r, err := settings.ReadRunning(a.Config.DataDir)
		if err == nil && a.URL != r.URL { // who runs meanwhile reads it
			a.URL = r.URL
		}
		return err
	})
	a.Config.HTTPAddr = strings.TrimPrefix(a.URL, "http://") // the next one is there, too
	a.AwaitReady()
	return c
}

// Tool runs a command of the command line beside the server and returns what it
// printed.
func (a *Installation) Tool(args ...string) string {
	a.T.Helper()
	return a.ToolWith("", args...)
}

// ToolWith is Tool for a command that reads stdin.
func (a *Installation) ToolWith(stdin string, args ...string) string {
	a.T.Helper()
	said, ok := a.runTool(stdin, args)
	if !ok {
		a.T.Fatalf("tomato %v fails:\n%s", args, said)
	}
	return said
}

// ToolRefused is ToolWith for a command that must fail.
func (a *Installation) ToolRefused(stdin string, args ...string) string {
	a.T.Helper()
	said, ok := a.runTool(stdin, args)
	if ok {
		a.T.Fatalf("tomato %v was not refused:\n%s", args, said)
	}
	return said
}

// runTool returns what the command printed, and whether it succeeded.
func (a *Installation) runTool(stdin string, args []string) (said string, ok bool) {
	a.T.Helper()
	self, err := os.Executable()
	if err != nil {
		a.T.Fatal(err)
	}
	c := a.spawn(self, stdin, append(args, a.toolArgs()...))
	<-c.Ended
	return c.out.String(), c.Cmd.ProcessState.Success()
}

func (a *Installation) toolArgs() []string {
	return []string{"--database-url", a.Config.DatabaseURL, "--kafka-brokers", strings.Join(a.Kafka.Brokers, ","),
		"--data-dir", a.Config.DataDir, "--partitions", fmt.Sprint(a.Config.Partitions), "--log-level", LogLevel()}
}

// SpawnBroker runs `tomato broker` as a process of its own, and returns the address
// on which it listens.
func (a *Installation) SpawnBroker(dir, addr string) (*Process, string) {
	a.T.Helper()
	c := a.Spawn("broker", "--data-dir", dir, "--addr", addr)
	line := ""
	a.Await("the broker listens", func() error {
		var ok bool
		if line, ok = strings.CutPrefix(c.firstLine(), "broker listening on "); !ok {
			return fmt.Errorf("it says %q", c.firstLine())
		}
		return nil
	})
	return c, line
}

// firstLine returns the first line that the process has printed, "" before.
func (c *Process) firstLine() string {
	s := bufio.NewScanner(strings.NewReader(c.out.String()))
	s.Scan()
	return s.Text()
}

// Postgres starts a cluster of Postgres of the test's own, which it may stop and start.
// It skips the test if there is no PostGIS, unless TOMATO_REQUIRE_POSTGIS is 1.
func Postgres(t *testing.T, ctx context.Context, dir string) *cluster.Cluster {
	t.Helper()
	pg, err := cluster.Start(ctx, dir, cluster.Options{Settings: map[string]string{"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}})
	if errors.Is(err, cluster.ErrAbsent) && os.Getenv("TOMATO_REQUIRE_POSTGIS") != "1" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_ = pg.Stop(ctx)
	})
	return pg
}

// AsTomato is the environment variable that makes a test binary run tomato with its
// arguments instead of tests.
const AsTomato = "TOMATO_BENCH_CHILD"
