package servertest

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"tomato/cmd/tomato/server"
	"tomato/domain"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
)

// AtOnce is how many tests of a binary run at a time, unless -parallel says otherwise.
// Tests of whole servers mostly wait: for deadlines, outages and retries. With as many
// at a time as there are processors, the processors were idle half of the time. With four,
// some that must answer within seconds were too slow on two processors with -race.
const AtOnce = 3

// RunMoreAtOnce lets AtOnce tests run at a time where there are fewer processors. A
// TestMain calls it before it runs the tests.
func RunMoreAtOnce() {
	if runtime.GOMAXPROCS(0) >= AtOnce {
		return
	}
	if err := flag.Set("test.parallel", strconv.Itoa(AtOnce)); err != nil { // the command line is read after it
		panic(err)
	}
}

// Await asks again and again until now returns nil, and fails the test if it never
// does.
func Await(t testing.TB, what string, now func() error) {
	t.Helper()
	AwaitFor(t, Patience, what, now)
}

// AwaitFor is Await with a limit other than Patience.
func AwaitFor(t testing.TB, limit time.Duration, what string, now func() error) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(limit); ; {
		err := now()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("never: %s: %v", what, err)
		}
	}
}

// Until is Await for what is true or not.
func Until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	Await(t, what, func() error {
		if !ok() {
			return errors.New("it is not so")
		}
		return nil
	})
}

// Await is the function Await for the installation's test.
func (a *Installation) Await(what string, now func() error) {
	a.T.Helper()
	Await(a.T, what, now)
}

// AwaitEvent waits for the nth event of a type, counted from 1, and returns it.
func (a *Installation) AwaitEvent(topic, id, eventType string, nth int) eventlog.Event {
	a.T.Helper()
	end := time.After(Patience)
	for {
		a.Log.mu.Lock()
		events, changed := slices.Clone(a.Log.events[topic+"/"+id]), a.Log.changed
		a.Log.mu.Unlock()
		for n, i := 0, 0; i < len(events); i++ {
			if events[i].Type != eventType {
				continue
			}
			if n++; n == nth {
				return events[i]
			}
		}
		select {
		case <-changed:
		case <-end:
			a.T.Fatalf("%s/%s never had %s (%d): %v", topic, id, eventType, nth, Types(events))
		}
	}
}

// Each calls do for 0 to n-1, so many at once, and fails the test when one of them has
// failed.
func (a *Installation) Each(n, atOnce int, do func(i int)) {
	a.T.Helper()
	var g errgroup.Group
	g.SetLimit(atOnce)
	for i := range n {
		g.Go(func() error {
			done := false
			defer func() { // t.Fatal ends this goroutine alone
				if !done {
					a.T.Errorf("%d of %d failed", i, n)
				}
			}()
			do(i)
			done = true
			return nil
		})
	}
	_ = g.Wait()
	if a.T.Failed() {
		a.T.FailNow()
	}
}

// AwaitQuery asks until fields of the answer have these values.
func (a *Installation) AwaitQuery(who domain.Actor, path string, pairs ...string) Answer {
	a.T.Helper()
	var x Answer
	a.Await(path+" shows "+strings.Join(pairs, " "), func() error {
		if x = a.Do(who, "GET "+path, nil); x.Status != http.StatusOK {
			return x.Fault()
		}
		for i := 0; i+1 < len(pairs); i += 2 {
			if v := x.Get(pairs[i]); v == nil && pairs[i+1] != "" || v != nil && fmt.Sprint(v) != pairs[i+1] {
				return x.Fault()
			}
		}
		return nil
	})
	return x
}

// AwaitIdle waits until every consumer has done, or parked, all that is on its topics.
func (a *Installation) AwaitIdle() {
	a.T.Helper()
	a.Await("all consumers have caught up", func() error {
		x := a.Do(Ops, "GET /v1/ops/consumers", nil)
		if x.Status != http.StatusOK {
			return x.Fault()
		}
		var consumers struct{ Items []consumer.ConsumerStatus }
		if err := json.Unmarshal(x.Body, &consumers); err != nil {
			return err
		}
		seen := map[string]bool{}
		for _, c := range consumers.Items {
			for _, p := range c.Partitions {
				seen[fmt.Sprint(c.Consumer, p.Topic, p.Partition)] = true
				if p.LagRecords != 0 {
					return fmt.Errorf("%s is behind: %+v", c.Consumer, p)
				}
			}
		}
		for _, s := range server.Subscriptions() {
			ends, err := eventlog.EndOffsets(a.T.Context(), a.Log.client, s.Topics...)
			if err != nil {
				return err
			}
			for tp, end := range ends {
				if end > 0 && !seen[fmt.Sprint(s.Name, tp.Topic, tp.Partition)] {
					return fmt.Errorf("%s has not begun with %v", s.Name, tp)
				}
			}
		}
		return nil
	})
}

// AwaitUnavailable returns when the lag of a consumer shows, and the dependency for
// which it waits is named.
func (a *Installation) AwaitUnavailable(consumer, dependency string) {
	a.T.Helper()
	a.Await(consumer+" waits for "+dependency, func() error {
		lag, state := a.Metric("tomato_consumer_lag_records", `consumer="`+consumer+`"`), a.Metric("tomato_breaker_state", `dependency="`+dependency)
		if lag == 0 || state == 0 {
			return fmt.Errorf("lag %v, breaker %v", lag, state)
		}
		return nil
	})
}

// Wait lets time pass, for what must not happen meanwhile.
func (a *Installation) Wait(d time.Duration) {
	a.T.Helper()
	select {
	case <-time.After(d):
	case <-a.T.Context().Done():
	}
}
