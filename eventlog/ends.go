package eventlog

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	// endsGrace is how long Watch waits before it asks the brokers whether the token
	// exists. Nearly all tokens are passed by then, so nobody has to ask.
	endsGrace = 100 * time.Millisecond
	// endsPause is the pause between two requests to the brokers.
	endsPause   = 100 * time.Millisecond
	endsTimeout = 3 * time.Second
)

// Ends finds out whether positions exist, so that nobody waits for a record that was
// never appended. One request to the brokers at a time is shared by all callers. Ends
// remembers the end offsets, which only grow, so it does not ask again about a
// position that it knows to exist. It is safe for concurrent use. A nil *Ends never
// finds that a position does not exist.
type Ends struct {
	client *kgo.Client

	mu      sync.Mutex               // guards the fields below
	known   map[TopicPartition]int64 // end offsets
	next    *endsAnswer              // of the request that has not been sent yet; nil if nobody waits for one
	running bool                     // ask is running
}

// endsAnswer is the answer to one request. err is set before done is closed.
type endsAnswer struct {
	done chan struct{}
	err  error
}

// NewEnds returns an Ends that asks the brokers with client. The caller closes client.
func NewEnds(client *kgo.Client) *Ends {
	return &Ends{client: client, known: map[TopicPartition]int64{}}
}

// Watch returns a context for a caller that waits until the token is passed. The
// context ends with the cause ErrUnknownToken when the brokers say that a position of
// the token is at or beyond the end of its log. While the brokers are unavailable, it
// does not end. The caller must call stop.
//
// The token of an acknowledged append is never taken for unknown: the record was on
// all in-sync replicas before the acknowledgement, so it is below the end offset that
// any leader returns.
func (e *Ends) Watch(ctx context.Context, token Token) (watched context.Context, stop func()) {
	if e == nil {
		return ctx, func() {}
	}
	watched, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(endsGrace, func() {
		if exists, err := e.exists(watched, token); err == nil && !exists {
			cancel(ErrUnknownToken)
		}
	})
	return watched, func() {
		timer.Stop()
		cancel(nil)
	}
}

// exists reports whether all positions of the token are below the end offsets. If it
// returns false, the brokers were asked after the call began. It fails if they cannot
// be asked, or if ctx ends.
func (e *Ends) exists(ctx context.Context, token Token) (bool, error) {
	e.mu.Lock()
	if e.below(token) {
		e.mu.Unlock()
		return true, nil
	}
	if e.next == nil {
		e.next = &endsAnswer{done: make(chan struct{})}
	}
	answer := e.next
	if !e.running {
		e.running = true
		go e.ask()
	}
	e.mu.Unlock()
	select {
	case <-answer.done:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	if answer.err != nil {
		return false, answer.err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.below(token), nil
}

// below reports whether all positions of the token are below the known end offsets.
// The caller must hold mu.
func (e *Ends) below(token Token) bool {
	for tp, o := range token {
		if end, ok := e.known[tp]; !ok || o >= end {
			return false
		}
	}
	return true
}

// ask sends one request after the other as long as somebody waits for an answer.
func (e *Ends) ask() {
	for {
		e.mu.Lock()
		answer := e.next
		e.next = nil
		e.running = answer != nil
		e.mu.Unlock()
		if answer == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), endsTimeout)
		ends, err := EndOffsets(ctx, e.client, tokenTopics...)
		cancel()
		e.mu.Lock()
		maps.Copy(e.known, ends)
		e.mu.Unlock()
		answer.err = err
		close(answer.done)
		time.Sleep(endsPause)
	}
}
