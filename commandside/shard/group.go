package shard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tomato/eventlog"
)

// Run joins the group and serves what it is assigned until ctx ends; then it
// drains, leaves the group and returns. See HandOver for what goes before.
func (s *Shards) Run(ctx context.Context) error {
	defer s.closeProducer()
	var followers sync.WaitGroup
	defer followers.Wait()
	followers.Go(func() {
		if err := s.follow(ctx); err != nil {
			s.Log.Error("shard owners are not followed", "err", err)
		}
	})
	select { // pricing needs the menus before the first command
	case <-s.Menus.Ready():
	case <-ctx.Done():
		return nil
	}
	group, err := s.Kafka.NewClient(
		kgo.ConsumerGroup(Group), kgo.ConsumeTopics(eventlog.Orders), kgo.DisableAutoCommit(),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.HeartbeatInterval(200*time.Millisecond), kgo.SessionTimeout(cmp.Or(s.SessionTimeout, 6*time.Second)), kgo.RebalanceTimeout(10*time.Second),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, m map[string][]int32) { s.assign(m[eventlog.Orders]) }),
		kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, m map[string][]int32) { s.release(m[eventlog.Orders]) }),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, m map[string][]int32) { s.release(m[eventlog.Orders]) }),
	)
	if err != nil {
		return err
	}
	group.PauseFetchTopics(eventlog.Orders) // the group assigns; it fetches nothing
	s.mu.Lock()
	s.group = group
	s.mu.Unlock()
	<-ctx.Done()
	s.stopAll()
	group.Close() // leaves, unless HandOver did
	return nil
}

// HandOver lets the other instances have the shards while this one goes on
// serving, each until its next owner's claims are there. It returns when none is
// served here any more, when nobody is there to take them, or when ctx ends; then
// commands still find what is left, until Run's end. To be called before Run's
// end, and before this instance can no longer be reached.
func (s *Shards) HandOver(ctx context.Context) {
	s.mu.Lock()
	s.leaving = true
	group := s.group
	s.mu.Unlock()
	if group == nil || !s.others(ctx, group) {
		return
	}
	if err := group.LeaveGroupContext(ctx); err != nil { // the others find out when the session times out
		s.Log.Warn("the group of the shards was not left", "err", err)
	}
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		s.mu.Lock()
		left, changed := len(s.serving), s.changed
		s.mu.Unlock()
		if left == 0 {
			return
		}
		select {
		case <-changed:
		case <-tick.C:
			if !s.others(ctx, group) { // they stop, too
				return
			}
		case <-ctx.Done():
			s.Log.Warn("not all shards were taken over in time", "left", left)
			return
		}
	}
}

// others says whether the group has other members; where that cannot be known
// it may have.
func (s *Shards) others(ctx context.Context, group *kgo.Client) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	groups, err := kadm.NewClient(group).DescribeGroups(ctx, Group)
	if err == nil {
		err = groups.Error()
	}
	if err != nil {
		s.Log.Warn("the group of the shards is not known", "err", err)
		return true
	}
	me, _ := group.GroupMetadata()
	return slices.ContainsFunc(groups[Group].Members, func(m kadm.DescribedGroupMember) bool { return m.MemberID != me })
}

func (s *Shards) assign(partitions []int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range partitions {
		before := s.assigned[p]
		switch {
		case s.leaving || s.stopped:
			continue
		case before != nil && !before.stopping: // it was taken away and nobody has claimed it
			before.leaving = false
			if sh := s.serving[p]; sh != nil {
				sh.passing.Store(false)
			}
			continue
		}
		ctx, cancel := context.WithCancel(context.Background())
		a := &assignment{cancel: cancel, done: make(chan struct{})}
		s.assigned[p] = a
		go func() {
			defer close(a.done)
			if before != nil {
				<-before.done
			}
			s.run(ctx, p, a)
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.assigned[p] == a {
				delete(s.assigned, p)
			}
		}()
	}
}

// release lets shards go that were revoked or lost. What is served goes on until
// it is known to be served elsewhere: stopped now, its commands would wait for
// the rest of the rebalance and for all that the next owner has to read. It need
// not be stopped for the log's sake, which decides by the next claim.
func (s *Shards) release(partitions []int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range partitions {
		a, sh := s.assigned[p], s.serving[p]
		if a == nil || a.leaving {
			continue
		}
		a.leaving = true
		if sh == nil {
			a.stop()
			continue
		}
		sh.passing.Store(true)
		go s.serveUntilClaimed(p, a, sh)
	}
}

