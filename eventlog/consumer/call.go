package consumer

import (
	"context"
	"errors"
	"runtime/debug"
	"strconv"

	"github.com/jackc/pgx/v5"

	"tomato/eventlog"
	"tomato/eventlog/consumer/parked"
	"tomato/eventlog/pgerr"
)

// call calls fn, which calls a handler, with a time limit. A panic becomes an
// error.
func (w *worker) call(fn func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(w.ctx, handlerTimeout)
	defer cancel()
	return w.guard(func() error { return fn(ctx) })
}

// guard makes a panic of fn an error.
func (w *worker) guard(fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			w.log.Error("handler panic", "panic", p, "stack", string(debug.Stack()))
			err = parked.Panic(p)
		}
	}()
	return fn()
}

// ownTx runs fn, which calls no handler, in a transaction as handlerTx does.
func (w *worker) ownTx(fn func(tx pgx.Tx) error) error {
	return ownError(w.handlerTx(w.ctx, fn))
}

// handlerTx runs fn, which may call a handler, in a transaction. Postgres ends the
// transaction by itself if this process is stopped. Errors of fn are returned as
// they are, except that a broken connection is an unavailable Postgres.
func (w *worker) handlerTx(ctx context.Context, fn func(tx pgx.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, handlerTimeout)
	defer cancel()
	begin := "begin; set local idle_in_transaction_session_timeout = " + strconv.Itoa(int(w.g.r.state.idleTx.Milliseconds()))
	if w.g.c.Rows != nil {
		// Handlers of rows find them by key. Postgres keeps the plan of a statement that
		// it made while the table was small, and would scan the whole table, however large
		// it has become, until the table is analysed.
		begin += "; set local enable_seqscan = off"
	}
	tx, err := w.g.db().BeginTx(ctx, pgx.TxOptions{BeginQuery: begin})
	if err != nil {
		return ownError(err)
	}
	// A panic is caught here, inside of the transaction. Otherwise the transaction
	// would stay open, and its connection would never return to the pool.
	err = w.guard(func() error { return fn(tx) })
	if err == nil {
		return ownError(tx.Commit(ctx))
	}
	if tx.Conn().IsClosed() && !errors.Is(err, eventlog.ErrPoison) {
		err = eventlog.UnavailableFrom("postgres", err)
	}
	rctx, rcancel := context.WithTimeout(context.WithoutCancel(ctx), readTimeout)
	defer rcancel()
	_ = tx.Rollback(rctx) // if it fails, the pool closes the connection
	return err
}

// ownError marks an error of the runtime's own work in Postgres. Any error that is
// not an answer of Postgres means that Postgres is unavailable, and so does a
// conflict, because the same work can be repeated.
//
// errRowChanged is an answer. If the answer to a commit was lost, the repeated
// transaction finds that its rows are changed already; if that counted as
// unavailability, it would be repeated for ever.
func ownError(err error) error {
	if err == nil || errors.Is(err, ErrFenced) || errors.Is(err, errRowChanged) || errors.Is(err, eventlog.ErrUnavailable) ||
		pgerr.Code(err) != "" && !pgerr.Unavailable(err) && !pgerr.Conflict(err) {
		return err
	}
	return eventlog.UnavailableFrom("postgres", err)
}

// untilAvailable repeats fn while what it needs is unavailable. It returns the
// result of fn, or errStopped.
func (w *worker) untilAvailable(fn func() error) error {
	var wait dependencyWait
	for {
		err := fn()
		switch {
		case w.ctx.Err() != nil && err != nil:
			wait.abandon()
			return errStopped
		case err == nil || !pgerr.Unavailable(err) && !pgerr.Conflict(err):
			wait.end()
			return err
		}
		if err := wait.forTurn(w, err, noSlot); err != nil {
			wait.abandon()
			return err
		}
	}
}
