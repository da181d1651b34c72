// Package operations is what operators see and do: who owns which shard, how the
// read models and the consumers are doing, the generations of read models, which are
// switched, dropped, compared and mended here, the dead letters, which are listed, replayed
// and discarded here, people, who are erased here, and tokens, which are revoked here.
//
// It stands above the three sides, because operators look into all of them. The
// payments that wait for an operator are not here: listing them is a query like
// any other (queryside/payments.go), and resolving one is a command
// (commandside/payment.go).
package operations

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"tomato/commandside/shard"
	"tomato/domain"
	"tomato/eventlog/consumer"
	"tomato/eventlog/consumer/parked"
	"tomato/httpapi"
	"tomato/projections"
)

// timeout bounds each call.
const timeout = 10 * time.Second

// Operations are the operators' calls of one process. All fields are set before
// Routes; a call whose field is nil does not exist in this process.
type Operations struct {
	Shards      *shard.Shards
	DeadLetters *parked.DeadLetters
	ReadModels  interface {
		// Status returns how every generation of every read model is doing.
		Status(context.Context) ([]projections.Status, error)
	}
	Projections *projections.ReadModels // for what changes read models
	Keys        Keys                    // nil as well in a process without keys
	Revocations *Revocations
	// Consumers returns how every consumer is doing, by partition.
	Consumers func(context.Context) ([]consumer.ConsumerStatus, error)
}

// operators may change something, and readers may look.
var (
	operators = []domain.Role{domain.Ops}
	readers   = []domain.Role{domain.Ops, domain.Support}
)

// Routes registers the calls.
func (o *Operations) Routes(api *httpapi.API) {
	if o.Shards != nil {
		httpapi.Register(api, operation("/v1/ops/shards", "getShards", "Who owns which shard, and how it is doing"), readers, o.getShards)
	}
	if o.ReadModels != nil {
		httpapi.Register(api, operation("/v1/ops/projections", "getProjections", "How the read models are doing"), readers, o.getProjections)
	}
	if o.Projections != nil {
		o.projectionRoutes(api)
	}
	if o.Consumers != nil {
		httpapi.Register(api, operation("/v1/ops/consumers", "getConsumers", "How every consumer is doing, by partition"), readers, o.getConsumers)
	}
	if o.DeadLetters != nil {
		o.deadLetterRoutes(api)
	}
	if o.Keys != nil {
		o.erasureRoutes(api)
	}
	if o.Revocations != nil {
		o.revocationRoutes(api)
	}
}

func operation(path, id, summary string, errors ...int) huma.Operation {
	return huma.Operation{Method: http.MethodGet, Path: path, OperationID: id, Summary: summary, Errors: errors}
}