// serveUntilClaimed stops a shard that is leaving when another has announced
// itself. Where there are commands an append behind the other's claim tells
// sooner.
func (s *Shards) serveUntilClaimed(p int32, a *assignment, sh *shard) {
	for {
		owner, known, learned := s.owners.of(p)
		s.mu.Lock()
		over := !a.leaving
		if !over && known && owner.Owner != s.Instance && owner.Term > sh.term {
			a.stop()
			over = true
		}
		s.mu.Unlock()
		if over {
			return
		}
		select {
		case <-learned:
		case <-sh.closed:
			return
		}
	}
}

// ends says whether a shard that stopped serving is not to be opened again.
func (s *Shards) ends(a *assignment) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.leaving {
		a.stop()
	}
	return a.stopping
}

// stopAll stops all shards and waits until they have.
func (s *Shards) stopAll() {
	s.mu.Lock()
	s.stopped = true
	var all []*assignment
	for _, a := range s.assigned {
		a.stop()
		all = append(all, a)
	}
	s.mu.Unlock()
	for _, a := range all {
		<-a.done
	}
}

// run opens and serves one shard, again and again, while it is assigned here.
func (s *Shards) run(ctx context.Context, p int32, a *assignment) {
	trust := true
	for try := 0; ctx.Err() == nil; {
		start := time.Now()
		sh, err := s.open(ctx, p, trust)
		if err != nil {
			if s.ends(a) {
				return
			}
			s.metrics.opened.WithLabelValues("failed").Inc()
			trust = trust && !errors.Is(err, errForeignSnapshot)
			s.Log.Error("shard not opened", "partition", p, "err", err)
			s.notOpened(a, err)
			try++
			if lost := new(eventlog.LostBeginning); errors.As(err, &lost) {
				s.pause(ctx, try, 30*time.Second) // each try loads its snapshots, and somebody has to restore the log
			} else {
				s.pause(ctx, try, pauseMost)
			}
			s.confirmAssigned(ctx)
			continue
		}
		s.metrics.opened.WithLabelValues("serving").Inc()
		s.metrics.openSeconds.Observe(time.Since(start).Seconds())
		s.Log.Info("shard serving", "partition", p, "term", sh.term, "took", time.Since(start).Round(time.Millisecond))
		sh.openedAt, sh.took = time.Now().UTC(), time.Since(start)
		s.notOpened(a, nil)
		s.setServing(p, sh)
		s.at(StepServing, p)
		s.announce(sh)
		s.at(StepAnnounced, p)
		err = sh.serve(ctx)
		s.setServing(p, nil)
		trust = !errors.Is(err, errForeignSnapshot)
		switch {
		case errors.Is(err, errHandedOff):
			s.metrics.stops.WithLabelValues("handed_over").Inc()
			return
		case errors.Is(err, errDeposed):
			s.metrics.stops.WithLabelValues("deposed").Inc()
		default:
			s.metrics.stops.WithLabelValues("broken").Inc()
		}
		if s.ends(a) {
			return
		}
		s.Log.Warn("shard stopped", "partition", p, "term", sh.term, "err", err)
		if time.Since(start) > time.Minute {
			try = 0
		}
		try++
		s.pause(ctx, try, pauseMost)
		s.confirmAssigned(ctx)
	}
}

func (s *Shards) notOpened(a *assignment, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a.err = err
}

// OpenError says why shards that are assigned to this instance could not be
// opened; nil: there are none.
func (s *Shards) OpenError() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, p := range slices.Sorted(maps.Keys(s.assigned)) {
		if err := s.assigned[p].err; err != nil {
			errs = append(errs, fmt.Errorf("shard %d: %w", p, err))
		}
	}
	return errors.Join(errs...)
}

const pauseMost = 5 * time.Second

// pause waits before the next claim, longer each time, with jitter: two owners
// must not depose each other in turns. It is most at most.
func (s *Shards) pause(ctx context.Context, try int, most time.Duration) {
	limit := min(100*time.Millisecond<<min(try, 10), most)
	select {
	case <-ctx.Done():
	case <-time.After(limit/2 + rand.N(limit/2)):
	}
}

// confirmAssigned returns when a heartbeat of the group was answered without
// error: this member's generation is the present one, so what the callbacks
// have left assigned is its whole current assignment.
func (s *Shards) confirmAssigned(ctx context.Context) {
	for try := 1; ctx.Err() == nil; try++ {
		s.mu.Lock()
		group := s.group
		s.mu.Unlock()
		if group != nil {
			member, generation := group.GroupMetadata()
			req := kmsg.NewPtrHeartbeatRequest()
			req.Group, req.MemberID, req.Generation = Group, member, generation
			hctx, cancel := context.WithTimeout(ctx, 2*time.Second)
			resp, err := req.RequestWith(hctx, group)
			cancel()
			if err == nil && resp.ErrorCode == 0 {
				return
			}
		}
		s.pause(ctx, min(try, 3), pauseMost)
	}
}
