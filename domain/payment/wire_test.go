package payment_test

import (
	"testing"

	"tomato/domain"
	"tomato/domain/domaintest"
	"tomato/domain/payment"
)

func TestWire(t *testing.T) {
	t.Parallel()
	const (
		orderID  = "019b7c1e-8e3c-7b1a-9d55-0a1b2c3d4e5f"
		refundID = "5f0c2a1e-3b7d-4c6a-8e21-9d4f1b2a3c4d"
	)
	ctx := domain.Ctx{CustomerID: "cust-9", RestaurantID: "res-17"}
	shown := func(status string) domain.Ctx { c := ctx; c.PaymentStatus = status; return c }
	domaintest.Golden[payment.Event](t, payment.Decode, payment.Forms, payment.Types,
		payment.PaymentRequested{OrderID: orderID, Provider: "razorpay", GatewayOrderID: "order_Nx1", Amount: 45000, Currency: "INR", Ctx: ctx},
		payment.PaymentSuccess{OrderID: orderID, PaymentID: "pay_Nx2", Amount: 45000, Currency: "INR", GatewayOrderID: "order_Nx1", Booked: true, Ctx: ctx},
		payment.PaymentFailed{OrderID: orderID, PaymentID: "pay_Nx3", Amount: 45000, Currency: "INR", GatewayOrderID: "order_Nx1", Reason: "BAD_REQUEST_ERROR", Ctx: shown("failed")},
		payment.PaymentUnmatched{OrderID: orderID, PaymentID: "pay_Nx4", Amount: 44900, Currency: "INR", GatewayOrderID: "order_Nx1", Reason: payment.ReasonAmountMismatch, Ctx: ctx},
		payment.PaymentResolved{OrderID: orderID, PaymentID: "pay_Nx4", Reason: "paid back by hand", By: "olga", Ctx: ctx},
		payment.RefundRequested{OrderID: orderID, PaymentID: "pay_Nx2", RefundID: refundID, Amount: 45000, Currency: "INR", Reason: "cancelled", Booked: true, Ctx: shown("refund_pending")},
		payment.RefundSuccess{OrderID: orderID, PaymentID: "pay_Nx2", RefundID: refundID, Amount: 45000, Currency: "INR", Booked: true, Ctx: shown("refunded")},
		payment.RefundFailed{OrderID: orderID, PaymentID: "pay_Nx2", RefundID: refundID, Amount: 45000, Currency: "INR", Reason: "bank", Booked: true, Ctx: ctx},
	)
}
