package migrations_test

import (
	"fmt"
	"io/fs"
	"path"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"

	"tomato/migrations"
	"tomato/migrations/postgrestest"
)

// statements returns where each statement of a file ends.
func statements(sql string) (ends []int) {
	for i := 0; i < len(sql); i++ {
		rest := sql[i:]
		switch {
		case strings.HasPrefix(rest, "--"):
			i += strings.IndexByte(rest+"\n", '\n')
		case rest[0] == '\'':
			i += 1 + strings.IndexByte(rest[1:], '\'')
		case rest[0] == ';':
			ends = append(ends, i+1)
		}
	}
	return ends
}

// upFiles returns the names of the files that make the schema, in their order.
func upFiles(t *testing.T, folder string) (names []string) {
	t.Helper()
	names, err := fs.Glob(migrations.Files, folder+"/*.up.sql")
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	return names
}

// rowsBefore are rows that a file has to change, which are there before it is applied.
var rowsBefore = map[string]string{
	"core/000030_generations.up.sql": `
		INSERT INTO tomato.generations (model, generation, state, created_at) VALUES ('orders', 1, 'live', '2026-01-01'), ('orders', 2, 'filling', '2026-01-01');
		INSERT INTO tomato.read_models VALUES ('orders', 1, 2);
		INSERT INTO tomato.checkpoints (consumer, generation, topic, partition, next_offset, updated_at)
			VALUES ('orders', 1, 'orders', 0, 5, '2026-01-01'), ('orders', 7, 'orders', 0, 5, '2026-01-01'), ('dispatch', 0, 'orders', 0, 5, '2026-01-01')`,
}

