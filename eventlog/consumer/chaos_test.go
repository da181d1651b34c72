package consumer_test

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/consumer/parked"
	"tomato/eventlog/eventlogtest"
)

// chaosSize is how many events TestFailuresAndKillsLeaveTheFold has, 20 of each
// order. TOMATO_CONSUME_EVENTS=200000 is the full size.
func chaosSize(t *testing.T) int {
	t.Helper()
	s := os.Getenv("TOMATO_CONSUME_EVENTS")
	if s == "" {
		return 10_000
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 2000 {
		t.Fatalf("TOMATO_CONSUME_EVENTS=%s: at least 2000", s)
	}
	return n
}

// folded is the fold of an aggregate's events.
type folded struct{ version, hash int64 }

// with adds an event to the fold; another order gives another hash.
func (f folded) with(e *eventlog.Event) folded {
	h := fnv.New32a()
	_, _ = h.Write([]byte(e.ID))
	return folded{e.Version, (f.hash*31 + int64(h.Sum32())) % 1_000_000_007}
}

// outside is something beyond Postgres that a policy acts on, idempotently.
type outside struct {
	mu      sync.Mutex
	at      map[string]folded
	repeats int
	broken  []string // events that came before the one that they follow
}

func (o *outside) apply(e *eventlog.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f := o.at[e.Subject]
	switch {
	case e.Version == f.version+1:
		o.at[e.Subject] = f.with(e)
	case e.Version <= f.version:
		o.repeats++
	default:
		o.broken = append(o.broken, fmt.Sprintf("%s after version %d", e.ID, f.version))
	}
}

// faults make 5 % of a handler's calls fail, at random. Every call for some of the
// events fails, until mended is set.
type faults struct {
	seed   uint64
	poison map[string]bool // by event id: no retry can help
	broken map[string]bool // not marked as poison, so they use up all of their attempts

	mu       sync.Mutex
	calls    map[string]uint64
	inARow   map[string]int
	injected int
	mended   bool
}

func (f *faults) of(e *eventlog.Event) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.mended:
		return nil
	case f.poison[e.ID]:
		return eventlog.Poison(fmt.Errorf("%s cannot be", e.ID))
	case f.broken[e.ID]:
		return fmt.Errorf("%s does not work", e.ID)
	}
	f.calls[e.ID]++
	h := fnv.New64a()
	_, _ = h.Write([]byte(e.ID))
	// An event must not fail so often in a row that chance makes it a dead letter.
	if rand.New(rand.NewPCG(f.seed+f.calls[e.ID], h.Sum64())).IntN(20) == 0 && f.inARow[e.ID] < 3 {
		f.injected++
		f.inARow[e.ID]++
		return fmt.Errorf("call %d of %s failed", f.calls[e.ID], e.ID)
	}
	f.inARow[e.ID] = 0
	return nil
}

// foldRows returns the handler of a read model, which keeps the fold of each key in
// table. Each event must take effect once: wrong is called for an event that comes
// again or too early.
func foldRows(table string, check func(*eventlog.Event) error, wrong func(string)) func(context.Context, pgx.Tx, []eventlog.Event) error {
	return func(ctx context.Context, tx pgx.Tx, es []eventlog.Event) error {
		keys := map[string]bool{}
		for i := range es {
			keys[es[i].Subject] = true
		}
		rows, err := tx.Query(ctx, `SELECT key, version, hash FROM `+table+` WHERE key = ANY($1)`, slices.Collect(maps.Keys(keys)))
		if err != nil {
			return err
		}
		at := map[string]folded{}
		var key string
		var f folded
		if _, err := pgx.ForEachRow(rows, []any{&key, &f.version, &f.hash}, func() error { at[key] = f; return nil }); err != nil {
			return err
		}
		for i := range es {
			e := &es[i]
			if e.Version != at[e.Subject].version+1 {
				wrong(fmt.Sprintf("%s after version %d", e.ID, at[e.Subject].version))
			}
			at[e.Subject] = at[e.Subject].with(e)
			if err := check(e); err != nil {
				return err
			}
		}
		var names []string
		var versions, hashes []int64
		for k, f := range at {
			names, versions, hashes = append(names, k), append(versions, f.version), append(hashes, f.hash)
		}
		_, err = tx.Exec(ctx, `INSERT INTO `+table+` SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[])
			ON CONFLICT (key) DO UPDATE SET version = EXCLUDED.version, hash = EXCLUDED.hash`, names, versions, hashes)
		return err
	}
}

