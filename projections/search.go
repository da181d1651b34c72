package projections

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"

	"tomato/domain/nearby"
	"tomato/eventlog"
	"tomato/eventlog/pgerr"
)

// OrderOf returns the id of the order that a gateway order belongs to. It first
// waits until the payments read model has passed after. ok is false if the read
// model knows no such order.
func (m *ReadModels) OrderOf(ctx context.Context, gatewayOrderID string, after eventlog.Token) (orderID string, ok bool, err error) {
	err = m.Read(ctx, after, []string{Payments}, func(schemas []string) error {
		err := m.searchDB().QueryRow(ctx, `SELECT order_id FROM `+schemas[0]+`.payments WHERE gateway_order_id = $1 AND order_id <> '' LIMIT 1`,
			gatewayOrderID).Scan(&orderID)
		if errors.Is(err, pgx.ErrNoRows) {
			orderID, err = "", nil
		}
		return err
	})
	return orderID, orderID != "", err
}

// nearest returns the statement that answers many searches. For each search,
// Postgres walks the index on location in the order of distance. It stops when it
// has enough riders, or at the edge of the box around the circle. Without the box, a
// search in an empty area would walk through all riders. The corners of the box
// outside the circle are left out in the outer query, where that costs nothing. The
// operator <-> is the distance on the sphere.
//
// Within some nanometres of the equator or of longitude 0, ±90 or ±180, PostGIS
// finds its own order wrong because of rounding, and the statement fails (XX000,
// "index returned tuples in wrong order"). With sorted, Postgres sorts the riders in
// the box instead of walking the index.
func nearest(schema string, sorted bool) string {
	walk := ""
	if sorted {
		walk = " + 0" // the index has no order of this expression
	}
	return `SELECT s.i, c.rider_id, c.meters
		FROM unnest($1::int[], $2::float8[], $3::float8[], $4::float8[], $5::text[]) AS s(i, lng, lat, radius, without)
		CROSS JOIN LATERAL (
			SELECT f.rider_id, f.location <-> ST_MakePoint(s.lng, s.lat)::geography AS meters
			FROM ` + schema + `.free_riders f
			WHERE f.location && _ST_Expand(ST_MakePoint(s.lng, s.lat)::geography, s.radius)
			  AND f.recorded_at > $6 AND f.rider_id <> ALL (s.without::text[])
			ORDER BY (f.location <-> ST_MakePoint(s.lng, s.lat)::geography)` + walk + `
			LIMIT $7
		) c
		WHERE c.meters <= s.radius
		ORDER BY s.i, c.meters, c.rider_id`
}

// Nearest answers all searches in one round trip. The answer to a search has the
// free, verified riders within its radius who have a position younger than maxAge,
// nearest first. Nearest waits until the riders read model has passed after, for
// wait at the longest, and then answers from the rows that are there. complete
// reports whether the read model had passed after.
func (m *ReadModels) Nearest(ctx context.Context, searches []nearby.Search, maxAge time.Duration, after eventlog.Token, wait time.Duration) (_ [][]nearby.Rider, complete bool, _ error) {
	if len(searches) == 0 {
		return nil, true, nil
	}
	n := len(searches)
	index, lngs, lats, radii := make([]int32, n), make([]float64, n), make([]float64, n), make([]float64, n)
	without, most := make([]string, n), 0
	for i, s := range searches {
		index[i], lngs[i], lats[i], radii[i] = int32(i), s.Point.Lng, s.Point.Lat, float64(s.RadiusMeters)
		without[i] = arrayText(s.Without)
		most = max(most, s.Limit)
	}
	var found [][]nearby.Rider
	search := func(schema string, sorted bool) error {
		found = make([][]nearby.Rider, n)
		rows, err := m.searchDB().Query(ctx, nearest(schema, sorted), index, lngs, lats, radii, without, time.Now().Add(-maxAge), most)
		if err != nil {
			return err
		}
		var i int
		var c nearby.Rider
		var meters float64
		_, err = pgx.ForEachRow(rows, []any{&i, &c.RiderID, &meters}, func() error {
			if len(found[i]) < searches[i].Limit { // the statement's LIMIT is the largest of all searches
				c.DistanceMeters = int(math.Round(meters))
				found[i] = append(found[i], c)
			}
			return nil
		})
		return err
	}
	complete, err := m.readWithin(ctx, wait, after, []string{Riders}, func(schemas []string) error {
		err := search(schemas[0], false)
		if pgerr.Code(err) == "XX000" {
			return search(schemas[0], true)
		}
		return err
	})
	if err != nil {
		return nil, false, fmt.Errorf("search riders: %w", err)
	}
	return found, complete, nil
}

// Waiting returns the orders that riders who became eligible may be offered. These
// are the orders that wait for a rider, whose search is not exhausted, and within
// whose radius the rider is. The radius is that of the open wave, or of the next
// wave if none is open: radii[wave-1] in meters, and the last of radii for later
// waves. An order is left out for a rider who has an offer in its open wave already,
// or who declined or dropped it in this round.
//
// Waiting first waits until the read models have passed after, for wait at the
// longest, and then answers from the rows that are there.
func (m *ReadModels) Waiting(ctx context.Context, riderIDs []string, radii []int, maxAge time.Duration, after eventlog.Token, wait time.Duration) ([]nearby.WaitingOrder, error) {
	if len(riderIDs) == 0 || len(radii) == 0 {
		return nil, nil
	}
	meters, widest := make([]float64, len(radii)), 0.0
	for i, r := range radii {
		meters[i] = float64(r)
		widest = max(widest, meters[i])
	}
	var found []nearby.WaitingOrder
	_, err := m.readWithin(ctx, wait, after, []string{Riders, Orders}, func(schemas []string) error {
		rows, err := m.searchDB().Query(ctx, `
			SELECT o.id, f.rider_id, o.meters
			FROM `+schemas[0]+`.free_riders f
			CROSS JOIN LATERAL (
				SELECT o.id, CASE WHEN o.wave_open THEN greatest(o.wave, 1) ELSE o.wave + 1 END AS wave, o.pick_up <-> f.location AS meters
				FROM `+schemas[1]+`.orders o
				WHERE o.waiting AND o.pick_up && _ST_Expand(f.location, $3) AND f.rider_id <> ALL (o.asked)
			) o
			WHERE f.rider_id = ANY ($1) AND f.recorded_at > $4
			  AND o.meters <= ($2::float8[])[least(o.wave, cardinality($2::float8[]))]
			ORDER BY f.rider_id, o.meters, o.id`,
			riderIDs, meters, widest, time.Now().Add(-maxAge))
		if err != nil {
			return err
		}
		found, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (w nearby.WaitingOrder, err error) {
			var meters float64
			err = row.Scan(&w.OrderID, &w.RiderID, &meters)
			w.DistanceMeters = int(math.Round(meters))
			return w, err
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("search waiting orders: %w", err)
	}
	return found, nil
}

// Passed waits until the riders read model has passed after. It fails with
// eventlog.ErrBehind if that takes longer than MaxWait.
func (m *ReadModels) Passed(ctx context.Context, after eventlog.Token) error {
	return m.Read(ctx, after, []string{Riders}, func([]string) error { return nil })
}
