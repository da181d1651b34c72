package shard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain"
	"tomato/eventlog"
)

// This file owns the shard's partition of the topic shard-fence, by which an owner
// proves that an answer which appends nothing was current, without writing to a log
// that is kept for ever. docs/write-side.md argues for it; the model in
// commandside/shard/model checks it.
//
// An instance that is about to claim the shard first appends SHARD_FENCE with the
// terms that it will claim, and claims after the acknowledgement. An owner that must
// confirm an answer appends SHARD_CHECK. If no SHARD_FENCE with a higher term is
// before it, nobody had claimed above this owner's terms when the question came.

// The types of the records on shard-fence.
const (
	typeFence = "SHARD_FENCE"
	typeCheck = "SHARD_CHECK"
)

// fenceData is the data of SHARD_FENCE: the terms that its writer is about to claim,
// by topic. A SHARD_CHECK has no data.
type fenceData struct {
	Owner string           `json:"owner"`
	Terms map[string]int64 `json:"terms"`
}

// fence is what a shard's owner knows of its fence log.
type fence struct {
	terms    [logCount]int64 // of this owner's claims, by log
	next     int64           // the offset that the oldest check in flight is expected to get
	ordinal  int64           // of the last check
	inFlight []*check        // checks that are not acknowledged, oldest first
}

// check is a SHARD_CHECK in flight.
type check struct {
	ordinal int64
	at      time.Time
	waiters []*waiter // of the answers that it confirms
}

// fenceLog is the number of the fence log in an ack, beside those of the four logs.
const fenceLog = logCount

// errFenced means that another instance was about to claim the shard, or may have been.
var errFenced = fmt.Errorf("%w: another instance has announced a claim", errDeposed)

// putFence appends SHARD_FENCE with the next term of each log, and waits for its
// acknowledgement.
func (s *shard) putFence(ctx context.Context) error {
	data := fenceData{Owner: s.owner.Instance, Terms: map[string]int64{}}
	for i := range s.logs {
		data.Terms[s.logs[i].topic] = s.logs[i].rule.Term + 1
	}
	b, err := json.Marshal(data)
	if err != nil {
		return err
	}
	e := eventlog.Event{ID: uuid.NewString(), Source: s.owner.source, Type: typeFence, Time: domain.Time(time.Now()), Data: b}
	result := make(chan kgo.ProduceResult, 1)
	// The produce is not bound to ctx, for the same reason as that of a claim.
	s.producer.Produce(context.WithoutCancel(ctx), e.NewRecord(eventlog.ShardFence, s.partition), func(r *kgo.Record, err error) { result <- kgo.ProduceResult{Record: r, Err: err} })
	s.owner.at(StepFenceSent, s.partition)
	select {
	case r := <-result:
		if r.Err != nil {
			s.owner.replaceProducer(s.producer)
			return fmt.Errorf("fencing %s/%d: %w", eventlog.ShardFence, s.partition, r.Err)
		}
		s.fence.next = r.Record.Offset + 1
		s.owner.at(StepFenceLanded, s.partition)
		return nil
	case <-ctx.Done():
		return fmt.Errorf("fencing shard %d: %w", s.partition, ctx.Err())
	}
}

// appendCheck appends one SHARD_CHECK for all answers that await a confirmation. An
// answer also waits for the appends of its log that are in flight, because it rests
// on the state after them.
func (s *shard) appendCheck(now time.Time) {
	s.checkAt = time.Time{}
	s.lastCheck = now
	s.fence.ordinal++
	c := &check{ordinal: s.fence.ordinal, at: now}
	for i := range s.logs {
		l := &s.logs[i]
		for _, w := range l.awaiting {
			l.await(l.ordinal, w)
		}
		c.waiters = append(c.waiters, l.awaiting...)
		l.awaiting = nil
	}
	s.fence.inFlight = append(s.fence.inFlight, c)
	e := eventlog.Event{ID: fmt.Sprintf("check-%d-%d-%d", s.partition, s.term, c.ordinal), Source: s.owner.source, Type: typeCheck, Time: domain.Time(now)}
	s.owner.outbox.put(outgoing{s.producer, e.NewRecord(eventlog.ShardFence, s.partition), func(r *kgo.Record, err error) {
		s.owner.at(StepCheckLanded, s.partition)
		s.putAck(ack{fenceLog, c.ordinal, r.Offset, err})
	}})
	s.owner.metrics.checks.Inc()
	s.checkInterval = min(2*s.checkInterval, checkIntervalMax)
}

