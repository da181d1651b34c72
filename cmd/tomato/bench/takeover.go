package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"tomato/cmd/tomato/server"
	"tomato/commandside/shard"
	"tomato/domain"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/httpapi"
)

const (
	// killLimitMS is how long commands may wait for the shards of an instance that
	// was killed. It is the group's session timeout and one second. After the
	// session timeout the group gives the shards of a silent member to others
	// (shard.Shards.Run).
	killLimitMS = 6000 + 1000
	// handoverLimitMS is how long commands may wait for the shards of an instance
	// that stops.
	handoverLimitMS = 500
	// takeoverPace is the time between two commands to one shard.
	takeoverPace = 10 * time.Millisecond
)

// takeover measures how long commands wait while the shards of one instance go to the
// other. It measures this for an instance that is killed and for one that is asked to
// stop. The log has live orders, which the other instance has to load. One caller per
// shard issues commands at the surviving instance. The callers begin before the first
// instance ends, and stop when the survivor serves all shards. The figure is the
// longest wait of any command.
func (b *run) takeover(ctx context.Context) error {
	if b.Count == 0 {
		b.Count = liveOrders
	}
	if err := b.writeLive(ctx, b.Count); err != nil {
		return err
	}
	c, err := b.serveConfig(server.RoleCommand)
	if err != nil {
		return err
	}
	s, err := b.serve(ctx, c, server.Options{})
	if err != nil {
		return err
	}
	riders := make([]string, b.Partitions) // one rider of each shard
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
	b.add("kill_ms", "ms", kill["ms"], killLimitMS)
	b.add("handover_ms", "ms", handover["ms"], handoverLimitMS)
	b.add("open_ms", "ms", kill["open_ms"], 0)
	b.add("open_events", "events", kill["open_events"], 0)
	b.add("handover_open_ms", "ms", handover["open_ms"], 0)
	b.add("live_orders", "orders", float64(b.Count), 0)
	return nil
}

// takeoverOnce starts another instance in a process of its own and waits until it
// serves its part of the shards. Then it ends that process, and returns when s serves
// all shards.
func (b *run) takeoverOnce(ctx context.Context, s *server.Server, riders []string, name string, end func(*exec.Cmd) error) (map[string]float64, error) {
	here := func(ctx context.Context) ([]shard.Status, error) { return s.Shards().Status(ctx), nil }
	if err := b.saved(ctx, here); err != nil {
		return nil, err
	}
	child, err := b.startChild(ctx, server.RoleCommand)
	if err != nil {
		return nil, err
	}
	defer child.kill()
	total := int(b.Partitions)
	wctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	err = until(wctx, func() (bool, error) { // startChild has returned, so the child serves what it is assigned
		serving, assigned := s.Shards().Serving()
		return serving == assigned && serving <= (total+1)/2, nil
	})
	if err == nil {
		err = ready(ctx, child.url)
	}
	if err != nil {
		return nil, fmt.Errorf("the shards are not spread: %w", err)
	}
	if err := b.saved(ctx, child.shards); err != nil {
		return nil, err
	}
	ectx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	longest, warm, ended := make([]time.Duration, total), make([]chan struct{}, total), make(chan struct{})
	g, gctx := errgroup.WithContext(ectx)
	for p, id := range riders {
		warm[p] = make(chan struct{})
		g.Go(func() error {
			pace := time.NewTicker(takeoverPace)
			defer pace.Stop()
			for n := 0; ; n++ {
				over := false
				select {
				case <-ended:
					serving, _ := s.Shards().Serving()
					over = serving == total
				default:
				}
				asked := time.Now()
				for {
					_, err := s.Shards().Execute(gctx, shard.Request{Topic: eventlog.Riders, ID: id, Actor: domain.SystemActor,
						Command: rider.Put{RiderID: id, Name: sealedName(fmt.Sprint(name, " ", n))}})
					if err == nil {
						break
					}
					if !errors.Is(err, shard.ErrUnavailable) || gctx.Err() != nil { // after ErrUnavailable a repeat is safe
						return err
					}
				}
				longest[p] = max(longest[p], time.Since(asked))
				if n == 0 {
					longest[p] = 0 // the first command is left out, because it may open a connection
					close(warm[p])
				}
				if over {
					return nil
				}
				select {
				case <-pace.C:
				case <-gctx.Done():
					return gctx.Err()
				}
			}
		})
	}
	for _, w := range warm {
		select {
		case <-w:
		case <-gctx.Done():
			return nil, g.Wait()
		}
	}
	at := time.Now()
	if err := end(child.cmd); err != nil {
		return nil, err
	}
	close(ended)
	if err := g.Wait(); err != nil {
		return nil, err
	}
	m := map[string]float64{"ms": slices.Max(longest).Seconds() * 1000, "open_ms": 0, "open_events": 0}
	for _, st := range s.Shards().Status(ectx) {
		if st.TakenOverAt.After(at) {
			m["open_ms"] = max(m["open_ms"], st.TookSeconds*1000)
			m["open_events"] += float64(st.Replayed)
		}
	}
	return m, nil
}

// saved waits until snapshots contain all aggregates of an instance but a few. An
// instance that has run for a while is in this state. saved waits for at most 30 s,
// because an instance may fail to write snapshots.
func (b *run) saved(ctx context.Context, status func(context.Context) ([]shard.Status, error)) error {
	const few = 100 // aggregates of one shard that may be missing in snapshots: a take-over reads them quickly
	wctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	err := until(wctx, func() (bool, error) {
		shards, err := status(wctx)
		return !slices.ContainsFunc(shards, func(s shard.Status) bool { return s.State == "serving" && s.Unsaved > few }), err
	})
	if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		b.tell("snapshots are not kept in time")
		return nil
	}
	return err
}

// shards asks the child for the status of its shards.
func (c *child) shards(ctx context.Context) ([]shard.Status, error) {
	token, err := httpapi.MintToken(benchSecret, benchOps, time.Hour)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url+"/v1/ops/shards", nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var body struct{ Items []shard.Status }
	err = json.NewDecoder(resp.Body).Decode(&body)
	return body.Items, err
}
