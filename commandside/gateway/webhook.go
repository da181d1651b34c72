package gateway

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// The webhook events that Tomato handles. It counts and skips all others.
const (
	EventPaymentAuthorized = "payment.authorized"
	EventPaymentCaptured   = "payment.captured"
	EventPaymentFailed     = "payment.failed"
	EventOrderPaid         = "order.paid"
	EventRefundProcessed   = "refund.processed"
	EventRefundFailed      = "refund.failed"
)

// TypeWebhookReceived is the type of the records in the inbox, the topic
// payment-webhooks. The data of such a record is what Kept keeps of a webhook with a valid
// signature, which ParseWebhook reads, or a SealedBody.
const TypeWebhookReceived = "WEBHOOK_RECEIVED"

// Webhook is the content of a webhook. Payment is set for the payment events and for
// order.paid. Refund is set for the refund events.
type Webhook struct {
	Event   string
	Payment *Payment
	Refund  *RefundNotice
}

// RefundNotice is a refund in a webhook. RefundID and AggregateID are empty if Tomato
// did not ask for the refund.
type RefundNotice struct {
	GatewayRefundID string
	PaymentID       string
	GatewayOrderID  string // "" if the webhook does not contain the payment
	RefundID        string
	AggregateID     string
	Amount          int64 // minor units
	Reason          string
}

// The wire formats, as Razorpay documents them. They have only the fields that are read
// or simulated.
type (
	wireWebhook struct {
		Entity    string      `json:"entity"`
		AccountID string      `json:"account_id"`
		Event     string      `json:"event"`
		Contains  []string    `json:"contains"`
		Payload   wirePayload `json:"payload"`
		CreatedAt int64       `json:"created_at"` // Unix seconds
	}
	wirePayload struct {
		Payment *wireIn[wirePayment] `json:"payment,omitempty"`
		Order   *wireIn[wireOrder]   `json:"order,omitempty"`
		Refund  *wireIn[wireRefund]  `json:"refund,omitempty"`
	}
	wireIn[T any] struct {
		Entity T `json:"entity"`
	}
	wirePayment struct {
		ID               string  `json:"id"`
		Entity           string  `json:"entity"`
		Amount           int64   `json:"amount"`
		Currency         string  `json:"currency"`
		Status           string  `json:"status"`
		OrderID          *string `json:"order_id"`
		Method           string  `json:"method"`
		Captured         bool    `json:"captured"`
		AmountRefunded   int64   `json:"amount_refunded"`
		RefundStatus     *string `json:"refund_status"`
		Notes            notes   `json:"notes"`
		ErrorCode        *string `json:"error_code"`
		ErrorDescription *string `json:"error_description"`
		CreatedAt        int64   `json:"created_at"`
	}
	wireOrder struct {
		ID         string  `json:"id"`
		Entity     string  `json:"entity"`
		Amount     int64   `json:"amount"`
		AmountPaid int64   `json:"amount_paid"`
		AmountDue  int64   `json:"amount_due"`
		Currency   string  `json:"currency"`
		Receipt    *string `json:"receipt"`
		Status     string  `json:"status"`
		Attempts   int     `json:"attempts"`
		Notes      notes   `json:"notes"`
		CreatedAt  int64   `json:"created_at"`
	}
	wireRefund struct {
		ID        string  `json:"id"`
		Entity    string  `json:"entity"`
		Amount    int64   `json:"amount"`
		Currency  string  `json:"currency"`
		PaymentID string  `json:"payment_id"`
		Notes     notes   `json:"notes"`
		Receipt   *string `json:"receipt"`
		Status    string  `json:"status"`
		CreatedAt int64   `json:"created_at"`
	}
)

// notes is an object of strings. Razorpay writes [] if there are none. A value that is
// not a string did not come from Tomato and is left out.
type notes map[string]string

func (n *notes) UnmarshalJSON(b []byte) error {
	*n = nil
	var m map[string]json.RawMessage
	if json.Unmarshal(b, &m) != nil {
		return nil // it is [], null, or something else that did not come from Tomato
	}
	for k, v := range m {
		var s string
		if json.Unmarshal(v, &s) == nil {
			if *n == nil {
				*n = notes{}
			}
			(*n)[k] = s
		}
	}
	return nil
}

func (n notes) MarshalJSON() ([]byte, error) {
	if len(n) == 0 {
		return []byte("[]"), nil
	}
	return json.Marshal(map[string]string(n))
}

// The names of the notes that contain our ids.
const (
	noteOrder  = "orderId"
	noteRefund = "refundId"
)

