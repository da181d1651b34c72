// Package cluster runs a private Postgres with PostGIS as a child process, for
// who has configured no database. A real installation brings its own.
//
// A cluster is running from Start until Stop, or until Postgres ends by itself
// (Done). Its directory is authoritative for everything else and may be started
// again after any end, a kill included: Postgres recovers by itself. One
// process at a time has the directory (a file lock that dies with it); a
// Postgres that outlived its owner is shut down, cleanly, before a new one
// starts. On Linux Postgres is also told to shut down when the owner is killed.
//
// Postgres listens on 127.0.0.1 alone, for one user with a generated password,
// which stands in the directory, readable by the owner.
package cluster

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// ErrAbsent says that Postgres or PostGIS is not installed. The error's text
// says what to install.
var ErrAbsent = errors.New("Postgres with PostGIS is not installed")

// ErrInUse says that a live process has the cluster's directory.
var ErrInUse = errors.New("in use by another process")

// install is what the errors advise.
const install = "install it (Debian and Ubuntu: apt-get install postgresql postgresql-postgis; or run .ci/setup), or set DATABASE_URL to a database of your own"

// database and its owner. The owner is a superuser of this private cluster, for
// CREATE EXTENSION postgis asks for one.
const database, owner = "tomato", "tomato"

// Options of a cluster. The zero value is fit for use.
type Options struct {
	// Settings are Postgres settings on top of those chosen here, and win.
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

// Start runs Postgres on dir, created if need be, and returns when it answers;
// the first time takes a few seconds. ctx bounds the start alone. It fails with
// ErrAbsent when Postgres or PostGIS is missing and with ErrInUse when another
// process has dir.
//
// Postgres refuses to run as root; then it runs as the system user postgres,
// which on Linux need not be able to reach dir: it is handed the data opened.
func Start(ctx context.Context, dir string, opts Options) (_ *Cluster, err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("database directory: %w", err)
	}
	lock, err := lockFile(filepath.Join(dir, "lock"))
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
	// Between the choice of a port and Postgres' listening somebody else may
	// take it, and backends of a killed postmaster need a moment to end.
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

// URL returns where to connect, as a postgres:// URL that holds the password.
func (c *Cluster) URL() string { return c.url }

// Done is closed when Postgres has ended, for whatever reason.
func (c *Cluster) Done() <-chan struct{} { return c.done }

// Err returns how Postgres ended; nil while it runs or after a clean end.
func (c *Cluster) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Stop ends connections, writes a checkpoint and returns when Postgres has
// ended. When ctx ends first Postgres is ended at once and recovers at its next
// start; that is no loss, and an error. Later calls do nothing.
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

// start runs Postgres on a port and waits for its answer.
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
		"jit":                     "off", // queries are short; compiling them takes longer than they do
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
	c.cmd = cmd
	c.done, c.err = make(chan struct{}), nil
	if err := c.run(); err != nil {
		return fmt.Errorf("starting Postgres: %w", err)
	}
	if err := c.ready(ctx, port, password); err != nil {
		c.signal(syscall.SIGQUIT)
		<-c.done
		tail, _ := os.ReadFile(c.log)
		return fmt.Errorf("Postgres in %s did not come up: %w; its log ends in:\n%s", data, err, tail[max(0, len(tail)-2000):])
	}
	return nil
}

// run starts and reaps Postgres on a thread of its own: Linux sends the
// parent-death signal when the thread that forked ends, not the process.
func (c *Cluster) run() error {
	started := make(chan error, 1)
	cmd, done := c.cmd, c.done
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		err = cmd.Wait()
		c.mu.Lock()
		c.err = err
		c.mu.Unlock()
		close(done)
	}()
	return <-started
}

// ready waits until Postgres answers, and makes the database if it is not there.
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

