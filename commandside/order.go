package commandside

import (
	"context"
	"fmt"

	"tomato/commandside/shard"
	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/restaurant"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/subjectkeys"
	"tomato/httpapi"
)

type orderInput struct {
	commandInput
	ID httpapi.OrderID `path:"id"`
}

type reasonInput struct {
	orderInput
	Body struct {
		Reason httpapi.Text `json:"reason"`
	}
}

// sealedReason is the body of reasonInput with the reason sealed, if a customer or a rider
// gives it.
type sealedReason struct {
	Reason string `json:"reason"`
}

type placeInput struct {
	commandInput
	Body struct {
		RestaurantID      httpapi.ID   `json:"restaurantId"`
		Items             []orderLine  `json:"items" minItems:"1" maxItems:"100"`
		DeliverTo         deliverTo    `json:"deliverTo"`
		ExternalReference httpapi.Text `json:"externalReference,omitempty"`
	}
}

// placedBody is the body of placeInput with what is personal sealed.
type placedBody struct {
	RestaurantID      httpapi.ID    `json:"restaurantId"`
	Items             []orderLine   `json:"items"`
	DeliverTo         domain.Sealed `json:"deliverTo"`
	ExternalReference httpapi.Text  `json:"externalReference,omitempty"`
}

type orderLine struct {
	ItemID   httpapi.ID `json:"itemId"`
	Quantity int        `json:"quantity" minimum:"1" maximum:"100"`
}

type deliverTo struct {
	Location     domain.Point `json:"location"`
	Address      httpapi.Text `json:"address"`
	Instructions httpapi.Text `json:"instructions,omitempty"`
}

type acceptOrderInput struct {
	orderInput
	Body struct {
		PrepMinutes int `json:"prepMinutes,omitempty" minimum:"1" maximum:"240"`
	}
}

func (s *Side) orderRoutes(api *httpapi.API) {
	place := operation("POST", "/v1/orders", "placeOrder", "Place an order, priced from the menu")
	place.DefaultStatus = 201
	httpapi.Register(api, place, []domain.Role{domain.Customer}, s.placeOrder)

	httpapi.Register(api, operation("POST", "/v1/orders/{id}/accept-order", "acceptOrder", "The restaurant takes the order"), []domain.Role{domain.Restaurant},
		func(ctx context.Context, in *acceptOrderInput) (*orderOutput, error) {
			return s.orderCommand(ctx, in.orderInput, in.Body, order.AcceptOrder{PrepMinutes: in.Body.PrepMinutes})
		})
	httpapi.Register(api, operation("POST", "/v1/orders/{id}/reject", "rejectOrder", "The restaurant refuses the order"), []domain.Role{domain.Restaurant},
		func(ctx context.Context, in *reasonInput) (*orderOutput, error) {
			return s.orderCommand(ctx, in.orderInput, in.Body, order.Reject{Reason: string(in.Body.Reason)})
		})
	s.step(api, "preparing", "prepareOrder", "The kitchen begins", []domain.Role{domain.Restaurant}, order.Prepare{})
	s.step(api, "ready", "orderReady", "The order can be fetched: riders are asked", []domain.Role{domain.Restaurant}, order.Ready{})
	s.step(api, "pick-up", "pickUpOrder", "The rider has it", []domain.Role{domain.Rider}, order.PickUpOrder{})
	s.step(api, "dispatch", "dispatchOrder", "Ask riders again after exhaustion", []domain.Role{domain.Ops}, order.RequestDispatch{})

	httpapi.Register(api, operation("POST", "/v1/orders/{id}/accept", "acceptOffer", "The rider takes the order"), []domain.Role{domain.Rider}, s.acceptOffer)
	httpapi.Register(api, operation("POST", "/v1/orders/{id}/decline", "declineOffer", "The rider does not want the order"), []domain.Role{domain.Rider},
		func(ctx context.Context, in *orderInput) (*orderOutput, error) {
			out, err := s.orderCommand(ctx, *in, nil, order.Decline{RiderID: httpapi.Actor(ctx).Sub})
			if err == nil {
				out.Body = out.Body.WithoutParties()
			}
			return out, err
		})
	httpapi.Register(api, operation("POST", "/v1/orders/{id}/deliver", "deliverOrder", "The customer has it"), []domain.Role{domain.Rider},
		func(ctx context.Context, in *orderInput) (*orderOutput, error) {
			return s.endingCommand(ctx, *in, nil, order.Deliver{})
		})
	httpapi.Register(api, operation("POST", "/v1/orders/{id}/drop", "dropOrder", "The rider gives it back before pick-up"), []domain.Role{domain.Rider, domain.Ops},
		func(ctx context.Context, in *reasonInput) (*orderOutput, error) {
			reason, err := s.sealReason(ctx, in)
			if err != nil {
				return nil, err
			}
			out, err := s.endingCommand(ctx, in.orderInput, reason, order.DropOrder{By: httpapi.Actor(ctx), Reason: reason.Reason})
			if err == nil {
				out.Body = out.Body.WithoutParties()
			}
			return out, err
		})
	httpapi.Register(api, operation("POST", "/v1/orders/{id}/cancel", "cancelOrder", "End the order; booked money goes back"), []domain.Role{domain.Customer, domain.Restaurant, domain.Ops},
		func(ctx context.Context, in *reasonInput) (*orderOutput, error) {
			reason, err := s.sealReason(ctx, in)
			if err != nil {
				return nil, err
			}
			return s.endingCommand(ctx, in.orderInput, reason, order.Cancel{By: httpapi.Actor(ctx), Reason: reason.Reason})
		})
}

