package projections

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
)

// positions is the table of each rider's latest position. It is telemetry, not
// a fold: one that is older than the last is dropped, and so is a record that is
// no position.
type positions struct{}

func (positions) apply(ctx context.Context, tx pgx.Tx, schema string, events []eventlog.Event) error {
	latest, now := make(map[string]rider.Position, len(events)), time.Now()
	for i := range events {
		e := &events[i]
		p, err := rider.ReadPosition(e.Type, e.Subject, e.Data, now)
		if err != nil {
			consumer.Skip(ctx, e, err)
			continue
		}
		if old, ok := latest[p.RiderID]; !ok || !p.RecordedAt.Before(old.RecordedAt) {
			latest[p.RiderID] = p
		}
	}
	n := len(latest)
	if n == 0 {
		return nil
	}
	// By rider id: unsorted concurrent writers deadlock.
	ids := slices.Sorted(maps.Keys(latest))
	lngs, lats, times := make([]float64, n), make([]float64, n), make([]time.Time, n)
	for i, id := range ids {
		p := latest[id]
		lngs[i], lats[i], times[i] = p.Location.Lng, p.Location.Lat, p.RecordedAt
	}
	batch := &pgx.Batch{}
	takeTurns(batch, schema, events[0].Partition)
	batch.Queue(`INSERT INTO `+schema+`.rider_positions AS p (rider_id, location, recorded_at)
		SELECT u.id, ST_MakePoint(u.lng, u.lat)::geography, u.at
		FROM unnest($1::text[], $2::float8[], $3::float8[], $4::timestamptz[]) AS u(id, lng, lat, at)
		ON CONFLICT (rider_id) DO UPDATE SET location = EXCLUDED.location, recorded_at = EXCLUDED.recorded_at
		WHERE p.recorded_at <= EXCLUDED.recorded_at OR p.recorded_at > $5`, ids, lngs, lats, times, now.Add(rider.MaxAhead))
	batch.Queue(joinFreeRiders(schema)+` AND p.rider_id = ANY ($1) ORDER BY p.rider_id`+replaceFreeRiders, ids)
	return tx.SendBatch(ctx, batch).Close()
}

// takeTurns makes the lanes of riders and of rider-locations in one partition
// wait for each other until they commit: both write free_riders from what the
// other one wrote last. Riders and their positions have the same partition.
func takeTurns(batch *pgx.Batch, schema string, partition int32) {
	batch.Queue(`SELECT pg_advisory_xact_lock(hashtext($1), $2)`, schema, partition)
}

// joinFreeRiders puts those who are in both tables into free_riders.
func joinFreeRiders(schema string) string {
	return `INSERT INTO ` + schema + `.free_riders AS f (rider_id, name, location, recorded_at)
		SELECT p.rider_id, r.name, p.location, p.recorded_at
		FROM ` + schema + `.rider_positions p JOIN ` + schema + `.riders r ON r.id = p.rider_id WHERE r.eligible`
}

const replaceFreeRiders = ` ON CONFLICT (rider_id) DO UPDATE SET name = EXCLUDED.name, location = EXCLUDED.location, recorded_at = EXCLUDED.recorded_at`

// keepFreeRiders is what the lanes of riders do about free_riders.
func keepFreeRiders(batch *pgx.Batch, schema string, partition int32, ids []string, write func()) {
	takeTurns(batch, schema, partition)
	write()
	batch.Queue(`DELETE FROM `+schema+`.free_riders f USING `+schema+`.riders r WHERE r.id = f.rider_id AND NOT r.eligible AND f.rider_id = ANY ($1)`, ids)
	batch.Queue(joinFreeRiders(schema)+` AND p.rider_id = ANY ($1) ORDER BY p.rider_id`+replaceFreeRiders, ids)
}

func (positions) filler(string) filler { return nil }

func (positions) names() []string { return nil }
