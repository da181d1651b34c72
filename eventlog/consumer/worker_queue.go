package consumer

import (
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
)

// --- the queue

func (w *worker) enqueue(recs []*kgo.Record, end int64) {
	w.mu.Lock()
	w.queue = append(w.queue, recs...)
	for _, r := range recs {
		w.bytes += len(r.Value)
	}
	w.end = max(w.end, end)
	if !w.fetchHeld && (len(w.queue) > 2*w.g.c.MaxBatch || w.bytes > maxQueueBytes) {
		w.fetchHeld = true
		w.holdFetching(true)
	}
	w.mu.Unlock()
	w.poke()
}

// holdFetching is called with mu held, so that hold and release of one
// partition do not overtake each other.
func (w *worker) holdFetching(hold bool) {
	w.g.mu.Lock()
	cl := w.g.client
	w.g.mu.Unlock()
	if cl == nil {
		return
	}
	m := map[string][]int32{w.cp.Topic: {w.cp.Partition}}
	if hold {
		cl.PauseFetchPartitions(m)
	} else {
		cl.ResumeFetchPartitions(m)
	}
}

func (w *worker) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// take returns up to n of the records that wait; none while too much is parked.
func (w *worker) take(n int) []*kgo.Record {
	over := w.overBudget()
	w.mu.Lock()
	defer w.mu.Unlock()
	if (over == nil) != (w.overErr == nil) {
		if over != nil {
			w.log.Error("partition paused", "reason", over)
		} else {
			w.log.Info("partition goes on: enough has been replayed or discarded")
		}
	}
	w.overErr = over
	if over != nil || len(w.queue) == 0 {
		return nil
	}
	n = min(n, len(w.queue))
	out := w.queue[:n:n]
	w.queue = w.queue[n:]
	if len(w.queue) == 0 {
		w.queue = nil
	}
	for _, r := range out {
		w.bytes -= len(r.Value)
	}
	if w.headTime.IsZero() {
		w.headTime = out[0].Timestamp
	}
	if w.fetchHeld && len(w.queue) < w.g.c.MaxBatch/2+1 && w.bytes < maxQueueBytes/2 {
		w.fetchHeld = false
		w.holdFetching(false)
	}
	return out
}

func (w *worker) overBudget() error {
	switch {
	case w.telemetry: // what an older build has parked holds nothing up
		return nil
	case w.parked.len() >= w.g.c.Budget:
		return fmt.Errorf("%d records are parked (budget %d)", w.parked.len(), w.g.c.Budget)
	case w.parked.overKeys > 0:
		return fmt.Errorf("%d keys have %d or more records parked", w.parked.overKeys, w.g.c.KeyBudget)
	}
	return nil
}

// --- positions

// at says that everything before m is done or parked.
func (w *worker) at(m Mark) {
	w.mu.Lock()
	if m.Next > w.pos.Next {
		w.pos, w.behind = m, time.Time{}
		if w.dirty.IsZero() {
			w.dirty = time.Now()
		}
	}
	w.mu.Unlock()
	// Who waits in this process need not wait until the row says so: claims and
	// SEENs change no rows of a read model.
	w.g.r.Positions.moved(w.cp.Consumer, w.cp.Generation, w.cp.TopicPartition, m.Next)
}

// head notes the timestamp of the oldest record in work; zero: none is.
func (w *worker) head(t time.Time) {
	w.mu.Lock()
	w.headTime = t
	w.mu.Unlock()
}

// moved says that the checkpoint stands at m. The caller holds commitMu.
func (w *worker) moved(m Mark) {
	w.cp.Mark = m
	w.at(m)
	w.mu.Lock()
	w.dirty = time.Time{}
	if w.pos.Next > m.Next {
		w.dirty = time.Now()
	}
	w.mu.Unlock()
}

// toFlush returns where the checkpoint should move, if anywhere. The caller
// holds commitMu. The zero now means at once.
func (w *worker) toFlush(now time.Time) (Mark, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pos.Next == w.cp.Next {
		return Mark{}, false
	}
	if w.g.c.Rows != nil && !now.IsZero() && now.Sub(w.dirty) < quietFlush {
		return Mark{}, false // a batch that is coming will move it
	}
	return w.pos, true
}

func (w *worker) sawEnd(end int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.end = max(w.end, end)
	if w.end > w.pos.Next && w.behind.IsZero() {
		w.behind = time.Now()
	}
}

// --- reading

// item is a record that counts, with the place before it.
type item struct {
	before Mark
	event  *eventlog.Event
	bad    error // why its attributes cannot be read
	key    string
	queued *parkedItem // its row, once it was found to queue behind another
}

// batch is items with their events, which stand side by side: a handler of many
// is given them as they are.
type batch struct {
	items  []*item
	events []eventlog.Event
}

func (b batch) part(from, to int) batch { return batch{b.items[from:to:to], b.events[from:to:to]} }

// scanRoom is memory for the items of one scan, which come and go together.
type scanRoom struct {
	list   []*item
	items  []item
	events []eventlog.Event
}

func (room *scanRoom) of(n int) {
	if cap(room.items) < n {
		room.list, room.items, room.events = make([]*item, 0, n), make([]item, n), make([]eventlog.Event, n)
	}
	if n < len(room.items) { // forget does not come to what is beyond
		clear(room.items[n:])
		clear(room.events[n:])
	}
	room.items, room.events = room.items[:n], room.events[:n]
}

// forget lets go of the records of the last scan.
func (room *scanRoom) forget() {
	clear(room.items)
	clear(room.events)
}

// scan applies the reader rule and returns what the handler is concerned with. What
// the last scan has put into room is gone then. It moves read.
func (w *worker) scan(recs []*kgo.Record, room *scanRoom) (batch, error) {
	aggregate := eventlog.IsAggregate(w.cp.Topic)
	room.of(len(recs))
	items := room.list[:0]
	for _, r := range recs {
		if r.Offset < w.read.Next {
			continue
		}
		if aggregate && r.Offset > w.read.Next {
			return batch{}, fmt.Errorf("hole before offset %d, expected %d: an aggregate topic keeps everything", r.Offset, w.read.Next)
		}
		before := w.read
		before.Next = r.Offset
		e := &room.events[len(items)]
		e.Parse(r)
		w.read.Next, w.read.Time = r.Offset+1, r.Timestamp
		take, skipped := e.Fault == nil || w.telemetry, eventlog.SkipNoEvent // of telemetry see below
		if aggregate {
			take, skipped = w.read.Rule.Take(e)
		}
		if !take {
			if skipped != "" {
				w.g.r.state.metrics.void(w.cp.Topic, skipped)
				w.log.Warn("invalid record skipped", "offset", r.Offset, "reason", skipped, "type", eventlog.LogText(e.Type), "term", e.Term, "seq", e.Seq)
			}
			continue
		}
		if !w.cp.Since.IsZero() && r.Timestamp.Before(w.cp.Since) {
			continue
		}
		if w.parked.has(r.Offset) {
			continue // parked before a crash, ahead of the checkpoint
		}
		if w.telemetry && (e.Fault != nil || r.Value == nil) {
			if r.Value != nil {
				w.skip(r.Offset, e.Fault)
			}
			continue
		}
		it := &room.items[len(items)]
		*it = item{before: before, event: e, key: e.Subject}
		if !aggregate && string(r.Key) != it.key { // of an inbox record
			it.key = parkedKey(r.Key)
		}
		if e.Fault != nil {
			it.bad = decodeError{e.Fault}
		}
		items = append(items, it)
	}
	return batch{items, room.events[:len(items):len(items)]}, nil
}