// After every statement of every file the session is ended, as if the process or the
// connection had died there. Nothing of the file is left then, and the next start applies
// it. In the end everything is as if nothing had happened.
func TestAMigrationMayDieAfterEachStatement(t *testing.T) {
	t.Parallel()
	for folder, schema := range map[string]string{"core": "tomato", "orders": "orders_g1", "payments": "payments_g1", "restaurants": "restaurants_g1", "riders": "riders_g1"} {
		t.Run(folder, func(t *testing.T) {
			t.Parallel()
			db, undisturbed := postgrestest.New(t), postgrestest.New(t)
			url, calm := db.Config().ConnString(), undisturbed.Config().ConnString()
			have := fstest.MapFS{} // the files before the present one
			for _, name := range upFiles(t, folder) {
				b, err := fs.ReadFile(migrations.Files, name)
				if err != nil {
					t.Fatal(err)
				}
				if rows := rowsBefore[name]; rows != "" {
					exec(t, db, rows)
					exec(t, undisturbed, rows)
				}
				sql, ends := string(b), statements(string(b))
				countStatements(t, calm, schema, have, folder, sql, len(ends))
				before := postgrestest.Dump(t, url)
				for k, end := range ends {
					have[name] = &fstest.MapFile{Data: []byte(sql[:end] + "\nSELECT pg_terminate_backend(pg_backend_pid());" + sql[end:])}
					if err := migrations.Apply(t.Context(), url, schema, have, folder); err == nil || !strings.Contains(err.Error(), "57P01") {
						t.Fatalf("%s was to die after statement %d: %v", path.Base(name), k+1, err)
					}
					after := postgrestest.Dump(t, url)
					if len(have) == 1 && k == 0 { // the schema and the table of its version are there, and nothing else
						var rows, relations int
						if err := db.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM `+schema+`.schema_migrations), (SELECT count(*) FROM pg_class WHERE relnamespace = '`+schema+`'::regnamespace)`).Scan(&rows, &relations); err != nil {
							t.Fatal(err)
						}
						if rows != 0 || relations != 2 {
							t.Fatalf("%s died, and left %d versions and %d tables and indexes", path.Base(name), rows, relations)
						}
						before = after
					}
					if after != before {
						t.Fatalf("%s died after statement %d, and something of it is left:\n%s", path.Base(name), k+1, after)
					}
				}
				have[name] = &fstest.MapFile{Data: b}
				for _, u := range []string{url, calm} {
					if err := migrations.Apply(t.Context(), u, schema, have, folder); err != nil {
						t.Fatalf("the next start: %v", err)
					}
				}
				if got, want := postgrestest.Dump(t, url), postgrestest.Dump(t, calm); got != want {
					t.Fatalf("after %s the database is not as if nothing had happened:\n%s\nwant:\n%s", path.Base(name), got, want)
				}
			}
		})
	}
}

// countStatements checks with Postgres that a file has n statements. It applies the file
// and rolls it back.
func countStatements(t *testing.T, url, schema string, before fstest.MapFS, folder, sql string, n int) {
	t.Helper()
	if len(before) == 0 { // so that the schema is there
		before = fstest.MapFS{folder + "/000000_nothing.up.sql": {Data: []byte("SELECT 1;")}}
		if err := migrations.Apply(t.Context(), url, schema+"_counted", before, folder); err != nil {
			t.Fatal(err)
		}
		schema += "_counted"
	}
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), `BEGIN; SET LOCAL search_path TO `+schema+`, public`); err != nil {
		t.Fatal(err)
	}
	results, err := conn.PgConn().Exec(t.Context(), sql).ReadAll()
	if err != nil || len(results) != n {
		t.Fatalf("Postgres finds %d statements, this test %d (%v)", len(results), n, err)
	}
	if _, err := conn.Exec(t.Context(), `ROLLBACK; DROP SCHEMA IF EXISTS `+strings.TrimSuffix(schema, "_counted")+`_counted CASCADE`); err != nil {
		t.Fatal(err)
	}
}

func TestAStatementThatCannotRunInATransactionIsRefused(t *testing.T) {
	t.Parallel()
	db := postgrestest.New(t)
	err := migrations.Apply(t.Context(), db.Config().ConnString(), "s", steps("CREATE INDEX CONCURRENTLY ran_step ON ran (step);"), "steps")
	if err == nil || !strings.Contains(err.Error(), "without CONCURRENTLY") {
		t.Fatal(err)
	}
	if got := ran(t, db); got != "1; at 1 false" {
		t.Fatal(got)
	}
}

// Somebody holds a lock that a migration needs. The wait ends, and the error says who it
// is. When the lock is free, the next start goes on.
func TestAWaitForALockEndsAndNamesTheHolder(t *testing.T) {
	t.Parallel()
	for name, hold := range map[string]string{
		"the lock for schemas": fmt.Sprintf(`SELECT pg_advisory_xact_lock(%d)`, migrations.SetupLock),
		"a table":              `LOCK TABLE public.needed IN ACCESS EXCLUSIVE MODE`,
		"the migration":        "",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := postgrestest.New(t)
			url := db.Config().ConnString()
			exec(t, db, `CREATE TABLE public.needed (id int)`)
			conn, err := pgx.Connect(t.Context(), url)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(t.Context())
			if _, err := conn.Exec(t.Context(), `SET application_name = 'the-holder'`); err != nil {
				t.Fatal(err)
			}
			files, release := steps(second), func() {}
			if name == "the migration" { // a real one, which waits in its file
				if _, err := conn.Exec(t.Context(), `BEGIN; LOCK TABLE public.needed`); err != nil {
					t.Fatal(err)
				}
				done := make(chan error, 1)
				go func() { done <- migrations.Apply(t.Context(), url, "s", files, "steps") }()
				for waiting, tick := 0, time.NewTicker(5*time.Millisecond); waiting == 0; <-tick.C {
					if err := db.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'tomato-migrate' AND wait_event_type = 'Lock'`).Scan(&waiting); err != nil {
						t.Fatal(err)
					}
				}
				release = func() {
					if err := <-done; err != nil {
						t.Error(err)
					}
				}
			} else if _, err := conn.Exec(t.Context(), `BEGIN; `+hold); err != nil {
				t.Fatal(err)
			}
			err = migrations.ApplyWithin(t.Context(), url, "s", files, "steps", 200*time.Millisecond)
			want := fmt.Sprintf("pid %d (application_name %q", conn.PgConn().PID(), "the-holder")
			if name == "the migration" {
				want = `(application_name "tomato-migrate"`
			}
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "pg_terminate_backend") {
				t.Fatalf("the error does not name who holds the lock: %v", err)
			}
			if _, err := conn.Exec(t.Context(), `ROLLBACK`); err != nil {
				t.Fatal(err)
			}
			release()
			if err := migrations.Apply(t.Context(), url, "s", files, "steps"); err != nil {
				t.Fatal(err)
			}
			if got := ran(t, db); got != complete {
				t.Fatal(got)
			}
		})
	}
}
