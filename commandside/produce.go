package commandside

import (
	"context"

	"github.com/twmb/franz-go/pkg/kgo"
)

// produce appends records to topics that are not aggregate topics. It returns when all
// records are acknowledged, or with the first error, or when ctx ends. After an error
// the records may still be appended. It does not use ProduceSync, because a client does
// not give up a batch that the broker may have stored. While the broker is unavailable,
// ProduceSync may therefore return long after ctx has ended.
func (s *Side) produce(ctx context.Context, records ...*kgo.Record) error {
	done := make(chan error, len(records))
	for _, r := range records {
		s.Producer.Produce(ctx, r, func(_ *kgo.Record, err error) { done <- err })
	}
	for range records {
		select {
		case err := <-done:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
