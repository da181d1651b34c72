package projections

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/pgerr"
	"tomato/migrations"
)

// ErrRunning means that another process is rebuilding the read model or dropping
// one of its generations.
var ErrRunning = errors.New("a rebuild of this read model is running")

// live is the state of a generation that consumers keep up to date. The only other
// state in the database is filling.
const live = "live"

const (
	// pollInterval is how often a process reads the generations again.
	pollInterval   = 500 * time.Millisecond
	defaultMaxWait = 5 * time.Second
)

// ReadModels gives access to the read models of one database. Set the exported
// fields before use. The methods are safe for concurrent use.
type ReadModels struct {
	DB          *pgxpool.Pool
	DatabaseURL string              // of the same database, for migrations, which open their own connections
	Kafka       eventlog.Config     // for Ensure, Rebuild and Status
	Positions   *consumer.Positions // for waiting until a generation has passed a token
	Log         *slog.Logger        // default slog.Default()
	MaxWait     time.Duration       // how long a query waits for its token; default 5 s

	seen   atomic.Pointer[generations] // the copy of the generations
	rates  rates
	mu     sync.Mutex    // guards change, and changes of seen
	change chan struct{} // closed when seen changes; nil if nobody waits
}

// Generation names one complete set of tables of a read model.
type Generation struct {
	Model  string
	Number int
}

func (g Generation) String() string { return fmt.Sprintf("%s_g%d", g.Model, g.Number) }

// Schema returns the name of the schema that has the generation's tables. It is a
// valid SQL name and needs no quotes.
func (g Generation) Schema() string { return g.String() }

// generations is what the database had at one moment. It is never changed.
type generations struct {
	serving map[string]int        // the number of the serving generation, by read model
	state   map[Generation]string // filling or live
}

func (m *ReadModels) log() *slog.Logger {
	if m.Log != nil {
		return m.Log
	}
	return slog.Default()
}

// Ensure applies the migrations to every live generation, and makes the first
// generation of a read model that has none. The schema tomato must exist. Several
// processes may call it at once. It fails with *eventlog.LostBeginning if a
// generation would begin to read a log whose first records have been deleted,
// because the rows would be made of half a history.
func (m *ReadModels) Ensure(ctx context.Context) error {
	client, err := m.Kafka.NewClient()
	if err != nil {
		return err
	}
	defer client.Close()
	for _, model := range Models() {
		numbers, err := m.liveNumbers(ctx, model)
		if err == nil && len(numbers) == 0 {
			if err = m.checkBeginning(ctx, client, Generation{model, 1}); err == nil {
				err = m.first(ctx, model)
			}
		}
		if err != nil {
			return fmt.Errorf("read model %s: %w", model, err)
		}
		for _, n := range numbers {
			if err := m.checkBeginning(ctx, client, Generation{model, n}); err != nil {
				return fmt.Errorf("read model %s: %w", model, err)
			}
			if err := m.migrate(ctx, Generation{model, n}); err != nil {
				return err
			}
		}
	}
	return m.Refresh(ctx)
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

func (m *ReadModels) liveNumbers(ctx context.Context, model string) ([]int, error) {
	rows, err := m.DB.Query(ctx, `SELECT generation FROM tomato.generations WHERE model = $1 AND state = 'live' ORDER BY generation`, model)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[int])
}

