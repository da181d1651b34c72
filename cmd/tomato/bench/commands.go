package bench

import (
	"context"
	"errors"
	"fmt"
	"path"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"tomato/cmd/tomato/server"
	"tomato/commandside/shard"
	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/restaurant"
	"tomato/eventlog"
	"tomato/httpapi"
)

const (
	benchRestaurant  = "bench-restaurant"
	benchHTTPCallers = 256
	// warmUp is how long the broker is given work before anything is measured. In
	// the first seconds of Apache Kafka its compiler needs half of the machine.
	warmUp = 10 * time.Second
	// limitTopic gets the records that the limit produces. It has the settings of
	// an aggregate topic and is deleted afterwards.
	limitTopic = "bench-limit"
)

var (
	benchCustomer = domain.Actor{Sub: "bench-customer", Role: domain.Customer}
	benchOps      = domain.Actor{Sub: "bench-ops", Role: domain.Ops}
)

// life issues the commands of one caller, order after order. Each order is placed,
// goes on until it is offered to riders, and is cancelled. Then the next order begins.
// Every command appends one event.
type life struct {
	commands   shard.Executor
	restaurant string
	last       int // number of commands after which the next order begins
	step       int // number of commands that the order has had
	order      *order.State
	res        shard.Result // of the last command
}

// lifeSteps is the number of commands in the whole life of an order.
const lifeSteps = 6

// Points in the life of an order, as the number of commands that it has had by then.
const (
	stepPrepared = 4
	stepWhole    = lifeSteps
)

// next issues the next command.
func (l *life) next(ctx context.Context) error {
	kitchen := domain.Actor{Sub: "staff", Role: domain.Restaurant, RestaurantID: l.restaurant}
	r := shard.Request{Topic: eventlog.Orders}
	switch l.step {
	case 0:
		r.Actor, r.Command = benchCustomer, shard.Place{CustomerID: benchCustomer.Sub, RestaurantID: l.restaurant,
			Lines: []restaurant.Line{{ItemID: "dosa", Quantity: 2}, {ItemID: "lassi", Quantity: 1}}, PaymentTTL: 12 * time.Hour,
			DeliverTo: sealedAddress(domain.Point{Lng: 77.6, Lat: 12.97}, "14 Church Street, Bengaluru")}
	case 1:
		r.Actor, r.Command = domain.SystemActor, order.MarkPaid{PaymentID: "pay_" + l.order.ID, AcceptTTL: 12 * time.Hour}
	case 2:
		r.Actor, r.Command = kitchen, order.AcceptOrder{PrepMinutes: 20}
	case 3:
		r.Actor, r.Command = kitchen, order.Prepare{}
	case 4:
		r.Actor, r.Command = kitchen, order.Ready{}
	case 5:
		r.Actor, r.Command = benchOps, order.Cancel{By: benchOps, Reason: "measured"}
	}
	if l.step > 0 {
		r.ID = l.order.ID
	}
	res, err := l.commands.Execute(ctx, r)
	if err != nil {
		return err
	}
	if res.Event == nil {
		return fmt.Errorf("%s of order %s appended nothing", r.Command.CommandName(), res.Order.ID)
	}
	l.order, l.res = res.Order, res
	if l.step++; l.step == l.last {
		l.step = 0
	}
	return nil
}

// lives returns a life for each caller.
func lives(s *server.Server, callers int) []*life {
	all := make([]*life, callers)
	for i := range all {
		all[i] = &life{commands: s.Shards(), restaurant: benchRestaurant, last: stepWhole}
	}
	return all
}

