package operations

import (
	"context"

	"tomato/queryside"
)

// ProjectionStatus is how one generation of a read model is doing.
type ProjectionStatus struct {
	ReadModel       string  `json:"readModel"`
	Generation      int     `json:"generation"`
	State           string  `json:"state" enum:"serving,live,filling" doc:"live: kept up to date beside the serving one; filling: a rebuild is at it."`
	LagEvents       int64   `json:"lagEvents"`
	LagSeconds      float64 `json:"lagSeconds" doc:"Age of the last event taken in, while there is a lag."`
	EventsPerSecond float64 `json:"eventsPerSecond" doc:"Lately, as this instance sees it."`
}

type projectionsOutput struct {
	Body struct {
		Items []ProjectionStatus `json:"items"`
	}
}

func (o *Operations) getProjections(ctx context.Context, _ *struct{}) (*projectionsOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	all, err := o.ReadModels.Status(ctx)
	if err != nil {
		return nil, queryside.Problem(err)
	}
	out := &projectionsOutput{}
	out.Body.Items = make([]ProjectionStatus, len(all))
	for i, s := range all {
		out.Body.Items[i] = ProjectionStatus{ReadModel: s.Model, Generation: s.Number, State: s.State,
			LagEvents: s.LagEvents, LagSeconds: s.LagSeconds, EventsPerSecond: s.EventsPerSecond}
	}
	return out, nil
}
