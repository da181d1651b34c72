package consumer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
)

// This file reads partitions for something that is no consumer, such as the feeds: it has
// no group, no checkpoint and no rows. It shares the tail with the consumers.

const (
	maxFollowedBytes = 16 << 20        // of records that wait for the handler, before reading pauses
	followedLook     = 2 * time.Second // between looks whether the tail still brings what is appended
)

// FollowedRecords are records of one partition, in offset order.
type FollowedRecords struct {
	eventlog.TopicPartition
	Records []*kgo.Record
}

// Follow reads each partition of from, from its offset on, and gives the records to
// handle: each once, those of a partition in order. It calls handle from one goroutine.
// It reads what is appended together with the consumers of the runtime. It returns when
// ctx ends. It returns an error before that if records are missing: the offset that comes
// next is not in the log any more, or the broker has lost records. All other errors are
// logged and waited out.
func (r *Runtime) Follow(ctx context.Context, from map[eventlog.TopicPartition]int64, handle func(FollowedRecords)) error {
	log := r.Log
	if log == nil {
		log = slog.Default()
	}
	client, err := r.Kafka.NewClient(
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchMaxWait(time.Second),
		kgo.FetchMinBytes(1),
		kgo.WithLogger(clientLogger{log}),
	)
	if err != nil {
		return err
	}
	defer func() { closeReading(client, slices.Collect(maps.Keys(from))) }()
	tail, err := r.useTail(clientLogger{log})
	if err != nil {
		return err
	}
	defer r.releaseTail()
	f := &follower{client: client, tail: tail, log: log, most: cmp.Or(r.state.followedBytes, maxFollowedBytes), parts: map[eventlog.TopicPartition]*followedPart{}, wake: make(chan struct{}, 1), space: make(chan struct{}, 1)}
	consume := map[string]map[int32]kgo.Offset{}
	for tp, next := range from {
		f.parts[tp] = &followedPart{f: f, tp: tp, next: next}
		if consume[tp.Topic] == nil {
			consume[tp.Topic] = map[int32]kgo.Offset{}
		}
		consume[tp.Topic][tp.Partition] = kgo.NewOffset().At(next).WithEpoch(-1)
	}
	client.AddConsumePartitions(consume)
	return f.run(ctx, handle)
}

// follower is one call of Follow.
type follower struct {
	client *kgo.Client
	tail   *tail
	log    *slog.Logger
	most   int // bytes in the queue
	parts  map[eventlog.TopicPartition]*followedPart
	wake   chan struct{} // has one element if there may be something to handle
	space  chan struct{} // has one element if the queue may have become shorter

	mu      sync.Mutex // guards all below, and the fields of parts. It may be held while tail.mu is taken, never the other way round
	queue   []FollowedRecords
	bytes   int                // of the queue
	resumes []*followedPart    // which the client has to read again
	poll    context.CancelFunc // ends the poll that is under way
	ended   bool               // nothing joins the tail any more
}

// followedPart is one partition. It is a reader of the tail.
type followedPart struct {
	f      *follower
	tp     eventlog.TopicPartition
	next   int64     // the offset after the last record in the queue
	shared bool      // the tail brings the records, and the client is paused
	seenAt time.Time // when the tail has last brought something, or was found to have nothing to bring
}

func (f *follower) run(ctx context.Context, handle func(FollowedRecords)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var reading sync.WaitGroup
	reading.Go(func() {
		if err := f.read(ctx); err != nil {
			cancel(err)
		}
	})
	reading.Go(func() { f.watch(ctx) })
	defer func() {
		cancel(nil)
		reading.Wait()
		f.leave()
	}()
	for {
		select {
		case <-f.wake:
		case <-ctx.Done():
			return followError(ctx)
		}
		for {
			records, ok := f.dequeue()
			if !ok {
				break
			}
			handle(records)
			if ctx.Err() != nil {
				return followError(ctx)
			}
		}
	}
}

// followError returns why ctx has ended, or nil if its caller has ended it.
func followError(ctx context.Context) error {
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// read polls the follower's own client until ctx ends, or until a record is missing.
func (f *follower) read(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := f.waitForSpace(ctx); err != nil {
			return nil
		}
		pctx, done := context.WithTimeout(ctx, time.Second)
		f.mu.Lock()
		if f.poll = done; len(f.resumes) > 0 {
			done()
		}
		f.mu.Unlock()
		fetches := f.client.PollRecords(pctx, 0)
		done()
		if ctx.Err() != nil {
			return nil
		}
		var failed error
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			var lost *kgo.ErrDataLoss
			switch err := p.Err; {
			case err == nil, errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
			case errors.Is(err, kerr.OffsetOutOfRange), errors.Is(err, kgo.ErrClientClosed), errors.As(err, &lost):
				failed = fmt.Errorf("reading %s/%d: %w", p.Topic, p.Partition, err)
			default:
				f.log.Warn("what is followed cannot be read now", "topic", p.Topic, "partition", p.Partition, "err", err)
			}
			if part := f.parts[eventlog.TopicPartition{Topic: p.Topic, Partition: p.Partition}]; part != nil && len(p.Records) > 0 {
				part.fetched(p.Records, p.HighWatermark)
			}
		})
		if failed != nil {
			return failed
		}
		f.resume()
	}
	return nil
}

