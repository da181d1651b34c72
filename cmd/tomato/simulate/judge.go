package simulate

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// verdict is what judge found about one order.
type verdict struct {
	faults      []Fault
	waiting     []Fault // faults that may still disappear; those that are left at the end of the run are broken promises
	missedInGap int     // messages that are missing inside a feedGap
	assignments []assignment
}

// assignment is a period in which a rider had the order, by the timestamps of the
// events.
type assignment struct {
	rider    string
	from, to time.Time // to is zero while the rider has the order
}

// judge compares what the ledger says about an order with what the queries say.
// rider returns the party with a rider's id, or nil for a rider of another run. judge
// changes neither the ledger nor the entry. The caller holds e.mu.
func judge(l *ledger, e *orderEntry, q queried, rider func(id string) *party, now time.Time) verdict {
	j := judgement{ledger: l, entry: e, queried: q, rider: rider, due: map[receipt]*dueCount{}}
	j.foldEvents()
	j.checkCommands()
	j.checkMoney(now)
	j.checkMessages()
	return j.verdict
}

// judgement is a verdict that is being worked out.
type judgement struct {
	verdict
	ledger   *ledger
	entry    *orderEntry
	queried  queried
	rider    func(id string) *party
	due      map[receipt]*dueCount // the messages that follow from the events
	statuses []string              // the order's status after version i+1
	paidAt   int                   // version of ORDER_PAID, 0 for none
}

// dueCount says how often a message must have come at least, and how often it may
// have come at most.
type dueCount struct {
	least, most int
	at          time.Time // time of the event that causes the message; zero if it is not known
}

// fault adds a broken promise.
func (j *judgement) fault(kind, format string, args ...any) {
	j.faults = append(j.faults, Fault{kind, j.entry.id, fmt.Sprintf(format, args...)})
}

// waitFor adds a fault that may still disappear, because what is missing may still
// come.
func (j *judgement) waitFor(kind, format string, args ...any) {
	j.waiting = append(j.waiting, Fault{kind, j.entry.id, fmt.Sprintf(format, args...)})
}

// expect adds to how often the message m must and may come to the party p. It does
// nothing if p is nil, which stands for a party of another run.
func (j *judgement) expect(p *party, m receipt, least, most int, at time.Time) {
	if p == nil {
		return
	}
	m.party = p.number
	d := j.due[m]
	if d == nil {
		d = &dueCount{}
		j.due[m] = d
	}
	d.least, d.most, d.at = d.least+least, d.most+most, at
}

// overlaps finds riders who had two orders at the same time, by the timestamps of the
// events. It reads the verdicts of the orders.
func overlaps(orders []*orderEntry) []Fault {
	type held struct {
		assignment
		order string
	}
	byRider := map[string][]held{}
	for _, e := range orders {
		for _, a := range e.verdict.assignments {
			byRider[a.rider] = append(byRider[a.rider], held{a, e.id})
		}
	}
	var faults []Fault
	for rider, hs := range byRider {
		slices.SortFunc(hs, func(a, b held) int {
			return cmp.Or(a.from.Compare(b.from), cmp.Compare(a.order, b.order))
		})
		for i := 1; i < len(hs); i++ {
			a, b := hs[i-1], hs[i]
			if a.to.IsZero() || a.to.After(b.from) {
				faults = append(faults, Fault{faultTwoOrders, b.order, fmt.Sprintf(
					"rider %s got it at %s, and still had %s", rider, b.from.Format(time.RFC3339Nano), a.order)})
			}
		}
	}
	slices.SortFunc(faults, func(a, b Fault) int { return cmp.Compare(a.Order, b.Order) })
	return faults
}
