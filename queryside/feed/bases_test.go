package feed

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tomato/eventlog"
)

// slowBases is a history that counts how often a base is read, and answers when it is told.
type slowBases struct {
	*testLog
	mu     sync.Mutex
	reads  int
	answer chan struct{}
}

func (s *slowBases) Base(ctx context.Context, id int64) (eventlog.FeedBase, error) {
	s.mu.Lock()
	s.reads++
	s.mu.Unlock()
	<-s.answer
	return baseAt(id, none(1)), nil
}

// Many clients that come back with cursors of the same base have it read once, also if the
// first of them goes away. Each once read it for itself.
func TestABaseIsReadOnceForAllWhoNeedIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &slowBases{testLog: newTestLog(nil), answer: make(chan struct{})}
		r := newReader()
		r.history = s
		gone, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() {
			if _, err := r.base(gone, 7); err == nil {
				t.Error("it waits although it went away")
			}
		})
		synctest.Wait()
		for range 1000 {
			all.Go(func() {
				if b, err := r.base(t.Context(), 7); err != nil || b.id != 7 {
					t.Error(b, err)
				}
			})
		}
		synctest.Wait()
		cancel()
		synctest.Wait()
		close(s.answer)
		all.Wait()
		if s.reads != 1 {
			t.Errorf("the base was read %d times", s.reads)
		}
	})
}

// The hub's own base stays in memory, however many others are read meanwhile: it is in the
// cursors of all clients.
func TestTheCurrentBaseStaysInMemory(t *testing.T) {
	t.Parallel()
	l := newTestLog(nil)
	for range 10 * keptBases {
		l.base(none(1))
	}
	h := newHub(t, HubConfig{})
	h.ReadHistory(l)
	h.Begin(baseAt(3, none(1)))
	later := none(1)
	later[orders0] = 5
	h.Publish(orders0, 5, time.Time{}, nil)
	h.Base(baseAt(5, later))
	for id := range int64(10 * keptBases) {
		if _, err := h.reader.base(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if h.reader.bases[5] != h.base || len(h.reader.bases) > keptBases {
		t.Errorf("%d bases are in memory, and the current one is %v", len(h.reader.bases), h.reader.bases[5])
	}
	if h.reader.bases[3] != nil {
		t.Error("an earlier one is kept for ever")
	}
	h.Begin(baseAt(9, none(1)))
	if len(h.reader.bases) != 1 {
		t.Errorf("%d bases of before are in memory, whose offsets may be those of others now", len(h.reader.bases))
	}
}

// While the history is read back, who is from before all that will be read must reload at
// once, and only the others wait. All of them were answered with 503 until it was read.
func TestWhoIsOlderThanTheHistoryNeedNotWaitForIt(t *testing.T) {
	t.Parallel()
	l := newTestLog(nil)
	at := func(o int64) eventlog.FeedBase {
		passed := none(1)
		passed[orders0] = o
		return l.base(passed)
	}
	old, within, began := at(9), at(50), at(100)
	s := serve(t, func(_ *Feed, c *HubConfig) { c.History = l })
	s.Hub.Begin(began)
	s.Hub.Ready()
	waits := func(b eventlog.FeedBase) bool {
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		p := positionsOf(b.Passed)
		return !s.Hub.covered(ended, &p)
	}
	if !waits(old) || !waits(within) {
		t.Error("somebody is sent away before it is known how far the history will reach")
	}
	s.Hub.Reaches(within.Passed)
	if waits(old) || !waits(within) {
		t.Error("the wrong ones wait:", waits(old), waits(within))
	}
	c := s.dial(t, ops, "?cursor="+cursorAt(testKey, newBase(old), ops, nil))
	if g := c.want("feed:reset"); g.Reason != resetExpired {
		t.Error(g.Reason)
	}
	s.Hub.Begin(began)
	s.Hub.Ready()
	if !waits(old) {
		t.Error("after a new beginning it is not known how far the history will reach")
	}
}

// After a restore the offset of a base may be that of another one. Its cursors are then
// unknown, and do not mean a place somewhere else. Only the offset was compared once.
func TestACursorOfAnotherBaseAtTheSameOffsetIsUnknown(t *testing.T) {
	t.Parallel()
	l := newTestLog(nil)
	l.base(none(1))
	s := serve(t, func(_ *Feed, c *HubConfig) { c.History = l })
	mine := newBase(baseAt(0, none(1)))
	before := *mine
	before.key = "before the restore"
	for b, want := range map[*base]string{mine: "feed:resumed", &before: "feed:reset"} {
		c := s.dial(t, ops, "?cursor="+cursorAt(testKey, b, ops, []string{"restaurant:r9"}))
		g, err := c.next()
		if err != nil || g.Event != want || want == "feed:reset" && g.Reason != resetUnknown {
			t.Error(g, err)
		}
	}
}

// A hub that begins without a base gives cursors with which a client must reload, and tokens
// that name none. From the first base on, both are as always.
func TestAHubBeginsWithoutABase(t *testing.T) {
	t.Parallel()
	s := serve(t, func(_ *Feed, c *HubConfig) { c.History = newTestLog(nil) })
	s.Hub.Begin(eventlog.FeedBase{ID: eventlog.NoFeedBase, Passed: none(1)})
	s.Hub.Ready()
	s.Hub.NoOlder()
	c := s.dial(t, ops, "?room=ops")
	s.Hub.Publish(orders0, 0, time.Time{}, toOps("first"))
	first := c.want("first ops {}")
	again := s.dial(t, ops, "?cursor="+first.Cursor)
	if g := again.want("feed:reset"); g.Reason != resetUnknown || len(tokenOf(t, g.ConsistencyToken)) != 1 {
		t.Error(g.Reason, g.ConsistencyToken)
	}
	at := none(1)
	at[orders0] = 0
	s.Hub.Base(baseAt(4, at))
	s.Hub.Publish(orders0, 1, time.Time{}, toOps("second"))
	second := c.want("second ops {}")
	s.Hub.Publish(orders0, 2, time.Time{}, toOps("third"))
	again = s.dial(t, ops, "?cursor="+second.Cursor)
	again.want("feed:resumed")
	again.want("third ops {}")
}
