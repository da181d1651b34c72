package migrations

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"tomato/eventlog/pgerr"
)

// LockWait is how long a migration waits for each lock, unless its caller says otherwise.
const LockWait = time.Minute

// limitLockWaits makes statements of the session fail that wait longer for a lock.
func limitLockWaits(ctx context.Context, conn *pgx.Conn, wait time.Duration) error {
	_, err := conn.Exec(ctx, fmt.Sprintf(`SET lock_timeout = %d`, max(wait.Milliseconds(), 1)))
	return err
}

// lockTimedOut reports whether a statement failed because of limitLockWaits.
func lockTimedOut(err error) bool { return pgerr.Code(err) == "55P03" }

// Which sessions hold a lock. The first statement is for an advisory lock; the second is
// for those of tables outside of the system's schemas.
const (
	advisoryHolders = `l.locktype = 'advisory' AND l.objsubid = 1 AND l.classid::bigint = $1::text::bigint >> 32 AND l.objid::bigint = $1::text::bigint & 4294967295`
	tableHolders    = `l.locktype = 'relation' AND l.relation IN (SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname NOT LIKE 'pg\_%' AND n.nspname <> 'information_schema')`
)

// heldUp returns err, which is a lockTimedOut, with the sessions that hold the locks now.
func heldUp(ctx context.Context, conn *pgx.Conn, err error, what, holders string, args ...any) error {
	rows, qerr := conn.Query(ctx, `SELECT DISTINCT a.pid, coalesce(a.application_name, ''), coalesce(a.usename::text, ''), coalesce(host(a.client_addr), 'this machine'), coalesce(a.state, 'unknown')
		FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
		WHERE l.granted AND a.pid <> pg_backend_pid() AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND `+holders+` ORDER BY a.pid`, args...)
	if qerr != nil {
		return fmt.Errorf("%s: %w; who holds it cannot be read: %w", what, err, qerr)
	}
	sessions, qerr := pgx.CollectRows(rows, func(row pgx.CollectableRow) (string, error) {
		var pid int
		var application, user, client, state string
		err := row.Scan(&pid, &application, &user, &client, &state)
		return fmt.Sprintf("pid %d (application_name %q, user %s, from %s, state %s)", pid, application, user, client, state), err
	})
	if qerr != nil {
		return fmt.Errorf("%s: %w; who holds it cannot be read: %w", what, err, qerr)
	}
	if len(sessions) == 0 {
		return fmt.Errorf("%s, but nobody holds it any more: try again: %w", what, err)
	}
	return fmt.Errorf("%s. Held by %s. Wait for it and try again, or end a session with SELECT pg_terminate_backend(pid): %w", what, strings.Join(sessions, ", "), err)
}
