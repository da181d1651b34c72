package simulate

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"tomato/domain"
)

// What Tomato says happened, as its queries answer it.
type (
	orderView struct {
		OrderID       string `json:"orderId"`
		Version       int    `json:"version"`
		Status        string `json:"status"`
		PaymentStatus string `json:"paymentStatus"`
		CustomerID    string `json:"customerId"`
		RestaurantID  string `json:"restaurantId"`
		RiderID       string `json:"riderId"`
		Amount        int64  `json:"amount"`
		Currency      string `json:"currency"`
		PickUp        struct {
			Location domain.Point `json:"location"`
		} `json:"pickUp"`
		PaymentDueAt time.Time `json:"paymentDueAt"`
		By           string    `json:"by"`
		Reason       string    `json:"reason"`
		External     string    `json:"externalReference"`
	}
	eventView struct {
		Type      string          `json:"type"`
		Version   int             `json:"version"`
		Timestamp time.Time       `json:"timestamp"`
		Data      json.RawMessage `json:"data"`
	}
	paymentView struct {
		OrderID  string `json:"orderId"`
		State    string `json:"state"`
		Amount   int64  `json:"amount"`
		Payments []struct {
			PaymentID     string `json:"paymentId"`
			Amount        int64  `json:"amount"`
			State         string `json:"state"`
			GatewayStatus string `json:"gatewayStatus"`
		} `json:"payments"`
		Refunds []struct {
			RefundID  string `json:"refundId"`
			PaymentID string `json:"paymentId"`
			Amount    int64  `json:"amount"`
			Status    string `json:"status"`
		} `json:"refunds"`
	}
	eventData struct {
		RiderID   string          `json:"riderId"`
		PaymentID string          `json:"paymentId"`
		Riders    json.RawMessage `json:"riders"` // objects in ORDER_OFFERED, ids elsewhere
		Ctx       domain.Ctx      `json:"ctx"`
	}
	offeredRider struct {
		RiderID string `json:"riderId"`
	}
	queried struct {
		order   orderView
		events  []eventView
		payment *paymentView // nil: none was ever requested
	}
)

// step is what an event type does to an order's status.
type transition struct {
	from   []string // statuses in which it can occur
	to     string   // "" leaves the status
	once   bool     // at most once in an order's life
	update bool     // order:update is due to customer and restaurant
}

var transitions = map[string]transition{
	"ORDER_PLACED":          {from: []string{""}, to: "placed", once: true},
	"ORDER_PAID":            {from: []string{"placed"}, once: true, update: true},
	"ORDER_EXPIRED":         {from: []string{"placed"}, to: "expired", once: true, update: true},
	"ORDER_ACCEPTED":        {from: []string{"placed"}, to: "accepted", once: true, update: true},
	"ORDER_REJECTED":        {from: []string{"placed"}, to: "rejected", once: true, update: true},
	"ORDER_PREPARING":       {from: []string{"accepted"}, to: "preparing", once: true, update: true},
	"ORDER_READY_FOR_RIDER": {from: []string{"preparing"}, to: "ready_for_rider", once: true, update: true},
	"ORDER_OFFERED":         {from: []string{"ready_for_rider"}},
	"OFFER_DECLINED":        {from: []string{"ready_for_rider"}},
	"OFFERS_EXPIRED":        {from: []string{"ready_for_rider"}},
	"DISPATCH_EXHAUSTED":    {from: []string{"ready_for_rider"}},
	"DISPATCH_REQUESTED":    {from: []string{"ready_for_rider"}},
	"RIDER_ASSIGNED":        {from: []string{"ready_for_rider"}, to: "rider_assigned", update: true},
	"RIDER_UNASSIGNED":      {from: []string{"rider_assigned"}, to: "ready_for_rider", update: true},
	"ORDER_PICKED_UP":       {from: []string{"rider_assigned"}, to: "picked_up", once: true, update: true},
	"ORDER_DELIVERED":       {from: []string{"picked_up"}, to: "delivered", once: true, update: true},
	"ORDER_CANCELLED": {from: []string{"placed", "accepted", "preparing", "ready_for_rider", "rider_assigned", "picked_up"},
		to: "cancelled", once: true, update: true},
}

