package projections

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"tomato/domain"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/consumer/parked"
)

// This file folds one aggregate again from the log, in the generations that are kept up
// to date, while everything else goes on. The partition's checkpoint is locked meanwhile,
// so the consumer of the generation waits, and the rows are exactly those of the events
// before the checkpoint.

// Refolded says what became of an aggregate in one generation.
type Refolded struct {
	Generation
	Version int64 `json:"version"` // of the row; 0: the generation has no row of it
	Cleared int   `json:"cleared"` // parked events that have taken effect, or were skipped, by this
	// OtherFold says that another version of the program has made the generation, so
	// nothing was changed there.
	OtherFold bool `json:"otherFold,omitempty"`
}

// UnfoldableError says that an event of an aggregate cannot be folded, so nothing was
// changed.
type UnfoldableError struct {
	Generation
	Err error
}

func (e *UnfoldableError) Error() string {
	return fmt.Sprintf("nothing was changed, because %s cannot be folded up to its checkpoint: %v. Mend the cause, or skip that event: tomato projections skip %s TOPIC/PARTITION@OFFSET --reason TEXT",
		e.Generation, e.Err, e.Model)
}

func (e *UnfoldableError) Unwrap() error { return e.Err }

// Errors of RebuildOne, Skip and Unskip that are mistakes of the caller.
var (
	ErrNoModel   = errors.New("there is no such read model")
	ErrNoEvents  = errors.New("the log has no event of it")
	ErrNoEvent   = errors.New("there is no event of an aggregate at this position")
	ErrNoReason  = errors.New("an event is not skipped without a reason of 1 to 500 characters: it is all that is left to tell why")
	ErrNoSkipped = errors.New("no such event is skipped")
)

func noModel(model string) error {
	return fmt.Errorf("%w: %q. There are %s", ErrNoModel, model, strings.Join(Models(), ", "))
}

// RebuildOne folds one aggregate of a read model again, from its first event on, in all
// generations of this process's fold that are kept up to date, and replaces its row and
// its history. Each has exactly what its generation had passed. Parked events of the
// aggregate have taken effect by that. It fails with *UnfoldableError, and changes nothing,
// if one of them still cannot be folded, and with ErrNoEvents if the log has none. It reads
// one partition of the log from its beginning.
func (m *ReadModels) RebuildOne(ctx context.Context, model, key string) ([]Refolded, error) {
	if _, ok := registry[model]; !ok {
		return nil, noModel(model)
	}
	if !domain.ValidID(key) {
		return nil, fmt.Errorf("%w: %q is no id", ErrNoEvents, key)
	}
	client, err := m.Kafka.NewClient()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	var out []Refolded
	found := false
	for _, topic := range foldedTopics(model) {
		ends, err := eventlog.EndOffsets(ctx, client, topic)
		if err != nil {
			return nil, err
		}
		r := refold{m: m, model: model, key: key, tp: eventlog.TopicPartition{Topic: topic, Partition: eventlog.PartitionFor(key, int32(len(ends)))}}
		if err := eventlog.CheckBeginnings(ctx, client, map[eventlog.TopicPartition]int64{r.tp: 0}); err != nil {
			return nil, err
		}
		done, err := r.run(ctx, nil, func(keptUp) bool { return true })
		if err != nil {
			return nil, err
		}
		found = found || len(r.events) > 0
		out = append(out, done...)
	}
	if !found {
		return nil, fmt.Errorf("%w: %s/%s", ErrNoEvents, model, key)
	}
	return out, nil
}

// keptUp is a generation that is kept up to date, and how far it is in the partition.
type keptUp struct {
	Generation
	ownFold bool
	next    int64
}

// refold folds one aggregate again. It is not safe for concurrent use.
type refold struct {
	m     *ReadModels
	model string
	key   string
	tp    eventlog.TopicPartition

	mark   consumer.Mark
	events []eventlog.Event // of the aggregate, before mark
}

// maxLocked is how many records are read at most while a checkpoint is locked.
const maxLocked = 5000

// errRead makes run read the log up to an offset before it locks the checkpoints again.
type errRead struct{ to int64 }

func (e errRead) Error() string { return fmt.Sprintf("the log has to be read up to %d first", e.to) }

