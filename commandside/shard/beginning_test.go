package shard

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

// openError opens shard 0 and returns the error, which it requires.
func (l *lone) openError() error {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), time.Minute)
	defer cancel()
	sh, err := l.open(ctx, 0, true)
	if err == nil {
		l.t.Fatalf("opened at term %d", sh.term)
	}
	return err
}

// The first records of a log are gone. If a snapshot covers all of them, the shard is
// opened with the whole state. If not, the shard is not opened and nothing is appended.
func TestAShardIsNotOpenedFromHalfALog(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		snapshotTopics(t, cfg)
		a := newLone(t, cfg).serve()
		a.town(3)
		a.snapshotNow()
		covered := a.statusNow().Offsets[eventlog.Orders]
		a.life(uuid.NewString(), 5)
		a.kill()
		want := a.agg.live()

		eventlogtest.DeleteBefore(t, cfg, eventlog.Orders, 0, covered-1) // the record at the checkpoint is kept
		b := newLone(t, cfg).serve()
		if got := b.agg.live(); len(got) != len(want) {
			t.Errorf("%d aggregates and keys, want %d", len(got), len(want))
		}
		end := b.statusNow().Offsets[eventlog.Orders]
		b.kill()

		var lost *eventlog.LostBeginning
		c := newLone(t, cfg)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := c.open(ctx, 0, false); !errors.As(err, &lost) || lost.Topic != eventlog.Orders || lost.Start != covered-1 || lost.Need != 0 {
			t.Errorf("without the snapshot: %v", err)
		}
		eventlogtest.DeleteBefore(t, cfg, eventlog.Orders, 0, end) // deletes also records that the snapshot does not cover
		if err := newLone(t, cfg).openError(); !errors.As(err, &lost) || lost.Start != end || lost.Need != covered-1 {
			t.Errorf("with a snapshot of less than what is gone: %v", err)
		}
		ends, err := eventlog.EndOffsets(t.Context(), eventlogtest.Client(t, cfg), eventlog.Orders)
		if err != nil || ends[eventlog.TopicPartition{Topic: eventlog.Orders}] != end {
			t.Errorf("the log ends at %v, want %d: %v", ends, end, err)
		}
	})
}

// The log of one shard has lost its first records. The other shards serve, and the
// status of this one has the reason for which it does not.
func TestOtherShardsServeBesideOneWhoseLogIsNotWhole(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	const partitions = 3
	eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: partitions})
	w := eventlogtest.NewWriter(t, cfg, partitions)
	w.Claim(eventlog.Riders)
	w.Claim(eventlog.Riders)
	eventlogtest.DeleteBefore(t, cfg, eventlog.Riders, 1, 1)

	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError + 1}))
	menus := NewMenus()
	s, err := NewShards(Config{Kafka: cfg, Partitions: partitions, Menus: menus, ClusterKeys: []string{testClusterKey}, PaymentGrace: time.Hour, ArchiveAfter: 720 * time.Hour,
		InboxPassed: func(context.Context, string) (bool, error) { return true, nil }, Registry: prometheus.NewRegistry(), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- menus.Run(ctx, cfg, log) }()
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, <-ended); err != nil {
			t.Error(err)
		}
	})
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(time.Minute); ; {
		st := s.Status(t.Context())
		if st[0].State == "serving" && st[2].State == "serving" && strings.Contains(st[1].Error, "riders/1 begins at offset 1") {
			break
		}
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("shards: %+v", st)
		}
	}
	if unserved := s.Unserved(); len(unserved) > 0 {
		t.Errorf("%v would keep this instance from being ready for ever", unserved)
	}
	if err := s.OpenError(); !errors.As(err, new(*eventlog.LostBeginning)) || !strings.Contains(err.Error(), "shard 1") {
		t.Errorf("the reason: %v", err)
	}
	id := "rider"
	for eventlog.PartitionFor(id, partitions) != 2 {
		id += "x"
	}
	if _, err := s.Execute(t.Context(), Request{Topic: eventlog.Riders, ID: id, Command: rider.Put{RiderID: id, Name: subjectkeystest.Name(id, "R")}}); err != nil {
		t.Error(err)
	}
}

// Without the first records of the topic restaurants, Menus return an error instead of
// half a table.
func TestMenusAreNotReadFromHalfALog(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: 2})
		w := eventlogtest.NewWriter(t, cfg, 2)
		w.Claim(eventlog.Restaurants)
		w.Claim(eventlog.Restaurants)
		client := eventlogtest.Client(t, cfg)
		if err := NewMenus().Check(t.Context(), client); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for _, before := range []int64{1, 2} { // some of the first records, and all
			eventlogtest.DeleteBefore(t, cfg, eventlog.Restaurants, 1, before)
			for what, err := range map[string]error{"check": NewMenus().Check(t.Context(), client),
				"run": NewMenus().Run(ctx, cfg, slog.New(slog.DiscardHandler))} {
				var lost *eventlog.LostBeginning
				if !errors.As(err, &lost) || lost.Topic != eventlog.Restaurants || lost.Partition != 1 || lost.Start != before {
					t.Errorf("%s: %v", what, err)
				}
			}
		}
	})
}
