// Package server is the program that `tomato serve` runs. It starts what the roles of
// one process need in a fixed order, and stops it in the reverse order.
//
// Start contains the list of what is started. Each step registers how to stop what it
// has started. Close stops everything in the reverse order.
//
// The files, in reading order:
//
//	server.go          Start, Run and Close
//	config.go          the settings of serve
//	infrastructure.go  what all roles need: broker, database, topics, read models
//	pools.go           the connections to the database
//	roles.go           one function for each role
//	http.go            the HTTP server, and how it stops
//	health.go          the checks behind /readyz
//	greet.go           what serve prints when it has started
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"tomato/cmd/tomato/settings"
	"tomato/commandside"
	"tomato/commandside/policies"
	"tomato/commandside/shard"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/subjectkeys"
	"tomato/httpapi"
	"tomato/operations"
	"tomato/projections"
	"tomato/projections/realtime"
	"tomato/queryside/feed"
)

// Options are options for programs that start a server in their own process, such as
// tests and benches. `tomato serve` sets none of them.
type Options struct {
	// ExtraRoutes adds routes to those of the roles. Default: no more routes.
	ExtraRoutes func(*httpapi.API)
	// GatewayURL is the base URL of a stand-in for Razorpay's API. It has an effect
	// only if Config has a Razorpay key. Default: the real one.
	GatewayURL string
	// Log is where the server logs. Default: stderr, at Config's level.
	Log *slog.Logger
}

// Server is a running process. Its methods may be called concurrently, except Run and
// Close. Only one of these two may be called, and only once.
type Server struct {
	config   Config // with the addresses and secrets of what was started or made up
	options  Options
	log      *slog.Logger
	made     settings.MadeUp
	alone    bool // this process has its own embedded broker, so there are no other instances
	kafka    eventlog.Config
	listener net.Listener
	url      string
	failed   chan error // gets the error of a part that cannot go on; Run then ends
	stops    []func(context.Context) error
	readers  []func(context.Context) error // stop the read models, the policies and the feed
	stopping atomic.Bool
	registry *prometheus.Registry

	privateDatabaseURL string // "" if a database is configured

	// What the roles share. side, shards and menus are nil if no role issues commands.
	// hub and projector are nil without the role feed.
	db          pools
	logID       eventlog.LogID
	ends        *eventlog.Ends
	positions   *consumer.Positions
	models      *projections.ReadModels
	keys        *subjectkeys.Keyring // nil in a process that has the role project alone
	runtime     *consumer.Runtime
	auth        *httpapi.Authenticator
	revocations *operations.Revocations
	api         *httpapi.API
	side        *commandside.Side
	policies    *policies.Policies
	shards      *shard.Shards
	menus       *shard.Menus
	hub         *feed.Hub
	projector   *realtime.Projector
	operations  operations.Operations
}

// StopLimit is how long Close may take, beside TOMATO_SHUTDOWN_DELAY.
const StopLimit = 18 * time.Second

// Start starts every part and returns when the server listens. /readyz says when the
// server is ready. If no broker or no database is configured, Start starts the embedded
// broker or a private Postgres. The error is a settings.UsageError if the configuration
// is wrong. ctx bounds only the start; the server keeps running after ctx has ended.
func Start(ctx context.Context, config Config, options Options) (_ *Server, err error) {
	if err := config.Check(); err != nil {
		return nil, err
	}
	s := &Server{config: config, options: options, log: options.Log, failed: make(chan error, 1), registry: prometheus.NewRegistry()}
	if s.log == nil {
		s.log = config.Logger()
	}
	s.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	for _, start := range []func(context.Context) error{
		s.prepareDataDir, // with the development secrets
		s.startBroker,    // unless brokers are configured
		s.startDatabase,  // a private Postgres, unless one is configured
		s.openPools,
		s.ensureTopics,
		s.migrate,
		s.listen, // requests are not answered before serveHTTP
		s.readRevocations,
		s.newAPI,
		s.identifyLogs,
		s.followReadModels,
		s.followSubjectKeys,
		s.startCommandSide, // for the roles that issue commands: command, react and feed
		s.startCommands,
		s.startProjections,
		s.startPolicies,
		s.startQueries,
		s.startFeed,
		s.followRevocations,
		s.addCommonRoutes,
		s.serveHTTP,

		// These steps only register what happens first when the server stops, in the
		// reverse order of this list. The server removes running.json. Then it answers
		// that it is not ready, and still takes requests until load balancers have noticed
		// that. Then it stops what reads the logs, if other instances take that over. Then it
		// hands its shards over while other instances can still reach it. Then it ends the
		// feeds' streams, because the HTTP server would wait for them.
		s.drainFeedsAtStop,
		s.handOverAtStop,
		s.stopReadersAtStop,
		s.notReadyAtStop,
		s.writeRunning,
	} {
		if err := start(ctx); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Run serves until ctx ends, or until a part of the server fails for good. Then it
// closes the server.
func (s *Server) Run(ctx context.Context) (err error) {
	select {
	case <-ctx.Done():
	case err = <-s.failed:
	}
	return errors.Join(err, s.Close())
}

// Close answers that the server is not ready, waits for TOMATO_SHUTDOWN_DELAY, hands the
// shards over to other instances, lets requests under way end, and stops every part. It
// takes at most StopLimit beside the delay.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), s.config.StopDelay+StopLimit)
	defer cancel()
	var errs []error
	for _, stop := range slices.Backward(s.stops) {
		errs = append(errs, stop(ctx))
	}
	return errors.Join(errs...)
}

// onStop registers a function that Close calls. Close calls the functions in the reverse
// order of their registration.
func (s *Server) onStop(f func(context.Context) error) { s.stops = append(s.stops, f) }

// background runs a part of the server in a goroutine until the server stops. If the
// part returns an error before that, Run ends with it. The function that background
// returns stops the part earlier.
func (s *Server) background(name string, run func(context.Context) error) (stop func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := run(ctx); err != nil && ctx.Err() == nil {
			select {
			case s.failed <- fmt.Errorf("%s: %w", name, err):
			default:
			}
		}
	}()
	stop = func(ctx context.Context) error {
		cancel()
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("%s did not stop in time", name)
		}
	}
	s.onStop(stop)
	return stop
}

// URL returns the URL at which the server is reached on this machine, such as
// http://127.0.0.1:8080.
func (s *Server) URL() string { return s.url }

// Addr returns the address on which the server listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// LogID returns which logs the server works with.
func (s *Server) LogID() eventlog.LogID { return s.logID }

// Shards returns the shards of the server, for benches that measure them without
// HTTP. It is nil if the server has none of the roles command, react and feed.
func (s *Server) Shards() *shard.Shards { return s.shards }

// ReadModels returns the read models, for benches and tests that look at them
// without HTTP.
func (s *Server) ReadModels() *projections.ReadModels { return s.models }

// Runtime returns what runs the consumers, for benches that rebuild a read model.
func (s *Server) Runtime() *consumer.Runtime { return s.runtime }
