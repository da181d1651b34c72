package consumer

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"tomato/eventlog"
)

// The pauses between two reads of the checkpoints while somebody waits for one.
const (
	positionsPoll       = 3 * time.Millisecond
	positionsPollLocal  = 200 * time.Millisecond // while all that is waited for is handled in this process
	positionsPollFailed = 100 * time.Millisecond // after a read that failed
)

// Positions knows how far consumers are. Workers of this process tell it, and it reads
// the checkpoints of partitions that other processes handle. All callers that wait
// share one query, and while nobody waits there are no queries. Made by NewPositions.
// Safe for concurrent use.
type Positions struct {
	// Ends ends the wait for a token that can never be reached. If it is nil, such a
	// wait lasts until its context ends.
	Ends *eventlog.Ends

	db *pgxpool.Pool

	mu      sync.Mutex                                   // guards what follows
	known   map[reader]map[eventlog.TopicPartition]int64 // next offsets; they only grow
	local   map[held]int                                 // how many workers of this process have the partition
	waiters map[*positionWaiter]struct{}
	readAt  map[reader]time.Time // when the checkpoints were last read for Reached
	polling bool
	hurry   chan struct{} // has something in it when a poll that waits for positionsPollLocal should not wait any longer
}

// held is a partition of a consumer that a worker of this process has.
type held struct {
	reader
	eventlog.TopicPartition
}

type reader struct {
	consumer   string
	generation int
}

type positionWaiter struct {
	reader
	need map[eventlog.TopicPartition]int64
	done chan struct{}
}

// NewPositions returns Positions on db. It starts nothing.
func NewPositions(db *pgxpool.Pool) *Positions {
	return &Positions{db: db, known: map[reader]map[eventlog.TopicPartition]int64{}, local: map[held]int{},
		waiters: map[*positionWaiter]struct{}{}, readAt: map[reader]time.Time{}, hurry: make(chan struct{}, 1)}
}

// WaitFor waits until the consumer has passed the token's positions in the given
// topics; the token's other topics are ignored. A position is passed when everything
// up to it has taken effect or is parked. WaitFor fails with ctx's error, or with
// eventlog.ErrUnknownToken.
func (p *Positions) WaitFor(ctx context.Context, consumer string, generation int, topics []string, token eventlog.Token) error {
	w := &positionWaiter{reader: reader{consumer, generation}, done: make(chan struct{})}
	for tp, o := range token {
		if slices.Contains(topics, tp.Topic) {
			if w.need == nil {
				w.need = make(map[eventlog.TopicPartition]int64, len(token))
			}
			w.need[tp] = o
		}
	}
	p.mu.Lock()
	if p.passed(w) {
		p.mu.Unlock()
		return nil
	}
	p.waiters[w] = struct{}{}
	switch {
	case !p.polling:
		p.polling = true
		go p.poll()
	case !p.handledHere(w):
		p.hurryUp()
	}
	p.mu.Unlock()
	ctx, stop := p.Ends.Watch(ctx, w.need)
	defer stop()
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		p.mu.Lock()
		delete(p.waiters, w)
		p.mu.Unlock()
		return context.Cause(ctx)
	}
}

// Reached returns what the consumer has passed by now, or somewhat less: workers of this
// process tell at once, and for those of other processes the checkpoints are read, a few
// times in a second at most. It fails with an error of Postgres.
func (p *Positions) Reached(consumer string, generation int) (eventlog.Token, error) {
	if p == nil {
		return nil, nil
	}
	r := reader{consumer, generation}
	p.mu.Lock()
	due := time.Since(p.readAt[r]) >= positionsPollLocal
	if due {
		p.readAt[r] = time.Now()
	}
	p.mu.Unlock()
	if due {
		if err := p.read([]string{consumer}, []int{generation}); err != nil {
			return nil, err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	token := make(eventlog.Token, len(p.known[r]))
	for tp, next := range p.known[r] {
		if next > 0 {
			token[tp] = next - 1
		}
	}
	return token, nil
}

// took notes that a worker of this process has the partition from now on, which has
// reached next. The worker calls reached for each further position.
func (p *Positions) took(consumer string, generation int, tp eventlog.TopicPartition, next int64) {
	if p == nil {
		return
	}
	p.mu.Lock()
	p.local[held{reader{consumer, generation}, tp}]++
	p.mu.Unlock()
	p.reached(consumer, generation, tp, next)
}

// released is called when a worker that took the partition has ended. Those who wait
// for it must look for the checkpoints of another process.
func (p *Positions) released(consumer string, generation int, tp eventlog.TopicPartition) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	h := held{reader{consumer, generation}, tp}
	if p.local[h]--; p.local[h] <= 0 {
		delete(p.local, h)
	}
	p.hurryUp()
}

// handledHere reports whether workers of this process have all partitions that w waits
// for. The caller holds mu.
func (p *Positions) handledHere(w *positionWaiter) bool {
	for tp := range w.need {
		if p.local[held{w.reader, tp}] == 0 {
			return false
		}
	}
	return true
}

func (p *Positions) hurryUp() {
	select {
	case p.hurry <- struct{}{}:
	default:
	}
}

// reached notes a position that a worker of this process has reached.
func (p *Positions) reached(consumer string, generation int, tp eventlog.TopicPartition, next int64) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	r := reader{consumer, generation}
	if p.known[r] == nil {
		p.known[r] = map[eventlog.TopicPartition]int64{}
	}
	p.known[r][tp] = max(next, p.known[r][tp])
	for w := range p.waiters {
		if w.reader == r && p.passed(w) {
			delete(p.waiters, w)
			close(w.done)
		}
	}
}

