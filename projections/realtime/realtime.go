// Package realtime makes feed messages of the records in the logs, as they are
// appended.
//
// Every instance with feeds runs one Projector. A Projector first catches up, from
// its start to the ends that the logs had at that time, and then follows the logs.
// It calls Sink.Ready in between. Feeds are opened only after that, so a client that
// has joined a room receives everything that is appended afterwards.
//
// The logs are authoritative. What a Projector holds (the state of the reader rule
// per partition, and which rider brings which order) is derived from them and made
// again by the next Run. Messages come from one pure function, Rooms, so all
// instances make the same messages of the same log.
//
// A Projector has no checkpoint of its own. It starts at the checkpoints of the read
// models, or earlier, as its Loader says. Clients read what is older from the read
// models.
//
// Failure: while the brokers are unavailable, a Projector waits, and the feeds are
// silent. A personal field whose master key this instance lacks is shown as erased, which
// is counted and logged, and holds up nobody. A Projector logs, counts and skips a record that cannot be decoded, because a feed
// may not wait for an operator. Run ends with an error if to go on could leave a
// message out, for example if a log is shorter than before. The next Run begins
// again, and the sink makes its clients reconnect.
//
// The files, in reading order:
//
//	rooms.go        the table of messages: which event means which messages to which rooms
//	realtime.go     the Projector: start, reading, the reader rule
//	keys.go         what is shown while a master key is missing
//	assignments.go  which rider brings which order, for rider:location
//	catchup.go      records from before the start, for clients that resume
package realtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain/rooms"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/subjectkeys"
)

// Topics are the topics that a Projector reads. Topic riders is not among them,
// because no message is made of it: topic orders says which rider brings an order.
var Topics = []string{eventlog.Orders, eventlog.Payments, eventlog.RiderLocations, eventlog.Feed}

// Start is where a Projector begins.
type Start struct {
	// Marks are offsets in the logs of orders and payments, with the state of the
	// reader rule there: those of the read models' checkpoints, or earlier ones. A
	// log of these topics without a mark is read from its beginning. The earlier the
	// marks are, the longer a client may have been disconnected and still resume.
	Marks map[eventlog.TopicPartition]consumer.Mark
	// Assigned are the orders that have a rider, as of the marks or of any time later.
	Assigned []Assignment
}

// Loader gets a start from the read models. Its error ends Run.
type Loader interface {
	FeedStart(ctx context.Context) (Start, error)
}

// Sink receives what a Projector makes. A Run calls it from one goroutine.
type Sink interface {
	// Begin is called first. passed has, for each log, the offset of the last record
	// that will not be published, or -1 if the log is read from its beginning.
	Begin(passed map[eventlog.TopicPartition]int64)
	// Publish is called for each valid record, with the messages that it means, of
	// which there may be none. Records of one log come in offset order. appended is
	// the record's timestamp.
	Publish(tp eventlog.TopicPartition, offset int64, appended time.Time, messages []rooms.Message)
	// Ready is called once, when the logs have been read up to the ends that they had
	// at the start.
	Ready()
}

// Projector reads the logs for one sink. Kafka, Runtime, Loader, Sink and Keys must be set.
type Projector struct {
	Kafka    eventlog.Config
	Runtime  *consumer.Runtime // reads the logs, together with the process's consumers
	Loader   Loader
	Sink     Sink
	Keys     subjectkeys.Opener    // open what is personal in messages
	Backlog  time.Duration         // how far back rider positions and emitted messages are read at the start; 0: 5 minutes
	Registry prometheus.Registerer // nil: no metrics
	Log      *slog.Logger          // nil: slog.Default()

	mu    sync.Mutex // guards known
	known map[eventlog.TopicPartition]known
}

const defaultBacklog = 5 * time.Minute

// keysPause is the pause between two tries to open what is personal in a message.
const keysPause = 200 * time.Millisecond

