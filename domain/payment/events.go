package payment

import (
	"fmt"

	"tomato/domain"
)

// The types of the events, as the record header ce_type has them. The constant of
// an event is Type and the name of its Go type, and that name is the type on the
// wire in camel case.
const (
	TypePaymentRequested = "PAYMENT_REQUESTED"
	TypePaymentSuccess   = "PAYMENT_SUCCESS"
	TypePaymentFailed    = "PAYMENT_FAILED"
	TypePaymentUnmatched = "PAYMENT_UNMATCHED"
	TypePaymentResolved  = "PAYMENT_RESOLVED"
	TypeRefundRequested  = "REFUND_REQUESTED"
	TypeRefundSuccess    = "REFUND_SUCCESS"
	TypeRefundFailed     = "REFUND_FAILED"
)

// Types are the types of all events of a payment.
var Types = []string{
	TypePaymentRequested, TypePaymentSuccess, TypePaymentFailed, TypePaymentUnmatched,
	TypePaymentResolved, TypeRefundRequested, TypeRefundSuccess, TypeRefundFailed,
}

// The events, as they are on topic payments. Records are kept for ever, so the form of an
// event is never changed. If another form is needed, Decode converts the old one.
type (
	PaymentRequested struct {
		OrderID        string     `json:"orderId"`
		Provider       string     `json:"provider"`
		GatewayOrderID string     `json:"gatewayOrderId"`
		Amount         int64      `json:"amount"`
		Currency       string     `json:"currency"`
		Booked         bool       `json:"booked"`
		Ctx            domain.Ctx `json:"ctx"`
	}
	PaymentSuccess struct {
		OrderID        string     `json:"orderId"`
		PaymentID      string     `json:"paymentId"`
		Amount         int64      `json:"amount"`
		Currency       string     `json:"currency"`
		GatewayOrderID string     `json:"gatewayOrderId"`
		Booked         bool       `json:"booked"`
		Ctx            domain.Ctx `json:"ctx"`
	}
	PaymentFailed struct {
		OrderID        string     `json:"orderId"`
		PaymentID      string     `json:"paymentId"`
		Amount         int64      `json:"amount"`
		Currency       string     `json:"currency"`
		GatewayOrderID string     `json:"gatewayOrderId"`
		Reason         string     `json:"reason,omitempty"`
		Booked         bool       `json:"booked"`
		Ctx            domain.Ctx `json:"ctx"`
	}
	PaymentUnmatched struct {
		OrderID        string     `json:"orderId,omitempty"` // "" if no order is known: never refunded by itself
		PaymentID      string     `json:"paymentId"`
		Amount         int64      `json:"amount"` // exactly what was captured
		Currency       string     `json:"currency"`
		GatewayOrderID string     `json:"gatewayOrderId,omitempty"`
		Reason         string     `json:"reason"`
		Booked         bool       `json:"booked"`
		Ctx            domain.Ctx `json:"ctx"`
	}
	PaymentResolved struct {
		OrderID   string     `json:"orderId,omitempty"`
		PaymentID string     `json:"paymentId"`
		Reason    string     `json:"reason"`
		By        string     `json:"by"`
		Booked    bool       `json:"booked"`
		Ctx       domain.Ctx `json:"ctx"`
	}
	RefundRequested struct {
		OrderID   string     `json:"orderId,omitempty"`
		PaymentID string     `json:"paymentId"`
		RefundID  string     `json:"refundId"`
		Amount    int64      `json:"amount"`
		Currency  string     `json:"currency"`
		Reason    string     `json:"reason"`
		Booked    bool       `json:"booked"`
		Ctx       domain.Ctx `json:"ctx"`
	}
	RefundSuccess struct {
		OrderID   string     `json:"orderId,omitempty"`
		PaymentID string     `json:"paymentId"`
		RefundID  string     `json:"refundId"`
		Amount    int64      `json:"amount"`
		Currency  string     `json:"currency"`
		Booked    bool       `json:"booked"`
		Ctx       domain.Ctx `json:"ctx"`
	}
	RefundFailed struct {
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
func (PaymentRequested) EventType() string { return TypePaymentRequested }
func (PaymentSuccess) EventType() string   { return TypePaymentSuccess }
func (PaymentFailed) EventType() string    { return TypePaymentFailed }
func (PaymentUnmatched) EventType() string { return TypePaymentUnmatched }
func (PaymentResolved) EventType() string  { return TypePaymentResolved }
func (RefundRequested) EventType() string  { return TypeRefundRequested }
func (RefundSuccess) EventType() string    { return TypeRefundSuccess }
func (RefundFailed) EventType() string     { return TypeRefundFailed }

func (PaymentRequested) paymentEvent() {}
func (PaymentSuccess) paymentEvent()   {}
func (PaymentFailed) paymentEvent()    {}
func (PaymentUnmatched) paymentEvent() {}
func (PaymentResolved) paymentEvent()  {}
func (RefundRequested) paymentEvent()  {}
func (RefundSuccess) paymentEvent()    {}
func (RefundFailed) paymentEvent()     {}

// Forms are the versions of the data of events that have had more than one. None has yet.
// Decode turns an older version into the present one with Read, and a shard writes an
// older version with Write while not all owners know the present one.
var Forms = domain.Forms[Event]{}

// Decode reads the event of the given type from its data, which is of the given version.
// The error is a *domain.UnknownVersion if a newer build has written it.
func Decode(eventType string, version int, data []byte) (Event, error) {
	if e, read, err := Forms.Read(eventType, version, data); read {
		return e, err
	}
	switch eventType {
	case TypePaymentRequested:
		return decode[PaymentRequested](data)
	case TypePaymentSuccess:
		return decode[PaymentSuccess](data)
	case TypePaymentFailed:
		return decode[PaymentFailed](data)
	case TypePaymentUnmatched:
		return decode[PaymentUnmatched](data)
	case TypePaymentResolved:
		return decode[PaymentResolved](data)
	case TypeRefundRequested:
		return decode[RefundRequested](data)
	case TypeRefundSuccess:
		return decode[RefundSuccess](data)
	case TypeRefundFailed:
		return decode[RefundFailed](data)
	}
	return nil, fmt.Errorf("unknown payment event %q", eventType)
}

func decode[E Event](data []byte) (Event, error) {
	var e E
	err := domain.DecodeJSON(data, &e)
	return e, err
}
