package projections

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/time/rate"

	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/pgerr"
)

// RebuildOptions say how a rebuild is done.
type RebuildOptions struct {
	// Runtime runs the new generation's consumer if no process projects it. It must be
	// set.
	Runtime *consumer.Runtime
	// Resume goes on with the unfinished rebuild of the read model, which another process
	// has begun, instead of beginning one.
	Resume bool
	// DropOld drops the generation that served before. Otherwise it is the standby from
	// then on, and Switch can go back to it.
	DropOld bool
	// DryRun removes the new generation after the comparison, instead of switching to it.
	DryRun bool
	// AcceptDifferences switches although the comparison has found differences.
	AcceptDifferences bool
	// EventsPerSecond is how many records are read per second, at most, by all partitions
	// together; 0: as many as possible.
	EventsPerSecond float64
	// Progress, if set, is called with the progress, by one goroutine at a time.
	Progress func(Progress)
}

// RebuildResult is what a rebuild has done.
type RebuildResult struct {
	Generation            // the new one
	Before     Generation `json:"before"`   // the one that served when the rebuild began
	Comparison Comparison `json:"compared"` // of the rows of the two
	Switched   bool       `json:"switched"`
	// Alone says that no process projects the new generation: the rebuild has brought it
	// up to date by itself, and nobody keeps it so.
	Alone bool `json:"alone,omitempty"`
}

// Errors of Rebuild and CancelRebuild.
var (
	// ErrCanceled means that another process has canceled the rebuild.
	ErrCanceled = errors.New("the rebuild was canceled")
	// ErrNothingUnfinished means that there is no rebuild to resume or to cancel.
	ErrNothingUnfinished = errors.New("there is no unfinished rebuild of this read model")
)

// UnfinishedError says that a rebuild was begun before and not finished.
type UnfinishedError struct {
	Generation
	State State
}

func (e *UnfinishedError) Error() string {
	return fmt.Sprintf("an earlier rebuild has left %s unfinished, in state %s: run `tomato rebuild %s --resume` to go on with it, or `tomato rebuild %s --cancel` to remove it",
		e.Generation, e.State, e.Model, e.Model)
}

// DifferencesError says that the rows of the new generation are not those that serve.
type DifferencesError struct{ Comparison Comparison }

func (e *DifferencesError) Error() string {
	s := fmt.Sprintf("the rows differ from those that serve: %d are missing, %d too many, %d have other values", e.Comparison.Missing, e.Comparison.Extra, e.Comparison.Changed)
	if n := e.Comparison.NewlyParked; n > 0 {
		s += fmt.Sprintf(", and %d aggregates have an event that cannot be folded any more", n)
	}
	return s
}

// rebuild is one rebuild while it runs. Everything that a later process needs to go on
// with it is in the database: the generation with its state, its targets and the
// statements of its missing indexes, and its checkpoints.
type rebuild struct {
	m       *ReadModels
	o       RebuildOptions
	lock    *lock
	lockMu  sync.Mutex // held while the lock is taken again
	client  *kgo.Client
	limiter *rate.Limiter // nil: no limit
	meter   *meter

	g       Generation
	state   State
	before  Generation // which serves
	targets map[eventlog.TopicPartition]int64
	indexes []string // the statements of missing indexes; nil before they are dropped
	folds   map[eventlog.TopicPartition]*partitionFold
	hurry   atomic.Bool // limiter does not count
	leaving atomic.Bool // this process removes the generation itself
}

