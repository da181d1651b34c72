package order

import (
	"fmt"
	"slices"
	"time"

	"tomato/domain"
)

// Authorize checks that the actor may issue the command on this order, whatever its
// status. It refuses with not_found if the actor is not a party of the order, because the
// order does not exist for such an actor. It refuses with forbidden if the actor is a
// party who may not do this.
func Authorize(s *State, c domain.Command, a domain.Actor) error {
	if !s.Party(a) {
		return domain.Refuse(domain.NotFound, "no such order")
	}
	if a.Role != domain.Rider {
		return nil // httpapi has checked the role; a customer or restaurant that is a party may do what its role may
	}
	switch c.(type) {
	case PickUpOrder, Deliver:
		if a.Sub != s.RiderID {
			return domain.Refuse(domain.Forbidden, "only the order's rider may do this")
		}
	case DropOrder:
		if _, dropped := s.DropBy(a.Sub); a.Sub != s.RiderID && !dropped {
			return domain.Refuse(domain.Forbidden, "only the order's rider may drop it")
		}
	}
	return nil
}

// Decide returns the event that the command makes, or nil if the order is already as
// the command asks, or a *domain.Refusal. Only deadlines and expected times depend on
// now.
func Decide(s *State, c domain.Command, now time.Time) (Event, error) {
	if p, ok := c.(Place); ok {
		return place(s, p, now)
	}
	if !s.Exists() {
		return nil, domain.Refuse(domain.NotFound, "no such order")
	}
	switch c := c.(type) {
	case MarkPaid:
		return markPaid(s, c, now)
	case Expire:
		if !s.Payable() || c.PaymentPaid {
			return nil, nil
		}
		return OrderExpired{OrderID: s.ID, Ctx: s.ctx(StatusExpired)}, nil
	case CancelUnaccepted:
		if s.Status != StatusPlaced || !s.Paid() {
			return nil, nil
		}
		return s.cancelled("not_accepted_in_time", domain.System), nil
	case AcceptOrder:
		if done, err := s.kitchenStep(StatusPlaced, StatusAccepted); done || err != nil {
			return nil, err
		}
		e := OrderAccepted{OrderID: s.ID, PrepMinutes: c.PrepMinutes, Ctx: s.ctx(StatusAccepted)}
		if c.PrepMinutes > 0 {
			e.ReadyAt = domain.Time(now.Add(time.Duration(c.PrepMinutes) * time.Minute))
		}
		return e, nil
	case Reject:
		switch s.Status {
		case StatusPlaced:
			return OrderRejected{OrderID: s.ID, Reason: c.Reason, By: domain.Restaurant, PaymentID: s.PaymentID, Ctx: s.ctx(StatusRejected)}, nil
		case StatusRejected:
			return nil, nil
		}
		return nil, s.invalid("reject")
	case Prepare:
		if done, err := s.kitchenStep(StatusAccepted, StatusPreparing); done || err != nil {
			return nil, err
		}
		return OrderPreparing{OrderID: s.ID, Ctx: s.ctx(StatusPreparing)}, nil
	case Ready:
		if done, err := s.kitchenStep(StatusPreparing, StatusReadyForRider); done || err != nil {
			return nil, err
		}
		return OrderReadyForRider{OrderID: s.ID, RestaurantID: s.RestaurantID, Location: s.PickUp.Location, Round: 1, Ctx: s.ctx(StatusReadyForRider)}, nil
	case OfferWave:
		return offerWave(s, c, now)
	case EndWave:
		if s.Status != StatusReadyForRider || !s.WaveOpen || c.Round != s.Round || c.Wave != s.Wave {
			return nil, nil
		}
		return OffersExpired{OrderID: s.ID, Round: s.Round, Wave: s.Wave, Riders: orNone(s.openOffers()), Location: s.PickUp.Location, Ctx: s.ctx(s.Status)}, nil
	case Exhaust:
		if s.Status != StatusReadyForRider || s.Exhausted || s.WaveOpen || c.Round != s.Round || s.Wave < c.LastWave {
			return nil, nil
		}
		return DispatchExhausted{OrderID: s.ID, Round: s.Round, Waves: s.Wave, Ctx: s.ctx(s.Status)}, nil
	case RequestDispatch:
		if s.Status != StatusReadyForRider || !s.Exhausted {
			return nil, s.invalid("dispatch")
		}
		return DispatchRequested{OrderID: s.ID, Round: s.Round + 1, Location: s.PickUp.Location, Ctx: s.ctx(s.Status)}, nil
	case CheckOffer:
		return nil, checkOffer(s, c.RiderID)
	case Assign:
		return assign(s, c)
	case Decline:
		return decline(s, c)
	case DropOrder:
		return drop(s, c)
	case PickUpOrder:
		if done, err := s.riderStep(StatusRiderAssigned, StatusPickedUp, "pick-up"); done || err != nil {
			return nil, err
		}
		return OrderPickedUp{OrderID: s.ID, RiderID: s.RiderID, Ctx: s.ctx(StatusPickedUp)}, nil
	case Deliver:
		if done, err := s.riderStep(StatusPickedUp, StatusDelivered, "deliver"); done || err != nil {
			return nil, err
		}
		return OrderDelivered{OrderID: s.ID, RiderID: s.RiderID, ClaimID: s.ClaimID, Ctx: s.ctx(StatusDelivered)}, nil
	case Cancel:
		return cancel(s, c)
	}
	return nil, fmt.Errorf("order: unknown command %T", c)
}

