// Package simulate plays a town against a running Tomato: customers who pay
// and change their minds, restaurants, riders who race for orders, and the
// payment gateway with its faults. It uses HTTP and websockets only.
//
// A run has these phases (simulation.play): register all parties and connect
// their feeds; place orders, each followed by its own goroutine, until every
// order has ended; reconcile, which judges every order; leave (riders go
// offline, restaurants close).
//
// Two accounts are compared at the end. The simulator's own, the ledger, says
// what was promised: every acknowledged command, every payment that the gateway
// was made to capture, every feed message that arrived. Tomato's queries say
// what happened. A difference between the two is a broken promise (judge).
// Nothing is read from inside Tomato.
//
// Tomato may be killed and restarted during a run. 429, 503, 409
// idempotency_in_progress and network errors are retried with the same
// Idempotency-Key for up to Options.RetryFor. A feed reconnects with its cursor;
// after feed:reset its party reads by REST what it may have missed. A run that
// makes no progress for Options.Timeout ends and reports what it waited for.
//
// Each party has a file: customer.go with customer_payment.go, restaurant.go,
// rider.go and operator.go. What Tomato is held to is in the judge files.
package simulate

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	defaultMaxOpen   = 128
	firstAnswerLimit = 10 * time.Second
)

// simulation is one run. Its caller makes the calls, its ledger keeps what was
// promised, its town says who takes part.
type simulation struct {
	*caller
	opt       Options
	town      *town
	watchdog  watchdog
	latency   latency
	feeds     feedCounts
	dialSlots chan struct{} // bounds the connections that are opened at the same time

	placed   atomic.Int64   // orders that were acknowledged
	feedWork sync.WaitGroup // the work that feed messages start
}

// Run plays a simulation and writes its report to o.Out. It returns an error
// when the simulation could not be played, or when ctx ended it early. Broken
// promises are no error; they are in the report.
func Run(ctx context.Context, o Options) (Report, error) {
	o = o.withDefaults()
	if len(o.JWTSecret) == 0 {
		return Report{}, errors.New("simulate: no JWT secret to sign the parties' tokens with")
	}
	api := newClient(o)
	defer api.transport.CloseIdleConnections()
	for _, u := range api.urls {
		if p, err := url.Parse(u); err != nil || p.Scheme != "http" && p.Scheme != "https" || p.Host == "" {
			return Report{}, fmt.Errorf("simulate: %q is not an http URL", u)
		}
	}
	c := &caller{api: api, ledger: newLedger(), run: strconv.FormatInt(time.Now().UnixMilli(), 36)}
	town, err := newTown(o, c)
	if err != nil {
		return Report{}, fmt.Errorf("simulate: %w", err)
	}
	if o.MaxOpen <= 0 {
		o.MaxOpen = min(2*len(town.riders), defaultMaxOpen)
	}
	s := &simulation{
		caller: c, opt: o, town: town, watchdog: watchdog{c.ledger, o.Timeout},
		dialSlots: make(chan struct{}, maxDials),
	}
	start := time.Now()
	err = s.play(ctx)
	rep := s.report(time.Since(start))
	rep.Interrupted = ctx.Err() != nil
	if err != nil && ctx.Err() == nil {
		return rep, fmt.Errorf("simulate: %w", err)
	}
	if werr := rep.Write(o.Out, o.JSON); werr != nil {
		return rep, fmt.Errorf("simulate: %w", werr)
	}
	return rep, ctx.Err()
}

// play goes through the phases of the run.
func (s *simulation) play(ctx context.Context) error {
	audit := &auditor{caller: s.caller, town: s.town, watchdog: s.watchdog}
	s.api.patience = min(s.opt.RetryFor, firstAnswerLimit) // a wrong URL is reported soon
	deadLettersBefore, err := audit.deadLetters(ctx)
	if err != nil {
		return err
	}
	s.api.patience = s.opt.RetryFor
	if err := s.register(ctx); err != nil {
		return err
	}

	// Feeds and riders go on while orders are placed and then judged.
	running, stopRunning := context.WithCancel(ctx)
	s.feedWork.Add(1) // so that it does not end before the feeds do
	var feeds, others sync.WaitGroup
	end := sync.OnceFunc(func() {
		stopRunning()
		feeds.Wait()
		s.feedWork.Done()
		s.feedWork.Wait()
		others.Wait()
	})
	defer end()
	defer s.leave(ctx)
	if err := s.connect(running, &feeds); err != nil {
		return err
	}
	if err := s.open(ctx); err != nil {
		return err
	}
	others.Go(func() { s.keepPositions(running) })
	others.Go(func() { s.watchExhausted(running) })
	for _, d := range s.town.riders {
		if d.ineligible == "" {
			others.Go(func() { d.run(running, s) })
		}
	}

	show := newProgress(s.opt.Progress, len(s.town.purchases))
	others.Go(func() { show.run(running, s) })
	s.ledger.moved()
	s.placeAll(running)
	show.phase("reconciling")
	audit.reconcile(running)
	switch {
	case ctx.Err() != nil:
	case s.watchdog.stalled():
		s.ledger.fault(faultUnfinished, "", "lists, riders and dead letters were not checked: nothing had moved for %s", s.opt.Timeout)
	default:
		audit.checkLists(running)
		audit.checkRiders(running)
		audit.checkDeadLetters(running, deadLettersBefore)
	}
	end()
	show.done()
	return ctx.Err()
}
