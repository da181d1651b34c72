package projections

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"tomato/eventlog"
)

// Operator acts on read models for a person. Everything that they change is recorded in
// tomato.read_model_actions and logged. Its methods are those of ReadModels of the same
// name, and are safe for concurrent use.
type Operator struct {
	Models *ReadModels
	Who    string // is recorded
}

// caughtUpWait is how long Switch waits for the generation to catch up with the one that
// serves.
const caughtUpWait = 5 * time.Second

// StateError says that a generation cannot do what was asked of it in its state.
type StateError struct {
	Generation
	Problem string
}

func (e *StateError) Error() string {
	return fmt.Sprintf("%s %s. `tomato projections list` shows the generations and their states", e.Generation, e.Problem)
}

// Switch makes the standby serve.
func (o Operator) Switch(ctx context.Context, g Generation, force bool) error {
	if err := o.known(g.Model); err != nil {
		return err
	}
	if err := o.Models.Switch(ctx, g, force); err != nil {
		return err
	}
	return o.record(ctx, "switch", g.Model, map[string]any{"generation": g.Number, "force": force})
}

// Drop removes a generation.
func (o Operator) Drop(ctx context.Context, g Generation) error {
	if err := o.known(g.Model); err != nil {
		return err
	}
	if err := o.Models.Drop(ctx, g); err != nil {
		return err
	}
	return o.record(ctx, "drop", g.Model, map[string]any{"generation": g.Number})
}

// RebuildOne folds one aggregate again.
func (o Operator) RebuildOne(ctx context.Context, model, key string) ([]Refolded, error) {
	done, err := o.Models.RebuildOne(ctx, model, key)
	if err != nil {
		return nil, err
	}
	return done, o.record(ctx, "rebuild-one", model, map[string]any{"key": key, "generations": done})
}

// Skip makes an event never take effect.
func (o Operator) Skip(ctx context.Context, model string, at eventlog.Position, reason string) (SkippedEvent, []Refolded, error) {
	s, done, err := o.Models.Skip(ctx, model, at, reason, o.Who)
	if err != nil {
		return s, nil, err
	}
	return s, done, o.record(ctx, "skip", model, map[string]any{"event": s.Position(), "key": s.Key, "reason": reason, "generations": done})
}

// Unskip undoes Skip.
func (o Operator) Unskip(ctx context.Context, model string, at eventlog.Position) ([]Refolded, error) {
	done, err := o.Models.Unskip(ctx, model, at, o.Who)
	if err != nil {
		return nil, err
	}
	return done, o.record(ctx, "unskip", model, map[string]any{"event": fmt.Sprintf("%s/%d@%d", at.Topic, at.Partition, at.Offset), "generations": done})
}

// TrimHistory removes old history.
func (o Operator) TrimHistory(ctx context.Context, model string, before time.Time, progress func(removed int64)) (removed int64, err error) {
	removed, err = o.Models.TrimHistory(ctx, model, before, progress)
	if err != nil {
		return removed, err
	}
	return removed, o.record(ctx, "trim-history", model, map[string]any{"before": before.UTC(), "removed": removed})
}

func (o Operator) known(model string) error {
	if _, ok := registry[model]; !ok {
		return noModel(model)
	}
	return nil
}

func (o Operator) record(ctx context.Context, action, model string, details map[string]any) error {
	o.Models.log().Info("an operator has acted on a read model", "who", o.Who, "action", action, "model", model, "details", details)
	if _, err := o.Models.DB.Exec(ctx, `INSERT INTO tomato.read_model_actions (who, action, model, details) VALUES ($1, $2, $3, $4)`, o.Who, action, model, details); err != nil {
		return fmt.Errorf("it is done, but could not be recorded: %w", err)
	}
	return nil
}

