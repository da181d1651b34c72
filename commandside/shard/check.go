package shard

import (
	"errors"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/domain/restaurant"
	"tomato/domain/rider"
	"tomato/eventlog"
)

// This file owns the validation of forwarded commands.

// Limits of a forwarded command, in addition to those of the REST calls.
const (
	maxBodyText   = 64 << 10  // bytes of BodyHash
	maxCause      = 255       // bytes of a causation or correlation id
	maxOfferLimit = 1000      // riders in one wave
	maxAskedFor   = 10_000    // riders in one Known or OfferWave
	maxDistance   = 1_000_000 // meters from a rider to an order
)

// check validates a forwarded command. All commands that the REST calls and the
// policies issue are valid. The check is needed although the call is signed, because
// the signature proves only that an instance has sent it. The error quotes no value.
func (r *Request) check() error {
	if r.Command == nil {
		return errors.New("the command is missing")
	}
	rule, known := commands[r.Command.CommandName()]
	kind := logOf(r.Topic)
	switch {
	case !known:
		return errors.New("the command is unknown")
	case kind < 0 || !slices.Contains(rule.topics, r.Topic):
		return errors.New("the command is not for this topic")
	case !validAggregateID(kind, r.ID):
		return errors.New("the aggregate's id is not valid for its topic")
	}
	if err := checkActor(r.Actor); err != nil {
		return err
	}
	if !slices.Contains(rule.roles, r.Actor.Role) {
		return errors.New("the actor's role may not issue this command")
	}
	switch {
	case r.IdempotencyKey != "" && !visible(r.IdempotencyKey, 255):
		return errors.New("idempotencyKey is not 1 to 255 visible characters")
	case r.BodyHash != "" && (r.IdempotencyKey == "" || len(r.BodyHash) > maxBodyText || !utf8.ValidString(r.BodyHash)):
		return errors.New("bodyHash is without an idempotencyKey, too long, or not UTF-8")
	case r.IfMatch < Never || len(r.OrMatch) > 0 && (r.IfMatch < 1 || slices.Min(r.OrMatch) < 1):
		return errors.New("ifMatch or orMatch is not valid")
	case !validCause(r.CausationID) || !validCause(r.CorrelationID):
		return errors.New("causationId or correlationId is not 255 visible characters or fewer")
	case r.Traceparent != "" && !ValidTraceparent(r.Traceparent):
		return errors.New("traceparent is not of W3C's form")
	}
	for tp, offset := range r.After {
		if tp.Partition < 0 || offset < 0 {
			return errors.New("afterToken is not valid")
		}
	}
	if fault := r.checkCommand(); fault != "" {
		return errors.New(fault)
	}
	return nil
}

// validAggregateID reports whether an aggregate in this log can have the id.
func validAggregateID(kind int, id string) bool {
	if kind == orders {
		return validOrderID(id)
	}
	return domain.ValidID(id) // the id of a payment is that of its order, or one of the gateway
}

// validOrderID reports whether s is a UUID in lower case.
func validOrderID(s string) bool {
	return len(s) == 36 && uuid.Validate(s) == nil && s == strings.ToLower(s)
}

// checkActor accepts the actors that a token can name, and the system.
func checkActor(a domain.Actor) error {
	switch a.Role {
	case domain.System:
		if a != domain.SystemActor {
			return errors.New("the actor is not valid")
		}
		return nil
	case domain.Customer, domain.Rider, domain.Ops:
		if a.RestaurantID != "" {
			return errors.New("the actor's role has no restaurantId")
		}
	case domain.Restaurant:
		if !domain.ValidID(a.RestaurantID) {
			return errors.New("the actor's restaurantId is not valid")
		}
	default:
		return errors.New("the actor's role is unknown")
	}
	if !domain.ValidID(a.Sub) {
		return errors.New("the actor's sub is not valid")
	}
	return nil
}

