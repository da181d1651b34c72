package eventlog

import (
	"context"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A group whose rebalance waits for a member that never joins again loses its members, and
// the one that lives gets in. A group whose rebalance is finished keeps them.
func TestARebalanceThatIsNotFinishedIsEnded(t *testing.T) {
	t.Parallel()
	b, err := StartBroker(t.TempDir(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	client, err := kgo.NewClient(kgo.SeedBrokers(b.Addr()), kgo.DefaultProduceTopic("t"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := kadm.NewClient(client).CreateTopic(ctx, 1, 1, nil, "t"); err != nil {
		t.Fatal(err)
	}
	if err := client.ProduceSync(ctx, kgo.StringRecord("x")).FirstErr(); err != nil {
		t.Fatal(err)
	}

	// A member that only sends heartbeats: it joins once, and never again.
	join := kmsg.NewPtrJoinGroupRequest()
	join.Group, join.ProtocolType, join.SessionTimeoutMillis, join.RebalanceTimeoutMillis = "g", "consumer", 60_000, 60_000
	join.Protocols = []kmsg.JoinGroupRequestProtocol{{Name: "range", Metadata: []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0}}}
	id := ""
	for range 2 {
		join.MemberID = id
		resp, err := join.RequestWith(ctx, client)
		if err != nil {
			t.Fatal(err)
		}
		id = resp.MemberID
	}
	consumer, err := kgo.NewClient(kgo.SeedBrokers(b.Addr()), kgo.ConsumerGroup("g"), kgo.ConsumeTopics("t"), kgo.Balancers(kgo.RangeBalancer()),
		kgo.RebalanceTimeout(3*time.Second), kgo.RequestTimeoutOverhead(2*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(consumer.Close)
	members := func() map[string]bool {
		t.Helper()
		groups, err := kadm.NewClient(client).DescribeGroups(ctx, "g")
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]bool{}
		for _, m := range groups["g"].Members {
			found[m.MemberID] = true
		}
		return found
	}
	for tick := time.NewTicker(10 * time.Millisecond); len(members()) < 2; <-tick.C {
	}
	k := &groupKeeper{client: client, stuck: time.Second, since: map[string]time.Time{}}
	begun := time.Now()
	for n, wait := range []time.Duration{0, time.Second / 2, 2 * time.Second} {
		if err := k.look(ctx, begun.Add(wait)); err != nil {
			t.Fatal(err)
		}
		if has := members()[id]; has != (n < 2) {
			t.Fatalf("%v after the first look, the member is there: %v", wait, has)
		}
	}
	if got := consumer.PollFetches(ctx); got.Err() != nil || got.NumRecords() != 1 {
		t.Fatalf("the member that lives reads %d records, %v", got.NumRecords(), got.Err())
	}
	for _, after := range []time.Duration{time.Hour, 2 * time.Hour} {
		if err := k.look(ctx, begun.Add(after)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(members()); n != 1 {
		t.Errorf("%d members after the rebalance was finished", n)
	}
}
