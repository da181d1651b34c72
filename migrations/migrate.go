// Package migrations holds the SQL of the database and applies it. The schema
// tomato is for what all parts share (checkpoints, parked records); a read
// model has a schema per generation, made from the folder of its name.
package migrations

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"regexp"

	"github.com/golang-migrate/migrate/v4"
	migratepgx "github.com/golang-migrate/migrate/v4/database/pgx/v5"
	"github.com/golang-migrate/migrate/v4/source/iofs"
	"github.com/jackc/pgx/v5"
)

//go:embed */*.sql
var files embed.FS

// coreSchema is where everything lives that is not a read model's.
const coreSchema = "tomato"

// setupLock is the advisory lock under which schemas and the extension are
// made: CREATE … IF NOT EXISTS by two sessions at once can fail in one of them.
const setupLock = 0x746f6d61746f

var validName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}$`)

// Core brings the schema tomato up to date and sees to PostGIS (in public).
// Several processes may call it at once: one migrates, the others wait. ctx
// bounds the waiting for the lock and the preparation; a migration that has
// begun is finished.
func Core(ctx context.Context, databaseURL string) error {
	return apply(ctx, databaseURL, coreSchema, "core")
}

// ReadModel brings one generation of a read model up to date: it applies the
// files of the folder model to schema, which it creates if need be. Names in
// the files are unqualified; PostGIS is found in public. As safe as Core.
func ReadModel(ctx context.Context, databaseURL, schema, model string) error {
	if !validName.MatchString(schema) || !validName.MatchString(model) {
		return fmt.Errorf("migrations: %q and %q must be lower-case SQL names", schema, model)
	}
	return apply(ctx, databaseURL, schema, model)
}

func apply(ctx context.Context, databaseURL, schema, folder string) error {
	if _, err := fs.Stat(files, folder); err != nil {
		return fmt.Errorf("migrations: no folder %s", folder)
	}
	if err := prepare(ctx, databaseURL, schema); err != nil {
		return fmt.Errorf("migrations: prepare schema %s: %w", schema, err)
	}
	u, err := url.Parse(databaseURL)
	if err != nil {
		return errors.New("migrations: the database URL is not a URL") // its text holds a password
	}
	q := u.Query()
	q.Set("search_path", schema+",public")
	u.RawQuery = q.Encode()
	db, err := sql.Open("pgx/v5", u.String())
	if err != nil {
		return fmt.Errorf("migrations: %w", err)
	}
	driver, err := migratepgx.WithInstance(db, &migratepgx.Config{SchemaName: schema})
	if err != nil {
		return errors.Join(fmt.Errorf("migrations: %s: %w", folder, err), db.Close())
	}
	src, err := iofs.New(files, folder)
	if err != nil {
		return errors.Join(fmt.Errorf("migrations: %s: %w", folder, err), driver.Close())
	}
	m, err := migrate.NewWithInstance("iofs", src, "pgx5", driver)
	if err != nil {
		return errors.Join(fmt.Errorf("migrations: %s: %w", folder, err), driver.Close())
	}
	stop := context.AfterFunc(ctx, func() { m.GracefulStop <- true })
	defer stop()
	err = m.Up()
	if errors.Is(err, migrate.ErrNoChange) {
		err = nil
	}
	serr, derr := m.Close()
	if err := errors.Join(err, serr, derr); err != nil {
		return fmt.Errorf("migrations: %s to schema %s: %w", folder, schema, err)
	}
	return ctx.Err()
}

// prepare makes the schema and the extension.
func prepare(ctx context.Context, databaseURL, schema string) (err error) {
	conn, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	if _, err := conn.Exec(ctx, `SELECT pg_advisory_lock($1)`, int64(setupLock)); err != nil {
		return err
	}
	// The lock ends with the session.
	_, err = conn.Exec(ctx, `CREATE SCHEMA IF NOT EXISTS `+pgx.Identifier{schema}.Sanitize()+`;
		CREATE EXTENSION IF NOT EXISTS postgis SCHEMA public`)
	return err
}
