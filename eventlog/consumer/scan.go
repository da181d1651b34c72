package consumer

import (
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain"
	"tomato/eventlog"
	"tomato/eventlog/consumer/parked"
)

// item is a valid record, with the position before it.
type item struct {
	before Mark
	event  *eventlog.Event
	fault  error // why its attributes cannot be read; nil if they can
	key    string
	row    *parked.Event // its row, if it waits behind a parked event of its key
}

// batch is items, and their events in a slice of their own, which a handler is given
// as it is.
type batch struct {
	items  []*item
	events []eventlog.Event
}

func (b batch) part(from, to int) batch { return batch{b.items[from:to:to], b.events[from:to:to]} }

// scanBuffer is the memory that a scan puts its items into. The next scan uses it
// again.
type scanBuffer struct {
	list   []*item
	items  []item
	events []eventlog.Event
}

// resize makes buf large enough for n items.
func (buf *scanBuffer) resize(n int) {
	if cap(buf.items) < n {
		buf.list, buf.items, buf.events = make([]*item, 0, n), make([]item, n), make([]eventlog.Event, n)
	}
	if n < len(buf.items) { // release clears n items only, so the others are cleared here
		clear(buf.items[n:])
		clear(buf.events[n:])
	}
	buf.items, buf.events = buf.items[:n], buf.events[:n]
}

// release drops the records of the last scan, so that their memory can be freed.
func (buf *scanBuffer) release() {
	clear(buf.items)
	clear(buf.events)
}

// scan applies the reader rule to recs, and returns the events that a handler may be
// concerned with. It overwrites what the last scan has put into buf, and moves
// w.read behind recs.
func (w *worker) scan(recs []*kgo.Record, buf *scanBuffer) (batch, error) {
	aggregate := eventlog.IsAggregate(w.cp.Topic)
	buf.resize(len(recs))
	items := buf.list[:0]
	for _, r := range recs {
		if r.Offset < w.read.Next {
			continue
		}
		if aggregate && r.Offset > w.read.Next {
			return batch{}, fmt.Errorf("records are missing before offset %d: offset %d was expected, and an aggregate topic keeps everything", r.Offset, w.read.Next)
		}
		before := w.read
		before.Next = r.Offset
		e := &buf.events[len(items)]
		e.Parse(r)
		w.read.Next, w.read.Time = r.Offset+1, r.Timestamp
		take, skipped := true, ""
		switch {
		case aggregate:
			take, skipped = w.read.Rule.Take(e)
		case e.Fault != nil && !w.telemetry: // records of a telemetry topic are skipped below
			take, skipped = false, eventlog.SkipNoEvent
		}
		if !take {
			if skipped != "" {
				w.g.r.state.metrics.invalidRecord(w.cp.Topic, skipped)
				w.log.Warn("invalid record skipped", "offset", r.Offset, "reason", skipped, "type", eventlog.LogText(e.Type), "term", e.Term, "seq", e.Seq)
			}
			continue
		}
		if !w.cp.Since.IsZero() && r.Timestamp.Before(w.cp.Since) {
			continue
		}
		if w.parked.At(r.Offset) != nil {
			continue // it was parked before a crash, and the checkpoint had not passed it
		}
		if w.telemetry && r.Value == nil {
			if !IsErasure(e) || !domain.ValidID(string(r.Key)) {
				continue
			}
			e.Subject, e.Fault = string(r.Key), nil
		}
		if w.telemetry && e.Fault != nil {
			w.skip(r.Offset, e.Fault)
			continue
		}
		it := &buf.items[len(items)]
		*it = item{before: before, event: e, key: e.Subject}
		if !aggregate && string(r.Key) != it.key { // an inbox record is ordered by its key
			it.key = parked.Key(r.Key)
		}
		if e.Fault != nil {
			it.fault = parked.Undecodable(e.Fault)
		}
		items = append(items, it)
	}
	return batch{items, buf.events[:len(items):len(items)]}, nil
}
