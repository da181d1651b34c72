package eventlog

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// endReadTimeout is the longest time that one request of an EndReader takes.
const endReadTimeout = 5 * time.Second

// EndReader does what EndToken does, for many callers at a time. Callers that come
// while a request is under way share the next one, so that each answer is that of a
// request which was sent after its caller came. Safe for concurrent use.
type EndReader struct {
	client *kgo.Client
	topics []string

	mu      sync.Mutex
	next    *endRead // of the request that has not been sent yet; nil if nobody waits for one
	running bool     // run is running
}

// endRead is the answer to one request. The other fields are set before done is closed.
type endRead struct {
	done  chan struct{}
	token Token
	err   error
}

// NewEndReader returns an EndReader for the topics. The caller closes client.
func NewEndReader(client *kgo.Client, topics ...string) *EndReader {
	return &EndReader{client: client, topics: topics}
}

// Token returns the token that a reader must have passed to have read all that is on
// the topics at the time of the call. They are some of the reader's topics. What
// EndToken says of deposed leaders is true here, too. It fails if the brokers cannot be
// asked, or if ctx ends.
func (r *EndReader) Token(ctx context.Context, topics ...string) (Token, error) {
	r.mu.Lock()
	if r.next == nil {
		r.next = &endRead{done: make(chan struct{})}
	}
	answer := r.next
	if !r.running {
		r.running = true
		go r.run()
	}
	r.mu.Unlock()
	select {
	case <-answer.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if answer.err != nil {
		return nil, answer.err
	}
	token := make(Token, len(answer.token))
	for tp, o := range answer.token {
		if slices.Contains(topics, tp.Topic) {
			token[tp] = o
		}
	}
	return token, nil
}

// run sends one request after the other as long as somebody waits for an answer.
func (r *EndReader) run() {
	for {
		r.mu.Lock()
		answer := r.next
		r.next = nil
		r.running = answer != nil
		r.mu.Unlock()
		if answer == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), endReadTimeout)
		answer.token, answer.err = EndToken(ctx, r.client, r.topics...)
		cancel()
		close(answer.done)
	}
}
