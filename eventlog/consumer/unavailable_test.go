package consumer_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/eventlogtest"
)

// While a dependency is unavailable, one key queue at a time calls it, however many
// wait. Key queues that do not need it go on, and Status still shows that the others
// wait. (It did not, when a worker kept one wait for all of its key queues.)
func TestOneCallsWhatIsUnavailableAndOthersGoOn(t *testing.T) {
	t.Parallel()
	b := newBench(t, eventlogtest.Embedded(t), eventlog.Subscription{Name: "needy", Topics: []string{eventlog.Orders}})
	const keys = 20
	var l ledger
	var mu sync.Mutex
	var asked []time.Time
	back, asking := false, 0
	c := consumer.Consumer{Name: "needy", Topics: []string{eventlog.Orders}, ConcurrentKeys: 4, Each: kinds("", func(e eventlog.Event) error {
		mu.Lock()
		defer mu.Unlock()
		if !back && strings.HasPrefix(e.Subject, "needs") {
			asked = append(asked, time.Now())
			return fmt.Errorf("handler: %w", eventlog.UnavailableFrom("the bank", errors.New("closed")))
		}
		l.add(e)
		return nil
	})["Each"].Each}
	for k := range keys {
		b.produce(b.event(eventlog.Orders, fmt.Sprint("needs", k), "T")...)
	}
	r := b.runtime()
	start(t, r, c)
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(asked)
	}
	eventually(t, "each has asked once, and then they wait", func() bool { return count() >= keys+3 })
	waits := func() bool {
		for _, s := range r.Status() {
			for _, p := range s.Partitions {
				if strings.Contains(p.Unavailable, "the bank: closed") && !p.UnavailableSince.IsZero() {
					return true
				}
			}
		}
		return false
	}
	for k := range 3 * keys { // more keys wait than there are slots
		b.produce(b.event(eventlog.Orders, fmt.Sprint("free", k), "T")...)
		if k%keys == 0 && !waits() {
			t.Error("that somebody waits does not show")
		}
	}
	eventually(t, "who needs nothing goes on", func() bool { return l.total() == 3*keys })
	if !waits() {
		t.Error("that somebody waits does not show any more")
	}
	asking = count()
	eventually(t, "somebody asks", func() bool { return count() >= asking+5 })
	mu.Lock()
	last := slices.Clone(asked[asking : asking+5])
	back = true
	mu.Unlock()
	if took := last[4].Sub(last[0]); took < 4*400*time.Millisecond {
		t.Errorf("%d key queues called it 5 times in %v", keys, took)
	}
	eventually(t, "all is done when it is back", func() bool { return l.total() == 4*keys })
	eventually(t, "nobody waits", func() bool { return !waits() })
	eventually(t, "the breaker is closed", func() bool { return gauge(t, r, "tomato_breaker_state", "the bank") == 0 })
	if n := query[int](b, `SELECT count(*) FROM tomato.parked`); n != 0 {
		t.Errorf("%d parked", n)
	}
}

// A consumer says how often and when its failed events are tried again.
func TestRetriesAreConfiguration(t *testing.T) {
	t.Parallel()
	b := newBench(t, eventlogtest.Embedded(t), eventlog.Subscription{Name: "once", Topics: []string{eventlog.Orders}})
	var l ledger
	c := consumer.Consumer{Name: "once", Topics: []string{eventlog.Orders}, InPlaceTries: 2, RetryDelays: []time.Duration{}}
	c.Each = kinds("", func(e eventlog.Event) error {
		l.add(e)
		return errors.New("no")
	})["Each"].Each
	r := b.runtime()
	r.Hasten(0, 0) // the consumer's own
	b.produce(b.event(eventlog.Orders, "k", "T")...)
	start(t, r, c)
	eventually(t, "dead at once", func() bool {
		return query[int](b, `SELECT count(*) FROM tomato.parked WHERE state = 'dead' AND attempt = 1`) == 1
	})
	if n := l.total(); n != 2 {
		t.Errorf("tried %d times", n)
	}
	if err := b.runtime().Run(t.Context(), consumer.Consumer{Name: "x", Topics: []string{eventlog.Orders}, Each: c.Each, RetryDelays: make([]time.Duration, 3)}); err == nil {
		t.Error("three delays, and two retry topics")
	}
}

// gauge is the value of a metric with that label value; -1: there is none.
func gauge(t *testing.T, r *consumer.Runtime, name, label string) float64 {
	t.Helper()
	families, err := r.Registry.(*prometheus.Registry).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if f.GetName() == name && l.GetValue() == label {
					return m.GetGauge().GetValue()
				}
			}
		}
	}
	return -1
}
