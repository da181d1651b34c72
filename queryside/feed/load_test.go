package feed

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tomato/domain"
	"tomato/domain/rooms"
	"tomato/eventlog"
)

// Cursors are a wire format: those in testdata are read for ever, or their version is
// answered with feed:reset.
func TestCursorsOfEarlierBuildsAreRead(t *testing.T) {
	t.Parallel()
	b := &base{id: 300, key: "0198a000-0000-7000-8000-000000000001", positions: newPositions(3)}
	p := newPlace(b)
	p.set(2, 1<<20)
	p.set(7, 41)
	p.part, p.sent = change{5, 9}, 2
	joined := []string{"ops", "order:x", "order:01980000-0000-7000-8000-000000000001"}
	text := newCursors(testKey).append(nil, &p, customer("u1"), roomsPart(joined))
	golden, err := os.ReadFile(filepath.Join("testdata", "cursor.v2"))
	if err != nil {
		t.Fatalf("%v; it should hold %s", err, text)
	}
	if string(golden) != string(text) {
		t.Errorf("written as %s, once as %s", text, golden)
	}
	c := newCursors(testKey).parse(string(golden), customer("u1"))
	q, ok := newCursors(testKey).place(c, customer("u1"), b)
	if at, was := q.positions(), p.positions(); c.fault != "" || !ok || c.base != 300 || !slices.Equal(at.done, was.done) || at.messages != 2 || !slices.Equal(c.rooms, joined) {
		t.Errorf("read as %+v", c)
	}
	if old := newCursors(testKey).parse("AQEAAAAAAAAAAAAA", customer("u1")); old.fault != resetUnknown {
		t.Error("a cursor of version 1 is", old.fault)
	}
}

// town publishes orders as a town makes them: each goes through its statuses and is offered
// to ten riders.
type town struct {
	partitions int32
	random     *rand.Rand
	offsets    map[eventlog.TopicPartition]int64
	orders     int
	publish    func(tp eventlog.TopicPartition, offset int64, all []rooms.Message)
}

func (w *town) record(id string, all ...rooms.Message) {
	tp := eventlog.TopicPartition{Topic: eventlog.Orders, Partition: eventlog.PartitionFor(id, w.partitions)}
	o := w.offsets[tp]
	w.offsets[tp]++
	w.publish(tp, o, all)
}

// order plays one order of so many customers, restaurants and riders.
func (w *town) order(customers, restaurants, riders int) {
	w.orders++
	id := fmt.Sprint("o", w.orders)
	c, r, k := rooms.User(fmt.Sprint("c", w.random.IntN(customers))), rooms.Restaurant(fmt.Sprint("r", w.random.IntN(restaurants))), ""
	update := func() rooms.Message {
		m := rooms.Message{Event: "order:update", Rooms: []string{c, r, rooms.Order(id)}, Payload: []byte(`{"orderId":"` + id + `"}`)}
		if k != "" {
			m.Rooms = append(m.Rooms, k)
		}
		return m
	}
	for range 5 {
		w.record(id, update())
	}
	var offers []rooms.Message
	for range 10 {
		k = rooms.User(fmt.Sprint("k", w.random.IntN(riders)))
		offers = append(offers, rooms.Message{Event: "order:available", Rooms: []string{k}, Payload: []byte(`{"orderId":"` + id + `"}`)})
	}
	w.record(id, offers...)
	for range 3 {
		w.record(id, update())
	}
}

