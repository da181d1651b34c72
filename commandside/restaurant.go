package commandside

import (
	"context"

	"tomato/commandside/shard"
	"tomato/domain"
	"tomato/domain/restaurant"
	"tomato/eventlog"
	"tomato/httpapi"
)

type restaurantInput struct {
	commandInput
	ID httpapi.ID `path:"id"`
}

type putRestaurantInput struct {
	restaurantInput
	Body struct {
		Name     httpapi.Line `json:"name"`
		Location domain.Point `json:"location"`
		Address  httpapi.Text `json:"address,omitempty"`
	}
}

type menuItemInput struct {
	restaurantInput
	ItemID httpapi.ID `path:"itemId"`
}

type putMenuItemInput struct {
	menuItemInput
	Body struct {
		Name      httpapi.Line `json:"name"`
		Price     price        `json:"price"`
		Available bool         `json:"available"`
	}
}

type price struct {
	Amount   int64  `json:"amount" minimum:"1" maximum:"100000000" doc:"Minor units."`
	Currency string `json:"currency" pattern:"^[A-Z]{3}$" doc:"ISO 4217."`
}

type restaurantOutput struct {
	Status int
	ETag   string `header:"ETag"`
	Token  string `header:"Consistency-Token"`
	Body   restaurant.View
}

func (s *Side) restaurantRoutes(api *httpapi.API) {
	roles := []domain.Role{domain.Ops, domain.Restaurant}
	httpapi.Register(api, putOperation("/v1/restaurants/{id}", "putRestaurant", "Register a restaurant, or change what is known of it"), roles,
		func(ctx context.Context, in *putRestaurantInput) (*restaurantOutput, error) {
			return s.restaurantCommand(ctx, in.restaurantInput, in.Body, restaurant.Put{RestaurantID: string(in.ID),
				Name: string(in.Body.Name), Location: in.Body.Location, Address: string(in.Body.Address)})
		})
	httpapi.Register(api, operation("POST", "/v1/restaurants/{id}/open", "openRestaurant", "Orders are taken"), roles,
		func(ctx context.Context, in *restaurantInput) (*restaurantOutput, error) {
			return s.restaurantCommand(ctx, *in, nil, restaurant.Open{})
		})
	httpapi.Register(api, operation("POST", "/v1/restaurants/{id}/close", "closeRestaurant", "No more orders are taken"), roles,
		func(ctx context.Context, in *restaurantInput) (*restaurantOutput, error) {
			return s.restaurantCommand(ctx, *in, nil, restaurant.Close{})
		})
	httpapi.Register(api, putOperation("/v1/restaurants/{id}/menu/{itemId}", "putMenuItem", "Put an item on the menu, or change it"), roles,
		func(ctx context.Context, in *putMenuItemInput) (*restaurantOutput, error) {
			b := in.Body
			return s.restaurantCommand(ctx, in.restaurantInput, b, restaurant.SetMenuItem{Item: restaurant.MenuItem{ItemID: string(in.ItemID),
				Name: string(b.Name), Price: domain.Money{Amount: b.Price.Amount, Currency: b.Price.Currency}, Available: b.Available}})
		})
	httpapi.Register(api, operation("DELETE", "/v1/restaurants/{id}/menu/{itemId}", "deleteMenuItem", "Take an item off the menu"), roles,
		func(ctx context.Context, in *menuItemInput) (*restaurantOutput, error) {
			return s.restaurantCommand(ctx, in.restaurantInput, nil, restaurant.RemoveMenuItem{ItemID: string(in.ItemID)})
		})
}

func (s *Side) restaurantCommand(ctx context.Context, in restaurantInput, body any, c domain.Command) (*restaurantOutput, error) {
	res, err := s.execute(ctx, in.commandInput, body, shard.Request{Topic: eventlog.Restaurants, ID: string(in.ID), Command: c})
	if err != nil {
		return nil, err
	}
	return &restaurantOutput{Status: res.Status, ETag: httpapi.ETag(res.Restaurant.Version), Token: s.token(&res), Body: restaurant.NewView(res.Restaurant)}, nil
}