// first makes generation 1, unless another process has made it already.
func (m *ReadModels) first(ctx context.Context, model string) error {
	unlock, err := m.lock(ctx, model, true)
	if err != nil {
		return err
	}
	defer unlock()
	if numbers, err := m.liveNumbers(ctx, model); err != nil || len(numbers) > 0 {
		return err
	}
	if err := m.migrate(ctx, Generation{model, 1}); err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, m.DB, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `INSERT INTO tomato.generations (model, generation, state) VALUES ($1, 1, 'live')`, model); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO tomato.read_models (model, serving, last) VALUES ($1, 1, 1)`, model)
		return err
	})
}

func (m *ReadModels) migrate(ctx context.Context, g Generation) error {
	return migrations.ReadModel(ctx, m.DatabaseURL, g.Schema(), g.Model)
}

// lock takes the lock of the read model, under which one process at a time makes
// and drops generations. Without wait it fails with ErrRunning if another process
// has the lock. The lock ends when unlock is called or this process ends.
func (m *ReadModels) lock(ctx context.Context, model string, wait bool) (unlock func(), err error) {
	// The lock has a connection of its own. If it took one of the pool, a rebuild
	// would hold that one while its own workers wait for connections.
	conn, err := pgx.ConnectConfig(ctx, m.DB.Config().ConnConfig)
	if err != nil {
		return nil, err
	}
	unlock = func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = conn.Close(ctx) // the lock goes with the session
	}
	name, got := "tomato read model "+model, true
	if wait {
		_, err = conn.Exec(ctx, `SELECT pg_advisory_lock(hashtextextended($1, 0))`, name)
	} else {
		err = conn.QueryRow(ctx, `SELECT pg_try_advisory_lock(hashtextextended($1, 0))`, name).Scan(&got)
	}
	if err == nil && !got {
		err = ErrRunning
	}
	if err != nil {
		unlock()
		return nil, err
	}
	return unlock, nil
}

// Refresh reads the generations from the database. Its errors are those of the
// database.
func (m *ReadModels) Refresh(ctx context.Context) error {
	now := &generations{serving: map[string]int{}, state: map[Generation]string{}}
	rows, err := m.DB.Query(ctx, `
		SELECT g.model, g.generation, g.state, r.serving IS NOT NULL
		FROM tomato.generations g LEFT JOIN tomato.read_models r ON r.model = g.model AND r.serving = g.generation`)
	if err != nil {
		return fmt.Errorf("read the generations: %w", err)
	}
	var g Generation
	var state string
	var serving bool
	_, err = pgx.ForEachRow(rows, []any{&g.Model, &g.Number, &state, &serving}, func() error {
		now.state[g] = state
		if serving {
			now.serving[g.Model] = g.Number
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the generations: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if old := m.seen.Load(); old != nil && maps.Equal(old.serving, now.serving) && maps.Equal(old.state, now.state) {
		return nil
	}
	m.seen.Store(now)
	if m.change != nil {
		close(m.change)
		m.change = nil
	}
	return nil
}

// changed returns the present copy of the generations, and a channel that is closed
// when the copy changes.
func (m *ReadModels) changed() (*generations, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.change == nil {
		m.change = make(chan struct{})
	}
	return m.seen.Load(), m.change
}

// Follow refreshes the copy of the generations until ctx ends. Every process that
// queries or projects runs it once. It logs the first of several failures in a row.
func (m *ReadModels) Follow(ctx context.Context) {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := m.Refresh(ctx)
		if err == nil {
			err = m.sample(ctx)
		}
		if err != nil && !failing && ctx.Err() == nil {
			m.log().Warn("the generations of the read models cannot be read", "err", err)
		}
		failing = err != nil
	}
}

// Serving returns the generation of the read model that answers queries. It fails
// if the read model has none, or if the generations were never read and cannot be
// read now.
func (m *ReadModels) Serving(ctx context.Context, model string) (Generation, error) {
	if m.seen.Load() == nil {
		if err := m.Refresh(ctx); err != nil {
			return Generation{}, err
		}
	}
	n, ok := m.seen.Load().serving[model]
	if !ok {
		return Generation{}, fmt.Errorf("read model %s has no generation: it was never made", model)
	}
	return Generation{model, n}, nil
}

// Read waits until the serving generation of each of models has passed after in
// the topics that it is made of. Then it calls query with the schemas of these
// generations, in the order of models. It fails with eventlog.ErrBehind if the wait
// takes longer than MaxWait. All other errors are those of query or the database.
//
// The statements of query name the schema, so a query finishes on the generation
// that it began with, and the next Read notices a switch. If the generation is
// dropped meanwhile, Read calls query a second time; query must allow for that.
func (m *ReadModels) Read(ctx context.Context, after eventlog.Token, models []string, query func(schemas []string) error) error {
	return m.read(ctx, models, query, func(g Generation) error { return m.wait(ctx, g, after, m.maxWait()) })
}

// readWithin is Read for callers who prefer an incomplete answer to a long wait: it
// waits for most at the longest, and then calls query anyway. passed reports whether
// the generations had passed after when query was called.
func (m *ReadModels) readWithin(ctx context.Context, most time.Duration, after eventlog.Token, models []string, query func(schemas []string) error) (passed bool, err error) {
	until := time.Now().Add(most)
	passed = true
	err = m.read(ctx, models, query, func(g Generation) error {
		err := m.wait(ctx, g, after, time.Until(until))
		if errors.Is(err, eventlog.ErrBehind) {
			passed, err = false, nil
		}
		return err
	})
	return passed, err
}

func (m *ReadModels) read(ctx context.Context, models []string, query func(schemas []string) error, wait func(Generation) error) error {
	for again := false; ; again = true {
		schemas := make([]string, len(models))
		for i, model := range models {
			g, err := m.Serving(ctx, model)
			if err != nil {
				return err
			}
			if err := wait(g); err != nil {
				return err
			}
			schemas[i] = g.Schema()
		}
		err := query(schemas)
		if again || !undefined(err) {
			return err
		}
		if err := m.Refresh(ctx); err != nil {
			return err
		}
	}
}

// undefined reports whether Postgres says that a table or schema does not exist.
// Its generation was dropped then.
func undefined(err error) bool {
	return slices.Contains([]string{"42P01", "3F000"}, pgerr.Code(err))
}

func (m *ReadModels) maxWait() time.Duration {
	if m.MaxWait == 0 {
		return defaultMaxWait
	}
	return m.MaxWait
}

// wait waits until g has passed after, for most at the longest. Then it fails with
// eventlog.ErrBehind.
func (m *ReadModels) wait(ctx context.Context, g Generation, after eventlog.Token, most time.Duration) error {
	topics := Topics(g.Model)
	touched := false
	for tp := range after {
		touched = touched || slices.Contains(topics, tp.Topic)
	}
	if !touched {
		return nil
	}
	bounded, cancel := context.WithTimeoutCause(ctx, most, eventlog.ErrBehind)
	defer cancel()
	err := m.Positions.WaitFor(bounded, g.Model, g.Number, topics, after)
	if err != nil && ctx.Err() == nil && bounded.Err() != nil {
		return fmt.Errorf("%s: %w", g, eventlog.ErrBehind)
	}
	return err
}

// Consumer returns the consumer that keeps a generation up to date.
func (g Generation) Consumer() consumer.Consumer {
	w := &rowWriter{model: g.Model, tables: registry[g.Model].tables, schema: pgx.Identifier{g.Schema()}.Sanitize()}
	return consumer.Consumer{Name: g.Model, Generation: g.Number, Topics: Topics(g.Model), Rows: w.write}
}

// Project keeps every live generation up to date until ctx ends: the serving
// generation, those that a rebuild has filled, and those that served before. It
// starts a consumer when a generation becomes live and stops it when the generation
// is dropped. Follow must be running. It returns nil when ctx ends, or the first
// error of a consumer.
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
	for {
		now, changed := m.changed()
		for g, stop := range running {
			if now.state[g] != live {
				stop()
				delete(running, g)
			}
		}
		for g, state := range now.state {
			if state != live || running[g] != nil {
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
