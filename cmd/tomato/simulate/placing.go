package simulate

import (
	"context"
	"sync"
	"time"
)

// placeAll places the orders and returns when every order has ended, or when the
// run has stalled. At most Options.MaxOpen orders are open at the same time.
func (s *simulation) placeAll(ctx context.Context) {
	ctx, stop := s.watchdog.watch(ctx)
	defer stop()
	var pace <-chan time.Time
	if s.opt.Rate > 0 {
		t := time.NewTicker(max(time.Microsecond, time.Duration(float64(time.Second)/s.opt.Rate)))
		defer t.Stop()
		pace = t.C
	}
	slots := make(chan struct{}, s.opt.MaxOpen)
	var customers sync.WaitGroup
placing:
	for i, p := range s.town.purchases {
		if pace != nil {
			select {
			case <-pace:
			case <-ctx.Done():
				break placing
			}
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			break placing
		}
		c := s.town.customers[i%len(s.town.customers)]
		e := s.ledger.add(planOf(s.opt.Seed, i), c.party, p.restaurant.party, p.to)
		customers.Go(func() {
			defer func() { <-slots }()
			s.playCustomer(ctx, e, c, p)
		})
	}
	customers.Wait()
}
