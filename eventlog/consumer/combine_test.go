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
