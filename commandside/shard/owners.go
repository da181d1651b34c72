package shard

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
)

// owners follows topic shard-owners: for each shard, who claimed it with the
// highest term that the log has. Safe for concurrent use.
type owners struct {
	cfg     eventlog.Config
	key     string // cluster key
	log     *slog.Logger
	ignored *prometheus.CounterVec // by reason
	said    seldom
	life    context.Context // ends with run
	end     context.CancelFunc
	reading chan struct{} // one for each claim that is looked up at a time

	mu         sync.Mutex
	known      map[int32]Owner
	changed    chan struct{}
	candidates map[int32][]Owner // signed, and not the one that is known: their claims are being looked up
	last       map[int32]string  // signature of the last record under the shard's key; "" for what is none
	// follows is called, without locks, when another record than the known owner's
	// is the last one: compaction would keep that one.
	follows func(shard int32)
}

// Bounds of looking up claims.
const (
	maxCandidates  = 16 // of one shard
	claimsAtOnce   = 8
	claimReadLimit = 3 * time.Second // for one of them
	claimTries     = 3               // before a claim that is not found is not believed
	claimPause     = 200 * time.Millisecond
)

func newOwners(cfg eventlog.Config, key string, log *slog.Logger) *owners {
	life, end := context.WithCancel(context.Background())
	return &owners{cfg: cfg, life: life, end: end, key: key, log: log, reading: make(chan struct{}, claimsAtOnce), known: map[int32]Owner{}, changed: make(chan struct{}),
		candidates: map[int32][]Owner{}, last: map[int32]string{}}
}

// learn takes in an owner whose claim is known to be in the log.
func (o *owners) learn(n Owner) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if old, ok := o.known[n.Shard]; ok && n.Term <= old.Term {
		return
	}
	o.known[n.Shard] = n
	close(o.changed)
	o.changed = make(chan struct{})
}

func (o *owners) of(shard int32) (Owner, bool, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n, ok := o.known[shard]
	return n, ok, o.changed
}

// consider takes in a signed owner once its claim is found in the log, which is
// looked up aside: nobody waits for it.
func (o *owners) consider(n Owner) {
	o.mu.Lock()
	defer o.mu.Unlock()
	all, running := o.candidates[n.Shard]
	if n == o.known[n.Shard] || slices.Contains(all, n) {
		return
	}
	// The highest term is looked up first: once it is found, the others are over.
	all = append(slices.Clone(all), n)
	slices.SortStableFunc(all, func(a, b Owner) int { return int(min(max(b.Term-a.Term, -1), 1)) })
	if len(all) > maxCandidates {
		o.ignore(ignoredClaim, all[maxCandidates])
		all = all[:maxCandidates]
	}
	o.candidates[n.Shard] = all
	if !running {
		go o.lookUp(n.Shard)
	}
}

// lookUp works off the candidates of one shard, until none is left or
// run has ended.
func (o *owners) lookUp(shard int32) {
	ctx := o.life
	tries := map[Owner]int{}
	for {
		o.mu.Lock()
		all, known := o.candidates[shard], o.known[shard]
		if len(all) == 0 || ctx.Err() != nil {
			delete(o.candidates, shard)
			o.mu.Unlock()
			return
		}
		o.mu.Unlock()
		higher := slices.DeleteFunc(slices.Clone(all), func(n Owner) bool { return n.Term <= known.Term })
		if len(higher) == 0 {
			// Only in a log that has lost records is a lower term the last one, or
			// the same term another owner's. Then the known claim is gone.
			err := o.find(ctx, known)
			tries[known]++
			switch {
			case err == nil:
				o.drop(shard, func(n Owner) bool { return n.Term <= known.Term })
			case errors.Is(err, errNoClaim) && tries[known] >= claimTries:
				o.forget(known)
			default:
				o.pause(ctx, shard, tries[known], err)
			}
			continue
		}
		// Those that were tried less go first: one that cannot be found must not
		// hold up the true one.
		n := slices.MinFunc(higher, func(a, b Owner) int { return tries[a] - tries[b] })
		err := o.find(ctx, n)
		tries[n]++
		switch {
		case err == nil:
			o.learn(n)
			o.drop(shard, func(c Owner) bool { return c.Term <= n.Term })
		case errors.Is(err, errNoClaim) && tries[n] >= claimTries:
			o.ignore(ignoredClaim, n)
			o.drop(shard, func(c Owner) bool { return c == n })
		default:
			o.pause(ctx, shard, tries[n], err)
		}
	}
}

