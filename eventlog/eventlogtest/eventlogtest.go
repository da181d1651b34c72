// Package eventlogtest gives tests brokers of their own: the embedded one and
// Apache Kafka, so that one suite runs on both.
package eventlogtest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
	"tomato/eventlog/kafkaprocess"
)

// Embedded starts an embedded broker for t, with its data in a temporary
// directory. It has no topics.
func Embedded(t testing.TB) eventlog.Config {
	t.Helper()
	b, err := eventlog.StartBroker(t.TempDir(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return config(t, b.Addr())
}

// Faulty starts a broker like the embedded one, but in memory, and returns its
// cluster for the injection of faults (lost answers, errors, slow requests).
func Faulty(t testing.TB) (eventlog.Config, *kfake.Cluster) {
	t.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return config(t, c.ListenAddrs()[0]), c
}

// Brokers starts n brokers of one cluster, in memory, for what depends on
// their number.
func Brokers(t testing.TB, n int) eventlog.Config {
	t.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(n))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return config(t, c.ListenAddrs()[0])
}

// Kafka starts Apache Kafka for t: one node, a few seconds, its data in a
// temporary directory. It has no topics. Without Java, or without the jars and
// Maven to fetch them, t is skipped; with TOMATO_REQUIRE_KAFKA=1 it fails.
func Kafka(t testing.TB) eventlog.Config {
	t.Helper()
	return config(t, KafkaProcess(t).Addr())
}

// KafkaProcess is Kafka for tests that kill, pause and restart the broker
// (kafkaprocess.Start on its Dir, with Options; what the test itself starts it
// kills itself, in a Cleanup).
func KafkaProcess(t testing.TB) *kafkaprocess.Process {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	dir := filepath.Join(t.TempDir(), "kafka")
	p, err := kafkaprocess.Start(ctx, dir, Options)
	started(t, err)
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("Kafka's last log lines:\n%s", p.LogTail(4<<10))
		}
	})
	return p
}

// KafkaCluster starts n nodes of Apache Kafka for t, skipped or failed as Kafka
// is. With three nodes topics have three copies, two of them in sync. What the
// test kills or pauses it may start again on the cluster.
func KafkaCluster(t testing.TB, n int) (eventlog.Config, *kafkaprocess.Cluster) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	c, err := kafkaprocess.StartCluster(ctx, filepath.Join(t.TempDir(), "kafka"), n, Options)
	started(t, err)
	t.Cleanup(func() {
		c.Kill()
		for i := range n {
			if t.Failed() {
				t.Logf("the last log lines of Kafka's node %d:\n%s", i+1, c.Node(int32(i+1)).LogTail(4<<10))
			}
		}
	})
	return eventlog.Config{Brokers: c.Addrs(), ClientID: t.Name()}, c
}

// started skips t where Kafka cannot run, and fails it where it did not start.
func started(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, kafkaprocess.ErrAbsent) && os.Getenv("TOMATO_REQUIRE_KAFKA") != "1" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Options are those of the brokers that Kafka starts: quick to start, small,
// and with groups that give a silent member up as soon as a test asks for.
var Options = kafkaprocess.Options{HeapMB: 512, QuickStart: true, Properties: map[string]string{"group.min.session.timeout.ms": "500"}}

// Each runs test once on every kind of broker, each with a broker of its own.
func Each(t *testing.T, test func(t *testing.T, cfg eventlog.Config)) {
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		test(t, Embedded(t))
	})
	t.Run("kafka", func(t *testing.T) {
		t.Parallel()
		test(t, Kafka(t))
	})
}

// Client returns a client of the brokers, closed at the end of t.
func Client(t testing.TB, cfg eventlog.Config, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	c, err := cfg.NewClient(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// Topics creates the topics of the layout.
func Topics(t testing.TB, cfg eventlog.Config, l eventlog.Layout) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := eventlog.Ensure(ctx, kadm.NewClient(Client(t, cfg)), l); err != nil {
		t.Fatal(err)
	}
}

func config(t testing.TB, addr string) eventlog.Config {
	return eventlog.Config{Brokers: []string{addr}, ClientID: t.Name()}
}

// DeleteBefore deletes the records of one partition before offset, as an
// operator or a retention does.
func DeleteBefore(t testing.TB, cfg eventlog.Config, topic string, partition int32, offset int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var to kadm.Offsets
	to.Add(kadm.Offset{Topic: topic, Partition: partition, At: offset})
	deleted, err := kadm.NewClient(Client(t, cfg)).DeleteRecords(ctx, to)
	if err == nil {
		err = deleted.Error()
	}
	if err != nil {
		t.Fatal(err)
	}
}
