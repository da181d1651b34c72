package operations

import (
	"context"

	"tomato/queryside"
)

// ProjectionStatus is how one generation of a read model is doing.
type ProjectionStatus struct {
	ReadModel       string  `json:"readModel"`
	Generation      int     `json:"generation"`
	State           string  `json:"state" enum:"filling,catching_up,verified,serving,standby,gone" doc:"filling, catching_up, verified: a rebuild is at it; serving: it answers queries; standby: it served before and is kept up to date; gone: it is being dropped."`
	Fold            string  `json:"fold,omitempty" doc:"The version of the fold that made its rows."`
	RebuildDue      bool    `json:"rebuildDue,omitempty" doc:"Another version of the program has made it, so this instance serves it as it is and does not bring it up to date. Run tomato rebuild with this version."`
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
		out.Body.Items[i] = ProjectionStatus{ReadModel: s.Model, Generation: s.Number, State: string(s.State), Fold: s.Fold, RebuildDue: s.Due,
			LagEvents: s.LagEvents, LagSeconds: s.LagSeconds, EventsPerSecond: s.EventsPerSecond}
	}
	return out, nil
}
