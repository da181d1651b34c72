package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"tomato/cmd/tomato/servertest"
	"tomato/cmd/tomato/settings"
	"tomato/commandside/shard"
	"tomato/domain"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
	"tomato/httpapi"
)

// rollingPerSecond is how many commands begin in a second of a rolling restart.
// The race detector makes the servers several times as slow; they share the
// machine with the load.
const (
	rollingPerSecond     = 500
	rollingPerSecondRace = 100
	// rollingAtOnce is how many may be under way, over which none begin: that is
	// no pause of a shard but a machine that cannot keep this pace up.
	rollingAtOnce = 1000
)

// TestARollingRestartLosesNothing: three instances, each in turn asked to stop
// and started again, under commands that begin at a steady pace whatever becomes
// of the ones before. Every command is acknowledged, by another instance where
// its own stops, and is in the log exactly once.
func TestARollingRestartLosesNothing(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, kafka eventlog.Config) {
		a := servertest.New(t, kafka, "--partitions", "12")
		fleet := make([]*instance, 3)
		for i := range fleet {
			fleet[i] = newInstance(a, i)
			fleet[i].start()
		}
		a.URL = fleet[0].url
		a.AwaitReady()
		a.AddRestaurant("r0", servertest.Lng, servertest.Lat)
		menu := a.Must(servertest.Staff("r0"), "PUT /v1/restaurants/r0/menu/m1", servertest.Item(25000, true)).Token()
		for _, i := range fleet { // a look at an order that is not there waits for the menu
			a.URL = i.url
			a.Do(servertest.Customer("c0"), "POST /v1/orders", servertest.Basket("r0"), "Consistency-Token", menu, "If-Match", `"1"`)
		}

		for _, i := range fleet {
			i.serves(4)
		}

		load := beginLoad(a, fleet)
		for _, i := range fleet {
			load.during(500 * time.Millisecond)
			stopping := time.Now()
			load.restarting.Store(i)
			i.terminate()
			stopped := time.Now()
			i.start()
			load.restarting.Store(nil)
			i.serves(4)
			t.Logf("%s stopped in %v and was ready again after %v", filepath.Base(i.dir), stopped.Sub(stopping).Round(time.Millisecond), time.Since(stopped).Round(time.Millisecond))
		}
		load.during(500 * time.Millisecond)
		load.end()
		load.check()
	})
}

// An instance is one serve of several on the same brokers.
type instance struct {
	*servertest.Installation
	dir, addr, url string
	args           []string // more of serve
	program        string   // "" for this test binary
	process        *servertest.Process
}

func newInstance(a *servertest.Installation, n int) *instance {
	return &instance{Installation: a, dir: filepath.Join(a.T.TempDir(), fmt.Sprint("instance", n)), addr: "127.0.0.1:0"}
}

// start runs it, where it ran before, and returns when it is ready.
func (i *instance) start() {
	i.T.Helper()
	_ = os.Remove(settings.RunningFile(i.dir)) // of one that was killed
	spawn := i.Spawn
	if i.program != "" {
		spawn = func(args ...string) *servertest.Process { return i.SpawnProgram(i.program, args...) }
	}
	i.process = spawn(append([]string{"serve", "--role", "command", "--database-url", i.Config.DatabaseURL, "--kafka-brokers", strings.Join(i.Kafka.Brokers, ","),
		"--data-dir", i.dir, "--http-addr", i.addr, "--partitions", fmt.Sprint(i.Config.Partitions), "--log-level", servertest.LogLevel()}, i.args...)...)
	i.Await(filepath.Base(i.dir)+" is ready", func() error {
		select {
		case <-i.process.Ended:
			i.T.Fatal("serve ended")
		default:
		}
		r, err := settings.ReadRunning(i.dir)
		if err != nil {
			return err
		}
		if i.url == "" { // the next one is there, too, and the load reads it
			i.url, i.addr = r.URL, strings.TrimPrefix(r.URL, "http://")
		}
		x, err := i.Client.Get(i.url + "/readyz")
		if err != nil {
			return err
		}
		defer x.Body.Close()
		if b, _ := io.ReadAll(x.Body); x.StatusCode != http.StatusOK || !bytes.Contains(b, []byte(`"status":"ready"`)) {
			return fmt.Errorf("%s", b)
		}
		return nil
	})
}

// serves returns when it serves so many shards, and nobody is about to.
func (i *instance) serves(n int) {
	i.T.Helper()
	i.Await(fmt.Sprint(filepath.Base(i.dir), " serves ", n, " shards"), func() error {
		req, err := http.NewRequestWithContext(i.T.Context(), http.MethodGet, i.url+"/v1/ops/shards", nil)
		if err != nil {
			return err
		}
		token, err := httpapi.MintToken(servertest.JWTSecret, servertest.Ops, time.Hour)
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := i.Client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var shards struct{ Items []shard.Status }
		if err := json.NewDecoder(resp.Body).Decode(&shards); err != nil {
			return err
		}
		states := map[string]int{}
		for _, s := range shards.Items {
			states[s.State]++
		}
		if states["serving"] != n || states["opening"] > 0 {
			return fmt.Errorf("%v", states)
		}
		return nil
	})
}

