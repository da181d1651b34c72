package feed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"tomato/domain"
	"tomato/domain/rooms"
	"tomato/eventlog"
)

// The test databases' cluster is watched for as long as the binary runs.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("tomato/eventlog/childprocess.Start.func1"))
}

var (
	testKey = []byte("0123456789abcdef")
	ops     = domain.Actor{Sub: "op", Role: domain.Ops}
)

func customer(id string) domain.Actor { return domain.Actor{Sub: id, Role: domain.Customer} }

func newHub(t interface{ Fatal(...any) }, cfg HubConfig) *Hub {
	cfg.Keys = [][]byte{testKey}
	h, err := NewHub(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// eventually waits until something is so, and fails the test if it never is.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.After(time.Minute); !is(); {
		select {
		case <-tick.C:
		case <-end:
			t.Fatal("never:", what)
		}
	}
}

// open connects a client who may join the rooms; of those in its cursor what the hub has
// in memory alone decides. A client that has to read the log reads it here.
func (h *Hub) open(actor domain.Actor, rooms []string, cursor string) (*subscriber, string, error) {
	c := connecting{actor: actor, rooms: rooms, orders: map[string]int64{}}
	for _, r := range rooms {
		c.orders[r] = 0
	}
	if cursor != "" {
		c.cursor = h.parse(cursor, actor)
	}
	return h.connectAndReplay(c)
}

// parse reads a cursor whose base this hub knows or reads.
func (h *Hub) parse(text string, actor domain.Actor) *cursor {
	c := h.cursors.parse(text, actor)
	if c.fault == "" {
		if _, err := h.reader.base(context.Background(), c.base); err != nil {
			c.fault = resetExpired
		}
	}
	return c
}

