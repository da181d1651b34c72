package simulate

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"tomato/domain"
	"tomato/domain/order"
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
	history struct {
		order   orderView
		events  []eventView
		payment *paymentView // nil: none was ever requested
	}
)

// step is what an event type does to an order's status.
type step struct {
	from   []string // statuses in which it can occur
	to     string   // "" leaves the status
	once   bool     // at most once in an order's life
	update bool     // order:update is due to customer and restaurant
}

var steps = map[string]step{
	order.TypeOrderPlaced:        {from: []string{""}, to: "placed", once: true},
	order.TypeOrderPaid:          {from: []string{"placed"}, once: true, update: true},
	order.TypeOrderExpired:       {from: []string{"placed"}, to: "expired", once: true, update: true},
	order.TypeOrderAccepted:      {from: []string{"placed"}, to: "accepted", once: true, update: true},
	order.TypeOrderRejected:      {from: []string{"placed"}, to: "rejected", once: true, update: true},
	order.TypeOrderPreparing:     {from: []string{"accepted"}, to: "preparing", once: true, update: true},
	order.TypeOrderReadyForRider: {from: []string{"preparing"}, to: "ready_for_rider", once: true, update: true},
	order.TypeOrderOffered:       {from: []string{"ready_for_rider"}},
	order.TypeOfferDeclined:      {from: []string{"ready_for_rider"}},
	order.TypeOffersExpired:      {from: []string{"ready_for_rider"}},
	order.TypeDispatchExhausted:  {from: []string{"ready_for_rider"}},
	order.TypeDispatchRequested:  {from: []string{"ready_for_rider"}},
	order.TypeRiderAssigned:      {from: []string{"ready_for_rider"}, to: "rider_assigned", update: true},
	order.TypeRiderUnassigned:    {from: []string{"rider_assigned"}, to: "ready_for_rider", update: true},
	order.TypeOrderPickedUp:      {from: []string{"rider_assigned"}, to: "picked_up", once: true, update: true},
	order.TypeOrderDelivered:     {from: []string{"picked_up"}, to: "delivered", once: true, update: true},
	order.TypeOrderCancelled: {from: []string{"placed", "accepted", "preparing", "ready_for_rider", "rider_assigned", "picked_up"},
		to: "cancelled", once: true, update: true},
}

// proofs names the event that an acknowledged command must have left.
var proofs = map[string]string{
	"place": order.TypeOrderPlaced, "accept-order": order.TypeOrderAccepted, "reject": order.TypeOrderRejected,
	"preparing": order.TypeOrderPreparing, "ready": order.TypeOrderReadyForRider, "accept": order.TypeRiderAssigned,
	"pick-up": order.TypeOrderPickedUp, "deliver": order.TypeOrderDelivered, "drop": order.TypeRiderUnassigned,
	"cancel": order.TypeOrderCancelled, "dispatch": order.TypeDispatchRequested,
	// decline leaves none when the offer had ended.
}

// due is how often a message must and may have come to a party.
type due struct {
	min, max int
	at       time.Time // of the event
}

type verdict struct {
	faults  []Fault
	waiting []Fault // what is not there yet and may still come; faults when time is over
	excused int     // messages missing inside a gap that the feed announced
	spans   []span
}

// judge compares one order's book with its history. Faults are final;
// what may still come is waiting, a broken promise only when time is over.
// parties maps a rider id to its party, nil for riders of other runs.
// It changes nothing. r.mu is held.
func judge(l *ledger, r *record, h history, rider func(id string) *party, now time.Time) verdict {
	j := judgement{l: l, r: r, h: h, rider: rider, due: map[seen]*due{}}
	j.events()
	j.acks()
	j.money(now)
	j.messages()
	return j.verdict
}

type judgement struct {
	verdict
	l      *ledger
	r      *record
	h      history
	rider  func(string) *party
	due    map[seen]*due
	status []string // after version i+1
	paidAt int      // version of ORDER_PAID, 0 for none
}

func (j *judgement) fault(kind, format string, args ...any) {
	j.faults = append(j.faults, Fault{kind, j.r.id, fmt.Sprintf(format, args...)})
}

