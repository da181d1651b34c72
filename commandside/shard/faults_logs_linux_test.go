package shard

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
)

// logRecord is one record of an aggregate topic, and whether it is valid.
type logRecord struct {
	e     eventlog.Event
	valid bool
}

// logs are the aggregate topics, read from their beginning.
type logs struct {
	records map[eventlog.TopicPartition][]logRecord
	invalid int // number of invalid records
	copies  int // number of second copies of valid records
	// events are the valid events, by the id of the command that caused them.
	events map[string][]*eventlog.Event
	// own are the valid events that the shards appended at deadlines, without a command
	// of a client.
	own    []*eventlog.Event
	orders map[string]order.State // folded to the end
}

func readLogs(t testing.TB, cfg eventlog.Config) *logs {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	ends, err := eventlog.EndOffsets(ctx, eventlogtest.Client(t, cfg), eventlog.AggregateTopics[:]...)
	if err != nil {
		t.Fatal(err)
	}
	l := &logs{records: map[eventlog.TopicPartition][]logRecord{}, events: map[string][]*eventlog.Event{}, orders: map[string]order.State{}}
	rules := map[eventlog.TopicPartition]*eventlog.Rule{}
	ranges := map[eventlog.TopicPartition]eventlog.Range{}
	for tp, end := range ends {
		ranges[tp] = eventlog.Range{To: end}
		rules[tp] = &eventlog.Rule{}
	}
	err = eventlog.Read(ctx, cfg, ranges, func(e *eventlog.Event) error {
		tp := eventlog.TopicPartition{Topic: e.Topic, Partition: e.Partition}
		if int64(len(l.records[tp])) != e.Offset {
			return fmt.Errorf("%v: offset %d after %d records", tp, e.Offset, len(l.records[tp]))
		}
		r := logRecord{*e, rules[tp].Accepts(e)}
		l.records[tp] = append(l.records[tp], r)
		switch {
		case !r.valid:
			l.invalid++
		case e.CausationID != "":
			l.events[e.CausationID] = append(l.events[e.CausationID], &r.e)
		case e.Subject != "":
			l.own = append(l.own, &r.e)
		}
		if r.valid && e.Subject != "" && e.Topic == eventlog.Orders {
			ev, err := order.Decode(e.Type, e.DataVersion(), e.Data)
			if err != nil {
				return err
			}
			l.orders[e.Subject] = order.Evolve(l.orders[e.Subject], ev, e.Time)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// overdue returns the orders whose deadline has passed without an event.
func (l *logs) overdue() (ids []string) {
	for id, s := range l.orders {
		if at, command := s.NextDeadline(); command != nil && time.Since(at) > time.Second {
			ids = append(ids, id)
		}
	}
	return ids
}

// deadlines returns the commands that the shards issued at deadlines, as operations.
// The version of the event says where in the history the command took effect.
func (l *logs) deadlines(t testing.TB, ops []*operation) (own []*operation) {
	t.Helper()
	objects := map[string]string{}
	for _, op := range ops {
		if isPlace(op.req.Command) {
			objects[op.req.ID] = op.object
		}
	}
	for _, e := range l.own {
		ev, err := decodeEvent(e.Topic, e.Type, e.DataVersion(), e.Data)
		ended, ok := ev.(order.OffersExpired)
		if err != nil || !ok {
			t.Errorf("a valid event without a command: %s of %s, %v", e.Type, e.Subject, err)
			continue
		}
		own = append(own, &operation{id: e.ID, object: objects[e.Subject], ret: math.MaxInt64, outcome: outcome{event: e.Type, version: e.Version},
			req: Request{Topic: e.Topic, ID: e.Subject, Actor: domain.SystemActor, Command: order.EndWave{Round: ended.Round, Wave: ended.Wave}}})
	}
	return own
}

// resolveUnknown completes the operations without an answer with the outcome that the
// log has.
func (l *logs) resolveUnknown(ops []*operation) {
	for _, op := range ops {
		if events := l.events[op.id]; !op.outcome.known && len(events) == 1 {
			op.outcome.event, op.outcome.version = events[0].Type, events[0].Version
		}
	}
}

// check compares the logs with the answers that the clients got.
func (l *logs) check(t testing.TB, cfg eventlog.Config, ops []*operation, rng *rand.Rand) {
	t.Helper()
	l.checkVersions(t)
	l.copies = l.checkCopies(t)
	l.checkAnswers(t, ops)
	for range 4 {
		l.checkResumed(t, cfg, rng)
	}
}

// checkVersions checks that the versions of the valid events are 1, 2, 3, … per
// aggregate, and that all of them can be folded.
func (l *logs) checkVersions(t testing.TB) {
	t.Helper()
	for tp, records := range l.records {
		agg := newAggregates()
		for _, r := range records {
			if !r.valid {
				continue
			}
			if err := agg.replay(&r.e, time.Now()); err != nil {
				t.Errorf("%v: %v", tp, err)
				break
			}
		}
	}
}

// checkCopies checks that of two copies of a record only the first is valid. It returns
// the number of second copies.
func (l *logs) checkCopies(t testing.TB) (copies int) {
	t.Helper()
	for tp, records := range l.records {
		first := map[string]logRecord{}
		for _, r := range records {
			f, again := first[r.e.ID]
			switch {
			case !again:
				first[r.e.ID] = r
			case r.valid:
				t.Errorf("%s is at %s/%d@%d and again at %d, where it is valid", r.e.ID, tp.Topic, tp.Partition, f.e.Offset, r.e.Offset)
			case f.valid:
				copies++
			}
		}
	}
	return copies
}

// checkAnswers checks that every acknowledged event is in the log, is valid and is the
// one in the answer, and that no command took effect twice.
func (l *logs) checkAnswers(t testing.TB, ops []*operation) {
	t.Helper()
	asked := map[string]*operation{}
	byKey := map[string]int{}    // valid events
	ackedKey := map[string]int{} // acknowledged appends
	told := map[string]string{}
	acked := 0
	for _, op := range ops {
		asked[op.id] = op
		events := l.events[op.id]
		if len(events) > 1 {
			t.Errorf("%d valid events of the one command %s", len(events), describe(op))
		}
		key := ""
		if op.req.IdempotencyKey != "" {
			key = op.object + keyOf(&op.req)
			byKey[key] += len(events)
			if op.outcome.known && (op.outcome.event != "" || op.outcome.repeated) {
				ackedKey[key]++
			}
		}
		if !op.outcome.known {
			continue
		}
		if op.outcome.event == "" {
			if len(events) > 0 {
				t.Errorf("%s@%d is valid, but the answer to its command was that nothing was appended (%q): %s", events[0].Type, events[0].Version, op.outcome.code, describe(op))
			}
			continue
		}
		acked++
		version := fmt.Sprintf("%s %s version %d", op.req.Topic, op.req.ID, op.outcome.version)
		if other := told[version]; other != "" {
			t.Errorf("%s was acknowledged to both %s and %s", version, other, op.id)
		}
		told[version] = op.id
		switch {
		case len(events) == 0:
			t.Errorf("acknowledged, but it has no valid event: %s → %s@%d%s", describe(op), op.outcome.event, op.outcome.version, l.invalidRecordOf(op.id))
		case events[0].Type != op.outcome.event || events[0].Version != op.outcome.version || events[0].Subject != op.req.ID:
			t.Errorf("acknowledged as %s@%d, but the log has %s@%d of %s: %s", op.outcome.event, op.outcome.version, events[0].Type, events[0].Version, events[0].Subject, describe(op))
		}
	}
	for id := range l.events {
		if asked[id] == nil {
			t.Errorf("a valid event of %s, which no client has sent", id)
		}
	}
	for key, n := range byKey {
		if n > 1 || n == 0 && ackedKey[key] > 0 {
			t.Errorf("%d valid events of the idempotency key %s, acknowledged %d times", n, key, ackedKey[key])
		}
	}
	t.Logf("%d acknowledged appends are in the log as the answers say; %d invalid records, of which %d are second copies", acked, l.invalid, l.copies)
}

// invalidRecordOf returns where a command's invalid record is, as text.
func (l *logs) invalidRecordOf(id string) string {
	for tp, records := range l.records {
		for _, r := range records {
			if r.e.CausationID == id && !r.valid {
				return fmt.Sprintf(" (invalid at %s/%d@%d, term %d seq %d)", tp.Topic, tp.Partition, r.e.Offset, r.e.Term, r.e.Seq)
			}
		}
	}
	return ""
}

// checkResumed checks that a reader that starts at the position of any valid record
// finds the same records valid as a reader from the beginning.
func (l *logs) checkResumed(t testing.TB, cfg eventlog.Config, rng *rand.Rand) {
	t.Helper()
	rules := map[eventlog.TopicPartition]*eventlog.Rule{}
	ranges := map[eventlog.TopicPartition]eventlog.Range{}
	for _, topic := range eventlog.AggregateTopics { // in a fixed order, so that a seed always gives the same choices
		for p := int32(0); ; p++ {
			tp := eventlog.TopicPartition{Topic: topic, Partition: p}
			records, ok := l.records[tp]
			if !ok {
				break
			}
			var valid []int64
			for _, r := range records {
				if r.valid {
					valid = append(valid, r.e.Offset)
				}
			}
			from := valid[rng.IntN(len(valid))]
			stored := records[from].e // the position, with term and seq of its record
			rules[tp] = &eventlog.Rule{Term: stored.Term, Seq: stored.Seq}
			ranges[tp] = eventlog.Range{From: from + 1, To: int64(len(records))}
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var differ []string
	err := eventlog.Read(ctx, cfg, ranges, func(e *eventlog.Event) error {
		tp := eventlog.TopicPartition{Topic: e.Topic, Partition: e.Partition}
		if rules[tp].Accepts(e) != l.records[tp][e.Offset].valid {
			differ = append(differ, fmt.Sprintf("%s/%d@%d", tp.Topic, tp.Partition, e.Offset))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(differ) > 0 {
		slices.Sort(differ)
		t.Errorf("for %[2]d records, a reader that starts at %[1]v differs from one that starts at the beginning: %.5[3]v", ranges, len(differ), differ)
	}
}
