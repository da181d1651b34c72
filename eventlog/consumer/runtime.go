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
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/sony/gobreaker/v2"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
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

type session struct {
	g    *group
	fail func(error) // ends the session
}

// fetched hands what was polled of one partition to its worker.
func (s *session) fetched(topic string, p kgo.FetchPartition) {
	var groupErr *kgo.ErrGroupSession
	switch err := p.Err; {
	case err == nil, errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, kgo.ErrClientClosed):
	case errors.As(err, &groupErr):
		s.g.setError(err) // the client joins again by itself
		s.g.log.Warn("group session", "error", err)
	case kerr.IsRetriable(err) && !errors.Is(err, kerr.OffsetOutOfRange):
		s.g.log.Warn("fetch", "topic", topic, "partition", p.Partition, "error", err)
	default:
		s.fail(fmt.Errorf("fetch %s/%d: %w", topic, p.Partition, err))
		return
	}
	s.g.mu.Lock()
	w := s.g.workers[eventlog.TopicPartition{Topic: topic, Partition: p.Partition}]
	s.g.mu.Unlock()
	if w != nil {
		w.enqueue(p.Records, p.HighWatermark)
	}
}

// assigned takes the checkpoints of partitions that are new here and says where
// to read on. It waits for Postgres as long as the assignment stands.
func (s *session) assigned(ctx context.Context, offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	var tps []eventlog.TopicPartition
	for t, ps := range offsets {
		for p := range ps {
			tps = append(tps, eventlog.TopicPartition{Topic: t, Partition: p})
		}
	}
	if len(tps) == 0 {
		return offsets, nil
	}
	// One who comes back before its worker has ended must not run beside it.
	s.stop(tps, drainTimeout)
	g := s.g
	wait := newBackoff(50*time.Millisecond, 2*time.Second)
	var workers []*worker
	var lost []*eventlog.LostBeginning
	for {
		var err error
		if workers, lost, err = g.take(ctx, s, tps); err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		g.mu.Lock()
		g.takeErr = err
		g.mu.Unlock()
		g.log.Warn("cannot take checkpoints yet", "error", err)
		if !sleep(ctx, wait.NextBackOff()) {
			return nil, ctx.Err()
		}
	}
	out := map[string]map[int32]kgo.Offset{}
	resume := map[string][]int32{}
	g.mu.Lock()
	cl := g.client
	g.err, g.takeErr = nil, nil
	for _, l := range lost { // the others are read
		g.lost[l.TopicPartition] = l
		g.log.Error("partition not read", "err", l)
	}
	for _, w := range workers {
		if out[w.cp.Topic] == nil {
			out[w.cp.Topic] = map[int32]kgo.Offset{}
		}
		out[w.cp.Topic][w.cp.Partition] = kgo.NewOffset().At(w.read.Next).WithEpoch(-1)
		resume[w.cp.Topic] = append(resume[w.cp.Topic], w.cp.Partition)
		g.workers[w.cp.TopicPartition] = w
	}
	g.mu.Unlock()
	if cl != nil {
		cl.ResumeFetchPartitions(resume) // an earlier worker may have left them paused
	}
	for _, w := range workers {
		w.log.Info("partition taken", "position", w.read.Next, "epoch", w.cp.Epoch, "parked", w.parked.len())
		go w.run()
	}
	return out, nil
}

