package eventlog_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
)

// TestMain runs a broker instead of the tests if the test binary was started for that.
func TestMain(m *testing.M) {
	if dir := os.Getenv("TOMATO_TEST_BROKER_DIR"); dir != "" {
		b, err := eventlog.StartBroker(dir, os.Getenv("TOMATO_TEST_BROKER_ADDR"))
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		fmt.Println(b.Addr())
		select {} // until killed
	}
	os.Exit(m.Run())
}

// brokerProcess runs an embedded broker in a child process until kill.
func brokerProcess(t *testing.T, dir, addr string) (at string, kill func()) {
	t.Helper()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), "TOMATO_TEST_BROKER_DIR="+dir, "TOMATO_TEST_BROKER_ADDR="+addr)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	kill = func() { child.Process.Kill(); child.Wait() }
	t.Cleanup(kill)
	at, err = bufio.NewReader(out).ReadString('\n')
	if err != nil || strings.HasPrefix(at, "error:") {
		t.Fatalf("%s %v", at, err)
	}
	return strings.TrimSpace(at), kill
}

func TestEmbeddedBrokerKeepsWhatItAcknowledgedThroughKills(t *testing.T) {
	t.Parallel()
	ctx := deadline(t, 2*time.Minute)
	dir := t.TempDir()
	addr, kill := brokerProcess(t, dir, "127.0.0.1:0")
	cfg := eventlog.Config{Brokers: []string{addr}}
	eventlogtest.Topics(t, cfg, layout)
	client := eventlogtest.Client(t, cfg, kgo.ProducerLinger(0), kgo.RecordPartitioner(kgo.ManualPartitioner()))

	// acked maps the value of each acknowledged record to its partition and offset.
	acked, before := map[string]string{}, map[string]bool{} // before: acknowledged before the next kill
	results := make(chan *kgo.Record, 3000)
	const kills, perLife = 3, 500
	n := 0
	for life := range kills {
		for range perLife {
			r := &kgo.Record{Topic: eventlog.Orders, Partition: int32(n % 3), Value: fmt.Appendf(nil, "record %d", n)}
			n++
			client.Produce(ctx, r, func(r *kgo.Record, err error) {
				if err != nil {
					t.Error(err)
				}
				results <- r
			})
		}
		// Kill it while most records are not acknowledged yet. The client sends them again
		// after the restart.
		for range perLife / 10 {
			r := <-results
			acked[string(r.Value)] = fmt.Sprint(r.Partition, "@", r.Offset)
			before[string(r.Value)] = true
		}
		kill()
		_, kill = brokerProcess(t, dir, addr)
		if life == kills-1 {
			break
		}
	}
	for len(acked) < n {
		r := <-results
		acked[string(r.Value)] = fmt.Sprint(r.Partition, "@", r.Offset)
	}
	// Offsets that a group committed, and transactions, are kept as well.
	adm := kadm.NewClient(client)
	commit := kadm.Offsets{}
	commit.Add(kadm.Offset{Topic: eventlog.Orders, Partition: 1, At: 42, LeaderEpoch: -1})
	if err := adm.CommitAllOffsets(ctx, "some-group", commit); err != nil {
		t.Fatal(err)
	}
	txn := eventlogtest.Client(t, cfg, kgo.TransactionalID("snapshots-0"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for _, end := range []kgo.TransactionEndTry{kgo.TryAbort, kgo.TryCommit} {
		if err := txn.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := txn.ProduceSync(ctx, &kgo.Record{Topic: eventlog.ShardSnapshots, Value: fmt.Appendf(nil, "commit=%v", end)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := txn.EndTransaction(ctx, end); err != nil {
			t.Fatal(err)
		}
	}
	kill()
	brokerProcess(t, dir, addr)

	committed, err := adm.FetchOffsets(ctx, "some-group")
	if err != nil {
		t.Fatal(err)
	}
	if o, _ := committed.Lookup(eventlog.Orders, 1); o.At != 42 {
		t.Errorf("committed %+v", o)
	}
	if got := readAll(ctx, t, cfg, adm, eventlog.ShardSnapshots); len(got) != 1 || len(got["commit=true"]) != 1 {
		t.Errorf("committed snapshots: %v", got)
	}
	kept := readAll(ctx, t, cfg, adm, eventlog.Orders)
	twice := 0
	for value, at := range acked {
		switch stands := kept[value]; {
		case !slices.Contains(stands, at):
			t.Errorf("%s was acknowledged at %s and stands at %v", value, at, stands)
		case len(stands) > 1 && before[value]:
			t.Errorf("%s was acknowledged before the kill and stands at %v", value, stands)
		case len(stands) > 1: // its answer went with the broker, and what the broker knew of its producer
			twice++
		}
	}
	if len(kept) != n {
		t.Errorf("%d records of %d", len(kept), n)
	}
	t.Logf("%d of %d records stand twice", twice, n)
	if err := eventlog.Ensure(ctx, adm, layout); err != nil {
		t.Error(err)
	}
}

// readAll returns the committed records of topic: value → partition@offset, of
// each place.
func readAll(ctx context.Context, t *testing.T, cfg eventlog.Config, adm *kadm.Client, topic string) map[string][]string {
	t.Helper()
	ends, err := adm.ListEndOffsets(ctx, topic)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]string{}
	for p := range ends[topic] {
		end, _ := ends.Lookup(topic, p)
		reader := eventlogtest.Client(t, cfg, kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(),
			kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {p: kgo.NewOffset().AtStart()}}))
		for next := int64(0); next < end.Offset; {
			fetches := reader.PollFetches(ctx)
			if err := fetches.Err(); err != nil {
				t.Fatal(err)
			}
			fetches.EachRecord(func(r *kgo.Record) {
				next = r.Offset + 1
				if r.Attrs.IsControl() {
					return
				}
				all[string(r.Value)] = append(all[string(r.Value)], fmt.Sprint(r.Partition, "@", r.Offset))
			})
		}
		reader.Close()
	}
	return all
}

func TestEmbeddedBrokersDirectoryHasOneOwner(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, kill := brokerProcess(t, dir, "127.0.0.1:0")
	if b, err := eventlog.StartBroker(dir, "127.0.0.1:0"); !errors.Is(err, eventlog.ErrInUse) {
		t.Errorf("got %v %v", b, err)
	}
	kill()
	b, err := eventlog.StartBroker(dir, "127.0.0.1:0") // a killed process no longer holds the lock
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	b.Close()
	b, err = eventlog.StartBroker(dir, b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
}

func TestEmbeddedBrokerRefusesAnAddressThatItCannotServe(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	dir := t.TempDir()
	for _, addr := range []string{"9092", ":9092", "0.0.0.0:0", "[::]:0", taken.Addr().String()} {
		if b, err := eventlog.StartBroker(dir, addr); err == nil {
			b.Close()
			t.Errorf("%s: no error", addr)
		}
	}
}

// Both kinds of brokers do what shards and consumers need: a group hands partitions over,
// and a request for a topic that does not exist does not create it.
func TestBrokersCoordinateGroupsAndMakeNoTopicsByThemselves(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		ctx := deadline(t, 2*time.Minute)
		eventlogtest.Topics(t, cfg, layout)
		member := func() (*kgo.Client, <-chan int) {
			changes := make(chan int, 100) // how many partitions were assigned, or, if negative, revoked
			return eventlogtest.Client(t, cfg, kgo.ConsumerGroup("command-shards"), kgo.ConsumeTopics(eventlog.Orders),
				kgo.HeartbeatInterval(100*time.Millisecond), kgo.SessionTimeout(6*time.Second), kgo.DisableAutoCommit(),
				kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, a map[string][]int32) { changes <- len(a[eventlog.Orders]) }),
				kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, a map[string][]int32) { changes <- -len(a[eventlog.Orders]) })), changes
		}
		wait := func(changes <-chan int, has, want int) {
			t.Helper()
			for has != want {
				select {
				case n := <-changes:
					has += n
				case <-ctx.Done():
					t.Fatalf("has %d partitions, not %d", has, want)
				}
			}
		}
		first, firsts := member()
		wait(firsts, 0, 3)
		_, seconds := member()
		wait(seconds, 0, 1)
		wait(firsts, 3, 2)
		first.Close()
		wait(seconds, 1, 3)

		client := eventlogtest.Client(t, cfg, kgo.UnknownTopicRetries(1))
		if err := client.ProduceSync(ctx, &kgo.Record{Topic: "no-such-topic"}).FirstErr(); err == nil {
			t.Error("a topic sprang up")
		}
	})
}
