package consumer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"tomato/eventlog"
)

// ErrFenced says that a checkpoint was not as its holder had left it, because another
// instance has taken the partition over. The caller must roll back its transaction.
var ErrFenced = errors.New("checkpoint was taken over by another instance")

// Checkpoint is a row of tomato.checkpoints: the position of a consumer in one
// partition. Only the holder of the highest Epoch may move it. Not safe for
// concurrent use.
type Checkpoint struct {
	Consumer   string
	Generation int
	eventlog.TopicPartition
	Mark
	Epoch int64
	Since time.Time // events whose record has an older timestamp are skipped; zero: none is
}

// Mark is a position in a partition.
type Mark struct {
	Next int64         // the next offset to be read; everything before it is done or parked
	Rule eventlog.Rule // the state of the reader rule before Next
	Time time.Time     // the timestamp of the last record before Next
}

// TakeCheckpoints takes the partitions of start over for the caller and returns their
// checkpoints. It raises the epoch of each, so that its former holder can no longer
// move it. A partition without checkpoint gets one at its offset in start, with since.
// It waits for transactions that are moving one of the checkpoints. It fails if
// tomato.generations does not have the generation, which was dropped then.
func TakeCheckpoints(ctx context.Context, db *pgxpool.Pool, consumer string, generation int, start map[eventlog.TopicPartition]int64, since time.Time) (map[eventlog.TopicPartition]*Checkpoint, error) {
	tps := make([]eventlog.TopicPartition, 0, len(start))
	for tp := range start {
		tps = append(tps, tp)
	}
	// Everybody who locks several rows locks them in the same order, so that there are
	// no deadlocks.
	slices.SortFunc(tps, eventlog.CompareTopicPartitions)
	topics, partitions, offsets := make([]string, len(tps)), make([]int32, len(tps)), make([]int64, len(tps))
	for i, tp := range tps {
		topics[i], partitions[i], offsets[i] = tp.Topic, tp.Partition, start[tp]
	}
	var from *time.Time
	if !since.IsZero() {
		from = &since
	}
	rows, err := db.Query(ctx, `
		INSERT INTO tomato.checkpoints AS c (consumer, generation, topic, partition, next_offset, since, epoch)
		SELECT $1, $2, t, p, o, $6, 1 FROM unnest($3::text[], $4::int[], $5::bigint[]) AS u(t, p, o) ORDER BY t, p
		ON CONFLICT (consumer, generation, topic, partition) DO UPDATE SET epoch = c.epoch + 1
		RETURNING topic, partition, next_offset, term, seq, event_time, since, epoch`,
		consumer, generation, topics, partitions, offsets, from)
	if err != nil {
		return nil, fmt.Errorf("take checkpoints of %s: %w", consumer, err)
	}
	out := make(map[eventlog.TopicPartition]*Checkpoint, len(tps))
	c := Checkpoint{Consumer: consumer, Generation: generation}
	var at, skip *time.Time
	_, err = pgx.ForEachRow(rows, []any{&c.Topic, &c.Partition, &c.Next, &c.Rule.Term, &c.Rule.Seq, &at, &skip, &c.Epoch}, func() error {
		cp := c
		if at != nil {
			cp.Time = *at
		}
		if skip != nil {
			cp.Since = *skip
		}
		out[cp.TopicPartition] = &cp
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("take checkpoints of %s: %w", consumer, err)
	}
	return out, nil
}

// Execer executes a statement: a pool, a connection or a transaction.
type Execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// Move moves the checkpoint in the database to m, or fails with ErrFenced. It does not
// change c: the caller assigns m to c.Mark when the transaction has committed.
func (c *Checkpoint) Move(ctx context.Context, db Execer, m Mark) error {
	tag, err := db.Exec(ctx, `
		UPDATE tomato.checkpoints SET next_offset = $7, term = $8, seq = $9, event_time = $10, updated_at = now()
		WHERE consumer = $1 AND generation = $2 AND topic = $3 AND partition = $4 AND epoch = $5 AND next_offset = $6`,
		c.Consumer, c.Generation, c.Topic, c.Partition, c.Epoch, c.Next, m.Next, m.Rule.Term, m.Rule.Seq, nullTime(m.Time))
	if err != nil {
		return fmt.Errorf("move checkpoint: %w", err)
	}
	if tag.RowsAffected() != 1 {
		return c.fenced()
	}
	return nil
}

// fenced is ErrFenced with the place of the checkpoint.
func (c *Checkpoint) fenced() error {
	return fmt.Errorf("%s, generation %d, %s/%d@%d: %w", c.Consumer, c.Generation, c.Topic, c.Partition, c.Next, ErrFenced)
}

// lock locks the checkpoint, so that nobody else can take it before tx ends. It fails
// with ErrFenced if somebody else has taken it already.
func (c *Checkpoint) lock(ctx context.Context, tx pgx.Tx) error {
	tag, err := tx.Exec(ctx, `
		SELECT 1 FROM tomato.checkpoints
		WHERE consumer = $1 AND generation = $2 AND topic = $3 AND partition = $4 AND epoch = $5 FOR SHARE`,
		c.Consumer, c.Generation, c.Topic, c.Partition, c.Epoch)
	if err != nil {
		return fmt.Errorf("lock checkpoint: %w", err)
	}
	if tag.RowsAffected() != 1 {
		return fmt.Errorf("%s, generation %d, %s/%d: %w", c.Consumer, c.Generation, c.Topic, c.Partition, ErrFenced)
	}
	return nil
}

// querier runs a query: a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// moveAll is Move for many checkpoints of one consumer and generation, in one statement,
// the i-th to to[i]. If it fails with ErrFenced, it has moved those that are not fenced: a
// caller whose moves belong together rolls back.
//
// It locks the rows in the order in which everybody locks several of them (see
// TakeCheckpoints), so it takes part in no deadlock. An UPDATE alone would lock them in
// the order of its plan. A row that was changed while the statement waited for its lock is
// compared again as it is then.
func moveAll(ctx context.Context, db querier, cps []*Checkpoint, to []Mark) error {
	n := len(cps)
	topics, partitions, epochs, olds := make([]string, n), make([]int32, n), make([]int64, n), make([]int64, n)
	nexts, terms, seqs, times := make([]int64, n), make([]int64, n), make([]int64, n), make([]*time.Time, n)
	for i, c := range cps {
		topics[i], partitions[i], epochs[i], olds[i] = c.Topic, c.Partition, c.Epoch, c.Next
		nexts[i], terms[i], seqs[i], times[i] = to[i].Next, to[i].Rule.Term, to[i].Rule.Seq, nullTime(to[i].Time)
	}
	rows, err := db.Query(ctx, `
		WITH mine AS MATERIALIZED (
			SELECT u.* FROM unnest($3::text[], $4::int[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::timestamptz[])
				AS u(topic, partition, epoch, old, next, term, seq, time)
			JOIN tomato.checkpoints c ON c.consumer = $1 AND c.generation = $2 AND c.topic = u.topic AND c.partition = u.partition
				AND c.epoch = u.epoch AND c.next_offset = u.old
			ORDER BY c.topic, c.partition FOR UPDATE OF c)
		UPDATE tomato.checkpoints c SET next_offset = m.next, term = m.term, seq = m.seq, event_time = m.time, updated_at = now()
		FROM mine m WHERE c.consumer = $1 AND c.generation = $2 AND c.topic = m.topic AND c.partition = m.partition
		RETURNING c.topic, c.partition`,
		cps[0].Consumer, cps[0].Generation, topics, partitions, epochs, olds, nexts, terms, seqs, times)
	if err != nil {
		return fmt.Errorf("move checkpoints: %w", err)
	}
	moved := make(map[eventlog.TopicPartition]bool, n)
	var tp eventlog.TopicPartition
	_, err = pgx.ForEachRow(rows, []any{&tp.Topic, &tp.Partition}, func() error {
		moved[tp] = true
		return nil
	})
	if err != nil {
		return fmt.Errorf("move checkpoints: %w", err)
	}
	for _, c := range cps {
		if !moved[c.TopicPartition] {
			return c.fenced()
		}
	}
	return nil
}

func nullTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
