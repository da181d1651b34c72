package shard

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/domain/restaurant"
	"tomato/domain/rider"
	"tomato/eventlog"
)

// This file owns the JSON of forwarded commands and of their answers.

// wireRequest is the JSON of a Request. The command is named by CommandName.
type wireRequest struct {
	Request
	Command     string          `json:"command"`
	CommandData json.RawMessage `json:"commandData"`
	AfterToken  string          `json:"afterToken,omitempty"`
}

// wireAnswer is the JSON of a Result, a refusal or an UnknownEvent.
type wireAnswer struct {
	EventType string          `json:"eventType,omitempty"`
	EventData json.RawMessage `json:"eventData,omitempty"`
	// EventVersion is the version of EventData, 0 for the first. It is the version that
	// the log has, so that an older build can read what it could read there.
	EventVersion int               `json:"eventVersion,omitempty"`
	Repeated     bool              `json:"repeated,omitempty"`
	Status       int               `json:"status,omitempty"`
	Order        *order.State      `json:"order,omitempty"`
	Payment      *payment.State    `json:"payment,omitempty"`
	Rider        *rider.State      `json:"rider,omitempty"`
	Restaurant   *restaurant.State `json:"restaurant,omitempty"`
	Known        []bool            `json:"known,omitempty"`
	Token        string            `json:"token,omitempty"`
	Refusal      *domain.Refusal   `json:"refusal,omitempty"`
	Unknown      *UnknownEvent     `json:"unknownEvent,omitempty"`
}

// commandRule says how a forwarded command is decoded, on which topics it is valid,
// and which roles may issue it.
type commandRule struct {
	decode func([]byte) (domain.Command, error)
	topics []string
	roles  []domain.Role
}

// commands are the commands that can be forwarded, by name. A new command needs a line
// here and a case in checkCommand. TestEveryCommandTravels compares the table
// with the commands of the domain.
//
// The roles of people are those of the REST calls. Commands that only policies issue
// are for the system alone. The system may also set up riders and restaurants.
var commands = map[string]commandRule{
	"place": {as[Place], ofOrders, []domain.Role{domain.Customer}},
	"known": {as[Known], ofRiders, bySystem},
	"look":  {as[Look], eventlog.AggregateTopics[:], bySystem},

	"mark-paid":    {as[order.MarkPaid], ofOrders, bySystem},
	"accept-order": {as[order.AcceptOrder], ofOrders, []domain.Role{domain.Restaurant}},
	"reject":       {as[order.Reject], ofOrders, []domain.Role{domain.Restaurant}},
	"preparing":    {as[order.Prepare], ofOrders, []domain.Role{domain.Restaurant}},
	"ready":        {as[order.Ready], ofOrders, []domain.Role{domain.Restaurant}},
	"offer":        {as[order.OfferWave], ofOrders, bySystem},
	"exhaust":      {as[order.Exhaust], ofOrders, bySystem},
	"dispatch":     {as[order.RequestDispatch], ofOrders, []domain.Role{domain.Ops}},
	"accept":       {as[order.CheckOffer], ofOrders, []domain.Role{domain.Rider}},
	"assign":       {as[order.Assign], ofOrders, bySystem},
	"decline":      {as[order.Decline], ofOrders, []domain.Role{domain.Rider}},
	"drop":         {as[order.DropOrder], ofOrders, []domain.Role{domain.Rider, domain.Ops}},
	"pick-up":      {as[order.PickUpOrder], ofOrders, []domain.Role{domain.Rider}},
	"deliver":      {as[order.Deliver], ofOrders, []domain.Role{domain.Rider}},
	"cancel":       {as[order.Cancel], ofOrders, []domain.Role{domain.Customer, domain.Restaurant, domain.Ops}},

	"payment":          {as[payment.RequestPayment], ofPayments, []domain.Role{domain.Customer}},
	"record-captured":  {as[payment.RecordCaptured], ofPayments, bySystem},
	"record-failed":    {as[payment.RecordFailed], ofPayments, bySystem},
	"record-unmatched": {as[payment.RecordUnmatched], ofPayments, bySystem},
	"refund":           {as[payment.RequestRefund], ofPayments, []domain.Role{domain.Ops, domain.System}},
	"record-refund":    {as[payment.RecordRefund], ofPayments, bySystem},
	"resolve":          {as[payment.Resolve], ofPayments, []domain.Role{domain.Ops}},

	"put-rider": {as[rider.Put], ofRiders, []domain.Role{domain.Ops, domain.Rider, domain.System}},
	"verify":    {as[rider.Verify], ofRiders, []domain.Role{domain.Ops, domain.System}},
	"suspend":   {as[rider.Suspend], ofRiders, []domain.Role{domain.Ops, domain.System}},
	"online":    {as[rider.GoOnline], ofRiders, []domain.Role{domain.Rider, domain.System}},
	"offline":   {as[rider.GoOffline], ofRiders, []domain.Role{domain.Rider, domain.System}},
	"claim":     {as[rider.ClaimFor], ofRiders, bySystem},
	"release":   {as[rider.Release], ofRiders, bySystem},

	"put-restaurant":   {as[restaurant.Put], ofRestaurants, byKitchen},
	"open":             {as[restaurant.Open], ofRestaurants, byKitchen},
	"close":            {as[restaurant.Close], ofRestaurants, byKitchen},
	"set-menu-item":    {as[restaurant.SetMenuItem], ofRestaurants, byKitchen},
	"remove-menu-item": {as[restaurant.RemoveMenuItem], ofRestaurants, byKitchen},
}