func (j *judgement) wait(kind, format string, args ...any) {
	j.waiting = append(j.waiting, Fault{kind, j.r.id, fmt.Sprintf(format, args...)})
}

// expect says that the message m is due to p between min and max times more.
func (j *judgement) expect(p *party, m seen, min, max int, at time.Time) {
	if p == nil {
		return
	}
	m.party = p.n
	d := j.due[m]
	if d == nil {
		d = &due{}
		j.due[m] = d
	}
	d.min, d.max, d.at = d.min+min, d.max+max, at
}

// events folds the history and derives from it what every party must hear.
func (j *judgement) events() {
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
			j.expect(j.rider(id), seen{kind: kindTaken}, min, 1, e.Timestamp)
		}
		offered = nil
	}
	for i, e := range j.h.events {
		if e.Version != i+1 {
			j.fault(faultHistory, "event %d (%s) has version %d", i+1, e.Type, e.Version)
		}
		s, known := steps[e.Type]
		if !known {
			j.fault(faultHistory, "unknown event type %q at version %d", e.Type, e.Version)
		}
		var d eventData
		if err := json.Unmarshal(e.Data, &d); err != nil {
			j.fault(faultHistory, "data of %s at version %d: %v", e.Type, e.Version, err)
		}
		if d.RiderID == "" && (e.Type == order.TypeRiderAssigned || e.Type == order.TypeOfferDeclined) {
			d.RiderID = d.Ctx.RiderID
		}
		counts[e.Type]++
		switch {
		case s.once && counts[e.Type] > 1:
			j.fault(faultTwice, "%s again at version %d", e.Type, e.Version)
		case e.Type == order.TypeRiderAssigned && holder != "":
			j.fault(faultDoubleRider, "%s assigned at version %d while %s has it", d.RiderID, e.Version, holder)
		case known && !slices.Contains(s.from, status):
			j.fault(faultHistory, "%s at version %d in status %q", e.Type, e.Version, status)
		}

		update := seen{kind: kindUpdate, version: int32(e.Version)}
		min := 0
		if s.update {
			min = 1
		}
		j.expect(j.r.customer, update, min, 1, e.Timestamp)
		j.expect(j.r.restaurant, update, min, 1, e.Timestamp)

		switch e.Type {
		case order.TypeOrderPaid:
			j.paidAt = e.Version
			j.expect(j.r.restaurant, seen{kind: kindNew}, 1, 1, e.Timestamp)
		case order.TypeOrderOffered:
			if offered == nil {
				offered = map[string]bool{}
			}
			var riders []offeredRider
			if err := json.Unmarshal(d.Riders, &riders); err != nil {
				j.fault(faultHistory, "riders of %s at version %d: %v", e.Type, e.Version, err)
			}
			for _, x := range riders {
				offered[x.RiderID] = false
				j.expect(j.rider(x.RiderID), seen{kind: kindAvailable}, 1, 1, e.Timestamp)
			}
		case order.TypeOfferDeclined:
			if _, ok := offered[d.RiderID]; ok {
				offered[d.RiderID] = true
			}
		case order.TypeOffersExpired:
			withdraw(e, "")
		case order.TypeDispatchExhausted:
			j.expect(j.r.restaurant, seen{kind: kindExhausted}, 1, 1, e.Timestamp)
		case order.TypeRiderAssigned:
			if d.RiderID == "" {
				j.fault(faultHistory, "RIDER_ASSIGNED at version %d names no rider", e.Version)
			}
			withdraw(e, d.RiderID)
			holder = d.RiderID
			j.spans = append(j.spans, span{rider: holder, from: e.Timestamp})
			told := seen{kind: kindRiderAssigned, tag: j.l.tag(holder)}
			j.expect(j.r.customer, told, 1, 1, e.Timestamp)
			j.expect(j.r.restaurant, told, 1, 1, e.Timestamp)
			j.expect(j.rider(holder), update, 1, 1, e.Timestamp)
		case order.TypeRiderUnassigned:
			j.expect(j.rider(holder), update, 0, 1, e.Timestamp)
		case order.TypeOrderCancelled:
			withdraw(e, "")
		}
		if holder != "" && (e.Type == order.TypeOrderPickedUp || e.Type == order.TypeOrderDelivered || e.Type == order.TypeOrderCancelled) {
			j.expect(j.rider(holder), update, 1, 1, e.Timestamp)
		}
		if s.to != "" {
			status = s.to
		}
		if holder != "" && status != "rider_assigned" && status != "picked_up" {
			j.spans[len(j.spans)-1].to = e.Timestamp
			holder = ""
		}
		j.status = append(j.status, status)
	}
	if n := len(j.h.events); n != j.h.order.Version || status != j.h.order.Status {
		// Two reads: the order may have moved between them, so it is read again.
		j.wait(faultUnfinished, "the order says version %d %s, its events %d %s", j.h.order.Version, j.h.order.Status, n, status)
	}
	if j.h.order.Amount != j.r.amount || j.h.order.Currency != j.r.currency ||
		j.h.order.CustomerID != j.r.customer.id || j.h.order.RestaurantID != j.r.restaurant.id {
		j.fault(faultHistory, "amount or parties differ from those acknowledged: %d %s, %s, %s",
			j.h.order.Amount, j.h.order.Currency, j.h.order.CustomerID, j.h.order.RestaurantID)
	}
}

