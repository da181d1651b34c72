package policies

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"tomato/commandside/shard"
	"tomato/domain"
	"tomato/domain/nearby"
	"tomato/domain/order"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
)

// RiderSearch is what dispatch asks of the riders and orders read models.
type RiderSearch interface {
	// Nearest answers all searches in one round trip: for each, free, verified
	// riders with a fresh position within its radius, nearest first. It waits
	// at most wait for the riders read model to pass after, and then answers
	// from what is there; complete reports whether the read model had passed it.
	Nearest(ctx context.Context, searches []nearby.Search, maxAge time.Duration, after eventlog.Token, wait time.Duration) (found [][]nearby.Rider, complete bool, err error)
	// Passed waits until the riders read model has passed after. It fails with
	// eventlog.ErrBehind where that takes more than seconds.
	Passed(ctx context.Context, after eventlog.Token) error
	// Waiting returns, for riders that became eligible, the orders that wait
	// for a rider (not exhausted) within whose radius they are: that of the
	// running wave, or of the next one where none runs (radii[wave-1], the last
	// one for later waves). It waits at most wait for the orders read model to
	// pass after, and then answers from what is there.
	Waiting(ctx context.Context, riderIDs []string, radii []int, maxAge time.Duration, after eventlog.Token, wait time.Duration) ([]nearby.WaitingOrder, error)
}

// Dispatch finds riders for ready orders.
//
// Dispatch searches when an order becomes ready, loses its rider, or a wave ends. It
// offers the order to the nearest free riders within the next wave's radius. A wave
// that finds nobody is skipped. The last wave is always recorded, even without
// riders, so that an order is never forgotten between two searches. After the last
// wave dispatch searches once more, for riders who were not asked yet, and then
// records that the order is exhausted.
//
// A rider who becomes eligible while orders nearby wait is added to their
// running waves. A search waits for the riders read model to pass the ends of
// its topics, but at most SearchWait: one partition that is slow or paused must
// not keep the orders of a city waiting. No rider is missed for ever by that. For
// each event that makes a rider eligible, dispatch
//  1. waits, for as long as it takes, until the riders read model has passed
//     all that concerns this rider's partition,
//  2. then takes the ends of orders, and
//  3. asks which orders near the rider wait, once the orders read model has
//     passed those ends.
//
// If step 3 finds an order whose next wave is just being searched for, it waits for
// that wave. docs/architecture.md ("A rider who comes online during a search is not
// missed") says why these steps, in this order, are enough.
//
// A search that did not see every rider does not exhaust an order. It makes a
// further wave without riders and searches again when that one ends, as often as
// there are radii. A search that saw every rider as of its beginning may exhaust an
// order while dispatch handles a rider who came later: that rider is offered the
// order in its next round.
//
// What dispatch knows may be old. order.Decide decides on the present state: an
// offer names its round and wave, and is dropped if the order has moved on.
func (p *Policies) Dispatch() consumer.Consumer {
	topics := []string{eventlog.Orders, eventlog.Riders, eventlog.RiderLocations}
	d := &dispatch{Policies: p, log: eventlog.NewEndReader(p.Client, topics...), seen: map[string]time.Time{}}
	return consumer.Consumer{Name: dispatchPolicy, Topics: topics, Batch: d.handle, MaxBatch: 500}
}

type dispatch struct {
	*Policies
	log   *eventlog.EndReader
	mu    sync.Mutex
	seen  map[string]time.Time // rider id → recordedAt of their last position
	swept time.Time
}

// errSearching means that an order's next wave is being searched for.
var errSearching = errors.New("an order near the rider is about to be offered")

// errBehind means that a shard's answer is older than the event it was asked about.
var errBehind = errors.New("the shard has not seen the event yet")

// maxJoinWait is how long riders wait for one order's next wave. A search takes
// milliseconds; one that takes longer is repeated with fresh ends.
const maxJoinWait = 10 * time.Second

// concurrentCommands bounds the commands of one batch under way at once.
const concurrentCommands = 128

