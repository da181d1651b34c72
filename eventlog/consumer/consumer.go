package consumer

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"tomato/eventlog"
)

// Consumer is one named reader of topics: a read model or a policy. Exactly one of
// Each, Batch and Rows is set. They are given valid events only, without
// claims.
//
// Events of one partition arrive in offset order. The events of one key are
// handled one after the other, also when some of them fail and are tried again.
type Consumer struct {
	Name       string // must never change: it names the group, the checkpoints, the retry and dead letter topics
	Generation int    // of a read model's tables, 1 and up; 0 for a policy
	Topics     []string

	// Each handles one event. Its effect is outside of Postgres and idempotent.
	Each func(ctx context.Context, e eventlog.Event) error
	// ConcurrentKeys is how many keys of one partition Each may handle at the same
	// time; default 16.
	ConcurrentKeys int
	// Batch handles many events of one partition at once, idempotently. The slice
	// is used again after the handler has returned, so the handler must neither
	// change nor keep it; it may copy the events. The same is true of Rows.
	Batch func(ctx context.Context, events []eventlog.Event) error
	// Rows applies events of one or several partitions to a read model, in the
	// transaction that also moves the checkpoints. The events of each partition
	// are in offset order. It only writes rows. If the consumer has a generation, Rows is
	// also given an event that an operator has discarded, by itself, and must pass over it.
	Rows func(ctx context.Context, tx pgx.Tx, events []eventlog.Event) error

	// InPlaceTries is how often a failing event is tried, with pauses of some
	// milliseconds, before that counts as one failed attempt; default 3.
	InPlaceTries int
	// RetryDelays are the pauses before the second and the third attempt; nil means
	// 5 s and 30 s. An event has one attempt more than there are delays, so with an
	// empty slice the first failed attempt makes a dead letter.
	RetryDelays []time.Duration

	MaxBatch int           // events per call of Batch or Rows; default 1,000
	Backlog  time.Duration // how far back a consumer without checkpoint starts; 0 means at the first record

	// KeyBudget is how many events of one key, and Budget how many of one
	// partition, may be parked, those that wait behind a failed one included. Over
	// it the partition pauses, and alarms, until an operator has replayed or
	// discarded some. Defaults: 1,000 and 10,000.
	KeyBudget int
	Budget    int
}

// Runtime runs consumers. It must not be copied after its first use.
type Runtime struct {
	Kafka      eventlog.Config
	Partitions int32
	DB         *pgxpool.Pool         // with the schema tomato (migrations.Core)
	RowsDB     *pgxpool.Pool         // the same database, for the consumers with Rows, which need more connections; nil: DB
	Registry   prometheus.Registerer // nil: no metrics
	Log        *slog.Logger          // nil: slog.Default
	Positions  *Positions            // is told of each new position, so that those who wait in this process need not wait for a poll; may be nil

	state runtimeState
}

const (
	defaultConcurrentKeys = 16
	defaultMaxBatch       = 1000
	defaultKeyBudget      = 1000
	defaultBudget         = 10000
	defaultInPlaceTries   = 3
)

func (c Consumer) withDefaults() (Consumer, error) {
	n := 0
	for _, set := range []bool{c.Each != nil, c.Batch != nil, c.Rows != nil} {
		if set {
			n++
		}
	}
	if n != 1 || c.Name == "" || len(c.Topics) == 0 {
		return c, fmt.Errorf("consumer %q: a name, topics, and exactly one of Each, Batch and Rows are needed", c.Name)
	}
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&c.ConcurrentKeys, defaultConcurrentKeys)
	def(&c.MaxBatch, defaultMaxBatch)
	def(&c.KeyBudget, defaultKeyBudget)
	def(&c.Budget, defaultBudget)
	def(&c.InPlaceTries, defaultInPlaceTries)
	if c.RetryDelays == nil {
		c.RetryDelays = []time.Duration{5 * time.Second, 30 * time.Second}
	}
	if len(c.RetryDelays) > 2 {
		return c, fmt.Errorf("consumer %q: there are two retry topics, so at most two RetryDelays", c.Name)
	}
	return c, nil
}

// Group returns the name of the consumer's Kafka group.
func (c Consumer) Group() string {
	if c.Generation > 0 {
		return fmt.Sprintf("tomato.%s.g%d", c.Name, c.Generation)
	}
	return "tomato." + c.Name
}