// drop takes candidates out.
func (o *owners) drop(shard int32, which func(Owner) bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.candidates[shard] = slices.DeleteFunc(slices.Clone(o.candidates[shard]), which)
}

// forget takes a known owner out whose claim is not in the log any more.
func (o *owners) forget(n Owner) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.known[n.Shard] == n {
		o.log.Warn("the claim of a shard's owner is not in the log any more: the log has lost records", "shard", n.Shard, "term", n.Term)
		delete(o.known, n.Shard)
		close(o.changed)
		o.changed = make(chan struct{})
	}
}

// pause waits before a claim is looked up again, longer each time.
func (o *owners) pause(ctx context.Context, shard int32, tries int, err error) {
	if !errors.Is(err, errNoClaim) && o.said.now() {
		o.log.Warn("the claim of a shard's owner cannot be looked up now", "shard", shard, "err", err)
	}
	select {
	case <-time.After(claimPause << min(tries-1, 4)):
	case <-ctx.Done():
	}
}

func (o *owners) find(ctx context.Context, n Owner) error {
	select {
	case o.reading <- struct{}{}:
		defer func() { <-o.reading }()
	case <-ctx.Done():
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, claimReadLimit)
	defer cancel()
	return findClaim(ctx, o.cfg, n)
}

// ignore counts a record that is not believed.
func (o *owners) ignore(reason string, n Owner) {
	o.ignored.WithLabelValues(reason).Inc()
	if o.said.now() {
		o.log.Warn("a record about a shard's owner is ignored; more of them within 10 s are only counted", "topic", eventlog.ShardOwners, "shard", n.Shard, "term", n.Term, "reason", reason)
	}
}

// run follows the topic until ctx ends.
func (o *owners) run(ctx context.Context) error {
	client, err := o.cfg.NewClient(kgo.ConsumeTopics(eventlog.ShardOwners), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return err
	}
	defer client.Close()
	defer o.end()
	for {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		for _, fe := range fetches.Errors() {
			o.log.Warn("shard owners: fetch failed", "err", fe.Err)
		}
		for iter := fetches.RecordIter(); !iter.Done(); {
			o.take(iter.Next())
		}
	}
}

// take takes one record of the topic in.
func (o *owners) take(r *kgo.Record) {
	n, reason := readOwner(r.Value, r.Partition, o.key)
	keyed := string(r.Key) == strconv.Itoa(int(r.Partition))
	if reason == "" && !keyed {
		n, reason = Owner{}, ignoredMalformed
	}
	if keyed {
		o.mu.Lock()
		o.last[r.Partition] = n.Signature
		displaced := n.Signature != o.known[r.Partition].Signature
		o.mu.Unlock()
		if displaced {
			o.follows(r.Partition)
		}
	}
	if reason != "" {
		o.ignore(reason, Owner{Shard: r.Partition})
		return
	}
	o.consider(n)
}

// displaced says whether another record than that of the known owner is the last
// one under the shard's key.
func (o *owners) displaced(shard int32) (known Owner, displaced bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	known = o.known[shard]
	return known, o.last[shard] != known.Signature
}

// announce writes this instance as the shard's owner.
func (s *Shards) announce(sh *shard) {
	p := sh.partition
	n := Owner{Shard: p, Term: sh.term, Claim: sh.claimedAt, Owner: s.Instance, URL: s.URL}.signed(s.ClusterKey)
	s.owners.learn(n)
	s.owners.consider(n) // where a claim of its term or a higher one is known, which may be gone
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
				s.Log.Warn("shard owner not announced; others wait until the next take-over", "partition", p, "err", err)
			}
		})
}

// announceAgainAfter is the time from another record to this instance's own one
// behind it. It bounds what somebody who writes again and again can cause.
const announceAgainAfter = time.Second

// announceAgain makes this instance's record the last one of a shard that it
// serves, where another record landed behind it: an older owner's, or one that
// nobody believes. One of a higher owner is left alone once it is believed.
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
