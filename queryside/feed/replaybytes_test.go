package feed

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tomato/domain"
	"tomato/domain/rooms"
)

// The replays of all clients together hold at most ReplayBytes, and a client that does not
// read holds up none of the others.
func TestReplaysShareTheirBytes(t *testing.T) {
	t.Parallel()
	const limit = 64 << 10
	h, _, cursor, want := absence(t, 1000, HubConfig{ReplayBytes: limit, RecentBytes: 1})
	var inFlight, most atomic.Int64
	var all sync.WaitGroup
	stuck, release := make(chan struct{}), make(chan struct{})
	client := func(i int, write func()) {
		a := domain.Actor{Sub: "m", Role: domain.Restaurant, RestaurantID: fmt.Sprint("r", i)}
		c := connecting{actor: a, cursor: h.parse(cursor(a), a)}
		c.base, _ = h.reader.base(t.Context(), c.cursor.base)
		s, _, _, err := h.connect(c)
		if err != nil {
			t.Error(err)
			return
		}
		defer h.disconnect(s)
		n := 0
		err = h.replay(t.Context(), s, func(items []item) error {
			size := int64(0)
			for i := range items {
				if n++; strings.HasPrefix(string(items[i].head), `{"event":"feed:`) {
					n--
					continue
				}
				size += int64(items[i].len())
			}
			if now := inFlight.Add(size); now > most.Load() {
				most.Store(now)
			}
			if size > 0 {
				write()
			}
			inFlight.Add(-size)
			return nil
		})
		if missed := len(want(rooms.Restaurant(a.RestaurantID))); err != nil || n != missed {
			t.Errorf("%s was sent %d of %d messages: %v", a.RestaurantID, n, missed, err)
		}
	}
	var once sync.Once
	slow := make(chan struct{})
	go func() {
		defer close(slow)
		client(0, func() {
			once.Do(func() { close(stuck) })
			<-release
		})
	}()
	<-stuck
	for i := 1; i < 20; i++ {
		all.Go(func() { client(i, func() { time.Sleep(100 * time.Microsecond) }) }) // a network that takes some time
	}
	all.Wait()
	select {
	case <-slow:
		t.Error("the client that does not read is done")
	default:
	}
	close(release)
	<-slow
	if m := most.Load(); m > limit || m == 0 {
		t.Errorf("the replays held %d bytes at once, of %d", m, limit)
	}
	if !h.replays.TryAcquire(limit) {
		t.Error("a share was not given back")
	}
}

// What clients have missed is queued for them at once only while little waits in all queues.
// The others are sent it by a replay.
func TestQueuesOfReturningClientsAreBoundedTogether(t *testing.T) {
	t.Parallel()
	const limit = 256 << 10
	h := openHub(t, HubConfig{ReplayBytes: limit}, 1)
	_, cursor, _ := h.open(customer("u1"), nil, "")
	for o := range int64(50) { // 100 KiB
		h.Publish(orders0, o, time.Now(), []rooms.Message{{Event: "e", Rooms: []string{"user:u1"}, Payload: []byte(`"` + strings.Repeat("x", 2<<10) + `"`)}})
	}
	before := h.metrics.queued.Load()
	replays := 0
	for range 20 {
		c := connecting{actor: customer("u1"), cursor: h.parse(cursor, customer("u1"))}
		c.base, _ = h.reader.base(t.Context(), c.cursor.base)
		s, _, _, err := h.connect(c)
		if err != nil {
			t.Fatal(err)
		}
		if s.replay != nil {
			replays++
		}
	}
	if queued := h.metrics.queued.Load() - before; queued > limit || queued == 0 || replays < 15 {
		t.Errorf("%d bytes are queued of %d, and %d of 20 clients replay", queued, limit, replays)
	}
}
