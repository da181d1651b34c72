package consumer_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/eventlogtest"
	"tomato/migrations"
	"tomato/migrations/postgrestest"
)

// BenchmarkConsumer measures the runtime alone, with handlers that do nothing:
// catching up with b.N events, then the time from an event's acknowledgement
// until WaitFor has seen its checkpoint, one at a time.
func BenchmarkConsumer(b *testing.B) {
	none := map[string]consumer.Consumer{
		"rows":  {Rows: func(context.Context, pgx.Tx, []eventlog.Event) error { return nil }},
		"batch": {Batch: func(context.Context, []eventlog.Event) error { return nil }},
		"each":  {Each: func(context.Context, eventlog.Event) error { return nil }},
	}
	for _, kind := range []string{"rows", "batch", "each"} {
		b.Run(kind, func(b *testing.B) {
			cfg, _ := eventlogtest.Faulty(b)
			db := postgrestest.New(b)
			if err := migrations.Core(b.Context(), db.Config().ConnString()); err != nil {
				b.Fatal(err)
			}
			eventlogtest.Topics(b, cfg, eventlog.Layout{Partitions: 4})
			cl := eventlogtest.Client(b, cfg, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0), kgo.MaxBufferedRecords(100_000))
			record := func(i int) *kgo.Record {
				key := fmt.Sprint("key", i%1000)
				e := eventlog.Event{ID: fmt.Sprint(i), Source: "/bench", Type: "T", Subject: key, Time: time.Now(), Data: []byte(`{"orderId":"0190a5b0-0000-7000-8000-000000000000","status":"placed","amount":45000,"currency":"INR"}`)}
				return e.NewRecord(eventlog.PaymentWebhooks, eventlog.PartitionFor(key, 4))
			}
			var failed atomic.Bool
			for i := range b.N {
				cl.Produce(b.Context(), record(i), func(_ *kgo.Record, err error) {
					if err != nil {
						failed.Store(true)
					}
				})
			}
			if err := cl.Flush(b.Context()); err != nil || failed.Load() {
				b.Fatal("produce", err)
			}
			token, err := eventlog.EndToken(b.Context(), cl, eventlog.PaymentWebhooks)
			if err != nil {
				b.Fatal(err)
			}
			c := none[kind]
			c.Name, c.Topics = "bench", []string{eventlog.PaymentWebhooks}
			pos := consumer.NewPositions(db)
			r := &consumer.Runtime{Kafka: cfg, DB: db, Positions: pos, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
			ctx, cancel := context.WithCancel(b.Context())
			done := make(chan error, 1)
			b.ResetTimer()
			go func() { done <- r.Run(ctx, c) }()
			if err := pos.WaitFor(b.Context(), "bench", 0, c.Topics, token); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
			var lat []time.Duration
			for i := range 500 {
				res := cl.ProduceSync(b.Context(), record(i))
				if res.FirstErr() != nil {
					b.Fatal(res.FirstErr())
				}
				began := time.Now()
				one := eventlog.Token{}
				one.Add(res[0].Record.Topic, res[0].Record.Partition, res[0].Record.Offset)
				if err := pos.WaitFor(b.Context(), "bench", 0, c.Topics, one); err != nil {
					b.Fatal(err)
				}
				lat = append(lat, time.Since(began))
			}
			slices.Sort(lat)
			b.ReportMetric(float64(lat[250].Microseconds())/1000, "ms-p50")
			b.ReportMetric(float64(lat[495].Microseconds())/1000, "ms-p99")
			cancel()
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		})
	}
}
