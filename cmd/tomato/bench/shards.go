package bench

import (
	"context"
	"fmt"
	"math"
	"os"
	"runtime"
	"runtime/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tomato/cmd/tomato/settings"
	"tomato/commandside/shard"
)

// liveOrders is the default number of live orders.
const liveOrders = 100_000

// shards measures what live orders cost one instance that serves all shards. It
// measures the memory that they need, and how long a take-over of all shards takes:
// first from the logs alone, then from snapshots. Nothing else runs in this process,
// except the embedded broker if it is used. The memory of the broker is not included,
// because only the growth of the heap is measured.
func (b *run) shards(ctx context.Context) error {
	if b.Count == 0 {
		b.Count = liveOrders
	}
	if err := b.writeLive(ctx, b.Count); err != nil {
		return err
	}
	menus := shard.NewMenus()
	mctx, stopMenus := context.WithCancel(ctx)
	menusEnded := make(chan error, 1)
	go func() { menusEnded <- menus.Run(mctx, b.kafka, b.log) }()
	b.onStop(func(context.Context) error { stopMenus(); return <-menusEnded })
	select {
	case <-menus.Ready():
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := b.profile(); err != nil {
		return err
	}
	replay, err := b.openAll(ctx, menus, never)
	if err != nil {
		return err
	}
	b.add("live_orders", "orders", float64(b.Count), 0)
	b.add("kib_per_live_order", "KiB", replay.bytes/1024/float64(b.Count), 2)
	b.add("replay_ms", "ms", replay.slowest, 0)
	b.add("replay_events_per_s", "events/s", float64(replay.replayed)/replay.slowest*1000, 0)
	written, err := b.openAll(ctx, menus, 0)
	if err != nil {
		return err
	}
	if !written.kept {
		b.tell("the snapshots were not written within %v; their rows are left out", saveLimit)
		return nil
	}
	snapshot, err := b.openAll(ctx, menus, never)
	if err != nil {
		return err
	}
	b.add("snapshot_write_ms", "ms", written.saved, 0)
	b.add("snapshot_load_ms", "ms", snapshot.slowest, replay.slowest)
	b.add("snapshot_tail_events", "events", float64(snapshot.replayed), 0)
	b.add("snapshot_kib_per_live_order", "KiB", snapshot.bytes/1024/float64(b.Count), 2)
	return nil
}

// opened says what it took to open all shards at the same time.
type opened struct {
	slowest  float64 // how long the slowest shard took from its assignment until it served, in ms
	replayed int64   // number of events and claims that were read
	bytes    float64 // by how much the live heap grew
	saved    float64 // how long it took until all snapshots were written, in ms
	kept     bool    // all snapshots were written within saveLimit
}

// never is the time between snapshots for shards that are to write none, because
// writing snapshots would distort the measurement.
const never = 24 * time.Hour

// saveLimit is how long the first snapshots may take.
const saveLimit = 3 * time.Minute

// openAll lets one instance take over all shards, and stops it again. If snapshotEvery
// is not never, it waits for the snapshots before it stops the instance.
func (b *run) openAll(ctx context.Context, menus *shard.Menus, snapshotEvery time.Duration) (o opened, err error) {
	registry := prometheus.NewRegistry()
	shards, err := shard.NewShards(shard.Config{Kafka: b.kafka, Partitions: b.Partitions, Build: settings.Build(), Menus: menus, SnapshotEvery: snapshotEvery, ClusterKeys: []string{benchClusterKey},
		PaymentGrace: time.Hour, ArchiveAfter: 720 * time.Hour, InboxPassed: func(context.Context, string) (bool, error) { return true, nil }, Registry: registry, Log: b.log})
	if err != nil {
		return o, err
	}
	before := liveHeap()
	rctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- shards.Run(rctx) }()
	defer func() {
		stop()
		if e := <-ended; err == nil {
			err = e
		}
	}()
	wctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	err = until(wctx, func() (bool, error) {
		serving, _ := shards.Serving()
		return serving == int(b.Partitions), nil
	})
	if err != nil {
		return o, fmt.Errorf("the shards are not served: %w", err)
	}
	if snapshotEvery == never {
		o.bytes = liveHeap() - before
		if err := b.heapProfile(); err != nil {
			return o, err
		}
	}
	for _, s := range shards.Status(wctx) {
		o.slowest = max(o.slowest, s.TookSeconds*1000)
		o.replayed += s.Replayed
	}
	b.tell("the slowest shard was opened in %.0f ms, %d events were read, the heap grew by %.1f MiB", o.slowest, o.replayed, o.bytes/(1<<20))
	if snapshotEvery == never {
		return o, nil
	}
	start := time.Now()
	sctx, cancel := context.WithTimeout(wctx, saveLimit)
	defer cancel()
	err = until(sctx, func() (bool, error) {
		for _, s := range shards.Status(sctx) {
			if s.Unsaved > 0 || s.Saving { // some aggregates need no snapshot: the previous instance may have written theirs when it stopped
				return false, nil
			}
		}
		return true, nil
	})
	if wctx.Err() == nil && sctx.Err() != nil {
		return o, nil
	}
	o.kept = err == nil
	o.saved = time.Since(start).Seconds() * 1000
	return o, err
}

// liveHeap returns how many bytes of the heap are reachable. It collects until two
// collections agree, because what has just ended, such as the clients of a set-up, gives
// its memory back a little later.
func liveHeap() float64 {
	const agree, tries = 64 << 10, 20
	var m runtime.MemStats
	before := uint64(math.MaxUint64)
	for range tries {
		runtime.GC()
		runtime.GC() // frees objects with finalizers, which need a second collection
		runtime.ReadMemStats(&m)
		if m.HeapAlloc+agree >= before {
			break
		}
		before = m.HeapAlloc
		time.Sleep(20 * time.Millisecond)
	}
	return float64(m.HeapAlloc)
}

// heapProfile writes a profile of the reachable heap, if one is wanted and none has
// been written.
func (b *run) heapProfile() error {
	if b.MemProfile == "" || b.heapProfiled {
		return nil
	}
	b.heapProfiled = true
	f, err := os.Create(b.MemProfile)
	if err != nil {
		return err
	}
	if err := pprof.Lookup("heap").WriteTo(f, 0); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}
