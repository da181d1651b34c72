package projections

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"tomato/domain"
	"tomato/eventlog"
	"tomato/projections/realtime"
)

// positions is the table of each rider's latest position. It is telemetry, not
// a fold: one that is older than the last is dropped.
type positions struct{}

func (positions) apply(ctx context.Context, tx pgx.Tx, schema string, events []eventlog.Event) error {
	latest := make(map[string]realtime.Position, len(events))
	for i := range events {
		e := &events[i]
		if e.Type != realtime.PositionType {
			continue
		}
		var p realtime.Position
		if err := json.Unmarshal(e.Data, &p); err != nil || !domain.ValidID(p.RiderID) || p.RecordedAt.IsZero() || !p.Location.Valid() {
			return eventlog.Poison(fmt.Errorf("%s/%d@%d is no position: %v", e.Topic, e.Partition, e.Offset, err))
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
	_, err := tx.Exec(ctx, `INSERT INTO `+schema+`.rider_positions AS p (rider_id, location, recorded_at)
		SELECT u.id, ST_MakePoint(u.lng, u.lat)::geography, u.at
		FROM unnest($1::text[], $2::float8[], $3::float8[], $4::timestamptz[]) AS u(id, lng, lat, at)
		ON CONFLICT (rider_id) DO UPDATE SET location = EXCLUDED.location, recorded_at = EXCLUDED.recorded_at
		WHERE p.recorded_at <= EXCLUDED.recorded_at`, ids, lngs, lats, times)
	return err
}

func (positions) filler(string) filler { return nil }

func (positions) names() []string { return nil }
