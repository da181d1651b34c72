package feed

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tomato/domain"
	"tomato/domain/rooms"
	"tomato/eventlog"
)

var (
	feed0 = eventlog.TopicPartition{Topic: eventlog.Feed}
	k1    = domain.Actor{Sub: "k1", Role: domain.Rider}
)

// ofOrder is what an event of order o1 means in its room.
func ofOrder(version int64, rider string, change func(*rooms.Message)) []rooms.Message {
	m := rooms.Message{Event: "order:update", Rooms: []string{"order:o1"}, Payload: []byte(`1`), Customer: "u1", Restaurant: "r1", Rider: rider, Version: version}
	if change != nil {
		change(&m)
	}
	return []rooms.Message{m}
}

func assigned(m *rooms.Message)   { m.Assigned = true }
func unassigned(m *rooms.Message) { m.Unassigned = true }

func emitted(name string) []rooms.Message {
	return []rooms.Message{{Event: name, Rooms: []string{"order:o1"}, Payload: []byte(`1`)}}
}

// names are the events received, with the codes of errors.
func names(t *testing.T, s *subscriber) (all string) {
	t.Helper()
	for _, g := range received(t, s) {
		all = strings.TrimSpace(all + " " + g.Event)
		if g.Code != "" {
			all += ":" + g.Code
		}
	}
	return all
}

