package operations

import (
	"context"
	"time"

	"tomato/commandside/shard"
)

type shardsOutput struct {
	Body struct {
		Items      []shard.Status    `json:"items"`
		EventEpoch shard.EpochStatus `json:"eventEpoch" doc:"Up to which epoch this instance writes events."`
	}
}

// getShards says who owns which shard, and how those that this instance owns are
// doing.
func (o *Operations) getShards(ctx context.Context, _ *struct{}) (*shardsOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	out := &shardsOutput{}
	out.Body.Items, out.Body.EventEpoch = o.Shards.Status(ctx), o.Shards.Epoch()
	return out, nil
}
