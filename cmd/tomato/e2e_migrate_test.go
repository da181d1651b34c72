package main_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"tomato/cmd/tomato/server"
	"tomato/cmd/tomato/servertest"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
	"tomato/migrations/postgrestest"
)

// migrate runs `tomato migrate` with args on the database, and fails the test if it ends
// with another exit code. It returns what it has printed.
func migrate(t *testing.T, code int, database string, args ...string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, append([]string{"migrate"}, append(args, "--database-url", database)...)...)
	out, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		t.Fatalf("migrate %v: exit code %d, want %d: %s", args, got, code, out)
	}
	return string(out)
}

func wants(t *testing.T, text string, all ...string) {
	t.Helper()
	for _, want := range all {
		if !strings.Contains(text, want) {
			t.Fatalf("it lacks %q: %s", want, text)
		}
	}
}

func openPool(t *testing.T, database string) *pgxpool.Pool {
	t.Helper()
	db, err := pgxpool.New(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	return db
}

func mustExec(t *testing.T, db *pgxpool.Pool, sql string) {
	t.Helper()
	if _, err := db.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func TestMigrateSaysWhatIsPendingAndMakesIt(t *testing.T) {
	t.Parallel()
	database := postgrestest.URL(t)
	wants(t, migrate(t, 3, database, "status"), "000001_consumers", "tomato migrate up")
	out := migrate(t, 0, database, "up")
	wants(t, out, "000001_consumers is applied", "orders_g1: its tables are made", "the database is up to date")
	var status struct {
		UpToDate bool
		PostGIS  bool
		Schemas  []struct {
			Schema, State   string
			Version, Newest int
			Pending         []string
			Dirty           bool
		}
	}
	if err := json.Unmarshal([]byte(migrate(t, 0, database, "status", "--json")), &status); err != nil {
		t.Fatal(err)
	}
	if !status.UpToDate || !status.PostGIS || len(status.Schemas) != 5 {
		t.Fatalf("%+v", status)
	}
	for _, s := range status.Schemas {
		if s.Version == 0 || s.Version != s.Newest || len(s.Pending) > 0 || s.Dirty || (s.State == "serving") != (s.Schema != "tomato") {
			t.Errorf("%+v", s)
		}
	}
	if out := migrate(t, 0, database); out != "the database is up to date\n" { // up is what migrate does by itself
		t.Errorf("a second time it says %q", out)
	}
	db := openPool(t, database)
	mustExec(t, db, `DELETE FROM tomato.read_models WHERE model = 'riders'; DELETE FROM tomato.generations WHERE model = 'riders'`)
	wants(t, migrate(t, 3, database, "status"), "riders_g1")
	mustExec(t, db, `UPDATE tomato.schema_migrations SET version = 99`)
	wants(t, migrate(t, 3, database, "status"), "another build")
	wants(t, migrate(t, 1, database, "up"), "version 99, which this build does not have")
}

func TestRepairShowsWhatItDoesBeforeItDoesIt(t *testing.T) {
	t.Parallel()
	t.Run("nothing of the file is there", func(t *testing.T) {
		t.Parallel()
		database := postgrestest.URL(t)
		wants(t, migrate(t, 0, database, "repair"), "nothing to repair")
		db := openPool(t, database)
		mustExec(t, db, `CREATE SCHEMA tomato; CREATE TABLE tomato.schema_migrations (version bigint not null primary key, dirty boolean not null); INSERT INTO tomato.schema_migrations VALUES (1, true)`)
		before := postgrestest.Dump(t, database)
		wants(t, migrate(t, 1, database, "repair"), "nothing of the file 000001_consumers is there", "write down version 0", "--yes")
		if postgrestest.Dump(t, database) != before {
			t.Error("without --yes it has changed something")
		}
		wants(t, migrate(t, 0, database, "repair", "--yes"), "done")
		wants(t, migrate(t, 0, database, "repair"), "nothing to repair")
		migrate(t, 0, database, "up")
		migrate(t, 0, database, "status")
	})
	t.Run("the file is there", func(t *testing.T) {
		t.Parallel()
		database := postgrestest.URL(t)
		migrate(t, 0, database, "up")
		whole := postgrestest.Dump(t, database)
		db := openPool(t, database)
		mustExec(t, db, `UPDATE tomato.schema_migrations SET dirty = true`)
		var newest string
		if err := db.QueryRow(t.Context(), `SELECT version::text FROM tomato.schema_migrations`).Scan(&newest); err != nil {
			t.Fatal(err)
		}
		dirty := postgrestest.Dump(t, database)
		wants(t, migrate(t, 3, database, "status"), "tomato migrate repair")
		for _, args := range [][]string{{"repair"}, {"repair", "--yes"}, {"repair", "--applied", newest}} {
			wants(t, migrate(t, 1, database, args...), "--applied")
			if postgrestest.Dump(t, database) != dirty {
				t.Errorf("%v has changed something", args)
			}
		}
		wants(t, migrate(t, 1, database, "repair", "--applied", "29", "--yes"), "no file of version 29")
		migrate(t, 0, database, "repair", "--applied", newest, "--yes")
		if got := postgrestest.Dump(t, database); got != whole {
			t.Errorf("after the repair: %s", got)
		}
		migrate(t, 0, database, "status")
	})
	t.Run("a schema without a generation", func(t *testing.T) {
		t.Parallel()
		database := postgrestest.URL(t)
		migrate(t, 0, database, "up")
		whole := postgrestest.Dump(t, database)
		mustExec(t, openPool(t, database), `CREATE SCHEMA orders_g9; CREATE TABLE orders_g9.orders (id text)`)
		wants(t, migrate(t, 1, database, "repair"), "orders_g9 belongs to no generation", "drop it")
		migrate(t, 0, database, "repair", "--yes")
		if got := postgrestest.Dump(t, database); got != whole {
			t.Errorf("after the repair: %s", got)
		}
	})
}

// The process is killed in the middle of a file: in front of a statement that waits.
func TestAKilledMigrationIsDoneByTheNextOne(t *testing.T) {
	t.Parallel()
	database, undisturbed := postgrestest.URL(t), postgrestest.URL(t)
	a := servertest.NewOn(t, eventlog.Config{Brokers: []string{"127.0.0.1:1"}}, database)
	db := openPool(t, database)
	tx, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `CREATE SCHEMA simulated_gateway`); err != nil { // 000020_payments creates it after a table
		t.Fatal(err)
	}
	p := a.Spawn("migrate", "up", "--database-url", database)
	a.Await("the migration waits in the middle of its file", func() error {
		if _, waiting := connections(t, db); waiting["tomato-migrate"] != 1 {
			return fmt.Errorf("%v", waiting)
		}
		return nil
	})
	p.Kill()
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	migrate(t, 0, database, "up")
	migrate(t, 0, undisturbed, "up")
	made := regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[.0-9+]*`) // when the generations were made
	got, want := made.ReplaceAllString(postgrestest.Dump(t, database), "now"), made.ReplaceAllString(postgrestest.Dump(t, undisturbed), "now")
	if got != want {
		t.Errorf("the database is not as if nothing had happened:\n%s\nwant:\n%s", got, want)
	}
}

// The rights in docs/operations.md are enough for serve --no-migrate, and for rebuilds
// by the owner beside it.
func TestServeWithoutTheRightToCreateTables(t *testing.T) {
	t.Parallel()
	database := postgrestest.URL(t)
	super := openPool(t, database)
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.TrimPrefix(u.Path, "/")
	owner, app := name+"_owner", name+"_app"
	as := func(user string) string {
		v := *u
		v.User = url.UserPassword(user, "secret")
		return v.String()
	}
	operations, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(operations), "## Databases where `serve` may not create tables")
	_, text, _ = strings.Cut(text, "```sql\n")
	text, _, _ = strings.Cut(text, "```")
	asSuper, asOwner, ok := strings.Cut(strings.NewReplacer("tomato_owner", owner, "tomato_app", app, "DATABASE tomato ", "DATABASE "+name+" ", "'…'", "'secret'",
		"EXTENSION postgis", "EXTENSION IF NOT EXISTS postgis").Replace(text), "-- as ")
	if !ok {
		t.Fatal("docs/operations.md has no such rights")
	}
	mustExec(t, super, asSuper)
	defer func() {
		for _, sql := range []string{`DROP OWNED BY ` + app, `DROP OWNED BY ` + owner + ` CASCADE`, `DROP ROLE ` + app, `DROP ROLE ` + owner} {
			mustExec(t, super, sql)
		}
	}()
	mustExec(t, openPool(t, as(owner)), "-- as "+asOwner)

	a := servertest.NewOn(t, eventlogtest.Embedded(t), as(app), "--no-migrate")
	refused := func(want string) {
		t.Helper()
		s, err := server.Start(t.Context(), a.Config, server.Options{})
		if err == nil {
			_ = s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Fatalf("serve --no-migrate: %v, want %q", err, want)
		}
	}
	empty := postgrestest.Dump(t, database)
	refused("run `tomato migrate up`")
	if postgrestest.Dump(t, database) != empty {
		t.Error("serve --no-migrate has changed something")
	}
	migrate(t, 0, as(owner), "up")
	mustExec(t, super, `REVOKE DELETE ON tomato.timers FROM `+app)
	refused("may not read and write tomato.timers")
	mustExec(t, super, `GRANT DELETE ON tomato.timers TO `+app)
	a.Start()
	defer a.Stop()
	if _, err := a.DB().Exec(t.Context(), `CREATE TABLE tomato.x (id int)`); err == nil {
		t.Fatal("the user may create tables")
	}
	a.AddRestaurant("r1", servertest.Lng, servertest.Lat)
	a.AddRider("k1", servertest.Lng, servertest.Lat)
	order := a.ReadyOrder("c1", "r1")
	a.AwaitEvent(eventlog.Orders, order, "ORDER_OFFERED", 1)
	b := *a
	b.Config.DatabaseURL = as(owner)
	b.Tool("rebuild", "orders")
	a.Must(servertest.Rider("k1"), "POST /v1/orders/"+order+"/accept", nil)
	a.AwaitQuery(servertest.Customer("c1"), "/v1/orders/"+order, "status", "rider_assigned")
	a.AwaitIdle()
	a.NothingFailed()
}

// Four processes migrate an empty database at once.
func TestSeveralProcessesMigrateAtOnce(t *testing.T) {
	t.Parallel()
	database := postgrestest.URL(t)
	a := servertest.NewOn(t, eventlog.Config{Brokers: []string{"127.0.0.1:1"}}, database)
	var all []*servertest.Process
	for range 4 {
		all = append(all, a.Spawn("migrate", "up", "--database-url", database))
	}
	for _, p := range all {
		<-p.Ended
		if code := p.Cmd.ProcessState.ExitCode(); code != 0 {
			t.Errorf("exit code %d", code)
		}
	}
	migrate(t, 0, database, "status")
}
