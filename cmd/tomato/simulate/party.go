package simulate

import (
	"sync"
	"time"

	"tomato/domain"
)

// party is a customer, restaurant, rider or operator of the run. Each has a feed.
type party struct {
	number     int32 // index in the ledger's list of parties
	role       domain.Role
	id         string
	ineligible string // why this rider must not get any offer; "" for all other parties

	mu   sync.Mutex
	gaps []feedGap // the times for which the feed announced that messages are missing
}

// feedGap is a period, by the local clock, for which a feed told its client to
// reload. A message that is missing in this period is not a broken promise.
type feedGap struct{ from, to time.Time }

func (p *party) addGap(g feedGap) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gaps = append(p.gaps, g)
}

// excused reports whether a message about an event at t may be missing. A zero t
// stands for an unknown time.
func (p *party) excused(t time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, g := range p.gaps {
		if t.IsZero() || !t.Before(g.from) && !t.After(g.to) {
			return true
		}
	}
	return false
}