// sealReason returns the body with the caller's reason sealed, if the caller is a customer
// or a rider. The error is an *httpapi.Problem.
func (s *Side) sealReason(ctx context.Context, in *reasonInput) (sealedReason, error) {
	reason, err := subjectkeys.SealReason(ctx, s.Keys, httpapi.Actor(ctx), string(in.Body.Reason))
	if err != nil {
		return sealedReason{}, problem(eventlog.Orders, err)
	}
	return sealedReason{reason}, nil
}

// step registers a command without a body.
func (s *Side) step(api *httpapi.API, name, id, summary string, roles []domain.Role, c domain.Command) {
	httpapi.Register(api, operation("POST", "/v1/orders/{id}/"+name, id, summary), roles,
		func(ctx context.Context, in *orderInput) (*orderOutput, error) {
			return s.orderCommand(ctx, *in, nil, c)
		})
}

func (s *Side) orderCommand(ctx context.Context, in orderInput, body any, c domain.Command) (*orderOutput, error) {
	res, err := s.execute(ctx, in.commandInput, body, shard.Request{Topic: eventlog.Orders, ID: string(in.ID), Command: c})
	if err != nil {
		return nil, err
	}
	return s.orderAnswer(ctx, res)
}

func (s *Side) placeOrder(ctx context.Context, in *placeInput) (*orderOutput, error) {
	b, customerID := in.Body, httpapi.Actor(ctx).Sub
	to, err := subjectkeys.SealDeliverTo(ctx, s.Keys, customerID,
		order.DeliverTo{Location: &b.DeliverTo.Location, Address: string(b.DeliverTo.Address), Instructions: string(b.DeliverTo.Instructions)})
	if err != nil {
		return nil, problem(eventlog.Orders, err)
	}
	c := shard.Place{
		CustomerID: customerID, RestaurantID: string(b.RestaurantID), ExternalReference: string(b.ExternalReference),
		DeliverTo: to, PaymentTTL: s.PaymentTTL,
	}
	for _, i := range b.Items {
		c.Lines = append(c.Lines, restaurant.Line{ItemID: string(i.ItemID), Quantity: i.Quantity})
	}
	// The body of an idempotency key is compared in sealed form: not even a hash of what is
	// personal is kept in the clear.
	sealed := placedBody{b.RestaurantID, b.Items, to, b.ExternalReference}
	res, err := s.execute(ctx, in.commandInput, sealed, shard.Request{Topic: eventlog.Orders, Command: c})
	if err != nil {
		return nil, err
	}
	out, err := s.orderAnswer(ctx, res)
	if err != nil {
		return nil, err
	}
	out.Location = "/v1/orders/" + res.Order.ID
	return out, nil
}

