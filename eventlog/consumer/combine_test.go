package consumer_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/eventlog/eventlogtest"
)

func TestSmallTransactionsAreCombined(t *testing.T) {
	t.Parallel()
	b := newBench(t, eventlogtest.Embedded(t), eventlog.Subscription{Name: "combined", Topics: []string{eventlog.Orders, eventlog.Payments}})
	b.exec(`CREATE TABLE applied (key text, version bigint, PRIMARY KEY (key, version))`)
	r := b.runtime()
	var poisoned, endless atomic.Bool
	start(t, r, consumer.Consumer{Name: "combined", Topics: []string{eventlog.Orders, eventlog.Payments}, Rows: func(ctx context.Context, tx pgx.Tx, es []eventlog.Event) error {
		if _, ok := ctx.Deadline(); !ok {
			endless.Store(true)
		}
		for _, e := range es {
			if poisoned.Load() && e.Subject == "k0" {
				return eventlog.Poison(errors.New("no"))
			}
			if _, err := tx.Exec(ctx, `INSERT INTO applied (key, version) VALUES ($1, $2)`, e.Topic+e.Subject, e.Version); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, `SELECT pg_sleep(0.005)`) // so that others come meanwhile
		return err
	}})
	const keys = 8
	topicOf := func(k int) string { return []string{eventlog.Orders, eventlog.Payments}[k/4] } // four partitions in all
	n := int64(0)
	more := func() {
		n++
		for k := range keys {
			b.produce(b.event(topicOf(k), fmt.Sprint("k", k), "T")...)
		}
	}
	applied := func(k int) []int64 {
		return query[[]int64](b, `SELECT coalesce(array_agg(version ORDER BY version), '{}') FROM applied WHERE key = $1`, fmt.Sprint(topicOf(k), "k", k))
	}
	allApplied := func(but int) func() bool {
		return func() bool {
			for k := range keys {
				if k != but && !slices.Equal(applied(k), upTo(n)) {
					return false
				}
			}
			return true
		}
	}
	eventually(t, "transactions are combined", func() bool { more(); return r.Combined() > 20 })
	eventually(t, "every event has its row", allApplied(-1))

	if endless.Load() {
		t.Error("a handler was called without a time limit")
	}

	// An event that fails in a common transaction fails alone in the end.
	before := int64(len(applied(0)))
	poisoned.Store(true)
	for range 10 {
		more()
	}
	eventually(t, "the others are not held up", allApplied(0))
	eventually(t, "the one that fails is a dead letter", func() bool { return query[int](b, `SELECT count(*) FROM tomato.parked WHERE state = 'dead'`) == 1 })
	if got := applied(0); !slices.Equal(got, upTo(before)) {
		t.Errorf("rows of the key that fails: %v, want %d", got, before)
	}
}

func TestATransactionThatHangsDoesNotHoldUpTheOthers(t *testing.T) {
	t.Parallel()
	b := newBench(t, eventlogtest.Embedded(t), eventlog.Subscription{Name: "hanging", Topics: []string{eventlog.Orders, eventlog.Payments}})
	r := b.runtime()
	var l ledger
	gate, hangs := make(chan struct{}), make(chan struct{}, 1)
	start(t, r, consumer.Consumer{Name: "hanging", Topics: []string{eventlog.Orders, eventlog.Payments}, Rows: func(ctx context.Context, _ pgx.Tx, es []eventlog.Event) error {
		for _, e := range es {
			if e.Subject == "hangs" {
				hangs <- struct{}{}
				select {
				case <-gate:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			l.add(e)
		}
		return nil
	}})
	b.produceOne("hangs")
	<-hangs
	for n := int64(1); n <= 3; n++ {
		for _, k := range []string{"a", "b", "c", "d"} {
			b.produce(b.event(eventlog.Payments, k, "T")...)
		}
		eventually(t, "the others go on", func() bool {
			for _, k := range []string{"a", "b", "c", "d"} {
				if !slices.Equal(l.of(k), upTo(n)) {
					return false
				}
			}
			return true
		})
		if len(hangs) > 0 {
			t.Fatal("the others have waited until the transaction that hung was given up")
		}
	}
	close(gate)
	eventually(t, "the one that hung is done", func() bool { return slices.Equal(l.of("hangs"), upTo(1)) })
}

// A handler of rows is given a transaction in which Postgres does not scan tables where
// an index will do.
func TestHandlersOfRowsUseIndexes(t *testing.T) {
	t.Parallel()
	b := newBench(t, eventlogtest.Embedded(t), eventlog.Subscription{Name: "indexed", Topics: []string{eventlog.Orders}})
	b.generation("indexed", 1)
	said := make(chan string, 10)
	start(t, b.runtime(), consumer.Consumer{Name: "indexed", Generation: 1, Topics: []string{eventlog.Orders}, Rows: func(ctx context.Context, tx pgx.Tx, _ []eventlog.Event) error {
		var scans string
		err := tx.QueryRow(ctx, `SHOW enable_seqscan`).Scan(&scans)
		said <- scans
		return err
	}})
	b.produceOne("a")
	if got := <-said; got != "off" {
		t.Errorf("enable_seqscan is %s", got)
	}
}
