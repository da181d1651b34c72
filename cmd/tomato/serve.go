package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/twmb/franz-go/pkg/kadm"

	"tomato/cmd/tomato/settings"
	"tomato/commandside"
	"tomato/commandside/shard"
	"tomato/domain"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/httpapi"
	"tomato/migrations"
	"tomato/migrations/cluster"
	"tomato/operations"
	"tomato/projections"
	"tomato/queryside/feed"
)

// The roles.
const (
	roleCommand = "command"
	roleQuery   = "query"
	roleFeed    = "feed"
	roleProject = "project"
	roleReact   = "react"
)

type serveCmd struct {
	settings.Dir
	settings.Kafka
	settings.Database
	settings.Secrets
	Role         []string          `default:"command,query,feed,project,react" enum:"command,query,feed,project,react" help:"What this process does."`
	Dev          bool              `help:"Make up secrets although a broker or a database is configured."`
	HTTPAddr     string            `name:"http-addr" env:"TOMATO_HTTP_ADDR" default:"127.0.0.1:8080" help:"Where to listen."`
	Advertised   string            `name:"advertised-url" env:"TOMATO_ADVERTISED_URL" help:"Where other instances reach this one. Default: the listening address, if it is no wildcard."`
	JWTIssuer    string            `name:"jwt-issuer" env:"TOMATO_JWT_ISSUER" help:"Tokens must have this iss."`
	JWTAudience  string            `name:"jwt-audience" env:"TOMATO_JWT_AUDIENCE" help:"Tokens must have this aud."`
	KeyID        string            `name:"razorpay-key-id" env:"TOMATO_RAZORPAY_KEY_ID" help:"Of Razorpay. Unset: a simulated gateway."`
	KeySecret    string            `name:"razorpay-key-secret" env:"TOMATO_RAZORPAY_KEY_SECRET" help:"Of Razorpay."`
	PaymentTTL   settings.Duration `name:"payment-ttl" env:"TOMATO_PAYMENT_TTL" default:"15m" help:"An unpaid order expires after this."`
	PaymentGrace settings.Duration `name:"payment-grace" env:"TOMATO_PAYMENT_GRACE" default:"1h" help:"It waits at most this much longer for webhooks that are not recorded yet."`
	AcceptTTL    settings.Duration `name:"accept-ttl" env:"TOMATO_ACCEPT_TTL" default:"10m" help:"A paid order that is not accepted is cancelled after this."`
	OfferTTL     settings.Duration `name:"offer-ttl" env:"TOMATO_OFFER_TTL" default:"30s" help:"How long a wave of offers lasts."`
	OfferRadii   []int             `name:"offer-radii" env:"TOMATO_OFFER_RADII" default:"5000,8000,12000" help:"Meters, one per wave."`
	OfferLimit   int               `name:"offer-limit" env:"TOMATO_OFFER_LIMIT" default:"50" help:"Riders in one wave."`
	PositionAge  settings.Duration `name:"position-max-age" env:"TOMATO_POSITION_MAX_AGE" default:"5m" help:"Riders with an older position get no offers."`
	SearchWait   settings.Duration `name:"search-wait" env:"TOMATO_SEARCH_WAIT" default:"500ms" help:"A search for riders waits at most this long for the read models, then searches what is there; at most 10s."`
	ArchiveAfter settings.Duration `name:"archive-after" env:"TOMATO_ARCHIVE_AFTER" default:"720h" help:"Closed orders leave the write side after this; at least 24h."`
	Origins      []string          `name:"allowed-origins" env:"TOMATO_ALLOWED_ORIGINS" help:"For CORS and websockets."`

	extend     func(*httpapi.API) // more routes, for benches; nil: none
	gatewayURL string             // of a stand-in for Razorpay, for tests; "": the real one
}

