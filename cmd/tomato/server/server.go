// Package server is the program that `tomato serve` runs: what the roles of one
// process need, started in one order and stopped in the reverse one.
//
// Start in server.go is the list of what is started. Each step registers how to
// stop what it has started; Close does that in the reverse order. roles.go has one
// function for each role, infrastructure.go what the roles stand on, http.go the
// HTTP server, and health.go the checks behind /readyz.
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

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"tomato/cmd/tomato/settings"
	"tomato/commandside"
	"tomato/commandside/policies"
	"tomato/commandside/shard"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/httpapi"
	"tomato/operations"
	"tomato/projections"
	"tomato/queryside/feed"
)

// Options are for programs that start a server in their own process, such as tests
// and benches. `tomato serve` sets none of them.
type Options struct {
	// ExtraRoutes adds routes beside those of the roles. Default: none.
	ExtraRoutes func(*httpapi.API)
	// GatewayURL is the base URL of a stand-in for Razorpay's API. It has an effect
	// only if Config has a Razorpay key. Default: the real one.
	GatewayURL string
	// Log is where the server logs. Default: stderr, at Config's level.
	Log *slog.Logger
}

// Server is a running process. Its methods may be called from several goroutines at
// a time, except Run and Close, of which one is called once.
type Server struct {
	config   Config // with what was started or made up filled in
	options  Options
	log      *slog.Logger
	made     settings.MadeUp
	alone    bool // the embedded broker is this process's own: there are no other instances
	kafka    eventlog.Config
	listener net.Listener
	url      string
	failed   chan error // a part that cannot go on; the process ends
	stops    []func(context.Context) error
	stopping atomic.Bool
	registry *prometheus.Registry

	privateDatabaseURL string // "" if a database is configured

	// What the roles share. side, shards and menus are nil without the command side,
	// hub without the feeds.
	db         *pgxpool.Pool
	logID      eventlog.LogID
	ends       *eventlog.Ends
	positions  *consumer.Positions
	models     *projections.ReadModels
	runtime    *consumer.Runtime
	auth       *httpapi.Authenticator
	api        *httpapi.API
	side       *commandside.Side
	policies   *policies.Policies
	shards     *shard.Shards
	menus      *shard.Menus
	hub        *feed.Hub
	operations operations.Operations
}

// StopLimit is how long Close may take.
const StopLimit = 18 * time.Second

// Start starts every part and returns when the server listens; /readyz says when it
// is ready. What the server needs and is not configured, Start starts too: the
// embedded broker and a private Postgres. The error is a settings.UsageError if the
// configuration is wrong. ctx bounds the start alone: the server goes on after it.
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
		s.startDatabase,  // a private Postgres, unless one is configured; the pool of connections
		s.ensureTopics,
		s.migrate,
		s.listen, // nobody is answered before serveHTTP
		s.newAPI,
		s.identifyLogs,
		s.followReadModels,
		s.startCommandSide, // for the roles that issue commands: command, react and feed
		s.startCommands,
		s.startProjections,
		s.startPolicies,
		s.startQueries,
		s.startFeed,
		s.addCommonRoutes,
		s.serveHTTP,

		// What a server does first when it stops, the last one here before the others:
		// it forgets that it runs, says that it is not ready, hands its shards over
		// while the others can still reach it, and ends the feeds' streams, for which
		// the HTTP server would wait.
		s.drainFeedsAtStop,
		s.handOverAtStop,
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

// Close lets requests under way end, hands the shards over to other instances and
// stops every part. It takes StopLimit at most.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), StopLimit)
	defer cancel()
	var errs []error
	for _, stop := range slices.Backward(s.stops) {
		errs = append(errs, stop(ctx))
	}
	return errors.Join(errs...)
}

// onStop registers what Close does before everything that is registered already.
func (s *Server) onStop(f func(context.Context) error) { s.stops = append(s.stops, f) }

// background runs a part of the server until it stops. An error of the part ends Run.
func (s *Server) background(name string, run func(context.Context) error) {
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
	s.onStop(func(ctx context.Context) error {
		cancel()
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("%s did not stop in time", name)
		}
	})
}

// URL returns where the server is reached on this machine, such as
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
