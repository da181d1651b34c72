package payment

import "tomato/domain"

// OrderFacts is what a payment command needs of the order. The shard, which has
// both, fills it in.
type OrderFacts struct {
	Payable      bool   `json:"payable,omitempty"`
	Ended        bool   `json:"ended,omitempty"` // cancelled, rejected or expired
	Status       string `json:"status,omitempty"`
	Amount       int64  `json:"amount,omitempty"`
	Currency     string `json:"currency,omitempty"`
	CustomerID   string `json:"customerId,omitempty"`
	RestaurantID string `json:"restaurantId,omitempty"`
}

// The reasons of PAYMENT_UNMATCHED.
const (
	ReasonAmountMismatch = "amount_mismatch"
	ReasonAlreadyPaid    = "already_paid"
	ReasonNotRequested   = "not_requested"
	ReasonUnknownOrder   = "unknown_order"
)

// The commands.
type (
	// RequestPayment asks for the order's amount on the gateway order, which was
	// made for it just now. With an empty GatewayOrderID it makes no event, and
	// only checks that it is possible.
	RequestPayment struct {
		OrderID        string     `json:"orderId"`
		Provider       string     `json:"provider"`
		GatewayOrderID string     `json:"gatewayOrderId"`
		Order          OrderFacts `json:"order"`
	}
	// RecordCaptured records that the gateway captured money on this gateway order.
	RecordCaptured struct {
		PaymentID      string     `json:"paymentId"`
		GatewayOrderID string     `json:"gatewayOrderId"`
		Amount         int64      `json:"amount"`
		Currency       string     `json:"currency"`
		Order          OrderFacts `json:"order"`
	}
	// RecordFailed records that an attempt failed at the gateway.
	RecordFailed struct {
		PaymentID      string `json:"paymentId"`
		GatewayOrderID string `json:"gatewayOrderId"`
		Amount         int64  `json:"amount"`
		Currency       string `json:"currency"`
		Reason         string `json:"reason"`
	}
	// RecordUnmatched records captured money that belongs to no payment that was
	// asked for. The aggregate's key is the gateway's payment id.
	RecordUnmatched struct {
		PaymentID      string `json:"paymentId"`
		GatewayOrderID string `json:"gatewayOrderId"`
		Amount         int64  `json:"amount"`
		Currency       string `json:"currency"`
		Reason         string `json:"reason"` // ReasonNotRequested or ReasonUnknownOrder
	}
	// RequestRefund asks for the refund of the booked payment, or of an unmatched one.
	RequestRefund struct {
		PaymentID string `json:"paymentId"` // "" is the booked payment
		RefundID  string `json:"refundId"`  // a UUID, new for each request
		Reason    string `json:"reason"`
		ByOps     bool   `json:"byOps,omitempty"` // may ask again after REFUND_FAILED
	}
	// RecordRefund records how a refund ended at the gateway.
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

// WithOrder returns the command with the facts of the order, if it needs them.
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
