// Package shard is the write side: one writer per partition of the aggregate
// topics, its aggregates' state in memory, and appends that are checked
// afterwards.
//
// A shard is partition p of orders, payments, riders and restaurants. It is
//
//	assigned   by the consumer group command-shards, which subscribes to
//	           orders alone and fetches nothing;
//	opening    reading its four logs to their ends and folding what counts,
//	           then appending a claim to each with the next term;
//	serving    once all four claims are known to count;
//	leaving    taken away by the group, or this instance stops: it serves on
//	           until the next owner's claims are there, so nobody waits for the
//	           group or for what the next owner has to read;
//	stopped    deposed by a higher claim, broken (an append that failed or is
//	           void), or handed over. It is opened again only after the group
//	           has confirmed that it is still assigned here, with backoff.
//
// The log is authoritative: what counts is decided by eventlog.Rule over the
// log's prefix, for this owner as for everyone else. The group only says who
// should try. Two instances that both think they own a shard cannot both be
// acknowledged: the lower claim's appends are void and land where its owner
// did not expect them, so it notices and acknowledges none of them.
//
// Failure: a lost acknowledgement, a record that landed twice or a pause show
// as an unexpected landing offset and are resolved by reading what stands
// between. A caller whose outcome is not known gets ErrUnavailable; the command
// id in the event answers the retry.
package shard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tomato/domain"
	"tomato/eventlog"
)

// Group is the consumer group that spreads the shards over the instances.
const Group = "command-shards"

// Config says what the shards of one instance need.
type Config struct {
	Kafka        eventlog.Config
	Partitions   int32
	Instance     string // of this process, unique; made up where empty
	URL          string // where other instances reach this one
	ClusterKey   string // shared by the instances: it signs what they say to one another
	Build        string // shown in claims
	PaymentGrace time.Duration
	ArchiveAfter time.Duration // closed orders leave memory after it; unknown ids that are older are archived
	Menus        *Menus
	// SnapshotEvery is the time from one snapshot to the next while the shard
	// changes; 0: 10 s. The longer, the more is read when it is taken over.
	SnapshotEvery time.Duration
	// InboxPassed says whether every webhook of the gateway order that is in
	// the inbox now has been recorded, with nothing parked.
	InboxPassed func(ctx context.Context, gatewayOrderID string) (bool, error)
	Registry    prometheus.Registerer
	Log         *slog.Logger
	// SessionTimeout is how long the group waits for a sign of life of this
	// instance before its shards go to others; 0: 6 s, the least that brokers
	// take unless group.min.session.timeout.ms says otherwise.
	SessionTimeout time.Duration
	// Probe is told of each step of an append, a take-over and a snapshot, on
	// the goroutine that takes it, before it goes on; nil: nobody is. For tests
	// that let the process end there.
	Probe func(step Step, partition int32)
}

// Step is a place in the write side where a process may die.
type Step string

// The steps, in their order.
const (
	StepFenced       Step = "fenced"        // of a take-over: nobody else writes snapshots any more
	StepLogsRead     Step = "logs read"     // up to their ends; nothing is claimed
	StepClaimsSent   Step = "claims sent"   // none is known to have landed
	StepClaimLanded  Step = "claim landed"  // one of the four, each time
	StepClaimed      Step = "claimed"       // all four count; no command is taken yet
	StepServing      Step = "serving"       // and nobody else is told
	StepAnnounced    Step = "announced"     // the others are being told
	StepAppendSent   Step = "append sent"   // given to the producer
	StepAppendLanded Step = "append landed" // acknowledged by the broker; the loop does not know
	StepSettled      Step = "settled"       // known to count; no caller is answered
	StepAnswered     Step = "answered"      // all who waited for it
	StepSnapshotCut  Step = "snapshot cut"  // the state is taken; nothing is written
	StepSnapshotSent Step = "snapshot sent" // written, not committed; of the mark of a take-over, too
	StepSnapshotKept Step = "snapshot kept" // committed
)

func (s *Shards) at(step Step, partition int32) {
	if s.Probe != nil {
		s.Probe(step, partition)
	}
}

