package main

import (
	"context"
	"fmt"
	"time"

	"tomato/cmd/tomato/settings"
	"tomato/domain"
	"tomato/eventlog"
	"tomato/httpapi"
)

type brokerCmd struct {
	settings.Dir
	Addr string `default:"127.0.0.1:9092" help:"Where to listen."`
}

func (c brokerCmd) Run(ctx context.Context) error {
	b, err := eventlog.StartBroker(c.BrokerDir(), c.Addr)
	if err != nil {
		return err
	}
	defer b.Close()
	fmt.Println("broker listening on", b.Addr())
	<-ctx.Done()
	return nil
}

type tokenCmd struct {
	settings.Dir
	settings.Signing
	Role       string        `required:"" enum:"customer,restaurant,rider,ops,support" help:"customer, restaurant, rider, ops or support."`
	Sub        string        `required:"" help:"Who: the customer's or rider's id."`
	Restaurant string        `help:"The restaurant's id, for role restaurant."`
	TTL        time.Duration `default:"24h" help:"How long it is valid."`
}

func (c tokenCmd) Run() error {
	switch {
	case !domain.ValidID(c.Sub):
		return settings.Usage("--sub must be 1 to 64 letters, digits, - and _")
	case domain.Role(c.Role) == domain.Restaurant && !domain.ValidID(c.Restaurant):
		return settings.Usage("role restaurant needs --restaurant: 1 to 64 letters, digits, - and _")
	case domain.Role(c.Role) != domain.Restaurant && c.Restaurant != "":
		return settings.Usage("--restaurant is for role restaurant")
	case c.TTL < time.Second:
		return settings.Usage("--ttl must be at least 1s")
	}
	secret, err := c.Secret(c.DataDir)
	if err != nil {
		return err
	}
	token, err := httpapi.AuthConfig{Secrets: []string{secret}, Issuer: c.Issuer, Audience: c.Audience}.MintToken(
		domain.Actor{Sub: c.Sub, Role: domain.Role(c.Role), RestaurantID: c.Restaurant}, c.TTL)
	if err != nil {
		return settings.UsageError{Err: err}
	}
	fmt.Println(token)
	return nil
}
