package shard

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
)

// This file owns the calls, which are commands that wait for an answer, and the
// bounded queue that brings them to a shard's loop.

// call is a command on its way through the loop.
type call struct {
	ctx context.Context
	req Request

	// res and err are the answer. Until the call is answered they belong to the
	// loop, which prepares them while it waits for acknowledgements. Once done has
	// received a value they belong to the caller.
	res Result
	err error

	done         chan struct{} // has a buffer of one and receives one value; nil if no caller waits, as for a deadline
	answered     bool          // only for the loop
	firstPending atomic.Bool   // this call repeats an idempotency key whose first command is not acknowledged yet
}

// doneChannels are channels for call.done that are used again. A channel is put
// back after its value was received, when nobody sends to it any more. Calls
// themselves are not used again, because several waiters may refer to one call.
var doneChannels = sync.Pool{New: func() any { return make(chan struct{}, 1) }}

// reply answers the call. Only the first reply has an effect.
func (c *call) reply(res Result, err error) {
	if c.answered {
		return
	}
	c.answered = true
	if c.done != nil {
		c.res, c.err = res, err
		c.done <- struct{}{}
	}
}

// hasCaller reports whether a caller waits for the answer. Nobody waits for the
// answer to a command that a deadline issued.
func (c *call) hasCaller() bool { return c.done != nil }

// queue holds the commands that wait for the loop. Any goroutine may put a
// command in. The loop takes all of them at once, which costs less per command
// than a channel. Every call that put has accepted is answered.
type queue struct {
	wake chan struct{} // has a buffer of one; receives a value when the queue is no longer empty

	mu     sync.Mutex
	calls  []*call
	closed bool
}

func newQueue() *queue { return &queue{wake: make(chan struct{}, 1)} }

// put adds a call. It returns ErrUnavailable if the queue is full, and
// errNotDecided if it is closed.
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

// take returns the calls that were put. The queue collects the next ones in the
// memory of spare, whose elements are no longer needed.
func (q *queue) take(spare []*call) []*call {
	q.mu.Lock()
	defer q.mu.Unlock()
	calls := q.calls
	q.calls = spare[:0]
	return calls
}

// close makes every later put fail, and returns the calls that are in the queue.
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