// waitForSpace waits while the queue is full. Its error is that of ctx.
func (f *follower) waitForSpace(ctx context.Context) error {
	for {
		f.mu.Lock()
		full := f.bytes >= f.most
		f.mu.Unlock()
		if !full {
			return ctx.Err()
		}
		select {
		case <-f.space:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// add puts records into the queue. The caller holds mu.
func (p *followedPart) add(recs []*kgo.Record) {
	if recs = from(recs, p.next); len(recs) == 0 {
		return
	}
	p.next = recs[len(recs)-1].Offset + 1
	for _, r := range recs {
		p.f.bytes += len(r.Value)
	}
	p.f.queue = append(p.f.queue, FollowedRecords{p.tp, recs})
	select {
	case p.f.wake <- struct{}{}:
	default:
	}
}

// fetched takes records of the follower's own client. At the end of the log, the tail
// takes over.
func (p *followedPart) fetched(recs []*kgo.Record, end int64) {
	f := p.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if p.shared {
		return // they were polled before the client was paused; the tail brings them too
	}
	p.add(recs)
	if p.next < end || f.ended || !f.tail.join(p, p.tp, p.next) {
		return
	}
	p.shared, p.seenAt = true, time.Now()
	f.client.PauseFetchPartitions(map[string][]int32{p.tp.Topic: {p.tp.Partition}})
}

// enqueueShared implements tailReader.
func (p *followedPart) enqueueShared(recs []*kgo.Record, _ int64) {
	f := p.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if !p.shared {
		return
	}
	p.seenAt = time.Now()
	p.add(recs)
	if f.bytes >= f.most {
		p.stopSharing()
		f.tail.leave(p, p.tp)
	}
}

// readAlone implements tailReader.
func (p *followedPart) readAlone() {
	p.f.mu.Lock()
	defer p.f.mu.Unlock()
	if p.shared {
		p.stopSharing()
		p.f.tail.leave(p, p.tp)
	}
}

// stopSharing makes the client read the partition again, from the record after the last
// one in the queue. The caller holds mu.
func (p *followedPart) stopSharing() {
	p.shared = false
	p.f.resumes = append(p.f.resumes, p)
	if p.f.poll != nil {
		p.f.poll()
	}
}

// resume lets the client read the partitions that the tail does not bring any more.
func (f *follower) resume() {
	f.mu.Lock()
	asked := f.resumes
	f.resumes = nil
	offsets, partitions := map[string]map[int32]kgo.EpochOffset{}, map[string][]int32{}
	for _, p := range asked {
		if offsets[p.tp.Topic] == nil {
			offsets[p.tp.Topic] = map[int32]kgo.EpochOffset{}
		}
		offsets[p.tp.Topic][p.tp.Partition] = kgo.EpochOffset{Epoch: -1, Offset: p.next}
		partitions[p.tp.Topic] = append(partitions[p.tp.Topic], p.tp.Partition)
	}
	f.mu.Unlock()
	if len(asked) > 0 {
		f.client.SetOffsets(offsets)
		f.client.ResumeFetchPartitions(partitions)
	}
}

// dequeue returns the oldest records of the queue.
func (f *follower) dequeue() (FollowedRecords, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.queue) == 0 {
		f.queue = nil
		return FollowedRecords{}, false
	}
	first := f.queue[0]
	f.queue[0] = FollowedRecords{}
	f.queue = f.queue[1:]
	for _, r := range first.Records {
		f.bytes -= len(r.Value)
	}
	select {
	case f.space <- struct{}{}:
	default:
	}
	return first, true
}

// watch looks from time to time whether the tail brings what is appended. A partition in
// which it does not is read by the follower's own client again.
func (f *follower) watch(ctx context.Context) {
	tick := time.NewTicker(followedLook)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		quiet := map[eventlog.TopicPartition]int64{} // with the offset that comes next
		var topics []string
		f.mu.Lock()
		for tp, p := range f.parts {
			if p.shared && time.Since(p.seenAt) >= tailStall {
				quiet[tp] = p.next
			}
		}
		f.mu.Unlock()
		for tp := range quiet {
			if !slices.Contains(topics, tp.Topic) {
				topics = append(topics, tp.Topic)
			}
		}
		if len(quiet) == 0 {
			continue
		}
		asked := time.Now()
		ectx, cancel := context.WithTimeout(ctx, readTimeout)
		ends, err := eventlog.EndOffsets(ectx, f.client, topics...)
		cancel()
		if err != nil {
			continue // the brokers are away: the tail has nothing to bring
		}
		// What was appended just before the ends were read may be on its way.
		select {
		case <-time.After(tailStall):
		case <-ctx.Done():
			return
		}
		for tp, next := range quiet {
			f.mu.Lock()
			p := f.parts[tp]
			stalled := p.shared && p.next == next && ends[tp] > next
			if !stalled && p.seenAt.Before(asked) {
				p.seenAt = asked
			}
			f.mu.Unlock()
			if stalled {
				f.log.Warn("the shared reader brings no records; the partition is read separately", "topic", tp.Topic, "partition", tp.Partition)
				f.tail.giveUp(tp)
			}
		}
	}
}

// leave takes all partitions out of the tail.
func (f *follower) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
	for tp, p := range f.parts {
		if p.shared {
			p.shared = false
			f.tail.leave(p, tp)
		}
	}
}