// checkCommand validates the fields of the command itself. It returns what is wrong,
// or "" if all fields are valid.
func (r *Request) checkCommand() string {
	const ids, bounds, other = "an id in the command is not valid", "a number in the command is out of bounds", "the command is for another caller or aggregate"
	text := "a text in the command is empty, too long, or not valid"
	unless := func(fault string, ok bool) string {
		if ok {
			return ""
		}
		return fault
	}
	switch c := r.Command.(type) {
	case Place:
		fault := first(unless(other, c.CustomerID == r.Actor.Sub), unless(ids, r.ID[14] == '7' && domain.ValidID(c.RestaurantID)), // a UUIDv7
			unless(bounds, len(c.Lines) >= 1 && len(c.Lines) <= 100 && c.PaymentTTL > 0),
			unless(text, c.DeliverTo.Valid() && optionalText(c.ExternalReference)))
		for _, l := range c.Lines {
			fault = first(fault, unless(ids, domain.ValidID(l.ItemID)), unless(bounds, l.Quantity >= 1 && l.Quantity <= 100))
		}
		return fault
	case Known:
		fault := unless(bounds, len(c.RiderIDs) >= 1 && len(c.RiderIDs) <= maxAskedFor)
		for _, id := range c.RiderIDs {
			fault = first(fault, unless(ids, domain.ValidID(id)))
		}
		return fault
	case order.MarkPaid:
		return first(unless(ids, domain.ValidID(c.PaymentID)), unless(bounds, c.AcceptTTL > 0))
	case order.AcceptOrder:
		return unless(bounds, c.PrepMinutes >= 0 && c.PrepMinutes <= 240)
	case order.Reject:
		return unless(text, validText(c.Reason))
	case order.OfferWave:
		fault := unless(bounds, c.Round >= 0 && c.Wave >= 0 && c.TTL > 0 && c.Limit >= 1 && c.Limit <= maxOfferLimit && len(c.Riders) <= maxAskedFor)
		for _, o := range c.Riders {
			fault = first(fault, unless(ids, domain.ValidID(o.RiderID)), unless(bounds, o.DistanceMeters >= 0 && o.DistanceMeters <= maxDistance))
		}
		return fault
	case order.Exhaust:
		return unless(bounds, c.Round >= 0 && c.LastWave >= 0)
	case order.CheckOffer:
		return unless(other, c.RiderID == r.Actor.Sub)
	case order.Assign:
		return first(unless(ids, domain.ValidID(c.RiderID)), unless(text, c.RiderName == "" || c.RiderName.Valid()), unless(bounds, c.ClaimID >= 1 && c.Round >= 0 && c.Wave >= 0))
	case order.Decline:
		return unless(other, c.RiderID == r.Actor.Sub)
	case order.DropOrder:
		return first(unless(other, c.By == r.Actor), unless(text, validReason(c.Reason)))
	case order.Cancel:
		return first(unless(other, c.By == r.Actor), unless(text, validReason(c.Reason)))
	case payment.RequestPayment:
		return first(unless(other, c.OrderID == r.ID && c.Order == payment.OrderFacts{}), unless(ids, validOrderID(r.ID)),
			unless(text, visible(c.Provider, 64)), unless(ids, c.GatewayOrderID == "" || domain.ValidID(c.GatewayOrderID)))
	case payment.RecordCaptured:
		return first(unless(other, c.Order == payment.OrderFacts{}), unless(ids, domain.ValidID(c.PaymentID) && domain.ValidID(c.GatewayOrderID)),
			unless(bounds, c.Amount > 0), unless(text, validCurrency(c.Currency)))
	case payment.RecordFailed:
		return first(unless(ids, domain.ValidID(c.PaymentID) && domain.ValidID(c.GatewayOrderID)), unless(bounds, c.Amount > 0),
			unless(text, validCurrency(c.Currency) && optionalText(c.Reason)))
	case payment.RecordUnmatched:
		return first(unless(other, c.PaymentID == r.ID), unless(ids, c.GatewayOrderID == "" || domain.ValidID(c.GatewayOrderID)),
			unless(bounds, c.Amount > 0), unless(text, validCurrency(c.Currency) && validText(c.Reason)))
	case payment.RequestRefund:
		return first(unless(other, !c.ByOps || r.Actor.Role != domain.Customer), unless(ids, (c.PaymentID == "" || domain.ValidID(c.PaymentID)) && domain.ValidID(c.RefundID)),
			unless(text, validText(c.Reason)))
	case payment.RecordRefund: // the id is what the gateway calls ours, or what it made up
		return first(unless(ids, len(c.RefundID) <= maxCause && utf8.ValidString(c.RefundID)), unless(text, optionalText(c.Reason)))
	case payment.Resolve:
		return first(unless(other, c.By == r.Actor.Sub), unless(ids, domain.ValidID(c.PaymentID)), unless(text, validText(c.Reason)))
	case rider.Put:
		return first(unless(other, c.RiderID == r.ID), unless(text, c.Name.Valid() && optionalText(c.Vehicle)))
	case rider.ClaimFor:
		return first(unless(ids, validOrderID(c.OrderID) && domain.ValidID(c.CustomerID) && domain.ValidID(c.RestaurantID)), unless(bounds, c.Round >= 0 && c.Wave >= 0))
	case rider.Release:
		return first(unless(ids, validOrderID(c.OrderID)), unless(bounds, c.ClaimID >= 1))
	case restaurant.Put:
		return first(unless(other, c.RestaurantID == r.ID), unless(bounds, c.Location.Valid()), unless(text, validText(c.Name) && optionalText(c.Address)))
	case restaurant.SetMenuItem:
		return first(unless(ids, domain.ValidID(c.Item.ItemID)), unless(bounds, c.Item.Price.Amount >= 1 && c.Item.Price.Amount <= 100_000_000),
			unless(text, validText(c.Item.Name) && validCurrency(c.Item.Price.Currency)))
	case restaurant.RemoveMenuItem:
		return unless(ids, domain.ValidID(c.ItemID))
	}
	return "" // the other commands have no fields
}

