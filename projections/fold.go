package projections

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/consumer/parked"
	"tomato/eventlog/pgerr"
)

const (
	loadEvents  = 2000 // events for which a bulk step loads the aggregates in one query
	batchEvents = 1000 // events of one batch step
	maxWaiting  = 5000 // parked rows of one step
)

// partitionFold folds one partition into the tables of a generation, for a rebuild. It
// does so in steps, each of which is one transaction with the rows, the parked events and
// the checkpoint, so it can be stopped and resumed at any time. The checkpoint's epoch
// keeps out every other process that writes the partition. It is not safe for concurrent
// use.
//
// An event that cannot be folded is parked, as the consumer of the generation would park
// it: the event as a dead letter, and the later events of its key behind it. The consumer
// finds these rows when it takes the partition.
type partitionFold struct {
	r           *rebuild
	tp          eventlog.TopicPartition
	table       foldedTable
	cp          *consumer.Checkpoint
	blocked     map[string]bool // the keys that have parked events
	skipped     skips           // it cannot change while a rebuild has the lock, and neither can historyFrom
	historyFrom string
}

// errRefused says that Postgres refuses a value of a bulk step, or that a row cannot be
// read. The events up to the position are to be folded in batch steps, which find the
// one that it is.
type errRefused struct {
	to  int64
	err error
}

func (e errRefused) Error() string { return e.err.Error() }

