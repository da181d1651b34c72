package parked

import (
	"context"
	"errors"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
)

const readTimeout = 5 * time.Second // of one read of a record

// ReadRecord reads the record at offset of the partition tp, from there or, where
// the topic no longer has it, from its copy. It fails with ErrGone when neither
// topic has it. Later records that come along with it are given to also, which
// may be nil.
func ReadRecord(ctx context.Context, cfg eventlog.Config, tp eventlog.TopicPartition, offset int64, at CopyAt, also func(*kgo.Record)) (*kgo.Record, error) {
	var rec *kgo.Record
	err := readAt(ctx, cfg, tp, offset, func(r *kgo.Record) {
		if r.Offset == offset {
			rec = r
		} else if also != nil {
			also(r)
		}
	})
	if !errors.Is(err, ErrGone) || at.Offset < 0 {
		return rec, err
	}
	var found *kgo.Record
	err = readAt(ctx, cfg, eventlog.TopicPartition{Topic: at.Topic, Partition: tp.Partition}, at.Offset, func(r *kgo.Record) {
		if r.Offset == at.Offset {
			found = r
		}
	})
	if err != nil {
		return nil, err
	}
	if rec = original(found, tp, offset); rec == nil {
		return nil, ErrGone
	}
	return rec, nil
}

// readAt reads the record at one position, and gives it and the records that came
// along after it to each. It fails with ErrGone when the topic does not have the
// record any more.
func readAt(ctx context.Context, cfg eventlog.Config, tp eventlog.TopicPartition, offset int64, each func(*kgo.Record)) error {
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
		return ErrGone
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
			return ErrGone // compacted or deleted
		}
	}
}
