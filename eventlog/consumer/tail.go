package consumer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
)

// This file lets the consumers of one runtime share the reading of what is appended.
// Most of the time all of them are at the ends of the same logs. If each read for
// itself, every record would be fetched as often as there are consumers, and a fetch
// costs the broker about as much as an append.
//
// A worker begins with its session's own client. When it has reached the end of its
// partition, and the tail follows the partition and is not further than the worker, it
// joins the tail and its own fetching pauses. It leaves the tail, and reads for itself
// again from where it is, if it cannot keep up, if the tail has an error, or if the
// tail brings it nothing although the log has grown. So no consumer holds up another,
// and the tail need not be trusted with more than speed.

const (
	tailIdle  = time.Minute     // after which a partition that no reader has joined is no longer followed
	tailStall = 2 * time.Second // after which a reader does not wait for the tail any longer
)

// tailReader takes the records of a partition that the tail reads: a worker, or a partition
// that is followed without a consumer (follow.go).
type tailReader interface {
	// enqueueShared takes records that the tail has read. It returns at once.
	enqueueShared(recs []*kgo.Record, end int64)
	// readAlone says that the tail brings no more records of the partition.
	readAlone()
}

// tail reads the ends of partitions for the readers that have joined. Safe for
// concurrent use.
type tail struct {
	client *kgo.Client
	stop   context.CancelFunc
	done   chan struct{}

	mu       sync.Mutex // guards followed. It may be locked while a reader's mu is held, never the other way round
	followed map[eventlog.TopicPartition]*followed
}

// followed is a partition that the tail reads.
type followed struct {
	live    bool  // a record has arrived
	next    int64 // the offset after the last record that was given to the readers, or where reading begins
	readers []tailReader
	usedAt  time.Time // when the last reader left or tried to join
}

func newTail(cfg eventlog.Config, log clientLogger) (*tail, error) {
	client, err := cfg.NewClient(
		kgo.FetchMaxBytes(8<<20),
		kgo.FetchMaxPartitionBytes(1<<20),
		kgo.FetchMaxWait(500*time.Millisecond),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.WithLogger(log),
	)
	if err != nil {
		return nil, fmt.Errorf("shared reader: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t := &tail{client: client, stop: cancel, done: make(chan struct{}), followed: map[eventlog.TopicPartition]*followed{}}
	go t.run(ctx)
	return t, nil
}

// close ends the reading. No reader may have joined any more.
func (t *tail) close() {
	t.stop()
	<-t.done
	closeReading(t.client, slices.Collect(maps.Keys(t.followed)))
}

// closeReading closes a client that reads these partitions and perhaps others. It takes them
// out before: the client would otherwise assign a partition that was added a moment ago
// during Close, and the first fetch would race with the end of the client's fetch session.
func closeReading(client *kgo.Client, all []eventlog.TopicPartition) {
	partitions := map[string][]int32{}
	for _, tp := range all {
		partitions[tp.Topic] = append(partitions[tp.Topic], tp.Partition)
	}
	client.RemoveConsumePartitions(partitions)
	client.Close()
}

// useTail returns the runtime's tail for one call of Run or Follow, which must call
// releaseTail in the end.
func (r *Runtime) useTail(log clientLogger) (*tail, error) {
	s := &r.state
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tail == nil {
		t, err := newTail(r.Kafka, log)
		if err != nil {
			return nil, err
		}
		s.tail = t
	}
	s.tailUses++
	return s.tail, nil
}

func (r *Runtime) releaseTail() {
	s := &r.state
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tailUses--; s.tailUses == 0 {
		s.tail.close()
		s.tail = nil
	}
}

// join makes the tail give r the records of the partition from now on. It returns false
// if the tail could not give it the record at offset next, because it does not follow
// the partition yet, or is further. The caller holds r's mu.
func (t *tail) join(r tailReader, tp eventlog.TopicPartition, next int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.followed[tp]
	if f == nil {
		f = &followed{next: next}
		t.followed[tp] = f
		t.client.AddConsumePartitions(map[string]map[int32]kgo.Offset{tp.Topic: {tp.Partition: kgo.NewOffset().At(next).WithEpoch(-1)}})
	}
	f.usedAt = time.Now()
	if !f.live || f.next > next {
		return false
	}
	f.readers = append(f.readers, r)
	return true
}

// leave takes r out. A record that is just being given may still reach it.
func (t *tail) leave(r tailReader, tp eventlog.TopicPartition) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.followed[tp]; f != nil {
		f.readers = slices.DeleteFunc(slices.Clone(f.readers), func(o tailReader) bool { return o == r })
		f.usedAt = time.Now()
	}
}

func (t *tail) run(ctx context.Context) {
	defer close(t.done)
	swept := time.Now()
	for ctx.Err() == nil {
		pctx, done := context.WithTimeout(ctx, time.Second)
		fetches := t.client.PollRecords(pctx, 0)
		done()
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			t.fetched(eventlog.TopicPartition{Topic: p.Topic, Partition: p.Partition}, p.FetchPartition)
		})
		if time.Since(swept) > time.Second {
			swept = time.Now()
			t.sweep(swept)
		}
	}
}

