package eventlog

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Range is a stretch of one log: From inclusive, To exclusive.
type Range struct{ From, To int64 }

// Read reads stretches of logs that have no gaps (aggregate topics: neither
// compaction nor transactions) and calls fn for every record, those of one
// partition in offset order, from one goroutine. It returns when all are read,
// or with the first error of fn or ctx. A record that is no event is given to fn
// like any other: of an aggregate topic, Rule.Take says what becomes of it.
func Read(ctx context.Context, cfg Config, ranges map[TopicPartition]Range, fn func(*Event) error) error {
	offsets := map[string]map[int32]kgo.Offset{}
	left := 0
	for tp, r := range ranges {
		if r.To <= r.From {
			continue
		}
		if offsets[tp.Topic] == nil {
			offsets[tp.Topic] = map[int32]kgo.Offset{}
		}
		offsets[tp.Topic][tp.Partition] = kgo.NewOffset().At(r.From)
		left++
	}
	if left == 0 {
		return nil
	}
	client, err := cfg.NewClient(kgo.ConsumePartitions(offsets), kgo.FetchMaxWait(100*time.Millisecond),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()))
	if err != nil {
		return err
	}
	defer client.Close()
	done := make(map[TopicPartition]bool, left)
	for left > 0 {
		fetches := client.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			return err
		}
		for _, fe := range fetches.Errors() {
			return fmt.Errorf("reading %s/%d: %w", fe.Topic, fe.Partition, fe.Err)
		}
		for iter := fetches.RecordIter(); !iter.Done(); {
			r := iter.Next()
			tp := TopicPartition{r.Topic, r.Partition}
			if done[tp] {
				continue
			}
			to := ranges[tp].To
			if r.Offset < to {
				e, _ := ParseRecord(r) // e.Fault has the error
				if err := fn(&e); err != nil {
					return err
				}
			}
			if r.Offset >= to-1 {
				done[tp] = true
				left--
			}
		}
	}
	return nil
}

// EndOffsets returns the end offset (next to be written) of each partition of
// the topics, as the partition's leader sees it.
func EndOffsets(ctx context.Context, client *kgo.Client, topics ...string) (map[TopicPartition]int64, error) {
	return listOffsets(ctx, client, (*kadm.Client).ListEndOffsets, topics)
}

// EndToken returns the token that a reader must have passed to have read all that
// is on the topics at the time of the call, as each partition's leader sees it.
// The leader may be one that is deposed and does not know it, so the token is no
// proof that nothing was acknowledged behind it.
func EndToken(ctx context.Context, client *kgo.Client, topics ...string) (Token, error) {
	ends, err := EndOffsets(ctx, client, topics...)
	if err != nil {
		return nil, err
	}
	return TokenBefore(ends), nil
}

// TokenBefore returns the token that a reader must have passed to have read
// everything before these end offsets: the last record of each partition. A
// partition without records is left out.
func TokenBefore(ends map[TopicPartition]int64) Token {
	token := make(Token, len(ends))
	for tp, end := range ends {
		if end > 0 {
			token[tp] = end - 1
		}
	}
	return token
}

// StartOffsets returns the first offset that each partition still has.
func StartOffsets(ctx context.Context, client *kgo.Client, topics ...string) (map[TopicPartition]int64, error) {
	return listOffsets(ctx, client, (*kadm.Client).ListStartOffsets, topics)
}

func listOffsets(ctx context.Context, client *kgo.Client, list func(*kadm.Client, context.Context, ...string) (kadm.ListedOffsets, error), topics []string) (map[TopicPartition]int64, error) {
	listed, err := list(kadm.NewClient(client), ctx, topics...)
	if err != nil {
		return nil, err
	}
	if err := listed.Error(); err != nil {
		return nil, err
	}
	offsets := map[TopicPartition]int64{}
	listed.Each(func(o kadm.ListedOffset) { offsets[TopicPartition{o.Topic, o.Partition}] = o.Offset })
	for _, t := range topics {
		if _, ok := offsets[TopicPartition{t, 0}]; !ok {
			return nil, fmt.Errorf("topic %s does not exist: run `tomato topics ensure`", t)
		}
	}
	return offsets, nil
}
