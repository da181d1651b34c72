package realtime

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain"
	"tomato/domain/rooms"
	"tomato/eventlog"
	"tomato/eventlog/subjectkeys"
)

// The parts in which the logs are read back from the start: the first ones are small, so
// that clients which were away for a moment need not wait.
const (
	firstPart = 30 * time.Second
	partGrows = 4
	largePart = 10 * time.Minute
	backPause = 5 * time.Second // after a failure of the brokers
)

var errNotRunning = eventlog.Unavailable(errors.New("the feed is starting"))

func (p *Projector) setBases(b *bases) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bases = b
}

func (p *Projector) present() (*bases, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bases == nil {
		return nil, errNotRunning
	}
	return p.bases, nil
}

// Base returns the base with this id. It fails with eventlog.ErrGone if the log does not
// have it any more, and with eventlog.ErrUnknownToken if it has not had it yet.
func (p *Projector) Base(ctx context.Context, id int64) (b eventlog.FeedBase, err error) {
	bases, err := p.present()
	if err != nil {
		return b, err
	}
	found, err := bases.at(ctx, id)
	if err != nil {
		return b, err
	}
	return found.public(), nil
}

// BaseUpTo returns the newest base with this id or a lower one. It fails with
// eventlog.ErrGone if the log has none.
func (p *Projector) BaseUpTo(ctx context.Context, id int64) (b eventlog.FeedBase, err error) {
	bases, err := p.present()
	if err != nil {
		return b, err
	}
	found, err := bases.before(ctx, id+1)
	if err != nil {
		return b, err
	}
	if found == nil {
		return b, fmt.Errorf("%w: there is no base up to %d", eventlog.ErrGone, id)
	}
	return found.public(), nil
}

// Read calls fn with the messages of the record at each offset. The records must be valid
// ones that were published, and the offsets of a log sorted and without duplicates. fn is
// called from one goroutine, for each log in the order of the offsets. Messages of
// rider:location are not made again. Read fails with eventlog.ErrGone if the log does not
// have a record any more.
func (p *Projector) Read(ctx context.Context, at map[eventlog.TopicPartition][]int64, fn func(tp eventlog.TopicPartition, offset int64, messages []rooms.Message)) error {
	bases, err := p.present()
	if err != nil {
		return err
	}
	m, log, err := p.reporting()
	if err != nil {
		return err
	}
	keys := shownKeys{p.Keys, log, m}
	return bases.read.Records(ctx, at, func(rec *kgo.Record) error {
		e, _ := eventlog.ParseRecord(rec) // e.Fault has the error
		var all []rooms.Message
		if e.Fault == nil {
			var err error
			if all, err = Rooms(ctx, keys, &e); errors.Is(err, eventlog.ErrUnavailable) {
				return err
			} else if err != nil {
				all = nil // the projector has passed over it too
			}
		}
		fn(eventlog.TopicPartition{Topic: rec.Topic, Partition: rec.Partition}, rec.Offset, all)
		return nil
	})
}

// readBack gives the sink the parts of the logs from before the start, each from one base
// to the next, until the sink wants no more or no base is left.
func (r *running) readBack(ctx context.Context, start *base) {
	defer r.Sink.NoOlder()
	history := r.History
	if history == 0 {
		history = defaultHistory
	}
	began, upper, length := time.Now(), start, firstPart
	switch oldest, err := r.bases.after(ctx, began.Add(-history), start.id); {
	case err != nil:
		r.log.Warn("the feed cannot find out how far back its history reaches; clients from before it wait until it is read back", "err", err)
	case oldest == nil:
		r.Sink.Reaches(start.passed())
	case len(oldest.marks) == len(start.marks):
		r.Sink.Reaches(oldest.passed())
	}
	for age := firstPart; ; {
		last := age >= history
		if last {
			age = history
		}
		b, err := r.bases.after(ctx, began.Add(-age), upper.id)
		var more bool
		if err == nil && b != nil {
			if more, err = r.part(ctx, b, upper); err == nil {
				upper = b
			}
		}
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, eventlog.ErrGone):
			r.log.Info("the feed's history ends where the log does", "reaches", age, "err", err)
			return
		case err != nil:
			r.log.Warn("the feed cannot read its history back now", "err", err)
			select {
			case <-time.After(backPause):
				continue
			case <-ctx.Done():
				return
			}
		case b != nil && !more:
			r.log.Info("the feed's history has reached its bound in bytes", "reaches", age)
			return
		case last:
			return
		}
		length = min(length*partGrows, largePart)
		age += length
	}
}

// part reads what was appended after b, up to where upper begins.
func (r *running) part(ctx context.Context, b, upper *base) (more bool, err error) {
	if len(b.marks) != len(upper.marks) {
		return false, fmt.Errorf("%w: the base %d is of other logs", eventlog.ErrGone, b.id)
	}
	from, ranges, rules := b.passed(), map[eventlog.TopicPartition]eventlog.Range{}, map[eventlog.TopicPartition]*eventlog.Rule{}
	starts, err := eventlog.StartOffsets(ctx, r.bases.client, Topics...)
	if err != nil {
		return false, err
	}
	for tp, at := range b.marks {
		to := upper.marks[tp].offset
		if tp.Topic == eventlog.RiderLocations || at.offset >= to {
			b.marks[tp] = upper.marks[tp] // the next part ends where this one begins
			from[tp] = to
			continue
		}
		if first := starts[tp]; first > at.offset+1 {
			return false, fmt.Errorf("%s/%d begins at %d: %w", tp.Topic, tp.Partition, first, eventlog.ErrGone)
		}
		ranges[tp] = eventlog.Range{From: at.offset + 1, To: to + 1}
		rules[tp] = &eventlog.Rule{Term: at.rule.Term, Seq: at.rule.Seq}
	}
	return r.Sink.Older(from, func(fn func(tp eventlog.TopicPartition, offset int64, appended time.Time, messages []rooms.Message)) error {
		return eventlog.Read(ctx, r.Kafka, ranges, func(e *eventlog.Event) error {
			tp := eventlog.TopicPartition{Topic: e.Topic, Partition: e.Partition}
			if eventlog.IsAggregate(e.Topic) {
				if take, _ := rules[tp].Take(e); !take {
					return nil
				}
			}
			if e.Fault != nil {
				return nil
			}
			all, err := Rooms(ctx, noKeys{}, e)
			if err != nil {
				return nil // the projector has passed over it too
			}
			if e.Topic == eventlog.Orders {
				r.mu.Lock()
				_, _ = r.riders.order(e)
				r.mu.Unlock()
			}
			if len(all) > 0 {
				fn(tp, e.Offset, e.Timestamp, all)
			}
			return nil
		})
	})
}

// noKeys opens nothing. It is for messages of which only the rooms are needed.
type noKeys struct{}

// Open implements subjectkeys.Opener.
func (noKeys) Open(context.Context, subjectkeys.Subject, string, domain.Sealed) ([]byte, error) {
	return nil, subjectkeys.ErrErased
}
