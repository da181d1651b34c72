package feed

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"tomato/domain/rooms"
	"tomato/eventlog"
)

// History reads what was published before from the log. realtime.Projector has it.
type History interface {
	// Base returns what the base with this id says: for each log, the offset of the last
	// record that had been published, or -1. It fails with eventlog.ErrGone if the log
	// does not have it any more.
	Base(ctx context.Context, id int64) (passed map[eventlog.TopicPartition]int64, err error)
	// Read calls fn with the messages of the record at each offset, from one goroutine. The
	// offsets of a log are sorted and without duplicates. It fails with eventlog.ErrGone if
	// the log does not have a record any more. If the error is an eventlog.LogErrors, the
	// other logs were read.
	Read(ctx context.Context, at map[eventlog.TopicPartition][]int64, fn func(tp eventlog.TopicPartition, offset int64, messages []rooms.Message)) error
}

const (
	// batchRecords is how many records a client asks for at a time. So no client's long
	// absence holds up the others.
	batchRecords = 256
	// roundRecords is how many records one round reads from the log, for all who wait.
	roundRecords   = 4096
	readTimeout    = 10 * time.Second
	readCacheBytes = 16 << 20
	keptBases      = 64
)

// reader reads the history for all clients of a hub. Those who wait are served in rounds,
// in the order in which they came: a round reads what they ask for, each record once.
type reader struct {
	history History // nil: there is none, and everything is gone

	mu      sync.Mutex // guards what follows
	waiting []*readRequest
	running bool
	cache   *recent         // of the records read last
	bases   map[int64]*base // that were read or appended last
	oldest  []int64         // of bases, in the order in which they came
}

type readRequest struct {
	ctx     context.Context // of who waits
	records []record
	tp      func(log int) eventlog.TopicPartition
	all     [][]rooms.Message // as records; complete when done is closed
	err     error
	done    chan struct{}
}

func newReader() *reader {
	return &reader{cache: newRecent(readCacheBytes), bases: map[int64]*base{}}
}

// messages returns the messages of each record. at says which logs the records' numbers
// mean.
func (r *reader) messages(ctx context.Context, records []record, at *positions) ([][]rooms.Message, error) {
	tp := at.tp
	req := &readRequest{ctx: ctx, records: records, tp: tp, all: make([][]rooms.Message, len(records)), done: make(chan struct{})}
	r.mu.Lock()
	if r.history == nil {
		r.mu.Unlock()
		return nil, eventlog.ErrGone
	}
	r.waiting = append(r.waiting, req)
	if !r.running {
		r.running = true
		go r.run()
	}
	r.mu.Unlock()
	select {
	case <-req.done:
		return req.all, req.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// run serves rounds until nobody waits.
func (r *reader) run() {
	for {
		r.mu.Lock()
		r.waiting = slices.DeleteFunc(r.waiting, func(req *readRequest) bool { return req.ctx.Err() != nil })
		n, total := 0, 0
		for n < len(r.waiting) && (n == 0 || total+len(r.waiting[n].records) <= roundRecords) {
			total += len(r.waiting[n].records)
			n++
		}
		round := slices.Clone(r.waiting[:n])
		r.waiting = slices.Delete(r.waiting, 0, n)
		r.running = n > 0
		r.mu.Unlock()
		if n == 0 {
			return
		}
		r.serve(round)
		for _, req := range round {
			close(req.done)
		}
	}
}

// serve reads what the requests of a round ask for. A log that cannot be read fails only
// the requests that ask for its records. All of it takes no longer than readTimeout.
func (r *reader) serve(round []*readRequest) {
	ctx, cancel := context.WithTimeout(context.Background(), readTimeout)
	defer cancel()
	err := r.round(ctx, round)
	var logs eventlog.LogErrors
	switch {
	case errors.As(err, &logs):
		for _, req := range round {
			for _, rec := range req.records {
				if err := logs[req.tp(rec.log())]; err != nil {
					req.err = err
					break
				}
			}
		}
	case err != nil && len(round) > 1: // the error does not say whose it is
		for _, req := range round {
			if req.err = req.ctx.Err(); req.err == nil {
				req.err = r.round(ctx, []*readRequest{req})
			}
		}
	case err != nil:
		round[0].err = err
	}
}

func (r *reader) round(ctx context.Context, round []*readRequest) (err error) {
	found := map[record][]rooms.Message{}
	at := map[eventlog.TopicPartition][]int64{}
	logs := map[eventlog.TopicPartition]int{}
	r.mu.Lock()
	for _, req := range round {
		for _, rec := range req.records {
			if _, ok := found[rec]; ok {
				continue
			}
			all, ok := r.cache.get(rec)
			found[rec] = all
			if !ok {
				tp := req.tp(rec.log())
				at[tp], logs[tp] = append(at[tp], rec.offset()), rec.log()
			}
		}
	}
	r.mu.Unlock()
	if len(at) > 0 {
		for tp := range at {
			slices.Sort(at[tp])
		}
		err = r.history.Read(ctx, at, func(tp eventlog.TopicPartition, offset int64, all []rooms.Message) {
			rec := newRecord(logs[tp], offset)
			found[rec] = all
			r.mu.Lock()
			r.cache.add(rec, all)
			r.mu.Unlock()
		})
	}
	for _, req := range round {
		for i, rec := range req.records {
			req.all[i] = found[rec]
		}
	}
	return err
}

// base returns the base with this id, from memory or from the log.
func (r *reader) base(ctx context.Context, id int64) (*base, error) {
	r.mu.Lock()
	b, history := r.bases[id], r.history
	r.mu.Unlock()
	if b != nil {
		return b, nil
	}
	if history == nil {
		return nil, eventlog.ErrGone
	}
	passed, err := history.Base(ctx, id)
	if err != nil {
		return nil, err
	}
	b = &base{id, 0, positionsOf(passed)}
	r.keep(b)
	return b, nil
}

func (r *reader) keep(b *base) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.bases[b.id] != nil {
		return
	}
	r.bases[b.id] = b
	if r.oldest = append(r.oldest, b.id); len(r.oldest) > keptBases {
		delete(r.bases, r.oldest[0])
		r.oldest = slices.Delete(r.oldest, 0, 1)
	}
}

// gone reports whether the error means that the log does not have something any more.
func gone(err error) bool { return errors.Is(err, eventlog.ErrGone) }

// Older takes a part of the logs from before the start into the index: the records after
// from, which read gives to its argument. It reports whether there is room for older parts.
// One goroutine calls it, with the newest part first.
func (h *Hub) Older(from map[eventlog.TopicPartition]int64, read func(fn func(tp eventlog.TopicPartition, offset int64, appended time.Time, messages []rooms.Message)) error) (more bool, err error) {
	h.mu.Lock()
	epoch, index := h.epoch, h.index
	h.mu.Unlock()
	past := index.newPast(positionsOf(from))
	if err := read(past.add); err != nil {
		return false, err
	}
	parts := past.parts()
	h.mu.Lock()
	defer h.mu.Unlock()
	if epoch != h.epoch {
		return false, nil
	}
	more = h.index.prepend(past.begin, parts)
	h.metrics.indexed.Set(float64(h.index.bytes))
	h.wakeGrown()
	return more, nil
}

// NoOlder is told that there are no older parts.
func (h *Hub) NoOlder() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.noOlder = true
	h.wakeGrown()
}

func (h *Hub) wakeGrown() {
	close(h.grown)
	h.grown = make(chan struct{})
}
