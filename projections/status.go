package projections

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"tomato/eventlog"
)

// Status is how far one generation of a read model is, whichever process fills it.
type Status struct {
	Generation
	State     State
	Fold      string // the version of the fold that made it
	Due       bool   // it serves, and this process has no generation of its own fold: see RebuildDue
	LagEvents int64  // the number of records in the log that it has not passed
	// LagSeconds is 0 for a generation that has passed everything. Otherwise it is the
	// age of the last record that a partition has passed, of the partition that is
	// furthest behind. The oldest record that it has not passed is younger than that.
	LagSeconds      float64
	EventsPerSecond float64 // between the last two samples; 0 in a process without Follow
	Tables          []Table // sorted by name
}

// Table is how large a table of a generation is, as Postgres estimates it.
type Table struct {
	Name               string
	LiveRows, DeadRows int64     // a row is dead when nobody can see it any more and its space has not been freed
	Bytes              int64     // on disk, with indexes
	LastVacuum         time.Time // by autovacuum or by hand; zero: never
}

// rates has how far the generations were at the last sample, and how many records
// per second they passed between the last two.
type rates struct {
	mu          sync.Mutex // guards all fields
	at          time.Time
	passed      map[Generation]int64
	perSecond   map[Generation]float64
	sampleEvery time.Duration // 0: 5 s
}

// sample reads the checkpoints if the last sample is older than sampleEvery. Follow
// calls it at every poll.
func (m *ReadModels) sample(ctx context.Context) error {
	r := &m.rates
	r.mu.Lock()
	every := cmp.Or(r.sampleEvery, 5*time.Second)
	elapsed := time.Since(r.at)
	r.mu.Unlock()
	if elapsed < every {
		return nil
	}
	rows, err := m.DB.Query(ctx, `SELECT consumer, generation, sum(next_offset)::bigint FROM tomato.checkpoints WHERE generation > 0 GROUP BY 1, 2`)
	if err != nil {
		return err
	}
	passed, at := map[Generation]int64{}, time.Now()
	var g Generation
	var n int64
	if _, err := pgx.ForEachRow(rows, []any{&g.Model, &g.Number, &n}, func() error { passed[g] = n; return nil }); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	perSecond := map[Generation]float64{}
	for g, n := range passed {
		if before, ok := r.passed[g]; ok && n > before {
			perSecond[g] = float64(n-before) / at.Sub(r.at).Seconds()
		}
	}
	r.at, r.passed, r.perSecond = at, passed, perSecond
	return nil
}

// Status returns how far the generations of all read models are, sorted by model and
// number. Its errors are those of the database and the brokers.
func (m *ReadModels) Status(ctx context.Context) ([]Status, error) {
	if err := m.Refresh(ctx); err != nil {
		return nil, err
	}
	known := m.seen.Load()
	client, err := m.Kafka.NewClient()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	var topics []string
	for _, model := range Models() {
		topics = append(topics, Topics(model)...)
	}
	ends, err := eventlog.EndOffsets(ctx, client, topics...)
	if err != nil {
		return nil, fmt.Errorf("read the ends of the logs: %w", err)
	}
	starts, err := eventlog.StartOffsets(ctx, client, topics...)
	if err != nil {
		return nil, fmt.Errorf("read the starts of the logs: %w", err)
	}
	type checkpoint struct {
		next int64
		at   *time.Time // of the last record before next
	}
	checkpoints := map[Generation]map[eventlog.TopicPartition]checkpoint{}
	rows, err := m.DB.Query(ctx, `SELECT consumer, generation, topic, partition, next_offset, event_time FROM tomato.checkpoints WHERE generation > 0`)
	if err != nil {
		return nil, fmt.Errorf("read checkpoints: %w", err)
	}
	var g Generation
	var tp eventlog.TopicPartition
	var c checkpoint
	_, err = pgx.ForEachRow(rows, []any{&g.Model, &g.Number, &tp.Topic, &tp.Partition, &c.next, &c.at}, func() error {
		if checkpoints[g] == nil {
			checkpoints[g] = map[eventlog.TopicPartition]checkpoint{}
		}
		checkpoints[g][tp] = c
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read checkpoints: %w", err)
	}

	tables, err := m.tables(ctx, known)
	if err != nil {
		return nil, fmt.Errorf("read the sizes of the tables: %w", err)
	}
	m.rates.mu.Lock()
	perSecond := m.rates.perSecond
	m.rates.mu.Unlock()
	due := m.RebuildDue()
	out := make([]Status, 0, len(known.all))
	for g, is := range known.all {
		s := Status{Generation: g, State: is.state, Fold: is.fold, EventsPerSecond: perSecond[g], Tables: tables[g.Schema()]}
		s.Due = is.state == StateServing && slices.Contains(due, g.Model)
		own := Topics(g.Model)
		for tp, end := range ends {
			if !slices.Contains(own, tp.Topic) {
				continue
			}
			c, ok := checkpoints[g][tp]
			if !ok {
				c.next = starts[tp]
			}
			if lag := end - max(c.next, starts[tp]); lag > 0 {
				s.LagEvents += lag
				if c.at != nil {
					s.LagSeconds = max(s.LagSeconds, time.Since(*c.at).Seconds())
				}
			}
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b Status) int { return cmp.Or(cmp.Compare(a.Model, b.Model), cmp.Compare(a.Number, b.Number)) })
	return out, nil
}

// tables returns the tables of the known generations by schema. It reads what Postgres
// has counted and the sizes of the files, and no rows.
func (m *ReadModels) tables(ctx context.Context, known *generations) (map[string][]Table, error) {
	var schemas []string
	for g := range known.all {
		schemas = append(schemas, g.Schema())
	}
	rows, err := m.DB.Query(ctx, `SELECT schemaname, relname, n_live_tup, n_dead_tup, coalesce(pg_total_relation_size(relid), 0), greatest(last_vacuum, last_autovacuum)
		FROM pg_stat_user_tables WHERE schemaname = ANY ($1) AND relname <> 'schema_migrations' ORDER BY 1, 2`, schemas)
	if err != nil {
		return nil, err
	}
	all := map[string][]Table{}
	var schema string
	var t Table
	var vacuumed *time.Time
	_, err = pgx.ForEachRow(rows, []any{&schema, &t.Name, &t.LiveRows, &t.DeadRows, &t.Bytes, &vacuumed}, func() error {
		t.LastVacuum = time.Time{}
		if vacuumed != nil {
			t.LastVacuum = vacuumed.UTC()
		}
		all[schema] = append(all[schema], t)
		return nil
	})
	return all, err
}
