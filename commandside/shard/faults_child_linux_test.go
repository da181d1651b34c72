package shard

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tomato/domain"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
)

// The fault tests start the test binary as a child process, to kill it and to pause
// it. A child is an instance of the write side, or an embedded broker.
const (
	childRole   = "TOMATO_FAULT_CHILD" // "instance" or "broker"; if unset, the binary runs the tests
	childConfig = "TOMATO_FAULT_CHILD_CONFIG"
)

func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(childRole) {
	case "instance":
		err = runInstance()
	case "broker":
		err = runBroker()
	default:
		moreAtOnce()
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// moreAtOnce lets more tests run side by side than there are processors, because the
// fault tests mostly wait.
func moreAtOnce() {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		if err := flag.Set("test.parallel", strconv.Itoa(max(5, runtime.GOMAXPROCS(0)))); err != nil {
			panic(err)
		}
	}
}

// instanceConfig is the configuration of a child that is an instance.
type instanceConfig struct {
	Name       string
	Brokers    []string
	Via        map[string]string // from a broker's address to the address of its proxy
	Partitions int32
	Session    time.Duration
	Die        *atStep
}

// atStep stands for the nth time from now on that a step is reached.
type atStep struct {
	Step Step
	Nth  int
}

// instanceOrder is an order to a running instance.
type instanceOrder struct {
	Die    *atStep                     `json:",omitempty"` // send itself SIGKILL at this step
	Stop   *atStep                     `json:",omitempty"` // send itself SIGSTOP at this step; the test sends SIGCONT
	Tamper map[eventlogtest.Tamper]int `json:",omitempty"` // tamper with every nth request; 0 ends it
	Assign []int32                     `json:",omitempty"` // take these shards as if the group had assigned them
}

// instanceStatus is the status that an instance reports.
type instanceStatus struct {
	Serving  int
	Tampered map[eventlogtest.Tamper]int
	Verified float64 // acknowledgements with an unexpected offset
}

// steps carries out the orders for a step.
type steps struct {
	mu        sync.Mutex
	die, stop *atStep
}

func (s *steps) reached(step Step, _ int32) {
	if s.due(&s.die, step) {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // the signal comes later; this goroutine must not go on
	}
	if s.due(&s.stop, step) {
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	}
}

func (s *steps) due(at **atStep, step Step) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if *at == nil || (*at).Step != step {
		return false
	}
	(*at).Nth--
	if (*at).Nth > 0 {
		return false
	}
	*at = nil
	return true
}

func runInstance() error {
	var cfg instanceConfig
	if err := json.Unmarshal([]byte(os.Getenv(childConfig)), &cfg); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil)).With("instance", cfg.Name)
	wire := eventlogtest.NewWire(func(ctx context.Context, network, addr string) (net.Conn, error) {
		if via := cfg.Via[addr]; via != "" {
			addr = via
		}
		return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, addr)
	})
	kafka := eventlog.Config{Brokers: cfg.Brokers, ClientID: cfg.Name, Dial: wire.Dial}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	at := &steps{die: cfg.Die}
	menus, registry := NewMenus(), prometheus.NewRegistry()
	s, err := NewShards(Config{Kafka: kafka, Partitions: cfg.Partitions, Instance: cfg.Name, URL: "http://" + listener.Addr().String(), ClusterKeys: []string{testClusterKey},
		PaymentGrace: time.Hour, ArchiveAfter: 720 * time.Hour, Menus: menus, SessionTimeout: cfg.Session, SnapshotEvery: 1500 * time.Millisecond, Probe: at.reached,
		InboxPassed: func(context.Context, string) (bool, error) { return true, nil },
		Registry:    registry, Log: log})
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle(CommandsPath, s.Handler())
	mux.HandleFunc("/execute", func(w http.ResponseWriter, r *http.Request) { executeForTest(s, w, r) })
	mux.HandleFunc("/order", func(w http.ResponseWriter, r *http.Request) {
		var o instanceOrder
		if err := json.NewDecoder(r.Body).Decode(&o); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		at.mu.Lock()
		if o.Die != nil {
			at.die = o.Die
		}
		if o.Stop != nil {
			at.stop = o.Stop
		}
		at.mu.Unlock()
		for t, every := range o.Tamper {
			wire.Set(t, every)
		}
		s.assign(o.Assign)
	})
	mux.HandleFunc("/goroutines", pprof.Handler("goroutine").ServeHTTP)
	mux.HandleFunc("/status", func(w http.ResponseWriter, _ *http.Request) {
		st := instanceStatus{Tampered: map[eventlogtest.Tamper]int{}, Verified: counterOf(registry, "tomato_shard_verified_total")}
		st.Serving, _ = s.Serving()
		for _, t := range []eventlogtest.Tamper{eventlogtest.OutOfOrder, eventlogtest.LostAnswer, eventlogtest.Twice, eventlogtest.GroupCut} {
			st.Tampered[t] = wire.Done(t)
		}
		_ = json.NewEncoder(w).Encode(st)
	})
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	server := &http.Server{Handler: mux}
	go server.Serve(listener)
	fmt.Println(listener.Addr())
	var wg sync.WaitGroup
	var menusErr error
	wg.Go(func() { menusErr = menus.Run(ctx, kafka, log) })
	err = s.Run(ctx)
	stop()
	wg.Wait()
	server.Close()
	return errors.Join(err, menusErr)
}