var (
	ofOrders, ofPayments    = []string{eventlog.Orders}, []string{eventlog.Payments}
	ofRiders, ofRestaurants = []string{eventlog.Riders}, []string{eventlog.Restaurants}
	bySystem                = []domain.Role{domain.System}
	byKitchen               = []domain.Role{domain.Restaurant, domain.Ops, domain.System}
)

// as decodes a command of type C.
func as[C domain.Command](data []byte) (domain.Command, error) {
	var c C
	err := strict(data, &c)
	return c, err
}

// strict decodes exactly one JSON value. A field that v does not have is an error.
func strict(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something follows the JSON value")
	}
	return nil
}

func encodeRequest(r Request) ([]byte, error) {
	data, err := json.Marshal(r.Command)
	if err != nil {
		return nil, err
	}
	w := wireRequest{Request: r, Command: r.Command.CommandName(), CommandData: data, AfterToken: r.After.String()}
	return json.Marshal(w)
}

// decodeRequest decodes a forwarded command and checks it. Its errors quote nothing of
// the body.
func decodeRequest(b []byte) (Request, error) {
	var w wireRequest
	if strict(b, &w) != nil {
		return Request{}, errors.New("the body is not a forwarded command")
	}
	rule, known := commands[w.Command]
	if !known {
		return Request{}, errors.New("the command is unknown")
	}
	r := w.Request
	var err error
	if r.Command, err = rule.decode(w.CommandData); err != nil {
		return Request{}, errors.New("commandData is not of the command's form")
	}
	if r.After, err = eventlog.ParseToken(w.AfterToken); err != nil {
		return Request{}, errors.New("afterToken is not valid")
	}
	return r, r.check()
}

// encodeAnswer encodes the outcome of a command. It returns err itself if err is
// neither a refusal nor an UnknownEvent.
func encodeAnswer(res Result, err error) ([]byte, error) {
	w := wireAnswer{Repeated: res.Repeated, Status: res.Status, Order: res.Order, Payment: res.Payment,
		Rider: res.Rider, Restaurant: res.Restaurant, Known: res.Known, Token: res.ConsistencyToken()}
	if err != nil && !errors.As(err, &w.Refusal) && !errors.As(err, &w.Unknown) {
		return nil, err
	}
	if res.Event != nil {
		w.EventType = res.Event.EventType()
		if res.schema > 1 {
			w.EventVersion = res.schema
		}
		if w.EventData, err = json.Marshal(inVersion(res.Event, res.schema)); err != nil {
			return nil, err
		}
	}
	return json.Marshal(w)
}

// decodeAnswer decodes what encodeAnswer has encoded. An event that this build does not
// know, because the owner runs a newer one, is left out of the result. The command has
// succeeded all the same.
func decodeAnswer(topic string, b []byte) (Result, error) {
	var w wireAnswer
	if err := json.Unmarshal(b, &w); err != nil {
		return Result{}, err
	}
	res := Result{Repeated: w.Repeated, Status: w.Status, Order: w.Order, Payment: w.Payment, Rider: w.Rider, Restaurant: w.Restaurant, Known: w.Known}
	var err error
	if w.EventType != "" && canRead(w.EventType, w.EventVersion) {
		res.schema = max(1, w.EventVersion)
		if res.Event, err = decodeEvent(topic, w.EventType, max(1, w.EventVersion), w.EventData); err != nil {
			return Result{}, err
		}
	}
	token, err := eventlog.ParseToken(w.Token)
	if err != nil || len(token) > len(res.positions) {
		return Result{}, fmt.Errorf("the token is not one of a shard: %w", err)
	}
	n := 0
	for tp, offset := range token {
		res.positions[n] = eventlog.Position{TopicPartition: tp, Offset: offset}
		n++
	}
	switch {
	case w.Refusal != nil:
		return res, w.Refusal
	case w.Unknown != nil:
		return res, w.Unknown
	}
	return res, nil
}

// decodeEvent decodes an event of an aggregate topic. version is that of its data.
func decodeEvent(topic, eventType string, version int, data []byte) (domain.Event, error) {
	switch logOf(topic) {
	case orders:
		return order.Decode(eventType, version, data)
	case payments:
		return payment.Decode(eventType, version, data)
	case riders:
		return rider.Decode(eventType, version, data)
	case restaurants:
		return restaurant.Decode(eventType, version, data)
	}
	return nil, fmt.Errorf("%q is no aggregate topic", topic)
}