// proofs names the event that an acknowledged command must have left.
var eventOfCommand = map[string]string{
	"place": "ORDER_PLACED", "accept-order": "ORDER_ACCEPTED", "reject": "ORDER_REJECTED",
	"preparing": "ORDER_PREPARING", "ready": "ORDER_READY_FOR_RIDER", "accept": "RIDER_ASSIGNED",
	"pick-up": "ORDER_PICKED_UP", "deliver": "ORDER_DELIVERED", "drop": "RIDER_UNASSIGNED",
	"cancel": "ORDER_CANCELLED", "dispatch": "DISPATCH_REQUESTED",
	// decline leaves none when the offer had ended.
}

// due is how often a message must and may have come to a party.
type dueCount struct {
	min, max int
	at       time.Time // of the event
}

type verdict struct {
	faults      []Fault
	waiting     []Fault // what is not there yet and may still come; faults when time is over
	missedInGap int     // messages missing inside a gap that the feed announced
	assignments []assignment
}

// judge compares one order's book with its history. Faults are final;
// what may still come is waiting, a broken promise only when time is over.
// parties maps a rider id to its party, nil for riders of other runs.
// It changes nothing. r.mu is held.
func judge(l *ledger, r *orderEntry, h queried, rider func(id string) *party, now time.Time) verdict {
	j := judgement{ledger: l, entry: r, queried: h, rider: rider, due: map[receipt]*dueCount{}}
	j.foldEvents()
	j.checkCommands()
	j.checkMoney(now)
	j.checkMessages()
	return j.verdict
}

type judgement struct {
	verdict
	ledger  *ledger
	entry   *orderEntry
	queried queried
	rider   func(string) *party
	due     map[receipt]*dueCount
	status  []string // after version i+1
	paidAt  int      // version of ORDER_PAID, 0 for none
}

func (j *judgement) fault(kind, format string, args ...any) {
	j.faults = append(j.faults, Fault{kind, j.entry.id, fmt.Sprintf(format, args...)})
}

func (j *judgement) waitFor(kind, format string, args ...any) {
	j.waiting = append(j.waiting, Fault{kind, j.entry.id, fmt.Sprintf(format, args...)})
}

// expect says that the message m is due to p between min and max times more.
func (j *judgement) expect(p *party, m receipt, min, max int, at time.Time) {
	if p == nil {
		return
	}
	m.party = p.number
	d := j.due[m]
	if d == nil {
		d = &dueCount{}
		j.due[m] = d
	}
	d.min, d.max, d.at = d.min+min, d.max+max, at
}

