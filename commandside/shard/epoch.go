package shard

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/domain/restaurant"
	"tomato/domain/rider"
)

// This file owns the event-schema epoch: which versions of which events this instance
// may write, so that every owner of a shard can read them. docs/write-side.md argues
// for it.

// BuildEpoch is the event-schema epoch of this build: the highest epoch of the events and
// versions that it knows.
var BuildEpoch = max(order.Forms.Epoch(), payment.Forms.Epoch(), rider.Forms.Epoch(), restaurant.Forms.Epoch())

// epochAgain is the time after which a deadline whose event may not be written yet is
// looked at again.
const epochAgain = time.Second

// UpgradeInProgress is the error of a command whose event this instance may not write
// yet, because instances that own shards run a build that does not know it. Nothing was
// appended. It is an ErrUnavailable too: a repeat may succeed.
type UpgradeInProgress struct {
	Type   string   `json:"type"`   // of the event
	Epoch  int      `json:"epoch"`  // that introduced it
	Behind []string `json:"behind"` // what keeps this instance from writing it
}

func (u *UpgradeInProgress) Error() string { return "upgrade_in_progress: " + u.Detail() }

// Unwrap returns ErrUnavailable.
func (u *UpgradeInProgress) Unwrap() error { return ErrUnavailable }

// behindShown is how many of Behind a problem names.
const behindShown = 5

// Detail returns the explanation for the caller.
func (u *UpgradeInProgress) Detail() string {
	shown := u.Behind
	rest := ""
	if len(shown) > behindShown {
		rest = fmt.Sprintf(", and %d more", len(shown)-behindShown)
		shown = shown[:behindShown]
	}
	return fmt.Sprintf("The event %s belongs to event-schema epoch %d, and not every owner of a shard is known to run a build of that epoch: %s%s. Nothing was changed. The command works once these instances are upgraded.",
		u.Type, u.Epoch, strings.Join(shown, ", "), rest)
}

// epoch returns the event-schema epoch of the owner's build. A build from before epochs
// names none and has the first.
func (o Owner) epoch() int { return max(1, o.Epoch) }

// epochOnWire returns an epoch as claims and owner records have it: the first one is left
// out.
func epochOnWire(epoch int) int {
	if epoch == 1 {
		return 0
	}
	return epoch
}

// EpochStatus says up to which epoch this instance writes events, and why.
type EpochStatus struct {
	Build   int      `json:"build" doc:"Event-schema epoch of this instance's build."`
	Written int      `json:"written" doc:"The highest epoch of the events that this instance writes: the lowest epoch of all owners of shards, or what TOMATO_EVENT_EPOCH says."`
	Behind  []string `json:"behind,omitempty" doc:"What keeps written below build: owners of an older build, and shards whose owner is not known."`
}

// Epoch returns the epochs of this instance.
func (s *Shards) Epoch() EpochStatus {
	st := EpochStatus{Build: s.epoch, Written: s.writtenEpoch()}
	if st.Written < st.Build {
		st.Behind = s.behind(st.Build)
	}
	return st
}

// writtenEpoch returns the highest epoch of which this instance writes events now.
func (s *Shards) writtenEpoch() int {
	if s.EventEpoch > 0 {
		return s.EventEpoch
	}
	return min(s.epoch, int(s.owners.lowest.Load()))
}

// behind says what keeps this instance from writing events of the epoch.
func (s *Shards) behind(epoch int) []string {
	if s.EventEpoch > 0 {
		return []string{fmt.Sprintf("TOMATO_EVENT_EPOCH is %d at instance %s", s.EventEpoch, s.Instance)}
	}
	return s.owners.behind(epoch)
}

// choose returns the version in which the event is to be written, and the event as that
// version has it, or nil if that is the event itself. The error is an *UpgradeInProgress if no version may be written yet.
func (s *Shards) choose(ev domain.Event) (version int, older any, err error) {
	epoch, needs := s.writtenEpoch(), 0
	switch ev := ev.(type) {
	case order.Event:
		version, older, needs = order.Forms.Choose(ev, epoch)
	case payment.Event:
		version, older, needs = payment.Forms.Choose(ev, epoch)
	case rider.Event:
		version, older, needs = rider.Forms.Choose(ev, epoch)
	case restaurant.Event:
		version, older, needs = restaurant.Forms.Choose(ev, epoch)
	default:
		return 0, nil, fmt.Errorf("%T is no event of an aggregate", ev)
	}
	if version == 0 {
		return 0, nil, &UpgradeInProgress{Type: ev.EventType(), Epoch: needs, Behind: s.behind(needs)}
	}
	return version, older, nil
}

// inVersion returns the event as the given version has it, which choose has returned.
func inVersion(ev domain.Event, version int) any {
	switch ev := ev.(type) {
	case order.Event:
		return order.Forms.As(ev, version)
	case payment.Event:
		return payment.Forms.As(ev, version)
	case rider.Event:
		return rider.Forms.As(ev, version)
	case restaurant.Event:
		return restaurant.Forms.As(ev, version)
	}
	return ev
}

// decideAgain looks at the deadline of an order again later, because its event may not be
// written yet. It asks all that it asked the first time: a payment may have arrived since.
func (s *shard) decideAgain(orderID string) {
	time.AfterFunc(epochAgain, func() {
		s.post(func(now time.Time) {
			if e, err := s.agg.find(orders, orderID); err == nil && e != nil && e.order != nil {
				if at, _ := e.order.NextDeadline(); !at.After(now) {
					s.deadlineReached(deadline{at, orderID}, now)
				}
			}
		})
	})
}

// setLowest computes the lowest epoch of all owners. It is 1 until this instance knows
// the owner of every shard and has read all records that were in the topic when it
// began. A record that is signed, and whose claim is still being looked up, takes part
// if it has a higher term than the known owner, so that the epoch falls at once. The
// caller holds the lock.
func (o *owners) setLowest() {
	o.lowest.Store(int64(o.lowestEpoch()))
}

func (o *owners) lowestEpoch() int {
	if !o.complete || int32(len(o.known)) < o.partitions {
		return 1
	}
	lowest := math.MaxInt32
	for p, known := range o.known {
		lowest = min(lowest, known.epoch())
		for _, c := range o.candidates[p] {
			if c.Term > known.Term {
				lowest = min(lowest, c.epoch())
			}
		}
	}
	return lowest
}

// behind names the owners whose build is of an older epoch, and how many shards have no
// known owner.
func (o *owners) behind(epoch int) (out []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.complete {
		out = append(out, "the owners of the shards are not all read yet")
	}
	unknown := 0
	old := map[string]int{}
	for p := range o.partitions {
		known, ok := o.known[p]
		if !ok {
			unknown++
			continue
		}
		for _, n := range append([]Owner{known}, o.candidates[p]...) {
			if n.Term >= known.Term && n.epoch() < epoch {
				old[n.Owner] = n.epoch()
			}
		}
	}
	for _, name := range slices.SortedFunc(maps.Keys(old), func(a, b string) int { return cmp.Or(old[a]-old[b], strings.Compare(a, b)) }) {
		out = append(out, fmt.Sprintf("instance %s has epoch %d", name, old[name]))
	}
	if unknown > 0 {
		out = append(out, fmt.Sprintf("the owner of %d of %d shards is not known", unknown, o.partitions))
	}
	return out
}
