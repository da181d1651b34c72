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

// This file owns the take-over of a shard: it loads the snapshot, reads the four logs
// and claims them.

// claimData is the data of SHARD_CLAIMED.
type claimData struct {
	Term  int64  `json:"term"`
	Owner string `json:"owner"`
	Build string `json:"build,omitempty"`
	Epoch int    `json:"epoch,omitempty"` // event-schema epoch of the build; absent for the first
}

const (
	readLimit  = 10 * time.Minute // time to load a shard's snapshot and read its logs
	claimLimit = 30 * time.Second // time for the acknowledgement of the claims
	claimGap   = 1000             // records that may be unread when the claims are appended
)

// open takes shard p over. It fences the previous writer of snapshots, loads the
// snapshot, reads the four logs from its positions to their ends and folds the valid
// records. Then it appends a claim to each log, and returns when all four claims are
// known to be valid. With useSnapshot false, or if the snapshot turns out not to fit
// the logs, it reads the logs from their beginning.
func (s *Shards) open(ctx context.Context, p int32, useSnapshot bool) (sh *shard, err error) {
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
	if !useSnapshot {
		delete(saved, checkpointKey)
	}
	for {
		sh = s.newShard(p, producer)
		sh.snapshots = snapshots
		if err = sh.readAll(rctx, saved, ends); !sh.agg.fromSnapshot || !errors.Is(err, errForeignSnapshot) {
			break
		}
		s.Log.Error("the logs are read from their beginning, because the snapshot does not fit them", "partition", p, "err", err)
		delete(saved, checkpointKey) // the rest of saved stays, so that the next snapshot removes it from the topic
	}
	if err != nil {
		return nil, err
	}
	s.at(StepLogsRead, p)
	step("read")
	// All four logs are read before any of them is claimed. If an instance read and
	// claimed one log after the other, two owners could each get all their claims
	// acknowledged although each is already deposed in one log. The model in
	// commandside/shard/model shows it with -DNO_READFIRST.
	if err := sh.claim(ctx); err != nil {
		return nil, err
	}
	sh.agg.scheduleAll()
	step("claimed")
	s.Log.Debug("shard opened", append(took, "partition", p, "term", sh.term, "loaded", len(saved), "replayed", sh.replayed)...)
	return sh, nil
}

// newShard returns a shard with empty state, which is not open.
func (s *Shards) newShard(p int32, producer *kgo.Client) *shard {
	sh := &shard{
		owner: s, partition: p, producer: producer, log: s.Log,
		queue: newQueue(), tasks: make(chan func(time.Time), 64), closed: make(chan struct{}), ask: make(chan chan Status),
		ackWake: make(chan struct{}, 1), written: make(chan error, 1), agg: newAggregates(), checkInterval: checkIntervalMin, quiesceFor: quiesceLeast,
	}
	for i, topic := range eventlog.AggregateTopics {
		sh.logs[i] = partitionLog{topic: topic, lastValid: -1}
	}
	sh.agg.onUnreadable, sh.agg.build = sh.reportUnreadable, s.Build
	return sh
}

// errForeignSnapshot means that the snapshot cannot be used: it was not made from
// these logs, or the logs have lost records, or this build cannot read it.
var errForeignSnapshot = errors.New("the snapshot cannot be used")

