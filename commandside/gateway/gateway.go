// Package gateway is the way to the payment gateway: Razorpay, or a simulated
// one with the same wire contract.
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
	GatewayOrderID string // "" for money that was not asked for through an order
	Amount         int64  // minor units
	Currency       string
	Status         string // created, authorized, captured, refunded, failed
	Reason         string // why it failed, in the gateway's words
}

// The payment statuses that Tomato looks at.
const (
	StatusCaptured = "captured"
	StatusFailed   = "failed"
	StatusRefunded = "refunded"
)

// Refund is the wish to send captured money back. A repeat has the same four
// values, so that its body on the wire is the same to the byte.
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
	// Payment returns one payment, or ErrUnknown.
	Payment(ctx context.Context, paymentID string) (Payment, error)
	// Payments lists the payments of a gateway order, or ErrUnknown.
	Payments(ctx context.Context, gatewayOrderID string) ([]Payment, error)
	// Refund sends money back. The refund id makes it happen once; a repeat
	// answers with the same refund.
	Refund(ctx context.Context, r Refund) (RefundState, error)
	// RefundState polls a refund that was asked for, or ErrUnknown.
	RefundState(ctx context.Context, paymentID, refundID string) (RefundState, error)
}

// Both gateways.
var (
	_ Gateway = (*Razorpay)(nil)
	_ Gateway = (*Simulated)(nil)
)

// gatewayID is what an id of the gateway may look like: it goes into a path.
var gatewayID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
