package shard

import (
	"context"
	"errors"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/domain/restaurant"
	"tomato/domain/rider"
	"tomato/eventlog"
)

// Request is one command on one aggregate. It is data, not code: it can be
// carried to the instance that owns the aggregate's shard.
type Request struct {
	Topic   string         `json:"topic"`        // the aggregate's type, by its topic: eventlog.Orders, …
	ID      string         `json:"id,omitempty"` // of the aggregate; "" only for Place, whose key (or chance) names the shard and draws the id
	Actor   domain.Actor   `json:"actor"`        // who asks; domain.SystemActor for policies
	Command domain.Command `json:"-"`            // a value, never a pointer

	IdempotencyKey string         `json:"idempotencyKey,omitempty"` // "" = none
	BodyHash       string         `json:"bodyHash,omitempty"`       // of what the key stands for
	IfMatch        int64          `json:"ifMatch,omitempty"`        // the version that the resource must have; 0 = any, Exists, Never
	OrMatch        []int64        `json:"orMatch,omitempty"`        // further versions that will do
	CausationID    string         `json:"causationId,omitempty"`    // the event that made a policy ask
	CorrelationID  string         `json:"correlationId,omitempty"`
	Traceparent    string         `json:"traceparent,omitempty"`
	After          eventlog.Token `json:"-"` // the caller has seen this much: wait for it where the command reads other views (menus)
}

// Result is what a command came to. The states are values that nobody changes
// any more; those that concern the command are set.
type Result struct {
	Event    domain.Event // what was appended; nil where it was already so
	Repeated bool         // the idempotency key was known: Status is the first answer's
	Status   int          // HTTP status of the (first) answer: 201 where something began, else 200

	Order      *order.State // of commands on topics orders and payments, where the order is held
	Payment    *payment.State
	Rider      *rider.State
	Restaurant *restaurant.State
	Known      []bool               // of Known
	reached    [2]eventlog.Position // what the answer rests on; no topic: none
}

// version is that of the resource in this log.
func (r *Result) version(kind int) int64 {
	e := entry{order: r.Order, payment: r.Payment, rider: r.Rider, restaurant: r.Restaurant}
	return e.version(kind)
}

// Token returns the positions of what the answer rests on.
func (r *Result) Token() eventlog.Token {
	t := eventlog.Token{}
	for _, p := range r.reached {
		if p.Topic != "" {
			t.Add(p.Topic, p.Partition, p.Offset)
		}
	}
	return t
}

// ConsistencyToken is Token as text.
func (r *Result) ConsistencyToken() string {
	n := 0
	for n < len(r.reached) && r.reached[n].Topic != "" {
		n++
	}
	reached := r.reached // which are sorted
	return eventlog.TokenString(reached[:n])
}

// Executor decides commands where their shard is. It returns when the outcome
// is on Kafka and known to count: a Result, a *domain.Refusal, an *UnknownEvent,
// or an error that is ErrUnavailable. Safe for concurrent use.
type Executor interface {
	Execute(ctx context.Context, r Request) (Result, error)
}

// Exists is the IfMatch that takes any version of a resource that there is.
const Exists int64 = -1

// Never is the IfMatch that no resource meets: its tags are no versions.
const Never int64 = -2

// ErrUnavailable says that the command's outcome is not known, or that nobody
// could decide it now: no owner, a full queue, a deadline, a deposed owner. A
// retry is safe. It is an eventlog.ErrAway too.
var ErrUnavailable = eventlog.Unavailable(errors.New("the shard cannot answer now"))

// Refusals of the write side itself, beside those of the domain.
const (
	VersionMismatch       domain.Code = "version_mismatch"        // 412
	IdempotencyKeyReused  domain.Code = "idempotency_key_reused"  // 422
	IdempotencyInProgress domain.Code = "idempotency_in_progress" // 409 with Retry-After

	UnknownConsistencyToken domain.Code = "unknown_consistency_token" // 422
)
