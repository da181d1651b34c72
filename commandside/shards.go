package commandside

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"tomato/commandside/shard"
	"tomato/domain"
	"tomato/httpapi"
)

type shardsOutput struct {
	Body struct {
		Items []shard.Status `json:"items"`
	}
}

// ShardRoutes shows operators who owns which shard, and how those that are
// served by this instance are doing.
func ShardRoutes(api *httpapi.API, shards *shard.Shards) {
	op := huma.Operation{Method: http.MethodGet, Path: "/v1/ops/shards", OperationID: "getShards", Summary: "Who owns which shard, and how it is doing"}
	httpapi.Register(api, op, []domain.Role{domain.Ops}, func(ctx context.Context, _ *struct{}) (*shardsOutput, error) {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		out := &shardsOutput{}
		out.Body.Items = shards.Status(ctx)
		return out, nil
	})
}
