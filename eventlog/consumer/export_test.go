package consumer

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
)

// Hasten makes parked events due sooner than in production, and makes changes of
// operators noticed sooner.
func (r *Runtime) Hasten(first, second time.Duration) {
	r.state.delays = [2]time.Duration{first, second}
	r.state.lookInterval = 50 * time.Millisecond
}

// IdleTx sets after how long Postgres ends the transaction of a stopped process.
func (r *Runtime) IdleTx(d time.Duration) { r.state.idleTx = d }

// StoppedAfter sets after how long anything counts as stopped.
func (r *Runtime) StoppedAfter(d time.Duration) { r.state.stoppedAfter = d }

// Abandon returns a func that makes Run end as if the process had been killed: nothing
// is drained and no position is written. Only the members' requests to leave their
// groups are sent. Abandon must be called before Run.
func (r *Runtime) Abandon() func() {
	ch := make(chan struct{})
	r.state.abandon = ch
	return func() { close(ch) }
}

// Shared returns how many partitions of the runtime's consumers are read by the tail.
func (r *Runtime) Shared() (n int) {
	for _, g := range r.groupsNow() {
		g.mu.Lock()
		ws := slices.Collect(maps.Values(g.workers))
		g.mu.Unlock() // a worker locks g.mu while it holds its own mu
		for _, w := range ws {
			w.mu.Lock()
			if w.shared {
				n++
			}
			w.mu.Unlock()
		}
	}
	return n
}

// BreakTail makes the runtime's tail bring nothing of these topics any more, as if it hung.
func (r *Runtime) BreakTail(topics ...string) {
	r.state.mu.Lock()
	defer r.state.mu.Unlock()
	r.state.tail.client.PauseFetchTopics(topics...)
}

// TailReaders returns how many readers the runtime's tail has, over all partitions.
func (r *Runtime) TailReaders() (n int) {
	r.state.mu.Lock()
	t := r.state.tail
	r.state.mu.Unlock()
	if t == nil {
		return 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range t.followed {
		n += len(f.readers)
	}
	return n
}

// FollowedBytes sets how much waits for the handler of Follow at most.
func (r *Runtime) FollowedBytes(n int) { r.state.followedBytes = n }

// MoveAll moves checkpoints of one consumer in one statement.
func MoveAll(ctx context.Context, tx pgx.Tx, cps []*Checkpoint, to []Mark) error {
	return moveAll(ctx, tx, cps, to)
}

func (r *Runtime) groupsNow() []*group {
	r.state.mu.Lock()
	defer r.state.mu.Unlock()
	return append([]*group(nil), r.state.groups...)
}

// Combined returns how many commits were made by the transactions of other workers.
func (r *Runtime) Combined() (n int64) {
	for _, g := range r.groupsNow() {
		n += g.combiner.combined.Load()
	}
	return n
}

// TailFetched gives records at offsets to a tail that begins to read their partition at
// start. It returns the offset of the next record, and whether workers may join.
func TailFetched(start int64, offsets ...int64) (next int64, live bool) {
	tp := eventlog.TopicPartition{Topic: eventlog.Orders}
	f := &followed{next: start}
	t := &tail{followed: map[eventlog.TopicPartition]*followed{tp: f}}
	var p kgo.FetchPartition
	for _, o := range offsets {
		p.Records = append(p.Records, &kgo.Record{Topic: tp.Topic, Offset: o})
	}
	t.fetched(tp, p)
	return f.next, f.live
}
