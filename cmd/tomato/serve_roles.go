package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/cmd/tomato/settings"
	"tomato/commandside"
	"tomato/commandside/gateway"
	"tomato/commandside/shard"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/httpapi"
	"tomato/projections/realtime"
	"tomato/queryside"
	"tomato/queryside/feed"
)

// startSide makes the command side: its policies and feeds need it too, where
// the shards are elsewhere.
func (s *server) startSide(kafka eventlog.Config, positions *consumer.Positions) error {
	c := &s.cmd
	producer, err := kafka.NewClient(kgo.RequiredAcks(kgo.AllISRAcks()), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0),
		kgo.ProducerBatchMaxBytes(2<<20)) // an emitted message of 1 MiB and its headers
	if err != nil {
		return err
	}
	s.onStop(func(context.Context) error { producer.Close(); return nil })
	s.side = &commandside.Side{
		Config: commandside.Config{
			PaymentTTL: time.Duration(c.PaymentTTL), PaymentGrace: time.Duration(c.PaymentGrace), AcceptTTL: time.Duration(c.AcceptTTL),
			OfferTTL: time.Duration(c.OfferTTL), OfferRadii: c.OfferRadii, OfferLimit: c.OfferLimit,
			PositionMaxAge: time.Duration(c.PositionAge), SearchWait: time.Duration(c.SearchWait), ArchiveAfter: time.Duration(c.ArchiveAfter),
			InternalKey: c.InternalKey, WebhookSecrets: c.WebhookSecrets, CommandDeadline: 5 * time.Second,
		},
		Producer: producer, Kafka: kafka, Partitions: c.Partitions, LogID: s.logID, DB: s.db, Log: s.log,
		GatewayOrders: s.models, Search: s.models, Inbox: positions,
		WebhooksHandled: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tomato_webhooks_handled_total", Help: "Webhooks of the inbox, by event and outcome."}, []string{"event", "outcome"}),
	}
	s.side.IncompleteSearches = prometheus.NewCounter(prometheus.CounterOpts{Name: "tomato_dispatch_incomplete_searches_total",
		Help: "Searches for riders that did not wait any longer for the riders read model."})
	s.registry.MustRegister(s.side.WebhooksHandled, s.side.IncompleteSearches)
	if c.KeyID != "" {
		s.side.Gateway = gateway.NewRazorpay(c.KeyID, c.KeySecret, gateway.RazorpayOptions{BaseURL: c.gatewayURL, Log: s.log})
	} else {
		s.log.Warn("no Razorpay key is set: payments go to a simulated gateway")
		s.side.Gateway = gateway.NewSimulated(s.db, s.url+"/v1/webhooks/razorpay", c.WebhookSecrets, s.log)
	}
	s.menus = shard.NewMenus()
	s.menus.Ends = s.ends
	s.shards, err = shard.NewShards(shard.Config{Kafka: kafka, Partitions: c.Partitions, Build: settings.Build(), Menus: s.menus,
		URL: c.Advertised, ClusterKey: c.ClusterKey,
		PaymentGrace: time.Duration(c.PaymentGrace), ArchiveAfter: time.Duration(c.ArchiveAfter), InboxPassed: s.side.InboxPassed, Registry: s.registry, Log: s.log})
	if err != nil {
		return err
	}
	s.side.Commands = s.shards
	if !c.has(roleCommand) {
		s.background("shard owners", s.shards.Follow)
	}
	return nil
}

// serveCommands makes this process an owner of shards.
func (s *server) serveCommands(api *httpapi.API) {
	s.background("menus", func(ctx context.Context) error { return s.menus.Run(ctx, s.side.Kafka, s.log) })
	s.background("shards", s.shards.Run)
	if g, ok := s.side.Gateway.(*gateway.Simulated); ok { // it sends webhooks to this process
		s.background("simulated gateway", g.Run)
	}
	s.side.Routes(api)
	s.operations.Shards = s.shards
	api.Router.Method(http.MethodPost, shard.CommandsPath, s.shards.Handler())
}

func (s *server) startQueries(kafka eventlog.Config, api *httpapi.API) error {
	client, err := kafka.NewClient()
	if err != nil {
		return err
	}
	s.onStop(func(context.Context) error { client.Close(); return nil })
	adm := kadm.NewClient(client)
	q := &queryside.Side{DB: s.db, Models: s.models, LogID: s.logID, PositionMaxAge: time.Duration(s.cmd.PositionAge)}
	q.Routes(api)
	s.operations.DeadLetters = &consumer.DeadLetters{DB: s.db, Kafka: kafka}
	s.operations.ReadModels = s.models
	s.operations.Consumers = func(ctx context.Context) ([]consumer.ConsumerStatus, error) {
		return consumer.ReadConsumers(ctx, s.db, adm)
	}
	return nil
}

func (s *server) startFeed(kafka eventlog.Config, auth *httpapi.Authenticator, api *httpapi.API) error {
	// Not the internal key: other services hold it, and a cursor names rooms.
	mac := hmac.New(sha256.New, []byte(s.cmd.ClusterKey))
	mac.Write([]byte("feed cursor"))
	mac.Write(s.logID[:])
	hub, err := feed.NewHub(feed.HubConfig{Key: mac.Sum(nil), Ends: s.ends, Registry: s.registry})
	if err != nil {
		return err
	}
	feed := &feed.Feed{Hub: hub, Auth: auth, Orders: s.models, LogID: s.logID, Locations: s.side, AllowedOrigins: s.cmd.Origins, Log: s.log}
	feed.Routes(api)
	projector := &realtime.Projector{Kafka: kafka, Loader: s.models, Sink: hub, Registry: s.registry, Log: s.log}
	feed.CatchUp = projector
	s.background("feed", func(ctx context.Context) error {
		for { // a feed that must begin anew sends its clients to reconnect; nothing else stops for it
			err := projector.Run(ctx)
			if ctx.Err() != nil {
				return nil
			}
			s.log.Error("the feed begins anew", "error", err)
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
				return nil
			}
		}
	})
	s.hub = hub
	return nil
}
