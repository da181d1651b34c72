package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"tomato/cmd/tomato/server"
	"tomato/domain"
	"tomato/domain/order"
	"tomato/eventlog"
	"tomato/feedclient"
	"tomato/httpapi"
	"tomato/projections"
)

// The town of orders-ready. Its restaurants are so far apart that each has its own
// riders within reach. One of these riders is connected to the feed.
const (
	townRestaurants   = 200
	townRidersEach    = 10
	townOrders        = 1000
	readyRequests     = 32 // requests under way at the same time
	readyOrdersPerS   = 50
	readyReceiptLimit = 2 * time.Minute
)

// ordersReady measures the time from the request that says that the food is ready to
// the offer on a rider's connection. The whole path is included: HTTP, shard, Kafka,
// dispatch, PostGIS, Kafka, feed. The orders are prepared before. First all of them
// become ready in a burst, with 32 requests under way. After that 50 orders become
// ready per second.
func (b *run) ordersReady(ctx context.Context) error {
	c, err := b.serveConfig(server.RoleCommand, server.RoleQuery, server.RoleFeed, server.RoleProject, server.RoleReact)
	if err != nil {
		return err
	}
	s, err := b.serve(ctx, c, server.Options{})
	if err != nil {
		return err
	}
	orders := b.Count
	if orders == 0 {
		orders = townOrders
	}
	b.tell("%d restaurants, %d riders", townRestaurants, townRestaurants*townRidersEach)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(setupConns)
	for n := range townRestaurants {
		g.Go(func() error { return kitchen(gctx, s, townRestaurant(n), townPlace(n)) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := registerRiders(ctx, s.URL(), townRestaurants); err != nil {
		return err
	}
	offers := &offers{}
	stop, err := offers.connect(ctx, s.URL())
	if err != nil {
		return err
	}
	defer stop()
	kitchens := make([]string, townRestaurants)
	for n := range kitchens {
		id := townRestaurant(n)
		if kitchens[n], err = httpapi.MintToken(benchSecret, domain.Actor{Sub: id + "-staff", Role: domain.Restaurant, RestaurantID: id}, time.Hour); err != nil {
			return err
		}
	}
	conns := newHTTPConns(s.URL(), readyRequests)
	defer closeAll(conns)

	t := &readyTown{b: b, s: s, offers: offers, kitchens: kitchens, conns: conns}
	_, burst, err := b.alternating(ctx, "burst", nil, func(ctx context.Context) (map[string]float64, error) { return t.burst(ctx, orders) })
	if err != nil {
		return err
	}
	_, steady, err := b.alternating(ctx, fmt.Sprint(readyOrdersPerS, " orders/s"), nil, func(ctx context.Context) (map[string]float64, error) {
		return t.steady(ctx, max(1, int(readyOrdersPerS*b.Duration.Seconds()*2)))
	})
	if err != nil {
		return err
	}
	b.add("http_phase_ms", "ms", burst["http_ms"], 0)
	b.add("last_offer_ms", "ms", burst["last_ms"], 0)
	b.add("sustained_orders_per_s", "orders/s", burst["per_s"], 0)
	b.add("e2e_p50_ms", "ms", steady["p50_ms"], 0)
	b.add("e2e_p99_ms", "ms", steady["p99_ms"], 0)
	b.add("e2e_http_p50_ms", "ms", steady["http_p50_ms"], 0)
	return nil
}

// offers notes when the riders' connections receive the first offer of each expected
// order. Safe for concurrent use.
type offers struct {
	mu       sync.Mutex
	expected map[string]int // the orders that were not offered yet, by id, with their index in at
	at       []time.Time    // when each order was first offered
	all      chan struct{}  // closed when all orders were offered, or when a connection failed
	err      error          // of a connection
}

// connect connects one rider of each restaurant to the feed. stop closes the
// connections.
func (o *offers) connect(ctx context.Context, url string) (stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	stop = func() { cancel(); all.Wait() }
	for n := range townRestaurants {
		token, err := httpapi.MintToken(benchSecret, domain.Actor{Sub: townRider(n, n%townRidersEach), Role: domain.Rider}, time.Hour)
		if err != nil {
			stop()
			return nil, err
		}
		conn, err := dialFeed(ctx, url, token)
		if err != nil {
			stop()
			return nil, err
		}
		all.Go(func() {
			defer conn.Close()
			for {
				m, err := conn.Read(ctx)
				at := time.Now()
				if err != nil {
					o.fail(ctx, err)
					return
				}
				if m.Event != feedclient.OrderAvailable {
					continue
				}
				data, err := m.Data()
				if err != nil {
					o.fail(ctx, err)
					return
				}
				o.take(data.(*feedclient.Offer).OrderID, at)
			}
		})
	}
	return stop, nil
}

// dialFeed opens a connection that is not opened again: a bench fails if one breaks.
func dialFeed(ctx context.Context, url, token string) (*feedclient.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	return feedclient.Dial(ctx, url+"/v1/feed", &feedclient.DialOptions{Token: token})
}

func (o *offers) fail(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil && len(o.expected) > 0 {
		close(o.all)
	}
	o.err = errors.Join(o.err, err)
}

// take notes that an order was offered at this time.
func (o *offers) take(orderID string, at time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	i, ok := o.expected[orderID]
	if !ok || o.err != nil {
		return
	}
	o.at[i] = at
	if delete(o.expected, orderID); len(o.expected) == 0 {
		close(o.all)
	}
}

// expect begins to wait for the first offers of these orders.
func (o *offers) expect(orders []*order.State) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.expected, o.at, o.all = make(map[string]int, len(orders)), make([]time.Time, len(orders)), make(chan struct{})
	for i, s := range orders {
		o.expected[s.ID] = i
	}
}

// received waits until all expected orders were offered, and returns when each was
// offered first, in the order of the call of expect.
func (o *offers) received(ctx context.Context) ([]time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, readyReceiptLimit)
	defer cancel()
	select {
	case <-o.all:
	case <-ctx.Done():
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.expected) > 0 && o.err == nil {
		return nil, fmt.Errorf("%d of %d orders were not offered: %w", len(o.expected), len(o.at), ctx.Err())
	}
	return o.at, o.err
}

type readyTown struct {
	b        *run
	s        *server.Server
	offers   *offers
	kitchens []string // tokens
	conns    []*httpConn
}

// prepare makes n orders that wait to become ready, and waits until the read model of
// orders has them.
func (t *readyTown) prepare(ctx context.Context, n int) ([]*order.State, error) {
	orders, token, err := fill(ctx, t.s, n, stepPrepared, townRestaurant)
	if err != nil {
		return nil, err
	}
	rctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return orders, until(rctx, func() (bool, error) {
		err := t.s.ReadModels().Read(rctx, token, []string{projections.Orders}, func([]string) error { return nil })
		if errors.Is(err, eventlog.ErrBehind) {
			return false, nil
		}
		return err == nil, err
	})
}

// ready tells the server that order n is ready.
func (t *readyTown) ready(conn *httpConn, n int, o *order.State) error {
	return conn.do("POST", "/v1/orders/"+o.ID+"/ready", t.kitchens[n%townRestaurants], nil)
}

// burst makes n orders ready as fast as readyRequests connections allow. It returns
// http_ms, after which all requests were answered; last_ms, after which all orders
// were offered; and per_s, the number of offered orders per second.
func (t *readyTown) burst(ctx context.Context, n int) (map[string]float64, error) {
	orders, err := t.prepare(ctx, n)
	if err != nil {
		return nil, err
	}
	if err := t.b.profile(); err != nil {
		return nil, err
	}
	t.offers.expect(orders)
	var next atomic.Int64
	var g errgroup.Group
	start := time.Now()
	for _, conn := range t.conns {
		g.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(orders) {
					return nil
				}
				if err := t.ready(conn, i, orders[i]); err != nil {
					return err
				}
			}
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	answered := time.Since(start)
	received, err := t.offers.received(ctx)
	if err != nil {
		return nil, err
	}
	last := start
	for _, at := range received {
		if at.After(last) {
			last = at
		}
	}
	return map[string]float64{"http_ms": answered.Seconds() * 1000, "last_ms": last.Sub(start).Seconds() * 1000,
		"per_s": float64(n) / last.Sub(start).Seconds()}, nil
}

// steady makes n orders ready at a fixed rate. It does not wait for earlier requests.
// The time of each order begins at the moment at which its request was due, even if
// there was no free connection then.
func (t *readyTown) steady(ctx context.Context, n int) (map[string]float64, error) {
	orders, err := t.prepare(ctx, n)
	if err != nil {
		return nil, err
	}
	t.offers.expect(orders)
	free := make(chan *httpConn, len(t.conns))
	for _, c := range t.conns {
		free <- c
	}
	due := make([]time.Time, n)
	answered := make([]time.Duration, n)
	g, gctx := errgroup.WithContext(ctx)
	tick := time.NewTicker(time.Second / readyOrdersPerS)
	defer tick.Stop()
	for i, o := range orders {
		select {
		case <-tick.C:
		case <-gctx.Done():
			return nil, g.Wait()
		}
		due[i] = time.Now()
		g.Go(func() error {
			conn := <-free
			defer func() { free <- conn }()
			err := t.ready(conn, i, o)
			answered[i] = time.Since(due[i])
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	received, err := t.offers.received(ctx)
	if err != nil {
		return nil, err
	}
	took := make([]time.Duration, n)
	for i, at := range received {
		took[i] = at.Sub(due[i])
	}
	m := latencies(took)
	m["http_p50_ms"] = latencies(answered)["p50_ms"]
	return m, nil
}