// terminate asks it to stop, and holds it to do so in time and with exit code 0.
func (i *instance) terminate() {
	i.T.Helper()
	if err := i.process.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
		i.T.Fatal(err)
	}
	select {
	case <-i.process.Ended:
	case <-time.After(20 * time.Second):
		i.T.Fatal("serve did not stop within 20 s")
	}
	if code := i.process.Cmd.ProcessState.ExitCode(); code != 0 {
		i.T.Fatalf("serve stopped with exit code %d", code)
	}
}

// load is commands that begin at a steady pace, spread over a fleet.
type load struct {
	*servertest.Installation
	fleet      []*instance
	restarting atomic.Pointer[instance] // that may refuse connections
	stop       chan struct{}
	paced      chan struct{} // closed when no more begin
	client     *http.Client
	commands   sync.WaitGroup
	underWay   atomic.Int64
	perSecond  int  // commands that begin in a second
	rollsBack  bool // an older build may answer 503 unknown_event until a newer one is back
	heldBack   int  // commands that did not begin when they were due

	mu       sync.Mutex
	issued   map[string][]*loadStep // by topic/id; orders by their reference
	longest  time.Duration          // from when a command was to begin until its acknowledgement
	slowest  string
	waits    []time.Duration
	repeated map[string]int // repeats by what came instead of an acknowledgement
}

// loadStep is one command.
type loadStep struct {
	eventType string
	done      chan struct{} // closed when it is acknowledged
	acked     bool
}

func beginLoad(a *servertest.Installation, fleet []*instance) *load {
	perSecond := rollingPerSecond
	if raceDetector {
		perSecond = rollingPerSecondRace
	}
	return beginLoadOf(a, fleet, perSecond, false)
}

func beginLoadOf(a *servertest.Installation, fleet []*instance, perSecond int, rollsBack bool) *load {
	transport := &http.Transport{MaxIdleConnsPerHost: 256}
	l := &load{Installation: a, fleet: fleet, stop: make(chan struct{}), paced: make(chan struct{}), issued: map[string][]*loadStep{}, repeated: map[string]int{}, perSecond: perSecond, rollsBack: rollsBack,
		client: &http.Client{Transport: transport, Timeout: 30 * time.Second}}
	a.T.Cleanup(func() {
		l.end()
		transport.CloseIdleConnections()
	})
	go l.pace()
	return l
}

// pace begins the commands. Of four one places an order; the others register a
// rider, verify an earlier one, and let a yet earlier one go online.
func (l *load) pace() {
	defer close(l.paced)
	interval := time.Second / time.Duration(l.perSecond)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	begun := time.Now()
	for n := 0; ; {
		for ; time.Duration(n)*interval <= time.Since(begun); n++ {
			if l.underWay.Load() > rollingAtOnce {
				l.heldBack++
				begun = begun.Add(interval)
				n--
				continue
			}
			l.issue(n, begun.Add(time.Duration(n)*interval))
		}
		select {
		case <-tick.C:
		case <-l.stop:
			return
		}
	}
}

func (l *load) issue(n int, due time.Time) {
	const apart = 50 // riders between two steps of one
	i := n / 4
	rider := func(i int) string { return fmt.Sprint("rolling", i) }
	switch n % 4 {
	case 0:
		body := servertest.Basket("r0")
		body["externalReference"] = fmt.Sprint("rolling", n)
		l.command(n, due, servertest.Customer(fmt.Sprint("c", n%7)), "POST /v1/orders", body, fmt.Sprint("orders/rolling", n), "ORDER_PLACED", http.StatusCreated)
	case 1:
		l.command(n, due, servertest.Ops, "PUT /v1/riders/"+rider(i), servertest.RiderName("x"), "riders/"+rider(i), "RIDER_REGISTERED", http.StatusCreated)
	case 2:
		if i -= apart; i >= 0 {
			l.command(n, due, servertest.Ops, "POST /v1/riders/"+rider(i)+"/verify", nil, "riders/"+rider(i), "RIDER_VERIFIED", http.StatusOK)
		}
	case 3:
		if i -= 2 * apart; i >= 0 {
			l.command(n, due, servertest.Rider(rider(i)), "POST /v1/riders/"+rider(i)+"/online", nil, "riders/"+rider(i), "RIDER_ONLINE", http.StatusOK)
		}
	}
}

