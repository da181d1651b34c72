package projections

import (
	"context"
	"errors"
	"time"

	"tomato/domain/order"
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

// SetJoinWait sets how long a hand-over waits for the other processes after the first.
func (m *ReadModels) SetJoinWait(d time.Duration) { m.othersWait = d }

// RefreshLate does a Refresh that has read the generations before meanwhile runs, and stores
// them afterwards.
func (m *ReadModels) RefreshLate(ctx context.Context, meanwhile func()) error {
	ticket := m.tickets.Add(1)
	now, err := m.readGenerations(ctx)
	if err == nil {
		meanwhile()
		m.store(now, ticket)
	}
	return err
}

// TakeIndexesTwice begins a rebuild and takes its indexes twice, as after a commit whose
// answer was lost.
func (m *ReadModels) TakeIndexesTwice(ctx context.Context, model string) (err error) {
	r := &rebuild{m: m, g: Generation{Model: model}}
	if r.lock, err = m.lock(ctx, model, false); err != nil {
		return err
	}
	defer r.lock.unlock()
	if r.client, err = m.Kafka.NewClient(); err != nil {
		return err
	}
	defer r.client.Close()
	for _, step := range []func(context.Context) error{r.load, r.begin, func(ctx context.Context) error { return m.makeTables(ctx, r.g) }, r.takeIndexes, r.takeIndexes} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// BreakOrders makes the fold of orders fail at every event of a type until undo is called.
// The caller must be the only test that runs.
func BreakOrders(eventType string) (undo func()) {
	old := orders.decode
	orders.decode = func(t string, v int, data []byte) (order.Event, error) {
		if t == eventType {
			return nil, errors.New("broken on purpose")
		}
		return old(t, v, data)
	}
	return func() { orders.decode = old }
}
