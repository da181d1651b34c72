package commandside_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tomato/commandside/commandsidetest"
	"tomato/commandside/gateway"
	"tomato/domain"
	"tomato/domain/order"
	"tomato/eventlog"
)

func TestOpenPayment(t *testing.T) {
	t.Parallel()
	w := commandsidetest.New(t)
	w.Place("01990000-0000-7000-8000-000000000001")
	const path = "/v1/orders/01990000-0000-7000-8000-000000000001/payment"
	if r := w.Call(commandsidetest.Customer, path, "", "If-Match", `"7"`); r.Status != 412 {
		t.Errorf("another version: %+v", r)
	}
	first := w.Call(commandsidetest.Customer, path, "", "If-Match", `"1"`, "traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	want := map[string]any{"provider": "simulated", "gatewayOrderId": first.Body["gatewayOrderId"], "keyId": "rzp_test_simulated", "amount": 45000., "currency": "INR"}
	if d := cmp.Diff(want, first.Body); d != "" || first.Status != 200 || first.Header.Get("ETag") != `"1"` {
		t.Errorf("%+v\n%s", first, d)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if r := w.Call(commandsidetest.Customer, path, "{}", "Idempotency-Key", "k1"); r.Body["gatewayOrderId"] != first.Body["gatewayOrderId"] {
				t.Errorf("%+v", r)
			}
		})
	}
	wg.Wait()
	w.WantEvents("01990000-0000-7000-8000-000000000001", "PAYMENT_REQUESTED")
	if tp := w.Log()[0].Traceparent; !strings.Contains(tp, "0af7651916cd43dd8448eb211c80319c") {
		t.Errorf("traceparent %q", tp)
	}
	for _, c := range []struct {
		actor  domain.Actor
		path   string
		status int
		code   string
	}{
		{commandsidetest.Stranger, path, 404, "order_not_found"},
		{commandsidetest.Customer, "/v1/orders/" + uuid.Must(uuid.NewV7()).String() + "/payment", 404, "order_not_found"},
		{commandsidetest.Ops, path, 403, "forbidden"},
		{domain.Actor{}, path, 401, "unauthorized"},
	} {
		if r := w.Call(c.actor, c.path, ""); r.Status != c.status || r.Body["code"] != c.code {
			t.Errorf("%s %s: %+v", c.actor.Sub, c.path, r)
		}
	}
	w.Pay(first.Body["gatewayOrderId"].(string), `{"outcome":"captured"}`)
	if r := w.Call(commandsidetest.Customer, path, ""); r.Status != 409 || r.Body["code"] != "order_already_paid" {
		t.Errorf("paid: %+v", r)
	}
	w.Place("01990000-0000-7000-8000-000000000002")
	w.Order("01990000-0000-7000-8000-000000000002", order.Expire{})
	if r := w.Call(commandsidetest.Customer, "/v1/orders/01990000-0000-7000-8000-000000000002/payment", ""); r.Status != 409 || r.Body["currentStatus"] != "expired" {
		t.Errorf("expired: %+v", r)
	}
	w.Place("01990000-0000-7000-8000-000000000003")
	w.Shards.SetUnavailable(true)
	if r := w.Call(commandsidetest.Customer, "/v1/orders/01990000-0000-7000-8000-000000000003/payment", ""); r.Status != 503 || r.Header.Get("Retry-After") == "" {
		t.Errorf("no shard: %+v", r)
	}
	w.Shards.SetUnavailable(false)
	w.DB.Close()
	if r := w.Call(commandsidetest.Customer, "/v1/orders/01990000-0000-7000-8000-000000000003/payment", ""); r.Status != 503 || r.Header.Get("Retry-After") == "" {
		t.Errorf("no gateway: %+v", r)
	}
}