// take takes the checkpoints and makes the workers, not yet running; none for
// partitions whose records from the checkpoint on are lost.
func (g *group) take(ctx context.Context, s *session, tps []eventlog.TopicPartition) (_ []*worker, lost []*eventlog.LostBeginning, _ error) {
	ctx, cancel := context.WithTimeout(ctx, g.r.stillAfter(takeTimeout))
	defer cancel()
	starts, err := g.adm.ListStartOffsets(ctx, g.c.Topics...)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list start offsets: %w", err)
	}
	first := make(map[eventlog.TopicPartition]int64, len(tps))
	var since time.Time
	for _, tp := range tps {
		o, ok := starts.Lookup(tp.Topic, tp.Partition)
		if !ok {
			return nil, nil, fmt.Errorf("list start offsets: no answer for %s/%d", tp.Topic, tp.Partition)
		}
		first[tp] = o.Offset
	}
	// An aggregate topic is needed from its first record, wherever it begins
	// now. The reader rule needs it, too: with a backlog, older events are read
	// and passed over there; elsewhere reading begins where the backlog does.
	begin := maps.Clone(first)
	for tp := range begin {
		if eventlog.IsAggregate(tp.Topic) {
			begin[tp] = 0
		}
	}
	if g.c.Backlog > 0 {
		since = time.Now().Add(-g.c.Backlog)
		after, err := g.adm.ListOffsetsAfterMilli(ctx, since.UnixMilli(), g.c.Topics...)
		if err == nil {
			err = after.Error()
		}
		if err != nil {
			return nil, nil, fmt.Errorf("list offsets after %v: %w", since, err)
		}
		for tp, o := range first {
			if a, ok := after.Lookup(tp.Topic, tp.Partition); ok && !eventlog.IsAggregate(tp.Topic) {
				begin[tp] = max(o, a.Offset)
			}
		}
	}
	cps, err := TakeCheckpoints(ctx, g.r.DB, g.c.Name, g.c.Generation, begin, since)
	if err != nil {
		return nil, nil, err
	}
	parked, err := loadParked(ctx, g.r.DB, g.c.Name, g.c.Generation, tps)
	if err != nil {
		return nil, nil, fmt.Errorf("load parked records: %w", err)
	}
	workers := make([]*worker, 0, len(tps))
	for _, tp := range tps {
		cp := cps[tp]
		if cp == nil {
			return nil, nil, fmt.Errorf("no checkpoint for %s/%d", tp.Topic, tp.Partition)
		}
		if l := eventlog.MissingBeginning(tp, first[tp], cp.Next); l != nil {
			lost = append(lost, l)
			continue
		}
		w := newWorker(s, cp, newParkedSet(parked[tp], g.c.KeyBudget))
		if expired := first[tp] - cp.Next; expired > 0 {
			g.log.Error("records expired before they were read", "topic", tp.Topic, "partition", tp.Partition, "records", expired)
			w.read.Next = first[tp]
			w.pos = w.read // who waits for this consumer does not wait for what is gone
		}
		workers = append(workers, w)
	}
	return workers, lost, nil
}

// release stops the workers of partitions that go away; bound 0: without
// writing anything more.
func (s *session) release(m map[string][]int32, bound time.Duration) {
	var tps []eventlog.TopicPartition
	for t, ps := range m {
		for _, p := range ps {
			tps = append(tps, eventlog.TopicPartition{Topic: t, Partition: p})
		}
	}
	s.stop(tps, bound)
}

func (s *session) releaseAll(bound time.Duration) {
	s.g.mu.Lock()
	var tps []eventlog.TopicPartition
	for tp := range s.g.workers {
		tps = append(tps, tp)
	}
	s.g.mu.Unlock()
	s.stop(tps, bound)
}

func (s *session) stop(tps []eventlog.TopicPartition, bound time.Duration) {
	var ws []*worker
	s.g.mu.Lock()
	for _, tp := range tps {
		if w := s.g.workers[tp]; w != nil {
			ws = append(ws, w)
			delete(s.g.workers, tp)
		}
		delete(s.g.lost, tp)
	}
	s.g.mu.Unlock()
	var wg sync.WaitGroup
	for _, w := range ws {
		wg.Go(func() { w.stop(bound) })
	}
	wg.Wait()
}

// keep does what is due from time to time: it writes positions that no
// transaction of a worker has moved, learns the ends of the topics, and looks
// for what an operator changed.
func (s *session) keep(ctx context.Context) {
	g := s.g
	tick := time.NewTicker(flushInterval)
	defer tick.Stop()
	var ends, tools time.Time
	for {
		var now time.Time
		select {
		case now = <-tick.C:
		case <-ctx.Done():
			return
		}
		g.mu.Lock()
		ws := make([]*worker, 0, len(g.workers))
		for _, w := range g.workers {
			ws = append(ws, w)
		}
		g.mu.Unlock()
		if err := g.flush(ctx, ws, now); err != nil {
			if errors.Is(err, ErrFenced) {
				s.fail(err)
				return
			}
			if ctx.Err() == nil {
				g.log.Debug("flush positions", "error", err)
			}
		}
		if now.Sub(tools) >= g.r.state.tools {
			tools = now
			g.lookForTools(ctx, ws)
		}
		if now.Sub(ends) >= endsInterval {
			ends = now
			ectx, cancel := context.WithTimeout(ctx, readTimeout)
			list, err := g.adm.ListEndOffsets(ectx, g.c.Topics...)
			cancel()
			if err == nil {
				for _, w := range ws {
					if o, ok := list.Lookup(w.cp.Topic, w.cp.Partition); ok && o.Err == nil {
						w.sawEnd(o.Offset)
					}
				}
			}
		}
	}
}

