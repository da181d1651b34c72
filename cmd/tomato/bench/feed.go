package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sync/errgroup"

	"tomato/cmd/tomato/server"
	"tomato/domain"
	"tomato/feedclient"
	"tomato/httpapi"
)

const (
	feedConnections = 5000
	feedWindow      = 16      // messages under way at most: not all connections have received them
	feedPace        = 4       // messages per second while latencies are measured
	maxMessages     = 1 << 20 // of one audience
	feedEvent       = "bench:tick"
	// feedNumberFrom is added to message numbers, so that all of them have the same
	// number of digits.
	feedNumberFrom = 100_000_000
)

// feed measures one room with many connections. The server runs in a process of its
// own. The limit sends the same bytes to the same number of connections with
// coder/websocket, in one plain loop per processor.
func (b *run) feed(ctx context.Context) error {
	if b.Count == 0 {
		b.Count = feedConnections
	}
	ch, err := b.startChild(ctx, server.RoleCommand, server.RoleQuery, server.RoleFeed, server.RoleProject)
	if err != nil {
		return err
	}
	token, err := httpapi.MintToken(benchSecret, domain.Actor{Sub: "staff", Role: domain.Restaurant, RestaurantID: benchRestaurant}, 24*time.Hour)
	if err != nil {
		return err
	}
	b.tell("%d connections", b.Count)
	before := ch.residentKiB()
	members, stop, err := gather(ctx, b.Count, func(ctx context.Context) (*feedclient.Conn, error) { return dialFeed(ctx, ch.url, token) })
	if err != nil {
		return err
	}
	defer stop()
	after := ch.residentKiB()

	emitters := newHTTPConns(ch.url, feedWindow)
	defer closeAll(emitters)
	idle := make(chan *httpConn, len(emitters))
	for _, c := range emitters {
		idle <- c
	}
	emit := func(n int64) error {
		c := <-idle
		defer func() { idle <- c }()
		c.key = benchSecret
		return c.do("POST", "/api/v1/internal/emit", "", fmt.Appendf(nil, `{"event":"%s","room":"restaurant:%s","payload":{"n":%d,"orderId":"0199f2a4-7c1e-7d55-a5a8-3c1f6b0d2e11"}}`,
			feedEvent, benchRestaurant, n+feedNumberFrom))
	}
	if err := members.send(ctx, emit); err != nil {
		return err
	}

	bare, stopBare, err := startBareFeed(ctx, b.Count, members.sample)
	if err != nil {
		return err
	}
	defer stopBare()
	if err := b.profile(); err != nil {
		return err
	}
	limit, value, err := b.alternating(ctx, "fan-out",
		func(ctx context.Context) (map[string]float64, error) {
			return bare.members.fanOut(ctx, b.Duration, 1, bare.send)
		},
		func(ctx context.Context) (map[string]float64, error) {
			return members.fanOut(ctx, b.Duration, feedWindow, emit)
		})
	if err != nil {
		return err
	}
	limitPace, pace, err := b.alternating(ctx, fmt.Sprint(feedPace, " messages/s"),
		func(ctx context.Context) (map[string]float64, error) {
			return bare.members.pace(ctx, b.Duration, bare.send)
		},
		func(ctx context.Context) (map[string]float64, error) { return members.pace(ctx, b.Duration, emit) })
	if err != nil {
		return err
	}
	b.add("connections", "connections", float64(b.Count), 0)
	if before > 0 && after > 0 {
		b.add("kib_per_connection", "KiB", (after-before)/float64(b.Count), 0)
	}
	b.add("fanout_per_s", "messages/s", value["per_s"], limit["per_s"])
	b.add("e2e_p50_ms", "ms", pace["p50_ms"], limitPace["p50_ms"])
	b.add("e2e_p99_ms", "ms", pace["p99_ms"], limitPace["p99_ms"])
	return nil
}

// audience is a set of connections that all get the same messages. The messages are
// numbered from 1.
type audience struct {
	size   int    // number of connections
	last   int64  // the number of the last message; number must not be called concurrently
	sample []byte // the text of the first message

	received []atomic.Int32  // by message: how many connections have received it
	complete []chan struct{} // by message: closed when all connections have received it
	failed   chan error      // has the error of a connection that broke

	mu   sync.Mutex
	took []time.Duration                     // the latencies of the messages in from; guarded by mu
	from atomic.Pointer[map[int64]time.Time] // when the messages whose latency is measured were sent
}

