package migrations_test

import (
	"sync"
	"testing"

	"tomato/migrations"
	"tomato/migrations/postgrestest"

	"github.com/jackc/pgx/v5"
)

func TestConcurrentStartsMigrateOnce(t *testing.T) {
	t.Parallel()
	url := postgrestest.URL(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := migrations.Core(t.Context(), url); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var version int
	var dirty bool
	if err := conn.QueryRow(t.Context(), `SELECT version, dirty FROM tomato.schema_migrations`).Scan(&version, &dirty); err != nil {
		t.Fatal(err)
	}
	if version < 1 || dirty {
		t.Fatalf("version %d, dirty %v", version, dirty)
	}
	var n int
	if err := conn.QueryRow(t.Context(), `SELECT count(*) FROM tomato.checkpoints`).Scan(&n); err != nil {
		t.Fatal(err)
	}
}

func TestUnknownReadModelIsRefused(t *testing.T) {
	t.Parallel()
	if err := migrations.ReadModel(t.Context(), "postgres://127.0.0.1:1/x", "orders_g1", "no_such_model"); err == nil {
		t.Fatal("applied a folder that is not there")
	}
	if err := migrations.ReadModel(t.Context(), "postgres://127.0.0.1:1/x", `x"; drop`, "core"); err == nil {
		t.Fatal("took a schema name that is none")
	}
}
