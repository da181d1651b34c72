package migrations_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"tomato/migrations"
	"tomato/migrations/postgrestest"

	"github.com/jackc/pgx/v5/pgxpool"
)

// steps returns three files. Each inserts its number into the table ran. The second one
// needs the table that its first statement reads.
func steps(second string) fstest.MapFS {
	return fstest.MapFS{
		"steps/000001_a.up.sql": {Data: []byte("CREATE TABLE ran (step int);\nINSERT INTO ran VALUES (1);")},
		"steps/000020_b.up.sql": {Data: []byte(second)},
		"steps/000030_c.up.sql": {Data: []byte("INSERT INTO ran VALUES (30);")},
	}
}

const second = "CREATE TABLE b (id int);\nINSERT INTO ran VALUES (20);\nINSERT INTO b SELECT id FROM public.needed;"

// ran returns the numbers of the files that took effect, and the row of the version.
func ran(t *testing.T, db *pgxpool.Pool) (out string) {
	t.Helper()
	err := db.QueryRow(t.Context(), `SELECT (SELECT string_agg(step::text, ' ' ORDER BY step) FROM s.ran)
		|| '; at ' || (SELECT string_agg(version || ' ' || dirty, ',') FROM s.schema_migrations)`).Scan(&out)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func exec(t *testing.T, db *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := db.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

const complete = "1 20 30; at 30 false"

func TestAFileThatFailedIsAppliedOnceItsCauseIsGone(t *testing.T) {
	t.Parallel()
	db := postgrestest.New(t)
	url := db.Config().ConnString()
	for range 2 {
		err := migrations.Apply(t.Context(), url, "s", steps(second), "steps")
		if err == nil || !strings.Contains(err.Error(), "line 3") || !strings.Contains(err.Error(), "public.needed") {
			t.Fatalf("a file whose table is missing: %v", err)
		}
		if got := ran(t, db); got != "1; at 1 false" {
			t.Fatalf("the file left something: %s", got)
		}
	}
	exec(t, db, `CREATE TABLE public.needed (id int)`)
	for range 2 {
		if err := migrations.Apply(t.Context(), url, "s", steps(second), "steps"); err != nil {
			t.Fatal(err)
		}
		if got := ran(t, db); got != complete {
			t.Fatal(got)
		}
	}
}

// A migration waits inside its file. Then its session is killed, or its caller gives up.
func TestAMigrationThatWasInterruptedLeavesNothing(t *testing.T) {
	t.Parallel()
	for name, interrupt := range map[string]func(t *testing.T, db *pgxpool.Pool, cancel func()){
		"the session is killed": func(t *testing.T, db *pgxpool.Pool, _ func()) {
			exec(t, db, `SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid = 77 AND NOT granted`)
		},
		"the caller gives up": func(_ *testing.T, _ *pgxpool.Pool, cancel func()) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := postgrestest.New(t)
			url := db.Config().ConnString()
			files := steps("INSERT INTO ran VALUES (20);\nCREATE TABLE b (id int);\nSELECT pg_advisory_xact_lock(77);")
			hold, err := db.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := hold.Exec(t.Context(), `SELECT pg_advisory_xact_lock(77)`); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- migrations.Apply(ctx, url, "s", files, "steps") }()
			tick, end := time.NewTicker(5*time.Millisecond), time.After(time.Minute)
			defer tick.Stop()
			for waiting := 0; waiting == 0; {
				select {
				case <-tick.C:
				case err := <-done:
					t.Fatalf("the migration did not wait for the lock: %v", err)
				case <-end:
					t.Fatal("the migration does not wait for the lock")
				}
				if err := db.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 77 AND NOT granted`).Scan(&waiting); err != nil {
					t.Fatal(err)
				}
			}
			interrupt(t, db, cancel)
			if err := <-done; err == nil {
				t.Fatal("a migration that was interrupted succeeded")
			}
			if err := hold.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := migrations.Apply(t.Context(), url, "s", files, "steps"); err != nil {
				t.Fatal(err)
			}
			if got := ran(t, db); got != complete {
				t.Fatal(got)
			}
		})
	}
}

func TestOfManyThatStartAtOnceOneMigrates(t *testing.T) {
	t.Parallel()
	db := postgrestest.New(t)
	exec(t, db, `CREATE TABLE public.needed (id int)`)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := migrations.Apply(t.Context(), db.Config().ConnString(), "s", steps(second+"\nSELECT pg_sleep(0.1);"), "steps"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := ran(t, db); got != complete {
		t.Fatal(got)
	}
}

// An older build committed the dirty flag before it applied the file.
func TestADirtyVersionOfAnOlderBuild(t *testing.T) {
	t.Parallel()
	older := func(t *testing.T, sql string) (*pgxpool.Pool, string) {
		db := postgrestest.New(t)
		exec(t, db, `CREATE TABLE public.needed (id int); CREATE SCHEMA s; SET LOCAL search_path TO s;
			CREATE TABLE schema_migrations (version bigint not null primary key, dirty boolean not null);`+sql)
		return db, db.Config().ConnString()
	}
	t.Run("its file was rolled back", func(t *testing.T) {
		t.Parallel()
		db, url := older(t, `CREATE TABLE ran (step int); INSERT INTO ran VALUES (1); INSERT INTO schema_migrations VALUES (20, true)`)
		if err := migrations.Apply(t.Context(), url, "s", steps(second), "steps"); err != nil {
			t.Fatal(err)
		}
		if got := ran(t, db); got != complete {
			t.Fatal(got)
		}
	})
	t.Run("the first file was rolled back", func(t *testing.T) {
		t.Parallel()
		db, url := older(t, `INSERT INTO schema_migrations VALUES (1, true)`)
		if err := migrations.Apply(t.Context(), url, "s", steps(second), "steps"); err != nil {
			t.Fatal(err)
		}
		if got := ran(t, db); got != complete {
			t.Fatal(got)
		}
	})
	t.Run("its file was applied", func(t *testing.T) {
		t.Parallel()
		db, url := older(t, `CREATE TABLE ran (step int); INSERT INTO ran VALUES (1), (20); CREATE TABLE b (id int); INSERT INTO schema_migrations VALUES (20, true)`)
		err := migrations.Apply(t.Context(), url, "s", steps(second), "steps")
		if err == nil {
			t.Fatal("a file was applied twice")
		}
		const remedy = `UPDATE "s"."schema_migrations" SET dirty = false`
		if !strings.Contains(err.Error(), remedy) || !strings.Contains(err.Error(), `"b" already exists`) {
			t.Fatalf("the error does not say what to do: %v", err)
		}
		if got := ran(t, db); got != "1 20; at 20 true" {
			t.Fatalf("the refusal changed something: %s", got)
		}
		exec(t, db, remedy)
		if err := migrations.Apply(t.Context(), url, "s", steps(second), "steps"); err != nil {
			t.Fatal(err)
		}
		if got := ran(t, db); got != complete {
			t.Fatal(got)
		}
	})
	t.Run("its file is not known", func(t *testing.T) {
		t.Parallel()
		_, url := older(t, `INSERT INTO schema_migrations VALUES (21, true)`)
		if err := migrations.Apply(t.Context(), url, "s", steps(second), "steps"); err == nil || !strings.Contains(err.Error(), "version 21") {
			t.Fatalf("a version of another build: %v", err)
		}
	})
}

func TestAFileMayNotEndItsTransaction(t *testing.T) {
	t.Parallel()
	db := postgrestest.New(t)
	err := migrations.Apply(t.Context(), db.Config().ConnString(), "s", steps("INSERT INTO ran VALUES (20); COMMIT"), "steps")
	if err == nil || !strings.Contains(err.Error(), "COMMIT") {
		t.Fatalf("a file with COMMIT: %v", err)
	}
}
