package main

import (
	"context"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
)

// 1,200 records of one rider that are no positions, more than may be parked of
// one key, and a tombstone: orders are offered as before, also to that rider.
func TestRecordsThatAreNoPositionsStopNoOffer(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, kafka eventlog.Config) {
		a := newTown(t, kafka).open()
		a.restaurant("r1", lng0, lat0)
		a.rider("near", lng0, lat0+0.001)
		client := eventlogtest.Client(t, kafka, kgo.RecordPartitioner(kgo.ManualPartitioner()))
		p := eventlog.PartitionFor("near", townPartitions)
		records := []*kgo.Record{{Topic: eventlog.RiderLocations, Partition: p, Key: []byte("near")}}
		for i := range 1200 {
			e := eventlog.Event{ID: fmt.Sprint("bad", i), Source: "/elsewhere", Type: rider.PositionType, Subject: "near", Data: []byte(`{"riderId":"near"`)}
			records = append(records, e.NewRecord(eventlog.RiderLocations, p))
		}
		if err := client.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
			t.Fatal(err)
		}
		id := a.readyOrder("c1", "r1")
		if e := a.awaitEvent(eventlog.Orders, id, "ORDER_OFFERED", 1); data(e, "riders.0.riderId") != "near" {
			t.Errorf("offered: %s", e.Data)
		}
		a.must(courier("near"), "POST /v1/orders/"+id+"/accept", nil)
		a.idle()
		a.noDeadLetters()
	})
}

// The riders read model stands still in one partition. Orders are offered to the
// riders of the others meanwhile; the one whose row comes late is added to the
// wave that is running then.
func TestAPartitionThatStandsStillDelaysNobodyElse(t *testing.T) {
	t.Parallel()
	a := newTown(t, eventlogtest.Embedded(t), "--offer-ttl", "10m").open()
	a.restaurant("r1", lng0, lat0)
	const late = "late"
	still, other := eventlog.PartitionFor(late, townPartitions), "other"
	for eventlog.PartitionFor(other, townPartitions) == still {
		other += "x"
	}
	release := standStill(a, still)
	a.rider(late, lng0, lat0+0.0005)
	a.rider(other, lng0, lat0+0.001)
	id := a.readyOrder("c1", "r1")
	first := a.awaitEvent(eventlog.Orders, id, "ORDER_OFFERED", 1)
	for offers := 1; data(first, "riders.0.riderId") == nil; offers++ { // their row was late, too
		first = a.awaitEvent(eventlog.Orders, id, "ORDER_OFFERED", offers+1)
	}
	if data(first, "riders.0.riderId") != other || data(first, "riders.1") != nil {
		t.Errorf("offered: %s", first.Data)
	}
	release()
	a.await("the late one is offered it, too", func() error {
		for _, e := range a.history(eventlog.Orders, id) {
			if e.Type == "ORDER_OFFERED" && data(e, "riders.0.riderId") == late {
				if data(e, "wave") != data(first, "wave") {
					t.Errorf("not in the running wave: %s, after %s", e.Data, first.Data)
				}
				return nil
			}
		}
		return fmt.Errorf("events %v", types(a.history(eventlog.Orders, id)))
	})
}

// standStill makes the riders read model wait in one partition, by holding the
// lock under which both of its lanes there write.
func standStill(a *town, partition int32) (release func()) {
	a.t.Helper()
	db, err := pgxpool.New(a.t.Context(), a.cmd.DatabaseURL)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(db.Close)
	tx, err := db.Begin(a.t.Context())
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	if _, err := tx.Exec(a.t.Context(), `SELECT pg_advisory_xact_lock(hashtext('"riders_g1"'), $1)`, partition); err != nil {
		a.t.Fatal(err)
	}
	return func() {
		if err := tx.Rollback(a.t.Context()); err != nil {
			a.t.Fatal(err)
		}
	}
}
