package projections

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/migrations"
)

const (
	// pollInterval is how often a process reads the generations again.
	pollInterval   = 500 * time.Millisecond
	defaultMaxWait = 5 * time.Second
)

// ReadModels gives access to the read models of one database. Set the exported
// fields before use. The methods are safe for concurrent use.
type ReadModels struct {
	DB          *pgxpool.Pool
	SearchDB    *pgxpool.Pool       // of the same database, for the questions of the command side; nil: DB
	DatabaseURL string              // of the same database, for migrations, which open their own connections
	Kafka       eventlog.Config     // for Ensure, Rebuild and Status
	NoDDL       bool                // Ensure creates and drops nothing, and fails with migrations.ErrPending if tables are missing
	Partitions  int32               // of every topic; 0: unknown, see Reached
	Positions   *consumer.Positions // for waiting until a generation has passed a token
	Log         *slog.Logger        // default slog.Default()
	MaxWait     time.Duration       // how long a query waits for its token; default 5 s

	seen    atomic.Pointer[generations] // the copy of the generations
	rates   rates
	tickets atomic.Int64  // one for each Refresh, in the order in which they begin
	mu      sync.Mutex    // guards change, advised, stored, and changes of seen
	stored  int64         // the ticket of the Refresh that has read seen
	change  chan struct{} // closed when seen changes; nil if nobody waits
	advised string        // the RebuildAdvice that was logged last

	evenWait   time.Duration     // tests set it: verifyWait
	othersWait time.Duration     // tests set it: joinWait, for those who join after the first
	otherFolds map[string]string // tests set it: folds of another build, by read model
}

func (m *ReadModels) searchDB() *pgxpool.Pool {
	if m.SearchDB != nil {
		return m.SearchDB
	}
	return m.DB
}

func (m *ReadModels) log() *slog.Logger {
	if m.Log != nil {
		return m.Log
	}
	return slog.Default()
}

// Ensure makes the first generation of each read model that has none. It does not change
// the tables of those that exist: another fold needs a rebuild. The schema tomato must
// exist. Several processes may call it at once. It fails with *eventlog.LostBeginning if a
// generation would begin to read a log whose first records have been deleted, because
// the rows would be made of half a history.
func (m *ReadModels) Ensure(ctx context.Context) error {
	client, err := m.Kafka.NewClient()
	if err != nil {
		return err
	}
	defer client.Close()
	if err := m.nameUnknownFolds(ctx); err != nil {
		return err
	}
	if err := m.Refresh(ctx); err != nil {
		return err
	}
	known := m.seen.Load()
	for _, model := range Models() {
		if err := m.ensure(ctx, client, known, model); err != nil {
			return fmt.Errorf("read model %s: %w", model, err)
		}
	}
	if m.NoDDL {
		return m.checkRights(ctx)
	}
	return m.Refresh(ctx)
}

func (m *ReadModels) ensure(ctx context.Context, client *kgo.Client, known *generations, model string) error {
	if _, ok := known.serving[model]; !ok {
		if m.NoDDL {
			return fmt.Errorf("it has no tables: %w", migrations.ErrPending)
		}
		if err := m.checkBeginning(ctx, client, Generation{model, 1}); err != nil {
			return err
		}
		return m.first(ctx, model)
	}
	for g, is := range known.all {
		if g.Model == model && m.projects(g, is) {
			if err := m.checkBeginning(ctx, client, g); err != nil {
				return err
			}
		}
	}
	return nil
}

// unknownFold is the fold of generations of builds which did not say their folds. Their
// tables may be others than those of this build, so it does not write to them: a rebuild
// is due.
const unknownFold = "unknown"

func (m *ReadModels) nameUnknownFolds(ctx context.Context) error {
	if _, err := m.DB.Exec(ctx, `UPDATE tomato.generations SET fold = $1 WHERE fold = ''`, unknownFold); err != nil {
		return fmt.Errorf("name the unknown folds: %w", err)
	}
	return nil
}

