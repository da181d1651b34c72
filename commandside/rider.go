package commandside

import (
	"context"

	"tomato/commandside/shard"
	"tomato/domain"
	"tomato/domain/rider"
	"tomato/eventlog"
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
		return s.riderCommand(ctx, in.riderInput, in.Body, rider.Put{RiderID: string(in.ID), Name: string(in.Body.Name), Vehicle: string(in.Body.Vehicle)})
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

func (s *Side) riderCommand(ctx context.Context, in riderInput, body any, c domain.Command) (*riderOutput, error) {
	res, err := s.execute(ctx, in.commandInput, body, shard.Request{Topic: eventlog.Riders, ID: string(in.ID), Command: c})
	if err != nil {
		return nil, err
	}
	return &riderOutput{Status: res.Status, ETag: httpapi.ETag(res.Rider.Version), Token: s.token(&res), Body: rider.NewView(res.Rider)}, nil
}