// behind returns how many records a generation has not passed that the serving one has
// passed now, after it has waited for it for caughtUpWait at most.
func (m *ReadModels) behind(ctx context.Context, g Generation) (records int64, err error) {
	var serving int
	err = m.DB.QueryRow(ctx, `SELECT serving FROM tomato.read_models WHERE model = $1`, g.Model).Scan(&serving)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && serving == g.Number {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	target, err := checkpointsOf(ctx, m.DB, Generation{g.Model, serving})
	if err != nil {
		return 0, err
	}
	for until := time.Now().Add(caughtUpWait); ; {
		passed, err := checkpointsOf(ctx, m.DB, g)
		if err != nil || len(passed) == 0 { // it does not exist, which Switch finds
			return 0, err
		}
		records = 0
		for tp, next := range target {
			records += max(0, next-passed[tp])
		}
		if records == 0 || time.Now().After(until) {
			return records, nil
		}
		if err := pause(ctx, pollInterval/5); err != nil {
			return 0, err
		}
	}
}

// Verification is the comparison of the rows that serve with those of another generation.
type Verification struct {
	Serving       Generation     `json:"serving"`
	Other         Generation     `json:"other"`
	Comparison    Comparison     `json:"comparison"`
	SkippedEvents []SkippedEvent `json:"skippedEvents,omitempty"` // which have no effect in either
}

// ErrNothingToVerify says that there are no two generations that could be compared.
var ErrNothingToVerify = errors.New("there is no second generation to compare the rows with")

// verifyWait is how long Verify waits for a moment at which both generations have passed
// the same events.
const verifyWait = 30 * time.Second

// Verify compares the rows that serve with those of another generation that is kept up to
// date, at a moment at which both have passed the same events. If number is 0, that is the
// newest one. It fails with ErrNothingToVerify if there is none, and with *StateError if
// the two are at the same positions at no moment within half a minute.
func (m *ReadModels) Verify(ctx context.Context, model string, number int) (v Verification, err error) {
	if _, ok := registry[model]; !ok {
		return v, noModel(model)
	}
	v = Verification{Serving: Generation{Model: model}, Other: Generation{Model: model}}
	err = m.DB.QueryRow(ctx, `SELECT r.serving, g.generation FROM tomato.read_models r JOIN tomato.generations g ON g.model = r.model AND g.generation <> r.serving
		WHERE r.model = $1 AND g.state IN ('verified', 'standby') AND ($2 = 0 OR g.generation = $2) ORDER BY g.generation DESC LIMIT 1`, model, number).
		Scan(&v.Serving.Number, &v.Other.Number)
	if errors.Is(err, pgx.ErrNoRows) {
		if number > 0 {
			return v, &StateError{Generation{model, number}, "is not kept up to date beside the generation that serves, so it cannot be compared with it"}
		}
		return v, fmt.Errorf("%w: `tomato rebuild %s --dry-run` makes one of the log, compares, and removes it again", ErrNothingToVerify, model)
	}
	if err != nil {
		return v, err
	}
	if v.SkippedEvents, err = m.Skipped(ctx, model); err != nil {
		return v, err
	}
	wait := cmp.Or(m.evenWait, verifyWait)
	for until := time.Now().Add(wait); ; {
		var equal bool
		equal, v.Comparison, err = m.compareIfEven(ctx, v.Serving, v.Other)
		if err != nil || equal {
			return v, err
		}
		if time.Now().After(until) {
			return v, &StateError{v.Other, fmt.Sprintf("and %s had passed the same events at no moment of %v, so their rows cannot be compared. `tomato rebuild %s --dry-run` compares the rows with the log whatever comes meanwhile",
				v.Serving, wait, model)}
		}
		if err := pause(ctx, pollInterval/25); err != nil {
			return v, err
		}
	}
}

// compareIfEven compares two generations as of one moment, if both have passed the same
// events at that moment.
func (m *ReadModels) compareIfEven(ctx context.Context, a, b Generation) (even bool, c Comparison, err error) {
	err = m.bothAt(ctx, func(first, second pgx.Tx) error {
		x, err := checkpointsOf(ctx, first, a)
		if err != nil {
			return err
		}
		y, err := checkpointsOf(ctx, first, b)
		if err != nil {
			return err
		}
		for _, topic := range foldedTopics(a.Model) {
			for _, at := range []map[eventlog.TopicPartition]int64{x, y} {
				for tp := range at {
					if tp.Topic == topic && x[tp] != y[tp] {
						return nil
					}
				}
			}
		}
		even = true
		c, err = compare(ctx, side{a, first}, side{b, second}, func(int64) {})
		return err
	})
	if err != nil {
		return false, c, fmt.Errorf("comparing %s and %s: %w", a, b, err)
	}
	return even, c, nil
}
