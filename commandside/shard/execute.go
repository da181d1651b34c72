package shard

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"tomato/domain"
	"tomato/eventlog"
)

// Execute implements Executor: here where the shard is served, else at its
// owner. While a shard moves it waits, up to ctx's deadline.
func (s *Shards) Execute(ctx context.Context, r Request) (Result, error) {
	p := s.partitionOf(&r)
	var tried int64 // the term of the owner that sent us away or was not there
	for {
		s.mu.Lock()
		sh, changed := s.serving[p], s.changed
		s.mu.Unlock()
		if sh != nil && !sh.isClosed() {
			if err := s.Menus.WaitFor(ctx, r.After); err != nil {
				return Result{}, err
			}
			res, err := s.local(ctx, sh, &r)
			if !errors.Is(err, errNotDecided) {
				return res, err
			}
		}
		owner, known, learned := s.owners.of(p)
		if known && owner.Owner != s.Instance && owner.Term > tried {
			res, err := s.forward(ctx, owner, r)
			var m misdirected
			switch {
			case errors.As(err, &m):
				tried = owner.Term
				if n, reason := readOwner(m.record, p, s.ClusterKey); reason == "" {
					s.owners.consider(n)
				}
				continue
			case errors.Is(err, errNotSent):
				tried = owner.Term // gone: a higher one will follow
				continue
			}
			return res, err
		}
		select {
		case <-changed:
		case <-learned:
		case <-time.After(forwardAgain):
			tried = 0 // it may be back, or serve by now
		case <-ctx.Done():
			return Result{}, fmt.Errorf("%w: nobody serves shard %d", ErrUnavailable, p)
		}
	}
}

func (s *shard) isClosed() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}

// forwardAgain is how long an owner that did not serve is left alone.
const forwardAgain = 200 * time.Millisecond

// local hands a command to a shard that is served here, and waits for its answer.
func (s *Shards) local(ctx context.Context, sh *shard, r *Request) (Result, error) {
	c := &call{ctx: ctx, req: *r, done: dones.Get().(chan struct{})}
	if err := sh.queue.put(c); err != nil {
		return Result{}, fmt.Errorf("shard %d: %w", sh.partition, err)
	}
	select {
	case <-c.done:
		dones.Put(c.done)
		return c.res, c.err
	case <-ctx.Done():
		if c.first.Load() {
			return Result{}, domain.Refuse(IdempotencyInProgress, "the first request with this key is still running")
		}
		return Result{}, fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
	}
}

// partitionOf names the request's shard, and draws the id of a new order, where
// the instance that forwarded it has not done so: a UUIDv7 of that shard. An
// idempotency key names the shard of an order that has no id yet.
func (s *Shards) partitionOf(r *Request) int32 {
	if !isPlace(r.Command) || r.ID != "" {
		return eventlog.PartitionFor(r.ID, s.Partitions)
	}
	if r.IdempotencyKey == "" {
		r.ID = newOrderID()
		return eventlog.PartitionFor(r.ID, s.Partitions)
	}
	p := eventlog.PartitionFor(r.Actor.Sub+"\x00"+r.IdempotencyKey, s.Partitions)
	for {
		if r.ID = newOrderID(); eventlog.PartitionFor(r.ID, s.Partitions) == p {
			return p
		}
	}
}

func newOrderID() string { return uuid.Must(uuid.NewV7()).String() }
