package consumer

import (
	"context"
	"errors"
	"fmt"
	"maps"
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

// fetched hands what was polled of one partition to its worker.
func (s *session) fetched(topic string, p kgo.FetchPartition) {
	var groupErr *kgo.ErrGroupSession
	switch err := p.Err; {
	case err == nil, errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, kgo.ErrClientClosed):
	case errors.As(err, &groupErr):
		s.g.setError(err) // the client joins again by itself
		s.g.log.Warn("group session", "error", err)
	case kerr.IsRetriable(err) && !errors.Is(err, kerr.OffsetOutOfRange):
		s.g.log.Warn("fetch", "topic", topic, "partition", p.Partition, "error", err)
	default:
		s.fail(fmt.Errorf("fetch %s/%d: %w", topic, p.Partition, err))
		return
	}
	s.g.mu.Lock()
	w := s.g.workers[eventlog.TopicPartition{Topic: topic, Partition: p.Partition}]
	s.g.mu.Unlock()
	if w != nil {
		w.enqueue(p.Records, p.HighWatermark)
	}
}

// assigned takes the checkpoints of partitions that are new here and says where
// to read on. It waits for Postgres as long as the assignment stands.
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
	// One who comes back before its worker has ended must not run beside it.
	s.stop(tps, drainTimeout)
	g := s.g
	wait := newBackoff(50*time.Millisecond, 2*time.Second)
	var workers []*worker
	var lost []*eventlog.LostBeginning
	for {
		var err error
		if workers, lost, err = g.take(ctx, s, tps); err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		g.mu.Lock()
		g.takeErr = err
		g.mu.Unlock()
		g.log.Warn("cannot take checkpoints yet", "error", err)
		if !sleep(ctx, wait.NextBackOff()) {
			return nil, ctx.Err()
		}
	}
	out := map[string]map[int32]kgo.Offset{}
	resume := map[string][]int32{}
	g.mu.Lock()
	cl := g.client
	g.err, g.takeErr = nil, nil
	for _, l := range lost { // the others are read
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
		cl.ResumeFetchPartitions(resume) // an earlier worker may have left them paused
	}
	for _, w := range workers {
		w.log.Info("partition taken", "position", w.read.Next, "epoch", w.cp.Epoch, "parked", w.parked.len())
		go w.run()
	}
	return out, nil
}

// take takes the checkpoints and makes the workers, not yet running; none for
// partitions whose records from the checkpoint on are lost.
func (g *group) take(ctx context.Context, s *session, tps []eventlog.TopicPartition) (_ []*worker, lost []*eventlog.LostBeginning, _ error) {
	ctx, cancel := context.WithTimeout(ctx, g.r.stillAfter(takeTimeout))
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
	// An aggregate topic is needed from its first record, wherever it begins
	// now. The reader rule needs it, too: with a backlog, older events are read
	// and passed over there; elsewhere reading begins where the backlog does.
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
	cps, err := TakeCheckpoints(ctx, g.r.DB, g.c.Name, g.c.Generation, begin, since)
	if err != nil {
		return nil, nil, err
	}
	parked, err := loadParked(ctx, g.r.DB, g.c.Name, g.c.Generation, tps)
	if err != nil {
		return nil, nil, fmt.Errorf("load parked records: %w", err)
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
		w := newWorker(s, cp, newParkedSet(parked[tp], g.c.KeyBudget))
		if expired := first[tp] - cp.Next; expired > 0 {
			g.log.Error("records expired before they were read", "topic", tp.Topic, "partition", tp.Partition, "records", expired)
			w.read.Next = first[tp]
			w.pos = w.read // who waits for this consumer does not wait for what is gone
		}
		workers = append(workers, w)
	}
	return workers, lost, nil
}

// release stops the workers of partitions that go away; bound 0: without
// writing anything more.
func (s *session) release(m map[string][]int32, bound time.Duration) {
	var tps []eventlog.TopicPartition
	for t, ps := range m {
		for _, p := range ps {
			tps = append(tps, eventlog.TopicPartition{Topic: t, Partition: p})
		}
	}
	s.stop(tps, bound)
}

