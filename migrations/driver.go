package migrations

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/golang-migrate/migrate/v4/database"
	"github.com/golang-migrate/migrate/v4/source"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// versionTable has one row: the version of the schema. Its column dirty is
// always false; it stays because older builds read and write it.
const versionTable = "schema_migrations"

// driver is a database.Driver for which a file and its version are one
// transaction. The library's own driver commits a dirty flag before the file
// and the clean one after it: whatever ended the process in between, or a file
// that failed, made every later start refuse.
//
// All calls come from one goroutine at a time, on one connection. ctx bounds
// all of them: where it ends in mid-migration, the transaction is rolled back.
type driver struct {
	ctx    context.Context // the interface's methods take none
	conn   *pgx.Conn
	lock   string // number of the advisory lock, the one that older builds take
	table  string // quoted
	source source.Driver
	tx     pgx.Tx // of the file that is being applied
	dirty  int    // version of a row that an older build left dirty, or NilVersion
}

func newDriver(ctx context.Context, conn *pgx.Conn, src source.Driver, schema string) (*driver, error) {
	var name string // which the URL may lack, or a proxy may call otherwise
	if err := conn.QueryRow(ctx, `SELECT current_database()`).Scan(&name); err != nil {
		return nil, err
	}
	lock, err := database.GenerateAdvisoryLockId(name, schema, versionTable)
	return &driver{ctx: ctx, conn: conn, lock: lock, table: pgx.Identifier{schema, versionTable}.Sanitize(), source: src, dirty: database.NilVersion}, err
}

// Lock waits until no other process migrates this schema.
func (d *driver) Lock() error {
	_, err := d.conn.Exec(d.ctx, `SELECT pg_advisory_lock($1::text::bigint)`, d.lock)
	return err
}

// Unlock also rolls back a file that was not finished.
func (d *driver) Unlock() error {
	if d.tx != nil {
		err := d.tx.Rollback(d.ctx)
		d.tx = nil
		if err != nil {
			return errors.Join(err, d.Close()) // both end with the session
		}
	}
	if d.conn.IsClosed() {
		return nil // the server has released the lock
	}
	_, err := d.conn.Exec(d.ctx, `SELECT pg_advisory_unlock($1::text::bigint)`, d.lock)
	return err
}

// Close ends the session: the server rolls back what is open and releases the
// lock.
func (d *driver) Close() error { return d.conn.Close(context.WithoutCancel(d.ctx)) }

// Version returns the version whose file, and all before it, are applied. It
// is never dirty.
//
// A row that an older build left dirty names a file that was sent as one
// implicit transaction: either nothing of it is there, because it failed or was
// interrupted, or all of it is and only the clean flag is missing. The first is
// what happens, so the version is that of the file before it and the file is
// applied again; in the second case it fails, as all files of those builds
// create tables, and Run says what to do.
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
		return 0, false, fmt.Errorf("the database is at version %d, which this build does not have: start a build that has it", version)
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

// SetVersion begins the transaction of a file (dirty), and ends it: the library
// calls it before and after Run.
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

// Run executes a file, which may be any number of statements.
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
	if err != nil && d.dirty != database.NilVersion {
		return fmt.Errorf(`version %d was marked dirty by an older build, and applying its file again failed: %w. `+
			`If what the file creates is there in full, only the mark is wrong: run "UPDATE %s SET dirty = false" and start again. `+
			`Otherwise remove what stands in the way and start again`, d.dirty, err, d.table)
	}
	if err == nil && d.conn.PgConn().TxStatus() != 'T' {
		return errors.New("the file ends the transaction that it is applied in: it must have no BEGIN, COMMIT or ROLLBACK")
	}
	return err
}

// Open is for drivers that are looked up by a URL's scheme; this one is not.
func (d *driver) Open(string) (database.Driver, error) {
	return nil, errors.New("not opened by URL")
}

// Drop is not offered: the log is the truth, but not everything in the schema
// tomato can be made from it.
func (d *driver) Drop() error { return errors.New("not offered") }
