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

// Bounds of a forwarded command, beside those of the REST calls.
const (
	maxBodyText   = 64 << 10 // bytes of what an idempotency key stands for
	maxCause      = 255      // bytes of the id of a causing event
	maxOfferLimit = 1000     // riders in one wave
	maxAskedFor   = 10_000   // riders in one Known
	maxDistance   = 1_000_000
)

// check says what is wrong with a command that another instance forwards, or
// nil. Everything that the REST calls and the policies issue passes; the
// signature says only that an instance sent it. The error quotes no value.
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

// validAggregateID says whether the log of this kind can have an aggregate with
// the id.
func validAggregateID(kind int, id string) bool {
	if kind == orders {
		return validOrderID(id)
	}
	return domain.ValidID(id) // a payment's is that of its order, or the gateway's
}

// validOrderID says whether s is a UUID in its lower-case form.
func validOrderID(s string) bool {
	return len(s) == 36 && uuid.Validate(s) == nil && s == strings.ToLower(s)
}

// checkActor takes what a token can say, and the system itself.
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

// checkCommand checks the fields of the command itself. It returns "" where all
// are valid.
func (r *Request) checkCommand() string {
	const ids, bounds, other = "an id in the command is not valid", "a number in the command is out of bounds", "the command is for another caller or aggregate"
	text := "a text in the command is empty, too long, or not valid"
	no := func(fault string, ok bool) string { // the first that is not ok
		if ok {
			return ""
		}
		return fault
	}
	switch c := r.Command.(type) {
	case Place:
		fault := first(no(other, c.CustomerID == r.Actor.Sub), no(ids, r.ID[14] == '7' && domain.ValidID(c.RestaurantID)), // a UUIDv7
			no(bounds, len(c.Lines) >= 1 && len(c.Lines) <= 100 && c.PaymentTTL > 0 && c.DeliverTo.Location.Valid()),
			no(text, validText(c.DeliverTo.Address) && optionalText(c.DeliverTo.Instructions) && optionalText(c.ExternalReference)))
		for _, l := range c.Lines {
			fault = first(fault, no(ids, domain.ValidID(l.ItemID)), no(bounds, l.Quantity >= 1 && l.Quantity <= 100))
		}
		return fault
	case Known:
		fault := no(bounds, len(c.RiderIDs) >= 1 && len(c.RiderIDs) <= maxAskedFor)
		for _, id := range c.RiderIDs {
			fault = first(fault, no(ids, domain.ValidID(id)))
		}
		return fault
	case order.MarkPaid:
		return first(no(ids, domain.ValidID(c.PaymentID)), no(bounds, c.AcceptTTL > 0))
	case order.AcceptOrder:
		return no(bounds, c.PrepMinutes >= 0 && c.PrepMinutes <= 240)
	case order.Reject:
		return no(text, validText(c.Reason))
	case order.OfferWave:
		fault := no(bounds, c.Round >= 0 && c.Wave >= 0 && c.TTL > 0 && c.Limit >= 1 && c.Limit <= maxOfferLimit && len(c.Riders) <= maxAskedFor)
		for _, o := range c.Riders {
			fault = first(fault, no(ids, domain.ValidID(o.RiderID)), no(bounds, o.DistanceMeters >= 0 && o.DistanceMeters <= maxDistance))
		}
		return fault
	case order.Exhaust:
		return no(bounds, c.Round >= 0 && c.LastWave >= 0)
	case order.CheckOffer:
		return no(other, c.RiderID == r.Actor.Sub)
	case order.Assign:
		return first(no(ids, domain.ValidID(c.RiderID)), no(text, optionalText(c.RiderName)), no(bounds, c.ClaimID >= 1 && c.Round >= 0 && c.Wave >= 0))
	case order.Decline:
		return no(other, c.RiderID == r.Actor.Sub)
	case order.DropOrder:
		return first(no(other, c.By == r.Actor), no(text, validText(c.Reason)))
	case order.Cancel:
		return first(no(other, c.By == r.Actor), no(text, validText(c.Reason)))
	case payment.RequestPayment:
		return first(no(other, c.OrderID == r.ID && c.Order == payment.OrderFacts{}), no(ids, validOrderID(r.ID)),
			no(text, visible(c.Provider, 64)), no(ids, c.GatewayOrderID == "" || domain.ValidID(c.GatewayOrderID)))
	case payment.RecordCaptured:
		return first(no(other, c.Order == payment.OrderFacts{}), no(ids, domain.ValidID(c.PaymentID) && domain.ValidID(c.GatewayOrderID)),
			no(bounds, c.Amount > 0), no(text, validCurrency(c.Currency)))
	case payment.RecordFailed:
		return first(no(ids, domain.ValidID(c.PaymentID) && domain.ValidID(c.GatewayOrderID)), no(bounds, c.Amount > 0),
			no(text, validCurrency(c.Currency) && optionalText(c.Reason)))
	case payment.RecordUnmatched:
		return first(no(other, c.PaymentID == r.ID), no(ids, c.GatewayOrderID == "" || domain.ValidID(c.GatewayOrderID)),
			no(bounds, c.Amount > 0), no(text, validCurrency(c.Currency) && validText(c.Reason)))
	case payment.RequestRefund:
		return first(no(other, !c.ByOps || r.Actor.Role != domain.Customer), no(ids, (c.PaymentID == "" || domain.ValidID(c.PaymentID)) && domain.ValidID(c.RefundID)),
			no(text, validText(c.Reason)))
	case payment.RecordRefund: // the id is what the gateway calls ours, or what it made up
		return first(no(ids, len(c.RefundID) <= maxCause && utf8.ValidString(c.RefundID)), no(text, optionalText(c.Reason)))
	case payment.Resolve:
		return first(no(other, c.By == r.Actor.Sub), no(ids, domain.ValidID(c.PaymentID)), no(text, validText(c.Reason)))
	case rider.Put:
		return first(no(other, c.RiderID == r.ID), no(text, validText(c.Name) && optionalText(c.Vehicle)))
	case rider.ClaimFor:
		return first(no(ids, validOrderID(c.OrderID) && domain.ValidID(c.CustomerID) && domain.ValidID(c.RestaurantID)), no(bounds, c.Round >= 0 && c.Wave >= 0))
	case rider.Release:
		return first(no(ids, validOrderID(c.OrderID)), no(bounds, c.ClaimID >= 1))
	case restaurant.Put:
		return first(no(other, c.RestaurantID == r.ID), no(bounds, c.Location.Valid()), no(text, validText(c.Name) && optionalText(c.Address)))
	case restaurant.SetMenuItem:
		return first(no(ids, domain.ValidID(c.Item.ItemID)), no(bounds, c.Item.Price.Amount >= 1 && c.Item.Price.Amount <= 100_000_000),
			no(text, validText(c.Item.Name) && validCurrency(c.Item.Price.Currency)))
	case restaurant.RemoveMenuItem:
		return no(ids, domain.ValidID(c.ItemID))
	}
	return "" // it has no fields
}

