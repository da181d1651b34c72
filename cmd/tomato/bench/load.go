package bench

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// closedLoop lets this number of callers call for the duration d. Each caller calls
// again as soon as it has its answer. closedLoop fails with the first error. It
// returns per_s, the number of calls per second, and the results of latencies.
func closedLoop(ctx context.Context, callers int, d time.Duration, call func(ctx context.Context, caller int) error) (map[string]float64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	took := make([][]time.Duration, callers)
	begin := make(chan struct{})
	var over atomic.Bool
	var all sync.WaitGroup
	for n := range callers {
		all.Go(func() {
			mine, done := context.WithCancel(ctx) // each caller has its own context, as a request has
			defer done()
			<-begin
			for !over.Load() {
				start := time.Now()
				if err := call(mine, n); err != nil {
					cancel(err)
					return
				}
				took[n] = append(took[n], time.Since(start))
			}
		})
	}
	start := time.Now()
	timer := time.AfterFunc(d, func() { over.Store(true) })
	defer timer.Stop()
	stop := context.AfterFunc(ctx, func() { over.Store(true) })
	defer stop()
	close(begin)
	all.Wait()
	elapsed := time.Since(start)
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	var flat []time.Duration
	for _, t := range took {
		flat = append(flat, t...)
	}
	m := latencies(flat)
	m["per_s"] = float64(len(flat)) / elapsed.Seconds()
	return m, nil
}

// openLoop makes perSecond calls per second with this number of callers, until over says
// so of the number of the next call. If all callers are busy when a call is due, it is
// made as soon as one is free. It returns how many calls it began, and the first error,
// which ends it.
func openLoop(ctx context.Context, callers int, perSecond float64, over func(i int) bool, call func(ctx context.Context, caller, i int, due time.Time) error) (int, error) {
	var mu sync.Mutex // guards next
	next := 0
	start := time.Now()
	eg, ctx := errgroup.WithContext(ctx)
	for n := range callers {
		eg.Go(func() error {
			for {
				mu.Lock()
				i := next
				end := over(i)
				if !end {
					next++
				}
				mu.Unlock()
				if end {
					return nil
				}
				due := start.Add(time.Duration(float64(i) / perSecond * float64(time.Second)))
				timer := time.NewTimer(time.Until(due))
				select {
				case <-timer.C:
				case <-ctx.Done():
					timer.Stop()
					return ctx.Err()
				}
				if err := call(ctx, n, i, due); err != nil {
					return err
				}
			}
		})
	}
	err := eg.Wait()
	return next, err
}

// latencies returns the percentiles p50_ms and p99_ms. It sorts took.
func latencies(took []time.Duration) map[string]float64 {
	if len(took) == 0 {
		return map[string]float64{"p50_ms": 0, "p99_ms": 0}
	}
	slices.Sort(took)
	ms := func(q float64) float64 {
		return float64(took[min(len(took)-1, int(q*float64(len(took))))]) / float64(time.Millisecond)
	}
	return map[string]float64{"p50_ms": ms(0.5), "p99_ms": ms(0.99)}
}

// httpConn is one HTTP connection that is kept alive and has one request at a time. It
// needs much less of the processor than the client of net/http, which would take the
// processor from the server on the same machine. Not for concurrent use.
type httpConn struct {
	addr string
	conn net.Conn
	used time.Time
	key  string // X-Internal-Key; "" means none

	idempotencyKey   string // "" means none
	consistencyToken string // "" means none
	status           int    // of the last answer; 0 if there was none

	r      *bufio.Reader
	out    []byte
	header http.Header // of the last answer
	body   bytes.Buffer
}

// connIdle is how long a connection is kept between two requests. After that it is
// replaced, because the server closes idle connections.
const connIdle = time.Minute

func newHTTPConn(url string) *httpConn {
	return &httpConn{addr: strings.TrimPrefix(url, "http://"), r: bufio.NewReaderSize(nil, 4<<10)}
}

func newHTTPConns(url string, n int) []*httpConn {
	conns := make([]*httpConn, n)
	for i := range conns {
		conns[i] = newHTTPConn(url)
	}
	return conns
}

func closeAll(conns []*httpConn) {
	for _, c := range conns {
		c.close()
	}
}

func (c *httpConn) close() {
	if c.conn != nil {
		_ = c.conn.Close()
	}
}

// dial opens a connection, unless there is one that was used recently. It is called
// just before a request, because the server closes a connection soon if no first
// request comes.
func (c *httpConn) dial() (err error) {
	if c.conn != nil && time.Since(c.used) < connIdle {
		return nil
	}
	c.close()
	if c.conn, err = net.DialTimeout("tcp", c.addr, 10*time.Second); err != nil {
		c.conn = nil
		return err
	}
	c.r.Reset(c.conn)
	return nil
}

// do sends a request and reads the answer into header and body. Any status but 2xx is
// an error.
func (c *httpConn) do(method, path, token string, body []byte) error {
	c.status = 0
	if err := c.dial(); err != nil {
		return err
	}
	c.used = time.Now()
	c.out = fmt.Appendf(c.out[:0], "%s %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n", method, path, c.addr, token, len(body))
	if c.key != "" {
		c.out = fmt.Appendf(c.out, "X-Internal-Key: %s\r\n", c.key)
	}
	if c.idempotencyKey != "" {
		c.out = fmt.Appendf(c.out, "Idempotency-Key: %s\r\n", c.idempotencyKey)
	}
	if c.consistencyToken != "" {
		c.out = fmt.Appendf(c.out, "Consistency-Token: %s\r\n", c.consistencyToken)
	}
	if len(body) > 0 {
		c.out = append(c.out, "Content-Type: application/json\r\n"...)
	}
	c.out = append(append(c.out, "\r\n"...), body...)
	if err := c.conn.SetDeadline(c.used.Add(30 * time.Second)); err != nil {
		return err
	}
	if _, err := c.conn.Write(c.out); err != nil {
		return err
	}
	res, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	c.header, c.status = res.Header, res.StatusCode
	c.body.Reset()
	if _, err = c.body.ReadFrom(res.Body); err != nil {
		return err
	}
	if res.StatusCode < 200 || res.StatusCode > 299 {
		return fmt.Errorf("%s %s: %s: %s", method, path, res.Status, &c.body)
	}
	return nil
}
