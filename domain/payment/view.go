package payment

// View is a payment as clients see it: the answer of commands and queries.
type View struct {
	OrderID        string        `json:"orderId,omitempty" doc:"Absent for money without an order."`
	Version        int64         `json:"version"`
	State          string        `json:"state" enum:"none,requested,failed,paid,refund_pending,refunded"`
	Provider       string        `json:"provider,omitempty"`
	GatewayOrderID string        `json:"gatewayOrderId,omitempty"`
	Amount         int64         `json:"amount,omitempty" doc:"Asked for, minor units."`
	Currency       string        `json:"currency,omitempty"`
	Payments       []AttemptView `json:"payments"`
	Refunds        []RefundView  `json:"refunds"`
}

// AttemptView is one payment at the gateway, in a View.
type AttemptView struct {
	PaymentID     string       `json:"paymentId"`
	Amount        int64        `json:"amount"`
	Currency      string       `json:"currency"`
	State         AttemptState `json:"state" enum:"booked,failed,unmatched,resolved,refunded"`
	GatewayStatus string       `json:"gatewayStatus"`
	Reason        string       `json:"reason,omitempty"`
}

// RefundView is one refund, in a View.
type RefundView struct {
	RefundID  string       `json:"refundId"`
	PaymentID string       `json:"paymentId"`
	Amount    int64        `json:"amount"`
	Currency  string       `json:"currency"`
	Status    RefundStatus `json:"status" enum:"requested,succeeded,failed"`
}

// NewView makes the view of a payment.
func NewView(s *State) View {
	v := View{OrderID: s.OrderID, Version: s.Version, State: string(s.Status), Provider: s.Provider, GatewayOrderID: s.GatewayOrderID,
		Amount: s.Amount, Currency: s.Currency, Payments: make([]AttemptView, 0, len(s.Attempts)), Refunds: make([]RefundView, 0, len(s.Refunds))}
	if s.Status == StatusNone {
		v.State = "none"
	}
	for _, a := range s.Attempts {
		v.Payments = append(v.Payments, AttemptView(a))
	}
	for _, r := range s.Refunds {
		v.Refunds = append(v.Refunds, RefundView(r))
	}
	return v
}