// TookEffect reports whether the command has taken effect in the past, and whether that
// can never change: once it is true, it is true after all later events. It is false for
// all commands but those that a policy repeats.
func TookEffect(s *State, c domain.Command) bool {
	switch c := c.(type) {
	case MarkPaid:
		return s.PaymentID != "" && s.PaymentID == c.PaymentID
	case Assign:
		return c.ClaimID > 0 && (s.RiderID == c.RiderID && s.ClaimID == c.ClaimID ||
			slices.ContainsFunc(s.Drops, func(d Drop) bool { return d.RiderID == c.RiderID && d.ClaimID == c.ClaimID }))
	}
	return false
}

func place(s *State, c Place, now time.Time) (Event, error) {
	if s.Exists() {
		return nil, fmt.Errorf("order %s is placed already", s.ID)
	}
	e := OrderPlaced{
		OrderID: c.OrderID, CustomerID: c.CustomerID, RestaurantID: c.RestaurantID,
		Items: c.Items, Currency: c.Currency, PickUp: c.PickUp, DeliverTo: c.DeliverTo,
		ExternalReference: c.ExternalReference, PaymentDueAt: domain.Time(now.Add(c.PaymentTTL)),
		Ctx: domain.Ctx{CustomerID: c.CustomerID, RestaurantID: c.RestaurantID, Status: string(StatusPlaced)},
	}
	for _, i := range c.Items {
		e.Amount += i.UnitPrice * int64(i.Quantity)
	}
	return e, nil
}

func markPaid(s *State, c MarkPaid, now time.Time) (Event, error) {
	switch {
	case s.PaymentID == c.PaymentID:
		return nil, nil // a repeat, in every status
	case s.Status == StatusPlaced && !s.Paid():
		return OrderPaid{OrderID: s.ID, PaymentID: c.PaymentID, AcceptBy: domain.Time(now.Add(c.AcceptTTL)),
			Items: s.Items, Amount: s.Amount, Currency: s.Currency, PickUp: s.PickUp, DeliverTo: s.DeliverTo,
			ExternalReference: s.ExternalReference, PlacedAt: s.CreatedAt, Ctx: s.ctx(StatusPlaced)}, nil
	case s.Paid():
		return nil, domain.Refuse(CodeAlreadyPaid, "paid by another payment")
	}
	return nil, domain.Refuse(CodeClosedForPayment, "the order ended unpaid as %s", s.Status)
}

// offerWave offers the order to the nearest riders who may be asked, up to the limit
// of the wave. A new wave begins even with nobody in it: riders may be added while it
// is open.
func offerWave(s *State, c OfferWave, now time.Time) (Event, error) {
	if s.Status != StatusReadyForRider || s.Exhausted || c.Round != s.Round {
		return nil, nil
	}
	open := s.WaveOpen && c.Wave == s.Wave // the command adds riders to the open wave
	if !open && (s.WaveOpen || c.Wave <= s.Wave) {
		return nil, nil
	}
	e := OrderOffered{OrderID: s.ID, Round: c.Round, Wave: c.Wave, Riders: []OfferedRider{}, Location: s.PickUp.Location,
		ExpiresAt: s.WaveEndsAt, Ctx: s.ctx(s.Status)}
	free := c.Limit // places in the wave
	if open {
		for _, o := range s.Offers {
			if o.Wave == s.Wave {
				free--
			}
		}
	} else {
		e.ExpiresAt = domain.Time(now.Add(c.TTL))
	}
	leftOut := map[string]bool{}
	for _, r := range s.Unavailable() {
		leftOut[r] = true
	}
	for _, r := range c.Riders {
		if len(e.Riders) >= free {
			break
		}
		if o := s.offer(r.RiderID); leftOut[r.RiderID] || open && o != nil && o.Wave == s.Wave {
			continue
		}
		leftOut[r.RiderID] = true
		e.Riders = append(e.Riders, r)
	}
	if open && len(e.Riders) == 0 {
		return nil, nil
	}
	return e, nil
}

// checkOffer refuses unless the order is open to the rider, or theirs already.
func checkOffer(s *State, riderID string) error {
	switch s.Status {
	case StatusReadyForRider:
		if !s.OfferedTo(riderID) {
			return domain.Refuse(CodeOfferExpired, "this offer has ended")
		}
		return nil
	case StatusRiderAssigned, StatusPickedUp, StatusDelivered:
		if s.RiderID != riderID {
			return domain.Refuse(CodeAlreadyAssigned, "another rider has the order")
		}
		return nil
	}
	return s.invalid("accept")
}

