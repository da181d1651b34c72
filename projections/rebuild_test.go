package projections_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain/nearby"
	"tomato/domain/payment"
	"tomato/domain/restaurant"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/consumer/parked"
	"tomato/eventlog/eventlogtest"
	"tomato/projections"
)

func TestRebuildGivesEqualRowsWhileEventsKeepComing(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	const before = 300
	for n := range before {
		b.w.Append(eventlog.Orders, orderID(n), life(n)...)
	}
	b.w.Invalid(eventlog.Orders, orderID(1), "ORDER_CANCELLED", []byte(`{}`))

	// Another process projects and queries; queries must never fail.
	other := b.models()
	b.project(other)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var mu sync.Mutex
	last := eventlog.Token{}
	wg.Go(func() {
		for n := before; ctx.Err() == nil; n++ {
			token := b.w.Append(eventlog.Orders, orderID(n), life(n)...)
			mu.Lock()
			last.Merge(token)
			mu.Unlock()
			err := other.Read(ctx, token, []string{projections.Orders}, func(schemas []string) error {
				var status string
				return b.db.QueryRow(ctx, `SELECT status FROM `+schemas[0]+`.orders WHERE id = $1`, orderID(n)).Scan(&status)
			})
			if err != nil && ctx.Err() == nil {
				t.Errorf("a query during the rebuild: %v", err)
				return
			}
		}
	})
	rebuilder := b.models()
	var phases []projections.Phase
	var was projections.Progress
	result, err := rebuilder.Rebuild(t.Context(), projections.Orders, projections.RebuildOptions{Runtime: b.runtime(), Progress: func(p projections.Progress) {
		if p.Phase != was.Phase {
			phases = append(phases, p.Phase)
			if was.Phase != "" && was.Share != 1 {
				t.Errorf("phase %s ended with %+v", was.Phase, was)
			}
		} else if p.Target != was.Target || p.Done < was.Done || p.Share < was.Share || p.Share > 1 {
			t.Errorf("progress went from %+v to %+v", was, p)
		}
		for i, part := range p.Partitions {
			if p.Phase == was.Phase && (part.Target != was.Partitions[i].Target || part.Done < was.Partitions[i].Done) {
				t.Errorf("progress went from %+v to %+v", was, p)
			}
		}
		if p.Phase == projections.PhaseFilling && len(p.Partitions) != partitions {
			t.Errorf("%d partitions are known: %+v", len(p.Partitions), p)
		}
		was = p
	}})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(phases, []projections.Phase{projections.PhaseFilling, projections.PhaseIndexing, projections.PhaseCatchingUp, projections.PhaseVerifying,
		projections.PhaseHandingOver, projections.PhaseSwitched}) {
		t.Errorf("phases %v", phases)
	}
	g := result.Generation
	if c := result.Comparison; !c.Equal() || c.Skipped != "" || c.Rows < before || result.Alone {
		t.Errorf("result %+v", result)
	}
	if g.Number != 2 {
		t.Errorf("generation %d", g.Number)
	}
	b.eventually("the others serve the new generation", func() bool {
		s, err := other.Serving(t.Context(), projections.Orders)
		return err == nil && s == g
	})
	cancel()
	wg.Wait()
	// Both generations are kept up to date. Wait for the last event in each.
	positions := consumer.NewPositions(b.db)
	for _, n := range []int{1, 2} {
		if err := positions.WaitFor(b.deadline(), projections.Orders, n, []string{eventlog.Orders}, last); err != nil {
			t.Fatalf("generation %d: %v", n, err)
		}
		// Another process, which handles nothing of it, knows the same.
		reached, err := consumer.NewPositions(b.db).Reached(projections.Orders, n)
		if err != nil {
			t.Fatal(err)
		}
		for tp, o := range last {
			if tp.Topic == eventlog.Orders && reached[tp] < o {
				t.Errorf("generation %d has reached %d in %v, not %d", n, reached[tp], tp, o)
			}
		}
	}
	differences, err := b.m.Compare(t.Context(), projections.Generation{Model: projections.Orders, Number: 1}, g)
	if err != nil || !differences.Equal() {
		t.Fatalf("%+v, %v", differences, err)
	}
	definitions := func(schema string) (defs []string) {
		err := b.db.QueryRow(t.Context(), `SELECT array_agg(replace(d, $1 || '.', '') ORDER BY d) FROM (
			SELECT pg_get_indexdef(indexrelid) AS d FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid WHERE t.relnamespace = $1::regnamespace
			UNION ALL SELECT t.relname || ' ' || conname || ' ' || pg_get_constraintdef(c.oid) FROM pg_constraint c JOIN pg_class t ON t.oid = conrelid
				WHERE connamespace = $1::regnamespace AND contype = 'p') x`, schema).Scan(&defs)
		if err != nil {
			t.Fatal(err)
		}
		return defs
	}
	if one, two := definitions("orders_g1"), definitions("orders_g2"); len(one) < 10 || !slices.Equal(one, two) {
		t.Errorf("indexes before\n%s\nand after\n%s", strings.Join(one, "\n"), strings.Join(two, "\n"))
	}
	var rows int
	if err := b.db.QueryRow(t.Context(), `SELECT count(*) FROM orders_g2.order_events`).Scan(&rows); err != nil || rows < before*9 {
		t.Fatalf("%d events, %v", rows, err)
	}
}

