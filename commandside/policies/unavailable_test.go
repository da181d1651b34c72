package policies_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"tomato/commandside/commandsidetest"
	"tomato/domain/order"
	"tomato/eventlog"
)

// If something that a policy depends on is unavailable, the event has not failed.
func TestPoliciesWaitForWhatIsAway(t *testing.T) {
	t.Parallel()
	w := commandsidetest.New(t)
	g := w.Open("01990000-0000-7000-8000-000000000001")
	w.Webhook(commandsidetest.Captured(g, "pay_1", 45000, "INR"))
	e := w.Inbox()[0]
	unavailable := func(what string, each func(context.Context, eventlog.Event) error, e eventlog.Event) {
		t.Helper()
		if err := each(t.Context(), e); !errors.Is(err, eventlog.ErrUnavailable) {
			t.Errorf("%s: %v", what, err)
		}
	}
	w.ReadModel.SetUnavailable(true)
	unavailable("no read model", w.Policies.RecordPayment().Each, e)
	w.ReadModel.SetUnavailable(false)
	w.Shards.SetUnavailable(true)
	unavailable("no shard", w.Policies.RecordPayment().Each, e)
	w.Shards.SetUnavailable(false)
	if err := w.Policies.RecordPayment().Each(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	success := w.Log()[len(w.Log())-1]
	w.Shards.SetUnavailable(true)
	unavailable("no shard", w.Policies.PayOrder().Each, success)
	w.Shards.SetUnavailable(false)
	w.Order("01990000-0000-7000-8000-000000000001", order.Cancel{By: commandsidetest.Ops, Reason: "no"})
	w.RunPolicies()
	i := slices.IndexFunc(w.Log(), func(e eventlog.Event) bool { return e.Type == "REFUND_REQUESTED" })
	f := &failing{Simulated: w.Simulated}
	f.set("", eventlog.Unavailable(errors.New("no gateway")))
	w.SetGateway(f)
	unavailable("no gateway", w.Policies.Refund().Each, w.Log()[i])
	for _, each := range []func(context.Context, eventlog.Event) error{w.Policies.PayOrder().Each, w.Policies.RefundOrder().Each, w.Policies.Refund().Each} {
		for _, typ := range []string{"PAYMENT_SUCCESS", "ORDER_CANCELLED", "REFUND_REQUESTED", "PAYMENT_UNMATCHED"} {
			if err := each(t.Context(), eventlog.Event{Type: typ, Data: []byte(`{`)}); err != nil && !errors.Is(err, eventlog.ErrPoison) {
				t.Errorf("%s: %v", typ, err)
			}
		}
	}
}
