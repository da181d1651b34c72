package realtime

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/domain/rooms"
	"tomato/eventlog"
	"tomato/eventlog/subjectkeys"
)

// The payloads of the messages. queryside/feed/asyncapi.json describes them.
type (
	updatePayload struct {
		OrderID       string `json:"orderId"`
		Status        string `json:"status,omitempty"`
		PaymentStatus string `json:"paymentStatus,omitempty"`
		Version       int64  `json:"version,omitempty"`
	}
	availablePayload struct {
		OrderID        string       `json:"orderId"`
		RestaurantID   string       `json:"restaurantId"`
		Location       domain.Point `json:"location"`
		DistanceMeters int          `json:"distanceMeters"`
		ExpiresAt      time.Time    `json:"expiresAt"`
	}
	takenPayload struct {
		OrderID string `json:"orderId"`
		Reason  string `json:"reason"`
	}
	assignedPayload struct {
		OrderID   string `json:"orderId"`
		RiderID   string `json:"riderId"`
		RiderName string `json:"riderName"`
	}
	exhaustedPayload struct {
		OrderID string `json:"orderId"`
		Waves   int    `json:"waves"`
	}
)

// Rooms returns the messages that one event means, each with the rooms that it goes
// to. The order of the messages and of the rooms is fixed, and is part of what
// clients see. Beside the event, Rooms looks only at whether the key of a personal field
// still exists. So every instance makes the same messages of the same log, until somebody
// is erased. The message rider:location is not made here, because it needs more than the
// event; see assignments.
//
// It fails if the event cannot be decoded, and with eventlog.ErrUnavailable if a personal
// field cannot be opened now.
func Rooms(ctx context.Context, keys subjectkeys.Opener, e *eventlog.Event) ([]rooms.Message, error) {
	switch e.Topic {
	case eventlog.Orders:
		return orderRooms(ctx, keys, e)
	case eventlog.Payments:
		return paymentRooms(e)
	case eventlog.Feed:
		return emitRooms(e)
	}
	return nil, nil
}

func orderRooms(ctx context.Context, keys subjectkeys.Opener, e *eventlog.Event) ([]rooms.Message, error) {
	decoded, err := order.Decode(e.Type, e.DataVersion(), e.Data)
	if err != nil {
		return nil, err
	}
	m := messages{at: e.Time}
	switch o := decoded.(type) {
	case order.OrderPlaced:
		m.update(e, o.OrderID, o.Ctx, "", false)
	case order.OrderPaid:
		view := o.View(e.Version, e.Time)
		if err := subjectkeys.OpenOrder(ctx, keys, &view); err != nil {
			return nil, err
		}
		m.add("order:new", o.Ctx, view, to(rooms.Restaurant(o.Ctx.RestaurantID)))
		m.update(e, o.OrderID, o.Ctx, string(order.PaymentPaid), false)
	case order.OrderExpired:
		m.update(e, o.OrderID, o.Ctx, "", false)
	case order.OrderAccepted:
		m.update(e, o.OrderID, o.Ctx, "", false)
	case order.OrderRejected:
		m.update(e, o.OrderID, o.Ctx, "", false)
	case order.OrderPreparing:
		m.update(e, o.OrderID, o.Ctx, "", false)
	case order.OrderReadyForRider:
		m.update(e, o.OrderID, o.Ctx, "", false)
	case order.OrderOffered:
		for _, r := range o.Riders {
			m.add("order:available", o.Ctx, availablePayload{o.OrderID, o.Ctx.RestaurantID, o.Location, r.DistanceMeters, o.ExpiresAt}, toRider(r.RiderID))
		}
	case order.OffersExpired:
		m.taken(o.OrderID, o.Ctx, "expired", o.Riders)
	case order.RiderAssigned:
		m.update(e, o.OrderID, o.Ctx, "", false)
		m.taken(o.OrderID, o.Ctx, "assigned", o.Riders)
		name, err := subjectkeys.OpenName(ctx, keys, o.RiderID, o.RiderName)
		if err != nil {
			return nil, err
		}
		m.add("order:rider_assigned", o.Ctx, assignedPayload{o.OrderID, o.RiderID, name},
			toCustomer(o.Ctx.CustomerID), to(rooms.Restaurant(o.Ctx.RestaurantID)), to(rooms.Order(o.OrderID)))
	case order.RiderUnassigned:
		m.update(e, o.OrderID, o.Ctx, "", true)
	case order.DispatchExhausted:
		m.add("dispatch:exhausted", o.Ctx, exhaustedPayload{o.OrderID, o.Waves}, to(rooms.Restaurant(o.Ctx.RestaurantID)), to(rooms.Ops))
	case order.OrderPickedUp:
		m.update(e, o.OrderID, o.Ctx, "", false)
	case order.OrderDelivered:
		m.update(e, o.OrderID, o.Ctx, "", true)
	case order.OrderCancelled:
		m.update(e, o.OrderID, o.Ctx, "", true)
		m.taken(o.OrderID, o.Ctx, "cancelled", o.Riders)
	}
	for i := range m.all {
		m.all[i].Version = e.Version
		m.all[i].Assigned, m.all[i].Unassigned = e.Type == order.TypeRiderAssigned, e.Type == order.TypeRiderUnassigned
	}
	return m.all, m.err
}

