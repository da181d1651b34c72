// Package consumer runs read models and policies: the consumers of topics. All of
// them run in the same way.
//
// What is authoritative. The Kafka group of a consumer only says which instance
// reads which partition; nothing is committed to it. Where a consumer stands is
// a row of tomato.checkpoints, and what it could not handle is a row of
// tomato.parked per record; both are loaded when a partition is assigned. Who
// takes a partition over raises the checkpoint's epoch. All writes of these rows
// compare epoch and offset first, in the transaction that they belong to, so an
// instance that was deposed without noticing changes nothing more.
//
// States of a partition's worker: reading (records wait in a bounded queue, over
// which fetching pauses) → handling → moved; waiting (a dependency is away:
// backoff, no attempt is counted, the lag shows); paused (more parked than the
// budget: only parked records run); drained (partition revoked or stop: what is
// under way ends within a bound, then the checkpoint is written); abandoned
// (partition lost: stop, write nothing). An error that no worker can go on from
// (a fenced checkpoint, a hole in an aggregate topic, an offset out of range)
// ends the group session; the next one, after a backoff, loads everything anew.
//
// Handling. Rows: one transaction has the checkpoint's move, the parked rows and
// the handler's rows, so an event takes effect once. Batch: effect, then parked
// rows and checkpoint in one transaction; where nothing was parked, the checkpoint
// follows with those of the other partitions, some tens of milliseconds later.
// Each: keys run beside each other, a key's events one after the other; a parked
// row is written before its record counts as done, and the checkpoint follows the
// oldest record that is not done. Where an effect comes before the checkpoint it
// may be repeated after a crash, in the same order.
//
// Failures. A batch that fails is halved until the event stands alone. Alone,
// it is tried a few times in place; then its copy, with the reasons as headers,
// goes to <topic>.<consumer>.retry-5s, after a further failure to retry-30s, and
// after the third, or at once if it is poison, to .dlq. The copies are for
// people and as a second source; they are not consumed. A parked row has its own
// due time, and the worker of the source partition takes the record from memory
// or from its source position when it is due (from the copy where the source
// has expired). That keeps the promise of retry topics, with less to go wrong:
// rows are in source order, which a retry topic is not; only the smallest source
// position of a key is ever due; and there is no second position that could
// disagree with the rows, no copy to be recognised as outdated. Copy first, then
// row: a crash between leaves a copy too many, never one too few.
//
// Order. While a key has a parked row, its later records become rows too
// (waiting) without being tried. When the smallest is done or discarded, the
// next one runs.
package consumer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"tomato/eventlog"
)

const (
	defaultLanes     = 16
	defaultMaxBatch  = 1000
	defaultKeyBudget = 1000
	defaultBudget    = 10000
	defaultTries     = 3

	handlerTimeout = time.Minute     // of one handler call
	drainTimeout   = 3 * time.Second // for what is under way when a partition goes or the runtime stops
	lostTimeout    = time.Second     // for a handler to notice that its context ended
	// idleInTransaction is when Postgres ends a transaction that holds a
	// checkpoint and does nothing: its process is stopped or cut off, and the
	// next owner waits for the row.
	idleInTransaction = 10 * time.Second
	flushInterval     = 50 * time.Millisecond
	quietFlush        = 100 * time.Millisecond // of positions that no handler call has moved: claims and SEENs
	toolsInterval     = 500 * time.Millisecond // how soon a replay or discard is noticed
	endsInterval      = time.Second
	maxQueueBytes     = 4 << 20 // per partition, before fetching pauses
	readTimeout       = 5 * time.Second
	takeTimeout       = 15 * time.Second // for taking checkpoints: longer than Postgres leaves them to a process that is stopped
	awayTellFirst     = 2 * time.Second  // how long something is away before it is logged, and then how often
	awayTellEvery     = 10 * time.Second
	awayStopped       = 30 * time.Second // and before it counts as standing still
)

// runtimeState is what a Runtime keeps between and across calls of Run.
type runtimeState struct {
	mu       sync.Mutex // guards groups
	groups   []*group
	metrics  *runtimeMetrics
	breakers *breakers
	once     sync.Once

	// For tests; zero values mean the real ones.
	delays  [2]time.Duration
	idleTx  time.Duration
	tools   time.Duration
	abandon chan struct{} // closed: end as if the process were killed
	still   time.Duration // instead of all times after which something counts as standing still
}