// fetched gives the records of one partition to its readers. It never waits for them.
func (t *tail) fetched(tp eventlog.TopicPartition, p kgo.FetchPartition) {
	t.mu.Lock()
	f := t.followed[tp]
	if f == nil {
		t.mu.Unlock()
		return
	}
	if p.Err != nil && !errors.Is(p.Err, context.Canceled) && !errors.Is(p.Err, context.DeadlineExceeded) {
		t.mu.Unlock()
		t.giveUp(tp) // each worker reads on with its own client, and handles the error if it meets it, too
		return
	}
	// Records before next were polled before the partition was dropped and followed
	// again. If they counted, a worker could join before the place where reading began.
	recs := from(p.Records, f.next)
	if len(recs) == 0 {
		t.mu.Unlock()
		return
	}
	f.live, f.next = true, recs[len(recs)-1].Offset+1
	readers := f.readers
	t.mu.Unlock()
	for _, r := range readers {
		r.enqueueShared(recs, p.HighWatermark)
	}
}

// from returns the records at offset next and after it.
func from(recs []*kgo.Record, next int64) []*kgo.Record {
	for len(recs) > 0 && recs[0].Offset < next {
		recs = recs[1:]
	}
	return recs
}

// giveUp makes all readers of a partition read for themselves. They join again only when
// the tail has brought a record that was appended later.
func (t *tail) giveUp(tp eventlog.TopicPartition) {
	t.mu.Lock()
	f := t.followed[tp]
	if f == nil {
		t.mu.Unlock()
		return
	}
	t.drop(tp)
	readers := f.readers
	t.mu.Unlock()
	for _, r := range readers {
		r.readAlone()
	}
}

// sweep drops the partitions that no reader has used for tailIdle.
func (t *tail) sweep(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for tp, f := range t.followed {
		if len(f.readers) == 0 && now.Sub(f.usedAt) > tailIdle {
			t.drop(tp)
		}
	}
}

// drop ends the reading of a partition. The caller holds mu.
func (t *tail) drop(tp eventlog.TopicPartition) {
	delete(t.followed, tp)
	t.client.RemoveConsumePartitions(map[string][]int32{tp.Topic: {tp.Partition}})
}

// share lets the tail read for the worker, if the worker is at the end of the log and the
// tail is not further. The session calls it after it has fetched records.
func (w *worker) share(end int64) {
	t := w.g.tail
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fetched < end || w.shared || w.fetchPaused || w.left || !t.join(w, w.cp.TopicPartition, w.fetched) {
		return
	}
	w.shared, w.offCursor = true, true
	w.pauseFetching()
}

// enqueueShared is enqueue for records that the tail has read.
func (w *worker) enqueueShared(recs []*kgo.Record, end int64) {
	w.mu.Lock()
	if !w.shared {
		w.mu.Unlock()
		return
	}
	w.add(from(recs, w.fetched), end) // the worker has those before from its own client
	// A worker that is full reads on from here when its queue is short again.
	if w.full() {
		w.shared, w.fetchPaused = false, true
		w.g.tail.leave(w, w.cp.TopicPartition)
	}
	w.mu.Unlock()
	w.wakeUp()
}

// readAlone makes the worker's own client read the partition again, if the tail has read
// it until now.
func (w *worker) readAlone() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.shared {
		return
	}
	w.shared = false
	w.g.tail.leave(w, w.cp.TopicPartition)
	w.g.resume(w)
}

// noticeStall makes the tail give the partition up if it has brought the worker nothing
// for tailStall although the log has grown to end.
func (w *worker) noticeStall(end int64, now time.Time) {
	w.mu.Lock()
	stalled := false
	switch {
	case !w.shared || w.fetched >= end:
		w.stalledAt = time.Time{}
	case w.stalledAt.IsZero() || w.stalledNext != w.fetched:
		w.stalledAt, w.stalledNext = now, w.fetched
	default:
		stalled = now.Sub(w.stalledAt) >= tailStall
	}
	w.mu.Unlock()
	if stalled {
		w.log.Warn("the shared reader brings no records; the partition is read separately")
		w.g.tail.giveUp(w.cp.TopicPartition)
	}
}

// leaveTail is called when the worker ends.
func (w *worker) leaveTail() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.left = true
	if w.shared {
		w.shared = false
		w.g.tail.leave(w, w.cp.TopicPartition)
	}
}
