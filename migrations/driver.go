package migrations

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/golang-migrate/migrate/v4/database"
	"github.com/golang-migrate/migrate/v4/source"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"tomato/eventlog/pgerr"
)

// versionTable has one row, which has the version of the schema. Its column dirty is
// always false. It stays because older builds read and write it.
const versionTable = "schema_migrations"

// driver is a database.Driver that applies a file and its version in one
// transaction. The library's own driver commits a dirty flag before the file and
// clears it after the file. If the file failed, or the process ended in between,
// every later start refused to run.
//
// It has one connection, and one goroutine at a time calls it. ctx bounds all calls:
// if it ends during a migration, the transaction is rolled back.
type driver struct {
	ctx    context.Context // a field, because the methods of database.Driver take none
	conn   *pgx.Conn
	lock   string // the number of the advisory lock, which is the one that older builds take
	table  string // quoted
	source source.Driver
	wait   time.Duration // how long a statement waits for a lock, for errors
	tx     pgx.Tx        // of the file that is being applied
	dirty  int           // version of a row that an older build left dirty, or NilVersion
}

func newDriver(ctx context.Context, conn *pgx.Conn, src source.Driver, schema string, wait time.Duration) (*driver, error) {
	// The URL may lack the database's name, and a proxy may have another name for it.
	var name string
	if err := conn.QueryRow(ctx, `SELECT current_database()`).Scan(&name); err != nil {
		return nil, err
	}
	lock, err := database.GenerateAdvisoryLockId(name, schema, versionTable)
	return &driver{ctx: ctx, conn: conn, lock: lock, table: pgx.Identifier{schema, versionTable}.Sanitize(), source: src, wait: wait, dirty: database.NilVersion}, err
}

// Lock waits until no other process migrates this schema. If that takes too long
// (limitLockWaits), the error names the session that does.
func (d *driver) Lock() error {
	_, err := d.conn.Exec(d.ctx, `SELECT pg_advisory_lock($1::text::bigint)`, d.lock)
	if lockTimedOut(err) {
		err = heldUp(d.ctx, d.conn, err, fmt.Sprintf("another session has been migrating this schema for longer than %s", d.wait), advisoryHolders, d.lock)
	}
	return err
}

// Unlock releases the lock. It first rolls back a file that was not finished.
func (d *driver) Unlock() error {
	if d.tx != nil {
		err := d.tx.Rollback(d.ctx)
		d.tx = nil
		if err != nil {
			return errors.Join(err, d.Close()) // the transaction and the lock end with the session
		}
	}
	if d.conn.IsClosed() {
		return nil // the server has released the lock
	}
	_, err := d.conn.Exec(d.ctx, `SELECT pg_advisory_unlock($1::text::bigint)`, d.lock)
	return err
}

// Close ends the session. The server then rolls back an open transaction and
// releases the lock.
func (d *driver) Close() error { return d.conn.Close(context.WithoutCancel(d.ctx)) }

// Version returns the version of the last file that has been applied. It is never
// dirty.
//
// An older build may have left the row dirty. Those builds sent a file as one
// implicit transaction, so either nothing of the file has been applied, because it
// failed or was interrupted, or all of it has and only the clean flag is missing.
// Nearly always it is the first, so Version returns the version of the file before,
// and the file is applied again. In the second case the file then fails, because all
// files of those builds create tables, and the error of Run says what to do.
func (d *driver) Version() (int, bool, error) {
	var version int
	var dirty bool
	err := d.conn.QueryRow(d.ctx, `SELECT version, dirty FROM `+d.table).Scan(&version, &dirty)
	if errors.Is(err, pgx.ErrNoRows) {
		return database.NilVersion, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	r, _, err := d.source.ReadUp(uint(version))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, foreign(version)
	}
	if err != nil {
		return 0, false, err
	}
	if err := r.Close(); err != nil || !dirty {
		return version, false, err
	}
	d.dirty = version
	before, err := d.source.Prev(uint(version))
	if errors.Is(err, fs.ErrNotExist) {
		return database.NilVersion, false, nil
	}
	return int(before), false, err
}

// SetVersion begins the transaction of a file if dirty is true, and otherwise writes
// the version and commits. The library calls it with true before Run and with false
// after Run.
func (d *driver) SetVersion(version int, dirty bool) (err error) {
	if dirty {
		d.tx, err = d.conn.Begin(d.ctx)
		return err
	}
	if d.tx == nil {
		return errors.New("no migration is under way")
	}
	if _, err := d.tx.Exec(d.ctx, `DELETE FROM `+d.table); err != nil {
		return err
	}
	if version != database.NilVersion {
		if _, err := d.tx.Exec(d.ctx, `INSERT INTO `+d.table+` (version, dirty) VALUES ($1, false)`, version); err != nil {
			return err
		}
	}
	if err := d.tx.Commit(d.ctx); err != nil {
		return err
	}
	d.tx, d.dirty = nil, database.NilVersion
	return nil
}

// Run executes a file, which may have any number of statements. It fails if the file
// ends the transaction that SetVersion has begun.
func (d *driver) Run(file io.Reader) error {
	sql, err := io.ReadAll(file)
	if err != nil {
		return err
	}
	_, err = d.tx.Exec(d.ctx, string(sql))
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Position > 0 {
		before := []rune(string(sql))[:pg.Position-1]
		err = fmt.Errorf("line %d: %w", 1+strings.Count(string(before), "\n"), err)
	}
	switch {
	case lockTimedOut(err):
		rerr := d.tx.Rollback(d.ctx)
		d.tx = nil
		if rerr != nil {
			return errors.Join(err, rerr)
		}
		return heldUp(d.ctx, d.conn, err, fmt.Sprintf("a table was in use for longer than %s, and nothing has been changed", d.wait), tableHolders)
	case pgerr.Code(err) == "25001":
		return fmt.Errorf("a file is applied in one transaction, in which such a statement cannot run; CREATE INDEX has to do without CONCURRENTLY: %w", err)
	}
	if err != nil && d.dirty != database.NilVersion {
		return fmt.Errorf(`version %d was marked dirty by an older build, and applying its file again failed: %w. `+
			`If what the file creates is there in full, only the mark is wrong: run "UPDATE %s SET dirty = false" and start again; for the schema tomato, "tomato migrate repair" looks for itself. `+
			`Otherwise remove what stands in the way and start again`, d.dirty, err, d.table)
	}
	if err == nil && d.conn.PgConn().TxStatus() != 'T' {
		return errors.New("the file ends the transaction that it is applied in: it must have no BEGIN, COMMIT or ROLLBACK")
	}
	return err
}

// Open always fails. The library calls it for drivers that it finds by the scheme of
// a URL, and this one is not found that way.
func (d *driver) Open(string) (database.Driver, error) {
	return nil, errors.New("not opened by URL")
}

// Drop always fails, because not everything in the schema tomato can be made from the
// log again.
func (d *driver) Drop() error { return errors.New("not offered") }