func counterOf(r *prometheus.Registry, name string) (sum float64) {
	families, err := r.Gather()
	if err != nil {
		return -1
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// executeForTest serves Execute over HTTP. It answers 200 with a result or a refusal,
// 503 for ErrUnavailable, and 500 for any other error.
func executeForTest(s *Shards, w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	req, err := decodeRequest(b)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	ms, _ := strconv.Atoi(r.Header.Get(hdrTimeout))
	ctx, cancel := context.WithTimeout(r.Context(), time.Duration(ms)*time.Millisecond)
	defer cancel()
	res, err := s.Execute(ctx, req)
	if errors.Is(err, ErrUnavailable) {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	answer, err := encodeAnswer(res, err)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = w.Write(answer)
}

type brokerConfig struct{ Dir, Addr string }

func runBroker() error {
	var cfg brokerConfig
	if err := json.Unmarshal([]byte(os.Getenv(childConfig)), &cfg); err != nil {
		return err
	}
	b, err := eventlog.StartBroker(cfg.Dir, cfg.Addr)
	if err != nil {
		return err
	}
	defer b.Close()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	fmt.Println(b.Addr())
	<-ctx.Done()
	return nil
}

// child is a running child process.
type child struct {
	t    testing.TB
	name string
	cmd  *exec.Cmd
	addr string // where it listens
	done chan struct{}
	log  string
}

// startChild starts the test binary in a role and waits for its address.
func startChild(t testing.TB, role, name string, config any) (*child, error) {
	b, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	c := &child{t: t, name: name, done: make(chan struct{}), log: filepath.Join(t.TempDir(), "log")}
	stderr, err := os.Create(c.log)
	if err != nil {
		return nil, err
	}
	defer stderr.Close()
	c.cmd = exec.Command(os.Args[0])
	c.cmd.Env = append(os.Environ(), childRole+"="+role, childConfig+"="+string(b))
	c.cmd.Stderr = stderr
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	addr, started := make(chan string, 1), make(chan error, 1)
	go func() { // on one thread, because Pdeathsig is sent when the thread that forked ends
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		line, _ := bufio.NewReader(stdout).ReadString('\n')
		addr <- strings.TrimSpace(line)
		_ = c.cmd.Wait()
		close(c.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	t.Cleanup(c.kill)
	select {
	case c.addr = <-addr:
	case <-time.After(30 * time.Second):
	}
	if c.addr == "" {
		return nil, fmt.Errorf("%s did not come up: %s", name, c.tail())
	}
	return c, nil
}

func (c *child) tail() string {
	b, err := os.ReadFile(c.log)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4000):])
}

// doing returns the stacks of those goroutines of an instance that work on shards.
func (c *child) doing() string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.addr+"/goroutines?debug=2", nil)
	if err != nil {
		return err.Error()
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	var about []string
	for g := range strings.SplitSeq(string(b), "\n\n") {
		if strings.Contains(g, "shard.(*Shards).run") || strings.Contains(g, "shard.(*shard).") {
			about = append(about, g)
		}
	}
	return strings.Join(about, "\n\n")
}

func (c *child) signal(s syscall.Signal) { _ = c.cmd.Process.Signal(s) }

// kill sends SIGKILL and waits until the process has ended.
func (c *child) kill() {
	c.signal(syscall.SIGKILL)
	<-c.done
}

func (c *child) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// stopped reports whether the process is stopped by SIGSTOP.
func (c *child) stopped() bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.cmd.Process.Pid))
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(b), ") ")
	return strings.HasPrefix(after, "T")
}

func (c *child) order(o instanceOrder) error {
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+c.addr+"/order", bytes.NewReader(b))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", c.name, resp.Status)
	}
	return nil
}

func (c *child) status() (st instanceStatus, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.addr+"/status", nil)
	if err != nil {
		return st, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return st, err
	}
	defer resp.Body.Close()
	return st, json.NewDecoder(resp.Body).Decode(&st)
}

// execute sends a request to an instance.
func execute(ctx context.Context, client *http.Client, addr string, r Request, limit time.Duration) (Result, error) {
	b, err := encodeRequest(r)
	if err != nil {
		return Result{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/execute", bytes.NewReader(b))
	if err != nil {
		return Result{}, err
	}
	req.Header.Set(hdrTimeout, strconv.FormatInt((limit-100*time.Millisecond).Milliseconds(), 10))
	resp, err := client.Do(req)
	if err != nil {
		return Result{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return Result{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	switch resp.StatusCode {
	case http.StatusOK:
		res, err := decodeAnswer(r.Topic, body)
		var refusal *domain.Refusal
		if err != nil && !errors.As(err, &refusal) {
			return res, fmt.Errorf("an answer that cannot be read: %w", err)
		}
		return res, err
	case http.StatusServiceUnavailable:
		return Result{}, fmt.Errorf("%w: %s", ErrUnavailable, body)
	}
	return Result{}, fmt.Errorf("%s: %s", resp.Status, body)
}