func (b *bench) foldedRows(table string) map[string]folded {
	b.t.Helper()
	rows, err := b.db.Query(b.t.Context(), `SELECT key, version, hash FROM `+table)
	if err != nil {
		b.t.Fatal(err)
	}
	out := map[string]folded{}
	var key string
	var f folded
	if _, err := pgx.ForEachRow(rows, []any{&key, &f.version, &f.hash}, func() error { out[key] = f; return nil }); err != nil {
		b.t.Fatal(err)
	}
	return out
}

// 5 % of the handlers' calls fail, and every call for some events, while instances are
// killed, stopped and started twenty times. No event is lost, applied twice or handled
// out of its key's order. Every event that always fails is a dead letter with its
// reason, and no other event is. When the fault is mended, one replay of all dead
// letters makes the rows equal to a fold of the log from scratch.
func TestFailuresAndKillsLeaveTheFold(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		const kills = 20
		total := chaosSize(t)
		keys := total / 20
		b := newBench(t, cfg, everyKind("chaos")...)
		for _, table := range []string{"folded", "scratch"} {
			b.exec(`CREATE TABLE ` + table + ` (key text PRIMARY KEY, version bigint, hash bigint)`)
		}

		rnd := rand.New(rand.NewPCG(1, 2))
		want := map[string]folded{}
		var recs []*kgo.Record
		poison, broken, marked := map[string]bool{}, map[string]bool{}, map[string]bool{}
		events := 0
		for events < total {
			key := fmt.Sprint("k", rnd.IntN(keys))
			for _, r := range b.event(eventlog.Orders, key, "T") {
				e, err := eventlog.ParseRecord(r)
				if err != nil {
					t.Fatal(err)
				}
				recs = append(recs, r)
				if e.Type != "T" {
					continue
				}
				events++
				want[key] = want[key].with(&e)
				// At most one event of a key, so that none waits behind another in the end.
				if n := rnd.IntN(500); n < 2 && !marked[key] {
					marked[key] = true
					[]map[string]bool{poison, broken}[n][e.ID] = true
				}
			}
		}

		fault := map[string]*faults{}
		for i, kind := range []string{"Rows", "Each", "Batch"} {
			fault[kind] = &faults{seed: uint64(i) << 32, poison: poison, broken: broken, calls: map[string]uint64{}, inARow: map[string]int{}}
		}
		acted := map[string]*outside{"Each": {at: map[string]folded{}}, "Batch": {at: map[string]folded{}}}
		var mu sync.Mutex
		var wrong []string
		isWrong := func(s string) {
			mu.Lock()
			defer mu.Unlock()
			wrong = append(wrong, s)
		}
		consumers := []consumer.Consumer{
			{Name: "chaosRows", MaxBatch: 64, Rows: foldRows("folded", fault["Rows"].of, isWrong)},
			{Name: "chaosEach", Each: func(_ context.Context, e eventlog.Event) error {
				acted["Each"].apply(&e)
				return fault["Each"].of(&e) // the effect has happened all the same
			}},
			{Name: "chaosBatch", MaxBatch: 64, Batch: func(_ context.Context, es []eventlog.Event) error {
				for i := range es {
					acted["Batch"].apply(&es[i])
					if err := fault["Batch"].of(&es[i]); err != nil {
						return err
					}
				}
				return nil
			}},
		}
		for i := range consumers {
			consumers[i].Topics, consumers[i].Budget = []string{eventlog.Orders}, 10*total
			consumers[i].InPlaceTries = 2
		}
		begun := time.Now()

		type member struct{ kill, stop func() }
		var members []member
		join := func() {
			r := b.runtime()
			kill := r.Abandon()
			members = append(members, member{kill, start(t, r, consumers...)})
		}
		// passed is how many records the slowest and the fastest of the consumers have passed.
		passed := func() (slowest, fastest int) {
			rows, err := b.db.Query(t.Context(), `SELECT consumer, sum(next_offset)::bigint FROM tomato.checkpoints WHERE generation = 0 GROUP BY consumer`)
			if err != nil {
				t.Fatal(err)
			}
			at := map[string]int{}
			var name string
			var n int
			if _, err := pgx.ForEachRow(rows, []any{&name, &n}, func() error { at[name] = n; return nil }); err != nil {
				t.Fatal(err)
			}
			if len(at) < len(consumers) {
				return 0, 0
			}
			return slices.Min(slices.Collect(maps.Values(at))), slices.Max(slices.Collect(maps.Values(at)))
		}
		join()
		join()
		for k := range kills {
			from, to := k*len(recs)/kills, (k+1)*len(recs)/kills
			b.produce(recs[from:to]...)
			// Wait until the slowest consumer, or only the fastest, is in the middle of these records.
			long(t, total, "some progress", func() bool {
				slowest, fastest := passed()
				if k%4 == 0 {
					return slowest > from+(to-from)/4
				}
				return fastest > from+(to-from)/4
			}, b.counts)
			old := members[0]
			members = members[1:]
			if k%4 == 3 {
				go old.stop()
			} else {
				old.kill()
			}
			join()
		}
		done := func(more string) func() bool {
			return func() bool {
				slowest, _ := passed()
				return slowest == len(recs) && query[int](b, `SELECT count(*) FROM tomato.parked WHERE state = 'retry'`+more) == 0
			}
		}
		long(t, total, "the whole log has been handled or is parked for good", done(""), b.counts)
		t.Logf("%d events over %d keys, %d kills and stops: %v", events, len(want), kills, time.Since(begun).Round(time.Millisecond))

		tools := &parked.DeadLetters{DB: b.db, Kafka: cfg}
		for kind, f := range fault {
			name := "chaos" + kind
			for id, class := range b.deadLetters(name) {
				if (class != "poison" || !poison[id]) && (class != "transient" || !broken[id]) {
					t.Errorf("%s: %s is a dead letter of class %s", name, id, class)
				}
			}
			for id := range maps.Keys(poison) {
				b.wantLetter(name, id, "poison", "cannot be")
			}
			for id := range maps.Keys(broken) {
				b.wantLetter(name, id, "transient", "does not work")
			}
			b.wantInTopic(name, map[string]map[string]bool{"cannot be": poison, "does not work": broken})
			f.mu.Lock()
			f.mended = true
			t.Logf("%s: %d calls failed besides %d dead letters; %d records wait behind these", name, f.injected, len(poison)+len(broken),
				query[int](b, `SELECT count(*) FROM tomato.parked WHERE consumer = $1 AND state = 'waiting'`, name))
			if f.injected < total/25 {
				t.Errorf("%s: only %d calls failed", name, f.injected)
			}
			f.mu.Unlock()
			n := len(poison) + len(broken)
			if res, err := tools.Replay(t.Context(), parked.ReplayRequest{Consumer: name, All: true, ConfirmCount: n, Who: "test"}); err != nil || res.Replayed != n {
				t.Fatalf("replay of %d: %+v, %v", n, res, err)
			}
		}
		begun = time.Now()
		long(t, total, "everything parked is done", func() bool { return query[int](b, `SELECT count(*) FROM tomato.parked`) == 0 }, b.counts)
		t.Logf("replayed: %v", time.Since(begun).Round(time.Millisecond))

		scratch := consumer.Consumer{Name: "chaosRows", Generation: 2, Topics: []string{eventlog.Orders},
			Rows: foldRows("scratch", func(*eventlog.Event) error { return nil }, isWrong)}
		b.generation("chaosRows", 2)
		start(t, b.runtime(), scratch)
		long(t, total, "a fold from scratch", func() bool {
			return query[int](b, `SELECT coalesce(sum(next_offset), 0)::bigint FROM tomato.checkpoints WHERE generation = 2`) == len(recs)
		})
		if got := b.foldedRows("scratch"); !maps.Equal(got, want) {
			t.Error("the fold from scratch is not the fold: the test is wrong")
		}
		if n := query[int](b, `SELECT count(*) FROM (SELECT * FROM folded EXCEPT SELECT * FROM scratch) x`); n > 0 || !maps.Equal(b.foldedRows("folded"), want) {
			t.Errorf("rows of %d keys are not their fold", n)
		}
		mu.Lock()
		defer mu.Unlock()
		if len(wrong) > 0 {
			t.Errorf("Rows: %d events lost, repeated or out of order: %v", len(wrong), wrong[:min(len(wrong), 10)])
		}
		for kind, o := range acted {
			o.mu.Lock()
			if len(o.broken) > 0 || !maps.Equal(o.at, want) {
				t.Errorf("%s: %d events lost or out of order: %v", kind, len(o.broken), o.broken[:min(len(o.broken), 10)])
			}
			t.Logf("%s: %d of %d events came again", kind, o.repeats, events)
			o.mu.Unlock()
		}
	})
}

