// Package gateway calls the payment gateway: Razorpay, or a simulated one with
// the same wire contract.
package gateway

import (
	"context"
	"errors"
	"regexp"
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
	GatewayOrderID string // "" for a payment that was not made on a gateway order
	Amount         int64  // minor units
	Currency       string
	Status         string // created, authorized, captured, refunded, failed
	Reason         string // why it failed, as the gateway says it
}

// The payment statuses that Tomato looks at.
const (
	StatusCaptured = "captured"
	StatusFailed   = "failed"
	StatusRefunded = "refunded"
)

// Refund asks for captured money to be sent back. A repeated request has the
// same four values, so that its body is the same byte for byte.
type Refund struct {
	PaymentID   string
	RefundID    string // ours, a UUID: the gateway's idempotency key
	AggregateID string // of our payment; comes back in webhooks
	Amount      int64  // minor units
}

// RefundState is how far a refund is at the gateway.
type RefundState string

// The refund states.
const (
	RefundPending   RefundState = "pending"
	RefundProcessed RefundState = "processed"
	RefundFailed    RefundState = "failed"
)

// ErrRefused says that the gateway understood the request and refused it: the
// same request would be refused again. An error that is neither ErrRefused nor
// ErrUnknown says that the gateway is unavailable (eventlog.ErrUnavailable).
var ErrRefused = errors.New("the gateway refused")

// ErrUnknown says that the gateway has no order, payment or refund with this id.
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
	// Payment returns one payment, or ErrUnknown.
	Payment(ctx context.Context, paymentID string) (Payment, error)
	// Payments lists the payments of a gateway order, or ErrUnknown.
	Payments(ctx context.Context, gatewayOrderID string) ([]Payment, error)
	// Refund sends money back. A repeated request with the same refund id sends
	// nothing more; it returns the state of the first refund.
	Refund(ctx context.Context, r Refund) (RefundState, error)
	// RefundState returns how far a requested refund is, or ErrUnknown.
	RefundState(ctx context.Context, paymentID, refundID string) (RefundState, error)
}

// Both types implement Gateway.
var (
	_ Gateway = (*Razorpay)(nil)
	_ Gateway = (*Simulated)(nil)
)

// gatewayID matches the ids of the gateway. They become parts of URL paths.
var gatewayID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
