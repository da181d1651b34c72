// Package cluster runs a private Postgres with PostGIS as a child process, for
// users who have configured no database. An installation in production has its own.
//
// A cluster runs from Start until Stop, or until Postgres ends by itself (Done). All
// its files are in one directory. It may be started again after any end, even a
// kill, because Postgres recovers by itself. One process at a time has the
// directory: it holds a file lock, which the system releases when the process ends.
// If a Postgres has outlived the process that started it, Start shuts it down before
// it starts a new one. On Linux the kernel also tells Postgres to shut down when
// that process is killed.
//
// Postgres listens on 127.0.0.1 only, for one user with a generated password. The
// password is in the directory, in a file that only the owner can read.
//
// The files, in reading order:
//
//	cluster.go       Start and Stop
//	installation.go  which of the installed versions runs
//	identity.go      the system user that it runs as
//	initdb.go        the files of a new cluster
//	orphan.go        a Postgres that outlived its process
package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"tomato/eventlog/childprocess"
	"tomato/eventlog/filelock"
)

// ErrInUse means that another process, which is running, has the cluster's directory.
var ErrInUse = filelock.ErrInUse

// database is the name of the database, and owner is the user who owns it. The owner
// is a superuser of this private cluster, because CREATE EXTENSION postgis needs one.
const database, owner = "tomato", "tomato"

// Options of a cluster. The zero value may be used.
type Options struct {
	// Settings are settings of Postgres. They override those that start chooses.
	Settings map[string]string
}

// Cluster is a running Postgres. Its methods may be called concurrently.
type Cluster struct {
	url  string
	log  string // path of Postgres' log
	cmd  *exec.Cmd
	lock *os.File
	done chan struct{} // closed when Postgres has ended and been reaped

	mu  sync.Mutex
	err error // how it ended
}

