package projections

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/pgerr"
)

// fillWorkers is how many partitions a rebuild reads at once.
const fillWorkers = 4

// progressEvery is how many records pass between two reports on a partition.
const progressEvery = 2000

// RebuildOptions say how a rebuild is done.
type RebuildOptions struct {
	// Runtime catches up from the targets to the present. Needed.
	Runtime *consumer.Runtime
	// DropOld drops the generation that served before, when nothing looks at it
	// any more. Else it stays, is kept up to date, and Switch goes back to it.
	DropOld bool
	// Progress, if set, is told how far it is; one call at a time, which holds
	// the rebuild up.
	Progress func(Progress)
}

// Phase is a part of a rebuild.
type Phase string

// The phases of a rebuild, in order.
const (
	Filling    Phase = "filling"     // up to the targets
	CatchingUp Phase = "catching up" // to the present
	Switched   Phase = "switched"    // the new generation serves
)

// Progress is how far a rebuild is. The targets are the end offsets at its
// start and never move, so neither share nor time left can lie. In CatchingUp
// and Switched only Generation and Phase are set.
type Progress struct {
	Generation
	Phase     Phase
	Topic     string
	Partition int32
	Done      int64 // offset reached in the partition
	Target    int64
}

// Rebuild folds the log anew into the next generation of the read model, beside
// the one that serves, and lets it serve once it has caught up. Queries go on
// meanwhile and see one or the other, both current. It fails with ErrRunning
// while another process is at it. If it fails or is killed before the switch,
// everything is as before, but for a generation that the next rebuild removes.
// It fails with *eventlog.LostBeginning, and changes nothing, where the log does
// not have all of its records any more.
//
// Rider positions are no fold: they are copied from the serving generation
// together with their checkpoint.
func (m *ReadModels) Rebuild(ctx context.Context, model string, o RebuildOptions) (Generation, error) {
	if _, ok := registry[model]; !ok {
		return Generation{}, fmt.Errorf("there is no read model %q; there are %v", model, Models())
	}
	unlock, err := m.lock(ctx, model, false)
	if err != nil {
		return Generation{}, err
	}
	defer unlock()
	if err := m.Refresh(ctx); err != nil {
		return Generation{}, err
	}
	before, err := m.Serving(ctx, model)
	if err != nil {
		return Generation{}, err
	}
	client, err := m.Kafka.NewClient()
	if err != nil {
		return Generation{}, err
	}
	defer client.Close()
	folded := foldedTables(model)
	targets, err := eventlog.EndOffsets(ctx, client, slices.Collect(maps.Keys(folded))...)
	if err != nil {
		return Generation{}, err
	}
	need := make(map[eventlog.TopicPartition]int64, len(targets))
	for tp := range targets {
		need[tp] = 0
	}
	if err := eventlog.CheckBeginnings(ctx, client, need); err != nil {
		return Generation{}, fmt.Errorf("nothing has been changed, %s serves as before: %w", before, err)
	}
	if err := m.removeUnfinished(ctx, model); err != nil {
		return Generation{}, err
	}
	g, err := m.create(ctx, model, targets)
	if err != nil {
		return Generation{}, err
	}
	indexes, err := m.takeIndexes(ctx, g)
	if err != nil {
		return g, fmt.Errorf("preparing %s: %w", g, err)
	}
	if err := m.fill(ctx, g, folded, targets, o.Progress); err != nil {
		return g, fmt.Errorf("filling %s: %w", g, err)
	}
	if err := m.makeIndexes(ctx, indexes); err != nil {
		return g, fmt.Errorf("indexing %s: %w", g, err)
	}
	if copyUnfolded := registry[model].copyUnfolded; copyUnfolded != nil {
		if err := copyUnfolded(ctx, m.DB, before, g); err != nil {
			return g, err
		}
	}
	for _, name := range foldedNames(model) {
		// Plans made for empty tables would read them from end to end.
		if _, err := m.DB.Exec(ctx, `ANALYZE `+g.Schema()+`.`+name); err != nil {
			return g, err
		}
	}

	// From here on the ordinary consumer goes on: here until the switch, and in
	// every process that projects, which take over when this one leaves.
	if _, err := m.DB.Exec(ctx, `UPDATE tomato.generations SET state = 'live' WHERE model = $1 AND generation = $2`, g.Model, g.Number); err != nil {
		return g, err
	}
	announced := time.Now()
	report(o.Progress, Progress{Generation: g, Phase: CatchingUp})
	if err := m.catchUpAndSwitch(ctx, g, o, announced); err != nil {
		return g, err
	}
	if o.DropOld {
		if err := m.drop(ctx, before); err != nil {
			return g, fmt.Errorf("%s serves, but dropping %s failed: %w", g, before, err)
		}
	}
	return g, m.Refresh(ctx)
}

