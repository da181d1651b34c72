package eventlogtest

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain"
	"tomato/eventlog"
)

// Writer appends events as the only owner of all shards would. It claims each partition
// of an aggregate topic before the first event, and gives the events terms and seqs. It
// decides nothing, but appends the events that it is given. Safe for concurrent use.
type Writer struct {
	t          testing.TB
	client     *kgo.Client
	partitions int32

	mu       sync.Mutex // guards the fields below, and keeps the records in order
	rules    map[eventlog.TopicPartition]eventlog.Rule
	versions map[eventlog.TopicPartition]map[string]int64
	now      time.Time
	events   int64
}

// NewWriter returns a writer to topics that exist and are empty.
func NewWriter(t testing.TB, cfg eventlog.Config, partitions int32) *Writer {
	t.Helper()
	return &Writer{
		t: t, partitions: partitions,
		client: Client(t, cfg, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0)),
		rules:  map[eventlog.TopicPartition]eventlog.Rule{}, versions: map[eventlog.TopicPartition]map[string]int64{},
		now: domain.Time(time.Now()),
	}
}

// At sets the time of the events that follow. Each event is a millisecond later than
// the one before.
func (w *Writer) At(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = domain.Time(now)
}

// Append appends the next events of an aggregate and returns a token that
// covers them.
func (w *Writer) Append(topic, id string, events ...domain.Event) eventlog.Token {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	var recs []*kgo.Record
	for _, e := range events {
		data, err := json.Marshal(e)
		if err != nil {
			w.t.Fatal(err)
		}
		recs = append(recs, w.next(topic, id, e.EventType(), data)...)
	}
	return w.produce(recs)
}

// AppendRaw appends one event of any type and data to an aggregate topic.
func (w *Writer) AppendRaw(topic, id, eventType string, data []byte) eventlog.Token {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.produce(w.next(topic, id, eventType, data))
}

// Telemetry appends a record to a topic that is not an aggregate topic.
func (w *Writer) Telemetry(topic, key, eventType string, data any) eventlog.Token {
	w.t.Helper()
	b, err := json.Marshal(data)
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	e := w.event(key, eventType, b)
	return w.produce([]*kgo.Record{e.NewRecord(topic, eventlog.PartitionFor(key, w.partitions))})
}

// Invalid appends an invalid record: an event of a term that no claim has begun.
func (w *Writer) Invalid(topic, id, eventType string, data []byte) eventlog.Token {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	p := eventlog.PartitionFor(id, w.partitions)
	e := w.event(id, eventType, data)
	e.Term, e.Seq, e.Version = 1<<40, 1, 1
	return w.produce([]*kgo.Record{e.NewRecord(topic, p)})
}

// Claim appends a claim to every partition of topic, so that the events that follow
// have the next term.
func (w *Writer) Claim(topic string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	var recs []*kgo.Record
	for p := range w.partitions {
		recs = append(recs, w.claim(eventlog.TopicPartition{Topic: topic, Partition: p}))
	}
	w.produce(recs)
}

func (w *Writer) claim(tp eventlog.TopicPartition) *kgo.Record {
	rule := w.rules[tp]
	e := w.event("", eventlog.ShardClaimed, []byte(`{}`))
	e.Term = rule.Term + 1
	w.rules[tp] = eventlog.Rule{Term: e.Term}
	return e.NewRecord(tp.Topic, tp.Partition)
}

func (w *Writer) next(topic, id, eventType string, data []byte) (recs []*kgo.Record) {
	tp := eventlog.TopicPartition{Topic: topic, Partition: eventlog.PartitionFor(id, w.partitions)}
	if w.rules[tp].Term == 0 {
		recs = append(recs, w.claim(tp))
	}
	if w.versions[tp] == nil {
		w.versions[tp] = map[string]int64{}
	}
	rule := w.rules[tp]
	rule.Seq++
	w.rules[tp] = rule
	w.versions[tp][id]++
	e := w.event(id, eventType, data)
	e.Term, e.Seq, e.Version = rule.Term, rule.Seq, w.versions[tp][id]
	return append(recs, e.NewRecord(topic, tp.Partition))
}

func (w *Writer) event(subject, eventType string, data []byte) *eventlog.Event {
	w.now = w.now.Add(time.Millisecond)
	w.events++
	return &eventlog.Event{ID: fmt.Sprintf("e%d", w.events), Source: "eventlogtest", Type: eventType, Time: w.now, Subject: subject, Data: data}
}

func (w *Writer) produce(recs []*kgo.Record) eventlog.Token {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	token := eventlog.Token{}
	for _, r := range w.client.ProduceSync(ctx, recs...) {
		if r.Err != nil {
			w.t.Fatal(r.Err)
		}
		token.Add(r.Record.Topic, r.Record.Partition, r.Record.Offset)
	}
	return token
}
