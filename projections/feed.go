package projections

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/eventlog"
	"tomato/projections/realtime"
)

// FeedStart says where a feed begins: at the checkpoints of the read models,
// with the orders that riders are bringing. It implements realtime.Loader.
func (m *ReadModels) FeedStart(ctx context.Context) (realtime.Start, error) {
	start := realtime.Start{Marks: map[eventlog.TopicPartition]eventlog.Mark{}}
	for _, model := range []string{Orders, Payments} {
		g, err := m.Serving(ctx, model)
		if err != nil {
			return start, err
		}
		// The marks first: the assignments may be later than they, not earlier.
		rows, err := m.DB.Query(ctx, `SELECT topic, partition, next_offset, term, seq, coalesce(event_time, 'epoch') FROM tomato.checkpoints
			WHERE consumer = $1 AND generation = $2`, g.Model, g.Number)
		if err != nil {
			return start, err
		}
		var tp eventlog.TopicPartition
		var mark eventlog.Mark
		if _, err := pgx.ForEachRow(rows, []any{&tp.Topic, &tp.Partition, &mark.Next, &mark.Rule.Term, &mark.Rule.Seq, &mark.Time}, func() error {
			start.Marks[tp] = mark
			return nil
		}); err != nil {
			return start, err
		}
	}
	err := m.Read(ctx, nil, []string{Orders}, func(schemas []string) error {
		rows, err := m.DB.Query(ctx, `SELECT state FROM `+schemas[0]+`.orders WHERE closed = '' AND rider_id <> ''`)
		if err != nil {
			return err
		}
		start.Assigned = nil
		var state string
		_, err = pgx.ForEachRow(rows, []any{&state}, func() error {
			var o order.State
			if err := json.Unmarshal([]byte(state), &o); err != nil {
				return err
			}
			start.Assigned = append(start.Assigned, realtime.Assignment{RiderID: o.RiderID, ClaimID: o.ClaimID, OrderID: o.ID,
				CustomerID: o.CustomerID, RestaurantID: o.RestaurantID})
			return nil
		})
		return err
	})
	return start, err
}

// partyWait bounds how long OrderParty takes.
const partyWait = 2 * time.Second

// OrderParty says whether the actor is a party of the order, as far as the
// orders read model knows it.
func (m *ReadModels) OrderParty(ctx context.Context, orderID string, actor domain.Actor) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, partyWait)
	defer cancel()
	party := false
	err := m.Read(ctx, nil, []string{Orders}, func(schemas []string) error {
		rows, err := m.DB.Query(ctx, `SELECT state FROM `+schemas[0]+`.orders WHERE id = $1`, orderID)
		if err != nil {
			return err
		}
		var state string
		_, err = pgx.ForEachRow(rows, []any{&state}, func() error {
			var o order.State
			if err := json.Unmarshal([]byte(state), &o); err != nil {
				return fmt.Errorf("order %s: %w", orderID, err)
			}
			party = o.Party(actor)
			return nil
		})
		return err
	})
	return party, err
}