func (d *dispatch) handle(ctx context.Context, events []eventlog.Event) error {
	orders := map[string]eventlog.Event{} // orders that need riders, with the event that says so
	woken := map[string]eventlog.Event{}  // riders who became eligible
	last := map[string]time.Time{}        // riders' last positions; remembered only after the batch, so that a repeat sees the same ones
	for _, e := range events {
		if consumer.IsErasure(&e) { // the rider's next position is their first one again
			last[e.Subject] = time.Time{}
			continue
		}
		if e.Topic == eventlog.RiderLocations { // whatever type a foreign record there has
			p, err := rider.ReadPosition(e.Type, e.Subject, e.Data, time.Now())
			if err != nil {
				consumer.Skip(ctx, &e, err)
			} else if d.firstFresh(p, last) {
				woken[e.Subject] = e
			}
			continue
		}
		switch e.Type {
		case order.TypeOrderReadyForRider, order.TypeOffersExpired, order.TypeRiderUnassigned, order.TypeDispatchRequested:
			orders[e.Subject] = e
		case order.TypeOfferDeclined:
			declined, err := decode[order.OfferDeclined](&e, order.Decode)
			if err != nil {
				return err
			}
			if declined.WaveOver {
				orders[e.Subject] = e
			}
		case rider.TypeRiderOnline, rider.TypeRiderReleased:
			woken[e.Subject] = e
		}
	}
	if len(orders) == 0 && len(woken) == 0 {
		d.remember(last)
		return nil
	}
	// Everything that made riders eligible before now.
	after, err := d.ends(ctx, eventlog.Riders, eventlog.RiderLocations)
	if err != nil {
		return err
	}
	if err := d.searchFor(ctx, orders, after); err != nil {
		return err
	}
	maps.DeleteFunc(after, func(tp eventlog.TopicPartition, _ int64) bool { return tp.Partition != events[0].Partition })
	if err := d.wake(ctx, woken, after); err != nil {
		return err
	}
	d.remember(last)
	return nil
}

// ends returns the token of everything that is on the topics now.
func (d *dispatch) ends(ctx context.Context, topics ...string) (eventlog.Token, error) {
	after, err := d.log.Token(ctx, topics...)
	if err != nil {
		return nil, eventlog.Unavailable(err)
	}
	return after, nil
}

// firstFresh reports whether the rider had no fresh position before this one, which
// is fresh, and notes it in last. After a restart it is true of every rider's first
// position.
func (d *dispatch) firstFresh(p rider.Position, last map[string]time.Time) bool {
	before, ok := last[p.RiderID]
	if !ok {
		d.mu.Lock()
		before = d.seen[p.RiderID]
		d.mu.Unlock()
	}
	if p.RecordedAt.After(before) {
		last[p.RiderID] = p.RecordedAt
	}
	now := time.Now()
	return now.Sub(p.RecordedAt) < d.PositionMaxAge && now.Sub(before) >= d.PositionMaxAge
}

func (d *dispatch) remember(last map[string]time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, at := range last {
		switch {
		case at.IsZero():
			delete(d.seen, id)
		case at.After(d.seen[id]):
			d.seen[id] = at
		}
	}
	if now := time.Now(); now.Sub(d.swept) > d.PositionMaxAge { // an old position makes no difference to firstFresh
		d.swept = now
		maps.DeleteFunc(d.seen, func(_ string, at time.Time) bool { return now.Sub(at) > d.PositionMaxAge })
	}
}

// want is one order for which riders are searched.
type want struct {
	event eventlog.Event // that asked for the search
	state *order.State
	wave  int // to be offered next
}

// radius returns the radius of a wave in meters. Waves after the last radius have that one.
func (d *dispatch) radius(wave int) int { return d.OfferRadii[min(wave, len(d.OfferRadii))-1] }

func (d *dispatch) searchFor(ctx context.Context, orders map[string]eventlog.Event, after eventlog.Token) error {
	wants, err := d.look(ctx, orders)
	if err != nil {
		return err
	}
	last := len(d.OfferRadii)
	until := time.Now().Add(d.SearchWait) // for all waves together
	for len(wants) > 0 {
		searches := make([]nearby.Search, len(wants))
		for i, w := range wants {
			without := w.state.Unavailable()
			if w.wave > last { // search only for riders who were not asked in this round
				for _, o := range w.state.Offers {
					without = append(without, o.RiderID)
				}
			}
			searches[i] = nearby.Search{OrderID: w.state.ID, Point: w.state.PickUp.Location, RadiusMeters: d.radius(w.wave), Limit: d.OfferLimit, Without: without}
		}
		found, complete, err := d.Search.Nearest(ctx, searches, d.PositionMaxAge, after, time.Until(until))
		if err != nil {
			return readModelError(err)
		}
		if !complete && d.IncompleteSearches != nil {
			d.IncompleteSearches.Add(float64(len(searches)))
		}
		var wider []*want
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(concurrentCommands)
		for i, w := range wants {
			var command domain.Command
			switch {
			case len(found[i]) > 0 || w.wave == last || !complete && w.wave > last && w.wave-max(last, lastOffered(w.state)) <= last:
				command = order.OfferWave{Round: w.state.Round, Wave: w.wave, Riders: offered(found[i]), TTL: d.OfferTTL, Limit: d.OfferLimit}
			case w.wave < last:
				w.wave++
				wider = append(wider, w)
				continue
			default:
				command = order.Exhaust{Round: w.state.Round, LastWave: last}
			}
			g.Go(func() error { return d.command(gctx, causeOf(&w.event), w.state.ID, command) })
		}
		if err := g.Wait(); err != nil {
			return err
		}
		wants = wider
	}
	return nil
}

