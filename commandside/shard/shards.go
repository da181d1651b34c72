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

// This file owns the shards of one instance as a whole: their configuration, their
// producer, and which of them are assigned and served.

// Config is the configuration of the shards of one instance.
type Config struct {
	Kafka        eventlog.Config
	Partitions   int32          // of each aggregate topic
	LogID        eventlog.LogID // of the logs; it names the installation in the records
	Instance     string         // unique name of this process; if empty, a random one is used
	URL          string         // at which other instances reach this one
	ClusterKeys  []string       // shared by all instances: the first one signs the calls between them and the owner records, each of them verifies
	Build        string         // of this binary; written into claims, and into marks of unreadable events
	PaymentGrace time.Duration  // how long after its deadline an order may wait for InboxPassed before it expires
	ArchiveAfter time.Duration  // time after which closed orders are evicted; commands on unknown ids that are older are refused as archived
	Menus        *Menus
	// EventEpoch is up to which event-schema epoch this instance writes events, whatever
	// the other instances can read; 0 means the lowest epoch of all owners of shards.
	EventEpoch int
	// SnapshotEvery is the time from one snapshot to the next while the shard
	// changes; 0 means 10 s. With a longer time a take-over reads more of the logs.
	SnapshotEvery time.Duration
	// InboxPassed reports whether every webhook of the gateway order that is in the
	// inbox now has been recorded, and none of them is parked.
	InboxPassed func(ctx context.Context, gatewayOrderID string) (bool, error)
	Registry    prometheus.Registerer
	Log         *slog.Logger
	// SessionTimeout is how long the group waits for a heartbeat of this instance
	// before it assigns the shards to others; 0 means 6 s, which is the least that
	// brokers allow with the default of group.min.session.timeout.ms.
	SessionTimeout time.Duration
	// Probe is called at each step of an append, a take-over and a snapshot, on the
	// goroutine that takes the step, which waits for it. It may be nil. Tests use it
	// to end the process at a step.
	Probe func(step Step, partition int32)
}

// Step is a point in the write side at which tests end the process.
type Step string

// The steps, in their order.
const (
	StepFenced       Step = "fenced"        // the take-over has fenced the previous writer of snapshots
	StepLogsRead     Step = "logs read"     // the four logs are read to their ends; nothing is claimed
	StepFenceSent    Step = "fence sent"    // the fence that announces the claims is given to the producer
	StepFenceLanded  Step = "fence landed"  // the fence is acknowledged; nothing is claimed
	StepClaimsSent   Step = "claims sent"   // the claims are given to the producer
	StepClaimLanded  Step = "claim landed"  // one of the four claims is acknowledged by the broker
	StepClaimed      Step = "claimed"       // all four claims are valid; no command is taken yet
	StepServing      Step = "serving"       // the shard takes commands; other instances do not know yet
	StepAnnounced    Step = "announced"     // the owner record is given to the producer
	StepAppendSent   Step = "append sent"   // an append is given to the outbox
	StepAppendLanded Step = "append landed" // the broker has acknowledged the append; the loop does not know yet
	StepCheckLanded  Step = "check landed"  // the broker has acknowledged a check; the loop does not know yet
	StepAppendValid  Step = "append valid"  // the append is known to be valid; no caller is answered yet
	StepAnswered     Step = "answered"      // all callers that waited for the append are answered
	StepSnapshotCut  Step = "snapshot cut"  // the state for a snapshot is taken; nothing is written
	StepSnapshotSent Step = "snapshot sent" // records are written, not committed; also for the mark of a take-over
	StepSnapshotKept Step = "snapshot kept" // the snapshot is committed
)

// at calls the probe, if there is one.
func (s *Shards) at(step Step, partition int32) {
	if s.Probe != nil {
		s.Probe(step, partition)
	}
}

// Shards are the shards of one instance. Safe for concurrent use.
type Shards struct {
	Config
	epoch       int    // event-schema epoch of this build
	source      string // CloudEvents source of the records of all instances: the installation and the kind of writer
	metrics     *metrics
	owners      *owners
	outbox      *outbox
	http        *http.Client // to other instances
	logged      logLimit     // for calls that this instance refuses
	loggedThere logLimit     // for calls that another instance refuses

	mu       sync.Mutex
	serving  map[int32]*shard      // by partition
	assigned map[int32]*assignment // by partition
	changed  chan struct{}         // closed and replaced whenever serving changes
	producer *kgo.Client
	group    *kgo.Client
	again    map[int32]bool // shards whose announcement will be repeated
	leaving  bool           // this instance hands its shards over and takes no more
	stopped  bool           // the shards are stopped
}

// assignment is one shard on this instance, from its assignment by the group until it
// has stopped. The Shards' lock guards its fields.
type assignment struct {
	cancel   context.CancelFunc
	done     chan struct{}
	leaving  bool  // the group has revoked the shard: it serves until the next owner has claimed it, and is not opened again
	stopping bool  // cancel was called
	err      error // why the last try to open the shard failed; nil once it serves
}

// stop makes the shard stop after its appends in flight are acknowledged. The caller
// holds the lock.
func (a *assignment) stop() {
	a.stopping = true
	a.cancel()
}

