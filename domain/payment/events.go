package payment

import (
	"encoding/json"
	"fmt"

	"tomato/domain"
)

// The events, as they stand on topic payments.
type (
	PaymentRequested struct { // PAYMENT_REQUESTED
		OrderID        string     `json:"orderId"`
		Provider       string     `json:"provider"`
		GatewayOrderID string     `json:"gatewayOrderId"`
		Amount         int64      `json:"amount"`
		Currency       string     `json:"currency"`
		Booked         bool       `json:"booked"`
		Ctx            domain.Ctx `json:"ctx"`
	}
	PaymentSuccess struct { // PAYMENT_SUCCESS
		OrderID        string     `json:"orderId"`
		PaymentID      string     `json:"paymentId"`
		Amount         int64      `json:"amount"`
		Currency       string     `json:"currency"`
		GatewayOrderID string     `json:"gatewayOrderId"`
		Booked         bool       `json:"booked"`
		Ctx            domain.Ctx `json:"ctx"`
	}
	PaymentFailed struct { // PAYMENT_FAILED
		OrderID        string     `json:"orderId"`
		PaymentID      string     `json:"paymentId"`
		Amount         int64      `json:"amount"`
		Currency       string     `json:"currency"`
		GatewayOrderID string     `json:"gatewayOrderId"`
		Reason         string     `json:"reason,omitempty"`
		Booked         bool       `json:"booked"`
		Ctx            domain.Ctx `json:"ctx"`
	}
	PaymentUnmatched struct { // PAYMENT_UNMATCHED
		OrderID        string     `json:"orderId,omitempty"` // "" where no order is known: never refunded by itself
		PaymentID      string     `json:"paymentId"`
		Amount         int64      `json:"amount"` // exactly what was captured
		Currency       string     `json:"currency"`
		GatewayOrderID string     `json:"gatewayOrderId,omitempty"`
		Reason         string     `json:"reason"`
		Booked         bool       `json:"booked"`
		Ctx            domain.Ctx `json:"ctx"`
	}
	PaymentResolved struct { // PAYMENT_RESOLVED
		OrderID   string     `json:"orderId,omitempty"`
		PaymentID string     `json:"paymentId"`
		Reason    string     `json:"reason"`
		By        string     `json:"by"`
		Booked    bool       `json:"booked"`
		Ctx       domain.Ctx `json:"ctx"`
	}
	RefundRequested struct { // REFUND_REQUESTED
		OrderID   string     `json:"orderId,omitempty"`
		PaymentID string     `json:"paymentId"`
		RefundID  string     `json:"refundId"`
		Amount    int64      `json:"amount"`
		Currency  string     `json:"currency"`
		Reason    string     `json:"reason"`
		Booked    bool       `json:"booked"`
		Ctx       domain.Ctx `json:"ctx"`
	}
	RefundSuccess struct { // REFUND_SUCCESS
		OrderID   string     `json:"orderId,omitempty"`
		PaymentID string     `json:"paymentId"`
		RefundID  string     `json:"refundId"`
		Amount    int64      `json:"amount"`
		Currency  string     `json:"currency"`
		Booked    bool       `json:"booked"`
		Ctx       domain.Ctx `json:"ctx"`
	}
	RefundFailed struct { // REFUND_FAILED
		OrderID   string     `json:"orderId,omitempty"`
		PaymentID string     `json:"paymentId"`
		RefundID  string     `json:"refundId"`
		Amount    int64      `json:"amount"`
		Currency  string     `json:"currency"`
		Reason    string     `json:"reason,omitempty"`
		Booked    bool       `json:"booked"`
		Ctx       domain.Ctx `json:"ctx"`
	}
)

// Event is an event of a payment: one of the types above.
type Event interface {
	domain.Event
	paymentEvent()
}

// EventType implements domain.Event.
func (PaymentRequested) EventType() string { return "PAYMENT_REQUESTED" }
func (PaymentSuccess) EventType() string   { return "PAYMENT_SUCCESS" }
func (PaymentFailed) EventType() string    { return "PAYMENT_FAILED" }
func (PaymentUnmatched) EventType() string { return "PAYMENT_UNMATCHED" }
func (PaymentResolved) EventType() string  { return "PAYMENT_RESOLVED" }
func (RefundRequested) EventType() string  { return "REFUND_REQUESTED" }
func (RefundSuccess) EventType() string    { return "REFUND_SUCCESS" }
func (RefundFailed) EventType() string     { return "REFUND_FAILED" }

func (PaymentRequested) paymentEvent() {}
func (PaymentSuccess) paymentEvent()   {}
func (PaymentFailed) paymentEvent()    {}
func (PaymentUnmatched) paymentEvent() {}
func (PaymentResolved) paymentEvent()  {}
func (RefundRequested) paymentEvent()  {}
func (RefundSuccess) paymentEvent()    {}
func (RefundFailed) paymentEvent()     {}

// Decode reads the event of the given type from its data.
func Decode(eventType string, data []byte) (Event, error) {
	switch eventType {
	case "PAYMENT_REQUESTED":
		return decode[PaymentRequested](data)
	case "PAYMENT_SUCCESS":
		return decode[PaymentSuccess](data)
	case "PAYMENT_FAILED":
		return decode[PaymentFailed](data)
	case "PAYMENT_UNMATCHED":
		return decode[PaymentUnmatched](data)
	case "PAYMENT_RESOLVED":
		return decode[PaymentResolved](data)
	case "REFUND_REQUESTED":
		return decode[RefundRequested](data)
	case "REFUND_SUCCESS":
		return decode[RefundSuccess](data)
	case "REFUND_FAILED":
		return decode[RefundFailed](data)
	}
	return nil, fmt.Errorf("unknown payment event %q", eventType)
}

func decode[E Event](data []byte) (Event, error) {
	var e E
	err := json.Unmarshal(data, &e)
	return e, err
}
