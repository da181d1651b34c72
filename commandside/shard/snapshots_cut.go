package shard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain/order"
)

// snapshotDue begins a snapshot whose time has come: no command is taken until
// nothing is in flight. There is none where nothing has changed.
func (s *shard) snapshotDue(now time.Time) {
	if s.snapshotAt.IsZero() || now.Before(s.snapshotAt) || s.writing != nil {
		return
	}
	s.snapshotAt = time.Time{}
	switch {
	case s.deposed != nil, s.passing.Load(), len(s.agg.unsaved)+len(s.agg.gone) == 0 && s.sinceCut < snapshotWorth:
		s.snapshotAt = now.Add(s.owner.SnapshotEvery)
	case s.unkept != nil:
		s.fail(fmt.Errorf("%w: %w", errSnapshot, s.unkept))
	default:
		s.quiesceBy = now.Add(s.quiesceFor)
	}
}

// quiesced takes the cut of a snapshot that is due once nothing is in flight,
// and lets it be written while the loop goes on.
func (s *shard) quiesced() {
	if s.deposed != nil { // the state has what does not count
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
	default: // the broker is slow, and commands go first, but not for ever
		s.owner.metrics.snapshots.WithLabelValues("put_off").Inc()
		s.quiesceFor = min(2*s.quiesceFor, quiesceMost)
		s.snapshotAt = now.Add(quiesceAgain)
	}
	s.quiesceBy = time.Time{}
}

func (s *shard) snapshotWritten(err error) {
	written := s.writing
	s.writing = nil
	if err != nil && s.passing.Load() { // the next owner reads already; this one serves until it claims
		s.unkept, s.snapshotAt = err, time.Now().Add(s.owner.SnapshotEvery)
		return
	}
	if err != nil {
		s.owner.metrics.snapshots.WithLabelValues("failed").Inc()
		s.fail(fmt.Errorf("%w: %w", errSnapshot, err))
		return
	}
	s.owner.metrics.snapshots.WithLabelValues("kept").Inc()
	written.freeze()
	s.savedAt = time.Now().UTC()
	s.snapshotAt = s.savedAt.Add(s.owner.SnapshotEvery)
}

// snapshot is what one is to hold: a cut of the shard's state.
type snapshot struct {
	fresh      bool // what the topic has is not believed: its checkpoint goes first
	changed    []saved
	gone       []recordKey
	checkpoint checkpoint
}

// saved is one aggregate in the cut.
type saved struct {
	key   recordKey
	on    *entry
	state any
	keys  string
	mark  *unreadable
	value []byte // as it was written
}

// cut takes the state as it is. All of it is confirmed: nothing is in flight.
func (s *shard) cut(now time.Time) *snapshot {
	c := &snapshot{fresh: !s.agg.partial && s.savedAt.IsZero(), checkpoint: checkpoint{At: now.UTC(), Logs: map[string]position{}, Types: readTypes}}
	for i := range s.logs {
		l := &s.logs[i]
		c.checkpoint.Logs[l.topic] = position{Offset: l.lastOff, Term: l.rule.Term, Seq: l.rule.Seq}
	}
	agg := s.agg
	for _, e := range agg.unsaved {
		keys := agg.keys.textOf(e)
		for kind, state := range [logCount]any{e.order, e.payment, e.rider, e.restaurant} {
			if e.unsaved&(1<<kind) != 0 {
				s := saved{key: recordKey{kind, e.id}, on: e, state: state, keys: keys, mark: e.unreadOf(kind)}
				if e.version(kind) == 0 { // marked by its first event
					s.state = nil
				}
				c.changed = append(c.changed, s)
				agg.keep(kind, e, true)
			}
		}
		e.unsaved = 0
	}
	for _, k := range s.agg.gone {
		if e := s.agg.held[k.kind][k.id]; e == nil || e.frozen == nil && e.version(k.kind) == 0 && e.unreadOf(k.kind) == nil { // else it is in the cut: all that is held is, the first time
			c.gone = append(c.gone, k)
		}
	}
	c.checkpoint.Kept = agg.kept
	agg.unsaved, agg.gone, s.sinceCut = nil, nil, 0
	return c
}

// freeze lets closed orders and their payments be text, as the snapshot has them,
// where nothing has changed since: hardly anybody asks for them any more, and most
// of what is held is closed. Text is smaller, and the collector does not look into
// it.
func (c *snapshot) freeze() {
	for i := range c.changed {
		s := &c.changed[i]
		e := s.on
		if e.unsaved != 0 || e.unread != nil {
			continue
		}
		f := e.frozen
		if f == nil {
			f = &frozen{}
		}
		switch {
		case s.key.kind == orders && s.state == any(e.order) && e.order.Status.Closed():
			f.order, e.order = s.value, nil
		case s.key.kind == payments && s.state == any(e.payment) && (f.order != nil || e.order != nil && e.order.Status.Closed()):
			f.payment, e.payment = s.value, nil
		default:
			continue
		}
		e.frozen = f
	}
}

// textOf is the header that keeps the keys used on e.
func (m *keyMemory) textOf(e *entry) string {
	var b strings.Builder
	for _, scope := range e.keys[max(0, len(e.keys)-keysSaved):] {
		u := m.known[scope]
		if u.on != e { // forgotten, or used again for another
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%s.%d", u.text(scope), u.at)
	}
	return b.String()
}

// write writes a cut. The checkpoint comes last: states that are ahead of it do
// no harm, a replay skips the events that they have.
func (w *snapshots) write(ctx context.Context, c *snapshot) error {
	var records []*kgo.Record
	if c.fresh { // else a part of this one could be believed with the old checkpoint
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
	for _, k := range c.gone {
		records = append(records, &kgo.Record{Key: []byte(k.String())})
	}
	value, err := json.Marshal(c.checkpoint)
	if err != nil {
		return err
	}
	return w.commit(ctx, append(records, snapshotRecord(checkpointKey, value)))
}

func snapshotRecord(key string, value []byte) *kgo.Record {
	return &kgo.Record{Key: []byte(key), Value: value, Headers: []kgo.RecordHeader{{Key: hdrFold, Value: []byte(strconv.Itoa(foldVersion))}}}
}

// record is the aggregate as it stands in the topic; its text stays in value.
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
		return r, nil // no deadline of it fires
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

// errSnapshot ends a claim under which snapshots cannot be written any more.
var errSnapshot = errors.New("the snapshot could not be written")
