package shard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain/order"
)

// This file owns the writing of snapshots by a serving shard: when one is due, which
// state it has, and the records that it is made of.

// errSnapshot means that the shard must be taken over anew, because no snapshot can be
// written under its claim any more.
var errSnapshot = errors.New("the snapshot could not be written")

// snapshotDue begins a snapshot if it is due and something has changed: from now on
// the loop handles no commands until no append is in flight.
func (s *shard) snapshotDue(now time.Time) {
	if s.snapshotAt.IsZero() || now.Before(s.snapshotAt) || s.writing != nil {
		return
	}
	s.snapshotAt = time.Time{}
	switch {
	case s.deposed != nil, s.revoked.Load(), len(s.agg.unsaved)+len(s.agg.removed) == 0 && s.sinceCut < snapshotWorth:
		s.snapshotAt = now.Add(s.owner.SnapshotEvery)
	case s.snapshotErr != nil:
		s.fail(fmt.Errorf("%w: %w", errSnapshot, s.snapshotErr))
	default:
		s.quiesceBy = now.Add(s.quiesceFor)
	}
}

// cutIfQuiet takes the cut of a snapshot that has begun, once no append is in
// flight, and starts to write it while the loop goes on. If that takes too long, it puts
// the snapshot off.
func (s *shard) cutIfQuiet() {
	if s.deposed != nil { // the state has the effect of invalid appends
		s.quiesceBy = time.Time{}
	}
	if s.quiesceBy.IsZero() {
		return
	}
	now := time.Now()
	switch {
	case s.unacked() == 0:
		c := s.cut(now)
		s.quiesceFor = quiesceLeast
		s.owner.at(StepSnapshotCut, s.partition)
		s.writing = c
		go func() {
			err := s.snapshots.write(context.Background(), c)
			if err == nil {
				s.owner.metrics.snapshotSeconds.Observe(time.Since(now).Seconds())
				s.owner.at(StepSnapshotKept, s.partition)
			}
			s.written <- err
		}()
	case now.Before(s.quiesceBy):
		return
	default: // the broker is slow: commands go first, but the next snapshot may wait longer
		s.owner.metrics.snapshots.WithLabelValues("put_off").Inc()
		s.quiesceFor = min(2*s.quiesceFor, quiesceMost)
		s.snapshotAt = now.Add(quiesceAgain)
	}
	s.quiesceBy = time.Time{}
}

// snapshotWritten handles the outcome of a snapshot.
func (s *shard) snapshotWritten(err error) {
	written := s.writing
	s.writing = nil
	if err != nil && s.revoked.Load() { // the next owner has fenced this one, which serves on until the other claims
		s.snapshotErr, s.snapshotAt = err, time.Now().Add(s.owner.SnapshotEvery)
		return
	}
	if err != nil {
		s.owner.metrics.snapshots.WithLabelValues("failed").Inc()
		s.fail(fmt.Errorf("%w: %w", errSnapshot, err))
		return
	}
	s.owner.metrics.snapshots.WithLabelValues("kept").Inc()
	written.keepEncoded()
	s.savedAt = time.Now().UTC()
	s.snapshotAt = s.savedAt.Add(s.owner.SnapshotEvery)
}

// snapshot is a cut of the shard's state that is to be written.
type snapshot struct {
	fresh      bool        // the checkpoint in the topic is not valid and is removed first
	changed    []saved     // aggregates that have changed since the last snapshot
	removed    []recordKey // aggregates that get a tombstone
	checkpoint checkpoint
}

// saved is one aggregate in the cut.
type saved struct {
	key   recordKey
	on    *entry // where the state was taken from; only for the loop
	state any
	keys  string      // header with the idempotency keys
	mark  *unreadable // nil if the aggregate can be read
	value []byte      // state as JSON, once it is written
}

