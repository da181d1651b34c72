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
	"tomato/eventlog"
)

const (
	townDefaultOrders  = 1000
	maxTownConcurrency = townRestaurants / 2
	// townOrderLimit is how long an order may take from its placing to its delivery.
	townOrderLimit = 30 * time.Second
	// townPhaseLimit is how long orders are begun in one phase.
	townPhaseLimit = 5 * time.Minute
	// townGiveUp is the number of orders that were not delivered after which no more
	// are begun.
	townGiveUp = 20
	// townPace is the part of the measured rate at which latencies are taken.
	townPace = 0.7
)

// town is what the bench town plays its orders in. Twice as many blocks as orders under
// way let each block rest between two orders.
type town struct {
	b       *run
	url     string
	pid     int // of the server
	blocks  []*townBlock
	free    chan *townBlock
	repeats atomic.Int64  // commands that were sent again
	limit   time.Duration // how long an order may take; townOrderLimit
	stop    context.CancelCauseFunc
}

// fail ends the bench with an error.
func (t *town) fail(err error) { t.stop(err) }

// town measures complete orders against a server in a process of its own: an order is
// placed, paid through the simulated gateway, accepted, prepared, ready, offered to the
// riders nearby, accepted by the first of them, picked up and delivered. All parties
// follow their feeds. In the first phase, a fixed number of orders is under way. It
// gives the rate, the processor time, and what the orders leave in the logs for ever.
// In the second phase, orders are begun at townPace of that rate, and the latencies are
// taken. The limit of the rate is a bare producer with as many callers that appends as
// many records of the same bytes for each order.
func (b *run) town(ctx context.Context) error {
	orders := b.Count
	if orders == 0 {
		orders = townDefaultOrders
	}
	ch, err := b.startChildWith(ctx, []string{"--position-max-age", "12h"},
		server.RoleCommand, server.RoleQuery, server.RoleFeed, server.RoleProject, server.RoleReact)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	t := &town{b: b, url: ch.url, pid: ch.cmd.Process.Pid, stop: stop, limit: townOrderLimit}
	var readers sync.WaitGroup
	defer readers.Wait()
	defer stop(nil) // before the wait
	if err := t.build(ctx, 2*b.Concurrency, &readers); err != nil {
		return err
	}
	b.tell("%d orders warm it up", max(b.Concurrency, orders/4))
	if _, err := t.closed(ctx, max(b.Concurrency, orders/4)); err != nil {
		return err
	}
	if err := b.profile(); err != nil {
		return err
	}

	before, err := t.mark(ctx)
	if err != nil {
		return err
	}
	b.tell("%d orders, %d at a time", orders, b.Concurrency)
	busy, err := t.closed(ctx, orders)
	if err != nil {
		return err
	}
	after, err := t.mark(ctx)
	if err != nil {
		return err
	}
	types, records, err := t.kept(ctx, before, after)
	if err != nil {
		return err
	}
	delivered := float64(busy.delivered)
	rate := delivered / busy.elapsed.Seconds()
	limit, err := t.bareLimit(ctx)
	if err != nil {
		return err
	}
	paced := max(10, orders/2)
	b.tell("%d orders, %.1f a second", paced, townPace*rate)
	steady, err := t.paced(ctx, paced, townPace*rate)
	if err != nil {
		return err
	}
	b.tell("%d commands were sent again", t.repeats.Load())

	perOrder := float64(records) / delivered
	b.add("delivered_orders_per_s", "orders/s", rate, limit.perSecond/perOrder)
	b.add("orders", "orders", delivered, 0)
	b.add("orders_at_a_time", "orders", float64(b.Concurrency), 0)
	for _, c := range []struct {
		name          string
		before, after float64
		limit         float64
	}{
		{"tomato_cpu_ms_per_order", before.tomato, after.tomato, 0},
		{"broker_cpu_ms_per_order", before.broker, after.broker, limit.brokerMS * perOrder},
		{"postgres_cpu_ms_per_order", before.postgres, after.postgres, 0},
		{"clients_cpu_ms_per_order", before.clients, after.clients, 0},
	} {
		if c.after > c.before {
			b.add(c.name, "ms/order", (c.after-c.before)/delivered, c.limit)
		}
	}
	t.addKept(types, before, after, delivered)
	b.add("paced_orders_per_s", "orders/s", townPace*rate, 0)
	for _, step := range townSteps {
		m := latencies(steady.took[step])
		var of map[string]float64
		if step == "place" || step == "accept" || step == "pick_up" || step == "deliver" { // one append each
			of = limit.latencies
		}
		b.add(step+"_p50_ms", "ms", m["p50_ms"], of["p50_ms"])
		b.add(step+"_p99_ms", "ms", m["p99_ms"], of["p99_ms"])
	}
	return nil
}

