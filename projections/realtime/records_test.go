package realtime

import (
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain/rooms"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

type published struct{ offsets []string }

func (*published) Begin(eventlog.FeedBase)                   {}
func (*published) Reaches(map[eventlog.TopicPartition]int64) {}
func (*published) Base(eventlog.FeedBase)                    {}
func (*published) Older(map[eventlog.TopicPartition]int64, func(func(eventlog.TopicPartition, int64, time.Time, []rooms.Message)) error) (bool, error) {
	return false, nil
}
func (*published) NoOlder() {}
func (*published) Ready()   {}
func (p *published) Publish(_ eventlog.TopicPartition, offset int64, _ time.Time, all []rooms.Message) {
	p.offsets = append(p.offsets, fmt.Sprint(offset, ":", len(all)))
}

// Records of other programs are skipped. A valid record that cannot be decoded still
// moves the reader rule on, so the events after it are published. The feed once took such
// a record for an invalid one, and then every later event of the partition too.
func TestTheFeedGoesOnBehindJunkAndFaults(t *testing.T) {
	t.Parallel()
	m, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	var log []*kgo.Record
	seq := int64(0)
	next := func(eventType string, headers ...kgo.RecordHeader) {
		seq++
		e := eventlog.Event{ID: "e", Source: "/test", Type: eventType, Subject: "o1", Version: seq, Term: 1, Seq: seq, Time: time.Now(), Data: []byte(`{"orderId":"o1","ctx":{"customerId":"c"}}`)}
		r := e.NewRecord(eventlog.Orders, 0)
		r.Headers = append(r.Headers, headers...)
		log = append(log, r)
	}
	next("ORDER_PREPARING")
	log = append(log, eventlogtest.Junk(eventlog.Orders, 0)...)
	next("ORDER_PREPARING", kgo.RecordHeader{Key: "ce_time", Value: []byte("yesterday")})
	next("ORDER_GIFTED")
	next("ORDER_PREPARING", kgo.RecordHeader{Key: "ce_subject", Value: []byte("no id")})
	next("ORDER_PREPARING")
	var want []string // of each record: only the first and the last one mean a message
	for i, r := range log {
		r.Offset = int64(i)
		want = append(want, fmt.Sprint(i, ":0"))
	}
	want[0], want[len(want)-1] = "0:1", fmt.Sprint(len(want)-1, ":1")
	var told published
	tp := eventlog.TopicPartition{Topic: eventlog.Orders}
	p := newRunning(&Projector{Sink: &told, Keys: &subjectkeystest.Keys{}}, slog.New(slog.DiscardHandler), m)
	p.marks[tp] = mark{-1, eventlog.Rule{Term: 1}}
	for _, r := range log {
		p.record(t.Context(), tp, r)
	}
	if !slices.Equal(told.offsets, want) || p.marks[tp].rule.Seq != seq {
		t.Errorf("told %v, want %v; the rule is at %+v", told.offsets, want, p.marks[tp].rule)
	}
}
