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

// This file owns the way of a command to its shard: to the loop of a shard that is
// served here, or to the instance that owns the shard.

// Execute implements Executor. The command is decided here if this instance serves
// its shard, and otherwise forwarded to the owner. While a shard moves between
// instances, Execute waits until ctx's deadline.
func (s *Shards) Execute(ctx context.Context, r Request) (Result, error) {
	p := s.partitionOf(&r)
	var tried int64 // the highest term whose owner did not take the command
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
		owner, known, learned := s.owners.owner(p)
		if known && owner.Owner != s.Instance && owner.Term > tried {
			res, err := s.forward(ctx, owner, r)
			var m misdirected
			switch {
			case errors.As(err, &m):
				tried = owner.Term
				if n, reason := readOwner(m.record, p, s.ClusterKeys...); reason == "" {
					s.owners.consider(n)
				}
				continue
			case errors.Is(err, errNotSent):
				tried = owner.Term // that owner cannot be reached; another one will claim a higher term
				continue
			}
			return res, err
		}
		select {
		case <-changed:
		case <-learned:
		case <-time.After(forwardAgain):
			tried = 0 // the same owner may take the command by now
		case <-ctx.Done():
			return Result{}, fmt.Errorf("%w: nobody serves shard %d", ErrUnavailable, p)
		}
	}
}

// forwardAgain is the time after which a command is forwarded again to an owner
// that did not take it.
const forwardAgain = 200 * time.Millisecond

// local puts a command into the queue of a shard that is served here, and waits for
// its answer. It returns errNotDecided if the shard stopped and has appended nothing.
func (s *Shards) local(ctx context.Context, sh *shard, r *Request) (Result, error) {
	c := &call{ctx: ctx, req: *r, done: doneChannels.Get().(chan struct{})}
	if err := sh.queue.put(c); err != nil {
		return Result{}, fmt.Errorf("shard %d: %w", sh.partition, err)
	}
	select {
	case <-c.done:
		doneChannels.Put(c.done)
		return c.res, c.err
	case <-ctx.Done():
		if c.firstPending.Load() {
			return Result{}, domain.Refuse(IdempotencyInProgress, "the first request with this key is still running")
		}
		return Result{}, fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
	}
}

// partitionOf returns the partition of the request's shard. For a new order it also
// draws the id, unless the instance that forwarded the request has done so. The id
// is a UUIDv7. If the request has an idempotency key, the key determines the shard,
// so that every repeat goes to the same shard, and ids are drawn until one belongs
// to it.
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