// gather opens n connections and reads from them until ctx ends or stop is called.
func gather(ctx context.Context, n int, dial func(context.Context) (*feedclient.Conn, error)) (_ *audience, stop func(), err error) {
	a := &audience{size: n, failed: make(chan error, 1), received: make([]atomic.Int32, maxMessages), complete: make([]chan struct{}, maxMessages)}
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	stop = func() { cancel(); all.Wait() }
	var first sync.Once
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(32)
	for range n {
		g.Go(func() error {
			conn, err := dial(gctx)
			if err != nil {
				return err
			}
			all.Go(func() {
				defer conn.Close()
				if err := a.read(ctx, conn, &first); ctx.Err() == nil {
					select {
					case a.failed <- err:
					default:
					}
				}
			})
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		stop()
		return nil, nil, err
	}
	return a, stop, nil
}

var numberField = []byte(`"n":`)

// number returns where the message's number begins and ends in the text.
func number(text []byte) (at, end int) {
	at = bytes.Index(text, numberField) + len(numberField)
	for end = at; end < len(text) && text[end] >= '0' && text[end] <= '9'; end++ {
	}
	return at, end
}

// read reads until the connection or ctx ends. It always returns an error.
func (a *audience) read(ctx context.Context, conn *feedclient.Conn, first *sync.Once) error {
	for {
		text, err := conn.ReadText(ctx)
		if err != nil {
			return err
		}
		now := time.Now()
		if !bytes.Contains(text, []byte(feedEvent)) {
			continue
		}
		at, end := number(text)
		n, err := strconv.ParseInt(string(text[at:end]), 10, 64)
		if n -= feedNumberFrom; err != nil || n < 1 || n >= maxMessages {
			return fmt.Errorf("an unknown message: %s", text)
		}
		first.Do(func() { a.sample = bytes.Clone(text) })
		if from := a.from.Load(); from != nil {
			if start, ok := (*from)[n]; ok {
				a.mu.Lock()
				a.took = append(a.took, now.Sub(start))
				a.mu.Unlock()
			}
		}
		if int(a.received[n].Add(1)) == a.size {
			close(a.complete[n])
		}
	}
}

// send sends one message and waits until all connections have received it.
func (a *audience) send(ctx context.Context, emit func(int64) error) error {
	n, err := a.number()
	if err != nil {
		return err
	}
	if err := emit(n); err != nil {
		return err
	}
	return a.wait(ctx, n)
}

// number returns the number of a new message. It must not be called concurrently.
func (a *audience) number() (int64, error) {
	if a.last+1 >= maxMessages {
		return 0, errors.New("too many messages: take a shorter --duration")
	}
	a.last++
	a.complete[a.last] = make(chan struct{})
	a.received[a.last].Store(0) // after this, a reader that adds to received sees the channel
	return a.last, nil
}

func (a *audience) wait(ctx context.Context, n int64) error {
	limit := time.NewTimer(time.Minute)
	defer limit.Stop()
	select {
	case <-a.complete[n]:
		return nil
	case err := <-a.failed:
		return fmt.Errorf("a connection broke: %w", err)
	case <-limit.C:
		return fmt.Errorf("after a minute %d of %d connections have message %d", a.received[n].Load(), a.size, n)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// fanOut sends messages for the duration d. At most window messages are under way at
// the same time. It returns per_s, the number of receipts per second.
func (a *audience) fanOut(ctx context.Context, d time.Duration, window int, emit func(int64) error) (map[string]float64, error) {
	var mu sync.Mutex // for number
	var sent atomic.Int64
	start := time.Now()
	var g errgroup.Group
	for range window {
		g.Go(func() error {
			for time.Since(start) < d {
				mu.Lock()
				n, err := a.number()
				mu.Unlock()
				if err == nil {
					err = emit(n)
				}
				if err == nil {
					err = a.wait(ctx, n)
				}
				if err != nil {
					return err
				}
				sent.Add(1)
			}
			return nil
		})
	}
	err := g.Wait()
	return map[string]float64{"per_s": float64(sent.Load()) * float64(a.size) / time.Since(start).Seconds()}, err
}

// pace sends messages at a fixed pace. It measures the time from sending a message to
// its receipt by each connection.
func (a *audience) pace(ctx context.Context, d time.Duration, emit func(int64) error) (map[string]float64, error) {
	count := max(2, int(feedPace*d.Seconds()))
	tick := time.NewTicker(time.Second / feedPace)
	defer tick.Stop()
	a.mu.Lock()
	a.took = nil
	a.mu.Unlock()
	for range count {
		n, err := a.number()
		if err != nil {
			return nil, err
		}
		a.from.Store(&map[int64]time.Time{n: time.Now()})
		if err := emit(n); err != nil {
			return nil, err
		}
		if err := a.wait(ctx, n); err != nil {
			return nil, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	a.from.Store(nil)
	a.mu.Lock()
	defer a.mu.Unlock()
	return latencies(a.took), nil
}

// bareFeed is a websocket server that sends every message to all its connections.
type bareFeed struct {
	members *audience
	text    []byte // a message of the real feed
	at, end int    // where its number begins and ends

	mu    sync.Mutex
	conns []*websocket.Conn
}

func startBareFeed(ctx context.Context, n int, sample []byte) (*bareFeed, func(), error) {
	f := &bareFeed{text: bytes.Clone(sample)}
	f.at, f.end = number(f.text)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	httpServer := httpapi.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return // the dialer gets an error, too
		}
		defer conn.CloseNow()
		f.mu.Lock()
		f.conns = append(f.conns, conn)
		f.mu.Unlock()
		<-conn.CloseRead(ctx).Done()
	}))
	var all sync.WaitGroup
	all.Go(func() { _ = httpServer.Serve(listener) }) // returns when the server is closed
	stopServer := func() { cancel(); _ = httpServer.Close(); all.Wait() }
	members, stopMembers, err := gather(ctx, n, func(ctx context.Context) (*feedclient.Conn, error) {
		return dialFeed(ctx, "http://"+listener.Addr().String(), "")
	})
	if err != nil {
		stopServer()
		return nil, nil, err
	}
	stop := func() { stopMembers(); stopServer() }
	err = until(ctx, func() (bool, error) { // a connection reaches f.conns a moment after its dial has returned
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.conns) == n, nil
	})
	if err != nil {
		stop()
		return nil, nil, err
	}
	f.members = members
	return f, stop, nil
}

// send writes the message to all connections, in one loop per processor.
func (f *bareFeed) send(n int64) error {
	strconv.AppendInt(f.text[f.at:f.at], n+feedNumberFrom, 10) // overwrites the old number, which has the same length
	f.mu.Lock()
	conns := f.conns
	f.mu.Unlock()
	loops := runtime.NumCPU()
	var g errgroup.Group
	for i := range loops {
		g.Go(func() error {
			for j := i; j < len(conns); j += loops {
				if err := conns[j].Write(context.Background(), websocket.MessageText, f.text); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}
