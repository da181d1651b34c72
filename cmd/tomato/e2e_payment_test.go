package main

import (
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"

	"tomato/commandside/gateway"
	"tomato/domain"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
)

// reason is the body of what needs one.
var reason = map[string]any{"reason": "of the test"}

// TestMoneyIsBookedOnceOrGoesBack: whatever a gateway sends, and whenever, an
// order is paid once, by its own money, and all other money goes back or comes
// before an operator.
func TestMoneyIsBookedOnceOrGoesBack(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, kafka eventlog.Config) {
		a := newTown(t, kafka).open()
		a.restaurant("r1", lng0, lat0)
		restaurant := a.feed(staff("r1"))
		send := func(t *testing.T, bodies ...[]byte) {
			t.Helper()
			for _, b := range bodies {
				if x := a.webhook(b); x.status != http.StatusOK {
					t.Fatal(x.fault())
				}
			}
		}
		wantPayments := func(t *testing.T, orderID string, want ...string) {
			t.Helper()
			if got := types(a.history(eventlog.Payments, orderID)); !slices.Equal(got, want) {
				t.Errorf("payments of the order: %v, want %v", got, want)
			}
		}

		t.Run("a webhook in the same millisecond as the answer of payment is not unmatched", func(t *testing.T) {
			const n = 40
			orders := make([]string, n)
			a.each(n, n, func(i int) {
				orders[i] = a.place("c1", "r1")
				gatewayOrder := a.openPayment("c1", orders[i])
				var both sync.WaitGroup
				for _, event := range []string{gateway.EventPaymentCaptured, gateway.EventOrderPaid} {
					both.Go(func() { send(t, capture(event, gatewayOrder, fmt.Sprint("pay_now", i), 50000)) })
				}
				both.Wait()
			})
			for _, id := range orders {
				a.awaitEvent(eventlog.Orders, id, "ORDER_PAID", 1)
			}
			a.idle()
			for _, id := range orders {
				wantPayments(t, id, "PAYMENT_REQUESTED", "PAYMENT_SUCCESS")
				if got := types(a.history(eventlog.Orders, id)); !slices.Equal(got, []string{"ORDER_PLACED", "ORDER_PAID"}) {
					t.Errorf("the order: %v", got)
				}
				restaurant.expect("order:new", of(id))
			}
			success := a.awaitEvent(eventlog.Payments, orders[0], "PAYMENT_SUCCESS", 1)
			if data(success, "orderId") != orders[0] || data(success, "amount") != 50000.0 || data(success, "paymentId") != "pay_now0" {
				t.Errorf("PAYMENT_SUCCESS: %s", success.Data)
			}
		})
		t.Run("the money of a cancelled order goes back", func(t *testing.T) {
			late, booked := a.place("c2", "r1"), a.place("c2", "r1")
			gatewayOrder := a.openPayment("c2", late)
			a.when(customer("c2"), "POST /v1/orders/"+late+"/cancel", reason).then(200, "ORDER_CANCELLED")
			send(t, capture(gateway.EventPaymentCaptured, gatewayOrder, "pay_late", 50000))
			a.awaitEvent(eventlog.Payments, late, "REFUND_SUCCESS", 1)
			wantPayments(t, late, "PAYMENT_REQUESTED", "PAYMENT_SUCCESS", "REFUND_REQUESTED", "REFUND_SUCCESS")
			a.awaitQuery(customer("c2"), "/v1/orders/"+late, "status", "cancelled", "paymentStatus", "refunded")
			if count(a.history(eventlog.Orders, late), "ORDER_PAID") > 0 {
				t.Error("late money revived a closed order")
			}

			a.pay("c2", booked)
			a.when(customer("c2"), "POST /v1/orders/"+booked+"/cancel", reason).then(200, "ORDER_CANCELLED").want("paymentStatus", "refund_pending")
			a.awaitEvent(eventlog.Payments, booked, "REFUND_SUCCESS", 1)
			a.awaitQuery(customer("c2"), "/v1/orders/"+booked, "paymentStatus", "refunded")
		})
		t.Run("another amount is unmatched and goes back, exactly that", func(t *testing.T) {
			id := a.place("c3", "r1")
			gatewayOrder := a.openPayment("c3", id)
			send(t, capture(gateway.EventPaymentCaptured, gatewayOrder, "pay_less", 49999))
			back := a.awaitEvent(eventlog.Payments, id, "REFUND_REQUESTED", 1)
			if data(back, "amount") != 49999.0 || data(back, "paymentId") != "pay_less" {
				t.Errorf("REFUND_REQUESTED: %s", back.Data)
			}
			a.awaitEvent(eventlog.Payments, id, "REFUND_SUCCESS", 1)
			wantPayments(t, id, "PAYMENT_REQUESTED", "PAYMENT_UNMATCHED", "REFUND_REQUESTED", "REFUND_SUCCESS")
			a.awaitQuery(customer("c3"), "/v1/orders/"+id, "status", "placed", "paymentStatus", "pending")
			send(t, capture(gateway.EventPaymentCaptured, gatewayOrder, "pay_right", 50000)) // still payable
			a.awaitEvent(eventlog.Orders, id, "ORDER_PAID", 1)
			send(t, capture(gateway.EventPaymentCaptured, gatewayOrder, "pay_again", 50000)) // a second one is too much
			a.awaitEvent(eventlog.Payments, id, "REFUND_SUCCESS", 2)
			a.awaitQuery(customer("c3"), "/v1/orders/"+id, "paymentStatus", "paid")
		})
		t.Run("one order's payment cannot pay another", func(t *testing.T) {
			mine, theirs := a.place("c4", "r1"), a.place("c5", "r1")
			gatewayOrder := a.openPayment("c4", mine)
			a.openPayment("c5", theirs)
			body := capture(gateway.EventPaymentCaptured, gatewayOrder, "pay_mine", 50000)
			claimed := capture(gateway.EventPaymentCaptured, a.openPayment("c5", theirs), "pay_mine", 50000)
			if x := a.do(domain.Actor{}, "POST /v1/webhooks/razorpay", claimed, gateway.SignatureHeader, gateway.Sign(townWebhookSecret, body)); x.status != http.StatusUnauthorized {
				t.Error(x.fault())
			}
			send(t, body)
			a.awaitEvent(eventlog.Orders, mine, "ORDER_PAID", 1)
			a.idle()
			wantPayments(t, theirs, "PAYMENT_REQUESTED")
			a.when(customer("c4"), "POST /v1/orders/"+theirs+"/payment", nil).thenRefused(404, "order_not_found")
		})
		t.Run("only captured money pays", func(t *testing.T) {
			id := a.place("c6", "r1")
			gatewayOrder := a.openPayment("c6", id)
			send(t, capture(gateway.EventPaymentAuthorized, gatewayOrder, "pay_auth", 50000), capture(gateway.EventPaymentFailed, gatewayOrder, "pay_no", 50000),
				capture("invoice.paid", gatewayOrder, "pay_inv", 50000))
			a.awaitQuery(customer("c6"), "/v1/orders/"+id, "paymentStatus", "failed")
			a.idle()
			wantPayments(t, id, "PAYMENT_REQUESTED", "PAYMENT_FAILED")
			send(t, capture(gateway.EventPaymentCaptured, gatewayOrder, "pay_auth", 50000))
			a.awaitQuery(customer("c6"), "/v1/orders/"+id, "paymentStatus", "paid")
		})
		t.Run("money of an unknown gateway order comes before an operator", func(t *testing.T) {
			send(t, capture(gateway.EventPaymentCaptured, "order_ofNobody", "pay_ofNobody", 777))
			a.awaitQuery(office, "/v1/ops/payments?state=unmatched", "items.0.payments.0.paymentId", "pay_ofNobody", "items.0.payments.0.amount", "777", "items.1", "")
			a.idle()
			wantPayments(t, "pay_ofNobody", "PAYMENT_UNMATCHED") // and is never refunded by itself
			a.must(office, "POST /v1/ops/payments/pay_ofNobody/resolve", reason)
			a.awaitQuery(office, "/v1/ops/payments?state=unmatched", "items.0", "")
			wantPayments(t, "pay_ofNobody", "PAYMENT_UNMATCHED", "PAYMENT_RESOLVED")
		})
		t.Run("the simulated gateway's faults change nothing", func(t *testing.T) {
			id := a.place("c7", "r1")
			path := "POST /v1/simulated-gateway/orders/" + a.openPayment("c7", id) + "/pay"
			a.must(customer("c7"), path, map[string]any{"outcome": "captured", "paymentId": "pay_faults", "faults": []string{"wrong_signature"}})
			a.must(customer("c7"), path, map[string]any{"outcome": "captured", "paymentId": "pay_faults", "faults": []string{"duplicate", "reordered", "old_secret"}})
			a.awaitEvent(eventlog.Orders, id, "ORDER_PAID", 1)
			a.idle()
			wantPayments(t, id, "PAYMENT_REQUESTED", "PAYMENT_SUCCESS")
		})
		t.Run("a payment handled twice pays once", func(t *testing.T) {
			id := a.cook("c8", "r1")
			a.stop()
			// The policy's positions go back to the start, as after a crash before
			// each of them was written.
			if _, err := a.db().Exec(t.Context(), `DELETE FROM tomato.checkpoints WHERE consumer IN ('pay-order', 'record-payment', 'refund-order', 'refund')`); err != nil {
				t.Fatal(err)
			}
			before := a.log.sizes(eventlog.Orders, eventlog.Payments)
			a.open()
			after := a.place("c8", "r1")
			a.pay("c8", after) // behind all that came before, on its partition
			a.idle()
			for key, n := range a.log.sizes(eventlog.Orders, eventlog.Payments) {
				if was, ok := before[key]; ok && was != n {
					t.Errorf("%s had %d events and has %d", key, was, n)
				}
			}
			if n := count(a.history(eventlog.Orders, id), "ORDER_PAID"); n != 1 {
				t.Errorf("%d times ORDER_PAID", n)
			}
		})
		a.noDeadLetters()
	})
}
