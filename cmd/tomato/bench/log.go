package bench

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"tomato/cmd/tomato/server"
	"tomato/domain"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
)

// projectionConns is how many connections to Postgres the consumers have, as in a server
// by default (TOMATO_DB_PROJECTION_CONNS).
const projectionConns = 10

// The default number of orders in the log. Each order has lifeSteps events. consume
// needs more orders, because it reads historyOrders too quickly to measure.
const (
	historyOrders  = 20_000
	consumedOrders = 100_000
)

// history describes the content of topic orders. Nobody may write there any more.
type history struct {
	ends   map[eventlog.TopicPartition]int64
	events int64 // number of valid events
}

func (h history) token() eventlog.Token { return eventlog.TokenBefore(h.ends) }

// writeHistory fills topic orders by commands to a server, and counts the events.
func (b *run) writeHistory(ctx context.Context, s *server.Server) (history, error) {
	orders := b.Count
	if orders == 0 {
		orders = historyOrders
	}
	b.tell("%d orders are written, with %d events each", orders, lifeSteps)
	if err := kitchen(ctx, s, benchRestaurant, domain.Point{Lng: 77.59, Lat: 12.97}); err != nil {
		return history{}, err
	}
	if _, _, err := fill(ctx, s, orders, stepWhole, oneRestaurant); err != nil {
		return history{}, err
	}
	return b.countHistory(ctx)
}

func (b *run) countHistory(ctx context.Context) (h history, err error) {
	if h.ends, err = endsOf(ctx, b.kafka, eventlog.Orders); err != nil {
		return h, err
	}
	ranges, rules := map[eventlog.TopicPartition]eventlog.Range{}, map[eventlog.TopicPartition]*eventlog.Rule{}
	for tp, end := range h.ends {
		ranges[tp], rules[tp] = eventlog.Range{To: end}, &eventlog.Rule{}
	}
	return h, eventlog.Read(ctx, b.kafka, ranges, func(e *eventlog.Event) error {
		if rules[eventlog.TopicPartition{Topic: e.Topic, Partition: e.Partition}].Accepts(e) && e.Subject != "" {
			h.events++
		}
		return nil
	})
}

// bareRead calls each with all records of the history, as a consumer without any
// runtime would. It hands over the records of one partition in order, and never
// concurrently. It returns when all records are read, or with the first error of each.
func (b *run) bareRead(ctx context.Context, h history, each func(ctx context.Context, records []*kgo.Record) error) error {
	offsets := map[int32]kgo.Offset{}
	for tp, end := range h.ends {
		if end > 0 {
			offsets[tp.Partition] = kgo.NewOffset().AtStart()
		}
	}
	left := len(offsets)
	client, err := b.kafka.NewClient(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{eventlog.Orders: offsets}))
	if err != nil {
		return err
	}
	defer client.Close()
	for left > 0 {
		fetches := client.PollFetches(ctx)
		if err := errors.Join(ctx.Err(), fetches.Err()); err != nil {
			return err
		}
		g, gctx := errgroup.WithContext(ctx)
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			if len(p.Records) == 0 {
				return
			}
			if p.Records[len(p.Records)-1].Offset >= h.ends[eventlog.TopicPartition{Topic: p.Topic, Partition: p.Partition}]-1 {
				left--
			}
			g.Go(func() error { return each(gctx, p.Records) })
		})
		if err := g.Wait(); err != nil {
			return err
		}
	}
	return nil
}

// since keeps the time of the first call of begin. Safe for concurrent use.
type since struct{ nanos atomic.Int64 }

func (s *since) begin() { s.nanos.CompareAndSwap(0, time.Now().UnixNano()) }

func (s *since) perSecond(events int64) map[string]float64 {
	return map[string]float64{"per_s": float64(events) / (float64(time.Now().UnixNano()-s.nanos.Load()) / 1e9)}
}

// consume measures the consumer runtime with a handler that only counts events. The
// runtime applies the reader rule, keeps the order and writes checkpoints as usual.
// The time is taken from the first event that is handled to the last one, because the
// time to join the group is not part of consuming.
func (b *run) consume(ctx context.Context) error {
	h, err := b.writeForConsumers(ctx)
	if err != nil {
		return err
	}
	cfg, err := pgxpool.ParseConfig(b.DatabaseURL)
	if err != nil {
		return err
	}
	cfg.MaxConns = projectionConns
	db, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer db.Close()
	if err := b.profile(); err != nil {
		return err
	}
	consumers := 0
	limit, value, err := b.alternating(ctx, "consume",
		func(ctx context.Context) (map[string]float64, error) {
			var first since
			var handled, size atomic.Int64
			err := b.bareRead(ctx, h, func(_ context.Context, records []*kgo.Record) error {
				first.begin()
				for _, r := range records {
					size.Add(int64(len(r.Value)))
				}
				handled.Add(int64(len(records)))
				return nil
			})
			return first.perSecond(h.events), err
		},
		func(ctx context.Context) (map[string]float64, error) {
			consumers++
			return b.consumeOnce(ctx, db, fmt.Sprint("bench-", consumers), h)
		})
	if err != nil {
		return err
	}
	b.add("events_per_s", "events/s", value["per_s"], limit["per_s"])
	return b.poison(ctx, db)
}

// writeForConsumers writes the history through a server and closes the server. If the
// server stayed open, the garbage collector would scan the state of its shards during
// the measurement.
func (b *run) writeForConsumers(ctx context.Context) (h history, err error) {
	c, err := b.serveConfig(server.RoleCommand)
	if err != nil {
		return h, err
	}
	s, err := server.Start(ctx, c, server.Options{})
	if err != nil {
		return h, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if err := ready(ctx, s.URL()); err != nil {
		return h, err
	}
	if b.Count == 0 {
		b.Count = consumedOrders
	}
	return b.writeHistory(ctx, s)
}

func (b *run) consumeOnce(ctx context.Context, db *pgxpool.Pool, name string, h history) (map[string]float64, error) {
	var first since
	var handled, size atomic.Int64
	all := make(chan map[string]float64, 1)
	reader := consumer.Consumer{Name: name, Topics: []string{eventlog.Orders}, Batch: func(_ context.Context, events []eventlog.Event) error {
		first.begin()
		for i := range events {
			size.Add(int64(len(events[i].Data)))
		}
		if handled.Add(int64(len(events))) == h.events {
			all <- first.perSecond(h.events)
		}
		return nil
	}}
	rctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	runtime := &consumer.Runtime{Kafka: b.kafka, Partitions: b.Partitions, DB: db, Log: b.log}
	go func() { ended <- runtime.Run(rctx, reader) }()
	defer b.forget(reader.Group())
	limit := time.NewTimer(10 * time.Minute)
	defer limit.Stop()
	select {
	case m := <-all:
		stop()
		return m, <-ended
	case err := <-ended:
		stop()
		return nil, errors.Join(err, errors.New("the runtime ended"))
	case <-limit.C:
		stop()
		return nil, errors.Join(fmt.Errorf("%d of %d events were handled in 10 minutes", handled.Load(), h.events), <-ended)
	case <-ctx.Done():
		stop()
		return nil, errors.Join(ctx.Err(), <-ended)
	}
}

// forget deletes a consumer group. It ignores errors, because an empty group that is
// left does no harm.
func (b *run) forget(group string) {
	client, err := b.kafka.NewClient()
	if err != nil {
		return
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, _ = kadm.NewClient(client).DeleteGroups(ctx, group)
}
