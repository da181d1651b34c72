package bench

import (
	"cmp"
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"tomato/cmd/tomato/server"
	"tomato/projections"
)

// What comes in one second while riders are under load.
const (
	loadPositions = 20_000
	loadSearches  = 1000
)

// ridersUnderLoad lets positions and searches come at the same time and at fixed rates,
// for b.Load. It measures whether the read model keeps up, whether searches become
// slower, and how much the table grows. The limit runs the same SQL statements at the
// same rates, without HTTP and Kafka. Both begin with a table that was just vacuumed.
func (b *run) ridersUnderLoad(ctx context.Context, s *server.Server, byPartition [][]string, ops string) error {
	write, err := writeBare(ctx, s, byPartition)
	if err != nil {
		return err
	}
	var limit, value loadFigures
	if err := asLimit(ctx, func(ctx context.Context) error {
		limit, err = b.load(ctx, s, "the limit", write, searchBare(s))
		return err
	}); err != nil {
		return err
	}
	reports, searches := newHTTPConns(s.URL(), reporters), newHTTPConns(s.URL(), searchers)
	defer closeAll(reports)
	defer closeAll(searches)
	value, err = b.load(ctx, s, "over HTTP and Kafka", reportOver(reports, ops, byPartition), searchOver(searches, ops))
	if err != nil {
		return err
	}
	b.add("load_updates_per_s", "positions/s", value.positionsPerS, limit.positionsPerS)
	b.add("load_searches_per_s", "searches/s", value.searchesPerS, limit.searchesPerS)
	b.add("load_catch_up_ms", "ms", value.catchUpMs, 0)
	b.add("load_search_p50_ms_begin", "ms", value.begin["p50_ms"], limit.begin["p50_ms"])
	b.add("load_search_p99_ms_begin", "ms", value.begin["p99_ms"], limit.begin["p99_ms"])
	b.add("load_search_p50_ms_end", "ms", value.end["p50_ms"], limit.end["p50_ms"])
	b.add("load_search_p99_ms_end", "ms", value.end["p99_ms"], limit.end["p99_ms"])
	b.add("load_mb_begin", "MB", value.before.bytes/1e6, 0)
	b.add("load_mb_end", "MB", value.after.bytes/1e6, limit.after.bytes/1e6)
	if value.after.deadRows > 0 { // right after a vacuum there is none
		b.add("load_dead_rows_end", "rows", value.after.deadRows, 0)
	}
	return nil
}

// loadFigures are what one load has measured.
type loadFigures struct {
	positionsPerS, searchesPerS float64
	catchUpMs                   float64            // from the end of the load until the read model has all positions
	begin, end                  map[string]float64 // latencies of the first and the last tenth of the searches
	before, after               tableSize
}

// tableSize is the size of the tables of the riders, with their indexes.
type tableSize struct{ bytes, deadRows float64 }

func (b *run) load(ctx context.Context, s *server.Server, what string, report, search func(context.Context, int) error) (f loadFigures, err error) {
	d := cmp.Or(b.Load, b.Duration)
	g, err := s.ReadModels().Serving(ctx, projections.Riders)
	if err != nil {
		return f, err
	}
	if _, err := s.ReadModels().DB.Exec(ctx, `VACUUM ANALYZE `+g.Schema()+`.rider_positions`); err != nil {
		return f, err
	}
	if f.before, err = sizeOf(ctx, s, g); err != nil {
		return f, err
	}
	b.tell("%d positions/s and %d searches/s for %v, %s", loadPositions, loadSearches, d, what)
	var reports, searches []time.Duration
	start := time.Now()
	eg, ectx := errgroup.WithContext(ctx)
	eg.Go(func() (err error) {
		reports, err = paced(ectx, reporters, float64(loadPositions)/positionsAtOnce, d, report)
		f.positionsPerS = float64(len(reports)*positionsAtOnce) / time.Since(start).Seconds()
		return err
	})
	eg.Go(func() (err error) {
		searches, err = paced(ectx, searchers, loadSearches, d, search)
		f.searchesPerS = float64(len(searches)) / time.Since(start).Seconds()
		return err
	})
	if err := eg.Wait(); err != nil {
		return f, err
	}
	ended := time.Now()
	if err := b.positionsPassed(ctx, s); err != nil {
		return f, err
	}
	f.catchUpMs = float64(time.Since(ended)) / float64(time.Millisecond)
	tenth := max(1, len(searches)/10)
	last := searches[len(searches)-tenth:]
	f.begin, f.end = latencies(searches[:tenth]), latencies(last)
	f.after, err = sizeOf(ctx, s, g)
	b.tell("%s: %.0f positions/s, %.0f searches/s, p99 %.1f ms at the beginning, %.1f ms at the end; the tables had %.0f MB before and have %.0f MB, %.0f rows dead",
		what, f.positionsPerS, f.searchesPerS, f.begin["p99_ms"], f.end["p99_ms"], f.before.bytes/1e6, f.after.bytes/1e6, f.after.deadRows)
	return f, err
}

func sizeOf(ctx context.Context, s *server.Server, g projections.Generation) (size tableSize, err error) {
	all, err := s.ReadModels().Status(ctx)
	for _, status := range all {
		if status.Generation != g {
			continue
		}
		for _, t := range status.Tables {
			size.bytes += float64(t.Bytes)
			size.deadRows += float64(t.DeadRows)
		}
	}
	return size, err
}

// paced makes perSecond calls per second for the duration d, with this number of callers.
// If all of them are busy when a call is due, it is made as soon as one is free, and what
// is not begun after d is left out. It returns how long the calls took, each from the
// time at which it was due, in the order of these times. It fails with the first error.
func paced(ctx context.Context, callers int, perSecond float64, d time.Duration, call func(ctx context.Context, caller int) error) ([]time.Duration, error) {
	took := make([]time.Duration, int(perSecond*d.Seconds())+1)
	start := time.Now()
	over := func(i int) bool { return i == len(took) || time.Since(start) > d && i > 0 }
	begun, err := openLoop(ctx, callers, perSecond, over, func(ctx context.Context, caller, i int, due time.Time) error {
		err := call(ctx, caller)
		took[i] = time.Since(due)
		return err
	})
	return took[:begun], err
}