// Rebuild folds the log into a new generation of the read model, beside the one that
// serves, compares the two at one vector of positions, hands the new one over to the
// processes that project, and switches to it. Queries are answered meanwhile. Tables that
// cannot be folded from the log are copied from the serving generation
// (readModel.copyUnfolded).
//
// If it fails or is killed before the switch, the old generation serves as before, and
// the rebuild can be resumed or canceled. It fails
//
//   - with ErrRunning if another process rebuilds the read model,
//   - with *UnfinishedError if an earlier rebuild is unfinished, and with
//     ErrNothingUnfinished if there is none to resume,
//   - with *eventlog.LostBeginning, and changes nothing, if the first records of the log
//     have been deleted,
//   - with *DifferencesError if the rows differ and the options do not accept that,
//   - with ErrCanceled if another process cancels it.
//
// The result has what was done until the error.
func (m *ReadModels) Rebuild(ctx context.Context, model string, o RebuildOptions) (RebuildResult, error) {
	if _, ok := registry[model]; !ok {
		return RebuildResult{}, fmt.Errorf("there is no read model %q; there are %v", model, Models())
	}
	r := &rebuild{m: m, o: o, g: Generation{Model: model}}
	if o.EventsPerSecond > 0 {
		r.limiter = rate.NewLimiter(rate.Limit(o.EventsPerSecond), int(max(1, o.EventsPerSecond/20)))
	}
	var err error
	if r.lock, err = m.lock(ctx, model, false); err != nil {
		return RebuildResult{}, err
	}
	defer func() { r.lock.unlock() }()
	r.client, err = m.Kafka.NewClient(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0), kgo.ProducerBatchMaxBytes(2<<20))
	if err != nil {
		return RebuildResult{}, err
	}
	defer r.client.Close()
	if err := r.load(ctx); err != nil {
		return RebuildResult{}, err
	}
	if r.g.Number > 0 && !o.Resume {
		return RebuildResult{}, &UnfinishedError{r.g, r.state}
	}
	if r.g.Number == 0 && o.Resume {
		return RebuildResult{}, ErrNothingUnfinished
	}
	if r.g.Number == 0 {
		if err := r.begin(ctx); err != nil {
			return RebuildResult{}, fmt.Errorf("nothing has been changed, %s serves as before: %w", r.before, err)
		}
	}
	r.meter = newMeter(r.g, o.Progress)
	result := RebuildResult{Generation: r.g, Before: r.before}
	watched, stop := r.watch(ctx)
	err = r.run(watched, &result)
	cause := context.Cause(watched)
	stop()
	switch {
	case err == nil:
		return result, nil
	case errors.Is(cause, ErrCanceled):
		return result, ErrCanceled
	case errors.Is(cause, ErrRunning):
		err = errLockLost
	case result.Switched:
		return result, fmt.Errorf("%s serves, but not everything is done: %w", r.g, err)
	case o.DryRun && errors.As(err, new(*DifferencesError)): // the generation is removed
		return result, err
	case pgerr.Code(err) == diskFull:
		err = fmt.Errorf("the disk of the database is full; make room: %w", err)
	}
	return result, fmt.Errorf("%s serves as before. Run `tomato rebuild %s --resume` to go on, or `tomato rebuild %s --cancel` to remove %s: %w",
		r.before, model, model, r.g, err)
}

// load reads which generation serves, and the unfinished one, if there is one.
func (r *rebuild) load(ctx context.Context) error {
	model := r.g.Model
	if err := r.m.Refresh(ctx); err != nil {
		return err
	}
	known := r.m.seen.Load()
	n, ok := known.serving[model]
	if !ok {
		return fmt.Errorf("read model %s has no generation yet: run `tomato serve`, which makes the first one", model)
	}
	r.before = Generation{model, n}
	var fold string
	targets := map[string]int64{}
	err := r.m.DB.QueryRow(ctx, `SELECT generation, state, fold, targets, indexes FROM tomato.generations
		WHERE model = $1 AND state IN ('filling', 'catching_up', 'verified')`, model).Scan(&r.g.Number, &r.state, &fold, &targets, &r.indexes)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	if r.o.Resume && fold != r.m.fold(model) {
		return fmt.Errorf("another version of this program has begun %s: resume it with that one, or run `tomato rebuild %s --cancel`", r.g, model)
	}
	r.targets, err = parseTargets(targets)
	return err
}

