package server

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"tomato/cmd/tomato/settings"
	"tomato/commandside/policies"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/subjectkeys"
	"tomato/migrations"
	"tomato/migrations/cluster"
	"tomato/projections"
)

// prepareDataDir makes the data directory. It also makes the development secrets, if
// secrets are missing and may be made up.
func (s *Server) prepareDataDir(context.Context) (err error) {
	if err := os.MkdirAll(s.config.DataDir, 0o700); err != nil {
		return err
	}
	private := len(s.config.Brokers) == 0 && s.config.DatabaseURL == ""
	if s.made, err = s.config.Develop(s.config.DataDir, private || s.config.Dev); err != nil {
		return err
	}
	if s.made.Any {
		s.log.Warn("using development secrets", "file", settings.SecretsFile(s.config.DataDir))
	}
	return nil
}

// startBroker starts the embedded broker, unless brokers are configured.
func (s *Server) startBroker(context.Context) error {
	s.alone = len(s.config.Brokers) == 0
	if s.alone {
		b, err := eventlog.StartBroker(s.config.BrokerDir(), "127.0.0.1:0")
		if err != nil {
			return fmt.Errorf("the embedded broker: %w", err)
		}
		s.onStop(func(context.Context) error { b.Close(); return nil })
		s.config.Brokers = []string{b.Addr()}
	}
	s.kafka = s.config.Kafka.Config("tomato")
	return nil
}

// startDatabase starts a private Postgres, unless a database is configured.
func (s *Server) startDatabase(ctx context.Context) error {
	if s.config.DatabaseURL == "" {
		pg, err := cluster.Start(ctx, filepath.Join(s.config.DataDir, "postgres"), cluster.Options{})
		if err != nil {
			return fmt.Errorf("the private Postgres: %w", err)
		}
		s.onStop(pg.Stop)
		s.config.DatabaseURL = pg.URL()
		s.privateDatabaseURL = pg.URL()
	}
	return nil
}

// ensureTopics creates the topics that are missing and verifies the others.
func (s *Server) ensureTopics(ctx context.Context) error {
	client, err := s.kafka.NewClient()
	if err != nil {
		return settings.UsageError{Err: err}
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := eventlog.Ensure(ctx, kadm.NewClient(client), Layout(s.config.Kafka)); err != nil {
		return fmt.Errorf("topics: %w", err)
	}
	return nil
}

// Layout returns the topics of an installation with these flags.
func Layout(f settings.Kafka) eventlog.Layout {
	return eventlog.Layout{Partitions: f.Partitions, Replication: f.Replication, Consumers: Subscriptions()}
}

// Subscriptions returns all consumers with the topics that they read. Each consumer has
// retry topics and a dead letter topic for each of these topics.
func Subscriptions() []eventlog.Subscription {
	var all []eventlog.Subscription
	for _, c := range new(policies.Policies).All() {
		all = append(all, eventlog.Subscription{Name: c.Name, Topics: c.Topics})
	}
	for _, model := range projections.Models() {
		all = append(all, eventlog.Subscription{Name: model, Topics: projections.Topics(model)})
	}
	return all
}

// migrate brings the database up to date. With NoMigrate it only checks that it is.
func (s *Server) migrate(ctx context.Context) error {
	if s.config.NoMigrate {
		if err := migrations.Check(ctx, s.db.shared); err != nil {
			return fmt.Errorf("--no-migrate: %w", err)
		}
		return nil
	}
	if err := migrations.Core(ctx, s.config.DatabaseURL); err != nil {
		return fmt.Errorf("migrating: %w", err)
	}
	return nil
}

// identifyLogs reads the id of the logs, and makes what reads their end offsets.
func (s *Server) identifyLogs(ctx context.Context) error {
	client, err := s.kafka.NewClient()
	if err != nil {
		return err
	}
	s.onStop(func(context.Context) error { client.Close(); return nil })
	s.ends = eventlog.NewEnds(client)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	s.logID, err = eventlog.ReadLogID(ctx, client)
	return err
}

// followReadModels makes missing tables of the read models. It starts to follow which
// generation of each read model serves, because all roles read some of the read models.
func (s *Server) followReadModels(ctx context.Context) error {
	s.positions = consumer.NewPositions(s.db.shared)
	s.positions.Ends = s.ends
	s.models = &projections.ReadModels{DB: s.db.shared, SearchDB: s.db.policy, DatabaseURL: s.config.DatabaseURL, Kafka: s.kafka, Partitions: s.config.Partitions, Positions: s.positions, NoDDL: s.config.NoMigrate, Log: s.log}
	if err := s.models.Ensure(ctx); err != nil {
		return fmt.Errorf("read models: %w", err)
	}
	s.background("following the read models", func(ctx context.Context) error { s.models.Follow(ctx); return nil })
	s.runtime = &consumer.Runtime{Kafka: s.kafka, Positions: s.positions, Partitions: s.config.Partitions, DB: s.db.policy, RowsDB: s.db.projection, Registry: s.registry, Log: s.log}
	return nil
}

// followSubjectKeys reads the keys under which personal fields are sealed, and follows
// them. The role project does not need them, because rows stay sealed.
func (s *Server) followSubjectKeys(ctx context.Context) error {
	if !s.config.has(RoleCommand, RoleQuery, RoleFeed, RoleReact) {
		return nil
	}
	if !s.config.HasMaster() {
		s.log.Warn("TOMATO_MASTER_KEY is not set, so the keys of customers and riders are wrapped under a key that is derived from TOMATO_CLUSTER_KEY: " +
			"set TOMATO_MASTER_KEY to a key of its own, the same on every instance (`openssl rand -hex 32` makes one). docs/privacy.md has the steps")
	}
	masters, err := s.config.Masters()
	if err != nil {
		return err
	}
	s.keys, err = subjectkeys.Start(ctx, subjectkeys.Config{Kafka: s.kafka, Masters: masters, Marks: true, Registry: s.registry, Log: s.log})
	if err != nil {
		return err
	}
	s.onStop(func(context.Context) error { s.keys.Close(); return nil })
	fingerprints := make([]string, len(masters))
	for i, m := range masters {
		fingerprints[i] = m.Fingerprint()
	}
	s.log.Info("the keys of customers and riders are read", "keys", s.keys.Held(), "masterKeyFingerprints", fingerprints)
	return nil
}

// writeRunning writes the file in which the tools beside this process find the brokers
// and the database.
func (s *Server) writeRunning(context.Context) error {
	run := settings.Running{PID: os.Getpid(), Brokers: s.config.Brokers, URL: s.url, DatabaseURL: s.privateDatabaseURL}
	if err := run.Write(s.config.DataDir); err != nil {
		return err
	}
	s.onStop(func(context.Context) error { return os.Remove(settings.RunningFile(s.config.DataDir)) })
	return nil
}
