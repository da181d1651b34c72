package realtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	"tomato/domain/rooms"
	"tomato/eventlog"
)

// known is the offset in a log from which on the projector or CatchUp has read it,
// with the state of the reader rule after the record at that offset. It is where the
// projector began, and moves back with each CatchUp.
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

// CatchUp reads records from before the start, for clients that have received
// everything up to from: in each log those after offset from, up to and including
// offset to. It calls fn as the projector calls Sink.Publish, from one goroutine, but
// makes no rider:location. to must be where the projector began, or the from of the
// last CatchUp.
//
// The record at from is valid, because from is part of a cursor. The reader rule
// starts with the term and seq of that record, and must arrive at the state that is
// known for to. If it does not, from is not of this log, and CatchUp fails; whatever
// fn was called with is then worthless. One call may run at a time.
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
	log := p.Log
	if log == nil {
		log = slog.Default()
	}
	m, err := newMetrics(p.Registry)
	if err != nil {
		return err
	}
	keys := shownKeys{p.Keys, log, m}
	err = eventlog.Read(ctx, p.Kafka, ranges, func(e *eventlog.Event) error {
		tp := eventlog.TopicPartition{Topic: e.Topic, Partition: e.Partition}
		rule := rules[tp]
		if rule == nil { // this is the record at from, or a later one if that was deleted
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
			return nil // the projector skips such a record too
		}
		all, err := Rooms(ctx, keys, e)
		if errors.Is(err, eventlog.ErrUnavailable) {
			return err
		}
		if err != nil {
			return nil // the same
		}
		fn(tp, e.Offset, e.Timestamp, all)
		return nil
	})
	if err != nil {
		return err
	}
	for tp := range from {
		if eventlog.IsAggregate(tp.Topic) && (rules[tp] == nil || *rules[tp] != ends[tp].rule) {
			return fmt.Errorf("%s/%d: the reader rule does not arrive at the known state at %d", tp.Topic, tp.Partition, to[tp])
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for tp, s := range starts {
		if p.known[tp] == ends[tp] { // otherwise the projector has begun again meanwhile
			p.known[tp] = s
		}
	}
	return nil
}
