package consumer

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/twmb/franz-go/pkg/kgo"
)

// newBackoff returns pauses that double from first to most. Each is then made up
// to half as long or as long again, at random.
func newBackoff(first, most time.Duration) *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.Multiplier, b.RandomizationFactor = first, most, 2, 0.5
	b.Reset()
	return b
}

// newInPlaceBackoff returns the pauses between the tries of one attempt.
func newInPlaceBackoff() *backoff.ExponentialBackOff {
	return newBackoff(20*time.Millisecond, 200*time.Millisecond)
}

// newUnavailableBackoff returns the pauses of what waits for a dependency.
func newUnavailableBackoff() *backoff.ExponentialBackOff {
	return newBackoff(50*time.Millisecond, 2*time.Second)
}

// jitter returns a random duration of up to most.
func jitter(most time.Duration) time.Duration { return rand.N(most) + time.Millisecond }

// sleep waits for d, and reports whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// sleep waits for d. It returns errStopped at once when the worker is to stop.
func (w *worker) sleep(d time.Duration) error {
	w.beat()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-w.drain:
		return errStopped
	case <-w.ctx.Done():
		return errStopped
	}
}

// clientLogger logs the errors of a Kafka client as warnings. The client retries
// what it can, and Status shows what it cannot.
type clientLogger struct{ log *slog.Logger }

// Level implements kgo.Logger.
func (clientLogger) Level() kgo.LogLevel { return kgo.LogLevelError }

// Log implements kgo.Logger.
func (l clientLogger) Log(_ kgo.LogLevel, msg string, kv ...any) {
	l.log.Warn("kafka client: "+msg, kv...)
}