// read restores the snapshot and folds the records of the logs from the snapshot's
// positions up to ends. Without a checkpoint in saved it folds the logs from their
// beginning.
func (s *shard) read(ctx context.Context, saved map[string]*kgo.Record, ends map[eventlog.TopicPartition]int64) error {
	now := time.Now()
	s.agg.fromSnapshot = saved[checkpointKey] != nil
	at, err := s.agg.restore(saved, now)
	if err != nil {
		return err
	}
	s.agg.fromSnapshot = at != nil
	ranges := map[eventlog.TopicPartition]eventlog.Range{}
	begins := map[eventlog.TopicPartition]int64{}
	resumed := map[string]position{} // by topic: what the first record that is read must be
	for i := range s.logs {
		l := &s.logs[i]
		tp := eventlog.TopicPartition{Topic: l.topic, Partition: s.partition}
		l.next = ends[tp]
		r := eventlog.Range{To: l.next}
		if at != nil {
			p, ok := at.Logs[l.topic]
			if !ok || p.Offset < 0 || p.Offset >= l.next {
				return fmt.Errorf("%w: %s/%d ends at offset %d, and the snapshot has read up to offset %d", errForeignSnapshot, l.topic, s.partition, l.next, p.Offset)
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
		// The record at the checkpoint is read again. If the log has another record
		// there, the log has lost records that the snapshot was made from.
		if e.Offset != p.Offset || e.Term != p.Term || e.Seq != p.Seq {
			return fmt.Errorf("%w: the record at %s/%d@%d has term %d and seq %d, and the snapshot has term %d and seq %d at offset %d",
				errForeignSnapshot, e.Topic, e.Partition, e.Offset, e.Term, e.Seq, p.Term, p.Seq, p.Offset)
		}
		delete(resumed, e.Topic)
		l := &s.logs[logOf(e.Topic)]
		l.rule, l.lastValid = eventlog.Rule{Term: p.Term, Seq: p.Seq}, p.Offset
		return nil
	})
}

// readAll reads up to ends, and then what the present owner has appended in the
// meantime, again and again until less than claimGap is unread. The present owner
// serves until the claim. From the claim on, commands wait until the rest is read, so
// the rest must be short.
func (s *shard) readAll(ctx context.Context, saved map[string]*kgo.Record, ends map[eventlog.TopicPartition]int64) error {
	err := s.read(ctx, saved, ends)
	for gap := int64(claimGap); err == nil && gap >= claimGap; {
		if ends, err = eventlog.EndOffsets(ctx, s.producer, eventlog.AggregateTopics[:]...); err == nil {
			gap, err = s.readOn(ctx, ends)
		}
	}
	return err
}

// readOn folds the records from the ends that are known up to these ends, and returns
// their number.
func (s *shard) readOn(ctx context.Context, ends map[eventlog.TopicPartition]int64) (records int64, err error) {
	now := time.Now()
	ranges := map[eventlog.TopicPartition]eventlog.Range{}
	for i := range s.logs {
		l := &s.logs[i]
		tp := eventlog.TopicPartition{Topic: l.topic, Partition: s.partition}
		if end := ends[tp]; end > l.next { // a broker that no longer leads the partition may return an older end
			records += end - l.next
			ranges[tp] = eventlog.Range{From: l.next, To: end}
			l.next = end
		}
	}
	return records, eventlog.Read(ctx, s.owner.Kafka, ranges, func(e *eventlog.Event) error { return s.fold(e, now) })
}

// fold applies one record of a log. A valid event moves its aggregate on, or marks it
// if the event cannot be read. An invalid record is skipped. Whatever a record holds
// is no error: an error means that the snapshot cannot be used.
func (s *shard) fold(e *eventlog.Event, now time.Time) error {
	l := &s.logs[logOf(e.Topic)]
	before := l.rule
	take, skipped := l.rule.Take(e)
	if skipped != "" {
		s.countInvalid(l, skipped)
	}
	if l.rule == before {
		return nil
	}
	l.lastValid = e.Offset
	s.replayed++
	s.sinceCut++
	if !take {
		return nil
	}
	return s.agg.replay(e, now)
}

// claim announces the next term of each log on shard-fence, and then appends
// SHARD_CLAIMED with that term to each log. A claim with the
// expected offset is valid. If the offset is another one, the records in between are
// read and folded, and the claim is valid if none of them is a valid claim.
func (s *shard) claim(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, claimLimit)
	defer cancel()
	if err := s.putFence(ctx); err != nil {
		return err
	}
	records := make([]*kgo.Record, logCount)
	ids := make([]string, logCount)
	for i := range s.logs {
		l := &s.logs[i]
		term := l.rule.Term + 1
		data, err := json.Marshal(claimData{Term: term, Owner: s.owner.Instance, Build: s.owner.Build, Epoch: epochOnWire(s.owner.epoch)})
		if err != nil {
			return err
		}
		// Each claim has an id of its own, because two owners may claim the same term,
		// and an earlier claim of this instance may still be appended.
		ids[i] = uuid.NewString()
		e := eventlog.Event{ID: ids[i], Source: s.owner.source, Type: eventlog.ShardClaimed,
			Time: domain.Time(time.Now()), Term: term, Data: data}
		records[i] = e.NewRecord(l.topic, s.partition)
	}
	results := make(chan kgo.ProduceResult, logCount)
	for _, r := range records {
		// The produce is not bound to ctx. If it were cancelled, the claim could still
		// be appended, and this instance would not know.
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
		l.next, l.lastValid = r.Offset+1, r.Offset
	}
	for i := range s.logs {
		s.fence.terms[i] = s.logs[i].rule.Term
	}
	s.term, s.claimedAt = s.logs[orders].rule.Term, records[orders].Offset
	s.owner.at(StepClaimed, s.partition)
	return nil
}

// readClaim folds the records from the known end of the log up to the offset that the
// claim with this id got. It returns errDeposed if the claim is not valid.
func (s *shard) readClaim(ctx context.Context, l *partitionLog, landed int64, id string) error {
	tp := eventlog.TopicPartition{Topic: l.topic, Partition: s.partition}
	mine := false // the last valid claim is this one
	now := time.Now()
	err := eventlog.Read(ctx, s.owner.Kafka, map[eventlog.TopicPartition]eventlog.Range{tp: {From: l.next, To: landed + 1}}, func(e *eventlog.Event) error {
		term := l.rule.Term
		if err := s.fold(e, now); err != nil {
			return err
		}
		if l.rule.Term != term {
			mine = e.ID == id
		} else if mine && e.ID != id && l.rule.Seq > 0 {
			return fmt.Errorf("%w: another program has written a valid event under this owner's claim", errBroken)
		}
		return nil
	})
	if err == nil && !mine {
		err = fmt.Errorf("claiming %s/%d: %w", l.topic, s.partition, errDeposed)
	}
	return err
}
