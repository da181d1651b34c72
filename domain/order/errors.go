package order

import "tomato/domain"

// The refusal codes of an order.
const (
	CodeNotPaid          domain.Code = "order_not_paid"
	CodeAlreadyPaid      domain.Code = "order_already_paid"
	CodeAlreadyAssigned  domain.Code = "order_already_assigned"
	CodeOfferExpired     domain.Code = "offer_expired"
	CodeArchived         domain.Code = "order_archived"           // closed for longer than it is kept; the shard refuses it
	CodeClosedForPayment domain.Code = "order_closed_for_payment" // MarkPaid refused: policies only
)

// invalid refuses a command that the order's status does not allow. what names the
// command in the detail.
func (s *State) invalid(what string) error {
	r := domain.Refuse(domain.InvalidTransition, "%s is not possible while the order is %s", what, s.Status)
	r.CurrentStatus = string(s.Status)
	return r
}
