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

// This file owns the membership in the consumer group: it opens, serves and stops the
// shards that the group assigns and revokes.

// Run joins the group and serves the shards that it is assigned, until ctx ends. Then
// it stops the shards after their appends in flight are acknowledged, leaves the group
// and returns. Call HandOver before ctx ends, so that other instances take the shards
// over first.
func (s *Shards) Run(ctx context.Context) error {
	defer s.closeProducer()
	var followers sync.WaitGroup
	defer followers.Wait()
	followers.Go(func() {
		if err := s.follow(ctx); err != nil {
			s.Log.Error("the topic of shard owners cannot be read", "err", err)
		}
	})
	select { // the menus must be read before the first order is priced
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
	group.PauseFetchTopics(eventlog.Orders) // the client is for the assignment only
	s.mu.Lock()
	s.group = group
	s.mu.Unlock()
	<-ctx.Done()
	s.stopAll()
	group.Close() // also leaves the group, unless HandOver has done so
	return nil
}

// HandOver leaves the group, so that other instances take the shards over. This
// instance serves each shard until its next owner has claimed it. HandOver returns when
// no shard is served here any more, when the group has no other member, or when ctx
// ends. Shards that are left then are served until Run ends. Call it before the context
// of Run ends, and while this instance can still be reached by the others.
func (s *Shards) HandOver(ctx context.Context) {
	s.mu.Lock()
	s.leaving = true
	group := s.group
	s.mu.Unlock()
	if group == nil || !s.hasOtherMembers(ctx, group) {
		return
	}
	if err := group.LeaveGroupContext(ctx); err != nil { // the group notices when the session times out
		s.Log.Warn("the consumer group of the shards could not be left", "err", err)
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
			if !s.hasOtherMembers(ctx, group) { // the other instances stop, too
				return
			}
		case <-ctx.Done():
			s.Log.Warn("not all shards were taken over in time", "left", left)
			return
		}
	}
}

// HasOthers reports whether other instances are there to take the shards over. It returns
// true if that cannot be found out.
func (s *Shards) HasOthers(ctx context.Context) bool {
	s.mu.Lock()
	group := s.group
	s.mu.Unlock()
	return group != nil && s.hasOtherMembers(ctx, group)
}

// hasOtherMembers reports whether the group has other members. It returns true if that
// cannot be found out.
func (s *Shards) hasOtherMembers(ctx context.Context, group *kgo.Client) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	groups, err := kadm.NewClient(group).DescribeGroups(ctx, Group)
	if err == nil {
		err = groups.Error()
	}
	if err != nil {
		s.Log.Warn("the members of the consumer group of the shards cannot be listed", "err", err)
		return true
	}
	me, _ := group.GroupMetadata()
	return slices.ContainsFunc(groups[Group].Members, func(m kadm.DescribedGroupMember) bool { return m.MemberID != me })
}

// assign starts to serve shards that the group has assigned to this instance.
func (s *Shards) assign(partitions []int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range partitions {
		before := s.assigned[p]
		switch {
		case s.leaving || s.stopped:
			continue
		case before != nil && !before.stopping: // it was revoked, and is still served because no other instance has claimed it
			before.leaving = false
			if sh := s.serving[p]; sh != nil {
				sh.revoked.Store(false)
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

// release gives up shards that the group has revoked. A shard that is served goes on
// until another instance is known to serve it. If it were stopped now, its commands
// would wait for the rest of the rebalance and for everything that the next owner has
// to read. To go on is safe, because the next owner's claim makes all later appends of
// this instance invalid.
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
		sh.revoked.Store(true)
		go s.serveUntilClaimed(p, a, sh)
	}
}

// serveUntilClaimed stops a revoked shard when another instance has announced itself as
// its owner. If the shard appends, it notices the other's claim sooner, by the offset
// of its append.
func (s *Shards) serveUntilClaimed(p int32, a *assignment, sh *shard) {
	for {
		owner, known, learned := s.owners.owner(p)
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

// mustNotReopen reports whether a shard that is not served any more is not to be opened
// again, because it was revoked or this instance stops.
func (s *Shards) mustNotReopen(a *assignment) bool {
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

// run opens and serves one shard, again and again, as long as it is assigned here.
func (s *Shards) run(ctx context.Context, p int32, a *assignment) {
	useSnapshot := true
	for try := 0; ctx.Err() == nil; {
		start := time.Now()
		sh, err := s.open(ctx, p, useSnapshot)
		if err != nil {
			if s.mustNotReopen(a) {
				return
			}
			s.metrics.opened.WithLabelValues("failed").Inc()
			useSnapshot = useSnapshot && !errors.Is(err, errForeignSnapshot)
			s.Log.Error("shard not opened", "partition", p, "err", err)
			s.setOpenError(a, err)
			try++
			if lost := new(eventlog.LostBeginning); errors.As(err, &lost) {
				s.pause(ctx, try, 30*time.Second) // each try loads the snapshot in vain, until an operator restores the log
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
		s.setOpenError(a, nil)
		s.setServing(p, sh)
		s.at(StepServing, p)
		s.announce(sh)
		s.at(StepAnnounced, p)
		err = sh.serve(ctx)
		s.setServing(p, nil)
		useSnapshot = !errors.Is(err, errForeignSnapshot)
		switch {
		case errors.Is(err, errHandedOff):
			s.metrics.stops.WithLabelValues("handed_over").Inc()
			return
		case errors.Is(err, errDeposed):
			s.metrics.stops.WithLabelValues("deposed").Inc()
		default:
			s.metrics.stops.WithLabelValues("broken").Inc()
		}
		if s.mustNotReopen(a) {
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

// setOpenError notes why a shard could not be opened; nil after it was.
func (s *Shards) setOpenError(a *assignment, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a.err = err
}

// OpenError returns why shards that are assigned to this instance could not be opened,
// or nil if there are no such shards.
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

// pauseMost is the longest time between two tries to open a shard.
const pauseMost = 5 * time.Second

// pause waits before the next try to open a shard, at most for the time most. It waits
// longer after each try, with jitter, so that two owners do not depose each other in
// turns.
func (s *Shards) pause(ctx context.Context, try int, most time.Duration) {
	limit := min(100*time.Millisecond<<min(try, 10), most)
	select {
	case <-ctx.Done():
	case <-time.After(limit/2 + rand.N(limit/2)):
	}
}

// confirmAssigned waits until a heartbeat to the group is answered without an error.
// That answer means that this member's generation is the present one, so the shards
// that the callbacks have assigned and not revoked are its whole present assignment.
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
