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

// menu is one restaurant in the table.
type menu struct {
	state   *restaurant.State // as of the log, or as a shard of this instance has told; nil: none yet
	version int64             // as of the log
	unread  *unreadable       // an event of the log cannot be read: no order can be priced
}

// Menus is the table of all restaurants, the same on every instance: it
// follows topic restaurants from its start with the reader rule. Orders are
// priced from it. Safe for concurrent use.
type Menus struct {
	// Ends ends the wait for a token that can never be passed; nil: it lasts as
	// long as its context.
	Ends *eventlog.Ends

	mu         sync.RWMutex
	held       map[string]*menu
	next       map[int32]int64
	progressed chan struct{} // closed and replaced whenever next moves
	ready      chan struct{}
}

// NewMenus returns an empty table; Run fills it.
func NewMenus() *Menus {
	return &Menus{held: map[string]*menu{}, next: map[int32]int64{}, progressed: make(chan struct{}), ready: make(chan struct{})}
}

// Ready is closed once the table has what was there at the start.
func (m *Menus) Ready() <-chan struct{} { return m.ready }

// Restaurant returns one restaurant, nil for none. The state is not changed any
// more. The error is an *UnknownEvent.
func (m *Menus) Restaurant(id string) (*restaurant.State, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	held := m.held[id]
	switch {
	case held == nil:
		return nil, nil
	case held.unread != nil:
		return nil, held.unread.answer(restaurants, id)
	}
	return held.state, nil
}

// of returns the restaurant's place in the table. The caller holds the lock.
func (m *Menus) of(id string) *menu {
	held := m.held[id]
	if held == nil {
		held = &menu{}
		m.held[id] = held
	}
	return held
}

// learn takes in a restaurant as an acknowledged event of this instance's own
// made it, without waiting for the event to come round.
func (m *Menus) learn(s *restaurant.State) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if held := m.of(s.ID); held.state == nil || held.state.Version < s.Version {
		held.state = s
	}
}

// WaitFor returns when the table has passed the token's positions of topic
// restaurants, or with ctx's error. A token that can never be passed is refused
// as UnknownConsistencyToken.
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

// behind are the positions of the token that the table has not passed, and what
// is closed when it moves on.
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

// Check fails with *eventlog.LostBeginning if topic restaurants does not begin
// with its first record any more: prices would be those of half a table.
func (m *Menus) Check(ctx context.Context, client *kgo.Client) error {
	_, err := m.logs(ctx, client)
	return err
}

// logs says where the partitions end, if they have all from the first record on.
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

// Run follows the topic until ctx ends. A broken connection is waited out; a
// log whose beginning is gone is an error. No record is one: see fold.
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
			log.Warn("menus wait for the broker", "err", err)
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

// fold takes one record in. What is invalid is skipped; a valid event that cannot
// be folded marks its restaurant, and the mark is returned.
func (m *Menus) fold(r *kgo.Record, rule *eventlog.Rule) *unreadable {
	e, _ := eventlog.ParseRecord(r) // e.Fault has the error
	if take, _ := rule.Take(&e); !take {
		return nil
	}
	held := m.of(e.Subject)
	if held.unread != nil {
		return nil
	}
	held.unread = foldNext(&e, held.version, func(ev domain.Event) {
		held.version++
		var before restaurant.State
		if held.state != nil {
			before = *held.state
		}
		if before.Version < e.Version { // else learned from the shard already
			after := restaurant.Evolve(before, ev.(restaurant.Event), e.Time)
			held.state = &after
		}
	})
	return held.unread
}