// run does change, which may be nil, and folds the aggregate again in the generations for
// which needs says so after that, all in one transaction.
func (r *refold) run(ctx context.Context, change func(tx pgx.Tx, at []keptUp) error, needs func(keptUp) bool) (out []Refolded, err error) {
	for {
		err := pgx.BeginFunc(ctx, r.m.DB, func(tx pgx.Tx) error {
			at, err := r.lock(ctx, tx)
			if err != nil {
				return err
			}
			if change != nil {
				if err := change(tx, at); err != nil {
					return err
				}
			}
			out = nil
			for _, g := range at {
				switch {
				case !needs(g):
				case !g.ownFold:
					out = append(out, Refolded{Generation: g.Generation, OtherFold: true})
				default:
					done, err := r.one(ctx, tx, g)
					if err != nil {
						return err
					}
					out = append(out, done)
				}
			}
			return nil
		})
		var behind errRead
		if !errors.As(err, &behind) {
			return out, err
		}
		if err := r.readTo(ctx, behind.to); err != nil {
			return nil, err
		}
	}
}

// lock locks the partition's checkpoints of the generations that are kept up to date.
// Their consumers wait until tx ends before they write anything of the partition.
func (r *refold) lock(ctx context.Context, tx pgx.Tx) (at []keptUp, err error) {
	rows, err := tx.Query(ctx, `SELECT g.generation, g.fold, c.next_offset FROM tomato.checkpoints c JOIN tomato.generations g ON g.model = c.consumer AND g.generation = c.generation
		WHERE c.consumer = $1 AND c.topic = $2 AND c.partition = $3 AND g.state IN ('verified', 'serving', 'standby') ORDER BY g.generation FOR UPDATE OF c`,
		r.model, r.tp.Topic, r.tp.Partition)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (g keptUp, err error) {
		var fold string
		err = row.Scan(&g.Number, &fold, &g.next)
		g.Model, g.ownFold = r.model, fold == r.m.fold(r.model)
		return g, err
	})
}

// one folds the aggregate again in one generation.
func (r *refold) one(ctx context.Context, tx pgx.Tx, g keptUp) (Refolded, error) {
	if g.next-r.mark.Next > maxLocked {
		return Refolded{}, errRead{g.next}
	}
	if err := r.readTo(ctx, g.next); err != nil {
		return Refolded{}, err
	}
	out := Refolded{Generation: g.Generation}
	n, _ := slices.BinarySearchFunc(r.events, g.next, func(e eventlog.Event, next int64) int { return int(e.Offset - next) })
	var err error
	out.Version, err = foldedTables(r.model)[r.tp.Topic].replace(ctx, tx, g.Generation, r.key, r.events[:n])
	if errors.Is(err, eventlog.ErrPoison) || refusesData(err) {
		return out, &UnfoldableError{g.Generation, err}
	}
	if err != nil {
		return out, err
	}
	out.Cleared, err = parked.Fold(ctx, tx, parked.Source{Consumer: g.Model, Generation: g.Number, TopicPartition: r.tp}, r.key, g.next)
	return out, err
}

// readTo reads the events of the aggregate up to an offset.
func (r *refold) readTo(ctx context.Context, end int64) error {
	if end <= r.mark.Next {
		return nil
	}
	return eventlog.Read(ctx, r.m.Kafka, map[eventlog.TopicPartition]eventlog.Range{r.tp: {From: r.mark.Next, To: end}}, func(e *eventlog.Event) error {
		take, _ := r.mark.Rule.Take(e)
		r.mark.Next = e.Offset + 1
		if take && e.Subject == r.key {
			r.events = append(r.events, *e)
		}
		return nil
	})
}

// replace removes the row and the history of an aggregate, and makes them again of its
// events, which are all that the generation has passed. It returns the row's version.
func (a *aggregates[S, E]) replace(ctx context.Context, tx pgx.Tx, g Generation, key string, events []eventlog.Event) (version int64, err error) {
	batch := &pgx.Batch{}
	batch.Queue(`DELETE FROM `+g.Schema()+`.`+a.table+` WHERE id = $1`, key)
	if a.history.table != "" {
		batch.Queue(`DELETE FROM `+g.Schema()+`.`+a.history.table+` WHERE `+a.history.idColumn+` = $1`, key)
	}
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return 0, err
	}
	if err := a.apply(ctx, tx, g, events); err != nil {
		return 0, err
	}
	err = tx.QueryRow(ctx, `SELECT version FROM `+g.Schema()+`.`+a.table+` WHERE id = $1`, key).Scan(&version)
	if errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	return version, err
}
