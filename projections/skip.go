package projections

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"tomato/domain"
	"tomato/eventlog"
	"tomato/eventlog/consumer/parked"
)

// maxReason is how many characters the reason of a skip may have.
const maxReason = 500

// Skip makes an event never take effect in a read model: in no generation, and in none
// that a rebuild makes later. The row's version moves on without the event, so the events
// after it take effect. If the event is the first of its aggregate, the read model never
// has the aggregate. Where the event has taken effect already, the aggregate is folded
// again without it, which the result tells. To skip an event again changes nothing.
//
// It fails with ErrNoReason, ErrNoModel or ErrNoEvent, with ErrRunning while the read
// model is rebuilt, and with *UnfinishedError while a rebuild is unfinished.
func (m *ReadModels) Skip(ctx context.Context, model string, at eventlog.Position, reason, who string) (SkippedEvent, []Refolded, error) {
	if n := utf8.RuneCountInString(strings.TrimSpace(reason)); n == 0 || n > maxReason || strings.ContainsRune(reason, 0) {
		return SkippedEvent{}, nil, ErrNoReason
	}
	s, err := m.skippable(ctx, model, at)
	if err != nil {
		return s, nil, err
	}
	s.Reason, s.Who = reason, who
	unlock, err := m.exclusive(ctx, model)
	if err != nil {
		return s, nil, err
	}
	defer unlock()
	var waits map[int]bool // the generations in which the event is parked
	r := refold{m: m, model: model, key: s.Key, tp: at.TopicPartition}
	done, err := r.run(ctx, func(tx pgx.Tx, _ []keptUp) error {
		// A row that is there already is returned as it is.
		rows, err := tx.Query(ctx, `WITH added AS (
				INSERT INTO tomato.skipped_events (model, topic, partition, source_offset, key, version, event_type, reason, who)
				VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (model, topic, partition, source_offset) WHERE undone_at IS NULL DO NOTHING RETURNING *)
			SELECT `+skippedColumns+` FROM added UNION ALL
			SELECT `+skippedColumns+` FROM tomato.skipped_events WHERE model = $1 AND topic = $2 AND partition = $3 AND source_offset = $4 AND undone_at IS NULL`,
			model, at.Topic, at.Partition, at.Offset, s.Key, s.Version, s.Type, s.Reason, s.Who)
		if err != nil {
			return err
		}
		if s, err = pgx.CollectExactlyOneRow(rows, scanSkipped); err != nil {
			return err
		}
		waits, err = parked.Discard(ctx, tx, model, at)
		return err
	}, func(g keptUp) bool { return g.next > at.Offset && !waits[g.Number] })
	if err != nil {
		return s, nil, fmt.Errorf("skipping %s in %s: %w", s.Position(), model, err)
	}
	return s, done, nil
}

// SkipLetter is Skip for the dead letters of read models (parked.DeadLetters). What became
// of the generations is logged.
func (m *ReadModels) SkipLetter(ctx context.Context, model string, at eventlog.Position, reason, who string) error {
	_, done, err := m.Skip(ctx, model, at, reason, who)
	for _, r := range done {
		if r.OtherFold {
			m.log().Warn("a generation of another version of this program still has the effect of a skipped event: drop it, or skip the event with that version",
				"generation", r.Generation.String(), "topic", at.Topic, "partition", at.Partition, "offset", at.Offset)
		}
	}
	return err
}

// Unskip undoes Skip: the event takes effect, in all generations of this process's fold
// that have passed it. Who has skipped and unskipped it is kept. It fails with
// ErrNoSkipped if the event is not skipped, with *UnfoldableError, and changes nothing, if
// it cannot be folded, and otherwise as Skip.
func (m *ReadModels) Unskip(ctx context.Context, model string, at eventlog.Position, who string) ([]Refolded, error) {
	if _, ok := registry[model]; !ok {
		return nil, noModel(model)
	}
	unlock, err := m.exclusive(ctx, model)
	if err != nil {
		return nil, err
	}
	defer unlock()
	all, err := m.Skipped(ctx, model)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(all, func(s SkippedEvent) bool {
		return s.Topic == at.Topic && s.Partition == at.Partition && s.Offset == at.Offset
	})
	if i < 0 {
		return nil, fmt.Errorf("%w: %s/%d@%d in %s", ErrNoSkipped, at.Topic, at.Partition, at.Offset, model)
	}
	r := refold{m: m, model: model, key: all[i].Key, tp: at.TopicPartition}
	done, err := r.run(ctx, func(tx pgx.Tx, _ []keptUp) error {
		_, err := tx.Exec(ctx, `UPDATE tomato.skipped_events SET undone_by = $5, undone_at = now()
			WHERE model = $1 AND topic = $2 AND partition = $3 AND source_offset = $4 AND undone_at IS NULL`, model, at.Topic, at.Partition, at.Offset, who)
		return err
	}, func(g keptUp) bool { return g.next > at.Offset })
	if err != nil {
		return nil, fmt.Errorf("unskipping %s in %s: %w", all[i].Position(), model, err)
	}
	return done, nil
}

// exclusive takes the lock of the read model, and makes sure that no rebuild of it is
// unfinished: a rebuild reads the skipped events when it begins, and ends with a switch.
func (m *ReadModels) exclusive(ctx context.Context, model string) (unlock func(), err error) {
	l, err := m.lock(ctx, model, false)
	if err != nil {
		return nil, err
	}
	r := rebuild{m: m, g: Generation{Model: model}}
	if err = r.load(ctx); err == nil && r.g.Number > 0 {
		err = &UnfinishedError{r.g, r.state}
	}
	if err != nil {
		l.unlock()
		return nil, err
	}
	return l.unlock, nil
}

// skippable reads the event at a position, and checks that the read model folds it.
func (m *ReadModels) skippable(ctx context.Context, model string, at eventlog.Position) (SkippedEvent, error) {
	s := SkippedEvent{Model: model, Topic: at.Topic, Partition: at.Partition, Offset: at.Offset}
	if _, ok := registry[model]; !ok {
		return s, noModel(model)
	}
	topics := foldedTopics(model)
	if !slices.Contains(topics, at.Topic) {
		return s, fmt.Errorf("%w: %s, which is made of %s", ErrNoEvent, s.Position(), strings.Join(topics, ", "))
	}
	client, err := m.Kafka.NewClient()
	if err != nil {
		return s, err
	}
	defer client.Close()
	ends, err := eventlog.EndOffsets(ctx, client, at.Topic)
	if err != nil {
		return s, err
	}
	if end, ok := ends[at.TopicPartition]; !ok || at.Offset < 0 || at.Offset >= end {
		return s, fmt.Errorf("%w: %s is not in the log", ErrNoEvent, s.Position())
	}
	rec, err := parked.ReadRecord(ctx, m.Kafka, at.TopicPartition, at.Offset, parked.CopyAt{Offset: -1}, nil)
	if errors.Is(err, parked.ErrGone) {
		return s, fmt.Errorf("%w: %s is not in the log any more", ErrNoEvent, s.Position())
	}
	if err != nil {
		return s, err
	}
	e, _ := eventlog.ParseRecord(rec) // an event with a fault may be skipped as well
	if !domain.ValidID(e.Subject) || e.Type == eventlog.ShardClaimed {
		return s, fmt.Errorf("%w: %s belongs to no aggregate", ErrNoEvent, s.Position())
	}
	s.Key, s.Version, s.Type = e.Subject, e.Version, e.Type
	return s, nil
}
