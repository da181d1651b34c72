package realtime_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/rider"
	"tomato/domain/rooms"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/eventlogtest"
	"tomato/eventlog/subjectkeys/subjectkeystest"
	"tomato/projections/realtime"
)

const partitions = 3

// recorder is a sink that records its calls.
type recorder struct {
	mu        sync.Mutex
	passed    map[eventlog.TopicPartition]int64
	at        map[eventlog.TopicPartition]int64
	said      []string
	ready     bool
	began     int64    // the id of the base
	bases     int      // later ones
	older     []string // what was read back: partition, offset, event and rooms
	published []string // the same, of what was published
	noOlder   bool
	reaches   map[eventlog.TopicPartition]int64 // from Reaches
	changed   chan struct{}
}

func newRecorder() *recorder {
	return &recorder{at: map[eventlog.TopicPartition]int64{}, changed: make(chan struct{}, 1)}
}

func (r *recorder) Begin(b eventlog.FeedBase) {
	r.change(func() { r.began, r.passed = b.ID, b.Passed })
}
func (r *recorder) Base(eventlog.FeedBase) { r.change(func() { r.bases++ }) }
func (r *recorder) Reaches(from map[eventlog.TopicPartition]int64) {
	r.change(func() { r.reaches = from })
}
func (r *recorder) NoOlder() { r.change(func() { r.noOlder = true }) }
func (r *recorder) Older(_ map[eventlog.TopicPartition]int64, read func(func(eventlog.TopicPartition, int64, time.Time, []rooms.Message)) error) (bool, error) {
	var part []string
	err := read(func(tp eventlog.TopicPartition, offset int64, _ time.Time, all []rooms.Message) {
		for _, m := range all {
			part = append(part, fmt.Sprint(tp.Topic, "/", tp.Partition, "@", offset, " ", m.Event, " ", m.Rooms))
		}
	})
	r.change(func() { r.older = append(part, r.older...) })
	return true, err
}
func (r *recorder) Ready() { r.change(func() { r.ready = true }) }
func (r *recorder) Publish(tp eventlog.TopicPartition, offset int64, _ time.Time, all []rooms.Message) {
	r.change(func() {
		if old, ok := r.at[tp]; ok && offset <= old {
			r.said = append(r.said, fmt.Sprintf("%v went back from %d to %d", tp, old, offset))
		}
		r.at[tp] = offset
		for _, m := range all {
			r.said = append(r.said, m.Event+" "+m.Rooms[0]+" "+string(m.Payload))
			r.published = append(r.published, fmt.Sprint(tp.Topic, "/", tp.Partition, "@", offset, " ", m.Event, " ", m.Rooms))
		}
	})
}

func (r *recorder) change(f func()) {
	r.mu.Lock()
	f()
	r.mu.Unlock()
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

func (r *recorder) wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.After(30 * time.Second); ; {
		r.mu.Lock()
		done := ok()
		r.mu.Unlock()
		if done {
			return
		}
		select {
		case <-r.changed:
		case <-deadline:
			r.mu.Lock()
			defer r.mu.Unlock()
			t.Fatalf("waited in vain for %s; said: %v", what, r.said)
		}
	}
}

func (r *recorder) has(token eventlog.Token) func() bool {
	return func() bool {
		for tp, o := range token {
			if at, ok := r.at[tp]; !ok || at < o {
				return false
			}
		}
		return true
	}
}

type loader struct{ realtime.Start }

func (l loader) FeedStart(context.Context) (realtime.Start, error) { return l.Start, nil }

func follow(t *testing.T, cfg eventlog.Config, start realtime.Start) *recorder {
	t.Helper()
	r := newRecorder()
	run(t, &realtime.Projector{Kafka: cfg, Runtime: &consumer.Runtime{Kafka: cfg}, Keys: &subjectkeystest.Keys{}, Loader: loader{start}, Sink: r, Log: slog.New(slog.DiscardHandler)})
	return r
}

func run(t *testing.T, p *realtime.Projector) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

var place = domain.Point{Lng: 77.6, Lat: 12.9}

func ctxOf(order, rider, status string) domain.Ctx {
	return domain.Ctx{CustomerID: "c-" + order, RestaurantID: "r1", RiderID: rider, Status: status}
}