// TestCursorsAreShort: with 400 partitions, at 50 orders/s with 10 offers each, and a base
// every five seconds, a message carries at most 200 characters of cursor on average.
func TestCursorsAreShort(t *testing.T) {
	t.Parallel()
	const partitions = 400
	h := openHub(t, HubConfig{}, partitions)
	at := none(partitions)
	w := &town{partitions: partitions, random: rand.New(rand.NewPCG(1, 2)), offsets: map[eventlog.TopicPartition]int64{}}
	w.publish = func(tp eventlog.TopicPartition, offset int64, all []rooms.Message) {
		h.Publish(tp, offset, time.Time{}, all)
		at[tp] = offset
	}
	var all []*subscriber
	for i := range 20 {
		for _, a := range []domain.Actor{customer(fmt.Sprint("c", i)), {Sub: fmt.Sprint("k", i), Role: domain.Rider}, {Sub: "m", Role: domain.Restaurant, RestaurantID: fmt.Sprint("r", i)}} {
			s, _, err := h.open(a, nil, "")
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, s)
		}
	}
	messages, chars, most := 0, 0, 0
	for second := range 60 {
		for range 50 {
			w.order(5000, 200, 1000)
		}
		if second%5 == 4 {
			copied := none(partitions)
			for tp, o := range at {
				copied[tp] = o
			}
			h.Base(baseAt(int64(100+second), copied))
		}
		for _, s := range all {
			for _, g := range received(t, s) {
				messages, chars, most = messages+1, chars+len(g.Cursor), max(most, len(g.Cursor))
			}
		}
	}
	if messages < 500 || chars > 200*messages {
		t.Errorf("%d messages with %d characters of cursor on average, at most %d", messages, chars/max(1, messages), most)
	}
	t.Logf("%d messages with %d characters of cursor on average, at most %d", messages, chars/messages, most)
}

// A hub for which 10,000 clients wait takes in records as fast as one for which nobody
// waits, and serves all when it is ready.
func TestWaitingClientsCostNothingPerRecord(t *testing.T) {
	t.Parallel()
	h := newHub(t, HubConfig{})
	h.Begin(baseAt(1, none(12)))
	const clients, records = 10_000, 5_000 // five seconds at 1,000 positions/s
	h.Ready()                              // so that all wait for positions
	need := newPositions(12)
	need.done[0], need.done[30] = records-1, 10
	var waiting sync.WaitGroup
	for range clients {
		waiting.Go(func() {
			if err := h.reachedPlace(t.Context(), &need); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "all wait", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.waiters.total == 2*clients
	})
	began := time.Now()
	for o := range int64(records) {
		h.Publish(eventlog.TopicPartition{Topic: eventlog.RiderLocations, Partition: 0}, o, began, nil)
		h.Publish(orders0, o, began, nil)
	}
	h.Publish(eventlog.TopicPartition{Topic: eventlog.RiderLocations, Partition: 6}, 10, began, nil)
	waiting.Wait()
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("%d records took %v", records, took)
	}
	if h.waiters.total != 0 {
		t.Error("somebody still waits")
	}
}

// absence is a log of so many orders and a hub that began at its end, with a client's cursor
// from its beginning.
func absence(t *testing.T, orders int, cfg HubConfig) (h *Hub, l *testLog, cursor func(domain.Actor) string, want func(room string) []string) {
	const partitions = 12
	at := none(partitions)
	byLog := map[eventlog.TopicPartition][]logged{}
	w := &town{partitions: partitions, random: rand.New(rand.NewPCG(3, 4)), offsets: map[eventlog.TopicPartition]int64{}}
	n := 0
	w.publish = func(tp eventlog.TopicPartition, offset int64, all []rooms.Message) {
		for i := range all {
			n++
			all[i].Payload = fmt.Appendf(nil, "%d", n)
		}
		byLog[tp] = append(byLog[tp], logged{tp, offset, all})
		at[tp] = offset
	}
	for range orders {
		w.order(50, 20, 100)
	}
	l = &testLog{}
	for p := range int32(partitions) {
		l.logs = append(l.logs, byLog[eventlog.TopicPartition{Topic: eventlog.Orders, Partition: p}])
	}
	first := newBase(l.base(none(partitions)))
	h = newHub(t, cfg)
	h.ReadHistory(l)
	h.Begin(l.base(at))
	h.Ready()
	const parts = 30
	for i := range parts { // the newest part first
		from := none(partitions)
		upper := none(partitions)
		for tp, o := range at {
			from[tp], upper[tp] = (o+1)*int64(parts-1-i)/parts-1, (o+1)*int64(parts-i)/parts-1
		}
		more, err := h.Older(from, func(fn func(eventlog.TopicPartition, int64, time.Time, []rooms.Message)) error {
			for _, log := range l.logs {
				for _, r := range log {
					if r.offset > from[r.tp] && r.offset <= upper[r.tp] {
						fn(r.tp, r.offset, time.Now(), r.all)
					}
				}
			}
			return nil
		})
		if err != nil || !more {
			t.Fatal(more, err)
		}
	}
	h.NoOlder()
	cursor = func(a domain.Actor) string { return cursorAt(testKey, first, a, nil) }
	want = func(room string) (all []string) {
		for _, log := range l.logs {
			for _, r := range log {
				for _, m := range r.all {
					if slices.Contains(m.Rooms, room) {
						all = append(all, fmt.Sprint(r.tp.Partition, " ", m.Event, " ", string(m.Payload)))
					}
				}
			}
		}
		return all
	}
	return h, l, cursor, want
}

