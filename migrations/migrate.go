// Package migrations has the SQL of the database and applies it. The folder core is
// for the schema tomato, which has the tables that all parts share, such as
// checkpoints and parked events. The other folders are for the read models: each
// generation of a read model has a schema of its own, made from the folder with the
// read model's name.
//
// The files, in reading order:
//
//	migrate.go  brings a schema up to date
//	driver.go   applies a file and its version in one transaction
//	locks.go    bounds waits for locks, and says who holds one
//	status.go   how far a schema is, and what is missing
//	repair.go   a version that does not say what is there
package migrations

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"regexp"
	"strconv"
	"time"

	"github.com/golang-migrate/migrate/v4"
	"github.com/golang-migrate/migrate/v4/source/iofs"
	"github.com/jackc/pgx/v5"
)

//go:embed */*.sql
var files embed.FS

// coreSchema has all tables that do not belong to a read model.
const coreSchema = "tomato"

// setupLock is the advisory lock under which schemas and the extension are created.
// Without it, CREATE … IF NOT EXISTS by two sessions at once can fail in one of them.
const setupLock = 0x746f6d61746f

var validName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}$`)

// Core is CoreWithin with LockWait.
func Core(ctx context.Context, databaseURL string) error {
	return CoreWithin(ctx, databaseURL, LockWait)
}

// CoreWithin brings the schema tomato up to date and creates the extension PostGIS in the
// schema public. Several processes may call it at once: one migrates and the others
// wait. It waits at most wait for each lock; the error then names the sessions that hold
// it. ctx bounds the whole call. Each file is applied in one transaction with its
// version. A file that failed or was interrupted therefore has no effect, and the
// next call applies it again.
func CoreWithin(ctx context.Context, databaseURL string, wait time.Duration) error {
	return applyWithin(ctx, databaseURL, coreSchema, files, "core", wait)
}

// ReadModel brings one generation of a read model up to date: it applies the files of
// the folder model to schema, which it creates if it does not exist. The names in
// the files are unqualified; those of PostGIS are found in public. It is as safe to
// repeat and to call at once as Core is. It fails if there is no such folder, or if
// schema or model is not a lower-case SQL name.
func ReadModel(ctx context.Context, databaseURL, schema, model string) error {
	if !validName.MatchString(schema) || !validName.MatchString(model) {
		return fmt.Errorf("migrations: %q and %q must be lower-case SQL names", schema, model)
	}
	return apply(ctx, databaseURL, schema, files, model)
}

func apply(ctx context.Context, databaseURL, schema string, files fs.FS, folder string) error {
	return applyWithin(ctx, databaseURL, schema, files, folder, LockWait)
}

func applyWithin(ctx context.Context, databaseURL, schema string, files fs.FS, folder string, wait time.Duration) error {
	if _, err := fs.Stat(files, folder); err != nil {
		return fmt.Errorf("migrations: no folder %s", folder)
	}
	err := within(ctx, databaseURL, schema, wait, func(conn *pgx.Conn) error { return up(ctx, conn, schema, files, folder, wait) })
	if err != nil {
		return fmt.Errorf("migrations: %s to schema %s: %w", folder, schema, err)
	}
	return nil
}

// within calls do with a connection of its own, in which unqualified names are those of
// schema and public, and which waits at most wait for each lock.
func within(ctx context.Context, databaseURL, schema string, wait time.Duration, do func(*pgx.Conn) error) error {
	config, err := pgx.ParseConfig(databaseURL)
	if err != nil {
		return fmt.Errorf("migrations: %w", err)
	}
	config.RuntimeParams["application_name"] = "tomato-migrate"
	config.RuntimeParams["search_path"] = pgx.Identifier{schema}.Sanitize() + ",public"
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return fmt.Errorf("migrations: %w", err)
	}
	if err = limitLockWaits(ctx, conn, wait); err == nil {
		err = do(conn)
	}
	return errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
}

func up(ctx context.Context, conn *pgx.Conn, schema string, files fs.FS, folder string, wait time.Duration) error {
	if err := prepare(ctx, conn, schema); err != nil {
		return fmt.Errorf("preparing: %w", err)
	}
	src, err := iofs.New(files, folder)
	if err != nil {
		return err
	}
	driver, err := newDriver(ctx, conn, src, schema, wait)
	if err != nil {
		return errors.Join(err, src.Close())
	}
	m, err := migrate.NewWithInstance("iofs", src, "pgx", driver)
	if err != nil {
		return errors.Join(err, src.Close())
	}
	m.LockTimeout = math.MaxInt64 // Postgres bounds the wait for the lock, see limitLockWaits
	err = m.Up()
	if errors.Is(err, migrate.ErrNoChange) {
		err = nil
	}
	serr, derr := m.Close()
	return errors.Join(err, serr, derr)
}

// prepare creates the schema, its table of the version, and the extension.
func prepare(ctx context.Context, conn *pgx.Conn, schema string) error {
	if _, err := conn.Exec(ctx, `SELECT pg_advisory_lock($1)`, int64(setupLock)); lockTimedOut(err) {
		return heldUp(ctx, conn, err, "the lock for creating schemas was not free in time", advisoryHolders, strconv.Itoa(setupLock))
	} else if err != nil {
		return err
	}
	_, err := conn.Exec(ctx, `CREATE SCHEMA IF NOT EXISTS `+pgx.Identifier{schema}.Sanitize()+`;
		CREATE TABLE IF NOT EXISTS `+pgx.Identifier{schema, versionTable}.Sanitize()+` (version bigint NOT NULL PRIMARY KEY, dirty boolean NOT NULL);
		CREATE EXTENSION IF NOT EXISTS postgis SCHEMA public`)
	if err != nil {
		return err // the caller ends the session, and with it the lock
	}
	_, err = conn.Exec(ctx, `SELECT pg_advisory_unlock($1)`, int64(setupLock))
	return err
}
