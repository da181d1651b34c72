package feed

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/google/uuid"

	"tomato/domain"
	"tomato/domain/rooms"
	"tomato/eventlog"
	"tomato/httpapi"
)

// prepareReturn prepares the hub for a client that returns with a cursor, and finds
// out which of the orders that a rider followed are still theirs. The error is a
// *httpapi.Problem.
func (f *Feed) prepareReturn(ctx context.Context, c *connecting) error {
	if c.cursor.fault == "" {
		if err := f.findPlace(ctx, c); err != nil {
			return err
		}
	}
	if c.actor.Role != domain.Rider {
		return nil
	}
	ids := map[string]string{} // of orders, by room
	for _, room := range c.cursor.rooms {
		if id, is := rooms.OrderID(room); is {
			ids[room] = id
		}
	}
	relations, err := f.relations(ctx, c.actor, ids)
	if err != nil {
		return err
	}
	for room, x := range relations {
		if x.follows {
			c.orders[room] = x.version
		}
	}
	return nil
}

// findPlace finds the base of the cursor, and waits until the hub has reached the place of
// the cursor and its index reaches back to it.
func (f *Feed) findPlace(ctx context.Context, c *connecting) error {
	waiting, cancel := context.WithTimeout(ctx, cursorWait)
	defer cancel()
	var err error
	c.base, err = f.Hub.reader.base(waiting, c.cursor.base)
	if err != nil {
		return f.cannotReturn(c, err)
	}
	from, ok := f.Hub.cursors.place(c.cursor, c.actor, c.base)
	if !ok {
		c.cursor.fault = resetUnknown
		return nil
	}
	at := from.positions()
	if err := f.Hub.reachedPlace(waiting, &at); err != nil {
		return f.cannotReturn(c, err)
	}
	if !f.Hub.covered(waiting, &at) {
		return httpapi.Unavailable("unavailable", "The feed is still reading its history back to the cursor. Repeat with the same cursor.", time.Second)
	}
	return nil
}

// cannotReturn decides what becomes of a client whose place cannot be found.
func (f *Feed) cannotReturn(c *connecting, err error) error {
	switch {
	case errors.Is(err, eventlog.ErrUnknownToken):
		c.cursor.fault = resetUnknown
	case gone(err):
		c.cursor.fault = resetExpired
	default:
		f.log().Warn("A client cannot be sent what it missed now.", "err", err)
		return httpapi.Unavailable("unavailable", "What was missed cannot be read now. Repeat with the same cursor.", time.Second)
	}
	return nil
}

// relation is what an actor is to an order.
type relation struct {
	follows bool  // may be in its room
	party   bool  // is a party of the order, according to the read model
	version int64 // of the order as of which this holds; 0: neither hub nor read model has the order
}

// relations says what the actor is to the orders whose ids are given by room. It asks the
// hub, and then the read model, with one query, about all that the hub does not decide; of
// the two, the one that has the later version of an order decides. The error is a
// *httpapi.Problem.
func (f *Feed) relations(ctx context.Context, actor domain.Actor, ids map[string]string) (map[string]relation, error) {
	all := make(map[string]relation, len(ids))
	var ask []string
	for room, id := range ids {
		var x relation
		x.follows, x.version = f.Hub.follows(actor, id)
		all[room] = x
		if !x.follows && (x.version == 0 || actor.Role == domain.Rider) { // customer and restaurant never change; a rider may get or lose the order with a later event
			ask = append(ask, id)
		}
	}
	if len(ask) == 0 {
		return all, nil
	}
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	states, err := f.Orders.Orders(ctx, ask)
	if err != nil {
		f.log().Warn("The feed cannot ask the read model for the parties of orders.", "orders", len(ask), "err", err)
		return nil, httpapi.Unavailable("unavailable", "The order's parties cannot be looked up now.", time.Second)
	}
	for room, id := range ids {
		x := all[room]
		if s := states[id]; s != nil && slices.Contains(ask, id) {
			x.party = s.Party(actor)
			if s.Version > x.version {
				x.follows, x.version = s.MayFollow(actor), s.Version
			}
			all[room] = x
		}
	}
	return all, nil
}

// anyRoom reports whether the actor may join all rooms. What support sees there is decided
// for each message (rooms.Message.VisibleTo).
func anyRoom(actor domain.Actor) bool {
	return actor.Role == domain.Ops || actor.Role == domain.Support
}

// mayJoin returns the problem of an actor who may not join one of the rooms. For one who
// may join all of them it returns, for each room of an order, the version of the order as
// of which they may; 0 for other rooms.
func (f *Feed) mayJoin(ctx context.Context, actor domain.Actor, asked []string) (versions map[string]int64, p *httpapi.Problem) {
	versions, ids := make(map[string]int64, len(asked)), map[string]string{}
	own := rooms.JoinedBy(actor)
	for _, room := range asked {
		if versions[room] = 0; anyRoom(actor) || slices.Contains(own, room) {
			continue
		}
		id, ok := rooms.OrderID(room)
		if !ok {
			return nil, httpapi.NewProblem(http.StatusForbidden, "forbidden", "The room is not for this token.")
		}
		ids[room] = id
	}
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	tick := time.NewTicker(partyEvery)
	defer tick.Stop()
	for until := time.Now().Add(partyWait); len(ids) > 0; {
		relations, err := f.relations(ctx, actor, ids)
		if err != nil {
			return nil, httpapi.FromError("order", err)
		}
		for _, room := range asked {
			id, undecided := ids[room]
			x := relations[room]
			switch {
			case !undecided:
			case x.follows:
				versions[room] = x.version
				delete(ids, room)
			case time.Now().Before(until) && (actor.Role == domain.Rider || x.version == 0 && fresh(id)):
				// The event that makes them a party may not have reached the read model or the hub.
			case x.party:
				return nil, httpapi.NewProblem(http.StatusForbidden, "forbidden", "The order is not this rider's.")
			default:
				return nil, httpapi.NewProblem(http.StatusNotFound, "order_not_found", "There is no such order, or the caller is no party to it.")
			}
		}
		if len(ids) == 0 {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, httpapi.FromError("order", ctx.Err())
		}
	}
	return versions, nil
}

// fresh reports whether an order was placed so recently that the read model may
// not have it. The order's id is a UUIDv7, which contains the time.
func fresh(orderID string) bool {
	u, err := uuid.Parse(orderID)
	if err != nil || u.Version() != 7 {
		return false
	}
	sec, nsec := u.Time().UnixTime()
	return time.Since(time.Unix(sec, nsec)) < time.Minute
}
