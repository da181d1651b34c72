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

// logRecord is one record of an aggregate topic and whether it counts.
type logRecord struct {
	e      eventlog.Event
	counts bool
}

// logs are the aggregate topics as a reader from their beginning sees them.
type logs struct {
	records map[eventlog.TopicPartition][]logRecord
	voids   int
	copies  int // second copies of records of which the first counts
	// events are those that count, by the command that made them.
	events map[string][]*eventlog.Event
	// own are those that the shards appended of themselves: deadlines.
	own    []*eventlog.Event
	orders map[string]order.State // as they are at the end
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
		r := logRecord{*e, rules[tp].Counts(e)}
		l.records[tp] = append(l.records[tp], r)
		switch {
		case !r.counts:
			l.voids++
		case e.CausationID != "":
			l.events[e.CausationID] = append(l.events[e.CausationID], &r.e)
		case e.Subject != "":
			l.own = append(l.own, &r.e)
		}
		if r.counts && e.Subject != "" && e.Topic == eventlog.Orders {
			ev, err := order.Decode(e.Type, e.Data)
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

// overdue are the orders on which a shard should have acted of itself by now.
func (l *logs) overdue() (ids []string) {
	for id, s := range l.orders {
		if at, command := s.NextDeadline(); command != nil && time.Since(at) > time.Second {
			ids = append(ids, id)
		}
	}
	return ids
}

// deadlines are the commands that the shards gave themselves, as operations: each
// took effect where its version says.
func (l *logs) deadlines(t testing.TB, ops []*operation) (own []*operation) {
	t.Helper()
	objects := map[string]string{}
	for _, op := range ops {
		if isPlace(op.req.Command) {
			objects[op.req.ID] = op.object
		}
	}
	for _, e := range l.own {
		ev, err := decodeEvent(e.Topic, e.Type, e.Data)
		ended, ok := ev.(order.OffersExpired)
		if err != nil || !ok {
			t.Errorf("an event that nobody asked for counts: %s of %s, %v", e.Type, e.Subject, err)
			continue
		}
		own = append(own, &operation{id: e.ID, object: objects[e.Subject], ret: math.MaxInt64, outcome: outcome{event: e.Type, version: e.Version},
			req: Request{Topic: e.Topic, ID: e.Subject, Actor: domain.SystemActor, Command: order.EndWave{Round: ended.Round, Wave: ended.Wave}}})
	}
	return own
}

// settle writes into the operations without an answer what the log says of them.
func (l *logs) settle(ops []*operation) {
	for _, op := range ops {
		if events := l.events[op.id]; !op.outcome.known && len(events) == 1 {
			op.outcome.event, op.outcome.version = events[0].Type, events[0].Version
		}
	}
}

// check holds the logs against what the clients were told.
func (l *logs) check(t testing.TB, cfg eventlog.Config, ops []*operation, rng *rand.Rand) {
	t.Helper()
	l.checkVersions(t)
	l.copies = l.checkCopies(t)
	l.checkAnswers(t, ops)
	for range 4 {
		l.checkResumed(t, cfg, rng)
	}
}

// checkVersions: the versions of the events that count are 1, 2, 3, … per
// aggregate, and all of them can be folded.
func (l *logs) checkVersions(t testing.TB) {
	t.Helper()
	for tp, records := range l.records {
		agg := newAggregates()
		for _, r := range records {
			if !r.counts {
				continue
			}
			if err := agg.replay(&r.e, time.Now()); err != nil {
				t.Errorf("%v: %v", tp, err)
				break
			}
		}
	}
}

// checkCopies: of a record that stands twice the first counts, and only that one.
// It returns how many copies there are.
func (l *logs) checkCopies(t testing.TB) (copies int) {
	t.Helper()
	for tp, records := range l.records {
		first := map[string]logRecord{}
		for _, r := range records {
			f, again := first[r.e.ID]
			switch {
			case !again:
				first[r.e.ID] = r
			case r.counts:
				t.Errorf("%s stands at %s/%d@%d and again at %d, which counts", r.e.ID, tp.Topic, tp.Partition, f.e.Offset, r.e.Offset)
			case f.counts:
				copies++
			}
		}
	}
	return copies
}

// checkAnswers: what was acknowledged is there, counts, and is what was told;
// nothing happened twice.
func (l *logs) checkAnswers(t testing.TB, ops []*operation) {
	t.Helper()
	asked := map[string]*operation{}
	byKey := map[string]int{}    // events that count
	ackedKey := map[string]int{} // acknowledged appends
	told := map[string]string{}
	acked := 0
	for _, op := range ops {
		asked[op.id] = op
		events := l.events[op.id]
		if len(events) > 1 {
			t.Errorf("%d events count of the one command %s", len(events), describe(op))
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
				t.Errorf("%s@%d counts, but its command was told that nothing was appended (%q): %s", events[0].Type, events[0].Version, op.outcome.code, describe(op))
			}
			continue
		}
		acked++
		place := fmt.Sprintf("%s %s version %d", op.req.Topic, op.req.ID, op.outcome.version)
		if other := told[place]; other != "" {
			t.Errorf("%s was acknowledged to both %s and %s", place, other, op.id)
		}
		told[place] = op.id
		switch {
		case len(events) == 0:
			t.Errorf("acknowledged, but no event of it counts: %s → %s@%d%s", describe(op), op.outcome.event, op.outcome.version, l.voidOf(op.id))
		case events[0].Type != op.outcome.event || events[0].Version != op.outcome.version || events[0].Subject != op.req.ID:
			t.Errorf("acknowledged as %s@%d, but the log has %s@%d of %s: %s", op.outcome.event, op.outcome.version, events[0].Type, events[0].Version, events[0].Subject, describe(op))
		}
	}
	for id := range l.events {
		if asked[id] == nil {
			t.Errorf("an event of %s counts, which nobody asked for", id)
		}
	}
	for key, n := range byKey {
		if n > 1 || n == 0 && ackedKey[key] > 0 {
			t.Errorf("%d events count of the idempotency key %s, acknowledged %d times", n, key, ackedKey[key])
		}
	}
	t.Logf("%d acknowledged appends are where they were said to be; %d void records, of which %d are second copies", acked, l.voids, l.copies)
}

// voidOf tells where a command's record stands that does not count.
func (l *logs) voidOf(id string) string {
	for tp, records := range l.records {
		for _, r := range records {
			if r.e.CausationID == id && !r.counts {
				return fmt.Sprintf(" (void at %s/%d@%d, term %d seq %d)", tp.Topic, tp.Partition, r.e.Offset, r.e.Term, r.e.Seq)
			}
		}
	}
	return ""
}

// checkResumed: a reader that resumes at the position of any record that
// counted derives the history of the reader from the beginning.
func (l *logs) checkResumed(t testing.TB, cfg eventlog.Config, rng *rand.Rand) {
	t.Helper()
	rules := map[eventlog.TopicPartition]*eventlog.Rule{}
	ranges := map[eventlog.TopicPartition]eventlog.Range{}
	for _, topic := range eventlog.AggregateTopics { // in order, for the random numbers' sake
		for p := int32(0); ; p++ {
			tp := eventlog.TopicPartition{Topic: topic, Partition: p}
			records, ok := l.records[tp]
			if !ok {
				break
			}
			var counted []int64
			for _, r := range records {
				if r.counts {
					counted = append(counted, r.e.Offset)
				}
			}
			from := counted[rng.IntN(len(counted))]
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
		if rules[tp].Counts(e) != l.records[tp][e.Offset].counts {
			differ = append(differ, fmt.Sprintf("%s/%d@%d", tp.Topic, tp.Partition, e.Offset))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(differ) > 0 {
		slices.Sort(differ)
		t.Errorf("who resumes at %v sees %d records otherwise than who began at the start: %.5v", ranges, len(differ), differ)
	}
}
