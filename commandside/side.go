// Package commandside takes the REST commands. It makes a shard.Request of each command
// and hands it to the shards (package shard), which decide it and append its event. It
// also takes requests that are not commands on an aggregate: webhooks of the payment
// gateway, positions of riders, and messages to rooms. Work that spans several
// aggregates is done by policies (package policies). Only accepting an offer and
// releasing a rider are done within the request, because the rider waits for them.
//
// The files, in reading order:
//
//	side.go        the command side of one process
//	rest.go        what all commands have in common: headers, execution, errors, answers
//	order.go       the commands on orders; the accept of an offer
//	payment.go     payments, refunds, and the simulated gateway's pay call
//	webhook.go     keeps the gateway's webhooks in the inbox
//	rider.go       the commands on riders
//	location.go    positions of riders
//	restaurant.go  the commands on restaurants and menus
//	emit.go        messages to rooms, for other services
//	seen.go        which riders have seen an offer
//	produce.go     appends records to topics that are not aggregate topics
package commandside

import (
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/commandside/gateway"
	"tomato/commandside/policies"
	"tomato/commandside/shard"
	"tomato/eventlog"
	"tomato/eventlog/subjectkeys"
)

// Config are the limits and secrets of the REST commands.
type Config struct {
	PaymentTTL      time.Duration // a placed order waits this long for its payment
	InternalKeys    []string      // of POST /api/v1/internal/emit, each of which opens it
	EmitBytes       int           // of the payload of an emitted message, without white space; 0: 64 KiB
	WebhookSecrets  []string      // newest first
	CommandDeadline time.Duration // of one command
}

// Side is the command side of one process. All fields must be set before use. Safe for
// concurrent use.
type Side struct {
	Config
	Commands   shard.Executor
	Gateway    gateway.Gateway
	Orders     *policies.OrderFinder
	Producer   *kgo.Client   // appends to the topics of the inbox, the positions and the feed
	DB         *pgxpool.Pool // notes who has seen an offer
	Partitions int32
	Keys       subjectkeys.Keys // seals what is personal before it goes to a shard, and opens it for answers
	LogID      eventlog.LogID   // identifies the logs that the consistency tokens of clients belong to
	Log        *slog.Logger
}