// kitchen opens a restaurant with a menu, and waits until the shards price orders from
// this menu.
func kitchen(ctx context.Context, s *server.Server, id string, at domain.Point) error {
	var res shard.Result
	var err error
	for _, c := range []domain.Command{
		restaurant.Put{RestaurantID: id, Name: "Dosa Corner", Location: at},
		restaurant.SetMenuItem{Item: restaurant.MenuItem{ItemID: "dosa", Name: "Masala Dosa", Price: domain.Money{Amount: 12000, Currency: "INR"}, Available: true}},
		restaurant.SetMenuItem{Item: restaurant.MenuItem{ItemID: "lassi", Name: "Sweet Lassi", Price: domain.Money{Amount: 6000, Currency: "INR"}, Available: true}},
		restaurant.Open{},
	} {
		if res, err = s.Shards().Execute(ctx, shard.Request{Topic: eventlog.Restaurants, ID: id, Actor: domain.SystemActor, Command: c}); err != nil {
			return err
		}
	}
	// Looking at an order that does not exist has no effect but to wait for the token.
	_, err = s.Shards().Execute(ctx, shard.Request{Topic: eventlog.Orders, ID: id, Actor: domain.SystemActor, Command: shard.Look{}, After: res.Token()})
	return err
}

// commands measures the write side: from a caller's Execute until the command's event
// is on Kafka and known to be valid. It measures the same over HTTP. One command in
// six places an order, and the others move the order on. The limit is a producer with
// the same options that appends the same records without deciding anything.
func (b *run) commands(ctx context.Context) error {
	c, err := b.serveConfig(server.RoleCommand)
	if err != nil {
		return err
	}
	s, err := b.serve(ctx, c, server.Options{ExtraRoutes: emptyEndpoint})
	if err != nil {
		return err
	}
	if err := kitchen(ctx, s, benchRestaurant, domain.Point{Lng: 77.59, Lat: 12.97}); err != nil {
		return err
	}
	first := lives(s, 64)
	if _, err := closedLoop(ctx, len(first), b.Duration/2, func(ctx context.Context, n int) error { return first[n].next(ctx) }); err != nil {
		return err
	}
	bare, err := b.newBare(ctx, eventlog.Orders)
	if err != nil {
		return err
	}
	b.tell("commands: the broker warms up")
	if _, err := bare.loop(ctx, 64, min(warmUp, 10*b.Duration)); err != nil {
		return err
	}
	if err := b.profile(); err != nil {
		return err
	}
	for _, callers := range []int{1, 256, 2048} {
		if err := b.commandsOf(ctx, s, bare, callers); err != nil {
			return err
		}
		if callers == 1 { // now, because the rows with many callers leave a million orders behind
			if err := b.commandsOverHTTP(ctx, s); err != nil {
				return err
			}
		}
	}
	return bare.close(ctx)
}

func (b *run) commandsOf(ctx context.Context, s *server.Server, bare *bare, callers int) error {
	all := lives(s, callers)
	limit, value, err := b.alternating(ctx, fmt.Sprint(callers, " callers"),
		func(ctx context.Context) (map[string]float64, error) { return bare.loop(ctx, callers, b.Duration) },
		func(ctx context.Context) (map[string]float64, error) {
			return closedLoop(ctx, callers, b.Duration, func(ctx context.Context, n int) error { return all[n].next(ctx) })
		})
	if err != nil {
		return err
	}
	prefix := fmt.Sprint("callers_", callers)
	if callers == 1 {
		b.add(prefix+"_p50_ms", "ms", value["p50_ms"], limit["p50_ms"])
		b.add(prefix+"_p99_ms", "ms", value["p99_ms"], limit["p99_ms"])
	}
	b.add(prefix+"_per_s", "commands/s", value["per_s"], limit["per_s"])
	if callers > 1 {
		b.add(prefix+"_p50_ms", "ms", value["p50_ms"], limit["p50_ms"])
		b.add(prefix+"_p99_ms", "ms", value["p99_ms"], limit["p99_ms"])
	}
	return nil
}