func (c serveCmd) validate() error {
	switch {
	case time.Duration(c.ArchiveAfter) < 24*time.Hour:
		return settings.Usage("TOMATO_ARCHIVE_AFTER must be at least 24h: closed orders answer for a day")
	case len(c.OfferRadii) == 0 || slices.Min(c.OfferRadii) < 1 || slices.Max(c.OfferRadii) > 50_000 || !slices.IsSorted(c.OfferRadii):
		return settings.Usage("TOMATO_OFFER_RADII must be 1 to 50000 meters, each at least the one before")
	case c.OfferLimit < 1 || c.OfferLimit > 1000:
		return settings.Usage("TOMATO_OFFER_LIMIT must be 1 to 1000")
	case time.Duration(c.SearchWait) > 10*time.Second:
		return settings.Usage("TOMATO_SEARCH_WAIT must be at most 10s: orders wait for their riders meanwhile")
	case c.Partitions < 1 || c.Partitions > 1024:
		return settings.Usage("--partitions must be 1 to 1024")
	case (c.KeyID == "") != (c.KeySecret == ""):
		return settings.Usage("TOMATO_RAZORPAY_KEY_ID and TOMATO_RAZORPAY_KEY_SECRET go together")
	}
	if err := c.Database.Check(); err != nil {
		return err
	}
	if err := settings.CheckAddresses(c.HTTPAddr, c.Advertised, c.Brokers); err != nil {
		return err
	}
	return c.Secrets.Check()
}

func (c serveCmd) has(role string) bool { return slices.Contains(c.Role, role) }

// Run serves until ctx ends, then drains.
func (c serveCmd) Run(ctx context.Context) error {
	s, err := startServer(ctx, c)
	if err != nil {
		return err
	}
	s.greet(os.Stdout)
	select {
	case <-ctx.Done():
	case err = <-s.failed:
	}
	return errors.Join(err, s.close())
}

// server is a running process: what it started, to be stopped in reverse.
type server struct {
	cmd        serveCmd
	log        *slog.Logger
	url        string
	made       settings.MadeUp
	failed     chan error // a part that cannot go on; the process ends
	stops      []func(context.Context) error
	shards     *shard.Shards
	menus      *shard.Menus
	logID      eventlog.LogID
	ends       *eventlog.Ends
	side       *commandside.Side
	hub        *feed.Hub
	operations operations.Operations
	models     *projections.ReadModels
	db         *pgxpool.Pool
	runtime    *consumer.Runtime
	registry   *prometheus.Registry
	stopping   atomic.Bool
}

// stopLimit is how long a shutdown may take.
const stopLimit = 18 * time.Second

// handOverLimit is how much of it the other instances have to take the shards
// over, while this one still serves; httpStopLimit, how much requests under way
// may take after that.
const (
	handOverLimit = 5 * time.Second
	httpStopLimit = 5 * time.Second
)

func (s *server) onStop(f func(context.Context) error) { s.stops = append(s.stops, f) }

// background runs a part until the server stops; its error ends the process.
func (s *server) background(name string, run func(context.Context) error) {
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

func (s *server) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	var errs []error
	for _, stop := range slices.Backward(s.stops) {
		errs = append(errs, stop(ctx))
	}
	return errors.Join(errs...)
}

// startServer starts every part and returns when it listens. What it needs and
// is not configured, it starts itself.
func startServer(ctx context.Context, c serveCmd) (_ *server, err error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	s := &server{cmd: c, log: c.Logger(), failed: make(chan error, 1), registry: prometheus.NewRegistry()}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	s.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return nil, err
	}
	private := len(c.Brokers) == 0 && c.DatabaseURL == ""
	if s.made, err = s.cmd.Develop(c.DataDir, private || c.Dev); err != nil {
		return nil, err
	}
	if s.made.Any {
		s.log.Warn("using development secrets", "file", settings.SecretsFile(c.DataDir))
	}
	if err := s.startBroker(); err != nil {
		return nil, err
	}
	if err := s.startDatabase(ctx); err != nil {
		return nil, err
	}
	kafka := s.cmd.Kafka.Config("tomato")
	if err := s.ensureTopics(ctx, kafka); err != nil {
		return nil, err
	}
	if err := migrations.Core(ctx, s.cmd.DatabaseURL); err != nil {
		return nil, fmt.Errorf("migrating: %w", err)
	}
	listener, err := net.Listen("tcp", c.HTTPAddr)
	if err != nil {
		return nil, err
	}
	s.url, s.cmd.Advertised = settings.Reachable("", listener.Addr()), settings.Reachable(c.Advertised, listener.Addr())
	if len(c.Brokers) > 0 && c.Advertised == "" && listener.Addr().(*net.TCPAddr).IP.IsLoopback() {
		s.log.Warn("instances on other machines cannot reach this one: set TOMATO_HTTP_ADDR, and TOMATO_ADVERTISED_URL where they need another address", "address", s.url)
	}
	if err := s.startRoles(ctx, kafka, listener); err != nil {
		_ = listener.Close()
		return nil, err
	}
	run := settings.Running{PID: os.Getpid(), Brokers: s.cmd.Brokers, URL: s.url}
	if c.DatabaseURL == "" {
		run.DatabaseURL = s.cmd.DatabaseURL
	}
	if err := run.Write(c.DataDir); err != nil {
		return nil, err
	}
	s.onStop(func(context.Context) error { return os.Remove(settings.RunningFile(c.DataDir)) })
	return s, nil
}

