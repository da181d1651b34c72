package projections_test

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"tomato/domain"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/migrations"
	"tomato/migrations/postgrestest"
	"tomato/projections"
)

// The plans that Postgres keeps, which it makes while the tables are small, later read no
// other rows than those that are written, even if the tables are not analysed meanwhile.
func TestPlansForSmallTablesReadNoOtherRows(t *testing.T) {
	t.Parallel()
	for name, analyse := range map[string]string{"never analysed": "", "analysed while they are small": "ANALYZE"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			plansForSmallTables(t, analyse)
		})
	}
}

// plansForSmallTables has plans made after the statement analyse, and fills the tables.
func plansForSmallTables(t *testing.T, analyse string) {
	db := postgrestest.New(t)
	url := db.Config().ConnString()
	if err := migrations.Core(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	if _, err := (&projections.ReadModels{DB: db, DatabaseURL: url}).MakeMissing(t.Context()); err != nil {
		t.Fatal(err)
	}
	conn, err := db.Acquire(t.Context()) // keeps the plans
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	exec := func(sql string) {
		t.Helper()
		if _, err := db.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	// total returns how many rows of each table of the read models the connection has read.
	total := func(tx pgx.Tx) (map[string]int64, error) {
		rows, err := tx.Query(t.Context(), `SELECT relname, seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_user_tables WHERE schemaname ~ '_g1$'`)
		if err != nil {
			return nil, err
		}
		read := map[string]int64{}
		var table string
		var n int64
		_, err = pgx.ForEachRow(rows, []any{&table, &n}, func() error { read[table] = n; return nil })
		return read, err
	}
	// step writes an event in a transaction as the runtime makes it, and returns how many
	// rows of each table it has read.
	step := func(model, topic, id string, version int64, happened domain.Event) (read map[string]int64) {
		t.Helper()
		e := eventlog.Event{Topic: topic, Subject: id, Version: version, Time: time.Now()}
		if happened != nil {
			e.Type = happened.EventType()
			e.Data, _ = json.Marshal(happened)
		} else {
			e.Type = rider.PositionType
			e.Data, _ = json.Marshal(rider.Position{RiderID: id, Location: centre, RecordedAt: time.Now()})
		}
		rows := projections.Generation{Model: model, Number: 1}.Consumer().Rows
		err := pgx.BeginTxFunc(t.Context(), conn, pgx.TxOptions{BeginQuery: "begin; set local enable_seqscan = off"}, func(tx pgx.Tx) error {
			before, err := total(tx)
			if err != nil {
				return err
			}
			if err := rows(context.WithoutCancel(t.Context()), tx, []eventlog.Event{e}); err != nil {
				return err
			}
			read, err = total(tx)
			for table, n := range before {
				read[table] -= n
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return read
	}
	both := func(n, version int) map[string]map[string]int64 {
		id := fmt.Sprintf("rider%d", n)
		return map[string]map[string]int64{
			"an order":   step(projections.Orders, eventlog.Orders, orderID(n), int64(version), life(n)[version-1]),
			"a rider":    step(projections.Riders, eventlog.Riders, id, int64(version), ready(id)[version-1]),
			"a position": step(projections.Riders, eventlog.RiderLocations, id, 0, nil),
		}
	}
	both(1, 1)
	exec(analyse)
	for n := range 12 { // Postgres keeps a plan after five others
		both(2+n, 1)
	}
	for _, sql := range []string{
		`INSERT INTO orders_g1.orders SELECT 'more' || i, version, status, closed, customer_id, restaurant_id, rider_id, exhausted, pick_up, round, wave, waiting, wave_open, asked, created_at, state
			FROM orders_g1.orders, generate_series(1, 3000) i WHERE id = '` + orderID(1) + `'`,
		`INSERT INTO riders_g1.riders SELECT 'more' || i, version, name, eligible, order_id, claim_id, state FROM riders_g1.riders, generate_series(1, 3000) i WHERE id = 'rider1'`,
		`INSERT INTO riders_g1.rider_positions SELECT 'more' || i, location, recorded_at, stale, name, eligible FROM riders_g1.rider_positions, generate_series(1, 3000) i WHERE rider_id = 'rider1'`,
	} {
		exec(sql)
	}
	for what, read := range both(1, 2) {
		for table, n := range read {
			if n > 5 {
				t.Errorf("%s: %d rows of %s were read", what, n, table)
			}
		}
	}
}