func TestRebuildDropsTheOldGenerationAndQueriesGoOn(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	token := eventlog.Token{}
	for n := range 20 {
		token.Merge(b.w.Append(eventlog.Payments, orderID(n),
			payment.PaymentRequested{OrderID: orderID(n), Provider: "simulated", GatewayOrderID: fmt.Sprintf("g%d", n), Amount: 100, Currency: "INR"},
			payment.PaymentSuccess{OrderID: orderID(n), PaymentID: fmt.Sprintf("p%d", n), Amount: 100, Currency: "INR", Booked: true}))
	}
	// This one never refreshes, so its copy is outdated after the drop.
	stale := b.models()
	if _, _, err := stale.OrderOf(t.Context(), "g1", token); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			for i, m := range []*projections.ReadModels{b.m, stale} {
				id, ok, err := m.OrderOf(ctx, "g1", token)
				if ctx.Err() == nil && (err != nil || !ok || id != orderID(1)) {
					t.Errorf("copy %d: %q, %v, %v", i, id, ok, err)
				}
			}
		}
	})
	g, err := b.models().Rebuild(t.Context(), projections.Payments, projections.RebuildOptions{Runtime: b.runtime(), DropOld: true})
	cancel()
	wg.Wait()
	if err != nil || g.Number != 2 {
		t.Fatal(g, err)
	}
	if _, ok, err := b.m.OrderOf(t.Context(), "unknown", token); err != nil || ok {
		t.Errorf("%v, %v", ok, err)
	}
	var left int
	if err := b.db.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM tomato.checkpoints WHERE consumer = 'payments' AND generation = 1)
		+ (SELECT count(*) FROM pg_namespace WHERE nspname = 'payments_g1')`).Scan(&left); err != nil || left != 0 {
		t.Errorf("%d things of generation 1 are left, %v", left, err)
	}
}

// The rest of a rebuild that was killed is resumed or canceled, and nothing else is begun
// before.
func TestARebuildIsDoneByOneProcess(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	token := b.w.Append(eventlog.Restaurants, "r1", restaurant.RestaurantRegistered{RestaurantID: "r1", Name: "R", Location: centre})
	b.passed(projections.Restaurants, token)
	ctx, kill := context.WithCancel(t.Context())
	_, err := b.models().Rebuild(ctx, projections.Restaurants, projections.RebuildOptions{Runtime: b.runtime(), Progress: func(p projections.Progress) {
		if p.Phase == projections.PhaseFilling {
			if _, err := b.models().Rebuild(t.Context(), projections.Restaurants, projections.RebuildOptions{Runtime: b.runtime(), Resume: true}); err != projections.ErrRunning {
				t.Errorf("a second rebuild beside the first: %v", err)
			}
			if err := b.m.Drop(t.Context(), projections.Generation{Model: projections.Restaurants, Number: 2}); err != projections.ErrRunning {
				t.Errorf("a drop beside a rebuild: %v", err)
			}
			kill()
		}
	}})
	if err == nil || !strings.Contains(err.Error(), "restaurants_g1 serves as before") || !strings.Contains(err.Error(), "--resume") {
		t.Fatalf("the killed rebuild: %v", err)
	}
	var unfinished *projections.UnfinishedError
	if _, err := b.models().Rebuild(t.Context(), projections.Restaurants, projections.RebuildOptions{Runtime: b.runtime()}); !errors.As(err, &unfinished) || unfinished.Number != 2 ||
		!strings.Contains(err.Error(), "`tomato rebuild restaurants --resume`") || !strings.Contains(err.Error(), "`tomato rebuild restaurants --cancel`") {
		t.Errorf("a rebuild beside an unfinished one: %v", err)
	}
	other := b.models()
	other.SetFold(projections.Restaurants, "another")
	if _, err := other.Rebuild(t.Context(), projections.Restaurants, projections.RebuildOptions{Runtime: b.runtime(), Resume: true}); err == nil || !strings.Contains(err.Error(), "another version") {
		t.Errorf("resumed by another fold: %v", err)
	}
	if g, err := b.models().CancelRebuild(t.Context(), projections.Restaurants); err != nil || g.Number != 2 {
		t.Fatal(g, err)
	}
	if _, err := b.models().CancelRebuild(t.Context(), projections.Restaurants); !errors.Is(err, projections.ErrNothingUnfinished) {
		t.Errorf("canceled again: %v", err)
	}
	if _, err := b.models().Rebuild(t.Context(), projections.Restaurants, projections.RebuildOptions{Runtime: b.runtime(), Resume: true}); !errors.Is(err, projections.ErrNothingUnfinished) {
		t.Errorf("resumed nothing: %v", err)
	}
	g, err := b.models().Rebuild(t.Context(), projections.Restaurants, projections.RebuildOptions{Runtime: b.runtime()})
	if err != nil || g.Number != 3 { // no number is used twice
		t.Fatal(g, err)
	}
	var schemas []string
	if err := b.db.QueryRow(t.Context(), `SELECT array_agg(nspname::text ORDER BY nspname) FROM pg_namespace WHERE nspname LIKE 'restaurants_g%'`).Scan(&schemas); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(schemas, []string{"restaurants_g1", "restaurants_g3"}) {
		t.Errorf("schemas %v", schemas)
	}
	if _, err := b.models().Rebuild(t.Context(), "menus", projections.RebuildOptions{Runtime: b.runtime()}); err == nil || !strings.Contains(err.Error(), "no read model") {
		t.Errorf("rebuild of an unknown read model: %v", err)
	}
}

func TestRebuildLeavesWhatCannotBeFoldedToTheConsumer(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	token := eventlog.Token{}
	for n := range 10 {
		token.Merge(b.w.Append(eventlog.Orders, orderID(n), life(n)[:4]...))
	}
	token.Merge(b.w.AppendRaw(eventlog.Orders, orderID(5), "ORDER_TELEPORTED", []byte(`{}`)))
	for n := range 10 {
		token.Merge(b.w.Append(eventlog.Orders, orderID(n), life(n)[4:]...))
	}
	b.passed(projections.Orders, token)
	g, err := b.models().Rebuild(t.Context(), projections.Orders, projections.RebuildOptions{Runtime: b.runtime()})
	if err != nil {
		t.Fatal(err)
	}
	differences, err := b.m.Compare(t.Context(), projections.Generation{Model: projections.Orders, Number: 1}, g.Generation)
	if err != nil || !differences.Equal() {
		t.Errorf("%+v, %v", differences, err)
	}
	var parked []int
	if err := b.db.QueryRow(t.Context(), `SELECT array_agg(n ORDER BY generation) FROM (SELECT generation, count(*) n FROM tomato.parked GROUP BY 1) p`).Scan(&parked); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(parked, []int{6, 6}) { // one dead letter, and five events that wait behind it
		t.Errorf("parked %v", parked)
	}
}

// Events with values that Postgres refuses are parked. They do not stop a rebuild, neither
// while it fills the tables nor while it creates the indexes.
func TestARebuildIsNotStoppedByValuesThatPostgresRefuses(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	last := b.w.Append(eventlog.Orders, orderID(0), life(0)...)
	var noise strings.Builder // too long for an index, and random, so that it cannot be compressed
	for rnd := rand.New(rand.NewPCG(1, 1)); noise.Len() < 20_000; {
		noise.WriteString(strconv.FormatUint(rnd.Uint64(), 36))
	}
	parked, before := 0, projections.Generation{Model: projections.Orders, Number: 1}
	for n, data := range []string{
		`{"orderId":"x","customerId":"` + noise.String() + `"}`, // the only such event of the first rebuild, so that the fill does not stop before it
		`{"orderId":"x","customerId":"a\u0000b"}`,
		"{\"orderId\":\"x\",\"reason\":\"\xff\"}",
	} {
		last.Merge(b.w.AppendRaw(eventlog.Orders, orderID(10+n), "ORDER_PLACED", []byte(data)))
		if parked++; n > 0 {
			last.Merge(b.w.AppendRaw(eventlog.Orders, orderID(20+n), "ORDER_READY_FOR_RIDER", []byte(`{"round":9000000000000000}`)))
			parked++
		}
		last.Merge(b.w.Append(eventlog.Orders, orderID(n+1), life(n+1)...))
		b.passed(projections.Orders, last)
		g, err := b.m.Rebuild(t.Context(), projections.Orders, projections.RebuildOptions{Runtime: b.runtime()})
		if err != nil {
			t.Fatal(err)
		}
		if err := consumer.NewPositions(b.db).WaitFor(b.deadline(), projections.Orders, g.Number, []string{eventlog.Orders}, last); err != nil {
			t.Fatal(err)
		}
		b.eventually("what Postgres refuses is parked", func() bool {
			var dead int
			err := b.db.QueryRow(t.Context(), `SELECT count(*) FROM tomato.parked WHERE generation = $1`, g.Number).Scan(&dead)
			return err == nil && dead == parked
		})
		differences, err := b.m.Compare(t.Context(), before, g.Generation)
		if err != nil || !differences.Equal() {
			t.Errorf("%+v, %v", differences, err)
		}
		before = g.Generation
	}
}

func TestRidersRebuildKeepsPositionsAndTheirCheckpoint(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	now := time.Now()
	token := eventlog.Token{}
	for n := range 10 {
		id := fmt.Sprintf("rider%d", n)
		token.Merge(b.w.Append(eventlog.Riders, id, ready(id)...))
		token.Merge(b.position(id, near(centre, float64(n*100)), now))
		token.Merge(b.position(id, near(centre, 90000), now.Add(-time.Minute))) // older than the last position, so it changes nothing
	}
	find := func() string {
		found, _, err := b.m.Nearest(t.Context(), []nearby.Search{{Point: centre, RadiusMeters: 450, Limit: 10}}, 5*time.Minute, token, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(found)
	}
	want := "[[{rider0 0} {rider1 100} {rider2 200} {rider3 300} {rider4 400}]]"
	if got := find(); got != want {
		t.Errorf("got %s", got)
	}
	if _, err := b.m.Rebuild(t.Context(), projections.Riders, projections.RebuildOptions{Runtime: b.runtime()}); err != nil {
		t.Fatal(err)
	}
	if got := find(); got != want {
		t.Errorf("after the rebuild %s", got)
	}
	token.Merge(b.position("rider9", near(centre, 50), now.Add(time.Second)))
	want = "[[{rider0 0} {rider9 50} {rider1 100} {rider2 200} {rider3 300} {rider4 400}]]"
	if got := find(); got != want {
		t.Errorf("after a further position %s", got)
	}
}

// The tombstone of an erasure takes a rider's position out, whatever came before and comes
// after it in the same batch, and a rebuild gives the same. Other tombstones do not.
func TestATombstoneTakesThePositionOut(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	client := eventlogtest.Client(t, b.cfg, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	now := time.Now()
	token := eventlog.Token{}
	tombstone := func(id string, headers ...kgo.RecordHeader) {
		t.Helper()
		r := &kgo.Record{Topic: eventlog.RiderLocations, Partition: eventlog.PartitionFor(id, partitions), Key: []byte(id), Headers: headers}
		if err := client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
		token.Add(r.Topic, r.Partition, r.Offset)
	}
	gone := func(id string) {
		t.Helper()
		tombstone(id, kgo.RecordHeader{Key: eventlog.HeaderType, Value: []byte(eventlog.PositionErased)})
	}
	for n := range 4 {
		id := fmt.Sprintf("rider%d", n)
		token.Merge(b.w.Append(eventlog.Riders, id, ready(id)...))
		token.Merge(b.position(id, near(centre, float64(n*100)), now))
	}
	tombstone("rider0")
	gone("rider1")
	gone("rider2")
	token.Merge(b.position("rider2", near(centre, 250), now.Add(-time.Second))) // older than the one that was taken out
	gone("nobody")
	b.project(b.m)
	find := func(want string) {
		t.Helper()
		found, _, err := b.m.Nearest(t.Context(), []nearby.Search{{Point: centre, RadiusMeters: 450, Limit: 10}}, 5*time.Minute, token, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(found); got != want {
			t.Errorf("found %s, want %s", got, want)
		}
	}
	find("[[{rider0 0} {rider2 250} {rider3 300}]]")
	gone("rider3") // in a batch of its own
	find("[[{rider0 0} {rider2 250}]]")
	if _, err := b.m.Rebuild(t.Context(), projections.Riders, projections.RebuildOptions{Runtime: b.runtime()}); err != nil {
		t.Fatal(err)
	}
	find("[[{rider0 0} {rider2 250}]]")
	for _, g := range []string{"riders_g1", "riders_g2"} {
		var positions int
		if err := b.db.QueryRow(t.Context(), `SELECT count(location) FROM `+g+`.rider_positions`).Scan(&positions); err != nil || positions != 2 {
			t.Errorf("%s has %d positions, %v", g, positions, err)
		}
	}
}

// 5 % of the events that the orders read model handles fail, some of them every time,
// while its projectors start and stop. When the cause is gone and the dead letters have
// been replayed once, the rows are the same as those of a rebuild.
func TestRowsAfterFailuresAreThoseOfARebuild(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	g, err := b.m.Serving(t.Context(), projections.Orders)
	if err != nil {
		t.Fatal(err)
	}
	c := g.Consumer()
	rows := c.Rows
	var mu sync.Mutex
	rnd := rand.New(rand.NewPCG(3, 4))
	mended := false
	c.MaxBatch, c.InPlaceTries, c.RetryDelays = 50, 2, []time.Duration{20 * time.Millisecond, 50 * time.Millisecond}
	c.Rows = func(ctx context.Context, tx pgx.Tx, events []eventlog.Event) error {
		if err := rows(ctx, tx, events); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		for _, e := range events {
			switch {
			case mended:
			case strings.HasSuffix(e.Subject, "7") && e.Version == 3:
				return eventlog.Poison(errors.New("as a bug would have it"))
			case rnd.IntN(20) == 0:
				return errors.New("not this time")
			}
		}
		return nil
	}
	run := func() (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := b.runtime().Run(ctx, c); err != nil {
				t.Error(err)
			}
		})
		stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
		t.Cleanup(stop)
		return stop
	}
	const n = 200
	token := eventlog.Token{}
	stop := run()
	for i := range n {
		token.Merge(b.w.Append(eventlog.Orders, orderID(i), life(i)...))
		if i%50 == 49 {
			next := run()
			stop()
			stop = next
		}
	}
	b.passed(projections.Orders, token)
	parkedRows := func(where string) (n int) {
		if err := b.db.QueryRow(t.Context(), `SELECT count(*) FROM tomato.parked`+where).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	b.eventually("what can be done is done", func() bool { return parkedRows(` WHERE state = 'retry'`) == 0 })
	dead := parkedRows(` WHERE state = 'dead'`)
	if dead < n/10 || parkedRows(` WHERE class = 'poison'`) != n/10 {
		t.Errorf("%d dead letters, %d of them poison: %d events are", dead, parkedRows(` WHERE class = 'poison'`), n/10)
	}
	mu.Lock()
	mended = true
	mu.Unlock()
	tools := &parked.DeadLetters{DB: b.db, Kafka: b.cfg}
	if res, err := tools.Replay(t.Context(), parked.ReplayRequest{Consumer: projections.Orders, All: true, ConfirmCount: dead, Who: "test"}); err != nil || res.Replayed != dead {
		t.Fatalf("replay: %+v, %v", res, err)
	}
	b.eventually("all is replayed", func() bool { return parkedRows("") == 0 })
	stop()
	b.project(b.m)
	rebuilt, err := b.m.Rebuild(t.Context(), projections.Orders, projections.RebuildOptions{Runtime: b.runtime()})
	if err != nil {
		t.Fatal(err)
	}
	if differences, err := b.m.Compare(t.Context(), g, rebuilt.Generation); err != nil || !differences.Equal() {
		t.Errorf("%+v, %v", differences, err)
	}
	var events int
	if err := b.db.QueryRow(t.Context(), `SELECT count(*) FROM `+g.Schema()+`.order_events`).Scan(&events); err != nil || events != n*9 {
		t.Errorf("%d of %d events, %v", events, n*9, err)
	}
}
