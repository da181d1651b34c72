package simulate

import (
	"cmp"
	"slices"
)

// checkMessages compares the messages that came with those that were due.
func (j *judgement) checkMessages() {
	got := map[receipt]int{}
	newest := map[int32]int32{}
	for _, m := range j.entry.receipts {
		got[m]++
		if m.kind != kindUpdate || m.version == 0 {
			continue
		}
		if v := newest[m.party]; m.version < v && got[m] == 1 {
			j.fault(faultMisorderedMessage, "%s got version %d after %d", j.ledger.name(m.party), m.version, v)
		}
		newest[m.party] = max(newest[m.party], m.version)
	}
	refunded := j.ledger.tag("refunded")
	for m, n := range got {
		d := j.due[m]
		switch {
		case d != nil && n <= d.most:
		case d != nil && d.most > 0:
			j.fault(faultDuplicateMessage, "%s got %s version %d %d times, due %d", j.ledger.name(m.party), m.kind, m.version, n, d.most)
		case m.kind == kindUpdate && m.version == 0 && m.tag != refunded && j.isParty(m.party):
			// This is a change of the payment status other than refunded. failed may
			// come several times, and refund_pending need not come.
		case m.kind == kindUpdate && int(m.version) > len(j.queried.events), m.kind == kindUpdate && m.version == 0 && j.isParty(m.party):
			j.waitFor(faultUncalledMessage, "%s got %s version %d, which the queries do not show yet", j.ledger.name(m.party), m.kind, m.version)
		default:
			j.fault(faultUncalledMessage, "%s got %s version %d, which no event explains", j.ledger.name(m.party), m.kind, m.version)
		}
	}
	for m, d := range j.due {
		if n := got[m]; n < d.least {
			if j.ledger.partyAt(m.party).excused(d.at) {
				j.missedInGap += d.least - n
				continue
			}
			j.waitFor(faultLostMessage, "%s got %s version %d %d times, due %d", j.ledger.name(m.party), m.kind, m.version, n, d.least)
		}
	}
	slices.SortFunc(j.waiting, func(a, b Fault) int { return cmp.Compare(a.Detail, b.Detail) })
}

// isParty reports whether the party with this number is a party of the order.
func (j *judgement) isParty(n int32) bool {
	if n == j.entry.customer.number || n == j.entry.restaurant.number {
		return true
	}
	return slices.ContainsFunc(j.assignments, func(a assignment) bool {
		p := j.rider(a.rider)
		return p != nil && p.number == n
	})
}
