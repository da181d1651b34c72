package queryside

import (
	"context"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/rider"
	"tomato/eventlog/subjectkeys"
	"tomato/httpapi"
)

// riderModel names the read model of the riders.
const riderModel = "riders"

type nearbyRidersInput struct {
	queryInput
	around
}

type nearbyRider struct {
	RiderID        string        `json:"riderId"`
	Name           string        `json:"name,omitempty" doc:"Absent for support."`
	Location       *domain.Point `json:"location,omitempty" doc:"Absent for support."`
	DistanceMeters int           `json:"distanceMeters"`
	UpdatedAt      time.Time     `json:"updatedAt" doc:"When the position was recorded."`
}

type nearbyRidersOutput struct {
	Token string `header:"Consistency-Token"`
	Body  struct {
		Items []nearbyRider `json:"items"`
	}
}

type riderInput struct {
	queryInput
	ID httpapi.ID `path:"id"`
}

type riderOutput struct {
	ETag  string `header:"ETag"`
	Token string `header:"Consistency-Token"`
	Body  rider.View
}

type offersOutput struct {
	Token string `header:"Consistency-Token"`
	Body  struct {
		Items []OfferedOrder `json:"items"`
	}
}

func (s *Side) riderRoutes(api *httpapi.API) {
	httpapi.Register(api, operation("/v1/riders/nearby", "getNearbyRiders", "Free, verified riders with a fresh position, nearest first"),
		[]domain.Role{domain.Ops, domain.Support, domain.Restaurant}, s.nearbyRiders)
	httpapi.Register(api, operation("/v1/riders/{id}", "getRider", "One rider", 404), []domain.Role{domain.Ops, domain.Support, domain.Rider}, s.getRider)
	httpapi.Register(api, operation("/v1/riders/{id}/offers", "getRiderOffers", "Offers to a rider that are still open", 404), []domain.Role{domain.Ops, domain.Support, domain.Rider}, s.riderOffers)
}