func first(faults ...string) string {
	for _, f := range faults {
		if f != "" {
			return f
		}
	}
	return ""
}

// validText is a text of the REST calls: 1 to 500 characters beside white space
// at the ends.
func validText(s string) bool {
	return strings.TrimSpace(s) != "" && optionalText(s)
}

func optionalText(s string) bool {
	return utf8.ValidString(s) && (len(s) <= 500 || utf8.RuneCountInString(s) <= 500) && strings.IndexByte(s, 0) < 0
}

// validCurrency takes lower case, too: gateways write it.
func validCurrency(s string) bool { return currency.MatchString(s) }

var (
	currency    = regexp.MustCompile(`^[A-Za-z]{3}$`)
	traceparent = regexp.MustCompile(`^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)
)

// ValidTraceparent reports whether s is a trace context of W3C's form.
func ValidTraceparent(s string) bool { return traceparent.MatchString(s) }

// visible says whether s is 1 to most visible ASCII characters.
func visible(s string, most int) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return s != "" && len(s) <= most
}

func validCause(s string) bool { return s == "" || visible(s, maxCause) }

// prepare makes a command fit to be forwarded. What only describes where it
// comes from is left out where it is not valid: it may come from a record that
// somebody else wrote, and the command does not depend on it. An error is that
// of the command itself: a refusal where no such aggregate can exist, else one
// that no repeat can help.
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
		return domain.Refuse(domain.NotFound, "there is none with this id")
	}
	if err := r.check(); err != nil {
		return eventlog.Poison(errors.Join(errors.New("a command that is not valid was not forwarded"), err))
	}
	return nil
}

// maxForwardedFor bounds how long a forwarded command may take.
const maxForwardedFor = 5 * time.Minute