// TestWhoWasAwayForHalfAnHourComesBackToAnInstanceThatJustStarted: all clients, with what
// half an hour meant for each of them, in order and once, and without feed:reset. The short
// form is a quieter town: TOMATO_FEED_LOAD=1 plays 50 orders/s.
func TestWhoWasAwayForHalfAnHourComesBackToAnInstanceThatJustStarted(t *testing.T) {
	t.Parallel()
	orders := 2_000
	if os.Getenv("TOMATO_FEED_LOAD") != "" {
		orders = 50 * 1800
	}
	h, l, cursor, want := absence(t, orders, HubConfig{QueueBytes: 256 << 10})
	partition := map[string]string{}
	for _, log := range l.logs {
		for _, r := range log {
			for _, m := range r.all {
				partition[string(m.Payload)] = fmt.Sprint(r.tp.Partition)
			}
		}
	}
	for _, a := range []domain.Actor{customer("c1"), {Sub: "k1", Role: domain.Rider}, {Sub: "m", Role: domain.Restaurant, RestaurantID: "r1"}} {
		s, _, err := h.open(a, nil, cursor(a))
		if err != nil {
			t.Fatal(err)
		}
		s.limit = 1 << 40
		all := received(t, s)
		if len(all) == 0 || all[0].Event != "feed:resumed" {
			t.Fatalf("%s began with %v", a.Sub, all[:min(1, len(all))])
		}
		var have []string
		for _, g := range all[1:] {
			have = append(have, partition[string(g.Payload)]+" "+g.Event+" "+string(g.Payload))
		}
		expected := want(rooms.JoinedBy(a)[0])
		if len(expected) < 20 {
			t.Fatal("little was missed:", len(expected))
		}
		byLog := func(all []string) []string {
			slices.SortStableFunc(all, func(a, b string) int {
				var x, y int
				_, _ = fmt.Sscan(a, &x)
				_, _ = fmt.Sscan(b, &y)
				return x - y
			})
			return all
		}
		if !slices.Equal(byLog(have), byLog(expected)) {
			t.Errorf("%s was sent %d messages, and missed %d", a.Sub, len(have), len(expected))
		}
		if all[0].Count < len(expected)/2 {
			t.Errorf("%s was told that it missed %d", a.Sub, all[0].Count)
		}
		h.disconnect(s)
	}
}

