package commandside

import "tomato/eventlog"

// Policies are all of them, for the role react.
func (s *Side) Policies() []eventlog.Consumer {
	return []eventlog.Consumer{s.RecordPayment(), s.PayOrder(), s.RefundOrder(), s.Refund(), s.Reconcile(), s.Dispatch(), s.Claims()}
}
