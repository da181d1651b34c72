package policies_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"tomato/commandside/commandsidetest"
	"tomato/domain/order"
)

// A webhook that never comes: the gateway is asked when the order ends, and
// again after an hour and a day.
func TestReconcile(t *testing.T) {
	t.Parallel()
	w := commandsidetest.New(t)
	now := w.Open("01990000-0000-7000-8000-00000000001c")
	id := w.Pay(now, `{"outcome":"captured","faults":["dropped"]}`)
	w.WantEvents("01990000-0000-7000-8000-00000000001c", "PAYMENT_REQUESTED")
	w.Order("01990000-0000-7000-8000-00000000001c", order.Expire{})
	w.RunPolicies()
	w.WantEvents("01990000-0000-7000-8000-00000000001c", "PAYMENT_REQUESTED", "ORDER_EXPIRED", "PAYMENT_SUCCESS", "REFUND_REQUESTED", "REFUND_SUCCESS")
	w.WantRefunds(map[string]int64{id: 45000})

	later := w.Open("01990000-0000-7000-8000-00000000001a")
	w.Order("01990000-0000-7000-8000-00000000001a", order.Expire{})
	w.RunPolicies()
	id = w.Pay(later, `{"outcome":"captured","faults":["wrong_signature"]}`)
	w.WantEvents("01990000-0000-7000-8000-00000000001a", "PAYMENT_REQUESTED", "ORDER_EXPIRED")
	if _, err := w.Policies.TimerRound(t.Context(), time.Now().Add(59*time.Minute)); err != nil {
		t.Fatal(err)
	}
	w.RunPolicies()
	w.WantEvents("01990000-0000-7000-8000-00000000001a", "PAYMENT_REQUESTED", "ORDER_EXPIRED") // not yet
	if _, err := w.Policies.TimerRound(t.Context(), time.Now().Add(61*time.Minute)); err != nil {
		t.Fatal(err)
	}
	w.RunPolicies()
	w.WantEvents("01990000-0000-7000-8000-00000000001a", "PAYMENT_REQUESTED", "ORDER_EXPIRED", "PAYMENT_SUCCESS", "REFUND_REQUESTED", "REFUND_SUCCESS")
	if w.Refunds()[id] != 45000 {
		t.Error(w.Refunds())
	}
	var left int
	count := func() int {
		if err := w.DB.QueryRow(t.Context(), `SELECT count(*) FROM tomato.timers WHERE policy = 'reconcile'`).Scan(&left); err != nil {
			t.Fatal(err)
		}
		return left
	}
	if count() != 2 {
		t.Errorf("%d timers, want one per order for the day after", left)
	}
	if _, err := w.Policies.TimerRound(t.Context(), time.Now().Add(25*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if count() != 0 {
		t.Errorf("%d timers are left", left)
	}
}

// A restart loses no timer: they are rows. Two instances do each once.
func TestTimersAreShared(t *testing.T) {
	t.Parallel()
	w := commandsidetest.New(t)
	for i := range 40 {
		if err := w.Policies.SetReconcileTimer(t.Context(), fmt.Sprintf("01990000-0000-7000-8000-0000000000%02d", i), "order_none", time.Now().Add(-48*time.Hour), 1); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	ctx, cancel := context.WithTimeout(t.Context(), commandsidetest.Patience)
	defer cancel()
	for range 2 {
		wg.Go(func() {
			if err := w.Policies.RunTimers(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for left := 1; left > 0; <-tick.C {
		if err := w.DB.QueryRow(ctx, `SELECT count(*) FROM tomato.timers`).Scan(&left); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	wg.Wait()
}
