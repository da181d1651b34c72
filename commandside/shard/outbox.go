package shard

import (
	"context"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// maxHeld is how long an append may wait for those before it: with thousands of
// callers, one millisecond made so many more requests that an eighth of the
// commands was lost to them; ten cost the overlap with the broker's work.
const maxHeld = 3 * time.Millisecond

// outbox gives the appends of all shards of an instance to the producer. While
// some are on their way the next ones are held until these are acknowledged, or
// for maxHeld: then they go together, in one request, where the producer by
// itself would send as many requests as it may have under way. A lone caller's
// append is never held. Appends of one partition go in the order given.
//
// It is the group commit of databases. What the broker spends on a request, and
// on each batch in it, is most of what an append costs.
type outbox struct {
	wake chan struct{}
	stop chan struct{}

	mu       sync.Mutex
	held     []outgoing
	since    time.Time // when the first of them came
	underway int
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

// close ends it; what is still held goes.
func (o *outbox) close() { close(o.stop) }

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
	var room []outgoing
	for stopped := false; ; {
		o.mu.Lock()
		wait := time.Hour
		var out []outgoing
		if n := len(o.held); n > 0 {
			if wait = maxHeld - time.Since(o.since); o.underway == 0 || wait <= 0 || stopped {
				out, o.held = o.held, room[:0]
				o.underway += n
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
			room = out
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

func (o *outbox) acknowledged() {
	o.mu.Lock()
	o.underway--
	wake := o.underway == 0 && len(o.held) > 0
	o.mu.Unlock()
	if wake {
		o.poke()
	}
}
