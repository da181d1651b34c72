package projections_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/migrations"
	"tomato/migrations/postgrestest"
	"tomato/projections"
)

// handler is the handler of the orders, with a database and without a log.
type handler struct {
	t       *testing.T
	db      *pgxpool.Pool
	rows    func(context.Context, pgx.Tx, []eventlog.Event) error
	offsets int64
}

func newHandler(t *testing.T) *handler {
	t.Helper()
	db := postgrestest.New(t)
	url := db.Config().ConnString()
	if err := migrations.Core(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	if _, err := (&projections.ReadModels{DB: db, DatabaseURL: url}).MakeMissing(t.Context()); err != nil {
		t.Fatal(err)
	}
	return &handler{t: t, db: db, rows: generation(1).Consumer().Rows}
}

// other is the handler of another process.
func (h *handler) other() *handler {
	return &handler{t: h.t, db: h.db, rows: generation(1).Consumer().Rows, offsets: 100 + h.offsets}
}

// events returns the events from version from to version to of order n.
func (h *handler) events(n int, from, to int) (events []eventlog.Event) {
	return h.of(eventlog.Orders, orderID(n), from, life(n)[from-1:to])
}

// of returns events of an aggregate from a version on.
func (h *handler) of(topic, id string, from int, happened []domain.Event) (events []eventlog.Event) {
	for i, e := range happened {
		data, err := json.Marshal(e)
		if err != nil {
			h.t.Fatal(err)
		}
		v := int64(from + i)
		events = append(events, eventlog.Event{Topic: topic, Offset: h.offsets, Subject: id, Version: v, Type: e.EventType(), Time: time.Unix(v, 0), Data: data})
		h.offsets++
	}
	return events
}

// apply has the handler write events in a transaction, and once more if it says so. It
// returns how often the rows were others than those that the handler knew.
func (h *handler) apply(events []eventlog.Event) (outdated int, err error) {
	for range 2 {
		err = pgx.BeginFunc(h.t.Context(), h.db, func(tx pgx.Tx) error { return h.rows(h.t.Context(), tx, events) })
		if !errors.Is(err, consumer.ErrOutdated) {
			return outdated, err
		}
		outdated++
	}
	return outdated, err
}

// applied has the handler write events, and checks how often the rows were others.
func (h *handler) applied(outdated int, events []eventlog.Event) {
	h.t.Helper()
	if n, err := h.apply(events); err != nil || n != outdated {
		h.t.Fatalf("the rows were outdated %d times, want %d; %v", n, outdated, err)
	}
}

func (h *handler) exec(sql string, args ...any) {
	h.t.Helper()
	if _, err := h.db.Exec(h.t.Context(), sql, args...); err != nil {
		h.t.Fatal(err)
	}
}

// order reads the row of order n; version is 0 if there is none.
func (h *handler) order(n int) (version int64, s order.State) {
	h.t.Helper()
	var text string
	err := h.db.QueryRow(h.t.Context(), `SELECT version, state FROM orders_g1.orders WHERE id = $1`, orderID(n)).Scan(&version, &text)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, s
	}
	if err == nil {
		err = json.Unmarshal([]byte(text), &s)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return version, s
}

// isFold checks that the row of order n is the fold of its first events.
func (h *handler) isFold(n, events int) {
	h.t.Helper()
	var want order.State
	for v, e := range life(n)[:events] {
		want = order.Evolve(want, e.(order.Event), time.Unix(int64(v+1), 0).UTC())
	}
	version, got := h.order(n)
	a, _ := json.Marshal(want)
	b, _ := json.Marshal(got)
	if version != int64(events) || string(a) != string(b) {
		h.t.Errorf("order %d has version %d and is\n%s, want version %d and\n%s", n, version, b, events, a)
	}
}

// A handler goes on from what it has written, without reading rows, whether an aggregate is
// new or not.
func TestRowsAreWrittenWithoutBeingRead(t *testing.T) {
	t.Parallel()
	h := newHandler(t)
	h.applied(0, h.events(1, 1, 1))
	h.applied(0, append(h.events(1, 2, 4), h.events(2, 1, 2)...))
	h.applied(0, append(h.events(2, 3, 9), h.events(1, 5, 9)...))
	h.isFold(1, 9)
	h.isFold(2, 9)
	other := h.other() // knows nothing, and reads
	other.applied(0, other.events(3, 1, 3))
	h.applied(0, h.events(3, 4, 5))
	other.applied(1, other.events(3, 6, 7)) // the first one has written meanwhile
	other.applied(0, other.events(3, 8, 9))
	h.isFold(3, 9)
}

// A handler whose row was changed behind it goes on from the row as it is.
func TestARowThatWasChangedIsHonoured(t *testing.T) {
	t.Parallel()
	h := newHandler(t)
	h.applied(0, h.events(1, 1, 4))
	h.exec(`UPDATE orders_g1.orders SET state = replace(state, '"c1"', '"changed"') WHERE id = $1`, orderID(1))
	h.applied(1, h.events(1, 5, 5))
	h.applied(0, h.events(1, 6, 6))
	if version, s := h.order(1); version != 6 || s.CustomerID != "changed" {
		t.Errorf("version %d of a customer %q", version, s.CustomerID)
	}
	// One of several rows: the others are written with it or not at all.
	h.applied(0, append(h.events(2, 1, 4), h.events(3, 1, 4)...))
	h.exec(`UPDATE orders_g1.orders SET state = replace(state, '"c3"', '"changed"') WHERE id = $1`, orderID(3))
	h.applied(1, append(h.events(2, 5, 5), append(h.events(3, 5, 5), h.events(4, 1, 1)...)...))
	if version, s := h.order(3); version != 5 || s.CustomerID != "changed" {
		t.Errorf("version %d of a customer %q", version, s.CustomerID)
	}
	h.isFold(2, 5)
	h.isFold(4, 1)
}

// A row of the same transaction at another version is not taken for the one that is known.
func TestARowAtAnotherVersionIsHonoured(t *testing.T) {
	t.Parallel()
	h := newHandler(t)
	err := pgx.BeginFunc(t.Context(), h.db, func(tx pgx.Tx) error {
		if err := h.rows(t.Context(), tx, h.events(1, 1, 4)); err != nil {
			return err
		}
		_, err := tx.Exec(t.Context(), `UPDATE orders_g1.orders SET version = 3 WHERE id = $1`, orderID(1))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := h.apply(h.events(1, 5, 5)); n != 1 || !errors.Is(err, eventlog.ErrPoison) {
		t.Errorf("the rows were outdated %d times; %v", n, err)
	}
}

// What a transaction has written that failed is not built upon.
func TestRowsOfAFailedTransactionAreForgotten(t *testing.T) {
	t.Parallel()
	h := newHandler(t)
	fail := errors.New("on purpose")
	failing := func(events []eventlog.Event) {
		t.Helper()
		if err := pgx.BeginFunc(t.Context(), h.db, func(tx pgx.Tx) error {
			if err := h.rows(t.Context(), tx, events); err != nil {
				return err
			}
			return fail
		}); !errors.Is(err, fail) {
			t.Fatal(err)
		}
	}
	first := h.events(1, 1, 2)
	failing(first)
	h.applied(1, first)
	next := h.events(1, 3, 3)
	failing(next)
	failing(h.events(2, 1, 1))
	h.applied(1, next)
	h.isFold(1, 3)
	// An event that follows the one that failed has nothing to follow.
	if _, err := h.apply(h.events(2, 2, 2)); !errors.Is(err, eventlog.ErrPoison) {
		t.Error(err)
	}
	if version, _ := h.order(2); version != 0 {
		t.Errorf("it has a row at version %d", version)
	}
}

// A row that has gone is not made again of what the handler knows, and one that is there
// already is not written over.
func TestNoRowIsMadeWhereAnotherIsExpected(t *testing.T) {
	t.Parallel()
	h := newHandler(t)
	h.applied(0, h.events(1, 1, 4))
	h.exec(`DELETE FROM orders_g1.orders WHERE id = $1`, orderID(1))
	if n, err := h.apply(h.events(1, 5, 5)); n != 1 || !errors.Is(err, eventlog.ErrPoison) {
		t.Errorf("the row has gone: outdated %d times; %v", n, err)
	}
	if version, _ := h.order(1); version != 0 {
		t.Errorf("it was made again at version %d", version)
	}
	h.applied(0, h.events(2, 1, 4))
	other := h.other()
	if n, err := other.apply(other.events(2, 1, 1)); n != 1 || !errors.Is(err, eventlog.ErrPoison) {
		t.Errorf("the row was there: outdated %d times; %v", n, err)
	}
	h.isFold(2, 4)
}

// An event that is skipped while the handler knows its aggregate takes no effect, and
// neither do the events of an aggregate whose first one is skipped.
func TestASkippedEventOfAKnownAggregateTakesNoEffect(t *testing.T) {
	t.Parallel()
	h := newHandler(t)
	skip := func(e eventlog.Event) {
		h.exec(`INSERT INTO tomato.skipped_events (model, topic, partition, source_offset, key, version, event_type, reason, who)
			VALUES ('orders', $1, $2, $3, $4, $5, $6, 'a test', 'test')`, e.Topic, e.Partition, e.Offset, e.Subject, e.Version, e.Type)
	}
	h.applied(0, h.events(1, 1, 5))
	offered := h.events(1, 6, 6)
	skip(offered[0])
	h.applied(1, offered)
	if version, s := h.order(1); version != 6 || len(s.Offers) != 0 {
		t.Errorf("version %d, offers %v", version, s.Offers)
	}
	first := h.events(2, 1, 1)
	skip(first[0])
	h.applied(1, first)
	h.applied(0, h.events(2, 2, 3))
	if version, _ := h.order(2); version != 0 {
		t.Errorf("the order whose first event is skipped has a row at version %d", version)
	}
}

// A failed step leaves what the handler knows as it was.
func TestAFailedStepChangesNothing(t *testing.T) {
	t.Parallel()
	h := newHandler(t)
	h.applied(0, h.events(1, 1, 6))
	bad := h.events(1, 7, 8)
	bad[1].Data = []byte(`{`)
	if _, err := h.apply(bad); !errors.Is(err, eventlog.ErrPoison) {
		t.Fatal(err)
	}
	h.isFold(1, 6)
	h.applied(0, h.events(1, 7, 9))
	h.isFold(1, 9)
}

// The fold of an event does not write into the state before it, which a cache may have.
func TestAFoldLeavesTheStateBeforeItAlone(t *testing.T) {
	t.Parallel()
	var s order.State
	extra := []domain.Event{order.OfferDeclined{Round: 1, Wave: 1, RiderID: "rider1"}, order.OffersExpired{Round: 1, Wave: 1}}
	for v, e := range append(life(1), extra...) {
		before, _ := json.Marshal(&s)
		kept := s
		s = order.Evolve(s, e.(order.Event), time.Unix(int64(v+1), 0))
		for _, other := range extra {
			order.Evolve(kept, other.(order.Event), time.Unix(0, 0))
		}
		if after, _ := json.Marshal(&kept); string(before) != string(after) {
			t.Errorf("%s has changed the state before it from\n%s to\n%s", e.EventType(), before, after)
		}
	}
}

// The plans that Postgres keeps, which it makes while the tables are empty, later read no
// other rows than those that are written.
func TestPlansForEmptyTablesReadNoOtherRows(t *testing.T) {
	t.Parallel()
	h := newHandler(t)
	conn, err := h.db.Acquire(t.Context()) // keeps the plans
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	riders := projections.Generation{Model: projections.Riders, Number: 1}.Consumer().Rows
	// step writes events in a transaction of the runtime, and returns how many rows of the
	// read models it has read.
	step := func(rows func(context.Context, pgx.Tx, []eventlog.Event) error, events []eventlog.Event) (read int64) {
		t.Helper()
		err := pgx.BeginTxFunc(t.Context(), conn, pgx.TxOptions{BeginQuery: "begin; set local enable_seqscan = off; set local plan_cache_mode = force_generic_plan"}, func(tx pgx.Tx) error {
			if err := rows(t.Context(), tx, events); err != nil {
				return err
			}
			return tx.QueryRow(t.Context(), `SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_user_tables WHERE schemaname ~ '_g1$'`).Scan(&read)
		})
		if err != nil {
			t.Fatal(err)
		}
		return read
	}
	happened := ready("rider1")
	position := eventlog.Event{Topic: eventlog.RiderLocations, Subject: "rider1", Type: "RIDER_LOCATION", Time: time.Now(),
		Data: []byte(`{"riderId":"rider1","location":{"type":"Point","coordinates":[77.5,12.9]},"recordedAt":"2026-11-01T12:00:00Z"}`)}
	step(h.rows, h.events(1, 1, 1))
	step(h.rows, h.events(1, 2, 2))
	step(riders, h.of(eventlog.Riders, "rider1", 1, happened[:1]))
	step(riders, h.of(eventlog.Riders, "rider1", 2, happened[1:2]))
	step(riders, []eventlog.Event{position})
	for _, sql := range []string{
		`INSERT INTO orders_g1.orders SELECT 'more' || i, version, status, closed, customer_id, restaurant_id, rider_id, exhausted, pick_up, round, wave, waiting, wave_open, asked, created_at, state
			FROM orders_g1.orders, generate_series(1, 3000) i`,
		`INSERT INTO riders_g1.riders SELECT 'more' || i, version, name, eligible, order_id, claim_id, state FROM riders_g1.riders, generate_series(1, 3000) i`,
		`INSERT INTO riders_g1.rider_positions SELECT 'more' || i, location, recorded_at, stale, name, eligible FROM riders_g1.rider_positions, generate_series(1, 3000) i`,
	} {
		h.exec(sql)
	}
	for what, read := range map[string]int64{
		"an order":   step(h.rows, h.events(1, 3, 3)),
		"a rider":    step(riders, h.of(eventlog.Riders, "rider1", 3, happened[2:])),
		"a position": step(riders, []eventlog.Event{position}),
	} {
		if read > 20 {
			t.Errorf("%s: %d rows were read", what, read)
		}
	}
}

// An operator's rebuild-one and skip, while the consumer of the generation knows the order,
// are honoured by the order's next event. The metric shows both.
func TestTheNextEventHonoursWhatAnOperatorDid(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	registry := prometheus.NewRegistry()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	r := b.runtime()
	r.Registry = registry
	go func() { ended <- r.Run(ctx, generation(1).Consumer()) }()
	defer func() { cancel(); <-ended }()

	token := b.w.Append(eventlog.Orders, orderID(1), life(1)[:5]...)
	b.passed(projections.Orders, token)
	offered := b.w.Append(eventlog.Orders, orderID(1), life(1)[5])
	b.passed(projections.Orders, offered)
	if _, _, err := b.m.Skip(t.Context(), projections.Orders, at(t, offered), "a test", "anna"); err != nil {
		t.Fatal(err)
	}
	b.passed(projections.Orders, b.w.Append(eventlog.Orders, orderID(1), life(1)[6]))
	if version, s := state[order.State](b, "orders_g1.orders", orderID(1)); version != 7 || len(s.Offers) != 0 || s.Status != order.StatusRiderAssigned {
		t.Errorf("after a skip: version %d, %s, offers %v", version, s.Status, s.Offers)
	}
	if _, err := b.db.Exec(t.Context(), `UPDATE orders_g1.orders SET state = replace(state, '"c1"', '"wrong"')`); err != nil {
		t.Fatal(err)
	}
	if _, err := b.m.RebuildOne(t.Context(), projections.Orders, orderID(1)); err != nil {
		t.Fatal(err)
	}
	b.passed(projections.Orders, b.w.Append(eventlog.Orders, orderID(1), life(1)[7:]...))
	if version, s := state[order.State](b, "orders_g1.orders", orderID(1)); version != 9 || s.CustomerID != "c1" || s.Status != order.StatusDelivered {
		t.Errorf("after rebuild-one: version %d, %s, customer %s", version, s.Status, s.CustomerID)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counted := map[string]float64{}
	for _, f := range families {
		if f.GetName() != "tomato_read_model_cache_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				counted[l.GetName()+"="+l.GetValue()] += m.GetCounter().GetValue()
			}
		}
	}
	if counted["result=hit"] == 0 || counted["result=miss"] == 0 || counted["result=outdated"] != 2 || counted["consumer=orders"] == 0 {
		t.Errorf("the metric has %v", counted)
	}
}
