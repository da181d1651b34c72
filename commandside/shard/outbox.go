package shard

import (
	"context"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// This file owns the group commit: it collects the appends of all shards of an
// instance into fewer produce requests.

// maxHeld is how long an append may wait for the acknowledgement of earlier ones.
// With thousands of callers, one millisecond led to so many more requests that the
// throughput fell by an eighth. With ten milliseconds the instance waited while the
// broker was idle.
const maxHeld = 3 * time.Millisecond

// outbox gives the appends of all shards of an instance to the producer. While some
// are in flight, it holds the next ones until these are acknowledged, or for
// maxHeld, and then gives them to the producer together, which sends them in one
// request. The producer alone would send as many requests at once as it is allowed
// to. If no append is in flight, the next one is not held. Appends to one partition
// keep their order. All methods are safe for concurrent use.
//
// This is the group commit of databases. Most of the cost of an append is what the
// broker spends on each request, and on each batch in it.
type outbox struct {
	wake chan struct{}
	stop chan struct{}

	mu       sync.Mutex
	held     []outgoing
	since    time.Time // when the first held append was put
	inFlight int       // appends that the producer has, not acknowledged
}

type outgoing struct {
	producer *kgo.Client
	record   *kgo.Record
	promise  func(*kgo.Record, error)
}

func newOutbox() *outbox {
	o := &outbox{wake: make(chan struct{}, 1), stop: make(chan struct{})}
	go o.run()
	return o
}

// close gives the held appends to the producer and ends the outbox.
func (o *outbox) close() { close(o.stop) }

// put adds an append. The promise of out is called when it is acknowledged or has
// failed.
func (o *outbox) put(out outgoing) {
	o.mu.Lock()
	if o.held = append(o.held, out); len(o.held) == 1 {
		o.since = time.Now()
	}
	wake := len(o.held) == 1
	o.mu.Unlock()
	if wake {
		o.poke()
	}
}

func (o *outbox) poke() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

func (o *outbox) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var spare []outgoing // memory for the next held appends
	for stopped := false; ; {
		o.mu.Lock()
		wait := time.Hour
		var out []outgoing
		if n := len(o.held); n > 0 {
			if wait = maxHeld - time.Since(o.since); o.inFlight == 0 || wait <= 0 || stopped {
				out, o.held = o.held, spare[:0]
				o.inFlight += n
				wait = time.Hour
			}
		}
		o.mu.Unlock()
		for i, x := range out {
			x.producer.Produce(context.Background(), x.record, func(r *kgo.Record, err error) {
				x.promise(r, err)
				o.acknowledged()
			})
			out[i] = outgoing{}
		}
		if out != nil {
			spare = out
		}
		if stopped {
			return
		}
		timer.Reset(wait)
		select {
		case <-o.wake:
		case <-timer.C:
		case <-o.stop:
			stopped = true
		}
	}
}

// acknowledged notes that the producer is done with one append.
func (o *outbox) acknowledged() {
	o.mu.Lock()
	o.inFlight--
	wake := o.inFlight == 0 && len(o.held) > 0
	o.mu.Unlock()
	if wake {
		o.poke()
	}
}
