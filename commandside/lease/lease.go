// Package lease lets several instances share the work in a table, so that each
// row is worked on by one instance at a time and none is lost when an instance
// dies.
//
// The table has the columns due_at and attempts. A row is due when its due_at has
// passed. Take sets due_at to the end of a lease, so that no other instance takes the
// row until then. After the work is done, the caller deletes the row or sets another
// due_at. If an instance dies before that, its lease ends, the row is due again, and
// another instance takes it. So the work is done at least once.
package lease

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Table says which rows are shared, and how.
type Table struct {
	Name    string        // with its schema
	Key     []string      // columns of the primary key
	Columns []string      // columns that Take returns, in the order in which scan reads them
	Batch   int           // how many rows one Take takes at most
	For     time.Duration // how long a lease lasts; longer than the work on a batch takes
}

// Take leases at most t.Batch rows that are due at now, and adds 1 to their attempts. It
// prefers the rows that have been due longest. A zero now means the database's clock.
// Take skips rows that another instance is taking at this moment. The returned rows are
// in no particular order.
func Take[Row any](ctx context.Context, db *pgxpool.Pool, t Table, now time.Time, scan pgx.RowToFunc[Row]) ([]Row, error) {
	var at *time.Time
	if !now.IsZero() {
		at = &now
	}
	rows, err := db.Query(ctx, t.takeSQL(), at, t.For, t.Batch)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scan)
}

func (t Table) takeSQL() string {
	var same, returned []string
	for _, c := range t.Key {
		same = append(same, "t."+c+" = due."+c)
	}
	for _, c := range t.Columns {
		returned = append(returned, "t."+c)
	}
	key := strings.Join(t.Key, ", ")
	return fmt.Sprintf(`UPDATE %s t SET due_at = coalesce($1::timestamptz, now()) + $2::interval, attempts = attempts + 1
		FROM (SELECT %s FROM %s WHERE due_at <= coalesce($1::timestamptz, now()) ORDER BY due_at, %s LIMIT $3 FOR UPDATE SKIP LOCKED) due
		WHERE %s RETURNING %s`, t.Name, key, t.Name, key, strings.Join(same, " AND "), strings.Join(returned, ", "))
}

// failurePause is the time between a failed round and the next one.
const failurePause = time.Second

// Loop calls round until ctx ends. It calls round at once, whenever wake receives a
// value, and after the wait that the previous round returned. wake may be nil. After a
// round that failed, Loop waits one second. When several rounds in a row fail, it calls
// failing once, with the error of the first one.
func Loop(ctx context.Context, wake <-chan struct{}, failing func(error), round func(context.Context) (wait time.Duration, err error)) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	failed := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-timer.C:
		}
		wait, err := round(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			if !failed {
				failing(err)
			}
			wait = failurePause
		}
		failed = err != nil
		timer.Reset(wait)
	}
}
