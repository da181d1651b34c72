package shard

import (
	"errors"
	"sync"
	"testing"
	"time"

	"tomato/domain"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

// ends returns the end offsets of the shard's four logs and of its fence log.
func (o *owned) ends() (logs map[eventlog.TopicPartition]int64, fence int64) {
	o.t.Helper()
	logs, err := eventlog.EndOffsets(o.t.Context(), o.producer, append(eventlog.AggregateTopics[:], eventlog.ShardFence)...)
	if err != nil {
		o.t.Fatal(err)
	}
	tp := eventlog.TopicPartition{Topic: eventlog.ShardFence}
	fence = logs[tp]
	delete(logs, tp)
	return logs, fence
}

// refused makes the shard refuse a command, or returns why it did not.
func (o *owned) refused() error {
	_, err := o.do(eventlog.Riders, "unknown", "", rider.Verify{})
	if domain.RefusedWith(err) == domain.NotFound {
		return nil
	}
	return errors.Join(errors.New("not refused"), err)
}

// Refusals and repeats append nothing to a log that is kept for ever, and concurrent
// ones share the records that they append to the fence log.
func TestARefusalLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		snapshotTopics(t, cfg)
		a := newLone(t, cfg).serve()
		a.must(eventlog.Riders, "x", "key", rider.Put{RiderID: "x", Name: subjectkeystest.Name("x", "X")})
		before, fence := a.ends()
		const callers, each = 50, 20
		var all sync.WaitGroup
		for range callers {
			all.Go(func() {
				for range each {
					if err := a.refused(); err != nil {
						t.Error(err)
						return
					}
					if res := a.must(eventlog.Riders, "x", "key", rider.Put{RiderID: "x", Name: subjectkeystest.Name("x", "X")}); !res.Repeated {
						t.Error("the repeat was decided again")
					}
				}
			})
		}
		all.Wait()
		after, checks := a.ends()
		for tp, end := range after {
			if end != before[tp] {
				t.Errorf("%s has %d records more", tp.Topic, end-before[tp])
			}
		}
		if n := checks - fence; n < 1 || n > callers*each {
			t.Errorf("%d checks for %d answers", n, 2*callers*each)
		}
	})
}

// An owner does not confirm behind a fence with a higher term, although nobody has
// claimed yet: the claims may be in the logs before the owner hears of them. A fence
// with the owner's own terms, of an instance that lost the claims, is harmless.
func TestAFenceStopsConfirming(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		snapshotTopics(t, cfg)
		owner := newLone(t, cfg)
		for log := range logCount {
			a := owner.serve()
			other := newLone(t, cfg)
			rival := other.newShard(0, other.producer)
			for i := range rival.logs {
				rival.logs[i].rule.Term = a.logs[i].rule.Term - 1
			}
			if err := rival.putFence(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := a.refused(); err != nil {
				t.Fatalf("after a fence with its own terms: %v", err)
			}
			rival.logs[log].rule.Term++ // in one log, as after a claim that was valid there alone
			if err := rival.putFence(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := a.refused(); !errors.Is(err, errNotDecided) {
				t.Fatalf("after a fence with a higher term in %s: %v", a.logs[log].topic, err)
			}
			a.endsWith(errDeposed)
		}
		b := owner.serve()
		if err := b.refused(); err != nil {
			t.Fatalf("the next owner: %v", err)
		}
	})
}

// What retention has removed may have been a fence. If nothing was there, which the
// offset of the check shows, the owner goes on.
func TestAFenceLogThatLostRecordsConfirmsNothing(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		snapshotTopics(t, cfg)
		a := newLone(t, cfg).serve()
		removeFence := func() {
			_, end := a.ends()
			eventlogtest.DeleteBefore(t, cfg, eventlog.ShardFence, 0, end)
		}
		removeFence()
		if err := a.refused(); err != nil {
			t.Fatalf("although nobody else has written: %v", err)
		}
		other := newLone(t, cfg)
		if err := other.newShard(0, other.producer).putFence(t.Context()); err != nil {
			t.Fatal(err)
		}
		removeFence()
		if err := a.refused(); !errors.Is(err, errNotDecided) {
			t.Fatalf("although a record that it has not read is gone: %v", err)
		}
		a.endsWith(errDeposed)
	})
}

// There was a defect: the owner had read another instance's claims, so its reader rule had
// their terms, and the fence that had announced them no longer looked like a higher one.
func TestAFenceIsComparedWithTheOwnersOwnTerms(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	snapshotTopics(t, cfg)
	a := newLone(t, cfg).serve()
	other := newLone(t, cfg)
	rival := other.newShard(0, other.producer)
	for i := range rival.logs {
		rival.logs[i].rule.Term = a.fence.terms[i]
	}
	if err := rival.putFence(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.post(func(time.Time) {
		for i := range a.logs {
			a.logs[i].rule.Term++ // as verify does with a claim that it reads
		}
	})
	if err := a.refused(); !errors.Is(err, errNotDecided) {
		t.Fatalf("behind a fence with a higher term: %v", err)
	}
	a.endsWith(errDeposed)
}

// After an owner was deposed, its checks in flight confirm nothing. They do not end the
// loop either, because appends in flight may still be acknowledged.
func TestChecksOfADeposedOwnerConfirmNothing(t *testing.T) {
	t.Parallel()
	s := newLoop(t)
	first, second, awaiting := newCall(Request{}), newCall(Request{}), newCall(Request{})
	s.fence.next = 5
	s.fence.ordinal = 2
	s.fence.inFlight = []*check{
		{ordinal: 1, at: time.Now(), waiters: []*waiter{{call: first, left: 1}}},
		{ordinal: 2, at: time.Now(), waiters: []*waiter{{call: second, left: 1}}},
	}
	s.logs[orders].awaiting = []*waiter{{call: awaiting, left: 1}}
	s.deposed = errDeposed
	s.putAck(ack{fenceLog, 1, 5, nil}) // the expected offsets
	s.putAck(ack{fenceLog, 2, 6, nil})
	s.takeAcks(t.Context())
	if s.failed != nil {
		t.Errorf("the loop ends: %v", s.failed)
	}
	for _, c := range []*call{first, second, awaiting} {
		select {
		case <-c.done:
			if !errors.Is(c.err, errNotDecided) {
				t.Errorf("answered %+v, %v", c.res, c.err)
			}
		default:
			t.Error("not answered")
		}
	}
}

// A fence log that does not acknowledge holds up the answers that need it, and no command
// that appends.
func TestAStuckFenceLogHoldsUpNoAppends(t *testing.T) {
	t.Parallel()
	s := newLoop(t)
	s.fence.inFlight = []*check{{ordinal: 1, at: time.Now().Add(-2 * stallLimit)}}
	if s.stalled(time.Now()) {
		t.Error("all commands are refused")
	}
	c := newCall(Request{Topic: eventlog.Riders, ID: "unknown", Actor: domain.SystemActor, Command: rider.Verify{}})
	s.handle(c)
	select {
	case <-c.done:
		if !errors.Is(c.err, ErrUnavailable) {
			t.Errorf("refused with %v", c.err)
		}
	default:
		t.Error("the refusal waits for a check that is not acknowledged")
	}
}
