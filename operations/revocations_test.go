package operations_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tomato/operations"
)

func newRevocations(t *testing.T, c *calls) *operations.Revocations {
	t.Helper()
	r, err := operations.NewRevocations(t.Context(), c.db, prometheus.NewRegistry(), slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// follow follows revocations until the test ends, and returns what it is told.
func follow(t *testing.T, r *operations.Revocations) <-chan string {
	t.Helper()
	told := make(chan string, 10_000)
	r.Tell(func(sub string, _ time.Time) { told <- sub })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Follow(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return told
}

// No revocation is missed, however many are made at once: transactions commit in another
// order than they begin, and a follower asks only for what is newer than what it has seen.
func TestNoRevocationIsMissed(t *testing.T) {
	t.Parallel()
	c := newCalls(t)
	told := follow(t, newRevocations(t, c))
	const writers, each = 8, 25
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for i := range each {
				if _, err := operations.Revoke(t.Context(), c.db, fmt.Sprintf("s%d-%d", w, i), "cli:test", "a test"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	seen := map[string]bool{}
	for deadline := time.After(time.Minute); len(seen) < writers*each; {
		select {
		case sub := <-told:
			if seen[sub] {
				t.Fatalf("%s was told twice", sub)
			}
			seen[sub] = true
		case <-deadline:
			t.Fatalf("%d of %d revocations are known", len(seen), writers*each)
		}
	}
}

// A revocation is kept, and a later one of the same subject moves it on.
func TestRevocationsAreDurable(t *testing.T) {
	t.Parallel()
	c := newCalls(t)
	began := time.Now()
	first, err := operations.Revoke(t.Context(), c.db, "c1", "cli:test", "lost phone")
	if err != nil {
		t.Fatal(err)
	}
	second, err := operations.Revoke(t.Context(), c.db, "c1", "ops:o1", "again")
	if err != nil {
		t.Fatal(err)
	}
	if first.RevokedAt.Before(began.Add(-time.Minute)) || second.RevokedAt.Before(first.RevokedAt) || second.By != "ops:o1" {
		t.Errorf("%+v, %+v", first, second)
	}
	later := newRevocations(t, c) // of an instance that starts later
	upTo, ok := later.RevokedUpTo("c1")
	if !ok || !upTo.Equal(second.RevokedAt.Truncate(time.Second)) {
		t.Errorf("revoked up to %v %v, want %v", upTo, ok, second.RevokedAt)
	}
	if _, ok := later.RevokedUpTo("c2"); ok {
		t.Error("another subject is revoked")
	}
}
