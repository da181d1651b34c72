package projections

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"tomato/eventlog"
)

// SkippedEvent is an event that must never take effect in a read model.
type SkippedEvent struct {
	Model     string    `json:"readModel"`
	Topic     string    `json:"topic"`
	Partition int32     `json:"partition"`
	Offset    int64     `json:"offset"`
	Key       string    `json:"key"`               // the aggregate
	Version   int64     `json:"version,omitempty"` // of the aggregate after the event; 0 if the record does not tell
	Type      string    `json:"type"`
	Reason    string    `json:"reason"`
	Who       string    `json:"who"`
	At        time.Time `json:"at"`
}

// Position returns where the event is, as <topic>/<partition>@<offset>.
func (s *SkippedEvent) Position() string {
	return fmt.Sprintf("%s/%d@%d", s.Topic, s.Partition, s.Offset)
}

const skippedColumns = `model, topic, partition, source_offset, key, version, event_type, reason, who, at`

func scanSkipped(row pgx.CollectableRow) (s SkippedEvent, err error) {
	err = row.Scan(&s.Model, &s.Topic, &s.Partition, &s.Offset, &s.Key, &s.Version, &s.Type, &s.Reason, &s.Who, &s.At)
	s.At = s.At.UTC()
	return s, err
}

// Skipped returns the events that are skipped in a read model, or in all if model is "",
// in the order in which they were skipped.
func (m *ReadModels) Skipped(ctx context.Context, model string) ([]SkippedEvent, error) {
	rows, err := m.DB.Query(ctx, `SELECT `+skippedColumns+` FROM tomato.skipped_events WHERE ($1 = '' OR model = $1) AND undone_at IS NULL ORDER BY id`, model)
	if err != nil {
		return nil, fmt.Errorf("read the skipped events: %w", err)
	}
	skipped, err := pgx.CollectRows(rows, scanSkipped)
	if err != nil {
		return nil, fmt.Errorf("read the skipped events: %w", err)
	}
	return skipped, nil
}

// skips are skipped events of one read model. The zero value has none.
type skips struct {
	events map[eventlog.Position]bool
	unborn map[string]bool // aggregates whose first event is skipped
}

// loadSkips reads the skipped events of all aggregates of a read model.
func loadSkips(ctx context.Context, db querier, model string) (skips, error) {
	rows, err := db.Query(ctx, `SELECT topic, partition, source_offset, key, version FROM tomato.skipped_events WHERE model = $1 AND undone_at IS NULL`, model)
	if err != nil {
		return skips{}, err
	}
	var s skips
	return s, s.loaded(rows)
}

// skipsSQL is the statement whose rows skips.loaded takes: those of some aggregates. Its
// arguments are the read model and the aggregates.
const skipsSQL = `SELECT topic, partition, source_offset, key, version FROM tomato.skipped_events WHERE model = $1 AND key = ANY ($2) AND undone_at IS NULL`

func (s *skips) loaded(rows pgx.Rows) error {
	var at eventlog.Position
	var key string
	var version int64
	_, err := pgx.ForEachRow(rows, []any{&at.Topic, &at.Partition, &at.Offset, &key, &version}, func() error {
		if s.events == nil {
			*s = skips{map[eventlog.Position]bool{}, map[string]bool{}}
		}
		s.events[at] = true
		if version == 1 {
			s.unborn[key] = true
		}
		return nil
	})
	return err
}

// has reports whether the event takes no effect: it is skipped, or the event that made
// its aggregate is.
func (s *skips) has(e *eventlog.Event) bool {
	return len(s.events) > 0 && (s.unborn[e.Subject] || s.events[positionOf(e)])
}

// without returns the events that take effect.
func (s *skips) without(events []eventlog.Event) []eventlog.Event {
	if len(s.events) == 0 || !slices.ContainsFunc(events, func(e eventlog.Event) bool { return s.has(&e) }) {
		return events
	}
	return slices.DeleteFunc(slices.Clone(events), func(e eventlog.Event) bool { return s.has(&e) })
}

func positionOf(e *eventlog.Event) eventlog.Position {
	return eventlog.Position{TopicPartition: eventlog.TopicPartition{Topic: e.Topic, Partition: e.Partition}, Offset: e.Offset}
}