// Shards are the shards of one instance. Safe for concurrent use.
type Shards struct {
	Config
	source  string
	metrics *metrics
	owners  *owners
	outbox  *outbox
	http    *http.Client // to other instances
	said    seldom       // of calls that were refused here
	told    seldom       // of calls that another instance refused

	mu       sync.Mutex
	serving  map[int32]*shard
	assigned map[int32]*assignment
	changed  chan struct{} // closed and replaced whenever serving changes
	producer *kgo.Client
	group    *kgo.Client
	again    map[int32]bool // shards that are to be announced again
	leaving  bool           // this instance takes no shards any more
	stopped  bool
}

// assignment is one shard's worker, from being assigned until it has stopped.
type assignment struct {
	cancel   context.CancelFunc
	done     chan struct{}
	leaving  bool  // taken away: it serves until the next owner has claimed, and is not opened again
	stopping bool  // canceled
	err      error // why the last try to open it failed; nil once it serves. Guarded by the Shards' lock
}

// stop lets what is in flight be acknowledged, and no more. The caller holds the lock.
func (a *assignment) stop() {
	a.stopping = true
	a.cancel()
}

type metrics struct {
	void, opened, stops *prometheus.CounterVec
	unknown             *prometheus.CounterVec
	seen, verified      prometheus.Counter
	serving             prometheus.Gauge
	openSeconds         prometheus.Histogram
	snapshots           *prometheus.CounterVec
	snapshotSeconds     prometheus.Histogram
	refusedCalls        *prometheus.CounterVec
}

// minClusterKey is the least length of Config.ClusterKey, in bytes.
const minClusterKey = 32

// NewShards returns the shards of one instance; Run makes them serve.
func NewShards(cfg Config) (*Shards, error) {
	if len(cfg.ClusterKey) < minClusterKey {
		return nil, fmt.Errorf("the cluster key has %d bytes: at least %d are needed", len(cfg.ClusterKey), minClusterKey)
	}
	if cfg.Instance == "" {
		cfg.Instance = uuid.NewString()
	}
	if cfg.SnapshotEvery == 0 {
		cfg.SnapshotEvery = snapshotEvery
	}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		cfg.Registry.MustRegister(c)
		return c
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		cfg.Registry.MustRegister(c)
		return c
	}
	s := &Shards{
		Config: cfg, source: "/tomato/commandside/" + cfg.Instance,
		owners: newOwners(cfg.Kafka, cfg.ClusterKey, cfg.Log),
		http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 512, IdleConnTimeout: time.Minute, DialContext: (&net.Dialer{Timeout: time.Second}).DialContext},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, // a command goes to nobody else
		serving: map[int32]*shard{}, assigned: map[int32]*assignment{}, again: map[int32]bool{}, changed: make(chan struct{}),
		metrics: &metrics{
			void:     counters("tomato_shard_void_records_total", "Invalid records that a shard read and skipped, by reason.", "topic", "reason"),
			unknown:  counters("tomato_shard_unknown_events_total", "Aggregates that were stopped by an event that this build cannot read, each time a take-over finds one.", "topic"),
			opened:   counters("tomato_shard_take_overs_total", "Shards opened, by outcome.", "outcome"),
			stops:    counters("tomato_shard_stops_total", "Shards that stopped serving, by reason.", "reason"),
			seen:     counter("tomato_shard_seen_total", "SHARD_SEEN records appended."),
			verified: counter("tomato_shard_verified_total", "Acknowledgements with an unexpected offset that were verified by reading."),
			serving:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "tomato_shards_serving", Help: "Shards that this instance serves."}),
			openSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "tomato_shard_take_over_seconds",
				Help: "Time from being assigned to serving.", Buckets: prometheus.ExponentialBuckets(0.01, 2, 14)}),
		},
	}
	s.metrics.refusedCalls = counters("tomato_shard_calls_refused_total", "Calls of other instances that were refused, by reason.", "reason")
	s.metrics.snapshots = counters("tomato_shard_snapshots_total", "Snapshots written, by outcome.", "outcome")
	s.metrics.snapshotSeconds = prometheus.NewHistogram(prometheus.HistogramOpts{Name: "tomato_shard_snapshot_seconds",
		Help: "Time to write a snapshot; commands go on meanwhile.", Buckets: prometheus.ExponentialBuckets(0.005, 2, 14)})
	all := prometheus.NewGauge(prometheus.GaugeOpts{Name: "tomato_shards", Help: "Shards that there are: partitions."})
	all.Set(float64(cfg.Partitions))
	cfg.Registry.MustRegister(s, all, s.metrics.serving, s.metrics.openSeconds, s.metrics.snapshotSeconds)
	s.owners.follows = s.announceAgain
	s.owners.ignored = counters("tomato_shard_owner_records_ignored_total", "Records about shards' owners that are not believed, by reason.", "reason")
	var err error
	if s.producer, err = s.newProducer(); err != nil {
		return nil, err
	}
	s.outbox = newOutbox()
	return s, nil
}

