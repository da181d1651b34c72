package simulate

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"tomato/domain"
)

const (
	maxDials     = 32 // connections that are opened at the same time
	connectLimit = time.Minute
	leaveLimit   = 20 * time.Second
)

// setupError returns the error of a phase that must succeed for the run to go on.
// The error contains the first fault of the ledger. If there is none, it says only
// what failed.
func (s *simulation) setupError(ctx context.Context, what string) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if f, found := s.ledger.firstFault(); found {
		return fmt.Errorf("%s: %s", what, f.Detail)
	}
	return errors.New(what)
}

// register registers the restaurants with their menus, and the riders, whom the
// operator verifies.
func (s *simulation) register(ctx context.Context) error {
	restaurants := each(s.town.restaurants, func(k *restaurant) bool { return s.registerRestaurant(ctx, k) })
	riders := each(s.town.riders, func(d *rider) bool { return s.registerRider(ctx, d) })
	if !restaurants || !riders {
		return s.setupError(ctx, "registering restaurants and riders failed")
	}
	return nil
}

func (s *simulation) registerRestaurant(ctx context.Context, k *restaurant) bool {
	if _, ok := s.must(ctx, k.token, http.MethodPut, "/v1/restaurants/"+k.id, object{"name": k.name, "location": k.location}); !ok {
		return false
	}
	for _, item := range k.items {
		if _, ok := s.must(ctx, k.token, http.MethodPut, "/v1/restaurants/"+k.id+"/menu/"+item, object{
			"name": item, "price": object{"amount": k.price[item], "currency": "INR"}, "available": true,
		}); !ok {
			return false
		}
	}
	return true
}

func (s *simulation) registerRider(ctx context.Context, d *rider) bool {
	body := object{"name": d.name}
	if d.vehicle != "" {
		body["vehicle"] = d.vehicle
	}
	if _, ok := s.must(ctx, d.token, http.MethodPut, "/v1/riders/"+d.id, body); !ok {
		return false
	}
	if d.ineligible == riderUnverified {
		return true
	}
	_, ok := s.must(ctx, s.town.operatorToken, http.MethodPost, "/v1/riders/"+d.id+"/verify", nil)
	if ok && d.ineligible == riderSuspended {
		_, ok = s.must(ctx, s.town.operatorToken, http.MethodPost, "/v1/riders/"+d.id+"/suspend", nil)
	}
	return ok
}

// connect opens the feed of every party and returns when all are connected.
func (s *simulation) connect(ctx context.Context, feeds *sync.WaitGroup) error {
	all, err := s.newFeeds(ctx)
	if err != nil {
		return err
	}
	up := make(chan struct{}, len(all))
	for _, f := range all {
		once := sync.OnceFunc(func() { up <- struct{}{} })
		feeds.Go(func() { f.run(ctx, once) })
	}
	limit := time.NewTimer(connectLimit)
	defer limit.Stop()
	for n := range all {
		select {
		case <-up:
		case <-limit.C:
			return s.setupError(ctx, fmt.Sprintf("only %d of %d feeds were connected within %s", n, len(all), connectLimit))
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// newFeeds makes the feed of every party. One feed in 16 breaks its connection now
// and then. The operator's feed never does.
func (s *simulation) newFeeds(ctx context.Context) (all []*feed, err error) {
	rng := rand.New(rand.NewPCG(uint64(s.opt.Seed), 1<<33))
	add := func(p *party, token, room string, on func(message), reset func(context.Context)) *feed {
		f, ferr := s.newFeed(p, token, room, p.role == domain.Ops)
		err = errors.Join(err, ferr)
		f.onMessage, f.onReset = on, reset
		if rng.IntN(16) == 0 && p.role != domain.Ops {
			f.breakAfter = 5 + rng.IntN(40)
		}
		all = append(all, f)
		return f
	}
	for _, k := range s.town.restaurants {
		k.feed = add(k.party, k.token, "restaurant:"+k.id,
			func(m message) { k.receive(ctx, s, m) },
			func(context.Context) { s.feedWork.Go(func() { k.reload(ctx, s) }) })
	}
	for _, d := range s.town.riders {
		d.feed = add(d.party, d.token, "user:"+d.id,
			func(m message) { d.receive(s, m) },
			func(context.Context) { s.feedWork.Go(func() { d.reload(ctx, s) }) })
	}
	for _, c := range s.town.customers {
		c.feed = add(c.party, c.token, "user:"+c.id, func(m message) { s.ledger.received(m) }, nil)
	}
	operator := s.ledger.addParty(domain.Ops, s.operatorID())
	add(operator, s.town.operatorToken, "ops", func(m message) { s.operatorReceives(ctx, m) }, nil)
	return all, err
}

// open sends the first positions. Then it opens the restaurants and sends the riders
// online.
func (s *simulation) open(ctx context.Context) error {
	positions := s.sendPositions(ctx, true)
	restaurants := each(s.town.restaurants, func(k *restaurant) bool {
		_, ok := s.must(ctx, k.token, http.MethodPost, "/v1/restaurants/"+k.id+"/open", nil)
		return ok
	})
	riders := each(s.town.riders, func(d *rider) bool {
		if d.ineligible != "" && d.ineligible != riderStale {
			return true
		}
		_, ok := s.must(ctx, d.token, http.MethodPost, "/v1/riders/"+d.id+"/online", nil)
		return ok
	})
	if !positions || !restaurants || !riders {
		return s.setupError(ctx, "opening restaurants and sending riders online failed")
	}
	return nil
}

// leave sends riders offline and closes restaurants, so that they do not take part
// in the next run. It ignores errors, because the run is over.
func (s *simulation) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveLimit)
	defer cancel()
	each(s.town.riders, func(d *rider) bool {
		_, err := s.api.do(ctx, call{token: d.token, method: http.MethodPost, path: "/v1/riders/" + d.id + "/offline", key: s.key()})
		return err == nil
	})
	each(s.town.restaurants, func(k *restaurant) bool {
		_, err := s.api.do(ctx, call{token: k.token, method: http.MethodPost, path: "/v1/restaurants/" + k.id + "/close", key: s.key()})
		return err == nil
	})
}
