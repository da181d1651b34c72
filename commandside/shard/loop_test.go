package shard

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/domain/rider"
	"tomato/eventlog"
)

// newLoop returns a shard without brokers and without a running loop. The test calls
// the methods of the loop.
func newLoop(t testing.TB) *shard {
	t.Helper()
	client, err := kgo.NewClient() // it is never connected
	if err != nil {
		t.Fatal(err)
	}
	owner := &Shards{Config: Config{Partitions: 3, ArchiveAfter: 720 * time.Hour, SnapshotEvery: snapshotEvery}}
	owner.metrics = &metrics{snapshots: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "snapshots"}, []string{"outcome"})}
	s := owner.newShard(0, client)
	s.snapshots = &snapshots{owner, 0, client}
	return s
}

func newCall(r Request) *call {
	return &call{ctx: context.Background(), req: r, done: make(chan struct{}, 1)}
}

// There was a defect: the owner drew another id than the instance that forwarded the
// command. The order was placed under an id of another shard, where no command found it.
func TestAForwardedPlaceKeepsItsID(t *testing.T) {
	t.Parallel()
	s := &Shards{Config: Config{Partitions: 12}}
	for _, key := range []string{"", "k"} {
		for range 50 {
			r := validCommands()["place"]
			r.ID, r.IdempotencyKey = "", key
			p := s.partitionOf(&r)
			b, err := encodeRequest(r)
			if err != nil {
				t.Fatal(err)
			}
			forwarded, err := decodeRequest(b)
			if err != nil {
				t.Fatal(err)
			}
			if at := s.partitionOf(&forwarded); at != p || forwarded.ID != r.ID {
				t.Fatalf("key %q: order %s of shard %d became %s of shard %d", key, r.ID, p, forwarded.ID, at)
			}
		}
	}
}

// There was a defect: a shard was closed before its callers had their answers. Callers
// took the closed shard for "not decided", so on a busy machine a command whose append
// was in flight was decided a second time.
func TestAStoppedShardAnswersBeforeItIsClosed(t *testing.T) {
	t.Parallel()
	s := newLoop(t)
	s.failed = errDeposed
	var calls []*call
	for range 2 {
		c := &call{res: Result{Event: order.OrderPreparing{}}, done: make(chan struct{})} // without a buffer, so that shutDown waits until the answer is taken
		calls = append(calls, c)
		s.logs[orders].inFlight = append(s.logs[orders].inFlight, &pending{own: waiter{call: c, left: 1}})
	}
	go s.shutDown()
	for _, c := range calls {
		if s.isClosed() {
			t.Fatal("closed before all were answered")
		}
		if <-c.done; !errors.Is(c.err, ErrUnavailable) {
			t.Fatalf("an append in flight is answered %v", c.err)
		}
	}
	<-s.closed
}

// There was a defect: a command that had appended nothing got ErrUnavailable when its
// shard stopped, although the next owner can decide it.
func TestAStoppedShardPassesOnWhatAppendedNothing(t *testing.T) {
	t.Parallel()
	s := newLoop(t)
	s.failed = errDeposed
	awaiting, confirming, deferred, queued := newCall(Request{}), newCall(Request{}), newCall(Request{}), newCall(Request{})
	l := &s.logs[orders]
	awaiting.err = domain.Refuse(order.CodeNotPaid, "")
	l.awaiting = []*waiter{{call: awaiting, left: 1}}
	l.inFlight = []*pending{{ordinal: 1, own: waiter{call: newCall(Request{Topic: eventlog.Orders}), left: 1}, waiters: []*waiter{{call: confirming, left: 1}}}}
	l.deferred = []deferral{{1, deferred}}
	if err := s.queue.put(queued); err != nil {
		t.Fatal(err)
	}
	s.shutDown()
	for _, c := range []*call{awaiting, confirming, deferred, queued} {
		if <-c.done; !errors.Is(c.err, errNotDecided) {
			t.Fatalf("answered %v", c.err)
		}
	}
}

