package policies_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"tomato/commandside/commandsidetest"
	"tomato/commandside/gateway"
	"tomato/commandside/policies"
	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/eventlog"
)

// Closed is final: money that comes late goes back.
func TestLateMoney(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]domain.Command{
		"expired":   order.Expire{},
		"cancelled": order.Cancel{By: commandsidetest.Ops, Reason: "no"},
		"rejected":  order.Reject{Reason: "no"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := commandsidetest.New(t)
			g := w.Open("01990000-0000-7000-8000-000000000001")
			w.Order("01990000-0000-7000-8000-000000000001", end)
			w.RunPolicies()
			id := w.Pay(g, `{"outcome":"captured"}`)
			if got, want := w.Events("01990000-0000-7000-8000-000000000001")[2:], []string{"PAYMENT_SUCCESS", "REFUND_REQUESTED", "REFUND_SUCCESS"}; !slices.Equal(got, want) {
				t.Errorf("events %v, want %v", got, want)
			}
			w.WantRefunds(map[string]int64{id: 45000})
			if s := w.OrderState("01990000-0000-7000-8000-000000000001"); string(s.Status) != name || s.Paid() {
				t.Errorf("the order came back to life: %+v", s)
			}
		})
	}
}

func TestPaidThenEnded(t *testing.T) {
	t.Parallel()
	w := commandsidetest.New(t)
	id := w.Pay(w.Open("01990000-0000-7000-8000-000000000001"), `{"outcome":"captured"}`)
	w.Order("01990000-0000-7000-8000-000000000001", order.Cancel{By: commandsidetest.Customer, Reason: "changed my mind"})
	w.RunPolicies()
	w.WantEvents("01990000-0000-7000-8000-000000000001", "PAYMENT_REQUESTED", "PAYMENT_SUCCESS", "ORDER_PAID", "ORDER_CANCELLED", "REFUND_REQUESTED", "REFUND_SUCCESS")
	w.WantRefunds(map[string]int64{id: 45000})
	for i, e := range w.Log() {
		if e.Type == "REFUND_REQUESTED" && e.CausationID != w.Log()[3].ID {
			t.Errorf("event %d is caused by %q, want %q", i, e.CausationID, w.Log()[3].ID)
		}
	}
}

// failing is a gateway that makes refunds fail.
type failing struct {
	*gateway.Simulated
	mu     sync.Mutex
	answer func() (gateway.RefundState, error)
	asked  []gateway.Refund
}

func (f *failing) set(state gateway.RefundState, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer = func() (gateway.RefundState, error) { return state, err }
}

func (f *failing) Refund(_ context.Context, r gateway.Refund) (gateway.RefundState, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, r)
	return f.answer()
}

func (f *failing) RefundState(context.Context, string, string) (gateway.RefundState, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.answer()
}

