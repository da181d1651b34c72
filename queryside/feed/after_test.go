package feed

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"tomato/domain/rooms"
	"tomato/eventlog"
)

// tokenOf reads a token as a client sends it back.
func tokenOf(t *testing.T, text string) eventlog.Token {
	t.Helper()
	sent, err := eventlog.ParseClientToken(text)
	if err != nil {
		t.Fatal(err)
	}
	token, err := sent.For(eventlog.LogID{})
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// openAfter opens a feed after a token, with its base.
func (h *Hub) openAfter(t *testing.T, after eventlog.Token, names ...string) []string {
	t.Helper()
	c := connecting{actor: ops, after: after, rooms: names}
	if id, ok := h.baseOf(after); ok {
		var err error
		if c.base, err = h.reader.baseUpTo(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	s, _, err := h.connectAndReplay(c)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, g := range received(t, s) {
		all = append(all, g.Event)
	}
	return all
}

// What is appended after a token is sent to a feed that is opened with it, also in logs that
// were empty as of the token and in topic feed, which it does not name. Messages there were
// missed. What is before the token's base is not sent again, nor what is before the token in
// the logs that it names.
func TestAFeedBeginsAfterItsTokenInAllLogs(t *testing.T) {
	t.Parallel()
	const partitions = 3
	others := []int32{0, 1, 2} // than the one that has the bases, whose offsets are not those of a log here
	others = slices.DeleteFunc(others, func(p int32) bool { return p == eventlog.FeedBases(partitions).Partition })
	l := newTestLog(nil)
	at := none(partitions)
	var offsets map[eventlog.TopicPartition]int64
	for _, own := range []bool{true, false} { // the instance's own base, or one that it reads from the log
		at, offsets = none(partitions), map[eventlog.TopicPartition]int64{}
		h := newHub(t, HubConfig{})
		h.ReadHistory(l)
		h.Begin(l.base(none(partitions)))
		h.Ready()
		h.NoOlder()
		publish := func(topic string, partition int32, event string) {
			tp := eventlog.TopicPartition{Topic: topic, Partition: partition}
			h.Publish(tp, offsets[tp], time.Time{}, toOps(event))
			at[tp] = offsets[tp]
			offsets[tp]++
		}
		publish(eventlog.Orders, 0, "before the base")
		publish(eventlog.Feed, others[0], "emitted before the base")
		named := l.base(maps.Clone(at))
		h.Base(named)
		publish(eventlog.Orders, 1, "before the token")
		_, _, token, err := h.connect(connecting{actor: ops})
		if err != nil {
			t.Fatal(err)
		}
		publish(eventlog.Orders, 0, "an order")
		publish(eventlog.Orders, 2, "an order in an empty log")
		publish(eventlog.Payments, 1, "a payment in an empty log")
		publish(eventlog.Feed, others[0], "emitted")
		publish(eventlog.Feed, others[1], "emitted in an empty log")
		if !own {
			h.reader.begin(newBase(l.base(maps.Clone(at))))
		}
		want := []string{"an order", "an order in an empty log", "a payment in an empty log", "emitted", "emitted in an empty log"}
		if got := h.openAfter(t, tokenOf(t, token), rooms.Ops); !slices.Equal(got, want) {
			t.Errorf("sent %q, want %q", got, want)
		}
		// So is what follows a token of one log, in that log.
		if got := h.openAfter(t, eventlog.Token{ordersLog(0): 0}, rooms.Ops); !slices.Equal(got, want[:1]) {
			t.Errorf("after a command's token: %q", got)
		}
	}
}

// A base that the log does not have any more is no place: the client must reload.
func TestATokenOfABaseThatIsGoneIsReset(t *testing.T) {
	t.Parallel()
	s := serve(t, func(_ *Feed, c *HubConfig) { c.History = newTestLog(nil) })
	s.Hub.Begin(baseAt(500, none(1)))
	s.Hub.Publish(eventlog.FeedBases(1), 500, time.Time{}, nil)
	s.Hub.Ready()
	s.Hub.NoOlder()
	old := eventlog.LogID{}.Format(eventlog.Token{eventlog.FeedBases(1): 7}.String())
	c := s.dial(t, ops, "?consistencyToken="+old)
	if g := c.want("feed:reset"); g.Reason != resetExpired {
		t.Error(g.Reason)
	}
}

// However many logs there are, the base takes a few characters of a token.
func TestTheBaseTakesFewCharactersOfAToken(t *testing.T) {
	t.Parallel()
	const partitions = 400
	h := openHub(t, HubConfig{}, partitions)
	_, _, token, err := h.connect(connecting{actor: ops})
	if err != nil {
		t.Fatal(err)
	}
	if token == "" || len(token) > 20 {
		t.Errorf("with nothing published the token has %d characters: %s", len(token), token)
	}
	h.Publish(ordersLog(0), 7, time.Time{}, nil)
	if room := h.token(rooms.Order("x")); len(room) > 30 {
		t.Errorf("the token of an order has %d characters", len(room))
	}
	if strings.Contains(fmt.Sprint(tokenOf(t, h.token(""))), "payments") {
		t.Error("it names empty logs")
	}
}
