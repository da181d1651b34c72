package eventlog_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
)

var layout = eventlog.Layout{
	Partitions: 3,
	Consumers:  []eventlog.Subscription{{Name: "pay-order", Topics: []string{eventlog.Payments}}, {Name: "orders", Topics: []string{eventlog.Orders, eventlog.Payments}}},
}

func deadline(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestEnsureCreatesWhatIsMissingOnceAndForAll(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		ctx := deadline(t, 2*time.Minute)
		adm := kadm.NewClient(eventlogtest.Client(t, cfg))

		// Several instances start at once.
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if err := eventlog.Ensure(ctx, adm, layout); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()

		rows, err := eventlog.Describe(ctx, adm, layout)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]eventlog.TopicRow{}
		for _, r := range rows {
			partitions := 3
			if r.Topic == eventlog.SubjectKeys {
				partitions = 1 // one order of all keys
			}
			if r.Missing || r.Partitions != partitions || r.Replication != 1 || r.MinInsync != 1 || r.Records != 0 || len(r.Problems) > 0 {
				t.Errorf("%+v", r)
			}
			got[r.Topic] = r
		}
		if want := 11 + 3*3; len(rows) != want {
			t.Errorf("%d topics, want %d", len(rows), want)
		}
		const day = 24 * 60 * 60 * 1000
		for topic, want := range map[string]struct {
			policy string
			ms     int64
		}{
			"orders": {"delete", -1}, "payments": {"delete", -1}, "riders": {"delete", -1}, "restaurants": {"delete", -1},
			"rider-locations": {"compact,delete", 7 * day}, "payment-webhooks": {"delete", 30 * day}, "feed": {"delete", day},
			"shard-snapshots": {"compact", -1}, "shard-owners": {"compact", -1}, "shard-fence": {"delete", day / 4}, "subject-keys": {"compact", -1},
			"payments.orders.retry-5s": {"delete", 30 * day}, "payments.pay-order.retry-30s": {"delete", 30 * day}, "orders.orders.dlq": {"delete", -1},
		} {
			if r := got[topic]; r.CleanupPolicy != want.policy || r.RetentionMS != want.ms {
				t.Errorf("%s: %s %d, want %s %d", topic, r.CleanupPolicy, r.RetentionMS, want.policy, want.ms)
			}
		}

		// A new consumer gets its topics, and the other topics stay as they are.
		more := layout
		more.Consumers = append(slices.Clone(more.Consumers), eventlog.Subscription{Name: "dispatch", Topics: []string{eventlog.Riders}})
		if err := eventlog.Ensure(ctx, adm, more); err != nil {
			t.Fatal(err)
		}
		if rows, err = eventlog.Describe(ctx, adm, more); err != nil || len(rows) != 11+3*4 {
			t.Errorf("%d topics, %v", len(rows), err)
		}
	})
}

func TestDescribeCountsRecordsAndNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		ctx := deadline(t, 2*time.Minute)
		client := eventlogtest.Client(t, cfg, kgo.RecordPartitioner(kgo.ManualPartitioner()))
		adm := kadm.NewClient(client)
		rows, err := eventlog.Describe(ctx, adm, layout)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rows {
			if !r.Missing {
				t.Errorf("%+v", r)
			}
		}
		eventlogtest.Topics(t, cfg, layout)
		var records []*kgo.Record
		for i := range 30 {
			records = append(records, &kgo.Record{Topic: eventlog.Orders, Partition: int32(i % 3), Value: []byte("{}")})
		}
		if err := client.ProduceSync(ctx, records...).FirstErr(); err != nil {
			t.Fatal(err)
		}
		deleted := kadm.Offsets{}
		deleted.Add(kadm.Offset{Topic: eventlog.Orders, Partition: 1, At: 4})
		if _, err := adm.DeleteRecords(ctx, deleted); err != nil {
			t.Fatal(err)
		}
		rows, err = eventlog.Describe(ctx, adm, layout)
		if err != nil {
			t.Fatal(err)
		}
		if rows[0].Topic != eventlog.Orders || rows[0].Records != 26 {
			t.Errorf("%+v, want 26 records", rows[0])
		}
	})
}

// showing waits until the broker has n topics. It has them a little later than the
// controller.
func showing(ctx context.Context, t *testing.T, adm *kadm.Client, n int) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		topics, err := adm.ListTopics(kadm.WithAuthorizedOps(ctx))
		if err != nil {
			t.Fatal(err)
		}
		if len(topics) == n {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%d topics show, not %d", len(topics), n)
		case <-tick.C:
		}
	}
}

