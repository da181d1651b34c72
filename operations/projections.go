package operations

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"tomato/domain"
	"tomato/eventlog"
	"tomato/eventlog/pgerr"
	"tomato/httpapi"
	"tomato/projections"
	"tomato/queryside"
)

// longTimeout bounds the calls that read a partition of the log, or two generations.
const longTimeout = time.Minute

// readModelInput names a read model.
type readModelInput struct {
	Model string `path:"readModel" maxLength:"64" pattern:"^[a-z]+$"`
}

type generationBody struct {
	Generation int `json:"generation" minimum:"1" maximum:"1000000000"`
}

type generationInput struct {
	readModelInput
	Body generationBody
}

type switchBody struct {
	Generation int  `json:"generation" minimum:"1" maximum:"1000000000"`
	Force      bool `json:"force,omitempty" doc:"Switch although the generation is behind the one that serves, so that queries show old rows."`
}

type switchInput struct {
	readModelInput
	Body switchBody
}

type verifyBody struct {
	Generation int `json:"generation,omitempty" minimum:"0" maximum:"1000000000" doc:"The one to compare the rows with; 0, the default: the newest one that is kept up to date beside the one that serves."`
}

type verifyInput struct {
	readModelInput
	Body verifyBody
}

type rebuildOneInput struct {
	readModelInput
	Body struct {
		Key httpapi.ID `json:"key" doc:"The order, payment, restaurant or rider."`
	}
}

// eventBody names an event.
type eventBody struct {
	Topic     string `json:"topic" maxLength:"64" pattern:"^[a-z-]+$"`
	Partition int32  `json:"partition" minimum:"0" maximum:"100000"`
	Offset    int64  `json:"offset" minimum:"0" maximum:"9007199254740991"`
}

func (b *eventBody) position() eventlog.Position {
	return eventlog.Position{TopicPartition: eventlog.TopicPartition{Topic: b.Topic, Partition: b.Partition}, Offset: b.Offset}
}

type skipBody struct {
	Topic     string       `json:"topic" maxLength:"64" pattern:"^[a-z-]+$"`
	Partition int32        `json:"partition" minimum:"0" maximum:"100000"`
	Offset    int64        `json:"offset" minimum:"0" maximum:"9007199254740991"`
	Reason    httpapi.Text `json:"reason" doc:"It is kept for ever, and must not hold personal data."`
}

type skipInput struct {
	readModelInput
	Body skipBody
}

type unskipInput struct {
	readModelInput
	Body eventBody
}

// GenerationState says what became of a read model's aggregate in one generation.
type GenerationState struct {
	Generation int   `json:"generation"`
	Version    int64 `json:"version" doc:"Of its row now. 0: there is none."`
	Cleared    int   `json:"cleared" doc:"Parked events that are done by this."`
	Unchanged  bool  `json:"unchanged,omitempty" doc:"Another version of the program has made the generation, so nothing was changed there."`
}

type foldedOutput struct {
	Body struct {
		Generations []GenerationState `json:"generations" doc:"Where the aggregate was folded again."`
	}
}

type skipOutput struct {
	Body struct {
		Event       projections.SkippedEvent `json:"event"`
		Generations []GenerationState        `json:"generations" doc:"Where the event had taken effect, so that the aggregate was folded again."`
	}
}

type skippedInput struct {
	Model string `query:"readModel" maxLength:"64"`
}

type skippedOutput struct {
	Body struct {
		Items []projections.SkippedEvent `json:"items"`
	}
}

type verifyOutput struct {
	Body struct {
		Serving       int                        `json:"serving"`
		Other         int                        `json:"other"`
		Equal         bool                       `json:"equal"`
		Comparison    projections.Comparison     `json:"comparison" doc:"missing: rows that only the serving generation has; extra: that only the other one has."`
		SkippedEvents []projections.SkippedEvent `json:"skippedEvents"`
	}
}

func (o *Operations) projectionRoutes(api *httpapi.API) {
	httpapi.Register(api, operation("/v1/ops/skipped-events", "listSkippedEvents", "Events that must never take effect in a read model"), readers, o.listSkipped)
	post := func(action, id, summary string) huma.Operation {
		op := operation("/v1/ops/projections/{readModel}/"+action, id, summary, 404, 409)
		op.Method = http.MethodPost
		return op
	}
	httpapi.Register(api, post("switch", "switchProjection", "Let another generation serve"), operators, o.switchProjection)
	httpapi.Register(api, post("drop", "dropProjection", "Remove a generation that does not serve"), operators, o.dropProjection)
	httpapi.Register(api, post("verify", "verifyProjection", "Compare the rows that serve with those of another generation"), operators, o.verifyProjection)
	httpapi.Register(api, post("rebuild-one", "rebuildOne", "Fold one aggregate again from the log"), operators, o.rebuildOne)
	httpapi.Register(api, post("skip", "skipEvent", "Let an event never take effect in a read model"), operators, o.skipEvent)
	httpapi.Register(api, post("unskip", "unskipEvent", "Let an event that was skipped take effect"), operators, o.unskipEvent)
}

// operator acts for the caller.
func (o *Operations) operator(ctx context.Context) projections.Operator {
	return projections.Operator{Models: o.Projections, Who: httpapi.Actor(ctx).Sub}
}

