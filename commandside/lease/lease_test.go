package lease_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"tomato/commandside/lease"
	"tomato/migrations/postgrestest"
)

var work = lease.Table{Name: "work", Key: []string{"kind", "id"}, Columns: []string{"id", "attempts"}, Batch: 3, For: time.Hour}

type row struct{ ID, Attempts int }

// newWork makes a table with rows 1 to n; row i became due i minutes before start.
func newWork(t *testing.T, n int) (db *pgxpool.Pool, start time.Time) {
	t.Helper()
	db, err := pgxpool.New(t.Context(), postgrestest.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	if _, err := db.Exec(t.Context(), `CREATE TABLE work (kind text, id integer, due_at timestamptz, attempts integer DEFAULT 0, PRIMARY KEY (kind, id))`); err != nil {
		t.Fatal(err)
	}
	start = time.Now()
	for i := 1; i <= n; i++ {
		if _, err := db.Exec(t.Context(), `INSERT INTO work (kind, id, due_at) VALUES ('k', $1, $2)`, i, start.Add(-time.Duration(i)*time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	return db, start
}

func take(t *testing.T, db *pgxpool.Pool, now time.Time) (ids []int, attempts int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // without a limit, waiting for another instance's lock would never end
	defer cancel()
	rows, err := lease.Take(ctx, db, work, now, pgx.RowToStructByPos[row])
	if err != nil {
		t.Error(err)
	}
	for _, r := range rows {
		ids = append(ids, r.ID)
		attempts = max(attempts, r.Attempts)
	}
	slices.Sort(ids)
	return ids, attempts
}

func TestLeasedRowIsTakenAgainOnlyWhenItsLeaseEnds(t *testing.T) {
	t.Parallel()
	db, start := newWork(t, 4)
	if ids, _ := take(t, db, start.Add(-3*time.Minute)); !slices.Equal(ids, []int{3, 4}) {
		t.Errorf("three minutes ago %v were due, want 3 and 4", ids)
	}
	if ids, attempts := take(t, db, start); !slices.Equal(ids, []int{1, 2}) || attempts != 1 {
		t.Errorf("took %v (attempts %d), want the two that are not leased", ids, attempts)
	}
	if ids, _ := take(t, db, time.Time{}); ids != nil {
		t.Errorf("took %v by the database's clock while all are leased", ids)
	}
	// All leases have ended by then. A batch has three rows, those that have been due
	// longest.
	if ids, attempts := take(t, db, start.Add(time.Hour+time.Minute)); len(ids) != 3 || !slices.Contains(ids, 3) || !slices.Contains(ids, 4) || attempts != 2 {
		t.Errorf("took %v (attempts %d) after the leases' end, want three with 3 and 4 among them", ids, attempts)
	}
}

func TestInstancesTakeDifferentRowsWithoutWaitingForEachOther(t *testing.T) {
	t.Parallel()
	db, start := newWork(t, 5)
	// Another instance is taking row 5, which has been due longest, and has not
	// committed yet.
	other, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Rollback(context.WithoutCancel(t.Context()))
	if _, err := other.Exec(t.Context(), `UPDATE work SET attempts = 1 WHERE id = 5`); err != nil {
		t.Fatal(err)
	}
	if ids, _ := take(t, db, start); !slices.Equal(ids, []int{2, 3, 4}) {
		t.Errorf("took %v beside it, want the three next in line", ids)
	}
	if err := other.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var all []int
	var takers sync.WaitGroup
	for range 4 {
		takers.Go(func() {
			ids, _ := take(t, db, time.Time{})
			mu.Lock()
			defer mu.Unlock()
			all = append(all, ids...)
		})
	}
	takers.Wait()
	slices.Sort(all)
	if !slices.Equal(all, []int{1, 5}) {
		t.Errorf("four at once took %v, want 1 and 5, each once", all)
	}
}

func TestLoopWakesReportsTheFirstFailureAndEnds(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	wake := make(chan struct{}, 1)
	failure := errors.New("no database")
	var reported []error
	rounds := 0
	lease.Loop(ctx, wake, func(err error) { reported = append(reported, err) }, func(context.Context) (time.Duration, error) {
		rounds++
		switch rounds {
		case 1: // at once
			return 0, nil
		case 2, 3: // after no wait, then woken
			wake <- struct{}{}
			return time.Hour, failure
		case 4:
			wake <- struct{}{}
			return time.Hour, nil
		case 5:
			wake <- struct{}{}
			return time.Hour, failure
		}
		cancel()
		return 0, nil
	})
	if rounds != 6 || len(reported) != 2 || reported[0] != failure || reported[1] != failure {
		t.Errorf("%d rounds, reported %v; want 6, and the first of each two series of failures", rounds, reported)
	}
}
