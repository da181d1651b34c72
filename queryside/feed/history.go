package feed

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"tomato/domain/rooms"
	"tomato/eventlog"
)

// History reads what was published before from the log. realtime.Projector has it.
type History interface {
	// Base returns the base with this id. It fails with eventlog.ErrGone if the log does not
	// have it any more, and with eventlog.ErrUnknownToken if it has not had it yet.
	Base(ctx context.Context, id int64) (eventlog.FeedBase, error)
	// BaseUpTo returns the newest base with this id or a lower one. It fails with
	// eventlog.ErrGone if the log has none.
	BaseUpTo(ctx context.Context, id int64) (eventlog.FeedBase, error)
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
	cache   *recent             // of the records read last
	bases   map[int64]*base     // that were read or appended last, and current
	oldest  []int64             // of bases, in the order in which they came
	current *base               // the hub's own, which is never dropped
	flights *singleflight.Group // reads of bases
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
	return &reader{cache: newRecent(readCacheBytes), bases: map[int64]*base{}, flights: &singleflight.Group{}}
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
	b := r.bases[id]
	r.mu.Unlock()
	if b != nil {
		return b, nil
	}
	return r.readBase(ctx, strconv.FormatInt(id, 10), func(ctx context.Context) (eventlog.FeedBase, error) { return r.history.Base(ctx, id) })
}

// baseUpTo returns the newest base with this id or a lower one. Of an id that is not below
// the hub's own base, that base is as good: what an older one has, was published before.
func (r *reader) baseUpTo(ctx context.Context, id int64) (*base, error) {
	r.mu.Lock()
	found := r.bases[id]
	if r.current != nil && r.current.id != eventlog.NoFeedBase && r.current.id <= id {
		found = r.current
	}
	for _, b := range r.bases { // the hub's own bases follow one another closely
		if b.epoch > 0 && b.id <= id && (found == nil || found.id < b.id) {
			found = b
		}
	}
	r.mu.Unlock()
	if found != nil {
		return found, nil
	}
	return r.readBase(ctx, "up to "+strconv.FormatInt(id, 10), func(ctx context.Context) (eventlog.FeedBase, error) { return r.history.BaseUpTo(ctx, id) })
}

// readBase reads a base from the log. All who need the same one at the same time, which
// the name tells, share one reading.
func (r *reader) readBase(ctx context.Context, name string, read func(context.Context) (eventlog.FeedBase, error)) (*base, error) {
	r.mu.Lock()
	flights, history := r.flights, r.history
	r.mu.Unlock()
	if history == nil {
		return nil, eventlog.ErrGone
	}
	answer := flights.DoChan(name, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.Background(), readTimeout) // whoever of them goes away
		defer cancel()
		found, err := read(ctx)
		if err != nil {
			return nil, err
		}
		b := newBase(found)
		r.mu.Lock()
		same := r.flights == flights
		r.mu.Unlock()
		if same { // the hub has not begun anew
			r.keep(b)
		}
		return b, nil
	})
	select {
	case a := <-answer:
		if a.Err != nil {
			return nil, a.Err
		}
		return a.Val.(*base), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// begin forgets all bases and keeps the first one of a new beginning: the logs may be other
// ones now, and have other bases at the same offsets.
func (r *reader) begin(b *base) {
	r.mu.Lock()
	r.bases, r.oldest, r.flights = map[int64]*base{}, nil, &singleflight.Group{}
	r.mu.Unlock()
	r.setCurrent(b)
}

// setCurrent keeps the base that is the hub's own from now on. It is in the cursors of all
// clients, so it stays in memory whatever else is read.
func (r *reader) setCurrent(b *base) {
	r.mu.Lock()
	r.current = b
	r.mu.Unlock()
	r.keep(b)
}

// keep keeps a base in memory, and drops the oldest one if there are too many.
func (r *reader) keep(b *base) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if b.id == eventlog.NoFeedBase || r.bases[b.id] != nil {
		return
	}
	r.bases[b.id] = b
	r.oldest = append(r.oldest, b.id)
	for i := 0; len(r.oldest) > keptBases; i++ {
		if r.current != nil && r.oldest[i] == r.current.id {
			continue
		}
		delete(r.bases, r.oldest[i])
		r.oldest = slices.Delete(r.oldest, i, i+1)
		break
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

// Reaches is told that no part of the logs from before the start will have anything up to
// from. So a client from before that must reload, and need not wait until the rest is read.
func (h *Hub) Reaches(from map[eventlog.TopicPartition]int64) {
	p := positionsOf(from)
	h.mu.Lock()
	defer h.mu.Unlock()
	if p.partitions == h.at.partitions {
		h.reach = indexed(p.done, p.partitions)
		h.wakeGrown()
	}
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