// connectAndReplay connects, and puts what a replay sends before what is in the queue.
func (h *Hub) connectAndReplay(c connecting) (*subscriber, string, error) {
	if c.cursor != nil && c.cursor.fault == "" {
		c.base, _ = h.reader.base(context.Background(), c.cursor.base)
	}
	s, at, _, err := h.connect(c)
	if err != nil || s.replay == nil {
		return s, at, err
	}
	var replayed []item
	err = h.replay(context.Background(), s, func(items []item) error {
		replayed = append(replayed, items...)
		return nil
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.items = append(replayed, s.items...)
	s.first -= len(replayed)
	for i := range replayed {
		s.count(replayed[i].len())
	}
	s.signal()
	return s, at, err
}

// openHub is a hub that is ready, of so many partitions.
func openHub(t interface{ Fatal(...any) }, cfg HubConfig, partitions int32) *Hub {
	h := newHub(t, cfg)
	h.Begin(baseAt(1, none(partitions)))
	h.Ready()
	h.NoOlder()
	return h
}

// positionsOf returns the positions that a cursor means.
func (h *Hub) positionsOf(t interface{ Fatal(...any) }, text string, actor domain.Actor) positions {
	c := h.parse(text, actor)
	if c.fault != "" {
		t.Fatal(text, c.fault)
	}
	b, _ := h.reader.base(context.Background(), c.base)
	p, ok := h.cursors.place(c, actor, b)
	if !ok {
		t.Fatal("not of the base")
	}
	return p.positions()
}

// cursorAt returns a cursor whose place is relative to a base.
func cursorAt(key []byte, b *base, actor domain.Actor, joined []string, changes ...change) string {
	p := newPlace(b)
	p.changes = changes
	return string(newCursors(key).append(nil, &p, actor, roomsPart(joined)))
}

// baseAt returns a base with a key that follows from its id.
func baseAt(id int64, passed map[eventlog.TopicPartition]int64) eventlog.FeedBase {
	return eventlog.FeedBase{ID: id, Key: fmt.Sprint("base ", id), Passed: passed}
}

func none(partitions int32) map[eventlog.TopicPartition]int64 {
	passed := map[eventlog.TopicPartition]int64{}
	for _, topic := range cursorTopics {
		for p := range partitions {
			passed[eventlog.TopicPartition{Topic: topic, Partition: p}] = -1
		}
	}
	return passed
}

// got is a message as a client reads it.
type got struct {
	Event, Room, Cursor, Code, Reason string
	ConsistencyToken                  string
	Count                             int
	Payload                           json.RawMessage
}

func (g got) String() string { return g.Event + " " + g.Room + " " + string(g.Payload) }

func decodeItem(t interface{ Fatal(...any) }, s *subscriber, it item) got {
	var g got
	text := it.appendJSON(nil, s.text(&it))
	if err := json.Unmarshal(text, &g); err != nil {
		t.Fatal(string(text), err)
	}
	return g
}

// received takes all that waits.
func received(t interface{ Fatal(...any) }, s *subscriber) []got {
	var all []got
	for {
		items, _ := s.take(nil, maxTakeBytes)
		if len(items) == 0 {
			return all
		}
		for _, it := range items {
			all = append(all, decodeItem(t, s, it))
		}
	}
}

// A logged record is what a log holds, for a simulated projector.
type logged struct {
	tp     eventlog.TopicPartition
	offset int64
	all    []rooms.Message
}

// The heart of the promise: whatever the interleaving of logs on an instance,
// whichever instance a client comes back to, and wherever it was cut off, it
// has in the end received every message of its rooms once, those of one log in
// order.
func TestEveryMessageOnceAndInOrderAcrossReconnects(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		const partitions = 2
		names := []string{"user:u1", "user:u2", "restaurant:r1", "order:o1", "ops"}
		var logs [len(cursorTopics) * partitions][]logged
		n := 0
		for l := range logs {
			tp := eventlog.TopicPartition{Topic: cursorTopics[l/partitions], Partition: int32(l % partitions)}
			if tp.Topic == eventlog.RiderLocations {
				continue // conflated: tested by itself
			}
			offset := int64(-1)
			for range rapid.IntRange(0, 12).Draw(t, "records") {
				offset += int64(rapid.IntRange(1, 3).Draw(t, "gap")) // void ones between
				r := logged{tp: tp, offset: offset}
				for range rapid.IntRange(0, 3).Draw(t, "messages") {
					n++
					r.all = append(r.all, rooms.Message{Event: "e", Payload: fmt.Appendf(nil, `%d`, n),
						Rooms: rapid.Permutation(names).Draw(t, "rooms")[:rapid.IntRange(1, 3).Draw(t, "n")]})
				}
				logs[l] = append(logs[l], r)
			}
		}
		// Instances read the same logs, each interleaved in its own way. What they have in
		// memory and in their indexes is little or much.
		log := newTestLog(logs[:])
		cfg := HubConfig{RecentBytes: rapid.SampledFrom([]int{1, 2000, 1 << 20}).Draw(t, "recent")}
		hubs := []*Hub{newHub(t, cfg), newHub(t, cfg)}
		next := [2][len(logs)]int{}
		begin := func(h int) {
			hubs[h].ReadHistory(log)
			at := log.passed(next[h][:], partitions)
			hubs[h].Begin(log.base(at))
			hubs[h].Ready()
			log.readBack(t, hubs[h], at, rapid.IntRange(0, 3).Draw(t, "parts"))
		}
		begin(0)
		begin(1)
		publish := func(h int) bool {
			var open []int
			for l := range logs {
				if next[h][l] < len(logs[l]) {
					open = append(open, l)
				}
			}
			if len(open) == 0 {
				return false
			}
			l := rapid.SampledFrom(open).Draw(t, "log")
			r := logs[l][next[h][l]]
			next[h][l]++
			hubs[h].Publish(r.tp, r.offset, time.Time{}, r.all)
			if rapid.IntRange(0, 4).Draw(t, "base") == 0 {
				at := log.passed(next[h][:], partitions)
				hubs[h].Base(log.base(at))
			}
			return true
		}
		actor := customer("u1")
		if rapid.Bool().Draw(t, "ops") {
			actor = ops
		}
		join := rapid.SliceOfNDistinct(rapid.SampledFrom(names), 0, 2, rapid.ID[string]).Draw(t, "join")
		mine := append(rooms.JoinedBy(actor), join...)

		var seen []got
		h := 0
		s, cursor, err := hubs[h].open(actor, join, "")
		if err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 5).Draw(t, "do") {
			case 0, 1:
				publish(0)
			case 2:
				publish(1)
			case 3: // take a few
				items, _ := s.take(nil, rapid.IntRange(1, 1000).Draw(t, "bytes"))
				for _, it := range items {
					g := decodeItem(t, s, it)
					seen = append(seen, g)
					cursor = g.Cursor
				}
			case 5: // an instance the client is not on is restarted where it was
				begin(1 - h)
			case 4: // cut off; what was queued is lost; come back anywhere
				hubs[h].disconnect(s)
				h = rapid.IntRange(0, 1).Draw(t, "hub")
				for !reached(hubs[h], cursor, actor) {
					if !publish(h) {
						t.Fatal("the cursor is ahead of all logs")
					}
				}
				if s, _, err = hubs[h].open(actor, nil, cursor); err != nil {
					t.Fatal(err)
				}
				items, _ := s.take(nil, 1)
				if g := decodeItem(t, s, items[0]); g.Event != "feed:resumed" {
					t.Fatal("not resumed", g)
				}
			}
		}
		for publish(h) {
		}
		hubs[h].disconnect(s)
		if s, _, err = hubs[h].open(actor, nil, cursor); err != nil {
			t.Fatal(err)
		}
		if items, _ := s.take(nil, 1); decodeItem(t, s, items[0]).Event != "feed:resumed" {
			t.Fatal("not resumed in the end")
		}
		seen = append(seen, received(t, s)...)

		var want []string
		for _, log := range logs {
			for _, r := range log {
				for _, m := range r.all {
					for _, room := range m.Rooms {
						if slices.Contains(mine, room) {
							want = append(want, room+" "+string(m.Payload))
							break
						}
					}
				}
			}
		}
		// Numbers grow along each log; sorted stably by log they must be want.
		logOf := map[string]int{}
		for l := range logs {
			for _, r := range logs[l] {
				for _, m := range r.all {
					logOf[string(m.Payload)] = l
				}
			}
		}
		slices.SortStableFunc(seen, func(a, b got) int { return logOf[string(a.Payload)] - logOf[string(b.Payload)] })
		var have []string
		for _, g := range seen {
			have = append(have, g.Room+" "+string(g.Payload))
		}
		if d := cmp.Diff(want, have); d != "" {
			t.Fatal(d)
		}
	})
}

