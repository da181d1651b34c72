package feed

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"tomato/domain/rooms"
	"tomato/eventlog"
)

// positionsIn publishes positions of riders. The offset is the payload.
type positionsIn struct {
	h      *Hub
	passed map[eventlog.TopicPartition]int64
	newest map[string]int64 // by room
}

func (p *positionsIn) publish(partition int32, order string) {
	tp := eventlog.TopicPartition{Topic: eventlog.RiderLocations, Partition: partition}
	p.passed[tp]++
	o := p.passed[tp]
	room := rooms.Order(order)
	p.newest[room] = o
	p.h.Publish(tp, o, time.Now(), []rooms.Message{{Event: "rider:location", Rooms: []string{room}, Payload: fmt.Append(nil, o), Latest: true}})
}

// TestPositionsAreSentOnceASecond: whoever is connected is sent the first position at once,
// then one a second, and the newest in the end.
func TestPositionsAreSentOnceASecond(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := openHub(t, HubConfig{}, 1)
		p := &positionsIn{h, none(1), map[string]int64{}}
		s := open(t, h, ops, []string{"order:o0", "order:o1"}, "")
		began, at := time.Now(), map[string]time.Time{}
		var seen []string
		look := func() {
			for _, g := range received(t, s) {
				if last, ok := at[g.Room]; ok && time.Since(last) < time.Second {
					t.Errorf("%s: two positions within %v", g.Room, time.Since(last))
				}
				at[g.Room] = time.Now()
				if g.Room == "order:o0" {
					seen = append(seen, fmt.Sprintf("%s@%v", g.Payload, time.Since(began)))
				}
			}
		}
		for i := range 25 { // positions of o0 have the even offsets, from 0 on
			p.publish(0, fmt.Sprint("o", i%2))
			synctest.Wait()
			look()
			time.Sleep(130 * time.Millisecond)
		}
		for range 20 {
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
			look()
		}
		if want := "[0@0s 8@1.3s 16@2.34s 24@3.35s]"; fmt.Sprint(seen) != want {
			t.Errorf("o0 was at %v, want %s", seen, want)
		}
	})
}

// TestPositionsAreNeitherLostNorDoubledAcrossReconnects: a client of several rooms is cut
// off anywhere, also while positions wait, and comes back with its cursor.
func TestPositionsAreNeitherLostNorDoubledAcrossReconnects(t *testing.T) {
	t.Parallel()
	for seed := range uint64(1000) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			h := openHub(t, HubConfig{}, 2)
			p := &positionsIn{h, none(2), map[string]int64{}}
			asked := []string{"order:o0", "order:o1", "order:o2", "order:o3"}
			s, cursor, _ := h.open(ops, asked, "")
			last := map[string]int64{}
			read := func(all []got) {
				for _, g := range all {
					if g.Cursor != "" {
						cursor = g.Cursor
					}
					if g.Event != "rider:location" {
						continue
					}
					o, _ := strconv.ParseInt(string(g.Payload), 10, 64)
					if before, ok := last[g.Room]; ok && o <= before {
						t.Fatalf("seed %d: %s: %d after %d", seed, g.Room, o, before)
					}
					last[g.Room] = o
				}
			}
			for base := range int64(40) {
				time.Sleep(time.Duration(random.IntN(200)) * time.Millisecond)
				synctest.Wait()
				n := random.IntN(4)
				p.publish(int32(n%2), fmt.Sprint("o", n))
				switch random.IntN(12) {
				case 5:
					h.ping(s) // a later cursor, with the last base
				case 0:
					passed := none(2)
					for tp, o := range p.passed {
						passed[tp] = o
					}
					h.Base(baseAt(100+base, passed))
				case 1, 2:
					read(received(t, s))
				case 3, 4: // cut off in the middle of what is in the queue
					all := received(t, s)
					read(all[:random.IntN(len(all)+1)])
					h.disconnect(s)
					time.Sleep(time.Duration(random.IntN(1500)) * time.Millisecond)
					synctest.Wait()
					s = open(t, h, ops, nil, cursor)
				}
			}
			all := received(t, s)
			read(all[:random.IntN(len(all)+1)])
			h.disconnect(s)
			time.Sleep(time.Duration(random.IntN(2000)) * time.Millisecond)
			synctest.Wait()
			s = open(t, h, ops, nil, cursor)
			all = received(t, s)
			read(all[:random.IntN(len(all)+1)])
			h.disconnect(s)
			s = open(t, h, ops, nil, cursor)
			time.Sleep(2 * time.Second)
			synctest.Wait()
			read(received(t, s))
			for room, o := range p.newest {
				if last[room] != o {
					t.Errorf("seed %d: the newest position of %s is %d, and %d came last", seed, room, o, last[room])
				}
			}
		})
	}
}

// The end of a delivery drops the position that waits.
func TestNoPositionComesAfterTheEndOfADelivery(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := openHub(t, HubConfig{}, 1)
		p := &positionsIn{h, none(1), map[string]int64{}}
		s := open(t, h, ops, []string{"order:o1"}, "")
		p.publish(0, "o1")
		p.publish(0, "o1")
		final := msg("order:o1")
		final[0].Final = true
		h.Publish(orders0, 0, time.Now(), final)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := names(t, s); got != "rider:location e" {
			t.Errorf("was told %s", got)
		}
	})
}
