// Package policies turns events into commands and into calls of the payment
// gateway. What spans several aggregates is done here.
//
// Each policy is a consumer of the runtime in eventlog/consumer. It may be given
// the same event several times, so every step that it takes is idempotent. A
// policy keeps no truth of its own: the shard that decides its command knows
// whether the step was done already. Where a policy has to act later without a
// further event, it sets a timer, which is a row in Postgres.
//
// A failure is one of three kinds. If a shard, a read model, the gateway or
// Postgres does not answer, the error is eventlog.ErrUnavailable, and the runtime
// waits without counting an attempt. If no repeat can help, it is
// eventlog.ErrPoison, and the event becomes a dead letter. Any other error counts
// as a failed attempt.
package policies

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/commandside/gateway"
	"tomato/commandside/shard"
	"tomato/domain"
	"tomato/domain/payment"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/pgerr"
	"tomato/eventlog/subjectkeys"
)

// Config has the times and limits that policies apply. docs/operations.md lists the
// settings that they come from.
type Config struct {
	AcceptTTL       time.Duration // the restaurant has this long to accept a paid order
	OfferTTL        time.Duration // of one wave
	OfferRadii      []int         // meters, one per wave
	OfferLimit      int           // riders in one wave
	PositionMaxAge  time.Duration // an older position of a rider is as good as none
	SearchWait      time.Duration // at most, of dispatch for the read models it searches
	ArchiveAfter    time.Duration // closed orders leave the shards after this; 0: never
	CommandDeadline time.Duration // of one command
}

// Policies are the policies of one process. All exported fields are set before
// use. Safe for concurrent use.
type Policies struct {
	Config
	Commands   shard.Executor
	Gateway    gateway.Gateway
	Orders     *OrderFinder
	Client     *kgo.Client // asks for the ends of topics
	Partitions int32
	DB         *pgxpool.Pool // keeps the timers
	Search     RiderSearch
	Inbox      InboxProgress
	Keys       subjectkeys.Opener // opens webhooks that could not be decoded when they came
	Log        *slog.Logger

	// WebhooksHandled counts the webhooks of the inbox by event and outcome; nil: not counted.
	WebhooksHandled *prometheus.CounterVec

	// IncompleteSearches counts the searches that did not wait any longer; nil: not counted.
	IncompleteSearches prometheus.Counter

	marks inboxMarks
}

// The names of the policies. They name consumer groups, topics and rows: never
// change one.
const (
	recordPaymentPolicy = "record-payment"
	payOrderPolicy      = "pay-order"
	refundOrderPolicy   = "refund-order"
	refundPolicy        = "refund"
	reconcilePolicy     = "reconcile"
	dispatchPolicy      = "dispatch"
	claimsPolicy        = "claims"
)

// All returns the consumers of all policies, for the role react.
func (p *Policies) All() []consumer.Consumer {
	return []consumer.Consumer{p.RecordPayment(), p.PayOrder(), p.RefundOrder(), p.Refund(), p.Reconcile(), p.Dispatch(), p.Claims()}
}

// cause is the event that makes a policy act. The command's event carries it on.
// Timers keep it as JSON.
type cause struct {
	ID            string `json:"id,omitempty"`
	CorrelationID string `json:"correlationId,omitempty"`
	Traceparent   string `json:"traceparent,omitempty"`
}

func causeOf(e *eventlog.Event) cause { return cause{e.ID, e.CorrelationID, e.Traceparent} }

// execute runs a command that a policy derives from an event. Its error is a
// refusal, or eventlog.ErrUnavailable if the shard could not answer. It is
// eventlog.ErrPoison and a *shard.UnknownEvent if this build cannot read the
// aggregate: the policy's event is a dead letter until a build that can is there.
func (p *Policies) execute(ctx context.Context, why cause, topic, id string, c domain.Command) (shard.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, p.CommandDeadline)
	defer cancel()
	res, err := p.Commands.Execute(ctx, shard.Request{Topic: topic, ID: id, Actor: domain.SystemActor, Command: c,
		CausationID: why.ID, CorrelationID: why.CorrelationID, Traceparent: why.Traceparent})
	if upgrade := (*shard.UpgradeInProgress)(nil); errors.As(err, &upgrade) { // the other commands of the shard need not wait
		err = eventlog.UnavailableFrom(fmt.Sprint("event-schema epoch ", upgrade.Epoch), err)
	} else if errors.Is(err, shard.ErrUnavailable) {
		err = eventlog.UnavailableFrom(fmt.Sprint("shard ", eventlog.PartitionFor(id, p.Partitions)), err)
	}
	if unknown := (*shard.UnknownEvent)(nil); errors.As(err, &unknown) {
		err = eventlog.Poison(err)
	}
	return res, err
}

// paymentState is PaymentState for a policy.
func (p *Policies) paymentState(ctx context.Context, why cause, orderID string) (*payment.State, error) {
	return PaymentState(ctx, orderID, func(ctx context.Context, topic, id string, c domain.Command) (shard.Result, error) {
		return p.execute(ctx, why, topic, id, c)
	})
}

// PaymentState returns the payment of an order as its shard has it, or nil if there is
// none. execute runs a command of the system, and its errors are returned. The
// state is confirmed, unlike that of shard.Look: PaymentState records the outcome of a
// refund that nobody asked for, which changes nothing.
func PaymentState(ctx context.Context, orderID string, execute func(ctx context.Context, topic, id string, c domain.Command) (shard.Result, error)) (*payment.State, error) {
	res, err := execute(ctx, eventlog.Payments, orderID, payment.RecordRefund{})
	if domain.RefusedWith(err) == domain.NotFound {
		return nil, nil
	}
	if err != nil || res.Payment == nil || !res.Payment.Exists() {
		return nil, err
	}
	return res.Payment, nil
}

// decode returns the event as a T. read is the Decode of the domain's package. An
// event that is no T is poison, because no repeat can help it. So is a version of a type
// that this build does not know: it is a dead letter until a build that does replays it.
func decode[T, E any](e *eventlog.Event, read func(eventType string, version int, data []byte) (E, error)) (T, error) {
	var none T
	ev, err := read(e.Type, e.DataVersion(), e.Data)
	if err != nil {
		return none, eventlog.Poison(err)
	}
	t, ok := any(ev).(T)
	if !ok {
		return none, eventlog.Poison(fmt.Errorf("%s is a %T, not a %T", e.Type, ev, none))
	}
	return t, nil
}

// readModelError returns the error of a policy that could not read a read model. A
// read model that is behind, or cannot be reached, is unavailable. An answer of
// Postgres is returned as it is: the consumer runtime recognises the answers
// which mean that Postgres is unavailable (pgerr.Unavailable), and the others are
// failures. Waiting for those would hold all orders up for ever.
func readModelError(err error) error {
	if pgerr.Code(err) != "" {
		return err
	}
	return eventlog.Unavailable(err)
}