// flush moves the checkpoints of all workers whose position has gone on since.
// The zero now means all of them at once, whatever it waits for.
func (g *group) flush(ctx context.Context, ws []*worker, now time.Time) error {
	var locked []*worker
	var cps []*Checkpoint
	var to []Mark
	for _, w := range ws {
		if now.IsZero() {
			w.commitMu.Lock()
		} else if !w.commitMu.TryLock() {
			continue // its own transaction moves it
		}
		m, ok := w.toFlush(now)
		if !ok {
			w.commitMu.Unlock()
			continue
		}
		locked, cps, to = append(locked, w), append(cps, w.cp), append(to, m)
	}
	if len(locked) == 0 {
		return nil
	}
	defer func() {
		for _, w := range locked {
			w.commitMu.Unlock()
		}
	}()
	// A statement broken off by the end of the session may have moved them or
	// not, and then the last positions of a drain cannot be written: it is
	// bounded, and not broken off.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readTimeout)
	defer cancel()
	moved, err := moveAll(ctx, g.r.DB, g.c.Name, g.c.Generation, cps, to)
	if err != nil {
		return err
	}
	for i, w := range locked {
		if !moved[w.cp.TopicPartition] {
			return fmt.Errorf("%s/%d: %w", w.cp.Topic, w.cp.Partition, ErrFenced)
		}
		w.moved(to[i])
	}
	return nil
}

// lookForTools tells workers about parked rows that an operator has changed.
func (g *group) lookForTools(ctx context.Context, ws []*worker) {
	any := false
	for _, w := range ws {
		any = any || w.hasParked.Load()
	}
	if !any {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	rows, err := g.r.DB.Query(ctx, `SELECT topic, partition, `+parkedColumns+` FROM tomato.parked
		WHERE consumer = $1 AND generation = $2 AND (state = 'discarded' OR state = 'retry' AND attempt = 0)`, g.c.Name, g.c.Generation)
	if err != nil {
		return // asked again soon
	}
	defer rows.Close()
	changed := map[eventlog.TopicPartition][]parkedItem{}
	for rows.Next() {
		var tp eventlog.TopicPartition
		it, err := scanParked(rows, &tp.Topic, &tp.Partition)
		if err != nil {
			g.log.Error("read parked rows", "error", err)
			return
		}
		changed[tp] = append(changed[tp], *it)
	}
	for _, w := range ws {
		if c := changed[w.cp.TopicPartition]; len(c) > 0 {
			w.tell(c)
		}
	}
}

// fetchAt reads the record at one position, and hands it and what came along
// with it to each. It fails with errGone when the record is not there any more.
func fetchAt(ctx context.Context, cfg eventlog.Config, tp eventlog.TopicPartition, offset int64, each func(*kgo.Record)) error {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	cl, err := cfg.NewClient(
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{tp.Topic: {tp.Partition: kgo.NewOffset().At(offset)}}),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchMaxPartitionBytes(256<<10),
	)
	if err != nil {
		return err
	}
	defer cl.Close()
	starts, err := kadm.NewClient(cl).ListStartOffsets(ctx, tp.Topic)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return err
	}
	if start, ok := starts.Lookup(tp.Topic, tp.Partition); !ok || offset < start.Offset {
		return errGone
	}
	for {
		fetches := cl.PollFetches(ctx)
		for _, e := range fetches.Errors() {
			return e.Err
		}
		found, past := false, false
		fetches.EachRecord(func(r *kgo.Record) {
			found = found || r.Offset == offset
			past = past || r.Offset > offset
			if r.Offset >= offset {
				each(r)
			}
		})
		if found {
			return nil
		}
		if past {
			return errGone
		}
	}
}

var errGone = errors.New("record is not there any more")

// newBackoff doubles from first to most, with jitter.
func newBackoff(first, most time.Duration) *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.Multiplier, b.RandomizationFactor = first, most, 2, 0.5
	b.Reset()
	return b
}

// sleep waits for d and says whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// quietLogger passes the client's errors on as warnings: it retries what it can
// by itself, and what it cannot shows in Status.
type quietLogger struct{ log *slog.Logger }

func (quietLogger) Level() kgo.LogLevel { return kgo.LogLevelError }
func (l quietLogger) Log(_ kgo.LogLevel, msg string, kv ...any) {
	l.log.Warn("kafka client: "+msg, kv...)
}