// acks looks for each acknowledged command in the events.
func (j *judgement) acks() {
	for _, a := range j.r.acks {
		if a.version < 1 || a.version > len(j.h.events) {
			j.fault(faultLost, "%s was acknowledged with version %d; there are %d events", a.command, a.version, len(j.h.events))
			continue
		}
		if s := j.status[a.version-1]; s != a.status {
			j.fault(faultLost, "%s was acknowledged with version %d as %s; the events say %s", a.command, a.version, a.status, s)
		}
		if j.paidAt > 0 && a.version >= j.paidAt && (a.paymentStatus == "pending" || a.paymentStatus == "failed") {
			j.fault(faultMoney, "%s at version %d said payment %s after ORDER_PAID", a.command, a.version, a.paymentStatus)
		}
		if (j.paidAt == 0 || a.version < j.paidAt) && a.paymentStatus == "paid" {
			j.fault(faultMoney, "%s at version %d said paid before ORDER_PAID", a.command, a.version)
		}
		want, ok := proofs[a.command]
		if !ok {
			continue
		}
		found := slices.ContainsFunc(j.h.events[:a.version], func(e eventView) bool {
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
			j.fault(faultLost, "%s was acknowledged with version %d; no %s up to there", a.command, a.version, want)
		}
	}
}

// money holds what was captured against what was kept and given back.
func (j *judgement) money(now time.Time) {
	r, o := j.r, j.h.order
	paidFor := 0 // captures of the right amount
	for _, c := range r.captured {
		if c.amount == r.amount {
			paidFor++
		}
	}
	switch {
	case o.Status == "delivered":
		if o.PaymentStatus != "paid" {
			j.wait(faultUnfinished, "delivered, payment %s", o.PaymentStatus)
		}
		if j.paidAt == 0 {
			j.fault(faultMoney, "delivered without ORDER_PAID")
		}
	case closed(o.Status):
		if paidFor > 0 && o.PaymentStatus != "refunded" {
			j.wait(faultMoney, "%s after %d right payments, payment %s, not refunded", o.Status, paidFor, o.PaymentStatus)
		}
		if paidFor == 0 && o.PaymentStatus != "pending" && o.PaymentStatus != "failed" {
			j.fault(faultMoney, "%s, payment %s, although nobody paid its amount", o.Status, o.PaymentStatus)
		}
	case r.plan.pay == payNever && o.Status == "placed" && (r.dueAt.IsZero() || now.Before(r.dueAt)):
		// Never paid and not yet due: it stays.
	default:
		j.wait(faultUnfinished, "status %s, payment %s", o.Status, o.PaymentStatus)
	}
	if (r.request || paidFor > 0) && j.h.payment == nil {
		j.wait(faultMoney, "no payment is shown, although it was requested")
		return
	}
	if j.h.payment == nil {
		return
	}

	balance := map[string]int64{} // per payment: captured less given back
	listed := map[string]int{}
	for _, p := range j.h.payment.Payments {
		listed[p.PaymentID]++
		if listed[p.PaymentID] > 1 {
			j.fault(faultMoney, "payment %s is listed twice", p.PaymentID)
		}
		for _, c := range r.captured {
			if c.paymentID == p.PaymentID && c.amount != p.Amount {
				j.fault(faultMoney, "payment %s captured %d, listed with %d", p.PaymentID, c.amount, p.Amount)
			}
		}
	}
	for _, c := range r.captured {
		balance[c.paymentID] = c.amount
		if listed[c.paymentID] == 0 {
			j.wait(faultMoney, "payment %s of %d was captured and is not listed", c.paymentID, c.amount)
		}
	}
	refunds := map[string]int{}
	var refunded int
	for _, f := range j.h.payment.Refunds {
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
			j.wait(faultMoney, "refund %s is %s", f.RefundID, f.Status)
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
	case o.Status == "delivered" && (len(kept) > 1 || !booked(j.h, balance, r.amount)):
		j.wait(faultMoney, "kept %v, due is the booked payment's %d alone", kept, r.amount)
	case closed(o.Status) && o.Status != "delivered" && len(kept) > 0:
		j.wait(faultMoney, "closed without delivery, still kept: %v", kept)
	}
	// The refund of the booked payment is the only one that shows on the order.
	if o.PaymentStatus == "refunded" {
		told := seen{kind: kindUpdate, tag: j.l.tag("refunded")}
		j.expect(r.customer, told, 1, 1, time.Time{})
		j.expect(r.restaurant, told, 1, 1, time.Time{})
		for _, s := range j.spans {
			j.expect(j.rider(s.rider), told, 0, 1, time.Time{})
		}
	}
}

// booked says whether the whole amount is left of the payment that ORDER_PAID
// names, or of any where it names none.
func booked(h history, balance map[string]int64, amount int64) bool {
	for _, e := range h.events {
		if e.Type != order.TypeOrderPaid {
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
func (j *judgement) messages() {
	got := map[seen]int{}
	newest := map[int32]int32{}
	for _, s := range j.r.seen {
		got[s]++
		if s.kind != kindUpdate || s.version == 0 {
			continue
		}
		if v := newest[s.party]; s.version < v && got[s] == 1 {
			j.fault(faultMisordered, "%s got version %d after %d", j.l.name(s.party), s.version, v)
		}
		newest[s.party] = max(newest[s.party], s.version)
	}
	refunded := j.l.tag("refunded")
	for s, n := range got {
		d := j.due[s]
		switch {
		case d != nil && n <= d.max:
		case d != nil && d.max > 0:
			j.fault(faultDuplicate, "%s got %s version %d %d times, due %d", j.l.name(s.party), s.kind, s.version, n, d.max)
		case s.kind == kindUpdate && s.version == 0 && s.tag != refunded && j.isParty(s.party):
			// A payment's change: failed may repeat, refund_pending passes.
		case s.kind == kindUpdate && int(s.version) > len(j.h.events), s.kind == kindUpdate && s.version == 0 && j.isParty(s.party):
			j.wait(faultUncalled, "%s got %s version %d, which the queries do not show", j.l.name(s.party), s.kind, s.version)
		default:
			j.fault(faultUncalled, "%s got %s version %d, which no event explains", j.l.name(s.party), s.kind, s.version)
		}
	}
	for s, d := range j.due {
		if n := got[s]; n < d.min {
			if j.l.partyAt(s.party).excused(d.at) {
				j.excused += d.min - n
				continue
			}
			j.wait(faultMissing, "%s got %s version %d %d times, due %d", j.l.name(s.party), s.kind, s.version, n, d.min)
		}
	}
	slices.SortFunc(j.waiting, func(a, b Fault) int { return cmp.Compare(a.Detail, b.Detail) })
}

func (j *judgement) isParty(n int32) bool {
	if n == j.r.customer.n || n == j.r.restaurant.n {
		return true
	}
	return slices.ContainsFunc(j.spans, func(s span) bool {
		p := j.rider(s.rider)
		return p != nil && p.n == n
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