// A broker that has lost acknowledged records gives offsets a second time. There was a
// defect: the acknowledgement of such an append was ignored, and from then on the shard
// refused all commands as stalled.
func TestALogThatLostRecordsIsClaimedAnew(t *testing.T) {
	t.Parallel()
	s := newLoop(t)
	l := &s.logs[orders]
	l.next, l.acked, l.ordinal = 100, 7, 8
	l.inFlight = []*pending{{ordinal: 8, seq: 8, at: time.Now(), own: waiter{call: newCall(Request{Topic: eventlog.Orders}), left: 1}}}
	s.putAck(ack{log: orders, ordinal: 7, offset: 98})
	s.takeAcks(t.Context())
	if s.failed != nil {
		t.Fatalf("the second copy of an acknowledged append: %v", s.failed)
	}
	s.putAck(ack{log: orders, ordinal: 8, offset: 90})
	s.takeAcks(t.Context())
	if !errors.Is(s.failed, errBroken) {
		t.Fatalf("the shard goes on: %v", s.failed)
	}
}

// There was a defect: the answer said that an offer is open while the offer was in
// flight, and a rider was claimed for it. The owner was deposed and the offer fenced.
// When the next owner made an offer with the same round and wave, a late Assign was
// accepted.
func TestAnOfferOpensOnceItIsAcknowledged(t *testing.T) {
	t.Parallel()
	for _, command := range []domain.Command{order.CheckOffer{RiderID: "x"}, Look{}} {
		s := newLoop(t)
		l := &s.logs[orders]
		l.next, l.ordinal, l.seq = 10, 1, 1
		l.inFlight = []*pending{{ordinal: 1, seq: 1, at: time.Now(), own: waiter{call: newCall(Request{Topic: eventlog.Orders}), left: 1}}}
		e := s.agg.begin(orders, "o")
		e.last[0], e.order = 1, &order.State{ID: "o", Version: 6, Status: order.StatusReadyForRider, Round: 1, Wave: 1, WaveOpen: true,
			Offers: []order.Offer{{RiderID: "x", Wave: 1, State: order.OfferStateOpen}}}
		c := newCall(Request{Topic: eventlog.Orders, ID: "o", Actor: domain.Actor{Sub: "x", Role: domain.Rider}, Command: command})
		s.handle(c)
		select {
		case <-c.done:
			t.Fatalf("%s is answered before the offer is acknowledged: %+v", command.CommandName(), c.res)
		default:
		}
		s.putAck(ack{log: orders, ordinal: 1, offset: 10})
		s.takeAcks(t.Context())
		s.handleReleased()
		select {
		case <-c.done:
			if c.err != nil || c.res.Order.Wave != 1 {
				t.Fatalf("%s: %+v, %v", command.CommandName(), c.res, c.err)
			}
		default:
			t.Fatalf("%s is not answered after the acknowledgement", command.CommandName())
		}
	}
}

// POST /payment of an order that closed more than 24 h ago is refused as archived (410).
// It was 404 or 409 before. Refunds and late money still find the payment.
func TestPaymentOfAnArchivedOrder(t *testing.T) {
	t.Parallel()
	s := newLoop(t)
	now := time.Now()
	s.agg.begin(orders, "o").order = &order.State{ID: "o", Version: 2, Status: order.StatusExpired, CustomerID: "c", ClosedAt: now.Add(-25 * time.Hour)}
	customer, ops := domain.Actor{Sub: "c", Role: domain.Customer}, domain.Actor{Sub: "o", Role: domain.Ops}
	id, err := uuid.NewV7()
	if err != nil {
		t.Fatal(err)
	}
	copy(id[:6], make([]byte, 6)) // the time of the id is 1970
	for _, of := range []struct {
		id      string
		actor   domain.Actor
		command domain.Command
		want    domain.Code
	}{
		{"o", customer, payment.RequestPayment{OrderID: "o"}, order.CodeArchived},
		{"o", domain.Actor{Sub: "other", Role: domain.Customer}, payment.RequestPayment{OrderID: "o"}, domain.NotFound},
		{"o", ops, payment.RequestRefund{}, ""},
		{"o", domain.SystemActor, payment.RecordCaptured{}, ""},
		{id.String(), customer, payment.RequestPayment{}, order.CodeArchived},
		{id.String(), ops, payment.RequestRefund{}, order.CodeArchived},
		{uuid.NewString(), customer, payment.RequestPayment{}, domain.NotFound},
		{"pay_1", domain.SystemActor, payment.RecordUnmatched{}, ""},
	} {
		err := authorize(payments, s.agg.held[payments][of.id], &Request{Topic: eventlog.Payments, ID: of.id, Actor: of.actor, Command: of.command}, s.owner.ArchiveAfter, now)
		if domain.RefusedWith(err) != of.want {
			t.Errorf("%s of %s by %s: %v, want %q", of.command.CommandName(), of.id, of.actor.Sub, err, of.want)
		}
	}
}

