package order

import (
	"slices"
	"time"
)

// Evolve returns the state after the event e, which happened at time at. It refuses
// nothing, because an event has happened.
func Evolve(s State, e Event, at time.Time) State {
	s.Apply(e, at)
	return s
}

// Apply is Evolve in place, for a state that nobody else has.
func (s *State) Apply(e Event, at time.Time) {
	s.Version++
	s.UpdatedAt = at
	switch e := e.(type) {
	case OrderPlaced:
		s.ID, s.Status = e.OrderID, StatusPlaced
		s.CustomerID, s.RestaurantID = e.CustomerID, e.RestaurantID
		s.Items, s.Amount, s.Currency = e.Items, e.Amount, e.Currency
		s.PickUp, s.DeliverTo, s.ExternalReference = e.PickUp, e.DeliverTo, e.ExternalReference
		s.PaymentDueAt, s.CreatedAt = e.PaymentDueAt, at
	case OrderPaid:
		s.PaymentID, s.AcceptBy = e.PaymentID, e.AcceptBy
	case OrderExpired:
		s.Status = StatusExpired
	case OrderAccepted:
		s.Status, s.ReadyAt = StatusAccepted, e.ReadyAt
	case OrderRejected:
		s.Status, s.Reason, s.By = StatusRejected, e.Reason, e.By
	case OrderPreparing:
		s.Status = StatusPreparing
	case OrderReadyForRider:
		s.Status, s.Round, s.ReadyAt = StatusReadyForRider, e.Round, at
	case OrderOffered:
		s.Offers = slices.Clone(s.Offers)
		for _, r := range e.Riders {
			o := Offer{RiderID: r.RiderID, Wave: e.Wave, DistanceMeters: r.DistanceMeters, State: OfferStateOpen}
			if old := s.offer(r.RiderID); old != nil {
				*old = o
			} else {
				s.Offers = append(s.Offers, o)
			}
		}
		s.Wave, s.WaveOpen, s.WaveEndsAt = e.Wave, true, e.ExpiresAt
	case OfferDeclined:
		s.Offers = slices.Clone(s.Offers)
		if o := s.offer(e.RiderID); o != nil {
			o.State = OfferStateDeclined
		}
		if e.WaveOver {
			s.WaveOpen = false
		}
	case OffersExpired:
		s.endOffers()
	case RiderAssigned:
		s.endOffers()
		s.Status = StatusRiderAssigned
		s.RiderID, s.RiderName, s.ClaimID = e.RiderID, e.RiderName, e.ClaimID
	case RiderUnassigned:
		s.Drops = append(slices.Clip(s.Drops), Drop{RiderID: e.RiderID, ClaimID: e.ClaimID, Round: e.Round, By: e.By})
		s.Status = StatusReadyForRider
		s.RiderID, s.RiderName, s.ClaimID = "", "", 0
		s.newRound(e.Round)
	case DispatchExhausted:
		s.Exhausted = true
	case DispatchRequested:
		s.newRound(e.Round)
	case OrderPickedUp:
		s.Status = StatusPickedUp
	case OrderDelivered:
		s.Status = StatusDelivered
	case OrderCancelled:
		s.endOffers()
		s.Status, s.Reason, s.By = StatusCancelled, e.Reason, e.By
	}
	if s.Status.Closed() && s.ClosedAt.IsZero() {
		s.ClosedAt = at
	}
}

func (s *State) endOffers() {
	s.WaveOpen = false
	s.Offers = slices.Clone(s.Offers)
	for i := range s.Offers {
		if s.Offers[i].State == OfferStateOpen {
			s.Offers[i].State = OfferStateEnded
		}
	}
}

func (s *State) newRound(round int) {
	s.Round, s.Wave, s.WaveOpen, s.Exhausted, s.Offers = round, 0, false, false, nil
}
