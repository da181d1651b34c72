package feed

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync/atomic"
	"testing"
	"time"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/rooms"
	"tomato/eventlog"
)

// toOps is a record with one message for operators.
func toOps(event string) []rooms.Message {
	return []rooms.Message{{Event: event, Rooms: []string{rooms.Ops}, Payload: []byte(`{}`)}}
}

// failingHistory is a history of which reading begins and fails when the test says so.
type failingHistory struct {
	*testLog
	begun, fail chan struct{}
}

func (f failingHistory) Read(context.Context, map[eventlog.TopicPartition][]int64, func(eventlog.TopicPartition, int64, []rooms.Message)) error {
	close(f.begun)
	<-f.fail
	return errors.New("the brokers are away")
}

// connections returns how many connections the hub has.
func (h *Hub) connections() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.subs)
}

// replayingClient connects an operator whose replay waits for the history.
func replayingClient(t *testing.T) (*server, failingHistory, *client) {
	l := newTestLog(nil)
	for range 2 {
		l.base(none(1))
	}
	f := failingHistory{l, make(chan struct{}), make(chan struct{})}
	s := serve(t, func(_ *Feed, c *HubConfig) { c.History, c.RecentBytes = f, 1 })
	cursor := cursorAt(testKey, s.Hub.base, ops, []string{rooms.Ops})
	s.Hub.Publish(ordersLog(0), 0, time.Now(), toOps("missed"))
	c := s.dial(t, ops, "?cursor="+cursor)
	<-f.begun
	return s, f, c
}

func (s *server) wantNoConnections(t *testing.T) {
	t.Helper()
	eventually(t, "the hub does not have the connection, which has ended", func() bool { return s.Hub.connections() == 0 })
}

// hasRead returns when the server has read what the replaying client has sent. The answer
// to a location does not wait for the end of the replay, but is queued behind it.
func (s *server) hasRead(t *testing.T, c *client) {
	t.Helper()
	c.send(`{"op":"location"}`)
	eventually(t, "the operation is answered", func() bool {
		s.Hub.mu.Lock()
		defer s.Hub.mu.Unlock()
		for sub := range s.Hub.subs {
			sub.mu.Lock()
			answered := len(sub.items) > 0
			sub.mu.Unlock()
			if answered {
				return true
			}
		}
		return false
	})
}

// A join that waits for the end of a replay does not outlive its connection, when the
// replay fails.
func TestAJoinDuringAReplayThatFailsEndsWithTheConnection(t *testing.T) {
	t.Parallel()
	s, f, c := replayingClient(t)
	c.send(`{"op":"join","room":"restaurant:r"}`)
	s.hasRead(t, c)
	close(f.fail)
	c.closed(closeHistory.code)
	s.wantNoConnections(t)
}

// A client that goes away during a replay, after it asked to join a room, is noticed at
// once.
func TestTheEndOfAConnectionIsSeenWhileAJoinWaits(t *testing.T) {
	t.Parallel()
	s, f, c := replayingClient(t)
	defer close(f.fail)
	c.send(`{"op":"join","room":"restaurant:r"}`)
	s.hasRead(t, c)
	c.CloseNow()
	s.wantNoConnections(t)
}