func reached(h *Hub, cursor string, actor domain.Actor) bool {
	c := h.parse(cursor, actor)
	if c.fault != "" {
		return false
	}
	b, _ := h.reader.base(context.Background(), c.base)
	p, ok := h.cursors.place(c, actor, b)
	at := p.positions()
	return ok && h.at.reached(&at)
}

func TestCursorsReadBackAndNothingElse(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		c := newCursors(testKey)
		b := &base{rapid.Int64Range(0, 1<<40).Draw(t, "base"), "a key", 0, newPositions(rapid.IntRange(1, 16).Draw(t, "partitions"))}
		for i := range b.done {
			b.done[i] = rapid.Int64Range(-1, 1<<40).Draw(t, "offset")
		}
		p := newPlace(b)
		for l := range b.done {
			if rapid.Bool().Draw(t, "changed") {
				p.set(l, rapid.Int64Range(-1, 1<<40).Draw(t, "offset"))
			}
		}
		if rapid.Bool().Draw(t, "partial") {
			l := rapid.IntRange(0, len(b.done)-1).Draw(t, "log")
			p.part = change{l, p.done(l) + rapid.Int64Range(1, 5).Draw(t, "ahead")}
			p.sent = rapid.IntRange(1, 60).Draw(t, "messages")
		}
		var rooms []string
		for range rapid.IntRange(0, 3).Draw(t, "rooms") {
			rooms = append(rooms, rapid.SampledFrom([]string{"ops", "order:" + uuid.Must(uuid.NewV7()).String(), "order:x", "restaurant:" + strings.Repeat("r", 64)}).Draw(t, "room"))
		}
		actor := customer("u1")
		text := string(c.append(nil, &p, actor, roomsPart(rooms)))
		if strings.Trim(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") != "" {
			t.Fatal(text)
		}
		back := c.parse(text, actor)
		q, ok := c.place(back, actor, b)
		was, is := p.positions(), q.positions()
		if back.fault != "" || !ok || back.base != b.id || !slices.Equal(is.done, was.done) || is.partial != was.partial || was.partial != noLog && (is.offset != was.offset || is.messages != was.messages) || !slices.Equal(back.rooms, rooms) {
			t.Fatalf("%+v %v came back as %+v", p, rooms, back)
		}
		other := *b // after a restore, at the same offset
		if other.key = "another key"; back.fault == "" {
			if _, ok := c.place(back, actor, &other); ok {
				t.Fatal("it means a place of another base with the same id")
			}
		}
		if newCursors([]byte("another key 1234")).parse(text, actor).fault == "" {
			t.Fatal("another key reads it")
		}
		// After a change of the key the old one is second in the list.
		changing := newCursors([]byte("another key 1234"), testKey)
		if old := changing.parse(text, actor); (old.fault == "") != (back.fault == "") {
			t.Fatalf("with the key second in the list it is %q", old.fault)
		} else if at, ok := changing.place(old, actor, b); old.fault == "" && (!ok || !slices.Equal(at.positions().done, was.done)) {
			t.Fatal("with the key second in the list it means another place")
		}
		if c.parse(text, customer("u2")).fault == "" && len(rooms) > 0 {
			t.Fatal("another actor gets the rooms")
		}
		changed := []byte(text)
		i := rapid.IntRange(0, len(changed)-1).Draw(t, "at")
		changed[i] = rapid.SampledFrom([]byte("ABCxyz019-_")).Draw(t, "char")
		if got := c.parse(string(changed), actor); string(changed) != text && got.fault == "" {
			if _, ok := c.place(got, actor, b); ok {
				t.Fatal("a changed cursor was taken")
			}
		}
		c.parse(rapid.String().Draw(t, "noise"), actor)
	})
}

