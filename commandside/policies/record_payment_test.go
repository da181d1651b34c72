package policies_test

import (
	"slices"
	"strings"
	"testing"

	"tomato/commandside/commandsidetest"
	"tomato/commandside/gateway"
	"tomato/domain"
	"tomato/domain/payment"
)

// One capture, told in many ways, pays once.
func TestCapturedPaysOnce(t *testing.T) {
	t.Parallel()
	for _, faults := range []string{``, `"duplicate"`, `"reordered"`, `"duplicate","reordered"`, `"old_secret"`} {
		t.Run(faults, func(t *testing.T) {
			t.Parallel()
			w := commandsidetest.New(t)
			id := w.Pay(w.Open("01990000-0000-7000-8000-000000000001"), `{"outcome":"captured","faults":[`+faults+`]}`)
			w.WantEvents("01990000-0000-7000-8000-000000000001", "PAYMENT_REQUESTED", "PAYMENT_SUCCESS", "ORDER_PAID")
			if s := w.Payment("01990000-0000-7000-8000-000000000001"); s.Booked != id {
				t.Errorf("booked %q, want %q", s.Booked, id)
			}
			w.WantRefunds(map[string]int64{})
		})
	}
}

func TestOnlyCapturedMoneyPays(t *testing.T) {
	t.Parallel()
	w := commandsidetest.New(t)
	g := w.Open("01990000-0000-7000-8000-000000000001")
	id := w.Pay(g, `{"outcome":"authorized"}`)
	w.WantEvents("01990000-0000-7000-8000-000000000001", "PAYMENT_REQUESTED")
	// An event that is called captured and holds what is not.
	if r := w.Webhook(strings.Replace(commandsidetest.Captured(g, "pay_x", 45000, "INR"), `"status":"captured"`, `"status":"authorized"`, 1)); r.Status != 200 {
		t.Fatal(r)
	}
	w.RunPolicies()
	w.WantEvents("01990000-0000-7000-8000-000000000001", "PAYMENT_REQUESTED")
	w.Pay(g, `{"outcome":"failed"}`)
	w.WantEvents("01990000-0000-7000-8000-000000000001", "PAYMENT_REQUESTED", "PAYMENT_FAILED")
	w.Pay(g, `{"outcome":"captured","paymentId":"`+id+`"}`)
	w.WantEvents("01990000-0000-7000-8000-000000000001", "PAYMENT_REQUESTED", "PAYMENT_FAILED", "PAYMENT_SUCCESS", "ORDER_PAID")
}

// Money of another amount or currency goes back exactly, and the order stays
// payable.
func TestOtherAmountOrCurrency(t *testing.T) {
	t.Parallel()
	w := commandsidetest.New(t)
	g := w.Open("01990000-0000-7000-8000-000000000001")
	less := w.Pay(g, `{"outcome":"captured","amount":44999}`)
	dollars := w.Pay(g, `{"outcome":"captured","currency":"USD"}`)
	w.WantEvents("01990000-0000-7000-8000-000000000001", "PAYMENT_REQUESTED", "PAYMENT_UNMATCHED", "REFUND_REQUESTED", "REFUND_SUCCESS", "PAYMENT_UNMATCHED", "REFUND_REQUESTED", "REFUND_SUCCESS")
	w.WantRefunds(map[string]int64{less: 44999, dollars: 45000})
	w.Pay(g, `{"outcome":"captured"}`)
	if got := w.Events("01990000-0000-7000-8000-000000000001"); !slices.Equal(got[len(got)-2:], []string{"PAYMENT_SUCCESS", "ORDER_PAID"}) {
		t.Errorf("events end in %v", got[len(got)-2:])
	}
	if a := w.Attempt("01990000-0000-7000-8000-000000000001", less); a.Reason != payment.ReasonAmountMismatch || a.State != payment.AttemptStateRefunded {
		t.Errorf("%+v", a)
	}
}

// Order A's money cannot pay order B: what binds is the gateway order under the
// signature, and nothing that the body says of our orders.
func TestOtherOrdersSignatureCannotPay(t *testing.T) {
	t.Parallel()
	w := commandsidetest.New(t)
	a, b := w.Open("01990000-0000-7000-8000-00000000000a"), w.Open("01990000-0000-7000-8000-00000000000b")
	body := strings.Replace(commandsidetest.Captured(a, "pay_a", 45000, "INR"), `"notes":[]`, `"notes":{"orderId":"01990000-0000-7000-8000-00000000000b"}`, 1)
	signature := gateway.Sign(commandsidetest.WebhookSecrets[0], []byte(body))
	forged := strings.Replace(body, a, b, 1)
	for _, s := range []string{signature, "", strings.ToUpper(signature), gateway.Sign("another secret", []byte(forged))} {
		if r := w.Call(domain.Actor{}, "/v1/webhooks/razorpay", forged, gateway.SignatureHeader, s); r.Status != 401 || r.Body["code"] != "unauthorized" {
			t.Errorf("signature %q: %+v", s, r)
		}
	}
	if kept := w.Inbox(); len(kept) != 0 {
		t.Errorf("%d webhooks were kept", len(kept))
	}
	if r := w.Webhook(body); r.Status != 200 || r.Header.Get("ETag") != "" {
		t.Fatal(r)
	}
	w.RunPolicies()
	w.WantEvents("01990000-0000-7000-8000-00000000000a", "PAYMENT_REQUESTED", "PAYMENT_SUCCESS", "ORDER_PAID")
	w.WantEvents("01990000-0000-7000-8000-00000000000b", "PAYMENT_REQUESTED")
}