// to folds the events before the offset end. With bulk, the partition is folded in
// memory and the rows are written by COPY, which needs tables that nobody reads; it is
// many times as fast. It repeats a step while the database or the brokers are
// unavailable.
func (p *partitionFold) to(ctx context.Context, end int64, bulk bool) error {
	return p.r.again(ctx, func(ctx context.Context) error {
		if err := p.take(ctx); err != nil {
			return err
		}
		for p.cp.Next < end {
			if !bulk {
				return p.batches(ctx, end)
			}
			var refused errRefused
			err := p.bulk(ctx, end)
			if errors.As(err, &refused) {
				p.r.m.log().Warn("a rebuild folds some events of a partition one by one to find what the database refuses", "generation", p.r.g.String(),
					"topic", p.tp.Topic, "partition", p.tp.Partition, "from", p.cp.Next, "to", refused.to, "err", refused.err)
				if err = p.take(ctx); err == nil { // what the step would have parked is not parked
					err = p.batches(ctx, refused.to)
				}
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// take takes the partition's checkpoint from whoever had it, and reads what is parked.
// It must be called after every error: the answer of a commit may have been lost.
func (p *partitionFold) take(ctx context.Context) error {
	g := p.r.g
	taken, err := consumer.TakeCheckpoints(ctx, p.r.m.DB, g.Model, g.Number, map[eventlog.TopicPartition]int64{p.tp: 0}, time.Time{})
	if err != nil {
		return err
	}
	rows, err := parked.Load(ctx, p.r.m.DB, g.Model, g.Number, []eventlog.TopicPartition{p.tp})
	if err != nil {
		return err
	}
	if p.skipped, err = loadSkips(ctx, p.r.m.DB, g.Model); err != nil {
		return err
	}
	if p.historyFrom, err = historyFrom(ctx, p.r.m.DB, g.Model); err != nil {
		return err
	}
	p.cp, p.blocked = taken[p.tp], map[string]bool{}
	for _, row := range rows[p.tp] {
		p.blocked[row.Key] = true
	}
	p.r.meter.reached(p.tp, p.cp.Next)
	return nil
}

// fresh is a valid event of the partition, with the position before it.
type fresh struct {
	*eventlog.Event
	before consumer.Mark
}

// read reads the records from the checkpoint to end, and gives fn each valid event, or
// nil for another record, with the position behind it.
func (p *partitionFold) read(ctx context.Context, end int64, fn func(e *fresh, after consumer.Mark) error) error {
	mark := p.cp.Mark
	return eventlog.Read(ctx, p.r.m.Kafka, map[eventlog.TopicPartition]eventlog.Range{p.tp: {From: mark.Next, To: end}}, func(e *eventlog.Event) error {
		if err := p.r.throttle(ctx); err != nil {
			return err
		}
		before := mark
		rule := mark.Rule
		take, _ := rule.Take(e)
		mark = consumer.Mark{Next: e.Offset + 1, Rule: rule, Time: e.Timestamp}
		if !take {
			return fn(nil, mark)
		}
		return fn(&fresh{e, before}, mark)
	})
}

// bulk folds up to end in memory. It fails with errRefused if the database refuses what
// it has folded.
func (p *partitionFold) bulk(ctx context.Context, end int64) error {
	f := p.table.filler(p.r.g, p.cp.Next > 0, p.skipped, p.historyFrom)
	var events []*eventlog.Event // valid ones that are not folded yet
	var rows []*parked.Event
	mark := p.cp.Mark
	refused := func(err error) error {
		if refusesData(err) || errors.Is(err, eventlog.ErrPoison) {
			return errRefused{mark.Next, err}
		}
		return err
	}
	fold := func() error {
		if err := f.load(ctx, p.r.m.DB, events); err != nil {
			return refused(err)
		}
		for _, e := range events {
			err := e.Fault
			switch {
			case p.blocked[e.Subject]:
				rows = append(rows, parked.NewEvent(e.Record, e.Subject, parked.Waiting))
				continue
			case err != nil && !p.skipped.has(e):
				err = parked.Undecodable(err)
			default:
				err = f.fold(e)
			}
			if errors.Is(err, eventlog.ErrPoison) {
				var row *parked.Event
				if row, err = p.dead(ctx, e, err); err == nil {
					rows = append(rows, row)
				}
			}
			if err != nil {
				return err
			}
		}
		events = events[:0]
		return nil
	}
	commit := func() error {
		if err := fold(); err != nil {
			return err
		}
		if err := p.commit(ctx, mark, rows, func(tx pgx.Tx) error { return f.flush(ctx, tx) }); err != nil {
			return refused(err)
		}
		rows = nil
		return nil
	}
	err := p.read(ctx, end, func(e *fresh, after consumer.Mark) error {
		if e != nil {
			events = append(events, e.Event)
		}
		mark = after
		p.r.meter.reached(p.tp, mark.Next)
		if len(events) >= loadEvents {
			if err := fold(); err != nil {
				return err
			}
		}
		if f.full() || len(rows) >= maxWaiting {
			return commit()
		}
		return nil
	})
	if err != nil {
		return err
	}
	return commit()
}

// batches folds up to end in batches, as the generation's consumer does.
func (p *partitionFold) batches(ctx context.Context, end int64) error {
	var batch []*fresh
	mark := p.cp.Mark
	err := p.read(ctx, end, func(e *fresh, after consumer.Mark) error {
		if e != nil {
			batch = append(batch, e)
		}
		mark = after
		if len(batch) < batchEvents {
			return nil
		}
		err := p.apply(ctx, batch, mark)
		batch = batch[:0]
		return err
	})
	if err != nil {
		return err
	}
	return p.apply(ctx, batch, mark)
}

// apply writes the rows of a batch and moves the checkpoint to end. If an event of the
// batch cannot be written, the batch is halved until that event is alone, and then it is
// parked.
func (p *partitionFold) apply(ctx context.Context, batch []*fresh, end consumer.Mark) error {
	events, rows := make([]eventlog.Event, 0, len(batch)), []*parked.Event(nil)
	var cause error
	for _, e := range batch {
		switch {
		case p.blocked[e.Subject]:
			rows = append(rows, parked.NewEvent(e.Record, e.Subject, parked.Waiting))
		case e.Fault != nil && !p.skipped.has(e.Event):
			cause = parked.Undecodable(e.Fault)
		default:
			events = append(events, *e.Event)
		}
	}
	if cause == nil {
		cause = p.commit(ctx, end, rows, func(tx pgx.Tx) error {
			if len(events) == 0 {
				return nil
			}
			return p.table.apply(ctx, tx, p.r.g, events)
		})
	}
	switch {
	case cause == nil:
		p.r.meter.reached(p.tp, end.Next)
		return nil
	case !errors.Is(cause, eventlog.ErrPoison) && !refusesData(cause):
		return cause
	case len(batch) == 1:
		row, err := p.dead(ctx, batch[0].Event, cause)
		if err != nil {
			return err
		}
		return p.commit(ctx, end, []*parked.Event{row}, func(pgx.Tx) error { return nil })
	}
	mid := len(batch) / 2
	if err := p.apply(ctx, batch[:mid], batch[mid].before); err != nil {
		return err
	}
	return p.apply(ctx, batch[mid:], end)
}

// commit does write, parks rows and moves the checkpoint to end, in one transaction.
func (p *partitionFold) commit(ctx context.Context, end consumer.Mark, rows []*parked.Event, write func(pgx.Tx) error) error {
	err := pgx.BeginFunc(ctx, p.r.m.DB, func(tx pgx.Tx) error {
		if err := write(tx); err != nil {
			return err
		}
		if err := parked.Insert(ctx, tx, p.source(), rows); err != nil {
			return err
		}
		return p.cp.Move(ctx, tx, end)
	})
	if err == nil {
		p.cp.Mark = end
	}
	return err
}

// dead returns the row of an event that cannot be folded, whose copy it appends to the
// dead letter topic. The later events of its key wait behind it from now on.
func (p *partitionFold) dead(ctx context.Context, e *eventlog.Event, cause error) (*parked.Event, error) {
	row := parked.NewEvent(e.Record, e.Subject, parked.Retry)
	row.Fail(cause, parked.Decision{Action: parked.DeadLetter, Stage: eventlog.DeadLetter}, time.Now())
	copied := row.NewCopy(e.Record, p.source(), eventlog.DeadLetter)
	topic := copied.Topic
	offset, err := parked.ProduceCopy(ctx, p.r.client, copied)
	if err != nil {
		return nil, eventlog.UnavailableFrom("kafka", err)
	}
	row.Copy = parked.CopyAt{Topic: topic, Offset: offset}
	p.blocked[e.Subject] = true
	p.r.m.log().Error("dead letter of a rebuild", "generation", p.r.g.String(), "topic", p.tp.Topic, "partition", p.tp.Partition,
		"offset", e.Offset, "class", row.Class, "err", row.Reason)
	return row, nil
}

func (p *partitionFold) source() parked.Source {
	return parked.Source{Consumer: p.r.g.Model, Generation: p.r.g.Number, TopicPartition: p.tp}
}

// refusesData reports whether Postgres takes a statement but refuses a value in
// it: a text with NUL, a number that is too large for its column, a second row of
// one id.
func refusesData(err error) bool {
	return slices.Contains([]string{"22", "23", "54"}, pgerr.Class(err)) && pgerr.Code(err) != foreignKeyViolation
}

// foreignKeyViolation is the answer of Postgres to a checkpoint or a parked event of a
// generation that does not exist any more.
const foreignKeyViolation = "23503"
