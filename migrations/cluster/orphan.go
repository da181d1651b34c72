package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// stopOrphan ends a Postgres that outlived the process that started it, and
// returns when it has ended. The caller holds the directory's lock, so no live
// process owns that Postgres.
func stopOrphan(ctx context.Context, data string) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for signalled := false; ; {
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
			return nil // a killed Postgres left the file behind; the next one removes it
		}
		if !signalled {
			signalled = true
			if err := syscall.Kill(pid, syscall.SIGINT); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("a Postgres without an owner (process %d) runs on %s and cannot be stopped: %w", pid, data, err)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("a Postgres without an owner (process %d) runs on %s and does not stop: %w", pid, data, ctx.Err())
		case <-tick.C:
		}
	}
}

// isPostmaster reports whether process pid is a Postgres on data. After a restart
// of the machine another program may have that process id. A postmaster's
// working directory is its data directory.
func isPostmaster(pid int, data string) bool {
	if _, err := os.Stat("/proc/self"); err != nil {
		return syscall.Kill(pid, 0) == nil // this system does not say more about a process
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
