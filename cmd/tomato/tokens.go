package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"tomato/cmd/tomato/settings"
	"tomato/domain"
	"tomato/operations"
)

type tokensCmd struct {
	Revoke tokensRevokeCmd `cmd:"" help:"Refuse the tokens that somebody has, on every instance within seconds. Tokens that are issued later are accepted."`
}

type tokensRevokeCmd struct {
	settings.Tool
	Sub    string `required:"" help:"The sub of the tokens."`
	Reason string `default:"revoked from the command line" help:"Why; it is kept."`
	JSON   bool   `name:"json" help:"As JSON."`
}

func (c tokensRevokeCmd) Run(ctx context.Context) error {
	if !domain.ValidID(c.Sub) {
		return settings.Usage("--sub must be 1 to 64 letters, digits, - and _")
	}
	if r := []rune(c.Reason); len(r) < 1 || len(r) > 500 {
		return settings.Usage("--reason must have 1 to 500 characters")
	}
	if err := c.ResolveDatabase(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, toolLimit)
	defer cancel()
	db, err := pgxpool.New(ctx, c.DatabaseURL)
	if err != nil {
		return err
	}
	defer db.Close()
	made, err := operations.Revoke(ctx, db, c.Sub, operator(), c.Reason)
	if err != nil {
		return fmt.Errorf("it is not known whether the tokens are revoked: %w. A repeat is safe", err)
	}
	if c.JSON {
		return json.NewEncoder(os.Stdout).Encode(made)
	}
	fmt.Printf("the tokens of %s that were issued up to %s are revoked\n", made.Sub, made.RevokedAt.Format(time.RFC3339))
	return nil
}
