package consumer

import (
	"context"
	"sync"
	"time"

	"tomato/eventlog"
)

// IsTelemetry says whether topic promises nothing of a single record: the next
// one of its key replaces it. Anybody may have written there. What cannot be
// read, or fails its handler, is passed over and counted. It is never parked,
// because whatever comes after it would wait for it, and a partition with too
// much of it would pause. A record without a value says that its key is gone.
func IsTelemetry(topic string) bool { return topic == eventlog.RiderLocations }

// Skip says, from within a handler, that it passes over e, an event of a
// telemetry topic, and why. It is counted, and logged now and then. A batch that
// is repeated counts it again. Outside of a Runtime it does nothing.
func Skip(ctx context.Context, e *eventlog.Event, why error) {
	if w, ok := ctx.Value(workerKey{}).(*worker); ok {
		w.skip(e.Offset, why)
	}
}

// workerKey is that of a handler's worker in its context.
type workerKey struct{}

// skips is what a worker has passed over since it last said so.
type skips struct {
	mu   sync.Mutex
	n    int
	told time.Time
}

const skipsTellEvery = 10 * time.Second

func (w *worker) skip(offset int64, why error) {
	w.g.r.state.metrics.skipped.WithLabelValues(w.g.c.Name, w.cp.Topic).Inc()
	s := &w.skips
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	if time.Since(s.told) < skipsTellEvery {
		return
	}
	w.log.Warn("records that cannot be read are passed over", "count", s.n, "offset", offset, "err", why)
	s.n, s.told = 0, time.Now()
}
