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
	b.tell("%d live orders are written, with %d events each", orders, liveEvents)
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
			w := &liveWriter{client: client, partition: p, failed: &failed, now: domain.Time(time.Now()), terms: map[string]eventlog.Rule{}, versions: map[string]int64{}}
			return w.write(ctx, n, b.Partitions)
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
	b.tell("they are written: %d events/s", int(float64(orders*liveEvents)/time.Since(start).Seconds()))
	return nil
}

// liveWriter writes one partition of the aggregate topics.
type liveWriter struct {
	client    *kgo.Client
	partition int32
	failed    *atomic.Pointer[error]
	now       time.Time
	terms     map[string]eventlog.Rule // by topic: term and seq of the last record
	versions  map[string]int64         // by topic: version of the aggregate that is being written
}

func (w *liveWriter) write(ctx context.Context, orders int, partitions int32) error {
	for _, topic := range eventlog.AggregateTopics {
		w.terms[topic] = eventlog.Rule{Term: 1}
		w.produce(ctx, topic, &eventlog.Event{Type: eventlog.ShardClaimed, Term: 1, Data: []byte(`{"term":1,"owner":"bench"}`)})
	}
	for n := range liveRestaurants {
		id := fmt.Sprint("bench-restaurant-", n)
		if eventlog.PartitionFor(id, partitions) != w.partition {
			continue
		}
		s := restaurant.State{}
		for _, c := range []domain.Command{
			restaurant.Put{RestaurantID: id, Name: fmt.Sprint("Dosa Corner ", n), Location: domain.Point{Lng: 77.59, Lat: 12.97}, Address: "80 Feet Road, Koramangala, Bengaluru"},
			restaurant.SetMenuItem{Item: restaurant.MenuItem{ItemID: "dosa", Name: "Masala Dosa", Price: domain.Money{Amount: 12000, Currency: "INR"}, Available: true}},
			restaurant.SetMenuItem{Item: restaurant.MenuItem{ItemID: "lassi", Name: "Sweet Lassi", Price: domain.Money{Amount: 6000, Currency: "INR"}, Available: true}},
			restaurant.Open{},
		} {
			ev, err := restaurant.Decide(&s, c, w.now)
			if err != nil {
				return err
			}
			s = restaurant.Evolve(s, ev, w.now)
			if err := w.append(ctx, eventlog.Restaurants, id, ev, ""); err != nil {
				return err
			}
		}
		clear(w.versions)
	}
	for n := range orders {
		if err := w.order(ctx, n, partitions); err != nil {
			return err
		}
	}
	return nil
}

// order writes one order and its payment, up to the moment at which the kitchen
// prepares the order.
func (w *liveWriter) order(ctx context.Context, n int, partitions int32) error {
	id := ""
	for id == "" || eventlog.PartitionFor(id, partitions) != w.partition {
		id = uuid.Must(uuid.NewV7()).String()
	}
	clear(w.versions)
	o, p := order.State{}, payment.State{}
	onOrder := func(c domain.Command, key string) error {
		ev, err := order.Decide(&o, c, w.now)
		if err != nil {
			return err
		}
		o = order.Evolve(o, ev, w.now)
		return w.append(ctx, eventlog.Orders, id, ev, key)
	}
	onPayment := func(c domain.Command, key string) error {
		ev, err := payment.Decide(&p, payment.WithOrder(c, payment.OrderFacts{Payable: o.Payable(), Status: string(o.Status),
			Amount: o.Amount, Currency: o.Currency, CustomerID: o.CustomerID, RestaurantID: o.RestaurantID}), w.now)
		if err != nil {
			return err
		}
		p = payment.Evolve(p, ev, w.now)
		return w.append(ctx, eventlog.Payments, id, ev, key)
	}
	k := n % liveRestaurants
	gatewayOrder, paid := "order_"+id[24:], "pay_"+id[24:]
	if err := onOrder(order.Place{OrderID: id, CustomerID: fmt.Sprint("customer-", n%10_000), RestaurantID: fmt.Sprint("bench-restaurant-", k), Currency: "INR",
		Items:     []order.Item{{ItemID: "dosa", Name: "Masala Dosa", UnitPrice: 12000, Quantity: 2}, {ItemID: "lassi", Name: "Sweet Lassi", UnitPrice: 6000, Quantity: 1}},
		PickUp:    order.PickUp{Name: fmt.Sprint("Dosa Corner ", k), Location: domain.Point{Lng: 77.59, Lat: 12.97}, Address: "80 Feet Road, Koramangala, Bengaluru"},
		DeliverTo: sealedAddress(domain.Point{Lng: 77.6, Lat: 12.97}, fmt.Sprint(n%400, " Church Street, Bengaluru")), PaymentTTL: 12 * time.Hour}, idempotencyKey(201)); err != nil {
		return err
	}
	if err := onPayment(payment.RequestPayment{OrderID: id, Provider: "simulated", GatewayOrderID: gatewayOrder}, idempotencyKey(200)); err != nil {
		return err
	}
	if err := onPayment(payment.RecordCaptured{PaymentID: paid, GatewayOrderID: gatewayOrder, Amount: o.Amount, Currency: o.Currency}, ""); err != nil {
		return err
	}
	for _, c := range []domain.Command{order.MarkPaid{PaymentID: paid, AcceptTTL: 12 * time.Hour}, order.AcceptOrder{PrepMinutes: 20}, order.Prepare{}} {
		if err := onOrder(c, ""); err != nil {
			return err
		}
	}
	return nil
}

// idempotencyKey returns the value of the header that an event gets if its command has
// an Idempotency-Key. Each call returns another value.
func idempotencyKey(status int) string {
	var b [24]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return fmt.Sprintf("%s.%s.%d", hex.EncodeToString(b[:16]), hex.EncodeToString(b[16:]), status)
}

// append writes the next event of the aggregate.
func (w *liveWriter) append(ctx context.Context, topic, id string, ev domain.Event, key string) error {
	data, err := json.Marshal(ev)
	if err != nil {
		return err
	}
	rule := w.terms[topic]
	rule.Seq++
	w.terms[topic] = rule
	w.versions[topic]++
	w.produce(ctx, topic, &eventlog.Event{Type: ev.EventType(), Subject: id, Version: w.versions[topic], Term: rule.Term, Seq: rule.Seq, Data: data, Idempotency: key})
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
