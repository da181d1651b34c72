package eventlog_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
)

// TestRecordBytesAreThoseOfTheLog compares RecordBytes with what a broker says that its
// log has grown by, for records that each have a batch of their own.
func TestRecordBytesAreThoseOfTheLog(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		ctx := deadline(t, 2*time.Minute)
		eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: 1})
		client := eventlogtest.Client(t, cfg, kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.ProducerLinger(0))
		adm := kadm.NewClient(client)
		size := func() int64 {
			sizes, err := eventlog.LogBytes(ctx, adm, map[string]int{eventlog.Orders: 1})
			if err != nil {
				t.Fatal(err)
			}
			return sizes[eventlog.Orders]
		}
		const batchHeader = 61
		for _, r := range []*kgo.Record{
			{Value: []byte("{}")},
			{Key: []byte("o1"), Value: []byte(strings.Repeat("x", 63)), Headers: []kgo.RecordHeader{{Key: "a"}, {Key: "b", Value: []byte(strings.Repeat("y", 64))}}},
			{Key: []byte("o1"), Value: []byte(strings.Repeat("x", 20_000))},
		} {
			r.Topic = eventlog.Orders
			before := size()
			if err := client.ProduceSync(ctx, r).FirstErr(); err != nil {
				t.Fatal(err)
			}
			if grown := size() - before; grown != int64(batchHeader+eventlog.RecordBytes(r)) {
				t.Errorf("the log has grown by %d bytes: want %d and %d", grown, batchHeader, eventlog.RecordBytes(r))
			}
		}
	})
}

// TestTypesThatStrangersMakeUpAreCountedTogether holds the number of types that are told
// apart, because anybody who may write to a topic can make types up.
func TestTypesThatStrangersMakeUpAreCountedTogether(t *testing.T) {
	t.Parallel()
	ctx := deadline(t, time.Minute)
	cfg := eventlogtest.Embedded(t)
	eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: 1})
	client := eventlogtest.Client(t, cfg)
	records := []*kgo.Record{
		{Topic: eventlog.Orders, Value: []byte("noise")},
		{Topic: eventlog.Orders, Headers: []kgo.RecordHeader{{Key: eventlog.HeaderType, Value: []byte("\x1b[31m")}}},
	}
	for i := range 300 {
		name := strings.Repeat("A", i%26+1) + strings.Repeat("B", i/26+1)
		records = append(records, &kgo.Record{Topic: eventlog.Orders, Headers: []kgo.RecordHeader{{Key: eventlog.HeaderType, Value: []byte(name)}}})
	}
	if err := client.ProduceSync(ctx, records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	rows, err := eventlog.CountAggregateTypes(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	var all, other int64
	for _, r := range rows {
		all += r.Records
		if r.Type == eventlog.OtherTypes {
			other += r.Records
		}
	}
	if all != 302 || other < 200 || len(rows) > 101 {
		t.Errorf("%d records, %d of them of other types, %d types", all, other, len(rows))
	}
}

// TestDescribeWorksWhereTheBrokersDoNotTellSizes has brokers that refuse to say how large
// their logs are.
func TestDescribeWorksWhereTheBrokersDoNotTellSizes(t *testing.T) {
	t.Parallel()
	ctx := deadline(t, time.Minute)
	cfg, cluster := eventlogtest.Faulty(t)
	eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: 1})
	refuse(cluster)
	rows, err := eventlog.Describe(ctx, kadm.NewClient(eventlogtest.Client(t, cfg)), eventlog.Layout{Partitions: 1})
	if err != nil || len(rows) == 0 {
		t.Fatalf("%v %v", rows, err)
	}
	for _, r := range rows {
		if r.Bytes != nil || len(r.Problems) > 0 {
			t.Errorf("%s: %s", r.Topic, fmt.Sprint(r))
		}
	}
}

// refuse makes the brokers of a cluster refuse to describe their directories.
func refuse(cluster *kfake.Cluster) {
	cluster.ControlKey(int16(kmsg.DescribeLogDirs), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		res := req.ResponseKind().(*kmsg.DescribeLogDirsResponse)
		res.ErrorCode = 31 // CLUSTER_AUTHORIZATION_FAILED
		return res, nil, true
	})
}