func open(t *testing.T, h *Hub, actor domain.Actor, rooms []string, cursor string) *subscriber {
	t.Helper()
	s, _, err := h.open(actor, rooms, cursor)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A customer and a rider may have the same id, and so the same room. Each is
// told what is meant for them, live and resumed.
func TestAMessageInAUsersRoomIsForItsRoleAlone(t *testing.T) {
	t.Parallel()
	h := openHub(t, HubConfig{}, 1)
	same := []domain.Actor{customer("x"), {Sub: "x", Role: domain.Rider}}
	_, cursor, _ := h.open(same[0], nil, "") // without rooms of its own, it is good for both
	live := []*subscriber{open(t, h, same[0], nil, ""), open(t, h, same[1], nil, ""), open(t, h, ops, []string{"user:x"}, "")}
	for i, m := range []rooms.Message{
		{Event: "to-customer", Roles: []domain.Role{domain.Customer}},
		{Event: "to-rider", Roles: []domain.Role{domain.Rider}},
		{Event: "to-all", Roles: []domain.Role{""}},
		{Event: "emitted"},
	} {
		m.Rooms, m.Payload = []string{"user:x"}, []byte(`1`)
		h.Publish(feed0, int64(i), time.Time{}, []rooms.Message{m})
	}
	for i, want := range []string{"to-customer to-all emitted", "to-rider to-all emitted", "to-customer to-rider to-all emitted"} {
		if got := names(t, live[i]); got != want {
			t.Errorf("%d was told %s", i, got)
		}
	}
	for i, want := range []string{"feed:resumed to-customer to-all emitted", "feed:resumed to-rider to-all emitted"} {
		if got := names(t, open(t, h, same[i], nil, cursor)); got != want {
			t.Errorf("resumed, %d was told %s", i, got)
		}
	}
}

// The place of a rider in the room of an order ends with the event that takes
// the order from them, though what is emitted to the room is for all in it.
func TestARidersPlaceInAnOrdersRoomEndsWithTheOrder(t *testing.T) {
	t.Parallel()
	h := openHub(t, HubConfig{}, 1)
	h.Publish(orders0, 0, time.Time{}, ofOrder(7, "k1", assigned))
	rider, other := open(t, h, k1, []string{"order:o1"}, ""), open(t, h, customer("u1"), []string{"order:o1"}, "")
	h.ping(rider)
	before := received(t, rider)[0].Cursor // it has the room
	h.Publish(feed0, 0, time.Time{}, emitted("one"))
	h.Publish(orders0, 1, time.Time{}, ofOrder(8, "k1", unassigned))
	h.Publish(feed0, 1, time.Time{}, emitted("two"))
	if got := names(t, rider); got != "one order:update feed:error:not_allowed" {
		t.Errorf("the rider was told %s", got)
	}
	if got := names(t, other); got != "one order:update two" {
		t.Errorf("the customer was told %s", got)
	}
	if err := h.join(rider, "order:o1", 7); err != errNotTheirs {
		t.Error("a rider joined by what was so before:", err)
	}
	// The cursor no longer has the room; with an older cursor the room is refused again,
	// and shown as long as the order was theirs.
	h.ping(rider)
	ping := received(t, rider)[0].Cursor
	if got := names(t, open(t, h, k1, nil, ping)); got != "feed:resumed" {
		t.Errorf("resumed with %s", got)
	}
	h.Publish(feed0, 2, time.Time{}, emitted("three"))
	older := open(t, h, k1, nil, before)
	h.Publish(feed0, 3, time.Time{}, emitted("four"))
	if got := names(t, older); got != "feed:resumed one order:update feed:error:not_allowed" {
		t.Errorf("with an older cursor it was told %s", got)
	}
	// Delivered or cancelled, the order is still that rider's.
	h.Publish(orders0, 2, time.Time{}, ofOrder(9, "k1", assigned))
	back := open(t, h, k1, []string{"order:o1"}, "")
	h.Publish(orders0, 3, time.Time{}, ofOrder(10, "k1", nil))
	h.Publish(feed0, 4, time.Time{}, emitted("five"))
	if got := names(t, back); got != "order:update five" {
		t.Errorf("after the delivery the rider was told %s", got)
	}
}

// Who comes back has the rights that they had at each message.
func TestAResumingRiderHearsAnOrdersRoomWhileTheOrderWasTheirs(t *testing.T) {
	t.Parallel()
	type step struct {
		all []rooms.Message
		tp  eventlog.TopicPartition
	}
	on := func(all []rooms.Message) step { return step{all, orders0} }
	emit := func(name string) step { return step{emitted(name), feed0} }
	for name, c := range map[string]struct {
		steps  []step
		orders map[string]int64 // what the read model says
		want   string
		in     bool // the room, afterwards
	}{
		"still theirs":            {[]step{emit("a")}, map[string]int64{"order:o1": 7}, "feed:resumed a", true},
		"as the window knows":     {[]step{emit("a"), on(ofOrder(8, "k1", nil))}, nil, "feed:resumed a order:update", true},
		"dropped":                 {[]step{emit("a"), on(ofOrder(8, "k1", unassigned)), emit("b")}, map[string]int64{"order:o1": 7}, "feed:resumed a order:update feed:error:not_allowed", false},
		"dropped and others'":     {[]step{emit("a"), on(ofOrder(8, "k1", unassigned)), emit("b"), on(ofOrder(9, "k2", assigned)), emit("c")}, nil, "feed:resumed a order:update feed:error:not_allowed", false},
		"dropped and theirs":      {[]step{emit("a"), on(ofOrder(8, "k1", unassigned)), emit("b"), on(ofOrder(9, "k1", assigned)), emit("c")}, nil, "feed:resumed a order:update order:update c", true},
		"dropped before":          {[]step{emit("a"), emit("b")}, nil, "feed:resumed feed:error:not_allowed", false},
		"dropped, not published":  {[]step{emit("a")}, map[string]int64{}, "feed:resumed feed:error:not_allowed", false},
		"theirs again, unwatched": {[]step{emit("a"), on(ofOrder(9, "k1", assigned)), emit("b")}, nil, "feed:resumed order:update b", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := openHub(t, HubConfig{}, 1)
			_, cursor, _ := h.open(k1, []string{"order:o1"}, "")
			next := map[eventlog.TopicPartition]int64{}
			for _, s := range c.steps {
				h.Publish(s.tp, next[s.tp], time.Time{}, s.all)
				next[s.tp]++
			}
			s, _, err := h.connectAndReplay(connecting{actor: k1, cursor: h.parse(cursor, k1), orders: c.orders})
			if err != nil {
				t.Fatal(err)
			}
			if got := names(t, s); got != c.want {
				t.Errorf("was told %s", got)
			}
			h.Publish(feed0, next[feed0], time.Time{}, emitted("later"))
			if got := names(t, s); (got == "later") != c.in {
				t.Errorf("is in the room: %s", got)
			}
		})
	}
}

