package operations

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"tomato/eventlog"
	"tomato/eventlog/subjectkeys"
	"tomato/httpapi"
)

// Keys destroys the keys of people, and knows whose were destroyed. A
// *subjectkeys.Keyring is one.
type Keys interface {
	Erase(ctx context.Context, s subjectkeys.Subject, by, reason string) (subjectkeys.Erasure, error)
	Erasures(before string, limit int) (page []subjectkeys.Erasure, more, ok bool)
}

// Erasure says that somebody was erased, or that somebody has begun to erase them.
type Erasure struct {
	ErasureID  string    `json:"erasureId"`
	CustomerID string    `json:"customerId,omitempty"`
	RiderID    string    `json:"riderId,omitempty"`
	Webhooks   string    `json:"webhooks,omitempty" doc:"The month, as 2026-11: the webhooks of that month that could not be decoded."`
	State      string    `json:"state" enum:"begun,completed" doc:"begun: it was asked for, and not everything is known to be done. A server finishes it within minutes."`
	Keys       int       `json:"keys" doc:"How many keys were destroyed. 0: there was nothing to erase, or it was erased before."`
	At         time.Time `json:"at" doc:"When it was asked for."`
	Completed  time.Time `json:"completedAt,omitzero" doc:"When everything was done."`
	By         string    `json:"by" doc:"ops:<sub>, or cli:<user>."`
	Reason     string    `json:"reason"`
}

// NewErasure returns the erasure as answers show it.
func NewErasure(e subjectkeys.Erasure) Erasure {
	shown := Erasure{ErasureID: e.ID, State: "completed", Keys: e.Keys, At: e.At, Completed: e.CompletedAt, By: e.By, Reason: e.Reason}
	if e.CompletedAt.IsZero() {
		shown.State = "begun"
	}
	switch e.Subject.Kind() {
	case "customer":
		shown.CustomerID = e.Subject.ID()
	case "rider":
		shown.RiderID = e.Subject.ID()
	default:
		shown.Webhooks = e.Subject.ID()
	}
	return shown
}

type eraseInput struct{ Body eraseBody }

type eraseBody struct {
	CustomerID httpapi.ID   `json:"customerId,omitempty"`
	RiderID    httpapi.ID   `json:"riderId,omitempty"`
	Reason     httpapi.Text `json:"reason" doc:"It is kept for ever, and must not hold personal data."`
}

// TransformSchema says in the document what Faults checks.
func (eraseBody) TransformSchema(_ huma.Registry, s *huma.Schema) *huma.Schema {
	s.Extensions = map[string]any{"oneOf": []any{map[string]any{"required": []string{"customerId"}}, map[string]any{"required": []string{"riderId"}}}}
	return s
}

// Faults says what no field tells by itself.
func (in *eraseInput) Faults() []httpapi.FieldError {
	if (in.Body.CustomerID == "") == (in.Body.RiderID == "") {
		return []httpapi.FieldError{{Location: "body", Message: "expected exactly one of customerId and riderId"}}
	}
	return nil
}

type erasureOutput struct{ Body Erasure }

type erasuresInput struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"50"`
	Cursor string `query:"cursor" doc:"nextCursor of the page before."`
}

type erasuresOutput struct {
	Body struct {
		Items      []Erasure `json:"items"`
		NextCursor string    `json:"nextCursor,omitempty"`
	}
}

func (o *Operations) erasureRoutes(api *httpapi.API) {
	erase := operation("/v1/ops/erasures", "erase", "Forget a customer or a rider, for good")
	erase.Method = http.MethodPost
	erase.Description = "Destroys the keys under which the person's address or name is sealed, in every event, row and backup. It cannot be undone. A repeat destroys what there is by then."
	httpapi.Register(api, erase, operators, o.erase)
	httpapi.Register(api, operation("/v1/ops/erasures", "listErasures", "Who was erased or is being erased, newest first"), readers, o.listErasures)
}

func (o *Operations) erase(ctx context.Context, in *eraseInput) (*erasureOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	subject := subjectkeys.Customer(string(in.Body.CustomerID))
	if in.Body.RiderID != "" {
		subject = subjectkeys.Rider(string(in.Body.RiderID))
	}
	e, err := o.Keys.Erase(ctx, subject, "ops:"+httpapi.Actor(ctx).Sub, string(in.Body.Reason))
	if errors.Is(err, eventlog.ErrUnavailable) {
		return nil, httpapi.Unavailable("unavailable", "The keys could not be destroyed now, or it is not known whether all were. A repeat is safe, and a server finishes what was begun.", time.Second)
	}
	if err != nil {
		return nil, err
	}
	return &erasureOutput{NewErasure(e)}, nil
}

func (o *Operations) listErasures(_ context.Context, in *erasuresInput) (*erasuresOutput, error) {
	page, more, ok := o.Keys.Erasures(in.Cursor, in.Limit)
	if !ok {
		return nil, httpapi.InvalidCursor()
	}
	out := &erasuresOutput{}
	out.Body.Items = make([]Erasure, len(page))
	for i, e := range page {
		out.Body.Items[i] = NewErasure(e)
	}
	if more {
		out.Body.NextCursor = page[len(page)-1].ID
	}
	return out, nil
}
