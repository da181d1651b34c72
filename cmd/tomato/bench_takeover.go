package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"tomato/commandside/shard"
	"tomato/domain"
	"tomato/domain/rider"
	"tomato/eventlog"
)

// sessionTimeoutMS is how long the group waits for a member that is silent
// before it takes its shards away (shard.Shards.Run).
const sessionTimeoutMS = 6000

// takeover measures how long commands wait while the shards of an instance that
// leaves go to the other one: an instance that was killed, and one that was
// asked to stop. At the survivor one caller per shard issues commands from the
// moment of the kill, or the signal, until it serves them all; the longest wait
// of any command counts.
func (b *bench) takeover(ctx context.Context) error {
	c, err := b.serveConfig(roleCommand)
	if err != nil {
		return err
	}
	s, err := b.serve(ctx, c)
	if err != nil {
		return err
	}
	if b.Count == 0 {
		b.Count = historyOrders / 4
	}
	if _, err := b.writeHistory(ctx, s); err != nil {
		return err
	}
	riders := make([]string, b.Partitions) // one of each shard
	for n, found := 0, int32(0); found < b.Partitions; n++ {
		id := fmt.Sprint("bench-rider-", n)
		if p := eventlog.PartitionFor(id, b.Partitions); riders[p] == "" {
			riders[p] = id
			found++
		}
	}
	if err := b.profile(); err != nil {
		return err
	}
	round := 0
	once := func(end func(*exec.Cmd) error) func(ctx context.Context) (map[string]float64, error) {
		return func(ctx context.Context) (map[string]float64, error) {
			round++
			return b.takeoverOnce(ctx, s, riders, fmt.Sprint("name ", round), end)
		}
	}
	_, kill, err := b.alternating(ctx, "killed", nil, once(func(c *exec.Cmd) error { return c.Process.Kill() }))
	if err != nil {
		return err
	}
	_, handover, err := b.alternating(ctx, "handed over", nil, once(func(c *exec.Cmd) error { return c.Process.Signal(os.Interrupt) }))
	if err != nil {
		return err
	}
	b.add("kill_ms", "ms", kill["ms"], sessionTimeoutMS)
	b.add("handover_ms", "ms", handover["ms"], sessionTimeoutMS)
	return nil
}

// takeoverOnce lets another process have its part of the shards, ends it, and
// returns when s has them all.
func (b *bench) takeoverOnce(ctx context.Context, s *server, riders []string, name string, end func(*exec.Cmd) error) (map[string]float64, error) {
	child, err := b.startChild(ctx, roleCommand)
	if err != nil {
		return nil, err
	}
	defer child.kill()
	total := int(b.Partitions)
	wctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err = until(wctx, func() (bool, error) { // its /readyz has said that it serves what it is assigned
		serving, assigned := s.shards.Serving()
		return serving == assigned && serving <= (total+1)/2, nil
	})
	if err == nil {
		err = ready(ctx, child.url)
	}
	if err != nil {
		return nil, fmt.Errorf("the shards are not spread: %w", err)
	}
	ectx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var g errgroup.Group
	if err := end(child.cmd); err != nil {
		return nil, err
	}
	longest := make([]time.Duration, total)
	for p, id := range riders {
		g.Go(func() error {
			for n := 0; ; n++ {
				serving, _ := s.shards.Serving()
				asked := time.Now()
				for {
					_, err := s.shards.Execute(ectx, shard.Request{Topic: eventlog.Riders, ID: id, Actor: domain.SystemActor,
						Command: rider.Put{RiderID: id, Name: fmt.Sprint(name, " ", n)}})
					if err == nil {
						break
					}
					if !errors.Is(err, shard.ErrUnavailable) || ectx.Err() != nil { // else a repeat is safe
						return err
					}
				}
				longest[p] = max(longest[p], time.Since(asked))
				if serving == total {
					return nil
				}
			}
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return map[string]float64{"ms": slices.Max(longest).Seconds() * 1000}, nil
}

// benchChild is a serve in a process of its own.
type benchChild struct {
	cmd  *exec.Cmd
	url  string
	done chan error
}

// startChild starts a serve with the bench's broker and database, and returns
// when it is ready.
func (b *bench) startChild(ctx context.Context, roles ...string) (*benchChild, error) {
	c, err := b.serveConfig(roles...)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "serve", "--role", strings.Join(roles, ","), "--data-dir", c.DataDir, "--http-addr", c.HTTPAddr, "--log-level", "error",
		"--partitions", fmt.Sprint(b.Partitions), "--replication", fmt.Sprint(b.Replication))
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "TOMATO_") && !strings.HasPrefix(v, "TOMATO_BENCH_")
	}), "KAFKA_BROKERS="+strings.Join(b.Brokers, ","), "DATABASE_URL="+b.DatabaseURL,
		"TOMATO_JWT_SECRET="+benchSecret, "TOMATO_INTERNAL_KEY="+benchSecret, "TOMATO_RAZORPAY_WEBHOOK_SECRETS="+benchSecret)
	cmd.Stderr = b.progressOut
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ch := &benchChild{cmd: cmd, done: make(chan error, 1)}
	go func() { ch.done <- cmd.Wait() }()
	b.onStop(func(context.Context) error { ch.kill(); return nil })
	wctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err = until(wctx, func() (bool, error) {
		select {
		case err := <-ch.done:
			ch.done <- err
			return false, fmt.Errorf("a server ended: %w", err)
		default:
		}
		r, err := readRunning(c.DataDir)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		ch.url = r.URL
		return err == nil, err
	})
	if err == nil {
		err = ready(ctx, ch.url)
	}
	if err != nil {
		ch.kill()
		return nil, err
	}
	return ch, nil
}

// kill ends the process, if it has not ended, and waits for it.
func (c *benchChild) kill() {
	_ = c.cmd.Process.Kill() // fails where it has ended
	err := <-c.done
	c.done <- err
}

// residentKiB is how much memory the process has, or 0 where that is not known.
func (c *benchChild) residentKiB() float64 {
	b, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(c.cmd.Process.Pid), "status"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		var kib float64
		if n, _ := fmt.Sscanf(line, "VmRSS: %f kB", &kib); n == 1 {
			return kib
		}
	}
	return 0
}
