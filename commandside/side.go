// Package commandside takes the REST commands: it makes a shard.Request of each and
// hands it to the shards (package shard), which decide and append. It also takes
// what is no command on an aggregate: webhooks of the payment gateway, positions of
// riders, and messages to rooms. What spans several aggregates is done by policies
// (package policies).
package commandside

import (
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/commandside/gateway"
	"tomato/commandside/policies"
	"tomato/commandside/shard"
	"tomato/eventlog"
)

// Config are the limits and secrets of the REST commands.
type Config struct {
	PaymentTTL      time.Duration // a placed order waits this long for its payment
	InternalKey     string        // of POST /api/v1/internal/emit
	WebhookSecrets  []string      // newest first
	CommandDeadline time.Duration // of one command
}

// Side is the command side of one process. All fields are set before use. Safe for
// concurrent use.
type Side struct {
	Config
	Commands   shard.Executor
	Gateway    gateway.Gateway
	Orders     *policies.OrderFinder
	Producer   *kgo.Client // for what is no aggregate: inbox, positions, feed
	Partitions int32
	LogID      eventlog.LogID // of the logs that the tokens of clients are for
	Log        *slog.Logger
}
