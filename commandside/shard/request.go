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

// This file owns the interface of the write side: requests, results and errors.

// Request is one command on one aggregate. It is plain data, so that it can be
// forwarded to the instance that owns the aggregate's shard.
type Request struct {
	Topic   string         `json:"topic"`        // the topic of the aggregate: eventlog.Orders, …
	ID      string         `json:"id,omitempty"` // of the aggregate; "" only for Place, whose id Execute draws
	Actor   domain.Actor   `json:"actor"`        // who issues the command; domain.SystemActor for policies
	Command domain.Command `json:"-"`            // a value, never a pointer

	IdempotencyKey string         `json:"idempotencyKey,omitempty"` // "" = none
	BodyHash       string         `json:"bodyHash,omitempty"`       // identifies the body that the key was used with
	IfMatch        int64          `json:"ifMatch,omitempty"`        // the version that the resource must have, or Exists, or Never; 0 = no condition
	OrMatch        []int64        `json:"orMatch,omitempty"`        // further versions that meet the condition
	CausationID    string         `json:"causationId,omitempty"`    // id of the event for which a policy issues the command
	CorrelationID  string         `json:"correlationId,omitempty"`
	Traceparent    string         `json:"traceparent,omitempty"`
	After          eventlog.Token `json:"-"` // positions that the caller has seen; the command waits until the menus have passed them
}

// Result is the outcome of a command. Only the states that concern the command are
// set. Nobody changes them any more.
type Result struct {
	Event    domain.Event // what was appended; nil if the state was already as the command wants it
	Repeated bool         // the idempotency key was used before; Status is that of the first answer
	schema   int          // version of the event's data in the log
	Status   int          // HTTP status of the (first) answer: 201 if a resource was created, otherwise 200

	Order      *order.State // of commands on the topics orders and payments; nil if the order is not in memory
	Payment    *payment.State
	Rider      *rider.State
	Restaurant *restaurant.State
	Known      []bool               // answer to the command Known, by rider
	positions  [2]eventlog.Position // what the answer rests on, sorted by topic; an unused element has no topic
}

// version returns the version of the resource in this log.
func (r *Result) version(kind int) int64 {
	e := entry{order: r.Order, payment: r.Payment, rider: r.Rider, restaurant: r.Restaurant}
	return e.version(kind)
}

// Token returns the positions that the answer rests on.
func (r *Result) Token() eventlog.Token {
	t := eventlog.Token{}
	for _, p := range r.positions {
		if p.Topic != "" {
			t.Add(p.Topic, p.Partition, p.Offset)
		}
	}
	return t
}

// ConsistencyToken returns Token as text.
func (r *Result) ConsistencyToken() string {
	n := 0
	for n < len(r.positions) && r.positions[n].Topic != "" {
		n++
	}
	positions := r.positions // sorted, as TokenString needs them
	return eventlog.TokenString(positions[:n])
}

// Executor executes commands on the instance that owns their shard. Execute returns
// when the outcome is on Kafka and known to be valid. The error is a
// *domain.Refusal, an *UnknownEvent, or ErrUnavailable, which may be an
// *UpgradeInProgress. Safe for concurrent use.
type Executor interface {
	Execute(ctx context.Context, r Request) (Result, error)
}

// Exists is the IfMatch that every existing resource meets, whatever its version.
const Exists int64 = -1

// Never is the IfMatch that no resource meets. It stands for an If-Match header
// whose tags are no versions.
const Never int64 = -2

// ErrUnavailable means that the outcome of the command is not known, or that no
// instance could decide it now: the shard has no owner, its queue is full, the
// deadline passed, or the owner was deposed. A repeat is safe. The error is also an
// eventlog.ErrUnavailable.
var ErrUnavailable = eventlog.Unavailable(errors.New("the shard cannot answer now"))

// Refusals of the write side itself, beside those of the domain.
const (
	VersionMismatch       domain.Code = "version_mismatch"        // 412
	IdempotencyKeyReused  domain.Code = "idempotency_key_reused"  // 422
	IdempotencyInProgress domain.Code = "idempotency_in_progress" // 409 with Retry-After

	UnknownConsistencyToken domain.Code = "unknown_consistency_token" // 422
)

// resultOf returns the result of a command with this event, or nil, and with the
// states that its answer shows.
func resultOf(e *entry, ev domain.Event) Result {
	res := Result{Event: ev, Status: 200}
	if e != nil {
		res.Order, res.Payment, res.Rider, res.Restaurant = e.order, e.payment, e.rider, e.restaurant
	}
	return res
}
