package bench

import (
	"context"
	"errors"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/cmd/tomato/server"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/migrations"
	"tomato/projections"
)

// serveHistory starts a server that owns the shards and projects, with a history in
// its logs that the orders read model has read.
func (b *run) serveHistory(ctx context.Context) (*server.Server, history, error) {
	c, err := b.serveConfig(server.RoleCommand, server.RoleProject)
	if err != nil {
		return nil, history{}, err
	}
	s, err := b.serve(ctx, c, server.Options{})
	if err != nil {
		return nil, history{}, err
	}
	h, err := b.writeHistory(ctx, s)
	if err != nil {
		return nil, history{}, err
	}
	return s, h, passed(ctx, s.ReadModels(), h.token(), projections.Orders)
}

// project measures how fast the orders read model reads an existing log into an empty
// database. It also measures how soon a query shows the event of a command. The limit
// is the simplest possible consumer: it does one upsert per event.
func (b *run) project(ctx context.Context) error {
	s, h, err := b.serveHistory(ctx)
	if err != nil {
		return err
	}
	const table = `CREATE TABLE bench_limit (id text PRIMARY KEY, version bigint NOT NULL, state text NOT NULL)`
	if _, err := s.ReadModels().DB.Exec(ctx, table); err != nil {
		return err
	}
	upsert := func(ctx context.Context, r *kgo.Record) error {
		_, err := s.ReadModels().DB.Exec(ctx, `INSERT INTO bench_limit AS l (id, version, state) VALUES ($1, $2, $3)
			ON CONFLICT (id) DO UPDATE SET version = l.version + 1, state = EXCLUDED.state`, string(r.Key), 1, string(r.Value))
		return err
	}
	if err := b.profile(); err != nil {
		return err
	}
	limit, value, err := b.alternating(ctx, "catching up",
		func(ctx context.Context) (map[string]float64, error) {
			var first since
			var done atomic.Int64
			errOver := errors.New("time is over")
			err := b.bareRead(ctx, h, func(ctx context.Context, records []*kgo.Record) error {
				first.begin()
				for _, r := range records {
					if time.Now().UnixNano()-first.nanos.Load() > int64(b.Duration) {
						return errOver
					}
					if r.Key == nil {
						continue
					}
					if err := upsert(ctx, r); err != nil {
						return err
					}
					done.Add(1)
				}
				return nil
			})
			if errors.Is(err, errOver) || errors.Is(err, context.Canceled) && ctx.Err() == nil {
				err = nil
			}
			return first.perSecond(done.Load()), err
		},
		func(ctx context.Context) (map[string]float64, error) { return b.projectOnce(ctx, h) })
	if err != nil {
		return err
	}
	b.add("events_per_s", "events/s", value["per_s"], limit["per_s"])
	return b.visible(ctx, s, upsert)
}

