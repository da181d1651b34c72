package bench

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"tomato/eventlog"
)

// townMark is what the town has cost until one moment.
type townMark struct {
	ends                              map[eventlog.TopicPartition]int64
	disk                              map[string]int64 // bytes of each topic
	tomato, broker, postgres, clients float64          // processor time in milliseconds; 0: not known
}

// mark returns what the town has cost until now. Before that it waits until nothing is
// appended any more: some work on an order is done after its delivery.
func (t *town) mark(ctx context.Context) (m townMark, err error) {
	client, err := t.b.kafka.NewClient()
	if err != nil {
		return m, err
	}
	defer client.Close()
	if err := t.quiet(ctx, &m); err != nil {
		return m, err
	}
	m.tomato, m.broker, m.postgres, m.clients = cpuMS(t.pid), cpuMS(t.b.brokerPID), cpuMS(t.b.postgresPID), ownCPUMS()
	partitions := map[string]int{}
	for _, topic := range eventlog.AggregateTopics {
		partitions[topic] = int(t.b.Partitions)
	}
	m.disk, err = eventlog.LogBytes(ctx, kadm.NewClient(client), partitions)
	return m, err
}

// quiet waits until the logs have not grown for quietFor, for ten seconds at most, and
// enters their ends.
func (t *town) quiet(ctx context.Context, m *townMark) error {
	const quietFor = 300 * time.Millisecond
	limit := time.Now().Add(10 * time.Second)
	since := time.Now()
	for {
		ends, err := endsOf(ctx, t.b.kafka, eventlog.AggregateTopics[:]...)
		if err != nil {
			return err
		}
		for tp, end := range ends {
			if m.ends[tp] != end {
				since = time.Now()
			}
		}
		m.ends = ends
		if time.Since(since) >= quietFor || time.Now().After(limit) {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// kept returns the records of the logs between two marks, by topic and type, and how
// many they are.
func (t *town) kept(ctx context.Context, from, to townMark) (types []eventlog.TypeRow, records int64, err error) {
	ranges := map[eventlog.TopicPartition]eventlog.Range{}
	for tp, end := range to.ends {
		ranges[tp] = eventlog.Range{From: from.ends[tp], To: end}
	}
	types, err = eventlog.CountTypes(ctx, t.b.kafka, ranges)
	for _, row := range types {
		records += row.Records
	}
	return types, records, err
}

// addKept adds the rows about what the orders leave in the logs for ever.
func (t *town) addKept(types []eventlog.TypeRow, from, to townMark, orders float64) {
	var records, size, disk float64
	for _, row := range types {
		records, size = records+float64(row.Records), size+float64(row.Bytes)
	}
	for topic, n := range to.disk {
		disk += float64(n - from.disk[topic])
	}
	t.b.add("kept_records_per_order", "records/order", records/orders, 0)
	t.b.add("kept_bytes_per_order", "bytes/order", size/orders, 0)
	t.b.add("kept_disk_bytes_per_order", "bytes/order", disk/orders, size/orders)
	for _, topic := range eventlog.AggregateTopics {
		if grown := to.disk[topic] - from.disk[topic]; grown > 0 {
			t.b.add("disk_bytes_"+topic, "bytes/order", float64(grown)/orders, 0)
		}
	}
	for _, row := range types {
		t.b.add("records_"+row.Topic+"_"+row.Type, "records/order", float64(row.Records)/orders, 0)
		t.b.add("bytes_"+row.Topic+"_"+row.Type, "bytes/order", float64(row.Bytes)/orders, 0)
	}
}
