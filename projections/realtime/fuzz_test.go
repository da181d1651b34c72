package realtime

import (
	"encoding/json"
	"log/slog"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain/rider"
	"tomato/domain/rooms"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

// Whatever a record contains, the feed makes messages of it or skips it, and goes on.

func FuzzFeedOfOrders(f *testing.F) {
	fuzzFeed(f, eventlog.Orders, "../../domain/order/testdata/*.v1.json")
}
func FuzzFeedOfPayments(f *testing.F) {
	fuzzFeed(f, eventlog.Payments, "../../domain/payment/testdata/*.v1.json")
}
func FuzzFeedOfPositions(f *testing.F) {
	f.Add([]byte(`{"riderId":"rider-5","location":{"type":"Point","coordinates":[77.6,12.9]},"recordedAt":"2026-01-02T03:04:05Z"}`), rider.PositionType, "rider-5", "2026-01-02T03:04:05Z", "", "", "", "")
	fuzzFeed(f, eventlog.RiderLocations, "")
}
func FuzzFeedOfEmitted(f *testing.F) {
	f.Add([]byte(`{"event":"promo:new","room":"user:u1","payload":{"a":1}}`), rooms.Emitted, "user:u1", "2026-01-02T03:04:05Z", "", "", "", "")
	fuzzFeed(f, eventlog.Feed, "")
}

// sink checks that clients can be sent what a projector publishes.
type sink struct{ t *testing.T }

func (sink) Begin(eventlog.FeedBase)                   {}
func (sink) Base(eventlog.FeedBase)                    {}
func (sink) Ready()                                    {}
func (sink) Reaches(map[eventlog.TopicPartition]int64) {}
func (sink) NoOlder()                                  {}
func (sink) Older(map[eventlog.TopicPartition]int64, func(func(eventlog.TopicPartition, int64, time.Time, []rooms.Message)) error) (bool, error) {
	return false, nil
}
func (s sink) Publish(_ eventlog.TopicPartition, _ int64, _ time.Time, all []rooms.Message) {
	for _, m := range all {
		if !json.Valid(m.Payload) || len(m.Rooms) == 0 {
			s.t.Errorf("%s to %q: %s", m.Event, m.Rooms, m.Payload)
		}
	}
}

func fuzzFeed(f *testing.F, topic, golden string) {
	m, err := newMetrics(nil)
	if err != nil {
		f.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	eventlogtest.FuzzRecords(f, topic, golden, func(t *testing.T, r *kgo.Record) {
		p := newRunning(&Projector{Sink: sink{t}, Keys: &subjectkeystest.Keys{}}, log, m)
		p.riders = newAssignments([]Assignment{{RiderID: "rider-5", ClaimID: 1, OrderID: "o", CustomerID: "c", RestaurantID: "r"}})
		tp := eventlog.TopicPartition{Topic: topic}
		p.marks[tp] = mark{rule: eventlog.Rule{Term: 1}}
		p.record(t.Context(), tp, r)
		for id := range p.riders.byRider { // the rider sends a position after the assignment
			data, err := json.Marshal(rider.Position{RiderID: id, RecordedAt: time.Unix(1, 0)})
			if err != nil {
				t.Fatal(err)
			}
			e := eventlog.Event{Type: rider.PositionType, Time: time.Unix(1, 0), Data: data}
			p.record(t.Context(), eventlog.TopicPartition{Topic: eventlog.RiderLocations}, e.NewRecord(eventlog.RiderLocations, 0))
		}
	})
}