// begin makes the row of the next generation, after it has checked that the log is whole.
func (r *rebuild) begin(ctx context.Context) error {
	model := r.g.Model
	if err := r.m.removeGone(ctx, model); err != nil {
		return err
	}
	ends, err := eventlog.EndOffsets(ctx, r.client, foldedTopics(model)...)
	if err != nil {
		return err
	}
	need := make(map[eventlog.TopicPartition]int64, len(ends))
	for tp := range ends {
		need[tp] = 0
	}
	if err := eventlog.CheckBeginnings(ctx, r.client, need); err != nil {
		return err
	}
	// The new generation is compared at the positions of the serving one, so it must not
	// be ahead of it. If that one has passed nothing, there is nothing to compare.
	passed, err := checkpointsOf(ctx, r.m.DB, r.before)
	if err != nil {
		return err
	}
	r.targets = map[eventlog.TopicPartition]int64{}
	var sum int64
	for tp := range ends {
		r.targets[tp] = passed[tp]
		sum += passed[tp]
	}
	if sum == 0 {
		r.targets = ends
	}
	r.state = StateFilling
	return pgx.BeginFunc(ctx, r.m.DB, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, `UPDATE tomato.read_models SET last = last + 1 WHERE model = $1 RETURNING last`, model).Scan(&r.g.Number); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO tomato.generations (model, generation, state, fold, targets) VALUES ($1, $2, $3, $4, $5)`,
			model, r.g.Number, r.state, r.m.fold(model), targetsText(r.targets))
		return err
	})
}

// run goes on from the state of the generation to the switch.
func (r *rebuild) run(ctx context.Context, result *RebuildResult) (err error) {
	r.folds = map[eventlog.TopicPartition]*partitionFold{}
	tables := foldedTables(r.g.Model)
	for tp := range r.targets {
		r.folds[tp] = &partitionFold{r: r, tp: tp, table: tables[tp.Topic]}
	}
	defer r.meter.run()()
	if r.state == StateFilling {
		if err := r.fillTables(ctx); err != nil {
			return err
		}
	}
	if r.state == StateVerified {
		old, err := r.copyIsOld(ctx)
		if err != nil {
			return err
		}
		if !old && !r.o.DryRun {
			return r.handOverAndSwitch(ctx, result)
		}
		if err := r.backToCatchingUp(ctx); err != nil {
			return err
		}
	}
	if result.Comparison, err = r.verify(ctx); err != nil {
		return err
	}
	if err := r.judge(ctx, result.Comparison); err != nil || r.o.DryRun {
		return err
	}
	return r.handOverAndSwitch(ctx, result)
}

func (r *rebuild) handOverAndSwitch(ctx context.Context, result *RebuildResult) (err error) {
	if result.Alone, err = r.handOver(ctx); err != nil {
		return err
	}
	if err := r.again(ctx, func(ctx context.Context) error { return r.m.switchTo(ctx, r.g) }); err != nil {
		return err
	}
	result.Switched = true
	r.meter.begin(PhaseSwitched, nil)
	if r.o.DropOld {
		// Until every process has noticed the switch, queries ask the old generation, and
		// those with a token need somebody who keeps it up to date.
		if err := pause(ctx, 2*pollInterval); err != nil {
			return err
		}
		return r.again(ctx, func(ctx context.Context) error { return r.m.drop(ctx, r.before) })
	}
	return r.m.finishDrops(ctx, r.g.Model)
}

// backToCatchingUp takes a generation that was verified out of the hand-over, so that it
// can be compared again: the processes that have begun to project it stop.
func (r *rebuild) backToCatchingUp(ctx context.Context) error {
	if err := r.again(ctx, func(ctx context.Context) error { return r.setState(ctx, StateCatchingUp) }); err != nil {
		return err
	}
	return pause(ctx, 2*pollInterval)
}

// judge decides what follows from the comparison: the generation becomes verified, or
// the rebuild ends here.
func (r *rebuild) judge(ctx context.Context, c Comparison) error {
	var differs error
	if !c.Equal() && !r.o.AcceptDifferences {
		differs = &DifferencesError{c}
	}
	if r.o.DryRun {
		r.leaving.Store(true)
		return errors.Join(differs, r.m.drop(ctx, r.g))
	}
	if differs != nil {
		return differs
	}
	return r.again(ctx, func(ctx context.Context) error {
		if err := r.copyUnfolded(ctx); err != nil {
			return err
		}
		return r.setState(ctx, StateVerified)
	})
}

// fillTables makes the tables, fills them up to the targets, and creates their indexes.
func (r *rebuild) fillTables(ctx context.Context) error {
	if r.indexes == nil {
		if err := r.again(ctx, func(ctx context.Context) error { return r.m.makeTables(ctx, r.g) }); err != nil {
			return fmt.Errorf("making the tables: %w", err)
		}
		if err := r.again(ctx, r.takeIndexes); err != nil {
			return fmt.Errorf("preparing the tables: %w", err)
		}
	}
	r.meter.begin(PhaseFilling, r.targets)
	if err := r.foldTo(ctx, r.targets, true); err != nil {
		return fmt.Errorf("filling the tables: %w", err)
	}
	if err := r.makeIndexes(ctx); err != nil {
		return fmt.Errorf("creating the indexes: %w", err)
	}
	return r.again(ctx, func(ctx context.Context) error {
		if err := r.copyUnfolded(ctx); err != nil {
			return err
		}
		err := r.m.unbounded(ctx, func(tx pgx.Tx) error {
			for _, name := range foldedNames(r.g.Model) {
				// Without statistics, Postgres plans as for empty tables and scans them whole.
				if _, err := tx.Exec(ctx, `ANALYZE `+r.g.Schema()+`.`+name); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		return r.setState(ctx, StateCatchingUp)
	})
}

// copyMaxAge is the age from which a copy of what cannot be folded is too old. A tombstone
// says that something was erased, and vanishes from the topic a day later, so whoever has
// not read the topic for a day may miss it.
const copyMaxAge = 6 * time.Hour

// copyUnfolded copies the tables that cannot be folded, unless that was done not long ago.
func (r *rebuild) copyUnfolded(ctx context.Context) error {
	old, err := r.copyIsOld(ctx)
	if err != nil || !old {
		return err
	}
	return registry[r.g.Model].copyUnfolded(ctx, r.m.DB, r.before, r.g)
}

// copyIsOld reports whether the tables that cannot be folded have to be copied: they have
// no checkpoint, or one that has not moved for copyMaxAge.
func (r *rebuild) copyIsOld(ctx context.Context) (old bool, err error) {
	if registry[r.g.Model].copyUnfolded == nil {
		return false, nil
	}
	err = r.again(ctx, func(ctx context.Context) error {
		return r.m.DB.QueryRow(ctx, `SELECT coalesce(min(updated_at) < now() - $4::interval, true) FROM tomato.checkpoints WHERE consumer = $1 AND generation = $2 AND topic <> ALL ($3)`,
			r.g.Model, r.g.Number, foldedTopics(r.g.Model), copyMaxAge).Scan(&old)
	})
	return old, err
}

// setState notes that the generation has reached the next state.
func (r *rebuild) setState(ctx context.Context, to State) error {
	tag, err := r.m.DB.Exec(ctx, `UPDATE tomato.generations SET state = $3 WHERE model = $1 AND generation = $2 AND state IN ($4, $3)`, r.g.Model, r.g.Number, to, r.state)
	if err == nil && tag.RowsAffected() != 1 {
		err = ErrCanceled
	}
	if err == nil {
		r.state = to
		err = r.m.Refresh(ctx)
	}
	return err
}

// errLockLost means that the session with the lock has ended, and another process has
// taken the lock.
var errLockLost = fmt.Errorf("the connection with the lock of the read model was lost, and then: %w", ErrRunning)

// watch returns a context that ends with the cause ErrCanceled when another process has
// canceled the rebuild, and with ErrRunning when another process has taken the lock.
func (r *rebuild) watch(ctx context.Context) (watched context.Context, stop func()) {
	watched, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for pause(watched, pollInterval) == nil {
			var state State
			err := r.m.DB.QueryRow(watched, `SELECT state FROM tomato.generations WHERE model = $1 AND generation = $2`, r.g.Model, r.g.Number).Scan(&state)
			if !r.leaving.Load() && (errors.Is(err, pgx.ErrNoRows) || err == nil && state == StateGone) {
				cancel(ErrCanceled)
			}
			if err := r.holdLock(watched); err != nil {
				cancel(err)
			}
		}
	}()
	return watched, func() { cancel(nil); <-done }
}

// CancelRebuild ends the unfinished rebuild of the read model and removes its generation,
// also if another process is at it: that one notices and stops. It fails with
// ErrNothingUnfinished if there is none, and with ErrRunning if the other process does not
// stop.
func (m *ReadModels) CancelRebuild(ctx context.Context, model string) (Generation, error) {
	g := Generation{Model: model}
	err := m.DB.QueryRow(ctx, `UPDATE tomato.generations SET state = 'gone' WHERE model = $1 AND state IN ('filling', 'catching_up', 'verified')
		RETURNING generation`, model).Scan(&g.Number)
	if errors.Is(err, pgx.ErrNoRows) {
		return g, ErrNothingUnfinished
	}
	if err != nil {
		return g, err
	}
	for until := time.Now().Add(cancelLimit); ; {
		l, err := m.lock(ctx, model, false)
		if err == nil {
			defer l.unlock()
			return g, m.finishDrops(ctx, model)
		}
		if !errors.Is(err, ErrRunning) {
			return g, err
		}
		if time.Now().After(until) {
			return g, fmt.Errorf("%s is canceled, but the process that fills it has not stopped for %v. End that process; the next rebuild or start of `tomato serve` then removes what is left: %w", g, cancelLimit, err)
		}
		if err := pause(ctx, pollInterval/5); err != nil {
			return g, err
		}
	}
}

// cancelLimit is how long CancelRebuild waits for the process that rebuilds.
const cancelLimit = 30 * time.Second