// endingCommand runs a command that may end an assignment, and frees the rider
// before it answers. A repeat frees the rider too, in case the first request ended
// between the two steps.
func (s *Side) endingCommand(ctx context.Context, in orderInput, body any, c domain.Command) (*orderOutput, error) {
	res, err := s.execute(ctx, in.commandInput, body, shard.Request{Topic: eventlog.Orders, ID: string(in.ID), Command: c})
	if err != nil {
		return nil, err
	}
	riderID, claimID := res.Order.RiderID, res.Order.ClaimID
	if drop, ok := c.(order.DropOrder); ok {
		riderID, claimID = "", 0
		if e, ok := res.Event.(order.RiderUnassigned); ok {
			riderID, claimID = e.RiderID, e.ClaimID
		} else if d, ok := res.Order.DropBy(drop.By.Sub); ok {
			riderID, claimID = d.RiderID, d.ClaimID
		}
	}
	if claimID != 0 {
		if _, err := s.system(ctx, eventlog.Riders, riderID, rider.Release{ClaimID: claimID, OrderID: res.Order.ID}); err != nil {
			return nil, problem(eventlog.Riders, err)
		}
	}
	return s.orderAnswer(ctx, res)
}

// acceptTries is how many unfinished claims of the rider one accept finishes at most.
const acceptTries = 8

// acceptOffer gives the order to the rider. This takes three steps over two
// aggregates: it asks the order whether it is still open to the rider, claims the
// rider, and assigns the order in the round and wave of that claim. If another claim
// holds the rider, acceptOffer finishes that one first: repeatAssign tells whether it
// holds.
func (s *Side) acceptOffer(ctx context.Context, in *orderInput) (*orderOutput, error) {
	actor := httpapi.Actor(ctx)
	for range acceptTries {
		open, err := s.execute(ctx, commandInput{IfMatch: in.IfMatch, Traceparent: in.Traceparent}, nil,
			shard.Request{Topic: eventlog.Orders, ID: string(in.ID), Command: order.CheckOffer{RiderID: actor.Sub}})
		if err != nil {
			return nil, err
		}
		o := open.Order
		if o.Status != order.StatusReadyForRider {
			return s.orderAnswer(ctx, open) // the order is this rider's already
		}
		claimed, err := s.system(ctx, eventlog.Riders, actor.Sub, rider.ClaimFor{OrderID: o.ID, Round: o.Round, Wave: o.Wave,
			CustomerID: o.CustomerID, RestaurantID: o.RestaurantID})
		if domain.RefusedWith(err) == rider.CodeBusy && claimed.Rider != nil && claimed.Rider.Claim != nil {
			holds, serr := s.repeatAssign(ctx, claimed.Rider.ID, claimed.Rider.Name, *claimed.Rider.Claim)
			if serr != nil {
				return nil, problem(eventlog.Riders, serr)
			}
			if !holds {
				continue // the order of that claim refused it: the rider is free
			}
		}
		if err != nil {
			return nil, problem(eventlog.Riders, err)
		}
		// CheckOffer compared If-Match. From the claim on, only the order's own
		// refusal may free the rider. If another error freed the rider, the claims
		// policy would repeat the assign, and the rider would have this order and
		// could take a second one.
		assigned, err := s.system(ctx, eventlog.Orders, o.ID, order.Assign{RiderID: actor.Sub, RiderName: claimed.Rider.Name,
			ClaimID: claimed.Rider.Claim.ID, Round: o.Round, Wave: o.Wave})
		if err == nil {
			return s.orderAnswer(ctx, assigned)
		}
		if domain.RefusedWith(err) == "" {
			return nil, problem(eventlog.Orders, err) // the outcome is not known: the claims policy repeats this step
		}
		// The rider who lost the race is free before the answer leaves.
		if _, rerr := s.system(ctx, eventlog.Riders, actor.Sub, rider.Release{ClaimID: claimed.Rider.Claim.ID, OrderID: o.ID}); rerr != nil {
			return nil, problem(eventlog.Riders, rerr)
		}
		return nil, problem(eventlog.Orders, err)
	}
	return nil, problem(eventlog.Riders, fmt.Errorf("%w: the rider's other accepts are undecided", shard.ErrUnavailable))
}

// repeatAssign repeats the assign that belongs to a claim, and reports whether the
// claim holds. It holds if the order takes the assign, now or before. If the order
// refuses it, it will never take it, and the rider is released from the claim.
func (s *Side) repeatAssign(ctx context.Context, riderID string, riderName domain.Sealed, c rider.Claim) (holds bool, err error) {
	_, err = s.system(ctx, eventlog.Orders, c.OrderID, order.Assign{RiderID: riderID, RiderName: riderName, ClaimID: c.ID, Round: c.Round, Wave: c.Wave})
	if err == nil {
		return true, nil
	}
	if domain.RefusedWith(err) == "" {
		return false, err
	}
	_, err = s.system(ctx, eventlog.Riders, riderID, rider.Release{ClaimID: c.ID, OrderID: c.OrderID})
	return false, err
}