// stillAfter is d, but in tests.
func (r *Runtime) stillAfter(d time.Duration) time.Duration {
	if r.state.still > 0 {
		return r.state.still
	}
	return d
}

func (c Consumer) withDefaults() (Consumer, error) {
	n := 0
	for _, set := range []bool{c.Each != nil, c.Batch != nil, c.Rows != nil} {
		if set {
			n++
		}
	}
	if n != 1 || c.Name == "" || len(c.Topics) == 0 {
		return c, fmt.Errorf("consumer %q: a name, topics, and exactly one of Each, Batch and Rows are needed", c.Name)
	}
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&c.Lanes, defaultLanes)
	def(&c.MaxBatch, defaultMaxBatch)
	def(&c.KeyBudget, defaultKeyBudget)
	def(&c.Budget, defaultBudget)
	def(&c.InPlaceTries, defaultTries)
	if c.RetryDelays == nil {
		c.RetryDelays = []time.Duration{5 * time.Second, 30 * time.Second}
	}
	if len(c.RetryDelays) > 2 {
		return c, fmt.Errorf("consumer %q: there are two retry topics, so at most two RetryDelays", c.Name)
	}
	return c, nil
}

// Group is the name of the consumer's Kafka group.
func (c Consumer) Group() string {
	if c.Generation > 0 {
		return fmt.Sprintf("tomato.%s.g%d", c.Name, c.Generation)
	}
	return "tomato." + c.Name
}

// Run runs the consumers until ctx ends; then it drains them, writes their
// checkpoints and returns nil, within a few seconds. It fails only when it
// cannot begin: a consumer that is none, or a configuration without clients.
// Whatever goes wrong later is retried and shows in Status. May be called many
// times, also at once, for different consumers.
func (r *Runtime) Run(ctx context.Context, consumers ...Consumer) error {
	log := r.Log
	if log == nil {
		log = slog.Default()
	}
	s := &r.state
	s.once.Do(func() {
		s.metrics = newRuntimeMetrics(r)
		s.breakers = &breakers{state: s.metrics.breakers, by: map[string]*gobreaker.TwoStepCircuitBreaker[struct{}]{}}
		if s.idleTx == 0 {
			s.idleTx = idleInTransaction
		}
		if s.tools == 0 {
			s.tools = toolsInterval
		}
	})
	groups := make([]*group, len(consumers))
	for i, c := range consumers {
		c, err := c.withDefaults()
		if err != nil {
			return err
		}
		groups[i] = &group{r: r, c: c, log: log.With("consumer", c.Name, "generation", c.Generation), workers: map[eventlog.TopicPartition]*worker{}}
	}
	aux, err := r.Kafka.NewClient(
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerLinger(0),
		kgo.ProducerBatchMaxBytes(2<<20), // as the parked topics take
		kgo.WithLogger(quietLogger{log}),
	)
	if err != nil {
		return fmt.Errorf("consumer runtime: %w", err)
	}
	defer aux.Close()

	s.mu.Lock()
	s.groups = append(s.groups, groups...)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, g := range groups {
			for i, x := range s.groups {
				if x == g {
					s.groups = append(s.groups[:i:i], s.groups[i+1:]...)
					break
				}
			}
		}
	}()

	var eg errgroup.Group
	for _, g := range groups {
		g.aux, g.adm = aux, kadm.NewClient(aux)
		eg.Go(func() error { g.run(ctx); return nil })
	}
	return eg.Wait()
}

// group is one consumer at work: one Kafka group member, a worker per
// partition that it was assigned.
type group struct {
	r   *Runtime
	c   Consumer
	log *slog.Logger
	aux *kgo.Client // produces copies; shared by the consumers of one Run
	adm *kadm.Client

	heartbeat atomic.Int64 // Unix nanoseconds of the poll loop's last round

	mu      sync.Mutex // guards what follows
	client  *kgo.Client
	workers map[eventlog.TopicPartition]*worker
	err     error                                               // why the last session ended, or its member left; nil while one runs well
	errAt   time.Time                                           // when that was
	takeErr error                                               // why assigned partitions are not being read yet
	lost    map[eventlog.TopicPartition]*eventlog.LostBeginning // assigned partitions that are not read
}

