package shard

import (
	"encoding/json"
	"errors"
	"fmt"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/domain/restaurant"
	"tomato/domain/rider"
	"tomato/eventlog"
)

// wireRequest is a Request between two instances: the command by its name.
type wireRequest struct {
	Request
	Command     string          `json:"command"`
	CommandData json.RawMessage `json:"commandData"`
	AfterToken  string          `json:"afterToken,omitempty"`
}

// wireAnswer is what a command came to, between two instances.
type wireAnswer struct {
	EventType  string            `json:"eventType,omitempty"`
	EventData  json.RawMessage   `json:"eventData,omitempty"`
	Repeated   bool              `json:"repeated,omitempty"`
	Status     int               `json:"status,omitempty"`
	Order      *order.State      `json:"order,omitempty"`
	Payment    *payment.State    `json:"payment,omitempty"`
	Rider      *rider.State      `json:"rider,omitempty"`
	Restaurant *restaurant.State `json:"restaurant,omitempty"`
	Known      []bool            `json:"known,omitempty"`
	Token      string            `json:"token,omitempty"`
	Refusal    *domain.Refusal   `json:"refusal,omitempty"`
}

// commands are those that travel, by name. A new command gets a line here; a
// test compares the table with the domain's commands.
var commands = map[string]func([]byte) (domain.Command, error){
	"place": as[Place], "known": as[Known], "look": as[Look],

	"mark-paid": as[order.MarkPaid], "accept-order": as[order.AcceptOrder], "reject": as[order.Reject],
	"preparing": as[order.Prepare], "ready": as[order.Ready], "offer": as[order.OfferWave], "exhaust": as[order.Exhaust],
	"dispatch": as[order.RequestDispatch], "accept": as[order.CheckOffer], "assign": as[order.Assign], "decline": as[order.Decline],
	"drop": as[order.DropOrder], "pick-up": as[order.PickUpOrder], "deliver": as[order.Deliver], "cancel": as[order.Cancel],

	"payment": as[payment.RequestPayment], "record-captured": as[payment.RecordCaptured], "record-failed": as[payment.RecordFailed],
	"record-unmatched": as[payment.RecordUnmatched], "refund": as[payment.RequestRefund], "record-refund": as[payment.RecordRefund],
	"resolve": as[payment.Resolve],

	"put-rider": as[rider.Put], "verify": as[rider.Verify], "suspend": as[rider.Suspend], "online": as[rider.GoOnline],
	"offline": as[rider.GoOffline], "claim": as[rider.ClaimFor], "release": as[rider.Release],

	"put-restaurant": as[restaurant.Put], "open": as[restaurant.Open], "close": as[restaurant.Close],
	"set-menu-item": as[restaurant.SetMenuItem], "remove-menu-item": as[restaurant.RemoveMenuItem],
}

func as[C domain.Command](data []byte) (domain.Command, error) {
	var c C
	err := json.Unmarshal(data, &c)
	return c, err
}

func encodeRequest(r Request) ([]byte, error) {
	data, err := json.Marshal(r.Command)
	if err != nil {
		return nil, err
	}
	w := wireRequest{Request: r, Command: r.Command.CommandName(), CommandData: data, AfterToken: r.After.String()}
	return json.Marshal(w)
}

func decodeRequest(b []byte) (Request, error) {
	var w wireRequest
	if err := json.Unmarshal(b, &w); err != nil {
		return Request{}, err
	}
	decode := commands[w.Command]
	if decode == nil {
		return Request{}, fmt.Errorf("unknown command %q", w.Command)
	}
	r := w.Request
	var err error
	if r.Command, err = decode(w.CommandData); err != nil {
		return Request{}, err
	}
	r.After, err = eventlog.ParseToken(w.AfterToken)
	return r, err
}

// encodeAnswer fails only with an error that is no refusal.
func encodeAnswer(res Result, err error) ([]byte, error) {
	w := wireAnswer{Repeated: res.Repeated, Status: res.Status, Order: res.Order, Payment: res.Payment,
		Rider: res.Rider, Restaurant: res.Restaurant, Known: res.Known, Token: res.ConsistencyToken()}
	if err != nil && !errors.As(err, &w.Refusal) {
		return nil, err
	}
	if res.Event != nil {
		w.EventType = res.Event.EventType()
		if w.EventData, err = json.Marshal(res.Event); err != nil {
			return nil, err
		}
	}
	return json.Marshal(w)
}

func decodeAnswer(topic string, b []byte) (Result, error) {
	var w wireAnswer
	if err := json.Unmarshal(b, &w); err != nil {
		return Result{}, err
	}
	res := Result{Repeated: w.Repeated, Status: w.Status, Order: w.Order, Payment: w.Payment, Rider: w.Rider, Restaurant: w.Restaurant, Known: w.Known}
	var err error
	if w.EventType != "" {
		if res.Event, err = decodeEvent(topic, w.EventType, w.EventData); err != nil {
			return Result{}, err
		}
	}
	token, err := eventlog.ParseToken(w.Token)
	if err != nil || len(token) > len(res.reached) {
		return Result{}, fmt.Errorf("not a shard's token: %w", err)
	}
	n := 0
	for tp, offset := range token {
		res.reached[n] = eventlog.Position{TopicPartition: tp, Offset: offset}
		n++
	}
	if w.Refusal != nil {
		return res, w.Refusal
	}
	return res, nil
}

func decodeEvent(topic, eventType string, data []byte) (domain.Event, error) {
	switch logOf(topic) {
	case orders:
		return order.Decode(eventType, data)
	case payments:
		return payment.Decode(eventType, data)
	case riders:
		return rider.Decode(eventType, data)
	case restaurants:
		return restaurant.Decode(eventType, data)
	}
	return nil, fmt.Errorf("%q is no aggregate topic", topic)
}
