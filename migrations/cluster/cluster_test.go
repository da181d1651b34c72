package cluster_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"tomato/migrations/cluster"
)

// TestMain lets the test binary be the process that owns a cluster and is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("TOMATO_TEST_CLUSTER_DIR"); dir != "" {
		c, err := cluster.Start(context.Background(), dir, cluster.Options{})
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		fmt.Println(c.URL())
		select {} // until killed
	}
	os.Exit(m.Run())
}

func start(t *testing.T, dir string) *cluster.Cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := cluster.Start(ctx, dir, cluster.Options{})
	if errors.Is(err, cluster.ErrAbsent) && os.Getenv("TOMATO_REQUIRE_POSTGIS") != "1" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, c) })
	return c
}

func stop(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := c.Stop(ctx); err != nil {
		t.Error(err)
	}
}

func query(t *testing.T, url, sql string) (s string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if err := conn.QueryRow(t.Context(), sql).Scan(&s); err != nil && !errors.Is(err, pgx.ErrNoRows) {
		t.Fatalf("%s: %v", sql, err)
	}
	return s
}

func TestDataAndAddressStayThroughRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := start(t, dir)
	query(t, c.URL(), "CREATE TABLE t AS SELECT 'kept' AS x")
	url := c.URL()
	stop(t, c)
	stop(t, c) // again does nothing
	if _, err := pgx.Connect(t.Context(), url); err == nil {
		t.Error("Postgres runs after Stop")
	}
	c = start(t, dir)
	if c.URL() != url {
		t.Errorf("was %s, is %s", url, c.URL())
	}
	if got := query(t, c.URL(), "SELECT x FROM t"); got != "kept" {
		t.Errorf("got %q", got)
	}
}

func TestSecondOwnerIsRefusedWhileTheFirstLives(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	start(t, dir)
	_, err := cluster.Start(t.Context(), dir, cluster.Options{})
	if !errors.Is(err, cluster.ErrInUse) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("got %v", err)
	}
}

func TestConnectionsNeedThePassword(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := start(t, dir)
	config, err := pgx.ParseConfig(c.URL())
	if err != nil {
		t.Fatal(err)
	}
	config.Password = "guess"
	if conn, err := pgx.ConnectConfig(t.Context(), config); err == nil {
		conn.Close(t.Context())
		t.Error("connected with a wrong password")
	}
	info, err := os.Stat(filepath.Join(dir, "password"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("password file: %v %v", info.Mode(), err)
	}
}

func TestKilledOwnersClusterIsTakenOver(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	stop(t, start(t, dir)) // skips where Postgres is absent
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), "TOMATO_TEST_CLUSTER_DIR="+dir)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { child.Process.Kill() })
	url, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || strings.HasPrefix(url, "error:") {
		t.Fatalf("%s %v", url, err)
	}
	query(t, strings.TrimSpace(url), "CREATE TABLE t AS SELECT 'acknowledged' AS x")
	child.Process.Kill()
	child.Wait()
	c := start(t, dir)
	if got := query(t, c.URL(), "SELECT x FROM t"); got != "acknowledged" {
		t.Errorf("got %q", got)
	}
}

func TestOrphanedPostgresIsShutDownFirst(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := start(t, dir)
	query(t, c.URL(), "CREATE TABLE t AS SELECT 'kept' AS x")
	stop(t, c)
	// One that nobody owns: started by hand on the same files.
	postgres, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(postgres) == 0 {
		if os.Getenv("TOMATO_REQUIRE_POSTGIS") == "1" {
			t.Fatal("no Debian Postgres")
		}
		t.Skip("no Debian Postgres")
	}
	data := filepath.Join(dir, "data")
	open, err := os.Open(data)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	port, err := os.ReadFile(filepath.Join(dir, "port"))
	if err != nil {
		t.Fatal(err)
	}
	orphan := exec.Command(postgres[len(postgres)-1], "-D", "/proc/self/fd/3", "-c", "listen_addresses=127.0.0.1",
		"-c", "port="+strings.TrimSpace(string(port)), "-c", "unix_socket_directories=")
	orphan.ExtraFiles = []*os.File{open}
	orphan.Dir = "/"
	info, err := os.Stat(data)
	if err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		st := info.Sys().(*syscall.Stat_t)
		orphan.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: st.Uid, Gid: st.Gid}}
	}
	if err := orphan.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- orphan.Wait() }()
	t.Cleanup(func() { orphan.Process.Kill() })
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for { // until it says that it is up
		b, _ := os.ReadFile(filepath.Join(data, "postmaster.pid"))
		if strings.Contains(string(b), "ready") {
			break
		}
		select {
		case err := <-ended:
			t.Fatalf("the orphan ended: %v", err)
		case <-t.Context().Done():
			t.Fatal("the orphan does not come up")
		case <-tick.C:
		}
	}
	c = start(t, dir)
	if err := <-ended; err != nil {
		t.Errorf("the orphan's end was not clean: %v", err)
	}
	if got := query(t, c.URL(), "SELECT x FROM t"); got != "kept" {
		t.Errorf("got %q", got)
	}
}
