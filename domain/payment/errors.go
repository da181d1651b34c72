package payment

import "tomato/domain"

// The refusal codes of a payment.
const (
	CodeNotRequested domain.Code = "payment_not_requested" // captured money for an order that never asked: policies only
	CodeUnsettled    domain.Code = "payment_unsettled"     // nothing to refund or resolve
)

// invalid refuses a command that the status of the order does not allow. what
// names the command in the detail.
func invalid(what, status string) error {
	r := domain.Refuse(domain.InvalidTransition, "%s is not possible while the order is %s", what, status)
	r.CurrentStatus = status
	return r
}
