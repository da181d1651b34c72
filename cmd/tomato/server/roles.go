package server

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/cmd/tomato/settings"
	"tomato/commandside"
	"tomato/commandside/gateway"
	"tomato/commandside/policies"
	"tomato/commandside/shard"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/consumer/parked"
	"tomato/projections/realtime"
	"tomato/queryside"
	"tomato/queryside/feed"
)

// startCommandSide makes what issues commands. The role command needs it, and so do the
// roles react and feed. It forwards their commands to the instances that own the shards.
func (s *Server) startCommandSide(context.Context) error {
	if !s.config.has(RoleCommand, RoleReact, RoleFeed) {
		return nil
	}
	c := &s.config
	producer, err := s.kafka.NewClient(kgo.RequiredAcks(kgo.AllISRAcks()), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0),
		kgo.ProducerBatchMaxBytes(2<<20)) // large enough for an emitted message of 1 MiB and its headers
	if err != nil {
		return err
	}
	s.onStop(func(context.Context) error { producer.Close(); return nil })
	var paymentGateway gateway.Gateway
	if c.KeyID != "" {
		paymentGateway = gateway.NewRazorpay(c.KeyID, c.KeySecret, gateway.RazorpayOptions{BaseURL: s.options.GatewayURL, Log: s.log})
	} else {
		s.log.Warn("no Razorpay key is set: payments go to a simulated gateway")
		paymentGateway = gateway.NewSimulated(s.db.policy, s.url+"/v1/webhooks/razorpay", c.WebhookSecrets, s.log)
	}
	const commandDeadline = 5 * time.Second
	orders := &policies.OrderFinder{ReadModel: s.models, Gateway: paymentGateway, Client: producer}
	s.side = &commandside.Side{
		Config: commandside.Config{PaymentTTL: time.Duration(c.PaymentTTL), InternalKeys: c.Internal(), EmitBytes: c.FeedEmit, WebhookSecrets: c.WebhookSecrets,
			CommandDeadline: commandDeadline},
		Gateway: paymentGateway, Orders: orders, Producer: producer, DB: s.db.shared, Partitions: c.Partitions, Keys: s.keys, LogID: s.logID, Log: s.log,
	}
	s.policies = &policies.Policies{
		Config: policies.Config{
			AcceptTTL: time.Duration(c.AcceptTTL), OfferTTL: time.Duration(c.OfferTTL), OfferRadii: c.OfferRadii, OfferLimit: c.OfferLimit,
			PositionMaxAge: time.Duration(c.PositionAge), SearchWait: time.Duration(c.SearchWait), ArchiveAfter: time.Duration(c.ArchiveAfter),
			CommandDeadline: commandDeadline,
		},
		Gateway: paymentGateway, Orders: orders, Client: producer, Partitions: c.Partitions, DB: s.db.policy, Search: s.models, Inbox: s.positions, Keys: s.keys, Log: s.log,
		WebhooksHandled: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tomato_webhooks_handled_total", Help: "Webhooks of the inbox, by event and outcome."}, []string{"event", "outcome"}),
		IncompleteSearches: prometheus.NewCounter(prometheus.CounterOpts{Name: "tomato_dispatch_incomplete_searches_total",
			Help: "Searches for riders that did not wait any longer for the riders read model."}),
	}
	s.registry.MustRegister(s.policies.WebhooksHandled, s.policies.IncompleteSearches)
	s.menus = shard.NewMenus()
	s.menus.Ends = s.ends
	s.shards, err = shard.NewShards(shard.Config{Kafka: s.kafka, LogID: s.logID, Partitions: c.Partitions, Build: settings.Build(), Menus: s.menus,
		URL: c.Advertised, ClusterKeys: c.Cluster(),
		PaymentGrace: time.Duration(c.PaymentGrace), ArchiveAfter: time.Duration(c.ArchiveAfter), EventEpoch: c.EventEpoch, InboxPassed: s.policies.InboxPassed, Registry: s.registry, Log: s.log})
	if err != nil {
		return err
	}
	s.side.Commands, s.policies.Commands = s.shards, s.shards
	if !c.has(RoleCommand) {
		s.background("shard owners", s.shards.Follow)
	}
	return nil
}

// startCommands starts the role command. It makes this process an owner of shards, and
// adds the routes of the commands.
func (s *Server) startCommands(ctx context.Context) error {
	if !s.config.has(RoleCommand) {
		return nil
	}
	if err := s.menus.Check(ctx, s.side.Producer); err != nil {
		return fmt.Errorf("menus: %w", err)
	}
	s.background("menus", func(ctx context.Context) error { return s.menus.Run(ctx, s.kafka, s.log) })
	s.background("shards", s.shards.Run)
	if g, ok := s.side.Gateway.(*gateway.Simulated); ok { // it sends webhooks to this process
		s.background("simulated gateway", g.Run)
	}
	s.side.Routes(s.api)
	s.operations.Shards = s.shards
	s.api.Router.Method(http.MethodPost, shard.CommandsPath, s.shards.Handler())
	return nil
}

