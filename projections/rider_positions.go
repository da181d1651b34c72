package projections

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
)

// riderPositions is the table rider_positions: the latest position of each rider.
// Positions are telemetry, so the table is not a fold. A position that was
// recorded before the one in the table changes nothing. A tombstone takes the
// position out, as when a rider is erased. A record that is not a valid position
// is skipped and counted.
type riderPositions struct{}

func (riderPositions) apply(ctx context.Context, tx pgx.Tx, schema string, events []eventlog.Event) error {
	latest, now := make(map[string]rider.Position, len(events)), time.Now()
	var gone []string // riders with a tombstone; latest has what came after it
	for i := range events {
		e := &events[i]
		if consumer.IsErasure(e) {
			gone = append(gone, e.Subject)
			delete(latest, e.Subject)
			continue
		}
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
	if n == 0 && len(gone) == 0 {
		return nil
	}
	// The rows are written by rider id, because writers that lock the same rows in
	// different orders deadlock.
	ids := slices.Sorted(maps.Keys(latest))
	lngs, lats, times := make([]float64, n), make([]float64, n), make([]time.Time, n)
	for i, id := range ids {
		p := latest[id]
		lngs[i], lats[i], times[i] = p.Location.Lng, p.Location.Lat, p.RecordedAt
	}
	batch := &pgx.Batch{}
	lockFreeRiders(batch, schema, partitionsOf(events))
	if len(gone) > 0 {
		slices.Sort(gone)
		gone = slices.Compact(gone)
		for _, table := range []string{"rider_positions", "free_riders"} {
			batch.Queue(`DELETE FROM `+schema+`.`+table+` WHERE rider_id = ANY ($1)`, gone)
		}
	}
	batch.Queue(`INSERT INTO `+schema+`.rider_positions AS p (rider_id, location, recorded_at)
		SELECT u.id, ST_MakePoint(u.lng, u.lat)::geography, u.at
		FROM unnest($1::text[], $2::float8[], $3::float8[], $4::timestamptz[]) AS u(id, lng, lat, at)
		ON CONFLICT (rider_id) DO UPDATE SET location = EXCLUDED.location, recorded_at = EXCLUDED.recorded_at
		WHERE p.recorded_at <= EXCLUDED.recorded_at OR p.recorded_at > $5`, ids, lngs, lats, times, now.Add(rider.MaxAhead))
	batch.Queue(joinFreeRiders(schema)+` AND p.rider_id = ANY ($1) ORDER BY p.rider_id`+replaceFreeRiders, ids)
	return tx.SendBatch(ctx, batch).Close()
}

// lockFreeRiders takes the locks of the given partitions of free_riders, which are
// sorted, until the transaction ends. A rider has the same partition in riders and in
// rider-locations, and the workers of both topics write the rider's row in
// free_riders from both tables. The locks make each of the two see what the other
// wrote last.
func lockFreeRiders(batch *pgx.Batch, schema string, partitions []int32) {
	for _, p := range partitions {
		batch.Queue(`SELECT pg_advisory_xact_lock(hashtext($1), $2)`, schema, p)
	}
}

// joinFreeRiders returns the statement that puts the eligible riders who have a
// position into free_riders. A caller may add a condition on p.rider_id.
func joinFreeRiders(schema string) string {
	return `INSERT INTO ` + schema + `.free_riders AS f (rider_id, name, location, recorded_at)
		SELECT p.rider_id, r.name, p.location, p.recorded_at
		FROM ` + schema + `.rider_positions p JOIN ` + schema + `.riders r ON r.id = p.rider_id WHERE r.eligible`
}

// replaceFreeRiders ends a statement of joinFreeRiders for riders who may have a
// row already.
const replaceFreeRiders = ` ON CONFLICT (rider_id) DO UPDATE SET name = EXCLUDED.name, location = EXCLUDED.location, recorded_at = EXCLUDED.recorded_at`

// keepFreeRiders is the hook around of the table riders. When the rows of ids
// have been written, it takes riders who are not eligible any more out of
// free_riders and puts in those who are.
func keepFreeRiders(batch *pgx.Batch, schema string, partitions []int32, ids []string, write func()) {
	lockFreeRiders(batch, schema, partitions)
	write()
	batch.Queue(`DELETE FROM `+schema+`.free_riders f USING `+schema+`.riders r WHERE r.id = f.rider_id AND NOT r.eligible AND f.rider_id = ANY ($1)`, ids)
	batch.Queue(joinFreeRiders(schema)+` AND p.rider_id = ANY ($1) ORDER BY p.rider_id`+replaceFreeRiders, ids)
}

// copyPositions copies the rider positions together with their checkpoint, both
// as of one moment, and makes free_riders. A rebuild cannot fold positions again,
// because the topic rider-locations is compacted.
func copyPositions(ctx context.Context, db *pgxpool.Pool, from, to Generation) error {
	err := pgx.BeginTxFunc(ctx, db, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO tomato.checkpoints (consumer, generation, topic, partition, next_offset, term, seq, event_time, since)
			SELECT consumer, $3, topic, partition, next_offset, term, seq, event_time, since FROM tomato.checkpoints
			WHERE consumer = $1 AND generation = $2 AND topic = $4`, from.Model, from.Number, to.Number, eventlog.RiderLocations)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `INSERT INTO `+to.Schema()+`.rider_positions (rider_id, location, recorded_at)
			SELECT rider_id, location, recorded_at FROM `+from.Schema()+`.rider_positions`)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, joinFreeRiders(to.Schema()))
		return err
	})
	if err != nil {
		return fmt.Errorf("copying positions to %s: %w", to, err)
	}
	return nil
}
