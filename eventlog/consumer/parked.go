package consumer

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Headers that a record has on a retry or dead letter topic, besides its own.
const (
	hdrSourceTopic     = "source-topic"
	hdrSourcePartition = "source-partition"
	hdrSourceOffset    = "source-offset"
	hdrSourceTimestamp = "source-timestamp" // RFC 3339
	hdrConsumer        = "consumer"
	hdrGeneration      = "generation"
	hdrAttempt         = "attempt" // failed attempts so far
	hdrErrorClass      = "error-class"
	hdrError           = "error"
	hdrFirstFailed     = "first-failed-at" // RFC 3339
	hdrLastFailed      = "last-failed-at"
	hdrValueOmitted    = "value-omitted" // "true": too large to copy; the source has it
)

var parkedHeaders = []string{hdrSourceTopic, hdrSourcePartition, hdrSourceOffset, hdrSourceTimestamp, hdrConsumer,
	hdrGeneration, hdrAttempt, hdrErrorClass, hdrError, hdrFirstFailed, hdrLastFailed, hdrValueOmitted}

const (
	maxErrorText   = 1000     // bytes kept of an error's text
	maxBareHeaders = 64 << 10 // bytes of headers that a copy keeps which is too large
)

// The states of a parked record.
const (
	stateRetry     = "retry"     // to be tried again when due
	stateWaiting   = "waiting"   // behind a parked record of its key
	stateDead      = "dead"      // until an operator replays or discards it
	stateDiscarded = "discarded" // by an operator; its owner takes it away
)

// parkedItem is a row of tomato.parked as its partition's worker has it.
type parkedItem struct {
	id          int64
	rev         int
	offset      int64
	key         string
	state       string
	attempt     int
	due         time.Time
	class, text string
	firstFailed time.Time
	lastFailed  time.Time
	copyTopic   string
	copyOffset  int64

	rec       *kgo.Record // the source record, while memory allows; else it is read again
	awayTries int
}

// runnable says whether the item, as the smallest of its key, may be taken up now.
func (it *parkedItem) runnable(now time.Time) bool {
	switch it.state {
	case stateDead:
		return false
	case stateRetry:
		return !it.due.After(now)
	}
	return !it.due.After(now) // waiting, discarded: due is zero, or a wait after Away
}

// maxHeldBytes bounds the record values that one partition keeps in memory for
// what is parked; the rest is read again from Kafka when its turn comes.
const maxHeldBytes = 4 << 20

// parkedSet is what is parked of one partition. Only the worker's loop changes
// it, and reads it without the lock; the lock is for those who look on (Status)
// and for the held records, which lanes bring in.
type parkedSet struct {
	mu       sync.Mutex
	byKey    map[string][]*parkedItem // ascending offset; the first is the only one that may run
	byOffset map[int64]*parkedItem
	held     int // bytes of rec values
	overKeys int // keys over the key budget
	budget   int // per key
	dirty    bool
	nextDue  time.Time
}

func newParkedSet(items []*parkedItem, keyBudget int) *parkedSet {
	s := &parkedSet{byKey: map[string][]*parkedItem{}, byOffset: map[int64]*parkedItem{}, budget: keyBudget, dirty: true}
	for _, it := range items {
		s.add(it)
	}
	return s
}

func (s *parkedSet) add(it *parkedItem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.byOffset[it.offset]; ok {
		return
	}
	s.byOffset[it.offset] = it
	l := s.byKey[it.key]
	i, _ := slices.BinarySearchFunc(l, it.offset, func(x *parkedItem, o int64) int { return int(x.offset - o) })
	s.byKey[it.key] = slices.Insert(l, i, it)
	if len(l)+1 == s.budget {
		s.overKeys++
	}
	if rec := it.rec; rec != nil {
		it.rec = nil
		s.holdLocked(it, rec)
	}
	s.dirty = true
}

func (s *parkedSet) holdLocked(it *parkedItem, rec *kgo.Record) {
	if it.rec == nil && it.state != stateDead && s.held+len(rec.Value) <= maxHeldBytes {
		it.rec = rec
		s.held += len(rec.Value)
	}
}