// commandsOverHTTP measures the same lives over HTTP. It has 256 callers, as one of the
// rows without HTTP, and each has a connection that is kept alive. The limit is an
// empty operation of the same server over the same connections. It checks the token,
// too.
func (b *run) commandsOverHTTP(ctx context.Context, s *server.Server) error {
	token, err := tokens{}.of(benchCustomer)
	if err != nil {
		return err
	}
	conns := newHTTPConns(s.URL(), benchHTTPCallers)
	defer closeAll(conns)
	lives := make([]*httpLife, len(conns))
	for n := range lives {
		if lives[n], err = newHTTPLife(s, conns[n]); err != nil {
			return err
		}
	}
	limit, value, err := b.alternating(ctx, "http",
		func(ctx context.Context) (map[string]float64, error) {
			return closedLoop(ctx, len(conns), b.Duration, func(_ context.Context, n int) error {
				return conns[n].do("POST", emptyPath, token, nil)
			})
		},
		func(ctx context.Context) (map[string]float64, error) {
			return closedLoop(ctx, len(conns), b.Duration, func(ctx context.Context, n int) error { return lives[n].next(ctx) })
		})
	if err != nil {
		return err
	}
	b.add("http_per_s", "commands/s", value["per_s"], limit["per_s"])
	b.add("http_p50_ms", "ms", value["p50_ms"], limit["p50_ms"])
	b.add("http_p99_ms", "ms", value["p99_ms"], limit["p99_ms"])
	return nil
}

// httpLife is a life whose commands go over HTTP, except the payment. The payment is
// marked in this process, as the policy pay-order does it. This is part of the call
// that places the order, so it is not counted as a command.
type httpLife struct {
	commands shard.Executor
	conn     *httpConn
	steps    []httpStep
	step     int
	order    string // path of the order
}

type httpStep struct {
	token, path string // path comes after the order's path
	body        []byte
}

func newHTTPLife(s *server.Server, conn *httpConn) (*httpLife, error) {
	known := tokens{}
	kitchen := domain.Actor{Sub: "staff", Role: domain.Restaurant, RestaurantID: benchRestaurant}
	l := &httpLife{commands: s.Shards(), conn: conn}
	for _, step := range []struct {
		actor      domain.Actor
		path, body string
	}{
		{benchCustomer, "", `{"restaurantId":"` + benchRestaurant + `","items":[{"itemId":"dosa","quantity":2},{"itemId":"lassi","quantity":1}],` +
			`"deliverTo":{"location":{"type":"Point","coordinates":[77.6,12.97]},"address":"14 Church Street, Bengaluru"}}`},
		{kitchen, "/accept-order", `{"prepMinutes":20}`},
		{kitchen, "/preparing", ""},
		{kitchen, "/ready", ""},
		{benchOps, "/cancel", `{"reason":"measured"}`},
	} {
		token, err := known.of(step.actor)
		if err != nil {
			return nil, err
		}
		l.steps = append(l.steps, httpStep{token, step.path, []byte(step.body)})
	}
	return l, nil
}

func (l *httpLife) next(ctx context.Context) error {
	step := l.steps[l.step]
	if l.step > 0 {
		l.step = (l.step + 1) % len(l.steps)
		return l.conn.do("POST", l.order+step.path, step.token, step.body)
	}
	if err := l.conn.do("POST", "/v1/orders", step.token, step.body); err != nil {
		return err
	}
	l.step = 1
	l.order = l.conn.header.Get("Location")
	id := path.Base(l.order)
	_, err := l.commands.Execute(ctx, shard.Request{Topic: eventlog.Orders, ID: id, Actor: domain.SystemActor,
		Command: order.MarkPaid{PaymentID: "pay_" + id, AcceptTTL: 12 * time.Hour}})
	return err
}

const emptyPath = "/bench/empty"

// emptyEndpoint is an operation that checks the token and does nothing.
func emptyEndpoint(api *httpapi.API) {
	httpapi.Register(api, huma.Operation{Method: "POST", Path: emptyPath, OperationID: "empty", Summary: "Nothing"}, []domain.Role{domain.Customer},
		func(context.Context, *struct{}) (*struct{}, error) { return nil, nil })
}

// bare is a producer with the same options as the producers of the shards. It appends
// records like theirs to a topic like theirs.
type bare struct {
	client  *kgo.Client
	samples []*kgo.Record
}

