package operations

import (
	"context"
	"time"

	"tomato/commandside/shard"
)

type shardsOutput struct {
	Body struct {
		Items []shard.Status `json:"items"`
	}
}

// getShards says who owns which shard, and how those that this instance owns are
// doing.
func (o *Operations) getShards(ctx context.Context, _ *struct{}) (*shardsOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	out := &shardsOutput{}
	out.Body.Items = o.Shards.Status(ctx)
	return out, nil
}
