package shard

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

// Two instances that have read the same logs claim the same terms at the same time. One
// of the two claims in each log is invalid, so at most one instance opens the shard.
// There was a defect: the second instance took the valid claim of the same term for its
// own. Both served under one term, an event of the second was taken for one of the
// first, and the second acknowledged an event that is not in the log.
func TestOfTwoThatClaimTheSameTermOneOpensAtMost(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: 1})
		a, b := newLone(t, cfg), newLone(t, cfg)
		opened := 0
		for range 12 {
			var both sync.WaitGroup
			both.Add(2)
			read := make(chan struct{}, 2)
			meet := func(step Step, _ int32) {
				if step == StepLogsRead {
					read <- struct{}{}
					both.Done()
					both.Wait()
				}
			}
			a.Probe, b.Probe = meet, meet
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			shards, errs := make([]*shard, 2), make([]error, 2)
			var opening sync.WaitGroup
			opening.Go(func() { shards[0], errs[0] = a.open(ctx, 0, true) })
			<-read // from now on the other one may fence the snapshots, which this one has read
			opening.Go(func() { shards[1], errs[1] = b.open(ctx, 0, true) })
			opening.Wait()
			open := 0
			for i, sh := range shards {
				if errs[i] != nil {
					if !errors.Is(errs[i], errDeposed) {
						t.Fatal(errs[i])
					}
					continue
				}
				if open++; open == 2 {
					t.Fatal("both opened")
				}
				sctx, stop := context.WithCancel(t.Context())
				o := &owned{shard: sh, t: t, stop: stop, ended: make(chan error, 1)}
				go func() { o.ended <- sh.serve(sctx) }()
				o.must(eventlog.Riders, "x", "", rider.Put{RiderID: "x", Name: subjectkeystest.Name("x", time.Now().String())})
				o.kill() // it cannot write a last snapshot, because the other one has fenced it
			}
			opened += open
		}
		if opened == 0 {
			t.Error("neither opened the shard, in any of 12 times")
		}
		t.Logf("%d of 12 times one of the two opened", opened)
		rule := eventlog.Rule{}
		versions := int64(0)
		ends, err := eventlog.EndOffsets(t.Context(), a.producer, eventlog.Riders)
		if err != nil {
			t.Fatal(err)
		}
		tp := eventlog.TopicPartition{Topic: eventlog.Riders}
		if err := eventlog.Read(t.Context(), cfg, map[eventlog.TopicPartition]eventlog.Range{tp: {To: ends[tp]}}, func(e *eventlog.Event) error {
			if rule.Accepts(e) && e.Subject == "x" {
				versions++
				if e.Version != versions {
					t.Errorf("version %d where %d must follow", e.Version, versions)
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if versions != int64(opened) {
			t.Errorf("%d events are valid, %d were acknowledged", versions, opened)
		}
	})
}