// oldOrders fills the tables of a generation with delivered orders of earlier times, with
// 6 events each, as if they had been projected long ago.
func oldOrders(ctx context.Context, db *pgxpool.Pool, g projections.Generation, n int) error {
	for _, sql := range []string{
		`INSERT INTO ` + g.Schema() + `.orders (id, version, status, closed, customer_id, restaurant_id, rider_id, exhausted, pick_up, round, wave, waiting, wave_open, asked, created_at, state)
			SELECT '01900000-' || lpad(to_hex(n / 65536), 4, '0') || '-7' || substr(h, 1, 3) || '-8' || substr(h, 4, 3) || '-' || substr(h, 7, 12), 6, 'delivered', 'delivered',
				'c' || (hashint8(n) & 65535), 'r' || (hashint8(n + 1) & 1023), 'k' || (hashint8(n + 2) & 4095), false, ST_MakePoint(77.5, 12.9)::geography, 1, 1, false, false, '{}',
				timestamptz '2024-01-01' + n * interval '10 seconds', repeat(h, 20)
			FROM (SELECT n, md5(n::text) AS h FROM generate_series(1, ` + strconv.Itoa(n) + `) n) o`,
		`INSERT INTO ` + g.Schema() + `.order_events (order_id, version, type, data_version, at, actor, data)
			SELECT id, v, 'ORDER_PAID', 1, created_at, '', repeat(right(id, 12), 20) FROM ` + g.Schema() + `.orders, generate_series(1, 6) v`,
		`VACUUM ANALYZE ` + g.Schema() + `.orders`, `VACUUM ANALYZE ` + g.Schema() + `.order_events`, `CHECKPOINT`,
	} {
		if _, err := db.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

// projectOnce fills the first generation of an empty database, or of one that has b.Rows
// orders already.
func (b *run) projectOnce(ctx context.Context, h history) (map[string]float64, error) {
	url, drop, err := b.newDatabase(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = drop(context.WithoutCancel(ctx)) }() // an error does not matter: the figure has been measured by then
	if err := migrations.Core(ctx, url); err != nil {
		return nil, err
	}
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	cfg.MaxConns = projectionConns
	db, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	positions := consumer.NewPositions(db)
	models := &projections.ReadModels{DB: db, DatabaseURL: url, Kafka: b.kafka, Positions: positions, Log: b.log}
	if err := models.Ensure(ctx); err != nil {
		return nil, err
	}
	g, err := models.Serving(ctx, projections.Orders)
	if err != nil {
		return nil, err
	}
	if err := oldOrders(ctx, db, g, b.Existing); err != nil {
		return nil, err
	}
	reader := g.Consumer()
	rows := reader.Rows
	var first since
	reader.Rows = func(ctx context.Context, tx pgx.Tx, events []eventlog.Event) error {
		first.begin()
		return rows(ctx, tx, events)
	}
	// This consumer needs a group of its own, because the server in this process
	// consumes for the same generation in another database.
	reader.Generation, reader.Name = 0, "bench-"+g.String()
	defer b.forget(reader.Group())
	rctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	runtime := &consumer.Runtime{Kafka: b.kafka, Partitions: b.Partitions, DB: db, Log: b.log}
	go func() { ended <- runtime.Run(rctx, reader) }()
	wctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	err = positions.WaitFor(wctx, reader.Name, reader.Generation, reader.Topics, h.token())
	m := first.perSecond(h.events)
	stop()
	return m, errors.Join(err, <-ended)
}

// passed waits until the read models have passed the token, for at most ten minutes.
func passed(ctx context.Context, models *projections.ReadModels, after eventlog.Token, names ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	return until(ctx, func() (bool, error) {
		err := models.Read(ctx, after, names, func([]string) error { return nil })
		if errors.Is(err, eventlog.ErrBehind) {
			return false, nil
		}
		return err == nil, err
	})
}

// visible measures the time from a command's answer until a query with the answer's
// Consistency-Token is answered. For the limit it measures the time until the upsert
// of the command's event is done.
func (b *run) visible(ctx context.Context, s *server.Server, upsert func(context.Context, *kgo.Record) error) error {
	ends, err := endsOf(ctx, b.kafka, eventlog.Orders)
	if err != nil {
		return err
	}
	if err := passed(ctx, s.ReadModels(), history{ends: ends}.token(), projections.Orders); err != nil {
		return err
	}
	l := lives(s, 1)[0]
	loop := func(ctx context.Context, seen func(context.Context) error) (map[string]float64, error) {
		var took []time.Duration
		for start := time.Now(); time.Since(start) < b.Duration || len(took) == 0; {
			if err := l.next(ctx); err != nil {
				return nil, err
			}
			answered := time.Now()
			if err := seen(ctx); err != nil {
				return nil, err
			}
			took = append(took, time.Since(answered))
		}
		return latencies(took), nil
	}
	limit, value, err := b.alternating(ctx, "visible",
		func(ctx context.Context) (map[string]float64, error) {
			ctx, cancel := context.WithTimeout(ctx, b.Duration+time.Minute)
			defer cancel()
			ends, err := endsOf(ctx, b.kafka, eventlog.Orders)
			if err != nil {
				return nil, err
			}
			offsets := map[int32]kgo.Offset{}
			for tp, end := range ends {
				offsets[tp.Partition] = kgo.NewOffset().At(end)
			}
			client, err := b.kafka.NewClient(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{eventlog.Orders: offsets}))
			if err != nil {
				return nil, err
			}
			defer client.Close()
			return loop(ctx, func(ctx context.Context) error {
				for { // there is one caller, so the next event of its order is that of its command
					fetches := client.PollFetches(ctx)
					if err := errors.Join(ctx.Err(), fetches.Err()); err != nil {
						return err
					}
					for _, r := range fetches.Records() {
						if err := upsert(ctx, r); err != nil {
							return err
						}
						if string(r.Key) == l.order.ID {
							return nil
						}
					}
				}
			})
		},
		func(ctx context.Context) (map[string]float64, error) {
			return loop(ctx, func(ctx context.Context) error {
				return s.ReadModels().Read(ctx, l.res.Token(), []string{projections.Orders}, func([]string) error { return nil })
			})
		})
	if err != nil {
		return err
	}
	b.add("visible_p50_ms", "ms", value["p50_ms"], limit["p50_ms"])
	b.add("visible_p99_ms", "ms", value["p99_ms"], limit["p99_ms"])
	return nil
}
