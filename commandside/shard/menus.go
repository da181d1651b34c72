package shard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain"
	"tomato/domain/restaurant"
	"tomato/eventlog"
)

// This file owns the table of all restaurants, from which orders are priced.

// menu is one restaurant in the table.
type menu struct {
	state   *restaurant.State // from the log, or a newer one from a shard of this instance; nil if there is none yet
	version int64             // of the last event from the log
	mark    *unreadable       // not nil if an event of the restaurant cannot be read; no order is priced then
}

// Menus is the table of all restaurants, from which orders are priced. Every instance
// has the whole table: it reads the topic restaurants from the first record on, with
// the reader rule. Safe for concurrent use.
type Menus struct {
	// Ends ends a wait for a token with a position that no record will ever have. If
	// it is nil, such a wait lasts until its context ends.
	Ends *eventlog.Ends

	mu         sync.RWMutex
	held       map[string]*menu
	next       map[int32]int64 // by partition: the offset of the next record to read
	progressed chan struct{}   // closed and replaced whenever next moves
	ready      chan struct{}   // see Ready
}

// NewMenus returns an empty table; Run fills it.
func NewMenus() *Menus {
	return &Menus{held: map[string]*menu{}, next: map[int32]int64{}, progressed: make(chan struct{}), ready: make(chan struct{})}
}

// Ready returns a channel that is closed once the table has all records that the topic
// had when Run started.
func (m *Menus) Ready() <-chan struct{} { return m.ready }

// Restaurant returns one restaurant, or nil if it does not exist. Nobody changes the
// state any more. The error is an *UnknownEvent.
func (m *Menus) Restaurant(id string) (*restaurant.State, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	held := m.held[id]
	switch {
	case held == nil:
		return nil, nil
	case held.mark != nil:
		return nil, held.mark.answer(restaurants, id)
	}
	return held.state, nil
}

// of returns the restaurant's element of the table, and adds it if there is none. The
// caller holds the lock.
func (m *Menus) of(id string) *menu {
	held := m.held[id]
	if held == nil {
		held = &menu{}
		m.held[id] = held
	}
	return held
}

// learn puts the state of a restaurant into the table after this instance's own event
// was acknowledged, before Run reads that event from the topic.
func (m *Menus) learn(s *restaurant.State) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if held := m.of(s.ID); held.state == nil || held.state.Version < s.Version {
		held.state = s
	}
}

// WaitFor waits until the table has passed the token's positions of the topic
// restaurants. The error is ErrUnavailable if ctx ends before that, or the refusal
// UnknownConsistencyToken if the topic can never have these positions.
func (m *Menus) WaitFor(ctx context.Context, t eventlog.Token) error {
	progressed, behind := m.behind(t)
	if len(behind) == 0 {
		return nil
	}
	ctx, stop := m.Ends.Watch(ctx, behind)
	defer stop()
	for {
		select {
		case <-progressed:
			if progressed, behind = m.behind(t); len(behind) == 0 {
				return nil
			}
		case <-ctx.Done():
			if errors.Is(context.Cause(ctx), eventlog.ErrUnknownToken) {
				return domain.Refuse(UnknownConsistencyToken, "%v", eventlog.ErrUnknownToken)
			}
			return fmt.Errorf("%w: the menus have not caught up", ErrUnavailable)
		}
	}
}

