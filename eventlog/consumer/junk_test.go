package consumer_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/consumer/parked"
	"tomato/eventlog/eventlogtest"
)

func TestJunkHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		b := newBench(t, cfg, flaky)
		var l ledger
		start(t, b.runtime(), consumer.Consumer{Name: "flaky", Topics: flaky.Topics, Each: func(_ context.Context, e eventlog.Event) error {
			if strings.HasPrefix(string(e.Data), "bad") {
				return eventlog.Poison(errors.New("it is bad"))
			}
			l.add(e)
			return nil
		}})
		b.produce(b.event(eventlog.Orders, "a", "T")...)
		eventlogtest.AppendJunk(t, cfg, testPartitions, flaky.Topics...)
		more := "4194304" // as a broker with a larger default lets the topic have it
		if _, err := b.adm.AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Name: "max.message.bytes", Value: &more}}, eventlog.PaymentWebhooks); err != nil {
			t.Fatal(err)
		}
		wide := eventlogtest.Client(t, cfg, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchMaxBytes(4<<20))
		large := strings.Repeat("k", 900_000)
		for _, r := range []*kgo.Record{
			{Key: []byte(large)},
			{Key: []byte("k"), Headers: []kgo.RecordHeader{{Key: "large", Value: []byte(strings.Repeat("h", 3<<20))}}}, // more than the topic of the copies takes
			{Key: []byte("v"), Value: []byte("bad" + large)},
		} {
			e := eventlog.Event{ID: "1", Source: "/test", Type: "W", Time: time.Now(), Subject: "s", Data: []byte("bad")}
			made := e.NewRecord(eventlog.PaymentWebhooks, 0)
			made.Key, made.Headers = r.Key, append(made.Headers, r.Headers...)
			if r.Value != nil {
				made.Value = r.Value
			}
			if err := wide.ProduceSync(t.Context(), made).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		faulty := b.event(eventlog.Orders, "b", "T")
		last := faulty[len(faulty)-1]
		last.Headers = append(last.Headers, kgo.RecordHeader{Key: "ce_time", Value: []byte("yesterday")})
		last.Key = []byte("a") // its subject says whose it is
		b.produce(faulty...)
		b.produce(b.event(eventlog.Orders, "b", "T")...)
		b.produce(b.event(eventlog.Orders, "a", "T")...)
		b.produce(b.event(eventlog.PaymentWebhooks, "g", "W")...)
		eventually(t, "others flow", func() bool { return slices.Equal(l.of("a"), upTo(2)) && slices.Equal(l.of("g"), upTo(1)) })
		tools := &parked.DeadLetters{DB: b.db, Kafka: cfg}
		var classes []string
		eventually(t, "four dead letters", func() bool {
			list, _, err := tools.List(t.Context(), "", 100, "")
			classes = nil
			for _, d := range list {
				if classes = append(classes, d.Class); len(d.Key) > 512 {
					t.Fatal("a key of ", len(d.Key), " bytes")
				}
			}
			slices.Sort(classes)
			return err == nil && slices.Equal(classes, []string{"decode", "poison", "poison", "poison"})
		})
		eventually(t, "its key's next event waits", func() bool {
			return query[int](b, `SELECT count(*) FROM tomato.parked WHERE state = 'waiting' AND key = 'b'::bytea`) == 1
		})
	})
}
