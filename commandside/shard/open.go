package shard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain"
	"tomato/eventlog"
)

// claimData is the data of SHARD_CLAIMED.
type claimData struct {
	Term  int64  `json:"term"`
	Owner string `json:"owner"`
	Build string `json:"build,omitempty"`
}

const (
	readLimit  = 10 * time.Minute // for the replay of a shard's logs
	claimLimit = 30 * time.Second // for a claim to be acknowledged
	claimGap   = 1000             // records that may stand between what was read and the claim
)

// open takes shard p over: it fences the snapshots, loads them, reads the four
// logs from there to their ends, folding what counts, then appends a claim to
// each and returns when all four count.
// Snapshots that were found not to be usable are left out.
func (s *Shards) open(ctx context.Context, p int32, trust bool) (sh *shard, err error) {
	s.mu.Lock()
	producer := s.producer
	s.mu.Unlock()
	rctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	start := time.Now()
	var took []any
	step := func(name string) { took = append(took, name, time.Since(start).Round(time.Millisecond)) }
	snapshots, err := s.openSnapshots(rctx, p)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			snapshots.close()
		}
	}()
	s.at(StepFenced, p)
	step("fenced")
	saved, err := snapshots.load(rctx)
	if err != nil {
		return nil, err
	}
	step("loaded")
	ends, err := eventlog.EndOffsets(rctx, producer, eventlog.AggregateTopics[:]...)
	if err != nil {
		return nil, err
	}
	if !trust {
		delete(saved, checkpointKey)
	}
	for {
		sh = s.newShard(p, producer)
		sh.snapshots = snapshots
		if err = sh.readAll(rctx, saved, ends); !sh.agg.partial || !errors.Is(err, errForeignSnapshot) {
			break
		}
		s.Log.Error("a snapshot is not of these logs; they are read from their beginning", "partition", p, "err", err)
		delete(saved, checkpointKey) // all else goes out of the topic with the next one
	}
	if err != nil {
		return nil, err
	}
	s.at(StepLogsRead, p)
	step("read")
	// All four logs are read before any is claimed. Read and claimed one by one,
	// two owners could each hold all claims as acknowledged while already deposed
	// in one log (found by the model: NO_READFIRST).
	if err := sh.claim(ctx); err != nil {
		return nil, err
	}
	sh.agg.scheduleAll()
	step("claimed")
	s.Log.Debug("shard opened", append(took, "partition", p, "term", sh.term, "loaded", len(saved), "replayed", sh.replayed)...)
	return sh, nil
}

func (s *Shards) newShard(p int32, producer *kgo.Client) *shard {
	sh := &shard{
		owner: s, partition: p, producer: producer, log: s.Log,
		queue: newQueue(), internal: make(chan func(time.Time), 64), closed: make(chan struct{}), ask: make(chan chan Status),
		ackWake: make(chan struct{}, 1), written: make(chan error, 1), agg: newAggregates(), seenInterval: seenIntervalLo, quiesceFor: quiesceLeast,
	}
	for i, topic := range eventlog.AggregateTopics {
		sh.logs[i] = partitionLog{topic: topic, lastOff: -1}
	}
	sh.agg.marked, sh.agg.build = sh.marked, s.Build
	return sh
}

// errForeignSnapshot says that the logs are not those that the snapshot was
// made of: records that it has are not there (any more).
var errForeignSnapshot = errors.New("the log is not the snapshot's")

// read restores what was saved and folds the logs in from there, up to ends.
func (s *shard) read(ctx context.Context, saved map[string]*kgo.Record, ends map[eventlog.TopicPartition]int64) error {
	now := time.Now()
	s.agg.partial = saved[checkpointKey] != nil
	at, err := s.agg.restore(saved, now)
	if err != nil {
		return err
	}
	s.agg.partial = at != nil
	ranges := map[eventlog.TopicPartition]eventlog.Range{}
	begins := map[eventlog.TopicPartition]int64{}
	resumed := map[string]position{} // what the first record read must be
	for i := range s.logs {
		l := &s.logs[i]
		tp := eventlog.TopicPartition{Topic: l.topic, Partition: s.partition}
		l.next = ends[tp]
		r := eventlog.Range{To: l.next}
		if at != nil {
			p, ok := at.Logs[l.topic]
			if !ok || p.Offset < 0 || p.Offset >= l.next {
				return fmt.Errorf("%w: %s/%d ends at %d, the snapshot has %d", errForeignSnapshot, l.topic, s.partition, l.next, p.Offset)
			}
			r.From = p.Offset
			resumed[l.topic] = p
		}
		ranges[tp] = r
		begins[tp] = r.From
	}
	if err := eventlog.CheckBeginnings(ctx, s.producer, begins); err != nil {
		return err
	}
	return eventlog.Read(ctx, s.owner.Kafka, ranges, func(e *eventlog.Event) error {
		p, ok := resumed[e.Topic]
		if !ok {
			return s.fold(e, now)
		}
		// Who resumes reads the last record that counted again: is it the same?
		if e.Offset != p.Offset || e.Term != p.Term || e.Seq != p.Seq {
			return fmt.Errorf("%w: %s/%d@%d has term %d seq %d, the snapshot %d and %d at %d",
				errForeignSnapshot, e.Topic, e.Partition, e.Offset, e.Term, e.Seq, p.Term, p.Seq, p.Offset)
		}
		delete(resumed, e.Topic)
		l := &s.logs[logOf(e.Topic)]
		l.rule, l.lastOff = eventlog.Rule{Term: p.Term, Seq: p.Seq}, p.Offset
		return nil
	})
}

