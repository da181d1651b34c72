package projections_test

import (
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"tomato/domain"
	"tomato/domain/nearby"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/projections"
)

// metersBetween returns the distance on the sphere (haversine).
func metersBetween(a, b domain.Point) float64 {
	const radius = 6371008.7714
	rad := math.Pi / 180
	dLat, dLng := (b.Lat-a.Lat)*rad, (b.Lng-a.Lng)*rad
	h := math.Pow(math.Sin(dLat/2), 2) + math.Cos(a.Lat*rad)*math.Cos(b.Lat*rad)*math.Pow(math.Sin(dLng/2), 2)
	return 2 * radius * math.Asin(math.Min(1, math.Sqrt(h)))
}

// The search walks an index within a box and leaves out what is outside the circle. It
// must find the same riders as a look at every rider, also at the date line and near the
// poles.
func TestNearestIsWhatLookingAtEveryRiderFinds(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	type known struct {
		id       string
		at       domain.Point
		eligible bool
		fresh    bool
	}
	rapid.Check(t, func(t *rapid.T) {
		middle := rapid.SampledFrom([]domain.Point{{Lng: 77.5946, Lat: 12.9716}, {Lng: 179.99, Lat: -16.8}, {Lng: -179.99, Lat: 0}, {Lng: 25, Lat: 71}, {Lng: 0, Lat: 89.9}}).Draw(t, "middle")
		point := rapid.Custom(func(t *rapid.T) domain.Point {
			p := domain.Point{
				Lng: middle.Lng + float64(rapid.IntRange(-300, 300).Draw(t, "lng"))*1e-4/math.Max(0.01, math.Cos(middle.Lat*math.Pi/180)),
				Lat: math.Min(90, middle.Lat+float64(rapid.IntRange(-300, 300).Draw(t, "lat"))*1e-4),
			}
			if p.Lng > 180 {
				p.Lng -= 360
			} else if p.Lng < -180 {
				p.Lng += 360
			}
			return p
		})
		riders := make([]known, rapid.IntRange(0, 60).Draw(t, "riders"))
		ids, lngs, lats, eligible, times := []string{}, []float64{}, []float64{}, []bool{}, []time.Time{}
		now := time.Now()
		for i := range riders {
			r := known{fmt.Sprintf("rider%d", i), point.Draw(t, "rider"), rapid.IntRange(0, 2).Draw(t, "eligible") > 0, rapid.IntRange(0, 5).Draw(t, "fresh") > 0}
			riders[i] = r
			ids, lngs, lats, eligible = append(ids, r.id), append(lngs, r.at.Lng), append(lats, r.at.Lat), append(eligible, r.eligible)
			times = append(times, map[bool]time.Time{true: now, false: now.Add(-time.Hour)}[r.fresh])
		}
		batch := &pgx.Batch{}
		batch.Queue(`TRUNCATE riders_g1.riders, riders_g1.rider_positions`)
		batch.Queue(`INSERT INTO riders_g1.riders (id, version, name, eligible, order_id, claim_id, state)
			SELECT id, 1, id, e, '', 0, '{}' FROM unnest($1::text[], $2::bool[]) u(id, e)`, ids, eligible)
		batch.Queue(`INSERT INTO riders_g1.rider_positions (rider_id, location, recorded_at, name, eligible)
			SELECT id, ST_MakePoint(lng, lat)::geography, at, id, e FROM unnest($1::text[], $2::float8[], $3::float8[], $4::timestamptz[], $5::bool[]) u(id, lng, lat, at, e)`,
			ids, lngs, lats, times, eligible)
		if err := b.db.SendBatch(b.t.Context(), batch).Close(); err != nil {
			t.Fatal(err)
		}
		searches := make([]nearby.Search, rapid.IntRange(1, 4).Draw(t, "searches"))
		for i := range searches {
			searches[i] = nearby.Search{Point: point.Draw(t, "point"), RadiusMeters: rapid.IntRange(1, 8000).Draw(t, "radius"), Limit: rapid.IntRange(1, 30).Draw(t, "limit")}
			for range rapid.IntRange(0, 3).Draw(t, "without") {
				searches[i].Without = append(searches[i].Without, fmt.Sprintf("rider%d", rapid.IntRange(0, 60).Draw(t, "one")))
			}
		}
		found, _, err := b.m.Nearest(b.t.Context(), searches, 5*time.Minute, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for i, s := range searches {
			var want []float64
			by := map[string]known{}
			for _, r := range riders {
				by[r.id] = r
				if d := metersBetween(s.Point, r.at); r.eligible && r.fresh && d <= float64(s.RadiusMeters) && !slices.Contains(s.Without, r.id) {
					want = append(want, d)
				}
			}
			slices.Sort(want)
			want = want[:min(len(want), s.Limit)]
			got := found[i]
			if len(got) != len(want) {
				t.Fatalf("search %+v: %d found, want %d", s, len(got), len(want))
			}
			for j, c := range got {
				r := by[c.RiderID]
				if !r.eligible || !r.fresh || slices.Contains(s.Without, r.id) {
					t.Fatalf("search %+v found %+v", s, r)
				}
				if math.Abs(want[j]-metersBetween(s.Point, r.at)) > 0.01 || math.Abs(want[j]-float64(c.DistanceMeters)) > 0.51 {
					t.Fatalf("search %+v: place %d is %+v, %v m away, want %v m", s, j, c, metersBetween(s.Point, r.at), want[j])
				}
				if slices.ContainsFunc(got[:j], func(o nearby.Rider) bool { return o.RiderID == c.RiderID }) {
					t.Fatalf("%s twice", c.RiderID)
				}
			}
		}
	})
}

// The workers of two topics write rider_positions. If one of them wrote a column of the
// other, a rider who comes online while their position changes would have an old position,
// or would be missing.
func TestFreeRidersAreTheJoinWhateverComesAtOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	const riders, rounds = 12, 40
	var mu sync.Mutex
	token := eventlog.Token{}
	var wg sync.WaitGroup
	wg.Go(func() {
		for round := range rounds {
			for i := range riders {
				id := fmt.Sprintf("rider%d", i)
				next := []domain.Event{rider.RiderOnline{RiderID: id}}
				if round == 0 {
					next = ready(id)
				} else if round%2 == 1 {
					next = []domain.Event{rider.RiderOffline{RiderID: id}}
				}
				seen := b.w.Append(eventlog.Riders, id, next...)
				mu.Lock()
				token.Merge(seen)
				mu.Unlock()
			}
		}
	})
	wg.Go(func() {
		for round := range rounds * 2 {
			for i := range riders {
				seen := b.position(fmt.Sprintf("rider%d", i), near(centre, float64(round)), time.Now())
				mu.Lock()
				token.Merge(seen)
				mu.Unlock()
			}
		}
	})
	wg.Wait()
	for i := range riders / 2 { // half of the riders are online at the end
		token.Merge(b.w.Append(eventlog.Riders, fmt.Sprintf("rider%d", i), rider.RiderOnline{RiderID: fmt.Sprintf("rider%d", i)}))
	}
	b.passed(projections.Riders, token)
	check := func(schema string) {
		t.Helper()
		join := `SELECT r.id, r.name, p.location, p.recorded_at FROM ` + schema + `.riders r JOIN ` + schema + `.rider_positions p ON p.rider_id = r.id WHERE r.eligible`
		var rows, differences int
		if err := b.db.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM `+schema+`.free_riders), (SELECT count(*) FROM
			((TABLE `+schema+`.free_riders EXCEPT ALL `+join+`) UNION ALL (`+join+` EXCEPT ALL TABLE `+schema+`.free_riders)) d)`).Scan(&rows, &differences); err != nil {
			t.Fatal(err)
		}
		if rows != riders/2 || differences != 0 {
			t.Errorf("%s: %d rows, %d differences", schema, rows, differences)
		}
	}
	check("riders_g1")
	if _, err := b.m.Rebuild(t.Context(), projections.Riders, projections.RebuildOptions{Runtime: b.runtime()}); err != nil {
		t.Fatal(err)
	}
	check("riders_g2")
}

// Nobody finds a rider whose last position is too old, so the rider must not stay in the
// index that every search walks. The next position brings the rider back.
func TestRidersWithOldPositionsLeaveTheIndexOfSearches(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.project(b.m)
	now, token := time.Now(), eventlog.Token{}
	put := func(id string, at time.Time) {
		t.Helper()
		token.Merge(b.position(id, centre, at))
	}
	for _, id := range []string{"away", "here", "back"} {
		token.Merge(b.w.Append(eventlog.Riders, id, ready(id)...))
		put(id, now.Add(-time.Hour))
	}
	put("here", now)
	b.passed(projections.Riders, token)
	free := func(schema, want string) {
		t.Helper()
		var got string
		if err := b.db.QueryRow(t.Context(), `SELECT string_agg(rider_id, ' ' ORDER BY rider_id) FROM `+schema+`.free_riders`).Scan(&got); err != nil || got != want {
			t.Errorf("%s: free riders are %q, %v; want %q", schema, got, err, want)
		}
	}
	hide := func() {
		t.Helper()
		if err := b.m.TendOnce(t.Context(), now.Add(-time.Minute)); err != nil {
			t.Fatal(err)
		}
	}

	// While another process is at it, this one leaves it alone.
	other, err := b.db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Exec(t.Context(), `SELECT pg_advisory_xact_lock(hashtextextended('tomato stale riders_g1', 0))`); err != nil {
		t.Fatal(err)
	}
	hide()
	free("riders_g1", "away back here")
	if err := other.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}

	// A row that is being written is skipped, because it may have a new position soon.
	other, err = b.db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Exec(t.Context(), `SELECT FROM riders_g1.rider_positions WHERE rider_id = 'back' FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	hide()
	free("riders_g1", "back here")
	if err := other.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	hide()
	free("riders_g1", "here")

	// Going offline and online is no position. A position is, even if it is old as well.
	token.Merge(b.w.Append(eventlog.Riders, "away", rider.RiderOffline{RiderID: "away"}, rider.RiderOnline{RiderID: "away"}))
	put("back", now.Add(-time.Hour+time.Second))
	b.passed(projections.Riders, token)
	free("riders_g1", "back here")

	if _, err := b.m.Rebuild(t.Context(), projections.Riders, projections.RebuildOptions{Runtime: b.runtime()}); err != nil {
		t.Fatal(err)
	}
	free("riders_g2", "back here")
	hide()
	free("riders_g2", "here")
	put("away", time.Now())
	b.passed(projections.Riders, token)
	free("riders_g2", "away here")
}