// events folds the history and derives from it what every party must hear.
func (j *judgement) foldEvents() {
	var status, holder string
	var offered map[string]bool // riders of the running wave: true once declined
	counts := map[string]int{}
	withdraw := func(e eventView, winner string) {
		for id, declined := range offered {
			if id == winner {
				continue
			}
			min := 1
			if declined {
				min = 0
			}
			j.expect(j.rider(id), receipt{kind: kindTaken}, min, 1, e.Timestamp)
		}
		offered = nil
	}
	for i, e := range j.queried.events {
		if e.Version != i+1 {
			j.fault(faultBrokenHistory, "event %d (%s) has version %d", i+1, e.Type, e.Version)
		}
		s, known := transitions[e.Type]
		if !known {
			j.fault(faultBrokenHistory, "unknown event type %q at version %d", e.Type, e.Version)
		}
		var d eventData
		if err := json.Unmarshal(e.Data, &d); err != nil {
			j.fault(faultBrokenHistory, "data of %s at version %d: %v", e.Type, e.Version, err)
		}
		if d.RiderID == "" && (e.Type == "RIDER_ASSIGNED" || e.Type == "OFFER_DECLINED") {
			d.RiderID = d.Ctx.RiderID
		}
		counts[e.Type]++
		switch {
		case s.once && counts[e.Type] > 1:
			j.fault(faultDuplicateEvent, "%s again at version %d", e.Type, e.Version)
		case e.Type == "RIDER_ASSIGNED" && holder != "":
			j.fault(faultTwoRiders, "%s assigned at version %d while %s has it", d.RiderID, e.Version, holder)
		case known && !slices.Contains(s.from, status):
			j.fault(faultBrokenHistory, "%s at version %d in status %q", e.Type, e.Version, status)
		}

		update := receipt{kind: kindUpdate, version: int32(e.Version)}
		min := 0
		if s.update {
			min = 1
		}
		j.expect(j.entry.customer, update, min, 1, e.Timestamp)
		j.expect(j.entry.restaurant, update, min, 1, e.Timestamp)

		switch e.Type {
		case "ORDER_PAID":
			j.paidAt = e.Version
			j.expect(j.entry.restaurant, receipt{kind: kindNew}, 1, 1, e.Timestamp)
		case "ORDER_OFFERED":
			if offered == nil {
				offered = map[string]bool{}
			}
			var riders []offeredRider
			if err := json.Unmarshal(d.Riders, &riders); err != nil {
				j.fault(faultBrokenHistory, "riders of %s at version %d: %v", e.Type, e.Version, err)
			}
			for _, x := range riders {
				offered[x.RiderID] = false
				j.expect(j.rider(x.RiderID), receipt{kind: kindAvailable}, 1, 1, e.Timestamp)
			}
		case "OFFER_DECLINED":
			if _, ok := offered[d.RiderID]; ok {
				offered[d.RiderID] = true
			}
		case "OFFERS_EXPIRED":
			withdraw(e, "")
		case "DISPATCH_EXHAUSTED":
			j.expect(j.entry.restaurant, receipt{kind: kindExhausted}, 1, 1, e.Timestamp)
		case "RIDER_ASSIGNED":
			if d.RiderID == "" {
				j.fault(faultBrokenHistory, "RIDER_ASSIGNED at version %d names no rider", e.Version)
			}
			withdraw(e, d.RiderID)
			holder = d.RiderID
			j.assignments = append(j.assignments, assignment{rider: holder, from: e.Timestamp})
			told := receipt{kind: kindRiderAssigned, tag: j.ledger.tag(holder)}
			j.expect(j.entry.customer, told, 1, 1, e.Timestamp)
			j.expect(j.entry.restaurant, told, 1, 1, e.Timestamp)
			j.expect(j.rider(holder), update, 1, 1, e.Timestamp)
		case "RIDER_UNASSIGNED":
			j.expect(j.rider(holder), update, 0, 1, e.Timestamp)
		case "ORDER_CANCELLED":
			withdraw(e, "")
		}
		if holder != "" && (e.Type == "ORDER_PICKED_UP" || e.Type == "ORDER_DELIVERED" || e.Type == "ORDER_CANCELLED") {
			j.expect(j.rider(holder), update, 1, 1, e.Timestamp)
		}
		if s.to != "" {
			status = s.to
		}
		if holder != "" && status != "rider_assigned" && status != "picked_up" {
			j.assignments[len(j.assignments)-1].to = e.Timestamp
			holder = ""
		}
		j.status = append(j.status, status)
	}
	if n := len(j.queried.events); n != j.queried.order.Version || status != j.queried.order.Status {
		// Two reads: the order may have moved between them, so it is read again.
		j.waitFor(faultUnfinished, "the order says version %d %s, its events %d %s", j.queried.order.Version, j.queried.order.Status, n, status)
	}
	if j.queried.order.Amount != j.entry.amount || j.queried.order.Currency != j.entry.currency ||
		j.queried.order.CustomerID != j.entry.customer.id || j.queried.order.RestaurantID != j.entry.restaurant.id {
		j.fault(faultBrokenHistory, "amount or parties differ from those acknowledged: %d %s, %s, %s",
			j.queried.order.Amount, j.queried.order.Currency, j.queried.order.CustomerID, j.queried.order.RestaurantID)
	}
}

