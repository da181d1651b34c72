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

// riderPositions is the table rider_positions: the latest position of each rider, and
// whether the rider is free. The workers of two topics write it, each of them its own
// columns. riderPositions writes those of the position; keepFreeRiders writes the others.
//
// No update is lost. The value of a column depends on events of one topic only, and one
// worker at a time writes it, because its transaction moves the checkpoint of the
// partition. A statement that meets a row which another transaction has changed waits for
// its end and then changes the row as it is at that time, so the columns of the other
// topic stay as they are. This also holds for a row that both insert at once: the second
// one finds the row and updates it.
//
// Nobody deadlocks. A transaction has events of only one of the two topics, because
// positions are never committed together with other partitions (commit in package
// eventlog/consumer). It locks rows of this table in one statement, sorted by rider id.
//
// Positions are telemetry, so these columns are not a fold. A position that was recorded
// before the one in the table changes nothing. A tombstone takes the position out, as
// when a rider is erased. A record that is not a valid position is skipped and counted.
type riderPositions struct{}

func (riderPositions) apply(ctx context.Context, tx pgx.Tx, g Generation, events []eventlog.Event) error {
	schema := g.Schema()
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
	if len(latest) == 0 && len(gone) == 0 {
		return nil
	}
	ids := slices.Collect(maps.Keys(latest))
	for _, id := range gone {
		if _, ok := latest[id]; !ok {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	ids = slices.Compact(ids)
	n := len(ids)
	lngs, lats, times := make([]*float64, n), make([]*float64, n), make([]*time.Time, n) // nil: no position any more
	for i, id := range ids {
		if p, ok := latest[id]; ok {
			lngs[i], lats[i], times[i] = &p.Location.Lng, &p.Location.Lat, &p.RecordedAt
		}
	}
	_, err := tx.Exec(ctx, `INSERT INTO `+schema+`.rider_positions AS p (rider_id, location, recorded_at)
		SELECT u.id, ST_MakePoint(u.lng, u.lat)::geography, u.at
		FROM unnest($1::text[], $2::float8[], $3::float8[], $4::timestamptz[]) AS u(id, lng, lat, at)
		WHERE u.at IS NOT NULL OR EXISTS (SELECT FROM `+schema+`.rider_positions old WHERE old.rider_id = u.id)
		ON CONFLICT (rider_id) DO UPDATE SET location = EXCLUDED.location, recorded_at = EXCLUDED.recorded_at, stale = false
		WHERE p.recorded_at IS NULL OR p.recorded_at <= EXCLUDED.recorded_at OR p.recorded_at > $5 OR p.rider_id = ANY ($6)`,
		ids, lngs, lats, times, now.Add(rider.MaxAhead), gone)
	return err
}

// keepFreeRiders is the hook after of the table riders. It copies into rider_positions
// who is eligible, of the riders whose rows have been written. A rider whose row has gone
// is not eligible any more; that happens if the rider's first event is skipped.
//
// OFFSET 0 makes the search for one rider a part of its own. Otherwise Postgres keeps a
// plan that reads all riders, which it has made while they were few.
func keepFreeRiders(batch *pgx.Batch, schema string, ids []string) {
	batch.Queue(`INSERT INTO `+schema+`.rider_positions AS p (rider_id, name, eligible)
		SELECT u.id, r.name, coalesce(r.eligible, false)
		FROM unnest($1::text[]) WITH ORDINALITY AS u(id, n) LEFT JOIN LATERAL (SELECT id, name, eligible FROM `+schema+`.riders WHERE id = u.id OFFSET 0) r ON true
		WHERE r.id IS NOT NULL OR EXISTS (SELECT FROM `+schema+`.rider_positions old WHERE old.rider_id = u.id) ORDER BY u.n
		ON CONFLICT (rider_id) DO UPDATE SET name = EXCLUDED.name, eligible = EXCLUDED.eligible
		WHERE (p.name, p.eligible) IS DISTINCT FROM (EXCLUDED.name, EXCLUDED.eligible)`, ids)
}

// copyPositions copies the rider positions together with their checkpoint, both as of one
// moment. Who is eligible comes from the new generation's own riders. A rebuild cannot
// fold positions again, because the topic rider-locations is compacted.
func copyPositions(ctx context.Context, db *pgxpool.Pool, from, to Generation) error {
	err := pgx.BeginTxFunc(ctx, db, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, unboundedSQL, true); err != nil {
			return err
		}
		// The fill may have written rows of some riders, or an older copy is there.
		if _, err := tx.Exec(ctx, `DELETE FROM `+to.Schema()+`.rider_positions`); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO tomato.checkpoints (consumer, generation, topic, partition, next_offset, term, seq, event_time, since)
			SELECT consumer, $3, topic, partition, next_offset, term, seq, event_time, since FROM tomato.checkpoints
			WHERE consumer = $1 AND generation = $2 AND topic = $4
			ON CONFLICT (consumer, generation, topic, partition) DO UPDATE SET next_offset = EXCLUDED.next_offset, term = EXCLUDED.term, seq = EXCLUDED.seq,
				event_time = EXCLUDED.event_time, since = EXCLUDED.since, epoch = checkpoints.epoch + 1, updated_at = now()`, from.Model, from.Number, to.Number, eventlog.RiderLocations)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `INSERT INTO `+to.Schema()+`.rider_positions (rider_id, location, recorded_at, stale, name, eligible)
			SELECT coalesce(r.id, p.rider_id), p.location, p.recorded_at, coalesce(p.stale, false), r.name, coalesce(r.eligible, false)
			FROM (SELECT * FROM `+from.Schema()+`.rider_positions WHERE location IS NOT NULL) p
			FULL JOIN `+to.Schema()+`.riders r ON r.id = p.rider_id`)
		return err
	})
	if err != nil {
		return fmt.Errorf("copying positions to %s: %w", to, err)
	}
	return nil
}
