package consumer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
)

type session struct {
	g    *group
	fail func(error) // ends the session
}

// session runs one membership of the Kafka group. It returns when ctx ends, or when
// something fails after which everything must be loaded from the checkpoints again.
func (g *group) session(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &session{g: g, fail: func(err error) { cancel(err) }}
	cl, err := g.r.Kafka.NewClient(
		kgo.ConsumerGroup(g.c.Group()),
		kgo.ConsumeTopics(g.c.Topics...),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.DisableAutoCommit(),
		// A rebalance waits until polled records are in the queues of their workers.
		// Otherwise a record that was polled under an old assignment could reach the
		// worker of the next assignment, which has not seen the records before it.
		kgo.BlockRebalanceOnPoll(),
		kgo.HeartbeatInterval(500*time.Millisecond),
		kgo.SessionTimeout(6*time.Second),
		kgo.RebalanceTimeout(15*time.Second),
		// The checkpoint alone decides where reading begins. An offset out of range
		// is an error: to begin at either end of the log instead would skip or
		// repeat events.
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.AdjustFetchOffsetsFn(s.assigned),
		kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, m map[string][]int32) { s.release(m, drainTimeout) }),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, m map[string][]int32) { s.release(m, 0) }),
		kgo.FetchMaxBytes(8<<20),
		kgo.FetchMaxPartitionBytes(1<<20),
		kgo.FetchMaxWait(500*time.Millisecond),
		kgo.WithLogger(clientLogger{g.log}),
	)
	if err != nil {
		return err
	}
	g.mu.Lock()
	g.client, g.resumes, g.lost = cl, nil, map[eventlog.TopicPartition]*eventlog.LostBeginning{}
	g.mu.Unlock()

	var wg sync.WaitGroup
	wg.Go(func() { s.upkeep(ctx) })
	if a := g.r.state.abandon; a != nil {
		wg.Go(func() {
			select {
			case <-a:
				cancel(errors.New("abandoned"))
			case <-ctx.Done():
			}
		})
	}
	for ctx.Err() == nil {
		g.heartbeat.Store(time.Now().UnixNano())
		pctx, done := context.WithTimeout(ctx, time.Second)
		g.mu.Lock()
		if g.wake = done; len(g.resumes) > 0 {
			done()
		}
		g.mu.Unlock()
		fetches := cl.PollRecords(pctx, 0)
		done()
		fetches.EachTopic(func(t kgo.FetchTopic) {
			t.EachPartition(func(p kgo.FetchPartition) { s.fetched(t.Topic, p) })
		})
		s.resumeFetching()
		cl.AllowRebalance()
		g.clearErrorOnceJoined(cl)
	}
	bound := drainTimeout
	if g.abandoned() {
		bound = 0
	}
	s.releaseAll(bound)
	wg.Wait()
	cl.CloseAllowingRebalance()
	g.mu.Lock()
	g.client = nil
	g.mu.Unlock()
	return context.Cause(ctx)
}

// fetched puts the polled records of one partition into the queue of its worker.
func (s *session) fetched(topic string, p kgo.FetchPartition) {
	var groupErr *kgo.ErrGroupSession
	switch err := p.Err; {
	case err == nil, errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, kgo.ErrClientClosed):
	case errors.As(err, &groupErr):
		s.g.setError(err) // the client joins again by itself
		s.g.log.Warn("group session", "err", err)
	case kerr.IsRetriable(err) && !errors.Is(err, kerr.OffsetOutOfRange):
		s.g.log.Warn("fetch", "topic", topic, "partition", p.Partition, "err", err)
	default:
		s.fail(fmt.Errorf("fetch %s/%d: %w", topic, p.Partition, err))
		return
	}
	s.g.mu.Lock()
	w := s.g.workers[eventlog.TopicPartition{Topic: topic, Partition: p.Partition}]
	s.g.mu.Unlock()
	if w != nil {
		w.enqueue(p.Records, p.HighWatermark)
		if len(p.Records) > 0 {
			w.share(p.HighWatermark)
		}
	}
}

// release stops the workers of partitions that are no longer assigned. With a bound
// of 0 nothing more is written.
func (s *session) release(m map[string][]int32, bound time.Duration) {
	var tps []eventlog.TopicPartition
	for t, ps := range m {
		for _, p := range ps {
			tps = append(tps, eventlog.TopicPartition{Topic: t, Partition: p})
		}
	}
	s.stop(tps, bound)
}

// releaseAll stops all workers.
func (s *session) releaseAll(bound time.Duration) {
	s.g.mu.Lock()
	var tps []eventlog.TopicPartition
	for tp := range s.g.workers {
		tps = append(tps, tp)
	}
	s.g.mu.Unlock()
	s.stop(tps, bound)
}

// stop stops the workers of tps, and returns when they have ended or the bound is over.
func (s *session) stop(tps []eventlog.TopicPartition, bound time.Duration) {
	var ws []*worker
	s.g.mu.Lock()
	for _, tp := range tps {
		if w := s.g.workers[tp]; w != nil {
			ws = append(ws, w)
			delete(s.g.workers, tp)
		}
		delete(s.g.lost, tp)
	}
	s.g.mu.Unlock()
	var wg sync.WaitGroup
	for _, w := range ws {
		wg.Go(func() { w.stop(bound) })
	}
	wg.Wait()
}