// newProducer returns the client through which all shards append. An append
// that may have landed is never given up: callers have deadlines of their own,
// and it settles later.
func (s *Shards) newProducer() (*kgo.Client, error) {
	return s.Kafka.NewClient(
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerLinger(0),
		kgo.ProduceRequestTimeout(3*time.Second), // then it is sent again, to whoever leads by now
		kgo.StopProducerOnDataLossDetected(),
		kgo.MaxBufferedRecords(int(s.Partitions)*(maxInFlight+1024)), // never blocks the loops: deadlines and SEENs come on top
		kgo.ProducerBatchCompression(kgo.NoCompression()),
	)
}

// replaceProducer puts a fresh client in the place of one that failed. Its
// shards hear of it by their own appends failing, and claim anew.
func (s *Shards) replaceProducer(failed *kgo.Client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.producer != failed || s.stopped {
		return
	}
	fresh, err := s.newProducer()
	if err != nil {
		s.Log.Error("no new producer", "err", err)
		return
	}
	s.producer = fresh
	go failed.Close() // fails what it still holds
}

// Follow learns where the shards are until ctx ends, for an instance that
// serves none: what it executes goes to their owners. Either Follow or Run is
// called, once.
func (s *Shards) Follow(ctx context.Context) error {
	defer s.closeProducer()
	return s.follow(ctx)
}

func (s *Shards) follow(ctx context.Context) error {
	defer s.http.CloseIdleConnections()
	return s.owners.run(ctx)
}

func (s *Shards) closeProducer() {
	s.mu.Lock()
	s.stopped = true
	producer := s.producer
	s.mu.Unlock()
	s.outbox.close()
	producer.Close()
}

// Run joins the group and serves what it is assigned until ctx ends; then it
// drains, leaves the group and returns. See HandOver for what goes before.
func (s *Shards) Run(ctx context.Context) error {
	defer s.closeProducer()
	var followers sync.WaitGroup
	defer followers.Wait()
	followers.Go(func() {
		if err := s.follow(ctx); err != nil {
			s.Log.Error("shard owners are not followed", "err", err)
		}
	})
	select { // pricing needs the menus before the first command
	case <-s.Menus.Ready():
	case <-ctx.Done():
		return nil
	}
	group, err := s.Kafka.NewClient(
		kgo.ConsumerGroup(Group), kgo.ConsumeTopics(eventlog.Orders), kgo.DisableAutoCommit(),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.HeartbeatInterval(200*time.Millisecond), kgo.SessionTimeout(cmp.Or(s.SessionTimeout, 6*time.Second)), kgo.RebalanceTimeout(10*time.Second),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, m map[string][]int32) { s.assign(m[eventlog.Orders]) }),
		kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, m map[string][]int32) { s.release(m[eventlog.Orders]) }),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, m map[string][]int32) { s.release(m[eventlog.Orders]) }),
	)
	if err != nil {
		return err
	}
	group.PauseFetchTopics(eventlog.Orders) // the group assigns; it fetches nothing
	s.mu.Lock()
	s.group = group
	s.mu.Unlock()
	<-ctx.Done()
	s.stopAll()
	group.Close() // leaves, unless HandOver did
	return nil
}

