package feed

import (
	"container/heap"
	"context"
	"slices"

	"tomato/eventlog"
)

// waiters are those who wait until some positions have been published. Each log has a heap
// of the offsets that are waited for, so a record costs nothing while nobody waits for it.
// Guarded by Hub.mu.
type waiters struct {
	byLog       map[int]*offsetHeap
	total, gone int // entries in the heaps, and those of them that wait no more
}

// waiter waits for the logs in which need was not published when it came.
type waiter struct {
	left int // logs
	done chan struct{}
	gone bool // it waits no more
}

type waited struct {
	offset int64
	*waiter
}

type offsetHeap []waited

func (h offsetHeap) Len() int           { return len(h) }
func (h offsetHeap) Less(i, j int) bool { return h[i].offset < h[j].offset }
func (h offsetHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *offsetHeap) Push(x any)        { *h = append(*h, x.(waited)) }
func (h *offsetHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	old[len(old)-1] = waited{}
	*h = old[:len(old)-1]
	return x
}

// add returns a waiter for the positions. It is done at once if there are none, and never
// if there is a position in a log that does not exist.
func (w *waiters) add(need eventlog.Token, at *positions) *waiter {
	x := &waiter{done: make(chan struct{})}
	for tp, o := range need {
		l := at.log(tp)
		if l != noLog && at.done[l] >= o {
			continue
		}
		x.left++
		if w.byLog == nil {
			w.byLog = map[int]*offsetHeap{}
		}
		if w.byLog[l] == nil {
			w.byLog[l] = &offsetHeap{}
		}
		heap.Push(w.byLog[l], waited{o, x})
		w.total++
	}
	if x.left == 0 {
		close(x.done)
	}
	return x
}

// published wakes those who waited for the last position in the log.
func (w *waiters) published(log int, offset int64) {
	h := w.byLog[log]
	for h != nil && h.Len() > 0 && ((*h)[0].offset <= offset || (*h)[0].gone) {
		x := heap.Pop(h).(waited)
		w.total--
		if x.gone {
			w.gone--
		} else if x.left--; x.left == 0 {
			close(x.done)
		}
	}
	if h != nil && h.Len() == 0 {
		delete(w.byLog, log)
	}
}

// leave takes one out that waits no more. Its entries in the heaps are dropped when they
// come up, or all together when most of the entries are such.
func (w *waiters) leave(x *waiter) {
	if x.left == 0 {
		return
	}
	x.gone = true
	if w.gone += x.left; w.gone < 128 || 2*w.gone < w.total {
		return
	}
	for l, h := range w.byLog {
		*h = slices.DeleteFunc(*h, func(x waited) bool { return x.gone })
		if heap.Init(h); h.Len() == 0 {
			delete(w.byLog, l)
		}
	}
	w.total -= w.gone
	w.gone = 0
}

// wakeAll wakes everybody.
func (w *waiters) wakeAll() {
	seen := map[*waiter]bool{}
	for _, h := range w.byLog {
		for _, x := range *h {
			if !x.gone && !seen[x.waiter] {
				seen[x.waiter] = true
				close(x.done)
				x.waiter.left = 0
			}
		}
	}
	*w = waiters{}
}

// passed waits until everything that the token names has been published. It
// ignores positions in topics that feeds do not read. The error is ctx's cause, or
// eventlog.ErrUnknownToken.
func (h *Hub) passed(ctx context.Context, t eventlog.Token) error {
	need := eventlog.Token{}
	for tp, o := range t {
		if slices.Contains(cursorTopics[:], tp.Topic) {
			need[tp] = o
		}
	}
	ctx, stop := h.cfg.Ends.Watch(ctx, need)
	defer stop()
	return h.wait(ctx, func() eventlog.Token { return need })
}

// reachedPlace waits until this hub has published everything that the positions name.
// Another instance, which was ahead, may have made them. The error is ctx's cause, or
// eventlog.ErrUnknownToken if they are beyond the end of a log.
func (h *Hub) reachedPlace(ctx context.Context, p *positions) error {
	if err := h.wait(ctx, func() eventlog.Token { return nil }); err != nil {
		return err
	}
	lacks := func() eventlog.Token {
		if p.partitions != h.at.partitions {
			return nil
		}
		return h.at.lacks(p)
	}
	h.mu.Lock()
	need := lacks()
	h.mu.Unlock()
	if len(need) == 0 {
		return nil
	}
	ctx, stop := h.cfg.Ends.Watch(ctx, need)
	defer stop()
	return h.wait(ctx, lacks)
}

// wait waits until the hub is ready and has published what need returns then. need is
// called with mu held.
func (h *Hub) wait(ctx context.Context, need func() eventlog.Token) error {
	for {
		h.mu.Lock()
		opened := h.opened
		h.mu.Unlock()
		select {
		case <-opened:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		h.mu.Lock()
		if !h.ready {
			h.mu.Unlock()
			continue // it has begun anew
		}
		if h.draining {
			h.mu.Unlock()
			return nil
		}
		w := h.waiters.add(need(), &h.at)
		h.mu.Unlock()
		select {
		case <-w.done:
			return nil
		case <-ctx.Done():
			h.mu.Lock()
			h.waiters.leave(w)
			h.mu.Unlock()
			return context.Cause(ctx)
		}
	}
}

// covered waits until the index reaches back to the positions. It returns true as soon as
// it does, or will never do, and false if ctx ends before.
func (h *Hub) covered(ctx context.Context, p *positions) bool {
	for {
		h.mu.Lock()
		is := !h.ready || h.noOlder || h.draining || p.partitions != h.at.partitions || h.index.covers(p) || h.reach != nil && !within(h.reach, p.done)
		grown := h.grown
		h.mu.Unlock()
		if is {
			return true
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return false
		}
	}
}
