package shard

import (
	"context"
	"encoding/json"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
)

// This file owns the announcement of this instance as the owner of the shards that
// it serves.

// announce writes a record that names this instance as the shard's owner. It does not
// wait for the acknowledgement.
func (s *Shards) announce(sh *shard) {
	p := sh.partition
	n := Owner{Shard: p, Term: sh.term, Claim: sh.claimedAt, Owner: s.Instance, URL: s.URL, Epoch: epochOnWire(s.epoch)}.signed(s.ClusterKeys[0])
	s.owners.learn(n)
	s.owners.consider(n) // if the same or a higher term is known: its claim is looked up again, because the log may have lost it
	b, err := json.Marshal(n)
	if err != nil {
		return
	}
	s.mu.Lock()
	producer := s.producer
	s.mu.Unlock()
	producer.Produce(context.Background(), &kgo.Record{Topic: eventlog.ShardOwners, Partition: p, Key: []byte(strconv.Itoa(int(p))), Value: b},
		func(_ *kgo.Record, err error) {
			if err != nil {
				s.Log.Warn("the owner of a shard was not announced; other instances do not find it before the next take-over", "partition", p, "err", err)
			}
		})
}

// announceAgainAfter is the time from a foreign record to the repeat of this
// instance's own record. It bounds the number of repeats when somebody writes foreign
// records again and again.
const announceAgainAfter = time.Second

// announceAgain repeats the announcement of a shard that is served here, after another
// record was written under the shard's key: that of an earlier owner, or one that is
// not valid. Otherwise compaction would keep the other record only. It does nothing if
// the other record is that of an owner with a higher term whose claim was found.
func (s *Shards) announceAgain(p int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.serving[p] == nil || s.again[p] {
		return
	}
	s.again[p] = true
	time.AfterFunc(announceAgainAfter, func() {
		s.mu.Lock()
		delete(s.again, p)
		sh, over := s.serving[p], s.stopped
		s.mu.Unlock()
		known, displaced := s.owners.displaced(p)
		if sh != nil && !over && displaced && sh.term == known.Term && known.Owner == s.Instance {
			s.announce(sh)
		}
	})
}
