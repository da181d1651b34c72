package bench

import (
	"context"
	"math/rand/v2"
	"time"

	"tomato/eventlog"
)

// ordersUnderWay is how many orders are under way at the same time in the history that
// writeInterleaved writes.
const ordersUnderWay = 1000

// writeInterleaved fills empty logs with the whole lives of this number of orders and of
// their payments. As in life, ordersUnderWay of them are under way at a time, and each
// event is of a random one of these. The events are the same at every call, but for ids.
func (b *run) writeInterleaved(ctx context.Context, orders int) (history, error) {
	b.tell("%d orders are written, with %d events each and %d of their payments, %d orders at a time", orders, lifeSteps, wholePayment, ordersUnderWay)
	err := b.writeLogs(ctx, orders, wholeEvents, func(w *liveWriter, n int) error {
		w.now = w.now.Add(-time.Duration(n*wholeEvents) * time.Millisecond)
		random := rand.New(rand.NewPCG(1, uint64(w.partition)))
		var underWay []*writtenOrder
		for begun := 0; begun < n || len(underWay) > 0; {
			for begun < n && len(underWay) < max(1, ordersUnderWay/int(w.partitions)) {
				underWay = append(underWay, &writtenOrder{id: w.newOrderID(), n: begun})
				begun++
			}
			i := random.IntN(len(underWay))
			if err := w.next(ctx, underWay[i]); err != nil {
				return err
			}
			if underWay[i].written == wholeEvents {
				underWay[i] = underWay[len(underWay)-1]
				underWay = underWay[:len(underWay)-1]
			}
			w.now = w.now.Add(time.Millisecond)
		}
		return nil
	})
	if err != nil {
		return history{}, err
	}
	ends, err := endsOf(ctx, b.kafka, eventlog.Orders, eventlog.Payments)
	return history{ends: ends, events: int64(orders) * lifeSteps}, err
}
