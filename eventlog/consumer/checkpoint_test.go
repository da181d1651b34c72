package consumer_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/migrations"
	"tomato/migrations/postgrestest"
)

// several are three checkpoints of one consumer at offset 10. They are neither returned
// nor stored in the order in which they are locked.
func several(t *testing.T) (db *pgxpool.Pool, tps []eventlog.TopicPartition, cps []*consumer.Checkpoint) {
	t.Helper()
	db = postgrestest.New(t)
	if err := migrations.Core(t.Context(), db.Config().ConnString()); err != nil {
		t.Fatal(err)
	}
	tps = []eventlog.TopicPartition{{Topic: eventlog.Payments, Partition: 1}, {Topic: eventlog.Orders, Partition: 1}, {Topic: eventlog.Orders, Partition: 0}}
	for _, tp := range tps {
		cps = append(cps, takeAll(t, db, tp)...)
	}
	return db, tps, cps
}

func takeAll(t *testing.T, db *pgxpool.Pool, tps ...eventlog.TopicPartition) (cps []*consumer.Checkpoint) {
	t.Helper()
	start := map[eventlog.TopicPartition]int64{}
	for _, tp := range tps {
		start[tp] = 10
	}
	taken, err := consumer.TakeCheckpoints(t.Context(), db, "several", 0, start, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	for _, tp := range tps {
		cps = append(cps, taken[tp])
	}
	return cps
}

func marksTo(next ...int64) (to []consumer.Mark) {
	for _, n := range next {
		to = append(to, consumer.Mark{Next: n, Rule: eventlog.Rule{Term: n + 100, Seq: n + 200}, Time: time.UnixMilli(n)})
	}
	return to
}

func moveAll(t *testing.T, db *pgxpool.Pool, cps []*consumer.Checkpoint, to []consumer.Mark) error {
	t.Helper()
	return pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error { return consumer.MoveAll(t.Context(), tx, cps, to) })
}

// Several checkpoints are moved together: each to its own mark.
func TestSeveralCheckpointsMoveInOneStatement(t *testing.T) {
	t.Parallel()
	db, tps, cps := several(t)
	to := marksTo(11, 12, 13)
	if err := moveAll(t, db, cps, to); err != nil {
		t.Fatal(err)
	}
	for i, cp := range takeAll(t, db, tps...) {
		if got, want := cp.Mark, to[i]; got.Next != want.Next || got.Rule != want.Rule || !got.Time.Equal(want.Time) {
			t.Errorf("%v is at %+v, want %+v", tps[i], got, want)
		}
	}
}

// If one of several checkpoints is not as its holder has left it, none is moved.
func TestNoneOfSeveralCheckpointsMovesIfOneIsFenced(t *testing.T) {
	t.Parallel()
	for name, fence := range map[string]func(t *testing.T, db *pgxpool.Pool, tp eventlog.TopicPartition, cp *consumer.Checkpoint){
		"another holder": func(t *testing.T, db *pgxpool.Pool, tp eventlog.TopicPartition, _ *consumer.Checkpoint) {
			takeAll(t, db, tp)
		},
		"another position": func(_ *testing.T, _ *pgxpool.Pool, _ eventlog.TopicPartition, cp *consumer.Checkpoint) { cp.Next = 9 },
	} {
		for i := range 3 {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				db, tps, cps := several(t)
				fence(t, db, tps[i], cps[i])
				if err := moveAll(t, db, cps, marksTo(11, 12, 13)); !errors.Is(err, consumer.ErrFenced) {
					t.Fatalf("the move: %v", err)
				}
				for i, cp := range takeAll(t, db, tps...) {
					if cp.Next != 10 {
						t.Errorf("%v was moved to %d", tps[i], cp.Next)
					}
				}
			})
		}
	}
}

// Whoever moves several checkpoints waits for the first one before it locks the others,
// and sees that somebody else has taken it meanwhile.
func TestSeveralCheckpointsAreLockedInOneOrder(t *testing.T) {
	t.Parallel()
	db, tps, cps := several(t)
	lock := func(ctx context.Context, tx pgx.Tx, tp eventlog.TopicPartition, how string) error {
		_, err := tx.Exec(ctx, `SELECT FROM tomato.checkpoints WHERE consumer = 'several' AND topic = $1 AND partition = $2 FOR UPDATE `+how, tp.Topic, tp.Partition)
		return err
	}
	moved := make(chan error, 1)
	err := pgx.BeginFunc(t.Context(), db, func(other pgx.Tx) error {
		if _, err := other.Exec(t.Context(), `UPDATE tomato.checkpoints SET epoch = epoch + 1 WHERE topic = $1 AND partition = $2`, tps[2].Topic, tps[2].Partition); err != nil {
			return err
		}
		go func() {
			moved <- pgx.BeginFunc(context.WithoutCancel(t.Context()), db, func(tx pgx.Tx) error {
				// The plan finds the rows in the order in which they are stored.
				if _, err := tx.Exec(context.WithoutCancel(t.Context()), `SET LOCAL enable_indexscan = off; SET LOCAL enable_bitmapscan = off`); err != nil {
					return err
				}
				return consumer.MoveAll(context.WithoutCancel(t.Context()), tx, cps, marksTo(11, 12, 13))
			})
		}()
		eventually(t, "the move waits", func() bool {
			var waits bool
			err := db.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')`).Scan(&waits)
			return err == nil && waits
		})
		for _, tp := range tps[:2] {
			if err := pgx.BeginFunc(t.Context(), db, func(third pgx.Tx) error { return lock(t.Context(), third, tp, "NOWAIT") }); err != nil {
				t.Errorf("%v is locked before the first one: %v", tp, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-moved; !errors.Is(err, consumer.ErrFenced) {
		t.Errorf("the move: %v", err)
	}
}
