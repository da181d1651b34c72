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

// ErrRunning says that another process is rebuilding or dropping generations of
// the read model.
var ErrRunning = errors.New("a rebuild of this read model is running")

// live is the state of a generation that consumers keep up to date; the other
// one is filling.
const live = "live"

const (
	// pollInterval is how old a process's copy of the generations can be.
	pollInterval   = 500 * time.Millisecond
	defaultMaxWait = 5 * time.Second
)

// ReadModels knows which generations there are and which one serves. All
// exported fields are set before use; the methods are safe for concurrent use.
type ReadModels struct {
	DB          *pgxpool.Pool
	DatabaseURL string          // of the same database: migrations connect by themselves
	Kafka       eventlog.Config // of Ensure, Rebuild and Status
	Positions   *consumer.Positions
	Log         *slog.Logger  // default slog.Default()
	MaxWait     time.Duration // of a query for its token; default 5 s

	seen   atomic.Pointer[generations]
	rates  rates
	mu     sync.Mutex    // guards change
	change chan struct{} // closed when seen changes
}

// Generation is one filling of a read model.
type Generation struct {
	Model  string
	Number int
}

func (g Generation) String() string { return fmt.Sprintf("%s_g%d", g.Model, g.Number) }

// Schema is where its tables are.
func (g Generation) Schema() string { return g.String() }

// generations is what the database said at one moment. Never changed.
type generations struct {
	serving map[string]int
	state   map[Generation]string // filling or live
}

func (m *ReadModels) log() *slog.Logger {
	if m.Log != nil {
		return m.Log
	}
	return slog.Default()
}

// Ensure brings the tables of every live generation up to date and makes the
// first one of a read model that has none. The schema tomato must be there.
// Several processes may call it at once. It fails with *eventlog.LostBeginning
// where a generation would begin with a log whose first records are gone: its
// rows would be those of half a history.
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

// checkBeginning looks at the partitions that the generation has not begun with.
// One that it has, and whose next records are gone, is its consumer's to report:
// what the rows show is complete up to there.
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

// first makes generation 1, unless another process was faster.
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

// lock takes the lock under which generations of the read model are made,
// switched and dropped, across processes. Without wait it fails with ErrRunning
// while another has it. The lock ends with this process, too.
func (m *ReadModels) lock(ctx context.Context, model string, wait bool) (unlock func(), err error) {
	// A connection of its own: a rebuild must not hold one of the pool while its
	// workers wait for theirs.
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

// Refresh reads the generations from the database.
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

// changed returns what is known now and a channel that closes with the next change.
func (m *ReadModels) changed() (*generations, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.change == nil {
		m.change = make(chan struct{})
	}
	return m.seen.Load(), m.change
}

// Follow keeps the copy fresh until ctx ends. Every process that queries or
// projects runs it once.
func (m *ReadModels) Follow(ctx context.Context) {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	away := false
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
		if err != nil && !away && ctx.Err() == nil {
			m.log().Warn("generations of read models are not read", "error", err)
		}
		away = err != nil
	}
}

// Serving returns the generation of the read model that answers queries.
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

// Read calls query with the schemas of the serving generations of models, in
// their order, once each of them has passed after in the topics that it is made
// of; it fails with eventlog.ErrBehind if that takes longer than MaxWait. The statements
// name the schema, so that a switch is noticed by the next Read, and the one
// under way finishes on the generation it began with. If that is dropped
// meanwhile, query is called once more; it must bear that.
func (m *ReadModels) Read(ctx context.Context, after eventlog.Token, models []string, query func(schemas []string) error) error {
	return m.read(ctx, models, query, func(g Generation) error { return m.wait(ctx, g, after, m.maxWait()) })
}

// readWithin is Read for who would rather have an answer from what is there
// than wait for longer than most; passed says whether all of after had been passed.
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
	byTopic, schema := registry[g.Model].tables, pgx.Identifier{g.Schema()}.Sanitize()
	return consumer.Consumer{
		Name: g.Model, Generation: g.Number, Topics: Topics(g.Model),
		Rows: func(ctx context.Context, tx pgx.Tx, events []eventlog.Event) error {
			for len(events) > 0 {
				n := 1
				for n < len(events) && events[n].Topic == events[0].Topic {
					n++
				}
				t := byTopic[events[0].Topic]
				if t == nil {
					return eventlog.Poison(fmt.Errorf("%s is no topic of %s", events[0].Topic, g.Model))
				}
				if err := t.apply(ctx, tx, schema, events[:n]); err != nil {
					if undefined(err) {
						// Dropped under a consumer that has not noticed yet:
						// nothing about the events is wrong.
						return eventlog.Unavailable(err)
					}
					return err
				}
				events = events[n:]
			}
			return nil
		},
	}
}

// Project keeps every live generation up to date until ctx ends: the serving
// one, and those that a rebuild has filled or that served before, from the
// moment they are live until they are dropped. Follow must be running.
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
