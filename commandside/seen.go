package commandside

import (
	"context"
	"encoding/json"
	"time"

	"tomato/commandside/shard"
	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/rooms"
	"tomato/eventlog"
)

// offerSeen is the event of the feed message that tells a restaurant who has seen an offer.
const offerSeen = "order:offer_seen"

// seenKeptDays is how long it is kept who has seen which offer. Each new row takes up to
// seenSwept older ones with it, so the table needs no other care.
const (
	seenKeptDays = 7
	seenSwept    = 10
)

// SeeOffer notes that a rider has seen their open offer of the order. The row in seen_offers
// is for the order's offers over REST, and a message tells the restaurant's room. Both say
// the time of the first call; a repeat changes nothing. The message goes first: after a
// failure in between, the repeat sends it again. The error is a refusal, one of the shard, or
// one that is eventlog.ErrUnavailable, after which the caller may try again.
func (s *Side) SeeOffer(ctx context.Context, riderID, orderID string) error {
	ctx, cancel := context.WithTimeout(ctx, s.CommandDeadline)
	defer cancel()
	res, err := s.Commands.Execute(ctx, shard.Request{Topic: eventlog.Orders, ID: orderID, Actor: domain.SystemActor, Command: shard.Look{}})
	if err != nil {
		return err
	}
	o := res.Order
	if o == nil || !o.Party(domain.Actor{Sub: riderID, Role: domain.Rider}) {
		return domain.Refuse(domain.NotFound, "no such order")
	}
	if !o.OfferedTo(riderID) {
		return domain.Refuse(order.CodeOfferExpired, "this rider has no open offer of the order")
	}
	wave := 0
	for _, offer := range o.Offers {
		if offer.RiderID == riderID {
			wave = offer.Wave
		}
	}
	var known bool
	err = s.DB.QueryRow(ctx, `SELECT EXISTS (SELECT FROM tomato.seen_offers WHERE order_id = $1 AND round = $2 AND wave = $3 AND rider_id = $4)`,
		orderID, o.Round, wave, riderID).Scan(&known)
	if err != nil {
		return eventlog.Unavailable(err)
	}
	if known {
		return nil
	}
	at := domain.Time(time.Now())
	payload, err := json.Marshal(struct {
		OrderID string    `json:"orderId"`
		RiderID string    `json:"riderId"`
		SeenAt  time.Time `json:"seenAt"`
	}{orderID, riderID, at})
	if err != nil {
		return err
	}
	if err := s.send(ctx, rooms.Emit{Event: offerSeen, Room: rooms.Restaurant(o.RestaurantID), Payload: payload}, at); err != nil {
		return eventlog.Unavailable(err)
	}
	_, err = s.DB.Exec(ctx, `WITH old AS (
			DELETE FROM tomato.seen_offers WHERE ctid = ANY(ARRAY(
				SELECT ctid FROM tomato.seen_offers WHERE seen_at < now() - make_interval(days => $6) ORDER BY seen_at LIMIT $7 FOR UPDATE SKIP LOCKED)))
		INSERT INTO tomato.seen_offers (order_id, round, wave, rider_id, seen_at) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING`,
		orderID, o.Round, wave, riderID, at, seenKeptDays, seenSwept)
	if err != nil {
		return eventlog.Unavailable(err)
	}
	return nil
}
