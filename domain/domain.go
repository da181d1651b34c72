// Package domain holds the values that all aggregates share. The aggregates
// themselves live in the packages order, payment, rider and restaurant, each
// in the same order: state, commands, events, Evolve, Decide, errors.
//
// The domain is pure: standard library only, no I/O, no clock, no ids made
// inside. Time and ids come in with the command.
package domain

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"
	"unique"
)

// Point is a position on the earth: degrees, WGS 84. Its JSON form is a
// GeoJSON Point, longitude first (RFC 7946); an altitude is dropped on reading.
type Point struct {
	Lng float64 // degrees, -180 to 180
	Lat float64 // degrees, -90 to 90
}

type geoJSONPoint struct {
	Type        string    `json:"type"`
	Coordinates []float64 `json:"coordinates"`
}

// MarshalJSON writes the point as GeoJSON, by hand: a point is in most events.
func (p Point) MarshalJSON() ([]byte, error) { return p.append(make([]byte, 0, 80)), nil }

func (p Point) append(b []byte) []byte {
	b = append(b, `{"type":"Point","coordinates":[`...)
	b = strconv.AppendFloat(b, p.Lng, 'g', -1, 64)
	b = append(b, ',')
	b = strconv.AppendFloat(b, p.Lat, 'g', -1, 64)
	return append(b, "]}"...)
}

// UnmarshalJSON reads a GeoJSON Point and refuses anything else.
func (p *Point) UnmarshalJSON(b []byte) error {
	var g geoJSONPoint
	if err := json.Unmarshal(b, &g); err != nil {
		return err
	}
	if g.Type != "Point" || len(g.Coordinates) < 2 || len(g.Coordinates) > 3 {
		return errors.New(`a position is {"type":"Point","coordinates":[lng,lat]}`)
	}
	p.Lng, p.Lat = g.Coordinates[0], g.Coordinates[1]
	if !p.Valid() {
		return errors.New("longitude is -180 to 180, latitude -90 to 90, longitude first")
	}
	return nil
}

// Valid says whether both coordinates are in range.
func (p Point) Valid() bool {
	return p.Lng >= -180 && p.Lng <= 180 && p.Lat >= -90 && p.Lat <= 90 &&
		!math.IsNaN(p.Lng) && !math.IsNaN(p.Lat)
}

// Money is an amount in minor units (paise, cents) of an ISO 4217 currency.
type Money struct {
	Amount   int64  `json:"amount"`
	Currency string `json:"currency"`
}

// Role is what a caller may be. The zero value is nobody.
type Role string

// The roles of the contract, and System for what Tomato does by itself
// (policies, deadlines). No token can carry System.
const (
	Customer   Role = "customer"
	Restaurant Role = "restaurant"
	Rider      Role = "rider"
	Ops        Role = "ops"
	System     Role = "system"
)

// Actor is who issues a command or a query.
type Actor struct {
	Sub          string `json:"sub"`
	Role         Role   `json:"role"`
	RestaurantID string `json:"restaurantId,omitempty"` // set for role restaurant only
}

// SystemActor is the actor of policies and deadlines.
var SystemActor = Actor{Sub: "system", Role: System}

// Event is something that happened to one aggregate. The events of each
// aggregate are a closed set in its package.
type Event interface {
	EventType() string // as in ce_type: ORDER_PLACED
}

// Command is a wish to change one aggregate. The commands of each aggregate
// are a closed set in its package.
type Command interface {
	CommandName() string // the operation, stable: part of the idempotency scope
}

// Ctx is what every order, payment and rider event carries, so that a row or
// a message can be made from that one event.
type Ctx struct {
	CustomerID    string `json:"customerId,omitempty"`
	RestaurantID  string `json:"restaurantId,omitempty"`
	RiderID       string `json:"riderId,omitempty"`
	Status        string `json:"status,omitempty"`        // of the order, after the event
	PaymentStatus string `json:"paymentStatus,omitempty"` // of the order, after a payment event that changed it
}

// Refusal is a command that the present state does not allow. It is the only
// error that Decide returns; everything else is a bug.
type Refusal struct {
	Code          Code
	Detail        string
	CurrentStatus string // of an order, where the code is invalid_transition
}

func (r *Refusal) Error() string { return string(r.Code) + ": " + r.Detail }

// Refuse makes a refusal.
func Refuse(code Code, format string, args ...any) *Refusal {
	return &Refusal{Code: code, Detail: fmt.Sprintf(format, args...)}
}

// RefusedWith returns the code of the refusal in err, or "".
func RefusedWith(err error) Code {
	var r *Refusal
	if errors.As(err, &r) {
		return r.Code
	}
	return ""
}

// Code is a stable refusal code. Clients branch on it.
type Code string

// The refusal codes of the domain. The HTTP status of each is in
// httpapi/problem.go, and nowhere else.
const (
	NotFound              Code = "not_found" // no such aggregate, or hidden from this party: 404 <noun>_not_found
	Forbidden             Code = "forbidden"
	InvalidTransition     Code = "invalid_transition"
	OrderNotPaid          Code = "order_not_paid"
	OrderAlreadyPaid      Code = "order_already_paid"
	OrderAlreadyAssigned  Code = "order_already_assigned"
	OfferExpired          Code = "offer_expired"
	OrderArchived         Code = "order_archived"
	RiderBusy             Code = "rider_busy"
	RiderNotVerified      Code = "rider_not_verified"
	RiderOffline          Code = "rider_offline"
	RiderSuspended        Code = "rider_suspended"
	RestaurantClosed      Code = "restaurant_closed"
	ItemUnavailable       Code = "item_unavailable"
	UnknownRestaurant     Code = "unknown_restaurant"
	UnknownItem           Code = "unknown_item"
	CurrencyMismatch      Code = "currency_mismatch"
	PaymentNotRequested   Code = "payment_not_requested"    // captured money for an order that never asked: policies only
	OrderClosedForPayment Code = "order_closed_for_payment" // MarkPaid refused: policies only
	MenuFull              Code = "menu_full"
	PaymentUnsettled      Code = "payment_unsettled" // nothing to refund or resolve
)

// ValidID says whether s may be the id of a restaurant, rider, customer or
// menu item: [A-Za-z0-9_-]{1,64}.
func ValidID(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '-' {
			return false
		}
	}
	return s != "" && len(s) <= 64
}

// Time is the instant as events carry it: UTC, whole milliseconds.
func Time(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

// Shared returns the one copy of a text that many aggregates have, such as the
// name of a restaurant in all of its orders.
func Shared[T ~string](text T) T { return T(unique.Make(string(text)).Value()) }

// Fitted returns list without room for more, which decoding leaves.
func Fitted[T any](list []T) []T {
	if cap(list) == len(list) {
		return list
	}
	return append(make([]T, 0, len(list)), list...)
}
