// Package simulate plays a town against a running Tomato: customers who pay
// and change their minds, restaurants, riders who race for orders, and the
// payment gateway with its faults. It uses HTTP and websockets only.
//
// A run has four phases (simulation.play):
//
//  1. It registers all parties and connects their feeds.
//  2. It places orders. Each order is followed by its own goroutine. The phase
//     lasts until every order has ended.
//  3. It reconciles: it judges every order.
//  4. It leaves: riders go offline, and restaurants close.
//
// Two accounts are compared at the end. The simulator's own account is the
// ledger. It says what was promised: every acknowledged command, every payment
// that the gateway was made to capture, and every feed message that arrived.
// Tomato's queries say what happened. A difference between the two is a broken
// promise (judge). Nothing is read from inside Tomato.
//
// Tomato may be killed and restarted during a run. A call that gets 429, 503,
// 409 idempotency_in_progress or a network error is retried with the same
// Idempotency-Key for up to Options.RetryFor. A feed reconnects with its cursor.
// After feed:reset its party reads by REST what it may have missed. A run that
// makes no progress for Options.Timeout ends and reports what it waited for.
//
// The files, in reading order:
//
//	simulate.go          a run and its phases
//	options.go           the options of a run
//	town.go              who takes part, and which orders are placed
//	dataset.go           a town from a CSV file of deliveries
//	plan.go              what is to happen to each order
//	setup.go             the beginning and the end of a run: registering, connecting, leaving
//	placing.go           placing the orders
//	party.go             what all parties have in common
//	customer.go          a customer, from placing an order to its end
//	customer_payment.go  how a customer pays, and what the gateway does
//	restaurant.go        a restaurant that cooks
//	rider.go             a rider who takes offers and delivers orders
//	positions.go         the riders' positions
//	operator.go          the operator, who asks for riders again
//	caller.go            calls whose answers go into the ledger
//	client.go            HTTP calls with retries
//	feed.go              a party's feed
//	messages.go          the feed messages
//	ledger.go            the simulator's own account of the run
//	order_entry.go       what the ledger keeps about one order
//	faults.go            the kinds of broken promises
//	audit.go             judges all orders at the end
//	checks.go            checks what is not about one order: lists, riders, dead letters
//	views.go             the answers of Tomato's queries
//	judge.go             judges one order
//	judge_history.go     its events, and the messages that follow from them
//	judge_commands.go    its acknowledged commands
//	judge_messages.go    its feed messages
//	judge_money.go       its payments and refunds
//	watchdog.go          notices when a run no longer makes progress
//	progress.go          shows the progress
//	latency.go           collects latencies
//	report.go            the report of a run
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
// promised, and its town says who takes part.
type simulation struct {
	*caller
	opt       Options
	town      *town
	watchdog  watchdog
	latency   latency
	feeds     feedCounts
	dialSlots chan struct{} // bounds the connections that are opened at the same time

	placed   atomic.Int64   // orders that were acknowledged
	feedWork sync.WaitGroup // the goroutines that feed messages start
}

// Run plays a simulation and writes its report to o.Out. It returns an error if
// the simulation could not be played, or if ctx ended it early. A broken promise is
// not an error: the report lists it.
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
	s.api.patience = min(s.opt.RetryFor, firstAnswerLimit) // so that a wrong URL is reported soon
	deadLettersBefore, err := audit.deadLetters(ctx)
	if err != nil {
		return err
	}
	s.api.patience = s.opt.RetryFor
	if err := s.register(ctx); err != nil {
		return err
	}

	// Feeds and riders keep running while orders are placed and then judged.
	running, stopRunning := context.WithCancel(ctx)
	s.feedWork.Add(1) // keeps the group open until the feeds have ended, because they add to it
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
	s.ledger.noteProgress()
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