func msg(names ...string) []rooms.Message {
	return []rooms.Message{{Event: "e", Rooms: names, Payload: []byte(`1`)}}
}

var orders0 = eventlog.TopicPartition{Topic: eventlog.Orders}

func TestOneEventReachesAConnectionOnceInTheFirstRoom(t *testing.T) {
	t.Parallel()
	h := openHub(t, HubConfig{}, 1)
	s, _, err := h.open(ops, []string{"order:o1", "restaurant:r1", "ops"}, "")
	if err != nil {
		t.Fatal(err)
	}
	h.Publish(orders0, 0, time.Time{}, msg("user:u1", "restaurant:r1", "order:o1"))
	if r := received(t, s); len(r) != 1 || r[0].Room != "restaurant:r1" {
		t.Errorf("received %v", r)
	}
}

func TestASlowConnectionIsClosedAndHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	h := openHub(t, HubConfig{QueueBytes: 4096}, 1)
	slow, _, _ := h.open(customer("u1"), nil, "")
	quick, _, _ := h.open(customer("u1"), nil, "")
	n := 0
	for i := range int64(100) {
		h.Publish(orders0, i, time.Time{}, msg("user:u1"))
		n += len(received(t, quick))
	}
	if n != 100 {
		t.Errorf("the quick one received %d of 100", n)
	}
	items, end := slow.take(nil, maxTakeBytes)
	if len(items) != 0 || end != &closeSlow {
		t.Errorf("the slow one has %d messages and is closed with %v", len(items), end)
	}
	h.disconnect(slow)
	h.disconnect(quick)
	if slow.bytes != 0 || quick.bytes != 0 {
		t.Error("bytes are still counted")
	}
}

func location(offset int64) (eventlog.TopicPartition, int64, time.Time, []rooms.Message) {
	return eventlog.TopicPartition{Topic: eventlog.RiderLocations}, offset, time.Time{},
		[]rooms.Message{{Event: "rider:location", Rooms: []string{"order:o1"}, Payload: fmt.Appendf(nil, `%d`, offset), Latest: true}}
}

// The latest position takes the slot, and the cursor, of the one that waits: a
// later cursor would make a client that is cut off there skip what stands
// between.
func TestPositionsAreConflated(t *testing.T) {
	t.Parallel()
	h := openHub(t, HubConfig{PositionEvery: -1}, 1)
	s, _, _ := h.open(ops, []string{"order:o1"}, "")
	h.Publish(location(0))
	h.Publish(orders0, 0, time.Time{}, msg("order:o1"))
	h.Publish(location(1))
	h.Publish(location(2))
	items, _ := s.take(nil, 1)
	if g := decodeItem(t, s, items[0]); string(g.Payload) != "2" {
		t.Fatalf("first came %v", g)
	} else if p := h.positionsOf(t, g.Cursor, ops); p.done[0] != -1 {
		t.Error("its cursor is past the message behind it")
	}
	h.Publish(location(3)) // the slot is taken: a new one
	var have []string
	for _, g := range received(t, s) {
		have = append(have, g.String())
	}
	if d := cmp.Diff([]string{"e order:o1 1", "rider:location order:o1 3"}, have); d != "" {
		t.Error(d)
	}
}

