package settings

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Pools has the sizes of the pools from which the parts of a server take connections to
// Postgres. Each kind of work has a pool of its own, so that none can take the
// connections of another.
type Pools struct {
	QueryConns      int32 `name:"db-query-conns" env:"TOMATO_DB_QUERY_CONNS" default:"8" help:"Most connections to Postgres for queries and operators' calls."`
	ProjectionConns int32 `name:"db-projection-conns" env:"TOMATO_DB_PROJECTION_CONNS" default:"10" help:"Most connections to Postgres for writing the read models."`
	PolicyConns     int32 `name:"db-policy-conns" env:"TOMATO_DB_POLICY_CONNS" default:"6" help:"Most connections to Postgres for policies, their timers and searches, and the simulated gateway."`
}

// SharedConns is the size of the pool for what every server does beside its roles: it
// follows the generations of the read models and the positions of consumers, checks its
// health, and reads what the feeds ask.
const SharedConns = 4

// minConns is the smallest size of a pool. No part holds one connection while it waits
// for another of the same pool, so one would do. But a transaction that waits for a lock
// would then hold up everything else of its kind.
const minConns, maxConns = 2, 1000

// Check returns a UsageError if a pool is too small or too large.
func (p Pools) Check() error {
	for _, s := range []struct {
		name  string
		conns int32
	}{{"TOMATO_DB_QUERY_CONNS", p.QueryConns}, {"TOMATO_DB_PROJECTION_CONNS", p.ProjectionConns}, {"TOMATO_DB_POLICY_CONNS", p.PolicyConns}} {
		if s.conns < minConns || s.conns > maxConns {
			return Usage("%s is %d, but must be %d to %d: with a single connection, one transaction that waits for a lock would hold up all others", s.name, s.conns, minConns, maxConns)
		}
	}
	return nil
}

// Pool makes a pool of at most conns connections, which pg_stat_activity shows with the
// application_name name. A maximum in the database's address has no effect. ctx bounds
// only the call; the pool stays until it is closed.
func (f Database) Pool(ctx context.Context, name string, conns int32) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(f.DatabaseURL)
	if err != nil {
		return nil, fmt.Errorf("the pool %s: %w", name, err)
	}
	config.MaxConns = conns
	config.MinConns, config.MinIdleConns = min(config.MinConns, conns), min(config.MinIdleConns, conns)
	config.ConnConfig.RuntimeParams["application_name"] = name
	return pgxpool.NewWithConfig(context.WithoutCancel(ctx), config)
}
