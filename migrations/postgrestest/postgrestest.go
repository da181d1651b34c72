// Package postgrestest gives each test a database of its own, with PostGIS.
//
// The databases are on a private cluster, which starts with the first test that needs
// a database and ends with the test binary. Its directory stays, so only the first
// start on a machine has to create it. Test binaries that run at the same time have a
// cluster each. Nothing is synced to disk. If TOMATO_TEST_DATABASE_URL is set, that
// server is used instead; it must be the URL of a superuser.
package postgrestest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"tomato/migrations/cluster"
)

// New returns a pool of connections to an empty database with PostGIS in the schema
// public. The pool is closed and the database dropped when t ends. If PostGIS is not
// installed, t is skipped, or fails if TOMATO_REQUIRE_POSTGIS is 1.
func New(t testing.TB) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(URL(t))
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = 10 // tests run in parallel on a server of 200
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// URL returns the URL of such a database, for tests that open their own connections.
func URL(t testing.TB) string {
	t.Helper()
	start.Do(func() { server, startErr = startServer() })
	if errors.Is(startErr, cluster.ErrAbsent) && os.Getenv("TOMATO_REQUIRE_POSTGIS") != "1" {
		t.Skipf("no PostGIS: %v", startErr)
	}
	if startErr != nil {
		t.Fatal(startErr)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	name := fmt.Sprintf("test_%d_%d", os.Getpid(), count.Add(1))
	// To copy the template's files is faster than to copy through the log, because
	// nothing is synced here.
	if err := admin(ctx, server, "CREATE DATABASE "+name+" TEMPLATE "+template+" STRATEGY FILE_COPY"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := admin(ctx, server, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			t.Error(err)
		}
	})
	return withDatabase(server, name)
}

// Dump returns all that pg_dump writes about a database: its tables and their rows.
func Dump(t testing.TB, url string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "pg_dump", "--dbname", url).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Fatalf("pg_dump: %s", exit.Stderr)
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(out), "\n")
	lines = slices.DeleteFunc(lines, func(l string) bool { // they have a word that differs in each dump
		return strings.HasPrefix(l, `\restrict`) || strings.HasPrefix(l, `\unrestrict`)
	})
	return strings.Join(lines, "\n")
}

// template is the database that all others are copied from.
const template = "tomato_test_template"

var (
	start    sync.Once
	server   string // URL
	startErr error
	count    atomic.Int64
)

func startServer() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	server := os.Getenv("TOMATO_TEST_DATABASE_URL")
	own := server == ""
	if own {
		c, err := startCluster(ctx)
		if err != nil {
			return "", err
		}
		server = c.URL()
	}
	return server, makeTemplate(ctx, server, own)
}

// startCluster starts the first cluster that no other test binary has. Nothing stops
// it: it ends with the process. On systems where it does not, the next process that
// takes the directory ends it.
func startCluster(ctx context.Context) (*cluster.Cluster, error) {
	base := filepath.Join(os.TempDir(), "tomato-postgrestest-"+strconv.Itoa(os.Getuid()))
	for i := range 64 {
		c, err := cluster.Start(ctx, filepath.Join(base, strconv.Itoa(i)), cluster.Options{Settings: map[string]string{
			"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "wal_level": "minimal", "max_wal_senders": "0", "autovacuum": "off",
		}})
		if !errors.Is(err, cluster.ErrInUse) {
			return c, err
		}
	}
	return nil, errors.New("64 test clusters are running")
}

// makeTemplate creates the template if it does not exist. On a cluster of its own it
// also drops the databases that killed tests have left.
func makeTemplate(ctx context.Context, server string, own bool) error {
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	// On a shared server, other test binaries may do the same at the same time. The
	// template gets its name when it is complete.
	const part = template + "_part"
	if _, err := conn.Exec(ctx, "SELECT pg_advisory_lock(7310577)"); err != nil {
		return err
	}
	if own {
		rows, err := conn.Query(ctx, `SELECT datname FROM pg_database WHERE datname LIKE 'test\_%'`)
		if err != nil {
			return err
		}
		left, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		for _, name := range left {
			if _, err := conn.Exec(ctx, "DROP DATABASE "+pgx.Identifier{name}.Sanitize()+" WITH (FORCE)"); err != nil {
				return err
			}
		}
	}
	var exists bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", template).Scan(&exists); err != nil || exists {
		return err
	}
	for _, sql := range []string{"DROP DATABASE IF EXISTS " + part + " WITH (FORCE)", "CREATE DATABASE " + part} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	if err := admin(ctx, withDatabase(server, part), "CREATE EXTENSION postgis SCHEMA public"); err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "ALTER DATABASE "+part+" RENAME TO "+template)
	return err
}

func admin(ctx context.Context, server, sql string) error {
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, sql)
	return errors.Join(err, conn.Close(ctx))
}

func withDatabase(server, name string) string {
	u, err := url.Parse(server)
	if err != nil {
		return server // pgx will say what is wrong with it
	}
	u.Path = "/" + name
	return u.String()
}
