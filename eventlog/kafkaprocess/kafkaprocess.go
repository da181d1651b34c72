// Package kafkaprocess runs Apache Kafka as child processes on 127.0.0.1: a single node
// (Start) or a cluster of several nodes (StartCluster). Each process is a broker and a
// controller (KRaft). The package is for tests, benchmarks and trying things out on a
// machine without containers. A real installation has its own brokers.
//
// A process runs until Kill or Stop is called, or until it ends by itself (Done). Its
// directory contains everything else: settings, ports, data and log. A directory may
// be started again after its process has ended, and gets the same address. On Linux,
// Kafka ends when this process ends, whatever the cause.
package kafkaprocess

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tomato/eventlog/childprocess"
)

// Version is the release of Apache Kafka that is fetched and run.
const Version = "4.3.1"

// ErrAbsent means that Kafka cannot run on this machine, because there is no Java, or
// because there are no jars and no Maven to fetch them. The error's text says what to
// install.
var ErrAbsent = errors.New("Apache Kafka cannot be started here")

// Options of a process. The zero value is fit for use.
type Options struct {
	// Port is the port that clients connect to. 0 means the port of the directory's
	// previous process, or a free one if there was none.
	Port int
	// HeapMB is the size of the Java heap in MiB. 0 means 1,024.
	HeapMB int
	// QuickStart turns off Java's optimizing compiler. Kafka then starts sooner and is
	// slower under load. It is for tests, not for benchmarks.
	QuickStart bool
	// Home is the folder of the jars. "" means $TOMATO_KAFKA_HOME, or a folder in the
	// user's cache directory if that is not set. If the folder has no jars, they are
	// fetched once with Maven.
	Home string
	// Properties are broker settings. They override those that this package sets.
	Properties map[string]string
}

// Process is a running Kafka. Its methods may be called concurrently.
type Process struct {
	dir  string
	addr string
	id   int32 // of the broker
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended and been reaped

	mu  sync.Mutex
	err error // how the process ended; set before done is closed
}

// Start runs Kafka in dir and returns when it answers. It creates and formats dir if
// this has not been done. It fails with ErrAbsent if Kafka cannot run on this machine.
// ctx bounds only the start. One minute is enough, unless the jars (44 MB) have to be
// fetched.
func Start(ctx context.Context, dir string, opts Options) (*Process, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	own, err := portsOf(dir)
	if err != nil {
		return nil, err
	}
	if opts.Port != 0 {
		own.client = opts.Port
	}
	if own, err = keepPorts(dir, own); err != nil {
		return nil, err
	}
	return start(ctx, dir, opts, node{id: 1, own: own, voters: voters([]ports{own}), copies: 1, inSync: 1})
}

// node describes one node of a cluster.
type node struct {
	id             int
	own            ports
	voters         string // controller.quorum.voters
	copies, inSync int    // replicas of a partition, and how many of them must be in sync, unless a topic says otherwise
}