// startProjections starts the role project, which writes the read models.
func (s *Server) startProjections(context.Context) error {
	if s.config.has(RoleProject) {
		s.readers = append(s.readers, s.background("projections", func(ctx context.Context) error { return s.models.Project(ctx, s.runtime) }))
		s.background("tending riders", func(ctx context.Context) error {
			s.models.TendRiders(ctx, time.Duration(s.config.PositionAge))
			return nil
		})
	}
	return nil
}

// startPolicies starts the role react. It runs the policies, which turn events into
// commands.
func (s *Server) startPolicies(context.Context) error {
	if s.config.has(RoleReact) {
		s.readers = append(s.readers, s.background("policies", func(ctx context.Context) error { return s.runtime.Run(ctx, s.policies.All()...) }))
		s.background("timers", s.policies.RunTimers)
	}
	return nil
}

// startQueries starts the role query. It answers queries from the read models, and the
// queries of operators.
func (s *Server) startQueries(context.Context) error {
	if !s.config.has(RoleQuery) {
		return nil
	}
	client, err := s.kafka.NewClient()
	if err != nil {
		return err
	}
	s.onStop(func(context.Context) error { client.Close(); return nil })
	adm := kadm.NewClient(client)
	feedEnd := eventlog.NewFeedEnd(int32(s.config.Partitions))
	s.background("end of the feed's bases", func(ctx context.Context) error {
		feedEnd.Follow(ctx, client)
		return nil
	})
	q := &queryside.Side{DB: s.db.query, Models: s.models, Keys: s.keys, LogID: s.logID, FeedEnd: feedEnd, PositionMaxAge: time.Duration(s.config.PositionAge)}
	q.Routes(s.api)
	s.operations.DeadLetters = &parked.DeadLetters{DB: s.db.query, Kafka: s.kafka, Skip: s.models.SkipLetter}
	s.operations.ReadModels, s.operations.Projections = s.models, s.models
	s.operations.Keys = s.keys
	s.operations.Revocations = s.revocations
	s.operations.Consumers = func(ctx context.Context) ([]consumer.ConsumerStatus, error) {
		return consumer.ReadConsumers(ctx, s.db.query, adm)
	}
	return nil
}

// startFeed starts the role feed. It serves the websockets and the Server-Sent Events.
func (s *Server) startFeed(context.Context) error {
	if !s.config.has(RoleFeed) {
		return nil
	}
	// The keys that sign cursors are derived from the cluster keys. The internal key would
	// not do, because other services have it, and a cursor names rooms.
	var keys [][]byte
	for _, key := range s.config.Cluster() {
		mac := hmac.New(sha256.New, []byte(key))
		mac.Write([]byte("feed cursor"))
		mac.Write(s.logID[:])
		keys = append(keys, mac.Sum(nil))
	}
	hub, err := feed.NewHub(feed.HubConfig{Keys: keys, LogID: s.logID, Ends: s.ends,
		IndexBytes: s.config.FeedBytes, IndexAge: time.Duration(s.config.FeedHistory),
		MaxConnections: s.config.FeedConns, MaxPerUser: s.config.FeedPerUser, MaxRooms: s.config.FeedRooms, DrainSpread: s.config.FeedSpread, Registry: s.registry, Log: s.log})
	if err != nil {
		return err
	}
	feed := &feed.Feed{Hub: hub, Auth: s.auth, Orders: s.models, Locations: s.side, Offers: s.side, AllowedOrigins: s.config.Origins, Log: s.log}
	feed.Routes(s.api)
	projector := &realtime.Projector{Kafka: s.kafka, Runtime: s.runtime, Loader: s.models, Sink: hub, Keys: s.keys, History: time.Duration(s.config.FeedHistory), Registry: s.registry, Log: s.log}
	hub.ReadHistory(projector)
	stop := s.background("feed", func(ctx context.Context) error {
		for { // after an error the feed begins anew and its clients reconnect; other parts keep running
			err := projector.Run(ctx)
			if ctx.Err() != nil {
				return nil
			}
			s.log.Error("the feed begins anew", "err", err)
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
				return nil
			}
		}
	})
	s.readers = append(s.readers, hub.Drain, stop) // the streams end first
	s.hub, s.projector = hub, projector
	return nil
}
