package gateway

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A webhook as Razorpay sends it, with everything about the payer.
const fullWebhook = `{"entity":"event","account_id":"acc_7","event":"payment.captured","contains":["payment"],"payload":{"payment":{"entity":{
	"id":"pay_1","entity":"payment","amount":45000,"currency":"INR","status":"captured","order_id":"order_1","invoice_id":null,"international":false,"method":"card",
	"amount_refunded":0,"refund_status":null,"captured":true,"description":"Payer's own words","card_id":"card_9","card":{"id":"card_9","name":"Payer Name","last4":"1881","network":"Visa"},
	"bank":"PayerBank","wallet":"payerwallet","vpa":"payer@upi","email":"payer@example.com","contact":"+919876543210","notes":{"orderId":"o1","phone":"+919876543210"},
	"fee":900,"tax":100,"error_code":"BAD_REQUEST_ERROR","error_description":"It failed","error_source":"payer","acquirer_data":{"rrn":"123456"},"created_at":1700000000}}},"created_at":1700000001}`

// TestKept: of a webhook only what Tomato uses is kept, and it reads as before.
func TestKept(t *testing.T) {
	t.Parallel()
	w, data, err := Kept([]byte(fullWebhook))
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"event":"payment.captured","payload":{"payment":{"entity":{"id":"pay_1","amount":45000,"currency":"INR","status":"captured","order_id":"order_1",` +
		`"captured":true,"error_code":"BAD_REQUEST_ERROR","error_description":"It failed","created_at":1700000000}}},"created_at":1700000001}`
	if string(data) != want {
		t.Errorf("kept\n%s\nwant\n%s", data, want)
	}
	again, err := ParseWebhook(data)
	if d := cmp.Diff(w, again); err != nil || d != "" {
		t.Errorf("%v %s", err, d)
	}
	for body, want := range map[string]string{
		`{"event":"invoice.paid","payload":{"email":"payer@example.com"},"created_at":7}`: `{"event":"invoice.paid","created_at":7}`,
		`{"event":"payer@example.com","payload":{}}`:                                      `{"event":"unknown"}`,
		`{"event":"refund.processed","payload":{"refund":{"entity":{"id":"rfnd_1","amount":9,"payment_id":"pay_1","notes":{"orderId":"o1","refundId":"r1","x":"payer"},"receipt":"for payer@example.com"}},"payment":{"entity":{"id":"pay_1","order_id":"order_1","contact":"+91"}}}}`: `{"event":"refund.processed","payload":{"payment":{"entity":{"id":"pay_1","amount":0,"currency":"","order_id":"order_1"}},` +
			`"refund":{"entity":{"id":"rfnd_1","amount":9,"payment_id":"pay_1","notes":{"orderId":"o1","refundId":"r1"}}}}}`,
	} {
		if _, data, err := Kept([]byte(body)); err != nil || string(data) != want {
			t.Errorf("%s is kept as\n%s, %v, want\n%s", body, data, err, want)
		}
	}
	// A status of many words does not become that of the event: only captured money pays.
	odd, data, err := Kept([]byte(strings.Replace(fullWebhook, `"status":"captured"`, `"status":"not yet captured"`, 1)))
	if again, perr := ParseWebhook(data); err != nil || perr != nil || odd.Payment.Status != "unknown" || again.Payment.Status != "unknown" {
		t.Errorf("%+v, %v, %v", odd.Payment, err, perr)
	}
}

// TestFaultsQuoteNothing: why a body cannot be decoded is kept with the dead letter, and
// says nothing of what is in the body.
func TestFaultsQuoteNothing(t *testing.T) {
	t.Parallel()
	for _, body := range []string{`payer@example.com`, `{"event":"payment.captured","payload":"payer@example.com"}`, `{"event":98765432109876543210}`,
		`{"event":"payment.captured","payload":{"payment":{"entity":{"id":"pay_1","amount":98765432109876543210}}}}`} {
		_, _, err := Kept([]byte(body))
		if err == nil || strings.Contains(err.Error(), "9876543") || strings.Contains(err.Error(), "payer") {
			t.Errorf("%s: %v", body, err)
		}
	}
}
