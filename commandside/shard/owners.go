package shard

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
)

// This file owns the table of the shards' owners, which it reads from the topic
// shard-owners.

// owners knows for each shard the owner with the highest term whose claim is in the
// log. Safe for concurrent use.
type owners struct {
	cfg        eventlog.Config
	keys       []string // cluster keys, of which each verifies
	log        *slog.Logger
	ignored    *prometheus.CounterVec // records that are ignored, by reason
	logged     logLimit               // of ignored records and failed look-ups
	running    context.Context        // ends when run ends
	stop       context.CancelFunc
	partitions int32
	lowest     atomic.Int64  // see setLowest
	lookups    chan struct{} // has one element for each claim that is being looked up

	mu         sync.Mutex
	next       map[int32]int64 // offset after the last record that was read
	unread     map[int32]int64 // ends of the topic's partitions when run began, of those that are not read up to there; nil before
	complete   bool            // unread is known, and nothing is left in it
	known      map[int32]Owner
	changed    chan struct{}     // closed and replaced whenever known changes
	candidates map[int32][]Owner // signed owners other than the known one, whose claims are being looked up
	last       map[int32]Owner   // the last record under the shard's key; zero if it is not valid
	// onDisplaced is called, without locks, when the last record under a shard's key is
	// not that of the known owner. Compaction would keep that last record only.
	onDisplaced func(shard int32)
}

// Bounds of looking up claims.
const (
	maxCandidates  = 16                     // for one shard
	claimsAtOnce   = 8                      // look-ups
	claimReadLimit = 3 * time.Second        // for one look-up
	claimTries     = 3                      // look-ups, after which a claim that is not found is ignored
	claimPause     = 200 * time.Millisecond // after the first failed look-up; later ones are longer
)

func newOwners(cfg eventlog.Config, partitions int32, keys []string, log *slog.Logger) *owners {
	running, stop := context.WithCancel(context.Background())
	o := &owners{cfg: cfg, partitions: partitions, running: running, stop: stop, keys: keys, log: log, lookups: make(chan struct{}, claimsAtOnce), known: map[int32]Owner{}, changed: make(chan struct{}),
		candidates: map[int32][]Owner{}, last: map[int32]Owner{}, next: map[int32]int64{}}
	o.lowest.Store(1)
	return o
}

// learn makes n the known owner of its shard, unless one with the same or a higher
// term is known. The claim of n must be known to be in the log.
func (o *owners) learn(n Owner) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if old, ok := o.known[n.Shard]; ok && n.Term <= old.Term {
		return
	}
	o.known[n.Shard] = n
	o.setLowest()
	close(o.changed)
	o.changed = make(chan struct{})
}

// owner returns the known owner of a shard, if there is one, and a channel that is
// closed when the table changes.
func (o *owners) owner(shard int32) (Owner, bool, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n, ok := o.known[shard]
	return n, ok, o.changed
}

// consider starts to look up the claim of a signed owner in the log. If the log has
// the claim, the owner becomes known. consider does not wait for that.
func (o *owners) consider(n Owner) {
	o.mu.Lock()
	defer o.mu.Unlock()
	all, running := o.candidates[n.Shard]
	if n == o.known[n.Shard] || slices.Contains(all, n) {
		return
	}
	// The candidate with the highest term is looked up first, because once its claim is
	// found, the others need not be looked up.
	all = append(slices.Clone(all), n)
	slices.SortStableFunc(all, func(a, b Owner) int { return int(min(max(b.Term-a.Term, -1), 1)) })
	if len(all) > maxCandidates {
		o.ignore(ignoredClaim, all[maxCandidates])
		all = all[:maxCandidates]
	}
	o.candidates[n.Shard] = all
	o.setLowest()
	if !running {
		go o.lookUp(n.Shard)
	}
}