// acks looks for each acknowledged command in the events.
func (j *judgement) checkCommands() {
	for _, a := range j.entry.acks {
		if a.version < 1 || a.version > len(j.queried.events) {
			j.fault(faultLostCommand, "%s was acknowledged with version %d; there are %d events", a.command, a.version, len(j.queried.events))
			continue
		}
		if s := j.status[a.version-1]; s != a.status {
			j.fault(faultLostCommand, "%s was acknowledged with version %d as %s; the events say %s", a.command, a.version, a.status, s)
		}
		if j.paidAt > 0 && a.version >= j.paidAt && (a.paymentStatus == "pending" || a.paymentStatus == "failed") {
			j.fault(faultMoney, "%s at version %d said payment %s after ORDER_PAID", a.command, a.version, a.paymentStatus)
		}
		if (j.paidAt == 0 || a.version < j.paidAt) && a.paymentStatus == "paid" {
			j.fault(faultMoney, "%s at version %d said paid before ORDER_PAID", a.command, a.version)
		}
		want, ok := eventOfCommand[a.command]
		if !ok {
			continue
		}
		found := slices.ContainsFunc(j.queried.events[:a.version], func(e eventView) bool {
			if e.Type != want {
				return false
			}
			if a.command != "accept" {
				return true
			}
			var d eventData
			_ = json.Unmarshal(e.Data, &d) // reported above
			return d.RiderID == a.rider || d.Ctx.RiderID == a.rider
		})
		if !found {
			j.fault(faultLostCommand, "%s was acknowledged with version %d; no %s up to there", a.command, a.version, want)
		}
	}
}

// money holds what was captured against what was kept and given back.
func (j *judgement) checkMoney(now time.Time) {
	r, o := j.entry, j.queried.order
	paidFor := 0 // captures of the right amount
	for _, c := range r.captures {
		if c.amount == r.amount {
			paidFor++
		}
	}
	switch {
	case o.Status == "delivered":
		if o.PaymentStatus != "paid" {
			j.waitFor(faultUnfinished, "delivered, payment %s", o.PaymentStatus)
		}
		if j.paidAt == 0 {
			j.fault(faultMoney, "delivered without ORDER_PAID")
		}
	case isFinal(o.Status):
		if paidFor > 0 && o.PaymentStatus != "refunded" {
			j.waitFor(faultMoney, "%s after %d right payments, payment %s, not refunded", o.Status, paidFor, o.PaymentStatus)
		}
		if paidFor == 0 && o.PaymentStatus != "pending" && o.PaymentStatus != "failed" {
			j.fault(faultMoney, "%s, payment %s, although nobody paid its amount", o.Status, o.PaymentStatus)
		}
	case r.plan.payment == payNever && o.Status == "placed" && (r.dueAt.IsZero() || now.Before(r.dueAt)):
		// Never paid and not yet due: it stays.
	default:
		j.waitFor(faultUnfinished, "status %s, payment %s", o.Status, o.PaymentStatus)
	}
	if (r.paymentRequested || paidFor > 0) && j.queried.payment == nil {
		j.waitFor(faultMoney, "no payment is shown, although it was requested")
		return
	}
	if j.queried.payment == nil {
		return
	}

	balance := map[string]int64{} // per payment: captured less given back
	listed := map[string]int{}
	for _, p := range j.queried.payment.Payments {
		listed[p.PaymentID]++
		if listed[p.PaymentID] > 1 {
			j.fault(faultMoney, "payment %s is listed twice", p.PaymentID)
		}
		for _, c := range r.captures {
			if c.paymentID == p.PaymentID && c.amount != p.Amount {
				j.fault(faultMoney, "payment %s captured %d, listed with %d", p.PaymentID, c.amount, p.Amount)
			}
		}
	}
	for _, c := range r.captures {
		balance[c.paymentID] = c.amount
		if listed[c.paymentID] == 0 {
			j.waitFor(faultMoney, "payment %s of %d was captured and is not listed", c.paymentID, c.amount)
		}
	}
	refunds := map[string]int{}
	var refunded int
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
			refunded++
		}
	}
	var kept []string
	for id, left := range balance {
		if left != 0 {
			kept = append(kept, fmt.Sprintf("%s %d", id, left))
		}
	}
	slices.Sort(kept)
	switch {
	case o.Status == "delivered" && len(kept) == 0:
		j.fault(faultMoney, "delivered, and all money given back")
	case o.Status == "delivered" && (len(kept) > 1 || !keepsBookedPayment(j.queried, balance, r.amount)):
		j.waitFor(faultMoney, "kept %v, due is the booked payment's %d alone", kept, r.amount)
	case isFinal(o.Status) && o.Status != "delivered" && len(kept) > 0:
		j.waitFor(faultMoney, "closed without delivery, still kept: %v", kept)
	}
	// The refund of the booked payment is the only one that shows on the order.
	if o.PaymentStatus == "refunded" {
		told := receipt{kind: kindUpdate, tag: j.ledger.tag("refunded")}
		j.expect(r.customer, told, 1, 1, time.Time{})
		j.expect(r.restaurant, told, 1, 1, time.Time{})
		for _, s := range j.assignments {
			j.expect(j.rider(s.rider), told, 0, 1, time.Time{})
		}
	}
}

