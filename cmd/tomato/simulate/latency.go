package simulate

import (
	"slices"
	"sync"
	"time"
)

// latency collects durations by name. Its zero value is ready to use. Safe for
// concurrent use.
type latency struct {
	mu        sync.Mutex
	durations map[string][]time.Duration
}

func (l *latency) add(name string, d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.durations == nil {
		l.durations = map[string][]time.Duration{}
	}
	l.durations[name] = append(l.durations[name], d)
}

// latencyNames are the names of all latencies, in the order of the report.
var latencyNames = []string{"place", "pay_to_order_new", "ready_to_order_available", "accept", "e2e"}

func (l *latency) report() []Latency {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Latency
	for _, name := range latencyNames {
		d := slices.Sorted(slices.Values(l.durations[name]))
		if len(d) == 0 {
			continue
		}
		ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
		at := func(q float64) float64 { return ms(d[min(len(d)-1, int(q*float64(len(d))))]) }
		out = append(out, Latency{name, len(d), at(0.50), at(0.99), ms(d[len(d)-1])})
	}
	return out
}
