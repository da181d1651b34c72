package operations

import (
	"context"
	"errors"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"tomato/domain"
	"tomato/eventlog/consumer/parked"
	"tomato/httpapi"
)

type deadLettersInput struct {
	Limit    int    `query:"limit" minimum:"1" maximum:"200" default:"50"`
	Cursor   string `query:"cursor" doc:"nextCursor of the page before."`
	Consumer string `query:"consumer" maxLength:"64"`
}

type deadLettersOutput struct {
	Body struct {
		Items      []parked.ParkedRecord `json:"items"`
		NextCursor string                `json:"nextCursor,omitempty"`
	}
}

type deadLetterInput struct {
	ID int64 `path:"id" minimum:"1"`
}

type deadLetterOutput struct{ Body parked.ParkedRecord }

type discardInput struct {
	deadLetterInput
	Body struct {
		Reason httpapi.Text `json:"reason"`
	}
}

type replayInput struct{ Body replayBody }

type replayBody struct {
	Consumer      string  `json:"consumer" minLength:"1" maxLength:"64"`
	IDs           []int64 `json:"ids,omitempty" maxItems:"10000"`
	Key           string  `json:"key,omitempty" maxLength:"255"`
	Class         string  `json:"class,omitempty" maxLength:"64"`
	All           bool    `json:"all,omitempty"`
	DryRun        bool    `json:"dryRun,omitempty"`
	RatePerSecond float64 `json:"ratePerSecond,omitempty" minimum:"0" maximum:"100000" doc:"0.1 or more; default, and 0: all at once."`
	ConfirmCount  int     `json:"confirmCount,omitempty" minimum:"0" doc:"The number that matches, where it is above 100."`
}

// TransformSchema says in the document what Faults and the replay check.
func (replayBody) TransformSchema(_ huma.Registry, s *huma.Schema) *huma.Schema {
	type object = map[string]any
	one := func(name string, schema object) object {
		return object{"required": []string{name}, "properties": object{name: schema}}
	}
	s.Extensions = object{"oneOf": []any{one("ids", object{"minItems": 1}), one("key", object{"minLength": 1}), one("class", object{"minLength": 1}), one("all", object{"const": true})}}
	for _, name := range []string{"consumer", "key", "class"} { // Postgres cannot store U+0000
		s.Properties[name].Extensions = object{"pattern": `^[^\u0000]*$`}
	}
	s.Properties["ratePerSecond"].Extensions = object{"anyOf": []any{object{"maximum": 0}, object{"minimum": 0.1}}}
	return s
}

// Faults says what no field tells by itself.
func (in *replayInput) Faults() []httpapi.FieldError {
	n := 0
	for _, set := range []bool{len(in.Body.IDs) > 0, in.Body.Key != "", in.Body.Class != "", in.Body.All} {
		if set {
			n++
		}
	}
	if n != 1 {
		return []httpapi.FieldError{{Location: "body", Message: "expected exactly one of ids, key, class and all"}}
	}
	return nil
}

type replayOutput struct{ Body parked.ReplayResult }

func (o *Operations) deadLetterRoutes(api *httpapi.API) {
	httpapi.Register(api, operation("/v1/ops/dead-letters", "listDeadLetters", "Records that consumers could not handle, oldest first"), readers, o.listDeadLetters)
	httpapi.Register(api, operation("/v1/ops/dead-letters/{id}", "getDeadLetter", "One of them, with its record", 404), readers, o.getDeadLetter)

	discard := operation("/v1/ops/dead-letters/{id}/discard", "discardDeadLetter", "Give a record up for good", 404, 409)
	discard.Method = http.MethodPost
	httpapi.Register(api, discard, operators, o.discardDeadLetter)
	one := operation("/v1/ops/dead-letters/{id}/replay", "replayDeadLetter", "Let its consumer try a record again", 404)
	one.Method, one.DefaultStatus = http.MethodPost, http.StatusAccepted
	httpapi.Register(api, one, operators, o.replayDeadLetter)
	many := operation("/v1/ops/dead-letters/replay", "replayDeadLetters", "Let a consumer try many records again", 409)
	many.Method, many.DefaultStatus = http.MethodPost, http.StatusAccepted
	httpapi.Register(api, many, operators, o.replayDeadLetters)
}

