package shard

import (
	"container/heap"
	"time"
)

// deadlines is a heap of order deadlines, earliest first. Entries are never
// removed when an order moves on: who pops one asks the order whether it still
// holds.
type deadlines struct{ h deadlineHeap }

type deadline struct {
	at      time.Time
	orderID string
}

func (d *deadlines) push(at time.Time, orderID string) { heap.Push(&d.h, deadline{at, orderID}) }

// next returns when the earliest is due; zero where there is none.
func (d *deadlines) next() time.Time {
	if len(d.h) == 0 {
		return time.Time{}
	}
	return d.h[0].at
}

// pop returns the earliest if it is due at now.
func (d *deadlines) pop(now time.Time) (deadline, bool) {
	if len(d.h) == 0 || d.h[0].at.After(now) {
		return deadline{}, false
	}
	return heap.Pop(&d.h).(deadline), true
}

type deadlineHeap []deadline

func (h deadlineHeap) Len() int           { return len(h) }
func (h deadlineHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h deadlineHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *deadlineHeap) Push(x any)        { *h = append(*h, x.(deadline)) }
func (h *deadlineHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}