// run holds one session after the other.
func (g *group) run(ctx context.Context) {
	wait := newBackoff(200*time.Millisecond, 5*time.Second)
	for ctx.Err() == nil {
		began := time.Now()
		err := g.session(ctx)
		if ctx.Err() != nil || g.abandoned() {
			return
		}
		g.setError(err)
		g.log.Error("consumer session ended; it begins again from the checkpoints", "error", err)
		if time.Since(began) > time.Minute {
			wait.Reset()
		}
		sleep(ctx, wait.NextBackOff())
	}
}

func (g *group) setError(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.err, g.errAt = err, time.Now()
}

// joined clears an old error once the member is in its group again, with
// partitions or without.
func (g *group) joined(cl *kgo.Client) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil || time.Since(g.errAt) < 2*time.Second {
		return
	}
	if _, generation := cl.GroupMetadata(); generation > 0 {
		g.err = nil
	}
}

// delays are how long a failed record waits before each further attempt.
func (g *group) delays() []time.Duration {
	if d := g.r.state.delays; d != [2]time.Duration{} {
		return d[:]
	}
	return g.c.RetryDelays
}

func (g *group) abandoned() bool {
	select {
	case <-g.r.state.abandon: // nil but in tests
		return true
	default:
		return false
	}
}

// session is one membership of the group, until ctx ends or something fails
// that needs a fresh start from the checkpoints.
func (g *group) session(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &session{g: g, fail: func(err error) { cancel(err) }}
	cl, err := g.r.Kafka.NewClient(
		kgo.ConsumerGroup(g.c.Group()),
		kgo.ConsumeTopics(g.c.Topics...),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.DisableAutoCommit(),
		// A record that was polled is in its worker's queue before a rebalance
		// begins. Otherwise one polled under an old assignment could reach the
		// worker of a new one, with a hole before it.
		kgo.BlockRebalanceOnPoll(),
		kgo.HeartbeatInterval(500*time.Millisecond),
		kgo.SessionTimeout(6*time.Second),
		kgo.RebalanceTimeout(15*time.Second),
		// Where to begin is the checkpoint's word alone. An offset out of range
		// is an error: falling back to either end would skip or repeat.
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.AdjustFetchOffsetsFn(s.assigned),
		kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, m map[string][]int32) { s.release(m, drainTimeout) }),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, m map[string][]int32) { s.release(m, 0) }),
		kgo.FetchMaxBytes(8<<20),
		kgo.FetchMaxPartitionBytes(1<<20),
		kgo.FetchMaxWait(500*time.Millisecond),
		kgo.WithLogger(quietLogger{g.log}),
	)
	if err != nil {
		return err
	}
	g.mu.Lock()
	g.client, g.lost = cl, map[eventlog.TopicPartition]*eventlog.LostBeginning{}
	g.mu.Unlock()

	var wg sync.WaitGroup
	wg.Go(func() { s.keep(ctx) })
	if a := g.r.state.abandon; a != nil {
		wg.Go(func() {
			select {
			case <-a:
				cancel(errors.New("abandoned"))
			case <-ctx.Done():
			}
		})
	}
	for ctx.Err() == nil {
		g.heartbeat.Store(time.Now().UnixNano())
		pctx, done := context.WithTimeout(ctx, time.Second)
		fetches := cl.PollRecords(pctx, 0)
		done()
		fetches.EachTopic(func(t kgo.FetchTopic) {
			t.EachPartition(func(p kgo.FetchPartition) { s.fetched(t.Topic, p) })
		})
		cl.AllowRebalance()
		g.joined(cl)
	}
	bound := drainTimeout
	if g.abandoned() {
		bound = 0
	}
	s.releaseAll(bound)
	wg.Wait()
	cl.CloseAllowingRebalance()
	g.mu.Lock()
	g.client = nil
	g.mu.Unlock()
	return context.Cause(ctx)
}
