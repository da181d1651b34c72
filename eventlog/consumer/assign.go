package consumer

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
	"tomato/eventlog/consumer/parked"
)

// assigned takes the checkpoints of newly assigned partitions, starts their workers,
// and returns where reading goes on. While Postgres is unavailable it tries again,
// until the assignment ends.
func (s *session) assigned(ctx context.Context, offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	var tps []eventlog.TopicPartition
	for t, ps := range offsets {
		for p := range ps {
			tps = append(tps, eventlog.TopicPartition{Topic: t, Partition: p})
		}
	}
	if len(tps) == 0 {
		return offsets, nil
	}
	// A partition may come back before its former worker has ended. The two must not
	// run at the same time.
	s.stop(tps, drainTimeout)
	g := s.g
	wait := newBackoff(50*time.Millisecond, 2*time.Second)
	var workers []*worker
	var lost []*eventlog.LostBeginning
	for {
		var err error
		if workers, lost, err = g.takePartitions(ctx, s, tps); err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		g.mu.Lock()
		g.takeErr = err
		g.mu.Unlock()
		g.log.Warn("cannot take checkpoints yet", "err", err)
		if !sleep(ctx, wait.NextBackOff()) {
			return nil, ctx.Err()
		}
	}
	out := map[string]map[int32]kgo.Offset{}
	resume := map[string][]int32{}
	g.mu.Lock()
	cl := g.client
	g.err, g.takeErr = nil, nil
	for _, l := range lost { // the other partitions are read
		g.lost[l.TopicPartition] = l
		g.log.Error("partition not read", "err", l)
	}
	for _, w := range workers {
		if out[w.cp.Topic] == nil {
			out[w.cp.Topic] = map[int32]kgo.Offset{}
		}
		out[w.cp.Topic][w.cp.Partition] = kgo.NewOffset().At(w.read.Next).WithEpoch(-1)
		resume[w.cp.Topic] = append(resume[w.cp.Topic], w.cp.Partition)
		g.workers[w.cp.TopicPartition] = w
	}
	g.mu.Unlock()
	if cl != nil {
		cl.ResumeFetchPartitions(resume) // a former worker may have paused them
	}
	for _, w := range workers {
		w.log.Info("partition taken", "position", w.read.Next, "epoch", w.cp.Epoch, "parked", w.parked.Len())
		g.r.Positions.took(w.cp.Consumer, w.cp.Generation, w.cp.TopicPartition, w.pos.Next)
		go w.run()
	}
	return out, nil
}

// takePartitions takes the checkpoints of tps, and returns their workers, which do
// not run yet. If the log of a partition no longer has records that the checkpoint has
// not passed, the partition gets no worker and is returned in lost.
func (g *group) takePartitions(ctx context.Context, s *session, tps []eventlog.TopicPartition) (_ []*worker, lost []*eventlog.LostBeginning, _ error) {
	ctx, cancel := context.WithTimeout(ctx, g.r.stoppedAfter(takeTimeout))
	defer cancel()
	starts, err := g.adm.ListStartOffsets(ctx, g.c.Topics...)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list start offsets: %w", err)
	}
	first := make(map[eventlog.TopicPartition]int64, len(tps))
	var since time.Time
	for _, tp := range tps {
		o, ok := starts.Lookup(tp.Topic, tp.Partition)
		if !ok {
			return nil, nil, fmt.Errorf("list start offsets: no answer for %s/%d", tp.Topic, tp.Partition)
		}
		first[tp] = o.Offset
	}
	// An aggregate topic must be read from offset 0, wherever it begins now, because
	// the reader rule needs every record. A consumer with a backlog reads the older
	// events of such a topic and skips them. In the other topics its reading begins
	// where the backlog begins.
	begin := maps.Clone(first)
	for tp := range begin {
		if eventlog.IsAggregate(tp.Topic) {
			begin[tp] = 0
		}
	}
	if g.c.Backlog > 0 {
		since = time.Now().Add(-g.c.Backlog)
		after, err := g.adm.ListOffsetsAfterMilli(ctx, since.UnixMilli(), g.c.Topics...)
		if err == nil {
			err = after.Error()
		}
		if err != nil {
			return nil, nil, fmt.Errorf("list offsets after %v: %w", since, err)
		}
		for tp, o := range first {
			if a, ok := after.Lookup(tp.Topic, tp.Partition); ok && !eventlog.IsAggregate(tp.Topic) {
				begin[tp] = max(o, a.Offset)
			}
		}
	}
	cps, err := TakeCheckpoints(ctx, g.db(), g.c.Name, g.c.Generation, begin, since)
	if err != nil {
		return nil, nil, err
	}
	events, err := parked.Load(ctx, g.db(), g.c.Name, g.c.Generation, tps)
	if err != nil {
		return nil, nil, fmt.Errorf("load parked events: %w", err)
	}
	workers := make([]*worker, 0, len(tps))
	for _, tp := range tps {
		cp := cps[tp]
		if cp == nil {
			return nil, nil, fmt.Errorf("no checkpoint for %s/%d", tp.Topic, tp.Partition)
		}
		if l := eventlog.MissingBeginning(tp, first[tp], cp.Next); l != nil {
			lost = append(lost, l)
			continue
		}
		w := newWorker(s, cp, parked.NewSet(events[tp], g.c.KeyBudget))
		if expired := first[tp] - cp.Next; expired > 0 {
			g.log.Error("records expired before they were read", "topic", tp.Topic, "partition", tp.Partition, "records", expired)
			w.read.Next, w.fetched = first[tp], first[tp]
			w.pos = w.read // nobody who waits for a position should wait for records that are gone
		}
		workers = append(workers, w)
	}
	return workers, lost, nil
}
