package payment

import "tomato/domain"

// OrderFacts is what the order says to a payment command; the shard, which
// holds both, fills it in.
type OrderFacts struct {
	Payable      bool   `json:"payable,omitempty"`
	Ended        bool   `json:"ended,omitempty"` // cancelled, rejected or expired
	Status       string `json:"status,omitempty"`
	Amount       int64  `json:"amount,omitempty"`
	Currency     string `json:"currency,omitempty"`
	CustomerID   string `json:"customerId,omitempty"`
	RestaurantID string `json:"restaurantId,omitempty"`
}

// Unmatched reasons.
const (
	ReasonAmountMismatch = "amount_mismatch"
	ReasonAlreadyPaid    = "already_paid"
	ReasonNotRequested   = "not_requested"
	ReasonUnknownOrder   = "unknown_order"
)

// The commands.
type (
	// RequestPayment opens the payment: GatewayOrderID was made for it just
	// now. With an empty GatewayOrderID it asks only what it would do.
	RequestPayment struct {
		OrderID        string     `json:"orderId"`
		Provider       string     `json:"provider"`
		GatewayOrderID string     `json:"gatewayOrderId"`
		Order          OrderFacts `json:"order"`
	}
	// RecordCaptured says that the gateway took money on this gateway order.
	RecordCaptured struct {
		PaymentID      string     `json:"paymentId"`
		GatewayOrderID string     `json:"gatewayOrderId"`
		Amount         int64      `json:"amount"`
		Currency       string     `json:"currency"`
		Order          OrderFacts `json:"order"`
	}
	// RecordFailed says that an attempt failed at the gateway.
	RecordFailed struct {
		PaymentID      string `json:"paymentId"`
		GatewayOrderID string `json:"gatewayOrderId"`
		Amount         int64  `json:"amount"`
		Currency       string `json:"currency"`
		Reason         string `json:"reason"`
	}
	// RecordUnmatched keeps captured money that belongs to no payment that was
	// asked for. The aggregate is the gateway's payment id.
	RecordUnmatched struct {
		PaymentID      string `json:"paymentId"`
		GatewayOrderID string `json:"gatewayOrderId"`
		Amount         int64  `json:"amount"`
		Currency       string `json:"currency"`
		Reason         string `json:"reason"` // ReasonNotRequested or ReasonUnknownOrder
	}
	// RequestRefund sends money back: the booked payment's, or an unmatched one's.
	RequestRefund struct {
		PaymentID string `json:"paymentId"` // "" is the booked one
		RefundID  string `json:"refundId"`  // a UUID, new for each wish
		Reason    string `json:"reason"`
		ByOps     bool   `json:"byOps,omitempty"` // may try again after REFUND_FAILED
	}
	// RecordRefund says how a refund ended at the gateway.
	RecordRefund struct {
		RefundID  string `json:"refundId"`
		Succeeded bool   `json:"succeeded"`
		Reason    string `json:"reason,omitempty"`
	}
	// Resolve closes an unmatched payment that an operator has dealt with.
	Resolve struct {
		PaymentID string `json:"paymentId"`
		Reason    string `json:"reason"`
		By        string `json:"by"`
	}
)

// CommandName implements domain.Command.
func (RequestPayment) CommandName() string  { return "payment" }
func (RecordCaptured) CommandName() string  { return "record-captured" }
func (RecordFailed) CommandName() string    { return "record-failed" }
func (RecordUnmatched) CommandName() string { return "record-unmatched" }
func (RequestRefund) CommandName() string   { return "refund" }
func (RecordRefund) CommandName() string    { return "record-refund" }
func (Resolve) CommandName() string         { return "resolve" }

// WithOrder returns the command with what the order says filled in, for the
// commands that ask.
func WithOrder(c domain.Command, o OrderFacts) domain.Command {
	switch c := c.(type) {
	case RequestPayment:
		c.Order = o
		return c
	case RecordCaptured:
		c.Order = o
		return c
	}
	return c
}