func (o *Operations) listDeadLetters(ctx context.Context, in *deadLettersInput) (*deadLettersOutput, error) {
	items, next, err := o.DeadLetters.List(ctx, in.Consumer, in.Limit, in.Cursor)
	if err != nil {
		return nil, letterProblem(err)
	}
	for i := range items {
		hidePayload(ctx, &items[i])
	}
	out := &deadLettersOutput{}
	out.Body.Items, out.Body.NextCursor = append([]parked.ParkedRecord{}, items...), next
	return out, nil
}

func (o *Operations) getDeadLetter(ctx context.Context, in *deadLetterInput) (*deadLetterOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	letter, err := o.DeadLetters.Get(ctx, in.ID)
	if err != nil {
		return nil, letterProblem(err)
	}
	hidePayload(ctx, &letter)
	return &deadLetterOutput{letter}, nil
}

// hidePayload removes what support may not see: the record's value and headers, and the
// error, which may quote them.
func hidePayload(ctx context.Context, letter *parked.ParkedRecord) {
	if httpapi.Actor(ctx).Role == domain.Support {
		letter.Headers, letter.Data, letter.Error = nil, nil, ""
	}
}

func (o *Operations) discardDeadLetter(ctx context.Context, in *discardInput) (*deadLetterOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, longTimeout)
	defer cancel()
	if err := o.DeadLetters.Discard(ctx, in.ID, string(in.Body.Reason), httpapi.Actor(ctx).Sub); err != nil {
		return nil, letterProblem(err)
	}
	return o.getDeadLetter(ctx, &in.deadLetterInput)
}

func (o *Operations) replayDeadLetter(ctx context.Context, in *deadLetterInput) (*replayOutput, error) {
	letter, err := o.DeadLetters.Get(ctx, in.ID)
	if err != nil {
		return nil, letterProblem(err)
	}
	return o.replay(ctx, parked.ReplayRequest{Consumer: letter.Consumer, IDs: []int64{in.ID}})
}

func (o *Operations) replayDeadLetters(ctx context.Context, in *replayInput) (*replayOutput, error) {
	b := in.Body
	return o.replay(ctx, parked.ReplayRequest{Consumer: b.Consumer, IDs: b.IDs, Key: b.Key, Class: b.Class, All: b.All,
		DryRun: b.DryRun, RatePerSecond: b.RatePerSecond, ConfirmCount: b.ConfirmCount})
}

func (o *Operations) replay(ctx context.Context, r parked.ReplayRequest) (*replayOutput, error) {
	r.Who = httpapi.Actor(ctx).Sub
	res, err := o.DeadLetters.Replay(ctx, r)
	if err != nil {
		return nil, letterProblem(err)
	}
	return &replayOutput{res}, nil
}

func letterProblem(err error) error {
	var confirm *parked.ConfirmError
	switch {
	case errors.Is(err, parked.ErrNoDeadLetter):
		return httpapi.NewProblem(http.StatusNotFound, "dead_letter_not_found", "There is no such dead letter.")
	case errors.Is(err, parked.ErrInvalidCursor):
		return httpapi.InvalidCursor()
	case errors.Is(err, parked.ErrSelection):
		return httpapi.Invalid(httpapi.FieldError{Location: "body", Message: err.Error()})
	case errors.Is(err, parked.ErrReplayRate):
		return httpapi.Invalid(httpapi.FieldError{Location: "body.ratePerSecond", Message: err.Error()})
	case errors.As(err, &confirm):
		return httpapi.NewProblem(http.StatusConflict, "confirmation_required", confirm.Error())
	}
	return projectionProblem(err)
}