// checkBeginning checks the beginnings of the partitions that the generation has
// not begun to read. If the next records of a partition that it has begun are
// deleted, its consumer reports that; the rows are complete up to there.
func (m *ReadModels) checkBeginning(ctx context.Context, client *kgo.Client, g Generation) error {
	ends, err := eventlog.EndOffsets(ctx, client, Topics(g.Model)...)
	if err != nil {
		return err
	}
	need := map[eventlog.TopicPartition]int64{}
	for tp := range ends {
		need[tp] = 0
	}
	rows, err := m.DB.Query(ctx, `SELECT topic, partition FROM tomato.checkpoints WHERE consumer = $1 AND generation = $2 AND next_offset > 0`, g.Model, g.Number)
	if err != nil {
		return err
	}
	var tp eventlog.TopicPartition
	_, err = pgx.ForEachRow(rows, []any{&tp.Topic, &tp.Partition}, func() error {
		delete(need, tp)
		return nil
	})
	if err != nil {
		return err
	}
	return eventlog.CheckBeginnings(ctx, client, need)
}

// first makes generation 1, unless another process has made it already.
func (m *ReadModels) first(ctx context.Context, model string) error {
	l, err := m.lock(ctx, model, true)
	if err != nil {
		return err
	}
	defer l.unlock()
	var exists bool
	if err := m.DB.QueryRow(ctx, `SELECT EXISTS (SELECT FROM tomato.read_models WHERE model = $1)`, model).Scan(&exists); err != nil || exists {
		return err
	}
	g := Generation{model, 1}
	// A process of another build may have ended in the middle of this.
	if _, err := m.DB.Exec(ctx, `DROP SCHEMA IF EXISTS `+g.Schema()+` CASCADE`); err != nil {
		return err
	}
	if err := m.makeTables(ctx, g); err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, m.DB, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `INSERT INTO tomato.generations (model, generation, state, fold) VALUES ($1, 1, $2, $3)`, model, StateServing, m.fold(model)); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO tomato.read_models (model, serving, last) VALUES ($1, 1, 1)`, model)
		return err
	})
}

// makeTables makes the empty tables of a generation. To repeat it is harmless.
func (m *ReadModels) makeTables(ctx context.Context, g Generation) error {
	return migrations.ReadModel(ctx, m.DatabaseURL, g.Schema(), g.Model)
}

// Consumer returns the consumer that keeps a generation up to date.
func (g Generation) Consumer() consumer.Consumer {
	w := &rowWriter{model: g.Model, tables: registry[g.Model].tables, g: g}
	return consumer.Consumer{Name: g.Model, Generation: g.Number, Topics: Topics(g.Model), Rows: w.write}
}

// Project keeps generations up to date until ctx ends: those of this process's folds that
// serve, that a rebuild has verified, and that served before. It starts a consumer when a
// generation becomes one of these, and stops it when the generation is dropped. It does
// not write to generations of other folds; see RebuildDue. It also removes what is left of
// generations that have gone. Follow must be running. It
// returns nil when ctx ends, or the first error of a consumer.
func (m *ReadModels) Project(ctx context.Context, runtime *consumer.Runtime) error {
	running := map[Generation]func(){}
	var all sync.WaitGroup
	defer all.Wait()
	failed := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := m.Refresh(ctx); err != nil {
		return err
	}
	if !m.NoDDL {
		all.Go(func() { m.sweep(ctx) })
	}
	for {
		now, changed, err := m.changed(ctx)
		if err != nil {
			return err
		}
		for g, stop := range running {
			if is, ok := now.all[g]; !ok || !m.projects(g, is) {
				stop()
				delete(running, g)
			}
		}
		for g, is := range now.all {
			if _, known := registry[g.Model]; !known || running[g] != nil || !m.projects(g, is) {
				continue
			}
			own, stop := context.WithCancel(ctx)
			running[g] = stop
			all.Go(func() {
				if err := runtime.Run(own, g.Consumer()); err != nil {
					select {
					case failed <- fmt.Errorf("projecting %s: %w", g, err):
					default:
					}
				}
			})
		}
		select {
		case <-changed:
		case err := <-failed:
			return err
		case <-ctx.Done():
			return nil
		}
	}
}