// The webhook is faster than the read model: the policy waits for the read model,
// and takes no gateway order for unknown that is only new.
func TestWebhookBeforeItsPaymentIsSeen(t *testing.T) {
	t.Parallel()
	w := commandsidetest.New(t)
	g := w.Open("01990000-0000-7000-8000-000000000001")
	w.ReadModel.SetBehind(true)
	w.Pay(g, `{"outcome":"captured"}`)
	w.WantEvents("01990000-0000-7000-8000-000000000001", "PAYMENT_REQUESTED", "PAYMENT_SUCCESS", "ORDER_PAID")
	if w.ReadModel.Waits() == 0 {
		t.Error("the policy did not wait for the read model")
	}
	// The read model has lost the gateway order: the gateway is asked.
	w.Open("01990000-0000-7000-8000-000000000002")
	s := w.Payment("01990000-0000-7000-8000-000000000002")
	w.ReadModel.Forget(s.GatewayOrderID)
	orderID, known, err := w.Side.Orders.OrderOf(t.Context(), s.GatewayOrderID)
	if orderID != "01990000-0000-7000-8000-000000000002" || !known || err != nil {
		t.Errorf("orderOf = %q, %v, %v", orderID, known, err)
	}
}

func TestMoneyOfAnUnknownGatewayOrder(t *testing.T) {
	t.Parallel()
	w := commandsidetest.New(t)
	if r := w.Webhook(commandsidetest.Captured("order_elsewhere", "pay_x", 700, "INR")); r.Status != 200 {
		t.Fatal(r)
	}
	if r := w.Webhook(commandsidetest.Captured("", "pay_y", 700, "INR")); r.Status != 200 {
		t.Fatal(r)
	}
	w.RunPolicies()
	for _, id := range []string{"pay_x", "pay_y"} {
		w.WantEvents(id, "PAYMENT_UNMATCHED")
		if a := w.Attempt(id, id); a.Reason != payment.ReasonUnknownOrder || a.Amount != 700 {
			t.Errorf("%+v", a)
		}
	}
	w.WantRefunds(map[string]int64{}) // an operator's
	if r := w.Call(commandsidetest.Ops, "/v1/ops/payments/pay_x/resolve", `{"reason":"a gift card"}`); r.Status != 200 || r.Header.Get("ETag") != `"2"` {
		t.Errorf("resolve: %+v", r)
	}
	if r := w.Call(commandsidetest.Ops, "/v1/ops/payments/pay_x/resolve", `{"reason":"again"}`); r.Status != 200 || r.Header.Get("ETag") != `"2"` {
		t.Errorf("resolve again: %+v", r)
	}
	if r := w.Call(commandsidetest.Ops, "/v1/ops/payments/pay_none/resolve", `{"reason":"x"}`); r.Status != 404 || r.Body["code"] != "payment_not_found" {
		t.Errorf("resolve what is not there: %+v", r)
	}
	if r := w.Call(commandsidetest.Customer, "/v1/ops/payments/pay_x/resolve", `{"reason":"x"}`); r.Status != 403 {
		t.Errorf("resolve by a customer: %+v", r)
	}
	// A gateway order that was made and never became a payment.
	o, err := w.Simulated.CreateOrder(t.Context(), "01990000-0000-7000-8000-00000000001b", 1, "INR")
	if err != nil {
		t.Fatal(err)
	}
	w.Webhook(commandsidetest.Captured(o.GatewayOrderID, "pay_z", 1, "INR"))
	w.RunPolicies()
	if a := w.Attempt("pay_z", "pay_z"); a.Reason != payment.ReasonNotRequested {
		t.Errorf("%+v", a)
	}
}

func TestSecondCapture(t *testing.T) {
	t.Parallel()
	w := commandsidetest.New(t)
	g := w.Open("01990000-0000-7000-8000-000000000001")
	first := w.Pay(g, `{"outcome":"captured"}`)
	second := w.Pay(g, `{"outcome":"captured"}`)
	w.WantEvents("01990000-0000-7000-8000-000000000001", "PAYMENT_REQUESTED", "PAYMENT_SUCCESS", "ORDER_PAID", "PAYMENT_UNMATCHED", "REFUND_REQUESTED", "REFUND_SUCCESS")
	w.WantRefunds(map[string]int64{second: 45000})
	s := w.Payment("01990000-0000-7000-8000-000000000001")
	if a, _ := s.Attempt(second); s.Booked != first || s.Status != payment.StatusPaid || a.Reason != payment.ReasonAlreadyPaid {
		t.Errorf("%+v", s)
	}
	// An operator who names no payment after that means the one that paid.
	if r := w.Call(commandsidetest.Ops, "/v1/payments/01990000-0000-7000-8000-000000000001/refund", `{"reason":"cold food"}`); r.Status != 200 || r.Body["state"] != "refund_pending" {
		t.Errorf("%+v", r)
	}
	w.RunPolicies()
	w.WantRefunds(map[string]int64{first: 45000, second: 45000})
}
