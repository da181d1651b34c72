// Package parked owns what happens with an event that a consumer failed to
// handle. The consumer runtime calls the handlers, and asks this package what to
// do when one of them fails; it then does what it is told.
//
// A failed event becomes a row of tomato.parked, with the time when it is tried
// again. Later events of its key become rows too, without being tried, so that
// none of them overtakes it. When the first row of a key is done or discarded,
// the next one is tried. A read model is given a discarded event once more, and passes
// over it, so that its row knows that the next event follows. After the last failed attempt, or at once if no further
// attempt can help, the row is a dead letter until an operator replays or
// discards it.
//
// Each failed attempt also appends a copy of the record, with the reasons as
// headers, to a topic: <topic>.<consumer>.retry-5s after the first attempt,
// .retry-30s after the second, .dlq for a dead letter. Nobody consumes these
// topics. The copies are for people, and for reading the record where its source
// topic no longer has it. The copy is appended before the row is written, so a
// crash in between leaves a copy too many and never one too few. The rows alone
// decide, because a retry topic that is consumed has positions of its own, which
// can disagree with the rows, and does not keep the order of the source.
//
// Every change of a row is part of a transaction in which the caller has locked
// or moved its checkpoint. An instance that no longer owns the partition
// therefore changes nothing.
//
// The files, in reading order:
//
//	parked.go       Event, a row of tomato.parked
//	decide.go       RetryRule.Decide says what happens with a failed event
//	class.go        the classes of errors by which operators select
//	set.go          Set, what is parked of one partition, and what is due
//	rows.go         the SQL
//	copies.go       the copies on the retry and dead letter topics
//	record.go       reading a parked event's record again
//	deadletters.go  DeadLetters, the operators' tools
package parked

import (
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
)

// State is the state of a parked event, as the column state has it.
type State string

const (
	Retry     State = "retry"     // it is tried again when it is due
	Waiting   State = "waiting"   // it waits behind an earlier parked event of its key
	Dead      State = "dead"      // a dead letter: it waits until an operator replays or discards it
	Discarded State = "discarded" // an operator discarded it; the partition's worker deletes the row, and a read model passes over the event
)

// Source names a partition of a topic, and the consumer that failed on events of it.
type Source struct {
	Consumer   string
	Generation int
	eventlog.TopicPartition
}

// Event is a row of tomato.parked, as the worker of its partition knows it.
type Event struct {
	ID          int64
	Rev         int // raised by each change of the row
	Offset      int64
	Key         string
	State       State
	Attempts    int       // failed attempts since it was parked or replayed
	Due         time.Time // of Retry: when it is tried again
	Class       string    // of the last failure
	Reason      string    // the text of the last failure
	FirstFailed time.Time
	LastFailed  time.Time
	Copy        CopyAt

	// Record is the source record. It is nil where memory did not allow to keep
	// it; ReadRecord reads it again.
	Record *kgo.Record
	// Backoff has the pauses of an event that waits for an unavailable
	// dependency. It is nil while the event does not wait.
	Backoff *backoff.ExponentialBackOff
}

// CopyAt is where the newest copy of a parked event is. A negative offset means
// that there is none.
type CopyAt struct {
	Topic  string
	Offset int64
}

// NewEvent returns the parked event of a record that has neither a row nor a
// copy yet.
func NewEvent(rec *kgo.Record, key string, state State) *Event {
	return &Event{Offset: rec.Offset, Key: key, State: state, Record: rec, Copy: CopyAt{Offset: -1}}
}

// runnable reports whether the event, as the first one of its key, may be taken
// up now. A waiting or discarded event is due at once, unless it was postponed
// because a dependency was unavailable.
func (e *Event) runnable(now time.Time) bool {
	return e.State != Dead && !e.Due.After(now)
}

const maxKeyBytes = 512 // an index of Postgres takes no more than some 2,700

// Key returns the key under which a record with this key is parked. A long key is
// replaced by its beginning and a hash, so that keys with the same beginning stay
// different.
func Key(key []byte) string {
	if len(key) <= maxKeyBytes {
		return string(key)
	}
	return fmt.Sprintf("%s…%x", key[:64], sha256.Sum256(key))
}
