package migrations

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/golang-migrate/migrate/v4/source"
	"github.com/golang-migrate/migrate/v4/source/iofs"
	"github.com/jackc/pgx/v5"

	"tomato/eventlog/pgerr"
)

// Schema is how far the files of one folder are applied to a schema.
type Schema struct {
	Name    string   `json:"schema"`
	Version int      `json:"version"` // of the last file that has been applied; 0: none
	Before  int      `json:"-"`       // the version of the file before that one; 0: none
	Newest  int      `json:"newest"`  // of the last file that this build has
	Pending []string `json:"pending"` // the files that have not been applied, in their order
	Dirty   bool     `json:"dirty"`   // an older build, or somebody by hand, has marked the version as incomplete
	Foreign bool     `json:"foreign"` // this build does not have a file of the version: another build has applied it
}

// DB reads rows: a pool, a connection or a transaction.
type DB interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// CoreSchema reads how far the schema tomato is. It changes nothing.
func CoreSchema(ctx context.Context, db DB) (Schema, error) {
	return readSchema(ctx, db, coreSchema, files, "core")
}

// ReadModelSchema reads how far the schema of a generation of the read model is. It
// changes nothing.
func ReadModelSchema(ctx context.Context, db DB, schema, model string) (Schema, error) {
	return readSchema(ctx, db, schema, files, model)
}

func readSchema(ctx context.Context, db DB, schema string, files fs.FS, folder string) (Schema, error) {
	s := Schema{Name: schema, Pending: []string{}}
	applied, err := migrationsIn(files, folder)
	if err != nil {
		return s, err
	}
	var exists bool
	err = db.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2)`,
		schema, versionTable).Scan(&exists)
	if err == nil && exists {
		err = db.QueryRow(ctx, `SELECT coalesce(max(version), 0), coalesce(bool_or(dirty), false) FROM `+pgx.Identifier{schema, versionTable}.Sanitize()).Scan(&s.Version, &s.Dirty)
	}
	if pgerr.Code(err) == "42501" {
		return s, fmt.Errorf("the database user may not read the schema %s: docs/operations.md has the rights that it needs: %w", schema, err)
	}
	if err != nil {
		return s, fmt.Errorf("read the version of schema %s: %w", schema, err)
	}
	s.Newest = int(applied[len(applied)-1].Version)
	s.Foreign = s.Version != 0 && !slices.ContainsFunc(applied, func(m *source.Migration) bool { return int(m.Version) == s.Version })
	for _, m := range applied {
		if int(m.Version) < s.Version {
			s.Before = int(m.Version)
		}
		if int(m.Version) > s.Version || s.Dirty && int(m.Version) == s.Version {
			s.Pending = append(s.Pending, fmt.Sprintf("%06d_%s", m.Version, m.Identifier))
		}
	}
	return s, nil
}

// migrationsIn returns the files that are applied to bring a schema up to date, in their
// order. There is at least one.
func migrationsIn(files fs.FS, folder string) (all []*source.Migration, err error) {
	src, err := iofs.New(files, folder)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	version, err := src.First()
	for ; err == nil; version, err = src.Next(version) {
		r, name, err := src.ReadUp(version)
		if err != nil {
			return nil, err
		}
		if err := r.Close(); err != nil {
			return nil, err
		}
		all = append(all, &source.Migration{Version: version, Identifier: name})
	}
	if !errors.Is(err, fs.ErrNotExist) || len(all) == 0 {
		return nil, fmt.Errorf("the folder %s: %w", folder, err)
	}
	return all, nil
}

// HasPostGIS reports whether the extension is there.
func HasPostGIS(ctx context.Context, db DB) (there bool, err error) {
	err = db.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'postgis')`).Scan(&there)
	return there, err
}

// ErrPending means that the database lacks something that `tomato migrate up` makes.
var ErrPending = errors.New("run `tomato migrate up` as a database user who may create tables, then start again")

// Check fails with ErrPending if Core would have something to do. It changes nothing,
// and needs no more than the rights of a user who may read and write the rows. It fails
// if the user does not have these rights.
func Check(ctx context.Context, db DB) error {
	postgis, err := HasPostGIS(ctx, db)
	if err != nil {
		return err
	}
	s, err := CoreSchema(ctx, db)
	switch {
	case err != nil:
		return err
	case s.Foreign:
		return foreign(s.Version)
	case s.Dirty:
		return fmt.Errorf("the version %d of schema %s is marked as incomplete: run `tomato migrate repair`", s.Version, s.Name)
	case len(s.Pending) > 0:
		return fmt.Errorf("the schema %s is at version %d and lacks %s: %w", s.Name, s.Version, strings.Join(s.Pending, ", "), ErrPending)
	case !postgis:
		return fmt.Errorf("the extension PostGIS is missing in this database: %w", ErrPending)
	}
	return CheckRights(ctx, db, coreSchema, "simulated_gateway")
}

func foreign(version int) error {
	return fmt.Errorf("the database is at version %d, which this build does not have: start a build that has it", version)
}

// CheckRights fails if the user may not read and write the rows of all tables in these
// schemas.
func CheckRights(ctx context.Context, db DB, schemas ...string) error {
	var missing string
	err := db.QueryRow(ctx, `SELECT coalesce(string_agg(DISTINCT n.nspname || '.' || c.relname, ', '), '') FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = ANY ($1) AND c.relkind = 'r' AND c.relname <> $2 AND NOT (has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
			AND has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE'))`, schemas, versionTable).Scan(&missing)
	if err == nil && missing != "" {
		err = fmt.Errorf("the database user may not read and write %s: grant it the rights in docs/operations.md", missing)
	}
	return err
}