// lookUp looks up the claims of one shard's candidates until none is left or run has
// ended.
func (o *owners) lookUp(shard int32) {
	ctx := o.running
	tries := map[Owner]int{}
	for {
		o.mu.Lock()
		all, known := o.candidates[shard], o.known[shard]
		if len(all) == 0 || ctx.Err() != nil {
			delete(o.candidates, shard)
			o.setLowest()
			o.mu.Unlock()
			return
		}
		o.mu.Unlock()
		higher := slices.DeleteFunc(slices.Clone(all), func(n Owner) bool { return n.Term <= known.Term })
		if len(higher) == 0 {
			// No candidate has a higher term than the known owner. A true candidate
			// among them means that the log has lost the known owner's claim, so that
			// claim is looked up again.
			err := o.lookUpClaim(ctx, known)
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
		// The candidate with the fewest tries is next, so that one that cannot be found
		// does not delay the true owner.
		n := slices.MinFunc(higher, func(a, b Owner) int { return tries[a] - tries[b] })
		err := o.lookUpClaim(ctx, n)
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

// drop removes the candidates for which the function returns true.
func (o *owners) drop(shard int32, which func(Owner) bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.candidates[shard] = slices.DeleteFunc(slices.Clone(o.candidates[shard]), which)
	o.setLowest()
}

// forget removes a known owner whose claim is no longer in the log.
func (o *owners) forget(n Owner) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.known[n.Shard] == n {
		o.log.Warn("the claim of a shard's owner is not in the log any more: the log has lost records", "shard", n.Shard, "term", n.Term)
		delete(o.known, n.Shard)
		o.setLowest()
		close(o.changed)
		o.changed = make(chan struct{})
	}
}

// pause waits before a claim is looked up again, longer each time.
func (o *owners) pause(ctx context.Context, shard int32, tries int, err error) {
	if !errors.Is(err, errNoClaim) && o.logged.allow() {
		o.log.Warn("the claim of a shard's owner cannot be looked up now", "shard", shard, "err", err)
	}
	select {
	case <-time.After(claimPause << min(tries-1, 4)):
	case <-ctx.Done():
	}
}

// lookUpClaim searches the log for the claim of n. At most claimsAtOnce searches run at
// a time. For the errors see findClaim.
func (o *owners) lookUpClaim(ctx context.Context, n Owner) error {
	select {
	case o.lookups <- struct{}{}:
		defer func() { <-o.lookups }()
	case <-ctx.Done():
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, claimReadLimit)
	defer cancel()
	return findClaim(ctx, o.cfg, n)
}

// ignore counts and logs a record that is not used.
func (o *owners) ignore(reason string, n Owner) {
	o.ignored.WithLabelValues(reason).Inc()
	if o.logged.allow() {
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
	defer o.stop()
	go o.awaitEnds(client)
	for {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		for _, fe := range fetches.Errors() {
			o.log.Warn("shard owners: fetch failed", "err", fe.Err)
		}
		for iter := fetches.RecordIter(); !iter.Done(); {
			o.takeRecord(iter.Next())
		}
	}
}

// awaitEnds asks for the ends of the topic until it has them. Owners that are announced
// later are read as they come.
func (o *owners) awaitEnds(client *kgo.Client) {
	for o.running.Err() == nil {
		ctx, cancel := context.WithTimeout(o.running, claimReadLimit)
		ends, err := eventlog.EndOffsets(ctx, client, eventlog.ShardOwners)
		cancel()
		if err == nil {
			o.mu.Lock()
			o.unread = map[int32]int64{}
			for tp, end := range ends {
				if end > o.next[tp.Partition] {
					o.unread[tp.Partition] = end
				}
			}
			o.complete = len(o.unread) == 0
			o.setLowest()
			o.mu.Unlock()
			return
		}
		if o.logged.allow() {
			o.log.Warn("the end of the topic of shard owners cannot be read yet; events are written in their oldest version", "err", err)
		}
		select {
		case <-time.After(claimPause):
		case <-o.running.Done():
		}
	}
}

// passed notes that a record was read.
func (o *owners) passed(r *kgo.Record) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.next[r.Partition] = r.Offset + 1
	if end, ok := o.unread[r.Partition]; ok && r.Offset+1 >= end {
		delete(o.unread, r.Partition)
		o.complete = len(o.unread) == 0
		o.setLowest()
	}
}

// takeRecord handles one record of the topic.
func (o *owners) takeRecord(r *kgo.Record) {
	defer o.passed(r) // after it is a candidate, so that an older epoch is not missed
	n, reason := readOwner(r.Value, r.Partition, o.keys...)
	keyed := string(r.Key) == strconv.Itoa(int(r.Partition))
	if reason == "" && !keyed {
		n, reason = Owner{}, ignoredMalformed
	}
	if keyed {
		o.mu.Lock()
		o.last[r.Partition] = n
		displaced := n != o.known[r.Partition] // the signature alone would not do, because it does not cover the epoch
		o.mu.Unlock()
		if displaced {
			o.onDisplaced(r.Partition)
		}
	}
	if reason != "" {
		o.ignore(reason, Owner{Shard: r.Partition})
		return
	}
	o.consider(n)
}

// displaced returns the known owner of a shard, and reports whether the last record
// under the shard's key is another one than that owner's.
func (o *owners) displaced(shard int32) (known Owner, displaced bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	known = o.known[shard]
	return known, o.last[shard] != known
}