// readAll reads up to ends, then what the last owner has appended meanwhile: it goes
// on until the claim, and behind the claim its commands would wait for that.
func (s *shard) readAll(ctx context.Context, saved map[string]*kgo.Record, ends map[eventlog.TopicPartition]int64) error {
	err := s.read(ctx, saved, ends)
	for gap := int64(claimGap); err == nil && gap >= claimGap; {
		if ends, err = eventlog.EndOffsets(ctx, s.producer, eventlog.AggregateTopics[:]...); err == nil {
			gap, err = s.readOn(ctx, ends)
		}
	}
	return err
}

// readOn folds what stands between the end that is known and these ends, and
// returns how much that was.
func (s *shard) readOn(ctx context.Context, ends map[eventlog.TopicPartition]int64) (records int64, err error) {
	now := time.Now()
	ranges := map[eventlog.TopicPartition]eventlog.Range{}
	for i := range s.logs {
		l := &s.logs[i]
		tp := eventlog.TopicPartition{Topic: l.topic, Partition: s.partition}
		if end := ends[tp]; end > l.next { // a broker that leads no more may tell an older one
			records += end - l.next
			ranges[tp] = eventlog.Range{From: l.next, To: end}
			l.next = end
		}
	}
	return records, eventlog.Read(ctx, s.owner.Kafka, ranges, func(e *eventlog.Event) error { return s.fold(e, now) })
}

// fold takes one record of the log in: it takes effect, or stops its own aggregate,
// or is skipped, and nothing that it holds is an error. An error says that the
// snapshot cannot be used.
func (s *shard) fold(e *eventlog.Event, now time.Time) error {
	l := &s.logs[logOf(e.Topic)]
	before := l.rule
	take, skipped := l.rule.Take(e)
	if skipped != "" {
		s.void(l, skipped)
	}
	if l.rule == before {
		return nil
	}
	l.lastOff = e.Offset
	s.replayed++
	s.sinceCut++
	if !take {
		return nil
	}
	return s.agg.replay(e, now)
}

// claim appends SHARD_CLAIMED with the next term to each log. A claim that
// landed where expected counts; otherwise what stands between is read and
// folded, and it counts if no other claim went before it.
func (s *shard) claim(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, claimLimit)
	defer cancel()
	records := make([]*kgo.Record, logCount)
	ids := make([]string, logCount)
	for i := range s.logs {
		l := &s.logs[i]
		term := l.rule.Term + 1
		data, err := json.Marshal(claimData{Term: term, Owner: s.owner.Instance, Build: s.owner.Build})
		if err != nil {
			return err
		}
		// A claim has an id of its own: two owners may claim the same term, and
		// an earlier try of this one may still land.
		ids[i] = uuid.NewString()
		e := eventlog.Event{ID: ids[i], Source: s.owner.source, Type: eventlog.ShardClaimed,
			Time: domain.Time(time.Now()), Term: term, Data: data}
		records[i] = e.NewRecord(l.topic, s.partition)
	}
	results := make(chan kgo.ProduceResult, logCount)
	for _, r := range records {
		// Not bound to ctx: what may have landed is never given up.
		s.producer.Produce(context.WithoutCancel(ctx), r, func(r *kgo.Record, err error) { results <- kgo.ProduceResult{Record: r, Err: err} })
	}
	s.owner.at(StepClaimsSent, s.partition)
	for range records {
		select {
		case r := <-results:
			if r.Err != nil {
				s.owner.replaceProducer(s.producer)
				return fmt.Errorf("claiming %s/%d: %w", r.Record.Topic, s.partition, r.Err)
			}
			s.owner.at(StepClaimLanded, s.partition)
		case <-ctx.Done():
			return fmt.Errorf("claiming shard %d: %w", s.partition, ctx.Err())
		}
	}
	for i, r := range records {
		l := &s.logs[i]
		if r.Offset == l.next {
			l.rule.Term, l.rule.Seq = l.rule.Term+1, 0
		} else if err := s.readClaim(ctx, l, r.Offset, ids[i]); err != nil {
			return err
		}
		l.next, l.lastOff = r.Offset+1, r.Offset
	}
	s.term, s.claimedAt = s.logs[orders].rule.Term, records[orders].Offset
	s.owner.at(StepClaimed, s.partition)
	return nil
}

func (s *shard) readClaim(ctx context.Context, l *partitionLog, landed int64, id string) error {
	tp := eventlog.TopicPartition{Topic: l.topic, Partition: s.partition}
	mine := false
	now := time.Now()
	err := eventlog.Read(ctx, s.owner.Kafka, map[eventlog.TopicPartition]eventlog.Range{tp: {From: l.next, To: landed + 1}}, func(e *eventlog.Event) error {
		term := l.rule.Term
		if err := s.fold(e, now); err != nil {
			return err
		}
		if l.rule.Term != term {
			mine = e.ID == id
		} else if mine && e.ID != id && l.rule.Seq > 0 {
			return fmt.Errorf("%w: an event counts under a claim that has appended none", errBroken)
		}
		return nil
	})
	if err == nil && !mine {
		err = fmt.Errorf("claiming %s/%d: %w", l.topic, s.partition, errDeposed)
	}
	return err
}
