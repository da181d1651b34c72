//go:build nextepoch

package rider

import (
	"encoding/json"

	"tomato/domain"
)

// This file is built with the tag nextepoch only, by the tests of upgrades. It stands for
// the next build: event-schema epoch 2 has a version 2 of RIDER_VERIFIED, in which a
// field has another name, and the new type RIDER_REVIEWED.

// RiderVerified is the event in version 2. Version 1 has riderId instead of rider.
type RiderVerified struct {
	RiderID string     `json:"rider"`
	Ctx     domain.Ctx `json:"ctx"`
}

// riderVerified1 is version 1.
type riderVerified1 struct {
	RiderID string     `json:"riderId"`
	Ctx     domain.Ctx `json:"ctx"`
}

// RiderReviewed is the event of a Verify of a rider that is verified already. It changes
// nothing but the version. There is no older event that it could be written as.
type RiderReviewed struct {
	RiderID string     `json:"riderId"`
	Ctx     domain.Ctx `json:"ctx"`
}

const typeRiderReviewed = "RIDER_REVIEWED"

func (RiderReviewed) EventType() string { return typeRiderReviewed }
func (RiderReviewed) riderEvent()       {}

// verify returns the event of Verify.
func verify(s *State) Event {
	if s.Verification == Verified {
		return RiderReviewed{RiderID: s.ID, Ctx: s.ctx()}
	}
	return RiderVerified{RiderID: s.ID, Ctx: s.ctx()}
}

var _ = nextEpoch()

// nextEpoch adds the events of epoch 2.
func nextEpoch() bool {
	Forms[TypeRiderVerified] = []domain.Form[Event]{
		{Epoch: 1, Read: readVerified1, Write: func(e Event) any { return riderVerified1(e.(RiderVerified)) }},
		{Epoch: 2},
	}
	Forms[typeRiderReviewed] = []domain.Form[Event]{{Epoch: 2, Read: decode[RiderReviewed]}}
	Types = append(Types, typeRiderReviewed)
	return true
}

func readVerified1(data []byte) (Event, error) {
	var old riderVerified1
	err := json.Unmarshal(data, &old)
	return RiderVerified(old), err
}
