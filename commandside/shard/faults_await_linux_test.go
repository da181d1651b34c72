package shard

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"tomato/domain"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

// awaitServing waits until each instance gets an answer from every shard.
func (w *world) awaitServing() {
	w.t.Helper()
	w.probes++
	start := time.Now()
	var wg sync.WaitGroup
	for i := range w.instances {
		for p := range int32(faultPartitions) {
			wg.Go(func() {
				id := ""
				for n := 0; id == "" || eventlog.PartitionFor(id, faultPartitions) != p; n++ {
					id = fmt.Sprintf("probe-%d-%d", w.probes, n)
				}
				r := Request{Topic: eventlog.Riders, ID: id, Actor: domain.SystemActor, Command: rider.Put{RiderID: id, Name: subjectkeystest.Name(id, fmt.Sprint("asked at ", i))}}
				for {
					op := w.d.do(i, id, r)
					if op == nil || op.outcome.known {
						return
					}
					if time.Since(start) > w.again {
						w.t.Errorf("shard %d does not serve %s after the fault, through instance %d: %v", p, w.again, i, op.failure)
						w.tell.Do(w.whatInstancesDo)
						return
					}
					hold(50 * time.Millisecond)
				}
			})
		}
	}
	wg.Wait()
	w.servedAfter = append(w.servedAfter, time.Since(start).Round(time.Millisecond))
}

// awaitStable waits until the group has given every instance its share of the shards and
// has moved none for a while. On a busy machine the instances join one after the other,
// and shards still move after all of them are served.
func (w *world) awaitStable() {
	w.t.Helper()
	adm := kadm.NewClient(eventlogtest.Client(w.t, w.cfg))
	for stable, end := 0, time.Now().Add(time.Minute); stable < 10; hold(100 * time.Millisecond) {
		groups, err := adm.DescribeGroups(w.t.Context(), Group)
		group := groups[Group]
		assigned := 0
		for _, m := range group.Members {
			if c, ok := m.Assigned.AsConsumer(); ok && len(c.Topics) > 0 {
				assigned += len(c.Topics[0].Partitions)
			}
		}
		if stable++; err != nil || group.State != "Stable" || len(group.Members) != len(w.instances) || assigned != faultPartitions {
			stable = 0
		}
		if time.Now().After(end) {
			w.tell.Do(w.whatInstancesDo)
			w.t.Fatalf("the group is not stable within a minute: %s, %d members with %d shards, %v", group.State, len(group.Members), assigned, err)
		}
	}
	w.awaitServing()
}

func (w *world) whatInstancesDo() {
	for _, s := range w.instances {
		w.t.Logf("what instance %d says:\n%s\nand does:\n%s", s.n, s.child().tail(), s.child().doing())
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	groups, err := kadm.NewClient(eventlogtest.Client(w.t, w.cfg)).DescribeGroups(ctx, Group)
	w.t.Logf("the group: %+v, %v", groups, err)
}
