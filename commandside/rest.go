package commandside

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"tomato/commandside/shard"
	"tomato/domain"
	"tomato/domain/order"
	"tomato/eventlog"
	"tomato/eventlog/subjectkeys"
	"tomato/httpapi"
)

// Routes registers all commands.
func (s *Side) Routes(api *httpapi.API) {
	s.orderRoutes(api)
	s.riderRoutes(api)
	s.locationRoutes(api)
	s.restaurantRoutes(api)
	s.paymentRoutes(api)
	s.emitRoutes(api)
}

// commandInput are the headers that every command takes.
type commandInput struct {
	IdempotencyKey   httpapi.IdempotencyKey `header:"Idempotency-Key"`
	IfMatch          httpapi.IfMatch        `header:"If-Match"`
	ConsistencyToken consistencyToken       `header:"Consistency-Token" doc:"Of an earlier answer: the command sees at least that much."`
	Traceparent      string                 `header:"traceparent" doc:"W3C trace context; kept in the event."`
}

// consistencyToken is the header Consistency-Token as a parameter.
type consistencyToken struct{ eventlog.ClientToken }

// UnmarshalText reads the header's value.
func (t *consistencyToken) UnmarshalText(b []byte) (err error) {
	t.ClientToken, err = eventlog.ParseClientToken(string(b))
	return err
}

// Schema describes the header.
func (consistencyToken) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Extensions: map[string]any{"pattern": "^[A-Za-z0-9_-]*$"}}
}

// execute runs a command on behalf of the request's caller. A repeat with the same
// idempotency key must have the same body. The error is an *httpapi.Problem.
func (s *Side) execute(ctx context.Context, in commandInput, body any, r shard.Request) (shard.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, s.CommandDeadline)
	defer cancel()
	r.Actor = httpapi.Actor(ctx)
	r.IdempotencyKey = string(in.IdempotencyKey)
	switch versions := in.IfMatch.Versions; {
	case in.IfMatch.Any:
		r.IfMatch = shard.Exists
	case len(versions) > 0:
		r.IfMatch, r.OrMatch = versions[0], versions[1:]
	case in.IfMatch.Set:
		r.IfMatch = shard.Never
	}
	if shard.ValidTraceparent(in.Traceparent) { // the W3C standard says that an invalid value must be ignored
		r.Traceparent = in.Traceparent
	}
	var err error
	if r.After, err = in.ConsistencyToken.For(s.LogID); err != nil {
		return shard.Result{}, httpapi.UnknownToken()
	}
	if r.IdempotencyKey != "" && body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return shard.Result{}, err
		}
		r.BodyHash = string(b)
	}
	res, err := s.Commands.Execute(ctx, r)
	if err != nil {
		return res, problem(r.Topic, err)
	}
	return res, nil
}

// nouns has the noun of each topic, for the codes <noun>_not_found.
var nouns = map[string]string{eventlog.Orders: "order", eventlog.Payments: "payment", eventlog.Riders: "rider", eventlog.Restaurants: "restaurant"}

// upgradeRetryAfter is when a caller is asked to repeat a command whose event waits for
// the upgrade of other instances.
const upgradeRetryAfter = 10 * time.Second

// problem returns the problem that the caller gets for an error of a shard.
func problem(topic string, err error) error {
	var upgrade *shard.UpgradeInProgress
	if errors.As(err, &upgrade) {
		return httpapi.Unavailable("upgrade_in_progress", upgrade.Detail(), upgradeRetryAfter)
	}
	if errors.Is(err, eventlog.ErrUnavailable) { // shard.ErrUnavailable is one
		return httpapi.Unavailable("unavailable", "The command could not be decided now, or its outcome is not known. A repeat is safe, best with an Idempotency-Key.", time.Second)
	}
	var unknown *shard.UnknownEvent
	if errors.As(err, &unknown) {
		return httpapi.Unavailable("unknown_event", unknown.Detail(), time.Minute)
	}
	switch domain.RefusedWith(err) {
	case shard.VersionMismatch:
		return httpapi.NewProblem(http.StatusPreconditionFailed, "precondition_failed", err.Error())
	case shard.UnknownConsistencyToken:
		return httpapi.UnknownToken()
	case shard.IdempotencyKeyReused:
		return httpapi.NewProblem(http.StatusUnprocessableEntity, string(shard.IdempotencyKeyReused), "This Idempotency-Key was used with another body.")
	case shard.IdempotencyInProgress:
		p := httpapi.NewProblem(http.StatusConflict, string(shard.IdempotencyInProgress), "The first request with this Idempotency-Key is still running.")
		p.RetryAfter = time.Second
		return p
	}
	return httpapi.FromError(nouns[topic], err)
}

// system runs a command as part of a request, but as domain.SystemActor instead of the
// caller.
func (s *Side) system(ctx context.Context, topic, id string, c domain.Command) (shard.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, s.CommandDeadline)
	defer cancel()
	return s.Commands.Execute(ctx, shard.Request{Topic: topic, ID: id, Actor: domain.SystemActor, Command: c})
}

// operation describes a command in the OpenAPI document.
func operation(method, path, id, summary string, responses ...int) huma.Operation {
	if strings.HasPrefix(path, "/v1/orders/") || strings.Contains(path, "/payments/") {
		responses = append(responses, http.StatusGone) // order_archived
	}
	return huma.Operation{Method: method, Path: path, OperationID: id, Summary: summary, Errors: append([]int{404, 409, 412}, responses...)}
}

// putOperation describes a command that may begin an aggregate. It answers 201 if it
// does.
func putOperation(path, id, summary string) huma.Operation {
	op := operation(http.MethodPut, path, id, summary)
	op.Responses = map[string]*huma.Response{"201": {}}
	return op
}

type orderOutput struct {
	Status   int
	ETag     string `header:"ETag"`
	Token    string `header:"Consistency-Token"`
	Location string `header:"Location"`
	Body     order.View
}

// orderAnswer returns the answer to the request's caller, with the personal fields that
// the caller may see opened. The error is an *httpapi.Problem.
func (s *Side) orderAnswer(ctx context.Context, res shard.Result) (*orderOutput, error) {
	view := viewOf(res).For(httpapi.Actor(ctx))
	if err := subjectkeys.OpenOrder(ctx, s.Keys, &view); err != nil {
		return nil, problem(eventlog.Orders, err)
	}
	return &orderOutput{Status: res.Status, ETag: httpapi.ETag(res.Order.Version), Token: s.token(&res), Body: view}, nil
}

// token returns the Consistency-Token of an answer.
func (s *Side) token(res *shard.Result) string { return s.LogID.Format(res.ConsistencyToken()) }

// viewOf returns the order as answers show it.
func viewOf(res shard.Result) order.View {
	var facts order.PaymentFacts
	if res.Payment != nil {
		facts = res.Payment.Facts()
	}
	return order.NewView(res.Order, order.PaymentStatusOf(res.Order, facts))
}

// notAppended marks the error of records that could not be appended with
// shard.ErrUnavailable, so that the caller gets a 503 and may try again.
func notAppended(err error) error { return fmt.Errorf("%w: %w", shard.ErrUnavailable, err) }