func (s *Side) nearbyRiders(ctx context.Context, in *nearbyRidersInput) (*nearbyRidersOutput, error) {
	out := &nearbyRidersOutput{}
	support := httpapi.Actor(ctx).Role == domain.Support
	token, err := s.read(ctx, in.After, []string{riderModel}, func(ctx context.Context, schemas []string) error {
		return nearestFirst(func(walk string) error {
			// The inner query walks the index on location within the box around
			// the circle, nearest first. The outer query leaves out what is
			// outside the circle. projections/search.go explains it.
			rows, err := s.DB.Query(ctx, `SELECT c.rider_id, c.name, ST_X(c.location::geometry), ST_Y(c.location::geometry), c.meters, c.recorded_at
			FROM (
				SELECT f.rider_id, f.name, f.location, f.location <-> ST_MakePoint($1, $2)::geography AS meters, f.recorded_at
				FROM `+schemas[0]+`.free_riders f
				WHERE f.location && _ST_Expand(ST_MakePoint($1, $2)::geography, $3) AND f.recorded_at > $4
				ORDER BY (f.location <-> ST_MakePoint($1, $2)::geography)`+walk+`
				LIMIT $5
			) c
			WHERE c.meters <= $3
			ORDER BY c.meters, c.rider_id`,
				in.Lng, in.Lat, in.Radius, time.Now().Add(-s.PositionMaxAge), in.Limit)
			if err != nil {
				return err
			}
			out.Body.Items = []nearbyRider{}
			var r nearbyRider
			var name domain.Sealed
			var at domain.Point
			var meters float64
			_, err = pgx.ForEachRow(rows, []any{&r.RiderID, &name, &at.Lng, &at.Lat, &meters, &r.UpdatedAt}, func() error {
				r.DistanceMeters, r.UpdatedAt = int(math.Round(meters)), r.UpdatedAt.UTC()
				if support {
					out.Body.Items = append(out.Body.Items, r)
					return nil
				}
				r.Location = &domain.Point{Lng: at.Lng, Lat: at.Lat}
				if r.Name, err = subjectkeys.OpenName(ctx, s.Keys, r.RiderID, name); err != nil {
					return err
				}
				out.Body.Items = append(out.Body.Items, r)
				return nil
			})
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	out.Token = token
	return out, nil
}

// selfOrOps returns an error if the caller may not read the rider. Riders may read
// only themselves.
func selfOrOps(actor domain.Actor, riderID string) error {
	if actor.Role == domain.Rider && actor.Sub != riderID {
		return forbidden("A rider may do this only for themselves.")
	}
	return nil
}

func (s *Side) getRider(ctx context.Context, in *riderInput) (*riderOutput, error) {
	var text []byte
	var lng, lat *float64
	token, err := s.read(ctx, in.After, []string{riderModel}, func(ctx context.Context, schemas []string) error {
		err := s.DB.QueryRow(ctx, `SELECT r.state, ST_X(p.location::geometry), ST_Y(p.location::geometry)
			FROM `+schemas[0]+`.riders r LEFT JOIN `+schemas[0]+`.rider_positions p ON p.rider_id = r.id WHERE r.id = $1`,
			string(in.ID)).Scan(&text, &lng, &lat)
		if errors.Is(err, pgx.ErrNoRows) {
			return notFound("rider")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := selfOrOps(httpapi.Actor(ctx), string(in.ID)); err != nil {
		return nil, err
	}
	state, err := readState[rider.State](text)
	if err != nil {
		return nil, err
	}
	view := rider.NewView(state)
	if httpapi.Actor(ctx).Role == domain.Support { // neither name nor position
		return &riderOutput{ETag: httpapi.ETag(view.Version), Token: token, Body: view}, nil
	}
	if err := subjectkeys.OpenRider(ctx, s.Keys, &view); err != nil {
		return nil, Problem(err)
	}
	if lng != nil {
		view.Location = &domain.Point{Lng: *lng, Lat: *lat}
	}
	return &riderOutput{ETag: httpapi.ETag(view.Version), Token: token, Body: view}, nil
}

func (s *Side) riderOffers(ctx context.Context, in *riderInput) (*offersOutput, error) {
	out := &offersOutput{}
	id := string(in.ID)
	token, err := s.read(ctx, in.After, []string{riderModel, orderModel}, func(ctx context.Context, schemas []string) error {
		// The column asked has more riders than those with open offers. The state
		// tells which offers are open.
		rows, err := s.DB.Query(ctx, `SELECT r.eligible, o.state FROM `+schemas[0]+`.riders r
			LEFT JOIN `+schemas[1]+`.orders o ON r.eligible AND o.wave_open AND o.asked @> ARRAY[$1]
			WHERE r.id = $1`, id)
		if err != nil {
			return err
		}
		out.Body.Items = []OfferedOrder{}
		known := false
		var eligible bool
		var text []byte
		_, err = pgx.ForEachRow(rows, []any{&eligible, &text}, func() error {
			known = true
			if text == nil {
				return nil
			}
			state, err := readState[order.State](text)
			if err != nil {
				return err
			}
			if !state.OfferedTo(id) {
				return nil
			}
			for _, o := range state.Offers {
				if o.RiderID == id {
					out.Body.Items = append(out.Body.Items, OfferedOrder{state.ID, state.RestaurantID, state.PickUp.Location, o.DistanceMeters, state.WaveEndsAt})
				}
			}
			return nil
		})
		if err == nil && !known {
			return notFound("rider")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := selfOrOps(httpapi.Actor(ctx), id); err != nil {
		return nil, err
	}
	slices.SortFunc(out.Body.Items, func(a, b OfferedOrder) int { return a.ExpiresAt.Compare(b.ExpiresAt) })
	out.Token = token
	return out, nil
}
