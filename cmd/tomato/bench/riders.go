package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"tomato/cmd/tomato/server"
	"tomato/commandside/shard"
	"tomato/domain"
	"tomato/domain/nearby"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/projections"
)

const (
	cityRiders      = 20_000
	positionsAtOnce = 1000 // in one request; in the limit, in one transaction
	reporters       = 4
	searchers       = 32
)

// cityPoint returns a random position in a city of 30 by 30 km.
func cityPoint() domain.Point {
	return domain.Point{Lng: 77.45 + 0.28*rand.Float64(), Lat: 12.83 + 0.27*rand.Float64()}
}

// riders measures how many positions per second are reported and become visible to
// searches. It also measures searches over HTTP. The limit runs the same SQL
// statements without HTTP and Kafka.
func (b *run) riders(ctx context.Context) error {
	c, err := b.serveConfig(server.RoleCommand, server.RoleQuery, server.RoleProject)
	if err != nil {
		return err
	}
	s, err := b.serve(ctx, c, server.Options{})
	if err != nil {
		return err
	}
	if b.Count == 0 {
		b.Count = cityRiders
	}
	b.tell("%d riders go online", b.Count)
	ids, token, err := goOnline(ctx, s, b.Count)
	if err != nil {
		return err
	}
	if err := passed(ctx, s.ReadModels(), token, projections.Riders); err != nil {
		return err
	}
	if err := b.profile(); err != nil {
		return err
	}
	limit, value, err := b.alternating(ctx, "updates",
		func(ctx context.Context) (map[string]float64, error) { return b.writePositions(ctx, s, ids) },
		func(ctx context.Context) (map[string]float64, error) { return b.reportPositions(ctx, s, ids) })
	if err != nil {
		return err
	}
	b.add("updates_per_s", "positions/s", value["per_s"], limit["per_s"])

	ops, err := tokens{}.of(benchOps)
	if err != nil {
		return err
	}
	conns := newHTTPConns(s.URL(), searchers)
	defer closeAll(conns)
	limit, value, err = b.alternating(ctx, "searches",
		func(ctx context.Context) (map[string]float64, error) {
			return closedLoop(ctx, searchers, b.Duration, searchBare(s))
		},
		func(ctx context.Context) (map[string]float64, error) {
			return closedLoop(ctx, searchers, b.Duration, searchOver(conns, ops))
		})
	if err != nil {
		return err
	}
	b.add("searches_per_s", "searches/s", value["per_s"], limit["per_s"])
	b.add("search_p50_ms", "ms", value["p50_ms"], limit["p50_ms"])
	b.add("search_p99_ms", "ms", value["p99_ms"], limit["p99_ms"])
	return b.ridersUnderLoad(ctx, s, ids, ops)
}

// searchBare returns a call that searches without HTTP.
func searchBare(s *server.Server) func(context.Context, int) error {
	return func(ctx context.Context, _ int) error {
		_, _, err := s.ReadModels().Nearest(ctx, []nearby.Search{{Point: cityPoint(), RadiusMeters: 5000, Limit: 20}}, time.Hour, nil, 0)
		return err
	}
}

// searchOver returns a call that searches over HTTP. Caller n uses conns[n].
func searchOver(conns []*httpConn, token string) func(context.Context, int) error {
	return func(_ context.Context, n int) error {
		p := cityPoint()
		return conns[n].do("GET", fmt.Sprintf("/v1/riders/nearby?lat=%f&lng=%f&radius=5000&limit=20", p.Lat, p.Lng), token, nil)
	}
}