// Start runs Postgres on dir, which it creates if it does not exist, and returns when
// Postgres answers. The first start takes a few seconds. ctx bounds the start only.
// It fails with ErrAbsent if Postgres or PostGIS is not installed, and with ErrInUse
// if another process has dir.
//
// Postgres refuses to run as root. If this process is root, Postgres runs as
// the system user postgres. On Linux that user need not be able to reach dir,
// because Postgres gets the data directory already opened.
func Start(ctx context.Context, dir string, opts Options) (_ *Cluster, err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("database directory: %w", err)
	}
	lock, err := filelock.Take(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("database directory %s: %w", dir, err)
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	who, err := runAs()
	if err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "data")
	bin, err := binaries(data)
	if err != nil {
		return nil, err
	}
	if err := stopOrphan(ctx, data); err != nil {
		return nil, err
	}
	password, err := initialise(ctx, bin, data, filepath.Join(dir, "password"), who)
	if err != nil {
		return nil, err
	}
	c := &Cluster{log: filepath.Join(dir, "postgres.log"), lock: lock}
	// A first attempt can fail for two reasons that pass: another process took
	// the port before Postgres listened on it, or the backends of a killed
	// postmaster have not ended yet.
	for try := 0; ; try++ {
		if err = c.start(ctx, bin, data, dir, password, who, opts, try); err == nil {
			return c, nil
		}
		if try == 4 || ctx.Err() != nil || errors.Is(err, ErrAbsent) {
			return nil, err
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

// URL returns the postgres:// URL to connect to. It contains the password.
func (c *Cluster) URL() string { return c.url }

// PID returns the id of the process of Postgres. The processes that serve connections
// are its children.
func (c *Cluster) PID() int { return c.cmd.Process.Pid }

// Done is closed when Postgres has ended, for whatever reason.
func (c *Cluster) Done() <-chan struct{} { return c.done }

// Err returns how Postgres ended. It is nil while Postgres runs and after a clean end.
func (c *Cluster) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Stop ends all connections, has Postgres write a checkpoint, and returns when
// Postgres has ended. If ctx ends first, Stop ends Postgres at once and returns an error.
// No data is lost then, because Postgres recovers at its next start. Later calls do
// nothing.
func (c *Cluster) Stop(ctx context.Context) error {
	err := c.stop(ctx)
	c.lock.Close()
	return err
}

func (c *Cluster) stop(ctx context.Context) error {
	c.signal(syscall.SIGINT) // "fast" shutdown
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
	}
	c.signal(syscall.SIGQUIT) // "immediate"
	select {
	case <-c.done:
	case <-time.After(10 * time.Second): // Postgres itself kills its children after 5
		c.signal(syscall.SIGKILL)
		<-c.done
	}
	return fmt.Errorf("Postgres did not stop in time and was ended at once: %w", ctx.Err())
}

func (c *Cluster) signal(s os.Signal) {
	select {
	case <-c.done:
	default:
		c.cmd.Process.Signal(s)
	}
}

// start runs Postgres and waits until it answers. try is 0 for the first attempt.
func (c *Cluster) start(ctx context.Context, bin, data, dir, password string, who *identity, opts Options, try int) error {
	port, err := choosePort(filepath.Join(dir, "port"), try > 0)
	if err != nil {
		return err
	}
	log, err := os.OpenFile(c.log, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	settings := map[string]string{
		"listen_addresses":        "127.0.0.1",
		"port":                    strconv.Itoa(port),
		"unix_socket_directories": "", // a path under dir may be too long for a socket
		"max_connections":         "200",
		"shared_buffers":          "128MB",
		"synchronous_commit":      "on",
		"jit":                     "off", // queries are short, and to compile one takes longer than to run it
		"max_wal_size":            "2GB",
		"random_page_cost":        "1.1",
		"logging_collector":       "off",
		"log_min_messages":        "warning",
		"timezone":                "UTC",
	}
	for k, v := range opts.Settings {
		settings[k] = v
	}
	var args []string
	for k, v := range settings {
		args = append(args, "-c", k+"="+v)
	}
	cmd, release, err := who.command(context.Background(), filepath.Join(bin, "postgres"), data, args...)
	if err != nil {
		return err
	}
	defer release()
	cmd.Stdout, cmd.Stderr = log, log
	done := make(chan struct{})
	c.cmd, c.done, c.err = cmd, done, nil
	ended := func(err error) {
		c.mu.Lock()
		c.err = err
		c.mu.Unlock()
		close(done)
	}
	if err := childprocess.Start(cmd, ended); err != nil {
		return fmt.Errorf("starting Postgres: %w", err)
	}
	if err := c.ready(ctx, port, password); err != nil {
		c.signal(syscall.SIGQUIT)
		<-c.done
		tail, _ := os.ReadFile(c.log)
		return fmt.Errorf("Postgres in %s did not start: %w; its log ends in:\n%s", data, err, tail[max(0, len(tail)-2000):])
	}
	return nil
}

// ready waits until Postgres answers, and creates the database if it does not
// exist.
func (c *Cluster) ready(ctx context.Context, port int, password string) error {
	address := func(db string) string {
		u := url.URL{Scheme: "postgres", User: url.UserPassword(owner, password), Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), Path: "/" + db, RawQuery: "sslmode=disable"}
		return u.String()
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := pgx.Connect(ctx, address("postgres"))
		if err == nil {
			defer conn.Close(context.WithoutCancel(ctx))
			if err := prepare(ctx, conn); err != nil {
				return err
			}
			c.url = address(database)
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (last: %w)", ctx.Err(), err)
		case <-c.done:
			return fmt.Errorf("it ended: %w", c.Err())
		case <-tick.C:
		}
	}
}

// prepare checks that PostGIS is installed, and creates the database if it does
// not exist.
func prepare(ctx context.Context, conn *pgx.Conn) error {
	var postgis, exists bool
	err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'postgis'), EXISTS (SELECT FROM pg_database WHERE datname = $1)`, database).Scan(&postgis, &exists)
	if err != nil {
		return err
	}
	if !postgis {
		return fmt.Errorf("%w: Postgres is installed without PostGIS: %s", ErrAbsent, install)
	}
	if exists {
		return nil
	}
	_, err = conn.Exec(ctx, "CREATE DATABASE "+database)
	return err
}

// choosePort returns the port of the last start, so that clients that know it
// find Postgres again. It returns another free port when that one is taken or
// when fresh is set.
func choosePort(path string, fresh bool) (int, error) {
	if b, err := os.ReadFile(path); err == nil && !fresh {
		if port, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
			if l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
				return port, l.Close()
			}
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	return port, os.WriteFile(path, []byte(strconv.Itoa(port)+"\n"), 0o600)
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