// start runs one node in dir, an absolute path, and returns when it answers.
func start(ctx context.Context, dir string, opts Options, n node) (*Process, error) {
	java, err := exec.LookPath("java")
	if err != nil {
		return nil, fmt.Errorf("%w: no java on PATH: install a Java runtime, 17 or later (Debian: apt-get install default-jre-headless)", ErrAbsent)
	}
	home := opts.Home
	if home == "" {
		if home, err = Home(); err != nil {
			return nil, err
		}
	}
	if err := Fetch(ctx, home); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(dir, "data"), 0o700); err != nil {
		return nil, err
	}
	if err := writeProperties(dir, opts, n); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, "data", "meta.properties")); errors.Is(err, fs.ErrNotExist) {
		if err := format(ctx, java, home, dir, n); err != nil {
			return nil, err
		}
	}
	log, err := os.OpenFile(filepath.Join(dir, "kafka.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	heap := opts.HeapMB
	if heap == 0 {
		heap = 1024
	}
	args := []string{fmt.Sprintf("-Xmx%dm", heap), "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
		"-Dorg.slf4j.simpleLogger.showDateTime=true", "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS"}
	if opts.QuickStart {
		args = append(args, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
	}
	args = append(args, "-cp", filepath.Join(home, "libs", "*"), "kafka.Kafka", filepath.Join(dir, "server.properties"))
	cmd := exec.Command(java, args...)
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = childprocess.Attributes(syscall.SIGKILL)
	addr := n.own.addr()
	p := &Process{dir: dir, addr: addr, id: int32(n.id), cmd: cmd, done: make(chan struct{})}
	if err := childprocess.Start(cmd, p.ended); err != nil {
		return nil, fmt.Errorf("starting Kafka: %w", err)
	}
	if err := p.ready(ctx); err != nil {
		p.Kill()
		return nil, fmt.Errorf("Kafka in %s on %s did not come up: %w; its log ends in:\n%s", dir, addr, err, p.LogTail(2<<10))
	}
	return p, nil
}

// ended notes how the process ended. It is called once.
func (p *Process) ended(err error) {
	p.mu.Lock()
	p.err = err
	p.mu.Unlock()
	close(p.done)
}

// ready waits until the broker is registered with its controller and serves.
func (p *Process) ready(ctx context.Context) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		// A client that finds nobody listening on the port would wait longer before its
		// next attempt than the start takes. So the client starts after the port is open.
		if conn, err := net.DialTimeout("tcp", p.addr, time.Second); err == nil {
			conn.Close()
			break
		}
		if err := p.wait(ctx, tick); err != nil {
			return err
		}
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(p.addr), kgo.MetadataMinAge(10*time.Millisecond),
		kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond }))
	if err != nil {
		return err
	}
	defer client.Close()
	ask := kmsg.NewPtrMetadataRequest()
	ask.Topics = []kmsg.MetadataRequestTopic{} // an empty list means no topics, nil would mean all
	for {
		// The new process itself is asked, because other nodes of the cluster may still
		// list the node's previous process.
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		resp, err := client.SeedBrokers()[0].Request(try, ask)
		cancel()
		if err == nil && slices.ContainsFunc(resp.(*kmsg.MetadataResponse).Brokers, func(b kmsg.MetadataResponseBroker) bool { return b.NodeID == p.id }) {
			return nil
		}
		if err := p.wait(ctx, tick); err != nil {
			return err
		}
	}
}

func (p *Process) wait(ctx context.Context, tick *time.Ticker) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-p.done:
		return fmt.Errorf("it ended: %w", p.Err())
	case <-tick.C:
		return nil
	}
}

// Addr returns the host:port that clients connect to.
func (p *Process) Addr() string { return p.addr }

// PID returns the id of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Dir returns the directory of the process. It may be started again after the process
// has ended.
func (p *Process) Dir() string { return p.dir }

// Done returns a channel that is closed when the process has ended, for whatever
// reason.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err returns how the process ended. It returns nil while the process runs, and after it
// has ended with exit code 0.
func (p *Process) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// Kill ends the process at once (SIGKILL) and returns when it has ended.
func (p *Process) Kill() {
	p.signal(syscall.SIGKILL)
	<-p.done
}

// Stop shuts Kafka down in an orderly way and returns when it has ended. If ctx ends
// first, Stop kills Kafka and returns an error.
func (p *Process) Stop(ctx context.Context) error {
	p.signal(syscall.SIGCONT) // a paused process cannot stop
	p.signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		p.Kill()
		return fmt.Errorf("Kafka did not stop in time and was killed: %w", ctx.Err())
	}
}

// Pause suspends the process (SIGSTOP), as a long garbage collection or a frozen machine
// would. Connections stay open, and nothing answers.
func (p *Process) Pause() error { return p.signal(syscall.SIGSTOP) }

// Resume continues a paused process.
func (p *Process) Resume() error { return p.signal(syscall.SIGCONT) }

func (p *Process) signal(s os.Signal) error {
	select {
	case <-p.done:
		return os.ErrProcessDone
	default:
		return p.cmd.Process.Signal(s)
	}
}

// LogTail returns at most max bytes of the end of the log.
func (p *Process) LogTail(max int64) string {
	f, err := os.Open(filepath.Join(p.dir, "kafka.log"))
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if size, err := f.Seek(0, io.SeekEnd); err == nil {
		f.Seek(size-min(size, max), io.SeekStart)
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// ports are the ports of a node. They are chosen when its directory is started for the
// first time, and stay the same.
type ports struct{ client, controller int }

func (p ports) addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.client)) }