func TestResumingGivesTheLatestPositionOfARiderUnderWay(t *testing.T) {
	t.Parallel()
	h := openHub(t, HubConfig{}, 1)
	s, cursor, _ := h.open(ops, []string{"order:o1"}, "")
	h.disconnect(s)
	for o := range int64(5) {
		h.Publish(location(o))
	}
	s, _, _ = h.open(ops, nil, cursor)
	if r := received(t, s); len(r) != 2 || r[0].Event != "feed:resumed" || string(r[1].Payload) != "4" {
		t.Errorf("received %v", r)
	}
	final := msg("order:o1")
	final[0].Final = true
	h.Publish(orders0, 0, time.Time{}, final)
	s, _, _ = h.open(ops, nil, cursor)
	if r := received(t, s); len(r) != 2 || r[1].Event != "e" {
		t.Errorf("after the end: %v", r)
	}
}

func TestWhatIsNoLongerHeldIsReset(t *testing.T) {
	t.Parallel()
	h := openHub(t, HubConfig{RecentBytes: 3000}, 1) // and no history
	s, early, _ := h.open(customer("u1"), nil, "")
	for o := range int64(100) {
		h.Publish(orders0, o, time.Time{}, msg("user:u1"))
	}
	all := received(t, s)
	last := all[len(all)-2].Cursor
	first := func(actor domain.Actor, cursor string) string {
		s, _, err := h.open(actor, nil, cursor)
		if err != nil {
			t.Fatal(err)
		}
		defer h.disconnect(s)
		r := received(t, s)
		if r[0].Event == "feed:reset" {
			if len(r) != 1 || r[0].Cursor == "" || r[0].ConsistencyToken == "" {
				t.Errorf("after feed:reset: %v", r)
			}
		}
		return strings.TrimSpace(r[0].Event + " " + r[0].Reason)
	}
	two := newPositions(2)
	for name, c := range map[string]struct{ cursor, want string }{
		"recent":                {last, "feed:resumed"},
		"too old":               {early, "feed:reset expired"},
		"garbage":               {"garbage", "feed:reset unknown_cursor"},
		"of an older version":   {"AQEAAAAAAAAAAAAA" + strings.Repeat("A", 64), "feed:reset unknown_cursor"},
		"of a longer log":       {cursorAt(testKey, h.base, customer("u1"), nil, change{0, 200}), "feed:reset expired"},
		"of more partitions":    {cursorAt(testKey, &base{1, "base 1", 0, two}, customer("u1"), nil, change{7, 3}), "feed:reset unknown_cursor"},
		"of a base that went":   {cursorAt(testKey, &base{77, "base 77", 0, newPositions(1)}, customer("u1"), nil), "feed:reset expired"},
		"longer than any is":    {strings.Repeat("A", maxCursorChars+1), "feed:reset unknown_cursor"},
		"with a foreign suffix": {cursorAt(testKey, h.base, customer("u2"), []string{"order:o1"}), "feed:reset unknown_cursor"},
	} {
		if got := first(customer("u1"), c.cursor); got != c.want {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// Rights in an order's room are those of the event: a rider who dropped the
// order sees nothing of it any more, live or resumed, and all from before.
func TestRightsInAnOrdersRoomAreThoseOfTheEvent(t *testing.T) {
	t.Parallel()
	rider := domain.Actor{Sub: "k1", Role: domain.Rider}
	of := func(rider, payload string) []rooms.Message {
		version, _ := strconv.ParseInt(payload, 10, 64)
		return []rooms.Message{{Event: "e", Rooms: []string{"order:o1"}, Payload: []byte(payload), Customer: "u1", Restaurant: "r1", Rider: rider, Version: version}}
	}
	h := openHub(t, HubConfig{}, 1)
	s, cursor, _ := h.open(rider, []string{"order:o1"}, "")
	c, _, _ := h.open(customer("u1"), []string{"order:o1"}, "")
	foreign, _, _ := h.open(customer("u2"), []string{"order:o1"}, "")
	h.Publish(orders0, 0, time.Time{}, of("k1", "1"))
	h.Publish(orders0, 1, time.Time{}, of("", "2"))
	h.Publish(orders0, 2, time.Time{}, of("k2", "3"))
	again, _, _ := h.open(rider, nil, cursor)
	for name, w := range map[string]struct {
		s *subscriber
		n int
	}{"rider": {s, 1}, "customer": {c, 3}, "foreign": {foreign, 0}, "rider, resumed": {again, 3}} {
		if r := received(t, w.s); len(r) != w.n {
			t.Errorf("%s received %v", name, r)
		}
	}
	if is, version := h.follows(customer("u1"), "o1"); !is || version != 3 {
		t.Error("the window does not know the customer")
	}
	if is, version := h.follows(rider, "o1"); is || version != 3 {
		t.Error("the dropped rider may follow")
	}
}

func TestJoinAndLeave(t *testing.T) {
	t.Parallel()
	h := openHub(t, HubConfig{MaxRooms: 1}, 1)
	s, _, _ := h.open(customer("u1"), nil, "")
	if err := h.join(s, "order:o1", 0); err != nil {
		t.Fatal(err)
	}
	if err := h.join(s, "order:o2", 0); !errors.Is(err, errRooms) {
		t.Error("more rooms than it may:", err)
	}
	h.Publish(orders0, 0, time.Time{}, msg("order:o1"))
	h.leaveRoom(s, "order:o1")
	h.Publish(orders0, 1, time.Time{}, msg("order:o1"))
	h.leaveRoom(s, "user:u1")
	h.Publish(orders0, 2, time.Time{}, msg("user:u1"))
	var have []string
	for _, g := range received(t, s) {
		have = append(have, strings.TrimSpace(g.String()))
	}
	if d := cmp.Diff([]string{"feed:joined order:o1", "e order:o1 1", "feed:left order:o1", "feed:left user:u1"}, have); d != "" {
		t.Error(d)
	}
	h.disconnect(s)
	h.disconnect(s)
	if len(h.rooms) != 0 || len(h.subs) != 0 {
		t.Error("something is left of it")
	}
}

func TestAHubTakesNobodyUnlessItIsOpen(t *testing.T) {
	t.Parallel()
	h := newHub(t, HubConfig{MaxConnections: 1})
	refused := func(want error) {
		t.Helper()
		if _, _, err := h.open(ops, nil, ""); !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	refused(errNotReady)
	h.Begin(baseAt(1, none(1)))
	refused(errNotReady)
	h.Ready()
	s, _, err := h.open(ops, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	refused(errConnections)
	h.Begin(baseAt(1, none(1))) // the projector began anew
	if _, end := s.take(nil, 1); end != &closeRestart {
		t.Errorf("closed with %v", end)
	}
	refused(errNotReady)
	h.Ready()
	ctx, cancel := context.WithCancel(t.Context())
	drained := make(chan error)
	go func() { drained <- h.Drain(ctx) }()
	for h.IsReady() {
		if _, end := s.take(nil, 1); end == &closeDrain {
			break
		}
	}
	refused(errDraining)
	h.disconnect(s)
	if err := <-drained; err != nil {
		t.Error(err)
	}
	cancel()
}

func TestWaitingForATokenEndsWhenItIsPassed(t *testing.T) {
	t.Parallel()
	h := openHub(t, HubConfig{}, 1)
	token := eventlog.Token{}
	token.Add(eventlog.Orders, 0, 3)
	token.Add(eventlog.Restaurants, 0, 99) // no log of the feed
	done := make(chan error, 1)
	go func() { done <- h.passed(t.Context(), token) }()
	h.Publish(orders0, 2, time.Time{}, nil)
	select {
	case err := <-done:
		t.Fatal("too early", err)
	default:
	}
	h.Publish(orders0, 3, time.Time{}, nil)
	if err := <-done; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	token.Add(eventlog.Orders, 0, 4)
	if err := h.passed(ctx, token); err == nil || h.waiters.total != h.waiters.gone {
		t.Error("it waited for ever:", err)
	}
}