func (s *server) startBroker() error {
	if len(s.cmd.Brokers) > 0 {
		return nil
	}
	b, err := eventlog.StartBroker(s.cmd.BrokerDir(), "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("the embedded broker: %w", err)
	}
	s.onStop(func(context.Context) error { b.Close(); return nil })
	s.cmd.Brokers = []string{b.Addr()}
	return nil
}

func (s *server) startDatabase(ctx context.Context) error {
	if s.cmd.DatabaseURL == "" {
		pg, err := cluster.Start(ctx, filepath.Join(s.cmd.DataDir, "postgres"), cluster.Options{})
		if err != nil {
			return fmt.Errorf("the private Postgres: %w", err)
		}
		s.onStop(pg.Stop)
		s.cmd.DatabaseURL = pg.URL()
	}
	cfg, err := pgxpool.ParseConfig(s.cmd.DatabaseURL)
	if err != nil {
		return err
	}
	cfg.MaxConns = max(cfg.MaxConns, serveConns)
	if s.db, err = pgxpool.NewWithConfig(context.WithoutCancel(ctx), cfg); err != nil {
		return err
	}
	s.onStop(func(context.Context) error { s.db.Close(); return nil })
	return nil
}

// serveConns are connections to Postgres: every partition of every consumer may
// hold one.
const serveConns = 48

func (s *server) ensureTopics(ctx context.Context, kafka eventlog.Config) error {
	client, err := kafka.NewClient()
	if err != nil {
		return settings.UsageError{Err: err}
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	layout := eventlog.Layout{Partitions: s.cmd.Partitions, Replication: s.cmd.Replication, Consumers: subscriptions()}
	if err := eventlog.Ensure(ctx, kadm.NewClient(client), layout); err != nil {
		return fmt.Errorf("topics: %w", err)
	}
	return nil
}

// startRoles starts what the roles need and serves.
func (s *server) startRoles(ctx context.Context, kafka eventlog.Config, listener net.Listener) error {
	c := &s.cmd
	auth, err := httpapi.NewAuthenticator(httpapi.AuthConfig{Secret: c.JWTSecret, JWKSURL: c.JWKSURL, Issuer: c.JWTIssuer, Audience: c.JWTAudience, Log: s.log})
	if err != nil {
		return settings.UsageError{Err: err}
	}
	s.onStop(func(context.Context) error { auth.Close(); return nil })
	api := httpapi.New(httpapi.Options{Auth: auth, AllowedOrigins: c.Origins, Log: s.log, Registry: s.registry, Title: "Tomato", Version: settings.Build()})
	if err := s.identifyLogs(ctx, kafka); err != nil {
		return err
	}
	positions := consumer.NewPositions(s.db)
	positions.Ends = s.ends
	s.models = &projections.ReadModels{DB: s.db, DatabaseURL: c.DatabaseURL, Kafka: kafka, Positions: positions, Log: s.log}
	if err := s.models.Ensure(ctx); err != nil {
		return fmt.Errorf("read models: %w", err)
	}
	s.background("following the read models", func(ctx context.Context) error { s.models.Follow(ctx); return nil })
	s.runtime = &consumer.Runtime{Kafka: kafka, Positions: positions, Partitions: c.Partitions, DB: s.db, Registry: s.registry, Log: s.log}

	if c.has(roleCommand) || c.has(roleReact) || c.has(roleFeed) { // policies and feeds issue commands, too
		if err := s.startSide(kafka, positions); err != nil {
			return err
		}
	}
	if c.has(roleCommand) {
		if err := s.menus.Check(ctx, s.side.Producer); err != nil {
			return fmt.Errorf("menus: %w", err)
		}
		s.serveCommands(api)
	}
	if c.has(roleProject) {
		s.background("projections", func(ctx context.Context) error { return s.models.Project(ctx, s.runtime) })
	}
	if c.has(roleReact) {
		s.background("policies", func(ctx context.Context) error { return s.runtime.Run(ctx, s.side.Policies()...) })
		s.background("timers", s.side.RunTimers)
	}
	if c.has(roleQuery) {
		if err := s.startQueries(kafka, api); err != nil {
			return err
		}
	}
	if c.has(roleFeed) {
		if err := s.startFeed(kafka, auth, api); err != nil {
			return err
		}
	}
	s.operations.Routes(api)
	feed.AsyncAPI(api)
	for path, h := range map[string]http.HandlerFunc{
		"/healthz": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) },
		"/readyz":  s.newHealth().ServeHTTP,
		"/metrics": promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{}).ServeHTTP,
	} {
		api.Router.Get(path, h)
	}

	if c.extend != nil {
		c.extend(api)
	}
	httpServer := httpapi.NewServer(s.lastOnes(api))
	silent := &silentConns{conns: map[net.Conn]struct{}{}}
	httpServer.ConnState = silent.note
	go func() {
		if err := httpServer.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			s.failed <- err
		}
	}()
	s.onStop(func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, httpStopLimit) // the shards want time, too
		defer cancel()
		closing := time.AfterFunc(silentLimit, silent.close)
		defer closing.Stop()
		if httpServer.Shutdown(ctx) != nil {
			return httpServer.Close()
		}
		return nil
	})
	if s.hub != nil {
		s.onStop(s.hub.Drain) // before the server, which waits for open streams
	}
	if c.has(roleCommand) {
		s.onStop(func(ctx context.Context) error { // while the others can still reach this one
			ctx, cancel := context.WithTimeout(ctx, handOverLimit)
			defer cancel()
			s.shards.HandOver(ctx)
			return nil
		})
	}
	s.onStop(func(context.Context) error { s.stopping.Store(true); return nil })
	return nil
}

