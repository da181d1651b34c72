package realtime

import (
	"context"
	"fmt"
	"maps"
	"time"

	"tomato/domain/rooms"
	"tomato/eventlog"
)

// known is the earliest record of a log after which the reader rule's state is
// known: where the projector began, and then how far back CatchUp has read.
type known struct {
	offset int64
	rule   eventlog.Rule
}

func (p *Projector) begin(passed map[eventlog.TopicPartition]int64, start Start) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known = make(map[eventlog.TopicPartition]known, len(passed))
	for tp, o := range passed {
		p.known[tp] = known{o, start.Marks[tp].Rule}
	}
}

// CatchUp reads what came before the start: in each log the records after from
// up to and with to, for clients that were told everything up to from. It calls
// fn as Sink.Publish is called, from one goroutine, without rider:location. to
// must be where the projector began, or the from of the last CatchUp.
//
// The reader rule starts with the term and seq of the record at from, which
// counted: it is from a cursor. It must arrive at the state that is known at
// to, else nothing of this is to be believed, and the error says so. One call
// at a time.
func (p *Projector) CatchUp(ctx context.Context, from, to map[eventlog.TopicPartition]int64, fn func(tp eventlog.TopicPartition, offset int64, appended time.Time, messages []rooms.Message)) error {
	p.mu.Lock()
	ends := maps.Clone(p.known)
	p.mu.Unlock()
	ranges := make(map[eventlog.TopicPartition]eventlog.Range, len(from))
	rules := make(map[eventlog.TopicPartition]*eventlog.Rule, len(from))
	starts := make(map[eventlog.TopicPartition]known, len(from))
	for tp, o := range from {
		if end, ok := ends[tp]; !ok || end.offset != to[tp] {
			return fmt.Errorf("%s/%d: not known at %d", tp.Topic, tp.Partition, to[tp])
		}
		ranges[tp] = eventlog.Range{From: max(o, 0), To: to[tp] + 1}
		if o < 0 {
			rules[tp], starts[tp] = &eventlog.Rule{}, known{offset: -1}
		}
	}
	err := eventlog.Read(ctx, p.Kafka, ranges, func(e *eventlog.Event) error {
		tp := eventlog.TopicPartition{Topic: e.Topic, Partition: e.Partition}
		rule := rules[tp]
		if rule == nil { // the record at from, or the first that is left after it
			if e.Offset != from[tp] {
				return fmt.Errorf("%s/%d: %d is gone", tp.Topic, tp.Partition, from[tp])
			}
			rule = &eventlog.Rule{Term: e.Term, Seq: e.Seq}
			rules[tp], starts[tp] = rule, known{e.Offset, *rule}
			return nil
		}
		if eventlog.IsAggregate(tp.Topic) {
			if take, _ := rule.Take(e); !take {
				return nil
			}
		}
		if e.Fault != nil {
			return nil // passed over, as when it was new
		}
		all, err := Rooms(e)
		if err != nil {
			return nil // likewise
		}
		fn(tp, e.Offset, e.Timestamp, all)
		return nil
	})
	if err != nil {
		return err
	}
	for tp := range from {
		if eventlog.IsAggregate(tp.Topic) && (rules[tp] == nil || *rules[tp] != ends[tp].rule) {
			return fmt.Errorf("%s/%d: what stands before %d does not lead there", tp.Topic, tp.Partition, to[tp])
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for tp, s := range starts {
		if p.known[tp] == ends[tp] { // else the projector began anew meanwhile
			p.known[tp] = s
		}
	}
	return nil
}