// The same where what was missed is no longer in memory and is read from the log: each
// message, also one that was emitted to the room, is for the rider if the order was theirs
// at that time. Who has lost the order is out of the room, and does not come back into it
// with any cursor.
func TestAReplayFromTheLogHasTheRightsOfEachMessage(t *testing.T) {
	t.Parallel()
	emit := func(name string) logged { return logged{tp: feed0, all: emitted(name)} }
	on := func(version int64, rider string, change func(*rooms.Message)) logged {
		return logged{tp: orders0, all: ofOrder(version, rider, change)}
	}
	for name, c := range map[string]struct {
		steps  []logged
		orders map[string]int64 // what the read model says
		want   string
		in     bool // the room, afterwards
	}{
		"still theirs":        {[]logged{emit("a")}, map[string]int64{"order:o1": 7}, "feed:resumed a", true},
		"dropped":             {[]logged{emit("a"), on(8, "k1", unassigned), emit("b")}, nil, "feed:resumed a order:update feed:error:not_allowed", false},
		"dropped and others'": {[]logged{emit("a"), on(8, "k1", unassigned), emit("b"), on(9, "k2", assigned), emit("c")}, nil, "feed:resumed a order:update feed:error:not_allowed", false},
		"dropped and theirs":  {[]logged{emit("a"), on(8, "k1", unassigned), emit("b"), on(9, "k1", assigned), emit("c")}, map[string]int64{"order:o1": 9}, "feed:resumed a order:update order:update c", true},
		"delivered":           {[]logged{emit("a"), on(8, "k1", nil), emit("b")}, map[string]int64{"order:o1": 8}, "feed:resumed a order:update b", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			next := map[eventlog.TopicPartition]int64{}
			for i := range c.steps {
				c.steps[i].offset = next[c.steps[i].tp]
				next[c.steps[i].tp]++
			}
			l := newTestLog([][]logged{c.steps})
			h := openHub(t, HubConfig{RecentBytes: 1, History: l}, 1)
			_, before, _ := h.open(k1, []string{"order:o1"}, "")
			for _, s := range c.steps {
				h.Publish(s.tp, s.offset, time.Now(), s.all)
			}
			s, _, err := h.connectAndReplay(connecting{actor: k1, cursor: h.parse(before, k1), orders: c.orders})
			if err != nil {
				t.Fatal(err)
			}
			if got := names(t, s); got != c.want || l.reads == 0 {
				t.Errorf("was told %s, after %d reads of the log", got, l.reads)
			}
			h.ping(s)
			after := received(t, s)[0].Cursor
			again, _, err := h.connectAndReplay(connecting{actor: k1, cursor: h.parse(after, k1), orders: c.orders})
			if err != nil {
				t.Fatal(err)
			}
			names(t, again)
			h.Publish(feed0, next[feed0], time.Now(), emitted("later"))
			for _, s := range []*subscriber{s, again} {
				if got := names(t, s); (got == "later") != c.in {
					t.Errorf("is in the room: %q", got)
				}
			}
		})
	}
}

// A client that must reload is in no room that it may not be in, either.
func TestAResetLeavesARiderOutOfOthersRooms(t *testing.T) {
	t.Parallel()
	h := openHub(t, HubConfig{RecentBytes: 4000}, 1)
	_, cursor, _ := h.open(k1, []string{"order:o1", "order:o2"}, "")
	h.Publish(orders0, 0, time.Time{}, ofOrder(8, "k1", unassigned))
	for o := range int64(50) {
		h.Publish(orders0, 1+o, time.Time{}, msg("user:k1"))
	}
	s, _, _ := h.connectAndReplay(connecting{actor: k1, cursor: h.parse(cursor, k1), orders: map[string]int64{"order:o2": 3}})
	if got := names(t, s); got != "feed:reset feed:error:not_allowed" {
		t.Errorf("was told %s", got)
	}
	if d := cmp.Diff([]string{"order:o2"}, s.joined); d != "" {
		t.Error(d)
	}
}
