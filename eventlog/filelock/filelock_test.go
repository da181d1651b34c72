package filelock_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"tomato/eventlog/filelock"
)

// TestMain makes the test binary the process that holds a lock and is killed, if
// TOMATO_TEST_FILE_LOCK is set.
func TestMain(m *testing.M) {
	if path := os.Getenv("TOMATO_TEST_FILE_LOCK"); path != "" {
		if _, err := filelock.Take(path); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		fmt.Println("locked")
		select {} // until the process is killed
	}
	os.Exit(m.Run())
}

func TestLockIsHeldUntilItsProcessEnds(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lock")
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), "TOMATO_TEST_FILE_LOCK="+path)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { child.Process.Kill() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "locked\n" {
		t.Fatalf("%q, %v", line, err)
	}

	_, err = filelock.Take(path)
	if !errors.Is(err, filelock.ErrInUse) || !strings.Contains(err.Error(), strconv.Itoa(child.Process.Pid)) {
		t.Errorf("Take beside a live holder: %v, want ErrInUse with its process id", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := filelock.Wait(ended, path); !errors.Is(err, context.Canceled) || !errors.Is(err, filelock.ErrInUse) {
		t.Errorf("Wait with an ended context: %v", err)
	}

	child.Process.Kill()
	child.Wait()
	wait, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	f, err := filelock.Wait(wait, path)
	if err != nil {
		t.Fatalf("Wait after the holder was killed: %v", err)
	}
	if _, err := filelock.Take(path); !errors.Is(err, filelock.ErrInUse) {
		t.Errorf("Take while this process holds it: %v", err)
	}
	f.Close()
	again, err := filelock.Take(path)
	if err != nil {
		t.Fatalf("Take after the lock was released: %v", err)
	}
	again.Close()
}