// build registers everybody and connects the feeds.
func (t *town) build(ctx context.Context, blocks int, readers *sync.WaitGroup) error {
	t.b.tell("%d restaurants, %d riders, %d feeds", blocks, blocks*townRidersEach, blocks*(townRidersEach+2))
	t.free = make(chan *townBlock, blocks)
	for n := range blocks {
		k, err := newTownBlock(t, n)
		if err != nil {
			return err
		}
		t.blocks = append(t.blocks, k)
		t.free <- k
	}
	g, _ := errgroup.WithContext(ctx)
	g.SetLimit(setupConns)
	for _, k := range t.blocks {
		g.Go(k.openRestaurant)
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := registerRiders(ctx, t.url, blocks); err != nil {
		return err
	}
	g = &errgroup.Group{} // the connections outlive it
	g.SetLimit(32)
	for _, k := range t.blocks {
		g.Go(func() error { return k.connect(ctx, readers) })
	}
	return g.Wait()
}

// townPhase is what came of the orders of one phase.
type townPhase struct {
	elapsed   time.Duration // until the last delivery
	delivered int
	took      map[string][]time.Duration // by step

	mu     sync.Mutex
	failed []error // of orders that were not delivered
}

// play plays one order in a block, and enters what came of it.
func (p *townPhase) play(ctx context.Context, k *townBlock, due time.Time) {
	octx, cancel := context.WithTimeoutCause(ctx, k.town.limit, fmt.Errorf("not delivered within %v", k.town.limit))
	defer cancel()
	took, err := k.play(octx, due)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.failed = append(p.failed, err)
		return
	}
	p.delivered++
	for step, d := range took {
		p.took[step] = append(p.took[step], d)
	}
}

// goOn reports whether another order may be begun.
func (p *townPhase) goOn(ctx context.Context, begun time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return ctx.Err() == nil && len(p.failed) < townGiveUp && time.Since(begun) < townPhaseLimit
}

// result returns the phase, or an error if not all of its orders were delivered.
func (p *townPhase) result(ctx context.Context, begun time.Time) (*townPhase, error) {
	p.elapsed = time.Since(begun)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if n := len(p.failed); n > 0 {
		return nil, fmt.Errorf("%d of %d orders were not delivered, the first one: %w", n, n+p.delivered, p.failed[0])
	}
	if p.delivered == 0 {
		return nil, errors.New("no order was begun")
	}
	return p, nil
}

// closed plays so many orders, as many at a time as the bench has to.
func (t *town) closed(ctx context.Context, orders int) (*townPhase, error) {
	p := &townPhase{took: map[string][]time.Duration{}}
	var next atomic.Int64
	var callers sync.WaitGroup
	begun := time.Now()
	for range t.b.Concurrency {
		callers.Go(func() {
			for next.Add(1) <= int64(orders) && p.goOn(ctx, begun) {
				k := <-t.free
				p.play(ctx, k, time.Now())
				t.free <- k
			}
		})
	}
	callers.Wait()
	return p.result(ctx, begun)
}

// paced begins so many orders at a fixed rate, whatever became of those before. Each
// counts from the time at which it was due.
func (t *town) paced(ctx context.Context, orders int, perSecond float64) (*townPhase, error) {
	p := &townPhase{took: map[string][]time.Duration{}}
	var callers sync.WaitGroup
	tick := time.NewTicker(time.Duration(float64(time.Second) / perSecond))
	defer tick.Stop()
	begun := time.Now()
	for range orders {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		if !p.goOn(ctx, begun) {
			break
		}
		due := time.Now()
		callers.Go(func() {
			select {
			case k := <-t.free:
				p.play(ctx, k, due)
				t.free <- k
			case <-ctx.Done():
			}
		})
	}
	callers.Wait()
	return p.result(ctx, begun)
}

// townLimit is what bare appends of the same records reach.
type townLimit struct {
	perSecond float64            // records, with as many callers as orders are under way
	brokerMS  float64            // processor time of the broker for a record; 0: not known
	latencies map[string]float64 // of a caller that is alone
}

func (t *town) bareLimit(ctx context.Context) (l townLimit, err error) {
	bare, err := t.b.newBare(ctx, eventlog.Orders, eventlog.Payments, eventlog.Riders)
	if err != nil {
		return l, err
	}
	t.b.tell("the limit: bare appends, %d at a time", t.b.Concurrency)
	err = asLimit(ctx, func(ctx context.Context) error {
		if _, err := bare.loop(ctx, t.b.Concurrency, t.b.Duration); err != nil { // a warm-up
			return err
		}
		start, before := time.Now(), cpuMS(t.b.brokerPID)
		all, err := bare.loop(ctx, t.b.Concurrency, 2*t.b.Duration)
		if err != nil {
			return err
		}
		l.perSecond = all["per_s"]
		l.brokerMS = (cpuMS(t.b.brokerPID) - before) / (l.perSecond * time.Since(start).Seconds())
		l.latencies, err = bare.loop(ctx, 1, t.b.Duration)
		return err
	})
	return l, errors.Join(err, bare.close(ctx))
}
