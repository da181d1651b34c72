package projections_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"tomato/domain"
	"tomato/domain/nearby"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/eventlogtest"
	"tomato/migrations"
	"tomato/migrations/postgrestest"
	"tomato/projections"
)

// BenchmarkNearest searches among 100,000 riders of one city, of whom so many
// are free: the 20 nearest within 5 km, one search at a time per connection.
func BenchmarkNearest(b *testing.B) {
	for _, share := range []float64{1, 0.1, 0.01, 0} {
		for _, batch := range []int{1, 50} {
			b.Run(fmt.Sprintf("free=%v/batch=%d", share, batch), func(b *testing.B) { benchmarkNearest(b, share, batch) })
		}
	}
}

func benchmarkNearest(b *testing.B, share float64, batch int) {
	ctx := context.Background()
	url := postgrestest.URL(b)
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		b.Fatal(err)
	}
	config.MaxConns = 4
	db, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(db.Close)
	if err := migrations.Core(ctx, url); err != nil {
		b.Fatal(err)
	}
	m := &projections.ReadModels{DB: db, DatabaseURL: url, Positions: consumer.NewPositions(db)}
	if err := m.Ensure(ctx); err != nil {
		b.Fatal(err)
	}
	for _, sql := range []string{
		fmt.Sprintf(`INSERT INTO riders_g1.riders (id, version, name, eligible, order_id, claim_id, state)
			SELECT 'rider' || i, 1, 'n', random() < %v, '', 0, repeat('x', 250) FROM generate_series(1, 100000) i`, share),
		// A city of some 20 by 20 km.
		`INSERT INTO riders_g1.rider_positions (rider_id, location, recorded_at, name, eligible)
			SELECT id, ST_MakePoint(77.5 + random() * 0.2, 12.9 + random() * 0.2)::geography, now(), name, eligible FROM riders_g1.riders`,
		`ANALYZE riders_g1.rider_positions`,
	} {
		if _, err := db.Exec(ctx, sql); err != nil {
			b.Fatal(err)
		}
	}
	var found, searches atomic.Int64
	b.ResetTimer()
	b.SetParallelism(2)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			wish := make([]nearby.Search, batch)
			for i := range wish {
				wish[i] = nearby.Search{Point: domain.Point{Lng: 77.55 + rand.Float64()*0.1, Lat: 12.95 + rand.Float64()*0.1}, RadiusMeters: 5000, Limit: 20}
			}
			got, _, err := m.Nearest(ctx, wish, time.Hour, nil, 0)
			if err != nil {
				b.Error(err)
				return
			}
			for _, g := range got {
				found.Add(int64(len(g)))
			}
			searches.Add(int64(batch))
		}
	})
	b.ReportMetric(float64(searches.Load())/b.Elapsed().Seconds(), "searches/s")
	b.ReportMetric(float64(found.Load())/float64(searches.Load()), "found/search")
}

// BenchmarkRebuild rebuilds the orders of b.N times 9 events, from the first
// record to the switch.
func BenchmarkRebuild(b *testing.B) {
	cfg, _ := eventlogtest.Faulty(b)
	bench := newBenchOn(b, cfg)
	for n := range b.N {
		bench.w.Append(eventlog.Orders, orderID(n), life(n)...)
	}
	var filled time.Duration
	start := time.Now()
	b.ResetTimer()
	if _, err := bench.m.Rebuild(b.Context(), projections.Orders, projections.RebuildOptions{Runtime: bench.runtime(), Progress: func(p projections.Progress) {
		if p.Phase == projections.PhaseHandingOver {
			filled = time.Since(start)
		}
	}}); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N*9)/filled.Seconds(), "events/s")
	b.ReportMetric(filled.Seconds(), "s")
}

// BenchmarkProject folds the same events with the consumer, which is started when all of
// them are in the log.
func BenchmarkProject(b *testing.B) {
	cfg, _ := eventlogtest.Faulty(b)
	bench := newBenchOn(b, cfg)
	token := eventlog.Token{}
	for n := range b.N {
		token.Merge(bench.w.Append(eventlog.Orders, orderID(n), life(n)...))
	}
	bench.m.MaxWait = 10 * time.Minute
	b.ResetTimer()
	bench.project(bench.m)
	bench.passed(projections.Orders, token)
	b.ReportMetric(float64(b.N*9)/b.Elapsed().Seconds(), "events/s")
}