func (o *Operations) listSkipped(ctx context.Context, in *skippedInput) (*skippedOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	all, err := o.Projections.Skipped(ctx, in.Model)
	if err != nil {
		return nil, projectionProblem(err)
	}
	out := &skippedOutput{}
	out.Body.Items = append([]projections.SkippedEvent{}, all...)
	return out, nil
}

func (o *Operations) switchProjection(ctx context.Context, in *switchInput) (*projectionsOutput, error) {
	if err := o.operator(ctx).Switch(ctx, projections.Generation{Model: in.Model, Number: in.Body.Generation}, in.Body.Force); err != nil {
		return nil, projectionProblem(err)
	}
	return o.getProjections(ctx, nil)
}

func (o *Operations) dropProjection(ctx context.Context, in *generationInput) (*projectionsOutput, error) {
	if err := o.operator(ctx).Drop(ctx, projections.Generation{Model: in.Model, Number: in.Body.Generation}); err != nil {
		return nil, projectionProblem(err)
	}
	return o.getProjections(ctx, nil)
}

func (o *Operations) verifyProjection(ctx context.Context, in *verifyInput) (*verifyOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, longTimeout)
	defer cancel()
	v, err := o.Projections.Verify(ctx, in.Model, in.Body.Generation)
	if err != nil {
		return nil, projectionProblem(err)
	}
	out := &verifyOutput{}
	out.Body.Serving, out.Body.Other, out.Body.Equal, out.Body.Comparison = v.Serving.Number, v.Other.Number, v.Comparison.Equal(), v.Comparison
	out.Body.SkippedEvents = append([]projections.SkippedEvent{}, v.SkippedEvents...)
	return out, nil
}

func (o *Operations) rebuildOne(ctx context.Context, in *rebuildOneInput) (*foldedOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, longTimeout)
	defer cancel()
	done, err := o.operator(ctx).RebuildOne(ctx, in.Model, string(in.Body.Key))
	if err != nil {
		return nil, projectionProblem(err)
	}
	out := &foldedOutput{}
	out.Body.Generations = generationStates(done)
	return out, nil
}

func (o *Operations) skipEvent(ctx context.Context, in *skipInput) (*skipOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, longTimeout)
	defer cancel()
	at := eventBody{in.Body.Topic, in.Body.Partition, in.Body.Offset}
	s, done, err := o.operator(ctx).Skip(ctx, in.Model, at.position(), string(in.Body.Reason))
	if err != nil {
		return nil, projectionProblem(err)
	}
	out := &skipOutput{}
	out.Body.Event, out.Body.Generations = s, generationStates(done)
	return out, nil
}

func (o *Operations) unskipEvent(ctx context.Context, in *unskipInput) (*foldedOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, longTimeout)
	defer cancel()
	done, err := o.operator(ctx).Unskip(ctx, in.Model, in.Body.position())
	if err != nil {
		return nil, projectionProblem(err)
	}
	out := &foldedOutput{}
	out.Body.Generations = generationStates(done)
	return out, nil
}

func generationStates(done []projections.Refolded) []GenerationState {
	out := make([]GenerationState, len(done))
	for i, r := range done {
		out[i] = GenerationState{r.Number, r.Version, r.Cleared, r.OtherFold}
	}
	return out
}

// projectionProblem returns the problem for an error of a call that acts on read models.
func projectionProblem(err error) error {
	var state *projections.StateError
	var unfinished *projections.UnfinishedError
	var unfoldable *projections.UnfoldableError
	switch {
	case errors.Is(err, projections.ErrNoModel):
		return httpapi.FromError("read_model", domain.Refuse(domain.NotFound, "There is no such read model."))
	case errors.Is(err, projections.ErrNoReason):
		return httpapi.Invalid(httpapi.FieldError{Location: "body.reason", Message: err.Error()})
	case errors.Is(err, projections.ErrNoEvent), errors.Is(err, projections.ErrNoSkipped), errors.Is(err, projections.ErrNoEvents):
		return httpapi.NewProblem(http.StatusNotFound, "not_found", err.Error()+".")
	case errors.As(err, &state):
		return httpapi.NewProblem(http.StatusConflict, "generation_state", state.Error()+".")
	case errors.Is(err, projections.ErrNothingToVerify):
		return httpapi.NewProblem(http.StatusConflict, "generation_state", err.Error()+".")
	case errors.Is(err, projections.ErrRunning):
		return httpapi.NewProblem(http.StatusConflict, "rebuild_running", "A rebuild of this read model is running, or a generation is being dropped. Wait for its end, or run `tomato rebuild` with --cancel.")
	case errors.As(err, &unfinished):
		return httpapi.NewProblem(http.StatusConflict, "rebuild_running", unfinished.Error()+".")
	case errors.As(err, &unfoldable):
		return httpapi.NewProblem(http.StatusConflict, "event_not_foldable", unfoldable.Error()+".")
	case pgerr.Code(err) == "42501": // no rights
		return httpapi.NewProblem(http.StatusConflict, "generation_state", fmt.Sprintf("The database user of this instance has not the rights for this: %v. Use `tomato projections` with a user that has them.", err))
	}
	return queryside.Problem(err)
}