// HandOver lets the other instances have the shards while this one goes on
// serving, each until its next owner's claims are there. It returns when none is
// served here any more, when nobody is there to take them, or when ctx ends; then
// commands still find what is left, until Run's end. To be called before Run's
// end, and before this instance can no longer be reached.
func (s *Shards) HandOver(ctx context.Context) {
	s.mu.Lock()
	s.leaving = true
	group := s.group
	s.mu.Unlock()
	if group == nil || !s.others(ctx, group) {
		return
	}
	if err := group.LeaveGroupContext(ctx); err != nil { // the others find out when the session times out
		s.Log.Warn("the group of the shards was not left", "err", err)
	}
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		s.mu.Lock()
		left, changed := len(s.serving), s.changed
		s.mu.Unlock()
		if left == 0 {
			return
		}
		select {
		case <-changed:
		case <-tick.C:
			if !s.others(ctx, group) { // they stop, too
				return
			}
		case <-ctx.Done():
			s.Log.Warn("not all shards were taken over in time", "left", left)
			return
		}
	}
}

// others says whether the group has other members; where that cannot be known
// it may have.
func (s *Shards) others(ctx context.Context, group *kgo.Client) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	groups, err := kadm.NewClient(group).DescribeGroups(ctx, Group)
	if err == nil {
		err = groups.Error()
	}
	if err != nil {
		s.Log.Warn("the group of the shards is not known", "err", err)
		return true
	}
	me, _ := group.GroupMetadata()
	return slices.ContainsFunc(groups[Group].Members, func(m kadm.DescribedGroupMember) bool { return m.MemberID != me })
}

func (s *Shards) assign(partitions []int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range partitions {
		before := s.assigned[p]
		switch {
		case s.leaving || s.stopped:
			continue
		case before != nil && !before.stopping: // it was taken away and nobody has claimed it
			before.leaving = false
			if sh := s.serving[p]; sh != nil {
				sh.passing.Store(false)
			}
			continue
		}
		ctx, cancel := context.WithCancel(context.Background())
		a := &assignment{cancel: cancel, done: make(chan struct{})}
		s.assigned[p] = a
		go func() {
			defer close(a.done)
			if before != nil {
				<-before.done
			}
			s.run(ctx, p, a)
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.assigned[p] == a {
				delete(s.assigned, p)
			}
		}()
	}
}

// release lets shards go that were revoked or lost. What is served goes on until
// it is known to be served elsewhere: stopped now, its commands would wait for
// the rest of the rebalance and for all that the next owner has to read. It need
// not be stopped for the log's sake, which decides by the next claim.
func (s *Shards) release(partitions []int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range partitions {
		a, sh := s.assigned[p], s.serving[p]
		if a == nil || a.leaving {
			continue
		}
		a.leaving = true
		if sh == nil {
			a.stop()
			continue
		}
		sh.passing.Store(true)
		go s.serveUntilClaimed(p, a, sh)
	}
}

// serveUntilClaimed stops a shard that is leaving when another has announced
// itself. Where there are commands an append behind the other's claim tells
// sooner.
func (s *Shards) serveUntilClaimed(p int32, a *assignment, sh *shard) {
	for {
		owner, known, learned := s.owners.of(p)
		s.mu.Lock()
		over := !a.leaving
		if !over && known && owner.Owner != s.Instance && owner.Term > sh.term {
			a.stop()
			over = true
		}
		s.mu.Unlock()
		if over {
			return
		}
		select {
		case <-learned:
		case <-sh.closed:
			return
		}
	}
}

// ends says whether a shard that stopped serving is not to be opened again.
func (s *Shards) ends(a *assignment) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.leaving {
		a.stop()
	}
	return a.stopping
}

// stopAll stops all shards and waits until they have.
func (s *Shards) stopAll() {
	s.mu.Lock()
	s.stopped = true
	var all []*assignment
	for _, a := range s.assigned {
		a.stop()
		all = append(all, a)
	}
	s.mu.Unlock()
	for _, a := range all {
		<-a.done
	}
}