// lastOffered returns the last wave of the round in which somebody was offered the order.
func lastOffered(o *order.State) (wave int) {
	for _, offer := range o.Offers {
		wave = max(wave, offer.Wave)
	}
	return wave
}

// look takes the orders' present state from their shards, and returns those that
// wait for a search.
func (d *dispatch) look(ctx context.Context, orders map[string]eventlog.Event) ([]*want, error) {
	var mu sync.Mutex
	var wants []*want
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(concurrentCommands)
	for id, e := range orders {
		g.Go(func() error {
			res, err := d.execute(gctx, causeOf(&e), eventlog.Orders, id, shard.Look{})
			if err != nil {
				return err
			}
			o := res.Order
			if o == nil || o.Version < e.Version {
				return eventlog.Unavailable(errBehind) // the owner was deposed and has not noticed: the event is valid, and this owner has not seen it
			}
			if o.Status == order.StatusReadyForRider && !o.WaveOpen && !o.Exhausted {
				mu.Lock()
				wants = append(wants, &want{e, o, o.Wave + 1})
				mu.Unlock()
			}
			return nil
		})
	}
	return wants, g.Wait()
}

// wake adds riders who became eligible to the running waves near them. Their
// rows are there once the riders read model has passed after.
func (d *dispatch) wake(ctx context.Context, woken map[string]eventlog.Event, after eventlog.Token) error {
	if len(woken) == 0 {
		return nil
	}
	ids := make([]string, 0, len(woken))
	for id := range woken {
		ids = append(ids, id)
	}
	if err := d.Search.Passed(ctx, after); err != nil {
		return readModelError(err)
	}
	orders, err := d.ends(ctx, eventlog.Orders)
	if err != nil {
		return err
	}
	waiting, err := d.Search.Waiting(ctx, ids, d.OfferRadii, d.PositionMaxAge, orders, d.SearchWait)
	if err != nil {
		return readModelError(err)
	}
	riders := map[string][]nearby.Rider{}
	why := map[string]cause{}
	for _, w := range waiting {
		riders[w.OrderID] = append(riders[w.OrderID], nearby.Rider{RiderID: w.RiderID, DistanceMeters: w.DistanceMeters})
		e := woken[w.RiderID]
		why[w.OrderID] = causeOf(&e)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(concurrentCommands)
	for id, found := range riders {
		slices.SortFunc(found, func(a, b nearby.Rider) int { return a.DistanceMeters - b.DistanceMeters })
		g.Go(func() error { return d.join(gctx, why[id], id, offered(found)) })
	}
	return g.Wait()
}

// join adds riders to an order's running wave. The read model said that the order
// may be waiting, and the shard says whether it is. If the order is between two
// waves, join waits for the next one, because its search may have begun before the
// riders became eligible. Searches for orders that become ready later find the riders
// by themselves.
func (d *dispatch) join(ctx context.Context, why cause, orderID string, riders []order.OfferedRider) error {
	for wait, waited := 5*time.Millisecond, time.Duration(0); ; wait = min(2*wait, 100*time.Millisecond) {
		res, err := d.execute(ctx, why, eventlog.Orders, orderID, shard.Look{})
		if unknown := (*shard.UnknownEvent)(nil); errors.As(err, &unknown) {
			return nil // this order cannot be offered, and must not keep the riders from the other orders
		}
		if err != nil {
			return err
		}
		o := res.Order
		switch {
		case o == nil || o.Status != order.StatusReadyForRider || o.Exhausted:
			return nil
		case o.WaveOpen:
			return d.command(ctx, why, orderID, order.OfferWave{Round: o.Round, Wave: o.Wave, Riders: riders, TTL: d.OfferTTL, Limit: d.OfferLimit})
		case waited > maxJoinWait:
			// The search is slow, or its event is parked. When it is repeated, it
			// begins with fresh ends and finds these riders by itself.
			d.Log.Warn("riders do not wait for an order's next wave any longer", "order", orderID, "err", errSearching)
			return nil
		}
		select {
		case <-time.After(wait):
			waited += wait
		case <-ctx.Done():
			return eventlog.Unavailable(ctx.Err())
		}
	}
}

func (d *dispatch) command(ctx context.Context, why cause, orderID string, c domain.Command) error {
	_, err := d.execute(ctx, why, eventlog.Orders, orderID, c)
	if domain.RefusedWith(err) != "" {
		return nil // the order has moved on, so there is nothing to offer
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", c.CommandName(), orderID, err)
	}
	return nil
}

func offered(found []nearby.Rider) []order.OfferedRider {
	riders := make([]order.OfferedRider, len(found))
	for i, c := range found {
		riders[i] = order.OfferedRider{RiderID: c.RiderID, DistanceMeters: c.DistanceMeters}
	}
	return riders
}