func assign(s *State, c Assign) (Event, error) {
	if err := checkOffer(s, c.RiderID); err != nil {
		return nil, err
	}
	if s.Status != StatusReadyForRider {
		if s.ClaimID != c.ClaimID {
			return nil, domain.Refuse(CodeAlreadyAssigned, "assigned under another claim")
		}
		return nil, nil
	}
	if c.Round != s.Round || c.Wave != s.Wave {
		return nil, domain.Refuse(CodeOfferExpired, "this offer has ended")
	}
	others := []string{}
	for _, r := range s.openOffers() {
		if r != c.RiderID {
			others = append(others, r)
		}
	}
	e := RiderAssigned{OrderID: s.ID, RiderID: c.RiderID, RiderName: c.RiderName, ClaimID: c.ClaimID,
		Round: c.Round, Wave: c.Wave, Riders: others, Ctx: s.ctx(StatusRiderAssigned)}
	e.Ctx.RiderID = c.RiderID
	return e, nil
}

func decline(s *State, c Decline) (Event, error) {
	switch s.Status {
	case StatusRiderAssigned, StatusPickedUp, StatusDelivered:
		if s.RiderID == c.RiderID {
			return nil, s.invalid("decline")
		}
		return nil, nil
	case StatusReadyForRider:
		if !s.OfferedTo(c.RiderID) {
			return nil, nil
		}
		return OfferDeclined{OrderID: s.ID, RiderID: c.RiderID, Round: s.Round, Wave: s.Wave,
			WaveOver: len(s.openOffers()) == 1, Location: s.PickUp.Location, Ctx: s.ctx(s.Status)}, nil
	}
	return nil, nil
}

func drop(s *State, c DropOrder) (Event, error) {
	var dropped bool // the actor has dropped the order before
	if c.By.Role == domain.Rider {
		_, dropped = s.DropBy(c.By.Sub)
	} else {
		dropped = slices.ContainsFunc(s.Drops, func(d Drop) bool { return d.By == c.By.Role })
	}
	switch {
	case s.Status == StatusReadyForRider && dropped:
		return nil, nil
	case s.Status == StatusRiderAssigned && dropped && c.By.Role == domain.Rider && c.By.Sub != s.RiderID:
		// The rider repeats their drop, and another rider has the order. A drop by ops is
		// no such repeat: it always means the rider who has the order now.
		return nil, nil
	case s.Status == StatusRiderAssigned:
		e := RiderUnassigned{OrderID: s.ID, RiderID: s.RiderID, ClaimID: s.ClaimID, Reason: c.Reason, By: c.By.Role,
			Round: s.Round + 1, Location: s.PickUp.Location, Ctx: s.ctx(StatusReadyForRider)}
		return e, nil
	}
	return nil, s.invalid("drop")
}

func cancel(s *State, c Cancel) (Event, error) {
	last := map[domain.Role]Status{domain.Customer: StatusAccepted, domain.Restaurant: StatusRiderAssigned, domain.Ops: StatusPickedUp}[c.By.Role]
	switch {
	case s.Status == StatusCancelled:
		return nil, nil
	case s.Status.Closed() || last == "" || s.Status.progress() > last.progress():
		return nil, s.invalid("cancel")
	}
	return s.cancelled(c.Reason, c.By.Role), nil
}

func (s *State) cancelled(reason string, by domain.Role) Event {
	return OrderCancelled{OrderID: s.ID, Reason: reason, By: by, PaymentID: s.PaymentID,
		RiderID: s.RiderID, ClaimID: s.ClaimID, Riders: orNone(s.openOffers()), Ctx: s.ctx(StatusCancelled)}
}

// kitchenStep checks a step of the restaurant. done reports whether the order has passed
// the step already. The error is the refusal of a step that is not possible.
func (s *State) kitchenStep(from, to Status) (done bool, err error) {
	switch {
	case s.Status.Ended():
		return false, s.invalid(string(to))
	case s.Status.progress() >= to.progress():
		return true, nil
	case s.Status == StatusPlaced && !s.Paid():
		return false, domain.Refuse(CodeNotPaid, "the order is not paid")
	case s.Status != from:
		return false, s.invalid(string(to))
	}
	return false, nil
}

// riderStep is kitchenStep for a step of the rider.
func (s *State) riderStep(from, to Status, name string) (done bool, err error) {
	switch {
	case s.Status.Ended() || s.Status.progress() < from.progress():
		return false, s.invalid(name)
	case s.Status.progress() >= to.progress():
		return true, nil
	}
	return false, nil
}

// ctx returns the Ctx of an event. after is the order's status after the event.
func (s *State) ctx(after Status) domain.Ctx {
	return domain.Ctx{CustomerID: s.CustomerID, RestaurantID: s.RestaurantID, RiderID: s.RiderID, Status: string(after)}
}

// orNone returns an empty list for an absent one, because events have [] and never null.
func orNone(riders []string) []string {
	if riders == nil {
		return []string{}
	}
	return riders
}