func prepare(ctx context.Context, conn *pgx.Conn) error {
	var postgis, exists bool
	err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'postgis'), EXISTS (SELECT FROM pg_database WHERE datname = $1)`, database).Scan(&postgis, &exists)
	if err != nil {
		return err
	}
	if !postgis {
		return fmt.Errorf("%w: Postgres is there, PostGIS is not: %s", ErrAbsent, install)
	}
	if exists {
		return nil
	}
	_, err = conn.Exec(ctx, "CREATE DATABASE "+database)
	return err
}

// initialise makes the cluster's files if they are not there, and returns the
// owner's password.
func initialise(ctx context.Context, bin, data, passwordFile string, who *identity) (string, error) {
	if _, err := os.Stat(filepath.Join(data, "PG_VERSION")); err == nil {
		b, err := os.ReadFile(passwordFile)
		if err != nil {
			return "", fmt.Errorf("the cluster in %s is of no use without its password: %w", data, err)
		}
		return strings.TrimSpace(string(b)), nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	password := rand.Text()
	if err := os.WriteFile(passwordFile, []byte(password+"\n"), 0o600); err != nil {
		return "", err
	}
	// Beside its place and renamed when whole: a start that was killed leaves
	// nothing that looks like a cluster.
	part := data + ".part"
	if err := os.RemoveAll(part); err != nil {
		return "", err
	}
	if err := os.Mkdir(part, 0o700); err != nil {
		return "", err
	}
	f, err := os.Open(part)
	if err != nil {
		return "", err
	}
	if err := errors.Join(who.own(f), f.Close()); err != nil {
		return "", err
	}
	pipe, writePipe, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer pipe.Close()
	_, err = writePipe.WriteString(password + "\n") // far less than a pipe holds
	if err := errors.Join(err, writePipe.Close()); err != nil {
		return "", err
	}
	// It cannot open by name a pipe that another user made, so it owns this one.
	if err := who.own(pipe); err != nil {
		return "", err
	}
	cmd, release, err := who.command(ctx, filepath.Join(bin, "initdb"), part, "-U", owner, "--pwfile=/dev/stdin",
		"--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions")
	if err != nil {
		return "", err
	}
	defer release()
	cmd.Stdin = pipe
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("initdb: %w\n%s", err, out)
	}
	if err := os.Remove(data); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return password, os.Rename(part, data)
}

// binaries finds the folder of initdb and postgres: of the version that made
// data, or of the newest one that has PostGIS.
func binaries(data string) (string, error) {
	version := ""
	if b, err := os.ReadFile(filepath.Join(data, "PG_VERSION")); err == nil {
		version = strings.TrimSpace(string(b))
	}
	candidates, _ := filepath.Glob("/usr/lib/postgresql/*/bin") // Debian's place
	if out, err := exec.Command("pg_config", "--bindir").Output(); err == nil {
		candidates = append(candidates, strings.TrimSpace(string(out)))
	}
	if p, err := exec.LookPath("postgres"); err == nil {
		if p, err = filepath.EvalSymlinks(p); err == nil {
			candidates = append(candidates, filepath.Dir(p))
		}
	}
	best, bestMajor, bestPostGIS := "", 0, false
	for _, bin := range candidates {
		major, err := majorVersion(bin)
		if err != nil || version != "" && version != strconv.Itoa(major) {
			continue
		}
		postgis := hasPostGIS(bin)
		if best == "" || postgis && !bestPostGIS || postgis == bestPostGIS && major > bestMajor {
			best, bestMajor, bestPostGIS = bin, major, postgis
		}
	}
	switch {
	case best != "":
		return best, nil // that PostGIS is really there is asked of Postgres itself
	case version != "":
		return "", fmt.Errorf("%w: the data in %s is of Postgres %s, which is not here: install postgresql-%s-postgis-3, or remove the data; it is rebuilt from the event log", ErrAbsent, data, version, version)
	}
	return "", fmt.Errorf("%w: %s", ErrAbsent, install)
}

func majorVersion(bin string) (int, error) {
	if _, err := os.Stat(filepath.Join(bin, "initdb")); err != nil {
		return 0, err
	}
	out, err := exec.Command(filepath.Join(bin, "postgres"), "--version").Output() // postgres (PostgreSQL) 15.13 (Debian …)
	if err != nil {
		return 0, err
	}
	var major int
	_, err = fmt.Sscanf(string(out), "postgres (PostgreSQL) %d", &major)
	return major, err
}

func hasPostGIS(bin string) bool {
	out, err := exec.Command(filepath.Join(bin, "pg_config"), "--sharedir").Output()
	if err != nil {
		return false
	}
	_, err = os.Stat(filepath.Join(strings.TrimSpace(string(out)), "extension", "postgis.control"))
	return err == nil
}

// stopOrphan ends a Postgres that outlived the process that had started it.
func stopOrphan(ctx context.Context, data string) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for told := false; ; {
		b, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		first, _, _ := bytes.Cut(b, []byte("\n"))
		pid, err := strconv.Atoi(string(first))
		if err != nil || pid <= 1 || !isPostmaster(pid, data) {
			return nil // the file of one that was killed; Postgres removes it
		}
		if !told {
			told = true
			if err := syscall.Kill(pid, syscall.SIGINT); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("a Postgres that nobody owns (process %d) runs on %s and cannot be stopped: %w", pid, data, err)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("a Postgres that nobody owns (process %d) runs on %s and does not stop: %w", pid, data, ctx.Err())
		case <-tick.C:
		}
	}
}

// isPostmaster says whether process pid is a Postgres on data: after a restart
// of the machine the number may be anybody's. A postmaster's working directory
// is its data directory.
func isPostmaster(pid int, data string) bool {
	if _, err := os.Stat("/proc/self"); err != nil {
		return syscall.Kill(pid, 0) == nil // no way to know more
	}
	cwd, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "cwd"))
	if err != nil {
		return false
	}
	if real, err := filepath.EvalSymlinks(data); err == nil {
		data = real
	}
	return cwd == data
}

// identity is the user that Postgres runs as; nil means ourselves.
type identity struct{ uid, gid uint32 }

func runAs() (*identity, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("%w: there is no system user postgres, and Postgres does not run as root: %s", ErrAbsent, install)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &identity{uid: uint32(uid), gid: uint32(gid)}, nil
}

// own makes the open file or directory belong to the identity.
func (i *identity) own(f *os.File) error {
	if i == nil {
		return nil
	}
	return f.Chown(int(i.uid), int(i.gid))
}

// command returns a command of Postgres that works on the directory data, as
// the identity. Call release when it has been started.
func (i *identity) command(ctx context.Context, path, data string, args ...string) (cmd *exec.Cmd, release func(), err error) {
	cmd = exec.CommandContext(ctx, path, args...)
	release = func() {}
	cmd.SysProcAttr = childAttr()
	if i != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: i.uid, Gid: i.gid, Groups: []uint32{i.gid}}
	}
	if i != nil && runtime.GOOS == "linux" {
		// The directory may lie where that user cannot go: below /root, or in a
		// temporary directory of root's. An open directory it can enter, for
		// /proc/self/fd leads there without a look at the parents.
		f, err := os.Open(data)
		if err != nil {
			return nil, nil, err
		}
		release = func() { f.Close() }
		cmd.ExtraFiles = []*os.File{f}
		data = "/proc/self/fd/3"
	}
	cmd.Args = append([]string{path, "-D", data}, args...)
	cmd.Dir = "/"
	// That is all it gets of our environment, which may hold secrets, and PG…
	// variables that it would take for settings.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	return cmd, release, nil
}

// choosePort returns the port of the last start, so that who knows it finds
// Postgres again, or a free one when that is taken or fresh is asked for.
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

// lockFile takes an exclusive lock that ends with this process, however it
// ends. The file holds the owner's process id, for the error of the next.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
		pid, _ := io.ReadAll(io.LimitReader(f, 32))
		return nil, fmt.Errorf("%w (process %s)", ErrInUse, strings.TrimSpace(string(pid)))
	}
	if err := f.Truncate(0); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := fmt.Fprintf(f, "%d\n", os.Getpid()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
