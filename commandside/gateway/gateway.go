// Package gateway is the way to the payment gateway: Razorpay, or a simulated
// one with the same wire contract.
package gateway

import (
	"context"
	"errors"
)

// Order is a payment opened at the gateway.
type Order struct {
	GatewayOrderID string
	KeyID          string // public key the client pays with
	Amount         int64  // minor units
	Currency       string
}

// Payment is a payment at the gateway.
type Payment struct {
	PaymentID      string
	GatewayOrderID string
	Amount         int64 // minor units
	Currency       string
	Status         string // created, authorized, captured, refunded, failed
	Reason         string
}

// RefundState is how far a refund is at the gateway.
type RefundState string

// The refund states.
const (
	RefundPending   RefundState = "pending"
	RefundProcessed RefundState = "processed"
	RefundFailed    RefundState = "failed"
)

// ErrRefused says that the gateway understood and said no: asking again with
// the same words gives the same answer. Anything else is an absence
// (eventlog.Away).
var ErrRefused = errors.New("the gateway refused")

// ErrUnknown says that the gateway knows no such thing: a definite no.
var ErrUnknown = errors.New("unknown at the gateway")

// Gateway is a payment gateway. Safe for concurrent use.
type Gateway interface {
	Provider() string // "razorpay" or "simulated"
	// CreateOrder opens a payment; receipt is our order id.
	CreateOrder(ctx context.Context, receipt string, amount int64, currency string) (Order, error)
	// KeyID is the public key for clients.
	KeyID() string
	// Order returns the receipt of a gateway order, or ErrUnknown.
	Order(ctx context.Context, gatewayOrderID string) (receipt string, err error)
	// Payments lists the payments of a gateway order, or ErrUnknown.
	Payments(ctx context.Context, gatewayOrderID string) ([]Payment, error)
	// Refund sends money back. refundID makes it happen once; a repeat answers
	// with the same refund.
	Refund(ctx context.Context, paymentID, refundID string, amount int64) (RefundState, error)
	// RefundState polls a refund that was asked for.
	RefundState(ctx context.Context, paymentID, refundID string) (RefundState, error)
}
