package commandside

import (
	"context"

	"tomato/commandside/shard"
	"tomato/domain"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/subjectkeys"
	"tomato/httpapi"
)

type riderInput struct {
	commandInput
	ID httpapi.ID `path:"id"`
}

type putRiderInput struct {
	riderInput
	Body struct {
		Name    httpapi.Line `json:"name"`
		Vehicle httpapi.Line `json:"vehicle,omitempty"`
	}
}

type riderOutput struct {
	Status int
	ETag   string `header:"ETag"`
	Token  string `header:"Consistency-Token"`
	Body   rider.View
}

func (s *Side) riderRoutes(api *httpapi.API) {
	put := putOperation("/v1/riders/{id}", "putRider", "Register a rider, or change what is known of them")
	httpapi.Register(api, put, []domain.Role{domain.Ops, domain.Rider}, func(ctx context.Context, in *putRiderInput) (*riderOutput, error) {
		return s.putRider(ctx, in)
	})
	for _, c := range []struct {
		name, id, summary string
		role              domain.Role
		command           domain.Command
	}{
		{"verify", "verifyRider", "Let the rider work", domain.Ops, rider.Verify{}},
		{"suspend", "suspendRider", "Stop the rider; an order under way is finished", domain.Ops, rider.Suspend{}},
		{"online", "riderOnline", "The rider can be offered orders", domain.Rider, rider.GoOnline{}},
		{"offline", "riderOffline", "The rider gets no offers", domain.Rider, rider.GoOffline{}},
	} {
		httpapi.Register(api, operation("POST", "/v1/riders/{id}/"+c.name, c.id, c.summary), []domain.Role{c.role},
			func(ctx context.Context, in *riderInput) (*riderOutput, error) {
				return s.riderCommand(ctx, *in, nil, c.command)
			})
	}
}

// putBody is the body of putRiderInput with what is personal sealed.
type putBody struct {
	Name    domain.Sealed `json:"name"`
	Vehicle httpapi.Line  `json:"vehicle,omitempty"`
}

func (s *Side) putRider(ctx context.Context, in *putRiderInput) (*riderOutput, error) {
	// The shard checks this again. Without the check here, a rider could make keys for
	// anybody.
	if actor := httpapi.Actor(ctx); actor.Role == domain.Rider && actor.Sub != string(in.ID) {
		return nil, problem(eventlog.Riders, domain.Refuse(domain.Forbidden, "the caller may do this only for itself"))
	}
	name, err := subjectkeys.SealName(ctx, s.Keys, string(in.ID), string(in.Body.Name))
	if err != nil {
		return nil, problem(eventlog.Riders, err)
	}
	return s.riderCommand(ctx, in.riderInput, putBody{name, in.Body.Vehicle}, rider.Put{RiderID: string(in.ID), Name: name, Vehicle: string(in.Body.Vehicle)})
}

func (s *Side) riderCommand(ctx context.Context, in riderInput, body any, c domain.Command) (*riderOutput, error) {
	res, err := s.execute(ctx, in.commandInput, body, shard.Request{Topic: eventlog.Riders, ID: string(in.ID), Command: c})
	if err != nil {
		return nil, err
	}
	view := rider.NewView(res.Rider)
	if err := subjectkeys.OpenRider(ctx, s.Keys, &view); err != nil {
		return nil, problem(eventlog.Riders, err)
	}
	return &riderOutput{Status: res.Status, ETag: httpapi.ETag(res.Rider.Version), Token: s.token(&res), Body: view}, nil
}
