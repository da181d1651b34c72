package main_test

import (
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"

	"tomato/cmd/tomato/servertest"
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
		a := servertest.New(t, kafka).Start()
		a.AddRestaurant("r1", servertest.Lng, servertest.Lat)
		restaurant := a.Feed(servertest.Staff("r1"))
		send := func(t *testing.T, bodies ...[]byte) {
			t.Helper()
			for _, b := range bodies {
				if x := a.Webhook(b); x.Status != http.StatusOK {
					t.Fatal(x.Fault())
				}
			}
		}
		wantPayments := func(t *testing.T, orderID string, want ...string) {
			t.Helper()
			if got := servertest.Types(a.History(eventlog.Payments, orderID)); !slices.Equal(got, want) {
				t.Errorf("payments of the order: %v, want %v", got, want)
			}
		}

		t.Run("a webhook in the same millisecond as the answer of payment is not unmatched", func(t *testing.T) {
			const n = 40
			orders := make([]string, n)
			a.Each(n, n, func(i int) {
				orders[i] = a.Place("c1", "r1")
				gatewayOrder := a.OpenPayment("c1", orders[i])
				var both sync.WaitGroup
				for _, event := range []string{gateway.EventPaymentCaptured, gateway.EventOrderPaid} {
					both.Go(func() { send(t, servertest.Capture(event, gatewayOrder, fmt.Sprint("pay_now", i), 50000)) })
				}
				both.Wait()
			})
			for _, id := range orders {
				a.AwaitEvent(eventlog.Orders, id, "ORDER_PAID", 1)
			}
			a.AwaitIdle()
			for _, id := range orders {
				wantPayments(t, id, "PAYMENT_REQUESTED", "PAYMENT_SUCCESS")
				if got := servertest.Types(a.History(eventlog.Orders, id)); !slices.Equal(got, []string{"ORDER_PLACED", "ORDER_PAID"}) {
					t.Errorf("the order: %v", got)
				}
				restaurant.Expect("order:new", servertest.About(id))
			}
			success := a.AwaitEvent(eventlog.Payments, orders[0], "PAYMENT_SUCCESS", 1)
			if servertest.Data(success, "orderId") != orders[0] || servertest.Data(success, "amount") != 50000.0 || servertest.Data(success, "paymentId") != "pay_now0" {
				t.Errorf("PAYMENT_SUCCESS: %s", success.Data)
			}
		})
		t.Run("the money of a cancelled order goes back", func(t *testing.T) {
			late, booked := a.Place("c2", "r1"), a.Place("c2", "r1")
			gatewayOrder := a.OpenPayment("c2", late)
			a.When(servertest.Customer("c2"), "POST /v1/orders/"+late+"/cancel", reason).Then(200, "ORDER_CANCELLED")
			send(t, servertest.Capture(gateway.EventPaymentCaptured, gatewayOrder, "pay_late", 50000))
			a.AwaitEvent(eventlog.Payments, late, "REFUND_SUCCESS", 1)
			wantPayments(t, late, "PAYMENT_REQUESTED", "PAYMENT_SUCCESS", "REFUND_REQUESTED", "REFUND_SUCCESS")
			a.AwaitQuery(servertest.Customer("c2"), "/v1/orders/"+late, "status", "cancelled", "paymentStatus", "refunded")
			if servertest.Count(a.History(eventlog.Orders, late), "ORDER_PAID") > 0 {
				t.Error("late money revived a closed order")
			}

			a.Pay("c2", booked)
			a.When(servertest.Customer("c2"), "POST /v1/orders/"+booked+"/cancel", reason).Then(200, "ORDER_CANCELLED").Want("paymentStatus", "refund_pending")
			a.AwaitEvent(eventlog.Payments, booked, "REFUND_SUCCESS", 1)
			a.AwaitQuery(servertest.Customer("c2"), "/v1/orders/"+booked, "paymentStatus", "refunded")
		})
		t.Run("another amount is unmatched and goes back, exactly that", func(t *testing.T) {
			id := a.Place("c3", "r1")
			gatewayOrder := a.OpenPayment("c3", id)
			send(t, servertest.Capture(gateway.EventPaymentCaptured, gatewayOrder, "pay_less", 49999))
			back := a.AwaitEvent(eventlog.Payments, id, "REFUND_REQUESTED", 1)
			if servertest.Data(back, "amount") != 49999.0 || servertest.Data(back, "paymentId") != "pay_less" {
				t.Errorf("REFUND_REQUESTED: %s", back.Data)
			}
			a.AwaitEvent(eventlog.Payments, id, "REFUND_SUCCESS", 1)
			wantPayments(t, id, "PAYMENT_REQUESTED", "PAYMENT_UNMATCHED", "REFUND_REQUESTED", "REFUND_SUCCESS")
			a.AwaitQuery(servertest.Customer("c3"), "/v1/orders/"+id, "status", "placed", "paymentStatus", "pending")
			send(t, servertest.Capture(gateway.EventPaymentCaptured, gatewayOrder, "pay_right", 50000)) // still payable
			a.AwaitEvent(eventlog.Orders, id, "ORDER_PAID", 1)
			send(t, servertest.Capture(gateway.EventPaymentCaptured, gatewayOrder, "pay_again", 50000)) // a second one is too much
			a.AwaitEvent(eventlog.Payments, id, "REFUND_SUCCESS", 2)
			a.AwaitQuery(servertest.Customer("c3"), "/v1/orders/"+id, "paymentStatus", "paid")
		})
		t.Run("one order's payment cannot pay another", func(t *testing.T) {
			mine, theirs := a.Place("c4", "r1"), a.Place("c5", "r1")
			gatewayOrder := a.OpenPayment("c4", mine)
			a.OpenPayment("c5", theirs)
			body := servertest.Capture(gateway.EventPaymentCaptured, gatewayOrder, "pay_mine", 50000)
			claimed := servertest.Capture(gateway.EventPaymentCaptured, a.OpenPayment("c5", theirs), "pay_mine", 50000)
			if x := a.Do(domain.Actor{}, "POST /v1/webhooks/razorpay", claimed, gateway.SignatureHeader, gateway.Sign(servertest.WebhookSecret, body)); x.Status != http.StatusUnauthorized {
				t.Error(x.Fault())
			}
			send(t, body)
			a.AwaitEvent(eventlog.Orders, mine, "ORDER_PAID", 1)
			a.AwaitIdle()
			wantPayments(t, theirs, "PAYMENT_REQUESTED")
			a.When(servertest.Customer("c4"), "POST /v1/orders/"+theirs+"/payment", nil).ThenRefused(404, "order_not_found")
		})
		t.Run("only captured money pays", func(t *testing.T) {
			id := a.Place("c6", "r1")
			gatewayOrder := a.OpenPayment("c6", id)
			send(t, servertest.Capture(gateway.EventPaymentAuthorized, gatewayOrder, "pay_auth", 50000), servertest.Capture(gateway.EventPaymentFailed, gatewayOrder, "pay_no", 50000),
				servertest.Capture("invoice.paid", gatewayOrder, "pay_inv", 50000))
			a.AwaitQuery(servertest.Customer("c6"), "/v1/orders/"+id, "paymentStatus", "failed")
			a.AwaitIdle()
			wantPayments(t, id, "PAYMENT_REQUESTED", "PAYMENT_FAILED")
			send(t, servertest.Capture(gateway.EventPaymentCaptured, gatewayOrder, "pay_auth", 50000))
			a.AwaitQuery(servertest.Customer("c6"), "/v1/orders/"+id, "paymentStatus", "paid")
		})
		t.Run("money of an unknown gateway order comes before an operator", func(t *testing.T) {
			send(t, servertest.Capture(gateway.EventPaymentCaptured, "order_ofNobody", "pay_ofNobody", 777))
			a.AwaitQuery(servertest.Ops, "/v1/ops/payments?state=unmatched", "items.0.payments.0.paymentId", "pay_ofNobody", "items.0.payments.0.amount", "777", "items.1", "")
			a.AwaitIdle()
			wantPayments(t, "pay_ofNobody", "PAYMENT_UNMATCHED") // and is never refunded by itself
			a.Must(servertest.Ops, "POST /v1/ops/payments/pay_ofNobody/resolve", reason)
			a.AwaitQuery(servertest.Ops, "/v1/ops/payments?state=unmatched", "items.0", "")
			wantPayments(t, "pay_ofNobody", "PAYMENT_UNMATCHED", "PAYMENT_RESOLVED")
		})
		t.Run("the simulated gateway's faults change nothing", func(t *testing.T) {
			id := a.Place("c7", "r1")
			path := "POST /v1/simulated-gateway/orders/" + a.OpenPayment("c7", id) + "/pay"
			a.Must(servertest.Customer("c7"), path, map[string]any{"outcome": "captured", "paymentId": "pay_faults", "faults": []string{"wrong_signature"}})
			a.Must(servertest.Customer("c7"), path, map[string]any{"outcome": "captured", "paymentId": "pay_faults", "faults": []string{"duplicate", "reordered", "old_secret"}})
			a.AwaitEvent(eventlog.Orders, id, "ORDER_PAID", 1)
			a.AwaitIdle()
			wantPayments(t, id, "PAYMENT_REQUESTED", "PAYMENT_SUCCESS")
		})
		t.Run("a payment handled twice pays once", func(t *testing.T) {
			id := a.Cook("c8", "r1")
			a.Stop()
			// The policy's positions go back to the start, as after a crash before
			// each of them was written.
			if _, err := a.DB().Exec(t.Context(), `DELETE FROM tomato.checkpoints WHERE consumer IN ('pay-order', 'record-payment', 'refund-order', 'refund')`); err != nil {
				t.Fatal(err)
			}
			before := a.Log.Sizes(eventlog.Orders, eventlog.Payments)
			a.Start()
			after := a.Place("c8", "r1")
			a.Pay("c8", after) // behind all that came before, on its partition
			a.AwaitIdle()
			for key, n := range a.Log.Sizes(eventlog.Orders, eventlog.Payments) {
				if was, ok := before[key]; ok && was != n {
					t.Errorf("%s had %d events and has %d", key, was, n)
				}
			}
			if n := servertest.Count(a.History(eventlog.Orders, id), "ORDER_PAID"); n != 1 {
				t.Errorf("%d times ORDER_PAID", n)
			}
		})
		a.NoDeadLetters()
	})
}
