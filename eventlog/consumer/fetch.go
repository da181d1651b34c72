package consumer

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
)

// fetchAt reads the record at one position, and hands it and what came along
// with it to each. It fails with errGone when the record is not there any more.
func fetchAt(ctx context.Context, cfg eventlog.Config, tp eventlog.TopicPartition, offset int64, each func(*kgo.Record)) error {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	cl, err := cfg.NewClient(
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{tp.Topic: {tp.Partition: kgo.NewOffset().At(offset)}}),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchMaxPartitionBytes(256<<10),
	)
	if err != nil {
		return err
	}
	defer cl.Close()
	starts, err := kadm.NewClient(cl).ListStartOffsets(ctx, tp.Topic)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return err
	}
	if start, ok := starts.Lookup(tp.Topic, tp.Partition); !ok || offset < start.Offset {
		return errGone
	}
	for {
		fetches := cl.PollFetches(ctx)
		for _, e := range fetches.Errors() {
			return e.Err
		}
		found, past := false, false
		fetches.EachRecord(func(r *kgo.Record) {
			found = found || r.Offset == offset
			past = past || r.Offset > offset
			if r.Offset >= offset {
				each(r)
			}
		})
		if found {
			return nil
		}
		if past {
			return errGone
		}
	}
}

var errGone = errors.New("record is not there any more")

// newBackoff doubles from first to most, with jitter.
func newBackoff(first, most time.Duration) *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.Multiplier, b.RandomizationFactor = first, most, 2, 0.5
	b.Reset()
	return b
}

// sleep waits for d and says whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// quietLogger passes the client's errors on as warnings: it retries what it can
// by itself, and what it cannot shows in Status.
type quietLogger struct{ log *slog.Logger }

func (quietLogger) Level() kgo.LogLevel { return kgo.LogLevelError }
func (l quietLogger) Log(_ kgo.LogLevel, msg string, kv ...any) {
	l.log.Warn("kafka client: "+msg, kv...)
}
