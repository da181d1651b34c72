package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
	"tomato/eventlog/consumer"
)

// The events that poison measures.
const (
	poisonPerSecond = 1000 // events per second on the inbox
	poisonOneIn     = 100  // one event in so many is poison, and has an event of its key behind it that must wait
	poisonRounds    = 4    // a round lasts so many times --duration, because a p99 over two seconds is noise
)

// poison measures how much poison events delay events of other keys. A poison event is
// one that no retry can help. poison measures the time from writing an event until it
// has been handled, at a steady pace that is far below what a consumer can do. The
// limit is the same without poison events.
func (b *run) poison(ctx context.Context, db *pgxpool.Pool) error {
	for _, kind := range []string{"each", "rows"} {
		name := "bench-poison-" + kind
		layout := eventlog.Layout{Partitions: b.Partitions, Replication: b.Replication, Consumers: []eventlog.Subscription{{Name: name, Topics: []string{eventlog.PaymentWebhooks}}}}
		client, err := b.kafka.NewClient(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0))
		if err != nil {
			return err
		}
		defer client.Close()
		adm := kadm.NewClient(client)
		if err := eventlog.Ensure(ctx, adm, layout); err != nil {
			return err
		}
		defer func() {
			dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			for _, stage := range []string{eventlog.Retry5s, eventlog.Retry30s, eventlog.DeadLetter} { // the brokers may be configured ones, where no topic of a bench is to be left
				_, _ = adm.DeleteTopics(dctx, eventlog.ParkedTopic(eventlog.PaymentWebhooks, name, stage))
			}
			b.forget(consumer.Consumer{Name: name}.Group())
		}()
		round := 0
		once := func(oneIn int) func(context.Context) (map[string]float64, error) {
			return func(ctx context.Context) (map[string]float64, error) {
				round++
				return b.poisonOnce(ctx, db, client, name, kind, round, oneIn)
			}
		}
		limit, value, err := b.alternating(ctx, "poison, "+kind, once(0), once(poisonOneIn))
		if err != nil {
			return err
		}
		b.add("poison_"+kind+"_p50_ms", "ms", value["p50_ms"], limit["p50_ms"])
		b.add("poison_"+kind+"_p99_ms", "ms", value["p99_ms"], limit["p99_ms"])
	}
	return nil
}

func (b *run) poisonOnce(ctx context.Context, db *pgxpool.Pool, client *kgo.Client, name, kind string, round, oneIn int) (map[string]float64, error) {
	const warm = "warm"
	var mu sync.Mutex
	var took []time.Duration
	good, warmed := map[string]bool{}, map[int32]bool{}
	more := make(chan struct{}, 1)
	mine := fmt.Sprintf("%s-%d-", name, round)
	poisonous := func(e *eventlog.Event) error {
		if e.Type == "POISON" && strings.HasPrefix(e.ID, mine) {
			return eventlog.Poison(errors.New("measured"))
		}
		return nil
	}
	handle := func(e *eventlog.Event) error {
		if !strings.HasPrefix(e.ID, mine) {
			return nil // an event of an earlier round
		}
		if err := poisonous(e); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		if e.Type == warm {
			warmed[e.Partition] = true
		} else if !good[e.ID] {
			good[e.ID] = true
			took = append(took, time.Since(e.Time))
		}
		select {
		case more <- struct{}{}:
		default:
		}
		return nil
	}
	reader := consumer.Consumer{Name: name, Topics: []string{eventlog.PaymentWebhooks}}
	if kind == "each" {
		reader.Each = func(_ context.Context, e eventlog.Event) error { return handle(&e) }
	} else {
		reader.Rows = func(_ context.Context, _ pgx.Tx, events []eventlog.Event) error {
			for i := range events { // first, because either all events of the batch take effect or none
				if err := poisonous(&events[i]); err != nil {
					return err
				}
			}
			for i := range events {
				_ = handle(&events[i])
			}
			return nil
		}
	}
	rctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	quiet := &consumer.Runtime{Kafka: b.kafka, Partitions: b.Partitions, DB: db, Log: slog.New(slog.DiscardHandler)}
	go func() { ended <- quiet.Run(rctx, reader) }()
	defer func() {
		stop()
		<-ended
	}()
	event := func(typ, key string, n int) *kgo.Record {
		e := eventlog.Event{ID: fmt.Sprint(mine, n), Source: "/bench", Type: typ, Subject: key, Time: time.Now(), Data: []byte("{}")}
		return e.NewRecord(eventlog.PaymentWebhooks, eventlog.PartitionFor(key, b.Partitions))
	}
	reached := func(done func() bool) error {
		limit := time.NewTimer(2 * time.Minute)
		defer limit.Stop()
		for {
			mu.Lock()
			ok := done()
			mu.Unlock()
			if ok {
				return nil
			}
			select {
			case <-more:
			case <-limit.C:
				return errors.New("events are not handled within 2 minutes")
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	for p := range b.Partitions { // waits until every partition is consumed, so that joining the group is not measured
		r := event(warm, "", -1-int(p))
		r.Partition, r.Key = p, []byte(warm)
		if err := client.ProduceSync(ctx, r).FirstErr(); err != nil {
			return nil, err
		}
	}
	if err := reached(func() bool { return len(warmed) == int(b.Partitions) }); err != nil {
		return nil, err
	}
	tick := time.NewTicker(time.Second / poisonPerSecond)
	defer tick.Stop()
	sent, want := 0, 0
	for begin := time.Now(); time.Since(begin) < poisonRounds*b.Duration; sent++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		key := fmt.Sprintf("%d-%d", round, sent)
		if oneIn > 0 && sent%oneIn == 0 {
			client.Produce(ctx, event("POISON", key, sent), nil)
			client.Produce(ctx, event("BEHIND", key, 1<<30+sent), nil)
			continue
		}
		want++
		client.Produce(ctx, event("GOOD", key, sent), nil)
	}
	if err := client.Flush(ctx); err != nil {
		return nil, err
	}
	if err := reached(func() bool { return len(took) >= want }); err != nil {
		return nil, err
	}
	mu.Lock()
	defer mu.Unlock()
	if len(took) > want {
		return nil, fmt.Errorf("%d of %d events were handled: some that had to wait", len(took), want)
	}
	return latencies(took), nil
}
