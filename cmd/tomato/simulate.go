package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"tomato/cmd/tomato/settings"
	"tomato/cmd/tomato/simulate"
)

type simulateCmd struct {
	settings.Dir
	settings.Signing
	Orders  int           `help:"How many; default 100, with a dataset all of it."`
	Riders  int           `help:"How many; default 50, with a dataset those in it."`
	Rate    float64       `help:"Orders placed per second at most; 0: as fast as the system follows."`
	Dataset string        `type:"existingfile" help:"Replay these deliveries (CSV)."`
	URL     string        `help:"Of a running serve; several separated by commas. Default: the one with this data directory."`
	Seed    int64         `default:"1" help:"Same seed, same plans."`
	Timeout time.Duration `default:"2m" help:"Longest time without progress."`
	JSON    bool          `name:"json" help:"The report as JSON."`
}

func (c simulateCmd) Run(ctx context.Context) error {
	secret, err := c.Secret(c.DataDir)
	if err != nil {
		return err
	}
	if c.URL == "" {
		if r, err := settings.ReadRunning(c.DataDir); err == nil {
			c.URL = r.URL
		}
	}
	report, err := simulate.Run(ctx, simulate.Options{Orders: c.Orders, Riders: c.Riders, Rate: c.Rate, Dataset: c.Dataset, URL: c.URL,
		JWTSecret: secret, JWTIssuer: c.Issuer, JWTAudience: c.Audience, Seed: c.Seed, Timeout: c.Timeout, JSON: c.JSON, Out: os.Stdout})
	if err != nil {
		return err
	}
	if n := report.Broken(); n > 0 {
		return fmt.Errorf("%d broken promises", n)
	}
	return nil
}