// There was a defect: a replay remembered expired keys, too, and forgot them later. The
// memory of the map's buckets was never freed.
func TestOldKeysAreNotRemembered(t *testing.T) {
	t.Parallel()
	now := time.Now()
	m := keyMemory{known: map[keyScope]keyUse{}}
	held := &entry{id: "o"}
	for n, age := range []time.Duration{25 * time.Hour, time.Hour} {
		at := now.Add(-age)
		m.replay(held, &eventlog.Event{Subject: "o", Time: at, Idempotency: keyUse{status: 201}.text(keyScope{byte(n)})}, now)
	}
	if len(m.known) != 1 || len(m.order) != 1 || len(held.keys) != 1 {
		t.Fatalf("%d keys, %d in order", len(m.known), len(m.order))
	}
}

// An append after a higher claim is known to be invalid, so the next owner may decide
// its command. There was a defect: the outcome was answered as unknown, and each
// hand-over under load made some callers repeat. Appends in flight in the other logs are
// still acknowledged.
func TestADeposedShardGivesBackFencedCommands(t *testing.T) {
	t.Parallel()
	s := newLoop(t)
	fenced := newCall(Request{Topic: eventlog.Orders})
	crossed := newCall(Request{Topic: eventlog.Payments})
	fenced.res.Event, crossed.res.Event = order.OrderPreparing{}, payment.PaymentRequested{}
	refused, deferred := newCall(Request{Topic: eventlog.Orders}), newCall(Request{Topic: eventlog.Orders})
	landed := newCall(Request{Topic: eventlog.Riders})
	landed.res.Event = rider.RiderReleased{}
	l := &s.logs[orders]
	l.inFlight = []*pending{{ordinal: 1, own: waiter{call: fenced, left: 2},
		waiters: []*waiter{{call: crossed, left: 2}}}}
	refused.err = domain.Refuse(order.CodeNotPaid, "")
	l.awaiting = []*waiter{{call: refused, left: 1}}
	l.deferred = []deferral{{1, deferred}}
	s.logs[riders].inFlight = []*pending{{ordinal: 1, seq: 1, own: waiter{call: landed, left: 1}}}
	s.depose(orders)
	for _, c := range []*call{fenced, refused, deferred} {
		if <-c.done; !errors.Is(c.err, errNotDecided) {
			t.Errorf("a fenced command is answered %v", c.err)
		}
	}
	if <-crossed.done; !errors.Is(crossed.err, ErrUnavailable) {
		t.Errorf("an append to another log is answered %v", crossed.err)
	}
	s.putAck(ack{log: riders, ordinal: 1, offset: 0})
	s.putAck(ack{log: orders, ordinal: 1, offset: 7}) // after the higher claim
	s.takeAcks(t.Context())
	if <-landed.done; landed.err != nil || s.failed != nil {
		t.Errorf("an append with the expected offset is answered %v; %v", landed.err, s.failed)
	}
	late := newCall(Request{Topic: eventlog.Riders})
	s.handle(late)
	if <-late.done; !errors.Is(late.err, errNotDecided) {
		t.Errorf("a command after it is answered %v", late.err)
	}
}