// Run reads until ctx ends, and then returns nil. It returns an error if it cannot
// start, or if to go on could leave a message out. One Run at a time.
func (p *Projector) Run(ctx context.Context) error {
	log := p.Log
	if log == nil {
		log = slog.Default()
	}
	m, err := newMetrics(p.Registry)
	if err != nil {
		return err
	}
	err = p.run(ctx, log, m)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (p *Projector) run(ctx context.Context, log *slog.Logger, m *metrics) error {
	start, err := p.Loader.FeedStart(ctx)
	if err != nil {
		return fmt.Errorf("feed start: %w", err)
	}
	client, err := p.Kafka.NewClient()
	if err != nil {
		return fmt.Errorf("feed: %w", err)
	}
	next, ends, err := p.offsets(ctx, client, start)
	client.Close()
	if err != nil {
		return fmt.Errorf("feed start: %w", err)
	}

	rules := map[eventlog.TopicPartition]*eventlog.Rule{}
	passed := make(map[eventlog.TopicPartition]int64, len(next))
	for tp, o := range next {
		if eventlog.IsAggregate(tp.Topic) {
			rule := start.Marks[tp].Rule
			rules[tp] = &rule
		}
		passed[tp] = o - 1
	}
	riders := newAssignments(start.Assigned)
	p.begin(passed, start)
	p.Sink.Begin(passed)

	behind := make(map[eventlog.TopicPartition]int64) // the ends up to which logs must be read before Ready
	for tp, end := range ends {
		if next[tp] < end {
			behind[tp] = end
		}
	}
	ready := len(behind) == 0
	if ready {
		p.Sink.Ready()
	}
	return p.Runtime.Follow(ctx, next, func(f consumer.FollowedRecords) {
		for _, r := range f.Records {
			p.record(ctx, f.TopicPartition, r, rules[f.TopicPartition], riders, log, m)
		}
		if end, ok := behind[f.TopicPartition]; ok && f.Records[len(f.Records)-1].Offset >= end-1 {
			delete(behind, f.TopicPartition)
		}
		if !ready && len(behind) == 0 {
			ready = true
			p.Sink.Ready()
		}
	})
}

// record applies the reader rule to one record and publishes it if it is valid. rule
// is nil for a topic that is not an aggregate topic.
func (p *Projector) record(ctx context.Context, tp eventlog.TopicPartition, r *kgo.Record, rule *eventlog.Rule, riders *assignments, log *slog.Logger, m *metrics) {
	e, _ := eventlog.ParseRecord(r) // e.Fault has the error
	take, skipped := true, ""
	if rule != nil {
		take, skipped = rule.Take(&e)
	} else if consumer.IsTelemetry(tp.Topic) && r.Value == nil {
		take = false // a tombstone means no message
		if consumer.IsErasure(&e) {
			riders.forget(string(r.Key))
		}
	} else if e.Fault != nil {
		take, skipped = false, eventlog.SkipNoEvent
	}
	if skipped != "" {
		m.invalid.WithLabelValues(tp.Topic, skipped).Inc()
		log.Warn("the feed skips an invalid record", "topic", tp.Topic, "partition", tp.Partition, "offset", r.Offset, "reason", skipped,
			"type", eventlog.LogText(e.Type), "term", e.Term, "seq", e.Seq)
	}
	if !take {
		if skipped == "" { // a claim: it is valid, so a cursor may point to it
			p.Sink.Publish(tp, r.Offset, r.Timestamp, nil)
		}
		return
	}
	all, err := p.messages(ctx, &e, riders, log, m)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		m.undecodable.Inc()
		log.Error("the feed passes over an event that it cannot decode", "topic", tp.Topic, "partition", tp.Partition, "offset", r.Offset, "type", eventlog.LogText(e.Type), "err", err)
		all = nil
	}
	p.Sink.Publish(tp, r.Offset, r.Timestamp, all)
	m.records.Inc()
}

