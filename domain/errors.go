package domain

import (
	"errors"
	"fmt"
)

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
