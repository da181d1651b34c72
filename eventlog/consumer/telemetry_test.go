package consumer_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/eventlogtest"
)

// The record of a telemetry topic is replaced by the next one of its key. Those that
// cannot be handled are skipped, however many there are, and rows that an older build
// has parked hold nothing up.
func TestTelemetryIsPassedOverAndNeverParked(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		const topic, key = eventlog.RiderLocations, "r1"
		p := eventlog.PartitionFor(key, testPartitions)
		var subs []eventlog.Subscription
		for _, kind := range []string{"Each", "Batch", "Rows"} {
			subs = append(subs, eventlog.Subscription{Name: kind, Topics: []string{topic}})
		}
		b := newBench(t, cfg, subs...)
		var mu sync.Mutex
		got := map[string][]string{}
		handle := func(ctx context.Context, kind string, events []eventlog.Event) error {
			for _, e := range events {
				switch e.Type {
				case "SKIPPED":
					consumer.Skip(ctx, &e, errors.New("no position"))
				case "FAILS":
					return errors.New("fails each time")
				case "PANICS":
					panic("of a handler")
				}
			}
			mu.Lock()
			defer mu.Unlock()
			for _, e := range events {
				if e.Type == "GOOD" {
					got[kind] = append(got[kind], e.ID)
				}
			}
			return nil
		}
		consumers := []consumer.Consumer{
			{Name: "Each", Topics: []string{topic}, Each: func(ctx context.Context, e eventlog.Event) error { return handle(ctx, "Each", []eventlog.Event{e}) }},
			{Name: "Batch", Topics: []string{topic}, Batch: func(ctx context.Context, es []eventlog.Event) error { return handle(ctx, "Batch", es) }},
			{Name: "Rows", Topics: []string{topic}, Rows: func(ctx context.Context, _ pgx.Tx, es []eventlog.Event) error { return handle(ctx, "Rows", es) }},
		}
		for i := range consumers {
			consumers[i].InPlaceTries = 1
			b.exec(`INSERT INTO tomato.parked (consumer, generation, topic, partition, source_offset, source_time, key, state, copy_offset)
				SELECT $1, 0, $2, $3, -n, now(), $4, CASE WHEN n = 1000 THEN 'dead' ELSE 'waiting' END, -1 FROM generate_series(1, 1000) n`,
				consumers[i].Name, topic, p, []byte(key))
		}
		var records []*kgo.Record
		event := func(typ, id string) {
			e := eventlog.Event{ID: id, Source: "/test", Type: typ, Subject: key, Time: time.Now(), Data: []byte(`{}`)}
			records = append(records, e.NewRecord(topic, p))
		}
		for i := range 1200 {
			records = append(records, &kgo.Record{Topic: topic, Partition: p, Key: []byte(key), Value: fmt.Appendf(nil, "\x00 %d", i)})
		}
		event("GOOD", "1")
		records = append(records, &kgo.Record{Topic: topic, Partition: p, Key: []byte(key)}) // a tombstone
		event("FAILS", "x")
		event("SKIPPED", "x")
		event("GOOD", "2")
		event("PANICS", "x")
		event("GOOD", "3")
		b.produce(records...)
		r := b.runtime()
		registry := prometheus.NewRegistry()
		r.Registry = registry
		start(t, r, consumers...)
		want := []string{"1", "2", "3"}
		eventually(t, "all three good ones are handled by each kind", func() bool {
			mu.Lock()
			defer mu.Unlock()
			for _, c := range consumers {
				if !slices.Equal(got[c.Name], want) {
					return false
				}
			}
			return true
		})
		if n := query[int](b, `SELECT count(*) FROM tomato.parked WHERE source_offset >= 0`); n != 0 {
			t.Errorf("%d positions are parked", n)
		}
		for _, s := range r.Status() {
			for _, p := range s.Partitions {
				if p.Paused != "" {
					t.Errorf("%s is paused: %s", s.Consumer, p.Paused)
				}
			}
		}
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		counted := 0
		for _, f := range families {
			if f.GetName() != "tomato_consumer_skipped_total" {
				continue
			}
			for _, m := range f.GetMetric() {
				if n := m.GetCounter().GetValue(); n < 1203 {
					t.Errorf("%v counts %v skipped records, want 1203 or, with repeats, more", m.GetLabel(), n)
				}
				counted++
			}
		}
		if counted != len(consumers) {
			t.Errorf("%d consumers count what they skip", counted)
		}
	})
}
