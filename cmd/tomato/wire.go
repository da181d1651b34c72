package main

import (
	"context"
	"time"

	"tomato/commandside"
	"tomato/eventlog"
	"tomato/projections"
	"tomato/queryside"
)

// The sides do not know one another. These adapters join what one needs of
// another.

// riderSearch is the riders read model as dispatch asks it.
type riderSearch struct{ models *projections.ReadModels }

func (r riderSearch) Nearest(ctx context.Context, searches []commandside.Search, maxAge time.Duration, after eventlog.Token, wait time.Duration) ([][]commandside.Candidate, bool, error) {
	asked := make([]projections.Search, len(searches))
	for i, s := range searches {
		asked[i] = projections.Search(s)
	}
	found, complete, err := r.models.Nearest(ctx, asked, maxAge, after, wait)
	if err != nil {
		return nil, false, err
	}
	out := make([][]commandside.Candidate, len(found))
	for i, cs := range found {
		out[i] = make([]commandside.Candidate, len(cs))
		for j, c := range cs {
			out[i][j] = commandside.Candidate(c)
		}
	}
	return out, complete, nil
}

func (r riderSearch) Passed(ctx context.Context, after eventlog.Token) error {
	return r.models.Read(ctx, after, []string{projections.Riders}, func([]string) error { return nil })
}

func (r riderSearch) Waiting(ctx context.Context, riderIDs []string, radii []int, maxAge time.Duration, after eventlog.Token, wait time.Duration) ([]commandside.WaitingOrder, error) {
	found, err := r.models.Waiting(ctx, riderIDs, radii, maxAge, after, wait)
	if err != nil {
		return nil, err
	}
	out := make([]commandside.WaitingOrder, len(found))
	for i, w := range found {
		out[i] = commandside.WaitingOrder(w)
	}
	return out, nil
}

// projectionStatus is how the read models are doing, for operators.
func projectionStatus(models *projections.ReadModels) func(context.Context) ([]queryside.ProjectionStatus, error) {
	return func(ctx context.Context) ([]queryside.ProjectionStatus, error) {
		all, err := models.Status(ctx)
		if err != nil {
			return nil, err
		}
		out := make([]queryside.ProjectionStatus, len(all))
		for i, s := range all {
			out[i] = queryside.ProjectionStatus{ReadModel: s.Model, Generation: s.Number, State: s.State,
				LagEvents: s.LagEvents, LagSeconds: s.LagSeconds, EventsPerSecond: s.EventsPerSecond}
		}
		return out, nil
	}
}

// subscriptions are all consumers with the topics they read: what has retry
// and dead letter topics.
func subscriptions() []eventlog.Subscription {
	var all []eventlog.Subscription
	for _, c := range new(commandside.Side).Policies() {
		all = append(all, eventlog.Subscription{Name: c.Name, Topics: c.Topics})
	}
	for _, model := range projections.Models {
		all = append(all, eventlog.Subscription{Name: model, Topics: projections.Topics(model)})
	}
	return all
}