func (s *session) releaseAll(bound time.Duration) {
	s.g.mu.Lock()
	var tps []eventlog.TopicPartition
	for tp := range s.g.workers {
		tps = append(tps, tp)
	}
	s.g.mu.Unlock()
	s.stop(tps, bound)
}

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

// keep does what is due from time to time: it writes positions that no
// transaction of a worker has moved, learns the ends of the topics, and looks
// for what an operator changed.
func (s *session) keep(ctx context.Context) {
	g := s.g
	tick := time.NewTicker(flushInterval)
	defer tick.Stop()
	var ends, tools time.Time
	for {
		var now time.Time
		select {
		case now = <-tick.C:
		case <-ctx.Done():
			return
		}
		g.mu.Lock()
		ws := make([]*worker, 0, len(g.workers))
		for _, w := range g.workers {
			ws = append(ws, w)
		}
		g.mu.Unlock()
		if err := g.flush(ctx, ws, now); err != nil {
			if errors.Is(err, ErrFenced) {
				s.fail(err)
				return
			}
			if ctx.Err() == nil {
				g.log.Debug("flush positions", "error", err)
			}
		}
		if now.Sub(tools) >= g.r.state.tools {
			tools = now
			g.lookForTools(ctx, ws)
		}
		if now.Sub(ends) >= endsInterval {
			ends = now
			ectx, cancel := context.WithTimeout(ctx, readTimeout)
			list, err := g.adm.ListEndOffsets(ectx, g.c.Topics...)
			cancel()
			if err == nil {
				for _, w := range ws {
					if o, ok := list.Lookup(w.cp.Topic, w.cp.Partition); ok && o.Err == nil {
						w.sawEnd(o.Offset)
					}
				}
			}
		}
	}
}

// flush moves the checkpoints of all workers whose position has gone on since.
// The zero now means all of them at once, whatever it waits for.
func (g *group) flush(ctx context.Context, ws []*worker, now time.Time) error {
	var locked []*worker
	var cps []*Checkpoint
	var to []Mark
	for _, w := range ws {
		if now.IsZero() {
			w.commitMu.Lock()
		} else if !w.commitMu.TryLock() {
			continue // its own transaction moves it
		}
		m, ok := w.toFlush(now)
		if !ok {
			w.commitMu.Unlock()
			continue
		}
		locked, cps, to = append(locked, w), append(cps, w.cp), append(to, m)
	}
	if len(locked) == 0 {
		return nil
	}
	defer func() {
		for _, w := range locked {
			w.commitMu.Unlock()
		}
	}()
	// A statement broken off by the end of the session may have moved them or
	// not, and then the last positions of a drain cannot be written: it is
	// bounded, and not broken off.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readTimeout)
	defer cancel()
	moved, err := moveAll(ctx, g.r.DB, g.c.Name, g.c.Generation, cps, to)
	if err != nil {
		return err
	}
	for i, w := range locked {
		if !moved[w.cp.TopicPartition] {
			return fmt.Errorf("%s/%d: %w", w.cp.Topic, w.cp.Partition, ErrFenced)
		}
		w.moved(to[i])
	}
	return nil
}

// lookForTools tells workers about parked rows that an operator has changed.
func (g *group) lookForTools(ctx context.Context, ws []*worker) {
	any := false
	for _, w := range ws {
		any = any || w.hasParked.Load()
	}
	if !any {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	rows, err := g.r.DB.Query(ctx, `SELECT topic, partition, `+parkedColumns+` FROM tomato.parked
		WHERE consumer = $1 AND generation = $2 AND (state = 'discarded' OR state = 'retry' AND attempt = 0)`, g.c.Name, g.c.Generation)
	if err != nil {
		return // asked again soon
	}
	defer rows.Close()
	changed := map[eventlog.TopicPartition][]parkedItem{}
	for rows.Next() {
		var tp eventlog.TopicPartition
		it, err := scanParked(rows, &tp.Topic, &tp.Partition)
		if err != nil {
			g.log.Error("read parked rows", "error", err)
			return
		}
		changed[tp] = append(changed[tp], *it)
	}
	for _, w := range ws {
		if c := changed[w.cp.TopicPartition]; len(c) > 0 {
			w.tell(c)
		}
	}
}
