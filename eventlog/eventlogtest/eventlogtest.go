// Package eventlogtest starts brokers for tests. It can start the embedded broker and
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

// Brokers starts a cluster of n brokers in memory, for tests that depend on the number
// of brokers.
func Brokers(t testing.TB, n int) eventlog.Config {
	t.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(n))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return config(t, c.ListenAddrs()[0])
}

// Kafka starts Apache Kafka for t. It is a single node without topics, and keeps its
// data in a temporary directory. The start takes a few seconds. t is skipped if there
// is no Java, or if there are neither the jars nor Maven to fetch them. With
// TOMATO_REQUIRE_KAFKA=1 it fails instead.
func Kafka(t testing.TB) eventlog.Config {
	t.Helper()
	return config(t, KafkaProcess(t).Addr())
}

// KafkaProcess is like Kafka, but for tests that kill, pause and restart the broker. A
// test restarts it with kafkaprocess.Start on its Dir and with Options. The test must
// kill the processes that it started itself, in a Cleanup.
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

// KafkaCluster starts n nodes of Apache Kafka for t. t is skipped or fails as with
// Kafka. With three nodes, topics have three replicas, of which two must be in sync. A
// node that the test killed may be started again with Cluster.Start.
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

// started skips t if Kafka cannot run on this machine, and fails t if Kafka did not
// start.
func started(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, kafkaprocess.ErrAbsent) && os.Getenv("TOMATO_REQUIRE_KAFKA") != "1" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Options are the options of the brokers that Kafka starts. Such a broker is small and
// starts quickly. Its groups allow session timeouts of 500 ms, so that a test need not
// wait long until a group gives up a silent member.
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

// Client returns a client of the brokers. It is closed at the end of t.
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

// DeleteBefore deletes the records of one partition before offset, as an operator or
// the retention of a topic may do it.
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
