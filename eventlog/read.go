package eventlog

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Range is a range of offsets in one log: From is included and To is not.
type Range struct{ From, To int64 }

// Read reads ranges of logs and calls fn for every record, from one goroutine. The
// records of one partition come in offset order. The logs must have no gaps, which is
// true of aggregate topics, because they are not compacted. Read calls fn also for
// records that are no events; on an aggregate topic, Rule.Take decides about them. It
// returns when all ranges are read, or with the first error of fn, ctx or the brokers.
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

// EndOffsets returns the end offset of each partition of the topics, which is the
// offset of the next record that will be appended. The partition's leader gives it. It
// fails if a topic does not exist.
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

// StartOffsets returns the first offset that each partition still has. It fails if a
// topic does not exist.
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
