package parked

import (
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// maxHeldBytes bounds the record values that a Set keeps in memory. A record that
// it does not keep is read from Kafka again when it is tried.
const maxHeldBytes = 4 << 20

// Set is what is parked of one partition, in memory.
//
// Only the goroutine of the worker's loop changes which events are in it and what
// they say, so that goroutine reads them without a lock. The methods Snapshot,
// Hold and Counts may be called by other goroutines too.
type Set struct {
	mu        sync.Mutex          // held for every change, and by other goroutines when they read
	byKey     map[string][]*Event // in offset order; only the first of a key may be tried
	byOffset  map[int64]*Event
	heldBytes int // of the values of records in memory
	overKeys  int // keys that have keyBudget events or more
	keyBudget int

	changed bool      // since Due returned nothing: something may be due
	nextDue time.Time // when the next event becomes due; zero: none does
}

// NewSet returns a Set of events, which it keeps. keyBudget is how many events of
// one key are too many.
func NewSet(events []*Event, keyBudget int) *Set {
	s := &Set{byKey: map[string][]*Event{}, byOffset: map[int64]*Event{}, keyBudget: keyBudget, changed: true}
	for _, e := range events {
		s.Add(e)
	}
	return s
}

// Add adds e, whose row is committed. It does nothing if the Set has an event of
// that offset already.
func (s *Set) Add(e *Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.byOffset[e.Offset]; ok {
		return
	}
	s.byOffset[e.Offset] = e
	l := s.byKey[e.Key]
	i, _ := slices.BinarySearchFunc(l, e.Offset, func(x *Event, o int64) int { return int(x.Offset - o) })
	s.byKey[e.Key] = slices.Insert(l, i, e)
	if len(l)+1 == s.keyBudget {
		s.overKeys++
	}
	if rec := e.Record; rec != nil {
		e.Record = nil
		s.holdLocked(e, rec)
	}
	s.changed = true
}

// Remove removes e, whose row is deleted.
func (s *Set) Remove(e *Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byOffset[e.Offset] != e {
		return
	}
	delete(s.byOffset, e.Offset)
	l := s.byKey[e.Key]
	if len(l) == s.keyBudget {
		s.overKeys--
	}
	l = slices.DeleteFunc(l, func(x *Event) bool { return x == e })
	if len(l) == 0 {
		delete(s.byKey, e.Key)
	} else {
		s.byKey[e.Key] = l
	}
	if e.Record != nil {
		s.heldBytes -= len(e.Record.Value)
	}
	s.changed = true
}

// Replace makes e say what its row says now, but for the record in memory.
func (s *Set) Replace(e *Event, now Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rec := e.Record
	*e = now
	e.Record = rec
	if e.State == Dead && rec != nil {
		s.heldBytes -= len(rec.Value)
		e.Record = nil
	}
	s.changed = true
}

// Snapshot returns a copy of e, for a goroutine other than the worker's loop. Safe
// for concurrent use.
func (s *Set) Snapshot(e *Event) Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return *e
}

// Hold keeps rec in memory for the event of its offset, if there is such an event
// and memory allows it. Safe for concurrent use.
func (s *Set) Hold(rec *kgo.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.byOffset[rec.Offset]; e != nil {
		s.holdLocked(e, rec)
	}
}

func (s *Set) holdLocked(e *Event, rec *kgo.Record) {
	if e.Record == nil && e.State != Dead && s.heldBytes+len(rec.Value) <= maxHeldBytes {
		e.Record = rec
		s.heldBytes += len(rec.Value)
	}
}

// Due returns the events that are to be tried or deleted now, in offset order:
// at most one of each key, the first.
func (s *Set) Due(now time.Time) []*Event {
	if !s.changed && (s.nextDue.IsZero() || s.nextDue.After(now)) {
		return nil
	}
	var out []*Event
	s.nextDue = time.Time{}
	for _, l := range s.byKey {
		first := l[0]
		if first.runnable(now) {
			out = append(out, first)
		} else if first.State != Dead && (s.nextDue.IsZero() || first.Due.Before(s.nextDue)) {
			s.nextDue = first.Due
		}
	}
	// An event stays due until trying it changes the set. If nothing is due, there
	// is no need to look again before the next change or nextDue.
	s.changed = len(out) > 0
	slices.SortFunc(out, func(a, b *Event) int { return int(a.Offset - b.Offset) })
	return out
}

// NextDue returns when the next event becomes due, as of the last call of Due.
// The zero time means that none does.
func (s *Set) NextDue() time.Time { return s.nextDue }

// Blocks reports whether a record of key at offset must wait behind an earlier
// parked event of its key.
func (s *Set) Blocks(key string, offset int64) bool {
	l := s.byKey[key]
	return len(l) > 0 && l[0].Offset < offset
}

// At returns the event of that offset, or nil.
func (s *Set) At(offset int64) *Event { return s.byOffset[offset] }

// Len returns how many events are parked.
func (s *Set) Len() int { return len(s.byOffset) }

// OverKeys returns how many keys have reached the key budget.
func (s *Set) OverKeys() int { return s.overKeys }

// BehindDead reports whether the events of key wait behind a dead letter.
func (s *Set) BehindDead(key string) bool {
	l := s.byKey[key]
	return len(l) > 0 && l[0].State == Dead
}

// DeadKeys returns the keys whose first event is a dead letter.
func (s *Set) DeadKeys() (keys []string) {
	for key := range s.byKey {
		if s.BehindDead(key) {
			keys = append(keys, key)
		}
	}
	return keys
}

// Followers returns the events of key that wait behind its first one.
func (s *Set) Followers(key string) []*Event {
	if l := s.byKey[key]; len(l) > 1 {
		return slices.Clone(l[1:])
	}
	return nil
}

// Counts is how many events are parked, by state.
type Counts struct {
	Retry, Waiting, Dead int
	Keys                 int       // that have parked events
	OldestDead           time.Time // when the attempt failed that made the oldest dead letter; zero: there is none
}

// Counts counts what is parked. Safe for concurrent use.
func (s *Set) Counts() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := Counts{Keys: len(s.byKey)}
	for _, e := range s.byOffset {
		switch e.State {
		case Retry:
			c.Retry++
		case Waiting:
			c.Waiting++
		case Dead:
			c.Dead++
			if c.OldestDead.IsZero() || e.LastFailed.Before(c.OldestDead) {
				c.OldestDead = e.LastFailed
			}
		}
	}
	return c
}