// passed reports whether the positions that w needs are passed. The caller holds mu.
func (p *Positions) passed(w *positionWaiter) bool {
	known := p.known[w.reader]
	for tp, o := range w.need {
		if next, ok := known[tp]; !ok || next <= o {
			return false
		}
	}
	return true
}

// poll reads the checkpoints of those consumers that somebody waits for, until nobody
// waits any more. If workers of this process have all partitions, they tell of each
// position at once. Then it reads seldom, for the case that another process has taken a
// partition and the worker here does not know it yet.
func (p *Positions) poll() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var lastRead time.Time
	for {
		p.mu.Lock()
		if len(p.waiters) == 0 {
			p.polling = false
			p.mu.Unlock()
			return
		}
		pause := positionsPollLocal
		wanted := map[reader]struct{}{}
		for w := range p.waiters {
			wanted[w.reader] = struct{}{}
			if !p.handledHere(w) {
				pause = positionsPoll
			}
		}
		p.mu.Unlock()
		if lastRead.IsZero() && pause == positionsPollLocal {
			lastRead = time.Now()
		}
		if time.Since(lastRead) >= pause {
			consumers, generations := make([]string, 0, len(wanted)), make([]int, 0, len(wanted))
			for r := range wanted {
				consumers, generations = append(consumers, r.consumer), append(generations, r.generation)
			}
			if err := p.read(consumers, generations); err != nil {
				pause = positionsPollFailed // those who wait have deadlines of their own
			}
			lastRead = time.Now()
		}
		timer.Reset(pause)
		select {
		case <-timer.C:
		case <-p.hurry:
		}
	}
}

// read reads the checkpoints of the given consumers, and wakes those whose positions
// are passed.
func (p *Positions) read(consumers []string, generations []int) error {
	ctx, cancel := context.WithTimeout(context.Background(), readTimeout)
	defer cancel()
	rows, err := p.db.Query(ctx, `SELECT consumer, generation, topic, partition, next_offset FROM tomato.checkpoints
		WHERE (consumer, generation) IN (SELECT * FROM unnest($1::text[], $2::int[]))`, consumers, generations)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var r reader
	var tp eventlog.TopicPartition
	var next int64
	_, err = pgx.ForEachRow(rows, []any{&r.consumer, &r.generation, &tp.Topic, &tp.Partition, &next}, func() error {
		if p.known[r] == nil {
			p.known[r] = map[eventlog.TopicPartition]int64{}
		}
		p.known[r][tp] = max(next, p.known[r][tp])
		return nil
	})
	for w := range p.waiters {
		if p.passed(w) {
			delete(p.waiters, w)
			close(w.done)
		}
	}
	return err
}

// Passed reports whether a consumer without generations has passed offset in the
// partition and has no parked event of key there. An offset below zero is always
// passed. It fails with an error of Postgres.
func (p *Positions) Passed(ctx context.Context, consumer, topic string, partition int32, offset int64, key string) (bool, error) {
	var next int64
	var parked bool
	err := p.db.QueryRow(ctx, `
		SELECT coalesce((SELECT next_offset FROM tomato.checkpoints
		                 WHERE consumer = $1 AND generation = 0 AND topic = $2 AND partition = $3), 0),
		       EXISTS (SELECT FROM tomato.parked WHERE consumer = $1 AND generation = 0 AND topic = $2 AND partition = $3
		               AND key = $4 AND state <> 'discarded')`,
		consumer, topic, partition, []byte(key)).Scan(&next, &parked)
	if err != nil {
		return false, fmt.Errorf("position of %s: %w", consumer, err)
	}
	return next > offset && !parked, nil
}
