package main

import (
	"context"
	"os"

	"tomato/cmd/tomato/server"
)

type serveCmd struct{ server.Config }

// Run serves until ctx ends, then drains.
func (c serveCmd) Run(ctx context.Context) error {
	s, err := server.Start(ctx, c.Config, server.Options{})
	if err != nil {
		return err
	}
	s.Greet(os.Stdout)
	return s.Run(ctx)
}
