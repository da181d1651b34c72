package simulate

import (
	"context"
	"sync"
	"time"
)

const stallCheck = 200 * time.Millisecond

// watchdog notices when a run no longer makes progress.
type watchdog struct {
	ledger  *ledger
	timeout time.Duration // longest time without progress
}

// stalled reports whether the run has made no progress for longer than the timeout.
func (w watchdog) stalled() bool {
	return time.Since(time.Unix(0, w.ledger.lastProgress.Load())) > w.timeout
}

// watch returns a context that ends when ctx ends or when the run has stalled. The
// caller must call stop.
func (w watchdog) watch(ctx context.Context) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		t := time.NewTicker(stallCheck)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				if w.stalled() {
					cancel()
				}
			}
		}
	})
	return ctx, func() { cancel(); watching.Wait() }
}