// identifyLogs finds out which logs these are, and how to ask for their ends.
func (s *server) identifyLogs(ctx context.Context, kafka eventlog.Config) error {
	client, err := kafka.NewClient()
	if err != nil {
		return err
	}
	s.onStop(func(context.Context) error { client.Close(); return nil })
	s.ends = eventlog.NewEnds(client)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	s.logID, err = eventlog.ReadLogID(ctx, client)
	return err
}

// silentConns are connections on which nothing was sent yet. Clients open some
// in advance; a shutdown would wait five seconds for each.
type silentConns struct {
	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

// silentLimit is how long a shutdown waits for their first request.
const silentLimit = 300 * time.Millisecond

func (s *silentConns) note(c net.Conn, state http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if state == http.StateNew {
		s.conns[c] = struct{}{}
	} else {
		delete(s.conns, c)
	}
}

func (s *silentConns) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		_ = c.Close() // it ends either way
	}
}

// lastOnes lets a server that stops close each connection after its next answer:
// closed while it is idle, it may be so just when the client writes its next
// request to it.
func (s *server) lastOnes(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.stopping.Load() {
			w.Header().Set("Connection", "close")
		}
		h.ServeHTTP(w, r)
	})
}

// greet tells a newcomer where to go and how to get in.
func (s *server) greet(out io.Writer) {
	fmt.Fprintf(out, "tomato %s serves %s at %s\n", settings.Build(), strings.Join(s.cmd.Role, ", "), s.url)
	if !s.made.JWT { // tokens are never shown that a chosen secret has signed
		return
	}
	fmt.Fprintln(out, "development tokens, valid for 24 hours:")
	for _, a := range []domain.Actor{{Sub: "ops1", Role: domain.Ops}, {Sub: "staff1", Role: domain.Restaurant, RestaurantID: "rest1"},
		{Sub: "rider1", Role: domain.Rider}, {Sub: "cust1", Role: domain.Customer}} {
		token, err := httpapi.AuthConfig{Secret: s.cmd.JWTSecret, Issuer: s.cmd.JWTIssuer, Audience: s.cmd.JWTAudience}.MintToken(a, 24*time.Hour)
		if err != nil {
			return
		}
		fmt.Fprintf(out, "  %s=%s\n", strings.ToUpper(string(a.Role)), token)
	}
}
