package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tomato/eventlog"
)

// The example in Razorpay's documentation.
func TestSignatureKnownAnswer(t *testing.T) {
	t.Parallel()
	const want = "2fe04e22977002e6c7cb553adab8b460cb9e2a4970d5953cb27a8472752e3bbc"
	body := []byte(`{"a":1,"b":2,"c":{"d":3}}`)
	if got := Sign("123456", body); got != want {
		t.Fatalf("Sign = %s, want %s", got, want)
	}
	for _, c := range []struct {
		name      string
		secrets   []string
		body      string
		signature string
		want      bool
	}{
		{"the secret", []string{"123456"}, string(body), want, true},
		{"an older one of several", []string{"new", "123456"}, string(body), want, true},
		{"not ours", []string{"new", "12345"}, string(body), want, false},
		{"other bytes, same JSON", []string{"123456"}, `{"a":1, "b":2,"c":{"d":3}}`, want, false},
		{"uppercase", []string{"123456"}, string(body), strings.ToUpper(want), false},
		{"missing", []string{"123456"}, string(body), "", false},
		{"no secrets", nil, string(body), want, false},
		{"an empty secret signs nothing", []string{""}, string(body), Sign("", body), false},
	} {
		if got := Verify(c.secrets, []byte(c.body), c.signature); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestParseWebhook(t *testing.T) {
	t.Parallel()
	const captured = `{"entity":"event","account_id":"acc_1","event":"payment.captured","contains":["payment"],"payload":{"payment":{"entity":{"id":"pay_1","entity":"payment","amount":45000,"currency":"INR","status":"captured","order_id":"order_1","invoice_id":null,"method":"card","captured":true,"notes":[],"error_description":null}}},"created_at":1567674606}`
	for _, c := range []struct {
		name, body string
		want       Webhook
		key        string
		fails      bool
	}{
		{name: "captured", body: captured, key: "order_1",
			want: Webhook{Event: EventPaymentCaptured, Payment: &Payment{PaymentID: "pay_1", GatewayOrderID: "order_1", Amount: 45000, Currency: "INR", Status: "captured"}}},
		{name: "order.paid, notes an object", key: "order_1",
			body: `{"event":"order.paid","payload":{"payment":{"entity":{"id":"pay_1","amount":1,"currency":"INR","notes":{"a":"b","n":7}}},"order":{"entity":{"id":"order_1","notes":[]}}}}`,
			want: Webhook{Event: EventOrderPaid, Payment: &Payment{PaymentID: "pay_1", GatewayOrderID: "order_1", Amount: 1, Currency: "INR", Status: "captured"}}},
		{name: "no order", key: "pay_1",
			body: `{"event":"payment.failed","payload":{"payment":{"entity":{"id":"pay_1","amount":1,"currency":"INR","order_id":null,"status":"failed","error_description":"no\u0000pe"}}}}`,
			want: Webhook{Event: EventPaymentFailed, Payment: &Payment{PaymentID: "pay_1", Amount: 1, Currency: "INR", Status: "failed", Reason: "nope"}}},
		{name: "refund", key: "order_1",
			body: `{"event":"refund.processed","payload":{"refund":{"entity":{"id":"rfnd_1","amount":9,"payment_id":"pay_1","notes":{"orderId":"o1","refundId":"r1"},"receipt":"r1","status":"processed"}},"payment":{"entity":{"id":"pay_1","order_id":"order_1","notes":[]}}}}`,
			want: Webhook{Event: EventRefundProcessed, Refund: &RefundNotice{GatewayRefundID: "rfnd_1", PaymentID: "pay_1", GatewayOrderID: "order_1", RefundID: "r1", AggregateID: "o1", Amount: 9}}},
		{name: "refund by hand", key: "pay_1",
			body: `{"event":"refund.failed","payload":{"refund":{"entity":{"id":"rfnd_1","amount":9,"payment_id":"pay_1","notes":[],"receipt":null}}}}`,
			want: Webhook{Event: EventRefundFailed, Refund: &RefundNotice{GatewayRefundID: "rfnd_1", PaymentID: "pay_1", Amount: 9}}},
		{name: "unknown type, whatever it holds", body: `{"event":"invoice.paid","payload":7}`, want: Webhook{Event: "invoice.paid"}},
		{name: "not JSON", body: `{"event":`, fails: true},
		{name: "no event", body: `{}`, fails: true},
		{name: "no payload", body: `{"event":"payment.captured"}`, fails: true},
		{name: "no payment", body: `{"event":"payment.captured","payload":{}}`, fails: true},
		{name: "amount no integer", body: strings.Replace(captured, "45000", "450.5", 1), fails: true},
		{name: "amount negative", body: strings.Replace(captured, "45000", "-1", 1), fails: true},
		{name: "id none", body: strings.Replace(captured, "pay_1", "../orders", 1), fails: true},
		{name: "currency none", body: strings.Replace(captured, "INR", "", 1), fails: true},
	} {
		got, err := ParseWebhook([]byte(c.body))
		if (err != nil) != c.fails {
			t.Errorf("%s: error %v", c.name, err)
			continue
		}
		if c.fails {
			continue
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s: -want +got\n%s", c.name, d)
		}
		if k := got.InboxKey(); k != c.key {
			t.Errorf("%s: key %q, want %q", c.name, k, c.key)
		}
	}
}

func FuzzParseWebhook(f *testing.F) {
	f.Add([]byte(`{"event":"payment.captured","payload":{"payment":{"entity":{"id":"pay_1","amount":1,"currency":"INR"}}}}`))
	f.Add([]byte(`{"event":"refund.failed","payload":{"refund":{"entity":{"payment_id":"p","notes":[]}}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		w, err := ParseWebhook(b)
		if err == nil && w.Event == "" {
			t.Fatal("a webhook without event")
		}
		w.InboxKey()
	})
}

// vendor is a stand-in for Razorpay's API. It answers as its script says, and keeps the
// requests.
type vendor struct {
	*httptest.Server
	mu     sync.Mutex
	script []answer
	asked  []asked
}

type answer struct {
	status int
	body   string
}

type asked struct {
	method, path, body, idempotency, user, password string
}

func newVendor(t *testing.T, script ...answer) *vendor {
	v := &vendor{script: script}
	v.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		v.mu.Lock()
		defer v.mu.Unlock()
		user, password, _ := r.BasicAuth()
		v.asked = append(v.asked, asked{r.Method, r.URL.EscapedPath(), string(b), r.Header.Get("X-Refund-Idempotency"), user, password})
		a := answer{500, ""}
		if len(v.script) > 0 {
			a, v.script = v.script[0], v.script[1:]
		}
		w.WriteHeader(a.status)
		_, _ = io.WriteString(w, a.body)
	}))
	t.Cleanup(v.Close)
	return v
}

func (v *vendor) requests() []asked {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.asked
}

func (v *vendor) client() *Razorpay {
	return NewRazorpay("rzp_key", "secret", RazorpayOptions{BaseURL: v.URL, Timeout: 2 * time.Second})
}

func TestRazorpayOrder(t *testing.T) {
	t.Parallel()
	v := newVendor(t,
		answer{200, `{"id":"order_1","amount":45000,"currency":"INR","receipt":"o-1","notes":[],"status":"created"}`},
		answer{200, `{"id":"order_1","amount":45000,"currency":"INR","receipt":"o-1","notes":[]}`},
		answer{200, `{"entity":"collection","count":2,"items":[{"id":"pay_1","amount":45000,"currency":"INR","status":"failed","order_id":"order_1","error_description":"declined"},{"id":"pay_2","amount":45000,"currency":"INR","status":"captured","order_id":"order_1"}]}`},
		answer{400, `{"error":{"code":"BAD_REQUEST_ERROR","description":"The id provided does not exist"}}`},
		answer{404, `<html>proxy</html>`},
		answer{400, `{"error":{"code":"BAD_REQUEST_ERROR","description":"Order amount less than minimum amount allowed"}}`},
		answer{401, `{"error":{"code":"BAD_REQUEST_ERROR","description":"Authentication failed"}}`},
	)
	r, ctx := v.client(), t.Context()
	o, err := r.CreateOrder(ctx, "o-1", 45000, "INR")
	if d := cmp.Diff(Order{GatewayOrderID: "order_1", KeyID: "rzp_key", Amount: 45000, Currency: "INR"}, o); d != "" || err != nil {
		t.Fatal(err, d)
	}
	if d := cmp.Diff(asked{"POST", "/v1/orders", `{"amount":45000,"currency":"INR","receipt":"o-1","notes":{"orderId":"o-1"}}`, "", "rzp_key", "secret"},
		v.requests()[0], cmp.AllowUnexported(asked{})); d != "" {
		t.Error(d)
	}
	if receipt, err := r.Order(ctx, "order_1"); receipt != "o-1" || err != nil {
		t.Errorf("Order = %q, %v", receipt, err)
	}
	ps, err := r.Payments(ctx, "order_1")
	if d := cmp.Diff([]Payment{{"pay_1", "order_1", 45000, "INR", "failed", "declined"}, {"pay_2", "order_1", 45000, "INR", "captured", ""}}, ps); d != "" || err != nil {
		t.Error(err, d)
	}
	if _, err := r.Order(ctx, "order_2"); !errors.Is(err, ErrUnknown) || errors.Is(err, eventlog.ErrUnavailable) {
		t.Errorf("an id that does not exist: %v", err)
	}
	if _, err := r.Order(ctx, "order_2"); !errors.Is(err, eventlog.ErrUnavailable) || errors.Is(err, ErrUnknown) {
		t.Errorf("somebody else's 404 is no definite no: %v", err)
	}
	if _, err := r.CreateOrder(ctx, "o-1", 1, "INR"); !errors.Is(err, ErrRefused) || errors.Is(err, eventlog.ErrUnavailable) {
		t.Errorf("refused: %v", err)
	}
	if _, err := r.CreateOrder(ctx, "o-1", 1, "INR"); !errors.Is(err, eventlog.ErrUnavailable) {
		t.Errorf("our keys are wrong, which is no answer about the order: %v", err)
	}
	if _, err := r.Order(ctx, "../payments"); !errors.Is(err, ErrUnknown) {
		t.Errorf("an id that is none: %v", err)
	}
	if n := len(v.requests()); n != 7 {
		t.Errorf("%d requests, want 7: an id that is none is not sent", n)
	}
}

// A retried refund must have the same body byte for byte, or the gateway refuses it.
func TestRazorpayRefund(t *testing.T) {
	t.Parallel()
	f := Refund{PaymentID: "pay_1", RefundID: "0b4f9a5e-0000-4000-8000-000000000001", AggregateID: "o-1", Amount: 45000}
	list := func(status string) string {
		return `{"items":[{"id":"rfnd_0","notes":[],"receipt":null,"status":"processed"},{"id":"rfnd_1","notes":{"refundId":"` + f.RefundID + `"},"status":"` + status + `"}]}`
	}
	v := newVendor(t,
		answer{503, ``}, answer{409, `{"error":{"code":"BAD_REQUEST_ERROR","description":"in progress"}}`}, answer{200, `{"id":"rfnd_1","status":"processed"}`},
		answer{200, list("pending")}, answer{200, list("failed")},
		answer{400, `{"error":{"code":"BAD_REQUEST_ERROR","description":"The payment has been fully refunded already"}}`}, answer{200, list("processed")},
		answer{400, `{"error":{"code":"BAD_REQUEST_ERROR","description":"too old"}}`}, answer{200, `{"items":[]}`},
	)
	r, ctx := v.client(), t.Context()
	if _, err := r.Refund(ctx, f); !errors.Is(err, eventlog.ErrUnavailable) {
		t.Fatalf("503: %v", err)
	}
	if s, err := r.Refund(ctx, f); s != RefundPending || err != nil {
		t.Fatalf("409: %v, %v", s, err)
	}
	if s, err := r.Refund(ctx, f); s != RefundProcessed || err != nil {
		t.Fatalf("200: %v, %v", s, err)
	}
	for i, a := range v.requests() {
		if a.body != v.requests()[0].body || a.idempotency != f.RefundID || a.path != "/v1/payments/pay_1/refund" {
			t.Errorf("attempt %d: %+v", i, a)
		}
	}
	if want := `{"amount":45000,"speed":"normal","notes":{"orderId":"o-1","refundId":"` + f.RefundID + `"},"receipt":"` + f.RefundID + `"}`; v.requests()[0].body != want {
		t.Errorf("body %s\nwant %s", v.requests()[0].body, want)
	}
	for _, want := range []RefundState{RefundPending, RefundFailed} {
		if s, err := r.RefundState(ctx, f.PaymentID, f.RefundID); s != want || err != nil {
			t.Errorf("RefundState = %v, %v, want %v", s, err, want)
		}
	}
	if s, err := r.Refund(ctx, f); s != RefundProcessed || err != nil {
		t.Errorf("a no about the repeat: %v, %v", s, err)
	}
	if _, err := r.Refund(ctx, f); !errors.Is(err, ErrRefused) || errors.Is(err, eventlog.ErrUnavailable) {
		t.Errorf("a no: %v", err)
	}
}

func TestRazorpayBreaker(t *testing.T) {
	t.Parallel()
	v := newVendor(t)
	r := v.client()
	for range 2 * breakerFailures {
		if _, err := r.Order(t.Context(), "order_1"); !errors.Is(err, eventlog.ErrUnavailable) {
			t.Fatal(err)
		}
	}
	if n := len(v.requests()); n != breakerFailures {
		t.Errorf("%d requests, want %d: then the breaker is open", n, breakerFailures)
	}
	refusing := newVendor(t)
	for range 2 * breakerFailures {
		refusing.script = append(refusing.script, answer{400, `{"error":{"code":"X"}}`})
	}
	r = refusing.client()
	for range 2 * breakerFailures {
		_, _ = r.Order(t.Context(), "order_1")
	}
	if n := len(refusing.requests()); n != 2*breakerFailures {
		t.Errorf("%d requests, want %d: a refusal is an answer", n, 2*breakerFailures)
	}
}

func TestRazorpayBounds(t *testing.T) {
	t.Parallel()
	v := newVendor(t, answer{200, `{"receipt":"` + strings.Repeat("x", maxResponseBytes) + `"}`}, answer{200, `{"id":"order_1","amount":2,"currency":"INR"}`}, answer{302, ""})
	r := v.client()
	if _, err := r.Order(t.Context(), "order_1"); !errors.Is(err, eventlog.ErrUnavailable) {
		t.Errorf("an answer without end: %v", err)
	}
	if _, err := r.CreateOrder(t.Context(), "o-1", 1, "INR"); !errors.Is(err, eventlog.ErrUnavailable) {
		t.Errorf("an order over another amount: %v", err)
	}
	if _, err := r.Order(t.Context(), "order_1"); !errors.Is(err, eventlog.ErrUnavailable) {
		t.Errorf("a redirect: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Order(ctx, "order_1"); err == nil {
		t.Error("a caller who left got an answer")
	}
}

func TestNotesOnTheWire(t *testing.T) {
	t.Parallel()
	for _, n := range []notes{nil, {"a": "b"}} {
		b, err := json.Marshal(n)
		if err != nil {
			t.Fatal(err)
		}
		var back notes
		if err := json.Unmarshal(b, &back); err != nil || !cmp.Equal(n, back) {
			t.Errorf("%s reads %v, %v", b, back, err)
		}
	}
}
