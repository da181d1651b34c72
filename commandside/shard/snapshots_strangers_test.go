package shard

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

// A snapshot with fewer aggregates than its checkpoint says has lost some of them. It
// is not used, because they would be taken for unknown; the logs are read instead.
func TestASnapshotThatLacksAnAggregateIsNotBelieved(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	snapshotTopics(t, cfg)
	l := newLone(t, cfg)
	a := l.serve()
	for _, id := range []string{"x", "y"} {
		a.must(eventlog.Riders, id, "", rider.Put{RiderID: id, Name: subjectkeystest.Name(id, "X")})
	}
	a.leave()
	w, err := l.openSnapshots(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	saved, err := w.load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if at, err := newAggregates().restore(saved, time.Now()); err != nil || at == nil || at.Kept != 2 {
		t.Fatalf("the whole one: %+v %v", at, err)
	}
	delete(saved, "riders/y")
	if _, err := newAggregates().restore(saved, time.Now()); !errors.Is(err, errForeignSnapshot) {
		t.Errorf("without one of two: %v", err)
	}
}

// The states in a snapshot of a newer build may have the effect of an event type that
// this build cannot read. This build must not decide on such a state. It reads the logs,
// and marks the aggregate if it has such an event.
func TestASnapshotOfANewerBuildIsNotBelieved(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	snapshotTopics(t, cfg)
	l := newLone(t, cfg)
	a := l.serve()
	a.must(eventlog.Riders, "x", "", rider.Put{RiderID: "x", Name: subjectkeystest.Name("x", "X")})
	a.leave()
	w, err := l.openSnapshots(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	saved, err := w.load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var at checkpoint
	if err := json.Unmarshal(saved[checkpointKey].Value, &at); err != nil {
		t.Fatal(err)
	}
	at.Types = append(at.Types, "RIDER_PROMOTED")
	value, err := json.Marshal(at)
	if err != nil {
		t.Fatal(err)
	}
	// The state in the snapshot has version 7, by events that this build cannot read.
	if err := w.commit(t.Context(), []*kgo.Record{snapshotRecord("riders/x", []byte(`{"riderId":"x","version":7,"name":"newer"}`)), snapshotRecord(checkpointKey, value)}); err != nil {
		t.Fatal(err)
	}
	w.close()
	b := l.serve()
	if res := b.must(eventlog.Riders, "x", "", Look{}); res.Rider.Version != 1 || res.Rider.Name != subjectkeystest.Name("x", "X") {
		t.Errorf("%+v", res.Rider)
	}
	b.leave()
}

// An event that cannot be read has still used its idempotency key. A repeat must not be
// decided as a new command.
func TestTheKeyOfAnEventThatCannotBeReadIsRemembered(t *testing.T) {
	t.Parallel()
	now := time.Now()
	a := newAggregates()
	a.onUnreadable = func(*eventlog.Event, *unreadable) {}
	for i, id := range []string{"first", "second"} {
		scope := keyScope{byte(i + 1)}
		e := eventlog.Event{Topic: eventlog.Orders, Subject: "o", Type: "ORDER_PROMISED", Version: int64(i + 1), Time: now, Data: []byte("{}"),
			Idempotency: (keyUse{status: 201}).text(scope)}
		if err := a.replay(&e, now); err != nil {
			t.Fatal(err)
		}
		if used, ok := a.keys.known[scope]; !ok || used.on.id != "o" {
			t.Errorf("the key of the %s event: %+v %v", id, used, ok)
		}
	}
}

// If another program leaves a transaction open on the topic of snapshots, the records
// after it cannot be read. A take-over then uses no snapshot.
func TestAnOpenTransactionOfAStrangerStopsNoTakeOver(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	snapshotTopics(t, cfg)
	l := newLone(t, cfg)
	a := l.serve()
	a.must(eventlog.Riders, "x", "", rider.Put{RiderID: "x", Name: subjectkeystest.Name("x", "X")})
	a.leave()
	stranger := eventlogtest.Client(t, cfg, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.TransactionalID("stranger"), kgo.TransactionTimeout(10*time.Minute))
	if err := stranger.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := stranger.ProduceSync(t.Context(), &kgo.Record{Topic: eventlog.ShardSnapshots, Partition: 0, Key: []byte("x"), Value: []byte("x")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	b := l.serve()
	if res := b.must(eventlog.Riders, "x", "", Look{}); res.Rider.Version != 1 {
		t.Errorf("%+v", res.Rider)
	}
	b.must(eventlog.Riders, "x", "", rider.Verify{})
	b.leave()
}