type metrics struct {
	invalid, opened, stops *prometheus.CounterVec
	unknown                *prometheus.CounterVec
	checks, verified       prometheus.Counter
	serving                prometheus.Gauge
	openSeconds            prometheus.Histogram
	snapshots              *prometheus.CounterVec
	snapshotSeconds        prometheus.Histogram
	refusedCalls           *prometheus.CounterVec
}

// minClusterKey is the least length of each of Config.ClusterKeys, in bytes.
const minClusterKey = 32

// NewShards returns the shards of one instance. Run makes them serve. The error says
// what is wrong with the configuration.
func NewShards(cfg Config) (*Shards, error) {
	if len(cfg.ClusterKeys) == 0 {
		return nil, errors.New("a cluster key is needed")
	}
	for _, key := range cfg.ClusterKeys {
		if len(key) < minClusterKey {
			return nil, fmt.Errorf("a cluster key has %d bytes: at least %d are needed", len(key), minClusterKey)
		}
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
	if cfg.EventEpoch < 0 || cfg.EventEpoch > BuildEpoch {
		return nil, fmt.Errorf("events of epoch %d cannot be written: this build knows epochs up to %d", cfg.EventEpoch, BuildEpoch)
	}
	s := &Shards{
		Config: cfg, epoch: BuildEpoch, source: "/tomato/" + cfg.LogID.String() + "/shards",
		owners: newOwners(cfg.Kafka, cfg.Partitions, cfg.ClusterKeys, cfg.Log),
		http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 512, IdleConnTimeout: time.Minute, DialContext: (&net.Dialer{Timeout: time.Second}).DialContext},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, // a redirect is not followed: the body is for the owner alone
		serving: map[int32]*shard{}, assigned: map[int32]*assignment{}, again: map[int32]bool{}, changed: make(chan struct{}),
		metrics: &metrics{
			invalid:  counters("tomato_shard_void_records_total", "Invalid records that a shard read and skipped, by reason.", "topic", "reason"),
			unknown:  counters("tomato_shard_unknown_events_total", "Aggregates that were stopped by an event that this build cannot read, each time a take-over finds one.", "topic"),
			opened:   counters("tomato_shard_take_overs_total", "Shards opened, by outcome.", "outcome"),
			stops:    counters("tomato_shard_stops_total", "Shards that stopped serving, by reason.", "reason"),
			checks:   counter("tomato_shard_checks_total", "SHARD_CHECK records appended, which confirm answers that append nothing."),
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
	build := prometheus.NewGauge(prometheus.GaugeOpts{Name: "tomato_event_epoch_build", Help: "Event-schema epoch of this build."})
	build.Set(float64(s.epoch))
	written := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "tomato_event_epoch_written", Help: "Highest epoch of the events that this instance writes: the lowest of all owners of shards, unless TOMATO_EVENT_EPOCH is set."},
		func() float64 { return float64(s.writtenEpoch()) })
	cfg.Registry.MustRegister(build, written, s, all, s.metrics.serving, s.metrics.openSeconds, s.metrics.snapshotSeconds)
	s.owners.onDisplaced = s.announceAgain
	s.owners.ignored = counters("tomato_shard_owner_records_ignored_total", "Records about shards' owners that are not believed, by reason.", "reason")
	var err error
	if s.producer, err = s.newProducer(); err != nil {
		return nil, err
	}
	s.outbox = newOutbox()
	return s, nil
}

// newProducer returns the client through which all shards append. It never gives up
// an append that may have reached the broker. Callers have deadlines of their own;
// the outcome of the append is known later.
func (s *Shards) newProducer() (*kgo.Client, error) {
	compressor, err := newBatchCompressor()
	if err != nil {
		return nil, err
	}
	return s.Kafka.NewClient(
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerLinger(0),
		kgo.ProduceRequestTimeout(3*time.Second), // then the request is sent again, to the present leader
		kgo.StopProducerOnDataLossDetected(),
		kgo.MaxBufferedRecords(int(s.Partitions)*(maxInFlight+1024)), // more than the loops can have in flight, with deadlines and checks, so that Produce never blocks
		kgo.WithCompressor(compressor),
	)
}

// replaceProducer replaces a client that failed by a new one. The shards that use the
// failed one notice that their own appends fail, and claim anew.
func (s *Shards) replaceProducer(failed *kgo.Client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.producer != failed || s.stopped {
		return
	}
	fresh, err := s.newProducer()
	if err != nil {
		s.Log.Error("a producer that failed could not be replaced", "err", err)
		return
	}
	s.producer = fresh
	go failed.Close() // fails the appends that the client still holds
}

// Follow keeps the table of the shards' owners up to date until ctx ends. It is for an
// instance that serves no shards and forwards all commands. Either Follow or Run is
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

// setServing notes that the shard of partition p is served here, or no longer if sh is
// nil.
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

// Serving returns how many shards this instance serves, and how many the group has
// assigned to it. The first number includes shards that are revoked and that no other
// instance has claimed yet.
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

// Unserved returns the shards that are assigned to this instance and that it does not
// serve yet. It leaves out those that no instance can serve because their log has lost
// its beginning; OpenError has these.
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
