package feed

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
	"time"

	"tomato/domain/rooms"
	"tomato/eventlog"
)

// world has orders of one customer in a log, a read model that follows it when it likes, and
// a hub.
type world struct {
	log    map[eventlog.TopicPartition][]rooms.Message
	truth  map[string]int // the version of each order
	hub    *Hub
	sent   eventlog.Token // what the hub has published
	model  eventlog.Token // what the read model has passed
	rows   map[string]int
	random *rand.Rand
}

const gapPartitions = 3

// updatePayload is what a message says of an order.
type updatePayload struct {
	Order   string
	Version int
}

func (w *world) append() {
	id := fmt.Sprint("o", w.random.IntN(5))
	w.truth[id]++
	payload, _ := json.Marshal(updatePayload{id, w.truth[id]})
	tp := eventlog.TopicPartition{Topic: eventlog.Orders, Partition: eventlog.PartitionFor(id, gapPartitions)}
	w.log[tp] = append(w.log[tp], rooms.Message{Event: "order:update", Rooms: []string{"user:u1"}, Payload: payload})
}

// next returns a record that comes next in one of the logs for a reader that has passed so
// much, and moves it on.
func (w *world) next(passed eventlog.Token) (tp eventlog.TopicPartition, m rooms.Message, ok bool) {
	first := int32(w.random.IntN(gapPartitions))
	for p := range int32(gapPartitions) {
		tp := eventlog.TopicPartition{Topic: eventlog.Orders, Partition: (p + first) % gapPartitions}
		next := int64(0)
		if o, ok := passed[tp]; ok {
			next = o + 1
		}
		if next < int64(len(w.log[tp])) {
			passed[tp] = next
			return tp, w.log[tp][next], true
		}
	}
	return tp, m, false
}

func (w *world) publish() {
	if tp, m, ok := w.next(w.sent); ok {
		w.hub.Publish(tp, w.sent[tp], time.Time{}, []rooms.Message{m})
	}
}

func (w *world) project() {
	if _, m, ok := w.next(w.model); ok {
		var u updatePayload
		_ = json.Unmarshal(m.Payload, &u)
		w.rows[u.Order] = u.Version
	}
}

func (w *world) steps(n int, do ...func()) {
	for range w.random.IntN(n) {
		do[w.random.IntN(len(do))]()
	}
}

// query answers the rows and the token that they have passed, or false if the read model
// has not passed after.
func (w *world) query(after eventlog.Token) (rows map[string]int, passed eventlog.Token, ok bool) {
	for tp, o := range after {
		if at, ok := w.model[tp]; tp.Topic == eventlog.Orders && (!ok || at < o) {
			return nil, nil, false
		}
	}
	return maps.Clone(w.rows), maps.Clone(w.model), true
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{log: map[eventlog.TopicPartition][]rooms.Message{}, truth: map[string]int{}, sent: eventlog.Token{}, model: eventlog.Token{}, rows: map[string]int{},
		hub: openHub(t, HubConfig{}, gapPartitions), random: rand.New(rand.NewPCG(seed, 1))}
	for range 20 {
		w.append()
	}
	for p := range int32(gapPartitions) { // as a claim does: no log is empty
		tp := eventlog.TopicPartition{Topic: eventlog.Orders, Partition: p}
		w.log[tp] = append([]rooms.Message{{Event: "e", Rooms: []string{"user:nobody"}, Payload: []byte(`{}`)}}, w.log[tp]...)
		w.hub.Publish(tp, 0, time.Time{}, w.log[tp][:1])
		w.sent[tp], w.model[tp] = 0, 0
	}
	return w
}

// TestNoUpdateIsLostBetweenRowsAndFeed: the read models stand still, the feed goes on,
// orders change, and a client reloads, in either order: with the token of the feed:reset, or
// by opening the feed after the token of the rows. When the read models go on, the client
// has the truth. Rows that were older than the place from which the feed went on hid an
// update for good.
func TestNoUpdateIsLostBetweenRowsAndFeed(t *testing.T) {
	t.Parallel()
	for seed := range uint64(1000) {
		w := newWorld(t, seed)
		everything := func() { w.steps(40, w.append, w.publish, w.project) }
		stopped := func() { w.steps(40, w.append, w.publish) }
		everything()
		have := map[string]int{}
		hear := func(all []got) (token eventlog.Token) {
			for _, g := range all {
				if g.ConsistencyToken != "" {
					sent, err := eventlog.ParseClientToken(g.ConsistencyToken)
					if err != nil {
						t.Fatal(err)
					}
					if token, err = sent.For(eventlog.LogID{}); err != nil {
						t.Fatal(err)
					}
				}
				var u updatePayload
				if g.Event == "order:update" && json.Unmarshal(g.Payload, &u) == nil {
					have[u.Order] = max(have[u.Order], u.Version)
				}
			}
			return token
		}
		read := func(after eventlog.Token) (passed eventlog.Token) {
			rows, passed, ok := w.query(after)
			for !ok { // 503: the client repeats
				w.steps(4, w.append, w.publish)
				w.project()
				rows, passed, ok = w.query(after)
			}
			for id, v := range rows {
				have[id] = max(have[id], v)
			}
			return passed
		}
		stopped()
		var s *subscriber
		if seed%2 == 0 { // reset, then reload
			var err error
			if s, _, err = w.hub.open(customer("u1"), nil, "a cursor of other logs"); err != nil {
				t.Fatal(err)
			}
			token := hear(received(t, s))
			if token == nil {
				t.Fatal("feed:reset has no token")
			}
			stopped()
			read(token)
		} else { // load, then open the feed
			passed := read(nil)
			stopped()
			for { // the feed opens when it has published that
				at := newPositions(gapPartitions)
				for tp, o := range w.sent {
					at.done[at.log(tp)] = o
				}
				need := newPositions(gapPartitions)
				for tp, o := range passed {
					need.done[need.log(tp)] = o
				}
				if at.reached(&need) {
					break
				}
				w.publish()
			}
			var err error
			if s, _, err = w.hub.connectAndReplay(connecting{actor: customer("u1"), after: passed}); err != nil {
				t.Fatal(err)
			}
			hear(received(t, s))
			again, _, err := w.hub.connectAndReplay(connecting{actor: customer("u1"), after: w.sent})
			if err != nil || len(received(t, again)) > 0 {
				t.Fatal("a feed that was opened after all that is published was sent something", err)
			}
		}
		everything()
		for range 1000 {
			w.publish()
		}
		hear(received(t, s))
		for id, v := range w.truth {
			if have[id] != v {
				t.Fatalf("seed %d: the client has %s at version %d, and it is at %d", seed, id, have[id], v)
			}
		}
	}
}
