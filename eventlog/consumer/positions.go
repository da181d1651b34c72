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

// positionsPoll is the pause between two looks at the checkpoints while
// somebody waits for one.
const positionsPoll = 3 * time.Millisecond

// Positions answers how far consumers have come, from their checkpoints. Those
// who wait share one query; while nobody waits, none runs. Safe for concurrent
// use; made by NewPositions.
type Positions struct {
	// Ends ends the wait for a token that can never be passed; nil: it lasts as
	// long as its context.
	Ends *eventlog.Ends

	db *pgxpool.Pool

	mu      sync.Mutex                                   // guards what follows
	known   map[reader]map[eventlog.TopicPartition]int64 // next offsets; they only grow
	waiters map[*positionWaiter]struct{}
	polling bool
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
	return &Positions{db: db, known: map[reader]map[eventlog.TopicPartition]int64{}, waiters: map[*positionWaiter]struct{}{}}
}

// WaitFor waits until the consumer has passed the token's positions in the
// given topics; other topics of the token are none of its business. It fails
// with ctx's error, or with ErrUnknownToken. A position counts as passed when
// everything up to it has taken effect or is parked.
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
	if !p.polling {
		p.polling = true
		go p.poll()
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

// moved tells of a checkpoint that this process has moved, after its commit.
func (p *Positions) moved(consumer string, generation int, tp eventlog.TopicPartition, next int64) {
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

// passed is called with mu held.
func (p *Positions) passed(w *positionWaiter) bool {
	known := p.known[w.reader]
	for tp, o := range w.need {
		if next, ok := known[tp]; !ok || next <= o {
			return false
		}
	}
	return true
}

// poll looks at the checkpoints of those consumers that somebody waits for,
// until nobody does.
func (p *Positions) poll() {
	timer := time.NewTimer(positionsPoll)
	defer timer.Stop()
	for {
		p.mu.Lock()
		if len(p.waiters) == 0 {
			p.polling = false
			p.mu.Unlock()
			return
		}
		wanted := map[reader]struct{}{}
		for w := range p.waiters {
			wanted[w.reader] = struct{}{}
		}
		p.mu.Unlock()
		consumers, generations := make([]string, 0, len(wanted)), make([]int, 0, len(wanted))
		for r := range wanted {
			consumers, generations = append(consumers, r.consumer), append(generations, r.generation)
		}
		pause := positionsPoll
		if err := p.look(consumers, generations); err != nil {
			pause = 100 * time.Millisecond // whoever waits finds out by its deadline
		}
		timer.Reset(pause)
		<-timer.C
	}
}

func (p *Positions) look(consumers []string, generations []int) error {
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

// Passed says whether a consumer without generations has passed offset in the
// partition and has nothing parked of key there. An offset below zero, that of
// the record before the first, is always passed.
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