// run opens and serves one shard, again and again, while it is assigned here.
func (s *Shards) run(ctx context.Context, p int32, a *assignment) {
	trust := true
	for try := 0; ctx.Err() == nil; {
		start := time.Now()
		sh, err := s.open(ctx, p, trust)
		if err != nil {
			if s.ends(a) {
				return
			}
			s.metrics.opened.WithLabelValues("failed").Inc()
			trust = trust && !errors.Is(err, errForeignSnapshot)
			s.Log.Error("shard not opened", "partition", p, "err", err)
			s.notOpened(a, err)
			try++
			if lost := new(eventlog.LostBeginning); errors.As(err, &lost) {
				s.pause(ctx, try, 30*time.Second) // each try loads its snapshots, and somebody has to restore the log
			} else {
				s.pause(ctx, try, pauseMost)
			}
			s.confirmAssigned(ctx)
			continue
		}
		s.metrics.opened.WithLabelValues("serving").Inc()
		s.metrics.openSeconds.Observe(time.Since(start).Seconds())
		s.Log.Info("shard serving", "partition", p, "term", sh.term, "took", time.Since(start).Round(time.Millisecond))
		sh.openedAt, sh.took = time.Now().UTC(), time.Since(start)
		s.notOpened(a, nil)
		s.setServing(p, sh)
		s.at(StepServing, p)
		s.announce(sh)
		s.at(StepAnnounced, p)
		err = sh.serve(ctx)
		s.setServing(p, nil)
		trust = !errors.Is(err, errForeignSnapshot)
		switch {
		case errors.Is(err, errHandedOff):
			s.metrics.stops.WithLabelValues("handed_over").Inc()
			return
		case errors.Is(err, errDeposed):
			s.metrics.stops.WithLabelValues("deposed").Inc()
		default:
			s.metrics.stops.WithLabelValues("broken").Inc()
		}
		if s.ends(a) {
			return
		}
		s.Log.Warn("shard stopped", "partition", p, "term", sh.term, "err", err)
		if time.Since(start) > time.Minute {
			try = 0
		}
		try++
		s.pause(ctx, try, pauseMost)
		s.confirmAssigned(ctx)
	}
}

func (s *Shards) notOpened(a *assignment, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a.err = err
}

// OpenError says why shards that are assigned to this instance could not be
// opened; nil: there are none.
func (s *Shards) OpenError() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, p := range slices.Sorted(maps.Keys(s.assigned)) {
		if err := s.assigned[p].err; err != nil {
			errs = append(errs, fmt.Errorf("shard %d: %w", p, err))
		}
	}
	return errors.Join(errs...)
}

const pauseMost = 5 * time.Second

// pause waits before the next claim, longer each time, with jitter: two owners
// must not depose each other in turns. It is most at most.
func (s *Shards) pause(ctx context.Context, try int, most time.Duration) {
	limit := min(100*time.Millisecond<<min(try, 10), most)
	select {
	case <-ctx.Done():
	case <-time.After(limit/2 + rand.N(limit/2)):
	}
}

// confirmAssigned returns when a heartbeat of the group was answered without
// error: this member's generation is the present one, so what the callbacks
// have left assigned is its whole current assignment.
func (s *Shards) confirmAssigned(ctx context.Context) {
	for try := 1; ctx.Err() == nil; try++ {
		s.mu.Lock()
		group := s.group
		s.mu.Unlock()
		if group != nil {
			member, generation := group.GroupMetadata()
			req := kmsg.NewPtrHeartbeatRequest()
			req.Group, req.MemberID, req.Generation = Group, member, generation
			hctx, cancel := context.WithTimeout(ctx, 2*time.Second)
			resp, err := req.RequestWith(hctx, group)
			cancel()
			if err == nil && resp.ErrorCode == 0 {
				return
			}
		}
		s.pause(ctx, min(try, 3), pauseMost)
	}
}

func (s *Shards) setServing(p int32, sh *shard) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sh == nil {
		delete(s.serving, p)
	} else {
		s.serving[p] = sh
	}
	s.metrics.serving.Set(float64(len(s.serving)))
	close(s.changed)
	s.changed = make(chan struct{})
}

// Serving returns how many shards this instance serves, those included that it
// serves until another does, and how many it is assigned.
func (s *Shards) Serving() (serving, assigned int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.assigned {
		if !a.leaving {
			assigned++
		}
	}
	return len(s.serving), assigned
}

// Unserved returns the shards that are assigned to this instance and not served
// by it yet, but for those that no instance can serve because their log is not
// whole: OpenError has these.
func (s *Shards) Unserved() (out []int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, a := range s.assigned {
		if !a.leaving && s.serving[p] == nil && !errors.As(a.err, new(*eventlog.LostBeginning)) {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return out
}

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