// snapshot returns a copy of it for a lane to work on.
func (s *parkedSet) snapshot(it *parkedItem) parkedItem {
	s.mu.Lock()
	defer s.mu.Unlock()
	return *it
}

// hold keeps rec for the item of its offset, if there is one and memory allows.
func (s *parkedSet) hold(rec *kgo.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if it := s.byOffset[rec.Offset]; it != nil {
		s.holdLocked(it, rec)
	}
}

func (s *parkedSet) remove(it *parkedItem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byOffset[it.offset] != it {
		return
	}
	delete(s.byOffset, it.offset)
	l := s.byKey[it.key]
	if len(l) == s.budget {
		s.overKeys--
	}
	l = slices.DeleteFunc(l, func(x *parkedItem) bool { return x == it })
	if len(l) == 0 {
		delete(s.byKey, it.key)
	} else {
		s.byKey[it.key] = l
	}
	if it.rec != nil {
		s.held -= len(it.rec.Value)
	}
	s.dirty = true
}

// set replaces what is known of it by to, but for the held record.
func (s *parkedSet) set(it *parkedItem, to parkedItem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rec := it.rec
	*it = to
	it.rec = rec
	if it.state == stateDead && rec != nil {
		s.held -= len(rec.Value)
		it.rec = nil
	}
	s.dirty = true
}

// blocks says whether a record of key at offset must queue behind a parked one.
func (s *parkedSet) blocks(key string, offset int64) bool {
	l := s.byKey[key]
	return len(l) > 0 && l[0].offset < offset
}

func (s *parkedSet) has(offset int64) bool { return s.byOffset[offset] != nil }

// behindDead says whether what queues for key waits for an operator.
func (s *parkedSet) behindDead(key string) bool {
	l := s.byKey[key]
	return len(l) > 0 && l[0].state == stateDead
}

// deadKeys are those that wait for an operator.
func (s *parkedSet) deadKeys() (keys []string) {
	for key := range s.byKey {
		if s.behindDead(key) {
			keys = append(keys, key)
		}
	}
	return keys
}

func (s *parkedSet) followers(key string) []*parkedItem {
	if l := s.byKey[key]; len(l) > 1 {
		return slices.Clone(l[1:])
	}
	return nil
}

// due returns the items that may run now, each the smallest of its key.
func (s *parkedSet) due(now time.Time) []*parkedItem {
	if !s.dirty && (s.nextDue.IsZero() || s.nextDue.After(now)) {
		return nil
	}
	var out []*parkedItem
	s.nextDue = time.Time{}
	for _, l := range s.byKey {
		head := l[0]
		if head.runnable(now) {
			out = append(out, head)
		} else if head.state != stateDead && (s.nextDue.IsZero() || head.due.Before(s.nextDue)) {
			s.nextDue = head.due
		}
	}
	// What is due stays due until it changes the set, so ask again only then.
	s.dirty = len(out) > 0
	slices.SortFunc(out, func(a, b *parkedItem) int { return int(a.offset - b.offset) })
	return out
}

type parkedCounts struct {
	retry, waiting, dead, keys int
	oldestDead                 time.Time
}

func (s *parkedSet) counts() parkedCounts {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := parkedCounts{keys: len(s.byKey)}
	for _, it := range s.byOffset {
		switch it.state {
		case stateRetry:
			c.retry++
		case stateWaiting:
			c.waiting++
		case stateDead:
			c.dead++
			if c.oldestDead.IsZero() || it.lastFailed.Before(c.oldestDead) {
				c.oldestDead = it.lastFailed
			}
		}
	}
	return c
}

func (s *parkedSet) len() int { return len(s.byOffset) }

const maxParkedKey = 512 // bytes: an index of Postgres takes no more than some 2,700

// parkedKey is what a record's key is parked under: of a longer one the beginning,
// and a hash by which it stays another key than others that begin so.
func parkedKey(key []byte) string {
	if len(key) <= maxParkedKey {
		return string(key)
	}
	return fmt.Sprintf("%s…%x", key[:64], sha256.Sum256(key))
}
