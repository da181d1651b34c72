package consumer

import (
	"context"
	"sync"
	"time"

	"tomato/eventlog"
)

// IsTelemetry reports whether a single record of topic may be lost, because the next
// one of its key replaces it. The records of such a topic may come from anybody. A
// record that cannot be read, or that a handler fails on, is skipped and counted. It
// is never parked: later records of its key would wait for it, and with too many of
// them the partition would pause. A record without a value is ignored, unless IsErasure.
func IsTelemetry(topic string) bool { return topic == eventlog.RiderLocations }

// IsErasure reports whether an event of a telemetry topic says that its key was erased.
// Its Subject is the record's key.
func IsErasure(e *eventlog.Event) bool {
	return IsTelemetry(e.Topic) && e.Data == nil && e.Type == eventlog.PositionErased
}

// Skip counts an event of a telemetry topic that a handler skips, and logs why now and
// then. The handler calls it with its context. A batch that is repeated counts its
// events again. Outside of a handler that a Runtime calls, Skip does nothing.
func Skip(ctx context.Context, e *eventlog.Event, why error) {
	if w, ok := ctx.Value(workerKey{}).(*worker); ok {
		w.skip(e.Offset, why)
	}
}

// workerKey is the key of the worker in the context of a handler.
type workerKey struct{}

// skips counts what a worker has skipped since the last log entry.
type skips struct {
	mu       sync.Mutex
	n        int
	loggedAt time.Time
}

const skipsLogEvery = 10 * time.Second

func (w *worker) skip(offset int64, why error) {
	w.g.r.state.metrics.skipped.WithLabelValues(w.g.c.Name, w.cp.Topic).Inc()
	s := &w.skips
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	if time.Since(s.loggedAt) < skipsLogEvery {
		return
	}
	w.log.Warn("records that cannot be handled are skipped", "count", s.n, "offset", offset, "err", why)
	s.n, s.loggedAt = 0, time.Now()
}
