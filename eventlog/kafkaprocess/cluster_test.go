package kafkaprocess_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog/eventlogtest"
)

// TestAClusterKeepsWhatItAcknowledged checks a cluster with three replicas, of which two
// must be in sync. A record that was acknowledged survives a kill -9 of its leader, and
// another broker becomes the leader when the leader is paused. Both brokers come back
// and catch up.
func TestAClusterKeepsWhatItAcknowledged(t *testing.T) {
	t.Parallel()
	cfg, cluster := eventlogtest.KafkaCluster(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	client := eventlogtest.Client(t, cfg, kgo.RequiredAcks(kgo.AllISRAcks()), kgo.DefaultProduceTopic("t"), kgo.MetadataMinAge(50*time.Millisecond))
	adm := kadm.NewClient(client)
	if _, err := adm.CreateTopic(ctx, 1, -1, nil, "t"); err != nil { // the brokers' defaults
		t.Fatal(err)
	}
	configs, err := adm.DescribeTopicConfigs(ctx, "t")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range configs[0].Configs {
		if c.Key == "min.insync.replicas" && c.MaybeValue() != "2" {
			t.Errorf("%s is %s, want 2", c.Key, c.MaybeValue())
		}
	}
	partition := func() kadm.PartitionDetail {
		topics, err := adm.ListTopics(ctx, "t")
		if err != nil {
			t.Fatal(err)
		}
		return topics["t"].Partitions[0]
	}
	// await polls the partition until so returns true.
	await := func(what string, so func(kadm.PartitionDetail) bool) kadm.PartitionDetail {
		t.Helper()
		start := time.Now()
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			p := partition()
			if so(p) {
				t.Logf("%s after %v", what, time.Since(start).Round(time.Millisecond))
				return p
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				t.Fatalf("never: %s: %+v", what, p)
			}
		}
	}
	whole := func(p kadm.PartitionDetail) bool { return len(p.ISR) == 3 }
	var want []string
	produce := func(value string) {
		t.Helper()
		if err := client.ProduceSync(ctx, kgo.StringRecord(value)).FirstErr(); err != nil {
			t.Fatal(err)
		}
		want = append(want, value)
	}

	first := await("three copies are in sync", whole)
	if len(first.Replicas) != 3 {
		t.Fatalf("%d copies, want 3", len(first.Replicas))
	}
	for i := range 20 {
		produce(fmt.Sprint("before ", i))
	}
	cluster.Node(first.Leader).Kill()
	produce("without its first leader")
	if p := partition(); p.Leader == first.Leader {
		t.Errorf("a broker that was killed leads: %+v", p)
	}
	if _, err := cluster.Start(ctx, first.Leader); err != nil {
		t.Fatal(err)
	}
	second := await("all copies are in sync again", whole)
	if err := cluster.Node(second.Leader).Pause(); err != nil {
		t.Fatal(err)
	}
	produce("while its leader stands still")
	await("another broker leads", func(p kadm.PartitionDetail) bool { return p.Leader != second.Leader && p.Leader >= 0 })
	if err := cluster.Node(second.Leader).Resume(); err != nil {
		t.Fatal(err)
	}
	await("the one that stood still has caught up", whole)
	produce("at last")

	reader := eventlogtest.Client(t, cfg, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"t": {0: kgo.NewOffset().AtStart()}}))
	var got []string
	for len(got) < len(want) {
		fetches := reader.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			t.Fatalf("%d of %d records: %v", len(got), len(want), err)
		}
		for _, r := range fetches.Records() {
			got = append(got, string(r.Value))
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("the log has %v, want %v", got, want)
	}
}