// messages makes the messages of an event. While the keys cannot be read, it waits: a feed
// leaves nothing out.
func (p *Projector) messages(ctx context.Context, e *eventlog.Event, riders *assignments, log *slog.Logger, m *metrics) ([]rooms.Message, error) {
	if e.Fault != nil {
		return nil, e.Fault
	}
	if e.Topic == eventlog.RiderLocations {
		return riders.position(e)
	}
	keys := shownKeys{p.Keys, log, m}
	all, err := Rooms(ctx, keys, e)
	for tries := 0; errors.Is(err, eventlog.ErrUnavailable); tries++ {
		if tries == 0 {
			log.Warn("the feed waits for the keys of personal fields", "err", err)
		}
		select {
		case <-time.After(keysPause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		all, err = Rooms(ctx, keys, e)
	}
	if err != nil || e.Topic != eventlog.Orders {
		return all, err
	}
	more, err := riders.order(e)
	return append(all, more...), err
}

// offsets returns the offset from which each log is read, and its present end.
func (p *Projector) offsets(ctx context.Context, client *kgo.Client, start Start) (next, ends map[eventlog.TopicPartition]int64, err error) {
	ends, err = eventlog.EndOffsets(ctx, client, Topics...)
	if err != nil {
		return nil, nil, err
	}
	backlog := p.Backlog
	if backlog == 0 {
		backlog = defaultBacklog
	}
	from := make(map[eventlog.TopicPartition]int64, len(ends))
	for tp := range ends {
		from[tp] = start.Marks[tp].Next
	}
	if err := eventlog.CheckBeginnings(ctx, client, from); err != nil {
		return nil, nil, err
	}
	since, err := kadm.NewClient(client).ListOffsetsAfterMilli(ctx, time.Now().Add(-backlog).UnixMilli(), eventlog.RiderLocations, eventlog.Feed)
	if err == nil {
		err = since.Error()
	}
	if err != nil {
		return nil, nil, err
	}
	next = make(map[eventlog.TopicPartition]int64, len(ends))
	for tp, end := range ends {
		if eventlog.IsAggregate(tp.Topic) {
			if next[tp] = start.Marks[tp].Next; next[tp] > end {
				return nil, nil, fmt.Errorf("%s/%d ends at %d, before the read model's %d: is it the same log?", tp.Topic, tp.Partition, end, next[tp])
			}
			continue
		}
		next[tp] = end
		if o, ok := since.Lookup(tp.Topic, tp.Partition); ok && o.Offset >= 0 && o.Offset < end {
			next[tp] = o.Offset
		}
	}
	return next, ends, nil
}

type metrics struct {
	records, undecodable, lacking prometheus.Counter
	invalid                       *prometheus.CounterVec

	mu           sync.Mutex // guards the fields below
	lackingSince int        // fields that lack a master key, since the last log entry
	lackLoggedAt time.Time
}

// lacks counts a field whose master key is missing. If it is time for a log entry, now is
// true and n is how many there were since the last one.
func (m *metrics) lacks() (n int, now bool) {
	m.lacking.Inc()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lackingSince++
	if time.Since(m.lackLoggedAt) < lackLogEvery {
		return 0, false
	}
	n, m.lackingSince, m.lackLoggedAt = m.lackingSince, 0, time.Now()
	return n, true
}

// newMetrics registers the metrics, or returns those that an earlier Run has
// registered.
func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	var errs [4]error
	counter := func(name, help string) prometheus.CounterOpts { return prometheus.CounterOpts{Name: name, Help: help} }
	var m metrics
	m.records, errs[0] = registered(reg, prometheus.NewCounter(counter("tomato_feed_records_total", "Records that the feed's projector has taken in.")))
	m.invalid, errs[1] = registered(reg, prometheus.NewCounterVec(counter("tomato_feed_void_records_total", "Invalid records that the feed has skipped, by reason."), []string{"topic", "reason"}))
	m.undecodable, errs[2] = registered(reg, prometheus.NewCounter(counter("tomato_feed_undecodable_total", "Records that the feed has passed over because they could not be decoded.")))
	m.lacking, errs[3] = registered(reg, prometheus.NewCounter(counter("tomato_feed_lacks_master_key_total", "Personal fields that the feed has shown as erased because this instance lacks a master key.")))
	return &m, errors.Join(errs[:]...)
}

func registered[C prometheus.Collector](reg prometheus.Registerer, c C) (C, error) {
	if reg == nil {
		return c, nil
	}
	err := reg.Register(c)
	var old prometheus.AlreadyRegisteredError
	if errors.As(err, &old) {
		if existing, ok := old.ExistingCollector.(C); ok {
			return existing, nil
		}
	}
	return c, err
}