func TestEnsureRefusesWhatWouldLoseEventsAndChangesNothing(t *testing.T) {
	t.Parallel()
	set := func(kv ...string) map[string]*string {
		m := map[string]*string{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = &kv[i+1]
		}
		return m
	}
	cases := []struct {
		topic      string
		partitions int32
		configs    map[string]*string
		want       string
	}{
		{"orders", 3, set("cleanup.policy", "compact"), "topic orders has cleanup.policy=compact"},
		{"payments", 3, set("retention.ms", "604800000"), "topic payments deletes records after 168h0m0s: set retention.ms=-1"},
		{"riders", 3, set("retention.ms", "-1", "retention.bytes", "1000000000"), "topic riders deletes records above 1000000000 bytes"},
		{"restaurants", 4, set("retention.ms", "-1"), "topic restaurants has 4 partitions, not 3"},
		{"payment-webhooks", 3, set("retention.ms", "3600000", "max.message.bytes", "2097152"), "topic payment-webhooks deletes records after 1h0m0s: set retention.ms=2592000000"},
		{"shard-snapshots", 3, set("cleanup.policy", "delete", "max.message.bytes", "8388608"), "topic shard-snapshots has cleanup.policy=delete: set cleanup.policy=compact"},
		{"shard-owners", 3, set("cleanup.policy", "compact", "unclean.leader.election.enable", "true"), "topic shard-owners allows unclean leader election"},
		{"subject-keys", 1, set("cleanup.policy", "compact"), "topic subject-keys may keep destroyed keys on disk: set max.compaction.lag.ms=3600000 and segment.ms=3600000"},
		{"orders.orders.dlq", 3, set("retention.ms", "1000", "max.message.bytes", "2097152"), "topic orders.orders.dlq deletes records after 1s"},
		{"orders.orders.retry-5s", 3, set("retention.ms", "2592000000"), "topic orders.orders.retry-5s takes no batch above 1048588 bytes: set max.message.bytes=2097152"},
	}
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		ctx := deadline(t, 2*time.Minute)
		adm := kadm.NewClient(eventlogtest.Client(t, cfg))
		for _, c := range cases {
			if _, err := adm.CreateTopic(ctx, c.partitions, 1, c.configs, c.topic); err != nil {
				t.Fatal(err)
			}
		}
		// The operator may choose the retention of lossy topics.
		if _, err := adm.CreateTopic(ctx, 3, 1, set("retention.ms", "60000"), eventlog.Feed); err != nil {
			t.Fatal(err)
		}
		showing(ctx, t, adm, len(cases)+1)
		err := eventlog.Ensure(ctx, adm, layout)
		if err == nil {
			t.Fatal("no error")
		}
		for _, c := range cases {
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("not said: %s", c.want)
			}
		}
		if lines := strings.Count(err.Error(), "\n"); lines != len(cases) {
			t.Errorf("%d lines for %d mismatches:\n%v", lines, len(cases), err)
		}
		topics, err := adm.ListTopics(kadm.WithAuthorizedOps(ctx))
		if err != nil || len(topics) != len(cases)+1 {
			t.Errorf("%d topics, %v", len(topics), err)
		}
	})
}

func TestEnsureWithReplicasWantsTwoInSync(t *testing.T) {
	t.Parallel()
	// Three brokers. They may be embedded ones, because only the settings matter.
	cfg := eventlogtest.Brokers(t, 3)
	ctx := deadline(t, time.Minute)
	adm := kadm.NewClient(eventlogtest.Client(t, cfg))
	one := "1"
	keep := "-1"
	if _, err := adm.CreateTopic(ctx, 3, 3, map[string]*string{"retention.ms": &keep, "min.insync.replicas": &one}, eventlog.Orders); err != nil {
		t.Fatal(err)
	}
	err := eventlog.Ensure(ctx, adm, layout)
	if err == nil || !strings.Contains(err.Error(), "topic orders has replication 3 with min.insync.replicas=1") {
		t.Fatalf("got %v", err)
	}
	two := "2"
	if _, err := adm.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Name: "min.insync.replicas", Value: &two}}, eventlog.Orders); err != nil {
		t.Fatal(err)
	}
	if err := eventlog.Ensure(ctx, adm, layout); err != nil {
		t.Fatal(err)
	}
	rows, err := eventlog.Describe(ctx, adm, layout)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if r.Replication != 3 || r.MinInsync != 2 {
			t.Errorf("%+v", r)
		}
	}
}
