package consumer

import (
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"
)

const maxQueueBytes = 4 << 20 // of one partition's fetched records, before fetching pauses

// enqueue adds records that the session's client has fetched to the worker's queue. end
// is the end of the log.
func (w *worker) enqueue(recs []*kgo.Record, end int64) {
	w.mu.Lock()
	w.add(recs, end)
	if !w.fetchPaused && w.full() {
		w.fetchPaused = true
		w.pauseFetching()
	}
	w.mu.Unlock()
	w.wakeUp()
}

// add adds records to the queue. The caller holds mu.
func (w *worker) add(recs []*kgo.Record, end int64) {
	w.queue = append(w.queue, recs...)
	for _, r := range recs {
		w.queueBytes += len(r.Value)
	}
	if n := len(recs); n > 0 {
		w.fetched = max(w.fetched, recs[n-1].Offset+1) // one poll may return a partition twice
	}
	w.end = max(w.end, end)
}

// full reports whether no more should be fetched for now. The caller holds mu.
func (w *worker) full() bool {
	return len(w.queue) > 2*w.g.c.MaxBatch || w.queueBytes > maxQueueBytes
}

// pauseFetching makes the session's client pause the partition. The caller holds mu.
func (w *worker) pauseFetching() {
	w.g.mu.Lock()
	cl := w.g.client
	w.g.mu.Unlock()
	if cl != nil {
		cl.PauseFetchPartitions(map[string][]int32{w.cp.Topic: {w.cp.Partition}})
	}
}

// resume makes the session's client fetch the worker's partition again, from the record
// after the last one that the worker has. The session does it in its poll loop.
func (g *group) resume(w *worker) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.resumes = append(g.resumes, w)
	if g.wake != nil {
		g.wake()
	}
}

// resumeFetching resumes the partitions of workers that have asked for it. It is called
// between a poll and AllowRebalance, when the client nearly always holds rebalances back.
// If one happens all the same, the next worker of the partition sets its own position.
func (s *session) resumeFetching() {
	g := s.g
	g.mu.Lock()
	cl, asked := g.client, g.resumes
	g.resumes = nil
	asked = slices.DeleteFunc(asked, func(w *worker) bool { return g.workers[w.cp.TopicPartition] != w })
	g.mu.Unlock()
	offsets, partitions := map[string]map[int32]kgo.EpochOffset{}, map[string][]int32{}
	for _, w := range asked {
		// Only this goroutine lets the client fetch the partition, so nothing changes
		// after mu is unlocked.
		w.mu.Lock()
		resume, off, next := !w.shared && !w.fetchPaused, w.offCursor, w.fetched
		w.offCursor = off && !resume
		w.mu.Unlock()
		if resume && off {
			if offsets[w.cp.Topic] == nil {
				offsets[w.cp.Topic] = map[int32]kgo.EpochOffset{}
			}
			offsets[w.cp.Topic][w.cp.Partition] = kgo.EpochOffset{Epoch: -1, Offset: next}
		}
		if resume {
			partitions[w.cp.Topic] = append(partitions[w.cp.Topic], w.cp.Partition)
		}
	}
	// One call for all of them, because each call of SetOffsets ends the fetches that
	// are under way, and drops what they have brought.
	cl.SetOffsets(offsets)
	if len(partitions) > 0 {
		cl.ResumeFetchPartitions(partitions)
	}
}

// wakeUp makes the worker's loop look for something to do.
func (w *worker) wakeUp() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// dequeue returns up to n records of the queue, or none while too many events are
// parked.
func (w *worker) dequeue(n int) []*kgo.Record {
	over := w.overBudget()
	w.mu.Lock()
	defer w.mu.Unlock()
	if (over == nil) != (w.overBudgetErr == nil) {
		if over != nil {
			w.log.Error("partition paused", "reason", over)
		} else {
			w.log.Info("partition goes on: enough has been replayed or discarded")
		}
	}
	w.overBudgetErr = over
	if over != nil || len(w.queue) == 0 {
		return nil
	}
	n = min(n, len(w.queue))
	out := w.queue[:n:n]
	w.queue = w.queue[n:]
	if len(w.queue) == 0 {
		w.queue = nil
	}
	for _, r := range out {
		w.queueBytes -= len(r.Value)
	}
	if w.oldestInWork.IsZero() {
		w.oldestInWork = out[0].Timestamp
	}
	if w.fetchPaused && len(w.queue) < w.g.c.MaxBatch/2+1 && w.queueBytes < maxQueueBytes/2 {
		w.fetchPaused = false
		w.g.resume(w)
	}
	return out
}

// overBudget returns an error that says why too many events are parked, or nil.
func (w *worker) overBudget() error {
	switch {
	case w.telemetry: // nothing is parked now, and rows of an older build must not hold anything up
		return nil
	case w.parked.Len() >= w.g.c.Budget:
		return fmt.Errorf("%d records are parked (budget %d)", w.parked.Len(), w.g.c.Budget)
	case w.parked.OverKeys() > 0:
		return fmt.Errorf("%d keys have %d or more records parked", w.parked.OverKeys(), w.g.c.KeyBudget)
	}
	return nil
}
