package eventlog

import (
	"sync"
	"time"
)

// LogSampler limits the log entries about something that may happen very often: one entry
// in each period, which says how often it happened. It is safe for concurrent use. It must
// not be copied after its first use.
type LogSampler struct {
	// Every is the least time between two entries. 0 means that each event has an entry.
	Every time.Duration

	mu       sync.Mutex // guards the fields below
	n        int        // events since the last entry
	loggedAt time.Time
}

// Count counts one event. If it is time for an entry, now is true and n is how many events
// there were since the last entry, this one included. The first event has an entry at once.
func (s *LogSampler) Count() (n int, now bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	if time.Since(s.loggedAt) < s.Every {
		return 0, false
	}
	n, s.n, s.loggedAt = s.n, 0, time.Now()
	return n, true
}
