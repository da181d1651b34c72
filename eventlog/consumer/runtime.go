package consumer

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/sony/gobreaker/v2"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"tomato/eventlog"
)

const (
	handlerTimeout = time.Minute     // of one handler call
	drainTimeout   = 3 * time.Second // for calls under way when a partition is revoked or the runtime stops
	lostTimeout    = time.Second     // for a handler to notice that its context ended
	// idleInTransaction is after how long Postgres ends a transaction that holds a
	// checkpoint and does nothing. Its process is stopped or cut off, and the next
	// owner of the partition waits for the row.
	idleInTransaction = 10 * time.Second
	readTimeout       = 5 * time.Second
	takeTimeout       = 15 * time.Second // for taking checkpoints: longer than idleInTransaction
)

// runtimeState is what a Runtime keeps between and across calls of Run.
type runtimeState struct {
	mu       sync.Mutex // guards groups, tail and tailUses
	groups   []*group
	tail     *tail // nil while nothing runs
	tailUses int   // calls of Run and Follow that use it
	metrics  *runtimeMetrics
	breakers *breakers
	once     sync.Once

	// Tests set these; the zero values mean those of production.
	delays        [2]time.Duration
	idleTx        time.Duration
	lookInterval  time.Duration
	abandon       chan struct{} // when closed, Run ends as if the process were killed
	followedBytes int           // that wait in Follow
	stoppedAfter  time.Duration // replaces every time after which something counts as stopped
}

// stoppedAfter returns d, or what a test has set instead.
func (r *Runtime) stoppedAfter(d time.Duration) time.Duration {
	if r.state.stoppedAfter > 0 {
		return r.state.stoppedAfter
	}
	return d
}

// Run runs the consumers until ctx ends. Then it drains them, writes their
// checkpoints and returns nil, within a few seconds. It fails only if it cannot
// begin, because a Consumer is incomplete or no Kafka client can be made of the
// configuration. Later errors are retried and shown by Status. Run may be called
// many times, also concurrently, for different consumers.
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
		if s.lookInterval == 0 {
			s.lookInterval = lookInterval
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
		kgo.ProducerBatchMaxBytes(2<<20), // the retry and dead letter topics take as much
		kgo.WithLogger(clientLogger{log}),
	)
	if err != nil {
		return fmt.Errorf("consumer runtime: %w", err)
	}
	defer aux.Close()

	tail, err := r.useTail(clientLogger{log})
	if err != nil {
		return err
	}
	defer r.releaseTail()
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
		g.aux, g.adm, g.tail = aux, kadm.NewClient(aux), tail
		eg.Go(func() error { g.run(ctx); return nil })
	}
	return eg.Wait()
}

// group is one running consumer: a member of its Kafka group, and a worker for each
// partition that is assigned to it.
type group struct {
	r   *Runtime
	c   Consumer
	log *slog.Logger
	aux *kgo.Client // appends copies of failed records; shared by the consumers of one Run
	adm *kadm.Client
	// tail reads what is appended for all consumers of the runtime.
	tail *tail

	combiner combiner // of a Rows consumer's small transactions

	heartbeat atomic.Int64 // when the poll loop last went round, in Unix nanoseconds

	mu      sync.Mutex // guards what follows
	client  *kgo.Client
	wake    context.CancelFunc // ends the poll that is under way
	resumes []*worker          // whose partitions client is to fetch again
	workers map[eventlog.TopicPartition]*worker
	err     error                                               // why the last session ended or lost its membership; nil while a session runs well
	errAt   time.Time                                           // when err was set
	takeErr error                                               // why assigned partitions are not being read yet
	lost    map[eventlog.TopicPartition]*eventlog.LostBeginning // assigned partitions that are not read because records are missing
}

// run runs one session after the other until ctx ends.
func (g *group) run(ctx context.Context) {
	wait := newBackoff(200*time.Millisecond, 5*time.Second)
	for ctx.Err() == nil {
		began := time.Now()
		err := g.session(ctx)
		if ctx.Err() != nil || g.abandoned() {
			return
		}
		g.setError(err)
		g.log.Error("consumer session ended; it begins again from the checkpoints", "err", err)
		if time.Since(began) > time.Minute {
			wait.Reset()
		}
		sleep(ctx, wait.NextBackOff())
	}
}

// db returns the pool of the consumer.
func (g *group) db() *pgxpool.Pool {
	if g.c.Rows != nil && g.r.RowsDB != nil {
		return g.r.RowsDB
	}
	return g.r.DB
}

func (g *group) setError(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.err, g.errAt = err, time.Now()
}

// clearErrorOnceJoined clears an old error when the member is in its group again,
// with partitions or without.
func (g *group) clearErrorOnceJoined(cl *kgo.Client) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil || time.Since(g.errAt) < 2*time.Second {
		return
	}
	if _, generation := cl.GroupMetadata(); generation > 0 {
		g.err = nil
	}
}

// delays returns the pauses before an event's second and third attempt.
func (g *group) delays() []time.Duration {
	if d := g.r.state.delays; d != [2]time.Duration{} {
		return d[:]
	}
	return g.c.RetryDelays
}

func (g *group) abandoned() bool {
	select {
	case <-g.r.state.abandon: // nil except in tests
		return true
	default:
		return false
	}
}
