package queryside

import (
	"context"
	"errors"
	"math"

	"github.com/jackc/pgx/v5"

	"tomato/domain/restaurant"
	"tomato/httpapi"
)

// restaurantModel names the read model of the restaurants.
const restaurantModel = "restaurants"

type nearbyRestaurantsInput struct {
	queryInput
	around
	Open *bool `query:"open" doc:"Only those that are open, or closed."`
}

type nearbyRestaurant struct {
	restaurant.View
	DistanceMeters int `json:"distanceMeters"`
}

type nearbyRestaurantsOutput struct {
	Token string `header:"Consistency-Token"`
	Body  struct {
		Items []nearbyRestaurant `json:"items"`
	}
}

type restaurantInput struct {
	queryInput
	ID httpapi.ID `path:"id"`
}

type restaurantOutput struct {
	ETag  string `header:"ETag"`
	Token string `header:"Consistency-Token"`
	Body  restaurant.View
}

func (s *Side) restaurantRoutes(api *httpapi.API) {
	httpapi.Register(api, operation("/v1/restaurants/nearby", "getNearbyRestaurants", "Restaurants with their menus, nearest first"), everyone, s.nearbyRestaurants)
	httpapi.Register(api, operation("/v1/restaurants/{id}", "getRestaurant", "One restaurant with its menu", 404), everyone, s.getRestaurant)
}

func (s *Side) nearbyRestaurants(ctx context.Context, in *nearbyRestaurantsInput) (*nearbyRestaurantsOutput, error) {
	out := &nearbyRestaurantsOutput{}
	token, err := s.read(ctx, in.After, []string{restaurantModel}, func(ctx context.Context, schemas []string) error {
		return nearestFirst(func(walk string) error {
			rows, err := s.DB.Query(ctx, `SELECT c.state, c.meters
			FROM (
				SELECT r.id, r.state, r.location <-> ST_MakePoint($1, $2)::geography AS meters
				FROM `+schemas[0]+`.restaurants r
				WHERE r.location && _ST_Expand(ST_MakePoint($1, $2)::geography, $3) AND ($4::boolean IS NULL OR r.open = $4)
				ORDER BY (r.location <-> ST_MakePoint($1, $2)::geography)`+walk+`
				LIMIT $5
			) c
			WHERE c.meters <= $3
			ORDER BY c.meters, c.id`, in.Lng, in.Lat, in.Radius, in.Open, in.Limit)
			if err != nil {
				return err
			}
			out.Body.Items = []nearbyRestaurant{}
			var text []byte
			var meters float64
			_, err = pgx.ForEachRow(rows, []any{&text, &meters}, func() error {
				state, err := readState[restaurant.State](text)
				if err != nil {
					return err
				}
				out.Body.Items = append(out.Body.Items, nearbyRestaurant{restaurant.NewView(state), int(math.Round(meters))})
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

func (s *Side) getRestaurant(ctx context.Context, in *restaurantInput) (*restaurantOutput, error) {
	var text []byte
	token, err := s.read(ctx, in.After, []string{restaurantModel}, func(ctx context.Context, schemas []string) error {
		err := s.DB.QueryRow(ctx, `SELECT state FROM `+schemas[0]+`.restaurants WHERE id = $1`, string(in.ID)).Scan(&text)
		if errors.Is(err, pgx.ErrNoRows) {
			return notFound("restaurant")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	state, err := readState[restaurant.State](text)
	if err != nil {
		return nil, err
	}
	return &restaurantOutput{ETag: httpapi.ETag(state.Version), Token: token, Body: restaurant.NewView(state)}, nil
}