// long is eventually with a limit that grows with the number of events.
func long(t *testing.T, events int, what string, ok func() bool, state ...func() string) {
	t.Helper()
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(time.Minute + time.Duration(events)*2*time.Millisecond); !ok(); {
		select {
		case <-tick.C:
		case <-deadline:
			for _, s := range state {
				what += "; " + s()
			}
			t.Fatalf("not within its time: %s", what)
		}
	}
}

// counts returns what a failing test shows.
func (b *bench) counts() string {
	return query[string](b, `SELECT coalesce((SELECT json_agg(c)::text FROM tomato.checkpoints c), '') ||
		coalesce((SELECT json_agg(x)::text FROM (SELECT consumer, state, attempt, count(*), min(due_at) FROM tomato.parked GROUP BY 1, 2, 3) x), '')`)
}

// deadLetters returns the classes of a consumer's dead letters, by event id.
func (b *bench) deadLetters(name string) map[string]string {
	b.t.Helper()
	tools := &parked.DeadLetters{DB: b.db, Kafka: b.cfg}
	out := map[string]string{}
	for cursor := ""; ; {
		items, next, err := tools.List(b.t.Context(), name, 200, cursor)
		if err != nil {
			b.t.Fatal(err)
		}
		for _, d := range items {
			out[d.EventID] = d.Class
		}
		if cursor = next; next == "" {
			return out
		}
	}
}