// cut takes the state in memory, all of which is confirmed because no append is in
// flight.
func (s *shard) cut(now time.Time) *snapshot {
	c := &snapshot{fresh: !s.agg.fromSnapshot && s.savedAt.IsZero(), checkpoint: checkpoint{At: now.UTC(), Logs: map[string]position{}, Types: readTypes}}
	for i := range s.logs {
		l := &s.logs[i]
		c.checkpoint.Logs[l.topic] = position{Offset: l.lastValid, Term: l.rule.Term, Seq: l.rule.Seq}
	}
	agg := s.agg
	for _, e := range agg.unsaved {
		keys := agg.keys.textOf(e)
		for kind, state := range [logCount]any{e.order, e.payment, e.rider, e.restaurant} {
			if e.unsaved&(1<<kind) != 0 {
				s := saved{key: recordKey{kind, e.id}, on: e, state: state, keys: keys, mark: e.markOf(kind)}
				if e.version(kind) == 0 { // its first event cannot be read, so it has no state
					s.state = nil
				}
				c.changed = append(c.changed, s)
				agg.noteSaved(kind, e, true)
			}
		}
		e.unsaved = 0
	}
	for _, k := range s.agg.removed {
		// An aggregate in this list may exist after all: after a take-over from the logs
		// the list has everything in the topic, and the first cut has all aggregates.
		if e := s.agg.held[k.kind][k.id]; e == nil || e.encoded == nil && e.version(k.kind) == 0 && e.markOf(k.kind) == nil {
			c.removed = append(c.removed, k)
		}
	}
	c.checkpoint.Kept = agg.kept
	agg.unsaved, agg.removed, s.sinceCut = nil, nil, 0
	return c
}

// keepEncoded replaces the states of closed orders and of their payments by the JSON
// that was written, unless they have changed since the cut. Most of the states in
// memory are of closed orders, and commands on them are rare. JSON is smaller, and the
// garbage collector does not scan it.
func (c *snapshot) keepEncoded() {
	for i := range c.changed {
		s := &c.changed[i]
		e := s.on
		if e.unsaved != 0 || e.marks != nil {
			continue
		}
		encoded := e.encoded
		if encoded == nil {
			encoded = &encodedState{}
		}
		switch {
		case s.key.kind == orders && s.state == any(e.order) && e.order.Status.Closed():
			encoded.order, e.order = s.value, nil
		case s.key.kind == payments && s.state == any(e.payment) && (encoded.order != nil || e.order != nil && e.order.Status.Closed()):
			encoded.payment, e.payment = s.value, nil
		default:
			continue
		}
		e.encoded = encoded
	}
}

// write writes a cut, in several transactions if it is large. The checkpoint is in the
// last one. If the process ends before that, some states are ahead of the old
// checkpoint. A replay then skips the events that these states have already.
func (w *snapshots) write(ctx context.Context, c *snapshot) error {
	var records []*kgo.Record
	if c.fresh { // otherwise a part of this snapshot could be used with the old checkpoint
		records = append(records, &kgo.Record{Key: []byte(checkpointKey)})
	}
	for i := range c.changed {
		r, err := c.changed[i].record(w.owner.ArchiveAfter)
		if err != nil {
			return err
		}
		if records = append(records, r); len(records) >= snapshotChunk {
			if err := w.commit(ctx, records); err != nil {
				return err
			}
			records = nil
		}
	}
	for _, k := range c.removed {
		records = append(records, &kgo.Record{Key: []byte(k.String())})
	}
	value, err := json.Marshal(c.checkpoint)
	if err != nil {
		return err
	}
	return w.commit(ctx, append(records, snapshotRecord(checkpointKey, value)))
}

// snapshotRecord returns a record of the topic.
func snapshotRecord(key string, value []byte) *kgo.Record {
	return &kgo.Record{Key: []byte(key), Value: value, Headers: []kgo.RecordHeader{{Key: hdrFold, Value: []byte(foldOf(key))}}}
}

// record returns the aggregate's record and keeps the JSON in s.value.
func (s *saved) record(archiveAfter time.Duration) (r *kgo.Record, err error) {
	if s.value, err = encode(nil, s.state); err != nil {
		return nil, err
	}
	r = snapshotRecord(s.key.String(), s.value)
	header := func(key string, value []byte) {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: key, Value: value})
	}
	if s.keys != "" {
		header(hdrKeys, []byte(s.keys))
	}
	if s.mark != nil {
		header(hdrUnread, s.mark.header())
		return r, nil // deadlines of a marked aggregate issue no commands
	}
	if o, ok := s.state.(*order.State); ok {
		at := func(key string, t time.Time) {
			if !t.IsZero() {
				header(key, strconv.AppendInt(nil, t.UnixMilli(), 10))
			}
		}
		due, _ := o.NextDeadline()
		at(hdrDue, due)
		at(hdrRetire, retireAt(o, archiveAfter))
	}
	return r, nil
}
