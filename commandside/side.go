// Package commandside turns REST commands and policies' wishes into events.
//
// REST handlers and policies build a shard.Request and hand it to the shards
// (package shard), which decide and append. What spans aggregates is done by
// policies, here too: each is a consumer that turns events into commands or
// outside effects, idempotently.
package commandside

import (
	"context"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/commandside/gateway"
	"tomato/commandside/shard"
	"tomato/domain/nearby"
	"tomato/eventlog"
)

// Config are the times and limits of the contract.
type Config struct {
	PaymentTTL      time.Duration
	PaymentGrace    time.Duration
	AcceptTTL       time.Duration
	OfferTTL        time.Duration
	OfferRadii      []int // meters, one per wave
	OfferLimit      int   // riders in one wave
	PositionMaxAge  time.Duration
	SearchWait      time.Duration // at most, of dispatch for the read models it searches
	ArchiveAfter    time.Duration
	InternalKey     string   // of POST /api/v1/internal/emit
	WebhookSecrets  []string // newest first
	CommandDeadline time.Duration
}

// Side is the command side of one process. All fields are set before use.
type Side struct {
	Config
	Commands   shard.Executor
	Gateway    gateway.Gateway
	Producer   *kgo.Client // for what is no aggregate: inbox, positions, feed
	Kafka      eventlog.Config
	Partitions int32
	LogID      eventlog.LogID // of the logs that the tokens of clients are for
	DB         *pgxpool.Pool
	Log        *slog.Logger

	GatewayOrders GatewayOrders
	Search        RiderSearch
	Inbox         InboxProgress

	// WebhooksHandled counts the webhooks of the inbox by event and outcome; nil: not counted.
	WebhooksHandled *prometheus.CounterVec

	// IncompleteSearches counts the searches that did not wait any longer; nil: not counted.
	IncompleteSearches prometheus.Counter

	inbox inboxMarks
}

// InboxProgress says how far record-payment is.
type InboxProgress interface {
	// Passed says whether the consumer has passed offset in the partition and
	// has nothing parked of key there.
	Passed(ctx context.Context, consumer, topic string, partition int32, offset int64, key string) (bool, error)
}

// GatewayOrders finds the order of a gateway order in the payments read model.
type GatewayOrders interface {
	// OrderOf returns the order id; ok is false where the read model, having
	// passed after, knows none.
	OrderOf(ctx context.Context, gatewayOrderID string, after eventlog.Token) (orderID string, ok bool, err error)
}

// RiderSearch is what dispatch asks of the riders and orders read models.
type RiderSearch interface {
	// Nearest answers all searches in one round trip: for each, free, verified
	// riders with a fresh position within its radius, nearest first. It waits
	// at most wait for the riders read model to pass after, and then answers
	// from what is there; complete says whether the read model had passed it.
	Nearest(ctx context.Context, searches []nearby.Search, maxAge time.Duration, after eventlog.Token, wait time.Duration) (found [][]nearby.Rider, complete bool, err error)
	// Passed waits until the riders read model has passed after. It fails with
	// eventlog.ErrBehind where that takes more than seconds.
	Passed(ctx context.Context, after eventlog.Token) error
	// Waiting returns, for riders that became eligible, the orders that wait
	// for a rider (not exhausted) within whose radius they are: that of the
	// running wave, or of the next one where none runs (radii[wave-1], the last
	// one for later waves). It waits at most wait for the orders read model to
	// pass after, and then answers from what is there.
	Waiting(ctx context.Context, riderIDs []string, radii []int, maxAge time.Duration, after eventlog.Token, wait time.Duration) ([]nearby.WaitingOrder, error)
}
