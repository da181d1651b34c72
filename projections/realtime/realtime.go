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
// A Projector has no group and no checkpoint in Postgres. Every few seconds it appends a
// base to topic feed: how far it has published each log, with the state of the reader rule
// there. Cursors of clients are positions relative to a base. A Run starts at the newest
// base or at the checkpoints of the read models, in each log at whichever is later, and
// does not read what is older before Ready. After that it reads the logs back from base to
// base, the newest part first, so that the sink can index which room has which records.
//
// Failure: while the brokers are unavailable, a Projector waits, and the feeds are
// silent. While topic feed cannot be written, a Run begins at the newest base that is there,
// and appends one as soon as it can (Unrecorded). A personal field whose master key this instance lacks is shown as erased, which
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
//	base.go         how far the logs were published, as records on topic feed
//	history.go      records from before the start, for clients that resume
package realtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain/rooms"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/subjectkeys"
)

// Topics are the topics that a Projector reads. Topic riders is not among them,
// because no message is made of it: topic orders says which rider brings an order.
var Topics = []string{eventlog.Orders, eventlog.Payments, eventlog.RiderLocations, eventlog.Feed}

// Start is where a Projector may begin if no base is later.
type Start struct {
	// Marks are offsets in the logs of orders and payments, with the state of the
	// reader rule there: those of the read models' checkpoints, or earlier ones. A
	// log of these topics without a mark and without a base is read from its beginning.
	Marks map[eventlog.TopicPartition]consumer.Mark
	// Assigned are the orders that have a rider, as of the marks or of any time later.
	Assigned []Assignment
}

// Loader gets a start from the read models. Its error ends Run.
type Loader interface {
	FeedStart(ctx context.Context) (Start, error)
}

// Sink receives what a Projector makes. A Run calls Begin, Publish and Ready from one
// goroutine. It calls Base, Reaches, Older and NoOlder between Begin and its end from others, while
// it publishes.
type Sink interface {
	// Begin is called first. base.Passed has, for each log, the offset of the last record
	// that will not be published, or -1 if the log is read from its beginning.
	Begin(base eventlog.FeedBase)
	// Base is called with each later base of this Run. Everything in it has been published.
	Base(base eventlog.FeedBase)
	// Publish is called for each record, with the messages that it means. There are none
	// if it is invalid. Records of one log come in offset order. appended is the record's
	// timestamp.
	Publish(tp eventlog.TopicPartition, offset int64, appended time.Time, messages []rooms.Message)
	// Ready is called once, when the logs have been read up to the ends that they had
	// at the start.
	Ready()
	// Reaches is called before Older, unless the brokers cannot be asked: no part will have
	// anything up to from.
	Reaches(from map[eventlog.TopicPartition]int64)
	// Older is called with parts of the logs from before the start, the newest part first.
	// A part has the records after from, up to where the later part begins. read calls its
	// argument as a Run calls Publish, for records that mean messages, without the
	// payloads of the messages. After an error of read the part is worth nothing. Older
	// reports whether the sink wants older parts.
	Older(from map[eventlog.TopicPartition]int64, read func(fn func(tp eventlog.TopicPartition, offset int64, appended time.Time, messages []rooms.Message)) error) (more bool, err error)
	// NoOlder is called when there are no older parts.
	NoOlder()
}

// Projector reads the logs for one sink. Kafka, Runtime, Loader, Sink and Keys must be set.
type Projector struct {
	Kafka    eventlog.Config
	Runtime  *consumer.Runtime // reads the logs, together with the process's consumers
	Loader   Loader
	Sink     Sink
	Keys     subjectkeys.Opener    // open what is personal in messages
	History  time.Duration         // how far back the logs are read for Sink.Older; 0: 24 hours
	Registry prometheus.Registerer // nil: no metrics
	Log      *slog.Logger          // nil: slog.Default()

	once       sync.Once // sets the next three
	m          *metrics
	log        *slog.Logger
	metricsErr error

	mu         sync.Mutex // guards the fields below
	bases      *bases     // of the present Run; nil: none
	unrecorded error      // why the last base could not be appended; nil: it was
}

