package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"tomato/cmd/tomato/server"
	"tomato/cmd/tomato/settings"
	"tomato/domain"
	"tomato/eventlog"
	"tomato/httpapi"
	"tomato/migrations"
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

type topicsCmd struct {
	Ensure   topicsEnsureCmd   `cmd:"" help:"Create the topics that are missing and verify the others."`
	Describe topicsDescribeCmd `cmd:"" help:"Show the topics and what is wrong with them."`
}

type topicsEnsureCmd struct{ settings.Tool }

func (c topicsEnsureCmd) Run(ctx context.Context) error {
	return withAdmin(c.Tool, func(adm *kadm.Client) error {
		if err := eventlog.Ensure(ctx, adm, server.Layout(c.Kafka)); err != nil {
			return err
		}
		fmt.Println("all topics are there and as they must be")
		return nil
	})
}

type topicsDescribeCmd struct {
	settings.Tool
	JSON bool `name:"json" help:"As JSON."`
}

func (c topicsDescribeCmd) Run(ctx context.Context) error {
	return withAdmin(c.Tool, func(adm *kadm.Client) error {
		rows, err := eventlog.Describe(ctx, adm, server.Layout(c.Kafka))
		if err != nil {
			return err
		}
		if c.JSON {
			return json.NewEncoder(os.Stdout).Encode(rows)
		}
		w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
		fmt.Fprintln(w, "TOPIC\tPARTITIONS\tREPLICATION\tPOLICY\tRETENTION\tRECORDS\tPROBLEMS")
		for _, r := range rows {
			keep := "for ever"
			if r.RetentionMS >= 0 {
				keep = (time.Duration(r.RetentionMS) * time.Millisecond).String()
			}
			if r.Missing {
				keep = "missing"
			}
			fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\t%d\t%v\n", r.Topic, r.Partitions, r.Replication, r.CleanupPolicy, keep, r.Records, r.Problems)
		}
		return w.Flush()
	})
}

func withAdmin(f settings.Tool, do func(*kadm.Client) error) error {
	if len(f.Brokers) == 0 {
		if err := f.Resolve(); err != nil {
			return err
		}
	}
	client, err := f.Kafka.Config("tomato-tool").NewClient()
	if err != nil {
		return settings.UsageError{Err: err}
	}
	defer client.Close()
	return do(kadm.NewClient(client))
}

type tokenCmd struct {
	settings.Dir
	JWTSecret  string        `env:"TOMATO_JWT_SECRET" help:"Unset: the development secret in the data directory."`
	Issuer     string        `env:"TOMATO_JWT_ISSUER" help:"iss of the token."`
	Audience   string        `env:"TOMATO_JWT_AUDIENCE" help:"aud of the token."`
	Role       string        `required:"" enum:"customer,restaurant,rider,ops" help:"customer, restaurant, rider or ops."`
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
	secret, err := settings.TokenSecret(c.JWTSecret, c.DataDir)
	if err != nil {
		return err
	}
	token, err := httpapi.AuthConfig{Secret: secret, Issuer: c.Issuer, Audience: c.Audience}.MintToken(
		domain.Actor{Sub: c.Sub, Role: domain.Role(c.Role), RestaurantID: c.Restaurant}, c.TTL)
	if err != nil {
		return settings.UsageError{Err: err}
	}
	fmt.Println(token)
	return nil
}

type migrateCmd struct{ settings.Tool }

func (c migrateCmd) Run(ctx context.Context) error {
	if c.DatabaseURL == "" {
		if err := c.ResolveDatabase(); err != nil {
			return err
		}
	}
	if err := c.Database.Check(); err != nil {
		return err
	}
	if err := migrations.Core(ctx, c.DatabaseURL); err != nil {
		return err
	}
	fmt.Println("the database is up to date")
	return nil
}
