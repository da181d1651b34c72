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
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

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