func TestSimulatedGatewayEndpoint(t *testing.T) {
	t.Parallel()
	w := commandsidetest.New(t)
	g := w.Open("01990000-0000-7000-8000-000000000001")
	path := "/v1/simulated-gateway/orders/" + g + "/pay"
	for _, c := range []struct {
		actor        domain.Actor
		path, body   string
		status       int
		code, faulty string
	}{
		{commandsidetest.Stranger, path, `{"outcome":"captured"}`, 404, "gateway_order_not_found", ""},
		{commandsidetest.Customer, "/v1/simulated-gateway/orders/order_none/pay", `{"outcome":"captured"}`, 404, "gateway_order_not_found", ""},
		{commandsidetest.Ops, "/v1/simulated-gateway/orders/order_none/pay", `{"outcome":"captured"}`, 404, "gateway_order_not_found", ""},
		{domain.Actor{Sub: "x", Role: domain.Rider}, path, `{"outcome":"captured"}`, 403, "forbidden", ""},
		{commandsidetest.Customer, path, ``, 422, "validation_failed", "body.outcome"},
		{commandsidetest.Customer, path, `{"outcome":"stolen"}`, 422, "validation_failed", "body.outcome"},
		{commandsidetest.Customer, path, `{"outcome":"captured","faults":["fire"]}`, 422, "validation_failed", "body.faults[0]"},
		{commandsidetest.Customer, path, `{"outcome":"captured","delay":"-1s"}`, 422, "validation_failed", "body.delay"},
		{commandsidetest.Customer, path, `{"outcome":"captured","delay":"721h"}`, 422, "validation_failed", "body.delay"},
		{commandsidetest.Customer, path, `{"outcome":"captured","amount":0}`, 422, "validation_failed", "body.amount"},
	} {
		r := w.Call(c.actor, c.path, c.body)
		if r.Status != c.status || r.Body["code"] != c.code {
			t.Errorf("%s: %+v", c.body, r)
		}
		if c.faulty != "" {
			if f := r.Body["errors"].([]any)[0].(map[string]any); f["location"] != c.faulty {
				t.Errorf("%s: %v", c.body, f)
			}
		}
	}
	if r := w.Call(commandsidetest.Ops, path, `{"outcome":"captured","delay":"1h","paymentId":"pay_1"}`); r.Status != 202 || r.Body["paymentId"] != "pay_1" || r.Header.Get("ETag") != "" {
		t.Errorf("%+v", r)
	}
	other := w.Open("01990000-0000-7000-8000-000000000002")
	if r := w.Call(commandsidetest.Ops, "/v1/simulated-gateway/orders/"+other+"/pay", `{"outcome":"captured","paymentId":"pay_1"}`); r.Status != 422 {
		t.Errorf("%+v", r)
	}
	w.RunPolicies()
	w.WantEvents("01990000-0000-7000-8000-000000000001", "PAYMENT_REQUESTED")
	w.SetGateway(gateway.NewRazorpay("id", "secret", gateway.RazorpayOptions{}))
	if r := w.Call(commandsidetest.Ops, path, `{"outcome":"captured"}`); r.Status != 404 || r.Body["code"] != "not_configured" {
		t.Errorf("a real gateway: %+v", r)
	}
}

// maxWebhookBytes is how large the body of a webhook may be.
const maxWebhookBytes = 256 << 10

