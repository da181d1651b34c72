package projections

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/projections/realtime"
)

// FeedStart returns where a realtime projector may begin: the checkpoints of the
// serving generations of orders and payments, and the orders that have a rider, all
// as of one moment.
func (m *ReadModels) FeedStart(ctx context.Context) (realtime.Start, error) {
	start := realtime.Start{Marks: map[eventlog.TopicPartition]consumer.Mark{}}
	orders, err := m.Serving(ctx, Orders)
	if err != nil {
		return start, err
	}
	payments, err := m.Serving(ctx, Payments)
	if err != nil {
		return start, err
	}
	err = pgx.BeginTxFunc(ctx, m.DB, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `SELECT topic, partition, next_offset, term, seq, event_time FROM tomato.checkpoints
			WHERE (consumer, generation) IN (($1, $2), ($3, $4))`, orders.Model, orders.Number, payments.Model, payments.Number)
		if err != nil {
			return err
		}
		var tp eventlog.TopicPartition
		var mark consumer.Mark
		var at *time.Time
		_, err = pgx.ForEachRow(rows, []any{&tp.Topic, &tp.Partition, &mark.Next, &mark.Rule.Term, &mark.Rule.Seq, &at}, func() error {
			mark.Time = time.Time{}
			if at != nil {
				mark.Time = *at
			}
			start.Marks[tp] = mark
			return nil
		})
		if err != nil {
			return err
		}
		rows, err = tx.Query(ctx, `SELECT state FROM `+orders.Schema()+`.orders WHERE closed = '' AND rider_id <> ''`)
		if err != nil {
			return err
		}
		var text []byte
		_, err = pgx.ForEachRow(rows, []any{&text}, func() error {
			var s order.State
			if err := domain.DecodeJSON(text, &s); err != nil {
				return err
			}
			start.Assigned = append(start.Assigned, realtime.Assignment{RiderID: s.RiderID, ClaimID: s.ClaimID, OrderID: s.ID,
				CustomerID: s.CustomerID, RestaurantID: s.RestaurantID})
			return nil
		})
		return err
	})
	if err != nil {
		return start, fmt.Errorf("where the feed begins: %w", err)
	}
	return start, nil
}

// Orders returns those of the orders that the read model has, by id. It is for the feed.
func (m *ReadModels) Orders(ctx context.Context, orderIDs []string) (all map[string]*order.State, err error) {
	err = m.Read(ctx, nil, []string{Orders}, func(schemas []string) error {
		all = make(map[string]*order.State, len(orderIDs))
		rows, err := m.DB.Query(ctx, `SELECT state FROM `+schemas[0]+`.orders WHERE id = ANY($1)`, orderIDs)
		if err != nil {
			return err
		}
		var text []byte
		_, err = pgx.ForEachRow(rows, []any{&text}, func() error {
			s := new(order.State)
			if err := domain.DecodeJSON(text, s); err != nil {
				return err
			}
			all[s.ID] = s
			return nil
		})
		return err
	})
	return all, err
}