func paymentRooms(e *eventlog.Event) ([]rooms.Message, error) {
	decoded, err := payment.Decode(e.Type, e.DataVersion(), e.Data)
	if err != nil {
		return nil, err
	}
	var orderID string
	var ctx domain.Ctx
	switch p := decoded.(type) {
	case payment.PaymentRequested:
		orderID, ctx = p.OrderID, p.Ctx
	case payment.PaymentSuccess:
		orderID, ctx = p.OrderID, p.Ctx
	case payment.PaymentFailed:
		orderID, ctx = p.OrderID, p.Ctx
	case payment.PaymentUnmatched:
		orderID, ctx = p.OrderID, p.Ctx
	case payment.PaymentResolved:
		orderID, ctx = p.OrderID, p.Ctx
	case payment.RefundRequested:
		orderID, ctx = p.OrderID, p.Ctx
	case payment.RefundSuccess:
		orderID, ctx = p.OrderID, p.Ctx
	case payment.RefundFailed:
		orderID, ctx = p.OrderID, p.Ctx
	}
	if orderID == "" || ctx.PaymentStatus == "" {
		return nil, nil
	}
	m := messages{at: e.Time}
	m.add("order:update", ctx, updatePayload{OrderID: orderID, PaymentStatus: ctx.PaymentStatus}, orderParties(orderID, ctx)...)
	return m.all, m.err
}

func emitRooms(e *eventlog.Event) ([]rooms.Message, error) {
	if e.Type != rooms.Emitted {
		return nil, nil
	}
	var emit rooms.Emit
	if err := json.Unmarshal(e.Data, &emit); err != nil {
		return nil, err
	}
	if !rooms.ValidEvent(emit.Event) || !rooms.Valid(emit.Room) || len(emit.Payload) == 0 {
		return nil, fmt.Errorf("a %s without a valid event, room or payload", rooms.Emitted)
	}
	var payload bytes.Buffer // without line breaks, which would end a Server-Sent Event
	if err := json.Compact(&payload, emit.Payload); err != nil {
		return nil, err
	}
	m := rooms.Message{Event: emit.Event, Rooms: []string{emit.Room}, Payload: payload.Bytes(), Timestamp: e.Time}
	if emit.Role != "" {
		m.Roles = []domain.Role{emit.Role}
	}
	return []rooms.Message{m}, nil
}

// messages collects the messages that one event means.
type messages struct {
	at  time.Time // of the event
	all []rooms.Message
	err error
}

// target is a room, and the role that the message is for in that room. See Roles of
// rooms.Message.
type target struct {
	room string
	role domain.Role
}

func to(room string) target { return target{room: room} }

func toCustomer(id string) target { return toUser(id, domain.Customer) }
func toRider(id string) target    { return toUser(id, domain.Rider) }

// toUser returns the room of a user, or the zero target if id is empty.
func toUser(id string, role domain.Role) target {
	if id == "" {
		return target{}
	}
	return target{rooms.User(id), role}
}

// add appends a message to the targets. Zero targets are left out. If two targets
// are the same room for different roles, the message names the room once, for all
// roles.
func (m *messages) add(event string, ctx domain.Ctx, payload any, targets ...target) {
	b, err := json.Marshal(payload)
	if err != nil {
		m.err = err
		return
	}
	msg := rooms.Message{Event: event, Payload: b, Timestamp: m.at, Customer: ctx.CustomerID, Restaurant: ctx.RestaurantID, Rider: ctx.RiderID}
	for _, t := range targets {
		if i := slices.Index(msg.Rooms, t.room); i >= 0 {
			if msg.Roles[i] != t.role {
				msg.Roles[i] = ""
			}
		} else if t.room != "" {
			msg.Rooms, msg.Roles = append(msg.Rooms, t.room), append(msg.Roles, t.role)
		}
	}
	m.all = append(m.all, msg)
}

// update appends order:update to the parties of the order. final means that the
// order's rider:location is no longer current.
func (m *messages) update(e *eventlog.Event, orderID string, ctx domain.Ctx, paymentStatus string, final bool) {
	m.add("order:update", ctx, updatePayload{orderID, ctx.Status, paymentStatus, e.Version}, orderParties(orderID, ctx)...)
	if n := len(m.all); n > 0 {
		m.all[n-1].Final = final
	}
}

// taken appends order:taken to riders, whose offers of the order have ended.
func (m *messages) taken(orderID string, ctx domain.Ctx, reason string, riders []string) {
	if len(riders) == 0 {
		return
	}
	targets := make([]target, len(riders))
	for i, r := range riders {
		targets[i] = toRider(r)
	}
	m.add("order:taken", ctx, takenPayload{orderID, reason}, targets...)
}

func orderParties(orderID string, ctx domain.Ctx) []target {
	return []target{toCustomer(ctx.CustomerID), to(rooms.Restaurant(ctx.RestaurantID)), to(rooms.Order(orderID)), toRider(ctx.RiderID)}
}