// command sends one, when the one before on its aggregate is acknowledged, and
// repeats it until it is: at the next instance, with the same key.
func (l *load) command(n int, due time.Time, who domain.Actor, call string, body any, aggregate, eventType string, status int) {
	step := &loadStep{eventType: eventType, done: make(chan struct{})}
	l.mu.Lock()
	var before *loadStep
	if steps := l.issued[aggregate]; len(steps) > 0 {
		before = steps[len(steps)-1]
	}
	l.issued[aggregate] = append(l.issued[aggregate], step)
	l.mu.Unlock()
	l.underWay.Add(1)
	l.commands.Go(func() {
		defer l.underWay.Add(-1)
		defer close(step.done)
		if before != nil {
			<-before.done
		}
		again := time.NewTicker(20 * time.Millisecond)
		defer again.Stop()
		for try := 0; ; try++ {
			at := l.fleet[(n+try)%len(l.fleet)]
			stopping := l.restarting.Load() == at
			got, problem, err := l.send(at, who, call, body, fmt.Sprint("key", n))
			kind, pause := "", time.Duration(0)
			switch {
			case err == nil && got == status:
				l.acknowledged(step, time.Since(due), call)
				return
			case err == nil && got == http.StatusServiceUnavailable && !strings.Contains(problem, `"unknown_event"`):
				kind = "503"
			case err == nil && got == http.StatusServiceUnavailable && l.rollsBack:
				kind, pause = "unknown_event", 2*time.Second
			case err != nil && (stopping || l.restarting.Load() == at): // it may have begun to stop meanwhile
				kind = "no answer"
			default:
				l.T.Errorf("%s at %s: %d %s %v", call, filepath.Base(at.dir), got, problem, err)
				return
			}
			l.mu.Lock()
			l.repeated[kind]++
			l.mu.Unlock()
			if time.Since(due) > servertest.Patience {
				l.T.Errorf("%s is not acknowledged after %v: %d %s %v", call, time.Since(due), got, problem, err)
				return
			}
			<-again.C
			if pause > 0 {
				<-time.After(pause)
			}
		}
	})
}

func (l *load) acknowledged(step *loadStep, took time.Duration, call string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	step.acked = true
	l.waits = append(l.waits, took)
	if took > l.longest {
		l.longest, l.slowest = took, call
	}
}

func (l *load) send(at *instance, who domain.Actor, call string, body any, key string) (status int, problem string, err error) {
	method, path, _ := strings.Cut(call, " ")
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return 0, "", err
		}
		r = bytes.NewReader(b)
	}
	// Not bound to the test's end: what was sent is waited for.
	req, err := http.NewRequestWithContext(context.WithoutCancel(l.T.Context()), method, at.url+path, r)
	if err != nil {
		return 0, "", err
	}
	token, err := httpapi.MintToken(servertest.JWTSecret, who, time.Hour)
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Idempotency-Key", key)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := l.client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if resp.StatusCode < 300 {
		b = nil
	}
	return resp.StatusCode, string(b), err
}

// during lets the load go on for a while: what happens next is to happen in
// the middle of it.
func (l *load) during(d time.Duration) {
	select {
	case <-time.After(d):
	case <-l.T.Context().Done():
	}
}

// end returns when all that began is over.
func (l *load) end() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	<-l.paced
	l.commands.Wait()
}

// check holds the logs to what was acknowledged.
func (l *load) check() {
	l.T.Helper()
	if l.T.Failed() {
		l.T.FailNow()
	}
	slices.Sort(l.waits)
	l.T.Logf("%d commands acknowledged; p50 %v, p99 %v, the longest wait %v (%s); repeated: %v; held back: %d", len(l.waits),
		l.waits[len(l.waits)/2].Round(time.Microsecond), l.waits[len(l.waits)*99/100].Round(time.Microsecond), l.longest.Round(time.Millisecond), l.slowest, l.repeated, l.heldBack)
	l.Log.UpToDate()
	got := map[string][]string{} // by topic/id; orders by their reference
	keys := map[string]int{}
	for aggregate, events := range l.Log.All() {
		if strings.HasPrefix(aggregate, eventlog.Orders+"/") {
			aggregate = fmt.Sprint("orders/", servertest.Data(events[0], "externalReference"))
		}
		got[aggregate] = append(got[aggregate], servertest.Types(events)...)
		for _, e := range events {
			if e.Idempotency != "" {
				keys[e.Idempotency]++
			}
		}
	}
	wrong := 0
	for aggregate, steps := range l.issued {
		var want []string
		for _, s := range steps {
			want = append(want, s.eventType)
		}
		if !slices.Equal(got[aggregate], want) {
			if wrong++; wrong <= 10 {
				l.T.Errorf("%s has %v, acknowledged were %v", aggregate, got[aggregate], want)
			}
		}
	}
	for key, n := range keys {
		if n != 1 {
			l.T.Errorf("the key %s is in %d events", key, n)
		}
	}
	if len(keys) != len(l.waits) {
		l.T.Errorf("%d keys in the log, %d commands acknowledged", len(keys), len(l.waits))
	}
	l.T.Logf("%d void records", l.Log.Invalid())
}
