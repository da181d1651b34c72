package eventlog

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// This file mends one thing of the embedded broker. When a group rebalances, kfake waits
// for all members, up to the rebalance timeout, and begins that time anew with each member
// that joins. A member that was killed at a certain moment has no session timeout any more,
// and the others give up waiting and join again before the time is over. Then nobody in the
// group reads anything, for as long as the others go on.

const (
	groupsLook = 2 * time.Second
	// groupStuck is longer than any rebalance takes whose members all answer: the rebalance
	// timeout of the consumers is 15 s.
	groupStuck = 20 * time.Second
)

// mendGroups takes all members out of groups of the embedded broker at addr that do not
// finish their rebalance, until stop is called.
func mendGroups(addr string) (stop func(), err error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(addr))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer client.Close()
		(&groupKeeper{client: client, stuck: groupStuck, since: map[string]time.Time{}}).run(ctx)
	}()
	return func() { cancel(); <-ended }, nil
}

// groupKeeper takes all members out of groups that do not finish their rebalance. Those
// that live join again by themselves.
type groupKeeper struct {
	client *kgo.Client
	stuck  time.Duration        // after which a rebalance that goes on is ended
	since  map[string]time.Time // since when a group was seen to rebalance, at every look
}

// run looks at the groups until ctx ends.
func (k *groupKeeper) run(ctx context.Context) {
	tick := time.NewTicker(groupsLook)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			lctx, cancel := context.WithTimeout(ctx, groupsLook)
			_ = k.look(lctx, now) // the next look tries again
			cancel()
		case <-ctx.Done():
			return
		}
	}
}

func (k *groupKeeper) look(ctx context.Context, now time.Time) error {
	groups, err := kadm.NewClient(k.client).ListGroups(ctx, "PreparingRebalance", "CompletingRebalance")
	if err != nil {
		return err
	}
	names := groups.Groups()
	for name := range k.since {
		if !slices.Contains(names, name) {
			delete(k.since, name)
		}
	}
	for _, name := range names {
		since, seen := k.since[name]
		if !seen {
			k.since[name] = now
			continue
		}
		if now.Sub(since) < k.stuck {
			continue
		}
		if err := k.empty(ctx, name); err != nil {
			return err
		}
		delete(k.since, name)
	}
	return nil
}

// empty takes all members out of a group.
func (k *groupKeeper) empty(ctx context.Context, name string) error {
	group, err := kadm.NewClient(k.client).DescribeGroups(ctx, name)
	if err != nil {
		return err
	}
	leave := kmsg.NewPtrLeaveGroupRequest()
	leave.Group = name
	for _, m := range group[name].Members {
		member := kmsg.NewLeaveGroupRequestMember()
		member.MemberID = m.MemberID
		leave.Members = append(leave.Members, member)
	}
	if _, err := leave.RequestWith(ctx, k.client); err != nil {
		return fmt.Errorf("emptying group %s: %w", name, err)
	}
	return nil
}