func report(progress func(Progress), p Progress) {
	if progress != nil {
		progress(p)
	}
}

// create makes the next generation with its empty tables.
func (m *ReadModels) create(ctx context.Context, model string, targets map[eventlog.TopicPartition]int64) (Generation, error) {
	at := make(map[string]int64, len(targets))
	for tp, o := range targets {
		at[fmt.Sprintf("%s/%d", tp.Topic, tp.Partition)] = o
	}
	g := Generation{Model: model}
	err := pgx.BeginFunc(ctx, m.DB, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, `UPDATE tomato.read_models SET last = last + 1 WHERE model = $1 RETURNING last`, model).Scan(&g.Number); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO tomato.generations (model, generation, state, targets) VALUES ($1, $2, 'filling', $3)`, model, g.Number, at)
		return err
	})
	if err != nil {
		return g, fmt.Errorf("next generation of %s: %w", model, err)
	}
	return g, m.migrate(ctx, g)
}

// takeIndexes drops what a fill does not need: all indexes but those that
// upserts find their rows by (the key of a table with a column id). It returns
// the statements that make them. Made at the end they cost a fraction.
func (m *ReadModels) takeIndexes(ctx context.Context, g Generation) (statements []string, err error) {
	rows, err := m.DB.Query(ctx, `
		SELECT CASE WHEN c.oid IS NULL THEN pg_get_indexdef(i.indexrelid)
		            ELSE format('ALTER TABLE %s ADD CONSTRAINT %I %s', i.indrelid::regclass, c.conname, pg_get_constraintdef(c.oid)) END,
		       CASE WHEN c.oid IS NULL THEN format('DROP INDEX %s', i.indexrelid::regclass)
		            ELSE format('ALTER TABLE %s DROP CONSTRAINT %I', i.indrelid::regclass, c.conname) END
		FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid
		LEFT JOIN pg_constraint c ON c.conindid = i.indexrelid
		WHERE t.relnamespace = $1::regnamespace AND t.relname = ANY ($2)
		  AND NOT (i.indisprimary AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = t.oid AND a.attname = 'id'))`,
		g.Schema(), foldedNames(g.Model))
	if err != nil {
		return nil, err
	}
	batch := &pgx.Batch{}
	var add, drop string
	if _, err := pgx.ForEachRow(rows, []any{&add, &drop}, func() error {
		statements = append(statements, add)
		batch.Queue(drop)
		return nil
	}); err != nil {
		return nil, err
	}
	return statements, m.DB.SendBatch(ctx, batch).Close()
}

// makeIndexes runs the statements, two at a time, the long ones of both tables
// beside each other.
func (m *ReadModels) makeIndexes(ctx context.Context, statements []string) error {
	eg, ctx := errgroup.WithContext(ctx)
	eg.SetLimit(2)
	slices.Sort(statements) // constraints first, which lock a table of their own
	for _, sql := range statements {
		eg.Go(func() error {
			_, err := m.DB.Exec(ctx, sql)
			return err
		})
	}
	return eg.Wait()
}

// fill folds every partition up to its target, a few at a time.
func (m *ReadModels) fill(ctx context.Context, g Generation, folded map[string]foldedTable, targets map[eventlog.TopicPartition]int64, progress func(Progress)) error {
	var mu sync.Mutex // one report at a time
	eg, ctx := errgroup.WithContext(ctx)
	eg.SetLimit(fillWorkers)
	tps := slices.SortedFunc(maps.Keys(targets), func(a, b eventlog.TopicPartition) int { return int(a.Partition - b.Partition) })
	for _, tp := range tps {
		p := Progress{Generation: g, Phase: Filling, Topic: tp.Topic, Partition: tp.Partition, Target: targets[tp]}
		tell := func(done int64) {
			mu.Lock()
			defer mu.Unlock()
			p.Done = done
			report(progress, p)
		}
		eg.Go(func() error {
			tell(0)
			return m.fillPartition(ctx, g, tp, folded[tp.Topic].filler(g.Schema()), eventlog.Range{To: targets[tp]}, tell)
		})
	}
	return eg.Wait()
}

// fillPartition folds one partition in memory and writes it by COPY, with the
// checkpoint in the same transaction; one that is too large for memory in
// several such steps. At an event that cannot be folded it stops: the consumer
// goes on from there, and parks. So it does where Postgres refuses what a step has
// folded: the consumer finds the event.
func (m *ReadModels) fillPartition(ctx context.Context, g Generation, tp eventlog.TopicPartition, f filler, r eventlog.Range, tell func(done int64)) error {
	taken, err := consumer.TakeCheckpoints(ctx, m.DB, g.Model, g.Number, map[eventlog.TopicPartition]int64{tp: r.From}, time.Time{})
	if err != nil {
		return err
	}
	cp := taken[tp]
	mark := cp.Mark
	tx, err := m.DB.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // after Commit it does nothing
	commit := func() error {
		if err := f.flush(ctx, tx); err != nil {
			return err
		}
		if mark.Next > cp.Next {
			if err := cp.Move(ctx, tx, mark); err != nil {
				return err
			}
		}
		if err := tx.Commit(ctx); err != nil {
			return err
		}
		cp.Mark = mark
		return nil
	}
	var broken error // of the database: the rebuild fails
	err = eventlog.Read(ctx, m.Kafka, map[eventlog.TopicPartition]eventlog.Range{tp: r}, func(e *eventlog.Event) error {
		rule := mark.Rule
		if take, _ := rule.Take(e); take {
			err := e.Fault // the consumer parks it
			if err == nil {
				err = f.fold(ctx, tx, e)
			} else {
				err = eventlog.Poison(err)
			}
			if err != nil {
				if !errors.Is(err, eventlog.ErrPoison) {
					broken = err
				}
				return err
			}
		}
		mark = consumer.Mark{Next: e.Offset + 1, Rule: rule, Time: e.Timestamp}
		if f.full() {
			if broken = commit(); broken == nil {
				var next pgx.Tx // tx stays what it was where there is none: it is rolled back at the end
				if next, broken = m.DB.Begin(ctx); broken == nil {
					tx = next
				}
			}
			if broken != nil {
				return broken
			}
		}
		if mark.Next%progressEvery == 0 {
			tell(mark.Next)
		}
		return nil
	})
	left := func(at int64, err error) {
		m.log().Warn("a rebuild leaves the rest of a partition to the consumer", "generation", g.String(), "topic", tp.Topic, "partition", tp.Partition,
			"offset", at, "err", err)
	}
	switch {
	case refusesData(broken):
		left(cp.Next, broken)
		return nil
	case broken != nil:
		return broken
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		left(mark.Next, err)
	}
	if err := commit(); refusesData(err) {
		left(cp.Next, err)
		return nil
	} else if err != nil {
		return err
	}
	tell(mark.Next)
	return nil
}

// catchUpAndSwitch runs the generation's consumer until it has passed what is
// in the log now, and lets it serve.
func (m *ReadModels) catchUpAndSwitch(ctx context.Context, g Generation, o RebuildOptions, announced time.Time) error {
	own, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- o.Runtime.Run(own, g.Consumer()) }()
	defer func() {
		stop()
		<-ended
	}()
	client, err := m.Kafka.NewClient()
	if err != nil {
		return err
	}
	defer client.Close()
	topics := Topics(g.Model)
	token, err := eventlog.EndToken(ctx, client, topics...)
	if err != nil {
		return err
	}
	if err := m.Positions.WaitFor(ctx, g.Model, g.Number, topics, token); err != nil {
		return fmt.Errorf("%s catching up: %w", g, err)
	}
	if err := m.Switch(ctx, g); err != nil {
		return err
	}
	report(o.Progress, Progress{Generation: g, Phase: Switched})
	// Leave when the processes that project have had the time to join.
	return pause(ctx, time.Until(announced.Add(2*pollInterval)))
}

// Compare returns how many rows of the tables of a and b are not in the other,
// positions aside. 0 means that both are the same fold, if both have passed the
// same events.
func (m *ReadModels) Compare(ctx context.Context, a, b Generation) (differences int64, err error) {
	if a.Model != b.Model {
		return 0, fmt.Errorf("%s and %s are of different read models", a, b)
	}
	for _, name := range foldedNames(a.Model) {
		x, y := `TABLE `+a.Schema()+`.`+name, `TABLE `+b.Schema()+`.`+name
		var n int64
		err := m.DB.QueryRow(ctx, `SELECT count(*) FROM ((`+x+` EXCEPT ALL `+y+`) UNION ALL (`+y+` EXCEPT ALL `+x+`)) AS d`).Scan(&n)
		if err != nil {
			return 0, fmt.Errorf("comparing %s and %s: %w", a, b, err)
		}
		differences += n
	}
	return differences, nil
}

// refusesData reports whether Postgres takes a statement but refuses a value in
// it: a text with NUL, a number that is too large for its column, a second row of
// one id.
func refusesData(err error) bool {
	return slices.Contains([]string{"22", "23", "54"}, pgerr.Class(err))
}

func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