// The database of the tests has no autovacuum, as one that does not look often enough.
func TestDeadPositionsAreVacuumed(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	conn, err := b.db.Acquire(t.Context()) // one session, because each keeps its counts for itself at first
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	exec := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	table := func() (live, dead int, vacuumed bool) {
		t.Helper()
		if err := conn.QueryRow(t.Context(), `SELECT n_live_tup, n_dead_tup, last_vacuum IS NOT NULL FROM pg_stat_user_tables
			WHERE schemaname = 'riders_g1' AND relname = 'rider_positions'`).Scan(&live, &dead, &vacuumed); err != nil {
			t.Fatal(err)
		}
		return live, dead, vacuumed
	}
	tend := func() {
		t.Helper()
		exec(`SELECT pg_stat_force_next_flush()`)
		if err := b.m.TendOnce(t.Context(), time.Now().Add(-time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	move := func() {
		exec(`UPDATE riders_g1.rider_positions SET location = ST_MakePoint(random(), random())::geography`)
	}
	exec(`INSERT INTO riders_g1.rider_positions (rider_id, location, recorded_at, name, eligible)
		SELECT 'r' || i, ST_MakePoint(0, 0)::geography, now(), 'n', true FROM generate_series(1, 1500) i`)
	move()
	tend() // as many dead as live rows are left to autovacuum
	if live, dead, vacuumed := table(); live != 1500 || dead == 0 || vacuumed {
		t.Errorf("after one move %d live, %d dead, vacuumed %v", live, dead, vacuumed)
	}
	move()
	b.eventually("the dead rows are counted", func() bool { _, dead, _ := table(); return dead > 2500 })
	tend()
	b.eventually("they are removed", func() bool { _, dead, vacuumed := table(); return dead == 0 && vacuumed })
}
