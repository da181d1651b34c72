package servertest

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
)

// Chronicle is what has happened: every valid event on the aggregate topics. It
// follows the logs from their start until the test ends, and then checks that the
// versions of each aggregate are 1, 2, 3 and so on. Safe for concurrent use.
type Chronicle struct {
	t      testing.TB
	client *kgo.Client

	mu      sync.Mutex
	next    map[eventlog.TopicPartition]int64
	rules   map[eventlog.TopicPartition]eventlog.Rule
	events  map[string][]eventlog.Event // by topic/id
	invalid int
	changed chan struct{} // closed when there is more
}

// follow begins a chronicle at the start of the logs.
func follow(t testing.TB, kafka eventlog.Config) *Chronicle {
	t.Helper()
	client, err := kafka.NewClient(kgo.ConsumeTopics(eventlog.AggregateTopics[:]...), kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
		kgo.FetchMaxWait(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	c := &Chronicle{t: t, client: client, next: map[eventlog.TopicPartition]int64{}, rules: map[eventlog.TopicPartition]eventlog.Rule{},
		events: map[string][]eventlog.Event{}, changed: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			c.add(client.PollFetches(ctx))
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		client.Close()
		c.check()
	})
	return c
}

func (c *Chronicle) add(fetches kgo.Fetches) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for iter := fetches.RecordIter(); !iter.Done(); {
		r := iter.Next()
		tp := eventlog.TopicPartition{Topic: r.Topic, Partition: r.Partition}
		e, _ := eventlog.ParseRecord(r) // e.Fault has the error
		rule := c.rules[tp]
		take, skipped := rule.Take(&e)
		c.rules[tp], c.next[tp] = rule, r.Offset+1
		switch {
		case skipped != "":
			c.invalid++
		case take:
			key := r.Topic + "/" + e.Subject
			c.events[key] = append(c.events[key], e)
		}
	}
	close(c.changed)
	c.changed = make(chan struct{})
}

// check holds every aggregate to one total order: its versions are 1, 2, ….
func (c *Chronicle) check() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, events := range c.events {
		for i, e := range events {
			if e.Version != int64(i+1) {
				c.t.Errorf("event %d of %s, %s, has version %d", i+1, key, e.Type, e.Version)
			}
		}
	}
}

// UpToDate returns when the chronicle has all that is on the logs now.
func (c *Chronicle) UpToDate() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), Patience)
	defer cancel()
	ends, err := eventlog.EndOffsets(ctx, c.client, eventlog.AggregateTopics[:]...)
	if err != nil {
		c.t.Fatal(err)
	}
	for {
		c.mu.Lock()
		behind := 0
		for tp, end := range ends {
			if c.next[tp] < end {
				behind++
			}
		}
		changed := c.changed
		c.mu.Unlock()
		if behind == 0 {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			c.t.Fatal("the logs cannot be read")
		}
	}
}

// History returns all events of an aggregate, up to now.
func (a *Installation) History(topic, id string) []eventlog.Event {
	a.T.Helper()
	if topic == "" || id == "" {
		return nil
	}
	a.Log.UpToDate()
	a.Log.mu.Lock()
	defer a.Log.mu.Unlock()
	return slices.Clone(a.Log.events[topic+"/"+id])
}

// Seen returns the events of an aggregate that the chronicle has read so far. It asks
// no broker, which makes it right for what is awaited, and wrong for what is not to be
// there.
func (a *Installation) Seen(topic, id string) []eventlog.Event {
	a.Log.mu.Lock()
	defer a.Log.mu.Unlock()
	return slices.Clone(a.Log.events[topic+"/"+id])
}

// Types returns the types of events.
func Types(events []eventlog.Event) []string {
	ts := make([]string, len(events))
	for i, e := range events {
		ts[i] = e.Type
	}
	return ts
}

// Count returns how many of the events have the type.
func Count(events []eventlog.Event, eventType string) (n int) {
	for _, e := range events {
		if e.Type == eventType {
			n++
		}
	}
	return n
}

// Data finds a value in an event's data by a path such as riders.0.riderId; nil:
// absent.
func Data(e eventlog.Event, path string) any {
	var v any
	if json.Unmarshal(e.Data, &v) != nil {
		return nil
	}
	return Dig(v, path)
}

// Sizes returns the numbers of events by topic/id.
func (c *Chronicle) Sizes(topics ...string) map[string]int {
	c.t.Helper()
	c.UpToDate()
	c.mu.Lock()
	defer c.mu.Unlock()
	n := map[string]int{}
	for key, events := range c.events {
		if topic, _, _ := strings.Cut(key, "/"); slices.Contains(topics, topic) {
			n[key] = len(events)
		}
	}
	return n
}

// TypesOf returns the types of the events of topic/id, up to now.
func (c *Chronicle) TypesOf(key string) []string {
	c.t.Helper()
	c.UpToDate()
	c.mu.Lock()
	defer c.mu.Unlock()
	return Types(c.events[key])
}

// DispatchSteps returns what dispatch did with an order, in words.
func (a *Installation) DispatchSteps(id string) (steps []string) {
	a.T.Helper()
	for _, e := range a.History(eventlog.Orders, id) {
		step := fmt.Sprint(e.Type, " ", Data(e, "round"))
		switch e.Type {
		case order.TypeOrderOffered, order.TypeOffersExpired, order.TypeOfferDeclined:
			step += fmt.Sprint("/", Data(e, "wave"))
		case order.TypeDispatchExhausted, order.TypeRiderAssigned, order.TypeRiderUnassigned:
		default:
			continue
		}
		switch e.Type {
		case order.TypeOrderOffered:
			for _, r := range Data(e, "riders").([]any) {
				step += " " + Dig(r, "riderId").(string)
			}
		case order.TypeOfferDeclined, order.TypeRiderAssigned, order.TypeRiderUnassigned:
			step += fmt.Sprint(" ", Data(e, "riderId"))
		}
		steps = append(steps, step)
	}
	return steps
}

// Append appends a valid event to the log of an aggregate, as a newer build might
// have written it. Nobody serves meanwhile.
func (a *Installation) Append(topic, id, eventType, data string) {
	a.T.Helper()
	history := a.History(topic, id) // brings the chronicle up to date
	tp := eventlog.TopicPartition{Topic: topic, Partition: eventlog.PartitionFor(id, Partitions)}
	a.Log.mu.Lock()
	rule := a.Log.rules[tp]
	a.Log.mu.Unlock()
	e := eventlog.Event{ID: "newer", Source: "/newer", Type: eventType, Subject: id, Version: int64(len(history) + 1), Term: rule.Term, Seq: rule.Seq + 1,
		Time: domain.Time(time.Now()), Data: []byte(data)}
	client := eventlogtest.Client(a.T, a.Kafka, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err := client.ProduceSync(a.T.Context(), e.NewRecord(topic, tp.Partition)).FirstErr(); err != nil {
		a.T.Fatal(err)
	}
}

// All returns all events so far by topic/id.
func (c *Chronicle) All() map[string][]eventlog.Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.events) // their slices are appended to only
}

// Invalid returns how many invalid records there are so far.
func (c *Chronicle) Invalid() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.invalid
}
