package shard_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"tomato/commandside/shard"
	"tomato/domain"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

// TestAShardIsServedUntilTheNextOwnerClaims checks that a revoked shard goes on serving.
// There was a defect: the shard stopped when the group revoked it, and its commands
// waited for the rebalance and for everything that the next owner had to read. Here the
// next owner reads until the test lets it go on.
func TestAShardIsServedUntilTheNextOwnerClaims(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		ensureTopics(t, cfg)
		a := startInstance(t, cfg)
		put := func(i *instance, name string) {
			t.Helper()
			for n := range 12 { // riders of every shard
				id := fmt.Sprint("x", n)
				if res := i.must(t, domain.SystemActor, eventlog.Riders, id, rider.Put{RiderID: id, Name: subjectkeystest.Name(id, name)}); res.Event == nil {
					t.Fatalf("%s of %s appended nothing", name, id)
				}
			}
		}
		put(a, "first")

		// A second instance joins and gets some of the shards.
		read, goOn := make(chan int32, 2*partitions), make(chan struct{})
		b := startProbed(t, cfg, func(step shard.Step, p int32) {
			if step == shard.StepLogsRead {
				read <- p
				<-goOn
			}
		})
		open := true
		release := func() {
			if open {
				open = false
				close(goOn)
			}
		}
		t.Cleanup(release) // runs before the instance is stopped
		<-read
		put(a, "while the other reads")
		if serving, assigned := a.Serving(); serving != partitions || assigned == partitions {
			t.Errorf("%d are served, %d assigned", serving, assigned)
		}

		// The first instance hands over while the second one still reads.
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			a.HandOver(ctx)
		}()
		for range partitions - 1 {
			<-read
		}
		put(a, "while the other reads all")
		release()
		<-gone
		eventually(t, func() bool { n, _ := b.Serving(); return n == partitions })
		if serving, assigned := a.Serving(); serving != 0 || assigned != 0 {
			t.Errorf("after it was handed over %d are served, %d assigned", serving, assigned)
		}
		put(a, "passed on")
		put(b, "there")
		for n := range 12 {
			id := fmt.Sprint("x", n)
			if res := b.must(t, domain.SystemActor, eventlog.Riders, id, rider.Verify{}); res.Rider.Version != 6 {
				t.Errorf("%s has version %d, want 6", id, res.Rider.Version)
			}
		}

		// The last instance has no other to hand over to, so HandOver returns at once.
		b.HandOver(t.Context())
		put(b, "alone")
		put(a, "from afar")
	})
}
