package gateway

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
)

// Kept returns the data of a webhook's record in the inbox. Of a webhook that ParseWebhook
// reads, it has only the fields in this file: the body also has the payer's address, phone
// number, account and card, which Tomato does not use and must not keep. ParseWebhook reads
// the same from the result as from the body. Kept fails if ParseWebhook does; then the
// caller keeps the body in sealed form (SealedBody), so that nothing is lost.
func Kept(body []byte) (Webhook, []byte, error) {
	w, err := ParseWebhook(body)
	if err != nil {
		return w, nil, err
	}
	var in wireWebhook
	kept := keptWebhook{Event: w.Event}
	if w.Payment != nil || w.Refund != nil {
		// ParseWebhook has read the payload. What is beside it may have any form.
		if err := json.Unmarshal(body, &struct {
			Payload *wirePayload `json:"payload"`
		}{&in.Payload}); err != nil {
			return w, nil, withoutValue(err)
		}
		kept.Payload = keptPayload(in.Payload)
	}
	var at struct {
		CreatedAt int64 `json:"created_at"`
	}
	if json.Unmarshal(body, &at) == nil {
		kept.CreatedAt = at.CreatedAt
	}
	data, err := json.Marshal(kept)
	return w, data, err
}

// SealedBody is the data of a record in the inbox whose body could not be decoded.
type SealedBody struct {
	Sealed  string `json:"sealed"`
	Subject string `json:"subject"` // under whose key: webhooks/<YYYY-MM>
	Fault   string `json:"fault"`   // why it could not be decoded
}

// ReadSealedBody reads the data of a record in the inbox as a SealedBody. ok is false if it
// is a webhook.
func ReadSealedBody(data []byte) (s SealedBody, ok bool) {
	err := json.Unmarshal(data, &s)
	return s, err == nil && s.Sealed != ""
}

// The fields of webhooks that are kept.
type (
	keptWebhook struct {
		Event     string  `json:"event"`
		Payload   keptOut `json:"payload,omitzero"`
		CreatedAt int64   `json:"created_at,omitempty"`
	}
	keptOut struct {
		Payment *wireIn[keptPayment] `json:"payment,omitempty"`
		Order   *wireIn[keptOrder]   `json:"order,omitempty"`
		Refund  *wireIn[keptRefund]  `json:"refund,omitempty"`
	}
	keptPayment struct {
		ID               string  `json:"id"`
		Amount           int64   `json:"amount"`
		Currency         string  `json:"currency"`
		Status           string  `json:"status,omitempty"`
		OrderID          *string `json:"order_id,omitempty"`
		Captured         bool    `json:"captured,omitempty"`
		AmountRefunded   int64   `json:"amount_refunded,omitempty"`
		ErrorCode        string  `json:"error_code,omitempty"`
		ErrorDescription *string `json:"error_description,omitempty"`
		CreatedAt        int64   `json:"created_at,omitempty"`
	}
	keptOrder struct {
		ID string `json:"id"`
	}
	keptRefund struct {
		ID        string `json:"id"`
		Amount    int64  `json:"amount"`
		Currency  string `json:"currency,omitempty"`
		PaymentID string `json:"payment_id"`
		Notes     notes  `json:"notes"`
		Receipt   string `json:"receipt,omitempty"`
		Status    string `json:"status,omitempty"`
		CreatedAt int64  `json:"created_at,omitempty"`
	}
)

// word matches what is a word of the gateway, such as a status or an error code. Longer
// texts in such a field are not kept.
var word = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)

func keptWord(s string) string {
	if !word.MatchString(s) {
		return ""
	}
	return s
}

// keptStatus is keptWord for a status. A status that is no word stays one that nobody
// knows, because ParseWebhook takes a missing one for that of the event.
func keptStatus(s string) string {
	if s != "" && !word.MatchString(s) {
		return "unknown"
	}
	return s
}

// keptPayload takes what is kept from a payload.
func keptPayload(p wirePayload) (out keptOut) {
	if p.Payment != nil {
		e := p.Payment.Entity
		kept := keptPayment{ID: keptWord(e.ID), Amount: e.Amount, Currency: keptWord(e.Currency), Status: keptStatus(e.Status), Captured: e.Captured,
			AmountRefunded: e.AmountRefunded, ErrorCode: keptWord(deref(e.ErrorCode)), ErrorDescription: ref(text(deref(e.ErrorDescription))), CreatedAt: e.CreatedAt}
		kept.OrderID = ref(keptWord(deref(e.OrderID)))
		out.Payment = &wireIn[keptPayment]{kept}
	}
	if p.Order != nil {
		out.Order = &wireIn[keptOrder]{keptOrder{ID: keptWord(p.Order.Entity.ID)}}
	}
	if p.Refund != nil {
		e := p.Refund.Entity
		out.Refund = &wireIn[keptRefund]{keptRefund{ID: keptWord(e.ID), Amount: e.Amount, Currency: keptWord(e.Currency), PaymentID: e.PaymentID,
			Notes: ourNotes(e.Notes), Receipt: keptWord(deref(e.Receipt)), Status: keptWord(e.Status), CreatedAt: e.CreatedAt}}
	}
	return out
}

// ourNotes returns the notes that Tomato has made: our ids.
func ourNotes(n notes) notes {
	ours := notes{}
	for _, name := range []string{noteOrder, noteRefund} {
		if id := keptWord(n[name]); id != "" {
			ours[name] = id
		}
	}
	return ours
}

// withoutValue returns an error of encoding/json without the value that it quotes, because
// the value may be personal and the error is kept with a dead letter.
func withoutValue(err error) error {
	var syntax *json.SyntaxError
	var wrong *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return fmt.Errorf("the body is not JSON, at byte %d", syntax.Offset)
	case errors.As(err, &wrong):
		return fmt.Errorf("the field %q has another type than %s", wrong.Field, wrong.Type)
	}
	return errors.New("the body cannot be read")
}