func position(id string, at time.Time) rider.Position {
	return rider.Position{RiderID: id, Location: place, RecordedAt: at}
}

func TestFollowsFromTheBeginningWithoutMarks(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: partitions})
		w := eventlogtest.NewWriter(t, cfg, partitions)
		before := w.Append(eventlog.Orders, "o1", order.OrderPreparing{OrderID: "o1", Ctx: ctxOf("o1", "", "preparing")})
		r := follow(t, cfg, realtime.Start{})
		r.wait(t, "ready", func() bool { return r.ready })
		r.wait(t, "what was there", r.has(before))

		w.Invalid(eventlog.Orders, "o1", "ORDER_DELIVERED", []byte(`{"orderId":"o1","ctx":{"customerId":"c-o1"}}`))
		w.AppendRaw(eventlog.Orders, "o1", "FROM_THE_FUTURE", []byte(`{}`)) // skipped
		w.Claim(eventlog.Orders)
		w.Append(eventlog.Orders, "o1", order.OrderPickedUp{OrderID: "o1", RiderID: "k1", Ctx: ctxOf("o1", "k1", "picked_up")})
		after := w.Telemetry(eventlog.Feed, "user:c-o1", rooms.Emitted, rooms.Emit{Event: "hello", Room: "user:c-o1", Payload: json.RawMessage(`"x"`)})
		after.Merge(w.Append(eventlog.Orders, "o1", order.OrderDelivered{OrderID: "o1", RiderID: "k1", Ctx: ctxOf("o1", "k1", "delivered")}))
		r.wait(t, "what came after", r.has(after))
		want := []string{
			`hello user:c-o1 "x"`,
			`order:update user:c-o1 {"orderId":"o1","status":"delivered","version":4}`,
			`order:update user:c-o1 {"orderId":"o1","status":"picked_up","version":3}`,
			`order:update user:c-o1 {"orderId":"o1","status":"preparing","version":1}`,
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if d := cmp.Diff(want, slices.Sorted(slices.Values(r.said))); d != "" {
			t.Error(d)
		}
	})
}

// A projector that starts in the middle of a log must know term and seq. Otherwise it
// takes all later records for invalid.
func TestFollowsFromMarks(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: partitions})
	w := eventlogtest.NewWriter(t, cfg, partitions)
	w.Claim(eventlog.Orders)
	w.Claim(eventlog.Orders)
	token := w.Append(eventlog.Orders, "o1",
		order.OrderPreparing{OrderID: "o1", Ctx: ctxOf("o1", "", "preparing")},
		order.OrderReadyForRider{OrderID: "o1", Ctx: ctxOf("o1", "", "ready_for_rider")})
	marks := map[eventlog.TopicPartition]consumer.Mark{}
	for tp, o := range token {
		marks[tp] = consumer.Mark{Next: o, Rule: eventlog.Rule{Term: 2, Seq: 1}} // the second event is still to come
	}
	r := follow(t, cfg, realtime.Start{Marks: marks})
	r.wait(t, "the second event", r.has(token))
	r.mu.Lock()
	defer r.mu.Unlock()
	if d := cmp.Diff([]string{`order:update user:c-o1 {"orderId":"o1","status":"ready_for_rider","version":2}`}, r.said); d != "" {
		t.Error(d)
	}
	for tp, o := range token {
		if r.passed[tp] != o-1 {
			t.Errorf("passed up to %d, want %d", r.passed[tp], o-1)
		}
	}
}

