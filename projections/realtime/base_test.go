package realtime

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain/rooms"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
)

// meter counts the bytes that a client reads from the brokers.
type meter struct{ bytes atomic.Int64 }

func (m *meter) OnBrokerRead(_ kgo.BrokerMetadata, _ int16, n int, _, _ time.Duration, _ error) {
	m.bytes.Add(int64(n))
}

// However long ago the last base was appended, and however many there are, a start reads
// the last few. After some hours without one it once read all bases of two days.
func TestTheNewestBaseIsFoundFromTheEnd(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: 3})
	counted := &meter{}
	client, err := cfg.NewClient(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.WithHooks(counted), kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.ProducerBatchMaxBytes(16<<10))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	b := newBases(client, 3)
	if found, err := b.newest(t.Context()); err != nil || found != nil {
		t.Errorf("in an empty log there is %v, %v", found, err)
	}
	marks := map[eventlog.TopicPartition]mark{}
	for _, topic := range Topics {
		for p := range int32(3) {
			marks[eventlog.TopicPartition{Topic: topic, Partition: p}] = mark{offset: 4}
		}
	}
	first, err := b.append(t.Context(), marks)
	if err != nil {
		t.Fatal(err)
	}
	data, err := encodeBase(marks)
	if err != nil {
		t.Fatal(err)
	}
	long := time.Now().Add(-30 * time.Hour)
	emit := func(n int, subject, eventType string, data []byte) (offset int64) {
		var all []*kgo.Record
		for range n {
			e := eventlog.Event{ID: "x", Source: "/x", Type: eventType, Time: long, Subject: subject, Data: data}
			r := e.NewRecord(b.tp.Topic, b.tp.Partition)
			r.Timestamp = long
			all = append(all, r)
		}
		if err := client.ProduceSync(t.Context(), all...).FirstErr(); err != nil {
			t.Fatal(err)
		}
		return all[n-1].Offset
	}
	last := emit(20_000, eventlog.FeedBaseKey, BaseType, data)
	emit(300, "user:u1", rooms.Emitted, []byte(`{}`)) // others are behind it
	read := func(find func() (*base, error), want int64, most int64) {
		t.Helper()
		before := counted.bytes.Load()
		found, err := find()
		if err != nil || found == nil || found.id != want {
			t.Errorf("found %v, %v, want %d", found, err, want)
		}
		if n := counted.bytes.Load() - before; n > most {
			t.Errorf("%d bytes were read", n)
		}
	}
	read(func() (*base, error) { return b.newest(t.Context()) }, last, 1<<20)
	read(func() (*base, error) { return b.before(t.Context(), last) }, last-1, 1<<20)
	read(func() (*base, error) { return b.before(t.Context(), first.id+1) }, first.id, 1<<20)
	if found, err := b.before(t.Context(), first.id); err != nil || found != nil {
		t.Errorf("before the first one there is %v, %v", found, err)
	}
	if again, err := b.at(t.Context(), first.id); err != nil || again.key != first.key || again.key == "" {
		t.Errorf("the base was appended with the key %q, and is read as %+v, %v", first.key, again, err)
	}
}
