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

// fillWorkers is how many partitions a rebuild fills at once.
const fillWorkers = 4

// progressEvery is the number of records between two reports on a partition.
const progressEvery = 2000

// RebuildOptions say how a rebuild is done.
type RebuildOptions struct {
	// Runtime runs the new generation's consumer from the targets to the present.
	// It must be set.
	Runtime *consumer.Runtime
	// DropOld drops the generation that served before, once no process uses it.
	// Otherwise that generation stays and is kept up to date, so that Switch can go
	// back to it.
	DropOld bool
	// Progress, if set, is called with the progress, by one goroutine at a time. The
	// rebuild waits for each call.
	Progress func(Progress)
}

// Phase is a part of a rebuild.
type Phase string

// The phases of a rebuild, in order.
const (
	Filling    Phase = "filling"     // folding the log up to the targets
	CatchingUp Phase = "catching up" // the consumer folds the log up to its present end
	Switched   Phase = "switched"    // the new generation serves
)

// Progress is how far a rebuild is. The targets are the end offsets of the
// partitions at the start of the rebuild. They do not change during the rebuild, so
// the share that is done never decreases. In CatchingUp and Switched only Generation
// and Phase are set.
type Progress struct {
	Generation
	Phase     Phase
	Topic     string
	Partition int32
	Done      int64 // offset reached in the partition
	Target    int64
}

// Rebuild folds the log into the next generation of the read model, beside the one
// that serves, and switches to it once it has caught up. Queries are answered
// meanwhile, from the old generation and then from the new one, which are both
// current. Tables that cannot be folded from the log are copied from the serving
// generation (readModel.copyUnfolded).
//
// It fails with ErrRunning if another process rebuilds the read model. It fails
// with *eventlog.LostBeginning, and changes nothing, if the first records of the log
// have been deleted. If it fails or is killed before the switch, the old generation
// serves as before, and the next rebuild removes the incomplete one.
func (m *ReadModels) Rebuild(ctx context.Context, model string, o RebuildOptions) (Generation, error) {
	if _, ok := registry[model]; !ok {
		return Generation{}, fmt.Errorf("there is no read model %q; there are %v", model, Models())
	}
	l, err := m.lock(ctx, model, false)
	if err != nil {
		return Generation{}, err
	}
	defer l.unlock()
	if err := m.Refresh(ctx); err != nil {
		return Generation{}, err
	}
	number, ok := m.seen.Load().serving[model]
	if !ok {
		return Generation{}, fmt.Errorf("read model %s has no generation: it was never made", model)
	}
	before := Generation{model, number}
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
	if _, err := m.DB.Exec(ctx, `UPDATE tomato.generations SET state = 'gone' WHERE model = $1 AND state IN ('filling', 'catching_up', 'verified')`, model); err != nil {
		return Generation{}, err
	}
	if err := m.removeGone(ctx, model); err != nil {
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
		// Without statistics, Postgres plans as for empty tables and scans them whole.
		if _, err := m.DB.Exec(ctx, `ANALYZE `+g.Schema()+`.`+name); err != nil {
			return g, err
		}
	}

	// From now on the generation has its ordinary consumer. It runs in this process
	// until the switch, and in every process that projects. They take over the
	// partitions when this process leaves the consumer group.
	if _, err := m.DB.Exec(ctx, `UPDATE tomato.generations SET state = 'verified' WHERE model = $1 AND generation = $2`, g.Model, g.Number); err != nil {
		return g, err
	}
	announced := time.Now()
	report(o.Progress, Progress{Generation: g, Phase: CatchingUp})
	if err := m.catchUpAndSwitch(ctx, g, o, announced); err != nil {
		return g, err
	}
	if err := m.finishDrops(ctx, model); err != nil {
		return g, fmt.Errorf("%s serves, but a generation that served before is not removed yet: %w", g, err)
	}
	return g, nil
}

func report(progress func(Progress), p Progress) {
	if progress != nil {
		progress(p)
	}
}

// create makes the next generation, in state filling, with empty tables.
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
		_, err := tx.Exec(ctx, `INSERT INTO tomato.generations (model, generation, state, fold, targets) VALUES ($1, $2, $3, $4, $5)`,
			model, g.Number, StateFilling, m.fold(model), at)
		return err
	})
	if err != nil {
		return g, fmt.Errorf("next generation of %s: %w", model, err)
	}
	return g, m.makeTables(ctx, g)
}

// takeIndexes drops the indexes that a fill does not need, which are all but the
// primary keys by which upserts find their rows (those of tables with a column id).
// It returns the statements that create them again. To create an index for a full
// table costs a fraction of what it costs to keep it while the table is filled.
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

// makeIndexes runs the statements of takeIndexes, two at a time.
func (m *ReadModels) makeIndexes(ctx context.Context, statements []string) error {
	eg, ctx := errgroup.WithContext(ctx)
	eg.SetLimit(2)
	slices.Sort(statements) // ALTER TABLE comes before CREATE INDEX; it locks another table than they do
	for _, sql := range statements {
		eg.Go(func() error {
			_, err := m.DB.Exec(ctx, sql)
			return err
		})
	}
	return eg.Wait()
}

// fill folds every partition up to its target, fillWorkers at a time.
func (m *ReadModels) fill(ctx context.Context, g Generation, folded map[string]foldedTable, targets map[eventlog.TopicPartition]int64, progress func(Progress)) error {
	var mu sync.Mutex // held during a report
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

// fillPartition folds one partition in memory and writes the rows by COPY, together
// with the checkpoint, in one transaction. It takes several such steps if the
// partition does not fit into f.
//
// It stops at an event that cannot be folded, and returns nil: the consumer goes on
// from there and parks the event. It also stops, before the step, if Postgres
// refuses a value in the rows of a step: the consumer folds the events in small
// batches and finds the one whose value is refused.
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
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // no effect after Commit
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
	var broken error // an error of the database, which fails the rebuild
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
				var next pgx.Tx // if Begin fails, tx stays the committed one, whose Rollback has no effect
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

// catchUpAndSwitch runs the generation's consumer until it has passed the present
// ends of the logs, and then switches to the generation. announced is when the
// generation became live.
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
	if err := m.switchTo(ctx, g, o.DropOld); err != nil {
		return err
	}
	report(o.Progress, Progress{Generation: g, Phase: Switched})
	// The consumer of this process stops only after the processes that project have
	// had the time to notice the generation and join its consumer group.
	return pause(ctx, time.Until(announced.Add(2*pollInterval)))
}

// Compare returns the number of rows that only one of the two generations has. It
// compares the tables that are folded from the log, and not rider positions. If both
// generations have passed the same events, the result must be 0.
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
