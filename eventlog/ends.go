package eventlog

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	// endsGrace is how long a reader has for a token before the brokers are
	// asked whether it can ever come: nearly all tokens are passed by then.
	endsGrace = 100 * time.Millisecond
	// endsPause is between two questions, whoever asks.
	endsPause   = 100 * time.Millisecond
	endsTimeout = 3 * time.Second
)

// Ends says whether positions exist, so that nobody waits for a record that was
// never appended. All who ask share one question at a time, and ends only grow,
// so a known one is asked for once. Safe for concurrent use; nil knows nothing.
type Ends struct {
	client *kgo.Client

	mu      sync.Mutex
	known   map[TopicPartition]int64
	next    *endsAnswer // of the question that is not asked yet
	running bool
}

type endsAnswer struct {
	done chan struct{}
	err  error
}

// NewEnds returns Ends that ask by the client, which remains the caller's.
func NewEnds(client *kgo.Client) *Ends {
	return &Ends{client: client, known: map[TopicPartition]int64{}}
}

// Watch returns a context for waiting until the token is passed. It ends with
// the cause ErrUnknownToken once the brokers say that a position of the token is
// at or beyond the end of its log; while they cannot be asked it does not. stop
// must be called.
//
// A token of an acknowledged append is below the end as every leader gives it:
// the record was in all in-sync replicas before the acknowledgement.
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

// exists says whether all positions of the token are below the ends. A no rests
// on a question that was asked after the call.
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

// below is called with mu held.
func (e *Ends) below(token Token) bool {
	for tp, o := range token {
		if end, ok := e.known[tp]; !ok || o >= end {
			return false
		}
	}
	return true
}

// ask puts one question after the other, as long as somebody waits for one.
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
