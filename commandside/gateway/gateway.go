// Package gateway calls the payment gateway. This is Razorpay, or a simulated gateway
// with the same requests, answers and webhooks.
//
// The files, in reading order:
//
//	gateway.go             the interface of a gateway
//	razorpay.go            Razorpay, over its REST API
//	webhook.go             reads webhooks; the wire formats
//	kept.go                what is kept of a webhook
//	signature.go           the signatures of webhooks
//	simulated.go           the simulated gateway and its orders
//	simulated_pay.go       makes simulated payments, with faults
//	simulated_payments.go  stores and lists simulated payments
//	simulated_refunds.go   simulated refunds
//	simulated_webhooks.go  sends the webhooks of the simulated gateway
package gateway

import (
	"context"
	"errors"
	"regexp"
)

// Order is a payment opened at the gateway.
type Order struct {
	GatewayOrderID string
	KeyID          string // public key with which the client pays
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
	Reason         string // why it failed, in the gateway's words
}

// The payment statuses that Tomato looks at.
const (
	StatusCaptured = "captured"
	StatusFailed   = "failed"
	StatusRefunded = "refunded"
)

// Refund is a request to send captured money back. A repeated request must have the
// same four values, because the gateway refuses a repeat with another body.
type Refund struct {
	PaymentID   string
	RefundID    string // our own id, a UUID; the gateway's idempotency key
	AggregateID string // id of our payment aggregate; the gateway's webhooks contain it
	Amount      int64  // minor units
}

// RefundState says how far a refund is at the gateway.
type RefundState string

// The refund states.
const (
	RefundPending   RefundState = "pending"
	RefundProcessed RefundState = "processed"
	RefundFailed    RefundState = "failed"
)

// ErrRefused means that the gateway understood the request and refused it. It would
// refuse the same request again. An error that is neither ErrRefused nor ErrUnknown
// means that the gateway is unavailable (eventlog.ErrUnavailable).
var ErrRefused = errors.New("the gateway refused")

// ErrUnknown means that the gateway has no order, payment or refund with this id.
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
	// RefundState returns the state of a requested refund, or ErrUnknown.
	RefundState(ctx context.Context, paymentID, refundID string) (RefundState, error)
}

// Razorpay and Simulated implement Gateway.
var (
	_ Gateway = (*Razorpay)(nil)
	_ Gateway = (*Simulated)(nil)
)

// gatewayID matches the ids of the gateway. They become parts of URL paths.
var gatewayID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
