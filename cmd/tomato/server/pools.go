package server

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"tomato/cmd/tomato/settings"
)

// pools are the connections of a server to Postgres, by what they are for. A kind of work
// that uses up its own connections does not hold up the others. A pool opens connections
// when they are needed, so those of roles that the process does not have stay empty.
type pools struct {
	query      *pgxpool.Pool // queries, and the calls of operators
	projection *pgxpool.Pool // the transactions that write read models
	policy     *pgxpool.Pool // policies with their timers and searches, and the simulated gateway
	shared     *pgxpool.Pool // what every process does: generations, positions, health, what feeds ask
}

// openPools makes the pools, and the metrics of their use.
func (s *Server) openPools(ctx context.Context) error {
	all := poolMetrics{}
	for _, p := range []struct {
		name  string
		conns int32
		pool  **pgxpool.Pool
	}{
		{"query", s.config.QueryConns, &s.db.query},
		{"projection", s.config.ProjectionConns, &s.db.projection},
		{"policy", s.config.PolicyConns, &s.db.policy},
		{"shared", settings.SharedConns, &s.db.shared},
	} {
		pool, err := s.config.Database.Pool(ctx, "tomato-"+p.name, p.conns)
		if err != nil {
			return err
		}
		s.onStop(func(context.Context) error { pool.Close(); return nil })
		*p.pool, all[p.name] = pool, pool
	}
	s.registry.MustRegister(all)
	return nil
}

// poolMetrics shows the use of the pools, by name.
type poolMetrics map[string]*pgxpool.Pool

var (
	connsDesc    = prometheus.NewDesc("tomato_db_connections", "Open connections to Postgres, by pool.", []string{"pool"}, nil)
	connsMaxDesc = prometheus.NewDesc("tomato_db_connections_max", "The most connections that the pool may open.", []string{"pool"}, nil)
	connsInUse   = prometheus.NewDesc("tomato_db_connections_in_use", "Connections to Postgres that are in use, by pool.", []string{"pool"}, nil)
	waitsDesc    = prometheus.NewDesc("tomato_db_connection_waits_total", "How often somebody had to wait for a connection of the pool.", []string{"pool"}, nil)
	waitDesc     = prometheus.NewDesc("tomato_db_connection_wait_seconds_total", "How long all those together have waited for a connection of the pool.", []string{"pool"}, nil)
)

// Describe implements prometheus.Collector.
func (m poolMetrics) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{connsDesc, connsMaxDesc, connsInUse, waitsDesc, waitDesc} {
		descs <- d
	}
}

// Collect implements prometheus.Collector.
func (m poolMetrics) Collect(values chan<- prometheus.Metric) {
	for name, pool := range m {
		is := pool.Stat()
		values <- prometheus.MustNewConstMetric(connsDesc, prometheus.GaugeValue, float64(is.TotalConns()), name)
		values <- prometheus.MustNewConstMetric(connsMaxDesc, prometheus.GaugeValue, float64(is.MaxConns()), name)
		values <- prometheus.MustNewConstMetric(connsInUse, prometheus.GaugeValue, float64(is.AcquiredConns()), name)
		values <- prometheus.MustNewConstMetric(waitsDesc, prometheus.CounterValue, float64(is.EmptyAcquireCount()), name)
		values <- prometheus.MustNewConstMetric(waitDesc, prometheus.CounterValue, is.EmptyAcquireWaitTime().Seconds(), name)
	}
}