const defaultHistory = 24 * time.Hour

// keysPause is the pause between two tries to open what is personal in a message.
const keysPause = 200 * time.Millisecond

// reporting returns the metrics and the log, which are the same for every Run and Read.
func (p *Projector) reporting() (*metrics, *slog.Logger, error) {
	p.once.Do(func() {
		if p.log = p.Log; p.log == nil {
			p.log = slog.Default()
		}
		p.m, p.metricsErr = newMetrics(p.Registry)
	})
	return p.m, p.log, p.metricsErr
}

// Run reads until ctx ends, and then returns nil. It returns an error if it cannot
// start, or if to go on could leave a message out. One Run at a time.
func (p *Projector) Run(ctx context.Context) error {
	m, log, err := p.reporting()
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
	// A base that is stored twice does no harm. An idempotent producer would wait without end
	// for the outcome of a request whose answer was lost.
	client, err := p.Kafka.NewClient(kgo.DisableIdempotentWrite(), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0), kgo.RecordDeliveryTimeout(appendTimeout),
		kgo.ProducerBatchCompression(kgo.ZstdCompression(), kgo.NoCompression()))
	if err != nil {
		return fmt.Errorf("feed: %w", err)
	}
	defer client.Close()
	at, err := p.start(ctx, client, start)
	if err != nil {
		return fmt.Errorf("feed start: %w", err)
	}
	began, err := at.bases.append(ctx, maps.Clone(at.marks))
	p.recorded(log, err)
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		began = at.withoutBase()
	}
	bases, marks, ends := at.bases, at.marks, at.ends
	r := newRunning(p, log, m)
	r.bases, r.marks, r.riders = bases, marks, newAssignments(start.Assigned)
	next, behind := map[eventlog.TopicPartition]int64{}, map[eventlog.TopicPartition]int64{} // the ends up to which logs must be read before Ready
	for tp, at := range marks {
		if next[tp] = at.offset + 1; next[tp] < ends[tp] {
			behind[tp] = ends[tp]
		}
	}
	p.setBases(bases)
	defer p.setBases(nil)
	p.Sink.Begin(began.public())
	for tp, m := range marks {
		if m.offset > began.marks[tp].offset { // nothing is published of what lies between
			p.Sink.Publish(tp, m.offset, time.Now(), nil)
		}
	}
	ready := len(behind) == 0
	if ready {
		p.Sink.Ready()
	}
	ctx, cancel := context.WithCancel(ctx)
	var beside sync.WaitGroup
	defer beside.Wait()
	defer cancel()
	beside.Go(func() { r.appendBases(ctx) })
	beside.Go(func() { r.readBack(ctx, began) })
	return p.Runtime.Follow(ctx, next, func(f consumer.FollowedRecords) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, rec := range f.Records {
			r.record(ctx, f.TopicPartition, rec)
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

// running is one Run.
type running struct {
	*Projector
	log   *slog.Logger
	m     *metrics
	bases *bases

	mu     sync.Mutex                       // guards what follows; the sink is told under it
	marks  map[eventlog.TopicPartition]mark // how far each log was published
	riders *assignments
	since  int // records published since the last base
}

func newRunning(p *Projector, log *slog.Logger, m *metrics) *running {
	return &running{Projector: p, log: log, m: m, marks: map[eventlog.TopicPartition]mark{}, riders: newAssignments(nil)}
}

// record applies the reader rule to one record and publishes it if it is valid. The caller
// holds mu.
func (r *running) record(ctx context.Context, tp eventlog.TopicPartition, rec *kgo.Record) {
	e, _ := eventlog.ParseRecord(rec) // e.Fault has the error
	take, skipped := true, ""
	at := r.marks[tp]
	if eventlog.IsAggregate(tp.Topic) {
		take, skipped = at.rule.Take(&e)
	} else if consumer.IsTelemetry(tp.Topic) && rec.Value == nil {
		take = false // a tombstone means no message
		if consumer.IsErasure(&e) {
			r.riders.forget(string(rec.Key))
		}
	} else if e.Fault != nil {
		take, skipped = false, eventlog.SkipNoEvent
	}
	at.offset = rec.Offset
	if skipped != "" {
		r.m.invalid.WithLabelValues(tp.Topic, skipped).Inc()
		r.log.Warn("the feed skips an invalid record", "topic", tp.Topic, "partition", tp.Partition, "offset", rec.Offset, "reason", skipped,
			"type", eventlog.LogText(e.Type), "term", e.Term, "seq", e.Seq)
	}
	var all []rooms.Message
	if take {
		var err error
		all, err = r.messages(ctx, &e)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			r.m.undecodable.Inc()
			r.log.Error("the feed passes over an event that it cannot decode", "topic", tp.Topic, "partition", tp.Partition, "offset", rec.Offset, "type", eventlog.LogText(e.Type), "err", err)
			all = nil
		}
		r.m.records.Inc()
	}
	r.Sink.Publish(tp, rec.Offset, rec.Timestamp, all)
	r.marks[tp] = at
	if e.Type != BaseType {
		r.since++
	}
}

// messages makes the messages of an event. While the keys cannot be read, it waits: a feed
// leaves nothing out.
func (r *running) messages(ctx context.Context, e *eventlog.Event) ([]rooms.Message, error) {
	if e.Fault != nil {
		return nil, e.Fault
	}
	if e.Topic == eventlog.RiderLocations {
		return r.riders.position(e)
	}
	keys := shownKeys{r.Keys, r.log, r.m}
	all, err := Rooms(ctx, keys, e)
	for tries := 0; errors.Is(err, eventlog.ErrUnavailable); tries++ {
		if tries == 0 {
			r.log.Warn("the feed waits for the keys of personal fields", "err", err)
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
	more, err := r.riders.order(e)
	return append(all, more...), err
}

// starting is what a Run begins with.
type starting struct {
	bases  *bases
	newest *base // the newest base, if it is of these logs
	marks  map[eventlog.TopicPartition]mark
	ends   map[eventlog.TopicPartition]int64
}

// start returns how far each log counts as published at the start, and its present end. In
// the logs of orders and payments this is the newest base or the mark of the read
// models, whichever is later; what is emitted is read from the newest base on, and rider
// positions from the end on.
func (p *Projector) start(ctx context.Context, client *kgo.Client, start Start) (*starting, error) {
	fail := func(err error) (*starting, error) { return nil, err }
	all, err := eventlog.EndOffsets(ctx, client, eventlog.Feed)
	if err != nil {
		return fail(err)
	}
	b := newBases(client, int32(len(all)))
	newest, err := b.newest(ctx)
	if err != nil {
		return fail(err)
	}
	ends, err := eventlog.EndOffsets(ctx, client, Topics...)
	if err != nil {
		return fail(err)
	}
	if newest != nil && !newest.sane(ends) {
		newest = nil // of logs that were longer, as before a restore
	}
	marks, need := make(map[eventlog.TopicPartition]mark, len(ends)), map[eventlog.TopicPartition]int64{}
	for tp, end := range ends {
		at := mark{offset: end - 1}
		if eventlog.IsAggregate(tp.Topic) {
			model := start.Marks[tp]
			if model.Next > end {
				return fail(fmt.Errorf("%s/%d ends at %d, before the read model's %d: is it the same log?", tp.Topic, tp.Partition, end, model.Next))
			}
			at = mark{model.Next - 1, model.Rule}
		}
		if newest != nil {
			if known := newest.marks[tp]; eventlog.IsAggregate(tp.Topic) && known.offset > at.offset || tp.Topic == eventlog.Feed {
				at = known
			}
		}
		marks[tp] = at
		if need[tp] = at.offset + 1; !eventlog.IsAggregate(tp.Topic) {
			delete(need, tp)
		}
	}
	if err := eventlog.CheckBeginnings(ctx, client, need); err != nil {
		return fail(err)
	}
	starts, err := eventlog.StartOffsets(ctx, client, eventlog.Feed)
	if err != nil {
		return fail(err)
	}
	for tp, first := range starts { // the topic keeps records for a limited time
		marks[tp] = mark{offset: max(marks[tp].offset, first-1)}
	}
	return &starting{b, newest, marks, ends}, nil
}

// withoutBase returns the base with which a Run begins that cannot append one: the newest
// one that is in the log. What it does not have of orders, payments and the feed's own
// topic is published again, so that cursors of this base have a meaning. Without any base
// there are no cursors that can be used until one can be appended: whoever comes back with
// one must reload.
func (s *starting) withoutBase() *base {
	if s.newest == nil {
		return &base{eventlog.NoFeedBase, "", maps.Clone(s.marks)}
	}
	for tp, known := range s.newest.marks {
		if eventlog.IsAggregate(tp.Topic) {
			s.marks[tp] = known
		}
	}
	return s.newest
}

// recorded notes whether a base could be appended, and logs it when that changes.
func (p *Projector) recorded(log *slog.Logger, err error) {
	p.mu.Lock()
	before := p.unrecorded
	p.unrecorded = err
	p.mu.Unlock()
	switch {
	case err != nil && before == nil:
		log.Warn("the feed cannot record how far it is on topic feed; it goes on and tries again, and clients that come back meanwhile may have to reload", "err", err)
	case err == nil && before != nil:
		log.Info("the feed can record again how far it is")
	}
}

// Unrecorded returns why the last base could not be appended to topic feed, or nil. The
// feed goes on meanwhile.
func (p *Projector) Unrecorded() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.unrecorded
}

// appendTimeout bounds the wait for the acknowledgement of a base.
const appendTimeout = 10 * time.Second

// appendBases appends a base every few seconds while records are published, and one now
// and then in quiet times, until ctx ends. If one cannot be appended, clients keep cursors
// that are relative to the last one, and the next try comes with the next tick.
func (r *running) appendBases(ctx context.Context) {
	tick := time.NewTicker(baseEvery)
	defer tick.Stop()
	for last := time.Now(); ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		r.mu.Lock()
		due := r.since > 0 || time.Since(last) >= baseAtLeast || r.Unrecorded() != nil
		marks, since := maps.Clone(r.marks), r.since
		r.mu.Unlock()
		if !due {
			continue
		}
		b, err := r.bases.append(ctx, marks)
		if ctx.Err() != nil {
			return
		}
		if r.recorded(r.log, err); err != nil {
			continue
		}
		last = time.Now()
		r.mu.Lock()
		r.since -= since
		r.mu.Unlock()
		r.Sink.Base(b.public())
	}
}

type metrics struct {
	records, undecodable, lacking prometheus.Counter
	invalid                       *prometheus.CounterVec
	lackLog                       eventlog.LogSampler
}

// lacks counts a field whose master key is missing. If it is time for a log entry, now is
// true and n is how many there were since the last one.
func (m *metrics) lacks() (n int, now bool) {
	m.lacking.Inc()
	return m.lackLog.Count()
}

// newMetrics makes the metrics, and registers them unless reg is nil.
func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.CounterOpts { return prometheus.CounterOpts{Name: name, Help: help} }
	m := &metrics{
		records:     prometheus.NewCounter(counter("tomato_feed_records_total", "Records that the feed's projector has taken in.")),
		invalid:     prometheus.NewCounterVec(counter("tomato_feed_void_records_total", "Invalid records that the feed has skipped, by reason."), []string{"topic", "reason"}),
		undecodable: prometheus.NewCounter(counter("tomato_feed_undecodable_total", "Records that the feed has passed over because they could not be decoded.")),
		lacking:     prometheus.NewCounter(counter("tomato_feed_lacks_master_key_total", "Personal fields that the feed has shown as erased because this instance lacks a master key.")),
		lackLog:     eventlog.LogSampler{Every: lackLogEvery},
	}
	if reg == nil {
		return m, nil
	}
	return m, errors.Join(reg.Register(m.records), reg.Register(m.invalid), reg.Register(m.undecodable), reg.Register(m.lacking))
}
