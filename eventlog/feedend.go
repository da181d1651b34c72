package eventlog

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// FeedEnd knows about where the log of the bases ends, for tokens of answers. Safe for
// concurrent use.
type FeedEnd struct {
	tp  TopicPartition
	end atomic.Int64
}

// feedEndEvery is the pause between two requests to the brokers. A feed that begins after a
// token may send what was appended so long before the token, and up to the base before that.
const feedEndEvery = 2 * time.Second

// NewFeedEnd returns a FeedEnd that knows nothing until Follow runs. partitions is how many
// topic feed has.
func NewFeedEnd(partitions int32) *FeedEnd { return &FeedEnd{tp: FeedBases(partitions)} }

// Follow asks the brokers from time to time until ctx ends. While they cannot be asked, what
// is known stays: an earlier position in a token only makes a feed send more.
func (f *FeedEnd) Follow(ctx context.Context, client *kgo.Client) {
	tick := time.NewTicker(feedEndEvery)
	defer tick.Stop()
	for {
		bounded, cancel := context.WithTimeout(ctx, endsTimeout)
		ends, err := EndOffsets(bounded, client, f.tp.Topic)
		cancel()
		if err == nil {
			f.end.Store(ends[f.tp])
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Last returns the position of a record in the log of the bases that was appended before
// the call. ok is false if none is known. A nil *FeedEnd knows of none.
func (f *FeedEnd) Last() (at Position, ok bool) {
	if f == nil {
		return at, false
	}
	end := f.end.Load()
	return Position{f.tp, end - 1}, end > 0
}
