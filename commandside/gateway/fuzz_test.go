package gateway

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// FuzzWebhook checks that ParseWebhook reads or refuses any body, and that the ids of a
// webhook that it reads may become keys and parts of paths.
func FuzzWebhook(f *testing.F) {
	f.Add([]byte(`{"event":"payment.captured","payload":{"payment":{"entity":{"id":"pay_1","amount":100,"currency":"INR","order_id":"order_1","status":"captured","notes":[]}}}}`))
	f.Add([]byte(`{"event":"refund.processed","payload":{"refund":{"entity":{"id":"rfnd_1","payment_id":"pay_1","amount":100,"notes":{"orderId":"o","refundId":"r"}}}}}`))
	f.Add([]byte(`{"event":"order.paid","payload":{"payment":null,"order":{}}}`))
	f.Add([]byte(`{"event":"unknown","payload":3}`))
	f.Add([]byte("null"))
	f.Fuzz(func(t *testing.T, body []byte) {
		w, err := ParseWebhook(body)
		key := w.InboxKey()
		if err == nil && key != "" && w.Payment != nil && !gatewayID.MatchString(key) {
			t.Errorf("key %q of %s", key, body)
		}
		kept, data, kerr := Kept(body)
		if (kerr == nil) != (err == nil) {
			t.Fatalf("parsed with %v, kept with %v: %s", err, kerr, body)
		}
		if err != nil {
			return
		}
		again, err := ParseWebhook(data)
		if d := cmp.Diff(w, again); err != nil || d != "" || !cmp.Equal(w, kept) {
			t.Errorf("%s is kept as %s, which reads otherwise (%v): %s", body, data, err, d)
		}
	})
}
