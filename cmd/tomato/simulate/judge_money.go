package simulate

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"tomato/domain/order"
)

// checkMoney compares what was captured with what was kept and refunded.
func (j *judgement) checkMoney(now time.Time) {
	captured := 0 // number of captured payments with the right amount
	for _, c := range j.entry.captures {
		if c.amount == j.entry.amount {
			captured++
		}
	}
	j.checkPaymentStatus(captured, now)
	if j.queried.payment == nil {
		if j.entry.paymentRequested || captured > 0 {
			j.waitFor(faultMoney, "no payment is shown, although it was requested")
		}
		return
	}
	j.checkPaymentList()
	j.checkBalance(j.refund())
	// Only the refund of the booked payment changes the order's payment status.
	if j.queried.order.PaymentStatus == "refunded" {
		told := receipt{kind: kindUpdate, tag: j.ledger.tag("refunded")}
		j.expect(j.entry.customer, told, 1, 1, time.Time{})
		j.expect(j.entry.restaurant, told, 1, 1, time.Time{})
		for _, a := range j.assignments {
			j.expect(j.rider(a.rider), told, 0, 1, time.Time{})
		}
	}
}

// checkPaymentStatus checks the order's payment status. captured is how many payments
// with the right amount the gateway was made to capture.
func (j *judgement) checkPaymentStatus(captured int, now time.Time) {
	e, o := j.entry, j.queried.order
	switch {
	case o.Status == "delivered":
		if o.PaymentStatus != "paid" {
			j.waitFor(faultUnfinished, "delivered, payment %s", o.PaymentStatus)
		}
		if j.paidAt == 0 {
			j.fault(faultMoney, "delivered without ORDER_PAID")
		}
	case isFinal(o.Status):
		if captured > 0 && o.PaymentStatus != "refunded" {
			j.waitFor(faultMoney, "%s after %d payments of the right amount, payment %s, not refunded", o.Status, captured, o.PaymentStatus)
		}
		if captured == 0 && o.PaymentStatus != "pending" && o.PaymentStatus != "failed" {
			j.fault(faultMoney, "%s, payment %s, although nobody paid the amount", o.Status, o.PaymentStatus)
		}
	case e.plan.payment == payNever && o.Status == "placed" && (e.dueAt.IsZero() || now.Before(e.dueAt)):
		// It is never paid and has not expired yet.
	default:
		j.waitFor(faultUnfinished, "status %s, payment %s", o.Status, o.PaymentStatus)
	}
}

// checkPaymentList checks that each captured payment is listed once, with its
// amount.
func (j *judgement) checkPaymentList() {
	listed := map[string]int{}
	for _, p := range j.queried.payment.Payments {
		listed[p.PaymentID]++
		if listed[p.PaymentID] > 1 {
			j.fault(faultMoney, "payment %s is listed twice", p.PaymentID)
		}
		for _, c := range j.entry.captures {
			if c.paymentID == p.PaymentID && c.amount != p.Amount {
				j.fault(faultMoney, "payment %s captured %d, listed with %d", p.PaymentID, c.amount, p.Amount)
			}
		}
	}
	for _, c := range j.entry.captures {
		if listed[c.paymentID] == 0 {
			j.waitFor(faultMoney, "payment %s of %d was captured and is not listed", c.paymentID, c.amount)
		}
	}
}

// refund checks each refund. It returns what is left of each captured payment, in
// minor units by payment id.
func (j *judgement) refund() (balance map[string]int64) {
	balance = map[string]int64{}
	for _, c := range j.entry.captures {
		balance[c.paymentID] = c.amount
	}
	refunds := map[string]int{}
	for _, f := range j.queried.payment.Refunds {
		refunds[f.PaymentID]++
		left, ours := balance[f.PaymentID]
		switch {
		case !ours:
			j.fault(faultMoney, "refund %s of payment %s, which was never captured", f.RefundID, f.PaymentID)
			continue
		case refunds[f.PaymentID] > 1:
			j.fault(faultMoney, "payment %s is refunded twice", f.PaymentID)
		case f.Amount != left:
			j.fault(faultMoney, "refund of %d for payment %s of %d", f.Amount, f.PaymentID, left)
		}
		switch f.Status {
		case "failed":
			j.fault(faultMoney, "refund %s failed", f.RefundID)
		case "requested", "pending", "created", "":
			j.waitFor(faultMoney, "refund %s is %s", f.RefundID, f.Status)
		default:
			balance[f.PaymentID] -= f.Amount
		}
	}
	return balance
}

// checkBalance checks that Tomato kept the right money. For a delivered order that is
// the booked payment and nothing else. For an order that ended otherwise it is
// nothing.
func (j *judgement) checkBalance(balance map[string]int64) {
	var kept []string
	for id, left := range balance {
		if left != 0 {
			kept = append(kept, fmt.Sprintf("%s %d", id, left))
		}
	}
	slices.Sort(kept)
	delivered := j.queried.order.Status == "delivered"
	switch {
	case delivered && len(kept) == 0:
		j.fault(faultMoney, "delivered, and all money was refunded")
	case delivered && (len(kept) > 1 || !j.keepsBookedPayment(balance)):
		j.waitFor(faultMoney, "kept %v; only the booked payment's %d is due", kept, j.entry.amount)
	case isFinal(j.queried.order.Status) && !delivered && len(kept) > 0:
		j.waitFor(faultMoney, "ended without delivery, and still kept: %v", kept)
	}
}

// keepsBookedPayment reports whether the whole amount is left of the payment that
// ORDER_PAID names. If ORDER_PAID names none, it may be left of any payment.
func (j *judgement) keepsBookedPayment(balance map[string]int64) bool {
	for _, e := range j.queried.events {
		if e.Type != order.TypeOrderPaid {
			continue
		}
		var d eventData
		_ = json.Unmarshal(e.Data, &d) // fold has already reported an error
		if d.PaymentID != "" {
			return balance[d.PaymentID] == j.entry.amount
		}
	}
	for _, left := range balance {
		if left == j.entry.amount {
			return true
		}
	}
	return false
}
