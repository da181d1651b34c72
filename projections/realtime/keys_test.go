package realtime_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/rooms"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/eventlogtest"
	"tomato/eventlog/subjectkeys"
	"tomato/eventlog/subjectkeys/subjectkeystest"
	"tomato/projections/realtime"
)

// failingKeys are keys that fail for some subjects.
type failingKeys struct {
	subjectkeystest.Keys
	mu    sync.Mutex // guards fails
	fails map[subjectkeys.Subject]error
	asked chan struct{} // gets an element for each failure; it may be full
}

func (k *failingKeys) set(s subjectkeys.Subject, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fails[s] = err
}

func (k *failingKeys) Open(ctx context.Context, s subjectkeys.Subject, field string, sealed domain.Sealed) ([]byte, error) {
	k.mu.Lock()
	err := k.fails[s]
	k.mu.Unlock()
	if err == nil {
		return k.Keys.Open(ctx, s, field, sealed)
	}
	select {
	case k.asked <- struct{}{}:
	default:
	}
	return nil, err
}

// A message whose master key is missing is shown as erased, and holds up nobody. A feed
// once waited for ever at the first such message, because a master key comes with a
// restart only. While it is the topic of the keys that cannot be read, a feed waits, and
// then shows everything.
func TestAMissingMasterKeyHoldsUpNobody(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: 1})
	w := eventlogtest.NewWriter(t, cfg, 1)
	missing := &subjectkeys.MissingMasterError{Missing: map[string]int{"0123456789abcdef": 1}, Have: []string{"fedcba9876543210"}}
	keys := &failingKeys{asked: make(chan struct{}, 1), fails: map[subjectkeys.Subject]error{
		subjectkeys.Customer("c-o1"): eventlog.UnavailableFrom("subject keys", missing),
		subjectkeys.Rider("k1"):      eventlog.UnavailableFrom("subject keys", missing),
	}}
	paid := func(id string) order.OrderPaid {
		return order.OrderPaid{OrderID: id, DeliverTo: subjectkeystest.DeliverTo("c-"+id, `{"address":"4 Church Street"}`), Ctx: ctxOf(id, "", "placed")}
	}
	w.Append(eventlog.Orders, "o1", paid("o1"),
		order.RiderAssigned{OrderID: "o1", RiderID: "k1", RiderName: subjectkeystest.Name("k1", "Una"), ClaimID: 1, Riders: []string{}, Ctx: ctxOf("o1", "k1", "rider_assigned")})
	all := w.Append(eventlog.Orders, "o2", paid("o2"))

	r, registry := newRecorder(), prometheus.NewRegistry()
	var logged eventlogtest.LogText
	p := &realtime.Projector{Kafka: cfg, Runtime: &consumer.Runtime{Kafka: cfg}, Keys: keys, Loader: loader{realtime.Start{}}, Sink: r, Registry: registry, Log: slog.New(slog.NewTextHandler(&logged, nil))}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	defer func() { cancel(); <-done }()
	r.wait(t, "the events", r.has(all))
	said := func() string {
		r.mu.Lock()
		defer r.mu.Unlock()
		return strings.Join(r.said, "\n")
	}
	if s := said(); strings.Count(s, `"deliverTo":{"erased":true}`) != 1 || strings.Count(s, `"riderName":"erased"`) != 1 || strings.Count(s, "4 Church Street") != 1 {
		t.Errorf("said %s", s)
	}
	const metric = "tomato_feed_lacks_master_key_total"
	counted := func(n int) {
		t.Helper()
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == metric && int(f.GetMetric()[0].GetCounter().GetValue()) == n {
				return
			}
		}
		t.Errorf("%s is not %d", metric, n)
	}
	counted(2)
	if s := logged.String(); strings.Count(s, "lacks a master key") != 1 || !strings.Contains(s, "0123456789abcdef") {
		t.Errorf("logged %s", s)
	}

	// The topic of the keys cannot be read for a while.
	keys.set(subjectkeys.Customer("c-o3"), eventlog.UnavailableFrom("subject keys", errors.New("no brokers")))
	all = w.Append(eventlog.Orders, "o3", paid("o3"))
	for range 2 {
		select {
		case <-keys.asked:
		case <-time.After(30 * time.Second):
			t.Fatal("nobody asks for the key")
		}
	}
	if s := said(); strings.Contains(s, "o3") {
		t.Errorf("said without the key %s", s)
	}
	keys.set(subjectkeys.Customer("c-o3"), nil)
	r.wait(t, "the event", r.has(all))
	if s := said(); strings.Count(s, "4 Church Street") != 2 {
		t.Errorf("said %s", s)
	}
}

// The same is true of what a client that resumes has missed. However often it is read, one
// log entry says so: each reading once had a sampler, and so an entry, of its own.
func TestHistoryWithoutAMasterKey(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: 1})
	w := eventlogtest.NewWriter(t, cfg, 1)
	w.Append(eventlog.Orders, "o1", order.OrderPaid{OrderID: "o1", DeliverTo: subjectkeystest.DeliverTo("c-o1", `{"address":"4 Church Street"}`), Ctx: ctxOf("o1", "", "placed")})
	orders := eventlog.TopicPartition{Topic: eventlog.Orders}
	keys := &failingKeys{asked: make(chan struct{}, 1), fails: map[subjectkeys.Subject]error{
		subjectkeys.Customer("c-o1"): eventlog.UnavailableFrom("subject keys", &subjectkeys.MissingMasterError{Missing: map[string]int{"0123456789abcdef": 1}})}}
	r := newRecorder()
	var logged eventlogtest.LogText
	p := &realtime.Projector{Kafka: cfg, Runtime: &consumer.Runtime{Kafka: cfg}, Keys: keys, Sink: r, Registry: prometheus.NewRegistry(), Log: slog.New(slog.NewTextHandler(&logged, nil)),
		Loader: loader{realtime.Start{Marks: map[eventlog.TopicPartition]consumer.Mark{orders: {Next: 2, Rule: eventlog.Rule{Term: 1, Seq: 1}}}}}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	defer func() { cancel(); <-done }()
	r.wait(t, "ready", func() bool { return r.ready })
	for range 3 {
		got := ""
		err := p.Read(t.Context(), map[eventlog.TopicPartition][]int64{orders: {1}}, func(_ eventlog.TopicPartition, _ int64, all []rooms.Message) {
			for _, m := range all {
				got += string(m.Payload)
			}
		})
		if err != nil || !strings.Contains(got, `"deliverTo":{"erased":true}`) {
			t.Errorf("%v, %s", err, got)
		}
	}
	if s := logged.String(); strings.Count(s, "lacks a master key") != 1 {
		t.Errorf("logged %s", s)
	}
}