// behind returns the positions of the token that the table has not passed, and a
// channel that is closed when the table moves on.
func (m *Menus) behind(t eventlog.Token) (progressed <-chan struct{}, behind eventlog.Token) {
	if len(t) == 0 {
		return nil, nil
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	for tp, offset := range t {
		if tp.Topic == eventlog.Restaurants && m.next[tp.Partition] <= offset {
			if behind == nil {
				behind = eventlog.Token{}
			}
			behind[tp] = offset
		}
	}
	return m.progressed, behind
}

// Check returns an *eventlog.LostBeginning if the topic restaurants no longer has its
// first records. Menus would be missing from the table then.
func (m *Menus) Check(ctx context.Context, client *kgo.Client) error {
	_, err := m.logs(ctx, client)
	return err
}

// logs returns where the partitions end. The error is an *eventlog.LostBeginning if one
// of them no longer has its first records.
func (m *Menus) logs(ctx context.Context, client *kgo.Client) (ends map[eventlog.TopicPartition]int64, err error) {
	if ends, err = eventlog.EndOffsets(ctx, client, eventlog.Restaurants); err != nil {
		return nil, err
	}
	need := map[eventlog.TopicPartition]int64{}
	for tp := range ends {
		need[tp] = 0
	}
	if err := eventlog.CheckBeginnings(ctx, client, need); err != nil {
		return nil, err
	}
	return ends, nil
}

// Run follows the topic until ctx ends. It waits while the brokers cannot be reached.
// It returns an error if the first records of the topic are gone. A record that cannot
// be read is no error; see fold.
func (m *Menus) Run(ctx context.Context, cfg eventlog.Config, log *slog.Logger) error {
	client, err := cfg.NewClient(kgo.ConsumeTopics(eventlog.Restaurants), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return err
	}
	defer client.Close()
	var ends map[eventlog.TopicPartition]int64
	for ends == nil {
		if ends, err = m.logs(ctx, client); errors.As(err, new(*eventlog.LostBeginning)) {
			return err
		} else if err != nil {
			log.Warn("the topic of menus cannot be read yet", "err", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(time.Second):
			}
		}
	}
	rules := map[int32]*eventlog.Rule{}
	for {
		if ends != nil && m.passed(ends) {
			close(m.ready)
			ends = nil
		}
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		for _, fe := range fetches.Errors() {
			log.Warn("menus: fetch failed", "partition", fe.Partition, "err", fe.Err)
		}
		m.mu.Lock()
		for iter := fetches.RecordIter(); !iter.Done(); {
			r := iter.Next()
			rule := rules[r.Partition]
			if rule == nil {
				rule = &eventlog.Rule{}
				rules[r.Partition] = rule
			}
			if next := m.next[r.Partition]; r.Offset > next {
				m.mu.Unlock()
				return &eventlog.LostBeginning{TopicPartition: eventlog.TopicPartition{Topic: r.Topic, Partition: r.Partition}, Start: r.Offset, Need: next}
			}
			if mark := m.fold(r, rule); mark != nil {
				log.Error("an event of a restaurant cannot be read: orders at it are 503 unknown_event, others go on", "partition", r.Partition, "offset", r.Offset,
					"id", eventlog.LogText(string(r.Key)), "type", eventlog.LogText(mark.Type), "err", mark.Why)
			}
			m.next[r.Partition] = r.Offset + 1
		}
		close(m.progressed)
		m.progressed = make(chan struct{})
		m.mu.Unlock()
	}
}

// passed reports whether the table has all records before these ends.
func (m *Menus) passed(ends map[eventlog.TopicPartition]int64) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for tp, end := range ends {
		if m.next[tp.Partition] < end {
			return false
		}
	}
	return true
}

// fold applies one record to the table. It skips invalid records. A valid event that
// cannot be folded marks its restaurant, and fold returns the mark. The caller holds
// the lock.
func (m *Menus) fold(r *kgo.Record, rule *eventlog.Rule) *unreadable {
	e, _ := eventlog.ParseRecord(r) // the error is also in e.Fault, which foldNext looks at
	if take, _ := rule.Take(&e); !take {
		return nil
	}
	held := m.of(e.Subject)
	if held.mark != nil {
		return nil
	}
	held.mark = foldNext(&e, held.version, func(ev domain.Event) {
		held.version++
		var before restaurant.State
		if held.state != nil {
			before = *held.state
		}
		if before.Version < e.Version { // otherwise learn has put a newer state into the table
			after := restaurant.Evolve(before, ev.(restaurant.Event), e.Time)
			held.state = &after
		}
	})
	return held.mark
}