// takeCheckAck processes the acknowledgement of a check.
func (s *shard) takeCheckAck(ctx context.Context, a ack) {
	f := &s.fence
	switch {
	case s.deposed != nil:
		// Another instance has claimed the shard, or is about to. The appends in flight
		// may still be valid, but a check confirms nothing any more.
		s.answerUnconfirmed()
		return
	case a.err != nil:
		s.log.Error("append failed; the shard is claimed anew", "topic", eventlog.ShardFence, "partition", s.partition, "err", a.err)
		s.owner.replaceProducer(s.producer)
		s.fail(fmt.Errorf("%w: %w", errBroken, a.err))
		return
	case len(f.inFlight) == 0 || f.inFlight[0].ordinal != a.ordinal:
		s.fail(fmt.Errorf("%w: check %d is acknowledged out of order", errBroken, a.ordinal))
		return
	case a.offset < f.next: // only the expected offset proves something
		s.fail(fmt.Errorf("%w: it landed at %s@%d, where the log was known up to %d: records are lost", errBroken, eventlog.ShardFence, a.offset, f.next))
		return
	case a.offset > f.next:
		if err := s.readFence(ctx, a.offset); errors.Is(err, errFenced) {
			s.deposed = err
			s.answerUnconfirmed()
			return
		} else if err != nil {
			s.fail(err)
			return
		}
	}
	f.next = a.offset + 1
	c := f.inFlight[0]
	f.inFlight = f.inFlight[1:]
	for _, w := range c.waiters {
		s.acknowledgeWaiter(w)
	}
	s.owner.at(StepAnswered, s.partition)
}

// readFence reads the records before the offset that are not known yet. It returns
// errFenced if one of them is a fence with a higher term than this owner's, or if
// retention has removed one of them.
func (s *shard) readFence(ctx context.Context, before int64) error {
	s.owner.metrics.verified.Inc()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), verifyLimit)
	defer cancel()
	tp := eventlog.TopicPartition{Topic: eventlog.ShardFence, Partition: s.partition}
	next := s.fence.next
	err := eventlog.Read(ctx, s.owner.Kafka, map[eventlog.TopicPartition]eventlog.Range{tp: {From: next, To: before}}, func(e *eventlog.Event) error {
		if e.Offset != next {
			return fmt.Errorf("%w: %s/%d@%d is gone", errFenced, eventlog.ShardFence, s.partition, next)
		}
		next++
		if e.Type != typeFence {
			return nil
		}
		var f fenceData
		if err := json.Unmarshal(e.Data, &f); err != nil {
			// Only an instance of another build, or somebody else, writes this. To
			// claim anew is safe, whatever it means.
			return fmt.Errorf("%w: the fence at %s/%d@%d cannot be read", errFenced, eventlog.ShardFence, s.partition, e.Offset)
		}
		for i := range s.logs {
			// Not l.rule.Term: the rule may have taken another instance's claim already.
			if f.Terms[s.logs[i].topic] > s.fence.terms[i] {
				return errFenced
			}
		}
		return nil
	})
	if errors.Is(err, kerr.OffsetOutOfRange) {
		return fmt.Errorf("%w: %w", errFenced, err)
	}
	if err == nil && next != before {
		return fmt.Errorf("%w: %s/%d@%d is gone", errFenced, eventlog.ShardFence, s.partition, next)
	}
	return err
}

// checkStalled reports whether a check has been in flight for longer than stallLimit.
func (f *fence) checkStalled(now time.Time) bool {
	return len(f.inFlight) > 0 && now.Sub(f.inFlight[0].at) > stallLimit
}
