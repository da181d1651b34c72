package eventlog_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"tomato/eventlog"
)

// The first event has an entry. Those of the period after it have none, and the next entry
// counts them.
func TestALogSamplerAllowsOneEntryInAPeriod(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := eventlog.LogSampler{Every: 10 * time.Second}
		want := func(n int, now bool) {
			t.Helper()
			if gotN, gotNow := s.Count(); gotN != n || gotNow != now {
				t.Errorf("after %v: %d %v, want %d %v", time.Now(), gotN, gotNow, n, now)
			}
		}
		want(1, true)
		want(0, false)
		time.Sleep(10*time.Second - 1)
		want(0, false)
		time.Sleep(time.Nanosecond)
		want(3, true)
		time.Sleep(time.Hour)
		want(1, true)
	})
}

// No event is lost or counted twice when many goroutines count.
func TestALogSamplerCountsEachEventOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := eventlog.LogSampler{Every: time.Second}
		var counted, entries atomic.Int64
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for range 1000 {
					if n, now := s.Count(); now {
						counted.Add(int64(n))
						entries.Add(1)
					}
				}
			})
		}
		all.Wait()
		time.Sleep(time.Second)
		n, now := s.Count()
		if total := counted.Load() + int64(n); !now || total != 8001 || entries.Load() != 1 {
			t.Errorf("%d events were counted in %d entries and a last one of %d", total, entries.Load(), n)
		}
	})
}