// ParseWebhook reads the body of a webhook. It fails if the body is not a webhook, or if
// a payment or refund event lacks its payment or refund. Of all other events it returns
// only the name.
func ParseWebhook(body []byte) (Webhook, error) {
	var head struct {
		Event   string          `json:"event"`
		Payload json.RawMessage `json:"payload"`
	}
	if err := json.Unmarshal(body, &head); err != nil {
		return Webhook{}, fmt.Errorf("webhook: %w", withoutValue(err))
	}
	if head.Event == "" {
		return Webhook{}, errors.New("webhook: no event")
	}
	if !word.MatchString(head.Event) {
		head.Event = "unknown"
	}
	w := Webhook{Event: head.Event}
	var p wirePayload
	switch head.Event {
	case EventPaymentAuthorized, EventPaymentCaptured, EventPaymentFailed, EventOrderPaid, EventRefundProcessed, EventRefundFailed:
		if len(head.Payload) == 0 {
			return w, fmt.Errorf("webhook %s: no payload", w.Event)
		}
		if err := json.Unmarshal(head.Payload, &p); err != nil {
			return w, fmt.Errorf("webhook %s: %w", w.Event, withoutValue(err))
		}
	default:
		return w, nil
	}
	switch head.Event {
	case EventRefundProcessed, EventRefundFailed:
		if p.Refund == nil || p.Refund.Entity.PaymentID == "" {
			return w, fmt.Errorf("webhook %s: no refund of a payment", w.Event)
		}
		r := p.Refund.Entity
		if !gatewayID.MatchString(r.PaymentID) {
			return w, fmt.Errorf("webhook %s: the payment id is none", w.Event)
		}
		ours := ourNotes(r.Notes)
		w.Refund = &RefundNotice{GatewayRefundID: keptWord(r.ID), PaymentID: r.PaymentID, Amount: r.Amount,
			RefundID: ours[noteRefund], AggregateID: ours[noteOrder]}
		if w.Refund.RefundID == "" {
			w.Refund.RefundID = keptWord(deref(r.Receipt))
		}
		if p.Payment != nil {
			w.Refund.GatewayOrderID = keptWord(deref(p.Payment.Entity.OrderID))
			w.Refund.Reason = text(deref(p.Payment.Entity.ErrorDescription))
		}
	default:
		if p.Payment == nil || p.Payment.Entity.ID == "" {
			return w, fmt.Errorf("webhook %s: no payment", w.Event)
		}
		w.Payment = p.Payment.Entity.payment()
		if w.Payment.GatewayOrderID == "" && p.Order != nil {
			w.Payment.GatewayOrderID = p.Order.Entity.ID
		}
		if err := w.Payment.check(); err != nil {
			return w, fmt.Errorf("webhook %s: %w", w.Event, err)
		}
		if w.Payment.Status == "" {
			w.Payment.Status = map[string]string{EventPaymentAuthorized: "authorized", EventPaymentFailed: StatusFailed,
				EventPaymentCaptured: StatusCaptured, EventOrderPaid: StatusCaptured}[w.Event]
		}
	}
	return w, nil
}

// InboxKey returns the key of the webhook's record in the inbox. It is the gateway
// order, so that all webhooks of one gateway order stay in sequence. If that is not
// known, it is the payment. If the webhook has neither, it is "".
func (w *Webhook) InboxKey() string {
	switch {
	case w.Payment != nil && w.Payment.GatewayOrderID != "":
		return w.Payment.GatewayOrderID
	case w.Payment != nil:
		return w.Payment.PaymentID
	case w.Refund != nil && w.Refund.GatewayOrderID != "":
		return w.Refund.GatewayOrderID
	case w.Refund != nil:
		return w.Refund.PaymentID
	}
	return ""
}

func (p *wirePayment) payment() *Payment {
	return &Payment{PaymentID: p.ID, GatewayOrderID: deref(p.OrderID), Amount: p.Amount, Currency: p.Currency,
		Status: keptStatus(p.Status), Reason: text(deref(p.ErrorDescription))}
}

var currencyCode = regexp.MustCompile(`^[A-Za-z]{3}$`)

// check returns an error if a value cannot be that of a payment. The values must be
// checked, because the ids become keys and parts of paths, and the amount may be sent
// back.
func (p *Payment) check() error {
	switch {
	case !gatewayID.MatchString(p.PaymentID), p.GatewayOrderID != "" && !gatewayID.MatchString(p.GatewayOrderID):
		return errors.New("an id is none")
	case p.Amount <= 0 || !currencyCode.MatchString(p.Currency):
		return errors.New("amount or currency is none")
	}
	return nil
}

const maxTextChars = 500

// text returns a text that came from outside in a form that an event may contain: valid
// UTF-8 without NUL, at most maxTextChars characters.
func text(s string) string {
	r := []rune(strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), ""))
	return string(r[:min(len(r), maxTextChars)])
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func ref(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