// A key that is expired but not forgotten yet is used again, for another order. There
// were two defects: the new order did not have the key, so a repeat after a take-over
// placed one more order; or the old order still had it, and the repeat was answered with
// the old order.
func TestAKeyUsedAgainBelongsToTheNewOrder(t *testing.T) {
	t.Parallel()
	now := time.Now()
	a := newAggregates()
	scope := keyScope{1}
	old, fresh := a.begin(orders, "old"), a.begin(orders, "new")
	a.keys.add(old, scope, keyUse{status: 201, at: now.Add(-25 * time.Hour).UnixMilli()})
	a.keys.add(old, keyScope{2}, keyUse{status: 200, at: now.Add(-24*time.Hour - time.Minute).UnixMilli()})
	a.keys.add(fresh, scope, keyUse{status: 201, at: now.UnixMilli()})
	if a.keys.textOf(old) == "" || strings.Contains(a.keys.textOf(old), keyUse{}.text(scope)[:8]) || !strings.Contains(a.keys.textOf(fresh), keyUse{}.text(scope)[:8]) {
		t.Errorf("the old order has %q, the new one %q", a.keys.textOf(old), a.keys.textOf(fresh))
	}
	a.keys.forget(now)
	if u := a.keys.known[scope]; u.on != fresh || len(a.keys.known) != 1 {
		t.Errorf("after forgetting: %+v of %d", u, len(a.keys.known))
	}
	a.evict(old)
	if a.keys.known[scope].on != fresh {
		t.Error("the key left with the old order")
	}
}

// A command that is put into the queue while the shard stops is either refused by put
// or answered. If it were left in the queue, its caller would wait until its deadline.
func TestNoCommandIsForgottenWhenAShardStops(t *testing.T) {
	t.Parallel()
	for range 200 {
		s := newLoop(t)
		s.failed = errHandedOff
		calls := make(chan error)
		for range 8 {
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				_, err := s.owner.local(ctx, s, &Request{Topic: eventlog.Orders, Command: Look{}})
				calls <- err
			}()
		}
		s.taken = s.queue.take(nil) // as if the loop ended in the middle of a turn
		s.todo = s.taken
		s.shutDown()
		for range 8 {
			if err := <-calls; !errors.Is(err, errNotDecided) {
				t.Fatalf("answered %v", err)
			}
		}
	}
}

// A full queue refuses a command at once.
func TestAFullQueueRefuses(t *testing.T) {
	t.Parallel()
	q := newQueue()
	for range queueLength {
		if err := q.put(newCall(Request{})); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.put(newCall(Request{})); !errors.Is(err, ErrUnavailable) || errors.Is(err, errNotDecided) {
		t.Fatalf("one too many: %v", err)
	}
	if n := len(q.take(nil)); n != queueLength || q.len() != 0 {
		t.Fatalf("%d taken, %d left", n, q.len())
	}
}

// A deadline whose event may not be written yet is looked at again, and asks again whether
// money has arrived. There was a defect: the command was only decided again, so an order
// whose payment was in the inbox by then could expire.
func TestADeadlineIsDecidedAgainWithAllItsQuestions(t *testing.T) {
	t.Parallel()
	s := newLoop(t)
	s.owner.PaymentGrace = time.Hour
	asked := make(chan string, 1)
	s.owner.InboxPassed = func(_ context.Context, gatewayOrderID string) (bool, error) {
		asked <- gatewayOrderID
		return false, nil
	}
	due := domain.Time(time.Now().Add(-time.Minute))
	e := s.agg.begin(orders, "o")
	e.order = &order.State{ID: "o", Version: 1, Status: order.StatusPlaced, PaymentDueAt: due}
	e.payment = &payment.State{OrderID: "o", Version: 1, Status: payment.StatusRequested, GatewayOrderID: "g"}
	s.decideAgain("o")
	select {
	case task := <-s.tasks:
		task(time.Now())
	case <-time.After(10 * time.Second):
		t.Fatal("the deadline is not looked at again")
	}
	select {
	case g := <-asked:
		if g != "g" || len(s.logs[orders].inFlight) > 0 {
			t.Errorf("asked for %q, %d appends", g, len(s.logs[orders].inFlight))
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the inbox is not asked")
	}
	close(s.closed)
}