// A rider from whom an order is taken during their replay is not in its room afterwards,
// also if the record that says so is not in memory any more.
func TestAReplayTakesARiderOutOfTheRoomOfALostOrder(t *testing.T) {
	t.Parallel()
	room, rider := rooms.Order("x"), domain.Actor{Sub: "r", Role: domain.Rider}
	statement := func(version int64, unassigned bool) []rooms.Message {
		return []rooms.Message{{Event: "order:update", Rooms: []string{room, rooms.User("r")}, Payload: []byte(`{}`), Customer: "c", Restaurant: "q", Rider: "r", Version: version, Unassigned: unassigned}}
	}
	records := []logged{{ordersLog(0), 0, statement(3, false)}, {ordersLog(0), 1, statement(4, true)}}
	l := newTestLog([][]logged{records})
	l.base(none(1))
	h := newHub(t, HubConfig{History: l, RecentBytes: 700})
	h.Begin(baseAt(0, none(1)))
	h.Ready()
	h.NoOlder()
	fill := func(n int64) { // so that memory has nothing else
		for range 5 {
			h.Publish(eventlog.TopicPartition{Topic: eventlog.Payments}, n, time.Now(), []rooms.Message{{Event: "f", Rooms: []string{rooms.User("z")}, Payload: []byte(`{}`)}})
			n++
		}
	}
	cursor := h.parse(cursorAt(testKey, h.base, rider, []string{room}), rider)
	h.Publish(ordersLog(0), 0, time.Now(), records[0].all)
	fill(0)
	s, _, _, err := h.connect(connecting{actor: rider, cursor: cursor, base: h.base, orders: map[string]int64{room: 3}})
	if err != nil || s.replay == nil {
		t.Fatal("there is no replay", err)
	}
	once := false
	if err := h.replay(t.Context(), s, func([]item) error {
		if !once {
			once = true
			h.Publish(ordersLog(0), 1, time.Now(), records[1].all)
			fill(5)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(h.rooms[room]) > 0 || len(s.joined) > 0 || s.orders[room] != 0 {
		t.Error("the rider is still in the room", s.joined, s.orders)
	}
}

// The feed begins anew with more partitions while a replay is under way. What the replay
// knows is of other logs then: it ends, and neither compares positions of different logs,
// which was a panic, nor reads records of one log as those of another.
func TestAReplayEndsWhenTheFeedBeginsAnewWithOtherLogs(t *testing.T) {
	t.Parallel()
	l := newTestLog([][]logged{{{ordersLog(0), 0, toOps("missed")}}})
	for range 2 {
		l.base(none(1))
	}
	h := openHub(t, HubConfig{History: l, RecentBytes: 1}, 1)
	cursor := h.parse(cursorAt(testKey, h.base, ops, []string{rooms.Ops}), ops)
	h.Publish(ordersLog(0), 0, time.Now(), toOps("missed"))
	s, _, _, err := h.connect(connecting{actor: ops, cursor: cursor, base: h.base})
	if err != nil || s.replay == nil {
		t.Fatal("there is no replay", err)
	}
	records, _, _, covered := h.older(s.replay)
	if !covered || len(records) != 1 {
		t.Fatal("nothing was missed", covered, records)
	}
	h.Begin(baseAt(2, none(3)))
	h.Ready()
	if _, _, _, covered := h.older(s.replay); covered {
		t.Error("the new index covers the old logs")
	}
	if _, err := h.read(t.Context(), s.replay, records); !errors.Is(err, errAnew) {
		t.Error("records of the old logs are read:", err)
	}
	h.announce(s.replay)
	if err := h.replay(t.Context(), s, func([]item) error { t.Error("it sends something"); return nil }); err != nil || !s.ended() {
		t.Error("the connection is not closed", err)
	}
}

// A rider who gets an order back during a replay is in its room afterwards, as of the
// version that says so: an older event does not take it from them.
func TestAReplayNotesTheVersionOfAnOrder(t *testing.T) {
	t.Parallel()
	r := &replay{orders: map[string]int64{"lost": 3, "newer": 9}, present: map[string]*presence{
		"lost": {version: 4}, "back": {version: 6, has: true}, "newer": {version: 4}, "unknown": {has: true}}}
	r.learn()
	if fmt.Sprint(r.orders) != "map[back:6 newer:9]" {
		t.Error(r.orders)
	}
}

// A client whose cursor names a base that the log does not have any more must reload, and
// stays in the rooms that it had joined.
func TestAClientIsInItsRoomsAfterAReset(t *testing.T) {
	t.Parallel()
	s := serve(t, func(_ *Feed, c *HubConfig) { c.History = newTestLog(nil) })
	gone := &base{id: 77, positions: positionsOf(none(1))}
	c := s.dial(t, ops, "?cursor="+cursorAt(testKey, gone, ops, []string{"restaurant:r9"}))
	if g := c.want("feed:reset"); g.Reason != resetExpired {
		t.Error(g.Reason)
	}
	s.Hub.Publish(ordersLog(0), 0, time.Time{}, msg("restaurant:r9"))
	c.want("e restaurant:r9 1")
}

// So does a rider in the rooms of the orders that are theirs.
func TestARiderIsInTheRoomsOfTheirOrdersAfterAReset(t *testing.T) {
	t.Parallel()
	s := serve(t, func(_ *Feed, c *HubConfig) { c.History = newTestLog(nil) })
	s.model.orders["o1"] = order.State{Version: 9, CustomerID: "u1", RestaurantID: "r7", RiderID: "k2"}
	rider := domain.Actor{Sub: "k2", Role: domain.Rider}
	gone := &base{id: 77, positions: positionsOf(none(1))}
	c := s.dial(t, rider, "?cursor="+cursorAt(testKey, gone, rider, []string{"order:o1"}))
	c.want("feed:reset")
	s.Hub.Publish(ordersLog(0), 0, time.Time{}, msg("order:o1"))
	c.want("e order:o1 1")
}

// brokenLog is a history of which one log cannot be read, which takes a while to find out.
type brokenLog struct {
	*testLog
	broken eventlog.TopicPartition
	whole  bool // the error does not say which log it is
	reads  *atomic.Int32
}

func (l brokenLog) Read(ctx context.Context, at map[eventlog.TopicPartition][]int64, fn func(eventlog.TopicPartition, int64, []rooms.Message)) error {
	l.reads.Add(1)
	at = maps.Clone(at)
	_, asked := at[l.broken]
	if delete(at, l.broken); !asked {
		return l.testLog.Read(ctx, at, fn)
	}
	time.Sleep(200 * time.Millisecond)
	if err := errors.New("the broker is away"); l.whole {
		return err
	} else if other := l.testLog.Read(ctx, at, fn); other != nil {
		return other
	} else {
		return eventlog.LogErrors{l.broken: err}
	}
}

// A log that cannot be read fails those who need it. The others are served in the same
// round, and nobody reads for those who have gone.
func TestALogThatCannotBeReadFailsOnlyThoseWhoNeedIt(t *testing.T) {
	t.Parallel()
	for _, whole := range []bool{false, true} {
		r := newReader()
		var reads atomic.Int32
		r.history = brokenLog{newTestLog([][]logged{{{ordersLog(1), 0, toOps("read")}}}), ordersLog(0), whole, &reads}
		at := positions{partitions: 2}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		ask := func(ctx context.Context, log int) *readRequest {
			req := &readRequest{ctx: ctx, records: []record{newRecord(log, 0)}, tp: at.tp, all: make([][]rooms.Message, 1), done: make(chan struct{})}
			r.waiting = append(r.waiting, req)
			return req
		}
		for range 20 {
			ask(gone, 0)
		}
		broken, healthy := ask(t.Context(), 0), ask(t.Context(), 1)
		r.running = true
		r.run()
		if broken.err == nil || healthy.err != nil || len(healthy.all[0]) != 1 {
			t.Error(whole, broken.err, healthy.err, healthy.all)
		}
		if want := map[bool]int32{false: 1, true: 3}[whole]; reads.Load() != want {
			t.Error(whole, "the history was read", reads.Load(), "times")
		}
	}
}
