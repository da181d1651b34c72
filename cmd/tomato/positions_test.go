package main_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/cmd/tomato/servertest"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
)

// 1,200 records of one rider that are no positions, more than may be parked of
// one key, and a tombstone: orders are offered as before, also to that rider.
func TestRecordsThatAreNoPositionsStopNoOffer(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, kafka eventlog.Config) {
		a := servertest.New(t, kafka).Start()
		a.AddRestaurant("r1", servertest.Lng, servertest.Lat)
		a.AddRider("near", servertest.Lng, servertest.Lat+0.001)
		client := eventlogtest.Client(t, kafka, kgo.RecordPartitioner(kgo.ManualPartitioner()))
		p := eventlog.PartitionFor("near", servertest.Partitions)
		records := []*kgo.Record{{Topic: eventlog.RiderLocations, Partition: p, Key: []byte("near")}}
		for i := range 1200 {
			e := eventlog.Event{ID: fmt.Sprint("bad", i), Source: "/elsewhere", Type: rider.PositionType, Subject: "near", Data: []byte(`{"riderId":"near"`)}
			records = append(records, e.NewRecord(eventlog.RiderLocations, p))
		}
		if err := client.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
			t.Fatal(err)
		}
		id := a.ReadyOrder("c1", "r1")
		if e := a.AwaitEvent(eventlog.Orders, id, "ORDER_OFFERED", 1); servertest.Data(e, "riders.0.riderId") != "near" {
			t.Errorf("offered: %s", e.Data)
		}
		a.Must(servertest.Rider("near"), "POST /v1/orders/"+id+"/accept", nil)
		a.AwaitIdle()
		a.NoDeadLetters()
	})
}

// The riders read model stands still in one partition. Orders are offered to the
// riders of the others meanwhile; the one whose row comes late is added to the
// wave that is running then.
func TestAPartitionThatStandsStillDelaysNobodyElse(t *testing.T) {
	t.Parallel()
	a := servertest.New(t, eventlogtest.Embedded(t), "--offer-ttl", "10m").Start()
	a.AddRestaurant("r1", servertest.Lng, servertest.Lat)
	const late = "late"
	still, other := eventlog.PartitionFor(late, servertest.Partitions), "other"
	for eventlog.PartitionFor(other, servertest.Partitions) == still {
		other += "x"
	}
	release := standStill(a, late)
	a.AddRider(late, servertest.Lng, servertest.Lat+0.0005)
	a.AddRider(other, servertest.Lng, servertest.Lat+0.001)
	id := a.ReadyOrder("c1", "r1")
	first := a.AwaitEvent(eventlog.Orders, id, "ORDER_OFFERED", 1)
	for offers := 1; servertest.Data(first, "riders.0.riderId") == nil; offers++ { // their row was late, too
		first = a.AwaitEvent(eventlog.Orders, id, "ORDER_OFFERED", offers+1)
	}
	if servertest.Data(first, "riders.0.riderId") != other || servertest.Data(first, "riders.1") != nil {
		t.Errorf("offered: %s", first.Data)
	}
	release()
	a.Await("the late one is offered it, too", func() error {
		for _, e := range a.History(eventlog.Orders, id) {
			if e.Type == "ORDER_OFFERED" && servertest.Data(e, "riders.0.riderId") == late {
				if servertest.Data(e, "wave") != servertest.Data(first, "wave") {
					t.Errorf("not in the running wave: %s, after %s", e.Data, first.Data)
				}
				return nil
			}
		}
		return fmt.Errorf("events %v", servertest.Types(a.History(eventlog.Orders, id)))
	})
}

// standStill makes the riders read model wait in the partition of a rider who is new, by
// holding the row that it has to write.
func standStill(a *servertest.Installation, riderID string) (release func()) {
	a.T.Helper()
	db, err := pgxpool.New(a.T.Context(), a.Config.DatabaseURL)
	if err != nil {
		a.T.Fatal(err)
	}
	a.T.Cleanup(db.Close)
	tx, err := db.Begin(a.T.Context())
	if err != nil {
		a.T.Fatal(err)
	}
	a.T.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	if _, err := tx.Exec(a.T.Context(), `INSERT INTO riders_g1.rider_positions (rider_id) VALUES ($1)`, riderID); err != nil {
		a.T.Fatal(err)
	}
	return func() {
		if err := tx.Rollback(a.T.Context()); err != nil {
			a.T.Fatal(err)
		}
	}
}