// portsOf reads a directory's ports. A port that is not chosen yet is 0.
func portsOf(dir string) (p ports, err error) {
	path := filepath.Join(dir, "ports")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return p, err
	}
	if _, err := fmt.Sscan(string(b), &p.client, &p.controller); err != nil {
		return p, fmt.Errorf("%s: want two port numbers: %w", path, err)
	}
	return p, nil
}

// keepPorts chooses free ports for those that are 0. It writes the ports into the
// directory and returns them.
func keepPorts(dir string, p ports) (ports, error) {
	if p.client == 0 || p.controller == 0 {
		free, err := freePorts(2)
		if err != nil {
			return p, err
		}
		p.client, p.controller = cmp.Or(p.client, free[0]), cmp.Or(p.controller, free[1])
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return p, err
	}
	return p, os.WriteFile(filepath.Join(dir, "ports"), fmt.Appendf(nil, "%d %d\n", p.client, p.controller), 0o600)
}

// voters returns the value of controller.quorum.voters for a cluster whose nodes 1, 2
// and so on have these ports.
func voters(all []ports) string {
	var s []string
	for i, p := range all {
		s = append(s, fmt.Sprintf("%d@127.0.0.1:%d", i+1, p.controller))
	}
	return strings.Join(s, ",")
}

// writeProperties writes server.properties.
func writeProperties(dir string, opts Options, n node) error {
	copies, inSync := strconv.Itoa(n.copies), strconv.Itoa(n.inSync)
	props := map[string]string{
		"process.roles":              "broker,controller",
		"node.id":                    strconv.Itoa(n.id),
		"controller.quorum.voters":   n.voters,
		"controller.listener.names":  "CONTROLLER",
		"listeners":                  fmt.Sprintf("PLAINTEXT://%s,CONTROLLER://127.0.0.1:%d", n.own.addr(), n.own.controller),
		"advertised.listeners":       "PLAINTEXT://" + n.own.addr(),
		"log.dirs":                   filepath.Join(dir, "data"),
		"auto.create.topics.enable":  "false",
		"num.network.threads":        "2",
		"num.io.threads":             "4",
		"num.partitions":             "1",
		"log.cleaner.threads":        "1",
		"default.replication.factor": copies,
		"min.insync.replicas":        inSync,
		// By default compaction uses 128 MB of the heap.
		"log.cleaner.dedupe.buffer.size":                   "16777216",
		"offsets.topic.replication.factor":                 copies,
		"offsets.topic.num.partitions":                     "4",
		"transaction.state.log.replication.factor":         copies,
		"transaction.state.log.min.isr":                    inSync,
		"transaction.state.log.num.partitions":             "4",
		"share.coordinator.state.topic.replication.factor": copies,
		"share.coordinator.state.topic.min.isr":            inSync,
		// A broker that was killed may register again only after the controller has
		// given it up. By default this takes 9 s.
		"broker.session.timeout.ms":    "3000",
		"broker.heartbeat.interval.ms": "500",
		// By default the first member of every group waits 3 s for more members.
		"group.initial.rebalance.delay.ms": "0",
	}
	for k, v := range opts.Properties {
		props[k] = v
	}
	var b strings.Builder
	for k, v := range props {
		fmt.Fprintf(&b, "%s=%s\n", k, strings.ReplaceAll(v, `\`, `\\`))
	}
	return os.WriteFile(filepath.Join(dir, "server.properties"), []byte(b.String()), 0o600)
}

// freePorts returns n ports that nobody listened on a moment ago. They are below those
// that the system gives to connections and to listeners on port 0 (from 32768 on, on
// Linux), because a Kafka takes seconds to start, and one of those would often be taken
// by then.
func freePorts(n int) ([]int, error) {
	const lowest, highest, tries = 15000, 32767, 1000
	ports := make([]int, 0, n)
	for range tries {
		if len(ports) == n {
			break
		}
		port := lowest + rand.IntN(highest-lowest+1)
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		defer l.Close() // at the end of the function, so that the ports differ
		ports = append(ports, port)
	}
	if len(ports) < n {
		return nil, fmt.Errorf("no %d free ports between %d and %d", n, lowest, highest)
	}
	return ports, nil
}
