package projections

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
)

// ErrRunning means that another process is rebuilding the read model or dropping
// one of its generations.
var ErrRunning = errors.New("a rebuild of this read model is running")

// lock is the lock of a read model, under which one process at a time makes and drops
// generations. It ends with the process, and with its session in the database. It is
// not safe for concurrent use.
type lock struct {
	m     *ReadModels
	model string
	conn  *pgx.Conn
}

// lock takes the lock of the read model. Without wait it fails with ErrRunning if
// another process has the lock.
func (m *ReadModels) lock(ctx context.Context, model string, wait bool) (*lock, error) {
	l := &lock{m: m, model: model}
	return l, l.take(ctx, wait)
}

func (l *lock) take(ctx context.Context, wait bool) error {
	// The lock has a connection of its own. If it took one of the pool, a rebuild
	// would hold that one while its own workers wait for connections.
	conn, err := l.m.connect(ctx)
	if err != nil {
		return err
	}
	l.conn = conn
	name, got := "tomato read model "+l.model, true
	if wait {
		_, err = conn.Exec(ctx, `SELECT pg_advisory_lock(hashtextextended($1, 0))`, name)
	} else {
		err = conn.QueryRow(ctx, `SELECT pg_try_advisory_lock(hashtextextended($1, 0))`, name).Scan(&got)
	}
	if err == nil && !got {
		err = ErrRunning
	}
	if err != nil {
		l.unlock()
	}
	return err
}

// unboundedSQL lifts the limits of time that a database or a role may set for all its
// sessions, for the present transaction or, if its argument is false, for the session. A
// rebuild has statements that take long, and sessions that wait for others.
const unboundedSQL = `SELECT set_config(name, '0', $1) FROM pg_settings
	WHERE name IN ('statement_timeout', 'transaction_timeout', 'idle_session_timeout', 'idle_in_transaction_session_timeout')`

// connect opens a connection of its own, which has no limits of time.
func (m *ReadModels) connect(ctx context.Context) (*pgx.Conn, error) {
	conn, err := pgx.ConnectConfig(ctx, m.DB.Config().ConnConfig)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Exec(ctx, unboundedSQL, false); err != nil {
		_ = conn.Close(context.WithoutCancel(ctx))
		return nil, err
	}
	return conn, nil
}

// unbounded runs fn in a transaction that has no limits of time.
func (m *ReadModels) unbounded(ctx context.Context, fn func(tx pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, m.DB, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, unboundedSQL, true); err != nil {
			return err
		}
		return fn(tx)
	})
}

// hold takes the lock again if its session has ended, as when the database was
// restarted. It fails with ErrRunning if another process has taken the lock meanwhile.
func (l *lock) hold(ctx context.Context) error {
	if l.conn.Ping(ctx) == nil {
		return nil
	}
	l.unlock()
	return l.take(ctx, false)
}

// unlock releases the lock.
func (l *lock) unlock() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	// The lock goes with the session, but the session ends a little after Close.
	_, _ = l.conn.Exec(ctx, `SELECT pg_advisory_unlock_all()`)
	_ = l.conn.Close(ctx)
}
