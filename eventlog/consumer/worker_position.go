package consumer

import "time"

// reached notes that everything before m is done or parked.
func (w *worker) reached(m Mark) {
	w.mu.Lock()
	if m.Next > w.pos.Next {
		w.pos, w.behindSince = m, time.Time{}
		if w.dirtySince.IsZero() {
			w.dirtySince = time.Now()
		}
	}
	w.mu.Unlock()
	// Whoever waits in this process need not wait until the checkpoint is written. The
	// effects of all events before m are there: only claims, which
	// change no rows of a read model, move a Rows consumer ahead of its checkpoint.
	w.g.r.Positions.reached(w.cp.Consumer, w.cp.Generation, w.cp.TopicPartition, m.Next)
}

// setOldestInWork notes the timestamp of the oldest record that is not done. The
// zero time means that there is none.
func (w *worker) setOldestInWork(t time.Time) {
	w.mu.Lock()
	w.oldestInWork = t
	w.mu.Unlock()
}

// checkpointMoved notes that the checkpoint is at m now. The caller holds commitMu.
func (w *worker) checkpointMoved(m Mark) {
	w.cp.Mark = m
	w.reached(m)
	w.mu.Lock()
	w.dirtySince = time.Time{}
	if w.pos.Next > m.Next {
		w.dirtySince = time.Now()
	}
	w.mu.Unlock()
}

// toFlush returns where the checkpoint should be moved. ok is false if it need not
// be moved now. The zero now means that it should be moved without waiting for a
// batch to do it. The caller holds commitMu.
func (w *worker) toFlush(now time.Time) (m Mark, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pos.Next == w.cp.Next {
		return Mark{}, false
	}
	if w.g.c.Rows != nil && !now.IsZero() && now.Sub(w.dirtySince) < quietFlushInterval {
		return Mark{}, false // the next batch may move it
	}
	return w.pos, true
}

// sawEnd notes the end of the log.
func (w *worker) sawEnd(end int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.end = max(w.end, end)
	if w.end > w.pos.Next && w.behindSince.IsZero() {
		w.behindSince = time.Now()
	}
}
