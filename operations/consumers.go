package operations

import (
	"context"

	"tomato/eventlog/consumer"
	"tomato/queryside"
)

type consumersOutput struct {
	Body struct {
		Items []consumer.ConsumerStatus `json:"items"`
	}
}

func (o *Operations) getConsumers(ctx context.Context, _ *struct{}) (*consumersOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	all, err := o.Consumers(ctx)
	if err != nil {
		return nil, queryside.Problem(err)
	}
	out := &consumersOutput{}
	out.Body.Items = append([]consumer.ConsumerStatus{}, all...)
	return out, nil
}
