package shard

import (
	"fmt"
	"sync"
)

// queue is where commands wait for the loop. Any goroutine puts; the loop takes
// all that there are at once, which costs each of them less than a channel would.
// Whatever was put is answered.
type queue struct {
	wake chan struct{} // buffered: there is something

	mu     sync.Mutex
	calls  []*call
	closed bool
}

func newQueue() *queue { return &queue{wake: make(chan struct{}, 1)} }

// put fails with ErrUnavailable where the queue is full, and with errNotDecided
// where it is closed.
func (q *queue) put(c *call) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.closed:
		return errNotDecided
	case len(q.calls) >= queueLength:
		return fmt.Errorf("%w: its queue is full", ErrUnavailable)
	}
	if q.calls = append(q.calls, c); len(q.calls) == 1 {
		select {
		case q.wake <- struct{}{}:
		default:
		}
	}
	return nil
}

// take returns what has been put, and uses room for what comes next.
func (q *queue) take(room []*call) []*call {
	q.mu.Lock()
	defer q.mu.Unlock()
	calls := q.calls
	q.calls = room[:0]
	return calls
}

// close lets nothing in any more, and returns what is there.
func (q *queue) close() []*call {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	return q.calls
}

func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.calls)
}