func (b *bench) wantLetter(name, id, class, reason string) {
	b.t.Helper()
	var state, gotClass, text string
	var attempt int
	err := b.db.QueryRow(b.t.Context(), `SELECT state, class, error, attempt FROM tomato.parked WHERE consumer = $1 AND event_id = $2`, name, id).
		Scan(&state, &gotClass, &text, &attempt)
	attempts := map[string]int{"poison": 1, "transient": 3}[class]
	if err != nil || state != "dead" || gotClass != class || text != id+" "+reason || attempt != attempts {
		b.t.Errorf("%s: %s is %s after %d attempts, class %s, reason %q, %v", name, id, state, attempt, gotClass, text, err)
	}
}

// wantInTopic checks that a dead letter topic has exactly these events, which are given
// by their reasons. It may have an event twice after a crash.
func (b *bench) wantInTopic(name string, reasons map[string]map[string]bool) {
	b.t.Helper()
	topic := eventlog.ParkedTopic(eventlog.Orders, name, "dlq")
	ends, err := b.adm.ListEndOffsets(b.t.Context(), topic)
	if err != nil {
		b.t.Fatal(err)
	}
	left := map[int32]int64{}
	for _, o := range ends[topic] {
		if o.Offset > 0 {
			left[o.Partition] = o.Offset
		}
	}
	cl := eventlogtest.Client(b.t, b.cfg, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	found := map[string]bool{}
	for len(left) > 0 {
		fetches := cl.PollFetches(b.t.Context())
		if err := errors.Join(b.t.Context().Err(), fetches.Err()); err != nil {
			b.t.Fatal(err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			h := map[string]string{}
			for _, x := range r.Headers {
				h[x.Key] = string(x.Value)
			}
			id := h["ce_id"]
			known := false
			for reason, ids := range reasons {
				known = known || ids[id] && h["error"] == id+" "+reason
			}
			if !known {
				b.t.Errorf("%s has %s, because %q", topic, id, h["error"])
			}
			found[id] = true
			if r.Offset == left[r.Partition]-1 {
				delete(left, r.Partition)
			}
		})
	}
	n := 0
	for _, ids := range reasons {
		n += len(ids)
	}
	if len(found) != n {
		b.t.Errorf("%s has %d of %d events", topic, len(found), n)
	}
}
