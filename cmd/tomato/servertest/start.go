// Package servertest has the parts of tests that run whole servers on real parts: a
// broker, a Postgres, HTTP and websockets. Such tests read as given, when, then: a
// status, the new events on the topics, what queries show and what feeds were sent.
//
// start.go starts and stops, client.go sends requests, feed.go reads feeds, browser.go
// opens pages in Chromium, waits.go waits, chronicle.go reads the topics, process.go runs
// servers as processes of their own, builds.go builds other programs for that, and given.go
// has what a test is given.
package servertest

import (
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"tomato/cmd/tomato/server"
	"tomato/domain"
	"tomato/eventlog"
	"tomato/migrations/postgrestest"
)

// What servers under test are started with.
const (
	JWTSecret     = "of the end-to-end tests, 32 bytes"
	WebhookSecret = "whsec_e2e"
	InternalKey   = "internal of the end-to-end tests, 32"
	ClusterKey    = "cluster of the end-to-end tests, 32 b"
	Partitions    = 4 // of twelve: less to set up, nothing of another kind

	// Patience bounds every wait. It is long because the machine may be busy;
	// nothing waits for longer than what it waits for takes.
	Patience = 90 * time.Second
)

// Installation is one installation under test: a broker, a database, and at most one
// server on them in this process. A test may change Config and Options before Start.
type Installation struct {
	T       testing.TB
	Kafka   eventlog.Config
	Config  server.Config
	Options server.Options
	URL     string
	Server  *server.Server // nil: not running here
	Client  *http.Client
	Log     *Chronicle // nil before it runs, and on a broker of its own
}

// Ops is an operator.
var Ops = domain.Actor{Sub: "ops1", Role: domain.Ops}

// Customer is the customer of that id.
func Customer(id string) domain.Actor { return domain.Actor{Sub: id, Role: domain.Customer} }

// Rider is the rider of that id.
func Rider(id string) domain.Actor { return domain.Actor{Sub: id, Role: domain.Rider} }

// Staff is somebody at the restaurant of that id.
func Staff(restaurantID string) domain.Actor {
	return domain.Actor{Sub: "staff-" + restaurantID, Role: domain.Restaurant, RestaurantID: restaurantID}
}

// New prepares an installation on the brokers with a database of its own. args are
// flags of serve, beside or instead of those that New sets.
func New(t testing.TB, kafka eventlog.Config, args ...string) *Installation {
	t.Helper()
	return NewOn(t, kafka, postgrestest.URL(t), args...)
}

// NewOn is New with a database of which the test takes care.
func NewOn(t testing.TB, kafka eventlog.Config, database string, args ...string) *Installation {
	t.Helper()
	a := &Installation{T: t, Kafka: kafka}
	a.Config = a.parse(append([]string{"--database-url", database, "--kafka-brokers", strings.Join(kafka.Brokers, ","), "--data-dir", t.TempDir(),
		"--http-addr", "127.0.0.1:0", "--partitions", strconv.Itoa(Partitions), "--log-level", LogLevel()}, args...))
	transport := &http.Transport{MaxIdleConnsPerHost: 256, MaxConnsPerHost: 256}
	a.Client = &http.Client{Transport: transport, Timeout: Patience}
	t.Cleanup(transport.CloseIdleConnections)
	return a
}

// As returns the same installation for a subtest: what fails, fails t.
func (a *Installation) As(t testing.TB) *Installation {
	b := *a
	b.T = t
	return &b
}

// LogLevel returns the level of the servers under test, by default error: what they
// log hides what fails.
func LogLevel() string {
	if l := os.Getenv("TOMATO_E2E_LOG_LEVEL"); l != "" {
		return l
	}
	return "error"
}

func (a *Installation) parse(flags []string) server.Config {
	a.T.Helper()
	c, err := server.ParseConfig(flags...)
	if err != nil {
		a.T.Fatal(err)
	}
	c.JWTSecret, c.ClusterKey, c.InternalKey = JWTSecret, ClusterKey, InternalKey
	c.WebhookSecrets = []string{WebhookSecret}
	return c
}

// Start starts a server in this process and returns when it is ready. It is stopped
// when the test ends, unless Stop did so before.
func (a *Installation) Start() *Installation {
	a.T.Helper()
	s, err := server.Start(a.T.Context(), a.Config, a.Options)
	if err != nil {
		a.T.Fatal("serve:", err)
	}
	a.Server, a.URL = s, s.URL()
	a.T.Cleanup(a.Stop)
	a.AwaitReady()
	return a
}

// AwaitReady returns when the server and all its parts are well, and the chronicle
// follows.
func (a *Installation) AwaitReady() {
	a.T.Helper()
	a.Await("the server is ready", func() error {
		x := a.Do(domain.Actor{}, "GET /readyz", nil)
		if x.Status != http.StatusOK || x.Str("status") != "ready" {
			return x.Fault()
		}
		return nil
	})
	if a.Log == nil && len(a.Config.Brokers) > 0 {
		a.Log = follow(a.T, a.Kafka)
	}
}

// Stop drains the server, if one runs here.
func (a *Installation) Stop() {
	if a.Server == nil {
		return
	}
	if err := a.Server.Close(); err != nil {
		a.T.Error("serve did not drain:", err)
	}
	a.Server = nil
}

// DB opens the database, for what a test does without the server.
func (a *Installation) DB() *pgxpool.Pool {
	a.T.Helper()
	pool, err := pgxpool.New(a.T.Context(), a.Config.DatabaseURL)
	if err != nil {
		a.T.Fatal(err)
	}
	a.T.Cleanup(pool.Close)
	return pool
}