// first returns the first fault that is not "".
func first(faults ...string) string {
	for _, f := range faults {
		if f != "" {
			return f
		}
	}
	return ""
}

// validText reports whether s is a text as the REST calls require it: 1 to 500
// characters that are not all white space.
func validText(s string) bool {
	return strings.TrimSpace(s) != "" && optionalText(s)
}

// validReason reports whether s is a reason for which an order is cancelled or dropped.
// That of a customer or a rider is sealed, and longer than a text, unless an instance of
// an earlier build has forwarded it.
func validReason(s string) bool { return domain.Sealed(s).Valid() || validText(s) }

// optionalText reports whether s is empty or a text of at most 500 characters.
func optionalText(s string) bool {
	return utf8.ValidString(s) && (len(s) <= 500 || utf8.RuneCountInString(s) <= 500) && strings.IndexByte(s, 0) < 0
}

// validCurrency reports whether s has three letters. Lower case is valid, because
// gateways write it.
func validCurrency(s string) bool { return currency.MatchString(s) }

var (
	currency    = regexp.MustCompile(`^[A-Za-z]{3}$`)
	traceparent = regexp.MustCompile(`^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)
)

// ValidTraceparent reports whether s is a trace context of W3C's form.
func ValidTraceparent(s string) bool { return traceparent.MatchString(s) }

// visible reports whether s has 1 to most characters, all of them visible ASCII.
func visible(s string, most int) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return s != "" && len(s) <= most
}

// validCause reports whether s can be a causation or correlation id, or is empty.
func validCause(s string) bool { return s == "" || visible(s, maxCause) }

// prepare makes a command ready to be forwarded. It removes a causation id, a
// correlation id and a trace context that are not valid: they may come from a record
// that another program wrote, and the command does not depend on them. The error is a
// refusal if no aggregate can have the id, and otherwise an eventlog.ErrPoison, because
// a repeat would fail in the same way.
func (r *Request) prepare() error {
	if !validCause(r.CausationID) {
		r.CausationID = ""
	}
	if !validCause(r.CorrelationID) {
		r.CorrelationID = ""
	}
	if r.Traceparent != "" && !ValidTraceparent(r.Traceparent) {
		r.Traceparent = ""
	}
	if kind := logOf(r.Topic); kind >= 0 && !validAggregateID(kind, r.ID) {
		return domain.Refuse(domain.NotFound, "nothing has this id")
	}
	if err := r.check(); err != nil {
		return eventlog.Poison(errors.Join(errors.New("the command is not valid and was not forwarded"), err))
	}
	return nil
}

// maxForwardedFor is the longest deadline of a forwarded command.
const maxForwardedFor = 5 * time.Minute