// goOnline registers n riders and sends them online. It returns their ids, grouped by
// partition, and a token that covers all their events.
func goOnline(ctx context.Context, s *server.Server, n int) ([][]string, eventlog.Token, error) {
	ids := make([][]string, s.Runtime().Partitions)
	reached := make([]eventlog.Token, n)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(256)
	for i := range n {
		id := fmt.Sprint("bench-rider-", i)
		p := eventlog.PartitionFor(id, s.Runtime().Partitions)
		ids[p] = append(ids[p], id)
		g.Go(func() error {
			for _, c := range []domain.Command{rider.Put{RiderID: id, Name: sealedName("Asha")}, rider.Verify{}, rider.GoOnline{}} {
				res, err := s.Shards().Execute(gctx, shard.Request{Topic: eventlog.Riders, ID: id, Actor: domain.SystemActor, Command: c})
				if err != nil {
					return err
				}
				reached[i] = res.Token()
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	return ids, merged(reached), nil
}

// reportPositions sends positions in bulk over HTTP, and waits until the read model has
// all of them.
func (b *run) reportPositions(ctx context.Context, s *server.Server, byPartition [][]string) (map[string]float64, error) {
	ops, err := tokens{}.of(benchOps)
	if err != nil {
		return nil, err
	}
	conns := newHTTPConns(s.URL(), reporters)
	defer closeAll(conns)
	start := time.Now()
	m, err := closedLoop(ctx, reporters, b.Duration, reportOver(conns, ops, byPartition))
	if err != nil {
		return nil, err
	}
	reported := m["per_s"] * time.Since(start).Seconds() * positionsAtOnce
	if err := b.positionsPassed(ctx, s); err != nil {
		return nil, err
	}
	return map[string]float64{"per_s": reported / time.Since(start).Seconds()}, nil
}

// positionsPassed waits until the read model has all positions that were reported.
func (b *run) positionsPassed(ctx context.Context, s *server.Server) error {
	ends, err := endsOf(ctx, b.kafka, eventlog.RiderLocations)
	if err != nil {
		return err
	}
	return passed(ctx, s.ReadModels(), history{ends: ends}.token(), projections.Riders)
}

// reportOver returns a call that reports positionsAtOnce positions over HTTP. Caller n
// uses conns[n].
func reportOver(conns []*httpConn, token string, byPartition [][]string) func(context.Context, int) error {
	ids := slices.Concat(byPartition...)
	return func(_ context.Context, n int) error {
		type position struct {
			RiderID  string       `json:"riderId"`
			Location domain.Point `json:"location"`
		}
		var body struct {
			Positions []position `json:"positions"`
		}
		for range positionsAtOnce {
			body.Positions = append(body.Positions, position{ids[rand.IntN(len(ids))], cityPoint()})
		}
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		return conns[n].do("POST", "/v1/rider-locations", token, text)
	}
}

// writePositions does what reportPositions does without HTTP, the log and checkpoints.
func (b *run) writePositions(ctx context.Context, s *server.Server, byPartition [][]string) (map[string]float64, error) {
	write, err := writeBare(ctx, s, byPartition)
	if err != nil {
		return nil, err
	}
	m, err := closedLoop(ctx, reporters, b.Duration, write)
	if err != nil {
		return nil, err
	}
	return map[string]float64{"per_s": m["per_s"] * positionsAtOnce}, nil
}

// writeBare returns a call that applies positionsAtOnce positions to the serving tables
// with the read model's own handler, so the SQL statements are the same. Each transaction
// has positions of one partition. There may be as many callers as reporters.
func writeBare(ctx context.Context, s *server.Server, byPartition [][]string) (func(context.Context, int) error, error) {
	g, err := s.ReadModels().Serving(ctx, projections.Riders)
	if err != nil {
		return nil, err
	}
	rows := g.Consumer().Rows
	next := make([]int, reporters)
	return func(ctx context.Context, n int) error {
		// Each writer has its own partitions, as the workers of a consumer have.
		p := next[n]*reporters + n
		if next[n]++; p >= len(byPartition) {
			p, next[n] = n%len(byPartition), 1
		}
		ids := byPartition[p]
		if len(ids) == 0 {
			return nil
		}
		now := domain.Time(time.Now())
		events := make([]eventlog.Event, positionsAtOnce)
		for i := range events {
			id := ids[rand.IntN(len(ids))]
			data, err := json.Marshal(rider.Position{RiderID: id, Location: cityPoint(), RecordedAt: now})
			if err != nil {
				return err
			}
			events[i] = eventlog.Event{Topic: eventlog.RiderLocations, Partition: int32(p), Type: rider.PositionType, Subject: id, Time: now, Data: data}
		}
		tx, err := s.ReadModels().DB.Begin(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // nothing after a commit
		if err := rows(ctx, tx, events); err != nil {
			return err
		}
		return tx.Commit(ctx)
	}, nil
}
