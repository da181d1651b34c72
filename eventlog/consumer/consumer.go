package consumer

import (
	"context"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"tomato/eventlog"
)

// Consumer is one named reader of topics: a read model or a policy. Exactly
// one of Each, Batch and Rows is set. All events handed over count under the
// reader rule; claims and SEENs are left out.
//
// Events of one partition arrive in offset order, those of one key one after
// the other, also through retries.
type Consumer struct {
	Name       string // stable: names the group, the checkpoints, the retry and dead letter topics
	Generation int    // of a read model's tables, 1 and up; 0 for a policy
	Topics     []string

	// Each handles one event whose effect is outside and idempotent. Lanes is
	// how many keys of one partition may be under way at once (default 16).
	Each  func(ctx context.Context, e eventlog.Event) error
	Lanes int
	// Batch handles many events of one partition at once, idempotently. The
	// slice is used again when the handler has returned, here and with Rows: it
	// is neither to be changed nor kept; what stands in it may be copied.
	Batch func(ctx context.Context, events []eventlog.Event) error
	// Rows applies many events of one partition to a read model, in the
	// transaction that also moves the checkpoint. It only writes rows.
	Rows func(ctx context.Context, tx pgx.Tx, events []eventlog.Event) error

	// InPlaceTries is how often a failing event is tried before its attempt
	// counts as failed; default 3, with pauses of some milliseconds.
	InPlaceTries int
	// RetryDelays is how long it waits before its second and third attempt, in the
	// retry topics; default 5 s and 30 s. One that is left out is an attempt less;
	// none (not nil): the first failed attempt makes a dead letter.
	RetryDelays []time.Duration

	MaxBatch int           // events per Batch or Rows call; default 1,000
	Backlog  time.Duration // where a consumer without checkpoint starts: 0 = the first record, else this far back

	// KeyBudget and Budget are how many records of one key, and of one
	// partition, may be parked (queued behind a parked one included) before the
	// partition pauses and alarms, until an operator has replayed or discarded
	// some. Defaults: 1,000 and 10,000.
	KeyBudget int
	Budget    int
}

// Runtime runs consumers: what it needs, the same for all of them. It must not
// be copied once it runs.
type Runtime struct {
	Kafka      eventlog.Config
	Partitions int32
	DB         *pgxpool.Pool         // with the schema tomato (migrations.Core)
	Registry   prometheus.Registerer // nil: no metrics
	Log        *slog.Logger          // nil: slog.Default
	Positions  *Positions            // told of each move, so that who waits in this process need not wait for a poll; may be nil

	state runtimeState
}
