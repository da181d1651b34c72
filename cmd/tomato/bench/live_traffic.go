package bench

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"tomato/domain"
)

// trafficCallers is how many commands are under way at the same time, at most; queries are
// twice as many.
const trafficCallers = 64

// traffic is commands and queries that come to a server at fixed rates until it is
// stopped. Safe for concurrent use.
type traffic struct {
	url       string
	perSecond float64  // queries; there are two commands for five queries
	ops       string   // an operator's access token
	old       []string // ids of orders that are over

	mu       sync.Mutex // guards what follows
	fresh    answered   // of the last command
	queries  []timedQuery
	commands int
	failed   int   // queries
	first    error // of the failed queries
}

// answered is what a command was answered with.
type answered struct {
	order   string
	version int64
	token   string
}

// timedQuery is a query that was answered. It took so long from the time at which it was
// due.
type timedQuery struct {
	due  time.Time
	took time.Duration
}

// start lets the traffic come. stop ends it when all that was due is answered, and returns
// the first error of a command; a query that fails is counted and ends nothing.
func (t *traffic) start(ctx context.Context) (stop func() error) {
	var ended atomic.Pointer[time.Duration] // since the beginning; nil before the end
	begun := time.Now()
	over := func(perSecond float64) func(i int) bool {
		return func(i int) bool {
			end := ended.Load()
			return end != nil && float64(i) > perSecond*end.Seconds()
		}
	}
	commands, queries := newHTTPConns(t.url, trafficCallers), newHTTPConns(t.url, 2*trafficCallers)
	open := make([]answered, trafficCallers) // the order that each caller has placed and not cancelled
	var eg errgroup.Group
	eg.Go(func() error {
		_, err := openLoop(ctx, len(commands), t.perSecond*2/5, over(t.perSecond*2/5), func(_ context.Context, caller, _ int, _ time.Time) error {
			return t.command(commands[caller], caller, &open[caller])
		})
		return err
	})
	eg.Go(func() error {
		_, err := openLoop(ctx, len(queries), t.perSecond, over(t.perSecond), func(_ context.Context, caller, i int, due time.Time) error {
			t.query(queries[caller], i, due)
			return nil
		})
		return err
	})
	return func() error {
		end := time.Since(begun)
		ended.Store(&end)
		err := eg.Wait()
		closeAll(commands)
		closeAll(queries)
		return err
	}
}

// command places an order, or cancels the one that the caller has placed before.
func (t *traffic) command(conn *httpConn, caller int, open *answered) error {
	token, err := tokens{}.of(domain.Actor{Sub: fmt.Sprint("live-customer-", caller), Role: domain.Customer})
	if err != nil {
		return err
	}
	if open.order != "" {
		err = conn.do("POST", "/v1/orders/"+open.order+"/cancel", token, []byte(`{"reason":"measured"}`))
	} else {
		err = conn.do("POST", "/v1/orders", token, fmt.Appendf(nil, `{"restaurantId":"bench-restaurant-%d","items":[{"itemId":"dosa","quantity":2},{"itemId":"lassi","quantity":1}],`+
			`"deliverTo":{"location":{"type":"Point","coordinates":[77.6,12.97]},"address":"14 Church Street, Bengaluru"}}`, caller%liveRestaurants))
	}
	if err != nil {
		return err
	}
	is, err := orderIn(conn)
	if err != nil {
		return err
	}
	is.token = conn.header.Get("Consistency-Token")
	if *open = is; is.version > 1 {
		*open = answered{}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fresh = is
	t.commands++
	return nil
}

// orderIn returns the order in the answer of conn, and its version.
func orderIn(conn *httpConn) (answered, error) {
	var body struct {
		OrderID string
		Version int64
	}
	err := json.Unmarshal(conn.body.Bytes(), &body)
	return answered{order: body.OrderID, version: body.Version}, err
}

// query makes query i. Every second one is for the order of the last command, with the
// token of that command's answer, and must show what the command did. The others are for
// orders that are over: one order, its events, a customer's list or a restaurant's list.
func (t *traffic) query(conn *httpConn, i int, due time.Time) {
	t.mu.Lock()
	fresh := t.fresh
	t.mu.Unlock()
	ask := func() error {
		conn.consistencyToken = ""
		if i%2 == 0 && fresh.order != "" {
			conn.consistencyToken = fresh.token
			if err := conn.do("GET", "/v1/orders/"+fresh.order, t.ops, nil); err != nil {
				return err
			}
			is, err := orderIn(conn)
			if err == nil && is.version < fresh.version {
				err = fmt.Errorf("order %s is answered as of version %d after a command that made version %d", fresh.order, is.version, fresh.version)
			}
			return err
		}
		id := t.old[rand.IntN(len(t.old))]
		path := []string{
			"/v1/orders/" + id,
			"/v1/orders/" + id + "/events",
			fmt.Sprintf("/v1/orders?customerId=customer-%d&limit=20", rand.IntN(1000)),
			fmt.Sprintf("/v1/orders?restaurantId=bench-restaurant-%d&limit=20", rand.IntN(liveRestaurants)),
		}[i/2%4]
		return conn.do("GET", path, t.ops, nil)
	}
	err := ask()
	took := time.Since(due)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		t.failed++
		t.first = cmp.Or(t.first, err)
		return
	}
	t.queries = append(t.queries, timedQuery{due, took})
}

// between returns how long the queries took that were due in this time.
func (t *traffic) between(from, to time.Time) []time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	var took []time.Duration
	for _, q := range t.queries {
		if !q.due.Before(from) && q.due.Before(to) {
			took = append(took, q.took)
		}
	}
	return took
}

// worstBucket returns the largest of the p99 of the buckets around moments, in
// milliseconds. A bucket has the queries that were due in one twentieth of window, at the
// same distance from any of the moments: the time from window before to window after each
// moment is divided into 40 buckets, and those of all moments are taken together.
func (t *traffic) worstBucket(moments []time.Time, window time.Duration) float64 {
	var p99s []float64
	for k := -bucketsPerWindow; k < bucketsPerWindow; k++ {
		var took []time.Duration
		for _, m := range moments {
			from := m.Add(time.Duration(k) * window / bucketsPerWindow)
			took = append(took, t.between(from, from.Add(window/bucketsPerWindow))...)
		}
		p99s = append(p99s, latencies(took)["p99_ms"])
	}
	return slices.Max(p99s)
}

const bucketsPerWindow = 20
