package bench

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"tomato/cmd/tomato/server"
	"tomato/cmd/tomato/settings"
	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/domain/restaurant"
	"tomato/eventlog"
)

// liveEvents is the number of events of a live order with its payment: it is placed,
// its payment is requested and booked, and it is paid, accepted and being prepared.
const liveEvents = 6

// liveRestaurants is the number of restaurants that the live orders belong to.
const liveRestaurants = 200

// writeLive fills empty logs with this number of live orders. It writes what a single
// owner would have written: claims, and events with terms and seqs that the domain
// has decided. It does not use the shards, because they would be slower.
func (b *run) writeLive(ctx context.Context, orders int) error {
	b.tell("%d live orders are written, with %d events each", orders, liveEvents)
	return b.writeLogs(ctx, orders, liveEvents, func(w *liveWriter, n int) error {
		for i := range n {
			if err := w.order(ctx, i); err != nil {
				return err
			}
		}
		return nil
	})
}

// writeLogs fills empty logs by one writer per partition, each of which begins with the
// claims and the restaurants of its partition. write then writes the n orders of its
// partition, with this number of events each.
func (b *run) writeLogs(ctx context.Context, orders, events int, write func(w *liveWriter, n int) error) error {
	client, err := b.kafka.NewClient(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerLinger(5*time.Millisecond), kgo.MaxBufferedRecords(50_000), kgo.ProducerBatchCompression(kgo.NoCompression()))
	if err != nil {
		return err
	}
	defer client.Close()
	layout := eventlog.Layout{Partitions: b.Partitions, Replication: b.Replication, Consumers: server.Subscriptions()}
	if err := eventlog.Ensure(ctx, kadm.NewClient(client), layout); err != nil {
		return err
	}
	ends, err := eventlog.EndOffsets(ctx, client, eventlog.AggregateTopics[:]...)
	if err != nil {
		return err
	}
	for tp, end := range ends {
		if end > 0 {
			return settings.Usage("%s/%d has records: this bench writes its logs from their beginning, so it needs brokers of its own", tp.Topic, tp.Partition)
		}
	}
	start := time.Now()
	var failed atomic.Pointer[error]
	var g errgroup.Group // without a context of its own, because records are still sent after a writer has returned
	g.SetLimit(runtime.GOMAXPROCS(0))
	for p := range b.Partitions {
		n := orders / int(b.Partitions)
		if int(p) < orders%int(b.Partitions) {
			n++
		}
		g.Go(func() error {
			w := &liveWriter{client: client, partition: p, partitions: b.Partitions, failed: &failed, now: domain.Time(time.Now()), terms: map[string]eventlog.Rule{}}
			if err := w.begin(ctx); err != nil {
				return err
			}
			return write(w, n)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := client.Flush(ctx); err != nil {
		return err
	}
	if err := failed.Load(); err != nil {
		return *err
	}
	b.tell("they are written: %d events/s", int(float64(orders*events)/time.Since(start).Seconds()))
	return nil
}

// livePlace returns the position of restaurant n. The positions differ, because the
// statistics of a column in which all points are equal take PostGIS seconds.
func livePlace(n int) domain.Point {
	return domain.Point{Lng: 77.59 + 0.002*float64(n%20), Lat: 12.97 + 0.002*float64(n/20)}
}

// liveWriter writes one partition of the aggregate topics. Not for concurrent use.
type liveWriter struct {
	client     *kgo.Client
	partition  int32
	partitions int32 // of each topic
	failed     *atomic.Pointer[error]
	now        time.Time                // of the next event
	terms      map[string]eventlog.Rule // by topic: term and seq of the last record
}

// begin writes the claims, and the restaurants of the partition.
func (w *liveWriter) begin(ctx context.Context) error {
	for _, topic := range eventlog.AggregateTopics {
		w.terms[topic] = eventlog.Rule{Term: 1}
		w.produce(ctx, topic, &eventlog.Event{Type: eventlog.ShardClaimed, Term: 1, Data: []byte(`{"term":1,"owner":"bench"}`)})
	}
	for n := range liveRestaurants {
		id := fmt.Sprint("bench-restaurant-", n)
		if eventlog.PartitionFor(id, w.partitions) != w.partition {
			continue
		}
		s, version := restaurant.State{}, int64(0)
		for _, c := range []domain.Command{
			restaurant.Put{RestaurantID: id, Name: fmt.Sprint("Dosa Corner ", n), Location: livePlace(n), Address: "80 Feet Road, Koramangala, Bengaluru"},
			restaurant.SetMenuItem{Item: restaurant.MenuItem{ItemID: "dosa", Name: "Masala Dosa", Price: domain.Money{Amount: 12000, Currency: "INR"}, Available: true}},
			restaurant.SetMenuItem{Item: restaurant.MenuItem{ItemID: "lassi", Name: "Sweet Lassi", Price: domain.Money{Amount: 6000, Currency: "INR"}, Available: true}},
			restaurant.Open{},
		} {
			ev, err := restaurant.Decide(&s, c, w.now)
			if err != nil {
				return err
			}
			s = restaurant.Evolve(s, ev, w.now)
			version++
			if err := w.append(ctx, eventlog.Restaurants, id, version, ev, ""); err != nil {
				return err
			}
		}
	}
	return nil
}

// newOrderID returns the id of an order of the partition.
func (w *liveWriter) newOrderID() string {
	for {
		if id := uuid.Must(uuid.NewV7()).String(); eventlog.PartitionFor(id, w.partitions) == w.partition {
			return id
		}
	}
}

// order writes one order and its payment, up to the moment at which the kitchen
// prepares the order.
func (w *liveWriter) order(ctx context.Context, n int) error {
	o := &writtenOrder{id: w.newOrderID(), n: n}
	for range liveEvents {
		if err := w.next(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

// writtenOrder is an order whose events are being written, with its payment.
type writtenOrder struct {
	id      string
	n       int // its number in the partition
	written int // events
	order   order.State
	payment payment.State

	orderVersion, paymentVersion int64
}

// wholeEvents is the number of events of an order that is cancelled when it is ready,
// with the payment that is given back: lifeSteps of the order, and wholePayment of its
// payment.
const (
	wholeEvents  = lifeSteps + wholePayment
	wholePayment = 4
)

// next writes the next of the order's wholeEvents events. The first liveEvents of them
// are those of a live order.
func (w *liveWriter) next(ctx context.Context, o *writtenOrder) error {
	gatewayOrder, paid := "order_"+o.id[24:], "pay_"+o.id[24:]
	k := o.n % liveRestaurants
	n := o.written
	o.written++
	switch n {
	case 0:
		return w.onOrder(ctx, o, order.Place{OrderID: o.id, CustomerID: fmt.Sprint("customer-", o.n%10_000), RestaurantID: fmt.Sprint("bench-restaurant-", k), Currency: "INR",
			Items:     []order.Item{{ItemID: "dosa", Name: "Masala Dosa", UnitPrice: 12000, Quantity: 2}, {ItemID: "lassi", Name: "Sweet Lassi", UnitPrice: 6000, Quantity: 1}},
			PickUp:    order.PickUp{Name: fmt.Sprint("Dosa Corner ", k), Location: livePlace(k), Address: "80 Feet Road, Koramangala, Bengaluru"},
			DeliverTo: sealedAddress(domain.Point{Lng: 77.6, Lat: 12.97}, fmt.Sprint(o.n%400, " Church Street, Bengaluru")), PaymentTTL: 12 * time.Hour}, idempotencyKey(201))
	case 1:
		return w.onPayment(ctx, o, payment.RequestPayment{OrderID: o.id, Provider: "simulated", GatewayOrderID: gatewayOrder}, idempotencyKey(200))
	case 2:
		return w.onPayment(ctx, o, payment.RecordCaptured{PaymentID: paid, GatewayOrderID: gatewayOrder, Amount: o.order.Amount, Currency: o.order.Currency}, "")
	case 3:
		return w.onOrder(ctx, o, order.MarkPaid{PaymentID: paid, AcceptTTL: 12 * time.Hour}, "")
	case 4:
		return w.onOrder(ctx, o, order.AcceptOrder{PrepMinutes: 20}, "")
	case 5:
		return w.onOrder(ctx, o, order.Prepare{}, "")
	case 6:
		return w.onOrder(ctx, o, order.Ready{}, "")
	case 7:
		return w.onOrder(ctx, o, order.Cancel{By: benchOps, Reason: "measured"}, "")
	case 8:
		return w.onPayment(ctx, o, payment.RequestRefund{RefundID: o.id, Reason: "measured"}, "")
	default:
		return w.onPayment(ctx, o, payment.RecordRefund{RefundID: o.id, Succeeded: true}, "")
	}
}

func (w *liveWriter) onOrder(ctx context.Context, o *writtenOrder, c domain.Command, key string) error {
	ev, err := order.Decide(&o.order, c, w.now)
	if err != nil {
		return err
	}
	o.order = order.Evolve(o.order, ev, w.now)
	o.orderVersion++
	return w.append(ctx, eventlog.Orders, o.id, o.orderVersion, ev, key)
}

func (w *liveWriter) onPayment(ctx context.Context, o *writtenOrder, c domain.Command, key string) error {
	ev, err := payment.Decide(&o.payment, payment.WithOrder(c, payment.OrderFacts{Payable: o.order.Payable(), Ended: o.order.Status.Closed(), Status: string(o.order.Status),
		Amount: o.order.Amount, Currency: o.order.Currency, CustomerID: o.order.CustomerID, RestaurantID: o.order.RestaurantID}), w.now)
	if err != nil {
		return err
	}
	o.payment = payment.Evolve(o.payment, ev, w.now)
	o.paymentVersion++
	return w.append(ctx, eventlog.Payments, o.id, o.paymentVersion, ev, key)
}

// idempotencyKey returns the value of the header that an event gets if its command has
// an Idempotency-Key. Each call returns another value.
func idempotencyKey(status int) string {
	var b [24]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return fmt.Sprintf("%s.%s.%d", hex.EncodeToString(b[:16]), hex.EncodeToString(b[16:]), status)
}

// append writes an event that makes this version of the aggregate.
func (w *liveWriter) append(ctx context.Context, topic, id string, version int64, ev domain.Event, key string) error {
	data, err := json.Marshal(ev)
	if err != nil {
		return err
	}
	rule := w.terms[topic]
	rule.Seq++
	w.terms[topic] = rule
	w.produce(ctx, topic, &eventlog.Event{Type: ev.EventType(), Subject: id, Version: version, Term: rule.Term, Seq: rule.Seq, Data: data, Idempotency: key})
	if err := w.failed.Load(); err != nil {
		return *err
	}
	return ctx.Err()
}

// produce sends a record. It waits while the client has too many records under way.
func (w *liveWriter) produce(ctx context.Context, topic string, e *eventlog.Event) {
	e.ID, e.Source, e.Time = fmt.Sprintf("%s-%d-%d-%d", topic, w.partition, e.Term, e.Seq), "/tomato/bench", w.now
	w.client.Produce(ctx, e.NewRecord(topic, w.partition), func(_ *kgo.Record, err error) {
		if err != nil {
			w.failed.CompareAndSwap(nil, &err)
		}
	})
}
