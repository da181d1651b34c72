package commandside

import (
	"tomato/eventlog/consumer"
)

// Policies are all of them, for the role react.
func (s *Side) Policies() []consumer.Consumer {
	return []consumer.Consumer{s.RecordPayment(), s.PayOrder(), s.RefundOrder(), s.Refund(), s.Reconcile(), s.Dispatch(), s.Claims()}
}