func TestARiderIsSeenWhileBringingTheOrder(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: partitions})
	w := eventlogtest.NewWriter(t, cfg, partitions)
	r := follow(t, cfg, realtime.Start{Assigned: []realtime.Assignment{{RiderID: "k2", ClaimID: 9, OrderID: "o9", CustomerID: "c9", RestaurantID: "r1"}}})
	r.wait(t, "ready", func() bool { return r.ready })
	now := time.Now().UTC().Truncate(time.Second)
	tell := func(id string, seconds int) {
		t.Helper()
		r.wait(t, "a position", r.has(w.Telemetry(eventlog.RiderLocations, id, rider.PositionType, position(id, now.Add(time.Duration(seconds)*time.Second)))))
	}
	events := func(e ...domain.Event) {
		t.Helper()
		r.wait(t, "an event", r.has(w.Append(eventlog.Orders, "o1", e...)))
	}
	tell("k1", 0) // not assigned, so there is no message
	tell("k2", 0) // the assignment was loaded at the start
	events(order.RiderAssigned{OrderID: "o1", RiderID: "k1", ClaimID: 3, Riders: []string{}, Ctx: ctxOf("o1", "k1", "rider_assigned")})
	tell("k1", 10)
	tell("k1", 5) // older than the last position
	// The end of an older claim must not end the present assignment.
	r.wait(t, "an end", r.has(w.Append(eventlog.Orders, "o2", order.OrderDelivered{OrderID: "o2", RiderID: "k1", ClaimID: 1, Ctx: ctxOf("o2", "k1", "delivered")})))
	tell("k1", 11)
	events(order.RiderUnassigned{OrderID: "o1", RiderID: "k1", ClaimID: 3, Round: 2, Ctx: ctxOf("o1", "k1", "ready_for_rider")})
	tell("k1", 12)
	// An older assignment that is read late must not replace the present one.
	events(order.RiderAssigned{OrderID: "o1", RiderID: "k2", ClaimID: 4, Riders: []string{}, Ctx: ctxOf("o1", "k2", "rider_assigned")})
	tell("k2", 13)

	r.mu.Lock()
	defer r.mu.Unlock()
	var got []string
	for _, s := range r.said {
		if len(s) > 15 && s[:15] == "rider:location " {
			got = append(got, s)
		}
	}
	said := func(room, rider string, seconds int) string {
		b, _ := json.Marshal(position(rider, now.Add(time.Duration(seconds)*time.Second)))
		return "rider:location order:" + room + " " + string(b)
	}
	if d := cmp.Diff([]string{said("o9", "k2", 0), said("o1", "k1", 10), said("o1", "k1", 11), said("o9", "k2", 13)}, got); d != "" {
		t.Error(d)
	}
}

// The topics are read independently, so a position that was accepted after the
// assignment may be read before it. Such a position used to be dropped, and the customer
// saw nothing until the next one.
func TestAPositionReadBeforeItsAssignmentIsNotLost(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: partitions})
	w := eventlogtest.NewWriter(t, cfg, partitions)
	r := follow(t, cfg, realtime.Start{})
	r.wait(t, "ready", func() bool { return r.ready })
	now := time.Now().UTC().Truncate(time.Second)
	w.At(now.Add(time.Second))
	r.wait(t, "the position", r.has(w.Telemetry(eventlog.RiderLocations, "k1", rider.PositionType, position("k1", now))))
	w.At(now)
	r.wait(t, "the assignment", r.has(w.Append(eventlog.Orders, "o1", order.RiderAssigned{OrderID: "o1", RiderID: "k1", ClaimID: 3, Riders: []string{}, Ctx: ctxOf("o1", "k1", "rider_assigned")})))
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.said); n != 3 || r.said[2][:15] != "rider:location " {
		t.Errorf("said %v", r.said)
	}
}

func TestALogThatIsShorterThanItWasStopsIt(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: partitions})
	p := &realtime.Projector{Kafka: cfg, Runtime: &consumer.Runtime{Kafka: cfg}, Keys: &subjectkeystest.Keys{}, Sink: newRecorder(), Loader: loader{realtime.Start{Marks: map[eventlog.TopicPartition]consumer.Mark{
		{Topic: eventlog.Orders, Partition: 0}: {Next: 5}}}}}
	if err := p.Run(t.Context()); err == nil {
		t.Error("it began beyond the end of the log")
	}
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// If records have been deleted that the read model has not read, the feed cannot know
// which rider has which order.
func TestAFeedDoesNotBeginBehindAHole(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: partitions})
	w := eventlogtest.NewWriter(t, cfg, partitions)
	w.Claim(eventlog.Orders)
	eventlogtest.DeleteBefore(t, cfg, eventlog.Orders, 1, 1)
	p := &realtime.Projector{Kafka: cfg, Runtime: &consumer.Runtime{Kafka: cfg}, Keys: &subjectkeystest.Keys{}, Loader: loader{realtime.Start{}}, Sink: &recorder{}, Log: slog.New(slog.DiscardHandler)}
	if err := p.Run(t.Context()); !errors.As(err, new(*eventlog.LostBeginning)) {
		t.Errorf("it ended with %v", err)
	}
}
