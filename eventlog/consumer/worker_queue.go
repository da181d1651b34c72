package consumer

import (
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"
)

const maxQueueBytes = 4 << 20 // of one partition's fetched records, before fetching pauses

// enqueue adds fetched records to the worker's queue. end is the end of the log.
func (w *worker) enqueue(recs []*kgo.Record, end int64) {
	w.mu.Lock()
	w.queue = append(w.queue, recs...)
	for _, r := range recs {
		w.queueBytes += len(r.Value)
	}
	w.end = max(w.end, end)
	if !w.fetchPaused && (len(w.queue) > 2*w.g.c.MaxBatch || w.queueBytes > maxQueueBytes) {
		w.fetchPaused = true
		w.pauseFetching(true)
	}
	w.mu.Unlock()
	w.wakeUp()
}

// pauseFetching makes the client pause or resume fetching the partition. The caller
// holds mu, so that a pause and a resume cannot overtake each other.
func (w *worker) pauseFetching(pause bool) {
	w.g.mu.Lock()
	cl := w.g.client
	w.g.mu.Unlock()
	if cl == nil {
		return
	}
	m := map[string][]int32{w.cp.Topic: {w.cp.Partition}}
	if pause {
		cl.PauseFetchPartitions(m)
	} else {
		cl.ResumeFetchPartitions(m)
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
		w.pauseFetching(false)
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
