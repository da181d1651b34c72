package operations

import (
	"context"
	"time"

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

	Tables []TableStatus `json:"tables,omitempty" doc:"Its tables, by name."`
}

// TableStatus is how large a table of a read model is.
type TableStatus struct {
	Table      string    `json:"table"`
	LiveRows   int64     `json:"liveRows" doc:"As Postgres estimates it."`
	DeadRows   int64     `json:"deadRows" doc:"Rows that nobody can see any more and whose space a vacuum has not freed yet, as Postgres estimates it."`
	Bytes      int64     `json:"bytes" doc:"On disk, with indexes."`
	LastVacuum time.Time `json:"lastVacuum,omitzero" doc:"By autovacuum or by hand. Absent: never."`
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
		for _, t := range s.Tables {
			out.Body.Items[i].Tables = append(out.Body.Items[i].Tables, TableStatus{Table: t.Name, LiveRows: t.LiveRows, DeadRows: t.DeadRows, Bytes: t.Bytes, LastVacuum: t.LastVacuum})
		}
	}
	return out, nil
}