// One client's long absence does not hold up the others: they take turns.
func TestALongAbsenceHoldsUpNobody(t *testing.T) {
	t.Parallel()
	h, l, cursor, _ := absence(t, 3_000, HubConfig{})
	l.slow = 50 * time.Microsecond
	restaurant := func(i int) domain.Actor {
		return domain.Actor{Sub: "m", Role: domain.Restaurant, RestaurantID: fmt.Sprint("r", i)}
	}
	var read atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	long := make(chan struct{})
	go func() {
		defer close(long)
		for i := range 20 {
			c := connecting{actor: restaurant(i), cursor: h.parse(cursor(restaurant(i)), restaurant(i))}
			c.base, _ = h.reader.base(ctx, c.cursor.base)
			s, _, _, err := h.connect(c)
			if err != nil {
				t.Error(err)
				return
			}
			_ = h.replay(ctx, s, func(items []item) error { read.Add(int64(len(items))); return ctx.Err() })
			h.disconnect(s)
		}
	}()
	eventually(t, "the others read", func() bool { return read.Load() > 0 })
	// Who missed a little comes back meanwhile.
	a := customer("c7")
	at := newPositions(12)
	for l := range at.done {
		at.done[l] = max(-1, h.at.done[l]-30)
	}
	p := newPlace(h.base)
	for l, o := range at.done {
		if o < h.base.done[l] {
			p.set(l, o)
		}
	}
	began := time.Now()
	s, _, err := h.open(a, nil, string(h.cursors.append(nil, &p, a, nil)))
	took := time.Since(began)
	if err != nil {
		t.Fatal(err)
	}
	if all := received(t, s); len(all) < 2 || all[0].Event != "feed:resumed" {
		t.Errorf("was sent %v", all)
	}
	select {
	case <-long:
		t.Error("the others were done first")
	default:
	}
	if took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
	cancel()
	<-long
}

// TestAllComeBackAtOnce: 10,000 clients resume at an instance that just started.
func TestAllComeBackAtOnce(t *testing.T) {
	t.Parallel()
	clients := 2_000
	if os.Getenv("TOMATO_FEED_LOAD") != "" {
		clients = 10_000
	}
	h, l, cursor, _ := absence(t, 500, HubConfig{})
	began := time.Now()
	var all sync.WaitGroup
	var bad atomic.Int64
	for i := range clients {
		all.Go(func() {
			a := customer(fmt.Sprint("c", i%50))
			s, _, err := h.open(a, nil, cursor(a))
			if err != nil {
				t.Error(err)
				return
			}
			items, _ := s.take(nil, 1)
			if len(items) == 0 || decodeItem(t, s, items[0]).Event != "feed:resumed" {
				bad.Add(1)
			}
			h.disconnect(s)
		})
	}
	all.Wait()
	if took := time.Since(began); bad.Load() > 0 || took > 20*time.Second {
		t.Errorf("%d were not resumed, after %v", bad.Load(), took)
	}
	if l.reads > 3*9*500 {
		t.Errorf("%d records were read of %d: each client has its own read", l.reads, 9*500)
	}
	t.Logf("%d clients resumed in %v, %d records were read", clients, time.Since(began), l.reads)
}

// A client that comes from an instance which had read further in some logs is sent nothing
// again, whatever base its place becomes relative to. It used to fall back to that base.
func TestAPlaceNeverGoesBack(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(5, 6))
	at := func(id int64, epoch int) *base {
		b := &base{id, "", epoch, newPositions(4)}
		for l := range b.done {
			b.done[l] = random.Int64N(10) - 1
		}
		return b
	}
	for i := range int64(1000) {
		p := newPlace(at(2*i, 0))
		p.raise(random.IntN(16), random.Int64N(20))
		if random.IntN(2) == 0 {
			p.advance(step{random.IntN(16), 15, 0, 2})
		}
		b, was := at(2*i+1, 1), p.positions()
		p.rebase(b)
		is := p.positions()
		for l := range is.done {
			if is.done[l] != max(was.done[l], b.done[l]) {
				t.Fatalf("in log %d it went from %d to %d, with a base at %d", l, was.done[l], is.done[l], b.done[l])
			}
		}
		if is.partial != was.partial {
			t.Fatal("it lost the record that was sent in part")
		}
	}
}