func TestRefundFails(t *testing.T) {
	t.Parallel()
	w := commandsidetest.New(t)
	id := w.Pay(w.Open("01990000-0000-7000-8000-000000000001"), `{"outcome":"captured"}`)
	f := &failing{Simulated: w.Simulated}
	f.set("", fmt.Errorf("%w: too old", gateway.ErrRefused))
	w.SetGateway(f)
	w.Order("01990000-0000-7000-8000-000000000001", order.Cancel{By: commandsidetest.Ops, Reason: "no"})
	w.RunPolicies()
	w.WantEvents("01990000-0000-7000-8000-000000000001", "PAYMENT_REQUESTED", "PAYMENT_SUCCESS", "ORDER_PAID", "ORDER_CANCELLED", "REFUND_REQUESTED", "REFUND_FAILED")
	if s := w.Payment("01990000-0000-7000-8000-000000000001"); s.Status != payment.StatusRefundPending {
		t.Errorf("%+v", s)
	}
	for _, r := range f.asked {
		if r != f.asked[0] || r.PaymentID != id || r.AggregateID != "01990000-0000-7000-8000-000000000001" || r.Amount != 45000 {
			t.Errorf("a repeat has other words: %+v", r)
		}
	}
	// Ops try again; the gateway takes its time; the outcome comes as webhook.
	f.set(gateway.RefundPending, nil)
	r := w.Call(commandsidetest.Ops, "/v1/payments/01990000-0000-7000-8000-000000000001/refund", `{"reason":"the bank says yes now"}`)
	if r.Status != 200 || r.Header.Get("ETag") == "" || r.Body["state"] != "refund_pending" {
		t.Fatalf("%+v", r)
	}
	w.RunPolicies()
	if again := f.asked[len(f.asked)-1]; again.RefundID == f.asked[0].RefundID {
		t.Error("a new wish needs a new idempotency key")
	}
	// Already asked for: nothing more.
	if r := w.Call(commandsidetest.Ops, "/v1/payments/01990000-0000-7000-8000-000000000001/refund", `{"reason":"hurry"}`); r.Status != 200 {
		t.Errorf("%+v", r)
	}
	w.Webhook(`{"event":"refund.failed","payload":{"refund":{"entity":{"id":"rfnd_1","amount":1,"payment_id":"` + id + `","notes":[]}}}}`)
	w.RunPolicies()
	if n := len(w.Events("01990000-0000-7000-8000-000000000001")); n != 7 {
		t.Errorf("a refund of 1 made by hand is not ours: %v", w.Events("01990000-0000-7000-8000-000000000001"))
	}
	w.Webhook(`{"event":"refund.processed","payload":{"refund":{"entity":{"id":"rfnd_1","amount":45000,"payment_id":"` + id + `","notes":[]}}}}`)
	w.RunPolicies()
	if got, want := w.Events("01990000-0000-7000-8000-000000000001")[6:], []string{"REFUND_REQUESTED", "REFUND_SUCCESS"}; !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
	if r := w.Call(commandsidetest.Ops, "/v1/payments/01990000-0000-7000-8000-000000000000/refund", `{"reason":"x"}`); r.Status != 404 || r.Body["code"] != "payment_not_found" {
		t.Errorf("%+v", r)
	}
	if r := w.Call(commandsidetest.Customer, "/v1/payments/01990000-0000-7000-8000-000000000001/refund", `{"reason":"x"}`); r.Status != 403 {
		t.Errorf("%+v", r)
	}
	if r := w.Call(commandsidetest.Ops, "/v1/payments/01990000-0000-7000-8000-000000000001/refund", ``); r.Status != 422 {
		t.Errorf("%+v", r)
	}
}

// A refund whose outcome nobody tells is asked for.
func TestRefundIsPolled(t *testing.T) {
	t.Parallel()
	w := commandsidetest.New(t)
	w.Pay(w.Open("01990000-0000-7000-8000-000000000001"), `{"outcome":"captured"}`)
	f := &failing{Simulated: w.Simulated}
	f.set(gateway.RefundPending, nil)
	w.SetGateway(f)
	w.Order("01990000-0000-7000-8000-000000000001", order.Cancel{By: commandsidetest.Ops, Reason: "no"})
	w.RunPolicies()
	due := time.Now().Add(policies.RefundPollFirst + time.Second)
	round := func(want int) {
		t.Helper()
		if n, err := w.Policies.TimerRound(t.Context(), due); n != want || err != nil {
			t.Fatalf("%d timers, %v; want %d", n, err, want)
		}
	}
	round(1)
	round(0) // not before its time
	f.set("", eventlog.Unavailable(errors.New("no gateway")))
	due = due.Add(time.Minute)
	round(1)
	f.set(gateway.RefundProcessed, nil)
	due = due.Add(time.Minute)
	round(1)
	if got := w.Events("01990000-0000-7000-8000-000000000001"); got[len(got)-1] != "REFUND_SUCCESS" {
		t.Errorf("events %v", got)
	}
	due = due.Add(time.Hour)
	round(0)

	// Before the payment leaves memory somebody must hear of it.
	w.SetGateway(w.Simulated)
	w.Pay(w.Open("01990000-0000-7000-8000-000000000002"), `{"outcome":"captured"}`)
	f.set(gateway.RefundPending, nil)
	w.SetGateway(f)
	w.Order("01990000-0000-7000-8000-000000000002", order.Cancel{By: commandsidetest.Ops, Reason: "no"})
	w.RunPolicies()
	due = time.Now().Add(700 * time.Hour)
	round(1)
	if got := w.Events("01990000-0000-7000-8000-000000000002"); got[len(got)-1] != "REFUND_FAILED" {
		t.Errorf("events %v", got)
	}
}
