package shard

import (
	"testing"

	"tomato/domain"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

// The record of an event names the person who made it, and nobody if it was the system.
func TestEventsOfPeopleNameThem(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	snapshotTopics(t, cfg)
	a := newLone(t, cfg).serve()
	do := func(by domain.Actor, c domain.Command) {
		t.Helper()
		r := Request{Topic: eventlog.Riders, ID: "x", Actor: by, Command: c}
		if _, err := a.owner.local(t.Context(), a.shard, &r); err != nil {
			t.Fatal(err)
		}
	}
	do(domain.Actor{Sub: "x", Role: domain.Rider}, rider.Put{RiderID: "x", Name: subjectkeystest.Name("x", "Una Rao")})
	do(domain.Actor{Sub: "ops:1", Role: domain.Ops}, rider.Verify{})
	do(domain.SystemActor, rider.Suspend{})
	ends, _ := a.ends()
	tp := eventlog.TopicPartition{Topic: eventlog.Riders}
	want := map[string]string{"RIDER_REGISTERED": "rider:x", "RIDER_VERIFIED": "ops:ops:1", "RIDER_SUSPENDED": "", eventlog.ShardClaimed: ""}
	n := 0
	err := eventlog.Read(t.Context(), cfg, map[eventlog.TopicPartition]eventlog.Range{tp: {To: ends[tp]}}, func(e *eventlog.Event) error {
		n++
		if actor, known := want[e.Type]; !known || e.Actor != actor {
			t.Errorf("%s was made by %q, not %q", e.Type, e.Actor, actor)
		}
		return nil
	})
	if err != nil || n != len(want) {
		t.Errorf("%d records, %v", n, err)
	}
}
