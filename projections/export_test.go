package projections

import (
	"context"
	"time"
)

// SetFold makes m a process of another build, whose fold of the read model has this
// version.
func (m *ReadModels) SetFold(model, fold string) {
	if m.otherFolds == nil {
		m.otherFolds = map[string]string{}
	}
	m.otherFolds[model] = fold
}

// TendOnce does one round of TendRiders.
func (m *ReadModels) TendOnce(ctx context.Context, before time.Time) error {
	return m.tendRiders(ctx, before)
}

// SetVerifyWait sets how long Verify waits for a moment at which both generations have
// passed the same events.
func (m *ReadModels) SetVerifyWait(d time.Duration) { m.evenWait = d }