// booked says whether the whole amount is left of the payment that ORDER_PAID
// names, or of any where it names none.
func keepsBookedPayment(h queried, balance map[string]int64, amount int64) bool {
	for _, e := range h.events {
		if e.Type != "ORDER_PAID" {
			continue
		}
		var d eventData
		_ = json.Unmarshal(e.Data, &d) // reported above
		if d.PaymentID != "" {
			return balance[d.PaymentID] == amount
		}
	}
	for _, left := range balance {
		if left == amount {
			return true
		}
	}
	return false
}

// messages compares what came with what was due.
func (j *judgement) checkMessages() {
	got := map[receipt]int{}
	newest := map[int32]int32{}
	for _, s := range j.entry.receipts {
		got[s]++
		if s.kind != kindUpdate || s.version == 0 {
			continue
		}
		if v := newest[s.party]; s.version < v && got[s] == 1 {
			j.fault(faultMisorderedMessage, "%s got version %d after %d", j.ledger.name(s.party), s.version, v)
		}
		newest[s.party] = max(newest[s.party], s.version)
	}
	refunded := j.ledger.tag("refunded")
	for s, n := range got {
		d := j.due[s]
		switch {
		case d != nil && n <= d.max:
		case d != nil && d.max > 0:
			j.fault(faultDuplicateMessage, "%s got %s version %d %d times, due %d", j.ledger.name(s.party), s.kind, s.version, n, d.max)
		case s.kind == kindUpdate && s.version == 0 && s.tag != refunded && j.isParty(s.party):
			// A payment's change: failed may repeat, refund_pending passes.
		case s.kind == kindUpdate && int(s.version) > len(j.queried.events), s.kind == kindUpdate && s.version == 0 && j.isParty(s.party):
			j.waitFor(faultUncalledMessage, "%s got %s version %d, which the queries do not show", j.ledger.name(s.party), s.kind, s.version)
		default:
			j.fault(faultUncalledMessage, "%s got %s version %d, which no event explains", j.ledger.name(s.party), s.kind, s.version)
		}
	}
	for s, d := range j.due {
		if n := got[s]; n < d.min {
			if j.ledger.partyAt(s.party).excused(d.at) {
				j.missedInGap += d.min - n
				continue
			}
			j.waitFor(faultLostMessage, "%s got %s version %d %d times, due %d", j.ledger.name(s.party), s.kind, s.version, n, d.min)
		}
	}
	slices.SortFunc(j.waiting, func(a, b Fault) int { return cmp.Compare(a.Detail, b.Detail) })
}

func (j *judgement) isParty(n int32) bool {
	if n == j.entry.customer.number || n == j.entry.restaurant.number {
		return true
	}
	return slices.ContainsFunc(j.assignments, func(s assignment) bool {
		p := j.rider(s.rider)
		return p != nil && p.number == n
	})
}

func (l *ledger) partyAt(n int32) *party {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.parties[n]
}

func (l *ledger) name(n int32) string {
	p := l.partyAt(n)
	return string(p.role) + " " + p.id
}