// newBare returns a bare producer. Its samples are records that the shards have
// appended to these topics.
func (b *run) newBare(ctx context.Context, topics ...string) (*bare, error) {
	l := &bare{}
	ends, err := endsOf(ctx, b.kafka, topics...)
	if err != nil {
		return nil, err
	}
	ranges := map[eventlog.TopicPartition]eventlog.Range{}
	for tp, end := range ends {
		ranges[tp] = eventlog.Range{From: max(0, end-200), To: end}
	}
	err = eventlog.Read(ctx, b.kafka, ranges, func(e *eventlog.Event) error {
		if e.Subject != "" {
			l.samples = append(l.samples, e.Record)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(l.samples) == 0 {
		return nil, errors.New("the shards have appended nothing")
	}
	err = asLimit(ctx, func(ctx context.Context) (err error) {
		l.client, err = b.kafka.NewClient(kgo.RequiredAcks(kgo.AllISRAcks()), kgo.RecordPartitioner(kgo.ManualPartitioner()),
			kgo.ProducerLinger(0), kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.StopProducerOnDataLossDetected())
		return err
	})
	if err != nil {
		return nil, err
	}
	adm := kadm.NewClient(l.client)
	configs, err := adm.DescribeTopicConfigs(ctx, eventlog.Orders)
	if err != nil {
		return nil, err
	}
	settings := map[string]*string{}
	for _, rc := range configs {
		for _, c := range rc.Configs {
			if c.Source.String() == "DYNAMIC_TOPIC_CONFIG" {
				settings[c.Key] = c.Value
			}
		}
	}
	if _, err := adm.DeleteTopic(ctx, limitTopic); err != nil && !errors.Is(err, kerr.UnknownTopicOrPartition) {
		return nil, err
	}
	created, err := adm.CreateTopic(ctx, b.Partitions, -1, settings, limitTopic)
	if err = errors.Join(err, created.Err); err != nil {
		return nil, fmt.Errorf("creating %s: %w", limitTopic, err)
	}
	return l, nil
}

func (l *bare) loop(ctx context.Context, callers int, d time.Duration) (map[string]float64, error) {
	type caller struct {
		n    int
		done chan error
	}
	all := make([]caller, callers)
	for i := range all {
		all[i] = caller{n: i * 7919, done: make(chan error, 1)}
	}
	return closedLoop(ctx, callers, d, func(ctx context.Context, n int) error {
		c := &all[n]
		sample := l.samples[c.n%len(l.samples)]
		c.n++
		r := &kgo.Record{Topic: limitTopic, Partition: sample.Partition, Key: sample.Key, Value: sample.Value, Headers: sample.Headers}
		l.client.Produce(ctx, r, func(_ *kgo.Record, err error) { c.done <- err })
		return <-c.done
	})
}

func (l *bare) close(ctx context.Context) error {
	defer l.client.Close()
	_, err := kadm.NewClient(l.client).DeleteTopic(ctx, limitTopic)
	return err
}

// endsOf returns the end offsets of the topics' partitions.
func endsOf(ctx context.Context, cfg eventlog.Config, topics ...string) (map[eventlog.TopicPartition]int64, error) {
	client, err := cfg.NewClient()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	return eventlog.EndOffsets(ctx, client, topics...)
}

// fill places this number of orders and takes each through the first steps of its
// life. It returns the last state of each order, and a token that covers all their
// events.
func fill(ctx context.Context, s *server.Server, orders, steps int, restaurantOf func(n int) string) ([]*order.State, eventlog.Token, error) {
	states := make([]*order.State, orders)
	reached := make([]eventlog.Token, orders)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(256)
	for n := range orders {
		g.Go(func() error {
			l := &life{commands: s.Shards(), restaurant: restaurantOf(n)}
			for range steps {
				if err := l.next(ctx); err != nil {
					return err
				}
			}
			states[n], reached[n] = l.order, l.res.Token()
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	return states, merged(reached), nil
}

func oneRestaurant(int) string { return benchRestaurant }

// merged returns the token of a reader that has reached all of the tokens.
func merged(tokens []eventlog.Token) eventlog.Token {
	all := eventlog.Token{}
	for _, t := range tokens {
		all.Merge(t)
	}
	return all
}