func TestInbox(t *testing.T) {
	t.Parallel()
	w := commandsidetest.New(t)
	g := w.Open("01990000-0000-7000-8000-000000000001")
	for _, body := range []string{
		commandsidetest.Captured(g, "pay_1", 45000, "INR"),
		`{"event":"invoice.paid","payload":{}}`,
		`no JSON`,
		`{"event":"payment.captured","payload":{"payment":{"entity":{"id":"pay_2"}}}}`,
		`{"pad":"` + strings.Repeat("x", maxWebhookBytes-10) + `"}`,
	} {
		if r := w.Webhook(body); r.Status != 200 {
			t.Errorf("%.60s: %+v", body, r)
		}
	}
	if r := w.Webhook(strings.Repeat(" ", maxWebhookBytes+1)); r.Status != 413 {
		t.Errorf("%+v", r)
	}
	kept := w.Inbox()
	if len(kept) != 5 {
		t.Fatalf("%d records", len(kept))
	}
	dead := 0
	for _, e := range kept {
		if e.Type != "WEBHOOK_RECEIVED" || e.Partition != eventlog.PartitionFor(e.Subject, commandsidetest.Partitions) {
			t.Errorf("%+v", e)
		}
		if !slices.ContainsFunc(e.Record.Headers, func(h kgo.RecordHeader) bool { return h.Key == "x-razorpay-event-id" && string(h.Value) == "evt_1" }) {
			t.Errorf("no event id: %v", e.Record.Headers)
		}
		if bytes.Contains(e.Data, []byte("pay_1")) && (e.Subject != g || !bytes.Contains(e.Data, []byte(`"event":"payment.captured"`))) {
			t.Errorf("%s %s", e.Subject, e.Data)
		}
		switch err := w.Policies.RecordPayment().Each(t.Context(), e); {
		case errors.Is(err, eventlog.ErrPoison):
			dead++
		case err != nil:
			t.Error(err)
		}
	}
	if dead != 3 {
		t.Errorf("%d are poison, want 3", dead)
	}
	w.WantEvents("01990000-0000-7000-8000-000000000001", "PAYMENT_REQUESTED", "PAYMENT_SUCCESS")

	// A webhook that cannot be kept is not acknowledged.
	w.Cluster.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		w.Cluster.KeepControl()
		p := req.(*kmsg.ProduceRequest)
		resp := p.ResponseKind().(*kmsg.ProduceResponse)
		for _, t := range p.Topics {
			rt := kmsg.NewProduceResponseTopic()
			rt.Topic, rt.TopicID = t.Topic, t.TopicID
			for _, part := range t.Partitions {
				rp := kmsg.NewProduceResponseTopicPartition()
				rp.Partition, rp.ErrorCode = part.Partition, kerr.TopicAuthorizationFailed.Code
				rt.Partitions = append(rt.Partitions, rp)
			}
			resp.Topics = append(resp.Topics, rt)
		}
		return resp, nil, true
	})
	if r := w.Webhook(commandsidetest.Captured(g, "pay_1", 45000, "INR")); r.Status != 503 || r.Header.Get("Retry-After") == "" {
		t.Errorf("%+v", r)
	}
}

// An operator resolves an unmatched payment before it is refunded.
func TestResolveBeforeRefund(t *testing.T) {
	t.Parallel()
	w := commandsidetest.New(t)
	g := w.Open("01990000-0000-7000-8000-000000000001")
	if r := w.Webhook(commandsidetest.Captured(g, "pay_1", 7, "INR")); r.Status != 200 {
		t.Fatal(r)
	}
	if err := w.Policies.RecordPayment().Each(t.Context(), w.Inbox()[0]); err != nil {
		t.Fatal(err)
	}
	unmatched := w.Log()[len(w.Log())-1]
	r := w.Call(commandsidetest.Ops, "/v1/ops/payments/pay_1/resolve", `{"reason":"settled in cash"}`, "Idempotency-Key", "k1")
	if r.Status != 200 || r.Body["orderId"] != "01990000-0000-7000-8000-000000000001" {
		t.Fatalf("found by the gateway order: %+v", r)
	}
	if err := w.Policies.RefundOrder().Each(t.Context(), unmatched); err != nil {
		t.Fatal(err)
	}
	w.RunPolicies()
	w.WantEvents("01990000-0000-7000-8000-000000000001", "PAYMENT_REQUESTED", "PAYMENT_UNMATCHED", "PAYMENT_RESOLVED")
	if r := w.Call(commandsidetest.Ops, "/v1/payments/01990000-0000-7000-8000-000000000001/refund", `{"reason":"x"}`); r.Status != 409 || r.Body["code"] != "payment_unsettled" {
		t.Errorf("nothing to refund: %+v", r)
	}
}
