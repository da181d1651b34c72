package projections

import (
	"context"
	"errors"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
)

// sweepInterval is how often a process that projects looks for generations that have gone
// and are not removed.
const sweepInterval = time.Minute

// sweep removes, until ctx ends, what a process has left that ended while it removed
// generations: their tables, their rows and, when it begins, their consumer groups.
func (m *ReadModels) sweep(ctx context.Context) {
	for groups := true; ; groups = false {
		for _, model := range Models() {
			if err := m.sweepModel(ctx, model, groups); err != nil && ctx.Err() == nil {
				m.log().Warn("what a dropped generation has left is not removed; the next start, or a rebuild of the read model, tries again", "model", model, "err", err)
			}
		}
		if pause(ctx, sweepInterval) != nil {
			return
		}
	}
}

// sweepModel leaves a read model alone whose lock another process has, because that one
// removes what has gone.
func (m *ReadModels) sweepModel(ctx context.Context, model string, groups bool) error {
	due := m.seen.Load().hasGone(model)
	if !due && groups {
		client, err := m.Kafka.NewClient()
		if err != nil {
			return err
		}
		defer client.Close()
		left, err := m.leftGroups(ctx, kadm.NewClient(client), model)
		if err != nil {
			return err
		}
		due = len(left) > 0
	}
	if !due {
		return nil
	}
	l, err := m.lock(ctx, model, false)
	if errors.Is(err, ErrRunning) {
		return nil
	}
	if err != nil {
		return err
	}
	defer l.unlock()
	if err := m.finishDrops(ctx, model); err != nil {
		return err
	}
	return m.removeGroups(ctx, model)
}
